package ingest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/valyala/fasthttp"
)

// ServerConfig is what a Server is made of.
type ServerConfig struct {
	Edge            *Edge
	MaxRequestBytes int            // largest body as sent; default 64 MiB
	TrustedProxies  []netip.Prefix // whose X-Forwarded-For is believed
	ReadTimeout     time.Duration  // for one request, headers and body; default 30 s
	IdleTimeout     time.Duration  // of a connection kept alive; default 2 min
	Logger          *slog.Logger
}

// A Server is the HTTP listener of an Edge. It is the only thing that sees fasthttp.
type Server struct {
	cfg  ServerConfig
	http *fasthttp.Server
	// base is the context of every request. A *fasthttp.RequestCtx is done only when the server stops, so it says nothing of one request.
	base   context.Context
	cancel context.CancelFunc
}

// NewServer returns a server that is ready to Serve.
func NewServer(cfg ServerConfig) *Server {
	if cfg.MaxRequestBytes == 0 {
		cfg.MaxRequestBytes = 64 << 20
	}
	if cfg.ReadTimeout == 0 {
		cfg.ReadTimeout = 30 * time.Second
	}
	if cfg.IdleTimeout == 0 {
		cfg.IdleTimeout = 2 * time.Minute
	}
	base, cancel := context.WithCancel(context.Background())
	s := &Server{cfg: cfg, base: base, cancel: cancel}
	s.http = &fasthttp.Server{
		Handler:                      s.handle,
		ErrorHandler:                 s.unreadable,
		Name:                         "sluice",
		MaxRequestBodySize:           cfg.MaxRequestBytes,
		ReadBufferSize:               16 << 10, // also the limit on a request's headers
		ReadTimeout:                  cfg.ReadTimeout,
		WriteTimeout:                 10 * time.Second,
		IdleTimeout:                  cfg.IdleTimeout,
		CloseOnShutdown:              true,
		DisablePreParseMultipartForm: true,
		NoDefaultContentType:         true,
		Logger:                       quiet{},
	}
	return s
}

// quiet drops fasthttp's own lines: they carry what a stranger sent. What they are about is counted and logged by unreadable.
type quiet struct{}

func (quiet) Printf(string, ...any) {}

// Serve answers on ln until Shutdown, then returns nil.
func (s *Server) Serve(ln net.Listener) error { return s.http.Serve(ln) }

// Shutdown closes the listener and waits for the requests under way until ctx ends.
func (s *Server) Shutdown(ctx context.Context) error {
	defer s.cancel()
	return s.http.ShutdownWithContext(ctx)
}

func (s *Server) handle(ctx *fasthttp.RequestCtx) {
	r := request{
		id:              newRequestID(),
		method:          ctx.Method(),
		path:            ctx.Path(),
		key:             ctx.Request.Header.Peek("x-flowstate-key"),
		authorization:   ctx.Request.Header.Peek("Authorization"),
		contentType:     string(ctx.Request.Header.ContentType()),
		contentEncoding: string(ctx.Request.Header.ContentEncoding()),
		idempotencyKey:  string(ctx.Request.Header.Peek("Idempotency-Key")),
		body:            ctx.Request.Body(),
		remote:          s.remote(ctx),
		received:        time.Now(),
	}
	if string(r.method) == "PRI" {
		s.http2(ctx, r.remote)
		return
	}
	s.write(ctx, &r, s.guarded(&r))
}

// guarded turns a panic into a counted 500: one request's bug must not take down the others. The log has the stack, not the request.
func (s *Server) guarded(r *request) response {
	var res response
	func() {
		defer func() {
			if v := recover(); v != nil {
				s.cfg.Logger.Error("panic in a request", "request_id", r.id, "stack", string(debug.Stack()))
				res = s.cfg.Edge.problem(r, 500, panicked, "This is a fault of ours. Request "+r.id+".")
				s.cfg.Edge.ledger.request(kindOther, res.code, res.reason, time.Since(r.received))
			}
		}()
		res = s.cfg.Edge.handle(s.base, r)
	}()
	return res
}

func (s *Server) write(ctx *fasthttp.RequestCtx, r *request, res response) {
	h := &ctx.Response.Header
	ctx.SetStatusCode(res.code)
	h.SetContentType(res.contentType)
	h.Set("X-Request-Id", r.id)
	if res.retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(res.retryAfter))
	}
	if res.allow != "" {
		h.Set("Allow", res.allow)
	}
	if res.challenge {
		h.Set("WWW-Authenticate", `Bearer realm="sluice"`)
	}
	if res.limit.Limit > 0 {
		// draft-ietf-httpapi-ratelimit-headers: what the limit is, what is left of it, and seconds until it is whole again.
		h.Set("RateLimit-Policy", fmt.Sprintf("%q;q=%d;w=1", res.limit.By, res.limit.Limit))
		h.Set("RateLimit", fmt.Sprintf("%q;r=%d;t=%d", res.limit.By, res.limit.Remaining, int(math.Ceil(res.limit.Reset.Seconds()))))
	}
	ctx.Response.SetBodyRaw(res.body)
}

// remote is the sender's address: the connection's, or what a trusted proxy says it is.
func (s *Server) remote(ctx *fasthttp.RequestCtx) netip.Addr {
	tcp, ok := ctx.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	forwarded := ""
	if len(s.cfg.TrustedProxies) > 0 {
		forwarded = string(ctx.Request.Header.Peek("X-Forwarded-For"))
	}
	return ClientAddr(tcp.AddrPort().Addr(), forwarded, s.cfg.TrustedProxies)
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

// unreadable answers what fasthttp could not read. Its own handler would call all of it 400.
func (s *Server) unreadable(ctx *fasthttp.RequestCtx, err error) {
	r := &request{id: newRequestID(), received: time.Now(), path: ctx.Path()}
	var small *fasthttp.ErrSmallBuffer
	var netErr net.Error
	f := refused{code: 400, reason: malformedRequest, detail: "This is not an HTTP/1.1 request that can be read."}
	switch {
	case errors.Is(err, fasthttp.ErrBodyTooLarge):
		f = refused{code: 413, reason: bodyTooLarge,
			detail: "The body is larger than " + strconv.Itoa(s.cfg.MaxRequestBytes) + " bytes. Send smaller batches."}
	case errors.As(err, &small):
		f = refused{code: 431, reason: headersTooLarge, detail: "The request's headers are larger than 16 KiB."}
	case errors.As(err, &netErr) && netErr.Timeout():
		f = refused{code: 408, reason: readTimeout, detail: "The request did not arrive in time."}
	}
	if strings.HasPrefix(string(ctx.Method()), "PRI") || strings.Contains(err.Error(), "PRI * HTTP/2.0") {
		s.http2(ctx, s.remote(ctx))
		return
	}
	rt, known := routes[string(r.path)]
	kind := kindOther
	var res response
	if known {
		kind = rt.kind
		r.contentType = string(ctx.Request.Header.ContentType())
		res = s.cfg.Edge.refuse(r, rt, f)
	} else {
		res = s.cfg.Edge.problem(r, f.code, f.reason, f.detail)
	}
	s.cfg.Edge.ledger.request(kind, res.code, res.reason, time.Since(r.received))
	s.write(ctx, r, res)
	ctx.SetConnectionClose()
}

// http2 is somebody's gRPC exporter on the HTTP port: it shows its owner nothing, so our log has to say what to do.
func (s *Server) http2(ctx *fasthttp.RequestCtx, remote netip.Addr) {
	s.cfg.Logger.Warn("gRPC was sent to the HTTP port: set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf, or point the exporter at the gRPC port",
		"remote", remote.String())
	r := &request{id: newRequestID(), received: time.Now()}
	res := s.cfg.Edge.problem(r, 400, malformedRequest, "This port speaks HTTP/1.1. For gRPC use the gRPC port, or set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf.")
	s.cfg.Edge.ledger.request(kindOther, res.code, res.reason, time.Since(r.received))
	s.write(ctx, r, res)
	ctx.SetConnectionClose()
}
