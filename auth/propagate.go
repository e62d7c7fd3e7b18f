package auth

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	propagateBatch   = 500
	propagateTimeout = 2 * time.Second // for one batch; nobody waits for it
)

// pendingChanges are the changes that Redis may not have yet. A failed write leaves them here, so it needs no bound of its
// own: it holds at most what recent does.
type pendingChanges struct {
	mu   sync.Mutex
	m    map[PublicID]need // guarded by mu
	wake chan struct{}

	feed atomic.Int64 // the database's clock in unix ns up to which this edge has read the changes
	upTo atomic.Int64 // the same up to which Redis holds them, as Redis said last; 0: unknown

	dbClock atomic.Int64 // the database's clock less the chain's, as Redis tells it; 0: unknown
}

// A need is what Redis lacks of a change. The larger includes the smaller.
type need int

const (
	needVersion need = iota // the version alone
	needRecord              // the record too, where this edge is the first to write the version
	needFetch               // the record, which this edge was the first for and could not fetch
)

func (p *pendingChanges) add(id PublicID, what need) {
	p.mu.Lock()
	p.m[id] = max(p.m[id], what)
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *pendingChanges) takeAll() map[PublicID]need {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.m
	p.m = map[PublicID]need{}
	return m
}

func (p *pendingChanges) putBack(m map[PublicID]need) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, what := range m {
		p.m[id] = max(p.m[id], what)
	}
}

func (p *pendingChanges) len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.m)
}

// runShared brings every change into Redis, be it as a version alone, and moves the fleet's mark up to which it has done so.
func (c *Chain) runShared(ctx context.Context) {
	tick := time.NewTicker(c.cfg.Bounds.Poll)
	defer tick.Stop()
	trouble := trouble{log: c.cfg.Logger, what: "writes of changes to Redis"}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-c.shared.pending.wake:
		}
		err := c.propagate(ctx)
		if ctx.Err() != nil {
			return
		}
		trouble.note(err)
		if err != nil { // a wake must not turn an outage into a loop
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}
}

func (c *Chain) propagate(ctx context.Context) error {
	p := &c.shared.pending
	feed := p.feed.Load() // before the changes are taken: all up to here are among them, or were written already
	all := p.takeAll()
	err := c.writeChanges(ctx, all)
	p.putBack(all) // what is left: the mark may move past records that could not be fetched, their versions are there
	if err != nil {
		return err
	}
	return c.moveMark(ctx, feed)
}

// writeChanges writes versions, and removes from all what it has written. The first edge to write a version fetches the
// record too, so that Redis holds a revocation with its hash and principal when the database goes away; where it cannot, it tries again
// each second.
func (c *Chain) writeChanges(ctx context.Context, all map[PublicID]need) error {
	for batch := range slices.Chunk(slices.Collect(maps.Keys(all)), propagateBatch) {
		bctx, cancel := context.WithTimeout(ctx, propagateTimeout)
		cmds, err := c.shared.client.Pipelined(bctx, func(p redis.Pipeliner) error {
			for _, id := range batch {
				// The whole script each time: EVALSHA in a pipeline fails on whichever node has not seen it yet.
				p.Eval(bctx, keepHigher, []string{c.shared.key(id)}, digits(c.recent.version(id)), digits(0), "", c.shared.ttl)
			}
			return nil
		})
		cancel()
		if err != nil {
			return err
		}
		for i, id := range batch {
			first, _ := cmds[i].(*redis.Cmd).Int()
			fetch := all[id] == needFetch || first == 1 && all[id] == needRecord
			if fetch && !c.fetchChanged(ctx, id) {
				all[id] = needFetch
				continue
			}
			delete(all, id)
		}
	}
	return nil
}

// fetchChanged brings the record of a changed key into Redis, and reports whether nothing is left to do. Until then the version is there,
// and whoever needs the record asks for it.
func (c *Chain) fetchChanged(ctx context.Context, id PublicID) bool {
	if !c.truthUp.allow(c.clock()) {
		return false
	}
	begun := c.clock()
	rec, err := c.truthKey(ctx, id)
	if err != nil {
		return errors.Is(err, ErrNoKey)
	}
	ctx, cancel := context.WithTimeout(ctx, propagateTimeout)
	defer cancel()
	err = c.shared.put(ctx, rec, c.dbTime(begun))
	if err != nil {
		c.metrics.redisError.Inc()
	}
	return err == nil
}

// moveMark says in Redis that it holds all changes up to feed. Where the mark has gone back, Redis has lost writes (a
// snapshot restored, a replica promoted, a flush): then everything recent is written again first.
func (c *Chain) moveMark(ctx context.Context, feed int64) error {
	p := &c.shared.pending
	ctx, cancel := context.WithTimeout(ctx, propagateTimeout)
	defer cancel()
	before := p.upTo.Load()
	err := c.readMark(ctx)
	if err != nil {
		return err
	}
	mark := p.upTo.Load()
	if mark < before {
		c.cfg.Logger.Warn("Redis has lost writes; writing recent changes again", "changes", c.recent.len())
		c.recent.all(func(id PublicID) { p.add(id, needVersion) })
		return nil
	}
	if feed <= mark {
		return nil // another edge was quicker, or this one has read nothing new
	}
	err = c.shared.script.Run(ctx, c.shared.client, []string{c.shared.feedKey}, digits(feed), digits(0), "", c.shared.ttl).Err()
	if err != nil {
		return err
	}
	p.upTo.Store(feed)
	return nil
}

// readMark reads the database's clock up to which Redis holds all changes, and from its age the clock itself: an edge
// that has not reached the database yet learns how old the records in Redis are, though its own clock may be wrong.
func (c *Chain) readMark(ctx context.Context) error {
	var fields *redis.SliceCmd
	var left *redis.DurationCmd
	_, err := c.shared.client.Pipelined(ctx, func(p redis.Pipeliner) error {
		fields = p.HMGet(ctx, c.shared.feedKey, "v", "l")
		left = p.PTTL(ctx, c.shared.feedKey)
		return nil
	})
	if err != nil {
		return err
	}
	v, _ := fields.Val()[0].(string)
	l, _ := fields.Val()[1].(string)
	if v == "" {
		c.shared.pending.upTo.Store(0)
		return nil
	}
	mark, err := strconv.ParseInt(v, 10, 64)
	if err != nil {
		return fmt.Errorf("mark of the feed: %w", err)
	}
	c.shared.pending.upTo.Store(mark)
	ttl, err := strconv.ParseInt(l, 10, 64)
	if err == nil && left.Val() > 0 {
		age := max(time.Duration(ttl)*time.Millisecond-left.Val(), 0)
		c.shared.pending.dbClock.Store(mark + int64(age) - c.clock())
	}
	return nil
}
