package spool

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math"
	"time"
)

// MaxRecordBytes is the most that one entry may take in the log, its encoding included.
const MaxRecordBytes = 64 << 20

const (
	frameHeaderSize = 36
	frameMagic      = "\xf5SL\x1a"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// An Entry is one message to keep.
type Entry struct {
	Topic   string
	Key     []byte // nil stays nil
	Value   []byte // nil stays nil
	Headers []Header
	At      time.Time // when it was enqueued, kept to the millisecond; zero means now
}

// A Header is one header of a message.
type Header struct {
	Key   string
	Value []byte
}

// A Record is an entry that is in the log. It owns its bytes.
type Record struct {
	Entry
	Seq  uint64 // its place in the log
	Note string // why it was parked; empty in a log that is no quarantine

	segment *segment
}

// frameHeader is the fixed part of a frame.
type frameHeader struct {
	length     uint32 // of the payload
	seq        uint64
	at         int64 // unix ms
	rest       uint32
	payloadCRC uint32
}

// parseFrameHeader reads a header from b, which holds at least frameHeaderSize bytes. It reports false if they are no header of this segment.
func parseFrameHeader(b []byte, salt uint32) (frameHeader, bool) {
	b = b[:frameHeaderSize]
	if string(b[:4]) != frameMagic || crc32.Update(salt, castagnoli, b[:32]) != binary.LittleEndian.Uint32(b[32:]) {
		return frameHeader{}, false
	}
	h := frameHeader{
		length:     binary.LittleEndian.Uint32(b[4:]),
		seq:        binary.LittleEndian.Uint64(b[8:]),
		at:         int64(binary.LittleEndian.Uint64(b[16:])),
		rest:       binary.LittleEndian.Uint32(b[24:]),
		payloadCRC: binary.LittleEndian.Uint32(b[28:]),
	}
	return h, h.length <= MaxRecordBytes
}

// appendFrame appends the frame of one record. Its sequence number and header crc are left zero: they depend on the segment
// that it goes to, which is known when the batch is written (see stampFrames).
func appendFrame(dst []byte, e *Entry, note string, at int64, rest int) []byte {
	start := len(dst)
	dst = append(dst, frameMagic...)
	dst = append(dst, make([]byte, frameHeaderSize-len(frameMagic))...)
	dst = appendPayload(dst, e, note)
	h, payload := dst[start:start+frameHeaderSize], dst[start+frameHeaderSize:]
	binary.LittleEndian.PutUint32(h[4:], uint32(len(payload)))
	binary.LittleEndian.PutUint64(h[16:], uint64(at))
	binary.LittleEndian.PutUint32(h[24:], uint32(rest))
	binary.LittleEndian.PutUint32(h[28:], crc32.Checksum(payload, castagnoli))
	return dst
}

// stampFrames gives the frames in b sequence numbers from seq on and seals their headers. It returns the number after the last one.
func stampFrames(b []byte, salt uint32, seq uint64) uint64 {
	for len(b) > 0 {
		binary.LittleEndian.PutUint64(b[8:], seq)
		binary.LittleEndian.PutUint32(b[32:], crc32.Update(salt, castagnoli, b[:32]))
		seq++
		b = b[frameHeaderSize+int(binary.LittleEndian.Uint32(b[4:])):]
	}
	return seq
}

// frameSizeLimit is an upper bound of an entry's frame, cheap to compute.
func frameSizeLimit(e *Entry, note string) int {
	n := frameHeaderSize + 5*binary.MaxVarintLen32 + len(e.Topic) + len(e.Key) + len(e.Value) + len(note)
	for i := range e.Headers {
		n += 2*binary.MaxVarintLen32 + len(e.Headers[i].Key) + len(e.Headers[i].Value)
	}
	return n
}

func appendPayload(dst []byte, e *Entry, note string) []byte {
	dst = appendString(dst, e.Topic)
	dst = appendBytes(dst, e.Key)
	dst = binary.AppendUvarint(dst, uint64(len(e.Headers)))
	for i := range e.Headers {
		dst = appendString(dst, e.Headers[i].Key)
		dst = appendBytes(dst, e.Headers[i].Value)
	}
	dst = appendBytes(dst, e.Value)
	return appendString(dst, note)
}

func appendString(dst []byte, s string) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(s))+1)
	return append(dst, s...)
}

func appendBytes(dst, b []byte) []byte {
	if b == nil {
		return append(dst, 0)
	}
	dst = binary.AppendUvarint(dst, uint64(len(b))+1)
	return append(dst, b...)
}

var errPayload = errors.New("spool: payload does not decode")

// A payload is a decoded frame whose slices borrow the frame's bytes.
type payload struct {
	topic, key, value, note []byte
	headers                 []byte // still encoded
	headerCount             int
}

// parsePayload reads b without copying. It allocates nothing, whatever b says.
func parsePayload(b []byte) (payload, error) {
	var p payload
	var ok bool
	if p.topic, b, ok = cutBytes(b); !ok {
		return payload{}, errPayload
	}
	if p.key, b, ok = cutBytes(b); !ok {
		return payload{}, errPayload
	}
	count, n := binary.Uvarint(b)
	// A header takes two bytes at least: a count that cannot be true is refused before anything is made for it.
	if n <= 0 || count > uint64(len(b)-n)/2 {
		return payload{}, errPayload
	}
	p.headerCount = int(count)
	b = b[n:]
	p.headers = b
	for range 2 * p.headerCount {
		if _, b, ok = cutBytes(b); !ok {
			return payload{}, errPayload
		}
	}
	p.headers = p.headers[:len(p.headers)-len(b)]
	if p.value, b, ok = cutBytes(b); !ok {
		return payload{}, errPayload
	}
	if p.note, b, ok = cutBytes(b); !ok || len(b) != 0 {
		return payload{}, errPayload
	}
	return p, nil
}

// cutBytes takes one string off the front of b and returns it and the rest; null is nil, empty is not.
func cutBytes(b []byte) ([]byte, []byte, bool) {
	size, n := binary.Uvarint(b)
	if n <= 0 {
		return nil, nil, false
	}
	b = b[n:]
	if size == 0 {
		return nil, b, true
	}
	size--
	if size > uint64(len(b)) || size > math.MaxInt32 {
		return nil, nil, false
	}
	return b[:size:size], b[size:], true
}

// record copies p out of the buffer that it borrows: one allocation for the bytes, however many headers.
func (p *payload) record(seq uint64, at int64) Record {
	own := make([]byte, 0, len(p.key)+len(p.value)+len(p.headers))
	keep := func(b []byte) []byte {
		if b == nil {
			return nil
		}
		start := len(own)
		own = append(own, b...)
		return own[start:len(own):len(own)]
	}
	r := Record{
		Entry: Entry{Topic: string(p.topic), Key: keep(p.key), Value: keep(p.value), At: time.UnixMilli(at)},
		Seq:   seq,
		Note:  string(p.note),
	}
	if p.headerCount > 0 {
		r.Headers = make([]Header, p.headerCount)
	}
	rest := p.headers
	for i := range r.Headers {
		var key, value []byte
		key, rest, _ = cutBytes(rest)
		value, rest, _ = cutBytes(rest)
		r.Headers[i] = Header{Key: string(key), Value: keep(value)}
	}
	return r
}
