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
	hours := `INSERT INTO alert_hours (org, hour, severity, open, category, type, environment, n) SELECT org, detected_at / 3600000, severity, open, category, type, environment, COUNT(*)
		FROM alerts GROUP BY org, detected_at / 3600000, severity, open, category, type, environment`
	if _, err := w.db.ExecContext(t.Context(), hours); err != nil {
		t.Fatal(err)
	}
	analyse := []string{`ANALYZE`}
	if w.dialect == Postgres {
		analyse = []string{`VACUUM ANALYZE alerts`, `VACUUM ANALYZE alert_hours`} // as autovacuum does: counts are then read from the index alone
	}
	for _, sql := range analyse {
		if _, err := w.db.ExecContext(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
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

// fromIndex fails a plan that reads a table of alerts from end to end.
func fromIndex(t *testing.T, name, sql, plan string) {
	t.Helper()
	if strings.Contains(plan, "Seq Scan on alert") || strings.Contains(plan, "SCAN alert") || strings.Contains(plan, "Bitmap Heap Scan on alerts") {
		t.Errorf("%s: not from an index:\n%s\n%s", name, sql, plan)
	}
}

func question1(t *testing.T, f AlertFilter) *question {
	t.Helper()
	q, err := ask("acme", f)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// TestPlans holds the page's questions to the indexes. SLUICE_TEST_ALERTS says how many alerts there are; 20,000 unless said,
// which is where both databases have long stopped scanning small tables. SLUICE_TEST_ALERTS_RESULTS names a file that gets the
// times, a line of JSON each; bench/results/alerts.jsonl was made so.
func TestPlans(t *testing.T) {
	if testing.Short() {
		t.Skip("all of it is the database's work")
	}
	n := 20_000
	if s := os.Getenv("SLUICE_TEST_ALERTS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	each(t, func(t *testing.T, w *world) {
		began := time.Now()
		w.fill(t, n)
		t.Logf("%d alerts in %v", n, time.Since(began).Round(time.Millisecond))
		record := func(name string, took time.Duration) {
			t.Helper()
			t.Logf("%-26s %v", name, took.Round(100*time.Microsecond))
			path := os.Getenv("SLUICE_TEST_ALERTS_RESULTS")
			if path == "" {
				return
			}
			f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
			if err != nil {
				t.Fatal(err)
			}
			database := map[Dialect]string{Postgres: "postgres", SQLite: "sqlite"}[w.dialect]
			if _, err := fmt.Fprintf(f, `{"alerts":%d,"database":%q,"question":%q,"milliseconds":%.1f}`+"\n", n, database, name, float64(took.Microseconds())/1000); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
		}
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
			"a type of an account":     {Account: "sa_rare", Types: []string{"pii_detected"}},
			"a type of a busy account": {Account: "sa_1", Types: []string{"moon_phase"}, Open: open},
			"an account's category":    {Account: "sa_1", Categories: []Category{ContentSafety}, Severities: []Severity{Warn, Block}},
			"an account's environment": {Account: "sa_1", Environments: []string{"production"}},
			"a type in an environment": {Types: []string{"pii_detected"}, Environments: []string{"development"}, Sort: SortLoudest},
			"a type of a category":     {Types: []string{"pii_detected", "secret_detected"}, Categories: []Category{ContentSafety}},
			"a category there":         {Categories: []Category{ContentSafety}, Environments: []string{"development"}},
			"all of them":              {Account: "sa_rare", Types: []string{"pii_detected"}, Categories: []Category{ContentSafety}, Environments: []string{"development"}},
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
				fromIndex(t, name, sql, plan)
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
			record(name, time.Since(began))
		}
		// What the page asks beside its list, as it is asked: each statement that the store sends is looked at.
		month := AlertFilter{Account: "sa_1", Since: received.Add(-30 * 24 * time.Hour), Until: received}
		for name, statement := range map[string]func() (string, args){
			"counter": func() (string, args) { return unacknowledgedSQL, args{"acme", MaxCounted} },
			"arrivals": func() (string, args) {
				return arrivedSQL, args{"acme", milli(received.Add(-time.Second)), "", arrivedPage}
			},
			"prune": func() (string, args) {
				return pruneSQL, args{milli(received.Add(-30*24*time.Hour + 7*time.Hour)), 1000}
			},
			"histogram, by the hour": func() (string, args) {
				week := received.Add(-7 * 24 * time.Hour).Truncate(time.Hour) // what the page draws
				return hoursStatement(question1(t, AlertFilter{Categories: []Category{Budget}}), milli(week), milli(received), milli(week), 6*hourMillis)
			},
			"histogram, one by one": func() (string, args) {
				return countStatement(question1(t, month), milli(month.Since), milli(received), milli(month.Since), hourMillis)
			},
		} {
			sql, a := statement()
			fromIndex(t, name, sql, w.plan(t, sql, a...))
		}
		timed := func(name string, f func(ctx context.Context) error) {
			t.Helper()
			began := time.Now()
			if err := f(t.Context()); err != nil {
				t.Fatal(err)
			}
			record(name, time.Since(began))
		}
		timed("counter", func(ctx context.Context) error { return second(w.Unacknowledged(ctx, "acme")) })
		timed("histogram of a day", func(ctx context.Context) error {
			return second(w.Histogram(ctx, "acme", AlertFilter{Open: open, Since: received.Add(-24 * time.Hour), Until: received}, 48))
		})
		timed("histogram of a month", func(ctx context.Context) error {
			return second(w.Histogram(ctx, "acme", AlertFilter{Open: open, Severities: []Severity{Warn, Block}, Since: received.Add(-30 * 24 * time.Hour), Until: received}, 60))
		})
		timed("histogram of a week", func(ctx context.Context) error { // what the page draws
			return second(w.Histogram(ctx, "acme", AlertFilter{Open: open, Severities: []Severity{Warn, Block}, Since: received.Add(-7 * 24 * time.Hour), Until: received}, 28))
		})
		timed("histogram of a month, all", func(ctx context.Context) error {
			return second(w.Histogram(ctx, "acme", AlertFilter{Since: received.Add(-30 * 24 * time.Hour), Until: received}, 60))
		})
		timed("histogram of a rare account", func(ctx context.Context) error {
			return second(w.Histogram(ctx, "acme", AlertFilter{Account: "sa_rare", Since: received.Add(-30 * 24 * time.Hour), Until: received}, 60))
		})
		timed("what is new", func(ctx context.Context) error {
			return second(w.Arrived(ctx, "acme", received.Add(-time.Second)))
		})
		timed("prune of a hundredth", func(ctx context.Context) error {
			return second(w.Prune(ctx, received.Add(-30*24*time.Hour+7*time.Hour), 1000))
		})
	})
}
