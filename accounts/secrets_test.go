package accounts_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"flowstate.inc/sluice/accounts"
	"flowstate.inc/sluice/auth"
)

// TestRawSecretsAreNowhere creates, pastes and searches with every kind of secret, and then looks for their secret halves in every table, the files of
// the database, the log and the answers.
func TestRawSecretsAreNowhere(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		s := newSite(t, w)
		ctx := t.Context()
		var secrets []string
		made := s.want(t, 201, "manage", "POST", "/api/v1/service-accounts", `{"name":"a","environment":"staging"}`, "Idempotency-Key", "once")
		key := made.text(t, "key")
		detector := s.want(t, 201, "manage", "POST", "/api/v1/keys", `{"kind":"detector","name":"d"}`).text(t, "key")
		session, err := w.CreateSession(ctx, cli, auth.Admin{Org: "acme", Actor: "ada", Permissions: auth.AllPermissions()}, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		link, err := w.CreateLink(ctx, cli, auth.Admin{Org: "acme", Actor: "ada", Permissions: auth.AllPermissions()}, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range []string{key, detector, s.tokens["manage"]} {
			secrets = append(secrets, k[17:])
		}
		secrets = append(secrets, session, link)

		// Every way to paste a key where it does not belong. None of the answers may hold it.
		for _, a := range []answer{
			s.do(t, "manage", "GET", "/api/v1/service-accounts?q="+key, ""),
			s.do(t, "manage", "GET", "/api/v1/service-accounts?state="+key, ""),
			s.do(t, "manage", "GET", "/api/v1/service-accounts?"+key+"=1", ""),
			s.do(t, "manage", "GET", "/api/v1/service-accounts?cursor="+key, ""),
			s.do(t, "manage", "GET", "/api/v1/service-accounts/"+key, ""),
			s.do(t, "manage", "GET", "/api/v1/"+key, ""),
			s.do(t, "manage", "DELETE", "/api/v1/keys/"+key, ""),
			s.do(t, "manage", "POST", "/api/v1/keys/identify", `{"key":"`+key+`"}`),
			s.do(t, "manage", "POST", "/api/v1/keys/identify", `{"prefix":"`+key+`"}`),
			s.do(t, "manage", "POST", "/api/v1/keys/identify", `{"sha256":"`+key+`"}`),
			s.do(t, "manage", "POST", "/api/v1/service-accounts", `{"name":"`+key+`","environment":"staging"}`),
			s.do(t, "manage", "POST", "/api/v1/service-accounts", `{"name":"b","environment":"`+key+`"}`),
			s.do(t, "manage", "POST", "/api/v1/service-accounts", `{"name":"b","environment":"staging","`+key+`":1}`),
			s.do(t, "manage", "POST", "/api/v1/service-accounts", `{"name":"c","environment":"staging"}`, "Idempotency-Key", key),
			s.do(t, "manage", "POST", "/api/v1/keys", `{"kind":"person","id":"`+key+`"}`),
			s.do(t, "manage", "GET", "/api/v1/keys", "", "X-Request-Id", key[:64]),
			s.do(t, "govern", "GET", "/api/v1/audit-events?target="+key, ""),
			s.do(t, "govern", "GET", "/api/v1/audit-events?actor="+key, ""),
			s.do(t, "govern", "GET", "/api/v1/audit-events?format=csv", ""),
			s.do(t, key, "GET", "/api/v1/keys", ""),
			s.do(t, "", "GET", "/api/v1/keys", "", "Authorization", "Basic "+key),
		} {
			for _, secret := range secrets {
				if bytes.Contains(a.body, []byte(secret)) && !bytes.Contains(a.body, []byte(`"key":"`)) {
					t.Errorf("an answer of %d holds a secret: %s", a.status, a.body)
				}
			}
		}
		s.want(t, 200, "manage", "DELETE", "/api/v1/service-accounts/"+made.text(t, "account.id"), "")

		look := func(where string, b []byte) {
			t.Helper()
			for _, secret := range secrets {
				if bytes.Contains(b, []byte(secret)) {
					t.Errorf("%s holds a secret", where)
				}
			}
		}
		look("the log", []byte(s.log.String()))
		if !strings.Contains(s.log.String(), `"route":"/api/v1/service-accounts/{id}"`) {
			t.Error("the log says nothing of the requests")
		}
		for _, table := range w.tables(t) {
			look("table "+table, []byte(w.dump(t, table)))
		}
		if w.dialect == accounts.SQLite {
			files, err := filepath.Glob(filepath.Join(filepath.Dir(w.url), "*"))
			if err != nil || len(files) == 0 {
				t.Fatal(files, err)
			}
			for _, f := range files {
				b, err := os.ReadFile(f)
				if err != nil {
					t.Fatal(err)
				}
				look(filepath.Base(f), b)
			}
		}
	})
}

func (w *world) tables(t *testing.T) []string {
	t.Helper()
	query := `SELECT name FROM sqlite_master WHERE type = 'table'`
	if w.dialect == accounts.Postgres {
		query = `SELECT tablename FROM pg_tables WHERE schemaname = 'public'`
	}
	tables := w.column(t, query)
	if len(tables) < 12 {
		t.Fatalf("tables: %v", tables)
	}
	return tables
}

// dump is all cells of a table, as text.
func (w *world) dump(t *testing.T, table string) string {
	t.Helper()
	rows, err := w.reader.QueryContext(t.Context(), `SELECT * FROM `+table)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for rows.Next() {
		cells := make([]any, len(columns))
		for i := range cells {
			cells[i] = new(any)
		}
		if err := rows.Scan(cells...); err != nil {
			t.Fatal(err)
		}
		for _, c := range cells {
			if b, ok := (*c.(*any)).([]byte); ok {
				out.Write(b)
			}
			fmt.Fprintln(&out, *c.(*any))
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}
