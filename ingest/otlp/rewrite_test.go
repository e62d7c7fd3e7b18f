package otlp

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	logspb "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	metrics "go.opentelemetry.io/proto/otlp/metrics/v1"
	resource "go.opentelemetry.io/proto/otlp/resource/v1"
	trace "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

func TestRewriteSplicesTheBadge(t *testing.T) {
	for _, kind := range kinds {
		for _, n := range []int{1, 3, 40} {
			out, res := checkRewrite(t, kind, marshal(t, agentRequest(kind, n)))
			want := n
			if kind == Metrics {
				want = 5 * n
			}
			if res != (Result{Records: want}) {
				t.Errorf("%v × %d: %+v", kind, n, res)
			}
			if got := bytes.Count(out, []byte("flowstate.org")); got != 1 {
				t.Errorf("%v: %d badges in one resource", kind, got)
			}
		}
	}
}

// field and the like write what no encoder would.
func lenField(num protowire.Number, parts ...[]byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), slices.Concat(parts...))
}

func varintField(num protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(nil, num, protowire.VarintType), v)
}

// logsWith is a request of one resource: the fields of it that are given, then one scope with a record of these fields.
func logsWith(resourceFields []byte, record ...[]byte) []byte {
	return lenField(1, resourceFields, lenField(2, lenField(2, record...)))
}

func TestRewriteResourceField(t *testing.T) {
	attr := func(k, v string) []byte { return lenField(1, marshal(t, str(k, v))) }
	tests := map[string][]byte{
		"absent":               logsWith(nil),
		"empty":                logsWith(lenField(1)),
		"once":                 logsWith(lenField(1, attr("service.name", "a"))),
		"twice":                logsWith(slices.Concat(lenField(1, attr("a", "1")), lenField(1, attr("b", "2")))),
		"twice, once forged":   logsWith(slices.Concat(lenField(1, attr("a", "1")), lenField(1, attr("flowstate.org", "evil"), attr("c", "3")))),
		"twice, around scopes": lenField(1, lenField(1, attr("a", "1")), lenField(2, lenField(2)), lenField(1, attr("flowstate.org", "evil")), lenField(3, []byte("url"))),
		"two resources":        slices.Concat(logsWith(lenField(1, attr("a", "1"))), logsWith(nil)),
		"unknown fields":       slices.Concat(varintField(77, 5), logsWith(slices.Concat(lenField(1, varintField(99, 1), attr("a", "1")), lenField(12, []byte("x"))), varintField(500, 1))),
		"field 1000, the scopes of old": lenField(1, lenField(1, attr("a", "1")), lenField(legacyScopes,
			lenField(1, lenField(1, []byte("old"))), lenField(2, lenField(6, marshal(t, str("flowstate.org", "evil")))))),
	}
	for name, body := range tests {
		t.Run(name, func(t *testing.T) {
			out, _ := checkRewrite(t, Logs, body)
			var req logspb.ExportLogsServiceRequest
			if err := proto.Unmarshal(out, &req); err != nil {
				t.Fatal(err)
			}
			for _, r := range req.ResourceLogs {
				orgs := 0
				for _, a := range r.GetResource().GetAttributes() {
					if a.Key == "flowstate.org" {
						orgs++
						if a.Value.GetStringValue() != "acme" {
							t.Errorf("worn: %v", a)
						}
					}
				}
				if orgs != 1 {
					t.Errorf("%d badges", orgs)
				}
			}
		})
	}
}

// TestRewriteSendsOneResourceField holds what the official types would hide by merging: a reader that takes the last
// resource field must see the badge and the client's attributes too.
func TestRewriteSendsOneResourceField(t *testing.T) {
	body := logsWith(slices.Concat(lenField(1, lenField(1, marshal(t, str("a", "1")))), lenField(1, lenField(1, marshal(t, str("b", "2"))))))
	out, _ := checkRewrite(t, Logs, body)
	f := fields{b: out}
	f.next()
	n := 0
	for r := (fields{b: f.val}); r.next(); {
		if r.num == 1 {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d resource fields", n)
	}
}

func TestRewriteStripsForgedAttributes(t *testing.T) {
	evil := []*common.KeyValue{str("flowstate.org", "evil"), str("keep", "1"), str("Flowstate.Subject.ID", "evil"), str("FLOWSTATE.", ""), str("flowstate", "kept"), str("flowstates.x", "kept")}
	scope := func() *common.InstrumentationScope {
		return &common.InstrumentationScope{Name: "s", Attributes: evil, DroppedAttributesCount: 2}
	}
	res := &resource.Resource{Attributes: evil, EntityRefs: []*common.EntityRef{
		{Type: "service", IdKeys: []string{"flowstate.org", "service.name"}, DescriptionKeys: []string{"Flowstate.x", "y"}},
	}}
	inside := &common.KeyValue{Key: "value", Value: &common.AnyValue{Value: &common.AnyValue_KvlistValue{KvlistValue: &common.KeyValueList{Values: evil}}}}

	logsReq := agentLogs(2)
	logsReq.ResourceLogs[0].Resource, logsReq.ResourceLogs[0].ScopeLogs[0].Scope = res, scope()
	logsReq.ResourceLogs[0].ScopeLogs[0].LogRecords[1].Attributes = append([]*common.KeyValue{inside}, evil...)

	spansReq := agentSpans(2)
	spansReq.ResourceSpans = append(spansReq.ResourceSpans, &trace.ResourceSpans{Resource: res})
	spansReq.ResourceSpans[0].ScopeSpans[0].Scope = scope()
	span := spansReq.ResourceSpans[0].ScopeSpans[0].Spans[1]
	span.Attributes = append(span.Attributes, evil...)
	span.Events[0].Attributes = evil
	span.Links[0].Attributes = evil

	metricsReq := agentMetrics(2)
	for _, m := range metricsReq.ResourceMetrics[0].ScopeMetrics[0].Metrics {
		m.Metadata = evil
	}
	ms := metricsReq.ResourceMetrics[0].ScopeMetrics[0].Metrics
	ms[0].GetGauge().DataPoints[0].Attributes = evil
	ms[1].GetSum().DataPoints[1].Exemplars = []*metrics.Exemplar{{FilteredAttributes: evil}}
	ms[2].GetHistogram().DataPoints[0].Attributes = evil
	ms[3].GetExponentialHistogram().DataPoints[0].Attributes = evil
	ms[4].GetSummary().DataPoints[0].Attributes = evil

	for _, tt := range []struct {
		kind     Kind
		msg      proto.Message
		stripped int
	}{{Logs, logsReq, 3 + 2 + 3 + 3}, {Spans, spansReq, 3 + 2 + 4*3}, {Metrics, metricsReq, 3 * (5 + 5)}} {
		t.Run(tt.kind.String(), func(t *testing.T) {
			out, res := checkRewrite(t, tt.kind, marshal(t, tt.msg))
			if res.Stripped != tt.stripped {
				t.Errorf("stripped %d, want %d", res.Stripped, tt.stripped)
			}
			evils := bytes.Count(out, []byte("evil"))
			if want := map[Kind]int{Logs: 2}[tt.kind]; evils != want { // inside a value they are the client's own words
				t.Errorf("%d evils in the output, want %d", evils, want)
			}
		})
	}
}

func TestRewriteKeepsWhatOnlyMentionsTheNamespace(t *testing.T) {
	req := agentLogs(3)
	req.ResourceLogs[0].ScopeLogs[0].LogRecords[0].Body = strValue("what are flowstate.org and flowstate.signal?")
	body := marshal(t, req)
	out, res := checkRewrite(t, Logs, body)
	if res.Stripped != 0 || !bytes.Contains(out, []byte("what are flowstate.org")) {
		t.Errorf("%+v", res)
	}
}

func TestRewriteOfNothing(t *testing.T) {
	for name, body := range map[string][]byte{
		"empty body":         nil,
		"empty resource":     lenField(1),
		"empty scope":        lenField(1, lenField(2)),
		"only unknown":       varintField(9, 1),
		"resource, no scope": lenField(1, lenField(1, lenField(1, marshal(t, str("flowstate.org", "evil"))))),
	} {
		for _, kind := range kinds {
			out, res, err := Rewrite([]byte("x"), kind, body, testBadge(), nil)
			if err != nil || res.Records != 0 || string(out) != "x" {
				t.Errorf("%s as %v: %q %+v %v", name, kind, out, res, err)
			}
		}
	}
}

func TestRewriteRefuses(t *testing.T) {
	record := func(parts ...[]byte) []byte { return logsWith(nil, parts...) }
	value := func(parts ...[]byte) []byte { return record(lenField(5, parts...)) }
	attribute := func(parts ...[]byte) []byte { return record(lenField(6, parts...)) }
	tests := []struct {
		name   string
		body   []byte
		reason Reason
	}{
		{"a tag alone", []byte{0x0a}, Truncated},
		{"a length past the end", []byte{0x0a, 5, 0}, Truncated},
		{"a huge length", []byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}, Truncated},
		{"a varint without an end", []byte{0x80}, Truncated},
		{"a varint of eleven bytes", append(bytes.Repeat([]byte{0x80}, 10), 1), BadVarint},
		{"a varint too large", append(bytes.Repeat([]byte{0xff}, 9), 2), BadVarint},
		{"field 0", []byte{0x02, 0}, BadNumber},
		{"a field number too large", protowire.AppendVarint(nil, 1<<32|2), BadNumber},
		{"JSON", []byte(`{"resourceLogs":[]}`), Group},
		{"a group", []byte{0x7b, 0x7c}, Group},
		{"the end of a group", []byte{0x7c}, Group},
		{"wire type 6", []byte{0x7e}, BadWireType},
		{"a resource that is a number", varintField(1, 1), WrongWireType},
		{"a record that is a number", lenField(1, lenField(2, varintField(2, 1))), WrongWireType},
		{"a time that is a string", record(lenField(1, []byte("12345678"))), WrongWireType},
		{"half a time", record([]byte{0x09, 1, 2, 3}), Truncated},
		{"half of the flags", record([]byte{0x45, 1, 2}), Truncated},
		{"severity_text not UTF-8", record(lenField(3, []byte("\xff"))), BadUTF8},
		{"event_name not UTF-8", record(lenField(12, []byte("12345678\xc0\xaf"))), BadUTF8},
		{"key not UTF-8", attribute(lenField(1, []byte("\xed\xa0\x80"))), BadUTF8},
		{"string value not UTF-8", value(lenField(1, []byte("a\x80"))), BadUTF8},
		{"key given twice", attribute(lenField(1, []byte("a")), lenField(1, []byte("flowstate.org"))), KeyTwice},
		{"value given twice", attribute(lenField(2, lenField(1, nil)), lenField(2, varintField(2, 1))), ValueTwice},
		{"two values in one", value(lenField(1, []byte("a")), varintField(3, 1)), ValueTwice},
		{"the same value twice", value(lenField(1, []byte("a")), lenField(1, []byte("b"))), ValueTwice},
		{"a key that is a number", attribute(varintField(1, 1)), WrongWireType},
		{"a value that is a number", attribute(varintField(2, 1)), WrongWireType},
		{"an int value that is a string", value(lenField(3, nil)), WrongWireType},
		{"an array of numbers", value(lenField(5, varintField(1, 1))), WrongWireType},
		{"a group in a value", value([]byte{0x7b, 0x7c}), Group},
		{"trace id of 15 bytes", record(lenField(9, make([]byte, 15))), IDLength},
		{"span id of 16 bytes", record(lenField(10, make([]byte, 16))), IDLength},
		{"field 1000 that is no scope", lenField(1, lenField(legacyScopes, []byte{0x12})), Truncated},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out, res, err := Rewrite([]byte("x"), Logs, tt.body, testBadge(), func(*SignalRecord) { t.Error("visited") })
			var m *MalformedError
			if !errors.As(err, &m) || !errors.Is(err, ErrMalformed) || m.Reason != tt.reason || m.In == "" || !strings.HasPrefix(err.Error(), "malformed OTLP: ") {
				t.Errorf("error %v, want %q", err, tt.reason)
			}
			if string(out) != "x" || res != (Result{}) {
				t.Errorf("out %q, %+v", out, res)
			}
		})
	}
	point := lenField(1, lenField(1, nil))
	histogram := func(f []byte) []byte { return lenField(1, lenField(2, lenField(2, lenField(9, lenField(1, f))))) }
	for name, tt := range map[string]struct {
		body   []byte
		reason Reason
	}{
		"gauge and sum": {lenField(1, lenField(2, lenField(2, lenField(5, point), lenField(7, point)))), TwoKinds},
		"packed":        {histogram(lenField(6, make([]byte, 12))), BadPacked},
	} {
		var m *MalformedError
		if _, _, err := Rewrite(nil, Metrics, tt.body, nil, nil); !errors.As(err, &m) || m.Reason != tt.reason {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRewriteBoundsDepth(t *testing.T) {
	nested := func(depth int, kvlist bool) []byte {
		v := marshal(t, strValue("x"))
		for range depth - 1 {
			if kvlist {
				v = lenField(6, lenField(1, lenField(1, []byte("k")), lenField(2, v)))
			} else {
				v = lenField(5, lenField(1, v))
			}
		}
		return v
	}
	for _, kvlist := range []bool{false, true} {
		for _, body := range [][]byte{
			logsWith(nil, lenField(5, nested(MaxDepth, kvlist))),
			logsWith(nil, lenField(6, lenField(1, []byte("a")), lenField(2, nested(MaxDepth, kvlist)))),
		} {
			checkRewrite(t, Logs, body)
		}
		var m *MalformedError
		for _, depth := range []int{MaxDepth + 1, 5000} {
			_, _, err := Rewrite(nil, Logs, logsWith(nil, lenField(5, nested(depth, kvlist))), nil, nil)
			if !errors.As(err, &m) || m.Reason != TooDeep {
				t.Errorf("depth %d: %v", depth, err)
			}
		}
	}
}

func TestRewriteTakesRepeatedNumbersPackedOrNot(t *testing.T) {
	loose := slices.Concat(
		protowire.AppendFixed64(protowire.AppendTag(nil, 6, protowire.Fixed64Type), 7),
		protowire.AppendFixed64(protowire.AppendTag(nil, 7, protowire.Fixed64Type), 8),
		lenField(6, make([]byte, 16)))
	body := lenField(1, lenField(2, lenField(2, lenField(9, lenField(1, loose)))))
	checkRewrite(t, Metrics, body)
	buckets := lenField(8, varintField(2, 300), lenField(2, []byte{1, 0xac, 0x02}))
	checkRewrite(t, Metrics, lenField(1, lenField(2, lenField(2, lenField(10, lenField(1, buckets))))))
}

func TestRewriteLeavesTheBodyAlone(t *testing.T) {
	req := agentLogs(3)
	req.ResourceLogs[0].Resource.Attributes = append(req.ResourceLogs[0].Resource.Attributes, str("flowstate.org", "evil"))
	req.ResourceLogs[0].ScopeLogs[0].LogRecords[1] = &logs.LogRecord{EventName: signalEvent}
	body := marshal(t, req)
	before := bytes.Clone(body)
	checkRewrite(t, Logs, body)
	if !bytes.Equal(body, before) {
		t.Error("Rewrite wrote into the body")
	}
}

func TestRewriteOutputIsStable(t *testing.T) {
	for _, kind := range kinds {
		first, _ := checkRewrite(t, kind, marshal(t, agentRequest(kind, 3)))
		second, _ := checkRewrite(t, kind, first) // a badge of another edge is a forgery like any other
		if !bytes.Equal(first, second) {
			t.Errorf("%v: rewriting twice differs from rewriting once", kind)
		}
	}
}

func TestRewriteBoundsItsOutput(t *testing.T) {
	one := lenField(1, lenField(2, lenField(2)))
	_, res, err := Rewrite(nil, Logs, bytes.Repeat(one, MaxResources), testBadge(), nil)
	if err != nil || res.Records != MaxResources {
		t.Errorf("%+v %v", res, err)
	}
	var m *MalformedError
	if _, _, err := Rewrite(nil, Logs, bytes.Repeat(one, MaxResources+1), testBadge(), nil); !errors.As(err, &m) || m.Reason != TooMany {
		t.Error(err)
	}
}
