package auth

import (
	"context"
	"fmt"
	"time"
)

const (
	feedTimeout  = 2 * time.Second
	firstTimeout = 20 * time.Second      // the first read may bring an hour of changes
	wakeGap      = 20 * time.Millisecond // between two reads, however often the feed is woken
)

// farFuture asks Truth.Changes for nothing but the database's clock.
func farFuture() time.Time { return time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC) }

// runFeed reads the changes each second, and at once when woken.
func (c *Chain) runFeed(ctx context.Context) {
	tick := time.NewTicker(c.cfg.Bounds.Poll)
	defer tick.Stop()
	trouble := trouble{log: c.cfg.Logger, what: "reads of key changes"}
	lastPrune := c.clock()
	for {
		err := c.readFeed(ctx)
		if ctx.Err() != nil {
			return
		}
		trouble.note(err)
		if err != nil {
			c.metrics.feedErrors.Inc()
			if f := c.feed.Load(); f != nil {
				c.announce(f.dbNow) // alive, and no further than before: whoever revokes a key must count this edge as pending
			}
		}
		if now := c.clock(); err == nil && now-lastPrune > minute {
			lastPrune = now
			// Twice the overlap on top: a change may carry a time from before its commit.
			c.recent.prune(c.feed.Load().dbNow.Add(-c.window() - 2*c.cfg.Bounds.Overlap))
		}
		gap := time.NewTimer(wakeGap)
		select {
		case <-ctx.Done():
			gap.Stop()
			return
		case <-gap.C:
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-c.cfg.Wake:
		}
	}
}

// readFeed reads all changes since the last read, and the overlap before it, by the database's clock alone.
func (c *Chain) readFeed(ctx context.Context) error {
	last := c.feed.Load()
	timeout := feedTimeout
	var since time.Time
	if last != nil {
		since = last.dbNow.Add(-c.cfg.Bounds.Overlap)
	} else {
		timeout = firstTimeout
		probe, cancel := context.WithTimeout(ctx, feedTimeout)
		_, now, err := c.cfg.Truth.Changes(probe, farFuture())
		cancel()
		if err != nil {
			return fmt.Errorf("ask the database's clock: %w", err)
		}
		since = now.Add(-c.window())
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	sent := c.clock()
	changes, dbNow, err := c.cfg.Truth.Changes(ctx, since)
	if err != nil {
		return fmt.Errorf("read changes: %w", err)
	}
	got := c.clock()
	for _, ch := range changes {
		if c.apply(ch) {
			c.metrics.changesApplied.Inc()
			if last != nil {
				c.metrics.changeLag.Observe(max(dbNow.Sub(ch.At).Seconds(), 0))
			}
		}
	}
	next := &feedState{
		readAt: sent,
		dbNow:  dbNow,
		low:    dbNow.UnixNano() - got,
		high:   dbNow.UnixNano() - sent,
		// The overlap again: what was checked at the very edge of the window may miss a change that committed late.
		fromDB: dbNow.Add(-c.window() + c.cfg.Bounds.Overlap),
	}
	if last != nil && last.fromDB.After(next.fromDB) {
		next.fromDB = last.fromDB
	}
	next.from = next.fromDB.UnixNano() - next.low
	c.feed.Store(next)
	if c.shared != nil {
		c.shared.pending.feed.Store(dbNow.UnixNano())
	}
	c.announce(dbNow)
	return nil
}

// announce has runReport say how far this edge has come. The feed is its only caller, so that the channel has room.
func (c *Chain) announce(dbNow time.Time) {
	select { // only the latest matters
	case <-c.report:
	default:
	}
	c.report <- dbNow
}

// Apply makes a change hold in this process at once: no request that starts after Apply has returned is answered from an
// older record. The process that makes a change calls it after the commit and before it answers; the feed brings the
// change to all others.
func (c *Chain) Apply(ch Change) {
	if c.apply(ch) {
		c.metrics.changesApplied.Inc()
	}
}

func (c *Chain) apply(ch Change) bool {
	id, ok := ParsePrefix(ch.Prefix)
	if !ok {
		c.cfg.Logger.Warn("change of something that is no key", "prefix", ch.Prefix)
		return false
	}
	if ch.At.IsZero() {
		ch.At = time.Unix(0, c.dbTime(c.clock()))
	}
	// First the mark, then L1: a fill between the two finds the mark, a fill before it is dropped.
	if !c.recent.raise(id, ch.Version, ch.At) {
		return false
	}
	c.drop(id, ch.Version)
	c.applied.Add(1)
	if c.shared != nil {
		c.shared.pending.add(id, c.feed.Load() != nil) // at start everything is news to this edge, to Redis hardly any
	}
	return true
}

// runReport tells the database how far this edge has come. It has a goroutine of its own: a write that hangs must not
// keep the feed from reading.
func (c *Chain) runReport(ctx context.Context) {
	trouble := trouble{log: c.cfg.Logger, what: "reports of applied changes"}
	for {
		select {
		case <-ctx.Done():
			return
		case at := <-c.report:
			if c.cfg.EdgeID == "" {
				continue
			}
			rctx, cancel := context.WithTimeout(ctx, feedTimeout)
			err := c.cfg.Truth.ReportEdge(rctx, c.cfg.EdgeID, at)
			cancel()
			if ctx.Err() == nil {
				trouble.note(err)
			}
			if err != nil {
				c.metrics.reportErrors.Inc()
			}
		}
	}
}
