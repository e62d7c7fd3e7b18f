package spool

import (
	"fmt"
	"os"
	"runtime"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

// BenchmarkAppend reports how many calls share a sync, which is what group commit is for.
func BenchmarkAppend(b *testing.B) {
	for _, callers := range []int{2, 16, 64, 256} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			syncs := 0
			l, err := open(Config{Dir: b.TempDir(), MinFreeBytes: -1}, func(f *os.File) error {
				syncs++
				return datasync(f)
			})
			if err != nil {
				b.Fatal(err)
			}
			call := []Entry{{Topic: "otlp_logs", Key: []byte("acme/service_account/1"), Value: make([]byte, 1024),
				Headers: []Header{{"flowstate-org", []byte("acme")}, {"flowstate-schema", []byte("1")}}}}
			b.SetBytes(1024)
			b.ReportAllocs()
			b.SetParallelism(max(1, callers/runtime.GOMAXPROCS(0)))
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					err := l.Append(b.Context(), call)
					if err != nil {
						b.Error(err)
						return
					}
				}
			})
			err = l.Close(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(testutil.ToFloat64(l.metrics.records)/float64(max(1, syncs)), "calls/sync")
		})
	}
}
