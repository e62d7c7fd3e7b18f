// Command growth shows how Sluice's cost grows: with records a request, connections, keys, orgs, policy rules, the size of records, the share of signals, and with
// and without a spool. What grows faster than its work is a defect.
//
//	go run ./bench/growth          as many rounds of three as -budget has room for; one takes about four minutes
//	go run ./bench/growth -full    with 100,000 and 1,000,000 keys; a round takes about five minutes
//	go run ./bench/growth -only keys    one series; the others stay as they are in -out
//	go run ./bench/growth -only NONE    table and pictures of the data in -out again
//
// Everything but what the series names stays as in the goals: gzip protobuf, 20 records a request, one in ten a filtered signal, 128 connections, closed
// loop. The results go to -out: growth.jsonl, a table (growth.md) and a picture for each series.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"flowstate.inc/sluice/bench/chart"
	"flowstate.inc/sluice/bench/rig"
	"flowstate.inc/sluice/bench/work"
)

// A step is one point of a series.
type step struct {
	x     float64
	job   rig.Job
	rules int // of the policy
	spool spool
}

type spool int

const (
	noSpool spool = iota
	spoolReady
	spoolInUse
)

// A series is what grows.
type series struct {
	name, label string
	unit        string
	of          func(rig.Point) float64
	steps       []step
	prepare     func(ctx context.Context, r *rig.Rig, s step) error
}

func perRecord(p rig.Point) float64  { return p.CPUPerRecord }
func perRequest(p rig.Point) float64 { return p.CPUPerRequest }

func base(warm, measure time.Duration) rig.Job {
	return rig.Job{Shape: work.Shape{Encoding: work.GzipProtobuf, Records: 20, Signals: 0.1}, Connections: 128, Warm: warm, Measure: measure}
}

func all(warm, measure time.Duration, full bool) []series {
	grow := func(xs []float64, with func(*step, float64)) []step {
		var list []step
		for _, x := range xs {
			s := step{x: x, job: base(warm, measure)}
			with(&s, x)
			list = append(list, s)
		}
		return list
	}
	keys := []float64{1, 100, 1000, 10_000}
	if full {
		keys = append(keys, 100_000, 1_000_000)
	}
	return []series{
		{name: "records", label: "records a request", unit: "µs a record", of: perRecord,
			steps: grow([]float64{1, 5, 20, 100, 500}, func(s *step, x float64) { s.job.Shape.Records = int(x) })},
		{name: "connections", label: "connections", unit: "µs a request", of: perRequest,
			steps: grow([]float64{1, 10, 100, 1000, mostConnections()}, func(s *step, x float64) {
				s.job.Connections = int(x)
				if x > 1000 {
					// Until all are connected; and as long as many answers take, since what is under way at the end is paid and not counted.
					s.job.Warm += 4 * time.Second
					s.job.Measure *= 6
				}
			})},
		{name: "keys", label: "keys in use, each request another", unit: "µs a request", of: perRequest,
			steps: grow(keys, func(s *step, x float64) {
				s.job.Keys, s.job.Rotate = int(x), true
				s.job.Warm += min(time.Duration(x/2500*float64(time.Second)), 30*time.Second) // until the edge has seen them
			}),
			prepare: func(ctx context.Context, r *rig.Rig, s step) error { return r.AddAccounts(ctx, s.job.Keys-len(r.Keys)) }},
		{name: "orgs", label: "orgs, 1,000 keys spread over them, each request another", unit: "µs a request", of: perRequest,
			steps: grow([]float64{1, 10, 100, 1000}, func(s *step, x float64) {
				s.job.Orgs, s.job.Keys, s.job.Rotate = int(x), orgsKeys, true
			}),
			prepare: func(ctx context.Context, r *rig.Rig, s step) error { return r.AddOrgs(ctx, s.job.Orgs, orgsKeys) }},
		{name: "rules", label: "policy rules, all tried and none matching", unit: "µs a request (one signal in ten records)", of: perRequest,
			steps: grow([]float64{0, 10, 100, 1000}, func(s *step, x float64) {
				s.rules = int(x)
				s.job.Shape.Type = rig.GrowthType
			}),
			prepare: func(ctx context.Context, r *rig.Rig, s step) error {
				return r.Policy(ctx, s.rules)
			}},
		{name: "size", label: "bytes added to each record", unit: "µs a record", of: perRecord,
			steps: grow([]float64{0, 1000, 4000, 16_000, 40_000}, func(s *step, x float64) {
				s.job.Shape.Pad = int(x)
				if x > 10_000 {
					s.job.Measure *= 4
				}
			})},
		{name: "signals", label: "filtered signals, % of the records", unit: "µs a record", of: perRecord,
			steps: grow([]float64{0, 1, 10, 50, 100}, func(s *step, x float64) { s.job.Shape.Signals = x / 100 })},
		{name: "spool", label: "0: no spool, 1: a spool while Kafka is well, 2: Kafka away and all on disk", unit: "µs a request", of: perRequest,
			steps: grow([]float64{0, 1, 2}, func(s *step, x float64) {
				s.spool = spool(x)
				if s.spool == spoolInUse {
					s.job.NoKafka = true
					s.job.Warm += 6 * time.Second
				}
			})},
	}
}

// orgsKeys is how many keys the orgs share, so that a series of orgs is none of keys.
const orgsKeys = 1000

// mostConnections is 10,000, or what the limit of open files leaves of it, in thousands: the load's process has one file for each, and so has the server's.
func mostConnections() float64 {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Max >= 10_500 {
		return 10_000
	}
	return math.Max(1000, float64((limit.Max-min(limit.Max, 500))/1000*1000))
}

func main() {
	rounds := flag.Int("rounds", 3, "rounds")
	measure := flag.Duration("measure", 1500*time.Millisecond, "measured time of a point")
	warm := flag.Duration("warm", time.Second, "load before it")
	only := flag.String("only", "", "regular expression: only series that match")
	out := flag.String("out", "bench/results", "directory of the results")
	full := flag.Bool("full", false, "with 100,000 and 1,000,000 keys")
	budget := flag.Duration("budget", 13*time.Minute, "begin no round that would end later")
	built := flag.String("sluice", "", "a built sluice (default: built here)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	pattern, err := regexp.Compile(*only)
	if err == nil {
		list := all(*warm, *measure, *full)
		chosen := slices.DeleteFunc(slices.Clone(list), func(s series) bool { return !pattern.MatchString(s.name) })
		err = run(ctx, *rounds, *budget, list, chosen, *built, *out)
	}
	if err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, rounds int, budget time.Duration, list, chosen []series, built, out string) error {
	file := filepath.Join(out, "growth.jsonl")
	description, kept, err := keep(file, chosen)
	if err != nil {
		return err
	}
	if len(chosen) == 0 {
		return publish(out, description, list, kept)
	}
	r, err := rig.Open(ctx, os.Stderr)
	if err != nil {
		return err
	}
	points, description, err := measureAll(ctx, r, rounds, budget, chosen, built)
	if err = errors.Join(err, r.Close()); err != nil {
		return err
	}
	return publish(out, description, list, append(kept, points...))
}

func measureAll(ctx context.Context, r *rig.Rig, rounds int, budget time.Duration, list []series, built string) ([]rig.Point, rig.Run, error) {
	began := time.Now()
	if err := r.Build(ctx, built); err != nil {
		return nil, rig.Run{}, err
	}
	if err := r.Prepare(ctx, 100); err != nil {
		return nil, rig.Run{}, err
	}
	description := r.Describe(ctx, "go run ./bench/growth")
	var points []rig.Point
	longest := time.Duration(0)
	for round := range rounds {
		if left := budget - time.Since(began); round > 0 && left < longest {
			fmt.Fprintf(os.Stderr, "no round %d: one takes %v, and %v of the budget is left\n", round+1, longest.Round(time.Second), left.Round(time.Second))
			break
		}
		start := time.Now()
		for _, s := range list {
			for i := range s.steps {
				st := s.steps[i]
				if s.prepare != nil && (round == 0 || s.name == "rules") {
					if err := s.prepare(ctx, r, st); err != nil {
						return nil, rig.Run{}, err
					}
				}
				p, err := point(ctx, r, s, st)
				if ctx.Err() != nil {
					return nil, rig.Run{}, ctx.Err()
				}
				if err != nil { // the others are worth having
					fmt.Fprintf(os.Stderr, "%-12s %8g  failed: %v\n", s.name, st.x, err)
					continue
				}
				p.Round, p.Series, p.X = round+1, s.name, st.x
				points = append(points, p)
				fmt.Fprintf(os.Stderr, "%-12s %8g  %8.0f req/s  %8.2f µs/record  %8.1f µs/request  p99 %7.2f ms  %4d MiB  %6.1f allocs  neighbours %.2f\n",
					s.name, st.x, p.RequestsPerSecond, p.CPUPerRecord, p.CPUPerRequest, p.P99, p.PeakRSS>>20, p.AllocsPerRequest, p.Neighbours)
			}
		}
		longest = max(longest, time.Since(start))
	}
	return points, description, nil
}

func point(ctx context.Context, r *rig.Rig, s series, st step) (rig.Point, error) {
	st.job.Work = s.name
	brokers := r.Brokers
	var args []string
	if st.spool != noSpool {
		dir := filepath.Join(r.Dir, "spool")
		if err := os.RemoveAll(dir); err != nil {
			return rig.Point{}, err
		}
		args = append(args, "--spool-dir", dir)
	}
	if st.spool == spoolInUse {
		var err error
		if brokers, err = rig.FreeAddr(); err != nil {
			return rig.Point{}, err
		}
	}
	server, err := r.Sluice(ctx, r.Bin.Sluice, brokers, args...)
	if err != nil {
		return rig.Point{}, err
	}
	defer server.Stop()
	return r.Measure(ctx, server, st.job)
}

// keep reads the points of an earlier run whose series were not measured again.
func keep(file string, again []series) (rig.Run, []rig.Point, error) {
	var run rig.Run
	f, err := os.Open(file)
	if errors.Is(err, os.ErrNotExist) {
		return run, nil, nil
	}
	if err != nil {
		return run, nil, err
	}
	defer f.Close()
	dec := json.NewDecoder(f)
	if err := dec.Decode(&run); err != nil {
		return run, nil, err
	}
	var points []rig.Point
	for dec.More() {
		var p rig.Point
		if err := dec.Decode(&p); err != nil {
			return run, nil, err
		}
		if !slices.ContainsFunc(again, func(s series) bool { return s.name == p.Series }) {
			points = append(points, p)
		}
	}
	return run, points, nil
}

// at is the median, least and most of what a series has at x.
func at(points []rig.Point, s series, x float64, of func(rig.Point) float64) chart.Value {
	var values []float64
	for _, p := range points {
		if p.Series == s.name && p.X == x {
			values = append(values, of(p))
		}
	}
	if len(values) == 0 {
		return chart.Missing()
	}
	slices.Sort(values)
	n := len(values)
	return chart.Value{Mid: (values[(n-1)/2] + values[n/2]) / 2, Low: values[0], High: values[n-1]}
}

func publish(out string, description rig.Run, list []series, points []rig.Point) error {
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(out, "growth.jsonl"))
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
	var table strings.Builder
	fmt.Fprintf(&table, "Measured %s at %s by `%s`, closed loop. Medians, with the least and most of the rounds.\n\n", description.At.Format("2006-01-02"), description.Commit, description.Command)
	table.WriteString("| what grows | | cost | requests/s | p99 ms | peak MiB | allocations a request |\n|---|---|---|---|---|---|---|\n")
	for _, s := range list {
		line := chart.Series{Name: "sluice"}
		for _, st := range s.steps {
			v := at(points, s, st.x, s.of)
			if math.IsNaN(v.Mid) {
				continue
			}
			line.X, line.Values = append(line.X, st.x), append(line.Values, v)
			mid := func(of func(rig.Point) float64) float64 { return at(points, s, st.x, of).Mid }
			fmt.Fprintf(&table, "| %s | %g | %.1f (%.1f to %.1f) %s | %.0f | %.1f | %.0f | %.0f |\n", s.label, st.x, v.Mid, v.Low, v.High, s.unit,
				mid(func(p rig.Point) float64 { return p.RequestsPerSecond }), mid(func(p rig.Point) float64 { return p.P99 }),
				mid(func(p rig.Point) float64 { return float64(p.PeakRSS) / (1 << 20) }), mid(func(p rig.Point) float64 { return p.AllocsPerRequest }))
		}
		picture := chart.Lines{Title: "CPU of Sluice by " + s.label, Unit: s.unit, XLabel: s.label, Series: []chart.Series{line}}
		if err := os.WriteFile(filepath.Join(out, "growth-"+s.name+".svg"), []byte(picture.SVG()), 0o644); err != nil {
			return err
		}
	}
	fmt.Println(table.String())
	if err := os.WriteFile(filepath.Join(out, "growth.md"), []byte(table.String()), 0o644); err != nil {
		return err
	}
	return f.Close()
}
