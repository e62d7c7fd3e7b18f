package otlp

import (
	"encoding/hex"
	"fmt"
	"testing"

	logspb "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

var sizes = []int{1, 20, 100}

func benchmarkBody(b *testing.B, name string, body []byte, n int, do func()) {
	b.Run(fmt.Sprintf("%s-%d", name, n), func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(body)))
		for b.Loop() {
			do()
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/record")
	})
}

func BenchmarkRewrite(b *testing.B) {
	badge := testBadge()
	var dst []byte
	var r Rewriter
	for _, n := range sizes {
		for _, kind := range kinds {
			body := marshal(b, agentRequest(kind, n))
			benchmarkBody(b, kind.String(), body, n, func() {
				dst, _, _ = r.Rewrite(dst[:0], kind, body, badge, Visitor{})
			})
		}
		forged := agentLogs(n)
		forged.ResourceLogs[0].Resource.Attributes = append(forged.ResourceLogs[0].Resource.Attributes, str("flowstate.org", "evil"))
		body := marshal(b, forged)
		benchmarkBody(b, "forged", body, n, func() {
			dst, _, _ = r.Rewrite(dst[:0], Logs, body, badge, Visitor{})
		})
		for _, rec := range forged.ResourceLogs[0].ScopeLogs[0].LogRecords {
			rec.Attributes = append(rec.Attributes[1:], str("event.name", signalEvent))
		}
		body = marshal(b, forged)
		benchmarkBody(b, "signals", body, n, func() {
			dst, _, _ = r.Rewrite(dst[:0], Logs, body, badge, Visitor{Visit: func(*SignalRecord) {}})
		})
		some := agentLogs(n)
		for i := 0; i < n; i += 10 {
			some.ResourceLogs[0].ScopeLogs[0].LogRecords[i].EventName = signalEvent
			some.ResourceLogs[0].ScopeLogs[0].LogRecords[i].Attributes[1] = str("signal.type", "personal_use_company_account")
		}
		body = marshal(b, some)
		benchmarkBody(b, "one in ten a signal that is dropped", body, n, func() {
			dst, _, _ = r.Rewrite(dst[:0], Logs, body, badge, Visitor{Drop: func([]byte) bool { return true }})
		})
	}
}

func BenchmarkJSONToProto(b *testing.B) {
	var dst []byte
	for _, n := range sizes {
		for _, kind := range kinds {
			body := otlpJSON(b, agentRequest(kind, n), protojson.MarshalOptions{UseEnumNumbers: true}, hex.EncodeToString)
			benchmarkBody(b, kind.String(), body, n, func() {
				dst, _ = JSONToProto(dst[:0], kind, body)
			})
		}
	}
}

// BenchmarkOfficialTypes is what the same work costs with objects in between.
func BenchmarkOfficialTypes(b *testing.B) {
	for _, n := range sizes {
		body := marshal(b, agentLogs(n))
		benchmarkBody(b, "logs", body, n, func() {
			var req logspb.ExportLogsServiceRequest
			if proto.Unmarshal(body, &req) == nil {
				for _, r := range req.ResourceLogs {
					r.Resource.Attributes = append(r.Resource.Attributes, &common.KeyValue{Key: "flowstate.org"})
				}
				_, _ = proto.Marshal(&req)
			}
		})
	}
}
