package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"flowstate.inc/sluice/ingest"
	"flowstate.inc/sluice/ingest/spool"
)

// spoolConfig is what serve is told of its spool.
type spoolConfig struct {
	dir                    string // "": none
	maxBytes, minFreeBytes int64
	maxAge                 time.Duration
	replayBytesPerSecond   int
	maxInflightBytesPerKey int64
	drainDelay             time.Duration
}

func (c *config) spoolFlags(f *pflag.FlagSet) {
	f.StringVar(&c.spool.dir, "spool-dir", "", "directory of this edge's own that keeps what Kafka does not take in time, on a disk that outlives the process (default: none, requests are answered 503)")
	f.Int64Var(&c.spool.maxBytes, "spool-max-bytes", 8<<30, "most bytes that the spool takes, quarantine included; when it is full requests are answered 503, nothing is evicted")
	f.Int64Var(&c.spool.minFreeBytes, "spool-min-free-bytes", 512<<20, "bytes of its disk that the spool leaves free")
	f.DurationVar(&c.spool.maxAge, "spool-max-age", 0, "older records move to the spool's quarantine instead of Kafka (0: never)")
	f.IntVar(&c.spool.replayBytesPerSecond, "spool-replay-bytes-per-second", 32<<20, "most that the spool sends to Kafka beside live traffic")
}

// stopFlags are about the end of a process; serve stands behind a load balancer, dev does not.
func (c *config) stopFlags(f *pflag.FlagSet, delay time.Duration) {
	f.DurationVar(&c.spool.drainDelay, "drain-delay", delay, "how long to serve on after SIGTERM, while /readyz fails and load balancers look elsewhere; a second signal ends it")
	f.Int64Var(&c.spool.maxInflightBytesPerKey, "max-inflight-bytes-per-key", 0, "bytes of one key waiting for Kafka, beyond which its requests are answered 503 (0: a quarter of --max-inflight-bytes)")
}

func (s *spoolConfig) check() error {
	if s.maxBytes < 0 || s.maxAge < 0 || s.replayBytesPerSecond < 0 || s.maxInflightBytesPerKey < 0 || s.drainDelay < 0 {
		return usagef("--spool-max-bytes, --spool-max-age, --spool-replay-bytes-per-second, --max-inflight-bytes-per-key and --drain-delay must not be negative")
	}
	return nil
}

// finishPatience is how long a stopping edge goes on draining its spool while nothing goes through; finishTimeout is how long in all.
const (
	finishPatience = time.Second
	finishTimeout  = 5 * time.Second
)

// durability is how the edge of a process makes messages durable.
type durability struct {
	log   *spool.Log // nil: none
	sink  *ingest.Sink
	drain *ingest.Drain

	minFree int64              // bytes of its disk that the spool leaves free
	cancel  context.CancelFunc // ends the drain
	drained sync.WaitGroup
	left    error // after finish: a *leftError, or nil
}

// A leftError is the end of a process that has done all it could while records stay in its spool: exit status 3.
type leftError struct {
	dir            string
	records, bytes int64
}

func (e *leftError) Error() string {
	return fmt.Sprintf("stopped; %d records (%s) are left in the spool %s: they go to Kafka when a process starts on it, or by sluice spool drain --dir %s",
		e.records, byteSize(e.bytes), e.dir, e.dir)
}

// wireSink opens the spool, if there is one, and puts the sink before the producer.
func (p *process) wireSink() error {
	c := &p.cfg.spool
	if c.dir != "" {
		log, err := spool.Open(spool.Config{
			Dir: c.dir, MaxBytes: c.maxBytes, MinFreeBytes: atLeastOne(c.minFreeBytes), MaxAge: c.maxAge, Registerer: p.reg, Logger: p.log,
		})
		if err != nil {
			return fmt.Errorf("--spool-dir: %w", err)
		}
		p.durable.log, p.durable.minFree = log, atLeastOne(c.minFreeBytes)
	}
	p.durable.sink = ingest.NewSink(ingest.SinkConfig{
		Producer: p.producer, Spool: p.durable.log, MaxKeyBytes: c.maxInflightBytesPerKey, ReplayBytesPerSecond: c.replayBytesPerSecond,
		Registerer: p.reg, Logger: p.log,
	})
	return nil
}

// atLeastOne keeps an explicit 0 from meaning the default.
func atLeastOne(n int64) int64 { return max(n, 1) }

// start begins to drain what earlier processes left and this one adds.
func (d *durability) start() {
	if d.log == nil {
		return
	}
	var ctx context.Context
	ctx, d.cancel = context.WithCancel(context.Background())
	d.drain = d.sink.NewDrain()
	d.drained.Go(func() { d.drain.Run(ctx) })
}

// finish is called when no request comes any more. It sends what can be sent, to Kafka or the spool, and closes both. What it returns is a failure; that
// something is left in the spool is none, and in d.left.
func (d *durability) finish(ctx context.Context, producer *ingest.Producer, dir string, log *slog.Logger) error {
	if d.log == nil {
		return wrapErr("flush to Kafka", producer.Close(ctx))
	}
	d.cancel()
	d.drained.Wait()
	quick, cancel := context.WithTimeout(ctx, finishTimeout)
	defer cancel()
	d.drain.Finish(quick, finishPatience)
	// What Kafka does not take now fails its requests' wait, and they keep it in the spool: that closes last.
	errs := []error{wrapErr("flush to Kafka", producer.Close(ctx))}
	last, cancelLast := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancelLast()
	errs = append(errs, wrapErr("close the spool", d.log.Close(last)))
	if st := d.log.Stats(); st.Records > 0 {
		d.left = &leftError{dir: dir, records: st.Records, bytes: st.Bytes - st.QuarantineBytes}
		log.Warn("records are left in the spool", "dir", dir, "records", st.Records, "bytes", st.Bytes-st.QuarantineBytes)
	}
	return errors.Join(errs...)
}

// health is what /readyz says of the spool.
func (d *durability) health() error {
	st := d.log.Stats()
	switch {
	case st.Bytes >= st.Capacity:
		return fmt.Errorf("full: %d of %d bytes used", st.Bytes, st.Capacity)
	case st.DiskFreeBytes < d.minFree:
		return fmt.Errorf("its disk is full: %d bytes are free, it leaves %d (--spool-min-free-bytes); %d records wait", st.DiskFreeBytes, d.minFree, st.Records)
	case d.sink.Full():
		return fmt.Errorf("full, senders are answered 503: %d records wait for Kafka, in %d of %d bytes", st.Records, st.Bytes, st.Capacity)
	case st.Records > 0:
		return fmt.Errorf("%d records wait for Kafka, in %d of %d bytes", st.Records, st.Bytes, st.Capacity)
	}
	return nil
}

// stopping gives a context that ends with a second signal, after the time that load balancers have to look elsewhere.
func (p *process) stopping(ctx context.Context, delay time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := signal.NotifyContext(context.WithoutCancel(ctx), os.Interrupt, syscall.SIGTERM)
	silent := context.AfterFunc(ctx, func() { p.log.Warn("a second signal: hurrying, what is not finished is given up") })
	end := cancel
	cancel = func() { silent(); end() }
	if delay > 0 {
		t := time.NewTimer(delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
		}
	}
	return ctx, cancel
}

// byteSize is n for people.
func byteSize(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/1024, 0
	for v >= 1024 && i < len(units)-1 {
		v, i = v/1024, i+1
	}
	return fmt.Sprintf("%.1f %ciB", v, units[i])
}
