package inflate

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
)

// ErrCorrupt means that the bytes are no gzip stream, or that one of its checks fails; ErrTruncated that they end before it does.
var (
	ErrCorrupt   = errors.New("corrupt gzip stream")
	ErrTruncated = errors.New("the gzip stream ends too early")
)

// Slack is how much more room than its output a stream wants to be decompressed at full speed.
const Slack = maxMatch + 8

// A Room is where the output goes to.
type Room interface {
	// More returns a buffer that begins with b and has a larger capacity, or says why there is none. It is called when what follows does not fit into b's.
	More(b []byte) ([]byte, error)
}

// A Decoder is scratch, about 8 KiB, that one call of Gunzip after another may use, not two at once. The zero value is ready.
type Decoder struct {
	src  []byte
	ip   int    // src[ip:] is not in bits yet
	bits uint64 // the next n bits of the stream, the first lowest; what stands above them is nothing, or what follows them
	n    uint

	dst  []byte // as long as its capacity
	op   int    // dst[:op] is written
	from int    // where the output of this member begins: no match reaches behind it
	room Room

	literals  [literalSize]entry
	distances [distanceSize]entry
	isFixed   bool                              // both are those of a block that brings no codes
	lengths   [maxLiterals + maxDistances]uint8 // of the codes of both, one list after the other
}

// Gunzip appends to dst what the gzip stream src holds; several members are one after another, as RFC 1952 has it. Where the capacity of dst does not do it asks
// room for more, whose errors it returns. With an error dst comes back with what could be read. Neither src nor dst is kept.
func (d *Decoder) Gunzip(dst, src []byte, room Room) ([]byte, error) {
	d.src, d.ip, d.bits, d.n = src, 0, 0, 0
	d.dst, d.op, d.room = dst[:cap(dst)], len(dst), room
	err := d.members()
	dst = d.dst[:d.op]
	d.src, d.dst, d.room = nil, nil, nil
	return dst, err
}

func (d *Decoder) members() error {
	for first := true; first || d.ip < len(d.src); first = false {
		if err := d.header(); err != nil {
			return err
		}
		d.from = d.op
		if err := d.blocks(); err != nil {
			return err
		}
		if len(d.src)-d.ip < 8 {
			return ErrTruncated
		}
		out := d.dst[d.from:d.op]
		trailer := d.src[d.ip:]
		if binary.LittleEndian.Uint32(trailer) != crc32.ChecksumIEEE(out) || binary.LittleEndian.Uint32(trailer[4:]) != uint32(len(out)) {
			return ErrCorrupt
		}
		d.ip += 8
	}
	return nil
}

// The flags of a member's header (RFC 1952, 2.3.1).
const (
	hasHeaderCRC = 1 << 1
	hasExtra     = 1 << 2
	hasName      = 1 << 3
	hasComment   = 1 << 4

	maxText = 512 // bytes of a name or a comment and its end, as compress/gzip has it
)

// header passes over a member's header.
func (d *Decoder) header() error {
	h := d.src[d.ip:]
	if len(h) < 10 {
		return ErrTruncated
	}
	if h[0] != 0x1f || h[1] != 0x8b || h[2] != 8 {
		return ErrCorrupt
	}
	flags, at := h[3], 10
	if flags&hasExtra != 0 {
		if len(h) < at+2 {
			return ErrTruncated
		}
		at += 2 + int(binary.LittleEndian.Uint16(h[at:]))
	}
	for _, flag := range [...]byte{hasName, hasComment} {
		if flags&flag == 0 {
			continue
		}
		n := bytes.IndexByte(h[min(at, len(h)):min(at+maxText, len(h))], 0)
		switch {
		case n >= 0:
			at += n + 1
		case at+maxText <= len(h):
			return ErrCorrupt
		default:
			return ErrTruncated
		}
	}
	if at > len(h) {
		return ErrTruncated
	}
	if flags&hasHeaderCRC != 0 {
		if len(h) < at+2 {
			return ErrTruncated
		}
		if binary.LittleEndian.Uint16(h[at:]) != uint16(crc32.ChecksumIEEE(h[:at])) {
			return ErrCorrupt
		}
		at += 2
	}
	d.ip += at
	return nil
}

// blocks decompresses the blocks of one member (RFC 1951, 3.2.3), and leaves ip at the byte after them.
func (d *Decoder) blocks() error {
	for last := false; !last; {
		v, ok := d.take(3)
		if !ok {
			return ErrTruncated
		}
		last = v&1 != 0
		var err error
		switch v >> 1 {
		case 0:
			err = d.stored()
		case 1:
			d.fixed()
			err = d.codes()
		case 2:
			if err = d.dynamic(); err == nil {
				err = d.codes()
			}
		default:
			err = ErrCorrupt
		}
		if err != nil {
			return err
		}
	}
	d.align()
	return nil
}

// refill reads bytes while there is room for them, and there are any.
func (d *Decoder) refill() {
	for d.n <= 56 && d.ip < len(d.src) {
		d.bits |= uint64(d.src[d.ip]) << d.n
		d.ip++
		d.n += 8
	}
}

// take reads so many bits, at most 16.
func (d *Decoder) take(n uint) (uint, bool) {
	if d.n < n {
		if d.refill(); d.n < n {
			return 0, false
		}
	}
	v := uint(d.bits) & (1<<n - 1)
	d.bits >>= n
	d.n -= n
	return v, true
}

// align goes on at the next whole byte.
func (d *Decoder) align() {
	d.ip -= int(d.n >> 3)
	d.bits, d.n = 0, 0
}

// stored copies a block that is not compressed.
func (d *Decoder) stored() error {
	d.align()
	h := d.src[d.ip:]
	if len(h) < 4 {
		return ErrTruncated
	}
	size := int(binary.LittleEndian.Uint16(h))
	if size != int(^binary.LittleEndian.Uint16(h[2:])) {
		return ErrCorrupt
	}
	d.ip += 4
	if len(h)-4 < size {
		return ErrTruncated
	}
	if err := d.need(size); err != nil {
		return err
	}
	copy(d.dst[d.op:], h[4:4+size])
	d.ip += size
	d.op += size
	return nil
}

// need makes room for n bytes of output.
func (d *Decoder) need(n int) error {
	for len(d.dst)-d.op < n {
		b, err := d.room.More(d.dst[:d.op])
		if err != nil {
			return err
		}
		d.dst = b[:cap(b)]
	}
	return nil
}

// codes decompresses the symbols of one block, by the tables of literals and distances.
func (d *Decoder) codes() error {
	for {
		end, err := d.fast()
		if end || err != nil {
			return err
		}
		if end, err = d.careful(); end || err != nil {
			return err
		}
	}
}

// fast decompresses symbols while there is plenty of input and of room for output, so that neither has to be looked at for each. It reports
// whether the block has ended.
func (d *Decoder) fast() (bool, error) {
	src, dst := d.src, d.dst
	ip, op, bits, n := d.ip, d.op, d.bits, d.n
	literals, distances := &d.literals, &d.distances
	end, err := false, error(nil)
	for ip+8 <= len(src) && op+Slack <= len(dst) {
		// 56 bits or more are there from here on: enough for a length and its distance, which take 48 at most, and for two short literals before.
		bits |= binary.LittleEndian.Uint64(src[ip:]) << (n & 63)
		ip += int(63-n) >> 3
		n |= 56
		e := literals[bits&(1<<literalBits-1)]
		if e&isLiteral != 0 {
			bits >>= e & usedMask
			n -= uint(e & usedMask)
			dst[op] = byte(e >> valueAt)
			op++
			e = literals[bits&(1<<literalBits-1)]
			if e&isLiteral != 0 {
				bits >>= e & usedMask
				n -= uint(e & usedMask)
				dst[op] = byte(e >> valueAt)
				op++
				continue
			}
			if n < 48 {
				continue // the entry is found again
			}
		}
		if e&isSpecial != 0 {
			if e&isLink != 0 {
				bits >>= literalBits
				n -= literalBits
				e = literals[uint64(e>>valueAt)+bits&(1<<(e&usedMask)-1)]
				if e&isLiteral != 0 {
					bits >>= e & usedMask
					n -= uint(e & usedMask)
					dst[op] = byte(e >> valueAt)
					op++
					continue
				}
			}
			if e&isSpecial != 0 {
				end = e&isEnd != 0
				if end {
					bits >>= e & usedMask
					n -= uint(e & usedMask)
				} else {
					err = ErrCorrupt
				}
				break
			}
		}
		length := int(e>>valueAt) + int(bits>>(e>>codeAt&codeMask)&(1<<(e&usedMask-e>>codeAt&codeMask)-1))
		bits >>= e & usedMask
		n -= uint(e & usedMask)

		e = distances[bits&(1<<distanceBits-1)]
		if e&isLink != 0 {
			bits >>= distanceBits
			n -= distanceBits
			e = distances[uint64(e>>valueAt)+bits&(1<<(e&usedMask)-1)]
		}
		distance := int(e>>valueAt) + int(bits>>(e>>codeAt&codeMask)&(1<<(e&usedMask-e>>codeAt&codeMask)-1))
		bits >>= e & usedMask
		n -= uint(e & usedMask)
		if e&isSpecial != 0 || distance > op-d.from {
			err = ErrCorrupt
			break
		}
		if distance >= 8 && length <= 16 { // writes a few bytes too many, which are written again
			binary.LittleEndian.PutUint64(dst[op:], binary.LittleEndian.Uint64(dst[op-distance:]))
			binary.LittleEndian.PutUint64(dst[op+8:], binary.LittleEndian.Uint64(dst[op+8-distance:]))
			op += length
			continue
		}
		match(dst[op-distance:op+length], distance)
		op += length
	}
	d.ip, d.op, d.bits, d.n = ip, op, bits, n
	return end, err
}

// careful decompresses one symbol where input or room may end. It reports whether the block has.
func (d *Decoder) careful() (bool, error) {
	d.refill()
	e, bits, n := lookUp(d.literals[:], literalBits, d.bits, d.n)
	switch used := uint(e & usedMask); {
	case used > n:
		return false, ErrTruncated
	case e&isLiteral != 0:
		if err := d.need(1); err != nil {
			return false, err
		}
		d.dst[d.op] = byte(e >> valueAt)
		d.op++
		d.bits, d.n = bits>>used, n-used
		return false, nil
	case e&isEnd != 0:
		d.bits, d.n = bits>>used, n-used
		return true, nil
	case e&isSpecial != 0:
		return false, d.broken(n)
	}
	length, bits, n := e.number(bits, n)
	e, bits, n = lookUp(d.distances[:], distanceBits, bits, n)
	if uint(e&usedMask) > n {
		return false, ErrTruncated
	}
	if e&isSpecial != 0 {
		return false, d.broken(n)
	}
	distance, bits, n := e.number(bits, n)
	if distance > d.op-d.from {
		return false, ErrCorrupt
	}
	if err := d.need(length); err != nil {
		return false, err
	}
	match(d.dst[d.op-distance:d.op+length], distance)
	d.op += length
	d.bits, d.n = bits, n
	return false, nil
}

// broken is what is wrong where the next bits, of which n are left, are no code.
func (d *Decoder) broken(n uint) error {
	if n < maxCode && d.ip == len(d.src) {
		return ErrTruncated
	}
	return ErrCorrupt
}

// lookUp finds the entry of the code that comes next, and returns it with the bits that its own number of used ones counts from.
func lookUp(table []entry, size uint, bits uint64, n uint) (entry, uint64, uint) {
	e := table[bits&(1<<size-1)]
	if e&isLink == 0 {
		return e, bits, n
	}
	if n < size {
		return e&^usedMask | usedMask, bits, n // more than there are
	}
	return table[uint64(e>>valueAt)+bits>>size&(1<<(e&usedMask)-1)], bits >> size, n - size
}

// match fills what is behind the first distance bytes of b with their repetition.
func match(b []byte, distance int) {
	for at := distance; at < len(b); {
		at += copy(b[at:], b[:at])
	}
}
