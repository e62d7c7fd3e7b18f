package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	dto "github.com/prometheus/client_model/go"
)

var (
	counted = regexp.MustCompile(`increase\((sluice_\w+)(?:\{([^}]*)\})?\[`)
	matcher = regexp.MustCompile(`(\w+)(=~|=)"([^"]*)"`)
)

// TestAlertsSeeTheFirstEvent holds every series whose increase an alert looks at to being there from the start: of a series that begins at 1 no increase
// is seen, so the alert would miss the one event that it is for.
func TestAlertsSeeTheFirstEvent(t *testing.T) {
	_, samples := registered(t)
	rules, err := os.ReadFile(filepath.Join(repositoryRoot, "deploy/prometheus/alerts.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	found := counted.FindAllStringSubmatch(string(rules), -1)
	if len(found) < 10 {
		t.Fatalf("only %d increases in alerts.yaml", len(found))
	}
	for _, m := range found {
		if n := matching(samples, m[1], m[2]); n == 0 {
			t.Errorf("%s{%s} does not exist before its first event", m[1], m[2])
		}
	}
	if n := matching(samples, "sluice_ingest_requests_total", `code="500"`); n != 6 {
		t.Errorf("a panic can be counted for %d of 6 kinds of requests from the start", n)
	}
}

// matching counts the series of a metric that a selector's matchers let through; those that negate are left out.
func matching(samples []*dto.MetricFamily, name, selector string) int {
	i := slices.IndexFunc(samples, func(f *dto.MetricFamily) bool { return f.GetName() == name })
	if i < 0 {
		return 0
	}
	n := 0
	for _, series := range samples[i].GetMetric() {
		labels := map[string]string{}
		for _, l := range series.GetLabel() {
			labels[l.GetName()] = l.GetValue()
		}
		fits := func(m []string) bool {
			if m[2] == "=" {
				return labels[m[1]] == m[3]
			}
			return regexp.MustCompile("^(?:" + m[3] + ")$").MatchString(labels[m[1]])
		}
		if !slices.ContainsFunc(matcher.FindAllStringSubmatch(selector, -1), func(m []string) bool { return !fits(m) }) {
			n++
		}
	}
	return n
}
