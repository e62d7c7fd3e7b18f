package ingest

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"flowstate.inc/sluice/ingest/otlp"
)

// GRPCConfig is what a GRPCServer is made of.
type GRPCConfig struct {
	Edge *Edge
	ListenConfig
	MaxStreams    int           // requests at once on one connection; default 128
	HeaderTimeout time.Duration // for the handshake and the headers of a request; default 10 s
	BodyTimeout   time.Duration // for its body; default 30 s
	IdleTimeout   time.Duration // of a connection kept alive; default 5 min
	Logger        *slog.Logger
}

// A GRPCServer is the OTLP/gRPC listener of an Edge: the three Export methods, by the same path, limits and ledger as OTLP/HTTP.
//
// It frames gRPC itself on the standard library's HTTP/2, because an Export is one message each way, and grpc-go's server receives and inflates the
// whole of a message, of a size nobody announces, before anything of ours can look at it: the key could not be asked for first, and the bytes in
// memory would be bounded by connections times streams times the largest message. Here a message is read as a body is, within the edge's
// budget, and what is unread is held back by flow control, 128 KiB a connection at most. grpc-go's client is the judge of it in the tests.
//
// grpc-timeout is not read. It ends the client's own wait; what the edge took it finishes all the same, as when a client of OTLP/HTTP leaves: to give up early
// would only put into the spool what Kafka is about to acknowledge, and the client's retry has the same flowstate-msg-id either way.
type GRPCServer struct {
	cfg  GRPCConfig
	http *http.Server
	// base is the context of every request: a client that leaves does not undo what was taken.
	base     context.Context
	cancel   context.CancelFunc
	draining atomic.Bool
}

// NewGRPCServer returns a server that is ready to Serve.
func NewGRPCServer(cfg GRPCConfig) *GRPCServer {
	if cfg.MaxStreams == 0 {
		cfg.MaxStreams = 128
	}
	if cfg.HeaderTimeout == 0 {
		cfg.HeaderTimeout = 10 * time.Second
	}
	if cfg.BodyTimeout == 0 {
		cfg.BodyTimeout = 30 * time.Second
	}
	if cfg.IdleTimeout == 0 {
		cfg.IdleTimeout = 5 * time.Minute
	}
	cfg.ListenConfig = cfg.withDefaults()
	base, cancel := context.WithCancel(context.Background())
	s := &GRPCServer{cfg: cfg, base: base, cancel: cancel}
	var protocols http.Protocols
	protocols.SetHTTP1(true) // to tell those who come to the wrong port
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	s.http = &http.Server{
		Handler:           http.HandlerFunc(s.handle),
		Protocols:         &protocols,
		ReadHeaderTimeout: cfg.HeaderTimeout,
		ReadTimeout:       cfg.BodyTimeout,
		WriteTimeout:      cfg.BodyTimeout + writeTimeout + writeTimeout, // it begins with the request: its body, 8 s for the answer, and the answer's way
		IdleTimeout:       cfg.IdleTimeout,
		MaxHeaderBytes:    maxHeaders,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:          cfg.MaxStreams,
			MaxReceiveBufferPerConnection: receiveBuffer, // nobody has asked yet whose bytes these are
			MaxReceiveBufferPerStream:     receiveBuffer / 2,
			SendPingTimeout:               time.Minute, // who has gone without a word is found out
			PingTimeout:                   15 * time.Second,
			WriteByteTimeout:              writeTimeout,
		},
		ErrorLog: slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelDebug),
	}
	if cfg.Certificate != nil {
		s.http.TLSConfig = cfg.Certificate.Config("h2")
	}
	return s
}

// Serve answers on ln until Shutdown, then returns nil.
func (s *GRPCServer) Serve(ln net.Listener) error {
	err := s.http.Serve(s.cfg.listen(ln, s.cfg.Edge.ledger.listener("grpc", s.cfg.MaxConns), "", "h2"))
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Drain tells clients, with each answer from now on, to go elsewhere (GOAWAY). It goes on answering.
func (s *GRPCServer) Drain() { s.draining.Store(true) }

// Shutdown closes the listener, tells clients to go elsewhere (GOAWAY) and waits for the requests under way until ctx ends.
func (s *GRPCServer) Shutdown(ctx context.Context) error {
	defer s.cancel()
	return s.http.Shutdown(ctx)
}

const (
	typeGRPC = "application/grpc"

	receiveBuffer = 128 << 10 // the least that HTTP/2 allows is 64 KiB, and one stream that waits for its key must not hold up the others
)

// isGRPC says whether a content type is gRPC's, in protobuf; it may have parameters.
func isGRPC(contentType string) bool {
	t := mediaType([]byte(contentType))
	return foldsTo(t, typeGRPC) || foldsTo(t, typeGRPC+"+proto")
}

func (s *GRPCServer) handle(w http.ResponseWriter, q *http.Request) {
	if s.draining.Load() {
		w.Header().Set("Connection", "close") // net/http makes it a GOAWAY
	}
	if q.ProtoMajor < 2 || q.Method != http.MethodPost || !isGRPC(q.Header.Get("Content-Type")) {
		s.notGRPC(w, q)
		return
	}
	r := request{
		id:     requestIDOf([]byte(q.Header.Get("X-Request-Id"))),
		method: []byte(q.Method),
		path:   []byte(q.URL.Path),
		remote: s.remote(q),
		// a copy: serve only borrows it, but it is a string here
		userAgent: []byte(q.Header.Get("User-Agent")),
		received:  time.Now(),
		grpc:      true,
		length:    -1,
	}
	if s.cfg.Edge.cfg.Tracer != nil {
		r.traceparent = []byte(q.Header.Get("Traceparent"))
	}
	var twice bool
	r.key, twice = singleString(q.Header["X-Flowstate-Key"])
	r.ambiguous = twice
	r.authorization, twice = singleString(q.Header["Authorization"])
	r.ambiguous = r.ambiguous || twice && len(r.key) == 0
	m := framed{r: q.Body, codings: q.Header["Grpc-Encoding"]}
	r.body, r.open = &m, m.open
	answerGRPC(w, &r, s.cfg.Edge.serve(s.base, &r))
}

// singleString is single for net/http's headers.
func singleString(values []string) ([]byte, bool) {
	if len(values) == 0 {
		return nil, false
	}
	for _, v := range values[1:] {
		if v != values[0] {
			return []byte(values[0]), true
		}
	}
	return []byte(values[0]), false
}

func (s *GRPCServer) remote(q *http.Request) netip.Addr {
	ap, err := netip.ParseAddrPort(q.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return ClientAddr(ap.Addr(), strings.Join(q.Header["X-Forwarded-For"], ","), s.cfg.TrustedProxies)
}

// notGRPC tells somebody who speaks HTTP to the gRPC port.
func (s *GRPCServer) notGRPC(w http.ResponseWriter, q *http.Request) {
	r := &request{id: requestIDOf([]byte(q.Header.Get("X-Request-Id"))), received: time.Now(), contentType: []byte(q.Header.Get("Content-Type"))}
	e := s.cfg.Edge
	res := e.count(route{}, r, e.refuse(r, routes[q.URL.Path], refused{code: 415, reason: wrongContentType,
		detail: "This port speaks gRPC (OTEL_EXPORTER_OTLP_PROTOCOL=grpc). For OTLP/HTTP and JSON signals use the HTTP port."}))
	w.Header().Set("Content-Type", res.contentType)
	w.Header().Set("X-Request-Id", r.id.String())
	w.WriteHeader(res.code)
	_, _ = w.Write(res.body) // whoever has left does not need it
}

// A framed is the one message of a request, as its body.
type framed struct {
	r       io.Reader
	codings []string
	left    int // bytes of the message
}

var (
	errNoMessage   = errors.New("the request has no message")
	errTwoMessages = errors.New("the request has more than one message")
	errUnnamed     = errors.New("the message is marked as compressed, and grpc-encoding does not say how")
	errFrame       = errors.New("the message's first byte is neither 0 nor 1")
)

// open reads the five bytes before the message: is it compressed, and how long is it.
func (m *framed) open() (int, coding, error) {
	var head [5]byte
	if _, err := io.ReadFull(m.r, head[:]); err != nil {
		if errors.Is(err, io.EOF) {
			err = errNoMessage
		}
		return 0, 0, &brokenBody{err}
	}
	how := codedPlain
	switch head[0] {
	case 0:
	case 1:
		var err error
		if how, err = codingOf([]byte(strings.Join(m.codings, ","))); err != nil {
			return 0, 0, err
		}
		if how == codedPlain {
			return 0, 0, errUnnamed // compression.md: INTERNAL
		}
	default:
		return 0, 0, &brokenBody{errFrame}
	}
	m.left = int(binary.BigEndian.Uint32(head[1:]))
	return m.left, how, nil
}

// Read reads the message, and at its end makes sure that nothing follows.
func (m *framed) Read(p []byte) (int, error) {
	if m.left == 0 {
		var more [1]byte
		n, err := io.ReadFull(m.r, more[:])
		if n > 0 {
			return 0, errTwoMessages
		}
		return 0, err // io.EOF, or what went wrong
	}
	n, err := m.r.Read(p[:min(len(p), m.left)])
	m.left -= n
	if err == io.EOF {
		err = nil
		if m.left > 0 {
			err = io.ErrUnexpectedEOF
		}
	}
	return n, err
}

// answerGRPC frames an answer: a message and the status after it, or only the status.
func answerGRPC(w http.ResponseWriter, r *request, res response) {
	h := w.Header()
	h.Set("Content-Type", typeGRPC)
	h.Set("X-Request-Id", r.id.String())
	h["Date"] = nil
	setRateLimit(h.Set, res.limit)
	if res.code == 200 {
		out := make([]byte, 5, 5+len(res.body))
		binary.BigEndian.PutUint32(out[1:], uint32(len(res.body)))
		_, _ = w.Write(append(out, res.body...)) // whoever has left does not need it
		h.Set(http.TrailerPrefix+"Grpc-Status", "0")
		return
	}
	code := grpcCodes[res.code]
	switch {
	case res.rpc != 0:
		code = res.rpc
	case res.reason == wrongEncoding:
		code = grpcUnimplemented // gRPC's own rule for compression
		h.Set("Grpc-Accept-Encoding", "identity,gzip,zstd")
	}
	// Nothing but the status: it goes in the headers.
	h.Set("Grpc-Status", strconv.Itoa(int(code)))
	h.Set("Grpc-Message", percentEncoded(res.detail))
	if res.retryAfter > 0 {
		h.Set("Grpc-Status-Details-Bin", base64.RawStdEncoding.EncodeToString(appendRetryStatus(nil, code, res.detail, res.retryAfter)))
	}
	w.WriteHeader(http.StatusOK)
}

// appendRetryStatus appends a google.rpc.Status with RetryInfo. A client retries RESOURCE_EXHAUSTED only with that, and waits as long as it says.
func appendRetryStatus(dst []byte, code int32, detail string, seconds int) []byte {
	dst = otlp.AppendStatus(dst, otlp.Protobuf, code, detail)
	duration := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), uint64(seconds))
	info := protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), duration)
	wrapped := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), "type.googleapis.com/google.rpc.RetryInfo")
	wrapped = protowire.AppendBytes(protowire.AppendTag(wrapped, 2, protowire.BytesType), info)
	return protowire.AppendBytes(protowire.AppendTag(dst, 3, protowire.BytesType), wrapped)
}

// percentEncoded is how grpc-message carries what is not printable ASCII.
func percentEncoded(s string) string {
	const hexDigits = "0123456789ABCDEF"
	var b strings.Builder
	for _, c := range []byte(s) {
		if c < ' ' || c > '~' || c == '%' {
			b.WriteByte('%')
			b.WriteByte(hexDigits[c>>4])
			b.WriteByte(hexDigits[c&15])
			continue
		}
		b.WriteByte(c)
	}
	return b.String()
}
