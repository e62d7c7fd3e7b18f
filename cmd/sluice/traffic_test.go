package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"
)

// A madeAccount is what accounts create --json says.
type madeAccount struct {
	Account struct {
		ID        string `json:"id"`
		KeyPrefix string `json:"key_prefix"`
	} `json:"account"`
	Key string `json:"key"`
}

// account makes one by the command line.
func (p *place) account(t *testing.T, org, name string) madeAccount {
	t.Helper()
	var made madeAccount
	p.must(t, &made, "accounts", "create", "--org="+org, "--name="+name, "--environment=production", "--json")
	return made
}

// whoami is the code that an edge answers to a key.
func whoami(t *testing.T, edge, key string) int {
	t.Helper()
	got, err := send(t.Context(), http.DefaultClient, http.MethodGet, edge+"/v1/whoami", "", "x-flowstate-key", key)
	if err != nil {
		t.Fatal(err)
	}
	return got.status
}

// awaitWhoami waits until an edge answers a key with this code.
func awaitWhoami(t *testing.T, edge, key string, code int) {
	t.Helper()
	got := 0
	if !until(15*time.Second, nil, func() bool { got = whoami(t, edge, key); return got == code }) {
		t.Errorf("whoami is %d, not %d", got, code)
	}
}

// traffic is one workload that sends a signal every few milliseconds, each with an id of its own, as through a load balancer: where an edge cannot be reached it
// takes the next.
type traffic struct {
	key    string
	cancel context.CancelFunc
	done   chan struct{}

	mu    sync.Mutex
	edges []string
	sent  int
	acked []string // guarded by mu: ids that were answered 200
	odd   []string // guarded by mu: other answers
}

const trafficPace = 10 * time.Millisecond

func startTraffic(t *testing.T, key string, edges ...string) *traffic {
	ctx, cancel := context.WithCancel(t.Context())
	f := &traffic{key: key, cancel: cancel, done: make(chan struct{}), edges: edges}
	t.Cleanup(f.stop)
	go func() {
		defer close(f.done)
		tick := time.NewTicker(trafficPace)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				f.one(context.WithoutCancel(ctx))
			}
		}
	}()
	return f
}

func (f *traffic) one(ctx context.Context) {
	f.mu.Lock()
	f.sent++
	n, edges := f.sent, slices.Clone(f.edges)
	f.mu.Unlock()
	id := fmt.Sprintf("%s-%d", f.key[:16], n) // the prefix of its key
	text := "no edge can be reached"
	for i := range edges {
		got, err := send(ctx, http.DefaultClient, http.MethodPost, edges[(n+i)%len(edges)]+"/v1/signals", `{"type":"forecast_breach","id":"`+id+`"}`,
			"x-flowstate-key", f.key)
		if err != nil {
			continue
		}
		if got.status == http.StatusOK {
			f.mu.Lock()
			f.acked = append(f.acked, id)
			f.mu.Unlock()
			return
		}
		text = fmt.Sprintf("%d %s", got.status, got.body)
		break
	}
	f.mu.Lock()
	f.odd = append(f.odd, id+": "+text)
	f.mu.Unlock()
}

// through changes the edges that the load balancer knows.
func (f *traffic) through(edges ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.edges = edges
}

// more waits until so many further signals were acknowledged.
func (f *traffic) more(t *testing.T, n int) {
	t.Helper()
	count := func() int {
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.acked)
	}
	want := count() + n
	if !until(30*time.Second, nil, func() bool { return count() >= want }) {
		f.mu.Lock()
		defer f.mu.Unlock()
		t.Fatalf("the workload is not served: %v", f.odd)
	}
}

func (f *traffic) stop() {
	f.cancel()
	<-f.done
}

// checkStored waits until Alerts has every acknowledged signal, and holds it to having each once.
func (f *traffic) checkStored(t *testing.T, db *sql.DB) {
	t.Helper()
	f.mu.Lock()
	acked, odd := slices.Clone(f.acked), slices.Clone(f.odd)
	f.mu.Unlock()
	if len(odd) > 0 {
		t.Errorf("%d of %d requests were not answered 200, such as %s", len(odd), len(odd)+len(acked), odd[0])
	}
	var stored []string
	missing := func() []string {
		stored = storedSources(t, db)
		return slices.DeleteFunc(slices.Clone(acked), func(id string) bool { return slices.Contains(stored, id) })
	}
	if !until(30*time.Second, nil, func() bool { return len(missing()) == 0 }) {
		m := missing()
		t.Errorf("%d of %d acknowledged signals are not in Alerts, such as %s", len(m), len(acked), m[0])
	}
	once := slices.Compact(slices.Sorted(slices.Values(stored)))
	if len(once) != len(stored) {
		t.Errorf("%d signals are in Alerts more than once", len(stored)-len(once))
	}
	t.Logf("%d signals were acknowledged, %d are in Alerts", len(acked), len(stored))
}

// storedSources are the senders' ids of the signals in Alerts.
func storedSources(t *testing.T, db *sql.DB) []string {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), `SELECT event FROM alerts WHERE type = 'forecast_breach'`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var ids []string
	for rows.Next() {
		var text string
		if err := rows.Scan(&text); err != nil {
			t.Fatal(err)
		}
		var event struct {
			SourceID string `json:"source_id"`
		}
		if err := json.Unmarshal([]byte(text), &event); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, event.SourceID)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return ids
}
