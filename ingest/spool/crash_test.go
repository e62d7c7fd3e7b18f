//go:build unix

package spool

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The test binary runs itself as the process that is killed.
func TestMain(m *testing.M) {
	if job := os.Getenv("SPOOL_TEST_CHILD"); job != "" {
		child(job, os.Getenv("SPOOL_TEST_DIR"), os.Getenv("SPOOL_TEST_ROUND"))
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func startChild(t *testing.T, job, dir string, round int) (*exec.Cmd, io.Reader) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "SPOOL_TEST_CHILD="+job, "SPOOL_TEST_DIR="+dir, fmt.Sprintf("SPOOL_TEST_ROUND=%d", round))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	err = cmd.Start()
	if err != nil {
		t.Fatal(err)
	}
	return cmd, out
}

// child appends until it is killed or the disk is full. It prints "ack ID" behind each call that was acknowledged and "done ID/i" in front of each commit.
func child(job, dir, round string) {
	fail := func(err error) {
		fmt.Fprintln(os.Stderr, "child:", err)
		os.Exit(3)
	}
	if job == "limit" {
		signal.Ignore(syscall.SIGXFSZ)
		err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 100_000, Max: 100_000})
		if err != nil {
			fail(err)
		}
	}
	l, err := Open(Config{Dir: dir, SegmentBytes: 1 << 20, MinFreeBytes: -1})
	if err != nil {
		fail(err)
	}
	var out sync.Mutex
	say := func(line string) {
		out.Lock()
		defer out.Unlock()
		os.Stdout.WriteString(line + "\n")
	}
	if job == "kill" {
		go func() {
			for range l.Wake() {
				recs, err := l.Next(Limit{Records: 20}, nil)
				if err != nil {
					fail(err)
				}
				var some []Record
				for _, r := range recs {
					if rand.IntN(3) > 0 {
						say("done " + string(r.Key))
						some = append(some, r)
					}
				}
				err = l.Commit(some)
				if err != nil {
					fail(err)
				}
			}
		}()
	}
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for n, refused := 0, 0; refused < 5; n++ {
				id := fmt.Sprintf("%s.%d.%d", round, w, n)
				size := rand.IntN(2000)
				if rand.IntN(10) == 0 {
					size = rand.IntN(200_000)
				}
				err := l.Append(context.Background(), childCall(id, size))
				if err != nil {
					refused++
					say("refused " + err.Error())
					continue
				}
				say("ack " + id)
			}
		})
	}
	wg.Wait() // a process that is gone without Close
}

// childCall makes three entries whose values can be checked from themselves.
func childCall(id string, size int) []Entry {
	var entries []Entry
	for i := range 3 {
		key := id + "/" + strconv.Itoa(i)
		entries = append(entries, Entry{Topic: "t", Key: []byte(key), Value: []byte(key + strings.Repeat(string(rune('a'+i)), size/3))})
	}
	return entries
}

type childLedger struct{ acked, done map[string]bool }

func (c *childLedger) read(r io.Reader, each func(n int)) int {
	sc, refused := bufio.NewScanner(r), 0
	for n := 0; sc.Scan(); {
		verb, id, _ := strings.Cut(sc.Text(), " ")
		switch verb {
		case "ack":
			c.acked[id] = true
			n++
			each(n)
		case "done":
			c.done[id] = true
		case "refused":
			refused++
		}
	}
	return refused
}

// check drains what is in dir and looks for every acknowledged record. It returns the number of calls that were not acknowledged but are there.
func (c *childLedger) check(t *testing.T, dir string) int {
	t.Helper()
	var recs []Record
	err := Each(dir, func(r Record) error { recs = append(recs, r); return nil })
	if err != nil {
		t.Fatal(err)
	}
	l := mustOpen(t, Config{Dir: dir})
	defer mustClose(t, l)
	opened := next(t, l, Limit{})
	if len(opened) != len(recs) {
		t.Fatalf("Each saw %d records, Next %d", len(recs), len(opened))
	}
	there := make(map[string]int)
	seen := make(map[string]bool)
	for _, r := range opened {
		key := string(r.Key)
		id, i, _ := strings.Cut(key, "/")
		letter := string('a' + rune(i[0]-'0'))
		if rest, ok := strings.CutPrefix(string(r.Value), key); !ok || strings.Trim(rest, letter) != "" {
			t.Fatalf("record %s has another's value", key)
		}
		if seen[key] {
			t.Fatalf("record %s is there twice", key)
		}
		seen[key] = true
		there[id]++
	}
	for id := range c.acked {
		for i := range 3 {
			if key := fmt.Sprintf("%s/%d", id, i); !seen[key] && !c.done[key] {
				t.Errorf("acknowledged record %s is gone", key)
			}
		}
	}
	extra := 0
	for id, n := range there {
		for i := range 3 {
			if key := fmt.Sprintf("%s/%d", id, i); !seen[key] && c.done[key] {
				n++
			}
		}
		if n != 3 {
			t.Errorf("call %s is there with %d of 3 records", id, n)
		}
		if !c.acked[id] {
			extra++
		}
	}
	return extra
}

// SLUICE_SPOOL_KILLS=2000 makes it long.
func TestKill(t *testing.T) {
	rounds := 50
	if s := os.Getenv("SLUICE_SPOOL_KILLS"); s != "" {
		rounds, _ = strconv.Atoi(s)
	}
	dir := t.TempDir()
	ledger := &childLedger{acked: map[string]bool{}, done: map[string]bool{}}
	extra := 0
	for round := range rounds {
		cmd, out := startChild(t, "kill", dir, round)
		after := 1 + rand.IntN(60)
		ledger.read(out, func(n int) {
			if n == after {
				cmd.Process.Kill()
			}
		})
		err := cmd.Wait()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || !exit.Sys().(syscall.WaitStatus).Signaled() {
			t.Fatalf("the child was not killed: %v", err)
		}
		if round%10 == 9 || round == rounds-1 {
			extra = ledger.check(t, dir)
		}
	}
	t.Logf("%d kills: %d calls acknowledged, %d records committed, %d whole calls of the rest not acknowledged", rounds, len(ledger.acked), len(ledger.done), extra)
}

// Files may not grow over 100 kB: writes are cut short in the middle.
func TestFileSizeLimit(t *testing.T) {
	dir := t.TempDir()
	ledger := &childLedger{acked: map[string]bool{}, done: map[string]bool{}}
	cmd, out := startChild(t, "limit", dir, 0)
	refused := ledger.read(out, func(int) {})
	err := cmd.Wait()
	if err != nil {
		t.Fatal(err)
	}
	if refused == 0 || len(ledger.acked) == 0 {
		t.Fatalf("%d calls refused, %d acknowledged", refused, len(ledger.acked))
	}
	extra := ledger.check(t, dir)
	if extra != 0 {
		t.Errorf("%d calls were refused and kept", extra)
	}
	infos, err := Verify(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range infos {
		if !info.OK() || info.TornBytes != 0 {
			t.Errorf("%+v", info)
		}
	}
	t.Logf("%d calls acknowledged, %d refused, %d segments", len(ledger.acked), refused, len(infos))
}

// A full disk refuses, keeps what it took, can be drained, and then takes more.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	err := mountTmpfs(dir)
	if err != nil {
		t.Skip("no tmpfs of our own without privilege:", err)
	}
	t.Cleanup(func() { unmount(dir) })
	l := mustOpen(t, Config{Dir: filepath.Join(dir, "s"), SegmentBytes: 128 << 10})
	value := strings.Repeat("v", 10_000)
	n := 0
	for ; ; n++ {
		err = l.Append(t.Context(), []Entry{entry("t", "k", value)})
		if err != nil {
			break
		}
	}
	if !errors.Is(err, syscall.ENOSPC) || n < 50 {
		t.Fatalf("%d records, then %v", n, err)
	}
	recs := next(t, l, Limit{Records: n / 2})
	err = l.Commit(recs) // whole segments go; the ack file of the last one may not fit
	if err != nil && !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	mustAppend(t, l, entry("t", "k", value))
	rest := next(t, l, Limit{})
	if len(recs)+len(rest) != n+1 {
		t.Fatalf("%d records came out, %d went in", len(recs)+len(rest), n+1)
	}
	mustClose(t, l)
}

// A second process is told who has the directory.
func TestLockBetweenProcesses(t *testing.T) {
	dir := t.TempDir()
	cmd, out := startChild(t, "kill", dir, 0)
	buf := make([]byte, 1)
	_, err := out.Read(buf) // it has begun
	if err != nil {
		t.Fatal(err)
	}
	_, err = Open(Config{Dir: dir})
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), fmt.Sprintf("process %d on ", cmd.Process.Pid)) {
		t.Fatalf("got %v", err)
	}
	_, err = Verify(dir) // which needs no lock
	if err != nil {
		t.Fatal(err)
	}
	cmd.Process.Kill()
	go io.Copy(io.Discard, out)
	cmd.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	l, err := Open(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	err = l.Close(ctx)
	if err != nil {
		t.Fatal(err)
	}
}
