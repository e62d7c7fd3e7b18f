package ingest

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

var (
	errEncoding = errors.New("unsupported Content-Encoding: send identity, gzip or zstd")
	errTooLarge = errors.New("the body is larger than the limit after decompression")
)

// maxPooled bounds what the pool keeps: a rare large body must not stay in memory for ever.
const maxPooled = 1 << 20

// A buffer is pooled scratch. What is in it is valid until it is given back.
type buffer struct{ b []byte }

// A bodies decodes request bodies into pooled scratch, within a limit.
type bodies struct {
	limit   int // bytes after decompression
	buffers sync.Pool
	gzips   sync.Pool
	zstds   sync.Pool
}

func newBodies(limit int) *bodies { return &bodies{limit: limit} }

func (p *bodies) get() *buffer {
	if b, ok := p.buffers.Get().(*buffer); ok {
		b.b = b.b[:0]
		return b
	}
	return &buffer{}
}

// put gives scratch back; nil is allowed.
func (p *bodies) put(b *buffer) {
	if b != nil && cap(b.b) <= maxPooled {
		p.buffers.Put(b)
	}
}

// decode returns the body as it was before Content-Encoding. The result is either body itself (scratch is nil) or lies in
// scratch, which the caller gives back. Encoding names are compared without case, as RFC 9110 has it.
func (p *bodies) decode(encoding string, body []byte) ([]byte, *buffer, error) {
	switch strings.ToLower(strings.TrimSpace(encoding)) {
	case "", "identity":
		if len(body) > p.limit {
			return nil, nil, errTooLarge
		}
		return body, nil, nil
	case "gzip", "x-gzip":
		scratch := p.get()
		err := p.gunzip(scratch, body)
		if err != nil {
			p.put(scratch)
			return nil, nil, err
		}
		return scratch.b, scratch, nil
	case "zstd":
		scratch := p.get()
		err := p.unzstd(scratch, body)
		if err != nil {
			p.put(scratch)
			return nil, nil, err
		}
		return scratch.b, scratch, nil
	}
	return nil, nil, errEncoding
}

func (p *bodies) gunzip(dst *buffer, body []byte) error {
	src := bytes.NewReader(body)
	zr, ok := p.gzips.Get().(*gzip.Reader)
	if ok {
		if err := zr.Reset(src); err != nil {
			p.gzips.Put(zr)
			return err
		}
	} else {
		var err error
		zr, err = gzip.NewReader(src)
		if err != nil {
			return err
		}
	}
	defer p.gzips.Put(zr)
	return p.fill(dst, zr)
}

// zstdWindow is the largest window that RFC 9659 lets an encoder of HTTP content use.
const zstdWindow = 8 << 20

func (p *bodies) unzstd(dst *buffer, body []byte) error {
	src := bytes.NewReader(body)
	zr, ok := p.zstds.Get().(*zstd.Decoder)
	if !ok {
		var err error
		// One goroutine-free decoder at a time; the window bounds its own memory, fill bounds the output.
		zr, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(zstdWindow))
		if err != nil {
			return err
		}
	}
	defer func() {
		// Let go of the request's bytes before the decoder waits in the pool.
		if zr.Reset(nil) == nil {
			p.zstds.Put(zr)
		}
	}()
	if err := zr.Reset(src); err != nil {
		return err
	}
	return p.fill(dst, zr)
}

// fill reads r to its end into dst and stops at the limit, so that a bomb costs no more than the limit.
func (p *bodies) fill(dst *buffer, r io.Reader) error {
	if cap(dst.b) == 0 {
		dst.b = make([]byte, 0, 16<<10)
	}
	for {
		if len(dst.b) == cap(dst.b) {
			dst.b = append(dst.b, 0)[:len(dst.b)]
		}
		room := dst.b[len(dst.b):cap(dst.b)]
		if most := p.limit + 1 - len(dst.b); len(room) > most {
			room = room[:most]
		}
		n, err := r.Read(room)
		dst.b = dst.b[:len(dst.b)+n]
		if len(dst.b) > p.limit {
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
