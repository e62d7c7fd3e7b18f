package spool

import (
	"bytes"
	"hash/crc32"
	"io"
)

const (
	scanWindow = 256 << 10
	// maxGap is the number of records that may be missing between two frames whatever the bytes between them could hold. It is there so that one
	// wrong number cannot make the rest of a segment count as lost, and is about what a segment can hold.
	maxGap = 1 << 21
)

// A scanner walks the frames of one segment. What it returns borrows its window until the next call.
type scanner struct {
	r        io.ReaderAt
	salt     uint32
	off, end int64
	next     uint64                // the sequence number expected at off
	want     func(seq uint64) bool // whose payloads to read and check; nil: none
	buf      []byte                // the window: what the file holds from bufOff on
	bufOff   int64

	// The frame before off if its payload was not checked. If it was changed in length, off is a wrong place.
	unchecked struct {
		off, size int64
		crc       uint32
	}
}

// A found is what the scanner met: a record, or bytes that are none.
type found struct {
	off, size int64
	seq       uint64 // of the record; of the first one lost
	at        int64
	rest      uint32
	payload   []byte // nil where it was not wanted
	damaged   bool
	lost      uint64 // records lost by this damage; 0 where that cannot be known
	torn      bool   // an incomplete write at the end, not damage
}

// scan returns what stands at the scanner's place and moves behind it. The error is io.EOF at the end or what the file answered; then the place is
// unchanged.
func (s *scanner) scan() (found, error) {
	left := max(0, s.end-s.off)
	var h frameHeader
	ok := false
	if left >= frameHeaderSize {
		b, err := s.bytes(s.off, frameHeaderSize)
		if err != nil {
			return found{}, err
		}
		h, ok = parseFrameHeader(b, s.salt)
	}
	if !ok || h.seq != s.next {
		it, ok, err := s.stepBack()
		switch {
		case ok || err != nil:
			return it, err
		case left == 0:
			return found{}, io.EOF
		case left < frameHeaderSize:
			return s.tail(true), nil
		}
		return s.resync(s.next)
	}
	size := frameHeaderSize + int64(h.length)
	if size > left {
		it, err := s.resync(h.seq + 1)
		if err == nil && s.off == s.end {
			it.torn, it.damaged = true, false // it was cut off, not shortened
		}
		return it, err
	}
	it := found{off: s.off, size: size, seq: h.seq, at: h.at, rest: h.rest}
	s.unchecked.off, s.unchecked.size, s.unchecked.crc = s.off, size, h.payloadCRC
	if s.want != nil && s.want(h.seq) {
		b, err := s.bytes(s.off, int(size))
		if err != nil {
			return found{}, err
		}
		it.payload = b[frameHeaderSize:size]
		s.unchecked.size = 0
		if crc32.Checksum(it.payload, castagnoli) != h.payloadCRC {
			// Its length says where the next frame is, but bytes may be missing: look for it.
			return s.resync(h.seq + 1)
		}
	}
	s.off += size
	s.next++
	return it, nil
}

// tail ends the scan: what is left is no frame.
func (s *scanner) tail(torn bool) found {
	it := found{off: s.off, size: s.end - s.off, seq: s.next, damaged: !torn, torn: torn}
	s.off = s.end
	return it
}

// stepBack is for a scanner that stands before bytes that are no frame: if the payload of the frame before does not check, it looks for the next frame
// from there. It reports false, and stays, if that is not why.
func (s *scanner) stepBack() (found, bool, error) {
	u, here := s.unchecked, s.off
	s.unchecked.size = 0
	if u.size == 0 {
		return found{}, false, nil
	}
	b, err := s.bytes(u.off, int(u.size))
	if err != nil || crc32.Checksum(b[frameHeaderSize:u.size], castagnoli) == u.crc {
		return found{}, false, err
	}
	s.off = u.off + frameHeaderSize
	it, err := s.resync(s.next)
	if err != nil || s.off == s.end {
		s.off = here
		return found{}, false, err
	}
	return it, true, nil
}

// resync looks behind the scanner's place for the next frame, whose number is at least least.
func (s *scanner) resync(least uint64) (found, error) {
	zeros := true
	for p := s.off; s.end-p >= frameHeaderSize; {
		n := int(min(s.end-p, scanWindow))
		b, err := s.bytes(p, n)
		if err != nil {
			return found{}, err
		}
		b = b[:n]
		zeros = zeros && allZero(b)
		for i := 0; i <= n-frameHeaderSize; i++ {
			j := bytes.Index(b[i:n-frameHeaderSize+len(frameMagic)], []byte(frameMagic))
			if j < 0 {
				break
			}
			i += j
			at := p + int64(i)
			h, ok := parseFrameHeader(b[i:], s.salt)
			if !ok || h.seq < least || h.seq-s.next > max(maxGap, uint64(at-s.off)/frameHeaderSize) {
				continue
			}
			it := found{off: s.off, size: at - s.off, seq: s.next, damaged: true, lost: h.seq - s.next}
			s.off, s.next = at, h.seq
			return it, nil
		}
		p += int64(n - frameHeaderSize + 1)
	}
	return s.tail(zeros && s.zeroEnd()), nil
}

// zeroEnd reports whether the last bytes, which are too few for a header, are zeros too.
func (s *scanner) zeroEnd() bool {
	n := min(s.end-s.off, frameHeaderSize)
	b, err := s.bytes(s.end-n, int(n))
	return err == nil && allZero(b[:n])
}

func allZero(b []byte) bool {
	for len(b) >= len(zeroBlock) {
		if !bytes.Equal(b[:len(zeroBlock)], zeroBlock[:]) {
			return false
		}
		b = b[len(zeroBlock):]
	}
	return bytes.Equal(b, zeroBlock[:len(b)])
}

var zeroBlock [4096]byte

// bytes returns at least n bytes of the file from off on, which must lie before the end. The window grows to the largest record met and no further.
func (s *scanner) bytes(off int64, n int) ([]byte, error) {
	if off >= s.bufOff && off+int64(n) <= s.bufOff+int64(len(s.buf)) {
		return s.buf[off-s.bufOff:], nil
	}
	// A header is read with what follows it, because its payload mostly is wanted next.
	size := int(min(max(int64(n), scanWindow), s.end-off))
	if cap(s.buf) < size {
		s.buf = make([]byte, max(size, int(min(scanWindow, s.end-off))))
	}
	s.buf, s.bufOff = s.buf[:size], off
	got, err := s.r.ReadAt(s.buf, off)
	s.buf = s.buf[:got]
	if got >= n {
		return s.buf, nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF // the file is shorter than it was
	}
	return nil, err
}
