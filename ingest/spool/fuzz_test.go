package spool

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"
)

var timeZero = time.UnixMilli(0)

func sealHead(b []byte) {
	binary.LittleEndian.PutUint32(b[32:], crc32.Checksum(b[:32], castagnoli))
}

// allocated runs f and returns the bytes that it allocated.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

func FuzzPayload(f *testing.F) {
	f.Add(appendPayload(nil, &Entry{Topic: "otlp_logs", Key: []byte("k"), Value: []byte("v"), Headers: []Header{{"a", nil}, {"b", []byte{}}}}, "note"))
	f.Add(appendPayload(nil, &Entry{}, ""))
	f.Add([]byte{0, 0, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Add(bytes.Repeat([]byte{0xff}, 40))
	f.Fuzz(func(t *testing.T, b []byte) {
		var rec Record
		ok := false
		n := allocated(func() {
			p, err := parsePayload(b)
			if err == nil {
				rec, ok = p.record(1, 2), true
			}
		})
		// Two bytes can be a header, and a Header takes 40.
		if limit := uint64(64*len(b) + 64<<10); n > limit {
			t.Fatalf("%d bytes allocated for %d", n, len(b))
		}
		if !ok {
			return
		}
		again, err := parsePayload(appendPayload(nil, &rec.Entry, rec.Note))
		if err != nil {
			t.Fatal(err)
		}
		if got := again.record(1, 2); !reflect.DeepEqual(got, rec) {
			t.Fatalf("%+v became %+v", rec, got)
		}
	})
}

// Whatever the file holds: the scan ends, covers every byte once, and needs no more memory than the file and a window.
func FuzzScan(f *testing.F) {
	m := buildSegment(1, "0", "a", strings.Repeat("long", 100))
	_, salt, _ := parseSegmentName(m.name)
	f.Add(m.bytes, salt, true)
	f.Add(m.bytes[:len(m.bytes)-3], salt, false)
	f.Add(append([]byte(nil), bytes.Repeat([]byte(frameMagic), 100)...), uint32(0), true)
	f.Add(make([]byte, 5000), uint32(1), true)
	f.Fuzz(func(t *testing.T, b []byte, salt uint32, payloads bool) {
		n := allocated(func() {
			sc := scanner{r: bytes.NewReader(b), salt: salt, off: min(segmentHeaderSize, int64(len(b))), end: int64(len(b)), next: 1}
			if payloads {
				sc.want = func(uint64) bool { return true }
			}
			at, items := sc.off, 0
			for {
				it, err := sc.scan()
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				// It steps back into a frame whose length was wrong, and goes on from there.
				back := it.damaged && it.off < at
				if it.off > at || it.off < at && !back || it.size < 0 || it.size == 0 && it.lost == 0 || it.lost > maxGap {
					t.Fatalf("at %d: %+v", at, it)
				}
				at = it.off + it.size
				if items++; items > len(b)/8 {
					t.Fatal("it does not end")
				}
			}
			if at != int64(len(b)) && len(b) >= segmentHeaderSize {
				t.Fatalf("ended at %d of %d", at, len(b))
			}
		})
		if limit := uint64(len(b) + scanWindow + 64<<10); n > limit {
			t.Fatalf("%d bytes allocated for %d", n, len(b))
		}
	})
}

// Some bytes of a segment are replaced by others: every record whose bytes are still there comes out, in order, and nothing else does.
func FuzzDamage(f *testing.F) {
	all := []string{"0", "1", strings.Repeat("2", 300), "3", "4", strings.Repeat("5", 70), "6"}
	m := buildSegment(1, all...)
	f.Add(uint16(40), uint16(1), []byte("x"))
	f.Add(uint16(36), uint16(2000), []byte{})
	f.Add(uint16(200), uint16(0), []byte(frameMagic+"inserted"))
	f.Add(uint16(0), uint16(36), []byte{})
	f.Add(uint16(0), uint16(136), []byte{})
	f.Add(uint16(200), uint16(20), []byte("x"))
	// The first byte of the first record becomes that of the third.
	f.Add(uint16(m.starts[0]+1), uint16(m.starts[2]-m.starts[0]), []byte{})
	f.Fuzz(func(t *testing.T, off, size uint16, with []byte) {
		from := min(int(off), len(m.bytes))
		to := min(from+int(size), len(m.bytes))
		b := append(append(bytes.Clone(m.bytes[:from]), with...), m.bytes[to:]...)
		// Wherever they stand now: also where what stood before the cut completes what stands after it.
		var want []string
		for i, v := range all {
			if bytes.Contains(b, m.bytes[m.starts[i]:m.starts[i+1]]) {
				want = append(want, v)
			}
		}
		dir := t.TempDir()
		m.write(t, dir, b)
		got, _ := drain(t, dir)
		if got != strings.Join(want, " ") {
			t.Fatalf("[%d,%d) replaced by %d bytes:\n got %q\nwant %q", from, to, len(with), got, want)
		}
	})
}

func FuzzAck(f *testing.F) {
	f.Add(appendAck(nil, 7, bitmap{0xff, 0x01}), uint32(7))
	f.Add([]byte(ackMagic), uint32(0))
	f.Fuzz(func(t *testing.T, b []byte, salt uint32) {
		done, err := parseAck(b, salt)
		if err == nil && !bytes.Equal(appendAck(nil, salt, done), b) {
			// Only the two bytes that are always zero may differ.
			c := bytes.Clone(b)
			c[10], c[11] = 0, 0
			if !bytes.Equal(appendAck(nil, salt, done)[:len(b)-4], c[:len(c)-4]) {
				t.Fatalf("%x", b)
			}
		}
	})
}
