package auth

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	stampBatch   = 5000            // stamps a statement: a lock of milliseconds, well under any parameter limit
	stampTimeout = 5 * time.Second // for one batch
	maxPending   = 1_000_000       // keys with stamps that could not be written yet
	minute       = int64(time.Minute)
)

// A keyState is what one edge remembers of a key apart from its record: it lives on when the record is refreshed.
type keyState struct {
	id       PublicID
	first    atomic.Int64 // earliest touch, unix ms; 0 for none yet
	last     atomic.Int64 // latest touch, unix ms
	queued   atomic.Bool  // in seen.dirty
	misuse   atomic.Int64 // chain time of the last report of use after revocation; 0 for none
	requests bucket
	bytes    bucket
	usage    usageCounts
}

// seen collects which keys were used since the last flush. The hot path is two loads and one swap per touch; the lock
// is taken once per key and flush.
type seen struct {
	mu    sync.Mutex
	dirty []*keyState // guarded by mu

	flushing sync.Mutex         // one flush at a time, so that the last one at stop comes after all others
	pending  map[PublicID]Stamp // guarded by flushing: read from the states, not yet in the database
}

// Touch notes that the key was used at t, the edge's receive time. Call it once for a request of which at least one
// record was accepted or filtered. It is one atomic swap, and safe for concurrent use.
func (i Identity) Touch(t time.Time) {
	s, ms := i.state, t.UnixMilli()
	for old := s.last.Load(); ms > old; old = s.last.Load() {
		if s.last.CompareAndSwap(old, ms) {
			break
		}
	}
	for old := s.first.Load(); old == 0 || ms < old; old = s.first.Load() {
		if s.first.CompareAndSwap(old, ms) {
			break
		}
	}
	// After the times: a flush lowers the flag before it reads them, so that nothing falls between.
	if !s.queued.Load() && s.queued.CompareAndSwap(false, true) {
		i.chain.seen.mu.Lock()
		i.chain.seen.dirty = append(i.chain.seen.dirty, s)
		i.chain.seen.mu.Unlock()
	}
}

// FlushStamps writes the first and last use of all keys that were used since the last call, at most 5,000 a statement,
// in order of prefix so that two edges never wait for each other in a circle. What cannot be written is kept, one stamp a
// key, and tried again with the next call. Run calls it each second and once at its end.
func (c *Chain) FlushStamps(ctx context.Context) error {
	s := &c.seen
	s.flushing.Lock()
	defer s.flushing.Unlock()
	s.mu.Lock()
	dirty := s.dirty
	s.dirty = nil
	s.mu.Unlock()
	for _, st := range dirty {
		st.queued.Store(false)
		s.add(c.metrics, st)
	}
	if len(s.pending) == 0 {
		return nil
	}
	stamps := make([]Stamp, 0, len(s.pending))
	for _, st := range s.pending {
		stamps = append(stamps, st)
	}
	slices.SortFunc(stamps, func(a, b Stamp) int { return strings.Compare(a.Prefix, b.Prefix) })
	var failed error
	for batch := range slices.Chunk(stamps, stampBatch) {
		err := c.stamp(ctx, batch)
		if err != nil {
			failed = errors.Join(failed, err)
			break // the rest would only wait for the same outage
		}
		for _, st := range batch {
			id, _ := ParsePrefix(st.Prefix)
			delete(s.pending, id)
		}
		c.metrics.stamped.Add(float64(len(batch)))
	}
	c.metrics.stampsPending.Set(float64(len(s.pending)))
	if failed != nil {
		c.metrics.stampErrors.Inc()
		return fmt.Errorf("stamp last use: %w", failed)
	}
	return nil
}

func (c *Chain) stamp(ctx context.Context, batch []Stamp) error {
	ctx, cancel := context.WithTimeout(ctx, stampTimeout)
	defer cancel()
	return c.cfg.Truth.Stamp(ctx, batch)
}

func (s *seen) add(m *metrics, st *keyState) {
	stamp := Stamp{Prefix: st.id.String(), First: time.UnixMilli(st.first.Load()), Last: time.UnixMilli(st.last.Load())}
	old, ok := s.pending[st.id]
	switch {
	case ok:
		if old.First.Before(stamp.First) {
			stamp.First = old.First
		}
		if old.Last.After(stamp.Last) {
			stamp.Last = old.Last
		}
	case len(s.pending) >= maxPending:
		m.stampsDropped.Inc()
		return
	}
	s.pending[st.id] = stamp
}
