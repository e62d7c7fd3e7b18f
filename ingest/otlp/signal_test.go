package otlp

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"testing"

	logspb "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	"google.golang.org/protobuf/proto"
)

func request1(scopes ...*logs.ScopeLogs) *logspb.ExportLogsServiceRequest {
	return &logspb.ExportLogsServiceRequest{ResourceLogs: []*logs.ResourceLogs{{Resource: agentResource(), ScopeLogs: scopes}}}
}

func TestSignalsAreRecognised(t *testing.T) {
	named := func(s string) *logs.LogRecord { return &logs.LogRecord{EventName: s} }
	attr := func(s ...string) *logs.LogRecord {
		r := &logs.LogRecord{}
		for _, v := range s {
			r.Attributes = append(r.Attributes, str("event.name", v))
		}
		return r
	}
	tests := []struct {
		name string
		rec  *logs.LogRecord
		want bool
	}{
		{"by event_name", named("flowstate.signal"), true},
		{"by attribute", attr("flowstate.signal"), true},
		{"spaces around it", named(" flowstate.signal\n"), true},
		{"wide spaces around it", attr("\u3000flowstate.signal\u00a0"), true},
		{"capitals", attr("Flowstate.Signal"), true},
		{"one of two attributes", attr("api_request", "flowstate.signal"), true},
		{"the first of two attributes", attr("flowstate.signal", "api_request"), true},
		{"event_name says another", &logs.LogRecord{EventName: "api_request", Attributes: attr("flowstate.signal").Attributes}, true},
		{"longer", named("flowstate.signals"), false},
		{"shorter", named("flowstate.signa"), false},
		{"an inner space", named("flowstate. signal"), false},
		{"in the body", &logs.LogRecord{Body: strValue("flowstate.signal")}, false},
		{"under another key", &logs.LogRecord{Attributes: []*common.KeyValue{str("event", "flowstate.signal")}}, false},
		{"as bytes", &logs.LogRecord{Attributes: []*common.KeyValue{{Key: "event.name", Value: &common.AnyValue{Value: &common.AnyValue_BytesValue{BytesValue: []byte("flowstate.signal")}}}}}, false},
		{"severity text", &logs.LogRecord{SeverityText: "flowstate.signal"}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, res := checkRewrite(t, Logs, marshal(t, request1(&logs.ScopeLogs{LogRecords: []*logs.LogRecord{tt.rec, agentRecord(1)}})))
			if got := res.Signals == 1; got != tt.want {
				t.Errorf("%+v", res)
			}
		})
	}
}

func TestEventNameGivenTwice(t *testing.T) {
	for _, names := range [][2]string{{"flowstate.signal", "x"}, {"x", "flowstate.signal"}} {
		body := logsWith(nil, lenField(12, []byte(names[0])), lenField(12, []byte(names[1])))
		_, res, err := Rewrite(nil, Logs, body, nil, func(*SignalRecord) {})
		if err != nil || res != (Result{Signals: 1}) {
			t.Errorf("%v: %+v %v", names, res, err)
		}
	}
}

func TestSignalsAreMovedNotCopied(t *testing.T) {
	sig := func(id int) *logs.LogRecord {
		return &logs.LogRecord{EventName: signalEvent, Attributes: []*common.KeyValue{str("signal.type", "prompt_injection"), integer("n", int64(id))}}
	}
	scope := func(recs ...*logs.LogRecord) *logs.ScopeLogs {
		return &logs.ScopeLogs{Scope: agentScope(), SchemaUrl: "u", LogRecords: recs}
	}
	tests := []struct {
		name           string
		req            *logspb.ExportLogsServiceRequest
		records, scope int // what is left, and in how many scopes
	}{
		{"between records", request1(scope(agentRecord(1), sig(1), agentRecord(2))), 2, 1},
		{"a scope of signals", request1(scope(sig(1), sig(2)), scope(agentRecord(1))), 1, 1},
		{"a scope that came empty stays", request1(scope(sig(1)), scope(), scope(agentRecord(1))), 1, 2},
		{"nothing else", request1(scope(sig(1)), scope(sig(2))), 0, 0},
		{"a resource of signals", &logspb.ExportLogsServiceRequest{ResourceLogs: append(request1(scope(sig(1))).ResourceLogs, agentLogs(2).ResourceLogs...)}, 2, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out, res := checkRewrite(t, Logs, marshal(t, tt.req))
			var got logspb.ExportLogsServiceRequest
			if err := proto.Unmarshal(out, &got); err != nil {
				t.Fatal(err)
			}
			scopes := 0
			for _, r := range got.ResourceLogs {
				scopes += len(r.ScopeLogs)
			}
			if res.Records != tt.records || scopes != tt.scope {
				t.Errorf("%+v in %d scopes", res, scopes)
			}
		})
	}
}

func TestSignalsInTheScopesOfOld(t *testing.T) {
	record := lenField(2, lenField(12, []byte(signalEvent)))
	other := lenField(2, lenField(3, []byte("INFO")))
	_, res := checkRewrite(t, Logs, lenField(1, lenField(legacyScopes, record, other)))
	if res != (Result{Records: 1, Signals: 1}) {
		t.Errorf("%+v", res)
	}
	if out, res := checkRewrite(t, Logs, lenField(1, lenField(legacyScopes, record))); out != nil || res.Records != 0 {
		t.Errorf("%+v", res)
	}
}

func TestSpansAndMetricsHaveNoSignals(t *testing.T) {
	req := agentSpans(1)
	req.ResourceSpans[0].ScopeSpans[0].Spans[0].Attributes = []*common.KeyValue{str("event.name", signalEvent)}
	if _, res := checkRewrite(t, Spans, marshal(t, req)); res != (Result{Records: 1}) {
		t.Errorf("%+v", res)
	}
}

func TestSignalRecordIsDecoded(t *testing.T) {
	list := func(v ...*common.AnyValue) *common.AnyValue {
		return &common.AnyValue{Value: &common.AnyValue_ArrayValue{ArrayValue: &common.ArrayValue{Values: v}}}
	}
	kv := func(k string, v *common.AnyValue) *common.KeyValue { return &common.KeyValue{Key: k, Value: v} }
	object := func(v ...*common.KeyValue) *common.AnyValue {
		return &common.AnyValue{Value: &common.AnyValue_KvlistValue{KvlistValue: &common.KeyValueList{Values: v}}}
	}
	rec := &logs.LogRecord{
		TimeUnixNano: 1795473613000000001, ObservedTimeUnixNano: 2, SeverityNumber: 17, SeverityText: "ERROR", EventName: signalEvent,
		Body: strValue("not an attribute"),
		Attributes: []*common.KeyValue{
			str("signal.type", "prompt_injection"), str("signal.type", "twice"), str("flowstate.org", "evil"),
			str("text", "a\"b\\c\n\r\t\x01é\u2028"), integer("int", math.MinInt64), integer("big", math.MaxInt64),
			double("double", 1.5), double("small", 1e-9), double("large", 1e300), double("zero", math.Copysign(0, -1)),
			double("nan", math.NaN()), double("inf", math.Inf(1)), double("-inf", math.Inf(-1)),
			kv("true", &common.AnyValue{Value: &common.AnyValue_BoolValue{BoolValue: true}}),
			kv("false", &common.AnyValue{Value: &common.AnyValue_BoolValue{}}),
			kv("bytes", &common.AnyValue{Value: &common.AnyValue_BytesValue{BytesValue: []byte{0xff, 0xfe, 0}}}),
			kv("list", list(strValue("x"), list(), &common.AnyValue{})),
			kv("object", object(str("flowstate.org", "a value"), str("k", "1"), str("k", "2"))),
			kv("strindex", &common.AnyValue{Value: &common.AnyValue_StringValueStrindex{StringValueStrindex: 3}}),
			kv("empty", &common.AnyValue{}), kv("none", nil),
		},
	}
	var got strings.Builder
	_, res, err := Rewrite(nil, Logs, marshal(t, request1(&logs.ScopeLogs{LogRecords: []*logs.LogRecord{rec}})), testBadge(), func(s *SignalRecord) {
		fmt.Fprintln(&got, s.TimeUnixNano, s.ObservedTimeUnixNano, s.Over)
		for _, a := range s.Attributes {
			if !json.Valid(a.Value) {
				t.Errorf("%s: %s", a.Key, a.Value)
			}
			fmt.Fprintf(&got, "%s=%s\n", a.Key, a.Value)
		}
	})
	if err != nil || res != (Result{Signals: 1, Stripped: 1}) {
		t.Fatalf("%+v %v", res, err)
	}
	want := `1795473613000000001 2 
signal.type="prompt_injection"
signal.type="twice"
text="a\"b\\c\n\r\t\u0001é` + "\u2028" + `"
int=-9223372036854775808
big=9223372036854775807
double=1.5
small=1e-09
large=1e+300
zero=-0
nan="NaN"
inf="Infinity"
-inf="-Infinity"
true=true
false=false
bytes="//4A"
list=["x",[],null]
object={"flowstate.org":"a value","k":"1","k":"2"}
strindex=null
empty=null
none=null
`
	if got.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &got, want)
	}
}

// One attribute more or one byte more than the limit is not decoded, and says so; the signal beside it is not touched by that.
func TestSignalsOverTheLimitsAreNotDecoded(t *testing.T) {
	attributes := func(n int) *logs.LogRecord {
		r := &logs.LogRecord{EventName: signalEvent}
		for range n {
			r.Attributes = append(r.Attributes, &common.KeyValue{})
		}
		return r
	}
	text := func(n int) *logs.LogRecord { // a quoted string of n bytes under a key of one
		return &logs.LogRecord{EventName: signalEvent, Attributes: []*common.KeyValue{str("k", strings.Repeat("x", n-3))}}
	}
	escaped := &logs.LogRecord{EventName: signalEvent, Attributes: []*common.KeyValue{str("k", strings.Repeat("\x01", MaxSignalBytes/4))}}
	tests := []struct {
		name string
		rec  *logs.LogRecord
		want int // attributes; -1: over
	}{
		{"as many attributes as may be", attributes(MaxSignalAttributes), MaxSignalAttributes},
		{"one more", attributes(MaxSignalAttributes + 1), -1},
		{"a hundred times as many", attributes(100 * MaxSignalAttributes), -1},
		{"as many bytes as may be", text(MaxSignalBytes), 1},
		{"one byte more", text(MaxSignalBytes + 1), -1},
		{"more bytes as JSON only", escaped, -1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			small := &logs.LogRecord{EventName: signalEvent, Attributes: []*common.KeyValue{str("signal.type", "a")}}
			body := marshal(t, request1(&logs.ScopeLogs{LogRecords: []*logs.LogRecord{tt.rec, small}}))
			var got []int
			_, res, err := Rewrite(nil, Logs, body, testBadge(), func(s *SignalRecord) {
				n := len(s.Attributes)
				if s.Over != "" {
					if n != 0 {
						t.Errorf("%d attributes, and yet %s", n, s.Over)
					}
					n = -1
				}
				got = append(got, n)
			})
			if err != nil || res.Signals != 2 || len(got) != 2 || got[0] != tt.want || got[1] != 1 {
				t.Errorf("%v: %+v %v", got, res, err)
			}
		})
	}
	if want := fmt.Sprintf("its attributes have more than %d bytes", MaxSignalBytes); overBytes != want {
		t.Errorf("%q, not %q", overBytes, want)
	}
}

func TestDropIsAskedByTypeAlone(t *testing.T) {
	typed := func(more ...*common.KeyValue) []*common.KeyValue {
		return append([]*common.KeyValue{str("event.name", signalEvent), str("signal.type", "Personal-Use")}, more...)
	}
	tests := []struct {
		name  string
		attrs []*common.KeyValue
		asked bool
	}{
		{"a type", typed(), true},
		{"and details", typed(str("signal.severity", "WARN"), str("signal.id", "x"), integer("n", 1), str("session.id", "s")), true},
		{"details that are wrong", typed(str("n", "1"), str("n", "2")), true},
		{"a subject", typed(str("signal.subject.id", "somebody")), false},
		{"an owner", typed(str("signal.subject.owner.kind", "person")), false},
		{"two types", typed(str("signal.type", "secret_detected")), false},
		{"no type", []*common.KeyValue{str("event.name", signalEvent)}, false},
		{"a type that is no string", []*common.KeyValue{str("event.name", signalEvent), integer("signal.type", 1)}, false},
		{"a type without a value", []*common.KeyValue{str("event.name", signalEvent), {Key: "signal.type"}}, false},
		{"something forged", typed(str("flowstate.org", "evil")), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			body := marshal(t, request1(&logs.ScopeLogs{LogRecords: []*logs.LogRecord{{Attributes: tt.attrs}, agentRecord(1)}}))
			for _, drops := range []bool{true, false} {
				asked, visited := 0, 0
				var r Rewriter
				_, res, err := r.Rewrite(nil, Logs, body, testBadge(), Visitor{
					Drop:  func(sent []byte) bool { asked++; return drops && string(sent) == "Personal-Use" },
					Visit: func(*SignalRecord) { visited++ },
				})
				dropped := tt.asked && drops
				if err != nil || res.Signals != 1 || res.Records != 1 || asked == 1 != tt.asked || visited == 0 != dropped {
					t.Errorf("asked %d times, visited %d: %+v %v", asked, visited, res, err)
				}
			}
		})
	}
}

// An attribute of a scope may say the same as a signal's, and its place on the wire is the sender's to choose.
func TestOnlyRecordsAreSignals(t *testing.T) {
	named := lenField(6, lenField(1, []byte("event.name")), lenField(2, lenField(1, []byte(signalEvent))))
	record := lenField(2, lenField(3, []byte("INFO")))
	signal := lenField(2, lenField(12, []byte(signalEvent)))
	scope := lenField(1, lenField(3, named[2:]))
	for _, fields := range [][][]byte{{scope, record, signal}, {record, scope, signal}, {record, signal, scope}, {signal, scope, record}} {
		_, res := checkRewrite(t, Logs, lenField(1, lenField(2, fields...)))
		if res.Records != 1 || res.Signals != 1 {
			t.Errorf("%x: %+v", fields, res)
		}
	}
}
