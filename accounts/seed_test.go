package accounts_test

import (
	"database/sql"
	"fmt"
	"strings"
	"testing"
	"time"

	"flowstate.inc/sluice/accounts"
)

// seed makes n accounts of acme with a key each, and m rows of its audit, by a few statements: for plans and for loads, not for the chain. A fifth of the
// accounts was never seen, a fifth is idle, a tenth is deleted.
func (w *world) seed(t *testing.T, n, m int) {
	t.Helper()
	exec := func(query string, args ...any) {
		t.Helper()
		if _, err := w.writer.ExecContext(t.Context(), query, args...); err != nil {
			t.Fatalf("%s: %v", query, err)
		}
	}
	series, blob := `WITH RECURSIVE s (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < $1) `, "BLOB"
	if w.dialect == accounts.Postgres {
		series, blob = `WITH s (i) AS (SELECT generate_series(1, CAST($1 AS BIGINT))) `, "BYTEA"
		// An index is built in one go much faster than row by row.
		for _, definition := range w.column(t, `SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename IN ('service_accounts', 'account_seen', 'audit_events')
			AND indexname NOT LIKE '%_pkey'`) {
			name, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(definition, "CREATE UNIQUE INDEX "), "CREATE INDEX "), " ")
			exec(`DROP INDEX ` + name)
			defer exec(definition)
		}
	}
	// 12 digits that differ.
	pad := `SUBSTR('000000000000' || CAST(s.i AS TEXT), LENGTH(CAST(s.i AS TEXT)) + 1, 12)`
	env := `CASE s.i % 3 WHEN 0 THEN 'production' WHEN 1 THEN 'staging' ELSE 'development' END`
	hash := `CAST(` + pad + ` || '00000000000000000000' AS ` + blob + `)`
	seen := fmt.Sprintf(`CASE s.i %% 5 WHEN 0 THEN 0 WHEN 1 THEN 1700000000000 + s.i ELSE %d - s.i * 10 END`, time.Now().UnixMilli())
	exec(series+`INSERT INTO service_accounts (id, org, name, name_lower, environment, description, intended_scope, abuse_detection, team, cost_centre,
		requests_per_second, bytes_per_second, key_prefix, version, created_at, created_by, updated_at, deleted_at)
		SELECT 'sa_' || `+pad+`, 'acme', 'Job ' || `+pad+`, 'job ' || `+pad+`, `+env+`, '', '', TRUE, '', '', 0, 0, 'fsk_' || `+pad+`,
		1, 1700000000000 + s.i, 'seed', 1700000000000 + s.i, CASE WHEN s.i % 10 = 0 THEN 1700000000000 ELSE NULL END FROM s`, n)
	exec(series+`INSERT INTO account_seen (account_id, org, live, environment, first_at, last_at)
		SELECT 'sa_' || `+pad+`, 'acme', s.i % 10 <> 0, `+env+`, `+seen+`, `+seen+` FROM s`, n)
	exec(series+`INSERT INTO keys (prefix, org, kind, subject_id, subject_name, hash, version, created_at, created_by)
		SELECT 'fsk_' || `+pad+`, 'acme', 'service_account', 'sa_' || `+pad+`, '', `+hash+`, 1, 1700000000000, 'seed' FROM s`, n)
	if m == 0 {
		return
	}
	exec(series+`INSERT INTO audit_events (org, seq, id, at, actor, action, target_kind, target_id, target_label, source_ip, source_via, hash)
		SELECT 'acme', s.i + 100, 'ev_' || `+pad+`, 1700000000000 + s.i * 10, CASE WHEN s.i % 1000 = 0 THEN 'rare' ELSE 'often' END,
		CASE WHEN s.i % 1000 = 1 THEN 'service_account.deleted' ELSE 'service_account.updated' END, 'service_account', 'sa_' || CAST(s.i % 1000 AS TEXT),
		'service: x / production', '', 'api', `+hash+` FROM s`, m)
}

// analyze has the database look at its tables, as it does by itself after a while.
func (w *world) analyze(t *testing.T) {
	t.Helper()
	if _, err := w.writer.ExecContext(t.Context(), `ANALYZE`); err != nil {
		t.Fatal(err)
	}
}

// column reads one column of texts.
func (w *world) column(t *testing.T, query string, args ...any) []string {
	t.Helper()
	rows, err := w.reader.QueryContext(t.Context(), query, args...)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var out []string
	for rows.Next() {
		var s sql.NullString
		if err := rows.Scan(&s); err != nil {
			t.Fatal(err)
		}
		out = append(out, s.String)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}
