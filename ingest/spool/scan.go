package spool

import (
	"bytes"
	"hash/crc32"
	"io"
)

const scanWindow = 256 << 10

// A scanner walks the frames of one segment. What it returns borrows its window until the next call.
type scanner struct {
	r        io.ReaderAt
	salt     uint32
	off, end int64
	next     uint64                // the sequence number expected at off
	want     func(seq uint64) bool // whose payloads to read and check; nil: none
	buf      []byte                // the window: what the file holds from bufOff on
	bufOff   int64
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
	if s.off >= s.end {
		return found{}, io.EOF
	}
	left := s.end - s.off
	if left < frameHeaderSize {
		return s.tail(true), nil
	}
	b, err := s.bytes(s.off, frameHeaderSize)
	if err != nil {
		return found{}, err
	}
	h, ok := parseFrameHeader(b, s.salt)
	if !ok || h.seq != s.next {
		return s.resync()
	}
	size := frameHeaderSize + int64(h.length)
	if size > left {
		return s.tail(true), nil
	}
	it := found{off: s.off, size: size, seq: h.seq, at: h.at, rest: h.rest}
	if s.want != nil && s.want(h.seq) {
		b, err = s.bytes(s.off, int(size))
		if err != nil {
			return found{}, err
		}
		it.payload = b[frameHeaderSize:size]
		if crc32.Checksum(it.payload, castagnoli) != h.payloadCRC {
			it.damaged, it.lost = true, 1
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

// resync looks for the next frame behind bytes that are none.
func (s *scanner) resync() (found, error) {
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
			// A frame takes its header at least, so a number too far ahead is no frame of this place.
			if !ok || at == s.off || h.seq < s.next || h.seq-s.next > uint64(at-s.off)/frameHeaderSize {
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
