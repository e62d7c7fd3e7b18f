package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	coltrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// An edge and an admin API that trace themselves: the tree of an export and of an admin call, without a key, and nothing without the parent's consent.
func TestTraces(t *testing.T) {
	var mu sync.Mutex
	byName, text := map[string]*tracepb.Span{}, ""
	collector := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		var req coltrace.ExportTraceServiceRequest
		if err != nil || r.URL.Path != "/v1/traces" || proto.Unmarshal(b, &req) != nil {
			t.Errorf("%s: not an export of traces", r.URL.Path)
		}
		mu.Lock()
		defer mu.Unlock()
		text += req.String()
		for _, rs := range req.ResourceSpans {
			for _, ss := range rs.ScopeSpans {
				for _, s := range ss.Spans {
					byName[s.Name+"/"+strings.TrimPrefix(ss.Scope.Name, "flowstate.inc/sluice/")] = s
				}
			}
		}
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
	defer collector.Close()
	p := onDev(t)
	g := p.start(t, "dev", "--trace-endpoint="+collector.URL, "--trace-sample=0")
	const sampled, unsampled = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "00-1af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
	body := `{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"body":{"stringValue":"a secret prompt"}},{"eventName":"flowstate.signal","attributes":[{"key":"signal.type","value":{"stringValue":"secret_detected"}}]}]}]}]}`
	client := newClient(nil)
	for _, parent := range []string{sampled, unsampled} {
		if r, err := send(t.Context(), client, "POST", g.Edge+"/v1/logs", body, "x-flowstate-key", g.Key, "traceparent", parent, "x-request-id", "traced-1"); err != nil || r.status != 200 {
			t.Fatalf("%v %d %s", err, r.status, r.body)
		}
	}
	if r, err := send(t.Context(), client, "GET", g.Admin+"/api/v1/service-accounts", "", "Authorization", "Bearer "+g.Token, "traceparent", sampled); err != nil || r.status != 200 {
		t.Fatalf("%v %d %s", err, r.status, r.body)
	}
	if r, err := send(t.Context(), client, "GET", g.Edge+"/v1/whoami", "", "x-flowstate-key", g.Key); err != nil || r.status != 200 {
		t.Fatalf("%v %d", err, r.status)
	}
	g.stop(t) // which sends what is left
	mu.Lock()
	defer mu.Unlock()
	for child, above := range map[string]string{
		"auth/ingest": "POST /v1/logs/ingest", "decide/ingest": "POST /v1/logs/ingest", "produce/ingest": "POST /v1/logs/ingest",
		"auth/accounts": "GET /api/v1/service-accounts/accounts",
	} {
		c, a := byName[child], byName[above]
		if c == nil || a == nil || string(c.ParentSpanId) != string(a.SpanId) || a.Kind != tracepb.Span_SPAN_KIND_SERVER || string(c.TraceId) != string(a.TraceId) {
			t.Errorf("%s under %s: %v %v", child, above, c, a)
		}
	}
	if len(byName) != 6 {
		t.Errorf("%d spans, not 6: %s", len(byName), text)
	}
	for _, want := range []string{"traced-1", "sluice.records.signals.accepted", "sluice.records.logs.accepted", "sluice.auth.tier", "http.response.status_code"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in %s", want, text)
		}
	}
	for _, secret := range []string{g.Key[:16], g.Token, "secret prompt", g.Account, "1af7651916"} {
		if strings.Contains(text, secret) {
			t.Errorf("%s is in a trace", secret)
		}
	}
}
