package otlp

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	logspb "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	metricspb "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// otlpJSON is m as protojson writes it, with the ids in hexadecimal as OTLP has them.
func otlpJSON(t testing.TB, m proto.Message, opts protojson.MarshalOptions, encode func([]byte) string) []byte {
	t.Helper()
	b, err := opts.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var tree any
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := d.Decode(&tree); err != nil {
		t.Fatal(err)
	}
	hexIDs(tree, encode)
	if b, err = json.Marshal(tree); err != nil {
		t.Fatal(err)
	}
	return b
}

func hexIDs(tree any, encode func([]byte) string) {
	switch v := tree.(type) {
	case []any:
		for _, e := range v {
			hexIDs(e, encode)
		}
	case map[string]any:
		for k, e := range v {
			s, isString := e.(string)
			if isString && slices.Contains([]string{"traceId", "spanId", "parentSpanId", "trace_id", "span_id", "parent_span_id"}, k) {
				raw, _ := base64.StdEncoding.DecodeString(s)
				v[k] = encode(raw)
				continue
			}
			hexIDs(e, encode)
		}
	}
}

func upperHex(b []byte) string { return strings.ToUpper(hex.EncodeToString(b)) }

func oddLogs() *logspb.ExportLogsServiceRequest {
	req := agentLogs(2)
	rec := req.ResourceLogs[0].ScopeLogs[0].LogRecords[0]
	rec.EventName, rec.Flags, rec.DroppedAttributesCount, rec.SeverityNumber = "e", math.MaxUint32, 7, 24
	rec.Body = &common.AnyValue{Value: &common.AnyValue_KvlistValue{KvlistValue: &common.KeyValueList{Values: []*common.KeyValue{
		str("s", "a\"b\\c/\b\f\n\r\t\x01é\u2028😀"), str("", ""), integer("min", math.MinInt64), integer("max", math.MaxInt64), integer("zero", 0),
		double("nan", math.NaN()), double("inf", math.Inf(1)), double("-inf", math.Inf(-1)), double("d", 0.1), double("tiny", 5e-324), double("max", math.MaxFloat64),
		{Key: "t", Value: &common.AnyValue{Value: &common.AnyValue_BoolValue{BoolValue: true}}},
		{Key: "f", Value: &common.AnyValue{Value: &common.AnyValue_BoolValue{}}},
		{Key: "b", Value: &common.AnyValue{Value: &common.AnyValue_BytesValue{BytesValue: []byte{0xff, 0xfb, 0, 1}}}},
		{Key: "l", Value: &common.AnyValue{Value: &common.AnyValue_ArrayValue{ArrayValue: &common.ArrayValue{Values: []*common.AnyValue{strValue(strings.Repeat("long ", 60)), {}}}}}},
		{Key: "i", Value: &common.AnyValue{Value: &common.AnyValue_StringValueStrindex{StringValueStrindex: 3}}, KeyStrindex: 4},
		{Key: "none"},
	}}}}
	req.ResourceLogs[0].Resource.EntityRefs = []*common.EntityRef{{SchemaUrl: "u", Type: "service", IdKeys: []string{"a", "b"}, DescriptionKeys: []string{"c"}}}
	return req
}

func TestJSONIsTheOfficialMessage(t *testing.T) {
	messages := map[string]struct {
		kind Kind
		msg  proto.Message
	}{
		"logs": {Logs, agentLogs(3)}, "spans": {Spans, agentSpans(3)}, "metrics": {Metrics, agentMetrics(3)},
		"odd logs": {Logs, oddLogs()}, "empty": {Logs, &logspb.ExportLogsServiceRequest{}}, "many": {Logs, agentLogs(200)},
	}
	for name, tt := range messages {
		for i, opts := range []protojson.MarshalOptions{{}, {UseProtoNames: true}, {UseEnumNumbers: true}, {EmitUnpopulated: true}, {Multiline: true, Indent: "\t"}} {
			t.Run(fmt.Sprint(name, i), func(t *testing.T) {
				encode := hex.EncodeToString
				if i%2 == 1 {
					encode = upperHex
				}
				src := otlpJSON(t, tt.msg, opts, encode)
				if opts.Multiline {
					var indented bytes.Buffer
					if err := json.Indent(&indented, src, " \r", "\t"); err != nil {
						t.Fatal(err)
					}
					src = indented.Bytes()
				}
				sameFromJSON(t, tt.kind, src, tt.msg)
			})
		}
	}
}

func sameFromJSON(t *testing.T, kind Kind, src []byte, want proto.Message) {
	t.Helper()
	out, err := JSONToProto([]byte("before"), kind, src)
	if err != nil {
		t.Fatal(err)
	}
	out, ok := bytes.CutPrefix(out, []byte("before"))
	if !ok {
		t.Fatal("what stood in dst is gone")
	}
	got := newRequest(kind)
	if err := proto.Unmarshal(out, got); err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(got, want) {
		t.Fatalf("\ngot  %v\nwant %v", got, want)
	}
	if _, _, err := Rewrite(nil, kind, out, testBadge(), func(*SignalRecord) {}); err != nil {
		t.Errorf("Rewrite refuses it: %v", err)
	}
}

// value wraps the JSON of an AnyValue into a request.
func valueJSON(v string) []byte {
	return []byte(`{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"body":` + v + `}]}]}]}`)
}

func TestJSONLiberties(t *testing.T) {
	for src, want := range map[string]*common.AnyValue{
		`{"intValue":"7"}`:                        integer("", 7).Value,
		`{"intValue":7}`:                          integer("", 7).Value,
		`{"intValue":-7.0}`:                       integer("", -7).Value,
		`{"intValue":"12e2"}`:                     integer("", 1200).Value,
		`{"int_value":"9007199254740993"}`:        integer("", 9007199254740993).Value,
		`{"doubleValue":"1.5"}`:                   double("", 1.5).Value,
		`{"doubleValue":3}`:                       double("", 3).Value,
		`{"doubleValue":"-Infinity"}`:             double("", math.Inf(-1)).Value,
		`{"stringValue":null,"intValue":1}`:       integer("", 1).Value,
		`{"stringValue":"a","unknown":{"x":[1]}}`: strValue("a"),
		` { "stringValue" : "a" } `:               strValue("a"),
		`{"stringV\u0061lue":"a"}`:                strValue("a"),
		`{"stringValue":"\ud83d\ude00 \ud83d \ude00 \ud83d\u0041 \/"}`: strValue("😀 \uFFFD \uFFFD \uFFFDA /"),
		`{"bytesValue":"//4="}`:                           {Value: &common.AnyValue_BytesValue{BytesValue: []byte{0xff, 0xfe}}},
		`{"bytesValue":"__4"}`:                            {Value: &common.AnyValue_BytesValue{BytesValue: []byte{0xff, 0xfe}}},
		`{"arrayValue":{"values":[null,{"intValue":1}]}}`: {Value: &common.AnyValue_ArrayValue{ArrayValue: &common.ArrayValue{Values: []*common.AnyValue{{}, integer("", 1).Value}}}},
		`{"kvlistValue":{}}`:                              {Value: &common.AnyValue_KvlistValue{KvlistValue: &common.KeyValueList{}}},
		`{}`:                                              {},
	} {
		t.Run(src, func(t *testing.T) {
			req := &logspb.ExportLogsServiceRequest{}
			if err := protojson.Unmarshal(valueJSON(`{}`), req); err != nil {
				t.Fatal(err)
			}
			req.ResourceLogs[0].ScopeLogs[0].LogRecords[0].Body = want
			sameFromJSON(t, Logs, valueJSON(src), req)
		})
	}
	sameFromJSON(t, Logs, []byte(`{"somebody":"else's","resourceLogs":null}`), &logspb.ExportLogsServiceRequest{})
	sameFromJSON(t, Logs, []byte(`{"resourceSpans":null,"resource_metrics":[ ],"resourceLogs":[]}`), &logspb.ExportLogsServiceRequest{})
	sameFromJSON(t, Metrics, []byte("\n{}\t"), &metricspb.ExportMetricsServiceRequest{})
}

func TestJSONRefuses(t *testing.T) {
	record := func(s string) string { return `{"resourceLogs":[{"scopeLogs":[{"logRecords":[{` + s + `}]}]}]}` }
	value := func(s string) string { return string(valueJSON(s)) }
	for src, reason := range map[string]Reason{
		``: Truncated, ` `: Truncated, `{`: Truncated, `{"resourceLogs":[`: Truncated, `{"a`: Truncated, `{"a\`: Truncated,
		`null`: BadJSON, `[]`: BadJSON, `{}x`: BadJSON, `{}{}`: BadJSON, `{,}`: BadJSON, `{"a":1,}`: BadJSON, `{"a":[1,]}`: BadJSON, `{"a" 1}`: BadJSON,
		"{\"a\":\"\n\"}": BadJSON, `{"a":01}`: BadJSON, `{"a":+1}`: BadJSON, `{"a":1.}`: BadJSON, `{"a":.5}`: BadJSON, `{"a":1e}`: BadJSON, `{"a":nul}`: BadJSON,
		`{"a":"\x"}`: BadJSON, `{"a":"\u12g4"}`: BadJSON, `{a:1}`: BadJSON, `{"a":1 "b":2}`: BadJSON, `{'a':1}`: BadJSON, "\xef\xbb\xbf{}": BadJSON, "{}\x00": BadJSON, "\x00{}": BadJSON,
		"{\"a\":\"\xff\"}":                                                       BadUTF8,
		"{\"a\xc0\":1}":                                                          BadUTF8,
		`{"resourceLogs":{}}`:                                                    BadJSON,
		`{"resourceLogs":[null]}`:                                                BadJSON,
		`{"resourceLogs":[[]]}`:                                                  BadJSON,
		`{"resourceLogs":[],"resourceLogs":[]}`:                                  MemberTwice,
		`{"resourceLogs":[],"resource_logs":[]}`:                                 MemberTwice,
		`{"resourceLogs":null,"resourceLogs":[]}`:                                MemberTwice,
		record(`"attributes":[{"key":"a","key":"flowstate.org"}]`):               MemberTwice,
		record(`"attributes":[{"value":{},"value":{}}]`):                         MemberTwice,
		record(`"eventName":"a","event_name":"flowstate.signal"`):                MemberTwice,
		record(`"traceId":"abc"`):                                                IDLength,
		record(`"spanId":"0123456789abcdef00"`):                                  IDLength,
		record(`"spanId":"0123456789abcdeg"`):                                    BadJSONValue,
		record(`"spanId":7`):                                                     BadJSONValue,
		record(`"timeUnixNano":"-1"`):                                            BadJSONValue,
		record(`"timeUnixNano":"18446744073709551616"`):                          BadJSONValue,
		record(`"timeUnixNano":1.5`):                                             BadJSONValue,
		record(`"timeUnixNano":""`):                                              BadJSONValue,
		record(`"timeUnixNano":"0x10"`):                                          BadJSONValue,
		record(`"timeUnixNano":true`):                                            BadJSONValue,
		record(`"flags":4294967296`):                                             BadJSONValue,
		record(`"severityNumber":"LOUD"`):                                        BadJSONValue,
		record(`"severityNumber":2147483648`):                                    BadJSONValue,
		record(`"severityText":1`):                                               BadJSONValue,
		record(`"attributes":[null]`):                                            BadJSON,
		value(`{"stringValue":"a","stringValue":"b"}`):                           MemberTwice,
		value(`{"stringValue":"a","string_value":"b"}`):                          MemberTwice,
		value(`{"stringValue":"a","intValue":1}`):                                ValueTwice,
		value(`{"boolValue":"true"}`):                                            BadJSONValue,
		value(`{"boolValue":tru}`):                                               BadJSON,
		value(`{"intValue":9223372036854775808}`):                                BadJSONValue,
		value(`{"intValue":"+1"}`):                                               BadJSONValue,
		value(`{"doubleValue":"0x1p2"}`):                                         BadJSONValue,
		value(`{"doubleValue":"inf"}`):                                           BadJSONValue,
		value(`{"doubleValue":1e999}`):                                           BadJSONValue,
		value(`{"bytesValue":"a*"}`):                                             BadJSONValue,
		value(`{"bytesValue":"+_8="}`):                                           BadJSONValue,
		value(`{"bytesValue":"aGk\n"}`):                                          BadJSONValue,
		value(`"text"`):                                                          BadJSON,
		value(`{"arrayValue":{"values":[],"values":[]}}`):                        MemberTwice,
		strings.Repeat(`{"a":`, 1000):                                            TooDeep,
		`{"a":` + strings.Repeat(`[`, 100000):                                    TooDeep,
		value(strings.Repeat(`{"arrayValue":{"values":[`, MaxDepth+1)):           TooDeep,
		value(strings.Repeat(`{"kvlistValue":{"values":[{"value":`, MaxDepth+1)): TooDeep,
	} {
		out, err := JSONToProto([]byte("x"), Logs, []byte(src))
		var m *MalformedError
		if !errors.As(err, &m) || m.Reason != reason || m.Offset < 0 || m.In == "" || string(out) != "x" {
			t.Errorf("%.80q: %v, want %q", src, err, reason)
		}
	}
	for src, holds := range map[string]Kind{
		`{"resourceSpans":[{}]}`: Spans, `{"resource_spans":[{}]}`: Spans, `{"resourceLogs":[],"resourceMetrics":[{}]}`: Metrics, `{"resource_metrics": [ {"`: Metrics,
		`{"resource\u0053pans":{}}`: Spans,
	} {
		var m *MalformedError
		if _, err := JSONToProto(nil, Logs, []byte(src)); !errors.As(err, &m) || m.Reason != OtherKind || m.Holds != holds {
			t.Errorf("%s: %v", src, err)
		}
	}
	two := `{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"gauge":{},"sum":{}}]}]}]}`
	var m *MalformedError
	if _, err := JSONToProto(nil, Metrics, []byte(two)); !errors.As(err, &m) || m.Reason != TwoKinds {
		t.Error(err)
	}
}

func TestJSONDepthThatIsAllowed(t *testing.T) {
	for _, v := range []string{
		strings.Repeat(`{"arrayValue":{"values":[`, MaxDepth-1) + `{"intValue":1}` + strings.Repeat(`]}}`, MaxDepth-1),
		strings.Repeat(`{"kvlistValue":{"values":[{"key":"k","value":`, MaxDepth-1) + `{"intValue":1}` + strings.Repeat(`}]}}`, MaxDepth-1),
	} {
		pb, err := JSONToProto(nil, Logs, valueJSON(v))
		if err != nil {
			t.Fatal(err)
		}
		checkRewrite(t, Logs, pb)
	}
}

func TestJSONCannotSmuggle(t *testing.T) {
	src := `{"resourceLogs":[{"resource":{"attributes":[{"key":"fl\u006fwstate.org","value":{"stringValue":"evil"}}]},
		"scopeLogs":[{"logRecords":[{"event_name":"flowstate\u002esignal"},{"body":{"stringValue":"kept"}}]}]}]}`
	pb, err := JSONToProto(nil, Logs, []byte(src))
	if err != nil {
		t.Fatal(err)
	}
	out, res := checkRewrite(t, Logs, pb)
	if res != (Result{Records: 1, Signals: 1, Stripped: 1}) || bytes.Contains(out, []byte("evil")) {
		t.Errorf("%+v", res)
	}
}
