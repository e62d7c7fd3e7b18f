package ingest

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// A batch whose answer said "perhaps" is sent again and must be in the log once; plain producing has it twice.
func TestIdempotentRepeatIsWrittenOnce(t *testing.T) {
	for _, idempotent := range []bool{false, true} {
		for _, code := range []*kerr.Error{kerr.NotEnoughReplicasAfterAppend, kerr.RequestTimedOut} {
			t.Run(fmt.Sprintf("%s idempotent=%v", code.Message, idempotent), func(t *testing.T) {
				c := newFake(t)
				cfg := brokersOf(c)
				cfg.Idempotent = idempotent
				p := startProducer(t, cfg)
				for i := range 5 {
					c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: code})
					if err := p.Produce(context.Background(), []Message{message(testTopic, "k", fmt.Sprint(i)), message(testTopic, "k", fmt.Sprint(i, "b"))}); err != nil {
						t.Fatal(err)
					}
				}
				want := 20
				if idempotent {
					want = 10
				}
				if got := len(read(t, cfg.Brokers, testTopic, 10)); got != want {
					t.Errorf("%d records in the log, want %d", got, want)
				}
			})
		}
	}
}

// On a real Kafka: the connection is lost after the request was sent and before its answer is read, again and again.
func TestIdempotentSurvivesLostAnswers(t *testing.T) {
	onEach(t, func(t *testing.T, cfg ProducerConfig, topic string) {
		cfg.Idempotent = true
		p := startProducer(t, cfg)
		stop := make(chan struct{})
		var cutter, wg sync.WaitGroup
		cutter.Go(func() {
			tick := time.NewTicker(15 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-stop:
					return
				case <-tick.C:
					p.mu.Lock()
					for s := range p.slots {
						if s.conn != nil {
							s.conn.close()
						}
					}
					p.mu.Unlock()
				}
			}
		})
		const callers, calls = 8, 100
		for g := range callers {
			wg.Go(func() {
				for i := range calls {
					if err := p.Produce(context.Background(), []Message{message(topic, fmt.Sprint(g), fmt.Sprintf("%d-%d", g, i))}); err != nil {
						t.Errorf("call %d of %d: %v", i, g, err)
					}
				}
			})
		}
		wg.Wait()
		close(stop)
		cutter.Wait()
		records := read(t, cfg.Brokers, topic, callers*calls)
		if len(records) != callers*calls {
			t.Errorf("%d records, want %d: repeats were written", len(records), callers*calls)
		}
		next := make(map[int]int)
		for _, r := range records {
			var g, i int
			fmt.Sscanf(string(r.Value), "%d-%d", &g, &i)
			if i != next[g] {
				t.Fatalf("caller %d: message %d where %d is due", g, i, next[g])
			}
			next[g]++
		}
	})
}

// After an attempt that was given up the partition needs another producer id, the others keep theirs.
func TestIdempotentAbandonedAttempt(t *testing.T) {
	onEach(t, func(t *testing.T, cfg ProducerConfig, topic string) {
		cfg.Idempotent = true
		p := startProducer(t, cfg)
		send := func(partition int, value string) {
			t.Helper()
			if err := p.Produce(context.Background(), []Message{message(topic, keyIn(partition, 6), value)}); err != nil {
				t.Fatal(err)
			}
		}
		idOf := func(partition int) producerID {
			p.mu.Lock()
			defer p.mu.Unlock()
			return p.topics[topic][partition].seq.id
		}
		for i := range 3 {
			send(0, fmt.Sprint("a", i))
			send(1, fmt.Sprint("b", i))
		}
		first := idOf(0)
		p.mu.Lock()
		p.topics[topic][0].seq.burn()
		p.mu.Unlock()
		send(0, "a3")
		send(1, "b3")
		if idOf(0) == first || idOf(0) == (producerID{}) {
			t.Errorf("the partition still has %v", idOf(0))
		}
		if idOf(1) != first {
			t.Errorf("the other partition has %v, had %v", idOf(1), first)
		}
		// A number that the broker does not expect: another id is taken without the caller noticing.
		p.mu.Lock()
		p.topics[topic][1].seq.next += 5
		p.mu.Unlock()
		send(1, "b4")
		if idOf(1) == first {
			t.Error("the id with the gap is still used")
		}
		if got := len(read(t, cfg.Brokers, topic, 9)); got != 9 {
			t.Errorf("%d records, want 9", got)
		}
	})
}

func TestSequenceWraps(t *testing.T) {
	q := sequence{next: 1<<31 - 2}
	q.advance(1)
	if q.next != 1<<31-1 {
		t.Errorf("next is %d", q.next)
	}
	q.advance(3)
	if q.next != 2 {
		t.Errorf("next is %d, Java's clients would have 2", q.next)
	}
}
