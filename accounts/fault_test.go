package accounts_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
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
