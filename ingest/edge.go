package ingest

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"

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
	Decider  *signals.Decider
	Topics   Topics

	MaxDecodedBytes int           // largest body after decompression; default 64 MiB
	MaxMessageBytes int           // largest Kafka message; larger payloads are split; default 1,000,000
	KafkaTimeout    time.Duration // how long a request waits for Kafka; default 4 s
	AuthTimeout     time.Duration // how long a request waits for the look-up of its key; default 1 s

	Registerer prometheus.Registerer
	Logger     *slog.Logger
}

// Topics are the names of the topics that the edge writes to.
type Topics struct{ Logs, Spans, Metrics, Signals string }

// An Edge answers requests, whatever listener they came by.
type Edge struct {
	cfg    EdgeConfig
	ledger *ledger
	bodies *bodies
	log    *slog.Logger
}

// NewEdge returns an edge that is ready to answer.
func NewEdge(cfg EdgeConfig) *Edge {
	if cfg.MaxDecodedBytes == 0 {
		cfg.MaxDecodedBytes = 64 << 20
	}
	if cfg.MaxMessageBytes == 0 {
		cfg.MaxMessageBytes = 1_000_000
	}
	if cfg.KafkaTimeout == 0 {
		cfg.KafkaTimeout = 4 * time.Second
	}
	if cfg.AuthTimeout == 0 {
		cfg.AuthTimeout = time.Second
	}
	return &Edge{cfg: cfg, ledger: newLedger(cfg.Registerer), bodies: newBodies(cfg.MaxDecodedBytes), log: cfg.Logger}
}

// A request is what the edge needs of one HTTP request. Its bytes are the listener's: they are valid until handle returns, and nothing
// that outlives the call may alias them.
type request struct {
	id              string
	method, path    []byte
	key             []byte // x-flowstate-key
	authorization   []byte
	contentType     string
	contentEncoding string
	idempotencyKey  string
	body            []byte
	remote          netip.Addr
	received        time.Time // when the last byte of the body was here
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

const paths = "POST /v1/logs, /v1/traces, /v1/metrics (OTLP) and /v1/signals; GET /v1/whoami"

// handle answers one request and counts it.
func (e *Edge) handle(ctx context.Context, r *request) response {
	kind, res := e.answer(ctx, r)
	e.ledger.request(kind, res.code, res.reason, time.Since(r.received))
	if res.code >= 500 && res.reason != kafkaAway {
		e.log.Warn("request refused", "request_id", r.id, "kind", kind, "code", res.code, "reason", string(res.reason))
	} else if res.code >= 400 {
		e.log.Debug("request refused", "request_id", r.id, "kind", kind, "code", res.code, "reason", string(res.reason))
	}
	return res
}

func (e *Edge) answer(ctx context.Context, r *request) (string, response) {
	rt, ok := routes[string(r.path)]
	if !ok {
		return kindOther, e.problem(r, 404, unknownPath, "There is nothing at this path. The edge has "+paths+".")
	}
	if string(r.method) != rt.method {
		res := e.problem(r, 405, wrongMethod, "This path takes "+rt.method+".")
		res.allow = rt.method
		return rt.kind, res
	}
	id, refused := e.authenticate(ctx, r)
	if refused != nil {
		return rt.kind, e.refuse(r, rt, *refused)
	}
	switch rt.kind {
	case kindWhoami:
		return rt.kind, whoami(id, r.id)
	case kindSignals:
		return rt.kind, e.signals(ctx, r, id)
	default:
		return rt.kind, e.otlp(ctx, r, rt, id)
	}
}

// A refused request has a code, a reason for the metric and a sentence for the sender.
type refused struct {
	code       int
	reason     refusal
	detail     string
	retryAfter int
}

// authenticate says whose key it is. One 401 for unknown, revoked and malformed alike: which of them it was stands in our log and metrics only.
func (e *Edge) authenticate(ctx context.Context, r *request) (auth.Identity, *refused) {
	const dead = "The key is not valid here. Check that it was copied whole and has not been revoked; if it is lost, delete the service account and create it again. "
	cred, err := auth.FromHeaders(r.key, r.authorization)
	switch {
	case errors.Is(err, auth.ErrNoCredentials):
		return auth.Identity{}, &refused{code: 401, reason: noCredentials,
			detail: "No key was sent. Set the header x-flowstate-key to a telemetry key (for OpenTelemetry: OTEL_EXPORTER_OTLP_HEADERS=x-flowstate-key=KEY)."}
	case err != nil:
		return auth.Identity{}, &refused{code: 401, reason: malformedKey, detail: dead + "Request " + r.id + "."}
	}
	ctx, cancel := context.WithTimeout(ctx, e.cfg.AuthTimeout)
	defer cancel()
	id, err := e.cfg.Chain.Authenticate(ctx, cred, r.remote)
	if err == nil {
		return id, nil
	}
	if errors.Is(err, auth.ErrUnknownKey) {
		reason := unknownKey
		var why *auth.Refusal
		if errors.As(err, &why) {
			reason = refusal(why.Reason)
		}
		e.log.Info("key refused", "request_id", r.id, "prefix", cred.Key.Prefix(), "reason", string(reason), "remote", r.remote.String())
		return auth.Identity{}, &refused{code: 401, reason: reason, detail: dead + "Request " + r.id + "."}
	}
	return auth.Identity{}, &refused{code: 503, reason: authAway, detail: "Nobody can say whose key this is at the moment. Try again later.", retryAfter: later()}
}

// refuse answers in the encoding that the path speaks.
func (e *Edge) refuse(r *request, rt route, f refused) response {
	var res response
	if rt.kind == kindSignals || rt.kind == kindWhoami {
		res = e.problem(r, f.code, f.reason, f.detail)
	} else {
		res = otlpError(encodingOf(r.contentType), f)
	}
	res.retryAfter = f.retryAfter
	res.challenge = f.code == 401
	return res
}

func (e *Edge) problem(r *request, code int, reason refusal, detail string) response {
	return response{code: code, reason: reason, contentType: typeProblem, body: problemBody(code, detail, r.id)}
}

func whoami(id auth.Identity, requestID string) response {
	b, err := json.Marshal(struct {
		*auth.Principal
		RequestID string `json:"request_id"`
	}{id.Principal, requestID})
	if err != nil {
		panic("BUG: principal does not marshal: " + err.Error())
	}
	return response{code: 200, reason: served, contentType: typeJSON, body: append(b, '\n')}
}
