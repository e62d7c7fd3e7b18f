package accounts_test

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"flowstate.inc/sluice/accounts"
)

// TestPagesReadABoundedNumberOfRows looks at the plans of what lists and searches ask of large tables. PostgreSQL says how many rows each step read;
// SQLite says which index it walks.
func TestPagesReadABoundedNumberOfRows(t *testing.T) {
	if testing.Short() {
		t.Skip("all of it is the database's work")
	}
	each(t, func(t *testing.T, w *world) {
		n, m := 100_000, 1_000_000
		if w.dialect == accounts.SQLite { // whose plans do not depend on sizes as long as there are statistics, and which is slow under -race
			n, m = 1_000, 3_000
		}
		w.seed(t, n, m)
		w.analyze(t)
		ctx := t.Context()
		const limit = 50
		check := func(name, query string, args []any, err error) {
			t.Helper()
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if w.dialect == accounts.SQLite {
				checkSQLitePlan(t, w, name, query, args)
				return
			}
			// Six branches of a page and one row each, joined with three tables, and what the merge reads again.
			if rows := postgresRows(t, w, query, args); rows > 6*(limit+1)*5 {
				t.Errorf("%s reads %d rows", name, rows)
			}
		}
		for _, sort := range accounts.AccountSorts() {
			for _, f := range []accounts.AccountFilter{
				{}, {State: "all"}, {State: "deleted"}, {Environments: []string{"staging"}}, {State: "all", Environments: []string{"staging", "production"}},
			} {
				f.Sort, f.Limit = sort, limit
				query, args, err := accounts.ListQueryForTest(w.Store, "acme", f)
				check(fmt.Sprintf("list %+v", f), query, args, err)
				p, err := w.Accounts(ctx, "acme", f)
				if err != nil || p.Next == "" {
					t.Fatalf("%+v: no second page, %v", f, err)
				}
				f.Cursor = p.Next
				query, args, err = accounts.ListQueryForTest(w.Store, "acme", f)
				check(fmt.Sprintf("second page of %+v", f), query, args, err)
			}
		}
		for _, f := range []accounts.AccountFilter{{Q: "fsk_000000000777"}, {Q: "fsk_000000000777", State: "deleted", Sort: "-last_seen_at"},
			{Seen: "never"}, {Seen: "idle"}, {Seen: "never", Environments: []string{"staging"}, State: "all"}, {Seen: "idle", Sort: "-last_seen_at", State: "deleted"}} {
			f.Limit = limit
			query, args, err := accounts.ListQueryForTest(w.Store, "acme", f)
			check(fmt.Sprintf("search %+v", f), query, args, err)
		}
		now := time.UnixMilli(1700000000000 + int64(m)*5)
		for _, f := range []accounts.AuditFilter{
			{}, {Since: now}, {Until: now}, {Actions: []string{"service_account.deleted"}}, {Actions: []string{"service_account.deleted", "nothing", "service_account.updated"}},
			{Actors: []string{"rare"}}, {Target: "sa_7"}, {TargetKinds: []string{"org"}}, {Actors: []string{"often"}, Actions: []string{"service_account.updated"}},
		} {
			query, args, err := accounts.AuditQueryForTest(ctx, w.Store, "acme", f, limit+1)
			check(fmt.Sprintf("audit %+v", f), query, args, err)
		}
		// What no index bounds, a piece of a name or an order beside a filter by sightings, reads the names of the org: it is the size of the org that must be bearable.
		for _, f := range []accounts.AccountFilter{
			{Q: "ob 000000000777"}, {Q: "no such name"}, {Q: "no such name", State: "all", Sort: "-last_seen_at"}, {Q: "fsk_0000000007"}, {Seen: "idle", Sort: "-name"}, {Seen: "never", Sort: "created_at"},
		} {
			f.Limit = limit
			started := time.Now()
			if _, err := w.Accounts(ctx, "acme", f); err != nil {
				t.Fatal(err)
			}
			took := time.Since(started)
			t.Logf("%+v among %d accounts: %v", f, n, took.Round(time.Millisecond))
			if took > 3*time.Second { // about a tenth of a second where nothing else runs
				t.Errorf("%+v among %d accounts took %v", f, n, took)
			}
		}
		// What the edge asks, and the console as it counts.
		started := time.Now()
		if _, err := w.Key(ctx, "fsk_000000000777"); err != nil {
			t.Error(err)
		}
		if c, err := w.CountAccounts(ctx, "acme"); err != nil || c.Live != min(accounts.CountLimit, n/10*9) {
			t.Errorf("counts: %+v, %v", c, err)
		}
		if took := time.Since(started); took > 5*time.Second {
			t.Errorf("these look-ups took %v", took)
		}
	})
}

// tempSort is SQLite's word for sorting a whole result; the merge of the branches does it, a branch must not.
var tempSort = regexp.MustCompile(`USE TEMP B-TREE`)

func checkSQLitePlan(t *testing.T, w *world, name, query string, args []any) {
	t.Helper()
	rows, err := w.reader.QueryContext(t.Context(), `EXPLAIN QUERY PLAN `+query, args...)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	defer rows.Close()
	var plan []string
	for rows.Next() {
		var id, parent, unused int
		var detail string
		if err := rows.Scan(&id, &parent, &unused, &detail); err != nil {
			t.Fatal(err)
		}
		// A search for one prefix sorts the one account it found; the merge sorts the pages of its branches.
		if tempSort.MatchString(detail) && !strings.Contains(query, "k.prefix =") && !strings.HasPrefix(plan[len(plan)-1], "SCAN ") {
			t.Errorf("%s: a branch sorts: %s", name, strings.Join(plan, "\n"))
		}
		plan = append(plan, detail)
		// A whole table, or a whole index, walked from one end to the other.
		if strings.HasPrefix(detail, "SCAN ") && !strings.Contains(detail, "SCAN branch") && !strings.Contains(detail, "SCAN u") && !strings.HasPrefix(detail, "SCAN (") {
			t.Errorf("%s: %s\n%s", name, detail, strings.Join(plan, "\n"))
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
}

// postgresRows is how many rows the steps of the plan that read tables went through.
func postgresRows(t *testing.T, w *world, query string, args []any) int {
	t.Helper()
	var raw string
	if err := w.reader.QueryRowContext(t.Context(), `EXPLAIN (ANALYZE, FORMAT JSON) `+query, args...).Scan(&raw); err != nil {
		t.Fatal(err)
	}
	type node struct {
		Type    string  `json:"Node Type"`
		Rows    float64 `json:"Actual Rows"`
		Removed float64 `json:"Rows Removed by Filter"`
		Loops   float64 `json:"Actual Loops"`
		Plans   []node  `json:"Plans"`
	}
	var plans []struct{ Plan node }
	if err := json.Unmarshal([]byte(raw), &plans); err != nil {
		t.Fatal(err)
	}
	var sum func(n node) float64
	sum = func(n node) float64 {
		total := 0.0
		if strings.Contains(n.Type, "Scan") && n.Type != "Subquery Scan" {
			total = (n.Rows + n.Removed) * n.Loops
		}
		for _, p := range n.Plans {
			total += sum(p)
		}
		return total
	}
	return int(sum(plans[0].Plan))
}
