package otlp

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	logspb "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	resource "go.opentelemetry.io/proto/otlp/resource/v1"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// expected is what Rewrite must do, said with the official types and no concern for speed.
type expected struct {
	msg     proto.Message
	records int
	signals []*logs.LogRecord
}

func expect(t testing.TB, kind Kind, body, badge []byte) (expected, error) {
	t.Helper()
	e := expected{msg: newRequest(kind)}
	if err := proto.Unmarshal(body, e.msg); err != nil {
		return e, err
	}
	for _, r := range children(e.msg.ProtoReflect(), 1) {
		if err := migrate(r); err != nil {
			return e, err
		}
	}
	if kind == Logs {
		e.takeSignals(eventNames(body, 1, 2, 2))
	}
	strip(e.msg.ProtoReflect())
	var worn resource.Resource
	if err := proto.Unmarshal(badge, &worn); err != nil {
		t.Fatal("badge: ", err)
	}
	for _, r := range children(e.msg.ProtoReflect(), 1) {
		res := r.Mutable(r.Descriptor().Fields().ByNumber(1)).Message().Interface().(*resource.Resource)
		res.Attributes = append(res.Attributes, worn.Attributes...)
	}
	e.records = count(e.msg.ProtoReflect())
	return e, nil
}

func children(m protoreflect.Message, num protowire.Number) []protoreflect.Message {
	list := m.Get(m.Descriptor().Fields().ByNumber(num)).List()
	var out []protoreflect.Message
	for i := range list.Len() {
		out = append(out, list.Get(i).Message())
	}
	return out
}

// migrate moves field 1000 of a ResourceLogs and its like to where the scopes live today.
func migrate(r protoreflect.Message) error {
	var kept []byte
	scopes := r.Descriptor().Fields().ByNumber(2)
	for b := r.GetUnknown(); len(b) > 0; {
		num, typ, n := protowire.ConsumeTag(b)
		size := protowire.ConsumeFieldValue(num, typ, b[n:])
		if num == legacyScopes && typ == protowire.BytesType {
			v, _ := protowire.ConsumeBytes(b[n:])
			scope := r.Mutable(scopes).List().AppendMutable().Message()
			if err := proto.Unmarshal(v, scope.Interface()); err != nil {
				return err
			}
		} else {
			kept = append(kept, b[:n+size]...)
		}
		b = b[n+size:]
	}
	r.SetUnknown(kept)
	return nil
}

func forgedKey(s string) bool {
	return strings.HasPrefix(strings.ToLower(s), "flowstate.") && s[0] < 0x80
}

// strip removes the client's flowstate.* from every place of an attribute.
func strip(m protoreflect.Message) {
	if m.Descriptor().Name() == "KeyValueList" || m.Descriptor().Name() == "AnyValue" {
		return
	}
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsList() && fd.Message() != nil && fd.Message().Name() == "KeyValue":
			filter(v.List(), func(v protoreflect.Value) bool { return !forgedKey(v.Message().Interface().(*common.KeyValue).Key) })
		case fd.IsList() && m.Descriptor().Name() == "EntityRef":
			filter(v.List(), func(v protoreflect.Value) bool { return !forgedKey(v.String()) })
		case fd.IsList() && fd.Message() != nil:
			for i := range v.List().Len() {
				strip(v.List().Get(i).Message())
			}
		case fd.Message() != nil:
			strip(v.Message())
		}
		return true
	})
}

func filter(list protoreflect.List, keep func(protoreflect.Value) bool) {
	n := 0
	for i := range list.Len() {
		if v := list.Get(i); keep(v) {
			list.Set(n, v)
			n++
		}
	}
	list.Truncate(n)
}

// eventNames lists, for each record in order, every event_name on the wire; the official types keep the last.
func eventNames(b []byte, path ...protowire.Number) [][]string {
	var out [][]string
	var names []string
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		size := protowire.ConsumeFieldValue(num, typ, b[n:])
		if typ == protowire.BytesType {
			v, _ := protowire.ConsumeBytes(b[n:])
			switch {
			case len(path) == 0 && num == 12:
				names = append(names, string(v))
			case len(path) > 0 && (num == path[0] || num == legacyScopes && len(path) == 2):
				out = append(out, eventNames(v, path[1:]...)...)
			}
		}
		b = b[n+size:]
	}
	if len(path) == 0 {
		return [][]string{names}
	}
	return out
}

func (e *expected) takeSignals(names [][]string) {
	req := e.msg.(*logspb.ExportLogsServiceRequest)
	var resources []*logs.ResourceLogs
	for _, r := range req.ResourceLogs {
		var scopes []*logs.ScopeLogs
		for _, s := range r.ScopeLogs {
			var kept []*logs.LogRecord
			for _, rec := range s.LogRecords {
				signal := officialSignal(rec, names[0])
				names = names[1:]
				if signal {
					e.signals = append(e.signals, rec)
				} else {
					kept = append(kept, rec)
				}
			}
			if len(kept) > 0 || len(s.LogRecords) == 0 {
				s.LogRecords = kept
				scopes = append(scopes, s)
			}
		}
		if len(scopes) > 0 || len(r.ScopeLogs) == 0 {
			r.ScopeLogs = scopes
			resources = append(resources, r)
		}
	}
	req.ResourceLogs = resources
}

func officialSignal(r *logs.LogRecord, eventNames []string) bool {
	names := func(s string) bool {
		return strings.TrimSpace(s) != "" && strings.EqualFold(strings.TrimSpace(s), signalEvent) && len(strings.TrimSpace(s)) == len(signalEvent)
	}
	if slices.ContainsFunc(eventNames, names) {
		return true
	}
	for _, a := range r.Attributes {
		if a.Key == "event.name" && names(a.Value.GetStringValue()) {
			return true
		}
	}
	return false
}

// count counts records: the messages that the ledger calls so.
func count(m protoreflect.Message) int {
	switch m.Descriptor().Name() {
	case "LogRecord", "Span", "NumberDataPoint", "HistogramDataPoint", "ExponentialHistogramDataPoint", "SummaryDataPoint":
		return 1
	}
	n := 0
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsList() && fd.Message() != nil:
			for i := range v.List().Len() {
				n += count(v.List().Get(i).Message())
			}
		case fd.Message() != nil:
			n += count(v.Message())
		}
		return true
	})
	return n
}

// checkRewrite holds Rewrite against the oracle, for a body that it accepts.
func checkRewrite(t testing.TB, kind Kind, body []byte) ([]byte, Result) {
	t.Helper()
	badge := testBadge()
	want, err := expect(t, kind, body, badge)
	if err != nil {
		t.Fatalf("the official types refuse the body: %v", err)
	}
	var seen []*logs.LogRecord
	out, res, err := Rewrite([]byte("before"), kind, body, badge, func(s *SignalRecord) {
		rec := &logs.LogRecord{}
		if err := proto.Unmarshal(s.Raw, rec); err != nil {
			t.Errorf("raw bytes of a signal: %v", err)
		}
		seen = append(seen, rec)
	})
	if err != nil {
		t.Fatal(err)
	}
	rest, ok := bytes.CutPrefix(out, []byte("before"))
	if !ok {
		t.Fatal("what stood in dst is gone")
	}
	if res.Records != want.records || res.Signals != len(want.signals) || len(seen) != res.Signals {
		t.Fatalf("counted %+v, visited %d; want %d records and %d signals", res, len(seen), want.records, len(want.signals))
	}
	for i, s := range seen {
		if !proto.Equal(s, want.signals[i]) {
			t.Errorf("signal %d:\ngot  %v\nwant %v", i, s, want.signals[i])
		}
	}
	// The same Rewriter again, and with each signal dropped that may be: neither changes what comes out.
	var r Rewriter
	for _, drops := range []bool{true, false, true} {
		dropped := 0
		again, res2, err := r.Rewrite(nil, kind, body, badge, Visitor{Drop: func([]byte) bool {
			if drops {
				dropped++
			}
			return drops
		}, Visit: func(*SignalRecord) { dropped++ }})
		if err != nil || res2 != res || dropped != res.Signals || !bytes.Equal(again, rest) {
			t.Fatalf("again: %+v and %d (%v), %d bytes; want %+v, %d bytes", res2, dropped, err, len(again), res, len(rest))
		}
		if len(again) > len(body)+r.w.resources*(len(badge)+lengths) {
			t.Fatalf("%d bytes are more than was reckoned with", len(again))
		}
	}
	if res.Records == 0 {
		if len(rest) != 0 {
			t.Fatalf("nothing is left, and yet %d bytes come out", len(rest))
		}
		return nil, res
	}
	got := newRequest(kind)
	if err := proto.Unmarshal(rest, got); err != nil {
		t.Fatalf("output: %v", err)
	}
	if !proto.Equal(got, want.msg) {
		t.Fatalf("\ngot  %v\nwant %v", got, want.msg)
	}
	return rest, res
}
