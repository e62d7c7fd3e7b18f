package auth

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/netip"
	"sync"
)

// maxFlights bounds the look-ups under way: beyond it a flood is refused before it costs more than a map look-up.
const maxFlights = 8192

// A flightKey names a whole key, secret included: who tries somebody else's prefix shares nothing with them. A zero
// hash is the look-up of a subject, which shows no secret.
type flightKey struct {
	id   PublicID
	hash [32]byte
}

type flight struct {
	done  chan struct{} // closed when the fields below are set
	entry *entry        // not nil unless err is
	tier  string        // what answered; see Identity.Tier
	err   error
}

type flights struct {
	mu sync.Mutex
	m  map[flightKey]*flight // guarded by mu
}

// join returns the flight of the key, and whether the caller has to fly it; false at last when there are too many.
func (fs *flights) join(k flightKey) (*flight, bool, bool) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if f, ok := fs.m[k]; ok {
		return f, false, true
	}
	if len(fs.m) >= maxFlights {
		return nil, false, false
	}
	f := &flight{done: make(chan struct{})}
	fs.m[k] = f
	return f, true, true
}

// fly makes the look-up, on a goroutine of its own: it belongs to everybody who waits, not to the request that began it.
func (c *Chain) fly(f *flight, k flightKey, remote netip.Addr) {
	ctx, cancel := context.WithTimeout(context.Background(), c.cfg.Bounds.Answer)
	defer cancel()
	e, news, err := c.fill(ctx, k, remote)
	f.entry, f.err, f.tier = e, err, "redis"
	switch {
	case err == nil && news:
		f.tier = "postgres"
	case err == nil && e.grace != 0:
		f.tier = "stale"
	}
	c.flights.mu.Lock()
	delete(c.flights.m, k) // before done, so that whoever finds the entry behind begins a new one
	c.flights.mu.Unlock()
	close(f.done)
	if c.shared == nil || !news {
		return
	}
	if err != nil {
		c.forgetShared(k.id)
		return
	}
	c.storeShared(k.id, e) // nobody waits for this
}

// fill looks into Redis, then Truth. It reports whether Redis should learn what Truth said: the record, or that there is
// none after all.
func (c *Chain) fill(ctx context.Context, k flightKey, remote netip.Addr) (*entry, bool, error) {
	// known is the best record at hand. It may be stale; it is never older than recent.
	var known *entry
	if e, ok := c.l1.GetIfPresent(k.id); ok && !c.behind(k.id, e) {
		known = e
	}
	known = c.better(ctx, k.id, known)
	if known != nil {
		now := c.clock()
		wrong := k.hash != [32]byte{} && subtle.ConstantTimeCompare(known.rec.Hash[:], k.hash[:]) == 0
		if !wrong && known.rec.RevokedAt.IsZero() && k.hash != [32]byte{} {
			c.budget.vouch(now, remote)
		}
		if wrong || !known.rec.RevokedAt.IsZero() || c.fresh(known, now) {
			return c.insert(k.id, known), false, nil
		}
	}
	// The key of a subject was named by Truth itself, so it is no guess of a stranger either.
	e, err := c.askTruth(ctx, k, known != nil || k.hash == [32]byte{}, remote)
	if err == nil || errors.Is(err, ErrNoKey) {
		return e, err == nil || known != nil, err // what no cache held need not be forgotten there
	}
	now := c.clock()
	if known == nil || c.behind(k.id, known) || now-c.lastGood(known) > int64(c.cfg.MaxStale) {
		return nil, false, err
	}
	if errors.Is(err, errOverSlots) && !c.readsFeed(now) && c.truthUp.answeredSince(now-int64(c.cfg.Bounds.Answer)) {
		return nil, false, err // the database answers others meanwhile: a revocation may be old, and nobody would learn of it
	}
	c.noteStale(now)
	stale := *known
	stale.grace = min(now+int64(c.cfg.Bounds.Grace), c.lastGood(known)+int64(c.cfg.MaxStale))
	return c.serveStale(k.id, &stale), false, nil
}

// serveStale keeps the stale entry for its grace, so that a busy key asks Redis and Truth once a second, not each time.
func (c *Chain) serveStale(id PublicID, e *entry) *entry {
	got := c.insert(id, e)
	if got.rec.Version > e.rec.Version {
		return got
	}
	return e
}

// askTruth asks the database within its budgets, and caches what it says.
func (c *Chain) askTruth(ctx context.Context, k flightKey, known bool, remote netip.Addr) (*entry, error) {
	if !c.truthUp.allow(c.clock()) {
		c.metrics.overBreaker.Inc()
		return nil, errBreaker
	}
	if known {
		return c.askWithin(ctx, k, known)
	}
	paid, err := c.budget.pay(c.clock(), remote)
	if err != nil {
		c.metrics.overBudget(err)
		return nil, err
	}
	e, err := c.askWithin(ctx, k, known)
	switch {
	case err == nil && k.hash == e.rec.Hash:
		c.budget.payBack(paid)
		paid.from.good.Store(c.clock())
	case err != nil && !errors.Is(err, ErrNoKey): // the database said nothing, so this was no miss
		c.budget.payBack(paid)
	}
	return e, err
}

// askWithin is askTruth once it is paid for.
func (c *Chain) askWithin(ctx context.Context, k flightKey, known bool) (*entry, error) {
	// Half of the time is for the wait, the other for the answer.
	wait, cancel := context.WithTimeout(ctx, c.cfg.Bounds.Answer/2)
	err := c.budget.enter(wait, known)
	cancel()
	if err != nil {
		c.metrics.overBudget(err)
		return nil, err
	}
	defer c.budget.leave(known)
	for range 2 {
		least := c.recent.version(k.id)
		begun := c.clock()
		rec, err := c.truthKey(ctx, k.id)
		switch {
		case errors.Is(err, ErrNoKey):
			c.misses.Set(k.id, miss{version: least, at: begun})
			c.l1.Invalidate(k.id)
			return nil, ErrNoKey
		case err != nil:
			return nil, err
		}
		e := c.insert(k.id, c.newEntry(rec, nil, begun))
		if !c.behind(k.id, e) || !e.rec.RevokedAt.IsZero() {
			return e, nil
		}
		// The key changed while Truth was answering: ask again, and the answer holds the change.
	}
	c.metrics.truthBehind.Inc()
	return nil, errBehind
}

// truthKey is one question to the database, with its time, its breaker and its metrics.
func (c *Chain) truthKey(ctx context.Context, id PublicID) (Record, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Bounds.Truth)
	defer cancel()
	prefix := id.String()
	begun := c.clock()
	rec, err := c.cfg.Truth.Key(ctx, prefix)
	c.metrics.truthSeconds.Observe(float64(c.clock()-begun) / 1e9)
	switch {
	case err == nil && rec.Prefix != prefix:
		err = fmt.Errorf("the database answered %s with the record of %q", prefix, rec.Prefix)
	case err == nil:
		c.truthUp.success(c.clock())
		c.metrics.truthHit.Inc()
		return rec, nil
	case errors.Is(err, ErrNoKey):
		c.truthUp.success(c.clock())
		c.metrics.truthMiss.Inc()
		return Record{}, ErrNoKey
	}
	c.truthUp.failure(c.clock())
	c.metrics.truthError.Inc()
	return Record{}, err
}
