package signals

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// fill makes n alerts of acme in one statement: a month of them, most of them of one account, INFO, and resolved.
func (w *world) fill(t *testing.T, n int) {
	t.Helper()
	series := `WITH RECURSIVE g(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM g WHERE i < ` + strconv.Itoa(n) + `) `
	id := `'sig_' || printf('%032d', i)`
	if w.dialect == Postgres {
		series, id = `WITH g AS (SELECT generate_series(1, `+strconv.Itoa(n)+`) AS i) `, `'sig_' || LPAD(CAST(i AS TEXT), 32, '0')`
	}
	step := int64(30*24*3600*1000) / int64(n)
	at := fmt.Sprintf(`%d + CAST(i AS BIGINT) * %d`, milli(received)-30*24*3600*1000, max(step, 1))
	sql := series + `INSERT INTO alerts (id, org, type, category, severity, account_id, environment, detected_at, received_at, stored_at, open, event)
		SELECT ` + id + `, 'acme',
		CASE i % 5 WHEN 0 THEN 'pii_detected' WHEN 1 THEN 'forecast_breach' WHEN 2 THEN 'moon_phase' WHEN 3 THEN 'secret_detected' ELSE 'brand_violation' END,
		CASE i % 5 WHEN 0 THEN 'contentSafety' WHEN 1 THEN 'budget' WHEN 2 THEN 'other' WHEN 3 THEN 'contentSafety' ELSE 'brandUsage' END,
		CASE WHEN i % 50 = 0 THEN 'BLOCK' WHEN i % 7 = 0 THEN 'WARN' ELSE 'INFO' END,
		CASE WHEN i % 1000 = 0 THEN 'sa_rare' ELSE 'sa_1' END,
		CASE WHEN i % 2000 = 0 THEN 'development' ELSE 'production' END,
		` + at + `, ` + at + `, ` + at + `, i % 3 = 0, '` + string(event(1, nil).AppendJSON(nil)) + `' FROM g`
	if _, err := w.db.ExecContext(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
	analyse := `ANALYZE`
	if w.dialect == Postgres {
		analyse = `VACUUM ANALYZE alerts` // as autovacuum does: counts are then read from the index alone
	}
	if _, err := w.db.ExecContext(t.Context(), analyse); err != nil {
		t.Fatal(err)
	}
}

// plan is what the database would do, in its own words.
func (w *world) plan(t *testing.T, sql string, a ...any) string {
	t.Helper()
	explain := `EXPLAIN QUERY PLAN `
	if w.dialect == Postgres {
		explain = `EXPLAIN `
	}
	rows, err := w.db.QueryContext(t.Context(), explain+sql, a...)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var out strings.Builder
	for rows.Next() {
		var line string
		if w.dialect == Postgres {
			err = rows.Scan(&line)
		} else {
			var id, parent, unused int
			err = rows.Scan(&id, &parent, &unused, &line)
		}
		if err != nil {
			t.Fatal(err)
		}
		out.WriteString(line + "\n")
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// TestPlans holds the page's questions to the indexes. SLUICE_TEST_ALERTS says how many alerts there are; 20,000 unless said,
// which is where both databases have long stopped scanning small tables.
func TestPlans(t *testing.T) {
	n := 20_000
	if s := os.Getenv("SLUICE_TEST_ALERTS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	each(t, func(t *testing.T, w *world) {
		w.fill(t, n)
		open := ptr(true)
		questions := map[string]AlertFilter{
			"the page as it opens":     {Open: open, Severities: []Severity{Warn, Block}},
			"everything":               {},
			"the oldest":               {Sort: SortDetected},
			"the loudest":              {Open: open, Sort: SortLoudest},
			"a category":               {Open: open, Severities: []Severity{Warn, Block}, Categories: []Category{Budget, Operational}},
			"an environment":           {Open: open, Environments: []string{"development"}},
			"an account's trail":       {Account: "sa_rare"},
			"a busy account's trail":   {Account: "sa_1", Severities: []Severity{Block}},
			"by type":                  {Open: open, Sort: SortType},
			"by type, backwards, loud": {Sort: "-type", Severities: []Severity{Block}},
			"one type":                 {Types: []string{"moon_phase"}},
			"an hour of it":            {Since: received.Add(-time.Hour), Until: received},
		}
		for name, f := range questions {
			q, err := ask("acme", f)
			if err != nil {
				t.Fatal(err)
			}
			types := q.types
			if q.sort == SortType {
				types = []string{"pii_detected"}
			}
			for _, from := range []*place{nil, {Text: "WARN", Num: milli(received.Add(-24 * time.Hour)), ID: "sig_x"}} {
				sql, a := q.statement(types, 51, from)
				plan := w.plan(t, sql, a...)
				if strings.Contains(plan, "Seq Scan") || strings.Contains(plan, "SCAN alerts") || strings.Contains(plan, "Bitmap") {
					t.Errorf("%s: not from an index:\n%s\n%s", name, sql, plan)
				}
				// SQLite sorts the few rows that a branch hands over, which is fine; not those that the branch reads.
				lines := strings.Split(plan, "\n")
				for i, line := range lines[1:] {
					if strings.Contains(line, "USE TEMP B-TREE") && strings.Contains(lines[i], "alerts USING") {
						t.Errorf("%s: a branch is sorted:\n%s\n%s", name, sql, plan)
						break
					}
				}
			}
			began := time.Now()
			page, err := w.Alerts(t.Context(), "acme", f)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if len(page.Items) == 0 {
				t.Errorf("%s: nothing", name)
			}
			t.Logf("%-26s %3d alerts in %v", name, len(page.Items), time.Since(began).Round(100*time.Microsecond))
		}
		timed := func(name string, f func(ctx context.Context) error) {
			t.Helper()
			began := time.Now()
			if err := f(t.Context()); err != nil {
				t.Fatal(err)
			}
			t.Logf("%-26s %v", name, time.Since(began).Round(100*time.Microsecond))
		}
		timed("counter", func(ctx context.Context) error { return second(w.Unacknowledged(ctx, "acme")) })
		timed("histogram of a day", func(ctx context.Context) error {
			return second(w.Histogram(ctx, "acme", AlertFilter{Open: open, Since: received.Add(-24 * time.Hour), Until: received}, 48))
		})
		timed("histogram of a month", func(ctx context.Context) error {
			return second(w.Histogram(ctx, "acme", AlertFilter{Open: open, Severities: []Severity{Warn, Block}, Since: received.Add(-30 * 24 * time.Hour), Until: received}, 60))
		})
		timed("what is new", func(ctx context.Context) error {
			return second(w.Arrived(ctx, "acme", received.Add(-time.Second), 200))
		})
		timed("prune of a hundredth", func(ctx context.Context) error {
			return second(w.Prune(ctx, received.Add(-30*24*time.Hour+7*time.Hour), 1000))
		})
	})
}
