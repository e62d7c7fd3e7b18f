package auth

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Authenticate says who the credentials speak for. remote is the sender's address, which pays for misses; it may be
// invalid. A key in L1 costs no allocation. The errors are ErrUnknownKey, as a *Refusal, and ErrUnavailable; they come
// within a second.
func (c *Chain) Authenticate(ctx context.Context, cred Credentials, remote netip.Addr) (Identity, error) {
	id, now := cred.Key.ID, c.clock()
	e, ok := c.l1.GetIfPresent(id)
	if ok && !e.stub {
		final := subtle.ConstantTimeCompare(e.rec.Hash[:], cred.Key.Hash[:]) == 0 || !e.rec.RevokedAt.IsZero()
		switch {
		case final: // neither a wrong secret nor a revoked key ever becomes good, so nobody needs to be asked
			c.metrics.l1Hit.Inc()
			return c.judge(e, &cred, remote, now)
		case c.servable(flightKey{id: id, hash: cred.Key.Hash}, e, now, remote):
			return c.judge(e, &cred, remote, now)
		}
	}
	c.metrics.l1Miss.Inc()
	e, tier, err := c.lookUp(ctx, flightKey{id: id, hash: cred.Key.Hash}, remote)
	switch {
	case err == nil:
		found, err := c.judge(e, &cred, remote, now)
		found.tier = tier
		return found, err
	case errors.Is(err, ErrNoKey):
		return Identity{}, c.refuse(Refusal{Reason: Unknown, Prefix: id.String(), Remote: remote})
	}
	c.metrics.unavailable.Inc()
	return Identity{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// AuthenticateHeaders is FromHeaders and Authenticate in one, with the refusals of both counted and as *Refusal.
func (c *Chain) AuthenticateHeaders(ctx context.Context, flowstateKey, authorization []byte, remote netip.Addr) (Identity, error) {
	cred, err := FromHeaders(flowstateKey, authorization)
	switch {
	case errors.Is(err, ErrNoCredentials):
		return Identity{}, c.refuse(Refusal{Reason: NoCredentials, Remote: remote})
	case err != nil:
		return Identity{}, c.refuse(Refusal{Reason: Malformed, Remote: remote})
	}
	return c.Authenticate(ctx, cred, remote)
}

// servable reports whether the entry in L1 answers without a look-up that the request waits for: it is fresh, or Truth
// failed to say more within the last two graces. In the second of these Truth is asked again meanwhile, so that requests
// of a busy key do not wait for the time-outs of a slow database each second.
func (c *Chain) servable(k flightKey, e *entry, now int64, remote netip.Addr) bool {
	switch {
	case c.behind(k.id, e):
		return false
	case c.fresh(e, now):
		c.metrics.l1Hit.Inc()
		return true
	case now >= e.grace+int64(c.cfg.Bounds.Grace) || now-c.lastGood(e) > int64(c.cfg.MaxStale):
		return false
	case now >= e.grace:
		if f, leader, ok := c.flights.join(k); ok && leader {
			go c.fly(f, k, remote)
		}
	}
	c.metrics.l1Stale.Inc()
	c.noteStale(now)
	return true
}

// judge compares the secret first, so that who does not hold it learns nothing else about the key.
func (c *Chain) judge(e *entry, cred *Credentials, remote netip.Addr, now int64) (Identity, error) {
	switch {
	case subtle.ConstantTimeCompare(e.rec.Hash[:], cred.Key.Hash[:]) == 0:
		return Identity{}, c.refuse(Refusal{Reason: HashMismatch, Prefix: e.rec.Prefix, Remote: remote})
	case !e.rec.RevokedAt.IsZero():
		c.use(e.state, Usage{Refused: 1})
		c.noteMisuse(e, remote, now)
		return Identity{}, c.refuse(Refusal{Reason: Revoked, Prefix: e.rec.Prefix, Org: e.rec.Principal.Org, Remote: remote})
	case cred.Slug != "" && cred.Slug != e.rec.Principal.Org:
		c.use(e.state, Usage{Refused: 1})
		return Identity{}, c.refuse(Refusal{Reason: SlugMismatch, Prefix: e.rec.Prefix, Org: e.rec.Principal.Org, Remote: remote})
	}
	return Identity{Principal: &e.rec.Principal, state: e.state, chain: c}, nil
}

func (c *Chain) refuse(r Refusal) error {
	c.metrics.refusals[r.Reason].Inc()
	return &r
}

// noteMisuse reports the use of a revoked key, once a minute at most.
func (c *Chain) noteMisuse(e *entry, remote netip.Addr, now int64) {
	if c.cfg.OnRevokedUse == nil {
		return
	}
	last := e.state.misuse.Load()
	if last != 0 && now-last < minute {
		return
	}
	if e.state.misuse.CompareAndSwap(last, now) {
		c.cfg.OnRevokedUse(e.rec, remote)
	}
}

func (c *Chain) noteStale(now int64) {
	c.stale.Store(now)
	c.metrics.staleServed.Inc()
}

// lookUp asks the tiers behind L1, one flight for each key, and says which of them answered. The entry it returns is not behind, whenever its flight began.
func (c *Chain) lookUp(ctx context.Context, k flightKey, remote netip.Addr) (*entry, string, error) {
	now := c.clock()
	if m, ok := c.misses.GetIfPresent(k.id); ok && now-m.at <= int64(c.cfg.Bounds.MissTTL) && m.version >= c.recent.version(k.id) {
		c.metrics.missHit.Inc()
		return nil, "", ErrNoKey
	}
	timer := time.NewTimer(c.cfg.Bounds.Answer + c.cfg.Bounds.Redis)
	defer timer.Stop()
	var err error
	for range 4 {
		f, leader, flew := c.flights.join(k)
		switch {
		case !flew:
			c.metrics.overFlights.Inc()
			return nil, "", errOverSlots
		case leader:
			go c.fly(f, k, remote)
		default:
			c.metrics.shared.Inc()
		}
		select {
		case <-f.done:
		case <-ctx.Done():
			return nil, "", context.Cause(ctx)
		case <-timer.C:
			return nil, "", context.DeadlineExceeded
		}
		switch {
		case f.err == nil && !c.behind(k.id, f.entry):
			return f.entry, f.tier, nil
		case f.err == nil && !f.entry.rec.RevokedAt.IsZero():
			return f.entry, f.tier, nil // older than what is known, but revoked already
		case f.err == nil:
			err = errBehind // the key changed after the flight's last look: a new flight sees it
		case errors.Is(f.err, errOverSource) && !leader:
			err = f.err // somebody else's address was over its budget, not this one
		default:
			return nil, "", f.err
		}
	}
	return nil, "", err
}
