package main

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"net"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/apiversions"
	"github.com/segmentio/kafka-go/protocol/produce"
)

const partitions = 6

// most is what one request carries of a partition, below the broker's limit for a batch of records.
const most = 900 << 10

// A producer sends all that waits as one request, without lingering, one request at a time: what comes meanwhile is the next one.
type producer struct {
	topic string
	conn  *protocol.Conn

	mu      sync.Mutex
	wake    *sync.Cond
	waiting [partitions][]*message
	pending bool
	spare   sync.Pool
}

type message struct {
	key, value []byte
	done       chan error
}

func newProducer(broker, topic string) (*producer, error) {
	nc, err := net.DialTimeout("tcp", broker, 5*time.Second)
	if err != nil {
		return nil, err
	}
	p := &producer{topic: topic, conn: protocol.NewConn(nc, "floor")}
	p.wake = sync.NewCond(&p.mu)
	res, err := p.conn.RoundTrip(new(apiversions.Request))
	if err != nil {
		return nil, err
	}
	versions := map[protocol.ApiKey]int16{}
	for _, k := range res.(*apiversions.Response).ApiKeys {
		key := protocol.ApiKey(k.ApiKey)
		versions[key] = key.SelectVersion(k.MinVersion, k.MaxVersion)
	}
	p.conn.SetVersions(versions)
	go p.run()
	return p, nil
}

// produce returns when all in-sync replicas have the value.
func (p *producer) produce(sub *subject, value []byte) error {
	m, ok := p.spare.Get().(*message)
	if !ok {
		m = &message{done: make(chan error, 1)}
	}
	m.key, m.value = sub.key, value
	p.mu.Lock()
	p.waiting[sub.part] = append(p.waiting[sub.part], m)
	if !p.pending {
		p.pending = true
		p.wake.Signal()
	}
	p.mu.Unlock()
	err := <-m.done
	p.spare.Put(m)
	return err
}

func (p *producer) run() {
	var sets [partitions]records
	req := &produce.Request{Acks: int16(kafka.RequireAll), Timeout: 5000, Topics: []produce.RequestTopic{{Topic: p.topic}}}
	for {
		p.mu.Lock()
		for !p.pending {
			p.wake.Wait()
		}
		p.pending = false
		req.Topics[0].Partitions = req.Topics[0].Partitions[:0]
		for i := range sets {
			n, size := 0, 0
			for n < len(p.waiting[i]) && (n == 0 || size+len(p.waiting[i][n].value) < most) {
				size += len(p.waiting[i][n].value) + 100
				n++
			}
			sets[i].messages = append(sets[i].messages[:0], p.waiting[i][:n]...)
			sets[i].next = 0
			rest := copy(p.waiting[i], p.waiting[i][n:])
			p.waiting[i] = p.waiting[i][:rest]
			p.pending = p.pending || rest > 0
			if n > 0 {
				req.Topics[0].Partitions = append(req.Topics[0].Partitions, produce.RequestPartition{Partition: int32(i), RecordSet: protocol.RecordSet{Records: &sets[i]}})
			}
		}
		p.mu.Unlock()
		res, err := p.conn.RoundTrip(req)
		if err != nil {
			log.Fatal(err) // a broken connection ends the benchmark
		}
		for _, part := range res.(*produce.Response).Topics[0].Partitions {
			var failure error
			if part.ErrorCode != 0 {
				failure = fmt.Errorf("partition %d: %w", part.Partition, kafka.Error(part.ErrorCode))
			}
			for _, m := range sets[part.Partition].messages {
				m.done <- failure
			}
		}
	}
}

// records gives messages to the encoder without allocating.
type records struct {
	messages   []*message
	next       int
	record     protocol.Record
	key, value memory
}

func (r *records) ReadRecord() (*protocol.Record, error) {
	if r.next == len(r.messages) {
		return nil, io.EOF
	}
	m := r.messages[r.next]
	r.next++
	r.key.Reset(m.key)
	r.value.Reset(m.value)
	r.record = protocol.Record{Key: &r.key, Value: &r.value}
	return &r.record, nil
}

type memory struct{ bytes.Reader }

func (*memory) Close() error { return nil }
