package ingest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

func TestCloseFlushes(t *testing.T) {
	c := newFake(t)
	p := startProducer(t, brokersOf(c))
	c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotEnoughReplicas, Count: 2})
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if err := produceOne(p, fmt.Sprint(i), fmt.Sprint(i)); err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, "the calls are in", func() bool {
		return p.undecided()+int(testutil.ToFloat64(p.metrics.byTopic[testTopic].messages)) == 20
	})
	if err := p.Close(context.Background()); err != nil {
		t.Error(err)
	}
	wg.Wait()
	if got := len(read(t, c.ListenAddrs(), testTopic, 20)); got != 20 {
		t.Errorf("%d records, want 20", got)
	}
	if err := produceOne(p, "k", "v"); !errors.Is(err, ErrProducerClosed) || !errors.Is(err, ErrKafkaUnavailable) {
		t.Errorf("after Close: %v", err)
	}
}

func TestCloseGivesUp(t *testing.T) {
	c := newFake(t)
	f := newFreezer(c)
	p := startProducer(t, brokersOf(c))
	if err := produceOne(p, "k", "warm"); err != nil {
		t.Fatal(err)
	}
	f.frozen[0].Store(true)
	errs := make(chan error, 10)
	for range cap(errs) {
		go func() { errs <- produceOne(p, "k", "v") }()
	}
	eventually(t, "the calls are in", func() bool { return p.undecided() == cap(errs) })
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	began := time.Now()
	if err := p.Close(ctx); !errors.Is(err, ErrKafkaUnavailable) {
		t.Errorf("Close: %v", err)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("Close took %v", took)
	}
	for range cap(errs) {
		if err := <-errs; !errors.Is(err, ErrKafkaUnavailable) {
			t.Errorf("got %v", err)
		}
	}
	if p.inFlight.Load() != 0 {
		t.Errorf("%d bytes still in flight", p.inFlight.Load())
	}
}

func TestProducerMetrics(t *testing.T) {
	c := newFake(t)
	reg := prometheus.NewPedanticRegistry()
	cfg := brokersOf(c)
	cfg.Registerer = reg
	p := startProducer(t, cfg)
	if err := produceOne(p, "k", "v"); err != nil {
		t.Fatal(err)
	}
	if problems, err := testutil.GatherAndLint(reg); err != nil || len(problems) > 0 {
		t.Error(err, problems)
	}
	for name, want := range map[string]int{"sluice_kafka_produce_failed_messages_total": len(errorKinds), "sluice_kafka_produce_errors_total": len(errorKinds),
		"sluice_kafka_produce_request_duration_seconds": 1, "sluice_kafka_brokers_reachable": 1} {
		if n, err := testutil.GatherAndCount(reg, name); err != nil || n != want {
			t.Errorf("%s: %d series, %v; want %d from the start", name, n, err, want)
		}
	}
	s := p.State()
	if s.Brokers != 1 || s.Reachable != 1 || s.MetadataAge > 5*time.Second || s.InFlightBytes != 0 || s.Err != nil {
		t.Errorf("state %+v", s)
	}
}
