package ingest

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"flowstate.inc/sluice/auth"
)

// FuzzEdge sends arbitrary requests through the whole of an edge but its sockets, to a Kafka that takes batches up to a size and keeps none, and to one that
// is gone: nothing panics, every answer is one of the documented codes, the ledger is balanced, and nothing stays charged.
func FuzzEdge(f *testing.F) {
	c := newFake(f)
	c.ControlKey(int16(kmsg.Produce), func(r kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		req, code := r.(*kmsg.ProduceRequest), int16(0)
		for i := range req.Topics {
			for _, p := range req.Topics[i].Partitions {
				if len(p.Records) > 3<<10 { // less than the edge thinks
					code = kerr.MessageTooLarge.Code
				}
			}
		}
		return answerProduce(req, code), nil, true
	})
	type sender struct {
		*testEdge
		keys []string
	}
	start := func() sender {
		e := startEdgeOn(f, c.ListenAddrs(), func(ec *EdgeConfig, _ *ServerConfig, _ *ProducerConfig) {
			ec.MaxRequestBytes, ec.MaxDecodedBytes, ec.MaxMessageBytes = 64<<10, 256<<10, 4<<10
		})
		return sender{e, []string{e.add(service(auth.Production)), e.add(detector()), e.add(person()), "hello"}}
	}
	live, cut := start(), start()
	cut.stopKafka() // what would have to wait for it is 503 at once

	body := marshal(f, logsRequest(logRecord("a", str("flowstate.org", "x")), logRecord("flowstate.signal", str("signal.type", "forecast_breach"))))
	f.Add("/v1/logs", "application/x-protobuf", "", uint8(0), body)
	f.Add("/v1/logs", "application/x-protobuf", "gzip", uint8(0), gzipped(f, body))
	f.Add("/v1/logs", "application/x-protobuf", "zstd", uint8(1), zstded(f, body))
	f.Add("/v1/logs", "application/json", "identity, ", uint8(0), []byte(`{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"eventName":"flowstate.signal","attributes":[{"key":"signal.type","value":{"stringValue":"abuse_pattern"}}]}]}]}]}`))
	f.Add("/v1/traces", "application/json", "", uint8(2), []byte(`{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"0102","name":"a"}]}]}]}`))
	f.Add("/v1/metrics", "application/json", "", uint8(0), []byte(`{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"sum":{"dataPoints":[{"asInt":"1"}]}}]}]}]}`))
	f.Add("/v1/signals", "application/json", "", uint8(1), []byte(`[{"type":"forecast_breach","subject":{"kind":"service_account","id":"sa_production"}},{"type":"personal_use_company_account"}]`))
	f.Add("/v1/signals", "application/x-ndjson", "gzip,gzip", uint8(3), []byte("{\"type\":\"a\"}\n{}"))
	f.Add("/v1/whoami", "", "", uint8(0), []byte(nil))
	f.Add("/opentelemetry.proto.collector.logs.v1.LogsService/Export", "grpc", "gzip", uint8(0), append([]byte{0, 0, 0, 0, byte(len(body))}, body...))

	f.Add("/v1/logs", "application/x-protobuf", "", uint8(0x80), body)
	f.Add("/v1/signals", "application/json", "", uint8(0x80), []byte(`{"type":"forecast_breach"}`))

	for _, file := range []string{"python-logs.pb", "node-logs.json", "node-traces.json", "go-metrics.pb"} {
		b, err := os.ReadFile(filepath.Join("otlp", "testdata", "clients", file))
		if err != nil {
			f.Fatal(err)
		}
		name, ext, _ := strings.Cut(file, ".")
		_, kind, _ := strings.Cut(name, "-")
		f.Add("/v1/"+kind, map[string]string{"pb": "application/x-protobuf", "json": "application/json"}[ext], "", uint8(0), b)
	}

	codes := map[int]bool{200: true, 400: true, 401: true, 404: true, 405: true, 413: true, 415: true, 503: true}
	f.Fuzz(func(t *testing.T, path, contentType, encoding string, from uint8, body []byte) {
		e := live
		if from&0x80 != 0 {
			e = cut
		}
		r := request{
			id: newRequestID(), method: []byte("POST"), path: []byte(path), key: []byte(e.keys[int(from)%len(e.keys)]), contentType: []byte(contentType),
			contentEncoding: []byte(encoding), idempotencyKey: []byte(encoding), received: time.Now(), body: bytes.NewReader(body), length: len(body),
		}
		if from&0x40 != 0 {
			r.length = -1
		}
		if path == "/v1/whoami" {
			r.method = []byte("GET")
		}
		if contentType == "grpc" {
			m := framed{r: bytes.NewReader(body), codings: []string{encoding}}
			r.grpc, r.length, r.body, r.open = true, -1, &m, m.open
		}
		res := e.edge.serve(t.Context(), &r)
		if !codes[res.code] {
			t.Errorf("answered %d %s: %s", res.code, res.reason, res.body)
		}
		if res.code == 503 && res.retryAfter == 0 {
			t.Errorf("503 %s without Retry-After", res.reason)
		}
		if res.reason == kafkaAway && from&0x80 == 0 {
			t.Error("Kafka is away, although it answers")
		}
		if n := e.edge.budget.used.Load(); n != 0 {
			t.Errorf("%d bytes stay charged", n)
		}
		e.t = t
		e.balanced()
	})
}
