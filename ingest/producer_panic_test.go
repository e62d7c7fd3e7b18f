package ingest

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/segmentio/kafka-go/protocol"
)

// A brokenConn panics instead of writing.
type brokenConn struct{ net.Conn }

func (brokenConn) SetDeadline(time.Time) error { return nil }
func (brokenConn) Close() error                { return nil }
func (brokenConn) Write([]byte) (int, error)   { panic("as a bug would") }

// What panics while it sends is an attempt that failed, whoever made it: the slot goes on, and so do its partitions.
func TestProduceOutlivesAPanic(t *testing.T) {
	p := startProducer(t, brokersOf(newFake(t)))
	if err := produceOne(p, "k", "warm"); err != nil {
		t.Fatal(err)
	}
	for name, deadline := range map[string]time.Time{"the slot's own goroutine": {}, "a caller": time.Now().Add(time.Minute)} {
		p.mu.Lock()
		for s := range p.slots {
			pc := protocol.NewConn(brokenConn{}, "test")
			pc.SetVersions(map[protocol.ApiKey]int16{protocol.Produce: 7})
			s.conn = &kafkaConn{pc: pc, used: time.Now()}
		}
		p.mu.Unlock()
		if err := p.produce(context.Background(), deadline, nil, []Message{message(testTopic, "k", name)}); err != nil {
			t.Errorf("sent by %s: %v", name, err)
		}
		eventuallyIdle(t, p)
	}
}
