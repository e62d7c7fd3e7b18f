package signals

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// hoursByHand is what alert_hours must hold.
func (w *world) hoursByHand(t *testing.T) (kept, counted string) {
	t.Helper()
	read := func(query string) string {
		rows, err := w.db.QueryContext(t.Context(), query)
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		out := ""
		for rows.Next() {
			var k hourKey
			var n int64
			if err := rows.Scan(&k.org, &k.hour, &k.severity, &k.open, &k.category, &k.typ, &k.environment, &n); err != nil {
				t.Fatal(err)
			}
			out += fmt.Sprintln(k, n)
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
		return out
	}
	const columns = `org, hour, severity, open, category, type, environment`
	return read(`SELECT ` + columns + `, n FROM alert_hours WHERE n <> 0 ORDER BY ` + columns),
		read(`SELECT ` + columns + `, COUNT(*) FROM (SELECT org, detected_at / 3600000 AS hour, severity, open, category, type, environment FROM alerts) AS a GROUP BY ` + columns + ` ORDER BY ` + columns)
}

// TestHoursAreTrue counts by the hour whatever is done to alerts, by several at once, and draws the same chart from it.
func TestHoursAreTrue(t *testing.T) {
	if testing.Short() {
		t.Skip("all of it is the database's work")
	}
	each(t, func(t *testing.T, w *world) {
		const days = 9
		r := rand.New(rand.NewPCG(7, 8))
		all := make([]*Event, 600)
		for i := range all {
			at := received.Add(-time.Duration(r.Int64N(days * 24 * int64(time.Hour))))
			all[i] = event(i, func(e *Event) {
				e.DetectedAt, e.ReceivedAt = at, at
				e.Severity = []Severity{Info, Warn, Block}[r.IntN(3)]
				e.Type, e.Category = "pii_detected", ContentSafety
				if r.IntN(2) == 0 {
					e.Type, e.Category = "forecast_breach", Budget
				}
				if r.IntN(9) == 0 {
					e.Org = "rival"
				}
			})
		}
		var wg sync.WaitGroup
		for part := range 4 {
			wg.Go(func() {
				for from := part * 100; from < part*100+300; from += 50 { // each alert comes to two or three of them
					w.put(t, all[from:from+50]...)
				}
			})
			wg.Go(func() {
				for i := part; i < len(all); i += 7 {
					ids := []string{all[i].ID, all[(i*13)%len(all)].ID}
					if _, err := w.Resolve(t.Context(), all[i].Org, admin, ids, Acknowledged, ""); err == nil && i%3 == 0 {
						_, _ = w.Reopen(t.Context(), all[i].Org, admin, ids[:1])
					} // an alert that is not there yet, or of the other org, is refused and counted nowhere
				}
			})
		}
		wg.Wait()
		isTrue := func(when string) {
			t.Helper()
			if kept, counted := w.hoursByHand(t); kept != counted || counted == "" {
				t.Fatalf("%s: kept\n%s\ncounted\n%s", when, kept, counted)
			}
		}
		isTrue("put and resolved")
		check := func() {
			t.Helper()
			for i := range 40 {
				f := AlertFilter{Since: received.Add(-time.Duration(r.Int64N(days*24)+3) * time.Hour).Add(-time.Duration(r.IntN(3_600_000)) * time.Millisecond)}
				f.Until = f.Since.Add(time.Duration(2+r.IntN(150))*time.Hour + time.Duration(r.IntN(3_600_000))*time.Millisecond)
				if i%2 == 0 {
					f.Open = ptr(i%4 == 0)
				}
				if i%3 == 0 {
					f.Severities = []Severity{Warn, Block}
				}
				if i%5 == 0 {
					f.Categories = []Category{Budget}
				}
				n := 1 + r.IntN(40)
				buckets, err := w.Histogram(t.Context(), "acme", f, n)
				if err != nil || len(buckets) == 0 || len(buckets) > n {
					t.Fatalf("%d buckets of %d: %v", len(buckets), n, err)
				}
				for j, b := range buckets {
					part := f
					part.Since = b.At
					if j+1 < len(buckets) {
						part.Until = buckets[j+1].At
					}
					part.Limit = MaxLimit
					got := 0
					for {
						page, err := w.Alerts(t.Context(), "acme", part)
						if err != nil {
							t.Fatal(err)
						}
						got += len(page.Items)
						if part.Cursor = page.NextCursor; part.Cursor == "" {
							break
						}
					}
					if got != b.Info+b.Warn+b.Block {
						t.Fatalf("%+v, bucket %d of %d from %v: %+v, but there are %d", f, j, len(buckets), b.At, b, got)
					}
				}
			}
		}
		check()
		if _, err := w.Prune(t.Context(), received.Add(-4*24*time.Hour), 7); err != nil {
			t.Fatal(err)
		}
		isTrue("pruned")
		check()
	})
}

// TestRecount lets a program that knows nothing of alert_hours store, resolve and remove alerts, while others that do are at work,
// and several recount at once.
func TestRecount(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		at := func(i int) *Event {
			return event(i, func(e *Event) {
				e.DetectedAt = received.Add(-time.Duration(i) * time.Hour / 4)
				if i%5 == 0 {
					e.Org = "rival"
				}
			})
		}
		for i := range 200 {
			w.put(t, at(i))
		}
		before, _ := w.hoursByHand(t)
		for _, q := range []string{
			`DELETE FROM alert_hours WHERE org = 'rival'`, // an org of which only the program before has stored alerts
			`UPDATE alerts SET open = FALSE WHERE id IN (SELECT id FROM alerts WHERE open = TRUE ORDER BY id LIMIT 50)`,
			`DELETE FROM alerts WHERE id IN (SELECT id FROM alerts ORDER BY id DESC LIMIT 50)`,
		} {
			if _, err := w.db.ExecContext(t.Context(), q); err != nil {
				t.Fatal(err)
			}
		}
		if kept, counted := w.hoursByHand(t); kept == counted || kept == before {
			t.Fatal("nothing drifted")
		}
		var wg sync.WaitGroup
		for part := range 3 {
			wg.Go(func() {
				if _, err := w.RecountHours(t.Context(), received.Add(-60*24*time.Hour), received.Add(24*time.Hour)); err != nil {
					t.Error(err)
				}
			})
			wg.Go(func() {
				for i := range 20 {
					w.put(t, at(1000+part*20+i))
				}
			})
		}
		wg.Wait()
		if kept, counted := w.hoursByHand(t); kept != counted || counted == "" {
			t.Fatalf("kept\n%s\ncounted\n%s", kept, counted)
		}
		if n, err := w.RecountHours(t.Context(), received.Add(-60*24*time.Hour), received.Add(24*time.Hour)); n != 0 || err != nil {
			t.Errorf("set %d rows right again: %v", n, err)
		}

		// Retention does it by itself, the last day first and then those before.
		if _, err := w.db.ExecContext(t.Context(), `UPDATE alert_hours SET n = n + 3`); err != nil {
			t.Fatal(err)
		}
		for back := 1; back <= 12; back++ {
			if _, err := recount(t.Context(), w.Store, back); err != nil {
				t.Fatal(err)
			}
		}
		if kept, counted := w.hoursByHand(t); kept != counted {
			t.Errorf("kept\n%s\ncounted\n%s", kept, counted)
		}
	})
}
