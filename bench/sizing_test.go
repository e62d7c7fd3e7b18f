package main

import (
	"encoding/json"
	"math"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"flowstate.inc/sluice/bench/rig"
)

// What the runbook's sizing says was measured is what the kept results say, within a tenth: people buy machines by it.
func TestSizingAgreesWithTheResults(t *testing.T) {
	page, err := os.ReadFile("../deploy/docs/runbook.md")
	if err != nil {
		t.Fatal(err)
	}
	run, goals, err := read("results/goals.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	_, growth, err := read("results/growth.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	var flood struct {
		Lookups float64 `json:"postgres_lookups_of_unknown_keys_per_second"`
	}
	type answers struct {
		Tier  string  `json:"tier"`
		Share float64 `json:"share"`
		P50   float64 `json:"p50_us"`
		P99   float64 `json:"p99_us"`
	}
	var zipf struct {
		Tiers []answers `json:"tiers"`
	}
	lookups(t, map[string]any{"flood": &flood, "zipf": &zipf})
	tier := map[string]answers{}
	for _, a := range zipf.Tiers {
		tier[a.Tier] = a
	}
	page10M, histogram10M := alerts(t, 10_000_000)
	at := func(work string, x float64, of func(rig.Point) float64) float64 {
		return median(slices.DeleteFunc(slices.Clone(growth), func(p rig.Point) bool { return p.X != x }), work, "sluice", of)
	}
	record := func(p rig.Point) float64 { return p.CPUPerRecord }
	request := func(p rig.Point) float64 { return p.CPUPerRequest }
	peak := func(p rig.Point) float64 { return float64(p.PeakRSS) / (1 << 20) }
	more := func(rules float64) float64 { return (at("rules", rules, request) - at("rules", 0, request)) / 1000 }
	for _, c := range []struct {
		row  string // of the table, with a group for each figure
		want []float64
	}{
		{`processor, 20 gzipped records a request \| (\S+) µs a record, (\S+) µs a request`,
			[]float64{median(goals, "pb.gz-20", "sluice", record), median(goals, "pb.gz-20", "sluice", request)}},
		{`processor, 1 record a request \| (\S+) µs a record`, []float64{median(goals, "pb-1", "sluice", record)}},
		{`processor, Kafka away, all to the spool \| (\S+) µs a record`, []float64{at("spool", 2, record)}},
		{`policy rules that do not match \| (\S+) ms a request with 100 rules, (\S+) ms with 1 000`, []float64{more(100), more(1000)}},
		{`memory, at rest, 100, 1 000, 10 000 connections \| ([^,]+), ([^,]+), ([^,]+), (\S+) MiB`,
			[]float64{at("connections", 1, peak), at("connections", 100, peak), at("connections", 1000, peak), at("connections", 10000, peak)}},
		{`\(10 000 keys: (\S+) MiB in all\)`, []float64{at("keys", 10000, peak)}},
		{`a page of any filter within (\S+) ms, its histogram within (\S+) ms`, []float64{page10M, histogram10M}},
		{`(\S+)/s in a flood of 5 000 unknown keys/s`, []float64{flood.Lookups}},
		{`(\S+) % from memory \(p50 (\S+) µs\), (\S+) % from Redis \(p50 (\S+) ms\), the rest from PostgreSQL \(p50 (\S+) ms\); 99 % under (\S+) ms`,
			[]float64{100 * tier["l1"].Share, tier["l1"].P50, 100 * tier["redis"].Share, tier["redis"].P50 / 1000, tier["postgres"].P50 / 1000, tier["all"].P99 / 1000}},
	} {
		m := regexp.MustCompile(c.row).FindStringSubmatch(string(page))
		if m == nil {
			t.Errorf("the runbook's sizing has no %s", c.row)
			continue
		}
		for i, want := range c.want {
			said, err := strconv.ParseFloat(strings.ReplaceAll(m[i+1], " ", ""), 64)
			// A figure of one digit says no more than that.
			if err != nil || math.Abs(said-want) > max(.1*want, .05) {
				t.Errorf("the runbook says %q, bench/results say %.3g: %s", m[i+1], want, m[0])
			}
		}
	}
	if day := run.At.Format("2 Jan 2006"); !strings.Contains(string(page), "Measured on "+day+" by `go run ./bench`") {
		t.Errorf("the runbook's sizing is not of %s, as bench/results are", day)
	}
}

// lookups reads what bench/lookups has measured, by what each line is about.
func lookups(t *testing.T, into map[string]any) {
	t.Helper()
	data, err := os.ReadFile("results/lookups.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		var head struct {
			What string `json:"what"`
		}
		if err := json.Unmarshal([]byte(line), &head); err != nil {
			t.Fatal(err)
		}
		if v := into[head.What]; v != nil {
			if err := json.Unmarshal([]byte(line), v); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// alerts are the longest times that the questions of a page of Alerts and of its histogram took, in milliseconds, with n alerts in PostgreSQL.
func alerts(t *testing.T, n int) (page, histogram float64) {
	t.Helper()
	data, err := os.ReadFile("results/alerts.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		var a struct {
			Alerts       int     `json:"alerts"`
			Question     string  `json:"question"`
			Milliseconds float64 `json:"milliseconds"`
		}
		if err := json.Unmarshal([]byte(line), &a); err != nil {
			t.Fatal(err)
		}
		switch {
		case a.Alerts != n || strings.HasPrefix(a.Question, "prune"):
		case strings.HasPrefix(a.Question, "histogram"):
			histogram = max(histogram, a.Milliseconds)
		default:
			page = max(page, a.Milliseconds)
		}
	}
	return page, histogram
}
