package spool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestLimits(t *testing.T) {
	dir := t.TempDir()
	reg := prometheus.NewRegistry()
	l := mustOpen(t, Config{Dir: dir, MaxBytes: 4000, SegmentBytes: 1000, MaxPendingBytes: 1500, Registerer: reg})
	refuse := func(want error, entries ...Entry) {
		t.Helper()
		err := l.Append(t.Context(), entries)
		if !errors.Is(err, want) {
			t.Fatalf("got %v, want %v", err, want)
		}
	}
	big := strings.Repeat("x", 600)
	refuse(ErrTooLarge, entry("t", "k", big), entry("t", "k", big), entry("t", "k", big))
	refuse(ErrTooLarge, Entry{Topic: "t", Value: make([]byte, MaxRecordBytes)})
	mustAppend(t, l)
	n := 0
	for ; l.Append(t.Context(), []Entry{entry("t", "k", big)}) == nil; n++ {
	}
	if n < 4 || n > 5 {
		t.Fatalf("%d records went in", n)
	}
	refuse(ErrFull, entry("t", "k", big))
	if st := l.Stats(); st.Bytes > 4000 || st.Records != int64(n) || st.Capacity != 4000 {
		t.Fatalf("%+v", st)
	}
	err := testutil.GatherAndCompare(reg, strings.NewReader(fmt.Sprintf(`
# HELP sluice_spool_records Records that wait to be delivered.
# TYPE sluice_spool_records gauge
sluice_spool_records %d
# HELP sluice_spool_refused_total Calls that the spool did not keep, by reason; write_failed counts batches.
# TYPE sluice_spool_refused_total counter
sluice_spool_refused_total{reason="busy"} 0
sluice_spool_refused_total{reason="caller_gone"} 0
sluice_spool_refused_total{reason="disk_low"} 0
sluice_spool_refused_total{reason="full"} 2
sluice_spool_refused_total{reason="too_large"} 2
sluice_spool_refused_total{reason="write_failed"} 0
`, n)), "sluice_spool_records", "sluice_spool_refused_total")
	if err != nil {
		t.Fatal(err)
	}
	// What is drained makes room.
	err = l.Commit(next(t, l, Limit{}))
	if err != nil {
		t.Fatal(err)
	}
	mustAppend(t, l, entry("t", "k", big))

	_, err = Open(Config{Dir: t.TempDir(), Registerer: reg})
	if err == nil {
		t.Fatal("the same metrics were registered twice")
	}
	mustClose(t, l)
	refuse(ErrClosed, entry("t", "k", "v"))
	if n, _ := testutil.GatherAndCount(reg); n != 0 {
		t.Fatalf("%d metrics outlive the log", n)
	}

	l = mustOpen(t, Config{Dir: t.TempDir(), MinFreeBytes: 1 << 60})
	refuse(ErrFull, entry("t", "k", "v"))
}

func TestOpenRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	err := os.WriteFile(file, nil, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{file, filepath.Join(file, "below"), "/proc/no-such-place"} {
		_, err = Open(Config{Dir: dir})
		if err == nil {
			t.Fatalf("%s was opened", dir)
		}
	}
}

func TestLock(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, Config{Dir: dir})
	_, err := Open(Config{Dir: dir})
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), fmt.Sprintf("process %d on ", os.Getpid())) {
		t.Fatalf("got %v", err)
	}
	mustClose(t, l)
	mustClose(t, mustOpen(t, Config{Dir: dir}))
}

func TestCallerGone(t *testing.T) {
	hold, entered := make(chan struct{}), make(chan struct{}, 8)
	l, err := open(Config{Dir: t.TempDir(), MinFreeBytes: -1, MaxPendingBytes: 4096}, func(f *os.File) error {
		entered <- struct{}{}
		<-hold
		return datasync(f)
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	res := make(chan error, 1)
	go func() { res <- l.Append(ctx, []Entry{entry("t", "k", "0")}) }()
	<-entered
	cancel()
	if err := <-res; !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	if recs := next(t, l, Limit{}); len(recs) != 0 {
		t.Fatal("a record came out before it was synced")
	}
	// The disk hangs: what waits is bounded.
	go func() { res <- l.Append(context.Background(), []Entry{entry("t", "k", strings.Repeat("x", 3000))}) }()
	eventually(t, func() bool { l.mu.Lock(); defer l.mu.Unlock(); return l.group != nil })
	if err := l.Append(t.Context(), []Entry{entry("t", "k", strings.Repeat("y", 3000))}); !errors.Is(err, ErrBusy) {
		t.Fatalf("got %v", err)
	}
	// Close waits as long as it may and no longer; what was taken is finished afterwards.
	if err := l.Close(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	close(hold)
	if err := <-res; err != nil {
		t.Fatal(err)
	}
	<-l.stopped
	if err := l.Append(ctx, []Entry{entry("t", "k", "v")}); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
}

func TestSyncErrorFailsTheBatchAndTheFile(t *testing.T) {
	dir := t.TempDir()
	broken := errors.New("disk on fire")
	fail := false
	l, err := open(Config{Dir: dir, MinFreeBytes: -1}, func(f *os.File) error {
		if fail {
			return broken
		}
		return datasync(f)
	})
	if err != nil {
		t.Fatal(err)
	}
	mustAppend(t, l, entry("t", "k", "0"))
	fail = true
	for range 3 {
		err = l.Append(t.Context(), []Entry{entry("t", "k", "lost")})
		if !errors.Is(err, broken) {
			t.Fatalf("got %v", err)
		}
	}
	fail = false
	mustAppend(t, l, entry("t", "k", "1"))
	if n := len(segmentFiles(t, dir)); n != 2 {
		t.Fatalf("%d segments, want the first and the one after the error", n)
	}
	wantValues(t, next(t, l, Limit{}), "0 1")
	mustClose(t, l)
	l = mustOpen(t, Config{Dir: dir})
	wantValues(t, next(t, l, Limit{}), "0 1")
}
