package otlp

import (
	"fmt"
	"math"
	"testing"

	logspb "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	metricspb "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	tracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	metrics "go.opentelemetry.io/proto/otlp/metrics/v1"
	resource "go.opentelemetry.io/proto/otlp/resource/v1"
	trace "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

var kinds = []Kind{Logs, Spans, Metrics}

func newRequest(k Kind) proto.Message {
	switch k {
	case Logs:
		return &logspb.ExportLogsServiceRequest{}
	case Spans:
		return &tracepb.ExportTraceServiceRequest{}
	}
	return &metricspb.ExportMetricsServiceRequest{}
}

func marshal(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func testBadge() []byte {
	b := AppendBadgeString(nil, "flowstate.org", "acme")
	b = AppendBadgeString(b, "flowstate.subject.kind", "service_account")
	b = AppendBadgeString(b, "flowstate.subject.id", "sa_0123456789abcdef")
	b = AppendBadgeString(b, "flowstate.service_account.name", "nightly-digest-summariser")
	b = AppendBadgeString(b, "flowstate.service_account.environment", "production")
	b = AppendBadgeBool(b, "flowstate.service_account.abuse_detection", true)
	b = AppendBadgeString(b, "flowstate.key_prefix", "fsk_AbCdEf012345")
	return AppendBadgeString(b, "flowstate.received_at", "2026-11-23T22:40:13.000000001Z")
}

func str(key, value string) *common.KeyValue {
	return &common.KeyValue{Key: key, Value: strValue(value)}
}

func strValue(s string) *common.AnyValue {
	return &common.AnyValue{Value: &common.AnyValue_StringValue{StringValue: s}}
}

func integer(key string, v int64) *common.KeyValue {
	return &common.KeyValue{Key: key, Value: &common.AnyValue{Value: &common.AnyValue_IntValue{IntValue: v}}}
}

func double(key string, v float64) *common.KeyValue {
	return &common.KeyValue{Key: key, Value: &common.AnyValue{Value: &common.AnyValue_DoubleValue{DoubleValue: v}}}
}

func agentResource() *resource.Resource {
	return &resource.Resource{Attributes: []*common.KeyValue{
		str("service.name", "claude-code"), str("service.version", "2.1.14"),
		str("host.arch", "amd64"), str("os.type", "linux"),
	}}
}

func agentScope() *common.InstrumentationScope {
	return &common.InstrumentationScope{Name: "com.anthropic.claude_code.events", Version: "2.1.14"}
}

// agentLogs is what a coding agent sends: n log records of fifteen attributes each, most of them small strings.
func agentLogs(n int) *logspb.ExportLogsServiceRequest {
	scope := &logs.ScopeLogs{Scope: agentScope()}
	for i := range n {
		scope.LogRecords = append(scope.LogRecords, agentRecord(i))
	}
	return &logspb.ExportLogsServiceRequest{ResourceLogs: []*logs.ResourceLogs{
		{Resource: agentResource(), ScopeLogs: []*logs.ScopeLogs{scope}, SchemaUrl: "https://opentelemetry.io/schemas/1.37.0"},
	}}
}

func agentRecord(i int) *logs.LogRecord {
	at := uint64(1795473613000000000 + i*37_000_000)
	return &logs.LogRecord{
		TimeUnixNano: at, ObservedTimeUnixNano: at + 1200,
		SeverityNumber: logs.SeverityNumber_SEVERITY_NUMBER_INFO, SeverityText: "INFO",
		Body:    strValue("claude_code.api_request"),
		TraceId: []byte(fmt.Sprintf("trace-%010d", i)), SpanId: []byte(fmt.Sprintf("s-%06d", i)),
		Attributes: []*common.KeyValue{
			str("event.name", "api_request"),
			str("event.timestamp", "2026-11-23T22:40:13.118Z"),
			str("session.id", "5d6f6f0e-2f4f-4f0c-9f57-8b9a3cf0c7e1"),
			str("user.id", "f1c0e0b1bd9a4b6a8f7c6d5e4f3a2b1c0d9e8f7a6b5c4d3e2f1a0b9c8d7e6f5a"),
			str("organization.id", "0b0c8a3e-6f0a-4a3d-8d2e-1f2a3b4c5d6e"),
			str("terminal.type", "vscode"),
			str("model", "claude-opus-4-6"),
			integer("input_tokens", int64(1200+i)), integer("output_tokens", int64(340+i)),
			integer("cache_read_tokens", 81920), integer("cache_creation_tokens", 512),
			double("cost_usd", 0.0421+float64(i)/1000),
			integer("duration_ms", int64(2100+i)),
			str("request_id", fmt.Sprintf("req_011CU%018d", i)),
			str("prompt.id", fmt.Sprintf("4b7c9b4e-0000-4000-8000-%012d", i)),
		},
	}
}

func agentSpans(n int) *tracepb.ExportTraceServiceRequest {
	scope := &trace.ScopeSpans{Scope: agentScope()}
	for i := range n {
		scope.Spans = append(scope.Spans, &trace.Span{
			TraceId: []byte(fmt.Sprintf("trace-%010d", i)), SpanId: []byte(fmt.Sprintf("s-%06d", i)), ParentSpanId: []byte("parent-8"),
			TraceState: "vendor=1", Name: "chat claude-opus-4-6", Kind: trace.Span_SPAN_KIND_CLIENT, Flags: 1,
			StartTimeUnixNano: 1795473613000000000, EndTimeUnixNano: 1795473614000000000,
			Attributes: []*common.KeyValue{
				str("gen_ai.operation.name", "chat"), str("gen_ai.request.model", "claude-opus-4-6"),
				integer("gen_ai.usage.input_tokens", 1200), double("gen_ai.request.temperature", 0.2),
				{Key: "gen_ai.response.finish_reasons", Value: &common.AnyValue{Value: &common.AnyValue_ArrayValue{
					ArrayValue: &common.ArrayValue{Values: []*common.AnyValue{strValue("stop")}}}}},
			},
			Events: []*trace.Span_Event{{Name: "first_token", TimeUnixNano: 1795473613300000000, Attributes: []*common.KeyValue{integer("ms", 300)}}},
			Links:  []*trace.Span_Link{{TraceId: []byte("0123456789abcdef"), SpanId: []byte("01234567"), Attributes: []*common.KeyValue{str("why", "follows")}}},
			Status: &trace.Status{Code: trace.Status_STATUS_CODE_OK, Message: "fine"},
		})
	}
	return &tracepb.ExportTraceServiceRequest{ResourceSpans: []*trace.ResourceSpans{
		{Resource: agentResource(), ScopeSpans: []*trace.ScopeSpans{scope}},
	}}
}

// agentMetrics holds five metrics, one of each kind of data, with n points each.
func agentMetrics(n int) *metricspb.ExportMetricsServiceRequest {
	attrs := []*common.KeyValue{str("model", "claude-opus-4-6"), str("type", "input")}
	exemplars := []*metrics.Exemplar{{
		FilteredAttributes: []*common.KeyValue{str("session.id", "s1")}, TimeUnixNano: 3, SpanId: []byte("01234567"),
		TraceId: []byte("0123456789abcdef"), Value: &metrics.Exemplar_AsInt{AsInt: -7},
	}}
	gauge, sum := &metrics.Gauge{}, &metrics.Sum{AggregationTemporality: metrics.AggregationTemporality_AGGREGATION_TEMPORALITY_DELTA, IsMonotonic: true}
	hist := &metrics.Histogram{AggregationTemporality: metrics.AggregationTemporality_AGGREGATION_TEMPORALITY_CUMULATIVE}
	exp, summary := &metrics.ExponentialHistogram{AggregationTemporality: metrics.AggregationTemporality_AGGREGATION_TEMPORALITY_DELTA}, &metrics.Summary{}
	for i := range n {
		at := uint64(1795473613000000000 + i)
		gauge.DataPoints = append(gauge.DataPoints, &metrics.NumberDataPoint{Attributes: attrs, TimeUnixNano: at, Value: &metrics.NumberDataPoint_AsDouble{AsDouble: 0.5}})
		sum.DataPoints = append(sum.DataPoints, &metrics.NumberDataPoint{Attributes: attrs, StartTimeUnixNano: 1, TimeUnixNano: at, Value: &metrics.NumberDataPoint_AsInt{AsInt: -int64(i)}, Exemplars: exemplars, Flags: 1})
		hist.DataPoints = append(hist.DataPoints, &metrics.HistogramDataPoint{Attributes: attrs, TimeUnixNano: at, Count: 3, Sum: proto.Float64(4.5), BucketCounts: []uint64{1, 2}, ExplicitBounds: []float64{10}, Exemplars: exemplars, Min: proto.Float64(1), Max: proto.Float64(2)})
		exp.DataPoints = append(exp.DataPoints, &metrics.ExponentialHistogramDataPoint{Attributes: attrs, TimeUnixNano: at, Count: 3, Sum: proto.Float64(1), Scale: -3, ZeroCount: 1, Positive: &metrics.ExponentialHistogramDataPoint_Buckets{Offset: -1, BucketCounts: []uint64{1, 300}}, Negative: &metrics.ExponentialHistogramDataPoint_Buckets{}, Exemplars: exemplars, ZeroThreshold: 0.25})
		summary.DataPoints = append(summary.DataPoints, &metrics.SummaryDataPoint{Attributes: attrs, TimeUnixNano: at, Count: 3, Sum: 4, QuantileValues: []*metrics.SummaryDataPoint_ValueAtQuantile{{Quantile: 0.99, Value: math.Pi}}})
	}
	meta := []*common.KeyValue{str("prometheus.type", "counter")}
	scope := &metrics.ScopeMetrics{Scope: agentScope(), Metrics: []*metrics.Metric{
		{Name: "g", Unit: "1", Data: &metrics.Metric_Gauge{Gauge: gauge}, Metadata: meta},
		{Name: "claude_code.token.usage", Description: "tokens", Unit: "tokens", Data: &metrics.Metric_Sum{Sum: sum}},
		{Name: "h", Data: &metrics.Metric_Histogram{Histogram: hist}},
		{Name: "e", Data: &metrics.Metric_ExponentialHistogram{ExponentialHistogram: exp}},
		{Name: "s", Data: &metrics.Metric_Summary{Summary: summary}},
	}}
	return &metricspb.ExportMetricsServiceRequest{ResourceMetrics: []*metrics.ResourceMetrics{
		{Resource: agentResource(), ScopeMetrics: []*metrics.ScopeMetrics{scope}},
	}}
}

func agentRequest(k Kind, n int) proto.Message {
	switch k {
	case Logs:
		return agentLogs(n)
	case Spans:
		return agentSpans(n)
	}
	return agentMetrics(n)
}

// Rewrite is that of a new Rewriter, with visit for every signal.
func Rewrite(dst []byte, kind Kind, body, badge []byte, visit func(*SignalRecord)) ([]byte, Result, error) {
	var r Rewriter
	return r.Rewrite(dst, kind, body, badge, Visitor{Visit: visit})
}
