package ingest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"runtime/debug"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/ingest/otlp"
	"flowstate.inc/sluice/signals"
)

// Further kinds of request, beside those of records.
const (
	kindWhoami = "whoami"
	kindOther  = "other"
)

// EdgeConfig is what an Edge is made of. All fields but those with a default are needed.
type EdgeConfig struct {
	Chain    *auth.Chain
	Producer *Producer
	Sink     *Sink // default: Producer alone, without a spool
	Decider  *signals.Decider
	Topics   Topics
	Drops    *signals.Drops // counts what the filter drops, by subject; nil: nobody does

	MaxRequestBytes int           // largest body as sent; default 64 MiB
	MaxDecodedBytes int           // largest body after decompression; default 64 MiB
	MaxBodyBytes    int64         // bytes of all bodies in memory, as sent, decoded and rewritten; default and least 4 × the larger of the two above
	MaxMessageBytes int           // largest Kafka message; larger payloads are split; default 1,000,000
	KafkaTimeout    time.Duration // how long a request waits for Kafka; default 4 s
	AuthTimeout     time.Duration // how long a request of a detector waits for the look-ups of all subjects that it names; default 1 s

	Registerer prometheus.Registerer
	Logger     *slog.Logger
	Tracer     trace.Tracer // nil: no spans, at no cost
}

// Topics are the names of the topics that the edge writes to.
type Topics struct{ Logs, Spans, Metrics, Signals string }

// An Edge answers requests, whatever listener they came by.
type Edge struct {
	cfg    EdgeConfig
	ledger *ledger
	bodies *bodies
	budget *budget
	raiser *Raiser
	log    *slog.Logger

	batches sync.Pool // of *batch
	leases  leases

	refusals refusals
}

// bodyShare is how often the largest body must fit into MaxBodyBytes: as sent, decompressed, and growing while it is, one body alone takes up
// to 2.5 times its limit, and the last quarter is not for large ones.
const bodyShare = 4

// NewEdge returns an edge that is ready to answer.
func NewEdge(cfg EdgeConfig) *Edge {
	if cfg.MaxRequestBytes == 0 {
		cfg.MaxRequestBytes = 64 << 20
	}
	if cfg.MaxDecodedBytes == 0 {
		cfg.MaxDecodedBytes = 64 << 20
	}
	cfg.MaxBodyBytes = max(cfg.MaxBodyBytes, bodyShare*int64(max(cfg.MaxRequestBytes, cfg.MaxDecodedBytes)))
	if cfg.MaxMessageBytes == 0 {
		cfg.MaxMessageBytes = 1_000_000
	}
	if cfg.KafkaTimeout == 0 {
		cfg.KafkaTimeout = 4 * time.Second
	}
	if cfg.AuthTimeout == 0 {
		cfg.AuthTimeout = time.Second
	}
	if cfg.Sink == nil {
		cfg.Sink = NewSink(SinkConfig{Producer: cfg.Producer, Registerer: cfg.Registerer, Logger: cfg.Logger})
	}
	return &Edge{
		cfg: cfg, ledger: newLedger(cfg.Registerer), bodies: newBodies(cfg.MaxRequestBytes, cfg.MaxDecodedBytes),
		budget: newBudget(cfg.MaxBodyBytes, cfg.Registerer), raiser: NewRaiser(cfg.Sink, cfg.Decider, cfg.Topics.Signals, cfg.Registerer), log: cfg.Logger,
	}
}

// A request is what the edge needs of one request. Its bytes are the listener's: they are valid until serve returns, and nothing
// that outlives the call may alias them.
type request struct {
	id              requestID
	method, path    []byte
	key             []byte // x-flowstate-key
	authorization   []byte
	ambiguous       bool // a header of the two above was given twice, with different values
	contentType     []byte
	contentEncoding []byte // all of its fields, comma-separated
	idempotencyKey  []byte
	event           signals.BinaryEvent // not nil: a CloudEvent in binary mode
	userAgent       []byte
	traceparent     []byte     // only where there is a tracer
	span            trace.Span // nil: not recorded
	remote          netip.Addr
	received        time.Time // when the last byte of the body was here; until then, when its headers were

	// grpc: the path names a method and the answer is the caller's to frame.
	grpc bool

	body   io.Reader // nil: none
	length int       // of body as announced; -1: not announced
	// open, where it is not nil, is asked for the length and the coding of the body before its first byte is read: gRPC says both there.
	open func() (int, coding, error)
	read bool // body was read to its end

	admitted time.Duration // how long the look-up of the key took
	answer   []byte        // room for the body of an answer, which may be part of the response; the listener uses it again after that
}

// route is where a path leads. records is the kind of otlp payload for the three OTLP paths.
type route struct {
	kind    string
	method  string
	payload otlp.Kind // 0 where the path is not OTLP's
}

var routes = map[string]route{
	"/v1/logs":    {kindLogs, "POST", otlp.Logs},
	"/v1/traces":  {kindSpans, "POST", otlp.Spans},
	"/v1/metrics": {kindMetrics, "POST", otlp.Metrics},
	"/v1/signals": {kindSignals, "POST", 0},
	"/v1/whoami":  {kindWhoami, "GET", 0},
}

// pathOf is where OTLP/HTTP sends a kind of payload.
func pathOf(kind otlp.Kind) string {
	for path, rt := range routes {
		if rt.payload == kind {
			return path
		}
	}
	panic("BUG: no path for " + kind.String())
}

var methods = map[string]route{
	"/opentelemetry.proto.collector.logs.v1.LogsService/Export":       {kindLogs, "POST", otlp.Logs},
	"/opentelemetry.proto.collector.trace.v1.TraceService/Export":     {kindSpans, "POST", otlp.Spans},
	"/opentelemetry.proto.collector.metrics.v1.MetricsService/Export": {kindMetrics, "POST", otlp.Metrics},
}

func (r *request) route() (route, bool) {
	if r.grpc {
		rt, ok := methods[string(r.path)]
		return rt, ok
	}
	rt, ok := routes[string(r.path)]
	return rt, ok
}

// profilesPath is OTLP's as well, but in development, and nothing of the edge's.
const profilesPath = "/v1development/profiles"

const paths = "POST /v1/logs, /v1/traces, /v1/metrics (OTLP) and /v1/signals; GET /v1/whoami"

// serve answers one request and counts it. A panic becomes a counted 500: one request's bug must not take down the others. The log has the
// stack, not the request.
func (e *Edge) serve(ctx context.Context, r *request) response {
	if e.cfg.Tracer != nil {
		ctx = e.begin(ctx, r)
	}
	var res response
	func() {
		defer func() {
			if v := recover(); v != nil {
				e.log.Error("panic in a request", "request_id", r.id.String(), "stack", string(debug.Stack()))
				rt, _ := r.route()
				res = e.count(rt, r, e.refuse(r, rt, refused{code: 500, reason: panicked, detail: "This is a fault of ours. Request " + r.id.String() + "."}))
			}
		}()
		rt, res0 := e.answer(ctx, r)
		res = e.count(rt, r, res0)
	}()
	if r.span != nil {
		r.finish(&res)
	}
	return res
}

// count adds an answer to the metrics and the log.
func (e *Edge) count(rt route, r *request, res response) response {
	kind := rt.kind
	if kind == "" {
		kind = kindOther
	}
	e.ledger.request(kind, res.code, res.reason, time.Since(r.received))
	e.note(rt, r, res)
	if res.code < 400 {
		return res
	}
	level := slog.LevelDebug
	if res.code >= 500 {
		level = slog.LevelWarn
	}
	if e.log.Enabled(context.Background(), level) {
		prefix := ""
		if !r.ambiguous {
			prefix, _ = auth.PrefixFromHeaders(r.key, r.authorization)
		}
		e.log.Log(context.Background(), level, "request refused", "request_id", r.id.String(), "kind", kind, "code", res.code, "reason", string(res.reason),
			"prefix", prefix, "remote", r.remote.String())
	}
	return res
}

func (e *Edge) answer(ctx context.Context, r *request) (route, response) {
	rt, id, how, fail := e.admit(ctx, r)
	if fail != nil {
		return rt, e.refuse(r, rt, *fail)
	}
	if rt.kind == kindWhoami {
		// It sends nothing and stamps nothing, but who tries out a key that he found is to be seen among its senders.
		id.NoteSender(r.remote, r.userAgent, nil, time.Now())
		return rt, whoami(id, r.id)
	}
	limit := id.Allow()
	res := e.admitted(ctx, r, rt, id, how, limit)
	res.limit = limit
	return rt, res
}

func (e *Edge) admitted(ctx context.Context, r *request, rt route, id auth.Identity, how coding, limit auth.Decision) response {
	if !limit.OK {
		id.Use(auth.Usage{Refused: 1})
		return e.refuse(r, rt, overLimit(limit))
	}
	c := charge{budget: e.budget, key: id.KeyPrefix}
	defer c.release()
	body, fail := e.take(r, rt, id, how, &c)
	if fail != nil {
		return e.refuse(r, rt, *fail)
	}
	noteSender(id, r, rt, body.b)
	if rt.kind == kindSignals {
		return e.signals(ctx, r, id, body, &c)
	}
	return e.otlp(ctx, r, rt, id, body, &c)
}

// overLimit refuses a request of a key that is over its own limit: 429, which is kept for this, because Python's exporters drop on it.
func overLimit(d auth.Decision) refused {
	return refused{
		code: 429, reason: rateLimited, retryAfter: int(math.Ceil(d.RetryAfter.Seconds())) + rand.IntN(2),
		detail: fmt.Sprintf("This key is over its limit of %d %s a second on this edge. Send less often, or ask for a higher limit.", d.Limit, d.By),
	}
}

// refuseEarly is for a client that waits to be told before it sends its body: what can be decided without it is. It reports whether the
// request is refused; if not, nothing has happened yet.
func (e *Edge) refuseEarly(ctx context.Context, r *request) (response, bool) {
	rt, _, _, fail := e.admit(ctx, r)
	if fail == nil {
		return response{}, false
	}
	return e.count(rt, r, e.refuse(r, rt, *fail)), true
}

// admit decides what can be decided before the body is read: is there such a path, whose key is it, is the body of a kind and size that
// can be taken.
func (e *Edge) admit(ctx context.Context, r *request) (route, auth.Identity, coding, *refused) {
	rt, ok := r.route()
	if !ok {
		return rt, auth.Identity{}, 0, &refused{code: 404, reason: unknownPath, detail: "There is nothing at this path. The edge has " + paths + "."}
	}
	if string(r.method) != rt.method {
		return rt, auth.Identity{}, 0, &refused{code: 405, reason: wrongMethod, detail: "This path takes " + rt.method + ".", allow: rt.method}
	}
	id, fail := e.authenticate(ctx, r)
	if fail != nil || rt.kind == kindWhoami {
		return rt, id, 0, fail
	}
	if rt.payload != 0 && !r.grpc && !isJSON(r.contentType) && !isProtobuf(r.contentType) {
		return rt, id, 0, &refused{code: 415, reason: wrongContentType,
			detail: "Send Content-Type: application/x-protobuf (OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf) or application/json."}
	}
	how, err := codingOf(r.contentEncoding)
	if err == nil && r.length > e.cfg.MaxRequestBytes && !r.grpc {
		err = errTooLarge
	}
	if err != nil {
		fail := e.bodyRefusal(err)
		return rt, id, 0, &fail
	}
	return rt, id, how, nil
}

// take reads the body of an admitted request and decodes it, for OTLP down to protobuf. The buffer is charged to c.
func (e *Edge) take(r *request, rt route, id auth.Identity, how coding, c *charge) (*buffer, *refused) {
	body, err := e.receive(r, id, how, c)
	if err == nil && rt.payload != 0 && !r.grpc && isJSON(r.contentType) {
		body, err = e.bodies.convert(c, rt.payload, body)
	}
	if err != nil {
		fail := e.bodyRefusal(err)
		return nil, &fail
	}
	return body, nil
}

func (e *Edge) receive(r *request, id auth.Identity, how coding, c *charge) (*buffer, error) {
	if r.open != nil {
		var err error
		if r.length, how, err = r.open(); err != nil {
			r.received = time.Now()
			return nil, err
		}
	}
	source := r.body
	if source == nil {
		source = http.NoBody
	}
	body, err := e.bodies.read(c, source, r.length)
	r.received = time.Now() // decompression is a part of the answer's time
	if err != nil {
		return nil, err
	}
	r.read = true
	id.Spend(int64(len(body.b)))
	id.Use(auth.Usage{Requests: 1, Bytes: int64(len(body.b))})
	return e.bodies.decode(c, how, body)
}

// A refused request has a code, a reason for the metric and a sentence for the sender.
type refused struct {
	code       int
	reason     refusal
	detail     string
	retryAfter int
	allow      string // with 405
	rpc        int32  // gRPC's code, where it is not the one that goes with code
}

// authenticate says whose key it is. One 401 for unknown, revoked and malformed alike: which of them it was stands in our log and metrics only.
func (e *Edge) authenticate(ctx context.Context, r *request) (auth.Identity, *refused) {
	const dead = "The key is not valid here. A key is 66 characters long and begins with fsk_, fpk_ or fdk_: check that it was copied whole, and with Basic that the user name is " +
		"the key's org. An admin sees whether it was revoked: sluice keys find PREFIX, which is its first 16 characters. If it is lost, delete the service account and create it again. "
	if r.ambiguous {
		return auth.Identity{}, &refused{code: 401, reason: ambiguousKey, detail: "The key was sent more than once, with different values. Send one."}
	}
	_, span := childSpan(ctx, "auth")
	id, err := e.cfg.Chain.AuthenticateHeaders(ctx, r.key, r.authorization, r.remote) // within a second, as it promises
	if span != nil {
		if err == nil {
			span.SetAttributes(attribute.String("sluice.auth.tier", id.Tier()))
			r.span.SetAttributes(attribute.String("sluice.org", id.Org))
		}
		span.End()
	}
	if err == nil {
		r.admitted = time.Since(r.received)
		return id, nil
	}
	var why *auth.Refusal
	switch {
	case errors.Is(err, auth.ErrNoCredentials) && len(r.authorization) > 0:
		return auth.Identity{}, &refused{code: 401, reason: noCredentials,
			detail: "The Authorization header carries no key: it must be Bearer KEY, or Basic with the org's slug and the key. Or set the header x-flowstate-key to the key."}
	case errors.Is(err, auth.ErrNoCredentials):
		return auth.Identity{}, &refused{code: 401, reason: noCredentials,
			detail: "No key was sent. Set the header x-flowstate-key to a telemetry key (for OpenTelemetry: OTEL_EXPORTER_OTLP_HEADERS=x-flowstate-key=KEY)."}
	case errors.Is(err, auth.ErrMalformedKey):
		return auth.Identity{}, &refused{code: 401, reason: malformedKey, detail: dead + "Request " + r.id.String() + "."}
	case errors.As(err, &why):
		reason := refusal(why.Reason)
		e.log.Info("key refused", "request_id", r.id.String(), "prefix", why.Prefix, "reason", string(reason), "remote", r.remote.String())
		return auth.Identity{}, &refused{code: 401, reason: reason, detail: dead + "Request " + r.id.String() + "."}
	}
	return auth.Identity{}, &refused{code: 503, reason: authAway, detail: "Nobody can say whose key this is at the moment. Try again later.", retryAfter: later()}
}

// refuse answers in the encoding that the path speaks: google.rpc.Status in the request's own where it is OTLP's, else RFC 9457. A path that
// does not exist answers a protobuf request in protobuf, since its sender can read nothing else.
func (e *Edge) refuse(r *request, rt route, f refused) response {
	res := response{code: f.code, reason: f.reason, detail: f.detail, rpc: f.rpc, retryAfter: f.retryAfter, allow: f.allow, challenge: f.code == 401}
	switch {
	case r.grpc:
	case rt.payload != 0 || rt.kind == "" && (isProtobuf(r.contentType) || string(r.path) == profilesPath):
		enc := encodingOf(r.contentType)
		res.contentType = enc.ContentType()
		if f.code == 400 {
			res.body = otlp.AppendBadRequest(nil, enc, f.detail)
		} else {
			res.body = otlp.AppendStatus(nil, enc, grpcCodes[f.code], f.detail)
		}
	default:
		res.contentType, res.body = typeProblem, problemBody(f.code, f.detail, r.id)
	}
	return res
}

func whoami(id auth.Identity, requestID requestID) response {
	b, err := json.Marshal(struct {
		*auth.Principal
		RequestID string `json:"request_id"`
	}{id.Principal, requestID.String()})
	if err != nil {
		panic("BUG: principal does not marshal: " + err.Error())
	}
	return response{code: 200, reason: served, contentType: typeJSON, body: append(b, '\n')}
}
