// Package auth says who a key speaks for, fast and truthfully: the format of keys, the look-up chain in front of the
// database, revocation that reaches every edge, the stamps of first and last use, the limits of a key, and who may do what
// in the console.
//
// # What it promises
//
// A [Chain] answers from three tiers: L1 in process, Redis, Truth (the database, as functions). Each is keyed by the public
// part of the key; the hash of the whole key is compared after, in constant time. A key's record carries a version, which
// rises with every edit and with the revocation, and the time at which Truth last answered for it, which copying between
// tiers never renews. The feed of changes is read each second and raises the least version that may be used, key by key
// (see recent); whatever is older is a miss, wherever it comes from. So neither a fill in flight, nor an evicted entry,
// nor Redis restored from an old snapshot brings a revoked key back, and after [Chain.Apply] has returned no request
// that starts later is accepted by this process.
//
// # How it fails
//
// A record is good while the feed is current (read within 10 s) and reaches back before the record was checked, for
// about an hour; or within 10 s of its check. After that Truth is asked. When Truth fails, known keys are served until
// MaxStale after the last moment at which they were known to be good; then, like unknown keys from the start, they get
// [ErrUnavailable]: 503, never 401, when nobody can say. A key known to be revoked stays refused. Redis failing costs
// tens of milliseconds and then nothing (a breaker); Truth is asked instead, within its budgets. An answer takes less than
// a second, whatever is away.
//
// All times inside are of the process's monotonic clock or of the database's clock, which the feed brings along; a wrong
// clock of the machine matters only to an edge that starts while the database is away.
package auth

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/singleflight"
)

// Truth is what auth asks of the database, always of the primary: a replica could answer with a key that is revoked
// already. All functions are called from several goroutines and must honour their context.
type Truth struct {
	// Key returns the record of a prefix, revoked or not; ErrNoKey where there never was one.
	Key func(ctx context.Context, prefix string) (Record, error)
	// AccountKey returns the prefix of the newest key of an account; ErrNoKey where there is none.
	AccountKey func(ctx context.Context, org, id string) (string, error)
	// AccountKeyByName is AccountKey for the live account of that name and environment.
	AccountKeyByName func(ctx context.Context, org, name, environment string) (string, error)
	// Changes returns all changes with At >= since, in any order, and the database's clock when the statement began.
	// A since in the far future returns none, and so only the clock.
	Changes func(ctx context.Context, since time.Time) ([]Change, time.Time, error)
	// ReportEdge says that this edge has applied all changes committed before appliedAt, by the database's clock, zero for none yet, and that
	// it serves what it knows for maxStale once it is cut off.
	ReportEdge func(ctx context.Context, edgeID string, appliedAt time.Time, maxStale time.Duration) error
	// Stamp writes first and last uses, never moving either the wrong way. It must be safe to repeat.
	Stamp func(ctx context.Context, stamps []Stamp) error
	// Use adds what was done with keys, each batch once. nil: nobody counts.
	Use func(ctx context.Context, batch UsageBatch) error
}

// A ChainConfig configures a Chain. Zero values mean the defaults named here.
type ChainConfig struct {
	Truth      Truth
	Redis      redis.UniversalClient // nil: no such tier. Open it with OpenRedis: it must honour contexts
	Wake       <-chan struct{}       // nil: none. Each receive makes the feed read early
	EdgeID     string                // reported with the feed; "" reports nothing
	Registerer prometheus.Registerer
	Logger     *slog.Logger
	Now        func() time.Time // time.Now

	// OnRevokedUse is called when a revoked key was tried with the right secret, at most once a minute for a key.
	// It runs on the request's goroutine and must not wait. May be nil.
	OnRevokedUse func(rec Record, remote netip.Addr)

	MaxKeys   int           // records in L1; 100,000 (about 0.9 KB each, senders apart)
	MaxMisses int           // remembered prefixes that do not exist; 10,000
	MaxStale  time.Duration // how long known keys outlive contact with the database; 15 min. No less than 10 s counts
	KeyPrefix string        // of the keys in Redis; "sluice:"

	// Budgets of look-ups in Truth. Keys with a record in L1 or Redis only share Concurrent.
	Concurrent      int // at once; 16. Unknown keys may hold half of them
	MissesPerSecond int // look-ups of keys that turn out not to exist; 500. A quarter is for addresses of good keys
	MissesPerSource int // the same for one address (IPv6: /64) a second; 100

	// MissesPerDetector bounds the look-ups of subjects that turn out not to exist, for one detector's key a second; 150. A
	// request that names more than some seven seconds' worth of them can never pass.
	MissesPerDetector int

	DefaultLimits Limits        // of keys that name none; zero: unlimited
	Burst         time.Duration // how much of a limit may be used at once; 2 s

	// The bounds of the design. Leave them zero in production; tests shorten them.
	Bounds Bounds
}

// Bounds are the times by which the chain works.
type Bounds struct {
	Current time.Duration // how old the last read of the feed, or the check of a record, may be; 10 s
	MaxAge  time.Duration // how long after its check a record may be good at all; 1 h
	Overlap time.Duration // how far back each read of the feed begins, because changes commit out of order; 60 s
	Poll    time.Duration // between two reads of the feed, flushes of stamps and reports; 1 s
	MissTTL time.Duration // how long a miss is remembered; 5 s
	Grace   time.Duration // how long a stale answer is repeated before Truth is tried again; 1 s
	Answer  time.Duration // the longest that one look-up takes; 900 ms
	Truth   time.Duration // for one question to the database; 500 ms
	Redis   time.Duration // for one question to Redis; 40 ms
}

// A Chain authenticates keys. Its methods are safe for concurrent use.
type Chain struct {
	cfg     ChainConfig
	start   time.Time // zero of the chain's clock
	metrics *metrics

	l1      *otter.Cache[PublicID, *entry]
	misses  *otter.Cache[PublicID, miss]
	hints   *otter.Cache[subjectKey, hint]
	asks    singleflight.Group // look-ups of subjects
	recent  recent
	flights flights
	budget  *budget
	feed    atomic.Pointer[feedState]
	applied atomic.Int64 // changes applied so far: the generation of hints
	seen    seen
	usage   *usage // nil where nobody counts
	truthUp breaker
	redisUp breaker
	shared  *sharedCache // nil without Redis
	stale   atomic.Int64 // chain time of the last stale answer; 0 for none
	report  chan time.Time
}

// An Identity is the subject of one request. Copy it freely; the Principal is shared and must not be changed.
type Identity struct {
	*Principal
	state *keyState
	chain *Chain
	tier  string
}

// Tier is what answered for the key: l1, redis, postgres, or stale where the tiers behind could not be asked.
func (id Identity) Tier() string { return cmp.Or(id.tier, "l1") }

// NewChain makes a chain. It asks nobody; call Run to keep it current. Without Run it is safe, but asks Truth about each key
// every 10 s.
func NewChain(cfg ChainConfig) (*Chain, error) {
	if cfg.Truth.Key == nil || cfg.Truth.Changes == nil || cfg.Truth.Stamp == nil ||
		cfg.Truth.AccountKey == nil || cfg.Truth.AccountKeyByName == nil || cfg.Truth.ReportEdge == nil {
		return nil, errors.New("auth: every function of Truth is needed")
	}
	if cfg.Registerer == nil || cfg.Logger == nil {
		return nil, errors.New("auth: Registerer and Logger are needed")
	}
	cfg.fill()
	c := &Chain{
		cfg:    cfg,
		start:  cfg.Now().Add(-time.Second), // so that zero is no time at all
		l1:     otter.Must(&otter.Options[PublicID, *entry]{MaximumSize: cfg.MaxKeys}),
		misses: otter.Must(&otter.Options[PublicID, miss]{MaximumSize: cfg.MaxMisses}),
		hints:  otter.Must(&otter.Options[subjectKey, hint]{MaximumSize: cfg.MaxMisses}),
		budget: newBudget(cfg),
		seen:   seen{pending: map[PublicID]Stamp{}},
		report: make(chan time.Time, 1),
	}
	c.recent.init()
	c.flights.m = map[flightKey]*flight{}
	m, err := newMetrics(cfg.Registerer, c)
	if err != nil {
		return nil, err
	}
	c.metrics = m
	if cfg.Redis != nil {
		c.shared = newSharedCache(cfg)
	}
	if cfg.Truth.Use != nil {
		c.usage = newUsage(cfg.Now(), cfg.EdgeID)
	}
	return c, nil
}

func (cfg *ChainConfig) fill() {
	orInt := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	or := func(v *time.Duration, d time.Duration) {
		if *v <= 0 {
			*v = d
		}
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.KeyPrefix == "" {
		cfg.KeyPrefix = "sluice:"
	}
	orInt(&cfg.MaxKeys, 100_000)
	orInt(&cfg.MaxMisses, 10_000)
	orInt(&cfg.Concurrent, 16)
	orInt(&cfg.MissesPerSecond, 500)
	orInt(&cfg.MissesPerSource, 100)
	orInt(&cfg.MissesPerDetector, 150)
	or(&cfg.MaxStale, 15*time.Minute)
	or(&cfg.Burst, 2*time.Second)
	or(&cfg.Bounds.Current, 10*time.Second)
	or(&cfg.Bounds.MaxAge, time.Hour)
	or(&cfg.Bounds.Overlap, time.Minute)
	or(&cfg.Bounds.Poll, time.Second)
	or(&cfg.Bounds.MissTTL, 5*time.Second)
	or(&cfg.Bounds.Grace, time.Second)
	or(&cfg.Bounds.Answer, 900*time.Millisecond)
	or(&cfg.Bounds.Truth, 500*time.Millisecond)
	or(&cfg.Bounds.Redis, 40*time.Millisecond)
}

// clock is the chain's time: nanoseconds since start, by the monotonic clock.
func (c *Chain) clock() int64 { return int64(c.cfg.Now().Sub(c.start)) }

// window is how far back changes matter: nothing is served that was checked longer ago.
func (c *Chain) window() time.Duration { return c.cfg.Bounds.MaxAge + c.cfg.MaxStale }

// Run reads the feed of changes, reports this edge, keeps Redis and writes stamps and usage, until ctx ends; then it flushes
// both a last time, for up to five seconds. Trouble is logged, measured and tried again: Run returns an error only when
// that last flush fails. Call FlushStamps and FlushUsage once more if requests are still being answered when it returns.
func (c *Chain) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { c.runFeed(ctx) })
	wg.Go(func() { c.runReread(ctx) })
	wg.Go(func() { c.runReport(ctx) })
	wg.Go(func() { c.runStamps(ctx) })
	wg.Go(func() { c.runProbes(ctx) })
	if c.usage != nil {
		wg.Go(func() { c.runUsage(ctx) })
	}
	if c.shared != nil {
		wg.Go(func() { c.runShared(ctx) })
	}
	wg.Wait()
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), stampTimeout)
	defer cancel()
	return errors.Join(c.FlushStamps(last), c.FlushUsage(last))
}

func (c *Chain) runStamps(ctx context.Context) {
	tick := time.NewTicker(c.cfg.Bounds.Poll)
	defer tick.Stop()
	trouble := trouble{log: c.cfg.Logger, what: "stamps of first and last use"}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			err := c.FlushStamps(ctx)
			if ctx.Err() == nil {
				trouble.note(err)
			}
		}
	}
}

// A Status is the chain's state for /readyz and the console.
type Status struct {
	FeedLoaded bool          // changes were read at least once
	FeedAge    time.Duration // since the last read of changes began; 0 while there was none
	TruthUp    bool          // the breaker before the database is closed
	HasRedis   bool          // there is such a tier
	RedisUp    bool          // the breaker before Redis is closed; true where there is none
	Stale      bool          // stale records were served within the last 10 s
	Keys       int           // records in L1, about
}

// Status reports the state of the chain. It asks nobody.
func (c *Chain) Status() Status {
	now := c.clock()
	s := Status{TruthUp: c.truthUp.closed(), HasRedis: c.shared != nil, RedisUp: c.redisUp.closed(), Stale: c.servesStale(now), Keys: c.l1.EstimatedSize()}
	if f := c.feed.Load(); f != nil {
		s.FeedLoaded = true
		s.FeedAge = time.Duration(now - f.readAt)
	}
	return s
}

func (c *Chain) servesStale(now int64) bool {
	at := c.stale.Load()
	return at != 0 && now-at <= int64(10*time.Second)
}

// trouble logs when something begins to fail and when it works again, not each time in between.
type trouble struct {
	log  *slog.Logger
	what string
	bad  bool
}

func (t *trouble) note(err error) {
	switch {
	case err != nil && !t.bad:
		t.log.Warn(t.what+" failing", "error", err)
	case err == nil && t.bad:
		t.log.Info(t.what + " work again")
	}
	t.bad = err != nil
}
