package auth

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// A subjectKey names an account by id, or by lower-case name and environment.
type subjectKey struct{ org, id, name, environment string }

// A hint remembers which key speaks for a subject. It is only a hint: the record decides, and it must still match.
type hint struct {
	id      PublicID
	unknown bool  // there was no such subject
	at      int64 // chain time
	applied int64 // changes applied when Truth was asked: any later one may have made the subject
}

// Account returns the live account of that id, as its newest key knows it. It is how a detector's signal gets the kind,
// toggle and environment of its subject. by is the prefix of the detector's key, whose unknown subjects are counted against a
// budget of its own; "" is an admin, who has none. The errors are ErrNoKey and ErrUnavailable.
func (c *Chain) Account(ctx context.Context, org, by, id string) (*Principal, error) {
	return c.subject(ctx, by, subjectKey{org: org, id: id})
}

// AccountByName is Account by name, in any case, and environment: together they are unique among the live accounts of an
// org.
func (c *Chain) AccountByName(ctx context.Context, org, by, name, environment string) (*Principal, error) {
	return c.subject(ctx, by, subjectKey{org: org, name: strings.ToLower(strings.TrimSpace(name)), environment: environment})
}

func (k subjectKey) matches(p *Principal) bool {
	if p.Org != k.org || p.Kind != KindServiceAccount {
		return false
	}
	if k.id != "" {
		return p.ID == k.id
	}
	return strings.ToLower(p.Name) == k.name && p.Environment == k.environment
}

func (c *Chain) subject(ctx context.Context, by string, k subjectKey) (*Principal, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Bounds.Answer+c.cfg.Bounds.Redis)
	defer cancel()
	h, ok := c.hints.GetIfPresent(k)
	if ok && !h.unknown {
		p, err := c.principal(ctx, h.id)
		switch {
		case err == nil && k.matches(p):
			return p, nil
		case err != nil && !errors.Is(err, ErrNoKey):
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		// Renamed, revoked, rotated: the hint is out of date.
	}
	if ok && h.unknown && h.applied == c.applied.Load() && c.clock()-h.at <= int64(c.cfg.Bounds.MissTTL) {
		return nil, ErrNoKey
	}
	// Not shared between detectors: what one of them may no longer ask, another may.
	done := c.asks.DoChan(strings.Join([]string{by, k.org, k.id, k.name, k.environment}, "\x00"), func() (any, error) {
		return c.askSubject(by, k)
	})
	select {
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, context.Cause(ctx))
	case r := <-done:
		switch {
		case errors.Is(r.Err, ErrNoKey):
			return nil, ErrNoKey
		case r.Err != nil:
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, r.Err)
		}
		return r.Val.(*Principal), nil
	}
}

// askSubject asks Truth which key speaks for the subject, then the chain for its record.
func (c *Chain) askSubject(by string, k subjectKey) (*Principal, error) {
	ctx, cancel := context.WithTimeout(context.Background(), c.cfg.Bounds.Answer)
	defer cancel()
	h := hint{at: c.clock(), applied: c.applied.Load()}
	prefix, err := c.askSubjectKey(ctx, by, k)
	if err == nil {
		var known bool
		h.id, known = ParsePrefix(prefix)
		if !known {
			return nil, fmt.Errorf("the database named %q as the key of an account", prefix)
		}
		var p *Principal
		p, err = c.principal(ctx, h.id)
		if err == nil && k.matches(p) {
			c.hints.Set(k, h)
			return p, nil
		}
		if err == nil { // renamed between the two questions
			err = ErrNoKey
		}
	}
	if errors.Is(err, ErrNoKey) {
		h.unknown = true
		c.hints.Set(k, h)
	}
	return nil, err
}

func (c *Chain) askSubjectKey(ctx context.Context, by string, k subjectKey) (string, error) {
	if !c.truthUp.allow(c.clock()) {
		c.metrics.overBreaker.Inc()
		return "", errBreaker
	}
	paid, err := c.budget.payFor(c.clock(), by)
	if err != nil {
		c.metrics.overBudget(err)
		return "", err
	}
	err = c.budget.enter(ctx, false)
	if err != nil {
		c.budget.refundFor(paid)
		c.metrics.overBudget(err)
		return "", err
	}
	defer c.budget.leave(false)
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Bounds.Truth)
	defer cancel()
	var prefix string
	if k.id != "" {
		prefix, err = c.cfg.Truth.AccountKey(ctx, k.org, k.id)
	} else {
		prefix, err = c.cfg.Truth.AccountKeyByName(ctx, k.org, k.name, k.environment)
	}
	if !errors.Is(err, ErrNoKey) { // only a name of nothing costs
		c.budget.refundFor(paid)
	}
	if err == nil || errors.Is(err, ErrNoKey) {
		c.truthUp.success(c.clock())
	} else {
		c.truthUp.failure(c.clock())
	}
	return prefix, err
}

// principal returns the principal of a key that is not revoked, without anybody showing the key.
func (c *Chain) principal(ctx context.Context, id PublicID) (*Principal, error) {
	k := flightKey{id: id}
	e, ok := c.l1.GetIfPresent(id)
	if !ok || !c.servable(k, e, c.clock(), netip.Addr{}) {
		var err error
		e, _, err = c.lookUp(ctx, k, netip.Addr{})
		if err != nil {
			return nil, err
		}
	}
	if !e.rec.RevokedAt.IsZero() {
		return nil, ErrNoKey
	}
	return &e.rec.Principal, nil
}

// since is how long ago a chain time was.
func (c *Chain) since(at int64) time.Duration { return time.Duration(c.clock() - at) }
