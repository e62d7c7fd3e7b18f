package inflate

import (
	"bytes"
	"fmt"
	"io"
	"testing"

	"github.com/klauspost/compress/gzip"
)

// BenchmarkGunzip is of bodies like those of telemetry, beside the fastest reader of streams.
func BenchmarkGunzip(b *testing.B) {
	for _, size := range []int{1_000, 15_000, 40_000} {
		text := texts()["telemetry"][:size]
		body := gzipped(b, 6, text)
		dst := make([]byte, 0, len(text)+Slack)
		b.Run(fmt.Sprintf("here-%d", len(text)), func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			var d Decoder
			for b.Loop() {
				if _, err := d.Gunzip(dst, body, room(0)); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("stream-%d", len(text)), func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			var zr gzip.Reader
			src := bytes.NewReader(nil)
			for b.Loop() {
				src.Reset(body)
				if err := zr.Reset(src); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(&zr, dst[:len(text)]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkEmptyBlocks is of a body that is nothing but blocks of ten bits, with fixed codes and without content: what a block costs beside its content.
func BenchmarkEmptyBlocks(b *testing.B) {
	src := make([]byte, 64<<10)
	for i := 0; i+10 <= 8*len(src); i += 10 {
		src[(i+1)/8] |= 1 << ((i + 1) % 8) // not the last, fixed codes, and the end's seven zeros
	}
	b.SetBytes(int64(len(src)))
	var d Decoder
	for b.Loop() {
		if out, err := d.inflate(src, 1); len(out) > 0 || err == nil {
			b.Fatal("there is no last block")
		}
	}
}
