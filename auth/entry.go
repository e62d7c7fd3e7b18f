package auth

import (
	"time"

	"github.com/maypok86/otter/v2"
)

// An entry is a record in L1, with what decides how far to trust it. It is immutable, but for its state.
type entry struct {
	state   *keyState
	rec     Record
	stub    bool  // the record is out of date and gone; only the state is kept, for the entry that follows
	checked int64 // chain time when the statement began with which Truth answered
	vouched int64 // chain time until which a feed is known to have held nothing newer; at least checked
	oldest  int64 // chain time after which the feed's word is not enough any more
	grace   int64 // chain time until which a failure of Truth is new enough not to try again; 0 for none
}

// A miss remembers that a prefix did not exist.
type miss struct {
	version int64 // what recent said before Truth was asked
	at      int64 // chain time of the question
}

// A feedState is what one read of the changes established. It is immutable.
type feedState struct {
	readAt    int64     // chain time when the statement was sent
	from      int64     // chain time: all changes since then are known, as of readAt
	fromDB    time.Time // the same by the database's clock
	dbNow     time.Time // the database's clock when the statement began
	low, high int64     // the database's clock in unix ns is between chain time + low and chain time + high
}

func (c *Chain) newEntry(rec Record, state *keyState, checked int64) *entry {
	if state == nil {
		state = &keyState{id: mustID(rec.Prefix)}
	}
	// A tenth of jitter, so that keys that were first used together are not all asked for in the same second an hour later.
	jitter := int64(c.cfg.Bounds.MaxAge) / 10 * int64(rec.Hash[0]) / 256
	return &entry{state: state, rec: rec, checked: checked, vouched: checked, oldest: checked + int64(c.cfg.Bounds.MaxAge) - jitter}
}

func mustID(prefix string) PublicID {
	id, ok := ParsePrefix(prefix)
	if !ok {
		panic("BUG: record with the prefix " + prefix)
	}
	return id
}

// behind reports whether a newer version of the entry's record is known to exist. Every answer goes by here after its
// last wait, which is what makes revocation true.
func (c *Chain) behind(id PublicID, e *entry) bool {
	return e.stub || e.rec.Version < c.recent.version(id)
}

// fresh reports whether the entry may be served without asking anybody, provided it is not behind.
func (c *Chain) fresh(e *entry, now int64) bool {
	current := int64(c.cfg.Bounds.Current)
	if now-e.checked <= current {
		return true
	}
	f := c.feed.Load()
	return c.readsFeed(now) && e.checked >= f.from && now <= e.oldest
}

// readsFeed reports whether the changes were read so lately that this edge knows of a revocation as soon as it may.
func (c *Chain) readsFeed(now int64) bool {
	f := c.feed.Load()
	return f != nil && now-f.readAt <= int64(c.cfg.Bounds.Current)
}

// lastGood is the last moment at which the entry was known to be right. MaxStale counts from there.
func (c *Chain) lastGood(e *entry) int64 {
	good := e.vouched
	if f := c.feed.Load(); f != nil && e.checked >= f.from {
		good = max(good, min(f.readAt, e.checked+int64(c.cfg.Bounds.MaxAge)))
	}
	return good
}

// insert puts the entry into L1 unless a newer one is there, and returns the one that is there after it. The state of the
// key carries over from whatever was there before.
func (c *Chain) insert(id PublicID, e *entry) *entry {
	actual, _ := c.l1.Compute(id, func(old *entry, found bool) (*entry, otter.ComputeOp) {
		if !found {
			return e, otter.WriteOp
		}
		if !old.stub && outranks(old, e) {
			return old, otter.CancelOp
		}
		next := *e
		next.state = old.state
		return &next, otter.WriteOp
	})
	return actual
}

// outranks reports whether a is the better of two answers for one key. Answers that raced are told apart by version; but
// a lower version that Truth gave a minute later means that the database went back, to a backup, and it is the truth.
func outranks(a, b *entry) bool {
	if a.rec.Version > b.rec.Version {
		return b.checked-a.checked < minute
	}
	return a.rec.Version == b.rec.Version && a.checked > b.checked
}

// drop takes a record older than version out of L1 and leaves the key's state. A record known to be revoked stays: no
// later version is any better, and it must be refused even when Truth is away.
func (c *Chain) drop(id PublicID, version int64) {
	c.l1.ComputeIfPresent(id, func(old *entry) (*entry, otter.ComputeOp) {
		if old.stub || old.rec.Version >= version || !old.rec.RevokedAt.IsZero() {
			return old, otter.CancelOp
		}
		return &entry{state: old.state, stub: true}, otter.WriteOp
	})
}

// dbTime converts chain time to the database's clock, never too late. chainTime converts back, never too late either:
// a round trip through another edge can only make a record look older than it is.
func (c *Chain) dbTime(at int64) int64 {
	if f := c.feed.Load(); f != nil {
		return at + f.low
	}
	return at + c.guessedClock()
}

func (c *Chain) chainTime(db int64) int64 {
	if f := c.feed.Load(); f != nil {
		return min(db-f.high, c.clock())
	}
	return min(db-c.guessedClock(), c.clock())
}

// guessedClock is the database's clock less the chain's until the feed was read once: as Redis tells it, else by the
// machine's own clock.
func (c *Chain) guessedClock() int64 {
	if c.shared != nil {
		if d := c.shared.pending.dbClock.Load(); d != 0 {
			return d
		}
	}
	return c.start.UnixNano()
}
