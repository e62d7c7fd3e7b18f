package inflate

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
)

// room doubles up to a limit.
type room int

var errRoom = errors.New("no more room")

func (r room) More(b []byte) ([]byte, error) {
	if cap(b) >= int(r) {
		return nil, errRoom
	}
	return append(make([]byte, 0, min(max(2*cap(b), 64), int(r))), b...), nil
}

func gzipped(t testing.TB, level int, parts ...[]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	for _, part := range parts {
		w, err := gzip.NewWriterLevel(&b, level)
		if err != nil {
			t.Fatal(err)
		}
		w.Name, w.Comment, w.Extra = "a name", "a comment", []byte("more")
		if _, err := w.Write(part); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

func texts() map[string][]byte {
	r := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 100_000)
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	skewed := make([]byte, 200_000) // codes of many lengths
	for i := range skewed {
		skewed[i] = byte(r.ExpFloat64() * 6)
	}
	var telemetry strings.Builder
	for range 500 {
		fmt.Fprintf(&telemetry, `{"event.name":"claude_code.api_request","session.id":"%016x","input_tokens":%d,"cost":%f}`, r.Uint64(), r.IntN(9999), r.Float64())
	}
	return map[string][]byte{
		"empty": {}, "one byte": {7}, "zeros": make([]byte, 100_000), "noise": noise, "skewed": skewed, "telemetry": []byte(telemetry.String()),
		"two bytes": bytes.Repeat([]byte("ab"), 5000), "seven bytes": bytes.Repeat([]byte("abcdefg"), 5000),
	}
}

func TestGunzip(t *testing.T) {
	var d Decoder
	for name, text := range texts() {
		for _, level := range []int{flate.NoCompression, flate.HuffmanOnly, 1, 6, 9} {
			for _, first := range []int{0, 1, 300, len(text), len(text) + Slack} {
				got, err := d.Gunzip(make([]byte, 0, first), gzipped(t, level, text), room(len(text)+1))
				if err != nil || !bytes.Equal(got, text) {
					t.Fatalf("%s, level %d, room for %d: %d bytes of %d, %v", name, level, first, len(got), len(text), err)
				}
			}
		}
	}
	two, err := d.Gunzip([]byte("x"), gzipped(t, 6, []byte("first "), nil, []byte("second")), room(100))
	if err != nil || string(two) != "xfirst second" {
		t.Errorf("members: %q %v", two, err)
	}
	if _, err := d.Gunzip(nil, gzipped(t, 6, make([]byte, 1<<20)), room(1000)); !errors.Is(err, errRoom) {
		t.Errorf("beyond its room: %v", err)
	}
}

// What a match may reach is what its own member has written.
func TestMatchesStayInTheirMember(t *testing.T) {
	var b bytes.Buffer
	w, _ := flate.NewWriterDict(&b, 9, []byte("a dictionary that nobody has"))
	_, _ = w.Write([]byte("a dictionary that nobody has"))
	_ = w.Close()
	forged := append([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}, b.Bytes()...)
	forged = append(forged, make([]byte, 8)...)
	for _, before := range [][]byte{nil, gzipped(t, 9, []byte("a dictionary that nobody has"))} {
		if _, err := new(Decoder).Gunzip(nil, append(bytes.Clone(before), forged...), room(1<<16)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%d bytes before: %v", len(before), err)
		}
	}
}

func TestCutAndFlipped(t *testing.T) {
	text := texts()["telemetry"][:3000]
	whole := gzipped(t, 6, text)
	var d Decoder
	for i := range whole {
		if _, err := d.Gunzip(nil, whole[:i], room(1<<16)); !errors.Is(err, ErrTruncated) {
			t.Fatalf("cut after %d of %d bytes: %v", i, len(whole), err)
		}
		for bit := range 8 {
			b := bytes.Clone(whole)
			b[i] ^= 1 << bit
			same(t, &d, b)
		}
	}
}

// same holds Gunzip against compress/gzip.
func same(t *testing.T, d *Decoder, src []byte) {
	t.Helper()
	const limit = 1 << 20
	got, err := d.Gunzip(nil, src, room(limit))
	var want []byte
	zr, wrong := gzip.NewReader(bytes.NewReader(src))
	if wrong == nil {
		want, wrong = io.ReadAll(io.LimitReader(zr, limit+1))
	}
	if len(want) > limit {
		if err == nil {
			t.Fatalf("more than fits, and no error; %x", src)
		}
		return
	}
	if (err == nil) != (wrong == nil) || err == nil && !bytes.Equal(got, want) {
		t.Fatalf("%d bytes, %v; compress/gzip: %d bytes, %v; %x", len(got), err, len(want), wrong, src)
	}
}

// allocated runs f and returns the bytes that it allocated.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

func FuzzGunzip(f *testing.F) {
	for _, text := range texts() {
		text = text[:min(len(text), 4000)]
		for _, level := range []int{0, flate.HuffmanOnly, 1, 9} {
			f.Add(gzipped(f, level, text))
		}
	}
	f.Add(gzipped(f, 6, []byte("one"), []byte("two")))
	var d Decoder
	f.Fuzz(func(t *testing.T, src []byte) {
		const limit = 256 << 10
		// Nothing but the room that is asked for, which doubles up to the limit.
		if n := allocated(func() { _, _ = d.Gunzip(nil, src, room(limit)) }); n > 2*limit+64<<10 {
			t.Fatalf("%d bytes allocated for %d", n, len(src))
		}
		same(t, &d, src)
		// And with the checks at the end made right, so that what is between them decides.
		if len(src) < 18 {
			return
		}
		zr := flate.NewReader(bytes.NewReader(src[10:]))
		text, err := io.ReadAll(io.LimitReader(zr, 1<<16))
		if err != nil || len(text) == 1<<16 {
			return
		}
		var b bytes.Buffer
		b.Write([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255})
		w, _ := flate.NewWriter(&b, 9)
		_, _ = w.Write(text)
		_ = w.Close()
		got, err := d.inflate(b.Bytes()[10:], 1<<17)
		if err != nil || !bytes.Equal(got, text) {
			t.Fatalf("%v", err)
		}
		raw, wrong := d.inflate(src[10:], 1<<17)
		if wrong != nil || !bytes.HasPrefix(raw, text) {
			t.Fatalf("raw: %v, %d bytes of %d", wrong, len(raw), len(text))
		}
	})
}

// inflate is the part of Gunzip between a member's header and its trailer.
func (d *Decoder) inflate(src []byte, limit int) ([]byte, error) {
	d.src, d.ip, d.bits, d.n = src, 0, 0, 0
	d.dst, d.op, d.from, d.room = nil, 0, 0, room(limit)
	err := d.blocks()
	return d.dst[:d.op], err
}
