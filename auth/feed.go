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
	c.announce(time.Time{}) // alive, and nothing read yet
	for {
		err := c.readFeed(ctx)
		if ctx.Err() != nil {
			return
		}
		trouble.note(err)
		if err != nil {
			c.metrics.feedErrors.Inc()
			var at time.Time
			if f := c.feed.Load(); f != nil {
				at = f.dbNow
			}
			c.announce(at) // alive, and no further than before: whoever revokes a key must count this edge as pending
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

// runReread reads all changes that matter once a minute: one that was committed later than Overlap after its time, by a writer that was
// paused in between, is behind what the feed reads.
func (c *Chain) runReread(ctx context.Context) {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	trouble := trouble{log: c.cfg.Logger, what: "second reads of key changes"}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := c.reread(ctx)
		if ctx.Err() == nil {
			trouble.note(err)
		}
	}
}

func (c *Chain) reread(ctx context.Context) error {
	f := c.feed.Load()
	if f == nil {
		return nil // the first read brings all
	}
	ctx, cancel := context.WithTimeout(ctx, firstTimeout)
	defer cancel()
	changes, _, err := c.cfg.Truth.Changes(ctx, f.dbNow.Add(-c.window()))
	if err != nil {
		return fmt.Errorf("read changes again: %w", err)
	}
	for _, ch := range changes {
		if !c.apply(ch) {
			continue
		}
		c.metrics.changesApplied.Inc()
		if ch.At.Before(f.dbNow.Add(-c.cfg.Bounds.Overlap)) {
			c.cfg.Logger.Warn("a change of a key was committed long after its time", "prefix", ch.Prefix, "at", ch.At)
		}
	}
	return nil
}

// SignOn reports this edge as one that has read nothing yet. Call it before the first request, so that no revocation is called complete without it.
func (c *Chain) SignOn(ctx context.Context) error {
	return c.reportEdge(ctx, time.Time{})
}

func (c *Chain) reportEdge(ctx context.Context, at time.Time) error {
	if c.cfg.EdgeID == "" {
		return nil
	}
	err := c.cfg.Truth.ReportEdge(ctx, c.cfg.EdgeID, at, max(c.cfg.MaxStale, c.cfg.Bounds.Current))
	if err != nil {
		c.metrics.reportErrors.Inc()
	}
	return err
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
		what := needRecord
		if c.feed.Load() == nil {
			what = needVersion // at start everything is news to this edge, to Redis hardly any
		}
		c.shared.pending.add(id, what)
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
			rctx, cancel := context.WithTimeout(ctx, feedTimeout)
			err := c.reportEdge(rctx, at)
			cancel()
			if ctx.Err() == nil {
				trouble.note(err)
			}
		}
	}
}
