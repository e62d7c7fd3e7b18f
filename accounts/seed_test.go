package accounts_test

import (
	"database/sql"
	"testing"
)

// seed makes n accounts of acme with a key each, and m rows of its audit, by a few statements: for plans and for loads, not for the chain.
func (w *world) seed(t *testing.T, n, m int) {
	t.Helper()
	series := `WITH RECURSIVE s (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < $1) `
	// 22 characters that differ: hex of a number, padded.
	pad := `SUBSTR('000000000000' || CAST(s.i AS TEXT), LENGTH(CAST(s.i AS TEXT)) + 1, 12)`
	env := `CASE s.i % 3 WHEN 0 THEN 'production' WHEN 1 THEN 'staging' ELSE 'development' END`
	hash := `CAST(` + pad + ` || '00000000000000000000' AS BLOB)`
	if w.dialect.String() == "postgres" {
		hash = `CAST(` + pad + ` || '00000000000000000000' AS BYTEA)`
	}
	statements := []string{
		series + `INSERT INTO service_accounts (id, org, name, name_lower, environment, description, intended_scope, abuse_detection, team, cost_centre,
			requests_per_second, bytes_per_second, key_prefix, version, created_at, created_by, updated_at, deleted_at)
			SELECT 'sa_' || ` + pad + `, 'acme', 'Job ' || ` + pad + `, 'job ' || ` + pad + `, ` + env + `, '', '', TRUE, '', '', 0, 0, 'fsk_' || ` + pad + `,
			1, 1700000000000 + s.i, 'seed', 1700000000000 + s.i, CASE WHEN s.i % 10 = 0 THEN 1700000000000 ELSE NULL END FROM s`,
		series + `INSERT INTO account_seen (account_id, org, live, environment, first_at, last_at)
			SELECT 'sa_' || ` + pad + `, 'acme', s.i % 10 <> 0, ` + env + `, 0, 0 FROM s`,
		series + `INSERT INTO keys (prefix, org, kind, subject_id, subject_name, hash, version, created_at, created_by)
			SELECT 'fsk_' || ` + pad + `, 'acme', 'service_account', 'sa_' || ` + pad + `, '', ` + hash + `, 1, 1700000000000, 'seed' FROM s`,
	}
	for _, q := range statements {
		if _, err := w.writer.ExecContext(t.Context(), q, n); err != nil {
			t.Fatal(err)
		}
	}
	if m == 0 {
		return
	}
	q := series + `INSERT INTO audit_events (org, seq, id, at, actor, action, target_kind, target_id, target_label, source_ip, source_via, hash)
		SELECT 'acme', s.i + 100, 'ev_' || ` + pad + `, 1700000000000 + s.i * 10, CASE WHEN s.i % 1000 = 0 THEN 'rare' ELSE 'often' END,
		CASE WHEN s.i % 1000 = 1 THEN 'service_account.deleted' ELSE 'service_account.updated' END, 'service_account', 'sa_' || CAST(s.i % 1000 AS TEXT),
		'service: x / production', '', 'api', ` + hash + ` FROM s`
	if _, err := w.writer.ExecContext(t.Context(), q, m); err != nil {
		t.Fatal(err)
	}
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
