package signals

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/stdlib"

	"flowstate.inc/sluice/deploy"
)

// A world is one migrated database with a Store on it.
type world struct {
	*Store
	db      *sql.DB
	dialect Dialect

	mu    sync.Mutex
	now   time.Time
	audit []AuditEntry
}

func (w *world) clock() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

func (w *world) advance(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.now.Add(d)
}

func (w *world) audited() []AuditEntry {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.audit
	w.audit = nil
	return out
}

// each runs f on SQLite, and on PostgreSQL when TEST_DATABASE_URL names one. SLUICE_REQUIRE_SERVICES=1 makes its absence a failure.
func each(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	t.Run("sqlite", func(t *testing.T) { f(t, newWorld(t, SQLite)) })
	if os.Getenv("TEST_DATABASE_URL") == "" {
		if os.Getenv("SLUICE_REQUIRE_SERVICES") == "1" {
			t.Error("TEST_DATABASE_URL is not set")
		}
		return
	}
	t.Run("postgres", func(t *testing.T) { f(t, newWorld(t, Postgres)) })
}

func newWorld(t testing.TB, dialect Dialect) *world {
	t.Helper()
	w := &world{dialect: dialect, now: received}
	migrate := deploy.SQLite
	if dialect == Postgres {
		migrate = deploy.Postgres
		w.db = newDatabase(t)
	} else {
		var err error
		w.db, err = sql.Open("sqlite", "file:"+filepath.Join(t.TempDir(), "s.db")+
			"?_pragma=journal_mode(WAL)&_pragma=synchronous(NORMAL)&_pragma=busy_timeout(5000)&_pragma=foreign_keys(1)&_txlock=immediate")
		if err != nil {
			t.Fatal(err)
		}
		w.db.SetMaxOpenConns(1)
		t.Cleanup(func() { _ = w.db.Close() })
	}
	if _, err := deploy.Migrate(t.Context(), w.db, migrate); err != nil {
		t.Fatal(err)
	}
	w.Store = NewStore(StoreConfig{Writer: w.db, Dialect: dialect, Now: w.clock, Audit: func(_ context.Context, _ *sql.Tx, e AuditEntry) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.audit = append(w.audit, e)
		return nil
	}})
	return w
}

// newDatabase makes a database with a random name on the server of TEST_DATABASE_URL, and drops it when the test ends.
func newDatabase(t testing.TB) *sql.DB {
	t.Helper()
	base := os.Getenv("TEST_DATABASE_URL")
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal("TEST_DATABASE_URL is not a URL")
	}
	open := func(u string) *sql.DB {
		db, err := sql.Open("pgx", u)
		if err != nil {
			t.Fatal(err)
		}
		return db
	}
	_ = stdlib.GetDefaultDriver() // registers pgx
	admin := open(base)
	var b [8]byte
	_, _ = rand.Read(b[:])
	name := "signals_" + hex.EncodeToString(b[:])
	if _, err := admin.ExecContext(t.Context(), `CREATE DATABASE `+name); err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + name
	db := open(u.String())
	db.SetMaxOpenConns(8)
	t.Cleanup(func() {
		_ = db.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if _, err := admin.ExecContext(ctx, `DROP DATABASE `+name+` WITH (FORCE)`); err != nil {
			t.Error(err)
		}
		_ = admin.Close()
	})
	return db
}

var admin = By{Actor: "ada@acme.example", IP: "192.0.2.7", Via: "api"}

// event makes a stored-like event.
func event(n int, mut func(*Event)) *Event {
	e := &Event{ID: fmt.Sprintf("sig_%032x", n), Org: "acme", Type: "pii_detected", Category: ContentSafety, Severity: Warn, BaseSeverity: Warn,
		DetectedAt: received.Add(time.Duration(n) * time.Second), ReceivedAt: received.Add(time.Duration(n) * time.Second),
		Subject: EventSubject{Kind: "service_account", ID: "sa_1", Label: "service: digest / production"},
		Service: &EventService{ID: "sa_1", Name: "digest", Environment: "production"}, KeyPrefix: "fsk_x", Details: json.RawMessage(`{"n":1}`)}
	if mut != nil {
		mut(e)
	}
	return e
}

func (w *world) put(t testing.TB, events ...*Event) int {
	t.Helper()
	batch := make([]Received, len(events))
	for i, e := range events {
		batch[i] = Received{e, e.AppendJSON(nil)}
	}
	n, err := w.Put(t.Context(), batch)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func ptr[T any](v T) *T { return &v }
