package ingest

import (
	"bytes"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/protobuf/proto"

	"flowstate.inc/sluice/auth"
)

// What the broker calls invalid is named in the answer with its reason, by every entrance; what came with it arrives, and nobody is told to try again.
func TestRefusedByKafka(t *testing.T) {
	c := newFake(t)
	e := startEdgeOn(t, c.ListenAddrs())
	key := e.add(service(auth.Production))
	c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.InvalidRecord, Count: -1, When: func(r kmsg.Request) bool {
		for _, topic := range r.(*kmsg.ProduceRequest).Topics {
			for _, p := range topic.Partitions {
				if bytes.Contains(p.Records, []byte("poison")) {
					return true
				}
			}
		}
		return false
	}})

	logsAnswer := e.send("POST", "/v1/logs", marshal(t, logsRequest(logRecord("one"), logRecord("poison"), logRecord("two"))), "Content-Type", "application/x-protobuf", "x-flowstate-key", key)
	var res collogs.ExportLogsServiceResponse
	if err := proto.Unmarshal(logsAnswer.body, &res); err != nil || logsAnswer.code != 200 || res.PartialSuccess.GetRejectedLogRecords() != 1 ||
		!strings.Contains(res.PartialSuccess.GetErrorMessage(), invalidToKafka) {
		t.Fatalf("%s: %v %v", logsAnswer, &res, err)
	}
	arrived := 0
	for _, r := range read(t, e.brokers, e.topics.Logs, 2) {
		var req collogs.ExportLogsServiceRequest
		if err := proto.Unmarshal(r.Value, &req); err != nil {
			t.Fatal(err)
		}
		arrived += len(req.ResourceLogs[0].ScopeLogs[0].LogRecords)
	}
	if arrived != 2 {
		t.Errorf("%d records arrived, want 2", arrived)
	}

	a, answer := e.signals(key, `[{"type":"forecast_breach"},{"type":"forecast_breach","details":{"x":"poison"}}]`)
	if a.code != 200 || answer.Accepted != 1 || len(answer.Invalid) != 1 || answer.Invalid[0].Index != 1 || !strings.Contains(answer.Invalid[0].Error, invalidToKafka) {
		t.Errorf("%s", a)
	}
	a, _ = e.signals(key, `{"type":"forecast_breach","details":{"x":"poison"}}`)
	if a.code != 400 || !bytes.Contains(a.body, []byte(invalidToKafka)) || a.header.Get("Retry-After") != "" {
		t.Errorf("%s", a)
	}
	_, outcomes := e.ledger()
	if outcomes["logs/invalid/refused_by_kafka"] != 1 || outcomes["signals/invalid/refused_by_kafka"] != 2 {
		t.Errorf("outcomes %v", outcomes)
	}
	e.balanced()
}
