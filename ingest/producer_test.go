package ingest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"
)

func TestProduceArrives(t *testing.T) {
	onEach(t, func(t *testing.T, cfg ProducerConfig, topic string) {
		const callers, calls, perCall = 16, 20, 5
		p := startProducer(t, cfg)
		var wg sync.WaitGroup
		for g := range callers {
			wg.Go(func() {
				key := fmt.Sprintf("acme/service_account/%d", g)
				for i := range calls {
					msgs := make([]Message, perCall)
					for j := range msgs {
						msgs[j] = message(topic, key, fmt.Sprintf("%d-%d", g, i*perCall+j))
					}
					if err := p.Produce(context.Background(), msgs); err != nil {
						t.Errorf("call %d of caller %d: %v", i, g, err)
						return
					}
				}
			})
		}
		wg.Wait()
		records := read(t, cfg.Brokers, topic, callers*calls*perCall)
		if len(records) != callers*calls*perCall {
			t.Errorf("%d records, want %d", len(records), callers*calls*perCall)
		}
		next := make(map[string]int)
		for _, r := range records {
			var g, n int
			fmt.Sscanf(string(r.Value), "%d-%d", &g, &n)
			key := fmt.Sprintf("acme/service_account/%d", g)
			if string(r.Key) != key || int(r.Partition) != partitionOf(r.Key, 6) {
				t.Fatalf("record %q has key %q in partition %d", r.Value, r.Key, r.Partition)
			}
			if len(r.Headers) != 1 || r.Headers[0].Key != "flowstate-msg-id" || string(r.Headers[0].Value) != "id-"+string(r.Value) {
				t.Fatalf("record %q has headers %v", r.Value, r.Headers)
			}
			if n != next[key] {
				t.Fatalf("key %s: record %d follows %d", key, n, next[key]-1)
			}
			next[key]++
		}
		eventuallyIdle(t, p)
	})
}

// eventuallyIdle checks that nothing is held when nothing is under way.
func eventuallyIdle(t *testing.T, p *Producer) {
	t.Helper()
	eventually(t, "bytes in flight given back", func() bool { return p.inFlight.Load() == 0 && p.queued.Load() == 0 })
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open != 0 {
		t.Errorf("%d messages are still open", p.open)
	}
}

func TestProduceTooLargeForUs(t *testing.T) {
	c := newFake(t)
	p := startProducer(t, brokersOf(c))
	msgs := []Message{message(testTopic, "a", "small"), {Topic: testTopic, Value: make([]byte, DefaultMaxMessageBytes)}}
	err := p.Produce(context.Background(), msgs)
	var refused *RefusedError
	if !errors.As(err, &refused) || fmt.Sprint(refused.TooLarge) != "[1]" || refused.Acked {
		t.Fatalf("got %v, want message 1 to be too large and nothing sent", err)
	}
	if records := read(t, c.ListenAddrs(), testTopic, 0); len(records) != 0 {
		t.Errorf("%d records were written", len(records))
	}
	limit := Message{Topic: testTopic, Key: []byte("k")}
	limit.Value = make([]byte, DefaultMaxMessageBytes-MessageSize(&limit))
	if err := p.Produce(context.Background(), []Message{limit}); err != nil {
		t.Errorf("a message of exactly the limit: %v", err)
	}
}

func TestProduceCtx(t *testing.T) {
	c := newFake(t)
	f := newFreezer(c)
	p := startProducer(t, brokersOf(c))
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		eventually(t, "the call is in", func() bool { return p.undecided() == 1 })
		cancel()
	}()
	if err := p.Ping(context.Background()); err != nil {
		t.Fatal(err)
	}
	f.frozen[0].Store(true)
	err := p.Produce(ctx, []Message{message(testTopic, "k", "v")})
	if !errors.Is(err, context.Canceled) || !errors.Is(err, ErrKafkaUnavailable) {
		t.Errorf("got %v, want the context's error", err)
	}
	if p.undecided() != 1 {
		t.Error("the attempt ended with its caller")
	}
	var ua *UnavailableError
	if err := p.Produce(ctx, []Message{message(testTopic, "k", "w")}); !errors.As(err, &ua) || ua.MaybeWritten || p.undecided() != 1 {
		t.Errorf("with a context that has ended: %v", err)
	}
}

func TestNewProducerRefuses(t *testing.T) {
	good := ProducerConfig{KafkaConfig: KafkaConfig{Brokers: []string{"127.0.0.1:1"}}, Topics: []string{"x"}}
	for name, change := range map[string]func(*ProducerConfig){
		"no brokers":        func(c *ProducerConfig) { c.Brokers = nil },
		"no port":           func(c *ProducerConfig) { c.Brokers = []string{"kafka"} },
		"no host":           func(c *ProducerConfig) { c.Brokers = []string{":9092"} },
		"no topics":         func(c *ProducerConfig) { c.Topics = nil },
		"empty topic":       func(c *ProducerConfig) { c.Topics = []string{""} },
		"tiny messages":     func(c *ProducerConfig) { c.MaxMessageBytes = 10 },
		"tiny budget":       func(c *ProducerConfig) { c.MaxInFlightBytes = 10 },
		"unknown mechanism": func(c *ProducerConfig) { c.SASL = &SASLConfig{Mechanism: "GSSAPI", Username: "u"} },
		"no user":           func(c *ProducerConfig) { c.SASL = &SASLConfig{Mechanism: "PLAIN"} },
		"short timeout":     func(c *ProducerConfig) { c.Timeout = time.Millisecond },
		"unknown codec":     func(c *ProducerConfig) { c.Compression = 9 },
	} {
		cfg := good
		change(&cfg)
		if p, err := NewProducer(cfg); err == nil {
			p.Close(context.Background())
			t.Errorf("%s: no error", name)
		}
	}
}
