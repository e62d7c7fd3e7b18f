package ingest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/prometheus/client_golang/prometheus"

	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/signals"
)

// A testEdge is an edge on a loopback port, with keys and a Kafka of its own (or topics of its own in the real one).
type testEdge struct {
	t       testing.TB
	url     string
	addr    string // of the HTTP listener
	grpc    string // address of the gRPC listener
	edge    *Edge
	server  *Server
	rpc     *GRPCServer
	reg     *prometheus.Registry
	brokers []string
	topics  Topics
	log     *lockedBuffer
	stamps  *stampBook

	mu   sync.Mutex
	keys map[string]auth.Record // by prefix: the truth behind the chain
	away bool                   // the truth does not answer
}

// A lockedBuffer is a log that a test may read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// A stampBook is where stamps arrive.
type stampBook struct {
	mu   sync.Mutex
	last map[string]time.Time
}

type edgeOption func(*EdgeConfig, *ServerConfig, *ProducerConfig)

// startEdge starts an edge on the real Kafka where its address is given, else on a fake one.
func startEdge(t testing.TB, opts ...edgeOption) *testEdge {
	t.Helper()
	var brokers []string
	if real := os.Getenv("TEST_KAFKA_BROKERS"); real != "" {
		brokers = strings.Split(real, ",")
	} else if os.Getenv("SLUICE_REQUIRE_SERVICES") == "1" {
		t.Fatal("TEST_KAFKA_BROKERS is required")
	} else {
		brokers = newFake(t).ListenAddrs()
	}
	return startEdgeOn(t, brokers, opts...)
}

// startEdgeOn is startEdge on a Kafka that the test has chosen.
func startEdgeOn(t testing.TB, brokers []string, opts ...edgeOption) *testEdge {
	t.Helper()
	suffix := fmt.Sprintf("_%x", rand.Uint64())
	e := &testEdge{
		t: t, reg: prometheus.NewRegistry(), log: &lockedBuffer{}, keys: map[string]auth.Record{}, stamps: &stampBook{last: map[string]time.Time{}},
		topics:  Topics{"otlp_logs" + suffix, "otlp_spans" + suffix, "otlp_metrics" + suffix, "ai_signals" + suffix},
		brokers: brokers,
	}
	kafkaConfig := KafkaConfig{Brokers: e.brokers}
	var specs []TopicSpec
	for _, name := range []string{e.topics.Logs, e.topics.Spans, e.topics.Metrics, e.topics.Signals} {
		specs = append(specs, TopicSpec{Name: name, Partitions: 2})
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if _, err := EnsureTopics(ctx, kafkaConfig, specs); err != nil {
		t.Fatal(err)
	}
	e.serve(kafkaConfig, opts...)
	return e
}

func (e *testEdge) serve(kafkaConfig KafkaConfig, opts ...edgeOption) {
	t := e.t
	t.Helper()
	log := slog.New(slog.NewTextHandler(e.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	pc := ProducerConfig{KafkaConfig: kafkaConfig, Topics: []string{e.topics.Logs, e.topics.Spans, e.topics.Metrics, e.topics.Signals}, Logger: log, Registerer: e.reg}
	ec := EdgeConfig{Topics: e.topics, Registerer: e.reg, Logger: log}
	sc := ServerConfig{Logger: log}
	for _, o := range opts {
		o(&ec, &sc, &pc)
	}
	chain, err := auth.NewChain(auth.ChainConfig{Truth: e.truth(), Registerer: e.reg, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	run, stop := context.WithCancel(context.Background())
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		_ = chain.Run(run)
	}()
	t.Cleanup(func() { stop(); <-stopped })
	ec.Chain = chain
	ec.Decider, err = signals.NewDecider(signals.DeciderConfig{Account: chain.Account, AccountByName: chain.AccountByName})
	if err != nil {
		t.Fatal(err)
	}
	ec.Producer = startProducer(t, pc)
	e.edge = NewEdge(ec)
	sc.Edge = e.edge
	e.server = NewServer(sc)
	e.rpc = NewGRPCServer(GRPCConfig{Edge: e.edge, ListenConfig: sc.ListenConfig, HeaderTimeout: sc.HeaderTimeout, BodyTimeout: sc.BodyTimeout, Logger: log})
	e.addr = e.listen(e.server.Serve, e.server.Shutdown)
	e.grpc = e.listen(e.rpc.Serve, e.rpc.Shutdown)
	e.url = "http://" + e.addr
	if sc.Certificate != nil {
		e.url = "https://" + e.addr
	}
}

// listen serves on a free port until the test ends and returns its address.
func (e *testEdge) listen(serve func(net.Listener) error, shutdown func(context.Context) error) string {
	t := e.t
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- serve(ln) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return ln.Addr().String()
}

// truth is the database that this test is.
func (e *testEdge) truth() auth.Truth {
	find := func(match func(auth.Record) bool) (auth.Record, error) {
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.away {
			return auth.Record{}, context.DeadlineExceeded
		}
		for _, r := range e.keys {
			if match(r) {
				return r, nil
			}
		}
		return auth.Record{}, auth.ErrNoKey
	}
	return auth.Truth{
		Key: func(_ context.Context, prefix string) (auth.Record, error) {
			return find(func(r auth.Record) bool { return r.Prefix == prefix })
		},
		AccountKey: func(_ context.Context, org, id string) (string, error) {
			r, err := find(func(r auth.Record) bool { return r.Principal.Org == org && r.Principal.ID == id })
			return r.Prefix, err
		},
		AccountKeyByName: func(_ context.Context, org, name, environment string) (string, error) {
			r, err := find(func(r auth.Record) bool {
				return r.Principal.Org == org && r.Principal.Name == name && r.Principal.Environment == environment
			})
			return r.Prefix, err
		},
		Changes:    func(context.Context, time.Time) ([]auth.Change, time.Time, error) { return nil, time.Now(), nil },
		ReportEdge: func(context.Context, string, time.Time, time.Duration) error { return nil },
		Stamp: func(_ context.Context, stamps []auth.Stamp) error {
			e.stamps.mu.Lock()
			defer e.stamps.mu.Unlock()
			for _, s := range stamps {
				e.stamps.last[s.Prefix] = s.Last
			}
			return nil
		},
	}
}

func (e *testEdge) setAway(away bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.away = away
}

// add makes a key for p and returns it raw.
func (e *testEdge) add(p auth.Principal) string {
	raw, key := auth.MintKey(p.Kind)
	p.KeyPrefix = key.Prefix()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.keys[key.Prefix()] = auth.Record{Prefix: key.Prefix(), Hash: key.Hash, Version: 1, Principal: p}
	return raw
}

func (e *testEdge) revoke(raw string) {
	key, err := auth.ParseKey([]byte(raw))
	if err != nil {
		e.t.Fatal(err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	r := e.keys[key.Prefix()]
	r.Version++
	r.RevokedAt = time.Now()
	e.keys[key.Prefix()] = r
}

// service is the seed's own example.
func service(environment string) auth.Principal {
	return auth.Principal{Org: "acme", Kind: auth.KindServiceAccount, ID: "sa_" + environment, Name: "nightly-digest-summariser", Environment: environment,
		Description: "Summarises the day's tickets", IntendedScope: "May read tickets", AbuseDetection: true, Team: "support", CostCentre: "cc-7"}
}

func person() auth.Principal {
	return auth.Principal{Org: "acme", Kind: auth.KindPerson, ID: "alice@example.com", Name: "alice@example.com"}
}

func detector() auth.Principal {
	return auth.Principal{Org: "acme", Kind: auth.KindDetector, ID: "pii-scanner", Name: "pii-scanner"}
}

// An answer is what a client sees.
type answer struct {
	code   int
	header http.Header
	body   []byte
}

func (a answer) String() string { return fmt.Sprintf("%d %s", a.code, a.body) }

// send sends one request; headers alternate name and value.
func (e *testEdge) send(method, path string, body []byte, headers ...string) answer {
	e.t.Helper()
	req, err := http.NewRequest(method, e.url+path, bytes.NewReader(body))
	if err != nil {
		e.t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		dump, _ := httputil.DumpRequest(req, false)
		e.t.Fatalf("%v\n%s", err, dump)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		e.t.Fatal(err)
	}
	return answer{res.StatusCode, res.Header, b}
}

// signals posts JSON signals with a key.
func (e *testEdge) signals(key, body string) (answer, signalsAnswer) {
	e.t.Helper()
	a := e.send("POST", "/v1/signals", []byte(body), "Content-Type", "application/json", "x-flowstate-key", key)
	var s signalsAnswer
	if a.code == 200 || a.code == 400 && a.header.Get("Content-Type") == typeJSON {
		if err := json.Unmarshal(a.body, &s); err != nil {
			e.t.Fatalf("%v: %s", err, a)
		}
	}
	return a, s
}

// ledger reads the ledger: received by kind, and outcomes by kind, outcome and reason.
func (e *testEdge) ledger() (map[string]float64, map[string]float64) {
	e.t.Helper()
	families, err := e.reg.Gather()
	if err != nil {
		e.t.Fatal(err)
	}
	received, outcomes := map[string]float64{}, map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			labels := map[string]string{}
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			v := m.GetCounter().GetValue()
			switch f.GetName() {
			case "sluice_ingest_records_received_total":
				received[labels["kind"]] = v
			case "sluice_ingest_records_total":
				if v > 0 {
					outcomes[labels["kind"]+"/"+labels["outcome"]+"/"+labels["reason"]] = v
				}
			}
		}
	}
	return received, outcomes
}

// balanced checks the promise of the ledger: received = sum of outcomes, for each kind.
func (e *testEdge) balanced() {
	e.t.Helper()
	received, outcomes := e.ledger()
	sums := map[string]float64{}
	for k, v := range outcomes {
		kind, _, _ := strings.Cut(k, "/")
		sums[kind] += v
	}
	for kind, n := range received {
		if sums[kind] != n {
			e.t.Errorf("ledger of %s: received %v, outcomes %v in all (%v)", kind, n, sums[kind], outcomes)
		}
	}
}

// stopKafka takes the producer away from the edge, which is all that a request sees of a Kafka that is gone.
func (e *testEdge) stopKafka() {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := e.edge.cfg.Producer.Close(ctx); err != nil {
		e.t.Fatal(err)
	}
}

// requests reads sluice_ingest_requests_total.
func (e *testEdge) requests(kind, code, reason string) float64 {
	e.t.Helper()
	return e.metric("sluice_ingest_requests_total", "kind", kind, "code", code, "reason", reason)
}

// metric reads a counter or gauge by its labels, given as name and value in turn; 0 where there is none.
func (e *testEdge) metric(name string, labels ...string) float64 {
	e.t.Helper()
	families, err := e.reg.Gather()
	if err != nil {
		e.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
	series:
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				for i := 0; i < len(labels); i += 2 {
					if l.GetName() == labels[i] && l.GetValue() != labels[i+1] {
						continue series
					}
				}
			}
			return m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return 0
}

func zstded(t testing.TB, b []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(b, nil)
}
