package ingest

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/ingest/spool"
)

// requestIDs are those of the messages of one topic, sorted.
func requestIDs(records []*kgo.Record) []string {
	var ids []string
	for _, r := range records {
		ids = append(ids, headersOf(r)["flowstate-request-id"])
	}
	slices.Sort(ids)
	return ids
}

// A sender's own id is in the answer, the log and the headers of all that came of the request, by each entrance; without one it is ours.
func TestRequestIDIsTheSenders(t *testing.T) {
	e := startEdge(t)
	key := e.add(service(auth.Production))
	signal := logRecord("flowstate.signal", str("signal.type", "secret_detected"))
	logs := marshal(t, logsRequest(logRecord("claude_code.api_request"), signal))

	a := e.send("POST", "/v1/logs", logs, "Content-Type", "application/x-protobuf", "x-flowstate-key", key, "x-request-id", "http.1")
	if a.code != 200 || a.header.Get("X-Request-Id") != "http.1" {
		t.Fatalf("%s %v", a, a.header)
	}
	a = e.send("POST", "/v1/signals", []byte(`[{"type":"secret_detected"},{"type":"secret_detected"}]`), "Content-Type", "application/json", "x-flowstate-key", key, "x-request-id", "json_1")
	if a.code != 200 || a.header.Get("X-Request-Id") != "json_1" {
		t.Fatalf("%s %v", a, a.header)
	}
	var head metadata.MD
	ctx := withKey(t, "x-flowstate-key", key, "x-request-id", "grpc-1")
	if _, err := collogs.NewLogsServiceClient(e.dial()).Export(ctx, logsRequest(logRecord("claude_code.api_request"), signal), grpc.Header(&head)); err != nil {
		t.Fatal(err)
	}
	if got := head.Get("x-request-id"); !slices.Equal(got, []string{"grpc-1"}) {
		t.Errorf("gRPC answers %q", got)
	}
	a = e.send("POST", "/v1/logs", logs, "Content-Type", "application/x-protobuf", "x-flowstate-key", key)
	own := a.header.Get("X-Request-Id")
	if a.code != 200 || len(own) != 16 {
		t.Fatalf("%s %q", a, own)
	}
	if got, want := requestIDs(read(t, e.brokers, e.topics.Logs, 3)), []string{"grpc-1", "http.1", own}; !slices.Equal(got, sorted(want)) {
		t.Errorf("logs carry %q, want %q", got, want)
	}
	if got, want := requestIDs(read(t, e.brokers, e.topics.Signals, 5)), []string{"grpc-1", "http.1", "json_1", "json_1", own}; !slices.Equal(got, sorted(want)) {
		t.Errorf("signals carry %q, want %q", got, want)
	}

	a = e.send("POST", "/v1/logs", nil, "Content-Type", "text/plain", "x-flowstate-key", key, "x-request-id", "refused-1")
	if a.code != 415 || a.header.Get("X-Request-Id") != "refused-1" || !strings.Contains(e.log.String(), "request_id=refused-1") {
		t.Errorf("%s %v", a, a.header)
	}
}

func sorted(s []string) []string {
	s = slices.Clone(s)
	slices.Sort(s)
	return s
}

// What is no id, or may be a key, is nowhere: the request gets one of ours.
func TestRequestIDThatIsNone(t *testing.T) {
	e := startEdge(t)
	key := e.add(service(auth.Production))
	admin, _ := auth.MintAdminToken()
	for _, sent := range []string{key, key[:60], key[:16], "x." + key[:40], admin[:64], strings.Repeat("x", 65), "a b", `a"b`, "a/b", "%0a"} {
		a := e.send("GET", "/v1/whoami", nil, "x-flowstate-key", key, "x-request-id", sent)
		if got := a.header.Get("X-Request-Id"); a.code != 200 || len(got) != 16 || got == sent {
			t.Errorf("%q became %q", sent, got)
		}
		e.send("GET", "/v1/nothing", nil, "x-request-id", sent)
	}
	if strings.Contains(e.log.String(), key[:40]) {
		t.Error("a key is in the log")
	}
}

// What waited in the spool comes with the id of the request that brought it.
func TestRequestIDThroughTheSpool(t *testing.T) {
	log := openSpool(t, spool.Config{})
	e := startEdge(t, func(ec *EdgeConfig, _ *ServerConfig, pc *ProducerConfig) {
		away := startProducer(t, ProducerConfig{KafkaConfig: pc.KafkaConfig, Topics: pc.Topics})
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := away.Close(ctx); err != nil {
			t.Fatal(err)
		}
		ec.Sink = NewSink(SinkConfig{Producer: away, Spool: log})
	})
	key := e.add(service(auth.Production))
	a := e.send("POST", "/v1/logs", marshal(t, logsRequest(logRecord("other"), logRecord("flowstate.signal", str("signal.type", "secret_detected")))),
		"Content-Type", "application/x-protobuf", "x-flowstate-key", key, "x-request-id", "kept-1")
	if a.code != 200 || log.Stats().Records != 2 {
		t.Fatalf("%s, %d in the spool", a, log.Stats().Records)
	}
	defer startDrain(t, NewSink(SinkConfig{Producer: e.edge.cfg.Producer, Spool: log}))()
	for _, topic := range []string{e.topics.Logs, e.topics.Signals} {
		within(t, 20*time.Second, "the spool is empty", func() bool { return log.Stats().Records == 0 })
		got := read(t, e.brokers, topic, 1)
		if len(got) != 1 {
			t.Fatalf("%s holds %d", topic, len(got))
		}
		if h := headersOf(got[0]); h["flowstate-request-id"] != "kept-1" || h["flowstate-replayed"] != "1" {
			t.Errorf("%s: %v", topic, h)
		}
	}
}
