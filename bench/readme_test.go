package main

import (
	"os"
	"testing"
)

// The README's table is made of the results that are kept, and says nothing else.
func TestReadmeAgreesWithTheResults(t *testing.T) {
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	run, points, err := read("results/goals.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	want, err := withTable(string(text), readmeTable(run, points))
	if err != nil {
		t.Fatal(err)
	}
	if want != string(text) {
		t.Error("README.md says something else than bench/results: go run ./bench -readme")
	}
}

func TestTableHasItsPlace(t *testing.T) {
	got, err := withTable("a\n"+readmeBegin+"old\n"+readmeEnd+"b\n", "new\n")
	if err != nil || got != "a\n"+readmeBegin+"new\n"+readmeEnd+"b\n" {
		t.Errorf("%q %v", got, err)
	}
	for _, text := range []string{"", readmeBegin, readmeEnd + readmeBegin} {
		if _, err := withTable(text, "new\n"); err == nil {
			t.Errorf("%q has a place", text)
		}
	}
}
