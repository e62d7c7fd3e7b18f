package otlp

import (
	"encoding/binary"
	"math/bits"
	"unicode/utf8"
)

// The wire types of protobuf that OTLP uses.
const (
	wireVarint  = 0
	wireFixed64 = 1
	wireBytes   = 2
	wireFixed32 = 5
)

const maxFieldNumber = 1<<29 - 1

// uvarint reads as the official decoder does: ten bytes at most, no overflow, padding allowed. n is 0 where the bytes end
// too early and negative where they can never be a varint.
func uvarint(b []byte) (uint64, int) { return binary.Uvarint(b) }

func varintReason(n int) Reason {
	if n == 0 {
		return Truncated
	}
	return BadVarint
}

func sizeUvarint(v uint64) int { return (bits.Len64(v|1) + 6) / 7 }

func appendTag(dst []byte, num, wire int) []byte {
	return binary.AppendUvarint(dst, uint64(num)<<3|uint64(wire))
}

func appendBytesField(dst []byte, num int, v []byte) []byte {
	dst = appendTag(dst, num, wireBytes)
	dst = binary.AppendUvarint(dst, uint64(len(v)))
	return append(dst, v...)
}

func appendStringField(dst []byte, num int, v string) []byte {
	dst = appendTag(dst, num, wireBytes)
	dst = binary.AppendUvarint(dst, uint64(len(v)))
	return append(dst, v...)
}

// openLen leaves room for a length of n bytes at the end of dst; closeLen fills it in once the content stands behind it.
// Guessing n right saves moving the content.
func openLen(dst []byte, n int) ([]byte, int) {
	const room = "\x00\x00\x00\x00\x00"
	return append(dst, room[:n]...), len(dst)
}

func closeLen(dst []byte, at, n int) []byte {
	size := len(dst) - at - n
	if n == 1 && size < 0x80 {
		dst[at] = byte(size)
		return dst
	}
	need := sizeUvarint(uint64(size))
	if need > n {
		const room = "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
		dst = append(dst, room[:need-n]...)
	}
	if need != n {
		copy(dst[at+need:], dst[at+n:at+n+size])
		dst = dst[:at+need+size]
	}
	binary.PutUvarint(dst[at:at+need], uint64(size))
	return dst
}

// validUTF8 is utf8.Valid with the short ASCII strings of telemetry kept off the call.
func validUTF8(b []byte) bool {
	const highs = 0x8080808080808080
	if len(b) < 8 {
		for _, c := range b {
			if c >= utf8.RuneSelf {
				return utf8.Valid(b)
			}
		}
		return true
	}
	last := len(b) - 8 // the word that ends the string may overlap the one before it
	for i := 0; i < last; i += 8 {
		if binary.LittleEndian.Uint64(b[i:])&highs != 0 {
			return utf8.Valid(b[i:])
		}
	}
	return binary.LittleEndian.Uint64(b[last:])&highs == 0 || utf8.Valid(b)
}

// fields steps over the fields of one message. It is for bytes that were validated before, and stops with bad set where
// they were not; the validating walk has a loop of its own.
type fields struct {
	b    []byte
	i    int    // where the next field begins
	num  int    // of the current field
	wire int    // of the current field
	raw  []byte // the current field, tag included
	val  []byte // the content of a length-delimited field, the encoded number of others
	bad  bool
}

func (f *fields) next() bool {
	if f.i >= len(f.b) {
		return false
	}
	start := f.i
	tag, n := uvarint(f.b[start:])
	if n <= 0 || tag>>3 == 0 || tag>>3 > maxFieldNumber {
		f.bad = true
		return false
	}
	i := start + n
	size := 0
	f.wire = int(tag & 7)
	switch f.wire {
	case wireVarint:
		if _, size = uvarint(f.b[i:]); size <= 0 {
			f.bad = true
			return false
		}
	case wireFixed64:
		size = 8
	case wireFixed32:
		size = 4
	case wireBytes:
		l, n := uvarint(f.b[i:])
		if n <= 0 || l > uint64(len(f.b)-i-n) {
			f.bad = true
			return false
		}
		i += n
		size = int(l)
	default:
		f.bad = true
		return false
	}
	if size > len(f.b)-i {
		f.bad = true
		return false
	}
	f.num = int(tag >> 3)
	f.i = i + size
	f.raw = f.b[start:f.i]
	f.val = f.b[i:f.i]
	return true
}

func (f *fields) uvarint() uint64 {
	v, _ := uvarint(f.val)
	return v
}
