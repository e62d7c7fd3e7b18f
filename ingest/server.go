package ingest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"

	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/signals"
)

// ServerConfig is what a Server is made of.
type ServerConfig struct {
	Edge *Edge
	ListenConfig
	HeaderTimeout time.Duration // for the headers of a request, and for the first byte of a new connection; default 10 s
	BodyTimeout   time.Duration // for its body; default 30 s
	IdleTimeout   time.Duration // of a connection kept alive; default 2 min
	Logger        *slog.Logger

	writeTimeout time.Duration // of one answer; default writeTimeout
}

// A Server is the HTTP listener of an Edge. It is the only thing that sees fasthttp.
//
// Bodies are streamed to the edge, not read by fasthttp: so a request is refused for its path, key, type or announced size before its body is
// read, and the bytes of all bodies together stay within the edge's budget. What a refused client still has to send is read and dropped, up
// to a bound, since a client that is cut off while it sends does not see the answer.
type Server struct {
	cfg  ServerConfig
	http *fasthttp.Server
	// base is the context of every request. A *fasthttp.RequestCtx is done only when the server stops, so it says nothing of one request.
	base     context.Context
	cancel   context.CancelFunc
	requests sync.Pool // of *request
	draining atomic.Bool
}

const (
	// maxHeaders bounds the header block of a request on either listener.
	maxHeaders = 16 << 10
	// writeTimeout is for an answer of a few KiB.
	writeTimeout = 10 * time.Second
)

// NewServer returns a server that is ready to Serve.
func NewServer(cfg ServerConfig) *Server {
	if cfg.HeaderTimeout == 0 {
		cfg.HeaderTimeout = 10 * time.Second
	}
	if cfg.BodyTimeout == 0 {
		cfg.BodyTimeout = 30 * time.Second
	}
	if cfg.IdleTimeout == 0 {
		cfg.IdleTimeout = 2 * time.Minute
	}
	if cfg.writeTimeout == 0 {
		cfg.writeTimeout = writeTimeout
	}
	cfg.ListenConfig = cfg.withDefaults()
	cfg.lateDeadlines = true
	base, cancel := context.WithCancel(context.Background())
	s := &Server{cfg: cfg, base: base, cancel: cancel}
	s.http = &fasthttp.Server{
		Handler:           s.handle,
		ErrorHandler:      s.unreadable,
		ExpectHandler:     s.expect,
		Name:              "sluice",
		Concurrency:       cfg.MaxConns + 1, // the listener keeps the bound, and says so to the client
		StreamRequestBody: true,
		// With StreamRequestBody this is only how much fasthttp reads before it calls the handler. More would be copied twice, and a client
		// that stops in it could be answered in no encoding but ours.
		MaxRequestBodySize: 1,
		ReadBufferSize:     maxHeaders,
		ReadTimeout:        cfg.HeaderTimeout,
		HeaderReceived: func(*fasthttp.RequestHeader) fasthttp.RequestConfig {
			return fasthttp.RequestConfig{ReadTimeout: cfg.BodyTimeout}
		},
		WriteTimeout:                 cfg.writeTimeout,
		IdleTimeout:                  cfg.IdleTimeout,
		CloseOnShutdown:              true,
		DisablePreParseMultipartForm: true,
		NoDefaultContentType:         true,
		LazyRequestTime:              true,
		Logger:                       quiet{},
	}
	return s
}

// quiet drops fasthttp's own lines: they carry what a stranger sent. What they are about is counted and logged by unreadable.
type quiet struct{}

func (quiet) Printf(string, ...any) {}

// Serve answers on ln until Shutdown, then returns nil.
func (s *Server) Serve(ln net.Listener) error {
	return s.http.Serve(s.cfg.listen(ln, s.cfg.Edge.ledger.listener("http", s.cfg.MaxConns), tooManyConns, "http/1.1"))
}

// tooManyConns is what a client hears that is one too many for the listener.
const tooManyConns = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

// Drain tells clients, with each answer from now on, to close their connection and come back by another: what stands before the edge then leads them
// elsewhere, before Shutdown closes connections under them. It goes on answering.
func (s *Server) Drain() { s.draining.Store(true) }

// Shutdown closes the listener and waits for the requests under way until ctx ends.
func (s *Server) Shutdown(ctx context.Context) error {
	defer s.cancel()
	return s.http.ShutdownWithContext(ctx)
}

// request reads the headers into r. Its bytes are fasthttp's, until the handler returns.
func (s *Server) request(ctx *fasthttp.RequestCtx, r *request) {
	h := &ctx.Request.Header
	*r = request{
		id:             requestIDOf(h.Peek("X-Request-Id")),
		method:         ctx.Method(),
		path:           ctx.Path(),
		contentType:    h.ContentType(),
		idempotencyKey: h.Peek("Idempotency-Key"),
		userAgent:      h.UserAgent(),
		remote:         s.remote(ctx),
		received:       time.Now(),
		length:         max(h.ContentLength(), -1), // -2 is none, of which there is no stream
		answer:         r.answer,
	}
	if s.cfg.Edge.cfg.Tracer != nil {
		r.traceparent = h.Peek("Traceparent")
	}
	var twice bool
	r.key, twice = single(h.PeekAll("X-Flowstate-Key"))
	r.ambiguous = twice
	r.authorization, twice = single(h.PeekAll("Authorization"))
	r.ambiguous = r.ambiguous || twice && len(r.key) == 0
	if len(h.Peek("Ce-Specversion")) > 0 && string(r.path) == "/v1/signals" && signals.InBinary(string(r.contentType)) {
		for name, value := range h.All() {
			if len(name) > 3 && strings.EqualFold(string(name[:3]), "ce-") {
				r.event = append(r.event, signals.BinaryAttribute{Name: strings.ToLower(string(name[3:])), Value: string(value)})
			}
		}
	}
	switch codings := h.PeekAll("Content-Encoding"); len(codings) {
	case 0:
	case 1:
		r.contentEncoding = codings[0]
	default:
		r.contentEncoding = bytes.Join(codings, []byte(","))
	}
}

// take returns a request that was used before, or a new one, and put takes it back once its answer is copied.
func (s *Server) take() *request {
	if r, ok := s.requests.Get().(*request); ok {
		return r
	}
	return &request{}
}

func (s *Server) put(r *request) {
	*r = request{answer: r.answer[:0]}
	if cap(r.answer) <= maxAnswer {
		s.requests.Put(r)
	}
}

// maxAnswer is the largest room for an answer that is kept: that of an OTLP answer with all of its text.
const maxAnswer = 8 << 10

// single is the one value of a header. The same value twice is one; it reports whether there are different ones, of which a proxy before us
// may have looked at another than we would.
func single(values [][]byte) ([]byte, bool) {
	if len(values) == 0 {
		return nil, false
	}
	for _, v := range values[1:] {
		if !bytes.Equal(bytes.TrimSpace(v), bytes.TrimSpace(values[0])) {
			return values[0], true
		}
	}
	return values[0], false
}

func (s *Server) handle(ctx *fasthttp.RequestCtx) {
	c := ours(ctx.Conn())
	c.linger.Store(false)
	r := s.take()
	defer s.put(r)
	s.request(ctx, r)
	if string(r.method) == "PRI" {
		s.http2(ctx, r.remote)
		return
	}
	r.body = ctx.RequestBodyStream()
	if r.body == nil {
		r.length, r.read = 0, true
	}
	s.write(ctx, r, s.cfg.Edge.serve(s.base, r))
	if s.draining.Load() {
		ctx.SetConnectionClose()
	}
	if r.read || r.length == 0 {
		return
	}
	// A part of the body is still to come. fasthttp reads a small rest itself and keeps the connection; if it closes, the client has to be
	// able to read its answer.
	c.linger.Store(true)
	if r.length < 0 || r.length > dropped {
		ctx.SetConnectionClose()
	}
}

// dropped is how much of a refused body is read for the sake of the connection.
const dropped = 64 << 10

// answerSoon gives an answer its time to be written. fasthttp does so before those of handle only: the others would be written under the deadline of the
// answer before, which is over on a connection that was idle.
func (s *Server) answerSoon(ctx *fasthttp.RequestCtx) {
	_ = ctx.Conn().SetWriteDeadline(time.Now().Add(s.cfg.writeTimeout)) // a closed connection says so when it is written to
}

// expect answers "Expect: 100-continue": a request that is refused without its body need not send it.
func (s *Server) expect(ctx *fasthttp.RequestCtx) int {
	ours(ctx.Conn()).linger.Store(true) // a client may send without waiting; handle takes it back
	s.answerSoon(ctx)
	r := s.take()
	defer s.put(r)
	s.request(ctx, r)
	res, refused := s.cfg.Edge.refuseEarly(s.base, r)
	if !refused {
		return fasthttp.StatusContinue
	}
	s.write(ctx, r, res)
	return res.code
}

func (s *Server) write(ctx *fasthttp.RequestCtx, r *request, res response) {
	h := &ctx.Response.Header
	ctx.SetStatusCode(res.code)
	h.SetContentType(res.contentType)
	h.SetBytesV("X-Request-Id", r.id.bytes())
	if res.retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(res.retryAfter))
	}
	if res.allow != "" {
		h.Set("Allow", res.allow)
	}
	if res.challenge {
		h.Set("WWW-Authenticate", `Bearer realm="sluice"`)
	}
	setRateLimit(h.Set, res.limit)
	ctx.Response.SetBody(res.body) // a copy: it may be the request's own room
}

// setRateLimit sets the headers of draft-ietf-httpapi-ratelimit-headers: what the limit is, what is left of it, and seconds until it is whole again.
func setRateLimit(set func(name, value string), d auth.Decision) {
	if d.Limit == 0 {
		return
	}
	set("RateLimit-Policy", fmt.Sprintf("%q;q=%d;w=1", d.By, d.Limit))
	set("RateLimit", fmt.Sprintf("%q;r=%d;t=%d", d.By, d.Remaining, int(math.Ceil(d.Reset.Seconds()))))
}

// remote is the sender's address: the connection's, or what a trusted proxy says it is.
func (s *Server) remote(ctx *fasthttp.RequestCtx) netip.Addr {
	addr := addrOf(ctx.RemoteAddr())
	if len(s.cfg.TrustedProxies) == 0 {
		return addr
	}
	return ClientAddr(addr, string(bytes.Join(ctx.Request.Header.PeekAll("X-Forwarded-For"), []byte(","))), s.cfg.TrustedProxies)
}

// unreadable answers what fasthttp could not read. Its own handler would call all of it 400.
func (s *Server) unreadable(ctx *fasthttp.RequestCtx, err error) {
	s.answerSoon(ctx)
	r := &request{id: newRequestID(), received: time.Now(), path: ctx.Path(), contentType: ctx.Request.Header.ContentType(), length: -1}
	if strings.HasPrefix(string(ctx.Method()), "PRI") || strings.Contains(err.Error(), "PRI * HTTP/2.0") {
		s.http2(ctx, s.remote(ctx))
		return
	}
	ours(ctx.Conn()).linger.Store(true)
	var small *fasthttp.ErrSmallBuffer
	var netErr net.Error
	f := refused{code: 400, reason: malformedRequest, detail: "This is not an HTTP/1.1 request that can be read."}
	switch {
	case errors.As(err, &small):
		f = refused{code: 431, reason: headersTooLarge, detail: "The request's headers are larger than " + strconv.Itoa(maxHeaders) + " bytes."}
	case errors.As(err, &netErr) && netErr.Timeout():
		f = refused{code: 408, reason: readTimeout, detail: "The request did not arrive in time."}
	}
	rt, _ := r.route()
	s.write(ctx, r, s.cfg.Edge.count(rt, r, s.cfg.Edge.refuse(r, rt, f)))
	ctx.SetConnectionClose()
}

// SaidGRPCToHTTP is a warning that anybody may cause with each connection, so the log should not have all of them.
const SaidGRPCToHTTP = "gRPC was sent to the HTTP port: set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf, or point the exporter at the gRPC port"

// http2 is somebody's gRPC exporter on the HTTP port: it shows its owner nothing, so our log has to say what to do.
func (s *Server) http2(ctx *fasthttp.RequestCtx, remote netip.Addr) {
	s.cfg.Logger.Warn(SaidGRPCToHTTP,
		"remote", remote.String())
	r := &request{id: newRequestID(), received: time.Now()}
	s.write(ctx, r, s.cfg.Edge.count(route{}, r, s.cfg.Edge.refuse(r, route{}, refused{code: 400, reason: malformedRequest,
		detail: "This port speaks HTTP/1.1. For gRPC use the gRPC port, or set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf."})))
	ctx.SetConnectionClose()
}
