package auth

import (
	"io"
	"net"
	"sync"
	"testing"
)

// A proxy stands before a server and can be cut, or made to swallow everything without an answer.
type proxy struct {
	ln     net.Listener
	target string

	mu    sync.Mutex // guards the following
	mode  proxyMode
	conns map[net.Conn]bool
}

type proxyMode int

const (
	working proxyMode = iota
	cut               // connections are closed
	silent            // connections are taken, nothing is answered
)

func newProxy(t *testing.T, target string) *proxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{ln: ln, target: target, conns: map[net.Conn]bool{}}
	go p.serve()
	t.Cleanup(func() {
		_ = ln.Close()
		p.set(cut)
	})
	return p
}

func (p *proxy) addr() string { return p.ln.Addr().String() }

// set changes the mode; what is connected is cut.
func (p *proxy) set(m proxyMode) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mode = m
	for c := range p.conns {
		_ = c.Close()
	}
	clear(p.conns)
}

func (p *proxy) serve() {
	for {
		c, err := p.ln.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		mode := p.mode
		if mode != cut {
			p.conns[c] = true
		}
		p.mu.Unlock()
		switch mode {
		case cut:
			_ = c.Close()
		case silent:
			go func() { _, _ = io.Copy(io.Discard, c) }()
		case working:
			up, err := net.Dial("tcp", p.target)
			if err != nil {
				_ = c.Close()
				continue
			}
			p.mu.Lock()
			p.conns[up] = true
			p.mu.Unlock()
			pipe := func(dst, src net.Conn) {
				_, _ = io.Copy(dst, src)
				_ = dst.Close()
			}
			go pipe(up, c)
			go pipe(c, up)
		}
	}
}
