package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"flowstate.inc/sluice/bench/rig"
)

// The lines of README.md between which the table stands.
const (
	readmeBegin = "<!-- made by go run ./bench -readme: begin -->\n"
	readmeEnd   = "<!-- made by go run ./bench -readme: end -->\n"
)

// updateReadme puts the table of what was measured before into file.
func updateReadme(out, file string) error {
	run, points, err := read(filepath.Join(out, "goals.jsonl"))
	if err != nil {
		return err
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	updated, err := withTable(string(text), readmeTable(run, points))
	if err != nil {
		return err
	}
	return os.WriteFile(file, []byte(updated), 0o644)
}

// withTable is text with the table between the two lines.
func withTable(text, table string) (string, error) {
	before, rest, ok := strings.Cut(text, readmeBegin)
	_, after, ended := strings.Cut(rest, readmeEnd)
	if !ok || !ended {
		return "", errors.New("the README has no place for the table")
	}
	return before + readmeBegin + table + readmeEnd + after, nil
}

// readmeTable says in a few columns what each work costs each server that forwards it to Kafka.
func readmeTable(run rig.Run, points []rig.Point) string {
	var b strings.Builder
	b.WriteString("| work | Sluice | Collector | floor | Sluice / Collector |\n|---|---|---|---|---|\n")
	closed, open, _ := worksOf(points)
	for _, work := range slices.Concat(closed, open) {
		ours, theirs, least := median(points, work, sluice, cpu.of), median(points, work, collector, cpu.of), median(points, work, floor, cpu.of)
		fmt.Fprintf(&b, "| `%s` | %.1f | %.1f | %.1f | %.2f |\n", work, ours, theirs, least, ours/theirs)
	}
	fmt.Fprintf(&b, "\nµs of CPU a record, of the server process alone; acks=all, answered after. Measured %s at %s on %d cores of %s with Kafka %s and Collector %s.\n",
		run.At.Format("2006-01-02"), run.Commit, run.Cores, run.Machine, run.Versions["kafka"], run.Versions["collector"])
	return b.String()
}
