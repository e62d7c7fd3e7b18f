package ingest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/ingest/spool"
)

// openSpool opens a spool for a test; it is closed at the end.
func openSpool(t testing.TB, cfg spool.Config) *spool.Log {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	cfg.MinFreeBytes = -1
	l, err := spool.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeLog(t, l) })
	return l
}

func closeLog(t testing.TB, l *spool.Log) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := l.Close(ctx); err != nil {
		t.Error(err)
	}
}

// startSink starts a sink with a spool on a producer of cfg.
func startSink(t testing.TB, pc ProducerConfig, sc SinkConfig) *Sink {
	t.Helper()
	sc.Producer = startProducer(t, pc)
	if sc.Logger == nil {
		sc.Logger = slog.New(slog.DiscardHandler)
	}
	return NewSink(sc)
}

// startDrain drains until the test ends or the returned function is called.
func startDrain(t testing.TB, s *Sink) func() {
	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		s.NewDrain().Run(ctx)
	}()
	stop := sync.OnceFunc(func() { cancel(); <-stopped })
	t.Cleanup(stop)
	return stop
}

// deliver sends one message and says what became of it.
func (s *Sink) deliverOne(key, value string) (fate, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Second)
	defer cancel()
	fates, err := deliver(s, ctx, "fsk_one", []Message{message(testTopic, key, value)})
	return fates[0], err
}

func TestSinkWithoutTrouble(t *testing.T) {
	c := newFake(t)
	log := openSpool(t, spool.Config{})
	s := startSink(t, brokersOf(c), SinkConfig{Spool: log})
	fates, err := deliver(s, t.Context(), "k", []Message{message(testTopic, keyIn(0, 6), "a"), message(testTopic, keyIn(1, 6), "b"), message(testTopic, keyIn(0, 6), "c")})
	if err != nil || fmt.Sprint(fates) != fmt.Sprint([]fate{inKafka, inKafka, inKafka}) {
		t.Fatalf("%v %v", fates, err)
	}
	if st := log.Stats(); st.Records != 0 {
		t.Errorf("%d records in the spool", st.Records)
	}
	if seen := valuesOf(read(t, c.ListenAddrs(), testTopic, 3)); len(seen) != 3 {
		t.Errorf("%v", seen)
	}
}

// A request whose time is over, or nearly, when it comes to Kafka says nothing about the partition; one that waited for its own says that it is sick.
func TestSinkLateRequest(t *testing.T) {
	c := newFake(t)
	f := newFreezer(c)
	pc := brokersOf(c)
	pc.Timeout = 2 * time.Second
	log := openSpool(t, spool.Config{})
	s := startSink(t, pc, SinkConfig{Spool: log})
	key := keyIn(2, 6)
	part := partitionID{testTopic, 2}
	deliver := func(within time.Duration) (fate, error) {
		ctx, cancel := context.WithTimeout(context.Background(), within)
		defer cancel()
		fates, err := deliver(s, ctx, "fsk_one", []Message{message(testTopic, key, within.String())})
		return fates[0], err
	}
	if f, err := s.deliverOne(key, "well"); f != inKafka || err != nil {
		t.Fatalf("%v %v", f, err)
	}
	if f, err := deliver(-time.Second); f != inSpool || err != nil {
		t.Fatalf("a request whose time is over: %v %v", f, err)
	}
	f.frozen[0].Store(true)
	if f, err := deliver(50 * time.Millisecond); f != inSpool || err != nil {
		t.Fatalf("a request whose time is nearly over: %v %v", f, err)
	}
	f.frozen[0].Store(false)
	if s.breakers.sick(part) {
		t.Error("a late request made the partition sick")
	}
	eventually(t, "the request that was late is through", func() bool { return s.producer.undecided() == 0 })
	if f, err := s.deliverOne(key, "still well"); f != inKafka || err != nil {
		t.Errorf("the next request: %v %v", f, err)
	}
	f.frozen[0].Store(true)
	defer f.frozen[0].Store(false)
	if f, err := deliver(1900 * time.Millisecond); f != inSpool || err != nil {
		t.Fatalf("a request that waited: %v %v", f, err)
	}
	if !s.breakers.sick(part) {
		t.Error("a request that waited for its time did not make the partition sick")
	}
}

// A request has the spool's time once, after its time for Kafka, however many rounds it takes.
func TestSinkSpoolTimeIsTheRequests(t *testing.T) {
	c := newFake(t)
	s := startSink(t, brokersOf(c), SinkConfig{Spool: openSpool(t, spool.Config{})})
	var fates [1]fate
	late := func(by time.Duration) error {
		return s.deliver(t.Context(), time.Now().Add(-by), "fsk_one", []Message{message(testTopic, "k", "v")}, fates[:])
	}
	if err := late(s.cfg.SpoolTimeout / 2); err != nil || fates[0] != inSpool {
		t.Errorf("with half of the time left: %v %v", fates[0], err)
	}
	fates[0] = notKept
	if err := late(2 * s.cfg.SpoolTimeout); !errors.Is(err, context.DeadlineExceeded) || fates[0] != notKept {
		t.Errorf("with none left: %v %v", fates[0], err)
	}
}

// What the broker calls invalid is invalid for good; its neighbours are well, and so is the partition.
func TestSinkInvalidToKafka(t *testing.T) {
	c := newFake(t)
	refusePoison(c)
	log := openSpool(t, spool.Config{})
	s := startSink(t, brokersOf(c), SinkConfig{Spool: log})
	key := keyIn(2, 6)
	fates, err := deliver(s, t.Context(), "k", []Message{message(testTopic, key, "a"), message(testTopic, key, "poison"), message(testTopic, key, "c")})
	if err != nil || fmt.Sprint(fates) != fmt.Sprint([]fate{inKafka, neverTaken, inKafka}) {
		t.Fatalf("%v %v", fates, err)
	}
	if st := log.Stats(); st.Records != 0 || s.breakers.sick(partitionID{testTopic, 2}) {
		t.Errorf("%d records in the spool, sick: %v", st.Records, s.breakers.sick(partitionID{testTopic, 2}))
	}
}

// One sick partition neither fills the spool with the others' messages nor slows them, is probed once a second, and its messages arrive in order.
func TestSinkSickPartition(t *testing.T) {
	c := newFake(t)
	sick := int32(2)
	var tries sync.Map // second → how many
	ill := true
	var mu sync.Mutex
	setIll := func(v bool) { mu.Lock(); defer mu.Unlock(); ill = v }
	c.ControlKey(int16(kmsg.Produce), func(r kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		mu.Lock()
		defer mu.Unlock()
		req := r.(*kmsg.ProduceRequest)
		hit := false
		for i := range req.Topics {
			for _, p := range req.Topics[i].Partitions {
				hit = hit || p.Partition == sick
			}
		}
		if !hit || !ill {
			return nil, nil, false
		}
		n, _ := tries.LoadOrStore(time.Now().Unix(), new(int))
		*n.(*int)++
		return answerProduce(req, kerr.NotEnoughReplicas.Code), nil, true
	})
	reg := prometheus.NewRegistry()
	log := openSpool(t, spool.Config{})
	pc := brokersOf(c)
	pc.Timeout = time.Second
	s := startSink(t, pc, SinkConfig{Spool: log, Registerer: reg})
	if err := s.producer.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	stop := startDrain(t, s)
	key := keyIn(int(sick), 6)
	if f, err := s.deliverOne(key, "0"); f != inSpool || err != nil {
		t.Fatalf("%v %v", f, err)
	}
	const n = 200
	for i := range n {
		began := time.Now()
		if f, err := s.deliverOne(key, fmt.Sprint(i+1)); f != inSpool || err != nil {
			t.Fatalf("message %d: %v %v", i, f, err)
		}
		if took := time.Since(began); took > 500*time.Millisecond {
			t.Errorf("a message of the sick partition took %v", took)
		}
		began = time.Now()
		if f, err := s.deliverOne(keyIn(3, 6), fmt.Sprint("well ", i)); f != inKafka || err != nil {
			t.Fatalf("a message of another partition: %v %v", f, err)
		}
		if took := time.Since(began); took > 800*time.Millisecond {
			t.Errorf("a message of another partition took %v", took)
		}
	}
	if st := log.Stats(); st.Records != n+1 {
		t.Errorf("%d records in the spool, want %d", st.Records, n+1)
	}
	if v := testutil.ToFloat64(s.metrics.straight) + testutil.ToFloat64(s.metrics.missed); v != n+1 {
		t.Errorf("%v messages counted", v)
	}
	setIll(false)
	within(t, 20*time.Second, "the spool is empty", func() bool { return log.Stats().Records == 0 })
	eventually(t, "straight to Kafka again", func() bool { f, err := s.deliverOne(key, "after"); return f == inKafka && err == nil })
	stop()
	next := 0
	for _, r := range read(t, c.ListenAddrs(), testTopic, 2*n+2) {
		if r.Partition != sick {
			if headersOf(r)["flowstate-replayed"] != "" {
				t.Errorf("%s is marked", r.Value)
			}
			continue
		}
		if string(r.Value) == "after" {
			continue
		}
		if h := headersOf(r); h["flowstate-replayed"] != "1" || h["flowstate-msg-id"] != "id-"+string(r.Value) {
			t.Errorf("%s has headers %v", r.Value, h)
		}
		if string(r.Value) != fmt.Sprint(next) {
			t.Fatalf("%s where %d was to come", r.Value, next)
		}
		next++
	}
	if next != n+1 {
		t.Errorf("%d messages of the sick partition, want %d", next, n+1)
	}
	if v := testutil.ToFloat64(s.metrics.replayed); v != n+1 {
		t.Errorf("%v replayed messages counted", v)
	}
	tries.Range(func(sec, k any) bool {
		// A probe is a call, which the producer repeats within its second with growing pauses.
		if *k.(*int) > 24 {
			t.Errorf("%d tries in second %v", *k.(*int), sec)
		}
		return true
	})
}

// Without metadata nobody knows partitions; with a spool that costs no message.
func TestSinkKafkaNeverSeen(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	ln.Close()
	log := openSpool(t, spool.Config{})
	pc := ProducerConfig{KafkaConfig: KafkaConfig{Brokers: []string{addr}}, Timeout: 500 * time.Millisecond}
	s := startSink(t, pc, SinkConfig{Spool: log})
	startDrain(t, s)
	began := time.Now()
	for i := range 20 {
		if f, err := s.deliverOne("k", fmt.Sprint(i)); f != inSpool || err != nil {
			t.Fatalf("%v %v", f, err)
		}
	}
	if took := time.Since(began); took > 10*pc.Timeout {
		t.Errorf("messages after the first waited for Kafka too: 20 took %v", took)
	}
	newFake(t, kfake.ListenFn(func(string, string) (net.Listener, error) { return net.Listen("tcp", addr) }))
	within(t, 20*time.Second, "the spool is empty", func() bool { return log.Stats().Records == 0 })
	records := read(t, []string{addr}, testTopic, 20)
	for i, r := range records {
		if string(r.Value) != fmt.Sprint(i) {
			t.Errorf("%s where %d was to come", r.Value, i)
		}
	}
}

func TestSinkSpoolFull(t *testing.T) {
	c := newFake(t)
	pc := brokersOf(c)
	pc.Timeout = 300 * time.Millisecond
	c.Close()
	log := openSpool(t, spool.Config{MaxBytes: 4000})
	said := &lockedBuffer{}
	s := startSink(t, pc, SinkConfig{Spool: log, Logger: slog.New(slog.NewTextHandler(said, nil))})
	kept, refused := 0, 0
	for range 50 {
		switch f, err := s.deliverOne("k", strings.Repeat("x", 200)); {
		case f == inSpool && err == nil:
			kept++
			if refused > 0 {
				t.Error("kept although it was full before")
			}
		case f == notKept && errors.Is(err, spool.ErrFull):
			refused++
			if r := unavailable(err); r.code != 503 || r.reason != spoolFull || r.retryAfter == 0 {
				t.Errorf("%+v", r)
			}
		default:
			t.Fatalf("%v %v", f, err)
		}
	}
	if kept < 5 || refused < 5 || log.Stats().Records != int64(kept) {
		t.Errorf("%d kept, %d refused, %d in the spool", kept, refused, log.Stats().Records)
	}
	s.hasRoom() // something small has found a place
	if text := said.String(); strings.Count(text, "the spool is full") != 1 || strings.Contains(text, "room again") {
		t.Errorf("when it was full: %s", text)
	}

	// Kafka is back, and takes what comes and what waits: nothing goes to the spool any more.
	newFake(t, kfake.ListenFn(func(string, string) (net.Listener, error) { return net.Listen("tcp", pc.Brokers[0]) }))
	s.fullAt.Add(-int64(spoolFullEnds))
	startDrain(t, s)
	within(t, 20*time.Second, "it is said that there is room again", func() bool { return strings.Contains(said.String(), "the spool has room again") })
	within(t, 20*time.Second, "the spool is empty", func() bool { return log.Stats().Records == 0 })
	s.hasRoom()
	if text := said.String(); strings.Count(text, "the spool has room again") != 1 {
		t.Errorf("when it was empty: %s", text)
	}
}

// A Kafka that is merely slow takes some messages and misses others: what is said of a topic has a beginning and an end, and is not said all the time.
func TestWhatIsSaidOfATopic(t *testing.T) {
	b := newBreakers()
	now := time.Now()
	var said []string
	miss := func(topic string, index int32) {
		b.trip(partitionID{topic, index}, now, func() { said = append(said, "away "+topic) })
	}
	take := func(topic string, index int32) {
		b.heal(partitionID{topic, index}, func() { said = append(said, "back "+topic) })
	}
	want := func(lines ...string) {
		t.Helper()
		if !slices.Equal(said, lines) {
			t.Errorf("said %q, want %q", said, lines)
		}
		said = nil
	}
	take("a", 0)
	miss("a", 0)
	miss("a", 1)
	miss("b", 0)
	take("a", 2) // well all the time
	take("a", 0)
	want("away a", "away b")
	take("a", 1)
	want("back a")
	for range 50 { // now and then
		now = now.Add(100 * time.Millisecond)
		miss("a", 0)
		take("a", 0)
	}
	want()
	miss("a", 0) // and then for long
	want()
	now = now.Add(sayAgain)
	miss("a", 0)
	miss("a", 0)
	want("away a")
	take("b", 0)
	miss("a", -1) // it is unknown, and known again
	take("a", 3)
	want("back b")
	take("a", 0)
	want("back a")
}

// One key may not use up what all share.
func TestSinkOverloadedKey(t *testing.T) {
	c := newFake(t)
	f := newFreezer(c)
	pc := brokersOf(c)
	pc.Timeout = time.Second
	s := startSink(t, pc, SinkConfig{MaxKeyBytes: 1000, Spool: openSpool(t, spool.Config{})})
	if _, err := s.deliverOne(keyIn(0, 6), "warm"); err != nil {
		t.Fatal(err)
	}
	f.frozen[0].Store(true)
	big := []Message{message(testTopic, keyIn(0, 6), strings.Repeat("x", 700))}
	done := make(chan error, 1)
	go func() {
		_, err := deliver(s, context.Background(), "fsk_hog", big)
		done <- err
	}()
	eventually(t, "it is under way", func() bool { return s.underWay("fsk_hog") > 0 })
	if _, err := deliver(s, t.Context(), "fsk_hog", big); !errors.Is(err, ErrOverloaded) || unavailable(err).reason != overloaded {
		t.Errorf("the second of the key: %v", err)
	}
	if fates, err := deliver(s, t.Context(), "fsk_other", big); err != nil || fates[0] != inSpool {
		t.Errorf("another key: %v %v", fates, err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	eventually(t, "its attempt is over", func() bool { return s.underWay("fsk_hog") == 0 })
	if _, err := deliver(s, t.Context(), "fsk_hog", big); err != nil {
		t.Errorf("when it was over: %v", err)
	}
	f.frozen[0].Store(false)
}

func (s *Sink) underWay(key string) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if use := s.byKey[key]; use != nil {
		return use.bytes.Load()
	}
	return 0
}

// Who leaves before the attempt ends does not get the key's bytes back.
func TestSinkKeyOutlivesItsCaller(t *testing.T) {
	c := newFake(t)
	f := newFreezer(c)
	pc := brokersOf(c)
	pc.Timeout = time.Second
	s := startSink(t, pc, SinkConfig{MaxKeyBytes: 1000})
	if _, err := s.deliverOne(keyIn(0, 6), "warm"); err != nil {
		t.Fatal(err)
	}
	f.frozen[0].Store(true)
	big := []Message{message(testTopic, keyIn(0, 6), strings.Repeat("x", 700))}
	ctx, leave := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := deliver(s, ctx, "fsk_hog", big)
		done <- err
	}()
	eventually(t, "it is in flight", func() bool { return s.producer.undecided() == 1 })
	leave()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("who left: %v", err)
	}
	if _, err := deliver(s, t.Context(), "fsk_hog", big); !errors.Is(err, ErrOverloaded) {
		t.Errorf("the caller left, but its attempt goes on: %v, want ErrOverloaded", err)
	}
	if n := s.waiting.Load(); n != 0 {
		t.Errorf("%d bytes wait, and nobody does", n)
	}
	eventuallyIdle(t, s.producer)
	if n := s.underWay("fsk_hog"); n != 0 {
		t.Errorf("%d bytes stay with the key", n)
	}
	f.frozen[0].Store(false)
	eventually(t, "the key goes on", func() bool { _, err := deliver(s, t.Context(), "fsk_hog", big); return err == nil })
}

// What waits for the leaders, or for the disk, is bounded as what waits for a broker is.
func TestSinkBoundsWhatWaitsForTheLeaders(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0") // nobody answers here
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	pc := ProducerConfig{KafkaConfig: KafkaConfig{Brokers: []string{ln.Addr().String()}}, Topics: []string{testTopic}, MaxMessageBytes: 64 << 10, MaxInFlightBytes: 128 << 10}
	s := startSink(t, pc, SinkConfig{MaxKeyBytes: 1 << 20})
	ctx, leave := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	big := func(key string) error {
		_, err := deliver(s, ctx, key, []Message{{Topic: testTopic, Key: []byte(key), Value: make([]byte, 60<<10)}})
		return err
	}
	for i := range 2 {
		wg.Go(func() {
			if err := big(fmt.Sprint(i)); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
	}
	eventually(t, "two wait", func() bool { return s.waiting.Load() > 120<<10 })
	if err := big("2"); !errors.Is(err, ErrOverloaded) {
		t.Errorf("a third: %v, want ErrOverloaded", err)
	}
	leave()
	wg.Wait()
}

// Keys that are at rest are forgotten.
func TestSinkForgetsKeys(t *testing.T) {
	s := NewSink(SinkConfig{Producer: startProducer(t, brokersOf(newFake(t)))})
	held, err := s.begin("held", 1, 100)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10 * leastSweep {
		use, err := s.begin(fmt.Sprint(i), 1, 100)
		if err != nil {
			t.Fatal(err)
		}
		use.add(-100)
	}
	if n := len(s.byKey); n > leastSweep || s.byKey["held"] != held {
		t.Errorf("%d keys are kept", n)
	}
}

// The whole way: an outage costs nobody a message, and the ledger says where they went.
func TestEdgeRidesThroughAnOutage(t *testing.T) {
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
	c := start()
	specs := []TopicSpec{{Name: "otlp_logs"}, {Name: "otlp_spans"}, {Name: "otlp_metrics"}, {Name: "ai_signals"}}
	if _, err := EnsureTopics(t.Context(), KafkaConfig{Brokers: []string{addr}}, specs); err != nil {
		t.Fatal(err)
	}
	e := &testEdge{t: t, reg: prometheus.NewRegistry(), log: &lockedBuffer{}, keys: map[string]auth.Record{}, stamps: &stampBook{last: map[string]time.Time{}},
		brokers: []string{addr}, topics: Topics{"otlp_logs", "otlp_spans", "otlp_metrics", "ai_signals"}}
	kept := openSpool(t, spool.Config{Registerer: e.reg})
	var sink *Sink
	e.serve(KafkaConfig{Brokers: e.brokers}, func(ec *EdgeConfig, sc *ServerConfig, pc *ProducerConfig) {
		pc.Timeout = 500 * time.Millisecond
		ours := *pc
		ours.Registerer = nil
		sink = startSink(t, ours, SinkConfig{Spool: kept, Registerer: e.reg})
		ec.Sink = sink
	})
	startDrain(t, sink)
	key := e.add(service(auth.Production))
	body := func(n int) []byte {
		return marshal(t, logsRequest(logRecord(fmt.Sprint("record-", n)), logRecord("flowstate.signal", str("signal.type", "forecast_breach"), str("signal.id", fmt.Sprint("s", n)))))
	}
	send := func(n int) answer {
		t.Helper()
		began := time.Now()
		a := e.send("POST", "/v1/logs", body(n), "Content-Type", "application/x-protobuf", "x-flowstate-key", key)
		if took := time.Since(began); took > 8*time.Second {
			t.Errorf("an answer after %v", took)
		}
		if a.code != 200 {
			t.Errorf("record %d: %s", n, a)
		}
		return a
	}
	for n := range 5 {
		send(n)
	}
	c.Close()
	for n := 5; n < 15; n++ {
		send(n)
	}
	_, outcomes := e.ledger()
	if outcomes["logs/accepted/kafka"] != 5 || outcomes["logs/accepted/spool"] != 10 || outcomes["signals/accepted/spool"] != 10 {
		t.Errorf("outcomes %v", outcomes)
	}
	c = start()
	defer c.Close()
	within(t, 20*time.Second, "the spool is empty", func() bool { return kept.Stats().Records == 0 })
	for n := 15; n < 20; n++ {
		send(n)
	}
	e.balanced()
	ids := map[string]int{}
	for _, topic := range []string{"otlp_logs", "ai_signals"} {
		records := read(t, []string{addr}, topic, 20)
		for _, r := range records {
			h := headersOf(r)
			ids[h["flowstate-msg-id"]]++
			late := false
			for n := 5; n < 15; n++ {
				late = late || bytes.Contains(r.Value, fmt.Appendf(nil, "record-%d", n)) || bytes.Contains(r.Value, fmt.Appendf(nil, `"source_id":"s%d"`, n))
			}
			if (h["flowstate-replayed"] == "1") != late {
				t.Errorf("marked %q: %s", h["flowstate-replayed"], r.Value)
			}
		}
	}
	if len(ids) != 40 {
		t.Errorf("%d ids, want 40", len(ids))
	}
}

// deliver is Sink.deliver without a deadline, with fates of its own.
func deliver(s *Sink, ctx context.Context, key string, messages []Message) ([]fate, error) {
	fates := make([]fate, len(messages))
	return fates, s.deliver(ctx, time.Time{}, key, messages, fates)
}
