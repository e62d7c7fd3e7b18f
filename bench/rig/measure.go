package rig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"flowstate.inc/sluice/bench/load"
	"flowstate.inc/sluice/bench/work"
)

// A Job is one measurement of one server.
type Job struct {
	Work        string // as the results call it
	Shape       work.Shape
	Bodies      int // different ones; 0: 60
	Connections int
	Rate        float64 // requests a second; 0: closed loop
	Keys        int     // of the rig's, how many are in use; 0: 100 at most
	Orgs        int     // not 0: the keys are those of Rig.AddOrgs
	Rotate      bool    // each request has the next key
	Warm        time.Duration
	Measure     time.Duration
	NoKafka     bool // nothing goes to Kafka, so that nothing is looked for there
}

// A Point is what a Job found. As JSON it is one line of the results.
type Point struct {
	Kind       string    `json:"kind"` // "point"
	At         time.Time `json:"at"`
	Round      int       `json:"round"`
	Server     string    `json:"server"`
	Work       string    `json:"work"`
	Series     string    `json:"series,omitempty"` // growth: what grows
	X          float64   `json:"x,omitempty"`      // and how far
	Loop       string    `json:"loop"`
	Rate       float64   `json:"rate,omitempty"`
	Connection int       `json:"connections"`
	PerRequest int       `json:"records_per_request"`
	BytesSent  int       `json:"bytes_per_request"`
	Seconds    float64   `json:"seconds"`

	Requests          int64   `json:"requests"`
	Records           int64   `json:"records"`
	RequestsPerSecond float64 `json:"requests_per_second"`
	RecordsPerSecond  float64 `json:"records_per_second"`
	CPUPerRequest     float64 `json:"cpu_us_per_request"`
	CPUPerRecord      float64 `json:"cpu_us_per_record"`
	SystemShare       float64 `json:"cpu_system_share"`
	BrokerPerRequest  float64 `json:"broker_cpu_us_per_request"`
	P50               float64 `json:"p50_ms"`
	P99               float64 `json:"p99_ms"`
	P999              float64 `json:"p999_ms"`
	Max               float64 `json:"max_ms"`
	PeakRSS           int64   `json:"peak_rss_bytes"`
	AllocsPerRequest  float64 `json:"allocs_per_request,omitempty"`

	Codes      map[int]int64 `json:"codes"`
	Broken     int64         `json:"broken_connections"`
	Forwarded  int64         `json:"forwarded"` // requests answered 200 that have something to forward, warm-up included
	Written    int64         `json:"written"`   // messages that Kafka has of them
	Neighbours float64       `json:"neighbour_cores"`
	Late       float64       `json:"generator_late_ms,omitempty"`
}

// snapshot is what is read at both ends of the measured time.
type snapshot struct {
	user, system, broker, self, machine time.Duration
	allocs                              uint64
	allocsKnown                         bool
	err                                 error
}

func (r *Rig) snapshot(ctx context.Context, s *Server, withAllocs bool) snapshot {
	var out snapshot
	var errs [4]error
	if withAllocs {
		out.allocs, out.allocsKnown = s.Allocs(ctx)
	}
	out.user, out.system, errs[0] = CPU(s.PID)
	var user, system time.Duration
	user, system, errs[1] = CPU(r.KafkaPID)
	out.broker = user + system
	user, system, errs[2] = CPU(os.Getpid())
	out.self = user + system
	out.machine, errs[3] = MachineCPU()
	out.err = errors.Join(errs[:]...)
	return out
}

// bodiesOf is made once for each shape.
func (r *Rig) bodiesOf(shape work.Shape, n int) ([]load.Body, int, error) {
	made, err := work.Make(shape, n, 1)
	if err != nil {
		return nil, 0, err
	}
	bodies, sent := make([]load.Body, n), 0
	for i, b := range made {
		bodies[i] = load.Body{Bytes: b.Bytes, Records: b.Records, Forward: b.Filtered < b.Records}
		sent += len(b.Bytes)
	}
	return bodies, sent / n, nil
}

// Measure loads a server and says what it cost. An acknowledged message that is not in Kafka is an error, and so is an answer that is not 200.
func (r *Rig) Measure(ctx context.Context, s *Server, j Job) (Point, error) {
	bodies, sent, err := r.bodiesOf(j.Shape, max(j.Bodies, 60))
	if err != nil {
		return Point{}, err
	}
	keys := j.Keys
	if keys == 0 {
		keys = 100
	}
	pool := r.Keys
	if j.Orgs > 0 {
		pool = r.orgKeys[j.Orgs]
	}
	plan := load.Plan{
		Addr: s.Addr, Path: s.Path, ContentType: j.Shape.ContentType(), Keys: pool[:min(keys, len(pool))], Bodies: bodies,
		Rotate: j.Rotate, Connections: j.Connections, Rate: j.Rate, Warm: j.Warm, Measure: j.Measure,
	}
	if j.Shape.Gzipped() {
		plan.ContentEncoding = "gzip"
	}
	before := int64(0)
	if !j.NoKafka {
		if before, err = r.Written(ctx, s.Topic); err != nil {
			return Point{}, err
		}
	}
	var from, to snapshot
	// The allocations of the answer that tells them are not the load's: with thousands of requests they do not show.
	plan.Begin = func() { from = r.snapshot(ctx, s, true) }
	plan.End = func() { to = r.snapshot(ctx, s, true) }
	res, err := load.Run(ctx, plan)
	if err = errors.Join(err, from.err, to.err); err != nil {
		return Point{}, fmt.Errorf("%s %s: %w: %s", s.Name, j.Work, err, s.Said())
	}
	p := Point{
		Kind: "point", At: time.Now().UTC().Truncate(time.Second), Server: s.Name, Work: j.Work, Loop: "closed", Rate: j.Rate, Connection: j.Connections,
		PerRequest: j.Shape.Records, BytesSent: sent, Seconds: res.Elapsed.Seconds(),
		Requests: res.Requests, Records: res.Records, Codes: res.Codes, Broken: res.Broken, Forwarded: res.Forward,
		P50: ms(res.Latency.ValueAtQuantile(50)), P99: ms(res.Latency.ValueAtQuantile(99)), P999: ms(res.Latency.ValueAtQuantile(99.9)), Max: ms(res.Latency.Max()),
		Late: float64(res.Late) / 1e6,
	}
	if j.Rate > 0 {
		p.Loop = "open"
	}
	if res.Requests == 0 {
		return p, fmt.Errorf("%s %s: nothing was answered 200: %v: %s", s.Name, j.Work, res.Codes, s.Said())
	}
	cpu := to.user + to.system - from.user - from.system
	p.CPUPerRequest = micros(cpu) / float64(res.Requests)
	p.CPUPerRecord = micros(cpu) / float64(res.Records)
	p.SystemShare = float64(to.system-from.system) / float64(max(cpu, 1))
	p.BrokerPerRequest = micros(to.broker-from.broker) / float64(res.Requests)
	p.RequestsPerSecond = float64(res.Requests) / res.Elapsed.Seconds()
	p.RecordsPerSecond = float64(res.Records) / res.Elapsed.Seconds()
	p.Neighbours = float64(to.machine-from.machine-cpu-(to.broker-from.broker)-(to.self-from.self)) / float64(res.Elapsed)
	if from.allocsKnown && to.allocsKnown {
		p.AllocsPerRequest = float64(to.allocs-from.allocs) / float64(res.Requests)
	}
	if p.PeakRSS, err = PeakRSS(s.PID); err != nil {
		return p, err
	}
	if !j.NoKafka {
		after, err := r.Written(ctx, s.Topic)
		if err != nil {
			return p, err
		}
		p.Written = after - before
		if p.Written < p.Forwarded {
			return p, fmt.Errorf("%s %s: %d requests were acknowledged and %d messages are in Kafka", s.Name, j.Work, p.Forwarded, p.Written)
		}
	}
	if len(res.Codes) > 1 {
		return p, fmt.Errorf("%s %s: answers other than 200: %v: %s", s.Name, j.Work, res.Codes, s.Said())
	}
	return p, nil
}

func ms(us int64) float64            { return float64(us) / 1000 }
func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
