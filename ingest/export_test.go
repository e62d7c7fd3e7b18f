package ingest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	"google.golang.org/protobuf/proto"

	"flowstate.inc/sluice/auth"
)

// Where the broker's limit is below the edge's, a record is refused only if the broker refused it alone, also one that is most of its payload.
func TestBrokersOwnLimit(t *testing.T) {
	var narrow string
	e := startEdge(t, func(ec *EdgeConfig, _ *ServerConfig, pc *ProducerConfig) {
		narrow = ec.Topics.Logs + "_narrow"
		_, err := EnsureTopics(t.Context(), pc.KafkaConfig, []TopicSpec{{Name: narrow, Partitions: 1, Configs: map[string]string{"max.message.bytes": "4000"}}})
		if err != nil {
			t.Fatal(err)
		}
		ec.Topics.Logs, pc.Topics[0] = narrow, narrow
	})
	key := e.add(service(auth.Production))
	var records []*logs.LogRecord
	for _, size := range []int{10, 2900, 10, 10, 6000, 2900, 10} {
		records = append(records, logRecord(fmt.Sprint("r", len(records)), str("text", strings.Repeat("x", size))))
	}
	a := e.send("POST", "/v1/logs", marshal(t, logsRequest(records...)), "Content-Type", "application/x-protobuf", "x-flowstate-key", key)
	var res collogs.ExportLogsServiceResponse
	if err := proto.Unmarshal(a.body, &res); err != nil || a.code != 200 || res.PartialSuccess.GetRejectedLogRecords() != 1 || !strings.Contains(res.PartialSuccess.ErrorMessage, tooLargeForKafka+`: log record 4 "r4"`) {
		t.Fatalf("%s %v", a, err)
	}
	n, ids := 0, map[string]bool{}
	for n < 6 {
		for _, r := range read(t, e.brokers, narrow, len(ids)+1)[len(ids):] {
			var req collogs.ExportLogsServiceRequest
			if err := proto.Unmarshal(r.Value, &req); err != nil {
				t.Fatal(err)
			}
			checkBadge(t, badgeOf(t, req.ResourceLogs[0].Resource), key)
			n += len(req.ResourceLogs[0].ScopeLogs[0].LogRecords)
			if id := headersOf(r)["flowstate-msg-id"]; ids[id] {
				t.Fatalf("id %s twice", id)
			} else {
				ids[id] = true
			}
		}
	}
	e.balanced()
}

// A signal over its limits is invalid, named in the answer, and costs its neighbours nothing.
func TestSignalOverItsLimits(t *testing.T) {
	e := startEdge(t)
	key := e.add(service(auth.Production))
	many := logRecord("flowstate.signal", str("signal.type", "secret_detected"))
	for i := range 1100 {
		many.Attributes = append(many.Attributes, str(fmt.Sprint("k", i), ""))
	}
	large := logRecord("flowstate.signal", str("signal.type", "secret_detected"), str("text", strings.Repeat("x", 600<<10)))
	fine := logRecord("flowstate.signal", str("signal.type", "secret_detected"))
	a := e.send("POST", "/v1/logs", marshal(t, logsRequest(many, large, fine, logRecord("other"))), "Content-Type", "application/x-protobuf", "x-flowstate-key", key)
	var res collogs.ExportLogsServiceResponse
	if err := proto.Unmarshal(a.body, &res); err != nil || a.code != 200 || res.PartialSuccess.GetRejectedLogRecords() != 2 || !strings.Contains(res.PartialSuccess.ErrorMessage, "too_large") {
		t.Fatalf("%s %v", a, err)
	}
	if got := len(read(t, e.brokers, e.topics.Signals, 1)); got != 1 {
		t.Errorf("%d signals", got)
	}
	e.balanced()
}

// What a signal's type alone decides is filtered, whatever else is wrong with the signal, and never reaches a topic; what its sender is no judge of is not.
func TestFilteredByTypeAlone(t *testing.T) {
	e := startEdge(t)
	key := e.add(service(auth.Production))
	const personal = "Personal Use-Company.Account"
	twice := []*common.KeyValue{str("signal.type", personal), str("x", "1"), str("x", "2")}
	forged := []*common.KeyValue{str("signal.type", personal), str("flowstate.subject.kind", "person")}
	person := []*common.KeyValue{str("signal.type", personal), str("signal.subject.kind", "person"), str("signal.subject.id", "p1")}
	types := []*common.KeyValue{str("signal.type", personal), str("signal.type", "secret_detected")}
	a := e.send("POST", "/v1/logs", marshal(t, logsRequest(logRecord("flowstate.signal", twice...), logRecord("flowstate.signal", person...), logRecord("flowstate.signal", types...))),
		"Content-Type", "application/x-protobuf", "x-flowstate-key", key)
	b := e.send("POST", "/v1/logs", marshal(t, logsRequest(logRecord("flowstate.signal", forged...))), "Content-Type", "application/x-protobuf", "x-flowstate-key", key)
	for i, a := range []answer{a, b} {
		var res collogs.ExportLogsServiceResponse
		if err := proto.Unmarshal(a.body, &res); err != nil || a.code != 200 || res.PartialSuccess.GetRejectedLogRecords() != int64(3-2*i) {
			t.Fatalf("%s %v", a, err)
		}
	}
	_, outcomes := e.ledger()
	want := map[string]float64{"signals/filtered/applies_to_persons_only": 2, "signals/invalid/bad_subject": 1, "signals/invalid/duplicate_field": 1}
	for what, n := range want {
		if outcomes[what] != n {
			t.Errorf("%s: %v, not %v (%v)", what, outcomes[what], n, outcomes)
		}
	}
	e.balanced()
}

// The 8 s of an answer begin with the last byte of the body, which may have been here unread while the key was looked up.
func TestLookUpCountsTowardsTheAnswer(t *testing.T) {
	e := startEdge(t, func(ec *EdgeConfig, _ *ServerConfig, pc *ProducerConfig) {
		pc.Timeout, ec.KafkaTimeout = time.Minute, time.Minute
	})
	key := []byte(e.add(service(auth.Production)))
	e.send("GET", "/v1/whoami", nil) // the listener is up, so that it can be shut down
	e.stopKafka()
	r := request{key: key, received: time.Now(), admitted: answerWithin - 200*time.Millisecond}
	id, fail := e.edge.authenticate(t.Context(), &request{key: key, received: time.Now()})
	if fail != nil {
		t.Fatal(fail.detail)
	}
	b := e.edge.batch()
	b.add(message(e.topics.Logs, "k", "v"), carried{kind: kindLogs, records: 1})
	began := time.Now()
	if fail := e.edge.produce(t.Context(), b, id.KeyPrefix, &r); fail == nil || fail.code != 503 {
		t.Errorf("%+v", fail)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("it waited %v of the 200 ms that were left", took)
	}
	e.edge.done(b)
}

// Decompression is a part of the 8 s: they begin when the body was here as it was sent.
func TestDecompressionCountsTowardsTheAnswer(t *testing.T) {
	e := startEdge(t)
	body := lastByte{r: bytes.NewReader(gzipped(t, make([]byte, 60<<20)))}
	r := request{
		id: newRequestID(), method: []byte("POST"), path: []byte("/v1/logs"), key: []byte(e.add(service(auth.Production))), contentType: []byte(typeProtobuf),
		contentEncoding: []byte("gzip"), received: time.Now(), body: &body, length: -1,
	}
	if res := e.edge.serve(t.Context(), &r); res.code != 400 {
		t.Errorf("answered %d", res.code)
	}
	if before, after := r.received.Sub(body.at), time.Since(r.received); before > after {
		t.Errorf("%v of the request's time are not counted, %v are", before, after)
	}
}

// A lastByte knows when its end was read.
type lastByte struct {
	r  io.Reader
	at time.Time
}

func (l *lastByte) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if err == io.EOF {
		l.at = time.Now()
	}
	return n, err
}

// Memory of a message is used again only after the producer's last attempt has ended, although the request has left.
func TestLeaseOutlivesItsRequest(t *testing.T) {
	var pool leases
	for _, n := range []int{0, 1, 1 << 10, 1<<10 + 1, 100_000, 1 << 20, 1<<20 + 1} {
		l := pool.get(n)
		if cap(l.value) < n || n > 2*leastLease && cap(l.value) >= 2*n {
			t.Errorf("%d bytes for %d", cap(l.value), n)
		}
	}
	l := pool.get(10)
	l.value = append(l.value, "payload"...)
	p := service(auth.Production)
	m := l.message("topic", &p, payloadID(&p, kindLogs, []byte("raw")), []byte("req"))
	l.hold() // by the producer
	l.release()
	if string(m.Value) != "payload" || string(l.value) != "payload" || string(m.Key) != p.Org+"/service_account/"+p.ID {
		t.Errorf("%q %q", m.Key, m.Value)
	}
	l.release()
	if len(l.value) != 0 || l.headers[0].Key != "" {
		t.Error("what was released last is not empty")
	}
	logs, again, spans := payloadID(&p, kindLogs, []byte("raw")), payloadID(&p, kindLogs, []byte("raw")), payloadID(&p, kindSpans, []byte("raw"))
	if logs != again || logs == spans {
		t.Error("an id is of its sender, kind and bytes")
	}
}

// Requests at once share pools; what each wrote must be what Kafka has, also of those that gave up waiting.
func TestLeasesAreNotMixedUp(t *testing.T) {
	e := startEdge(t)
	key := []byte(e.add(service(auth.Production)))
	e.send("GET", "/v1/whoami", nil) // the listener is up, so that it can be shut down
	const senders, each = 8, 25
	var wg sync.WaitGroup
	for s := range senders {
		wg.Go(func() {
			for i := range each {
				body := marshal(t, logsRequest(logRecord(fmt.Sprintf("from %d %d", s, i), str("text", strings.Repeat(fmt.Sprint(s), 100*(i+1))))))
				ctx, cancel := context.WithCancel(t.Context())
				if i%5 == 0 {
					cancel()
				}
				r := request{id: newRequestID(), method: []byte("POST"), path: []byte("/v1/logs"), key: key, contentType: []byte(typeProtobuf), received: time.Now(), body: bytes.NewReader(body), length: len(body)}
				if res := e.edge.serve(ctx, &r); res.code != 200 && i%5 != 0 {
					t.Errorf("%d %s", res.code, res.detail)
				}
				cancel()
			}
		})
	}
	wg.Wait()
	for _, rec := range read(t, e.brokers, e.topics.Logs, senders*each*4/5) {
		var req collogs.ExportLogsServiceRequest
		if err := proto.Unmarshal(rec.Value, &req); err != nil {
			t.Fatal(err)
		}
		var s, i int
		record := req.ResourceLogs[0].ScopeLogs[0].LogRecords[0]
		if _, err := fmt.Sscanf(record.EventName, "from %d %d", &s, &i); err != nil {
			t.Fatal(err, record)
		}
		if text := record.Attributes[len(record.Attributes)-1].Value.GetStringValue(); text != strings.Repeat(fmt.Sprint(s), 100*(i+1)) {
			t.Fatalf("%d %d has %d bytes of %.1s", s, i, len(text), text)
		}
	}
}
