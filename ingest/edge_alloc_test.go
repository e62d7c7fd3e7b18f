//go:build !race

package ingest

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"flowstate.inc/sluice/auth"
)

// maxAllocs is what one request of 20 log records may allocate between the listener and its answer, Kafka's acknowledgement included: what is forwarded
// is in leased memory, and nearly all of these are the fake broker's, which runs in this process: 37 when this was set. A rise means that something of the request's way got heavier: find it, or say here what it buys.
const maxAllocs = 45

func TestEdgeAllocations(t *testing.T) {
	e := startEdge(t)
	key := []byte(e.add(service(auth.Production)))
	req := logsRequest()
	for i := range 20 {
		req.ResourceLogs[0].ScopeLogs[0].LogRecords = append(req.ResourceLogs[0].ScopeLogs[0].LogRecords, logRecord(fmt.Sprint("claude_code.api_request_", i), str("model", "m"), str("session.id", "s")))
	}
	body := marshal(t, req)
	src := bytes.NewReader(body)
	ctx := t.Context()
	send := func() {
		src.Reset(body)
		r := request{id: newRequestID(), method: []byte("POST"), path: []byte("/v1/logs"), key: key, contentType: []byte(typeProtobuf), received: time.Now(), body: src, length: len(body)}
		if res := e.edge.serve(ctx, &r); res.code != 200 {
			t.Fatalf("%d %s", res.code, res.detail)
		}
	}
	for range 50 {
		send() // the key is in L1 and the pools are filled
	}
	if got := testing.AllocsPerRun(200, send); got > maxAllocs {
		t.Errorf("%v allocations a request, at most %d are allowed", got, maxAllocs)
	} else {
		t.Logf("%v allocations a request", got)
	}

	// Up to Kafka, which is where the edge's own part ends: a request that is refused there allocates what is forwarded and the refusal.
	e.stopKafka()
	refused := testing.AllocsPerRun(200, func() {
		src.Reset(body)
		r := request{id: newRequestID(), method: []byte("POST"), path: []byte("/v1/logs"), key: key, contentType: []byte(typeProtobuf), received: time.Now(), body: src, length: len(body)}
		if res := e.edge.serve(ctx, &r); res.code != 503 {
			t.Fatalf("%d", res.code)
		}
	})
	t.Logf("%v allocations up to Kafka", refused)
}
