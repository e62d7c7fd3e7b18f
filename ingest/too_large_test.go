package ingest

import (
	"fmt"
	"strings"
	"testing"
	"time"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/ingest/otlp"
)

// What is over the broker's limit is split; a record that is over it alone is named.
func TestOversize(t *testing.T) {
	e := startEdge(t, func(ec *EdgeConfig, _ *ServerConfig, _ *ProducerConfig) { ec.MaxMessageBytes = 8 << 10 })
	key := e.add(service(auth.Production))
	var records []*logs.LogRecord
	for i := range 30 {
		records = append(records, logRecord(fmt.Sprint("r", i), str("text", strings.Repeat("x", 1000))))
	}
	records = append(records, logRecord("flowstate.signal", str("signal.type", "forecast_breach")), logRecord("huge", str("text", strings.Repeat("x", 9000))))
	a := e.send("POST", "/v1/logs", marshal(t, logsRequest(records...)), "Content-Type", "application/x-protobuf", "x-flowstate-key", key)
	var res collogs.ExportLogsServiceResponse
	if err := proto.Unmarshal(a.body, &res); err != nil || a.code != 200 || res.PartialSuccess.GetRejectedLogRecords() != 1 || !strings.Contains(res.PartialSuccess.ErrorMessage, `too large to be stored even alone, first log record 31 "huge" (`) {
		t.Fatalf("%s %v", a, err)
	}
	rpc, err := collogs.NewLogsServiceClient(e.dial()).Export(withKey(t, "x-flowstate-key", key), logsRequest(records[30], records[31]))
	if err != nil || !strings.Contains(rpc.PartialSuccess.GetErrorMessage(), `first log record 1 "huge" (`) || strings.Contains(rpc.PartialSuccess.GetErrorMessage(), "xxxx") {
		t.Errorf("gRPC: %v %v", rpc, err)
	}
	n := 0
	ids := map[string]bool{}
	for _, r := range read(t, e.brokers, e.topics.Logs, 4) {
		var req collogs.ExportLogsServiceRequest
		if err := proto.Unmarshal(r.Value, &req); err != nil {
			t.Fatal(err)
		}
		checkBadge(t, badgeOf(t, req.ResourceLogs[0].Resource), key)
		n += len(req.ResourceLogs[0].ScopeLogs[0].LogRecords)
		ids[headersOf(r)["flowstate-msg-id"]] = true
	}
	if n != 30 || len(ids) < 4 {
		t.Errorf("%d records under %d ids", n, len(ids))
	}
	e.balanced()
}

// What can never be taken, however empty the edge is, is 413 and names the limit, and its records are invalid: "later" would be for ever. A key's share is not
// such a limit: what comes alone may be larger.
func TestNeverFits(t *testing.T) {
	e := startEdge(t, func(ec *EdgeConfig, _ *ServerConfig, pc *ProducerConfig) {
		ec.MaxRequestBytes, ec.MaxDecodedBytes, ec.MaxMessageBytes = 1<<20, 1<<20, 12<<10
		pc.MaxMessageBytes, pc.MaxInFlightBytes = 16<<10, 64<<10 // a key has a quarter
	})
	key := e.add(service(auth.Production))
	request := func(n int) *collogs.ExportLogsServiceRequest {
		var records []*logs.LogRecord
		for range n {
			records = append(records, logRecord("r", str("text", strings.Repeat("x", 2000))))
		}
		return logsRequest(records...)
	}
	post := func(n int) answer {
		return e.send("POST", "/v1/logs", marshal(t, request(n)), "Content-Type", "application/x-protobuf", "x-flowstate-key", key)
	}
	if a := post(20); a.code != 200 {
		t.Errorf("over the key's share: %s", a)
	}
	refused := func(name string, a answer, limit string) {
		t.Helper()
		if a.code != 413 || a.header.Get("Retry-After") != "" || !strings.Contains(string(a.body), limit) {
			t.Errorf("%s: %s", name, a)
		}
	}
	refused("logs", post(40), "--max-inflight-bytes")
	_, err := collogs.NewLogsServiceClient(e.dial()).Export(withKey(t, "x-flowstate-key", key), request(40))
	if code, later := rpcCode(err); code != codes.ResourceExhausted || later != 0 || !strings.Contains(err.Error(), "--max-inflight-bytes") {
		t.Errorf("gRPC: %v", err)
	}
	items := func(n int) string {
		return "[" + strings.Repeat(`{"type":"forecast_breach"},`, n-1) + `{"type":"forecast_breach"}]`
	}
	a, _ := e.signals(key, items(200))
	refused("signals", a, "--max-inflight-bytes")
	// The events of so many are more than one request may hold in memory.
	a, _ = e.signals(key, items(9000))
	refused("signals' memory", a, "--max-body-bytes")
	if a := post(20); a.code != 200 {
		t.Errorf("after them: %s", a)
	}
	received, outcomes := e.ledger()
	if received["logs"] != 120 || outcomes["logs/accepted/kafka"] != 40 || outcomes["logs/invalid/too_large"] != 80 || outcomes["signals/invalid/too_large"] != 9200 {
		t.Errorf("ledger %v %v", received, outcomes)
	}
	if n := e.requests("logs", "413", string(bodyTooLarge)) + e.requests("signals", "413", string(bodyTooLarge)); n != 4 {
		t.Errorf("%v requests are counted as too large", n)
	}
	if n := e.edge.budget.used.Load(); n != 0 {
		t.Errorf("%d bytes stay charged", n)
	}
	e.balanced()
}

// A retry may be cut elsewhere, since an edit has made the badge longer or the broker's limit has changed: then parts of the two have one id only where they
// hold the same records. A consumer that keeps the first of each id misses none.
func TestPartsAreNamedByTheirRecords(t *testing.T) {
	var records []*logs.LogRecord
	for i := range 40 {
		records = append(records, logRecord(fmt.Sprint("r", i), str("text", strings.Repeat("x", 50+i))))
	}
	value := marshal(t, logsRequest(records...))
	hash := msgPrefix + strings.Repeat("0a", 16)
	holds := map[string]string{} // by id
	for _, max := range []int{1000, 1100, 1500} {
		m := Message{Topic: "t", Value: value, Headers: []Header{{headerOrg, []byte("acme")}, {headerMsgID, []byte(hash)}}}
		b := &batch{}
		if err := b.split(m, carried{kind: kindLogs, payload: otlp.Logs, records: len(records)}, max, nil); err != nil {
			t.Fatal(err)
		}
		parts := len(b.messages)
		for i := range parts { // each of which the broker may find too large itself
			b.halve(b.messages[i], b.carried[i])
		}
		all := 0
		for i, m := range b.messages {
			var req collogs.ExportLogsServiceRequest
			if err := proto.Unmarshal(m.Value, &req); err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, r := range req.ResourceLogs[0].ScopeLogs[0].LogRecords {
				names = append(names, r.EventName)
			}
			if i < parts {
				all += len(names)
			}
			id := string(m.Headers[1].Value)
			if got := strings.Join(names, " "); holds[id] == "" {
				holds[id] = got
			} else if holds[id] != got {
				t.Errorf("%s holds %q, and %q when cut at %d bytes", id, holds[id], got, max)
			}
			if want := fmt.Sprintf("%s-%s-%d", hash, strings.TrimPrefix(names[0], "r"), len(names)); id != want {
				t.Errorf("id %s, not %s", id, want)
			}
		}
		if parts < 3 || all != len(records) {
			t.Errorf("%d parts of %d records", parts, all)
		}
	}
}

func TestAppendFixedTime(t *testing.T) {
	for in, want := range map[string]string{
		"2026-11-23T22:40:12Z":                "2026-11-23T22:40:12.000000000Z",
		"2026-11-23T22:40:12.5Z":              "2026-11-23T22:40:12.500000000Z",
		"2026-11-24T00:40:12.000000001+02:00": "2026-11-23T22:40:12.000000001Z",
		"2026-11-23T22:40:12.999999999Z":      "2026-11-23T22:40:12.999999999Z",
	} {
		at, err := time.Parse(time.RFC3339Nano, in)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(appendFixedTime(nil, at)); got != want {
			t.Errorf("%s: %s, not %s", in, got, want)
		}
	}
}
