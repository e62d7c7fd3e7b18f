package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"flowstate.inc/sluice/bench/chart"
	"flowstate.inc/sluice/bench/rig"
)

// publish prints the goals and, with a directory, writes the table and the pictures.
func publish(out string, run rig.Run, points []rig.Point) error {
	table := tableOf(run, points)
	fmt.Println(table)
	if out == "" {
		return nil
	}
	if err := os.WriteFile(filepath.Join(out, "table.md"), []byte(table), 0o644); err != nil {
		return err
	}
	for name, svg := range pictures(points) {
		if err := os.WriteFile(filepath.Join(out, name), []byte(svg), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// worksOf are the works in the order in which they were measured; closed, open and others apart.
func worksOf(points []rig.Point) (closed, open, disk []string) {
	for _, p := range points {
		to := &closed
		if p.Work == durable {
			to = &disk
		} else if p.Loop == "open" {
			to = &open
		}
		if !slices.Contains(*to, p.Work) {
			*to = append(*to, p.Work)
		}
	}
	return closed, open, disk
}

// values are one measure of one server at one work, a value a round.
func values(points []rig.Point, work, server string, of func(rig.Point) float64) []float64 {
	var list []float64
	for _, p := range points {
		if p.Work == work && p.Server == server {
			list = append(list, of(p))
		}
	}
	return list
}

func median(points []rig.Point, work, server string, of func(rig.Point) float64) float64 {
	m, _, _ := spread(values(points, work, server, of))
	return m
}

var order = []string{sluice, otherSluice, floor, collector, collectorGOGC, sluiceSpool, collectorDisk}

func tableOf(run rig.Run, points []rig.Point) string {
	var b strings.Builder
	rounds, neighbours := 0, []float64{}
	for _, p := range points {
		rounds = max(rounds, p.Round)
		neighbours = append(neighbours, p.Neighbours)
	}
	typical, _, worst := spread(neighbours)
	fmt.Fprintf(&b, "Measured %s at %s by `%s`: %d cores of %s, %s, %s, Kafka %s (one node, acks=all, six partitions), Collector %s; "+
		"server, Kafka and load generator share the machine. Medians of %d interleaved rounds; other processes took %.2f cores (median; %.2f at most).\n\n",
		run.At.Format("2006-01-02"), run.Commit, run.Command, run.Cores, run.Machine, run.Kernel, run.Versions["go"], run.Versions["kafka"], run.Versions["collector"],
		rounds, typical, worst)

	b.WriteString("| goal | Sluice / | bound | measured (least to most of the rounds) | |\n|---|---|---|---|---|\n")
	for _, v := range judge(points) {
		fmt.Fprintf(&b, "| %s, %s | %s | %s | %.2f (%.2f to %.2f) | %s |\n", v.work, v.what.name, v.over, v.bound(), v.ratio, v.low, v.high, v.word())
	}
	b.WriteString("\nCPU is of the server process alone. Latency in the closed loop (128 connections) is what saturation makes it; in the open one it counts from the due time.\n\n")
	b.WriteString("| work | server | µs a record (least to most) | µs a request | requests/s | records/s | p50 ms | p99 | p99.9 | peak MiB | allocations a request | broker µs a request |\n" +
		"|---|---|---|---|---|---|---|---|---|---|---|---|\n")
	closed, open, disk := worksOf(points)
	for _, work := range slices.Concat(closed, open, disk) {
		for _, server := range order {
			costs := values(points, work, server, cpu.of)
			if len(costs) == 0 {
				continue
			}
			m := func(of func(rig.Point) float64) float64 { return median(points, work, server, of) }
			mid, low, high := spread(costs)
			allocs := "–"
			if n := m(func(p rig.Point) float64 { return p.AllocsPerRequest }); n > 0 {
				allocs = fmt.Sprintf("%.1f", n)
			}
			fmt.Fprintf(&b, "| %s | %s | %.2f (%.2f to %.2f) | %.0f | %.0f | %.0f | %.1f | %.1f | %.1f | %.0f | %s | %.0f |\n", work, server, mid, low, high,
				m(func(p rig.Point) float64 { return p.CPUPerRequest }), m(func(p rig.Point) float64 { return p.RequestsPerSecond }),
				m(func(p rig.Point) float64 { return p.RecordsPerSecond }), m(func(p rig.Point) float64 { return p.P50 }), m(p99.of),
				m(func(p rig.Point) float64 { return p.P999 }), m(memory.of)/(1<<20), allocs, m(func(p rig.Point) float64 { return p.BrokerPerRequest }))
		}
	}
	return b.String()
}

func pictures(points []rig.Point) map[string]string {
	closed, open, disk := worksOf(points)
	bars := func(title, unit string, works []string, of func(rig.Point) float64) string {
		c := chart.Bars{Title: title, Unit: unit, Groups: works}
		for _, server := range order {
			s := chart.Series{Name: server}
			any := false
			for _, work := range works {
				v := chart.Missing()
				if list := values(points, work, server, of); len(list) > 0 {
					v.Mid, v.Low, v.High = spread(list)
					any = true
				}
				s.Values = append(s.Values, v)
			}
			if any {
				c.Series = append(c.Series, s)
			}
		}
		return c.SVG()
	}
	made := map[string]string{}
	if len(closed) > 0 {
		made["cpu.svg"] = bars("CPU of the server, closed loop, 128 connections", "µs a record", closed, cpu.of)
		made["throughput.svg"] = bars("Records a second on this machine, closed loop", "records/s", closed, func(p rig.Point) float64 { return p.RecordsPerSecond })
		made["memory.svg"] = bars("Peak memory, closed loop", "MiB", closed, func(p rig.Point) float64 { return float64(p.PeakRSS) / (1 << 20) })
	}
	if len(open) > 0 {
		made["cpu-part-load.svg"] = bars("CPU of the server at part load", "µs a request", open, func(p rig.Point) float64 { return p.CPUPerRequest })
		made["p50-part-load.svg"] = bars("Latency from the due time, median", "ms", open, func(p rig.Point) float64 { return p.P50 })
		made["p99-part-load.svg"] = bars("Latency from the due time, 99th percentile", "ms", open, p99.of)
	}
	if len(disk) > 0 {
		made["cpu-on-disk.svg"] = bars("CPU of the server, answered when on disk, Kafka away", "µs a record", disk, cpu.of)
	}
	return made
}
