package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"flowstate.inc/sluice/auth"
)

// counters are the samples of one metric of an edge, added up by the value of one label.
func (e *edge) counters(t *testing.T, metric, by string) map[string]int64 {
	t.Helper()
	res, err := e.client.Get(e.ops + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	sample := regexp.MustCompile(`(?m)^` + metric + `\{(?:.*,)?` + by + `="([^"]*)".*\} (\S+)$`)
	out := map[string]int64{}
	for _, m := range sample.FindAllStringSubmatch(string(b), -1) {
		n, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			t.Fatal(err)
		}
		out[m[1]] += int64(n)
	}
	return out
}

// usageOf is what the database has of an account, over all its keys.
func (f *fleet) usageOf(id string) auth.Usage {
	f.t.Helper()
	u, err := f.store.AccountUsage(context.Background(), "acme", id, time.Time{}, time.Time{})
	if err != nil {
		f.t.Fatal(err)
	}
	var sum auth.Usage
	for _, k := range u.Keys {
		sum.Add(k.Total)
	}
	return sum
}

// TestUsageAndSightings sends as many accounts through two edges at once, signals and OTLP, and through a third that has no Kafka and no spool. Afterwards
// the usage of each key is what was sent, all of it is what the ledgers of the edges say, and first and last seen of keys and accounts are right to the
// second. A watcher sees neither move the wrong way.
func TestUsageAndSightings(t *testing.T) {
	const accountsN, perEdge = 20, 15
	f := newFleet(t)
	f.start("", "--roles=edge")
	f.start("", "--roles=edge")
	cut := f.start("", "--roles=edge", "--kafka-brokers=127.0.0.1:1")
	type job struct {
		id, key, prefix string
		mu              sync.Mutex
		first, last     [2]time.Time // between which the first and the last counted request was received
		want            auth.Usage
	}
	jobs := make([]*job, accountsN)
	for i := range jobs {
		a, key := f.account(fmt.Sprintf("job-%d", i), auth.Limits{})
		jobs[i] = &job{id: a.ID, key: key, prefix: a.KeyPrefix}
	}
	watching, stopWatching := context.WithCancel(t.Context())
	var watcher sync.WaitGroup
	saw := 0
	watcher.Go(func() { saw = f.watchSightings(watching) })
	// A name that the filter drops, one that it takes, one that is no name at all.
	const body = `[{"type":"personal_use_company_account"},{"type":"forecast_breach"},{"type":"forecast_breach"},{"type":"4 no type"}]`
	// The same, with a record that is no signal.
	const otlp = `{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"body":{"stringValue":"a line"}},
		{"eventName":"flowstate.signal","attributes":[{"key":"signal.type","value":{"stringValue":"personal_use_company_account"}}]},
		{"eventName":"flowstate.signal","attributes":[{"key":"signal.type","value":{"stringValue":"forecast_breach"}}]},
		{"eventName":"flowstate.signal","attributes":[{"key":"signal.type","value":{"stringValue":"4 no type"}}]}]}]}]}`
	var wg sync.WaitGroup
	for _, j := range jobs {
		wg.Go(func() {
			for path, body := range map[string]string{"/v1/signals": body, "/v1/logs": otlp} {
				if code, err := cut.post(t.Context(), path, j.key, body); err != nil || code != http.StatusServiceUnavailable {
					t.Errorf("without Kafka: %d, %v", code, err)
					return
				}
				j.mu.Lock()
				j.want.Add(auth.Usage{Requests: 1, Unavailable: 4, Bytes: int64(len(body))}) // the answer speaks of all or nothing
				j.mu.Unlock()
			}
		})
	}
	for _, e := range f.edges[:2] {
		for _, j := range jobs {
			wg.Go(func() {
				for n := range perEdge {
					path, body := "/v1/signals", body
					if n%3 == 0 {
						path, body = "/v1/logs", otlp
					}
					before := time.Now()
					code, err := e.post(t.Context(), path, j.key, body)
					after := time.Now()
					if err != nil || code != http.StatusOK {
						t.Errorf("%d, %v", code, err)
						return
					}
					j.mu.Lock()
					j.want.Add(auth.Usage{Requests: 1, Accepted: 2, Filtered: 1, Invalid: 1, Bytes: int64(len(body))})
					if j.first[0].IsZero() || before.Before(j.first[0]) {
						j.first[0] = before
					}
					if j.first[1].IsZero() || after.Before(j.first[1]) {
						j.first[1] = after
					}
					if before.After(j.last[0]) {
						j.last[0] = before
					}
					if after.After(j.last[1]) {
						j.last[1] = after
					}
					j.mu.Unlock()
					<-time.After(50 * time.Millisecond)
				}
			})
		}
	}
	wg.Wait()
	ledger := map[string]int64{}
	for _, e := range f.edges {
		for outcome, n := range e.counters(t, "sluice_ingest_records_total", "outcome") {
			ledger[outcome] += n
		}
	}
	for _, e := range f.edges {
		e.stop(t)
	}
	stopWatching()
	watcher.Wait()
	if saw < 10*accountsN {
		t.Errorf("the watcher saw %d sightings move or stay", saw)
	}
	var sum auth.Usage
	var worst time.Duration
	for _, j := range jobs {
		got := f.usageOf(j.id)
		if got != j.want {
			t.Errorf("%s was used %+v, want %+v", j.prefix, got, j.want)
		}
		sum.Add(got)
		a, err := f.store.Account(context.Background(), "acme", j.id)
		if err != nil {
			t.Fatal(err)
		}
		keys, err := f.store.AccountKeys(context.Background(), "acme", j.id)
		if err != nil {
			t.Fatal(err)
		}
		for what, at := range map[string][2]time.Time{"the account": {a.FirstSeenAt, a.LastSeenAt}, "its key": {keys[0].FirstUsedAt, keys[0].LastUsedAt}} {
			for i, within := range [][2]time.Time{j.first, j.last} {
				// The stamp is the edge's receive time, between the two.
				off := max(within[0].Sub(at[i]), at[i].Sub(within[1]), 0)
				worst = max(worst, off)
				if off > time.Second {
					t.Errorf("%s of %s: seen %v, was between %v and %v", what, j.prefix, at[i], within[0], within[1])
				}
			}
		}
	}
	t.Logf("3 edges, %d keys: usage %+v, ledgers %v; first and last seen off by %v at most", accountsN, sum, ledger, worst)
	if sum.Accepted != ledger["accepted"] || sum.Filtered != ledger["filtered"] || sum.Invalid != ledger["invalid"] || sum.Unavailable != ledger["unavailable"] || sum.Unavailable == 0 {
		t.Errorf("usage %+v is not the ledgers' %v", sum, ledger)
	}
}

// watchSightings reads all sightings again and again: first, once it is there, never rises, and last never falls. It returns how many it compared with
// what they were before.
func (f *fleet) watchSightings(ctx context.Context) (compared int) {
	type seen struct{ first, last int64 }
	last := map[string]seen{}
	for ctx.Err() == nil {
		rows, err := f.db.QueryContext(ctx, `SELECT prefix, first_at, last_at FROM seen UNION ALL SELECT account_id, first_at, last_at FROM account_seen`)
		for err == nil && rows.Next() {
			var id string
			var now seen
			if err = rows.Scan(&id, &now.first, &now.last); err != nil {
				break
			}
			old, ok := last[id]
			if ok {
				compared++
			}
			if ok && (old.first != 0 && now.first > old.first || now.last < old.last) {
				f.t.Errorf("%s went from %v to %v", id, old, now)
			}
			last[id] = now
		}
		if rows != nil {
			err = errors.Join(err, rows.Err(), rows.Close())
		}
		if err != nil && ctx.Err() == nil {
			f.t.Errorf("watch the sightings: %v", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
	return compared
}

// TestLimitsAcrossKeys sends one key at ten times its limit while another sends at a calm pace: the first gets 429, every request of the
// other succeeds.
func TestLimitsAcrossKeys(t *testing.T) {
	const limit, seconds = 20, 5
	f := newFleet(t)
	e := f.start("", "--roles=edge")
	loud, loudKey := f.account("loud", auth.Limits{RequestsPerSecond: limit})
	calm := f.load(f.edges, 1, 20*time.Millisecond)
	var ok, limited atomic.Int64
	var wg sync.WaitGroup
	began := time.Now()
	for n := range limit * 10 * seconds {
		due := began.Add(time.Duration(n) * time.Second / (limit * 10))
		select {
		case <-time.After(time.Until(due)):
		case <-t.Context().Done():
		}
		wg.Go(func() {
			switch code, err := e.send(t.Context(), loudKey, filteredSignal); {
			case err != nil:
				t.Error(err)
			case code == http.StatusOK:
				ok.Add(1)
			case code == http.StatusTooManyRequests:
				limited.Add(1)
			default:
				t.Errorf("%d", code)
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	calm.stop(t)
	t.Logf("%d requests in %v against a limit of %d a second: %d served, %d got 429", limit*10*seconds, took, limit, ok.Load(), limited.Load())
	most := int64(limit * (took.Seconds() + 2 + 1)) // the burst of two seconds, and one to round
	if limited.Load() == 0 || ok.Load() > most {
		t.Errorf("%d were served, at most %d may be", ok.Load(), most)
	}
	e.stop(t)
	if u := f.usageOf(loud.ID); u.Requests != ok.Load() || u.Refused != limited.Load() || u.Filtered != ok.Load() {
		t.Errorf("usage says %+v", u)
	}
}

// TestMisuseOfARevokedKey tries a revoked key a thousand times within a minute on two edges: one alert, with the sender's address, and
// refusals that the org's admin can read.
func TestMisuseOfARevokedKey(t *testing.T) {
	const tries = 1000
	f := newFleet(t)
	first := f.start("", "--roles=edge,admin,alerts")
	f.start("", "--roles=edge")
	f.awaitEdges(2)
	a, key := f.account("leaked", auth.Limits{})
	for _, e := range f.edges {
		if code, err := e.send(t.Context(), key, acceptedSignal); code != http.StatusOK {
			t.Fatal(code, err)
		}
	}
	f.remove(first, a.ID)
	began := time.Now()
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			for n := range tries / 10 {
				if code, err := f.edges[(i+n)%2].send(t.Context(), key, acceptedSignal); code != http.StatusUnauthorized {
					t.Errorf("%d, %v", code, err)
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d tries in %v", tries, time.Since(began))
	type alertPage struct {
		Items []struct {
			Type    string
			Details map[string]any
			Subject struct{ ID string }
		}
	}
	misuse := func() (n int, address string) {
		var page alertPage
		f.ask(first, http.MethodGet, "/api/v1/alerts?account="+a.ID, &page)
		for _, item := range page.Items {
			if item.Type == "key_misuse_detected" {
				n++
				address, _ = item.Details["address"].(string)
			}
		}
		return n, address
	}
	if !until(30*time.Second, nil, func() bool { n, _ := misuse(); return n > 0 }) {
		t.Fatal("no alert")
	}
	// Whatever else was raised is behind it on the same partition: one more signal of ours, and what was raised stands before it.
	if !until(5*time.Second, nil, func() bool { n, _ := misuse(); return n > 1 }) {
		t.Log("no second one within five seconds")
	}
	n, address := misuse()
	if n != 1 || address != "127.0.0.1" {
		t.Errorf("%d alerts, from %q", n, address)
	}
	var refused struct {
		Items []struct {
			Reason    string
			Address   string
			KeyPrefix string `json:"key_prefix"`
			Count     int64
		}
	}
	until(10*time.Second, nil, func() bool {
		f.ask(first, http.MethodGet, "/api/v1/refusals?account="+a.ID, &refused)
		return len(refused.Items) > 0
	})
	if len(refused.Items) == 0 || refused.Items[0].Reason != "revoked" || refused.Items[0].KeyPrefix != a.KeyPrefix || !strings.HasPrefix(refused.Items[0].Address, "127.") {
		t.Errorf("refusals: %+v", refused.Items)
	}
	for _, e := range f.edges {
		e.stop(t)
	}
	if u := f.usageOf(a.ID); u.Refused != tries || u.Accepted != 2 {
		t.Errorf("usage says %+v", u)
	}
}
