package main

import (
	"errors"
	"testing"
	"time"

	"flowstate.inc/sluice/ingest"
	"flowstate.inc/sluice/signals"
)

// TestDeadLetterTooLarge: what the producer refuses for its size is told apart from an outage, which the alerts consumer waits out.
func TestDeadLetterTooLarge(t *testing.T) {
	producer, err := ingest.NewProducer(ingest.ProducerConfig{KafkaConfig: ingest.KafkaConfig{Brokers: []string{"127.0.0.1:1"}}, Topics: []string{"dlq"}, MaxMessageBytes: 4096,
		Timeout: 100 * time.Millisecond, Logger: discardLogger()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = producer.Close(t.Context()) })
	p := &process{producer: producer, cfg: &config{}}
	p.cfg.topics.dlq = "dlq"
	if err := p.deadLetter(t.Context(), signals.DeadLetter{Value: make([]byte, 5000)}); !errors.Is(err, signals.ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
	if err := p.deadLetter(t.Context(), signals.DeadLetter{Value: make([]byte, 50)}); err == nil || errors.Is(err, signals.ErrTooLarge) {
		t.Errorf("Kafka is away: %v", err)
	}
}
