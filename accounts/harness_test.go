package accounts_test

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"flowstate.inc/sluice/accounts"
	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/deploy"
)

// A world is one migrated database with a Store on it and one org, acme.
type world struct {
	*accounts.Store
	writer, reader *sql.DB
	dialect        accounts.Dialect
	url            string // of PostgreSQL, or the file of SQLite
	clock          *clock

	mu      sync.Mutex
	changes []auth.Change // in the order of OnChange
}

// A clock is the Store's, real plus what a test adds.
type clock struct {
	mu  sync.Mutex
	add time.Duration
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.add)
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.add += d
}

func (w *world) onChange(ch auth.Change) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.changes = append(w.changes, ch)
}

// announced returns and forgets what OnChange was called with.
func (w *world) announced() []auth.Change {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.changes
	w.changes = nil
	return out
}

var cli = accounts.By{Actor: "ada@acme.example", IP: "192.0.2.7", Via: "cli"}

// each runs f on SQLite, and on PostgreSQL when TEST_DATABASE_URL names one. SLUICE_REQUIRE_SERVICES=1 makes its absence a failure.
func each(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	t.Run("sqlite", func(t *testing.T) { f(t, newWorld(t, accounts.SQLite)) })
	if os.Getenv("TEST_DATABASE_URL") == "" {
		if os.Getenv("SLUICE_REQUIRE_SERVICES") == "1" {
			t.Error("TEST_DATABASE_URL is not set")
		}
		return
	}
	t.Run("postgres", func(t *testing.T) { f(t, newWorld(t, accounts.Postgres)) })
}

func newWorld(t *testing.T, dialect accounts.Dialect) *world {
	t.Helper()
	w := &world{dialect: dialect, clock: &clock{}}
	var err error
	migrate := deploy.SQLite
	switch dialect {
	case accounts.SQLite:
		w.url = filepath.Join(t.TempDir(), "a b?#%.db")
		w.writer, w.reader, err = accounts.OpenSQLite(w.url)
	case accounts.Postgres:
		migrate = deploy.Postgres
		w.url = newDatabase(t)
		w.writer, w.reader, err = accounts.OpenPostgres(w.url)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(w.reader.Close(), w.writer.Close()); err != nil {
			t.Error(err)
		}
	})
	if _, err := deploy.Migrate(t.Context(), w.writer, migrate); err != nil {
		t.Fatal(err)
	}
	w.Store = accounts.NewStore(accounts.StoreConfig{Writer: w.writer, Reader: w.reader, Dialect: dialect, OnChange: w.onChange, Now: w.clock.now})
	if _, err := w.CreateOrg(t.Context(), cli, "acme"); err != nil {
		t.Fatal(err)
	}
	return w
}

// newDatabase makes a database with a random name on the server of TEST_DATABASE_URL, and drops it when the test ends.
func newDatabase(t *testing.T) string {
	t.Helper()
	base := os.Getenv("TEST_DATABASE_URL")
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal("TEST_DATABASE_URL is not a URL")
	}
	admin, other, err := accounts.OpenPostgres(base)
	if err != nil {
		t.Fatal(err)
	}
	_ = other.Close()
	var b [8]byte
	_, _ = rand.Read(b[:])
	name := "accounts_" + hex.EncodeToString(b[:])
	if _, err := admin.ExecContext(t.Context(), `CREATE DATABASE `+name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if _, err := admin.ExecContext(ctx, `DROP DATABASE `+name+` WITH (FORCE)`); err != nil {
			t.Error(err)
		}
		_ = admin.Close()
	})
	u.Path = "/" + name
	return u.String()
}

// deadlocks is how often PostgreSQL broke one, which the Store hides by trying again. It lets go of all connections: they count when they end.
func (w *world) deadlocks(t *testing.T) int {
	t.Helper()
	if w.dialect != accounts.Postgres {
		return 0
	}
	w.writer.SetMaxIdleConns(0)
	w.reader.SetMaxIdleConns(0)
	defer w.writer.SetMaxIdleConns(8)
	defer w.reader.SetMaxIdleConns(8)
	for deadline := time.Now().Add(time.Minute); ; {
		var others, n int
		err := w.reader.QueryRowContext(t.Context(), `SELECT (SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
			AND backend_type = 'client backend'), deadlocks FROM pg_stat_database WHERE datname = current_database()`).Scan(&others, &n)
		if err != nil {
			t.Fatal(err)
		}
		if others == 0 {
			return n
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d connections do not end", others)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func ptr[T any](v T) *T { return &v }

// create makes an account of acme.
func (w *world) create(t *testing.T, name, environment string) accounts.Created {
	t.Helper()
	c, err := w.CreateAccount(t.Context(), cli, "acme", accounts.NewAccount{Name: name, Environment: environment}, "")
	if err != nil {
		t.Fatal(err)
	}
	return c
}
