package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"flowstate.inc/sluice/signals"
)

// TestTheSameBatchTwice is a client that sends a batch again, as after an answer that got lost: both are on the topic, and Alerts has each signal once, unless
// nothing says that they are the same.
func TestTheSameBatchTwice(t *testing.T) {
	t.Run("dev", func(t *testing.T) {
		g := onDev(t).start(t, "dev")
		sendTwice(t, g, g.Token, g.Key, g.Kafka, "ai_signals")
	})
	t.Run("serve", func(t *testing.T) {
		p := onServers(t)
		p.must(t, nil, "migrate", "--partitions=3")
		made := p.account(t, demoOrg, "again")
		token := p.token(t, demoOrg, "AI_GOVERNANCE_VIEW")
		sendTwice(t, p.start(t, "serve", "--roles=edge,admin,alerts"), token, made.Key, os.Getenv("TEST_KAFKA_BROKERS"), p.topic("signals"))
	})
}

func sendTwice(t *testing.T, g *program, token, key, cluster, topic string) {
	post := func(path, body string, header ...string) {
		t.Helper()
		r, err := send(t.Context(), http.DefaultClient, http.MethodPost, g.Edge+path, body, append(header, "x-flowstate-key", key)...)
		if err != nil || r.status != http.StatusOK {
			t.Fatalf("%s %s: %d %s, %v", path, body, r.status, r.body, err)
		}
	}
	alerts := func(typ string) []json.RawMessage {
		t.Helper()
		r, err := send(t.Context(), http.DefaultClient, http.MethodGet, g.Admin+"/api/v1/alerts?type="+typ, "", "Authorization", "Bearer "+token)
		var page struct{ Items []json.RawMessage }
		if err != nil || r.status != http.StatusOK || json.Unmarshal(r.body, &page) != nil {
			t.Fatalf("%d %s, %v", r.status, r.body, err)
		}
		return page.Items
	}
	at := time.Now().Add(-time.Minute).UTC()
	record := func(n int) string {
		return fmt.Sprintf(`{"timeUnixNano":"%d","eventName":"flowstate.signal","attributes":[{"key":"signal.type","value":{"stringValue":"twice_by_record_time"}}]}`, at.UnixNano()+int64(n))
	}
	// Three signals each; where ids do not tell them apart, two are equal.
	timed := fmt.Sprintf(`{"type":"twice_by_time","detected_at":%q}`, at.Format(time.RFC3339Nano))
	for _, c := range []struct {
		typ, path, body string
		header          []string
		want            int
	}{
		{"twice_by_time", "/v1/signals", `[` + timed + `,` + timed + `,` + strings.Replace(timed, "}", `,"details":{"n":2}}`, 1) + `]`, nil, 3},
		{"twice_by_key", "/v1/signals", `[{"type":"twice_by_key"},{"type":"twice_by_key"},{"type":"twice_by_key","details":{"n":2}}]`, []string{"Idempotency-Key", "run-7"}, 3},
		{"twice_by_id", "/v1/signals", `[{"type":"twice_by_id","id":"a"},{"type":"twice_by_id","id":"b"},{"type":"twice_by_id","id":"c"}]`, nil, 3},
		{"twice_by_record_time", "/v1/logs", `{"resourceLogs":[{"scopeLogs":[{"logRecords":[` + record(0) + `,` + record(0) + `,` + record(1) + `]}]}]}`, nil, 3},
		{"twice_by_nothing", "/v1/signals", `[{"type":"twice_by_nothing"},{"type":"twice_by_nothing"},{"type":"twice_by_nothing"}]`, nil, 6},
	} {
		t.Run(c.typ, func(t *testing.T) {
			post(c.path, c.body, c.header...)
			post(c.path, c.body, c.header...)
			// What one account sends keeps its order: with this, all before it have been through the consumer.
			last := "last_of_" + c.typ
			post("/v1/signals", `{"type":"`+last+`"}`)
			if !until(30*time.Second, nil, func() bool { return len(alerts(last)) == 1 }) {
				t.Fatal("the consumer does not come this far")
			}
			if got := alerts(c.typ); len(got) != c.want {
				t.Errorf("%d alerts, want %d: %s", len(got), c.want, got)
			}
			sent := 0
			l := ledgerRun{t: t, cluster: strings.Split(cluster, ",")}
			for _, r := range l.readTopic(topic) {
				if e, err := signals.DecodeEvent(r.Value); err != nil {
					t.Error(err)
				} else if e.Type == c.typ {
					sent++
				}
			}
			if sent != 6 {
				t.Errorf("%d signals on the topic, both batches are 6", sent)
			}
		})
	}
}
