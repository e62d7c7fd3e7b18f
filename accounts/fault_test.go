package accounts_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"modernc.org/sqlite"

	"flowstate.inc/sluice/accounts"
	"flowstate.inc/sluice/auth"
)

// What a cut connection and a broken database say.
var (
	errAway   = driver.ErrBadConn
	errBroken = errors.New("disk image is malformed, said the database")
)

// A saboteur is a driver under a driver: it counts statements, and at the chosen one cuts the connection, before or after the database did it.
type saboteur struct {
	inner driver.Connector
	at    atomic.Int64 // counts down; the statement that reaches 0 fails
	after atomic.Bool  // the statement is done, and its answer lost
	all   atomic.Bool  // every statement fails
	err   error
	ran   atomic.Int64
}

func (s *saboteur) Driver() driver.Driver { return s.inner.Driver() }

func (s *saboteur) Connect(ctx context.Context) (driver.Conn, error) {
	c, err := s.inner.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return &sabotaged{c, s, false}, nil
}

// step runs one statement, or does not. The connection is gone after a failure, as a cut one is: the database rolls back.
func (s *saboteur) step(c *sabotaged, do func() error) error {
	if c.cut {
		return driver.ErrBadConn
	}
	s.ran.Add(1)
	if s.at.Add(-1) != 0 && !s.all.Load() {
		return do()
	}
	if s.after.Load() {
		if err := do(); err != nil {
			return err
		}
	}
	c.cut = true
	return s.err
}

type sabotaged struct {
	driver.Conn
	s   *saboteur
	cut bool
}

func (c *sabotaged) BeginTx(ctx context.Context, o driver.TxOptions) (driver.Tx, error) {
	var t driver.Tx
	err := c.s.step(c, func() error {
		var err error
		t, err = c.Conn.(driver.ConnBeginTx).BeginTx(ctx, o)
		return err
	})
	return &sabotagedTx{t, c}, err
}

func (c *sabotaged) ExecContext(ctx context.Context, q string, a []driver.NamedValue) (driver.Result, error) {
	var r driver.Result
	err := c.s.step(c, func() error {
		var err error
		r, err = c.Conn.(driver.ExecerContext).ExecContext(ctx, q, a)
		return err
	})
	return r, err
}

func (c *sabotaged) QueryContext(ctx context.Context, q string, a []driver.NamedValue) (driver.Rows, error) {
	var r driver.Rows
	err := c.s.step(c, func() error {
		var err error
		r, err = c.Conn.(driver.QueryerContext).QueryContext(ctx, q, a)
		return err
	})
	if err != nil && r != nil {
		_ = r.Close()
	}
	return r, err
}

func (c *sabotaged) IsValid() bool { return !c.cut }

func (c *sabotaged) CheckNamedValue(v *driver.NamedValue) error {
	if checker, ok := c.Conn.(driver.NamedValueChecker); ok {
		return checker.CheckNamedValue(v)
	}
	return driver.ErrSkip
}

type sabotagedTx struct {
	driver.Tx
	c *sabotaged
}

func (t *sabotagedTx) Commit() error { return t.c.s.step(t.c, t.Tx.Commit) }

func (t *sabotagedTx) Rollback() error { return t.Tx.Rollback() }

type fileConnector struct{ dsn string }

func (f fileConnector) Connect(context.Context) (driver.Conn, error) {
	return (&sqlite.Driver{}).Open(f.dsn)
}
func (f fileConnector) Driver() driver.Driver { return &sqlite.Driver{} }

// sabotage opens the world's database a second time, through a saboteur that lets everything pass until it is told.
func (w *world) sabotage(t *testing.T, err error) (*saboteur, *sql.DB) {
	t.Helper()
	s := &saboteur{err: err}
	switch w.dialect {
	case accounts.SQLite:
		s.inner = fileConnector{(&url.URL{Scheme: "file", OmitHost: true, Path: w.url}).String() + "?_pragma=busy_timeout(5000)&_pragma=foreign_keys(1)&_txlock=immediate"}
	case accounts.Postgres:
		cfg, err := pgx.ParseConfig(w.url)
		if err != nil {
			t.Fatal(err)
		}
		s.inner = stdlib.GetConnector(*cfg)
	}
	db := sql.OpenDB(s)
	db.SetMaxOpenConns(1)
	t.Cleanup(func() { _ = db.Close() })
	return s, db
}

// newSiteOn is the same site on a database that fails every statement with err, but those of the sign-in where the route has others.
func newSiteOn(t *testing.T, s *site, err error) *site {
	t.Helper()
	sab, db := s.sabotage(t, err)
	sab.all.Store(true)
	store := accounts.NewStore(accounts.StoreConfig{Writer: db, Dialect: s.dialect})
	return s.with(t, accounts.APIConfig{
		Store: store, Logger: slog.New(slog.NewJSONHandler(s.log, nil)),
		Authenticate: func(r *http.Request) (auth.Admin, error) {
			if r.URL.Path == "/api/v1/signal-types" { // which asks the database for nothing else
				return store.AuthenticateRequest(r)
			}
			return s.AuthenticateRequest(r)
		},
	})
}

// snapshot is everything that a change of an account touches, as one text.
func (w *world) snapshot(t *testing.T) string {
	t.Helper()
	var out []string
	for _, q := range []string{
		`SELECT id || name || environment || CAST(version AS TEXT) || COALESCE(CAST(deleted_at AS TEXT), '-') FROM service_accounts ORDER BY id`,
		`SELECT prefix || CAST(version AS TEXT) || COALESCE(CAST(revoked_at AS TEXT), '-') FROM keys ORDER BY prefix`,
		`SELECT prefix || CAST(version AS TEXT) FROM key_changes ORDER BY prefix, version`,
		`SELECT account_id || environment || CAST(live AS TEXT) FROM account_seen ORDER BY account_id`,
		`SELECT org || CAST(seq AS TEXT) || action FROM audit_events ORDER BY org, seq`,
		`SELECT org || CAST(count AS TEXT) FROM audit_heads ORDER BY org`,
		`SELECT account_id FROM idempotency_keys ORDER BY account_id`,
	} {
		out = append(out, w.column(t, q)...)
	}
	return strings.Join(out, "\n")
}

// TestEveryStepCut cuts the connection at each statement of each change, before the database did it and after, the commit included: either nothing
// has happened or all of it has, and whatever may have happened was announced.
func TestEveryStepCut(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		n := 0
		change := func(name string, do func(s *accounts.Store, a accounts.Account) error) {
			for _, after := range []bool{false, true} {
				for step := int64(1); ; step++ {
					n++
					a := w.create(t, fmt.Sprint("victim ", n), "production").Account
					w.announced()
					sab, db := w.sabotage(t, errCut)
					store := accounts.NewStore(accounts.StoreConfig{Writer: db, Reader: w.reader, Dialect: w.dialect, OnChange: w.onChange})
					was := w.snapshot(t)
					sab.after.Store(after)
					sab.at.Store(step)
					err := do(store, a)
					ran := sab.ran.Load()
					_ = db.Close()
					now := w.snapshot(t)
					if ran < step { // past the last statement: nothing was cut
						if err != nil {
							t.Fatalf("%s untouched: %v", name, err)
						}
						if step < 6 {
							t.Errorf("%s has %d steps only", name, step-1)
						}
						break
					}
					changed := now != was
					if changed != whole(t, w, name, a) {
						t.Errorf("%s cut at step %d, after %v: half of it has happened:\n%s\n▸\n%s", name, step, after, was, now)
					}
					if changed && len(w.announced()) == 0 {
						t.Errorf("%s cut at step %d, after %v: it has happened and nobody was told", name, step, after)
					}
					if !changed && err == nil {
						t.Errorf("%s cut at step %d, after %v: it has not happened and says that it has", name, step, after)
					}
				}
			}
		}
		change("create", func(s *accounts.Store, a accounts.Account) error {
			_, err := s.CreateAccount(ctx, cli, "acme", accounts.NewAccount{Name: a.Name, Environment: "development"}, a.ID)
			return err
		})
		change("update", func(s *accounts.Store, a accounts.Account) error {
			_, err := s.UpdateAccount(ctx, cli, "acme", a.ID, 0, accounts.AccountUpdate{Environment: ptr("staging")})
			return err
		})
		change("delete", func(s *accounts.Store, a accounts.Account) error {
			_, _, err := s.DeleteAccount(ctx, cli, "acme", a.ID)
			return err
		})
		report, err := w.VerifyAudit(ctx, "acme")
		if err != nil || !report.Intact() {
			t.Errorf("audit: %+v, %v", report, err)
		}
	})
}

var errCut = errors.New("the connection was cut")

// whole says whether the change of a has happened in every table.
func whole(t *testing.T, w *world, name string, a accounts.Account) bool {
	t.Helper()
	one := func(q string, args ...any) bool { return len(w.column(t, q, args...)) == 1 }
	switch name {
	case "create":
		made := w.column(t, `SELECT id FROM service_accounts WHERE name = $1 AND environment = 'development'`, a.Name)
		return len(made) == 1 && one(`SELECT prefix FROM keys WHERE subject_id = $1`, made[0]) && one(`SELECT account_id FROM account_seen WHERE account_id = $1`, made[0]) &&
			one(`SELECT account_id FROM idempotency_keys WHERE account_id = $1`, made[0]) &&
			one(`SELECT c.prefix FROM key_changes c JOIN keys k ON k.prefix = c.prefix WHERE k.subject_id = $1`, made[0]) &&
			one(`SELECT id FROM audit_events WHERE target_id = $1 AND action = 'service_account.created'`, made[0])
	case "update":
		return one(`SELECT a.id FROM service_accounts a JOIN keys k ON k.subject_id = a.id AND k.version = a.version JOIN key_changes c ON c.prefix = k.prefix AND c.version = k.version
			JOIN account_seen s ON s.account_id = a.id AND s.environment = 'staging' WHERE a.id = $1 AND a.environment = 'staging'`, a.ID) &&
			one(`SELECT id FROM audit_events WHERE target_id = $1 AND action = 'service_account.updated'`, a.ID)
	default:
		return one(`SELECT a.id FROM service_accounts a JOIN keys k ON k.subject_id = a.id AND k.revoked_at = a.deleted_at JOIN key_changes c ON c.prefix = k.prefix AND c.version = k.version
			JOIN account_seen s ON s.account_id = a.id AND NOT s.live WHERE a.id = $1`, a.ID) &&
			one(`SELECT id FROM audit_events WHERE target_id = $1 AND action = 'service_account.deleted'`, a.ID)
	}
}
