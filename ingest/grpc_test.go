package ingest

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	colmetrics "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	coltrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	metrics "go.opentelemetry.io/proto/otlp/metrics/v1"
	resource "go.opentelemetry.io/proto/otlp/resource/v1"
	trace "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"flowstate.inc/sluice/auth"
)

// dial connects grpc-go's client to the edge.
func (e *testEdge) dial(opts ...grpc.DialOption) *grpc.ClientConn {
	e.t.Helper()
	opts = append([]grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}, opts...)
	c, err := grpc.NewClient(e.grpc, opts...)
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { c.Close() })
	return c
}

func withKey(t testing.TB, pairs ...string) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return metadata.AppendToOutgoingContext(ctx, pairs...)
}

// rpcCode is the code of an error, and the retry delay that it carries, 0 for none.
func rpcCode(err error) (codes.Code, time.Duration) {
	s := status.Convert(err)
	for _, d := range s.Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok {
			return s.Code(), info.RetryDelay.AsDuration()
		}
	}
	return s.Code(), 0
}

// The three services by grpc-go's client: what arrives equals what was sent but for the badge, plain and gzipped, with the key in each of its forms.
func TestGRPCTelemetryArrivesWithBadge(t *testing.T) {
	e := startEdge(t)
	key := e.add(service(auth.Production))
	conn := e.dial()
	spans := &coltrace.ExportTraceServiceRequest{ResourceSpans: []*trace.ResourceSpans{{Resource: &resource.Resource{}, ScopeSpans: []*trace.ScopeSpans{{Spans: []*trace.Span{
		{TraceId: bytes.Repeat([]byte{1}, 16), SpanId: bytes.Repeat([]byte{2}, 8), Name: "chat"}}}}}}}
	points := &colmetrics.ExportMetricsServiceRequest{ResourceMetrics: []*metrics.ResourceMetrics{{Resource: &resource.Resource{}, ScopeMetrics: []*metrics.ScopeMetrics{{Metrics: []*metrics.Metric{
		{Name: "tokens", Data: &metrics.Metric_Sum{Sum: &metrics.Sum{DataPoints: []*metrics.NumberDataPoint{{Value: &metrics.NumberDataPoint_AsInt{AsInt: 7}}}}}}}}}}}}
	records := logsRequest(logRecord("claude_code.api_request", str("model", strings.Repeat("m", 100_000))), logRecord("claude_code.tool_result"))
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("acme:"+key))
	credentials := [][]string{{"x-flowstate-key", key}, {"authorization", "Bearer " + key}, {"authorization", basic}, {"x-flowstate-key", key, "x-flowstate-key", key}}
	for i, pair := range credentials {
		ctx := withKey(t, pair...)
		var opts []grpc.CallOption
		if i%2 == 1 {
			opts = append(opts, grpc.UseCompressor("gzip"))
		}
		var header metadata.MD
		res, err := collogs.NewLogsServiceClient(conn).Export(ctx, records, append(opts, grpc.Header(&header))...)
		if err != nil || res.PartialSuccess != nil || len(header.Get("x-request-id")) != 1 {
			t.Fatalf("logs: %v %v %v", res, err, header)
		}
		if res, err := coltrace.NewTraceServiceClient(conn).Export(ctx, spans, opts...); err != nil || res.PartialSuccess != nil {
			t.Fatalf("spans: %v %v", res, err)
		}
		if res, err := colmetrics.NewMetricsServiceClient(conn).Export(ctx, points, opts...); err != nil || res.PartialSuccess != nil {
			t.Fatalf("metrics: %v %v", res, err)
		}
	}
	for topic, sent := range map[string]proto.Message{e.topics.Logs: records, e.topics.Spans: spans, e.topics.Metrics: points} {
		for _, m := range read(t, e.brokers, topic, len(credentials)) {
			got := sent.ProtoReflect().New().Interface()
			if err := proto.Unmarshal(m.Value, got); err != nil {
				t.Fatal(err)
			}
			switch x := got.(type) {
			case *collogs.ExportLogsServiceRequest:
				checkBadge(t, badgeOf(t, x.ResourceLogs[0].Resource), key)
			case *coltrace.ExportTraceServiceRequest:
				checkBadge(t, badgeOf(t, x.ResourceSpans[0].Resource), key)
			case *colmetrics.ExportMetricsServiceRequest:
				checkBadge(t, badgeOf(t, x.ResourceMetrics[0].Resource), key)
			}
			if !proto.Equal(got, sent) {
				t.Errorf("%s: what arrived is not what was sent", topic)
			}
		}
	}
	received, outcomes := e.ledger()
	if received["logs"] != 8 || outcomes["logs/accepted/kafka"] != 8 || outcomes["spans/accepted/kafka"] != 4 || outcomes["metrics/accepted/kafka"] != 4 {
		t.Errorf("ledger %v %v", received, outcomes)
	}
	e.balanced()
}

// A key over its own limit is told so as by HTTP, in metadata of the same names.
func TestGRPCLimits(t *testing.T) {
	e := startEdge(t)
	slow := service(auth.Production)
	slow.Limits.RequestsPerSecond = 5
	key, client := e.add(slow), collogs.NewLogsServiceClient(e.dial())
	for range 50 {
		var header, trailer metadata.MD
		_, err := client.Export(withKey(t, "x-flowstate-key", key), logsRequest(logRecord("a")), grpc.Header(&header), grpc.Trailer(&trailer))
		all := metadata.Join(header, trailer) // a status alone is a trailer to grpc-go
		policy, left := strings.Join(all["ratelimit-policy"], ","), strings.Join(all["ratelimit"], ",")
		if policy != `"requests";q=5;w=1` || !strings.HasPrefix(left, `"requests";r=`) {
			t.Fatalf("%v: metadata %v", err, all)
		}
		if err == nil {
			continue
		}
		if code, retry := rpcCode(err); code != codes.ResourceExhausted || retry == 0 || !strings.HasPrefix(left, `"requests";r=0;`) {
			t.Errorf("%v, again after %v: %s", err, retry, left)
		}
		return
	}
	t.Error("50 requests at 5 a second were never refused")
}

// Requests under way are finished when the server stops, and clients are told to go elsewhere.
func TestGRPCStopsGracefully(t *testing.T) {
	e := startEdge(t)
	key := e.add(service(auth.Production))
	conn := e.dial()
	client := collogs.NewLogsServiceClient(conn)
	ctx := withKey(t, "x-flowstate-key", key)
	if _, err := client.Export(ctx, logsRequest(logRecord("a"))); err != nil {
		t.Fatal(err)
	}
	const n = 32
	var wg sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		wg.Go(func() { _, errs[i] = client.Export(ctx, logsRequest(logRecord(fmt.Sprint("r", i)))) })
	}
	stop, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := e.rpc.Shutdown(stop); err != nil {
		t.Errorf("shutdown: %v", err)
	}
	wg.Wait()
	ok := 1
	for _, err := range errs {
		switch code, _ := rpcCode(err); code {
		case codes.OK:
			ok++
		case codes.Unavailable: // came too late: the client retries elsewhere
		default:
			t.Errorf("%v", err)
		}
	}
	if got := len(read(t, e.brokers, e.topics.Logs, ok)); got != ok {
		t.Errorf("%d messages of %d acknowledged", got, ok)
	}
	e.balanced()
}

// A panic is INTERNAL for the one who met it, counted, and nobody else's business.
func TestPanicIsOneRequests(t *testing.T) {
	e := startEdge(t, func(ec *EdgeConfig, _ *ServerConfig, _ *ProducerConfig) {})
	key := e.add(service(auth.Production))
	decider := e.edge.cfg.Decider
	e.edge.cfg.Decider = nil // a signal's way leads through it
	signal := logsRequest(logRecord("flowstate.signal", str("signal.type", "forecast_breach")))
	conn := e.dial()
	_, err := collogs.NewLogsServiceClient(conn).Export(withKey(t, "x-flowstate-key", key), signal)
	if code, retry := rpcCode(err); code != codes.Internal || retry != 0 {
		t.Errorf("gRPC: %v", err)
	}
	a := e.send("POST", "/v1/logs", marshal(t, signal), "Content-Type", "application/x-protobuf", "x-flowstate-key", key)
	if a.code != 500 {
		t.Errorf("HTTP: %s", a)
	}
	checkStatus(t, "panic", a)
	e.edge.cfg.Decider = decider
	if _, err := collogs.NewLogsServiceClient(conn).Export(withKey(t, "x-flowstate-key", key), signal); err != nil {
		t.Errorf("after it: %v", err)
	}
	if n := e.requests("logs", "500", "panic"); n != 2 {
		t.Errorf("%v panics counted", n)
	}
	if n := e.edge.budget.used.Load(); n != 0 {
		t.Errorf("%d bytes of bodies are still charged", n)
	}
	e.balanced()
}

// Junk on the gRPC port: broken frames, HTTP/1.1, other content types.
func TestGRPCJunk(t *testing.T) {
	e := startEdge(t)
	key := e.add(service(auth.Production))
	var h2 http.Protocols
	h2.SetUnencryptedHTTP2(true)
	client := &http.Client{Transport: &http.Transport{Protocols: &h2}}
	defer client.CloseIdleConnections()
	post := func(client *http.Client, path, contentType string, body []byte, headers ...string) *http.Response {
		t.Helper()
		q, err := http.NewRequest("POST", "http://"+e.grpc+path, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		q.Header.Set("Content-Type", contentType)
		q.Header.Set("x-flowstate-key", key)
		for i := 0; i < len(headers); i += 2 {
			q.Header.Set(headers[i], headers[i+1])
		}
		res, err := client.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if _, err := io.Copy(io.Discard, res.Body); err != nil {
			t.Fatal(err)
		}
		return res
	}
	const export = "/opentelemetry.proto.collector.logs.v1.LogsService/Export"
	valid := marshal(t, logsRequest(logRecord("a")))
	frame := func(flag byte, length int, body []byte) []byte {
		return append([]byte{flag, byte(length >> 24), byte(length >> 16), byte(length >> 8), byte(length)}, body...)
	}
	for _, c := range []struct {
		name    string
		body    []byte
		headers []string
		status  string
	}{
		{"nothing", nil, nil, "3"},
		{"half a head", []byte{0, 0}, nil, "3"},
		{"less than announced", frame(0, 1000, valid), nil, "3"},
		{"more than announced", frame(0, len(valid)-1, valid), nil, "3"},
		{"two messages", append(frame(0, len(valid), valid), frame(0, len(valid), valid)...), nil, "3"},
		{"a flag of 7", frame(7, len(valid), valid), nil, "3"},
		{"4 GiB announced", frame(0, 1<<32-1, valid), nil, "8"},
		{"compressed, and nobody says how", frame(1, len(valid), valid), nil, "13"},
		{"compressed by nothing", frame(1, len(valid), valid), []string{"grpc-encoding", "identity"}, "13"},
		{"compressed by what we do not know", frame(1, len(valid), valid), []string{"grpc-encoding", "snappy"}, "12"},
		{"gzip that is none", frame(1, len(valid), valid), []string{"grpc-encoding", "gzip"}, "3"},
		{"the flag says that it is not compressed", frame(0, len(valid), valid), []string{"grpc-encoding", "gzip"}, "0"},
		{"zstd", frame(1, len(zstded(t, valid)), zstded(t, valid)), []string{"grpc-encoding", "zstd"}, "0"},
		{"an empty message", frame(0, 0, nil), nil, "0"},
	} {
		res := post(client, export, "application/grpc", c.body, c.headers...)
		got := res.Header.Get("Grpc-Status") + res.Trailer.Get("Grpc-Status")
		if res.StatusCode != 200 || got != c.status {
			t.Errorf("%s: %d, grpc-status %q %q; want %s", c.name, res.StatusCode, got, res.Header.Get("Grpc-Message"), c.status)
		}
		if c.status == "12" && !strings.Contains(res.Header.Get("Grpc-Accept-Encoding"), "gzip") {
			t.Errorf("%s: nothing says what is accepted", c.name)
		}
	}
	for _, contentType := range []string{"application/grpc+proto", "application/grpc; charset=utf-8", "Application/gRPC+Proto;v=1"} {
		if res := post(client, export, contentType, frame(0, len(valid), valid)); res.StatusCode != 200 || res.Trailer.Get("Grpc-Status") != "0" {
			t.Errorf("%s: %d, grpc-status %q", contentType, res.StatusCode, res.Trailer.Get("Grpc-Status"))
		}
	}
	if res := post(client, export, "application/grpc+json", valid); res.StatusCode != 415 {
		t.Errorf("gRPC in JSON: %d", res.StatusCode)
	}
	if res := post(http.DefaultClient, "/v1/logs", "application/x-protobuf", valid); res.StatusCode != 415 || res.Header.Get("Content-Type") != "application/x-protobuf" {
		t.Errorf("OTLP/HTTP on the gRPC port: %d", res.StatusCode)
	}
	e.balanced()
}
