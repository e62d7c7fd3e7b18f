// Command profile says where Sluice's CPU goes under load: by its own pprof where the ops listener has it, else by perf.
//
//	go run ./bench/profile                      gzip protobuf, 20 records a request, closed loop
//	go run ./bench/profile -work json.gz-20     another work
//	go run ./bench/profile -rate 1000           part load
//
// It prints the functions that take most, flat and with what they call, and keeps the profile in -out.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"flowstate.inc/sluice/bench/rig"
	"flowstate.inc/sluice/bench/work"
)

func main() {
	name := flag.String("work", "pb.gz-20", "pb-N, pb.gz-N or json.gz-N, with N records a request")
	rate := flag.Float64("rate", 0, "requests a second (0: closed loop)")
	connections := flag.Int("connections", 128, "connections")
	signals := flag.Float64("signals", 0.1, "share of the records that are signals")
	seconds := flag.Int("seconds", 10, "length of the profile")
	out := flag.String("out", "sluice.prof.out", "file of the profile")
	binary := flag.String("sluice", "", "a built sluice (default: built here)")
	lines := flag.Int("lines", 45, "functions to print")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	shape, err := shapeOf(*name)
	if err == nil {
		shape.Signals = *signals
		err = run(ctx, rig.Job{Work: *name, Shape: shape, Connections: *connections, Rate: *rate, Warm: 2 * time.Second, Measure: time.Duration(*seconds+1) * time.Second},
			*binary, *out, *seconds, *lines)
	}
	if err != nil {
		log.Fatal(err)
	}
}

func shapeOf(name string) (work.Shape, error) {
	for _, e := range []work.Encoding{work.Protobuf, work.GzipProtobuf, work.GzipJSON} {
		var n int
		if _, err := fmt.Sscanf(strings.TrimPrefix(name, string(e)+"-"), "%d", &n); err == nil && strings.HasPrefix(name, string(e)+"-") && n > 0 {
			return work.Shape{Encoding: e, Records: n}, nil
		}
	}
	return work.Shape{}, fmt.Errorf("%q is no work: use pb-20, pb.gz-20, json.gz-20 or another number", name)
}

func run(ctx context.Context, job rig.Job, binary, out string, seconds, lines int) error {
	r, err := rig.Open(ctx, os.Stderr)
	if err != nil {
		return err
	}
	return errors.Join(measure(ctx, r, job, binary, out, seconds, lines), r.Close())
}

func measure(ctx context.Context, r *rig.Rig, job rig.Job, binary, out string, seconds, lines int) error {
	if err := r.Build(ctx, binary); err != nil {
		return err
	}
	if err := r.Prepare(ctx, 100); err != nil {
		return err
	}
	s, err := r.Sluice(ctx, r.Bin.Sluice, r.Brokers)
	if err != nil {
		return err
	}
	defer s.Stop()
	type found struct {
		text string
		err  error
	}
	profiled := make(chan found, 1)
	go func() {
		select {
		case <-time.After(job.Warm):
		case <-ctx.Done():
		}
		text, err := r.Profile(ctx, s, out, seconds, lines)
		profiled <- found{text, err}
	}()
	p, err := r.Measure(ctx, s, job)
	if err != nil {
		return err
	}
	f := <-profiled
	fmt.Printf("%s: %.0f req/s, %.1f µs a request, %.2f a record, %.1f allocations a request, system %.0f %%\n\n%s",
		p.Work, p.RequestsPerSecond, p.CPUPerRequest, p.CPUPerRecord, p.AllocsPerRequest, 100*p.SystemShare, f.text)
	return f.err
}
