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
