package ingest

import (
	"context"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// tracerName is the instrumentation scope of the edge's spans.
const tracerName = "flowstate.inc/sluice/ingest"

// A parent is the traceparent of a request, as propagation reads it.
type parent []byte

func (p parent) Get(name string) string {
	if name == "traceparent" {
		return string(p)
	}
	return ""
}

func (p parent) Set(string, string) {}

func (p parent) Keys() []string { return []string{"traceparent"} }

// begin starts the span of a request: r.span, nil where nobody records it. Names and attributes come from closed lists, but for the org's slug and the request id: never
// a path, a method or a header as a stranger wrote it.
func (e *Edge) begin(ctx context.Context, r *request) context.Context {
	if len(r.traceparent) > 0 {
		ctx = propagation.TraceContext{}.Extract(ctx, parent(r.traceparent))
	}
	name, path := "HTTP", ""
	rt, known := r.route()
	if known {
		path = string(r.path)
		name = rt.method + " " + path
		if string(r.method) != rt.method {
			name = "HTTP " + path
		}
		if r.grpc {
			name = strings.TrimPrefix(path, "/")
		}
	}
	ctx, span := e.cfg.Tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindServer), trace.WithTimestamp(r.received))
	if !span.IsRecording() {
		return ctx
	}
	r.span = span
	span.SetAttributes(attribute.String("sluice.request_id", r.id.String()))
	if known {
		span.SetAttributes(attribute.String("http.route", path))
	}
	if r.grpc {
		span.SetAttributes(attribute.String("rpc.system.name", "grpc"))
	}
	return ctx
}

// finish ends the span of a request with its answer.
func (r *request) finish(res *response) {
	r.span.SetAttributes(attribute.Int("http.response.status_code", res.code), attribute.String("sluice.reason", string(res.reason)))
	if r.grpc {
		r.span.SetAttributes(attribute.Int("rpc.grpc.status_code", int(grpcCodes[res.code])))
	}
	if res.code >= 500 {
		r.span.SetStatus(codes.Error, string(res.reason))
	}
	r.span.End()
}

// childSpan starts a span under that of ctx. It is nil where nobody records it, which is known without an allocation.
func childSpan(ctx context.Context, name string) (context.Context, trace.Span) {
	above := trace.SpanFromContext(ctx)
	if !above.IsRecording() {
		return ctx, nil
	}
	return above.TracerProvider().Tracer(tracerName).Start(ctx, name)
}

// endDelivery ends the span of an attempt to make messages durable.
func endDelivery(span trace.Span, messages int, failed bool) {
	if span == nil {
		return
	}
	span.SetAttributes(attribute.Int("sluice.messages", messages))
	if failed {
		span.SetStatus(codes.Error, "not taken") // the error itself stands in the log
	}
	span.End()
}

// traceRecords says on the request's span what became of its records, by kind and outcome.
func traceRecords(span trace.Span, t *tally) {
	if span == nil || !span.IsRecording() {
		return
	}
	sums := map[string]int{}
	for _, c := range t.counts {
		sums["sluice.records."+c.kind+"."+string(c.outcome)] += c.n
		sums["sluice.records"] += c.n
	}
	for name, n := range sums {
		span.SetAttributes(attribute.Int(name, n))
	}
}
