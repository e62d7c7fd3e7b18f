package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// With something away the same warning comes with every request: the log says so a few times, and how often it has not.
func TestLogIsCalm(t *testing.T) {
	var out bytes.Buffer
	log, level, err := newLogger(&out, "info", "json")
	if err != nil {
		t.Fatal(err)
	}
	h := log.With("node", "a").Handler() // the wrapped one keeps the counts
	now := time.Date(2026, 11, 28, 3, 0, 0, 0, time.UTC)
	say := func(level slog.Level, what string) {
		t.Helper()
		if err := h.Handle(context.Background(), slog.NewRecord(now, level, what, 0)); err != nil {
			t.Fatal(err)
		}
	}
	lines := func() []map[string]any {
		t.Helper()
		var all []map[string]any
		for _, l := range strings.Split(strings.TrimSpace(out.String()), "\n") {
			var m map[string]any
			if err := json.Unmarshal([]byte(l), &m); err != nil {
				t.Fatalf("%q: %v", l, err)
			}
			all = append(all, m)
		}
		out.Reset()
		return all
	}
	calmLines := calmed["request refused"]
	for range 500 {
		say(slog.LevelWarn, "request refused")
	}
	for range 50 { // each names something else
		say(slog.LevelWarn, "something else")
	}
	if got := lines(); len(got) != calmLines+50 || got[calmLines]["msg"] != "something else" || got[0]["node"] != "a" {
		t.Errorf("%d lines: %v", len(got), got)
	}
	for range 30 {
		say(slog.LevelError, "a message is in the quarantine")
		say(slog.LevelInfo, "kafka broker is back")
	}
	if got := lines(); len(got) != 60 {
		t.Errorf("%d lines of errors and news, want all 60", len(got))
	}
	now = now.Add(calmTime)
	say(slog.LevelWarn, "request refused")
	say(slog.LevelWarn, "request refused")
	got := lines()
	if len(got) != 2 || got[0]["left_out"] != float64(500-calmLines) || got[1]["left_out"] != nil {
		t.Errorf("after a while: %v", got)
	}

	level.Set(slog.LevelDebug)
	for range 3 * calmLines {
		say(slog.LevelWarn, "request refused")
	}
	if got := lines(); len(got) != 3*calmLines {
		t.Errorf("%d lines at debug, want all %d", len(got), 3*calmLines)
	}

	log.Warn("waits", "wait", 1500*time.Millisecond, "error", errors.New("away"))
	redisLog{log}.Printf(context.Background(), "redis: connection pool: failed to dial after %d attempts", 5)
	got = lines()
	if got[0]["wait"] != "1.5s" || got[0]["error"] != "away" || got[1]["said"] != "redis: connection pool: failed to dial after 5 attempts" {
		t.Errorf("%v", got)
	}
}
