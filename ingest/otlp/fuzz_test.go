package otlp

import (
	"bytes"
	"errors"
	"runtime"
	"slices"
	"testing"

	common "go.opentelemetry.io/proto/otlp/common/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"encoding/hex"
)

// stricter are the reasons for which Rewrite may refuse what the official types accept.
var stricter = []Reason{WrongWireType, Group, TooDeep, KeyTwice, ValueTwice, TwoKinds, IDLength, TooMany}

// legacyTag is the tag of the scopes of old, which the official types skip and Rewrite reads.
var legacyTag = []byte{0xc2, 0x3e}

func seeds(t testing.TB) map[Kind][]proto.Message {
	forged := agentLogs(2)
	forged.ResourceLogs[0].Resource.Attributes = append(forged.ResourceLogs[0].Resource.Attributes, str("flowstate.org", "evil"))
	forged.ResourceLogs[0].ScopeLogs[0].LogRecords[0] = &logs.LogRecord{Attributes: []*common.KeyValue{str("event.name", signalEvent), str("flowstate.x", "")}}
	return map[Kind][]proto.Message{
		Logs:    {agentLogs(1), oddLogs(), forged},
		Spans:   {agentSpans(1)},
		Metrics: {agentMetrics(1)},
	}
}

// allocated runs f and returns the bytes that it allocated.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

func FuzzRewrite(f *testing.F) {
	for kind, msgs := range seeds(f) {
		for _, m := range msgs {
			f.Add(byte(kind), marshal(f, m))
		}
	}
	for _, c := range clientBodies(f) {
		if !c.json {
			f.Add(byte(c.kind), c.body)
		}
	}
	f.Add(byte(Logs), logsWith(slices.Concat(lenField(1, lenField(1, lenField(1, []byte("flowstate.a")))), lenField(1)), lenField(12, []byte(signalEvent))))
	f.Add(byte(Logs), lenField(1, lenField(legacyScopes, lenField(2, lenField(12, []byte(signalEvent))))))
	f.Fuzz(func(t *testing.T, k byte, body []byte) {
		kind := kinds[int(k)%len(kinds)]
		badge := testBadge()
		var r Rewriter
		var err error
		n := allocated(func() { _, _, err = r.Rewrite(nil, kind, body, badge, Visitor{Visit: func(*SignalRecord) {}}) })
		// The copy, and of signals their attributes as JSON: a byte may become six, and an attribute of two bytes takes 40.
		if limit := uint64(2*(len(body)+r.w.resources*(len(badge)+lengths)) + 64*len(body) + 64<<10); n > limit {
			t.Fatalf("%d bytes allocated for %d", n, len(body))
		}
		if err == nil {
			out := body
			if !bytes.Contains(body, legacyTag) { // their order among today's scopes is ours to choose
				out, _ = checkRewrite(t, kind, body)
			}
			checkSplit(t, kind, out)
			return
		}
		var m *MalformedError
		if !errors.As(err, &m) {
			t.Fatalf("error of type %T", err)
		}
		official := proto.Unmarshal(body, newRequest(kind))
		if official == nil && !slices.Contains(stricter, m.Reason) && !bytes.Contains(body, legacyTag) {
			t.Fatalf("the official types take what is refused: %v", err)
		}
	})
}

func checkSplit(t *testing.T, kind Kind, payload []byte) {
	want, ok := countRecords(map[bool][]level{true: split.metrics, false: split.logs}[kind == Metrics], payload)
	if !ok {
		t.Fatal("the payload cannot be walked")
	}
	limit, got := len(payload)/2, 0
	over, err := SplitTo(payload, kind, limit, func(part []byte, _, records int) error {
		if len(part) > limit {
			t.Errorf("a part of %d bytes, at most %d", len(part), limit)
		}
		got += records
		return proto.Unmarshal(part, newRequest(kind))
	})
	if err != nil || got+over.Records != want {
		t.Errorf("%d and %d too large of %d records: %v", got, over.Records, want, err)
	}
}

func FuzzJSONToProto(f *testing.F) {
	for kind, msgs := range seeds(f) {
		for _, m := range msgs {
			f.Add(byte(kind), otlpJSON(f, m, protojson.MarshalOptions{}, hex.EncodeToString))
		}
	}
	for _, c := range clientBodies(f) {
		if c.json {
			f.Add(byte(c.kind), c.body)
		}
	}
	f.Add(byte(Logs), []byte(`{"x":{"y":[1e5,"\u00e9",true,null]},"resource_logs":[{"scopeLogs":[{"logRecords":[{"traceId":"00112233445566778899aabbccddeeff"}]}]}]}`))
	f.Fuzz(func(t *testing.T, k byte, src []byte) {
		kind := kinds[int(k)%len(kinds)]
		before := bytes.Clone(src)
		var pb []byte
		var err error
		n := allocated(func() { pb, err = JSONToProto(nil, kind, src) })
		// Two bytes of a list can be a number of eight, and what is appended to grows by doubling.
		if limit := uint64(16*len(src) + 64<<10); n > limit {
			t.Fatalf("%d bytes allocated for %d", n, len(src))
		}
		if !bytes.Equal(src, before) {
			t.Fatal("the source was written to")
		}
		if err != nil {
			var m *MalformedError
			if !errors.As(err, &m) || pb != nil {
				t.Fatalf("error of type %T, %d bytes", err, len(pb))
			}
			return
		}
		if err := proto.Unmarshal(pb, newRequest(kind)); err != nil {
			t.Fatalf("output: %v", err)
		}
		checkRewrite(t, kind, pb)
	})
}
