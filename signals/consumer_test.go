package signals

import (
	"bytes"
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kfake"
)

// A stream is one topic on a Kafka, for one test.
type stream struct {
	brokers []string
	topic   string
	writer  *kafka.Writer
}

// eachKafka runs f on kfake, and on the brokers of TEST_KAFKA_BROKERS when it names some. SLUICE_REQUIRE_SERVICES=1 makes their absence a failure.
func eachKafka(t *testing.T, f func(t *testing.T, s *stream)) {
	t.Helper()
	t.Run("kfake", func(t *testing.T) { f(t, fakeStream(t)) })
	if os.Getenv("TEST_KAFKA_BROKERS") == "" {
		if os.Getenv("SLUICE_REQUIRE_SERVICES") == "1" {
			t.Error("TEST_KAFKA_BROKERS is not set")
		}
		return
	}
	t.Run("kafka", func(t *testing.T) { f(t, newStream(t, strings.Split(os.Getenv("TEST_KAFKA_BROKERS"), ","))) })
}

func fakeStream(t *testing.T) *stream {
	t.Helper()
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.GroupMinSessionTimeout(500*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return newStream(t, c.ListenAddrs())
}

func newStream(t *testing.T, brokers []string) *stream {
	t.Helper()
	var b [6]byte
	_, _ = rand.Read(b[:])
	s := &stream{brokers: brokers, topic: "signals_test_" + hex.EncodeToString(b[:])}
	client := &kafka.Client{Addr: kafka.TCP(brokers...)}
	_, err := client.CreateTopics(t.Context(), &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{{Topic: s.topic, NumPartitions: 3, ReplicationFactor: 1}}})
	if err != nil {
		t.Fatal(err)
	}
	s.writer = &kafka.Writer{Addr: kafka.TCP(brokers...), Topic: s.topic, Balancer: &kafka.Hash{}, RequiredAcks: kafka.RequireAll, BatchTimeout: time.Millisecond,
		Transport: &kafka.Transport{MetadataTTL: 200 * time.Millisecond}}
	t.Cleanup(func() {
		_ = s.writer.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_, _ = client.DeleteTopics(ctx, &kafka.DeleteTopicsRequest{Topics: []string{s.topic}})
	})
	return s
}

func (s *stream) send(t testing.TB, values ...[]byte) {
	t.Helper()
	msgs := make([]kafka.Message, len(values))
	for i, v := range values {
		msgs[i] = kafka.Message{Key: fmt.Appendf(nil, "k%d", i), Value: v, Headers: []kafka.Header{{Key: "ce_id", Value: []byte("x")}}}
	}
	eventually(t, "send", func() error { return s.writer.WriteMessages(t.Context(), msgs...) })
}

// eventually waits until f returns nil, for half a minute at most.
func eventually(t testing.TB, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		select {
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// letters keeps dead letters, and refuses the first few, and those over a limit.
type letters struct {
	mu     sync.Mutex
	refuse int
	limit  int // 0: none
	kept   []DeadLetter
}

func (l *letters) keep(_ context.Context, d DeadLetter) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.refuse > 0 {
		l.refuse--
		return errors.New("no leader")
	}
	size := len(d.Key) + len(d.Value)
	for _, h := range d.Headers {
		size += len(h.Key) + len(h.Value)
	}
	if l.limit > 0 && size > l.limit {
		return fmt.Errorf("%w: %d bytes", ErrTooLarge, size)
	}
	l.kept = append(l.kept, d)
	return nil
}

func (l *letters) all() []DeadLetter {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]DeadLetter(nil), l.kept...)
}

// consume runs a consumer and returns what ends it and waits for it.
func consume(t testing.TB, s *stream, store *Store, l *letters, reg prometheus.Registerer) func() {
	t.Helper()
	c := NewConsumer(ConsumerConfig{Brokers: s.brokers, Topic: s.topic, Group: s.topic, Store: store, DeadLetter: l.keep, Registerer: reg, Logger: quiet()})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	var once sync.Once
	stop := func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-done:
				if !errors.Is(err, context.Canceled) {
					t.Errorf("Run: %v", err)
				}
			case <-time.After(30 * time.Second):
				t.Error("the consumer does not stop")
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func (w *world) count(t testing.TB) int {
	t.Helper()
	var n int
	if err := w.db.QueryRowContext(t.Context(), `SELECT COUNT(*) FROM alerts`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func (w *world) awaitCount(t testing.TB, want int) {
	t.Helper()
	eventually(t, "alerts", func() error {
		if n := w.count(t); n != want {
			return fmt.Errorf("%d alerts, want %d", n, want)
		}
		return nil
	})
}

func values(from, to int) [][]byte {
	var out [][]byte
	for i := from; i < to; i++ {
		out = append(out, event(i, nil).AppendJSON(nil))
	}
	return out
}

func TestConsumer(t *testing.T) {
	eachKafka(t, func(t *testing.T, s *stream) {
		w := newWorld(t, SQLite)
		l := &letters{refuse: 2}
		reg := prometheus.NewRegistry()
		s.send(t, values(0, 20)...)
		stop := consume(t, s, w.Store, l, reg)
		w.awaitCount(t, 20)

		// Live: from acknowledged to stored.
		began := time.Now()
		s.send(t, values(20, 21)...)
		w.awaitCount(t, 21)
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("a signal arrived after %v", took)
		}

		// Poison stops nothing, in whatever place of a batch, and is buried only when that is acknowledged.
		poison := [][]byte{[]byte("junk"), nil, []byte(`{"id":"sig_1"}`), bytes.Replace(event(99, nil).AppendJSON(nil), []byte(`"WARN"`), []byte(`"LOUD"`), 1)}
		s.send(t, append(append(values(21, 25), poison...), values(25, 30)...)...)
		w.awaitCount(t, 30)
		eventually(t, "dead letters", func() error {
			if n := len(l.all()); n != len(poison) {
				return fmt.Errorf("%d dead letters, want %d", n, len(poison))
			}
			return nil
		})
		for _, d := range l.all() {
			h := map[string]string{}
			for _, header := range d.Headers {
				h[header.Key] = string(header.Value)
			}
			if h["sluice-dead-topic"] != s.topic || h["sluice-dead-offset"] == "" || h["sluice-dead-partition"] == "" || !strings.Contains(h["sluice-dead-reason"], "not an event") || h["ce_id"] != "x" || len(d.Key) == 0 {
				t.Errorf("dead letter with %v", h)
			}
		}

		// The same again, and after a stop from where it left.
		s.send(t, values(0, 30)...)
		s.send(t, values(30, 31)...)
		w.awaitCount(t, 31)
		eventually(t, "the same again", func() error { // from other partitions than the one that is new, perhaps after it
			return testutil.GatherAndCompare(reg, strings.NewReader(`
				# HELP sluice_alerts_messages_total Messages of the signals topic that are settled, by what became of them.
				# TYPE sluice_alerts_messages_total counter
				sluice_alerts_messages_total{outcome="dead_lettered"} 4
				sluice_alerts_messages_total{outcome="duplicate"} 30
				sluice_alerts_messages_total{outcome="stored"} 31
			`), "sluice_alerts_messages_total")
		})
		stop()
		s.send(t, values(31, 40)...)
		reg = prometheus.NewRegistry()
		consume(t, s, w.Store, l, reg)
		w.awaitCount(t, 40)
		metrics := `
			# HELP sluice_alerts_messages_total Messages of the signals topic that are settled, by what became of them.
			# TYPE sluice_alerts_messages_total counter
			sluice_alerts_messages_total{outcome="dead_lettered"} 0
			sluice_alerts_messages_total{outcome="duplicate"} 0
			sluice_alerts_messages_total{outcome="stored"} 9
		`
		eventually(t, "metrics", func() error {
			return testutil.GatherAndCompare(reg, strings.NewReader(metrics), "sluice_alerts_messages_total")
		})
		if len(l.all()) != len(poison) {
			t.Errorf("%d dead letters after a restart", len(l.all()))
		}
	})
}

// TestConsumerCutsWhatIsTooLarge has poison that the dead letters' topic takes only without the headers that go with it, or never whole.
func TestConsumerCutsWhatIsTooLarge(t *testing.T) {
	s := fakeStream(t)
	w := newWorld(t, SQLite)
	const limit = 64 << 10
	l := &letters{limit: limit}
	large, larger := bytes.Repeat([]byte("x"), limit-10), bytes.Repeat([]byte("y"), 5*limit)
	s.send(t, large, larger)
	s.send(t, values(0, 3)...)
	consume(t, s, w.Store, l, nil)
	w.awaitCount(t, 3)
	kept := l.all()
	if len(kept) != 2 {
		t.Fatalf("%d dead letters, want 2", len(kept))
	}
	for _, d := range kept {
		was := large
		if d.Value[0] == 'y' {
			was = larger
		}
		size := ""
		for _, h := range d.Headers {
			if h.Key == "sluice-dead-bytes" {
				size += string(h.Value)
			}
		}
		if size != strconv.Itoa(len(was)) || len(d.Value) < limit/4 || !bytes.HasPrefix(was, d.Value) {
			t.Errorf("%d bytes of %d are kept, said to have been %q", len(d.Value), len(was), size)
		}
	}
	// Headers and key go last, and when nothing is left it is said.
	d := DeadLetter{Key: []byte("k"), Value: []byte("v"), Headers: []Header{{"ce_id", []byte("x")}, {"sluice-dead-reason", nil}}}
	for range 3 {
		if !d.cut(1) {
			t.Fatal("nothing to cut")
		}
	}
	if d.Key != nil || len(d.Value) > 0 || len(d.Headers) != 2 || d.Headers[1].Key != "sluice-dead-bytes" || d.cut(1) {
		t.Errorf("left: %+v", d)
	}
}

func TestTwoConsumersShareTheTopic(t *testing.T) {
	eachKafka(t, func(t *testing.T, s *stream) {
		if os.Getenv("TEST_DATABASE_URL") == "" {
			// One SQLite has one writer, which is enough to share.
			shareTopic(t, s, newWorld(t, SQLite))
			return
		}
		shareTopic(t, s, newWorld(t, Postgres))
	})
}

func shareTopic(t *testing.T, s *stream, w *world) {
	t.Helper()
	first := consume(t, s, w.Store, &letters{}, nil)
	s.send(t, values(0, 50)...)
	w.awaitCount(t, 50)
	consume(t, s, w.Store, &letters{}, nil)
	s.send(t, values(50, 150)...)
	s.send(t, values(25, 75)...)
	first()
	s.send(t, values(150, 200)...)
	w.awaitCount(t, 200)
}

// A topic that is missing costs one line in half a minute, and is read once it is there.
func TestConsumerWaitsForItsTopic(t *testing.T) {
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.GroupMinSessionTimeout(500*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	w := newWorld(t, SQLite)
	var log syncBuffer
	consumer := NewConsumer(ConsumerConfig{Brokers: c.ListenAddrs(), Topic: "late", Group: "late", Store: w.Store, DeadLetter: (&letters{}).keep,
		Logger: slog.New(slog.NewTextHandler(&log, nil))})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- consumer.Run(ctx) }()
	eventually(t, "it has looked for the topic several times", func() error {
		if n := testutil.ToFloat64(consumer.metrics.topicFails); n < 3 {
			return fmt.Errorf("%v times", n)
		}
		return nil
	})
	if lines := strings.Count(log.String(), "\n"); lines != 1 || !strings.Contains(log.String(), "sluice migrate") {
		t.Errorf("%d lines\n%s", lines, log.String())
	}
	client := &kafka.Client{Addr: kafka.TCP(c.ListenAddrs()...)}
	if _, err := client.CreateTopics(t.Context(), &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{{Topic: "late", NumPartitions: 1, ReplicationFactor: 1}}}); err != nil {
		t.Fatal(err)
	}
	writer := &kafka.Writer{Addr: kafka.TCP(c.ListenAddrs()...), Topic: "late", RequiredAcks: kafka.RequireAll, BatchTimeout: time.Millisecond}
	defer writer.Close()
	eventually(t, "send", func() error { return writer.WriteMessages(t.Context(), kafka.Message{Value: values(0, 1)[0]}) })
	w.awaitCount(t, 1)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Run: %v", err)
	}
}

// A topic that is deleted while it is read stops nothing: it is said, and the topic is read again, from its beginning, once somebody has made it anew.
func TestConsumerOutlivesItsTopic(t *testing.T) {
	eachKafka(t, func(t *testing.T, s *stream) {
		w := newWorld(t, SQLite)
		consume(t, s, w.Store, &letters{}, prometheus.NewRegistry())
		s.send(t, values(0, 9)...)
		w.awaitCount(t, 9)
		client := &kafka.Client{Addr: kafka.TCP(s.brokers...)}
		deleted, err := client.DeleteTopics(t.Context(), &kafka.DeleteTopicsRequest{Topics: []string{s.topic}})
		if err != nil || deleted.Errors[s.topic] != nil {
			t.Fatal(err, deleted)
		}
		eventually(t, "the topic is made anew", func() error {
			made, err := client.CreateTopics(t.Context(), &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{{Topic: s.topic, NumPartitions: 3, ReplicationFactor: 1}}})
			if err != nil {
				return err
			}
			return made.Errors[s.topic]
		})
		// Fewer than before: were the old offsets gone on from, none of these would be read.
		s.send(t, values(9, 13)...)
		w.awaitCount(t, 13)
	})
}

// How far partitions are behind is forgotten when they are shared out anew, also by a batch that was begun before.
func TestConsumerForgetsLag(t *testing.T) {
	c := NewConsumer(ConsumerConfig{Logger: quiet()})
	lag := func() float64 { return testutil.ToFloat64(c.metrics.lag) }
	began := c.current()
	batch := []kafka.Message{{Partition: 1, Offset: 9, HighWaterMark: 20}, {Partition: 2, Offset: 5, HighWaterMark: 6}}
	c.noteLag(began, batch)
	if lag() != 10 {
		t.Errorf("lag %v, want 10", lag())
	}
	c.shared()
	c.noteLag(began, batch)
	if lag() != 0 {
		t.Errorf("lag %v of partitions that were shared out anew", lag())
	}
	c.noteLag(c.current(), batch[:1])
	if lag() != 10 {
		t.Errorf("lag %v, want 10", lag())
	}
}

// A syncBuffer is what was logged.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// helperEnv makes the test binary a consumer, so that a test can kill it with -9.
const helperEnv = "SLUICE_TEST_CONSUMER"

func TestMain(m *testing.M) {
	if spec := os.Getenv(helperEnv); spec != "" {
		brokers, rest, _ := strings.Cut(spec, " ")
		topic, file, _ := strings.Cut(rest, " ")
		db, err := sql.Open("sqlite", "file:"+file+"?_pragma=journal_mode(WAL)&_pragma=busy_timeout(5000)&_txlock=immediate")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		db.SetMaxOpenConns(1)
		c := NewConsumer(ConsumerConfig{Brokers: []string{brokers}, Topic: topic, Group: topic, Batch: 5, Linger: time.Millisecond, SessionTimeout: 600 * time.Millisecond,
			Store: NewStore(StoreConfig{Writer: db, Dialect: SQLite}), DeadLetter: (&letters{}).keep, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil))})
		fmt.Fprintln(os.Stderr, c.Run(context.Background()))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func TestConsumerKilled(t *testing.T) {
	s := fakeStream(t)
	w := newWorld(t, SQLite)
	const total = 3_000
	for i := 0; i < total; i += 500 {
		s.send(t, values(i, i+500)...)
		s.send(t, values(i, i+100)...) // a client's second try
	}
	host, _, err := net.SplitHostPort(s.brokers[0])
	if err != nil || host == "" {
		t.Fatal(s.brokers, err)
	}
	start := func() *exec.Cmd {
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(exe)
		cmd.Env = append(os.Environ(), helperEnv+"="+s.brokers[0]+" "+s.topic+" "+w.file(t))
		cmd.Dir = filepath.Dir(exe)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	kills, amid := 0, 0
	for w.count(t) < total {
		before := w.count(t)
		cmd := start()
		limit := before + 1 + mathrand.IntN(total/8)
		eventually(t, "progress", func() error {
			if n := w.count(t); n < min(limit, total) {
				return fmt.Errorf("%d alerts after %d kills", n, kills)
			}
			return nil
		})
		if w.count(t) < total {
			amid++
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // says that it was killed
		kills++
	}
	if amid < 4 {
		t.Errorf("only %d of %d kills came in the middle", amid, kills)
	}
	// What was committed and what was not: nothing is missing, and nothing is there twice.
	consume(t, s, w.Store, &letters{}, nil)
	s.send(t, values(total, total+1)...)
	w.awaitCount(t, total+1)
}
