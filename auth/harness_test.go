package auth

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
)

var errDown = errors.New("connection refused")

// database is Truth in memory, with a clock of its own, a switch for outages and a gate that holds an answer back after
// it was read, as a slow network does.
type database struct {
	now  func() time.Time
	skew time.Duration // of its clock against the edges'

	mu       sync.Mutex // guards the following
	keys     map[string]Record
	changes  []Change
	version  int64
	stamps   map[string]Stamp
	batches  []int
	reported map[string]time.Time
	down     error         // all questions fail with it
	feedDown error         // only Changes does
	hang     bool          // all questions wait for their context
	gate     chan struct{} // the next answer of Key waits here
	held     chan struct{} // closed when it does

	asked  atomic.Int64 // questions about keys
	probed atomic.Int64 // probes
}

func newDatabase(now func() time.Time) *database {
	return &database{now: now, skew: 37 * time.Minute, keys: map[string]Record{}, stamps: map[string]Stamp{}, reported: map[string]time.Time{}}
}

func (d *database) clock() time.Time { return d.now().Add(d.skew).Round(0) }

func (d *database) outage(ctx context.Context) error {
	d.mu.Lock()
	down, hang := d.down, d.hang
	d.mu.Unlock()
	if hang {
		<-ctx.Done()
		return ctx.Err()
	}
	return down
}

func (d *database) set(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f()
}

// lastReport is how far an edge has said it is; false if it has said nothing.
func (d *database) lastReport(edge string) (time.Time, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	at, ok := d.reported[edge]
	return at, ok
}

func (d *database) truth() Truth {
	return Truth{
		Key: func(ctx context.Context, prefix string) (Record, error) {
			if prefix == probePrefix { // no look-up: it neither counts nor is held
				d.probed.Add(1)
				if err := d.outage(ctx); err != nil {
					return Record{}, err
				}
				return Record{}, ErrNoKey
			}
			d.asked.Add(1)
			err := d.outage(ctx)
			if err != nil {
				return Record{}, err
			}
			d.mu.Lock()
			rec, ok := d.keys[prefix]
			gate, held := d.gate, d.held
			d.gate, d.held = nil, nil
			d.mu.Unlock()
			if gate != nil {
				close(held)
				<-gate
			}
			if !ok {
				return Record{}, ErrNoKey
			}
			return rec, nil
		},
		AccountKey: func(ctx context.Context, org, id string) (string, error) {
			return d.find(ctx, func(p Principal) bool { return p.Org == org && p.ID == id })
		},
		AccountKeyByName: func(ctx context.Context, org, name, env string) (string, error) {
			return d.find(ctx, func(p Principal) bool {
				return p.Org == org && strings.EqualFold(p.Name, strings.TrimSpace(name)) && p.Environment == env
			})
		},
		Changes: func(ctx context.Context, since time.Time) ([]Change, time.Time, error) {
			now := d.clock()
			err := d.outage(ctx)
			if err != nil {
				return nil, time.Time{}, err
			}
			d.mu.Lock()
			defer d.mu.Unlock()
			if d.feedDown != nil {
				return nil, time.Time{}, d.feedDown
			}
			var out []Change
			for _, ch := range d.changes {
				if !ch.At.Before(since) {
					out = append(out, ch)
				}
			}
			return out, now, nil
		},
		ReportEdge: func(ctx context.Context, edge string, at time.Time, _ time.Duration) error {
			err := d.outage(ctx)
			d.set(func() { d.reported[edge] = at })
			return err
		},
		Stamp: func(ctx context.Context, stamps []Stamp) error {
			err := d.outage(ctx)
			if err != nil {
				return err
			}
			d.mu.Lock()
			defer d.mu.Unlock()
			d.batches = append(d.batches, len(stamps))
			for _, s := range stamps {
				old, ok := d.stamps[s.Prefix]
				if ok && old.First.Before(s.First) {
					s.First = old.First
				}
				if ok && old.Last.After(s.Last) {
					s.Last = old.Last
				}
				d.stamps[s.Prefix] = s
			}
			return nil
		},
	}
}

func (d *database) find(ctx context.Context, is func(Principal) bool) (string, error) {
	d.asked.Add(1)
	err := d.outage(ctx)
	if err != nil {
		return "", err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for prefix, rec := range d.keys {
		if rec.RevokedAt.IsZero() && is(rec.Principal) {
			return prefix, nil
		}
	}
	return "", ErrNoKey
}

// create makes an account with one key.
func (d *database) create(name string) (string, Credentials) {
	raw, key := MintKey(KindServiceAccount)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.version++
	d.keys[key.Prefix()] = Record{Prefix: key.Prefix(), Hash: key.Hash, Version: d.version, Principal: Principal{
		Org: "acme", Kind: KindServiceAccount, ID: "sa_" + name, Name: name, Environment: Production, AbuseDetection: true, KeyPrefix: key.Prefix(),
	}}
	d.changes = append(d.changes, Change{Prefix: key.Prefix(), Version: d.version, At: d.clock()})
	return raw, Credentials{Key: key}
}

// change commits an edit of the record and returns its row.
func (d *database) change(cred Credentials, edit func(*Record)) Change {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.version++
	rec := d.keys[cred.Key.Prefix()]
	edit(&rec)
	rec.Version = d.version
	d.keys[rec.Prefix] = rec
	ch := Change{Prefix: rec.Prefix, Version: d.version, At: d.clock()}
	d.changes = append(d.changes, ch)
	return ch
}

func (d *database) revoke(cred Credentials) Change {
	return d.change(cred, func(r *Record) { r.RevokedAt = d.clock() })
}

// hold makes the next answer of Key wait until release is called; held is closed once it has been read.
func (d *database) hold() (<-chan struct{}, func()) {
	gate, held := make(chan struct{}), make(chan struct{})
	d.set(func() { d.gate, d.held = gate, held })
	return held, func() { close(gate) }
}

// clockwork is a clock that runs and can be moved on.
type clockwork struct{ offset atomic.Int64 }

func (c *clockwork) now() time.Time          { return time.Now().Add(time.Duration(c.offset.Load())) }
func (c *clockwork) advance(d time.Duration) { c.offset.Add(int64(d)) }

func newChain(t *testing.T, d *database, edit func(*ChainConfig)) *Chain {
	t.Helper()
	cfg := ChainConfig{
		Truth:      d.truth(),
		EdgeID:     "edge-1",
		Registerer: prometheus.NewRegistry(),
		Logger:     slog.New(slog.DiscardHandler),
		Now:        d.now,
	}
	if edit != nil {
		edit(&cfg)
	}
	c, err := NewChain(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// eachRedis runs the test on miniredis, and on the real one where there is one.
func eachRedis(t *testing.T, f func(t *testing.T, r *testRedis)) {
	t.Run("miniredis", func(t *testing.T) {
		m := miniredis.RunT(t)
		f(t, openTestRedis(t, "redis://"+m.Addr()))
	})
	url := os.Getenv("TEST_REDIS_URL")
	if url == "" {
		if os.Getenv("SLUICE_REQUIRE_SERVICES") == "1" {
			t.Error("TEST_REDIS_URL is not set")
		}
		return
	}
	t.Run("redis", func(t *testing.T) { f(t, openTestRedis(t, url)) })
}

type testRedis struct {
	redis.UniversalClient
	prefix string
	proxy  *proxy
	url    string // of the server itself, past the proxy
}

func openTestRedis(t *testing.T, url string) *testRedis {
	t.Helper()
	o, err := redis.ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	p := newProxy(t, o.Addr)
	client, err := OpenRedis("redis://" + p.addr() + "/" + strconv.Itoa(o.DB))
	if err != nil {
		t.Fatal(err)
	}
	direct := redis.NewClient(o)
	r := &testRedis{UniversalClient: client, prefix: "test-" + appendRandomString(8) + ":", proxy: p, url: url}
	t.Cleanup(func() {
		ctx := context.Background()
		it := direct.Scan(ctx, 0, r.prefix+"*", 1000).Iterator()
		for it.Next(ctx) {
			direct.Del(ctx, it.Val())
		}
		_ = direct.Close()
		_ = client.Close()
	})
	return r
}

func appendRandomString(n int) string { return string(appendRandom(nil, n)) }

func (r *testRedis) use(cfg *ChainConfig) {
	cfg.Redis = r
	cfg.KeyPrefix = r.prefix
	cfg.Bounds.Redis = 200 * time.Millisecond // the machine is shared; the matrix shortens it again
}

var anywhere = netip.MustParseAddr("192.0.2.7")

func accepted(t *testing.T, c *Chain, cred Credentials) Identity {
	t.Helper()
	i, err := c.Authenticate(t.Context(), cred, anywhere)
	if err != nil {
		t.Fatalf("refused: %v", err)
	}
	return i
}

func refused(t *testing.T, c *Chain, cred Credentials, want RefusalReason) {
	t.Helper()
	_, err := c.Authenticate(t.Context(), cred, anywhere)
	var r *Refusal
	if !errors.As(err, &r) || r.Reason != want || !errors.Is(err, ErrUnknownKey) {
		t.Fatalf("got %v, want a refusal: %s", err, want)
	}
}

func unavailable(t *testing.T, c *Chain, cred Credentials) {
	t.Helper()
	_, err := c.Authenticate(t.Context(), cred, anywhere)
	if !errors.Is(err, ErrUnavailable) {
		t.Fatalf("got %v, want ErrUnavailable", err)
	}
}

func reads(t *testing.T, c *Chain) {
	t.Helper()
	err := c.readFeed(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if c.shared != nil {
		propagates(t, c)
	}
}

func propagates(t *testing.T, c *Chain) {
	t.Helper()
	err := c.propagate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
}

// eventually polls for something that another goroutine is about to do.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for !is() {
		select {
		case <-deadline:
			t.Fatal("never: " + what)
		case <-time.After(time.Millisecond):
		}
	}
}

// counted sums a metric over its labels.
func counted(t *testing.T, c *Chain, name string) float64 {
	t.Helper()
	families, err := c.cfg.Registerer.(*prometheus.Registry).Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return sum
}
