package ingest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// freezer makes nodes of a fake mute: requests are taken and never answered, as by a stopped process.
type freezer struct{ frozen [8]atomic.Bool }

func newFreezer(c *kfake.Cluster) *freezer {
	f := &freezer{}
	c.ControlKey(-1, func(kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		return nil, nil, f.frozen[c.CurrentNode()].Load()
	})
	return f
}

func produceOne(p *Producer, key, value string) error {
	return p.Produce(context.Background(), []Message{message(testTopic, key, value)})
}

func wantUnavailable(t *testing.T, err error, kind ErrorKind) {
	t.Helper()
	var ua *UnavailableError
	if !errors.Is(err, ErrKafkaUnavailable) || !errors.As(err, &ua) {
		t.Fatalf("got %v, want ErrKafkaUnavailable", err)
	}
	if ua.Kind != kind {
		t.Fatalf("got kind %s (%v), want %s", ua.Kind, err, kind)
	}
}

func TestProduceRetries(t *testing.T) {
	for _, code := range []*kerr.Error{kerr.UnknownTopicOrPartition, kerr.LeaderNotAvailable, kerr.NotLeaderForPartition, kerr.RequestTimedOut,
		kerr.BrokerNotAvailable, kerr.NetworkException, kerr.NotEnoughReplicas, kerr.NotEnoughReplicasAfterAppend, kerr.CorruptMessage, kerr.KafkaStorageError} {
		t.Run(code.Message, func(t *testing.T) {
			c := newFake(t)
			reg := prometheus.NewRegistry()
			cfg := brokersOf(c)
			cfg.Registerer = reg
			p := startProducer(t, cfg)
			c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: code, Count: 2})
			if err := produceOne(p, "k", "v"); err != nil {
				t.Fatal(err)
			}
			if n := testutil.ToFloat64(p.metrics.retries); n != 2 {
				t.Errorf("%v retries counted, want 2", n)
			}
			if read(t, cfg.Brokers, testTopic, 1); t.Failed() {
				return
			}
			if err := testutil.GatherAndCompare(reg, strings.NewReader(`# HELP sluice_kafka_produced_messages_total Messages acknowledged by all in-sync replicas.
# TYPE sluice_kafka_produced_messages_total counter
sluice_kafka_produced_messages_total{topic="ai_signals"} 1
`), "sluice_kafka_produced_messages_total"); err != nil {
				t.Error(err)
			}
		})
	}
}

// An order that retries must not turn round: what failed goes first.
func TestProduceRetriesInOrder(t *testing.T) {
	c := newFake(t)
	p := startProducer(t, brokersOf(c))
	c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotEnoughReplicas, Count: 3})
	const n = 50
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if err := produceOne(p, "k", fmt.Sprint(i)); err != nil {
				t.Error(err)
			}
		})
		eventually(t, "the call has joined the queue or is through", func() bool {
			return p.undecided() > 0 || testutil.ToFloat64(p.metrics.byTopic[testTopic].messages) > float64(i)
		})
	}
	wg.Wait()
	if got := len(read(t, c.ListenAddrs(), testTopic, n)); got != n {
		t.Errorf("%d records, want %d", got, n)
	}
}

func (p *Producer) undecided() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.open
}

func TestProduceGivesUp(t *testing.T) {
	c := newFake(t)
	cfg := brokersOf(c)
	cfg.Timeout = 400 * time.Millisecond
	p := startProducer(t, cfg)
	// The broker is to answer within the time: connections and metadata are not part of it.
	eventually(t, "a message is through", func() bool { return produceOne(p, "k", "warm") == nil })
	f := c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotEnoughReplicas, Count: -1})
	began := time.Now()
	err := produceOne(p, "k", "v")
	if took := time.Since(began); took > time.Second {
		t.Errorf("took %v", took)
	}
	wantUnavailable(t, err, KindNotEnoughReplicas)
	eventuallyIdle(t, p)

	// By now the partition has failed for long: one call at a time finds out, the others are answered at once.
	eventually(t, "a call that is not tried", func() bool {
		var away *stillAway
		other := make(chan error, 1)
		go func() { other <- produceOne(p, "k", "v") }()
		return errors.As(errors.Join(produceOne(p, "k", "v"), <-other), &away)
	})
	f.Remove()
	eventually(t, "calls go through again", func() bool { return produceOne(p, "k", "v") == nil })
	if err := produceOne(p, "k", "w"); err != nil {
		t.Errorf("after it is back: %v", err)
	}
}

func TestProduceNotAuthorized(t *testing.T) {
	c := newFake(t)
	p := startProducer(t, brokersOf(c))
	c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.TopicAuthorizationFailed})
	began := time.Now()
	err := produceOne(p, "k", "v")
	wantUnavailable(t, err, KindAuthorization)
	if !errors.Is(err, kafka.TopicAuthorizationFailed) || time.Since(began) > time.Second {
		t.Errorf("%v after %v", err, time.Since(began))
	}
	if err := produceOne(p, "k", "v"); err != nil {
		t.Errorf("once allowed: %v", err)
	}
}

func TestProduceTopicMadeLater(t *testing.T) {
	onEach(t, func(t *testing.T, cfg ProducerConfig, topic string) {
		late := topic + "_late"
		cfg.Topics = []string{topic, late}
		p := startProducer(t, cfg)
		began := time.Now()
		err := p.Produce(context.Background(), []Message{message(late, "k", "v")})
		wantUnavailable(t, err, KindUnknownTopic)
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("took %v to say that there is no such topic", took)
		}
		if err := p.Produce(context.Background(), []Message{message(topic, "k", "v")}); err != nil {
			t.Errorf("the other topic: %v", err)
		}
		if _, err := EnsureTopics(context.Background(), cfg.KafkaConfig, []TopicSpec{{Name: late}}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { deleteTopic(t, cfg.Brokers, late) })
		eventually(t, "the new topic is written", func() bool {
			return p.Produce(context.Background(), []Message{message(late, "k", "v")}) == nil
		})
	})
}

func TestProduceLeaderMoves(t *testing.T) {
	c := newFake(t, kfake.NumBrokers(3))
	cfg := brokersOf(c)
	cfg.MetadataTTL = time.Hour // only hints make it look
	p := startProducer(t, cfg)
	for round := range 10 {
		for part := range int32(6) {
			if err := c.MoveTopicPartition(testTopic, part, int32(round+int(part))%3); err != nil {
				t.Fatal(err)
			}
		}
		msgs := make([]Message, 6)
		for i := range msgs {
			msgs[i] = message(testTopic, keyIn(i, 6), fmt.Sprintf("%d-%d", round, i))
		}
		began := time.Now()
		if err := p.Produce(context.Background(), msgs); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("round %d took %v", round, took)
		}
	}
	if got := len(read(t, cfg.Brokers, testTopic, 60)); got != 60 {
		t.Errorf("%d records, want 60", got)
	}
}

// Strangers in the batch of a message that the broker finds too large must not notice.
func TestProduceTooLargeForTheBroker(t *testing.T) {
	onEach(t, func(t *testing.T, cfg ProducerConfig, topic string) {
		small := topic + "_small"
		if _, err := EnsureTopics(context.Background(), cfg.KafkaConfig,
			[]TopicSpec{{Name: small, Partitions: 1, Configs: map[string]string{"max.message.bytes": "4000"}}}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { deleteTopic(t, cfg.Brokers, small) })
		cfg.Topics = []string{small}
		p := startProducer(t, cfg)
		const callers, each = 20, 20
		var wg sync.WaitGroup
		for g := range callers {
			wg.Go(func() {
				msgs := make([]Message, each)
				for i := range msgs {
					msgs[i] = message(small, "k", fmt.Sprintf("%d-%d", g, i))
				}
				if g%2 == 0 {
					if err := p.Produce(context.Background(), msgs); err != nil {
						t.Errorf("a stranger paid: %v", err)
					}
					return
				}
				msgs[3].Value, msgs[11].Value = make([]byte, 5000), make([]byte, 6000)
				err := p.Produce(context.Background(), msgs)
				var refused *RefusedError
				if !errors.As(err, &refused) || fmt.Sprint(refused.TooLarge) != "[3 11]" || !refused.Acked {
					t.Errorf("got %v (%+v), want messages 3 and 11 to be too large", err, refused)
				}
			})
		}
		wg.Wait()
		records := read(t, cfg.Brokers, small, callers*each-callers)
		if len(records) != callers*each-callers {
			t.Errorf("%d records, want %d", len(records), callers*each-callers)
		}
		next := make(map[string]int)
		for _, r := range records {
			g, n, _ := strings.Cut(string(r.Value), "-")
			var i int
			fmt.Sscan(n, &i)
			if i < next[g] {
				t.Errorf("caller %s: message %d after %d", g, i, next[g])
			}
			next[g] = i
		}
		eventuallyIdle(t, p)
	})
}

func TestProduceFrozenBroker(t *testing.T) {
	c := newFake(t, kfake.NumBrokers(3))
	for part := range int32(6) {
		if err := c.MoveTopicPartition(testTopic, part, part%3); err != nil {
			t.Fatal(err)
		}
	}
	f := newFreezer(c)
	cfg := brokersOf(c)
	cfg.Timeout = time.Second
	p := startProducer(t, cfg)
	if err := p.Ping(context.Background()); err != nil {
		t.Fatal(err)
	}
	f.frozen[0].Store(true)
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			for n := range 20 {
				began := time.Now()
				err := produceOne(p, keyIn(i, 6), fmt.Sprint(i, n))
				took := time.Since(began)
				switch {
				case i%3 == 0 && (!errors.Is(err, ErrKafkaUnavailable) || took > cfg.Timeout+300*time.Millisecond):
					t.Errorf("partition %d of the frozen broker: %v after %v", i, err, took)
					return
				case i%3 == 0 && n == 1:
					return
				case i%3 != 0 && err != nil:
					t.Errorf("partition %d: %v", i, err)
				case i%3 != 0 && n > 0 && took > 500*time.Millisecond:
					t.Errorf("partition %d waited %v for somebody else's broker", i, took)
				}
			}
		})
	}
	wg.Wait()
	eventually(t, "the broker is found to be away", func() bool { s := p.State(); return s.Brokers == 3 && s.Reachable == 2 })
	f.frozen[0].Store(false)
	eventually(t, "the broker's partition is written", func() bool { return produceOne(p, keyIn(0, 6), "back") == nil })
	eventually(t, "the broker is found to be back", func() bool { return p.State().Reachable == 3 })
	eventuallyIdle(t, p)
}

// What waits for a broker that is stuck goes to the new leader as soon as there is one, not when the broker's slots are free.
func TestProduceLeavesAStuckBroker(t *testing.T) {
	c := newFake(t, kfake.NumBrokers(2))
	for part, node := range []int32{0, 0, 0, 1, 1, 1} {
		if err := c.MoveTopicPartition(testTopic, int32(part), node); err != nil {
			t.Fatal(err)
		}
	}
	f := newFreezer(c)
	cfg := brokersOf(c)
	cfg.Timeout = 8 * time.Second // the slots are free after three quarters of it
	p := startProducer(t, cfg)
	for i := range 6 {
		if err := produceOne(p, keyIn(i, 6), "warm"); err != nil {
			t.Fatal(err)
		}
	}
	f.frozen[0].Store(true)
	var wg sync.WaitGroup
	for i := range slotsPerBroker {
		wg.Go(func() { produceOne(p, keyIn(i, 6), "stuck") })
		eventually(t, "a slot is taken", func() bool { return p.undecided() == i+1 && p.queued.Load() == 0 })
	}
	began := time.Now()
	wg.Go(func() {
		if err := produceOne(p, keyIn(2, 6), "waits"); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("took %v", took)
		}
	})
	eventually(t, "a message waits", func() bool { return p.queued.Load() == 1 })
	if err := c.MoveTopicPartition(testTopic, 2, 1); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
}

// A broker that went without an answer is not sent to again before it is known who leads its partitions now.
func TestProduceDoubtsASilentBroker(t *testing.T) {
	c := newFake(t, kfake.NumBrokers(2))
	if err := c.MoveTopicPartition(testTopic, 0, 0); err != nil {
		t.Fatal(err)
	}
	p := startProducer(t, brokersOf(c))
	if err := produceOne(p, keyIn(0, 6), "warm"); err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	part := p.topics[testTopic][0]
	p.mu.Unlock()
	var asked, sent atomic.Int32
	known := make(chan struct{})
	c.ControlKey(int16(kmsg.Metadata), func(kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		asked.Add(1)
		c.SleepControl(func() { <-known })
		return nil, nil, false
	})
	c.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		if c.CurrentNode() != 0 {
			return nil, nil, false
		}
		sent.Add(1)
		return nil, errors.New("the connection ends"), true
	})
	began := time.Now()
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := produceOne(p, keyIn(0, 6), "v"); err != nil {
			t.Error(err)
		}
	})
	eventually(t, "the leaders are looked up", func() bool { return asked.Load() > 0 })
	eventually(t, "the message waits no longer for its next try", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return part.backoff == nil && len(part.retry) == 1
	})
	if err := c.MoveTopicPartition(testTopic, 0, 1); err != nil {
		t.Fatal(err)
	}
	close(known)
	wg.Wait()
	if n := sent.Load(); n != 1 && time.Since(began) < doubtHolds { // else the machine was slow, and the producer right to try again
		t.Errorf("%d requests to the broker that gave no answer", n)
	}
}

func TestProduceOverload(t *testing.T) {
	c := newFake(t)
	f := newFreezer(c)
	cfg := brokersOf(c)
	cfg.Timeout = time.Second
	cfg.MaxMessageBytes, cfg.MaxInFlightBytes = 64<<10, 128<<10
	p := startProducer(t, cfg)
	if err := produceOne(p, "k", "warm"); err != nil {
		t.Fatal(err)
	}
	f.frozen[0].Store(true)
	big := func() []Message { return []Message{{Topic: testTopic, Key: []byte("k"), Value: make([]byte, 60<<10)}} }
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if err := p.Produce(ctx, big()); !errors.Is(err, context.Canceled) {
				t.Errorf("got %v, want the context's error", err)
			}
		})
	}
	eventually(t, "two messages are in flight", func() bool { return p.undecided() == 2 })
	if err := p.Produce(context.Background(), big()); !errors.Is(err, ErrOverloaded) {
		t.Errorf("got %v, want ErrOverloaded", err)
	}
	cancel()
	wg.Wait()
	if err := p.Produce(context.Background(), big()); !errors.Is(err, ErrOverloaded) {
		t.Errorf("the callers left, but their attempts go on: got %v, want ErrOverloaded", err)
	}
	eventuallyIdle(t, p)
	f.frozen[0].Store(false)
	eventually(t, "calls go through again", func() bool { return p.Produce(context.Background(), big()) == nil })
}

// What timed out before it was sent must not be sent later.
func TestProduceExpiredIsDropped(t *testing.T) {
	c := newFake(t)
	f := newFreezer(c)
	cfg := brokersOf(c)
	cfg.Timeout = 500 * time.Millisecond
	p := startProducer(t, cfg)
	if err := produceOne(p, "k", "warm"); err != nil {
		t.Fatal(err)
	}
	f.frozen[0].Store(true)
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			if err := produceOne(p, "k", fmt.Sprint("late ", i)); !errors.Is(err, ErrKafkaUnavailable) {
				t.Errorf("got %v", err)
			}
		})
	}
	wg.Wait()
	eventuallyIdle(t, p)
	f.frozen[0].Store(false)
	eventually(t, "calls go through again", func() bool { return produceOne(p, "k", "after") == nil })
	for _, r := range read(t, cfg.Brokers, testTopic, 2) {
		if strings.HasPrefix(string(r.Value), "late") {
			t.Errorf("%q was written after its caller had been told that it was not", r.Value)
		}
	}
}

func TestProduceKafkaAway(t *testing.T) {
	c := newFake(t)
	cfg := brokersOf(c)
	c.Close()
	cfg.Timeout = 500 * time.Millisecond
	p := startProducer(t, cfg)
	began := time.Now()
	wantUnavailable(t, produceOne(p, "k", "v"), KindConnection)
	if took := time.Since(began); took > time.Second {
		t.Errorf("took %v", took)
	}
	eventually(t, "calls are answered at once", func() bool {
		began := time.Now()
		return errors.Is(produceOne(p, "k", "v"), ErrKafkaUnavailable) && time.Since(began) < 50*time.Millisecond
	})
	if p.Healthy() == nil || p.State().Err == nil {
		t.Error("healthy without Kafka")
	}
}

// A broker that comes back where it was, its log kept, needs no restart of ours.
func TestProduceKafkaRestarts(t *testing.T) {
	dir := t.TempDir()
	c := newFake(t, kfake.DataDir(dir))
	cfg := brokersOf(c)
	cfg.Timeout = 500 * time.Millisecond
	p := startProducer(t, cfg)
	if err := produceOne(p, "k", "before"); err != nil {
		t.Fatal(err)
	}
	_, port, _ := strings.Cut(c.ListenAddrs()[0], ":")
	var n int
	fmt.Sscan(port, &n)
	c.Close()
	wantUnavailable(t, produceOne(p, "k", "meanwhile"), KindConnection)
	newFake(t, kfake.DataDir(dir), kfake.Ports(n))
	eventually(t, "calls go through again", func() bool { return produceOne(p, "k", "after") == nil })
	eventually(t, "healthy", func() bool { return p.Healthy() == nil })
	seen := valuesOf(read(t, cfg.Brokers, testTopic, 2))
	if seen["before"] != 1 || seen["after"] != 1 {
		t.Errorf("the log holds %v", seen)
	}
}

// Whether a failed message may be in Kafka all the same decides whether keeping it elsewhere makes a duplicate.
func TestProduceMaybeWritten(t *testing.T) {
	for code, want := range map[*kerr.Error]bool{kerr.NotEnoughReplicas: false, kerr.TopicAuthorizationFailed: false, kerr.NotLeaderForPartition: false,
		kerr.NotEnoughReplicasAfterAppend: true, kerr.RequestTimedOut: true} {
		c := newFake(t)
		cfg := brokersOf(c)
		cfg.Timeout = 300 * time.Millisecond
		p := startProducer(t, cfg)
		eventually(t, "a message is through", func() bool { return produceOne(p, "k", "warm") == nil })
		c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: code, Count: -1})
		var ua *UnavailableError
		if err := produceOne(p, "k", "v"); !errors.As(err, &ua) {
			t.Fatalf("%s: %v", code.Message, err)
		}
		if ua.Kind == KindTimeout && code != kerr.RequestTimedOut {
			t.Errorf("%s: only a timeout", code.Message)
		}
		// The caller's clock may be first; then all that is known is that it was tried.
		if want && !ua.MaybeWritten || !want && ua.MaybeWritten && code == kerr.TopicAuthorizationFailed {
			t.Errorf("%s: MaybeWritten is %v", code.Message, ua.MaybeWritten)
		}
	}
}

func TestProduceTopicGrows(t *testing.T) {
	c := newFake(t)
	p := startProducer(t, brokersOf(c))
	if err := produceOne(p, keyIn(5, 6), "v"); err != nil {
		t.Fatal(err)
	}
	cl := &kafka.Client{Addr: kafka.TCP(c.ListenAddrs()...), Transport: &kafka.Transport{MetadataTTL: time.Second}}
	res, err := cl.CreatePartitions(context.Background(), &kafka.CreatePartitionsRequest{Topics: []kafka.TopicPartitionsConfig{{Name: testTopic, Count: 9}}})
	if err != nil || res.Errors[testTopic] != nil {
		t.Fatal(err, res)
	}
	eventually(t, "the new partitions are used", func() bool {
		if err := p.Ping(context.Background()); err != nil {
			t.Fatal(err)
		}
		return len(p.view.Load().topics[testTopic].parts) == 9
	})
	if err := produceOne(p, keyIn(8, 9), "w"); err != nil {
		t.Fatal(err)
	}
	for _, r := range read(t, c.ListenAddrs(), testTopic, 2) {
		if string(r.Value) == "w" && r.Partition != 8 {
			t.Errorf("in partition %d", r.Partition)
		}
	}
}
