package main

import (
	"io"
	"os"
	"testing"
	"time"
)

// TestLookups runs all of it small: the shares add up, L1 is bounded, and under the flood every good request succeeds while the database is
// asked no more for unknown keys than its budget says.
func TestLookups(t *testing.T) {
	o := options{postgres: os.Getenv("TEST_DATABASE_URL"), redis: os.Getenv("TEST_REDIS_URL"), keys: 5000, lookups: 30_000, l1: 500, zipf: 1.1,
		unknown: 5000, good: 500, flood: 3 * time.Second}
	if o.postgres == "" || o.redis == "" {
		if os.Getenv("SLUICE_REQUIRE_SERVICES") == "1" {
			t.Fatal("TEST_DATABASE_URL and TEST_REDIS_URL are required")
		}
		t.Skip("TEST_DATABASE_URL and TEST_REDIS_URL are not set")
	}
	r, err := measure(t.Context(), o, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", r)
	var share float64
	for _, tier := range r.Zipf.Tiers[:3] {
		share += tier.Share
		if tier.Answers == 0 {
			t.Errorf("%s was never asked", tier.Tier)
		}
	}
	if share < 0.95 || share > 1.05 { // several look-ups of one key share a flight
		t.Errorf("the tiers answer %v of the look-ups", share)
	}
	if r.Memory.Held > o.l1*11/10 {
		t.Errorf("L1 holds %d records, not %d", r.Memory.Held, o.l1)
	}
	f := r.Flood
	const burst = 2 // seconds
	if f.GoodFailed > 0 || f.Good == 0 || f.GoodCold == 0 || f.Answers["accepted"] > 0 || f.Unknown < int64(float64(o.unknown)*o.flood.Seconds()/2) {
		t.Errorf("the flood: %+v", f)
	}
	if most := int64(float64(f.Budget) * (o.flood.Seconds() + burst + 1)); f.Misses > most {
		t.Errorf("PostgreSQL was asked for %d unknown keys, more than %d", f.Misses, most)
	}
}
