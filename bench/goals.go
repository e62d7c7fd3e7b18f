package main

import (
	"fmt"
	"math"
	"slices"

	"flowstate.inc/sluice/bench/rig"
)

// Works that goals name.
const (
	gz20    = "pb.gz-20"
	durable = "pb.gz-20 on disk"
)

// A measure is one number of a point.
type measure struct {
	name string
	of   func(rig.Point) float64
}

var (
	cpu    = measure{"CPU a record", func(p rig.Point) float64 { return p.CPUPerRecord }}
	p99    = measure{"p99", func(p rig.Point) float64 { return p.P99 }}
	memory = measure{"peak memory", func(p rig.Point) float64 { return float64(p.PeakRSS) }}
)

// A goal is a bound on a ratio of two servers.
type goal struct {
	work     string
	what     measure
	of, over string
	most     float64
	beside   bool // reported, and no condition
}

var goals = []goal{
	{"pb-1", cpu, sluice, collector, 0.37, false},
	{"pb-1", cpu, sluice, floor, 1.2, false},
	{"pb-20", cpu, sluice, collector, 0.21, false},
	{"pb-20", cpu, sluice, floor, 1.2, false},
	{gz20, cpu, sluice, collector, 0.27, false},
	{gz20, cpu, sluice, floor, 1.2, false},
	{gz20, cpu, sluice, collectorGOGC, 0.4, false},
	{"pb.gz-100", cpu, sluice, collector, 0.27, false},
	{"pb.gz-100", cpu, sluice, floor, 1.2, false},
	{"json.gz-20", cpu, sluice, collector, 0.35, false},
	{gz20 + "@1000", cpu, sluice, collector, 0.4, false},
	{gz20 + "@1000", cpu, sluice, floor, 1.1, false},
	{gz20 + "@2500", cpu, sluice, collector, 0.5, false},
	{gz20 + "@2500", cpu, sluice, floor, 1.1, false},
	{durable, cpu, sluiceSpool, collectorDisk, 0.08, false},
	{gz20 + "@2500", p99, sluice, collector, 0.4, true},
	{gz20 + "@2500", p99, sluice, floor, 1.3, true},
	{"pb.gz-100", memory, sluice, collector, 0.5, true},
}

// A verdict is a goal and what came of it.
type verdict struct {
	goal
	rounds           int
	ratio, low, high float64 // the median of the rounds' ratios, and the least and most of them
}

func (v verdict) holds() bool { return v.rounds > 0 && v.ratio <= v.most }

func (v verdict) word() string {
	switch {
	case v.rounds == 0:
		return "not measured"
	case v.holds():
		return "holds"
	}
	return "does not hold"
}

// judge pairs the servers within each round: what disturbs the machine disturbs both.
func judge(points []rig.Point) []verdict {
	var list []verdict
	for _, g := range goals {
		var ratios []float64
		for _, a := range points {
			if a.Work != g.work || a.Server != g.of {
				continue
			}
			for _, b := range points {
				if b.Work == g.work && b.Server == g.over && b.Round == a.Round {
					ratios = append(ratios, g.what.of(a)/g.what.of(b))
				}
			}
		}
		v := verdict{goal: g, rounds: len(ratios)}
		if len(ratios) > 0 {
			v.ratio, v.low, v.high = spread(ratios)
		}
		list = append(list, v)
	}
	return list
}

// spread is the median, the least and the most.
func spread(values []float64) (median, low, high float64) {
	if len(values) == 0 {
		return math.NaN(), math.NaN(), math.NaN()
	}
	s := slices.Sorted(slices.Values(values))
	n := len(s)
	return (s[(n-1)/2] + s[n/2]) / 2, s[0], s[n-1]
}

func (v verdict) bound() string {
	b := fmt.Sprintf("≤ %g", v.most)
	if v.beside {
		b = "[" + b + "]"
	}
	return b
}
