package main

import (
	"context"
	"net/netip"
	"time"

	"flowstate.inc/sluice/auth"
)

// A misuse is one use of a revoked key.
type misuse struct {
	rec    auth.Record
	remote netip.Addr
}

// noteMisuse is called on a request's goroutine and must not wait: in a flood over many revoked keys some are left out, and come again in a minute.
func (p *process) noteMisuse(rec auth.Record, remote netip.Addr) {
	select {
	case p.misuse <- misuse{rec, remote}:
	default:
		p.log.Warn("too many revoked keys are in use to raise a signal for each", "prefix", rec.Prefix)
	}
}

// raiseMisuse raises key_misuse_detected until ctx ends.
func (p *process) raiseMisuse(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case m := <-p.misuse:
			p.raiseFirst(ctx, m, p.signalEdge.KeyMisuse)
		}
	}
}

// raiseFirst raises the signal unless the fleet has. One that cannot be raised is nobody's: the next use at
// another edge raises it, or here a minute later.
func (p *process) raiseFirst(ctx context.Context, m misuse, raise func(context.Context, auth.Record, netip.Addr) error) {
	if !p.firstMisuse(ctx, m.rec.Prefix) {
		return
	}
	call, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	err := raise(call, m.rec, m.remote)
	if err == nil {
		return
	}
	p.log.Warn("cannot raise key_misuse_detected", "prefix", m.rec.Prefix, "error", err)
	if p.redis == nil {
		return
	}
	forget, done := context.WithTimeout(context.WithoutCancel(ctx), redisTimeout)
	defer done()
	if err := p.redis.Del(forget, misuseKey(m.rec.Prefix)).Err(); err != nil {
		p.log.Warn("nobody raises key_misuse_detected for a minute", "prefix", m.rec.Prefix, "error", err)
	}
}

// misuseGap is how far apart the edges of a fleet raise key_misuse_detected for one key.
const misuseGap = time.Minute

// firstMisuse reports whether this edge is the first of the fleet to see the misuse of a key within a minute. Without Redis each edge is: the
// signal's id, which is the same within a calendar minute, then keeps Alerts to one or two.
func (p *process) firstMisuse(ctx context.Context, prefix string) bool {
	if p.redis == nil {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	first, err := p.redis.SetNX(ctx, misuseKey(prefix), 1, misuseGap).Result()
	return err != nil || first
}

func misuseKey(prefix string) string { return "sluice:misuse:" + prefix }
