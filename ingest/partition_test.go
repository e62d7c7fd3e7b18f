package ingest

import (
	"testing"

	"github.com/segmentio/kafka-go"
)

// The vectors of UtilsTest.testMurmur2 in Apache Kafka's Java clients.
func TestMurmur2IsJavas(t *testing.T) {
	for in, want := range map[string]int32{
		"21":                         -973932308,
		"foobar":                     -790332482,
		"a-little-bit-long-string":   -985981536,
		"a-little-bit-longer-string": -1486304829,
		"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
		"abc": 479470107,
	} {
		if got := int32(murmur2([]byte(in))); got != want {
			t.Errorf("murmur2(%q) = %d, want %d", in, got, want)
		}
	}
}

func FuzzPartition(f *testing.F) {
	f.Add([]byte("acme/service_account/sa_1"), 6)
	f.Add([]byte(""), 1)
	f.Add([]byte{0xff, 0x80, 0x7f}, 1000)
	f.Fuzz(func(t *testing.T, key []byte, n int) {
		if n < 1 || n > 1<<12 || key == nil {
			return
		}
		all := make([]int, n)
		for i := range all {
			all[i] = i
		}
		want := kafka.Murmur2Balancer{Consistent: true}.Balance(kafka.Message{Key: key}, all...)
		if got := partitionOf(key, n); got != want {
			t.Errorf("partitionOf(%q, %d) = %d, kafka-go says %d", key, n, got, want)
		}
	})
}
