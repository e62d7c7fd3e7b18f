package ingest

import (
	"context"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlplog/otlploghttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	otellog "go.opentelemetry.io/otel/log"
	sdklog "go.opentelemetry.io/otel/sdk/log"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	colmetrics "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	coltrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"

	"flowstate.inc/sluice/auth"
)

// The Go SDK's own exporters, with nothing set but the endpoint and the header.
func TestGoExporters(t *testing.T) {
	e := startEdge(t)
	key := e.add(service(auth.Production))
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", e.url)
	t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-flowstate-key="+key)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()

	spans, err := otlptracehttp.New(ctx)
	if err != nil {
		t.Fatal(err)
	}
	tracer := sdktrace.NewTracerProvider(sdktrace.WithBatcher(spans))
	_, span := tracer.Tracer("test").Start(ctx, "chat")
	span.End()
	points, err := otlpmetrichttp.New(ctx)
	if err != nil {
		t.Fatal(err)
	}
	meter := sdkmetric.NewMeterProvider(sdkmetric.WithReader(sdkmetric.NewPeriodicReader(points)))
	counter, err := meter.Meter("test").Int64Counter("tokens")
	if err != nil {
		t.Fatal(err)
	}
	counter.Add(ctx, 7)
	records, err := otlploghttp.New(ctx)
	if err != nil {
		t.Fatal(err)
	}
	logger := sdklog.NewLoggerProvider(sdklog.WithProcessor(sdklog.NewBatchProcessor(records)))
	var record otellog.Record
	record.SetEventName("claude_code.api_request")
	record.SetBody(attribute.StringValue("hello"))
	logger.Logger("test").Emit(ctx, record)
	for _, shutdown := range []func(context.Context) error{tracer.Shutdown, meter.Shutdown, logger.Shutdown} {
		if err := shutdown(ctx); err != nil {
			t.Error(err)
		}
	}

	var gotSpans coltrace.ExportTraceServiceRequest
	unmarshalOnly(t, e, e.topics.Spans, &gotSpans)
	checkBadge(t, badgeOf(t, gotSpans.ResourceSpans[0].Resource), key)
	if name := gotSpans.ResourceSpans[0].ScopeSpans[0].Spans[0].Name; name != "chat" {
		t.Errorf("span %q", name)
	}
	var gotPoints colmetrics.ExportMetricsServiceRequest
	unmarshalOnly(t, e, e.topics.Metrics, &gotPoints)
	checkBadge(t, badgeOf(t, gotPoints.ResourceMetrics[0].Resource), key)
	if v := gotPoints.ResourceMetrics[0].ScopeMetrics[0].Metrics[0].GetSum().DataPoints[0].GetAsInt(); v != 7 {
		t.Errorf("tokens %d", v)
	}
	var gotLogs collogs.ExportLogsServiceRequest
	unmarshalOnly(t, e, e.topics.Logs, &gotLogs)
	checkBadge(t, badgeOf(t, gotLogs.ResourceLogs[0].Resource), key)
	if name := gotLogs.ResourceLogs[0].ScopeLogs[0].LogRecords[0].EventName; name != "claude_code.api_request" {
		t.Errorf("event %q", name)
	}
	e.balanced()
}

// unmarshalOnly reads the only message of a topic.
func unmarshalOnly(t *testing.T, e *testEdge, topic string, m proto.Message) {
	t.Helper()
	got := read(t, e.brokers, topic, 1)
	if len(got) != 1 {
		t.Fatalf("%s holds %d messages", topic, len(got))
	}
	if err := proto.Unmarshal(got[0].Value, m); err != nil {
		t.Fatal(err)
	}
}
