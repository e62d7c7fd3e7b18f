package auth

import (
	"context"
	"errors"
	"time"
)

// probePrefix is of no key: its public id is never minted twice, and the odds of minting it once are those of guessing any other.
const probePrefix = "fsk_000000000000"

// runProbes asks Redis and Truth what a look-up would ask, where no request has for two polls: else an edge without traffic, or one whose keys are
// all in L1, would say of a tier that has gone that it is up. What comes of it goes to the breakers, as what comes of a look-up does, and not into the
// counts of look-ups.
func (c *Chain) runProbes(ctx context.Context) {
	tick := time.NewTicker(c.cfg.Bounds.Poll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			c.probe(ctx)
		}
	}
}

func (c *Chain) probe(ctx context.Context) {
	idle := int64(2 * c.cfg.Bounds.Poll)
	if c.truthUp.idle(c.clock(), idle) && c.truthUp.allow(c.clock()) {
		call, cancel := context.WithTimeout(ctx, c.cfg.Bounds.Truth)
		_, err := c.cfg.Truth.Key(call, probePrefix)
		cancel()
		switch {
		case err == nil || errors.Is(err, ErrNoKey):
			c.truthUp.success(c.clock())
		case ctx.Err() == nil: // else it is we who stop
			c.truthUp.failure(c.clock())
		}
	}
	if c.shared != nil && c.redisUp.idle(c.clock(), idle) && c.redisUp.allow(c.clock()) {
		call, cancel := context.WithTimeout(ctx, c.cfg.Bounds.Redis)
		err := c.shared.client.HMGet(call, c.shared.feedKey, "v").Err()
		cancel()
		if ctx.Err() == nil {
			c.redisResult(err)
		}
	}
}
