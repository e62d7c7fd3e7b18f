package ingest

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	colmetrics "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	coltrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	_ "google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"flowstate.inc/sluice/auth"
)

// What the OTLP specification (v1.11, docs/specification.md of opentelemetry-proto) says of answers, over its three transports. A comment names the
// section that a row is from; what is in quotation marks are the specification's words, the rest is ours.
func TestOTLPCodes(t *testing.T) {
	const limit = 64 << 10
	e := startEdge(t, func(ec *EdgeConfig, _ *ServerConfig, _ *ProducerConfig) {
		ec.MaxRequestBytes, ec.MaxDecodedBytes, ec.KafkaTimeout = limit, limit, 2*time.Second
	})
	key := e.add(service(auth.Production))
	unknown, _ := auth.MintKey(auth.KindServiceAccount)
	slow := service(auth.Staging)
	slow.Limits.RequestsPerSecond = 1
	limited := e.add(slow)
	conn := e.dial(grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(16 << 20)))

	one := logsRequest(logRecord("a"))
	partial := logsRequest(logRecord("a"), logRecord("flowstate.signal", str("signal.type", "personal_use_company_account")))
	large := logsRequest(logRecord("a", str("text", strings.Repeat("x", 2*limit))))
	huge := logsRequest(logRecord("a", str("text", strings.Repeat("0123456789abcdef", limit))))

	for _, c := range []struct {
		name string
		key  string
		sent proto.Message // nil: bad data
		gzip bool

		http      int        // status over HTTP
		rpc       codes.Code // and over gRPC
		later     bool       // Retry-After and RetryInfo
		rejected  int64
		spent     bool // the key's limit is used up first
		kafkaAway bool
	}{
		// Full Success: "On success, the server MUST respond with `HTTP 200 OK`." "The server MUST leave the `partial_success` field unset in case of a
		// successful response."
		{name: "success", key: key, sent: one, http: 200, rpc: codes.OK},
		{name: "success, gzip", key: key, sent: one, gzip: true, http: 200, rpc: codes.OK},
		// Full Success: "If the server receives an empty request (a request that does not carry any telemetry data) the server SHOULD respond with success."
		{name: "empty", key: key, sent: &collogs.ExportLogsServiceRequest{}, http: 200, rpc: codes.OK},
		{name: "empty resource", key: key, sent: logsRequest(), http: 200, rpc: codes.OK},
		// Partial Success: "If the request is only partially accepted (i.e. when the server accepts only parts of the data and rejects the rest), the
		// server MUST respond with `HTTP 200 OK`." "Additionally, the server MUST initialize the `partial_success` field", "it MUST set the respective
		// `rejected_spans`, `rejected_data_points` or `rejected_log_records` field", "SHOULD populate the `error_message` field".
		{name: "partial success", key: key, sent: partial, http: 200, rpc: codes.OK, rejected: 1},
		// Bad Data: "If the processing of the request fails because the request contains data that cannot be decoded or is otherwise invalid and such
		// failure is permanent, then the server MUST respond with `HTTP 400 Bad Request`. The `Status.details` field in the response SHOULD contain a
		// BadRequest". OTLP/gRPC Response, Failures: "To indicate not-retryable errors, the server is recommended to use code InvalidArgument and MAY
		// supply additional details via status using BadRequest."
		{name: "bad data", key: key, http: 400, rpc: codes.InvalidArgument},
		// The specification leaves 401 to HTTP ("All Other Responses"); Failures: "All other `4xx` or `5xx` response status codes MUST NOT be retried."
		// In the table of gRPC codes: UNAUTHENTICATED, No.
		{name: "no key", sent: one, http: 401, rpc: codes.Unauthenticated},
		{name: "unknown key", key: unknown, sent: one, http: 401, rpc: codes.Unauthenticated},
		{name: "no key of ours", key: "hello", sent: one, http: 401, rpc: codes.Unauthenticated},
		// OTLP/HTTP Request, OTLP/gRPC Request: the size is limited, after decompression too, and what is over it is 413, or RESOURCE_EXHAUSTED for good.
		// Of that code, OTLP/gRPC Response, Failures: "The client SHOULD interpret `RESOURCE_EXHAUSTED` code as retryable only if the server signals that
		// the recovery from resource exhaustion is possible. This is signaled by the server by returning a status containing RetryInfo."
		{name: "too large", key: key, sent: large, http: 413, rpc: codes.ResourceExhausted},
		{name: "too large when inflated", key: key, sent: huge, gzip: true, http: 413, rpc: codes.ResourceExhausted},
		// OTLP/HTTP Throttling: "If the server receives more requests than the client is allowed or the server is overloaded, the server SHOULD respond
		// with `HTTP 429 Too Many Requests` or `HTTP 503 Service Unavailable` and MAY include "Retry-After" header". Over gRPC RESOURCE_EXHAUSTED with
		// RetryInfo, which is retryable as said above.
		{name: "over the key's limit", key: limited, sent: one, spent: true, http: 429, rpc: codes.ResourceExhausted, later: true},
		// OTLP/gRPC Response, Failures: "The server MUST indicate retryable errors using code Unavailable and MAY supply additional details via status
		// using RetryInfo". OTLP/HTTP: 503 is in the table of codes to be retried.
		{name: "Kafka is away", key: key, sent: one, kafkaAway: true, http: 503, rpc: codes.Unavailable, later: true},
	} {
		if c.kafkaAway {
			e.stopKafka()
		}
		junk := []byte("\x0a\xff\xff\xff\xff\xff")
		for _, contentType := range []string{"application/x-protobuf", "application/json"} {
			name := c.name + " by HTTP in " + contentType
			body := junk
			if c.sent != nil && contentType == "application/json" {
				b, err := protojson.Marshal(c.sent)
				if err != nil {
					t.Fatal(err)
				}
				body = b
			} else if c.sent != nil {
				body = marshal(t, c.sent)
			}
			headers := []string{"Content-Type", contentType, "x-flowstate-key", c.key}
			if c.gzip {
				body, headers = gzipped(t, body), append(headers, "Content-Encoding", "gzip")
			}
			send := func() answer { return e.send("POST", "/v1/logs", body, headers...) }
			a := send()
			for c.spent && a.code == 200 {
				a = send()
			}
			if a.code != c.http {
				t.Errorf("%s: %s; want %d", name, a, c.http)
				continue
			}
			// OTLP/HTTP Response: "The server MUST use the same "Content-Type" in the response as it received in the request." Errors are responses too.
			if got := a.header.Get("Content-Type"); got != contentType {
				t.Errorf("%s: answered in %s", name, got)
			}
			retryAfter(t, name, a, c.later)
			if a.code == 200 {
				checkSuccess(t, name, a, c.rejected)
				continue
			}
			// OTLP/HTTP Response, Failures: "The response body for all `HTTP 4xx` and `HTTP 5xx` responses MUST be a Protobuf-encoded Status message that
			// describes the problem." "The `Status.message` field SHOULD contain a developer-facing error message".
			code, message := statusOf(t, a)
			if message == "" || codes.Code(code) != c.rpc {
				t.Errorf("%s: status %d %q; want %d", name, code, message, c.rpc)
			}
			badRequest(t, name, a, c.http == 400, message)
		}

		name := c.name + " by gRPC"
		ctx := metadata.AppendToOutgoingContext(t.Context(), "x-flowstate-key", c.key)
		var opts []grpc.CallOption
		if c.gzip {
			opts = append(opts, grpc.UseCompressor("gzip"))
		}
		var res collogs.ExportLogsServiceResponse
		export := func() error {
			const method = "/opentelemetry.proto.collector.logs.v1.LogsService/Export"
			if c.sent == nil {
				return conn.Invoke(ctx, method, junk, &res, append(opts, grpc.ForceCodec(bytesCodec{}))...)
			}
			return conn.Invoke(ctx, method, c.sent, &res, opts...)
		}
		err := export()
		for c.spent && err == nil {
			err = export()
		}
		code, retry := rpcCode(err)
		if code != c.rpc || c.later != (retry > 0) || retry > 10*time.Second {
			t.Errorf("%s: %v, retry in %v; want %v", name, err, retry, c.rpc)
		}
		if res.PartialSuccess.GetRejectedLogRecords() != c.rejected || c.rejected == 0 && res.PartialSuccess != nil {
			t.Errorf("%s: %v", name, res.PartialSuccess)
		}
	}
	e.balanced()
}

// bytesCodec sends bytes as they are.
type bytesCodec struct{}

func (bytesCodec) Marshal(v any) ([]byte, error)   { return v.([]byte), nil }
func (bytesCodec) Unmarshal(b []byte, v any) error { return proto.Unmarshal(b, v.(proto.Message)) }
func (bytesCodec) Name() string                    { return "proto" }
func retryAfter(t *testing.T, name string, a answer, later bool) {
	t.Helper()
	header := a.header.Get("Retry-After")
	if !later {
		if header != "" {
			t.Errorf("%s: Retry-After %s on what is not to be retried", name, header)
		}
		return
	}
	if n, err := strconv.Atoi(header); err != nil || n < 1 || n > 10 {
		t.Errorf("%s: Retry-After %q", name, header)
	}
}

// badRequest looks for google.rpc.BadRequest in the details of an error.
func badRequest(t *testing.T, name string, a answer, want bool, message string) {
	t.Helper()
	var s statuspb.Status
	unmarshal := proto.Unmarshal
	if a.header.Get("Content-Type") == "application/json" {
		unmarshal = func(b []byte, m proto.Message) error { return protojson.Unmarshal(b, m) }
	}
	if err := unmarshal(a.body, &s); err != nil || (len(s.Details) == 1) != want {
		t.Errorf("%s: %v, details %v", name, err, s.Details)
		return
	}
	if !want {
		return
	}
	var d errdetails.BadRequest
	if err := s.Details[0].UnmarshalTo(&d); err != nil || len(d.FieldViolations) != 1 || d.FieldViolations[0].Description != message {
		t.Errorf("%s: %v, %v", name, err, &d)
	}
}

func checkSuccess(t *testing.T, name string, a answer, rejected int64) {
	t.Helper()
	var res collogs.ExportLogsServiceResponse
	unmarshal := proto.Unmarshal
	if a.header.Get("Content-Type") == "application/json" {
		unmarshal = func(b []byte, m proto.Message) error { return protojson.Unmarshal(b, m) }
	}
	if err := unmarshal(a.body, &res); err != nil {
		t.Errorf("%s: %v", name, err)
	}
	switch p := res.PartialSuccess; {
	case rejected == 0 && p != nil:
		t.Errorf("%s: partial_success %v on full success", name, p)
	case rejected > 0 && (p.GetRejectedLogRecords() != rejected || p.GetErrorMessage() == ""):
		t.Errorf("%s: %v, want %d rejected and why", name, p, rejected)
	}
}

// What only one of the transports can say: methods, paths and content types.
func TestOTLPCodesOfHTTP(t *testing.T) {
	e := startEdge(t)
	key := e.add(service(auth.Production))
	body := marshal(t, logsRequest(logRecord("a")))
	for _, c := range []struct {
		method, path, contentType, encoding string
		code                                int
		in                                  string // content type of the answer
	}{
		{"GET", "/v1/logs", "application/x-protobuf", "", 405, "application/x-protobuf"},
		{"PUT", "/v1/traces", "application/json", "", 405, "application/json"},
		{"DELETE", "/v1/metrics", "application/json", "", 405, "application/json"},
		{"POST", "/v1/log", "application/x-protobuf", "", 404, "application/x-protobuf"},
		{"POST", "/v1development/profiles", "application/x-protobuf", "", 404, "application/x-protobuf"},
		{"POST", "/v1development/profiles", "application/json", "", 404, "application/json"},
		{"POST", "/v1/log", "application/json", "", 404, "application/problem+json"},
		{"POST", "/V1/LOGS", "text/plain", "", 404, "application/problem+json"},
		{"POST", "/v1/logs", "text/plain", "", 415, "application/json"},
		{"POST", "/v1/logs", "application/grpc", "", 415, "application/json"},
		{"POST", "/v1/logs", "application/x-protobuf", "br", 415, "application/x-protobuf"},
		{"POST", "/v1/logs", "application/x-protobuf", "deflate", 415, "application/x-protobuf"},
		{"POST", "/v1/logs", "Application/X-Protobuf ; v=1", "Identity", 200, "application/x-protobuf"},
		{"GET", "/v1/signals", "application/json", "", 405, "application/problem+json"},
		{"POST", "/v1/whoami", "application/json", "", 405, "application/problem+json"},
	} {
		a := e.send(c.method, c.path, body, "Content-Type", c.contentType, "Content-Encoding", c.encoding, "x-flowstate-key", key)
		if a.code != c.code || a.header.Get("Content-Type") != c.in {
			t.Errorf("%s %s %s %s: %s in %s; want %d in %s", c.method, c.path, c.contentType, c.encoding, a, a.header.Get("Content-Type"), c.code, c.in)
			continue
		}
		if c.code == 405 && a.header.Get("Allow") == "" {
			t.Errorf("%s %s: no Allow", c.method, c.path)
		}
		switch {
		case c.code == 200:
		case c.in == "application/problem+json":
			var p problem
			if err := json.Unmarshal(a.body, &p); err != nil || p.Status != c.code || p.Detail == "" || p.RequestID != a.header.Get("X-Request-Id") {
				t.Errorf("%s %s: %s", c.method, c.path, a)
			}
		default:
			statusOf(t, a)
		}
	}

	// Unknown services and methods are UNIMPLEMENTED.
	conn := e.dial()
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-flowstate-key", key)
	for _, method := range []string{"/opentelemetry.proto.collector.profiles.v1development.ProfilesService/Export", "/opentelemetry.proto.collector.logs.v1.LogsService/Import", "/v1/logs", "/"} {
		err := conn.Invoke(ctx, method, logsRequest(logRecord("a")), &collogs.ExportLogsServiceResponse{})
		if code, retry := rpcCode(err); code != codes.Unimplemented || retry != 0 {
			t.Errorf("%s: %v", method, err)
		}
	}
	if n := e.requests("other", "404", "path"); n != 9 {
		t.Errorf("%v unknown paths and methods are counted", n)
	}
	e.balanced()
}

// The count of what was rejected is of the request's own kind, over every transport; a filtered signal in spans and metrics there is none.
func TestOTLPResponseTypes(t *testing.T) {
	e := startEdge(t)
	key := e.add(service(auth.Production))
	for path, empty := range map[string][2]proto.Message{
		"/v1/logs":    {&collogs.ExportLogsServiceRequest{}, &collogs.ExportLogsServiceResponse{}},
		"/v1/traces":  {&coltrace.ExportTraceServiceRequest{}, &coltrace.ExportTraceServiceResponse{}},
		"/v1/metrics": {&colmetrics.ExportMetricsServiceRequest{}, &colmetrics.ExportMetricsServiceResponse{}},
	} {
		a := e.send("POST", path, marshal(t, empty[0]), "Content-Type", "application/x-protobuf", "x-flowstate-key", key)
		if err := proto.Unmarshal(a.body, empty[1]); a.code != 200 || err != nil {
			t.Errorf("%s: %s %v", path, a, err)
		}
		// JSON as other implementations write it: lowerCamelCase, unknown fields, numbers for 64-bit integers, integers for enums.
		const at = `"timeUnixNano":1700000000000000000,"observedTimeUnixNano":"1700000000000000000","severityNumber":9,"unheardOf":{"a":[1]}`
		if path == "/v1/logs" {
			a = e.send("POST", path, fmt.Appendf(nil, `{"resourceLogs":[{"scopeLogs":[{"logRecords":[{%s}]}],"schemaUrl":""}]}`, at), "Content-Type", "application/json; charset=utf-8", "x-flowstate-key", key)
			if a.code != 200 || string(a.body) != "{}" {
				t.Errorf("JSON: %s", a)
			}
			got := read(t, e.brokers, e.topics.Logs, 1)
			var sent collogs.ExportLogsServiceRequest
			if err := proto.Unmarshal(got[0].Value, &sent); err != nil {
				t.Fatal(err)
			}
			r := sent.ResourceLogs[0].ScopeLogs[0].LogRecords[0]
			if r.TimeUnixNano != 1_700_000_000_000_000_000 || r.ObservedTimeUnixNano != r.TimeUnixNano || r.SeverityNumber != logs.SeverityNumber_SEVERITY_NUMBER_INFO {
				t.Errorf("%v", r)
			}
		}
	}
}
