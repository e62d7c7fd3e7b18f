package spool

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

// A made segment is one segment file of a closed log and the places of its frames.
type made struct {
	name   string
	bytes  []byte
	starts []int // of the frames, and the end
}

// makeSegment appends the calls, each a list of values, and returns the one segment that they are in.
func makeSegment(t testing.TB, calls ...[]string) made {
	t.Helper()
	dir := t.TempDir()
	l, err := Open(Config{Dir: dir, MinFreeBytes: -1})
	if err != nil {
		t.Fatal(err)
	}
	for _, call := range calls {
		var entries []Entry
		for _, v := range call {
			entries = append(entries, entry("topic", "key", v))
		}
		err = l.Append(t.Context(), entries)
		if err != nil {
			t.Fatal(err)
		}
	}
	s := l.segs[0]
	err = l.Close(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(s.path)
	if err != nil {
		t.Fatal(err)
	}
	m := made{name: s.name(), bytes: b}
	sc := scanner{r: bytes.NewReader(b), salt: s.salt, off: segmentHeaderSize, end: int64(len(b)), next: s.first}
	for {
		m.starts = append(m.starts, int(sc.off))
		if _, err = sc.scan(); err != nil {
			return m
		}
	}
}

// buildSegment is makeSegment without a log: the same bytes each time.
func buildSegment(first uint64, values ...string) made {
	const salt = 9
	m := made{name: segmentName(first, salt), bytes: appendSegmentHeader(nil, first, salt, timeZero)}
	for _, v := range values {
		m.starts = append(m.starts, len(m.bytes))
		e := entry("topic", "key", v)
		m.bytes = appendFrame(m.bytes, &e, "", 0, 0)
	}
	m.starts = append(m.starts, len(m.bytes))
	stampFrames(m.bytes[segmentHeaderSize:], salt, first)
	return m
}

func (m made) write(t testing.TB, dir string, b []byte) {
	t.Helper()
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, m.name), b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// drain opens dir, returns the values of all records in it and closes it. It does not sync, because it is called a thousand times.
func drain(t *testing.T, dir string) (string, *metrics) {
	t.Helper()
	l, err := open(Config{Dir: dir, MinFreeBytes: -1}, func(*os.File) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	got := values(next(t, l, Limit{}))
	mustClose(t, l)
	return got, l.metrics
}

func TestTailCutAnywhere(t *testing.T) {
	m := makeSegment(t, []string{"0"}, []string{"1"}, []string{"2"}, []string{"3"}, []string{"4"})
	n := len(m.starts) - 1
	for cut := range len(m.bytes) + 1 {
		whole := 0
		for whole < n && m.starts[whole+1] <= cut {
			whole++
		}
		want := strings.Join([]string{"0", "1", "2", "3", "4"}[:whole], " ")
		dir := t.TempDir()
		m.write(t, dir, m.bytes[:cut])
		got, mt := drain(t, dir)
		if got != want {
			t.Fatalf("cut at %d: %q, want %q", cut, got, want)
		}
		torn := cut != 0 && cut != m.starts[whole] // an empty file is one that was only made
		if v := testutil.ToFloat64(mt.tornTails); (v == 1) != torn {
			t.Fatalf("cut at %d: %v torn tails", cut, v)
		}
		if v := testutil.ToFloat64(mt.damagedRecords); v != 0 {
			t.Fatalf("cut at %d: %v damaged", cut, v)
		}
		// It was cut, so the second opening has nothing to say, and the directory takes more.
		l := mustOpen(t, Config{Dir: dir})
		if v := testutil.ToFloat64(l.metrics.tornTails); v != 0 {
			t.Fatalf("cut at %d: torn again", cut)
		}
		mustAppend(t, l, entry("t", "k", "more"))
		wantValues(t, next(t, l, Limit{}), strings.TrimSpace(want+" more"))
		mustClose(t, l)
	}
}

// Zeros at the end are pages that were never written.
func TestZeroTail(t *testing.T) {
	m := makeSegment(t, []string{"0"}, []string{"1"})
	for _, n := range []int{1, 35, 36, 37, 4096, 1 << 20} {
		dir := t.TempDir()
		m.write(t, dir, append(slices.Clone(m.bytes), make([]byte, n)...))
		got, mt := drain(t, dir)
		if got != "0 1" || testutil.ToFloat64(mt.tornTails) != 1 || testutil.ToFloat64(mt.damagedBytes) != 0 {
			t.Fatalf("%d zeros: %q", n, got)
		}
	}
}

func TestTornCallIsAllOrNone(t *testing.T) {
	m := makeSegment(t, []string{"0"}, []string{"a", "b", "c"}, []string{"1"}, []string{"d", "e", "f"})
	for cut := segmentHeaderSize; cut < len(m.bytes); cut++ {
		want := ""
		switch {
		case cut >= m.starts[5]:
			want = "0 a b c 1"
		case cut >= m.starts[4]:
			want = "0 a b c"
		case cut >= m.starts[1]:
			want = "0"
		}
		dir := t.TempDir()
		m.write(t, dir, m.bytes[:cut])
		if got, _ := drain(t, dir); got != want {
			t.Fatalf("cut at %d: %q, want %q", cut, got, want)
		}
	}
}

func TestBitFlippedAnywhere(t *testing.T) {
	values := []string{"0", "1", "2", "3", "4"}
	m := makeSegment(t, []string{"0"}, []string{"1", "2"}, []string{"3"}, []string{"4"})
	newer := buildSegment(0xff, "newer")
	for _, newest := range []bool{true, false} {
		for off := range m.bytes {
			hit, from, to := -1, 0, segmentHeaderSize // the head
			for i := range values {
				if off >= m.starts[i] {
					hit, from, to = i, m.starts[i], m.starts[i+1]
				}
			}
			want := slices.Clone(values)
			if hit >= 0 {
				want = slices.Delete(want, hit, hit+1)
			}
			b := slices.Clone(m.bytes)
			b[off] ^= 1 << (off % 8)
			dir := t.TempDir()
			m.write(t, dir, b)
			if !newest {
				newer.write(t, dir, newer.bytes)
				want = append(want, "newer")
			}
			got, mt := drain(t, dir)
			if got != strings.Join(want, " ") {
				t.Fatalf("byte %d flipped, newest %v: %q, want %q", off, newest, got, want)
			}
			if n := testutil.ToFloat64(mt.damagedRecords); n != float64(min(hit, 0)+1) {
				t.Fatalf("byte %d flipped, newest %v: %v records counted", off, newest, n)
			}
			copies, _ := filepath.Glob(filepath.Join(dir, quarantineDir, "damaged-*.bin"))
			if len(copies) != 1 {
				t.Fatalf("byte %d flipped: copies %v", off, copies)
			}
			kept, err := os.ReadFile(copies[0])
			if err != nil || !bytes.Equal(kept, b[from:to]) {
				t.Fatalf("byte %d flipped: %d bytes kept, %v", off, len(kept), err)
			}
			// Sealed segments and damage are never cut; the second opening counts nothing twice.
			now, err := os.ReadFile(filepath.Join(dir, m.name))
			if err != nil || !bytes.Equal(now, b) {
				t.Fatalf("byte %d flipped: the file changed", off)
			}
			again, mt := drain(t, dir)
			if again != got || testutil.ToFloat64(mt.damagedRecords) != 0 {
				t.Fatalf("byte %d flipped, second opening: %q, %v counted", off, again, testutil.ToFloat64(mt.damagedRecords))
			}
			if off%10 == 0 {
				verifyFinds(t, dir, m.name, from, int64(min(hit, 0)+1))
			}
		}
	}
}

func verifyFinds(t *testing.T, dir, name string, off int, lost int64) {
	t.Helper()
	infos, err := Verify(dir)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(infos, func(s SegmentInfo) bool { return s.Name == name })
	info := infos[i]
	if info.OK() || len(info.Damage) != 1 || info.Damage[0].Offset != int64(off) || info.Damage[0].Records != lost ||
		info.Records != 5 || info.Pending != 5-lost || info.Topics["topic"] != 5-lost {
		t.Fatalf("damage at %d: %+v", off, info)
	}
}

// Damage in the log of a running process is met by Next.
func TestDamageWhileOpen(t *testing.T) {
	dir := t.TempDir()
	var logged bytes.Buffer
	l := mustOpen(t, Config{Dir: dir, Logger: slog.New(slog.NewTextHandler(&logged, nil))})
	mustAppend(t, l, entry("t", "k", "0"))
	mustAppend(t, l, entry("t", "k", "1"))
	mustAppend(t, l, entry("t", "k", "2"))
	path := segmentFiles(t, dir)[0]
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	frame := (info.Size() - segmentHeaderSize) / 3
	_, err = f.WriteAt([]byte("XXXXXXXXXXXX"), segmentHeaderSize+frame+4)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte("!"), segmentHeaderSize+3*frame-2)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	recs := next(t, l, Limit{})
	wantValues(t, recs, "0")
	if n := testutil.ToFloat64(l.metrics.damagedRecords); n != 2 {
		t.Fatalf("%v damaged", n)
	}
	if !strings.Contains(logged.String(), fmt.Sprintf("offset=%d", segmentHeaderSize+frame)) {
		t.Fatalf("the place is not in the log: %s", &logged)
	}
	err = l.Commit(recs)
	if err != nil {
		t.Fatal(err)
	}
	if l.Stats().Records != 0 {
		t.Fatalf("%+v", l.Stats())
	}
	mustAppend(t, l, entry("t", "k", "3"))
	recs = next(t, l, Limit{})
	wantValues(t, recs, "3")
	if n := testutil.ToFloat64(l.metrics.damagedRecords); n != 2 {
		t.Fatalf("%v damaged", n)
	}
	err = l.Commit(recs)
	if err != nil {
		t.Fatal(err)
	}
}

// A segment that shrank under the process is passed over, not guessed at, and stays.
func TestUnreadableSegment(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, Config{Dir: dir, SegmentBytes: 1})
	mustAppend(t, l, entry("t", "k", "0"))
	mustAppend(t, l, entry("t", "k", "1"))
	mustAppend(t, l, entry("t", "k", "2"))
	files := segmentFiles(t, dir)
	b, err := os.ReadFile(files[1])
	if err != nil {
		t.Fatal(err)
	}
	err = os.Truncate(files[1], 40)
	if err != nil {
		t.Fatal(err)
	}
	wantValues(t, next(t, l, Limit{}), "0 2")
	if testutil.ToFloat64(l.metrics.readErrors) != 1 {
		t.Fatal("not counted")
	}
	err = os.WriteFile(files[1], b, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	l.Rewind()
	wantValues(t, next(t, l, Limit{}), "0 1 2")
}

func TestNewerFormatIsLeftAlone(t *testing.T) {
	m := makeSegment(t, []string{"0"})
	head := appendSegmentHeader(nil, 1, 7, timeZero)
	head[8] = 2
	sealHead(head)
	dir := t.TempDir()
	m.name = segmentName(1, 7)
	m.write(t, dir, append(head, "whatever it holds"...))
	l := mustOpen(t, Config{Dir: dir})
	wantValues(t, next(t, l, Limit{}), "")
	mustAppend(t, l, entry("t", "k", "v"))
	wantValues(t, next(t, l, Limit{}), "v")
	mustClose(t, l)
	b, err := os.ReadFile(filepath.Join(dir, m.name))
	if err != nil || string(b[36:]) != "whatever it holds" {
		t.Fatalf("%q %v", b, err)
	}
	infos, err := Ls(dir)
	if err != nil || infos[0].Err == nil {
		t.Fatalf("%+v %v", infos, err)
	}
}

// What a sender puts into a message is no frame, even where the scan looks for one.
func TestForgedFrame(t *testing.T) {
	forged := appendFrame(nil, &Entry{Topic: "ai_signals", Key: []byte("victim/person/1"), Value: []byte("forged")}, "", 0, 0)
	stampFrames(forged, 0, 2) // of a segment whose salt is not this one's
	m := makeSegment(t, []string{strings.Repeat(string(forged), 50)}, []string{"1"})
	b := slices.Clone(m.bytes)
	b[m.starts[0]] ^= 1
	dir := t.TempDir()
	m.write(t, dir, b)
	if got, _ := drain(t, dir); got != "1" {
		t.Fatalf("%q", got)
	}
}

func TestOrphansAndHalves(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{segmentName(5, 5), "0000000000000001-00000001.ack", "0000000000000001-00000001.ack.tmp"} {
		err := os.WriteFile(filepath.Join(dir, name), []byte("SLU"), 0o600)
		if err != nil {
			t.Fatal(err)
		}
	}
	mustClose(t, mustOpen(t, Config{Dir: dir}))
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 || files[0].Name() != "lock" {
		t.Fatalf("%v %v", files, err)
	}
}
