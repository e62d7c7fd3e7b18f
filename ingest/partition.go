package ingest

import "encoding/binary"

// partitionOf returns the partition of a key among n: toPositive(murmur2(key)) % n, as Java's DefaultPartitioner does,
// so that whatever else writes to these topics with a Java client puts a subject where we put it. n must be above 0.
func partitionOf(key []byte, n int) int {
	return int(murmur2(key)&0x7fffffff) % n
}

// murmur2 is the 32-bit MurmurHash2 with the seed that Kafka's Java clients use.
func murmur2(data []byte) uint32 {
	const (
		seed = 0x9747b28c
		m    = 0x5bd1e995
		r    = 24
	)
	h := uint32(seed) ^ uint32(len(data))
	for len(data) >= 4 {
		k := binary.LittleEndian.Uint32(data)
		k *= m
		k ^= k >> r
		h = h*m ^ k*m
		data = data[4:]
	}
	if len(data) > 0 {
		var tail uint32
		for i := len(data) - 1; i >= 0; i-- {
			tail = tail<<8 | uint32(data[i])
		}
		h = (h ^ tail) * m
	}
	h ^= h >> 13
	h *= m
	return h ^ h>>15
}
