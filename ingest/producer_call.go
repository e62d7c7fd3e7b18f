package ingest

import (
	"context"
	"slices"
	"time"
)

// A produceCall is one call of Produce. Everything but ctx, until, done and parts is guarded by Producer.mu.
type produceCall struct {
	deadline time.Time       // of its messages
	until    time.Time       // when its caller stops waiting
	ctx      context.Context // whose end ends the wait as well
	done     chan struct{}   // holds one token once pending is 0, or the call is late
	parts    []*kafkaPartition

	before, after *produceCall // in Producer.waiting

	late    bool  // the caller is told to leave
	pending int   // messages not yet decided
	bytes   int64 // theirs
	sent    bool  // an attempt was begun for one of them
	written bool  // one of them is acknowledged, or may be in Kafka all the same
	left    bool  // nobody waits any more
	use     *keyUse
	err     error // the first failure
	large   []int // messages that are too large
	invalid []int // messages that the broker will not have for what they are

	acked []bool // by message
}

// newCall takes a call from the pool. Whoever makes it waits for wait; the messages have the time of Timeout in any case, so that
// deadlines in a queue rise.
func (p *Producer) newCall(ctx context.Context, n int, now time.Time, wait time.Duration) *produceCall {
	c, _ := p.calls.Get().(*produceCall)
	if c == nil {
		c = &produceCall{done: make(chan struct{}, 1)}
	}
	c.ctx, c.until = ctx, now.Add(wait)
	c.deadline = now.Add(p.cfg.Timeout)
	c.parts = slices.Grow(c.parts[:0], n)
	c.acked = append(c.acked[:0], make([]bool, n)...)
	return c
}

// recycle puts back a call that nothing refers to any more.
func (p *Producer) recycle(c *produceCall) {
	clear(c.parts)
	*c = produceCall{done: c.done, parts: c.parts[:0], acked: c.acked[:0]}
	p.calls.Put(c)
}

// A callList has the calls whose callers wait, so that no call needs a timer of its own. The zero value is empty.
type callList struct{ first *produceCall }

func (l *callList) add(c *produceCall) {
	c.after = l.first
	if c.after != nil {
		c.after.before = c
	}
	l.first = c
}

func (l *callList) remove(c *produceCall) {
	if c.before != nil {
		c.before.after = c.after
	} else {
		l.first = c.after
	}
	if c.after != nil {
		c.after.before = c.before
	}
	c.before, c.after = nil, nil
}

// hurry tells those to leave whose time is over, or who are not wanted any more.
func (l *callList) hurry(now time.Time) {
	for c := l.first; c != nil; {
		after := c.after
		if !now.Before(c.until) || c.ctx.Err() != nil {
			l.remove(c)
			c.late = true
			c.done <- struct{}{}
		}
		c = after
	}
}

// result is what Produce answers when all messages are decided.
func (c *produceCall) result() error {
	if c.err != nil {
		ua, ok := c.err.(*UnavailableError)
		if !ok {
			return c.err
		}
		e := *ua // others may have the same one
		e.MaybeWritten = e.MaybeWritten || c.written
		c.tell(&e)
		return &e
	}
	if len(c.large)+len(c.invalid) > 0 {
		return &RefusedError{TooLarge: ascending(c.large), Rejected: ascending(c.invalid), Acked: true}
	}
	return nil
}

// tell leaves in e what became of the messages that are decided.
func (c *produceCall) tell(e *UnavailableError) {
	for i, acked := range c.acked {
		if acked {
			e.Acked = append(e.Acked, i)
		}
	}
	e.TooLarge, e.Rejected = ascending(c.large), ascending(c.invalid)
}

func ascending(places []int) []int { return slices.Sorted(slices.Values(places)) }

// leave ends a call that is not waited for any more; its messages go on without it.
func (p *Producer) leave(c *produceCall) error {
	kind, cause := KindTimeout, errTimedOut
	switch {
	case c.ctx.Err() != nil:
		kind, cause = KindCancelled, context.Cause(c.ctx)
	case c.until.Before(c.deadline): // the caller's own deadline
		kind, cause = KindCancelled, context.DeadlineExceeded
	}
	p.mu.Lock()
	if c.pending == 0 { // decided in this very moment
		p.mu.Unlock()
		err := c.result()
		p.recycle(c)
		return err
	}
	defer p.mu.Unlock()
	c.left = true
	c.use.add(c.bytes)
	if c.err != nil {
		return c.result()
	}
	e := &UnavailableError{Kind: kind, MaybeWritten: c.sent, Err: cause}
	// Whatever keeps the partitions from going on says more than the clock.
	for _, part := range c.parts {
		if !part.failingSince.IsZero() {
			e.Topic, e.Kind, e.Err = part.topic, kindOf(part.lastErr), part.lastErr
			break
		}
	}
	c.tell(e)
	return e
}
