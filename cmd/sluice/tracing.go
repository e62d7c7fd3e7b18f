package main

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/sdk/trace"
	api "go.opentelemetry.io/otel/trace"
)

// traceConfig is how the process traces itself; off without an endpoint.
type traceConfig struct {
	endpoint string
	sample   float64
}

func (c *traceConfig) flags(f *pflag.FlagSet) {
	f.StringVar(&c.endpoint, "trace-endpoint", "", "where traces of Sluice itself go, by OTLP/HTTP, as http://host:4318 (/v1/traces unless it has a path); empty: none are made")
	f.Float64Var(&c.sample, "trace-sample", .01, "share of requests that are traced, 0 to 1; one that comes with a W3C traceparent joins its trace, and is left out where that is not sampled")
}

func (c *traceConfig) check() error {
	if c.sample < 0 || c.sample > 1 || c.sample != c.sample {
		return usagef("--trace-sample: it is a share from 0 to 1")
	}
	if c.endpoint == "" {
		return nil
	}
	u, err := url.Parse(c.endpoint)
	if err != nil || u.Host == "" || u.User != nil || (u.Scheme != "http" && u.Scheme != "https") {
		return usagef("--trace-endpoint: it is not http://host:port or https://host:port, without user or password (headers: OTEL_EXPORTER_OTLP_TRACES_HEADERS)")
	}
	return nil
}

// What waits for the exporter is bounded, and more is dropped and counted: a collector that is slow or away costs nobody's request.
const (
	maxSpans      = 2048
	spanBatch     = 512
	exportTimeout = 5 * time.Second
	flushTimeout  = 3 * time.Second // of what is left at the end
)

// tracing makes the process's spans. nil is none.
type tracing struct {
	provider *trace.TracerProvider
	log      *slog.Logger
}

func newTracing(ctx context.Context, c traceConfig, reg prometheus.Registerer, log *slog.Logger) (*tracing, error) {
	spans := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sluice_trace_spans_total", Help: "Spans of Sluice itself by what became of them; dropped ones found the queue full.",
	}, []string{"outcome"})
	reg.MustRegister(spans)
	q := &spanQueue{exported: spans.WithLabelValues("exported"), failed: spans.WithLabelValues("failed"), dropped: spans.WithLabelValues("dropped"), log: log}
	if c.endpoint == "" {
		return nil, nil
	}
	u, err := url.Parse(c.endpoint)
	if err != nil {
		return nil, usagef("--trace-endpoint: it is not a URL")
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = "/v1/traces"
	}
	exporter, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(u.String()), otlptracehttp.WithTimeout(exportTimeout))
	if err != nil {
		return nil, usagef("--trace-endpoint: %w", err)
	}
	q.SpanProcessor = trace.NewBatchSpanProcessor(&countedExporter{SpanExporter: exporter, q: q},
		trace.WithMaxQueueSize(maxSpans), trace.WithMaxExportBatchSize(spanBatch), trace.WithBatchTimeout(2*time.Second), trace.WithExportTimeout(exportTimeout))
	v := currentVersion()
	return &tracing{log: log, provider: trace.NewTracerProvider(
		trace.WithSpanProcessor(q),
		trace.WithSampler(trace.ParentBased(share(c.sample), trace.WithRemoteParentSampled(share(c.sample)))),
		trace.WithResource(resource.NewSchemaless(attribute.String("service.name", "sluice"), attribute.String("service.version", v.Version),
			attribute.String("service.instance.id", edgeID()))),
	)}, nil
}

// A share samples by chance. The chance is ours, not the trace id's: a span begins before anybody is authenticated, and a stranger who could choose what is traced
// would fill the queue and the collector.
type share float64

func (s share) ShouldSample(p trace.SamplingParameters) trace.SamplingResult {
	decision := trace.Drop
	if rand.Float64() < float64(s) {
		decision = trace.RecordAndSample
	}
	return trace.SamplingResult{Decision: decision, Tracestate: api.SpanContextFromContext(p.ParentContext).TraceState()}
}

func (s share) Description() string { return "share" }

func (p *process) wireTracing() error {
	var err error
	p.tracing, err = newTracing(context.Background(), p.cfg.trace, p.reg, p.log)
	return err
}

// tracer is nil where nothing is traced.
func (t *tracing) tracer(room string) api.Tracer {
	if t == nil {
		return nil
	}
	return t.provider.Tracer("flowstate.inc/sluice/" + room)
}

// stop sends what is left, within flushTimeout and ctx.
func (t *tracing) stop(ctx context.Context) {
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		t.log.Warn("traces that were left could not be sent", "error", err)
	}
}

// A spanQueue keeps the bound of the batches before it, so that what is dropped is counted: the SDK drops without a word.
type spanQueue struct {
	trace.SpanProcessor
	waiting                   atomic.Int64 // spans in the queue or being sent
	away                      atomic.Bool  // the last export failed
	exported, failed, dropped prometheus.Counter
	log                       *slog.Logger
}

// OnEnd never waits.
func (q *spanQueue) OnEnd(s trace.ReadOnlySpan) {
	if q.waiting.Add(1) > maxSpans {
		q.waiting.Add(-1)
		q.dropped.Inc()
		return
	}
	q.SpanProcessor.OnEnd(s)
}

// A countedExporter counts, and logs a change from well to away and back once.
type countedExporter struct {
	trace.SpanExporter
	q *spanQueue
}

// ExportSpans never fails towards the SDK, whose own log is not ours.
func (e *countedExporter) ExportSpans(ctx context.Context, spans []trace.ReadOnlySpan) error {
	err := e.SpanExporter.ExportSpans(ctx, spans)
	e.q.waiting.Add(-int64(len(spans)))
	if err != nil {
		e.q.failed.Add(float64(len(spans)))
		if !e.q.away.Swap(true) {
			e.q.log.Warn("traces cannot be sent; nothing else is the worse for it", "error", err)
		}
		return nil
	}
	e.q.exported.Add(float64(len(spans)))
	if e.q.away.Swap(false) {
		e.q.log.Info("traces are sent again")
	}
	return nil
}
