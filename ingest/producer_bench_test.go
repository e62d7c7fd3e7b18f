package ingest

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
)

// BenchmarkProduce compares the producer with kafka-go's Writer on the same Kafka: the real one of TEST_KAFKA_BROKERS, else a
// fake. An operation is one message of 1 KiB.
func BenchmarkProduce(b *testing.B) {
	cfg := ProducerConfig{}
	topic := testTopic
	if brokers := realBrokers(b); brokers != nil {
		cfg.Brokers = brokers
		topic = ownTopic(b, &cfg, 6)
	} else {
		cfg = brokersOf(newFake(b))
	}
	for _, shape := range []struct{ callers, perCall int }{{1, 1}, {16, 1}, {256, 1}, {16, 100}} {
		for _, idempotent := range []bool{false, true} {
			b.Run(fmt.Sprintf("%dx%d/idempotent=%v", shape.callers, shape.perCall, idempotent), func(b *testing.B) {
				cfg.Idempotent = idempotent
				p := startProducer(b, cfg)
				if err := p.Ping(context.Background()); err != nil {
					b.Fatal(err)
				}
				benchCallers(b, shape.callers, shape.perCall, func(keys [][]byte, value []byte) error {
					msgs := make([]Message, len(keys))
					for i := range msgs {
						msgs[i] = Message{Topic: topic, Key: keys[i], Value: value}
					}
					return p.Produce(context.Background(), msgs)
				})
			})
		}
		b.Run(fmt.Sprintf("%dx%d/writer", shape.callers, shape.perCall), func(b *testing.B) {
			w := &kafka.Writer{Addr: kafka.TCP(cfg.Brokers...), Topic: topic, Balancer: kafka.Murmur2Balancer{}, RequiredAcks: kafka.RequireAll,
				BatchTimeout: time.Millisecond, BatchSize: 100, Transport: &kafka.Transport{MetadataTTL: time.Second, MetadataTopics: []string{topic}}}
			defer w.Close()
			if err := w.WriteMessages(context.Background(), kafka.Message{Value: []byte("warm")}); err != nil {
				b.Fatal(err)
			}
			benchCallers(b, shape.callers, shape.perCall, func(keys [][]byte, value []byte) error {
				msgs := make([]kafka.Message, len(keys))
				for i := range msgs {
					msgs[i] = kafka.Message{Key: keys[i], Value: value}
				}
				return w.WriteMessages(context.Background(), msgs...)
			})
		})
	}
}

func benchCallers(b *testing.B, callers, perCall int, call func(keys [][]byte, value []byte) error) {
	value := make([]byte, 1024)
	all := make([][]byte, 997)
	for i := range all {
		all[i] = fmt.Appendf(nil, "acme/service_account/%d", i)
	}
	var sent atomic.Int64
	var wg sync.WaitGroup
	b.ReportAllocs()
	b.SetBytes(int64(len(value)))
	b.ResetTimer()
	for g := range callers {
		wg.Go(func() {
			for at := g * 61; sent.Add(int64(perCall)) <= int64(b.N)+int64(perCall)-1; at += perCall {
				keys := make([][]byte, perCall)
				for i := range keys {
					keys[i] = all[(at+i)%len(all)]
				}
				if err := call(keys, value); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msgs/s")
}
