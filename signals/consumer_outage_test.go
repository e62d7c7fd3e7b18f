package signals

import (
	"database/sql"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// awaitPaused waits until a consumer says that it is paused, 1, or not, 0.
func awaitPaused(t *testing.T, reg *prometheus.Registry, want int) {
	t.Helper()
	metrics := fmt.Sprintf(`
		# HELP sluice_alerts_paused 1 while the alerts consumer waits for its store or for the dead letters' topic.
		# TYPE sluice_alerts_paused gauge
		sluice_alerts_paused %d
	`, want)
	eventually(t, "paused", func() error {
		return testutil.GatherAndCompare(reg, strings.NewReader(metrics), "sluice_alerts_paused")
	})
}

func TestConsumerWaitsForItsStore(t *testing.T) {
	s := fakeStream(t)
	w := newWorld(t, SQLite)
	path := w.file(t)
	locked, err := sql.Open("sqlite", "file:"+path+"?_pragma=busy_timeout(20)&_txlock=immediate")
	if err != nil {
		t.Fatal(err)
	}
	defer locked.Close()
	if _, err := w.db.ExecContext(t.Context(), `PRAGMA busy_timeout = 20`); err != nil {
		t.Fatal(err)
	}
	reg := prometheus.NewRegistry()
	consume(t, s, w.Store, &letters{}, reg)
	s.send(t, values(0, 5)...)
	w.awaitCount(t, 5)
	tx, err := locked.BeginTx(t.Context(), nil) // the only writer that there may be
	if err != nil {
		t.Fatal(err)
	}
	s.send(t, values(5, 50)...)
	awaitPaused(t, reg, 1)
	if n := w.count(t); n != 5 {
		t.Errorf("%d alerts while the store is away", n)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	w.awaitCount(t, 50)
	awaitPaused(t, reg, 0)
}

// file is where SQLite keeps the world.
func (w *world) file(t testing.TB) string {
	t.Helper()
	var seq int
	var name, path string
	if err := w.db.QueryRowContext(t.Context(), `PRAGMA database_list`).Scan(&seq, &name, &path); err != nil {
		t.Fatal(err)
	}
	return path
}

// A wire is the way to a server, which can be cut and mended.
type wire struct {
	ln     net.Listener
	target string

	mu    sync.Mutex
	cut   bool       // guarded by mu
	conns []net.Conn // guarded by mu
}

func newWire(t *testing.T, target string) *wire {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{ln: ln, target: target}
	go w.serve()
	t.Cleanup(func() {
		_ = ln.Close()
		w.set(true)
	})
	return w
}

func (w *wire) serve() {
	for {
		from, err := w.ln.Accept()
		if err != nil {
			return
		}
		to, err := net.Dial("tcp", w.target)
		if err != nil || !w.keep(from, to) {
			_ = from.Close()
			continue
		}
		pipe := func(dst, src net.Conn) {
			_, _ = io.Copy(dst, src)
			_ = dst.Close()
		}
		go pipe(to, from)
		go pipe(from, to)
	}
}

// keep notes a connection and its other half, unless the wire is cut.
func (w *wire) keep(from, to net.Conn) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cut {
		_ = to.Close()
		return false
	}
	w.conns = append(w.conns, from, to)
	return true
}

// set cuts the wire, with all that is connected, or mends it.
func (w *wire) set(cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = cut
	for _, c := range w.conns {
		_ = c.Close()
	}
	w.conns = nil
}

// over is the store of a world in PostgreSQL, reached over a wire.
func (w *world) over(t *testing.T, through *wire) *Store {
	t.Helper()
	u, err := url.Parse(os.Getenv("TEST_DATABASE_URL"))
	if err != nil {
		t.Fatal("TEST_DATABASE_URL is not a URL")
	}
	var name string
	if err := w.db.QueryRowContext(t.Context(), `SELECT current_database()`).Scan(&name); err != nil {
		t.Fatal(err)
	}
	u.Host, u.Path = through.ln.Addr().String(), "/"+name
	db, err := sql.Open("pgx", u.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return NewStore(StoreConfig{Writer: db, Dialect: Postgres, Now: w.clock})
}

// TestConsumerOutlivesPostgres cuts the consumer off from PostgreSQL, at rest and in the middle of its work: it pauses, and what came meanwhile is stored once it
// is back, each signal once.
func TestConsumerOutlivesPostgres(t *testing.T) {
	address := os.Getenv("TEST_DATABASE_URL")
	if address == "" {
		if os.Getenv("SLUICE_REQUIRE_SERVICES") == "1" {
			t.Fatal("TEST_DATABASE_URL is not set")
		}
		t.Skip("TEST_DATABASE_URL is not set")
	}
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal("TEST_DATABASE_URL is not a URL")
	}
	eachKafka(t, func(t *testing.T, s *stream) {
		w := newWorld(t, Postgres)
		through := newWire(t, u.Host)
		l, reg := &letters{}, prometheus.NewRegistry()
		stop := consume(t, s, w.over(t, through), l, reg)
		s.send(t, values(0, 10)...)
		w.awaitCount(t, 10)

		through.set(true)
		s.send(t, values(10, 60)...)
		awaitPaused(t, reg, 1)
		if n := w.count(t); n != 10 {
			t.Errorf("%d alerts while the store is away", n)
		}
		through.set(false)
		w.awaitCount(t, 60)
		awaitPaused(t, reg, 0)

		// Cut as soon as it has begun with what was sent: a batch may be stored and not yet known to be.
		n := 60
		for range 5 {
			s.send(t, values(n, n+200)...)
			eventually(t, "it begins", func() error {
				if w.count(t) == n {
					return fmt.Errorf("%d alerts still", n)
				}
				return nil
			})
			through.set(true)
			s.send(t, values(n+200, n+210)...)
			awaitPaused(t, reg, 1)
			through.set(false)
			n += 210
			w.awaitCount(t, n)
		}
		awaitPaused(t, reg, 0)
		stop()
		if dead := l.all(); len(dead) != 0 {
			t.Errorf("%d signals are dead letters", len(dead))
		}
		if got := w.count(t); got != n {
			t.Errorf("%d alerts, want %d", got, n)
		}
	})
}
