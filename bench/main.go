// Command bench holds Sluice against the OpenTelemetry Collector, which does the same job as teams deploy it today, and against the floor, which is the
// least that a gateway in Go can do: on one machine, in one run, in interleaved rounds whose order turns, with a real Kafka.
//
//	go run ./bench            all of it: about ten minutes, and the Collector's build the first time
//	go run ./bench -readme    puts the table of the results into README.md
//	go run ./bench -quick     one short round, to see that it works; its numbers mean nothing
//
// Each point is a fresh process. What it costs is user and system time of that process alone, from /proc. Each point also checks that every acknowledged
// request is in Kafka. The results go to -out as data (goals.jsonl), a table (table.md) and pictures (SVG); the goals are printed line by line.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"flowstate.inc/sluice/bench/rig"
	"flowstate.inc/sluice/bench/work"
)

// The servers, by the names that the results have.
const (
	sluice        = "sluice"
	floor         = "floor"
	collector     = "collector"
	collectorGOGC = "collector-gogc400"
	sluiceSpool   = "sluice-spool"
	collectorDisk = "collector-disk"
	otherSluice   = "sluice-other"
)

// connections of the closed loop, and as many as an open one may need.
const (
	closedConnections = 128
	openConnections   = 256
)

// A test is one work and the servers that do it.
type test struct {
	job     rig.Job
	servers []string
}

func tests(warm, measure time.Duration) []test {
	shape := func(e work.Encoding, records int) work.Shape {
		return work.Shape{Encoding: e, Records: records, Signals: 0.1}
	}
	three := []string{sluice, floor, collector}
	var list []test
	for _, s := range []work.Shape{
		shape(work.Protobuf, 1), shape(work.Protobuf, 20), shape(work.GzipProtobuf, 20), shape(work.GzipProtobuf, 100), shape(work.GzipJSON, 20),
	} {
		t := test{job: rig.Job{Work: s.Name(), Shape: s, Connections: closedConnections}, servers: slices.Clone(three)}
		if s.Name() == gz20 {
			t.servers = []string{sluice, floor, collector, collectorGOGC}
		}
		list = append(list, t)
	}
	for _, rate := range []float64{1000, 2500} {
		list = append(list, test{
			job:     rig.Job{Work: fmt.Sprintf("%s@%g", gz20, rate), Shape: shape(work.GzipProtobuf, 20), Connections: openConnections, Rate: rate},
			servers: slices.Clone(three),
		})
	}
	list = append(list, test{
		job:     rig.Job{Work: durable, Shape: shape(work.GzipProtobuf, 20), Connections: closedConnections, NoKafka: true},
		servers: []string{sluiceSpool, collectorDisk},
	})
	for i := range list {
		list[i].job.Warm, list[i].job.Measure = warm, measure
		if list[i].job.NoKafka {
			list[i].job.Warm += 6 * time.Second // until Kafka is known to be away
		}
	}
	return list
}

func main() {
	rounds := flag.Int("rounds", 5, "rounds")
	measure := flag.Duration("measure", 2500*time.Millisecond, "measured time of a point")
	warm := flag.Duration("warm", time.Second, "load before it")
	only := flag.String("only", "", "regular expression: only works that match")
	built := flag.String("sluice", "", "a built sluice (default: built here)")
	other := flag.String("other", "", "another build of sluice, run beside the first as "+otherSluice+": what a change is worth")
	servers := flag.String("servers", "", "regular expression: only servers that match")
	out := flag.String("out", "", "directory of the results (default: bench/results, with -quick none)")
	quick := flag.Bool("quick", false, "one round of half a second each")
	budget := flag.Duration("budget", 26*time.Minute, "begin no round that would end later")
	report := flag.Bool("report", false, "measure nothing: make table and pictures of the data in -out again")
	inReadme := flag.Bool("readme", false, "measure nothing: put the table of the data in -out into README.md")
	flag.Parse()
	if *quick {
		*rounds, *measure, *warm = 1, 500*time.Millisecond, 300*time.Millisecond
	} else if *out == "" {
		*out = "bench/results"
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	if *inReadme {
		err = updateReadme(*out, "README.md")
	} else if *report {
		err = again(*out)
	} else {
		var list []test
		if list, err = choose(tests(*warm, *measure), *only, *servers, *other != ""); err == nil {
			err = run(ctx, builds{*built, *other}, *rounds, list, *out, *budget)
		}
	}
	if err != nil {
		log.Fatal(err)
	}
}

// choose leaves what both expressions match.
func choose(list []test, works, servers string, other bool) ([]test, error) {
	w, err := regexp.Compile(works)
	if err != nil {
		return nil, err
	}
	s, err := regexp.Compile(servers)
	if err != nil {
		return nil, err
	}
	var chosen []test
	for _, t := range list {
		if other && slices.Contains(t.servers, sluice) {
			t.servers = append(t.servers, otherSluice)
		}
		t.servers = slices.DeleteFunc(t.servers, func(name string) bool { return !s.MatchString(name) })
		if w.MatchString(t.job.Work) && len(t.servers) > 0 {
			chosen = append(chosen, t)
		}
	}
	return chosen, nil
}

// again reports on what was measured before.
func again(out string) error {
	r, points, err := read(filepath.Join(out, "goals.jsonl"))
	if err != nil {
		return err
	}
	return publish(out, r, points)
}

// builds are paths of built programs, empty where none is given.
type builds struct{ sluice, other string }

func run(ctx context.Context, b builds, rounds int, list []test, out string, budget time.Duration) error {
	if out != "" {
		if err := os.MkdirAll(out, 0o755); err != nil { // now, not when all is measured
			return err
		}
	}
	r, err := rig.Open(ctx, os.Stderr)
	if err != nil {
		return err
	}
	points, description, err := measureAll(ctx, r, b, rounds, list, budget)
	if err = errors.Join(err, r.Close()); err != nil {
		return err
	}
	if out != "" {
		if err := write(filepath.Join(out, "goals.jsonl"), description, points); err != nil {
			return err
		}
	}
	return publish(out, description, points)
}

func measureAll(ctx context.Context, r *rig.Rig, b builds, rounds int, list []test, budget time.Duration) ([]rig.Point, rig.Run, error) {
	if err := r.Build(ctx, b.sluice); err != nil {
		return nil, rig.Run{}, err
	}
	if slices.ContainsFunc(list, func(t test) bool { return slices.ContainsFunc(t.servers, isCollector) }) {
		if err := r.BuildCollector(ctx); err != nil {
			return nil, rig.Run{}, err
		}
	}
	if err := r.Prepare(ctx, 100); err != nil {
		return nil, rig.Run{}, err
	}
	description := r.Describe(ctx, "go run ./bench")
	began := time.Now()
	var points []rig.Point
	for round := range rounds {
		if round > 0 && time.Since(began)*time.Duration(round+1)/time.Duration(round) > budget {
			fmt.Fprintf(os.Stderr, "%d of %d rounds, for want of time\n", round, rounds)
			break
		}
		for _, t := range list {
			for i := range t.servers {
				name := t.servers[(i+round)%len(t.servers)]
				p, err := point(ctx, r, b, name, t.job)
				if err != nil {
					return nil, rig.Run{}, err
				}
				p.Round = round + 1
				points = append(points, p)
				fmt.Fprintf(os.Stderr, "%d %-12s %-18s %8.0f req/s %7.2f µs/record %8.1f µs/request  p50 %6.2f p99 %7.2f ms  %4d MiB  %5.1f allocs  neighbours %.2f\n",
					p.Round, p.Work, p.Server, p.RequestsPerSecond, p.CPUPerRecord, p.CPUPerRequest, p.P50, p.P99, p.PeakRSS>>20, p.AllocsPerRequest, p.Neighbours)
			}
		}
	}
	return points, description, nil
}

func isCollector(server string) bool { return strings.HasPrefix(server, collector) }

// point measures one server, in a process of its own.
func point(ctx context.Context, r *rig.Rig, b builds, name string, job rig.Job) (rig.Point, error) {
	nobody, err := rig.FreeAddr()
	if err != nil {
		return rig.Point{}, err
	}
	var s *rig.Server
	switch name {
	case sluice:
		s, err = r.Sluice(ctx, r.Bin.Sluice, r.Brokers)
	case otherSluice:
		s, err = r.Sluice(ctx, b.other, r.Brokers)
	case sluiceSpool:
		spool := filepath.Join(r.Dir, "spool")
		if err := os.RemoveAll(spool); err != nil {
			return rig.Point{}, err
		}
		s, err = r.Sluice(ctx, r.Bin.Sluice, nobody, "--spool-dir", spool)
	case floor:
		s, err = r.Floor(ctx)
	case collector:
		s, err = r.Collector(ctx, rig.CollectorSetup{Name: name, Brokers: r.Brokers})
	case collectorGOGC:
		s, err = r.Collector(ctx, rig.CollectorSetup{Name: name, Brokers: r.Brokers, GOGC: "400"})
	case collectorDisk:
		s, err = r.Collector(ctx, rig.CollectorSetup{Name: name, Brokers: nobody, Disk: true})
	}
	if err != nil {
		return rig.Point{}, err
	}
	defer s.Stop()
	p, err := r.Measure(ctx, s, job)
	p.Server = name
	return p, err
}

// write keeps a run as JSON lines.
func write(file string, description rig.Run, points []rig.Point) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	enc := json.NewEncoder(f)
	if err := enc.Encode(description); err != nil {
		return err
	}
	for _, p := range points {
		if err := enc.Encode(p); err != nil {
			return err
		}
	}
	return f.Close()
}

// read is the reverse of write.
func read(file string) (rig.Run, []rig.Point, error) {
	f, err := os.Open(file)
	if err != nil {
		return rig.Run{}, nil, err
	}
	defer f.Close()
	dec := json.NewDecoder(f)
	var description rig.Run
	if err := dec.Decode(&description); err != nil {
		return rig.Run{}, nil, err
	}
	var points []rig.Point
	for dec.More() {
		var p rig.Point
		if err := dec.Decode(&p); err != nil {
			return rig.Run{}, nil, err
		}
		points = append(points, p)
	}
	return description, points, nil
}
