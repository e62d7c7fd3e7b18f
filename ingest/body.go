package ingest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"

	"flowstate.inc/sluice/ingest/inflate"
	"flowstate.inc/sluice/ingest/otlp"
)

var (
	errEncoding = errors.New("unsupported Content-Encoding: send identity, gzip or zstd, once")
	errTooLarge = errors.New("the body is larger than the limit")
)

// A coding is how a body is compressed.
type coding uint8

const (
	codedPlain coding = iota
	codedGzip
	codedZstd
)

// codingOf reads a Content-Encoding. Names are compared without case and identity is no coding, as RFC 9110 has it. Two codings are refused, also
// the same one twice: no exporter sends that, and each layer would multiply what a small body can grow into.
func codingOf(header []byte) (coding, error) {
	found := codedPlain
	for more := true; more; {
		var name []byte
		name, header, more = bytes.Cut(header, []byte(","))
		name = bytes.TrimSpace(name)
		c := codedPlain
		switch {
		case len(name) == 0 || foldsTo(name, "identity"):
			continue
		case foldsTo(name, "gzip") || foldsTo(name, "x-gzip"):
			c = codedGzip
		case foldsTo(name, "zstd"):
			c = codedZstd
		default:
			return 0, errEncoding
		}
		if found != codedPlain {
			return 0, errEncoding
		}
		found = c
	}
	return found, nil
}

// foldsTo says whether b is the lower-case ASCII s in any case.
func foldsTo(b []byte, s string) bool {
	if len(b) != len(s) {
		return false
	}
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		if c != s[i] {
			return false
		}
	}
	return true
}

const (
	firstBuffer = 8 << 10 // what a body of unknown length starts with
	smallBuffer = 64 << 10
	// maxPooled bounds what the pools keep: a rare large body must not stay in memory for ever.
	maxPooled = 1 << 20
)

// A buffer is pooled scratch. What is in it is valid until it is given back; its capacity is charged to the request that has it.
type buffer struct {
	b       []byte
	strange bool // it was JSON of which nothing is known, which OTLP has a receiver pass over
}

// A bodies reads and decodes request bodies into pooled scratch, within limits and a budget.
type bodies struct {
	wire    int // most bytes as sent
	decoded int // most bytes after decompression

	// Two pools, so that a small body that is slow to come does not sit on a large buffer.
	small, large sync.Pool
	gzips        sync.Pool     // of *inflater
	zstds        sync.Pool     // of *zstd.Decoder, for streams
	zstd         *zstd.Decoder // for DecodeAll, which many goroutines may call
}

func newBodies(wire, decoded int) *bodies {
	// DecodeAll writes straight into a buffer of ours, which is then the decoder's history too: it needs no window of its own, and stops at the
	// buffer's capacity.
	d, err := zstd.NewReader(nil, zstd.WithDecoderMaxWindow(zstdWindow), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		panic("BUG: zstd options: " + err.Error())
	}
	return &bodies{wire: wire, decoded: decoded, zstd: d}
}

// get returns an empty buffer for about n bytes, charged to c.
func (p *bodies) get(c *charge, n int) (*buffer, error) {
	pool := &p.small
	if n > smallBuffer {
		pool = &p.large
	}
	b, ok := pool.Get().(*buffer)
	if !ok {
		b = &buffer{}
	}
	if err := c.take(cap(b.b)); err != nil {
		pool.Put(b)
		return nil, err
	}
	b.b, b.strange = b.b[:0], false
	if err := p.grow(c, b, min(n, smallBuffer)); err != nil {
		p.put(c, b)
		return nil, err
	}
	return b, nil
}

// grow makes room for n bytes in all. While the bytes move, both places are charged.
func (p *bodies) grow(c *charge, b *buffer, n int) error {
	old := cap(b.b)
	if n <= old {
		return nil
	}
	if err := c.take(n); err != nil {
		return err
	}
	b.b = append(make([]byte, 0, n), b.b...)
	c.give(old)
	if more := cap(b.b) - n; more > 0 {
		c.give(-more)
	}
	return nil
}

// put gives a buffer back, and its charge; nil is allowed.
func (p *bodies) put(c *charge, b *buffer) {
	if b == nil {
		return
	}
	c.give(cap(b.b))
	switch {
	case cap(b.b) <= smallBuffer:
		p.small.Put(b)
	case cap(b.b) <= maxPooled:
		p.large.Put(b)
	}
}

// read reads a body as it was sent. length is what the client announced, -1 where it did not say.
func (p *bodies) read(c *charge, r io.Reader, length int) (*buffer, error) {
	if length > p.wire {
		return nil, errTooLarge
	}
	c.announced = int64(max(length, 0))
	hint := length + 1 // and the end is seen without growing
	if length < 0 {
		hint = firstBuffer
	}
	b, err := p.get(c, hint)
	if err != nil {
		return nil, err
	}
	if err := p.fill(c, b, r, p.wire); err != nil {
		p.put(c, b)
		if errors.Is(err, errTooLarge) || ofBudget(err) {
			return nil, err
		}
		return nil, &brokenBody{err}
	}
	return b, nil
}

// A brokenBody did not arrive whole: it was too slow, its client left, or its framing is wrong.
type brokenBody struct{ error }

func (e *brokenBody) Unwrap() error { return e.error }

// fill reads r to its end into b and stops at limit, so that a bomb costs no more than that.
func (p *bodies) fill(c *charge, b *buffer, r io.Reader, limit int) error {
	for {
		if len(b.b) == cap(b.b) {
			if err := p.grow(c, b, min(max(2*cap(b.b), firstBuffer), limit+1)); err != nil {
				return err
			}
		}
		n, err := r.Read(b.b[len(b.b):min(cap(b.b), limit+1)])
		b.b = b.b[:len(b.b)+n]
		if len(b.b) > limit {
			return errTooLarge
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// decode returns the body as it was before its coding, in another buffer than b, which it gives back. Identity is b itself.
func (p *bodies) decode(c *charge, how coding, b *buffer) (*buffer, error) {
	if how == codedPlain {
		if len(b.b) > p.decoded {
			p.put(c, b)
			return nil, errTooLarge
		}
		return b, nil
	}
	defer p.put(c, b)
	hint := 4 * len(b.b)
	if how == codedGzip {
		hint = p.gunzipped(b.b)
	}
	dst, err := p.get(c, hint)
	if err != nil {
		return nil, err
	}
	if how == codedGzip {
		if err = p.grow(c, dst, hint); err == nil {
			err = p.gunzip(c, dst, b.b)
		}
	} else {
		err = p.unzstd(c, dst, b.b)
	}
	if err != nil {
		p.put(c, dst)
		return nil, err
	}
	return dst, nil
}

// mostInflated is how many times its size a gzip stream is believed to become before it is seen to.
const mostInflated = 64

// gunzipped is about how much room a gzip stream wants: its last four bytes say what it becomes. Who lies there
// gets what a bomb gets, up to the same limit and charged to the same budget; a second member costs some growing.
func (p *bodies) gunzipped(body []byte) int {
	n := len(body)
	if n < 18 { // a header and a trailer
		return firstBuffer
	}
	return int(min(uint64(binary.LittleEndian.Uint32(body[n-4:])), uint64(mostInflated*n), uint64(p.decoded))) + inflate.Slack
}

// An inflater reads one gzip stream after another. As the room for what it reads it makes the buffer grow, up to the limit.
type inflater struct {
	d    inflate.Decoder
	pool *bodies
	c    *charge
	dst  *buffer
}

// More implements inflate.Room. A bomb gets to the limit, and no further.
func (in *inflater) More(b []byte) ([]byte, error) {
	in.dst.b = b
	limit := in.pool.decoded + inflate.Slack
	if cap(b) >= limit {
		return nil, errTooLarge
	}
	err := in.pool.grow(in.c, in.dst, min(max(2*cap(b), firstBuffer), limit))
	return in.dst.b, err
}

func (p *bodies) gunzip(c *charge, dst *buffer, body []byte) error {
	in, ok := p.gzips.Get().(*inflater)
	if !ok {
		in = &inflater{pool: p}
	}
	in.c, in.dst = c, dst
	b, err := in.d.Gunzip(dst.b, body, in)
	dst.b = b
	if err == nil && len(b) > p.decoded {
		err = errTooLarge
	}
	in.c, in.dst = nil, nil // let go of the request's before the decoder waits in the pool
	p.gzips.Put(in)
	return err
}

const (
	// zstdWindow is the largest window that RFC 9659 lets an encoder of HTTP content use.
	zstdWindow = 8 << 20
	// zstdSlack is what the decoder wants beyond the content.
	zstdSlack = 64
)

// unzstd decodes straight into dst where the body says how large it will be, as what is compressed in one go does. A stream, and whatever does not
// keep what it says, needs a window of its own, which is charged.
func (p *bodies) unzstd(c *charge, dst *buffer, body []byte) error {
	var h zstd.Header
	if h.Decode(body) == nil && h.HasFCS {
		if h.FrameContentSize > uint64(p.decoded) {
			return errTooLarge
		}
		if err := p.grow(c, dst, int(h.FrameContentSize)+zstdSlack); err != nil {
			return err
		}
		out, err := p.zstd.DecodeAll(body, dst.b[:0])
		if err == nil {
			if len(out) > p.decoded {
				return errTooLarge
			}
			dst.b = out
			return nil
		}
		dst.b = dst.b[:0]
	}
	if err := c.take(zstdWindow); err != nil {
		return err
	}
	defer c.give(zstdWindow)
	zr, ok := p.zstds.Get().(*zstd.Decoder)
	if !ok {
		var err error
		zr, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(zstdWindow))
		if err != nil {
			return err
		}
	}
	defer func() {
		if zr.Reset(nil) == nil { // let go of the request's bytes before the decoder waits in the pool
			p.zstds.Put(zr)
		}
	}()
	if err := zr.Reset(bytes.NewReader(body)); err != nil {
		return err
	}
	return p.fill(c, dst, zr, p.decoded)
}

// convert turns OTLP/JSON into protobuf in another buffer than b, which it gives back.
func (p *bodies) convert(c *charge, kind otlp.Kind, b *buffer) (*buffer, error) {
	defer p.put(c, b)
	// Protobuf is the smaller of the two but for lists of numbers, where each takes eight bytes. The list's commas say how much that can be.
	most := len(b.b) + 8*bytes.Count(b.b, []byte(","))
	if most > 2*p.decoded {
		return nil, errTooLarge
	}
	dst, err := p.get(c, len(b.b))
	if err != nil {
		return nil, err
	}
	if err := c.take(most); err != nil {
		p.put(c, dst)
		return nil, err
	}
	before := cap(dst.b)
	dst.b, err = otlp.JSONToProto(dst.b, kind, b.b)
	c.give(most + before - cap(dst.b)) // from here on the buffer's own capacity is charged
	if err != nil {
		p.put(c, dst)
		return nil, &malformedJSON{err, compressionHint(b.b)}
	}
	dst.strange = len(dst.b) == 0 && otlp.NothingKnown(kind, b.b)
	return dst, nil
}

// malformedJSON is what is wrong with a body that is not OTLP/JSON.
type malformedJSON struct {
	error
	hint string
}

func (e *malformedJSON) Unwrap() error { return e.error }

// compressionHint says so of a body that looks compressed and whose headers say nothing of it; "" of others.
func compressionHint(body []byte) string {
	if bytes.HasPrefix(body, []byte{0x1f, 0x8b}) || bytes.HasPrefix(body, []byte{0x28, 0xb5, 0x2f, 0xfd}) {
		return ". It looks compressed: send Content-Encoding with it."
	}
	return ""
}

// protobufHint says what a body that is not protobuf looks like; "" where nobody can say.
func protobufHint(body []byte) string {
	if bytes.HasPrefix(body, []byte("{")) {
		return ". If it is JSON, send Content-Type: application/json with it."
	}
	return compressionHint(body)
}
