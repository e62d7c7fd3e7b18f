package auth

import (
	"context"
	"errors"
	"log/slog"
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
	truth := tier{log: c.cfg.Logger, up: true, lost: "the database does not answer look-ups of keys: known keys are served from memory and Redis", back: "the database answers look-ups of keys again"}
	shared := tier{log: c.cfg.Logger, up: true, lost: "redis does not answer look-ups of keys: the database is asked instead", back: "redis answers look-ups of keys again"}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			c.probe(ctx)
			truth.note(c.truthUp.closed())
			shared.note(c.redisUp.closed())
		}
	}
}

// A tier is one of the two that may be away, as the log last said.
type tier struct {
	log        *slog.Logger
	up         bool
	lost, back string
}

func (t *tier) note(up bool) {
	switch {
	case t.up && !up:
		t.log.Warn(t.lost)
	case !t.up && up:
		t.log.Info(t.back)
	}
	t.up = up
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
