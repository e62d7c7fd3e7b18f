package ingest

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	proxyproto "github.com/pires/go-proxyproto"
)

// ListenConfig is what the listeners of both protocols share. Its zero value is plain TCP.
type ListenConfig struct {
	MaxConns       int            // open connections, beyond which new ones are turned away; default 10,000. One that is idle holds about 25 KiB
	TrustedProxies []netip.Prefix // whose X-Forwarded-For, and PROXY header, is believed
	ProxyProtocol  bool           // connections from TrustedProxies begin with a PROXY header, version 1 or 2; others must not
	Certificate    *Certificate   // TLS by it; nil: none

	// lateDeadlines: see conn. Only for a server that sets the deadlines of a connection while nothing waits on it.
	lateDeadlines bool
}

func (c ListenConfig) withDefaults() ListenConfig {
	if c.MaxConns == 0 {
		c.MaxConns = 10_000
	}
	return c
}

// proxyHeaderTimeout is how long a proxy may take for its own first bytes.
const proxyHeaderTimeout = 5 * time.Second

// listen puts what c asks for around ln: PROXY protocol innermost, then our own connections, then TLS for the protocols named.
func (c ListenConfig) listen(ln net.Listener, m listenerMetrics, tooMany string, protocols ...string) net.Listener {
	if c.ProxyProtocol {
		ln = &proxyproto.Listener{Listener: ln, ReadHeaderTimeout: proxyHeaderTimeout, ConnPolicy: c.proxyPolicy}
	}
	l := &listener{Listener: ln, max: int64(c.MaxConns), metrics: m, late: c.lateDeadlines}
	if c.Certificate == nil {
		l.tooMany = tooMany
		return l
	}
	return tls.NewListener(l, c.Certificate.Config(protocols...))
}

// proxyPolicy wants the header from those who are trusted to send it, so that nobody behind them can send one in their place, and leaves it alone
// from others, to whom it is junk before a request.
func (c ListenConfig) proxyPolicy(o proxyproto.ConnPolicyOptions) (proxyproto.Policy, error) {
	if trusted(addrOf(o.Upstream), c.TrustedProxies) {
		return proxyproto.REQUIRE, nil
	}
	return proxyproto.SKIP, nil
}

// A listener hands out connections of our own, up to a number.
type listener struct {
	net.Listener
	max     int64
	tooMany string // written to a connection that is turned away
	late    bool   // of the connections
	open    atomic.Int64
	metrics listenerMetrics
}

func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.open.Add(1) <= l.max {
			l.metrics.open.Inc()
			return &conn{Conn: c, listener: l, late: l.late}, nil
		}
		l.open.Add(-1)
		l.metrics.refused.Inc()
		if l.tooMany != "" && c.SetWriteDeadline(time.Now().Add(100*time.Millisecond)) == nil {
			_, _ = io.WriteString(c, l.tooMany) // it is told as well as can be without waiting for it
		}
		c.Close()
	}
}

// A conn is one connection of a client. Close may linger: see there.
//
// A server sets four deadlines for a request: for its headers, its body, its answer and the wait for the next. Most requests come in one piece, so that
// nothing waits under the first two, and those of a busy connection differ from the ones before by nothing that matters. With late, a deadline is only
// noted, and set when something is about to wait under it; one in the past, which is to wake what waits, is set at once.
type conn struct {
	net.Conn
	listener *listener
	linger   atomic.Bool
	closing  sync.Once

	late        bool
	read, write deadline
}

// A deadline is one that was asked for and the one that is set, in nanoseconds since deadlineZero; 0 is none.
type deadline struct{ asked, set atomic.Int64 }

var deadlineZero = time.Now() // by the monotonic clock, so that a clock that is set changes no deadline

// want notes t, and says whether it has to be set at once.
func (d *deadline) want(t time.Time) bool {
	n := int64(0)
	if !t.IsZero() {
		n = int64(t.Sub(deadlineZero))
		if !t.After(time.Now()) {
			d.asked.Store(n)
			d.set.Store(n)
			return true
		}
	}
	d.asked.Store(n)
	return false
}

// deadlineSlack is how much of a deadline's time may be missing: a part of this many.
const deadlineSlack = 32

// due returns the deadline that has to be set now, if one has.
func (d *deadline) due() (time.Time, bool) {
	asked, set := d.asked.Load(), d.set.Load()
	if asked == set {
		return time.Time{}, false
	}
	if asked == 0 {
		d.set.Store(0)
		return time.Time{}, true
	}
	t := deadlineZero.Add(time.Duration(asked))
	if missing := asked - set; set != 0 && missing > 0 && missing < int64(time.Until(t))/deadlineSlack {
		return time.Time{}, false
	}
	d.set.Store(asked)
	return t, true
}

func (c *conn) SetReadDeadline(t time.Time) error {
	if c.late && !c.read.want(t) {
		return nil
	}
	return c.Conn.SetReadDeadline(t)
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	if c.late && !c.write.want(t) {
		return nil
	}
	return c.Conn.SetWriteDeadline(t)
}

func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *conn) Read(b []byte) (int, error) {
	if c.late {
		if t, ok := c.read.due(); ok {
			if err := c.Conn.SetReadDeadline(t); err != nil {
				return 0, err
			}
		}
	}
	return c.Conn.Read(b)
}

func (c *conn) Write(b []byte) (int, error) {
	if c.late {
		if t, ok := c.write.due(); ok {
			if err := c.Conn.SetWriteDeadline(t); err != nil {
				return 0, err
			}
		}
	}
	return c.Conn.Write(b)
}

const (
	lingerTime  = 5 * time.Second
	lingerQuiet = time.Second // without a byte
)

var errClosed = errors.New("closed")

// Close closes the connection. Where a client may still be sending, it first says that nothing more comes, then drops what arrives until the client
// hangs up or its time is over. Closing at once would make the kernel reset the connection, and a client that is still writing would see that
// instead of its answer.
func (c *conn) Close() error {
	err := errClosed
	c.closing.Do(func() {
		if c.linger.Load() {
			c.drop()
		}
		err = c.Conn.Close()
		c.listener.open.Add(-1)
		c.listener.metrics.open.Dec()
	})
	if errors.Is(err, errClosed) {
		return net.ErrClosed
	}
	return err
}

func (c *conn) drop() {
	var half interface{ CloseWrite() error }
	switch raw := c.Conn.(type) {
	case *net.TCPConn:
		half = raw
	case *proxyproto.Conn:
		if tcp, ok := raw.TCPConn(); ok {
			half = tcp
		}
	}
	if half == nil || half.CloseWrite() != nil {
		return
	}
	var scratch [4 << 10]byte
	for end := time.Now().Add(lingerTime); time.Now().Before(end); {
		if c.Conn.SetReadDeadline(time.Now().Add(lingerQuiet)) != nil {
			return
		}
		if _, err := c.Conn.Read(scratch[:]); err != nil {
			return
		}
	}
}

// ours is the connection that listener made, under TLS or not.
func ours(c net.Conn) *conn {
	for {
		switch x := c.(type) {
		case *conn:
			return x
		case *tls.Conn:
			c = x.NetConn()
		default:
			return &conn{Conn: c} // not from our listener: nothing looks at it again
		}
	}
}

func addrOf(a net.Addr) netip.Addr {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return tcp.AddrPort().Addr().Unmap()
}

// ClientAddr is who sent a request that came from addr with this X-Forwarded-For: addr itself, unless it is one of our own proxies. Then it is the
// first address from the right that is not; what stands further left the sender may have made up.
func ClientAddr(addr netip.Addr, forwarded string, proxies []netip.Prefix) netip.Addr {
	addr = addr.Unmap()
	if !trusted(addr, proxies) {
		return addr
	}
	hops := strings.Split(forwarded, ",")
	for i := len(hops) - 1; i >= 0; i-- {
		hop, err := netip.ParseAddr(strings.TrimSpace(hops[i]))
		if err != nil {
			return addr
		}
		addr = hop.Unmap()
		if !trusted(addr, proxies) {
			return addr
		}
	}
	return addr
}

func trusted(a netip.Addr, proxies []netip.Prefix) bool {
	for _, p := range proxies {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
