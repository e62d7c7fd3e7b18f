package ingest

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	colmetrics "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	coltrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	metrics "go.opentelemetry.io/proto/otlp/metrics/v1"
	resource "go.opentelemetry.io/proto/otlp/resource/v1"
	trace "go.opentelemetry.io/proto/otlp/trace/v1"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"

	"flowstate.inc/sluice/auth"
)

func str(key, value string) *common.KeyValue {
	return &common.KeyValue{Key: key, Value: &common.AnyValue{Value: &common.AnyValue_StringValue{StringValue: value}}}
}

func logsRequest(records ...*logs.LogRecord) *collogs.ExportLogsServiceRequest {
	return &collogs.ExportLogsServiceRequest{ResourceLogs: []*logs.ResourceLogs{{
		Resource:  &resource.Resource{Attributes: []*common.KeyValue{str("service.name", "digest")}},
		ScopeLogs: []*logs.ScopeLogs{{Scope: &common.InstrumentationScope{Name: "claude_code"}, LogRecords: records}},
	}}}
}

func logRecord(event string, attrs ...*common.KeyValue) *logs.LogRecord {
	return &logs.LogRecord{TimeUnixNano: 1_700_000_000_000_000_000, EventName: event, Attributes: attrs}
}

func marshal(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func gzipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func headersOf(r *kgo.Record) map[string]string {
	h := map[string]string{}
	for _, x := range r.Headers {
		h[x.Key] = string(x.Value)
	}
	return h
}

// badgeOf takes the badge out of a resource and returns it.
func badgeOf(t testing.TB, r *resource.Resource) map[string]string {
	t.Helper()
	badge := map[string]string{}
	var rest []*common.KeyValue
	for _, a := range r.GetAttributes() {
		name, ours := strings.CutPrefix(a.Key, "flowstate.")
		if !ours {
			rest = append(rest, a)
			continue
		}
		if _, twice := badge[name]; twice {
			t.Errorf("the badge has %s twice", name)
		}
		switch v := a.Value.Value.(type) {
		case *common.AnyValue_StringValue:
			badge[name] = v.StringValue
		case *common.AnyValue_BoolValue:
			badge[name] = fmt.Sprint(v.BoolValue)
		default:
			t.Errorf("the badge's %s is a %T", name, v)
		}
	}
	r.Attributes = rest
	return badge
}

func checkBadge(t testing.TB, badge map[string]string, key string) {
	t.Helper()
	parsed, err := auth.ParseKey([]byte(key))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := time.Parse(time.RFC3339Nano, badge["received_at"]); err != nil {
		t.Errorf("received_at: %v", err)
	}
	delete(badge, "received_at")
	want := map[string]string{"org": "acme", "subject.kind": "service_account", "subject.id": "sa_production", "service_account.name": "nightly-digest-summariser",
		"service_account.environment": "production", "service_account.abuse_detection": "true", "key_prefix": parsed.Prefix()}
	if fmt.Sprint(badge) != fmt.Sprint(want) {
		t.Errorf("badge\n got %v\nwant %v", badge, want)
	}
}

// What arrives decodes with the official types and equals what was sent but for the badge, in every encoding.
func TestTelemetryArrivesWithBadge(t *testing.T) {
	e := startEdge(t)
	key := e.add(service(auth.Production))
	spans := &coltrace.ExportTraceServiceRequest{ResourceSpans: []*trace.ResourceSpans{{ScopeSpans: []*trace.ScopeSpans{{Spans: []*trace.Span{
		{TraceId: bytes.Repeat([]byte{1}, 16), SpanId: bytes.Repeat([]byte{2}, 8), Name: "chat"}}}}}}}
	points := &colmetrics.ExportMetricsServiceRequest{ResourceMetrics: []*metrics.ResourceMetrics{{ScopeMetrics: []*metrics.ScopeMetrics{{Metrics: []*metrics.Metric{
		{Name: "tokens", Data: &metrics.Metric_Sum{Sum: &metrics.Sum{DataPoints: []*metrics.NumberDataPoint{{Value: &metrics.NumberDataPoint_AsInt{AsInt: 7}}, {Value: &metrics.NumberDataPoint_AsInt{AsInt: 8}}}}}}}}}}}}
	records := logsRequest(logRecord("claude_code.api_request", str("model", "m")), logRecord("claude_code.tool_result"))

	for _, c := range []struct {
		path, topic string
		sent        proto.Message
		got         proto.Message
		resource    func(proto.Message) *resource.Resource
	}{
		{"/v1/logs", e.topics.Logs, records, &collogs.ExportLogsServiceRequest{}, func(m proto.Message) *resource.Resource {
			return m.(*collogs.ExportLogsServiceRequest).ResourceLogs[0].Resource
		}},
		{"/v1/traces", e.topics.Spans, spans, &coltrace.ExportTraceServiceRequest{}, func(m proto.Message) *resource.Resource {
			return m.(*coltrace.ExportTraceServiceRequest).ResourceSpans[0].Resource
		}},
		{"/v1/metrics", e.topics.Metrics, points, &colmetrics.ExportMetricsServiceRequest{}, func(m proto.Message) *resource.Resource {
			return m.(*colmetrics.ExportMetricsServiceRequest).ResourceMetrics[0].Resource
		}},
	} {
		body := marshal(t, c.sent)
		for _, send := range []func() answer{
			func() answer {
				return e.send("POST", c.path, body, "Content-Type", "application/x-protobuf", "x-flowstate-key", key)
			},
			func() answer {
				return e.send("POST", c.path, gzipped(t, body), "Content-Type", "Application/X-Protobuf; charset=x", "Content-Encoding", "GZIP", "x-flowstate-key", key)
			},
		} {
			a := send()
			if a.code != 200 || len(a.body) != 0 || a.header.Get("Content-Type") != "application/x-protobuf" {
				t.Fatalf("%s: %s (%s)", c.path, a, a.header.Get("Content-Type"))
			}
		}
		got := read(t, e.brokers, c.topic, 2)
		if len(got) != 2 {
			t.Fatalf("%s holds %d messages", c.topic, len(got))
		}
		ids := map[string]bool{}
		for _, r := range got {
			if string(r.Key) != "acme/service_account/sa_production" {
				t.Errorf("key %s", r.Key)
			}
			h := headersOf(r)
			ids[h["flowstate-msg-id"]] = true
			if len(h["flowstate-request-id"]) != 16 {
				t.Errorf("request id %q", h["flowstate-request-id"])
			}
			delete(h, "flowstate-msg-id")
			delete(h, "flowstate-request-id")
			if fmt.Sprint(h) != "map[flowstate-org:acme flowstate-schema:1 flowstate-subject-id:sa_production flowstate-subject-kind:service_account]" {
				t.Errorf("headers %v", h)
			}
			proto.Reset(c.got)
			if err := proto.Unmarshal(r.Value, c.got); err != nil {
				t.Fatal(err)
			}
			checkBadge(t, badgeOf(t, c.resource(c.got)), key)
			sent := proto.Clone(c.sent)
			if c.path != "/v1/logs" { // where the client sent no resource, there is an empty one now
				switch m := sent.(type) {
				case *coltrace.ExportTraceServiceRequest:
					m.ResourceSpans[0].Resource = &resource.Resource{}
				case *colmetrics.ExportMetricsServiceRequest:
					m.ResourceMetrics[0].Resource = &resource.Resource{}
				}
			}
			if !proto.Equal(c.got, sent) {
				t.Errorf("got %v\nsent %v", c.got, sent)
			}
		}
		if len(ids) != 1 || ids[""] {
			t.Errorf("the same bytes sent twice have ids %v; a retry must have the same one", ids)
		}
	}
	received, outcomes := e.ledger()
	if received["logs"] != 4 || received["spans"] != 2 || received["metrics"] != 4 || outcomes["metrics/accepted/kafka"] != 4 {
		t.Errorf("ledger %v %v", received, outcomes)
	}
	e.balanced()
}

func TestEmptyRequestsNeedNoKafka(t *testing.T) {
	e := startEdge(t)
	key := e.add(service(auth.Production))
	for _, path := range []string{"/v1/logs", "/v1/traces", "/v1/metrics"} {
		a := e.send("POST", path, nil, "Content-Type", "application/x-protobuf", "x-flowstate-key", key)
		if a.code != 200 {
			t.Errorf("empty protobuf: %s", a)
		}
		a = e.send("POST", path, []byte("{}"), "Content-Type", "application/json", "x-flowstate-key", key)
		if a.code != 200 || string(a.body) != "{}" {
			t.Errorf("empty JSON: %s", a)
		}
	}
}

// The filter, over both entrances, in every spelling of design §7 and issue 3 line 4.
func TestFilterOverBothEntrances(t *testing.T) {
	e := startEdge(t)
	keys := map[string]string{"service": e.add(service(auth.Production)), "person": e.add(person()), "detector": e.add(detector())}
	quiet := service(auth.Staging)
	quiet.AbuseDetection = false
	keys["no abuse detection"] = e.add(quiet)
	keys["staging"] = keys["no abuse detection"]
	keys["development"] = e.add(service(auth.Development))

	type signal struct {
		kind     string // of key
		typ      string // as sent
		subject  string // JSON
		severity string
		want     string // outcome, or severity of the event
	}
	for _, s := range []signal{
		{"service", "forecast_breach", "", "", "WARN"},
		{"service", "personal_use_company_account", "", "", "filtered"},
		{"service", "PERSONAL_USE_COMPANY_ACCOUNT", "", "", "filtered"},
		{"service", "  personal_use_company_account\t", "", "", "filtered"},
		{"service", "personal-use-company-account", "", "", "filtered"},
		{"service", "Personal.Use Company-Account", "", "", "filtered"},
		{"service", "personal_use_company_account", `{"kind":"person","id":"alice@example.com"}`, "", "invalid"},
		{"person", "personal_use_company_account", "", "", "accepted"},
		{"detector", "personal_use_company_account", `{"kind":"service_account","id":"sa_production"}`, "", "filtered"},
		{"detector", "personal_use_company_account", `{"kind":"service_account","name":"nightly-digest-summariser","environment":"production"}`, "", "filtered"},
		{"detector", "personal_use_company_account", `{"kind":"session","id":"s1"}`, "", "invalid"},
		{"detector", "personal_use_company_account", `{"kind":"session","id":"s1","owner":{"kind":"service_account","id":"sa_production"}}`, "", "filtered"},
		{"detector", "personal_use_company_account", `{"kind":"session","id":"s1","owner":{"kind":"person","id":"alice@example.com"}}`, "", "accepted"},
		{"detector", "personal_use_company_account", `{"kind":"person","id":"alice@example.com"}`, "", "accepted"},
		{"service", "abuse_pattern", "", "", "accepted"},
		{"no abuse detection", "abuse_pattern", "", "", "filtered"},
		{"service", "brand_violation", "", "BLOCK", "BLOCK"},
		{"staging", "brand_violation", "", "BLOCK", "WARN"},
		{"development", "brand_violation", "", "BLOCK", "INFO"},
		{"development", "key_misuse_detected", "", "BLOCK", "BLOCK"},
	} {
		for _, entrance := range []string{"json", "otlp", "otlp attribute", "otlp json"} {
			name := fmt.Sprintf("%s/%s/%s%s by %s", s.kind, s.typ, s.severity, s.subject, entrance)
			before := len(read(t, e.brokers, e.topics.Signals, 0))
			var outcome string
			var a answer
			if entrance == "json" {
				item := map[string]any{"type": s.typ}
				if s.severity != "" {
					item["severity"] = s.severity
				}
				if s.subject != "" {
					item["subject"] = json.RawMessage(s.subject)
				}
				body, _ := json.Marshal(item)
				var got signalsAnswer
				a, got = e.signals(keys[s.kind], string(body))
				switch {
				case got.Accepted == 1:
					outcome = "accepted"
				case len(got.Filtered) == 1:
					outcome = "filtered"
				case len(got.Invalid) == 1 && a.code == 400:
					outcome = "invalid"
				}
			} else {
				a, outcome = e.sendSignalRecord(keys[s.kind], entrance, s.typ, s.severity, s.subject)
			}
			records := read(t, e.brokers, e.topics.Signals, before)
			added := len(records) - before
			switch s.want {
			case "filtered", "invalid":
				if outcome != s.want || added != 0 {
					t.Errorf("%s: %s, %d events; want %s (%s)", name, outcome, added, s.want, a)
				}
			default:
				if outcome != "accepted" || added != 1 {
					t.Errorf("%s: %s, %d events; want it accepted (%s)", name, outcome, added, a)
					continue
				}
				if s.want == "accepted" {
					continue
				}
				var found bool
				for _, r := range records {
					var ev struct {
						Severity     string `json:"severity"`
						BaseSeverity string `json:"base_severity"`
						Type         string `json:"type"`
					}
					if err := json.Unmarshal(r.Value, &ev); err != nil {
						t.Fatal(err)
					}
					base := s.severity
					if base == "" {
						base = ev.BaseSeverity
					}
					found = found || ev.Severity == s.want && ev.BaseSeverity == base
				}
				if !found {
					t.Errorf("%s: no event of severity %s with its base kept", name, s.want)
				}
			}
		}
	}
	for _, r := range read(t, e.brokers, e.topics.Logs, 0) {
		t.Errorf("a signal was left in the logs: %q", r.Value)
	}
	e.balanced()
}

// sendSignalRecord sends a signal as an OTLP log record and reads the outcome from partial_success.
func (e *testEdge) sendSignalRecord(key, entrance, typ, severity, subject string) (answer, string) {
	e.t.Helper()
	attrs := []*common.KeyValue{str("signal.type", typ)}
	if severity != "" {
		attrs = append(attrs, str("signal.severity", severity))
	}
	if subject != "" {
		var s struct {
			Kind, ID, Name, Environment string
			Owner                       struct{ Kind, ID string }
		}
		if err := json.Unmarshal([]byte(subject), &s); err != nil {
			e.t.Fatal(err)
		}
		for k, v := range map[string]string{"kind": s.Kind, "id": s.ID, "name": s.Name, "environment": s.Environment, "owner.kind": s.Owner.Kind, "owner.id": s.Owner.ID} {
			if v != "" {
				attrs = append(attrs, str("signal.subject."+k, v))
			}
		}
	}
	event := "flowstate.signal"
	if entrance == "otlp attribute" {
		event = ""
		attrs = append(attrs, str("event.name", "flowstate.signal"))
	}
	var a answer
	var rejected int64
	var message string
	if entrance == "otlp json" {
		var list []string
		for _, kv := range attrs {
			v, _ := json.Marshal(kv.Value.GetStringValue())
			list = append(list, fmt.Sprintf(`{"key":%q,"value":{"stringValue":%s}}`, kv.Key, v))
		}
		body := fmt.Sprintf(`{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"eventName":"flowstate.signal","attributes":[%s]}]}]}]}`, strings.Join(list, ","))
		a = e.send("POST", "/v1/logs", []byte(body), "Content-Type", "application/json", "x-flowstate-key", key)
		var res struct {
			PartialSuccess struct {
				RejectedLogRecords json.Number
				ErrorMessage       string
			}
		}
		if err := json.Unmarshal(a.body, &res); err != nil {
			e.t.Fatalf("%v: %s", err, a)
		}
		rejected, _ = res.PartialSuccess.RejectedLogRecords.Int64()
		message = res.PartialSuccess.ErrorMessage
	} else {
		body := marshal(e.t, logsRequest(&logs.LogRecord{EventName: event, Attributes: attrs}))
		a = e.send("POST", "/v1/logs", body, "Content-Type", "application/x-protobuf", "x-flowstate-key", key)
		var res collogs.ExportLogsServiceResponse
		if err := proto.Unmarshal(a.body, &res); err != nil {
			e.t.Fatalf("%v: %s", err, a)
		}
		rejected, message = res.PartialSuccess.GetRejectedLogRecords(), res.PartialSuccess.GetErrorMessage()
	}
	switch {
	case a.code != 200:
		return a, ""
	case rejected == 0:
		return a, "accepted"
	case strings.HasPrefix(message, "filtered: ") && strings.Contains(message, "× 1"):
		return a, "filtered"
	case strings.HasPrefix(message, "invalid: "):
		return a, "invalid"
	}
	return a, message
}

func TestSignalTypeGivenTwice(t *testing.T) {
	e := startEdge(t)
	key := e.add(service(auth.Production))
	for _, body := range []string{
		`{"type":"forecast_breach","type":"personal_use_company_account"}`,
		`{"type":"personal_use_company_account","type":"forecast_breach"}`,
		`{"type":"forecast_breach","\u0074ype":"personal_use_company_account"}`,
	} {
		a, got := e.signals(key, body)
		if a.code != 400 || len(got.Invalid) != 1 {
			t.Errorf("%s: %s", body, a)
		}
	}
	a := e.send("POST", "/v1/logs", marshal(t, logsRequest(logRecord("flowstate.signal", str("signal.type", "forecast_breach"), str("signal.type", "personal_use_company_account")))),
		"Content-Type", "application/x-protobuf", "x-flowstate-key", key)
	var res collogs.ExportLogsServiceResponse
	if err := proto.Unmarshal(a.body, &res); err != nil || res.PartialSuccess.GetRejectedLogRecords() != 1 {
		t.Errorf("twice in OTLP: %s (%v)", a, err)
	}
	if n := len(read(t, e.brokers, e.topics.Signals, 0)); n != 0 {
		t.Errorf("%d events", n)
	}
	e.balanced()
}

// A key in each of its three forms reaches the same account; another org's slug does not.
func TestCredentialForms(t *testing.T) {
	e := startEdge(t)
	key := e.add(service(auth.Production))
	basic := func(user string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+key)) }
	for _, h := range [][]string{{"x-flowstate-key", key}, {"X-Flowstate-Key", " " + key + " "}, {"Authorization", "Bearer " + key}, {"Authorization", "bearer  " + key}, {"Authorization", basic("acme")}} {
		a := e.send("GET", "/v1/whoami", nil, h...)
		var p auth.Principal
		if err := json.Unmarshal(a.body, &p); err != nil || a.code != 200 || p.ID != "sa_production" || p.Org != "acme" {
			t.Errorf("%s: %s", h[0], a)
		}
	}
	if a := e.send("GET", "/v1/whoami", nil, "Authorization", basic("other")); a.code != 401 {
		t.Errorf("another org's slug: %s", a)
	}
}

func TestRefusedKeysLookAlike(t *testing.T) {
	e := startEdge(t)
	revoked := e.add(service(auth.Production))
	e.revoke(revoked)
	unknown, _ := auth.MintKey(auth.KindServiceAccount)
	id := func(a answer) string { return a.header.Get("X-Request-Id") }
	var first string
	for name, key := range map[string]string{"revoked": revoked, "unknown": unknown, "malformed": "hello", "bad checksum": unknown[:len(unknown)-1] + "_"} {
		a := e.send("POST", "/v1/signals", []byte(`{"type":"forecast_breach"}`), "Content-Type", "application/json", "x-flowstate-key", key)
		text := strings.ReplaceAll(string(a.body), id(a), "ID")
		if first == "" {
			first = text
		}
		if a.code != 401 || text != first || a.header.Get("WWW-Authenticate") == "" {
			t.Errorf("%s: %s", name, a)
		}
	}
	if a := e.send("POST", "/v1/logs", nil, "Content-Type", "application/x-protobuf"); a.code != 401 || !strings.Contains(string(a.body), "x-flowstate-key") {
		t.Errorf("no key: %s", a)
	}
	if strings.Contains(e.log.String(), revoked) || strings.Contains(e.log.String(), unknown) {
		t.Error("a key is in the log")
	}
}

// Errors of OTLP come in the request's own encoding, as google.rpc.Status; junk never panics.
func TestCodesAndJunk(t *testing.T) {
	e := startEdge(t, func(ec *EdgeConfig, _ *ServerConfig, _ *ProducerConfig) {
		ec.MaxDecodedBytes = 1 << 20
		ec.MaxRequestBytes = 1 << 20
	})
	key := e.add(service(auth.Production))
	valid := marshal(t, logsRequest(logRecord("a", str("k", strings.Repeat("v", 100)))))
	deep := strings.Repeat(`{"kvlistValue":{"values":[{"key":"k","value":`, 2000) + `{}` + strings.Repeat(`}]}}`, 2000)
	random := make([]byte, 4096)
	for i := range random {
		random[i] = byte(i*7919 + i>>3)
	}
	bomb := gzipped(t, make([]byte, 8<<20))
	for _, c := range []struct {
		name, path string
		body       []byte
		headers    []string
		code       int
		says       string
	}{
		{"truncated", "/v1/logs", valid[:len(valid)-3], []string{"Content-Type", "application/x-protobuf"}, 400, ""},
		{"random", "/v1/logs", random, []string{"Content-Type", "application/x-protobuf"}, 400, ""},
		{"protobuf said to be JSON", "/v1/logs", valid, []string{"Content-Type", "application/json"}, 400, ""},
		{"gzip of nothing", "/v1/logs", []byte("not gzip"), []string{"Content-Type", "application/x-protobuf", "Content-Encoding", "gzip"}, 400, ""},
		{"gzip of the wrong thing", "/v1/traces", gzipped(t, []byte("hello")), []string{"Content-Type", "application/x-protobuf", "Content-Encoding", "gzip"}, 400, ""},
		{"gzip cut off", "/v1/logs", gzipped(t, valid)[:40], []string{"Content-Type", "application/x-protobuf", "Content-Encoding", "gzip"}, 400, ""},
		{"deep JSON", "/v1/logs", []byte(`{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"body":` + deep + `}]}]}]}`), []string{"Content-Type", "application/json"}, 400, ""},
		{"spans among logs", "/v1/logs", []byte(`{"resourceSpans":[{}]}`), []string{"Content-Type", "application/json"}, 400, "holds spans, which go to /v1/traces"},
		{"metrics among spans", "/v1/traces", []byte(`{"resource_metrics":[{}]}`), []string{"Content-Type", "application/json"}, 400, "holds metrics, which go to /v1/metrics"},
		{"compressed, and not said so", "/v1/logs", gzipped(t, valid), []string{"Content-Type", "application/x-protobuf"}, 400, "Content-Encoding"},
		{"compressed JSON, and not said so", "/v1/logs", gzipped(t, []byte(`{}`)), []string{"Content-Type", "application/json"}, 400, "Content-Encoding"},
		{"JSON said to be protobuf", "/v1/logs", []byte(`{"resourceLogs":[]}`), []string{"Content-Type", "application/x-protobuf"}, 400, "Content-Type: application/json"},
		{"bomb", "/v1/logs", bomb, []string{"Content-Type", "application/x-protobuf", "Content-Encoding", "gzip"}, 413, ""},
		{"too large", "/v1/logs", make([]byte, 2<<20), []string{"Content-Type", "application/x-protobuf"}, 413, ""},
		{"no content type", "/v1/logs", valid, nil, 415, "application/x-protobuf"},
		{"text", "/v1/logs", valid, []string{"Content-Type", "text/plain"}, 415, "application/x-protobuf"},
		{"unknown encoding", "/v1/logs", valid, []string{"Content-Type", "application/x-protobuf", "Content-Encoding", "br"}, 415, "gzip"},
		{"signals junk", "/v1/signals", []byte(`{"type":`), []string{"Content-Type", "application/json"}, 400, ""},
		{"signals as a form", "/v1/signals", []byte(`type=x`), []string{"Content-Type", "application/x-www-form-urlencoded"}, 415, "application/json"},
		{"signals empty", "/v1/signals", nil, []string{"Content-Type", "application/json"}, 400, ""},
		{"no such path", "/v1/nothing", valid, nil, 404, "/v1/logs"},
	} {
		a := e.send("POST", c.path, c.body, append(c.headers, "x-flowstate-key", key)...)
		if a.code != c.code || !strings.Contains(string(a.body), c.says) {
			t.Errorf("%s: %s; want %d with %q", c.name, a, c.code, c.says)
			continue
		}
		if slices.Contains(c.headers, "application/json") && strings.Contains(string(a.body), "send Content-Type") {
			t.Errorf("%s: it asks for what was sent: %s", c.name, a)
		}
		if strings.HasPrefix(c.path, "/v1/l") || strings.HasPrefix(c.path, "/v1/t") {
			checkStatus(t, c.name, a)
		} else if a.header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s: %s", c.name, a.header.Get("Content-Type"))
		}
	}
	if a := e.send("GET", "/v1/logs", nil, "x-flowstate-key", key); a.code != 405 || a.header.Get("Allow") != "POST" {
		t.Errorf("GET: %s", a)
	}
	received, _ := e.ledger()
	for kind, n := range received {
		if n != 0 {
			t.Errorf("%v %s received of bodies that do not decode", n, kind)
		}
	}
}

func checkStatus(t *testing.T, name string, a answer) {
	t.Helper()
	var message string
	if a.header.Get("Content-Type") == "application/json" {
		var s struct{ Message string }
		if err := json.Unmarshal(a.body, &s); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		message = s.Message
	} else {
		var s statuspb.Status
		if err := proto.Unmarshal(a.body, &s); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		message = s.Message
	}
	if message == "" {
		t.Errorf("%s: the status says nothing", name)
	}
}

// gRPC on the HTTP port shows its owner nothing: our log says what to do.
func TestGRPCOnTheHTTPPort(t *testing.T) {
	e := startEdge(t)
	conn, err := net.Dial("tcp", strings.TrimPrefix(e.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(conn); err != nil {
		t.Log("the edge hung up:", err)
	}
	eventually(t, "the remedy in the log", func() bool { return strings.Contains(e.log.String(), "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf") })
}

// With Kafka away nothing that has to go there is a 2xx; with it back requests go through without a restart.
func TestKafkaAwayAndBack(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	ln.Close()
	dir := t.TempDir()
	start := func() *kfake.Cluster {
		c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.DataDir(dir), kfake.ListenFn(func(string, string) (net.Listener, error) { return net.Listen("tcp", addr) }))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	e := &testEdge{t: t, reg: prometheus.NewRegistry(), log: &lockedBuffer{}, keys: map[string]auth.Record{}, stamps: &stampBook{last: map[string]time.Time{}},
		brokers: []string{addr}, topics: Topics{"otlp_logs", "otlp_spans", "otlp_metrics", "ai_signals"}}
	e.serve(KafkaConfig{Brokers: e.brokers}, func(ec *EdgeConfig, _ *ServerConfig, pc *ProducerConfig) {
		ec.KafkaTimeout, pc.Timeout = 500*time.Millisecond, 500*time.Millisecond
	})
	key := e.add(service(auth.Production))
	body := marshal(t, logsRequest(logRecord("a"), logRecord("flowstate.signal", str("signal.type", "personal_use_company_account"))))
	send := func() answer {
		return e.send("POST", "/v1/logs", body, "Content-Type", "application/x-protobuf", "x-flowstate-key", key)
	}
	away := func() {
		t.Helper()
		a := send()
		if a.code != 503 || a.header.Get("Retry-After") == "" {
			t.Errorf("Kafka is away: %s", a)
		}
		// Nothing to forward needs no Kafka.
		if a, got := e.signals(key, `{"type":"personal_use_company_account"}`); a.code != 200 || len(got.Filtered) != 1 {
			t.Errorf("filtered only: %s", a)
		}
	}
	away()
	c := start()
	specs := []TopicSpec{{Name: "otlp_logs"}, {Name: "otlp_spans"}, {Name: "otlp_metrics"}, {Name: "ai_signals"}}
	if _, err := EnsureTopics(t.Context(), KafkaConfig{Brokers: e.brokers}, specs); err != nil {
		t.Fatal(err)
	}
	eventually(t, "200 with Kafka back", func() bool { return send().code == 200 })
	c.Close()
	away()
	c = start()
	defer c.Close()
	eventually(t, "200 with Kafka back again", func() bool { return send().code == 200 })
	e.balanced()
	_, outcomes := e.ledger()
	if outcomes["logs/unavailable/kafka_unavailable"] == 0 || outcomes["signals/unavailable/kafka_unavailable"] == 0 {
		t.Errorf("outcomes %v", outcomes)
	}
}

// Unknown keys get 503, not 401, when nobody can say; a detector's subject likewise.
func TestTruthAway(t *testing.T) {
	e := startEdge(t)
	scanner := e.add(detector())
	e.add(service(auth.Production))
	if a, _ := e.signals(scanner, `{"type":"forecast_breach"}`); a.code != 200 {
		t.Fatalf("%s", a)
	}
	e.setAway(true)
	unknown, _ := auth.MintKey(auth.KindServiceAccount)
	if a, _ := e.signals(unknown, `{"type":"forecast_breach"}`); a.code != 503 || a.header.Get("Retry-After") == "" {
		t.Errorf("unknown key: %s", a)
	}
	body := `[{"type":"forecast_breach"},{"type":"forecast_breach","subject":{"kind":"service_account","id":"sa_production"}}]`
	if a, _ := e.signals(scanner, body); a.code != 503 {
		t.Errorf("a subject nobody can name: %s", a)
	}
	e.setAway(false)
	_, outcomes := e.ledger()
	if outcomes["signals/unavailable/subject_lookup_unavailable"] != 2 {
		t.Errorf("outcomes %v", outcomes)
	}
	e.balanced()
}

// Stamps come from requests that had something accepted or filtered, and from nothing else.
func TestWhatStamps(t *testing.T) {
	e := startEdge(t)
	stamped := func(key string) bool {
		k, _ := auth.ParseKey([]byte(key))
		e.stamps.mu.Lock()
		defer e.stamps.mu.Unlock()
		return !e.stamps.last[k.Prefix()].IsZero()
	}
	asks, sends, filtered, invalid := e.add(service(auth.Production)), e.add(service(auth.Production)), e.add(service(auth.Production)), e.add(service(auth.Production))
	e.send("GET", "/v1/whoami", nil, "x-flowstate-key", asks)
	e.signals(invalid, `{"type":"9"}`)
	e.signals(filtered, `{"type":"personal_use_company_account"}`)
	e.signals(sends, `{"type":"forecast_breach"}`)
	eventually(t, "stamps", func() bool { return stamped(sends) && stamped(filtered) })
	if stamped(asks) || stamped(invalid) {
		t.Error("whoami or a 4xx has stamped")
	}
}

// A key over its own limit gets 429 with Retry-After and RateLimit, while every request of another succeeds.
func TestLimits(t *testing.T) {
	e := startEdge(t)
	slow := service(auth.Production)
	slow.Limits.RequestsPerSecond = 5
	limited, other := e.add(slow), e.add(service(auth.Staging))
	var refused int
	for range 50 {
		a, _ := e.signals(limited, `{"type":"forecast_breach"}`)
		switch a.code {
		case 200:
		case 429:
			refused++
			if a.header.Get("Retry-After") == "" || !strings.Contains(a.header.Get("RateLimit"), `"requests";r=0`) || a.header.Get("RateLimit-Policy") != `"requests";q=5;w=1` {
				t.Errorf("headers %v", a.header)
			}
		default:
			t.Errorf("%s", a)
		}
		if a, _ := e.signals(other, `{"type":"forecast_breach"}`); a.code != 200 {
			t.Errorf("the other key: %s", a)
		}
	}
	if refused == 0 {
		t.Error("50 requests at 5 a second were never refused")
	}
	if a := e.send("GET", "/v1/whoami", nil, "x-flowstate-key", limited); a.code != 200 {
		t.Errorf("whoami over the limit: %s", a)
	}
	e.balanced()
}

// What OTLP has us pass over is accepted, and its sender hears that nothing was found; who has nothing to send hears nothing.
func TestNothingFound(t *testing.T) {
	e := startEdge(t)
	key := e.add(service(auth.Production))
	for _, c := range []struct {
		path, body string
		says       string // "": full success
	}{
		{"/v1/logs", `{"type":"forecast_breach"}`, "/v1/signals"},
		{"/v1/logs", `{"message":"done","level":"info"}`, "resourceLogs[].scopeLogs[].logRecords[]"},
		{"/v1/traces", `{"spans":[{}]}`, "resourceSpans[].scopeSpans[].spans[]"},
		{"/v1/metrics", `{"metrics":[{"name":"m"}]}`, "data points"},
		{"/v1/logs", `{}`, ""},
		{"/v1/logs", `{"resourceLogs":[{}]}`, ""},
		{"/v1/logs", ` {"resource_logs" : [ ] , "more": 1}`, ""},
		{"/v1/logs", `{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"more":1}]}],"more":1}],"more":1}`, ""},
	} {
		a := e.send("POST", c.path, []byte(c.body), "Content-Type", "application/json", "x-flowstate-key", key)
		if a.code != 200 || c.says == "" && string(a.body) != "{}" ||
			c.says != "" && (!strings.HasPrefix(string(a.body), `{"partialSuccess":{"errorMessage":"warning: body`) || !strings.Contains(string(a.body), c.says)) {
			t.Errorf("%s %s: %s", c.path, c.body, a)
		}
	}
	// Nothing that was accepted is told apart in the ledger.
	if _, outcomes := e.ledger(); outcomes["logs/accepted/kafka"] != 1 {
		t.Errorf("%v", outcomes)
	}
	e.balanced()
}

func TestUnknownTypesAreNamed(t *testing.T) {
	e := startEdge(t)
	key := e.add(service(auth.Production))
	a, _ := e.signals(key, `[{"type":"Forcast-Breach"},{"type":"forcast_breach"},{"type":"forecast_breach"},{"type":"personal_use_company_account"}]`)
	if a.code != 200 || !strings.Contains(string(a.body), `"accepted":3,`) || !strings.Contains(string(a.body), `"unknown_types":["forcast_breach"]`) {
		t.Errorf("%s", a)
	}
	if a, _ := e.signals(key, `{"type":"forecast_breach"}`); strings.Contains(string(a.body), "unknown_types") {
		t.Errorf("%s", a)
	}
	a = e.send("POST", "/v1/signals", []byte(`{"type":"a"}`), "Content-Type", "application/json", "Authorization", key)
	if a.code != 401 || !strings.Contains(string(a.body), "Bearer KEY") || strings.Contains(string(a.body), key) {
		t.Errorf("a key without its scheme: %s", a)
	}
}
