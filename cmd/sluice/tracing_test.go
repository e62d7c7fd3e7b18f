package main

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/propagation"
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
	g := p.start(t, "dev", "--trace-endpoint="+collector.URL, "--trace-sample=1")
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
	if r, err := send(t.Context(), client, "GET", g.Edge+"/v1/whoami", "", "x-flowstate-key", g.Key, "traceparent", unsampled); err != nil || r.status != 200 {
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

// What a caller says of sampling never makes more traces than --trace-sample: a stranger's traceparent comes before his key is looked at.
func TestTraceSample(t *testing.T) {
	parent := func(flags string) context.Context {
		header := http.Header{"Traceparent": {"00-00000000000000000000000000000001-b7ad6b7169203331-" + flags}}
		return propagation.TraceContext{}.Extract(t.Context(), propagation.HeaderCarrier(header))
	}
	for _, c := range []struct {
		name      string
		ctx       context.Context
		share     float64
		low, high int // of 2000; ten standard deviations either way
	}{
		{"none", t.Context(), 0, 0, 0},
		{"none, and the caller samples", parent("01"), 0, 0, 0},
		{"all", t.Context(), 1, 2000, 2000},
		{"all, and the caller samples", parent("01"), 1, 2000, 2000},
		{"all, and the caller does not", parent("00"), 1, 0, 0},
		{"a half", t.Context(), .5, 776, 1224},
		{"a half, and the caller samples, by one id", parent("01"), .5, 776, 1224},
	} {
		t.Run(c.name, func(t *testing.T) {
			tr, err := newTracing(t.Context(), traceConfig{endpoint: "http://127.0.0.1:1", sample: c.share}, prometheus.NewRegistry(), discardLogger())
			if err != nil {
				t.Fatal(err)
			}
			sampled := 0
			for range 2000 {
				ctx, span := tr.tracer("test").Start(c.ctx, "request")
				_, child := tr.tracer("test").Start(ctx, "child")
				if span.IsRecording() {
					sampled++
				}
				if child.IsRecording() != span.IsRecording() {
					t.Fatal("a span is not sampled as the one above it")
				}
			}
			if sampled < c.low || sampled > c.high {
				t.Errorf("%d of 2000 are traced, want %d to %d", sampled, c.low, c.high)
			}
		})
	}
}

// A collector that does not answer holds nobody up: what it cannot take is dropped and counted, and every span is in one of the counters.
func TestTracesOfASlowCollector(t *testing.T) {
	asked, answer := make(chan struct{}, 100), make(chan struct{})
	collector := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		asked <- struct{}{}
		<-answer
	}))
	defer collector.Close()
	reg := prometheus.NewRegistry()
	tr, err := newTracing(t.Context(), traceConfig{endpoint: collector.URL, sample: 1}, reg, discardLogger())
	if err != nil {
		t.Fatal(err)
	}
	end := func(n int) {
		for range n {
			_, span := tr.tracer("test").Start(t.Context(), "request")
			span.End()
		}
	}
	end(spanBatch)
	<-asked // and from now on it hangs
	began := time.Now()
	end(3 * maxSpans)
	if took := time.Since(began); took > exportTimeout/2 {
		t.Errorf("%d spans took %v while the collector hung", 3*maxSpans, took)
	}
	if n := spanCount(t, reg, "dropped"); n != 2*maxSpans+spanBatch {
		t.Errorf("%v spans are dropped, want %d", n, 2*maxSpans+spanBatch)
	}
	close(answer)
	tr.stop(t.Context())
	if exported, failed := spanCount(t, reg, "exported"), spanCount(t, reg, "failed"); exported != maxSpans || failed != 0 {
		t.Errorf("%v exported, %v failed, want %d and none", exported, failed, maxSpans)
	}
}

func spanCount(t *testing.T, reg *prometheus.Registry, outcome string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range families[0].GetMetric() {
		if m.GetLabel()[0].GetValue() == outcome {
			return m.GetCounter().GetValue()
		}
	}
	t.Fatalf("no %s among %v", outcome, families)
	return 0
}
