package otlp

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	logspb "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	metricspb "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	tracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	resource "go.opentelemetry.io/proto/otlp/resource/v1"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

func TestExportResponse(t *testing.T) {
	long := strings.Repeat("é", MaxMessage)
	for _, kind := range kinds {
		for _, tt := range []struct {
			rejected int64
			message  string
		}{{0, ""}, {3, "3 filtered: \"x\"\n"}, {1 << 40, ""}, {0, "a warning"}, {2, "bad \xff byte"}, {7, long}} {
			message := strings.ToValidUTF8(tt.message, "\uFFFD")
			if len(message) > MaxMessage {
				message = message[:MaxMessage]
			}
			var want, pb, js proto.Message
			switch kind {
			case Logs:
				r := &logspb.ExportLogsServiceResponse{PartialSuccess: &logspb.ExportLogsPartialSuccess{RejectedLogRecords: tt.rejected, ErrorMessage: message}}
				if tt.rejected == 0 && message == "" {
					r.PartialSuccess = nil
				}
				want, pb, js = r, &logspb.ExportLogsServiceResponse{}, &logspb.ExportLogsServiceResponse{}
			case Spans:
				r := &tracepb.ExportTraceServiceResponse{PartialSuccess: &tracepb.ExportTracePartialSuccess{RejectedSpans: tt.rejected, ErrorMessage: message}}
				if tt.rejected == 0 && message == "" {
					r.PartialSuccess = nil
				}
				want, pb, js = r, &tracepb.ExportTraceServiceResponse{}, &tracepb.ExportTraceServiceResponse{}
			case Metrics:
				r := &metricspb.ExportMetricsServiceResponse{PartialSuccess: &metricspb.ExportMetricsPartialSuccess{RejectedDataPoints: tt.rejected, ErrorMessage: message}}
				if tt.rejected == 0 && message == "" {
					r.PartialSuccess = nil
				}
				want, pb, js = r, &metricspb.ExportMetricsServiceResponse{}, &metricspb.ExportMetricsServiceResponse{}
			}
			if err := proto.Unmarshal(AppendExportResponse(nil, kind, Protobuf, tt.rejected, tt.message), pb); err != nil || !proto.Equal(pb, want) {
				t.Errorf("%v: %v, want %v (%v)", kind, pb, want, err)
			}
			b := AppendExportResponse(nil, kind, JSON, tt.rejected, tt.message)
			if err := protojson.Unmarshal(b, js); err != nil || !proto.Equal(js, want) {
				t.Errorf("%v: %s (%v)", kind, b, err)
			}
		}
	}
	if b := AppendExportResponse(nil, Logs, Protobuf, 0, ""); len(b) != 0 {
		t.Errorf("full success is %x", b)
	}
	if b := AppendExportResponse(nil, Logs, JSON, 0, ""); string(b) != "{}" {
		t.Errorf("full success is %s", b)
	}
}

func TestStatus(t *testing.T) {
	for _, tt := range []*status.Status{{}, {Code: 3, Message: "malformed"}, {Code: -1, Message: "\x00 \u2028"}} {
		var pb, js status.Status
		if err := proto.Unmarshal(AppendStatus([]byte{}, Protobuf, tt.Code, tt.Message), &pb); err != nil || !proto.Equal(&pb, tt) {
			t.Errorf("%v %v", &pb, err)
		}
		if err := protojson.Unmarshal(AppendStatus(nil, JSON, tt.Code, tt.Message), &js); err != nil || !proto.Equal(&js, tt) {
			t.Errorf("%v %v", &js, err)
		}
	}
	var cut struct{ Message string }
	b := AppendStatus(nil, JSON, 3, "x"+strings.Repeat("é", MaxMessage))
	if err := json.Unmarshal(b, &cut); err != nil || len(cut.Message) != MaxMessage-1 || !utf8.ValidString(cut.Message) {
		t.Errorf("cut to %d bytes (%v)", len(cut.Message), err)
	}
}

func TestBadge(t *testing.T) {
	long := strings.Repeat("x", 300)
	b := AppendBadgeString(nil, "flowstate.org", "acme")
	b = AppendBadgeString(b, "flowstate.long", long)
	b = AppendBadgeString(b, "flowstate.empty", "")
	b = AppendBadgeString(b, "flowstate.broken", "a\xff")
	b = AppendBadgeBool(AppendBadgeBool(b, "flowstate.yes", true), "flowstate.no", false)
	boolean := func(k string, v bool) *common.KeyValue {
		return &common.KeyValue{Key: k, Value: &common.AnyValue{Value: &common.AnyValue_BoolValue{BoolValue: v}}}
	}
	want := &resource.Resource{Attributes: []*common.KeyValue{
		str("flowstate.org", "acme"), str("flowstate.long", long), str("flowstate.empty", ""), str("flowstate.broken", "a\uFFFD"),
		boolean("flowstate.yes", true), boolean("flowstate.no", false),
	}}
	var got resource.Resource
	if err := proto.Unmarshal(b, &got); err != nil || !proto.Equal(&got, want) {
		t.Errorf("got %v (%v)", &got, err)
	}
}
