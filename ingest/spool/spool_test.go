package spool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func mustOpen(t *testing.T, cfg Config) *Log {
	t.Helper()
	if cfg.MinFreeBytes == 0 {
		cfg.MinFreeBytes = -1
	}
	l, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(context.Background()) })
	return l
}

func mustClose(t *testing.T, l *Log) {
	t.Helper()
	err := l.Close(context.Background())
	if err != nil {
		t.Fatal(err)
	}
}

func entry(topic, key, value string) Entry {
	return Entry{Topic: topic, Key: []byte(key), Value: []byte(value)}
}

func mustAppend(t *testing.T, l *Log, entries ...Entry) {
	t.Helper()
	err := l.Append(t.Context(), entries)
	if err != nil {
		t.Fatal(err)
	}
}

func next(t *testing.T, l *Log, limit Limit) []Record {
	t.Helper()
	recs, err := l.Next(limit, nil)
	if err != nil {
		t.Fatal(err)
	}
	return recs
}

func values(recs []Record) string {
	var b strings.Builder
	for i, r := range recs {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.Write(r.Value)
	}
	return b.String()
}

func wantValues(t *testing.T, recs []Record, want string) {
	t.Helper()
	if got := values(recs); got != want {
		t.Fatalf("records %q, want %q", got, want)
	}
}

func segmentFiles(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*"+segmentSuffix))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestRoundTrip(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made", "spool")
	l := mustOpen(t, Config{Dir: dir})
	at := time.UnixMilli(1_790_000_000_123)
	full := Entry{
		Topic: "otlp_logs", Key: []byte("acme/service_account/1"), Value: []byte{0, 1, 2, 0xff}, At: at,
		Headers: []Header{{"flowstate-org", []byte("acme")}, {"empty", []byte{}}, {"null", nil}, {"", []byte("x")}},
	}
	mustAppend(t, l, full, Entry{Topic: "t"}, Entry{Topic: "t", Key: []byte{}, Value: []byte{}})
	check := func(recs []Record) {
		t.Helper()
		if len(recs) != 3 {
			t.Fatalf("%d records", len(recs))
		}
		r := recs[0]
		if r.Topic != full.Topic || !bytes.Equal(r.Key, full.Key) || !bytes.Equal(r.Value, full.Value) || !r.At.Equal(at) || len(r.Headers) != 4 {
			t.Fatalf("got %+v", r)
		}
		for i, h := range full.Headers {
			if r.Headers[i].Key != h.Key || !bytes.Equal(r.Headers[i].Value, h.Value) || (r.Headers[i].Value == nil) != (h.Value == nil) {
				t.Fatalf("header %d: %+v", i, r.Headers[i])
			}
		}
		if recs[1].Key != nil || recs[1].Value != nil || recs[2].Key == nil || recs[2].Value == nil {
			t.Fatalf("null and empty confused: %+v", recs[1:])
		}
		if time.Since(recs[1].At) > time.Minute {
			t.Fatalf("enqueued at %v", recs[1].At)
		}
	}
	check(next(t, l, Limit{}))
	wantValues(t, next(t, l, Limit{}), "")
	mustClose(t, l)

	l = mustOpen(t, Config{Dir: dir})
	check(next(t, l, Limit{}))
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Fatalf("directory %v %v", info.Mode(), err)
	}
	for _, f := range segmentFiles(t, dir) {
		info, err = os.Stat(f)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Fatalf("file %v %v", info.Mode(), err)
		}
	}
}

func TestNextCommitRewind(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, Config{Dir: dir, SegmentBytes: 1}) // each batch its own segment
	for i := range 6 {
		mustAppend(t, l, entry([]string{"a", "b"}[i%2], "k", fmt.Sprint(i)))
	}
	if n := len(segmentFiles(t, dir)); n != 6 {
		t.Fatalf("%d segments", n)
	}
	first := next(t, l, Limit{Records: 2})
	wantValues(t, first, "0 1")
	wantValues(t, next(t, l, Limit{Bytes: 6}), "2 3") // 3 bytes each
	l.Rewind()
	wantValues(t, next(t, l, Limit{Bytes: 1}), "0")
	l.Rewind()

	// Topic b is sick: a goes on, b stays in order.
	sick := func(topic string, _ []byte) bool { return topic == "b" }
	recs, err := l.Next(Limit{}, sick)
	if err != nil {
		t.Fatal(err)
	}
	wantValues(t, recs, "0 2 4")
	err = l.Commit(recs)
	if err != nil {
		t.Fatal(err)
	}
	err = l.Commit(recs) // again: nothing happens
	if err != nil {
		t.Fatal(err)
	}
	wantValues(t, next(t, l, Limit{}), "")
	if n := len(segmentFiles(t, dir)); n != 3 {
		t.Fatalf("%d segments after the others were drained", n)
	}
	l.Rewind()
	recs = next(t, l, Limit{})
	wantValues(t, recs, "1 3 5")
	mustAppend(t, l, entry("a", "k", "6"))
	recs = append(recs, next(t, l, Limit{})...)
	wantValues(t, recs, "1 3 5 6")
	err = l.Commit(recs)
	if err != nil {
		t.Fatal(err)
	}
	mustClose(t, l)
	if files, _ := os.ReadDir(dir); len(files) != 1 {
		t.Fatalf("a drained directory holds %v", files)
	}
}

func TestCommitSurvivesReopening(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, Config{Dir: dir})
	for i := range 20 {
		mustAppend(t, l, entry("t", "k", fmt.Sprint(i)))
	}
	recs := next(t, l, Limit{})
	var odd []Record
	for i, r := range recs {
		if i%2 == 1 || i < 4 {
			odd = append(odd, r)
		}
	}
	err := l.Commit(odd)
	if err != nil {
		t.Fatal(err)
	}
	mustClose(t, l)

	l = mustOpen(t, Config{Dir: dir})
	wantValues(t, next(t, l, Limit{}), "4 6 8 10 12 14 16 18")
	mustClose(t, l)

	// A damaged ack file costs duplicates, nothing else.
	acks, _ := filepath.Glob(filepath.Join(dir, "*"+ackSuffix))
	if len(acks) != 1 {
		t.Fatalf("ack files %v", acks)
	}
	flipBit(t, acks[0], 22)
	l = mustOpen(t, Config{Dir: dir})
	if n := len(next(t, l, Limit{})); n != 20 {
		t.Fatalf("%d records, want all 20", n)
	}
}

func flipBit(t *testing.T, path string, off int64) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[off] ^= 1 << (off % 8)
	err = os.WriteFile(path, b, 0o600)
	if err != nil {
		t.Fatal(err)
	}
}

func TestDrainedActiveSegmentGoesWhenIdle(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, Config{Dir: dir})
	mustAppend(t, l, entry("t", "k", "v"))
	err := l.Commit(next(t, l, Limit{}))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { return len(segmentFiles(t, dir)) == 0 })
	mustAppend(t, l, entry("t", "k", "w"))
	wantValues(t, next(t, l, Limit{}), "w")
}

// eventually waits for what the log's own goroutine does once a second.
func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(10 * time.Second); !ok(); {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("it did not happen")
		}
	}
}

func TestManyAppendersShareSyncs(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, Config{Dir: dir, SegmentBytes: 64 << 10})
	const workers, each = 32, 50
	var drained sync.Map
	stop := make(chan struct{})
	var drain sync.WaitGroup
	drain.Go(func() { // beside the appenders: half is committed as it comes
		for done := false; !done; {
			select {
			case <-l.Wake():
			case <-stop:
				done = true
			}
			recs, err := l.Next(Limit{Records: 100}, nil)
			if err != nil {
				t.Error(err)
			}
			err = l.Commit(recs)
			if err != nil {
				t.Error(err)
			}
			for _, r := range recs {
				if _, twice := drained.LoadOrStore(string(r.Value), true); twice {
					t.Errorf("%s came twice", r.Value)
				}
			}
			l.Stats()
		}
	})
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				err := l.Append(t.Context(), []Entry{entry("t", "k", fmt.Sprintf("%d-%d-a", w, i)), entry("t", "k", fmt.Sprintf("%d-%d-b", w, i))})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	drain.Wait()
	mustClose(t, l)
	syncs := histogramCount(t, l.metrics.syncs)
	if syncs >= workers*each {
		t.Fatalf("%d syncs for %d calls", syncs, workers*each)
	}
	t.Logf("%d calls, %d syncs", workers*each, syncs)

	l = mustOpen(t, Config{Dir: dir})
	for _, r := range next(t, l, Limit{}) {
		if _, twice := drained.LoadOrStore(string(r.Value), true); twice {
			t.Fatalf("%s came twice", r.Value)
		}
	}
	n := 0
	drained.Range(func(any, any) bool { n++; return true })
	if n != 2*workers*each {
		t.Fatalf("%d records came out, want %d", n, 2*workers*each)
	}
}

func histogramCount(t *testing.T, c prometheus.Collector) uint64 {
	t.Helper()
	reg := prometheus.NewRegistry()
	reg.MustRegister(c)
	m, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	return m[0].GetMetric()[0].GetHistogram().GetSampleCount()
}

func TestParkAndExpire(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	l := mustOpen(t, Config{Dir: dir, MaxAge: time.Hour, Now: func() time.Time { return now }})
	old := entry("t", "k", "old")
	old.At = now.Add(-2 * time.Hour)
	old.Headers = []Header{{"h", []byte("v")}}
	mustAppend(t, l, old, entry("t", "k", "bad"), entry("t", "k", "good"))
	if age := now.Sub(l.Stats().Oldest).Round(time.Minute); age != 2*time.Hour {
		t.Fatalf("oldest record %v", age)
	}
	recs := next(t, l, Limit{})
	wantValues(t, recs, "bad good")
	err := l.Park(recs[:1], "broker says: INVALID_RECORD")
	if err != nil {
		t.Fatal(err)
	}
	l.Rewind()
	wantValues(t, next(t, l, Limit{}), "good")
	if n := testutil.ToFloat64(l.metrics.parked.expired) + testutil.ToFloat64(l.metrics.parked.refused); n != 2 {
		t.Fatalf("%v records counted", n)
	}
	if l.Stats().QuarantineBytes == 0 {
		t.Fatal("the quarantine has no size")
	}

	// The quarantine is drained as a spool is, while the edge runs.
	qdir := filepath.Join(dir, quarantineDir)
	q := mustOpen(t, Config{Dir: qdir})
	parked := next(t, q, Limit{})
	wantValues(t, parked, "old bad")
	if parked[0].Note != "expired" || parked[1].Note != "broker says: INVALID_RECORD" || !parked[0].At.Equal(old.At.Truncate(time.Millisecond)) || len(parked[0].Headers) != 1 {
		t.Fatalf("%+v", parked)
	}
	if err := l.Park(recs[1:], "refused"); !errors.Is(err, ErrLocked) {
		t.Fatalf("got %v", err)
	}
	err = q.Commit(parked)
	if err != nil {
		t.Fatal(err)
	}
	mustClose(t, q)
	if files := segmentFiles(t, qdir); len(files) != 0 {
		t.Fatalf("left: %v", files)
	}
	err = l.Park(recs[1:], "refused")
	if err != nil {
		t.Fatal(err)
	}
	var got []Record
	err = Each(qdir, func(r Record) error { got = append(got, r); return nil })
	if err != nil {
		t.Fatal(err)
	}
	wantValues(t, got, "good")
	mustClose(t, l)
	if files := segmentFiles(t, dir); len(files) != 0 {
		t.Fatalf("left: %v", files)
	}
}
