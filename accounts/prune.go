package accounts

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// idempotencyAge is how long CreateAccount remembers an idempotency key.
const idempotencyAge = 24 * time.Hour

// Prune removes what has served its time: key changes older than keyChanges by the database's clock (edges need the last hour, and --auth-max-stale
// where that is longer, so give more), idempotency keys of more than a day, sessions and links that have expired, edges that can have served nothing for an hour, usage and
// senders of more than 90 days, refusals of more than a week.
// Call it every few minutes, in any number of processes. keyChanges below an hour is refused: it could bring a revoked key back.
func (s *Store) Prune(ctx context.Context, keyChanges time.Duration) error {
	if keyChanges < time.Hour {
		return fmt.Errorf("prune: key changes must be kept for an hour at least, not %v", keyChanges)
	}
	now, err := s.clock(ctx, s.w)
	if err != nil {
		return err
	}
	for _, step := range []struct {
		query string
		arg   int64
	}{
		{`DELETE FROM key_changes WHERE at < $1`, now.Add(-keyChanges).UnixMilli()},
		{`DELETE FROM idempotency_keys WHERE created_at < $1`, s.now().Add(-idempotencyAge).UnixMilli()},
		{`DELETE FROM sessions WHERE expires_at < $1`, s.now().UnixMilli()},
		{`DELETE FROM edges WHERE seen_at_us + max_stale_us < $1`, now.Add(-time.Hour).UnixMicro()},
		{`DELETE FROM key_usage WHERE hour < $1`, s.now().Add(-usageRetention).UnixMilli()},
		{`DELETE FROM key_senders WHERE last_at < $1`, s.now().Add(-usageRetention).UnixMilli()},
		{`DELETE FROM usage_writers WHERE at < $1`, s.now().Add(-writerRetention).UnixMilli()},
		{`DELETE FROM refusals WHERE at < $1`, s.now().Add(-refusalRetention).UnixMilli()},
	} {
		if _, err := s.w.ExecContext(ctx, step.query, step.arg); err != nil {
			return wrap("prune", err)
		}
	}
	return nil
}

func isNoRows(err error) bool { return errors.Is(err, sql.ErrNoRows) }
