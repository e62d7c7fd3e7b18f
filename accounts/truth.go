package accounts

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"flowstate.inc/sluice/auth"
)

// The methods of this file are what auth.Truth asks of the database.

// Key is the record of the key with this prefix, revoked ones included. Errors: auth.ErrNoKey when the database says there is none.
func (s *Store) Key(ctx context.Context, prefix string) (auth.Record, error) {
	var (
		r       auth.Record
		hash    []byte
		revoked sql.NullInt64
		name    string
		p       = &r.Principal
	)
	err := s.r.QueryRowContext(ctx, `SELECT k.prefix, k.hash, k.version, k.revoked_at, k.org, k.kind, k.subject_id, k.subject_name,
		COALESCE(a.name, ''), COALESCE(a.environment, ''), COALESCE(a.description, ''), COALESCE(a.intended_scope, ''), COALESCE(a.abuse_detection, FALSE),
		COALESCE(a.team, ''), COALESCE(a.cost_centre, ''), COALESCE(a.requests_per_second, 0), COALESCE(a.bytes_per_second, 0)
		FROM keys k LEFT JOIN service_accounts a ON k.kind = 'service_account' AND a.id = k.subject_id WHERE k.prefix = $1`, prefix).Scan(
		&r.Prefix, &hash, &r.Version, &revoked, &p.Org, &p.Kind, &p.ID, &p.Name,
		&name, &p.Environment, &p.Description, &p.IntendedScope, &p.AbuseDetection, &p.Team, &p.CostCentre, &p.Limits.RequestsPerSecond, &p.Limits.BytesPerSecond)
	if err != nil {
		return auth.Record{}, noKey("look up the key", err)
	}
	if len(hash) != len(r.Hash) {
		return auth.Record{}, fmt.Errorf("look up the key: the hash of %s is %d bytes long", r.Prefix, len(hash))
	}
	r.Hash = [32]byte(hash)
	r.RevokedAt = fromMilli(revoked.Int64)
	p.KeyPrefix = r.Prefix
	if p.Kind == auth.KindServiceAccount {
		p.Name = name
	}
	return r, nil
}

// AccountKey is the prefix of the newest key of the account, a deleted one too: its record says that it is revoked. Errors: auth.ErrNoKey.
func (s *Store) AccountKey(ctx context.Context, org, id string) (string, error) {
	var prefix string
	err := s.r.QueryRowContext(ctx, `SELECT key_prefix FROM service_accounts WHERE id = $1 AND org = $2`, id, org).Scan(&prefix)
	return prefix, noKey("look up the account's key", err)
}

// AccountKeyByName is the prefix of the newest key of the live account of this name, in any case, and environment. Errors: auth.ErrNoKey.
func (s *Store) AccountKeyByName(ctx context.Context, org, name, environment string) (string, error) {
	var prefix string
	err := s.r.QueryRowContext(ctx, `SELECT key_prefix FROM service_accounts WHERE org = $1 AND environment = $2 AND name_lower = $3 AND deleted_at IS NULL`,
		org, environment, lower(strings.TrimSpace(name))).Scan(&prefix)
	return prefix, noKey("look up the account's key by name", err)
}

// Changes lists the key changes at or after since, oldest first, and a time by the database's clock from before the statement that read them began:
// every change committed before that time is in the answer, or older than since.
func (s *Store) Changes(ctx context.Context, since time.Time) ([]auth.Change, time.Time, error) {
	// A statement of its own: within one statement neither database says whether the clock or the snapshot comes first.
	now, err := s.clock(ctx, s.r)
	if err != nil {
		return nil, time.Time{}, err
	}
	rows, err := s.r.QueryContext(ctx, `SELECT prefix, version, at FROM key_changes WHERE at >= $1 ORDER BY at, prefix, version`, since.UnixMilli())
	if err != nil {
		return nil, time.Time{}, wrap("read the key changes", err)
	}
	changes, err := collect(rows, func(rows *sql.Rows) (auth.Change, error) {
		var ch auth.Change
		var at int64
		err := rows.Scan(&ch.Prefix, &ch.Version, &at)
		ch.At = fromMilli(at)
		return ch, err
	})
	if err != nil {
		return nil, time.Time{}, wrap("read the key changes", err)
	}
	return changes, now, nil
}

// ReportEdge says that the edge has applied every change committed before appliedAt, a time that Changes returned (zero: none yet), and that it serves
// what it knows for maxStale once it is cut off.
func (s *Store) ReportEdge(ctx context.Context, edgeID string, appliedAt time.Time, maxStale time.Duration) error {
	var applied int64
	if !appliedAt.IsZero() {
		applied = appliedAt.UnixMicro()
	}
	_, err := s.w.ExecContext(ctx, `INSERT INTO edges (id, applied_at_us, seen_at_us, max_stale_us) VALUES ($1, $2, `+s.dialect.clock()+`, $3)
		ON CONFLICT (id) DO UPDATE SET applied_at_us = excluded.applied_at_us, seen_at_us = excluded.seen_at_us, max_stale_us = excluded.max_stale_us`,
		edgeID, applied, maxStale.Microseconds())
	return wrap("report the edge", err)
}

// ForgetEdge says that the edge has stopped, so that nobody waits for it.
func (s *Store) ForgetEdge(ctx context.Context, edgeID string) error {
	_, err := s.w.ExecContext(ctx, `DELETE FROM edges WHERE id = $1`, edgeID)
	return wrap("forget the edge", err)
}

const (
	// stampChunk bounds how long one transaction holds the rows, which edits of these accounts wait for.
	stampChunk = 8_000
	// pollEdges is how often ConfirmRevocation looks.
	pollEdges = 20 * time.Millisecond
	// liveEdge is how long after its last report an edge may still be in touch, and within which one that is learns of a revocation.
	liveEdge = 10 * time.Second
)

// Stamp widens what is known of when keys, and their accounts, were first and last used: neither end ever moves inwards, in whatever order stamps
// arrive. Unknown prefixes are ignored. It touches no version. Rows are locked in the order of their ids, so that two edges never deadlock.
func (s *Store) Stamp(ctx context.Context, stamps []auth.Stamp) error {
	merged := mergeStamps(stamps)
	for chunk := range slices.Chunk(merged, stampChunk) {
		_, err := s.write(ctx, func(ctx context.Context, t *tx) error { return t.stamp(ctx, chunk) })
		if err != nil {
			return fmt.Errorf("stamp %d keys: %w", len(chunk), err)
		}
	}
	return nil
}

// mergeStamps sorts by prefix and joins what is said twice: one statement may touch a row once only.
func mergeStamps(stamps []auth.Stamp) []auth.Stamp {
	sorted := slices.SortedFunc(slices.Values(stamps), func(a, b auth.Stamp) int { return strings.Compare(a.Prefix, b.Prefix) })
	merged := sorted[:0]
	for _, st := range sorted {
		if n := len(merged); n > 0 && merged[n-1].Prefix == st.Prefix {
			if st.First.Before(merged[n-1].First) {
				merged[n-1].First = st.First
			}
			if st.Last.After(merged[n-1].Last) {
				merged[n-1].Last = st.Last
			}
			continue
		}
		merged = append(merged, st)
	}
	return merged
}

func (t *tx) stamp(ctx context.Context, stamps []auth.Stamp) error {
	// One parameter whatever their number, so that there is one statement to prepare; and SQLite's parameters cost time by their square.
	rows := make([][3]any, len(stamps))
	for i, st := range stamps {
		rows[i] = [3]any{st.Prefix, st.First.UnixMilli(), st.Last.UnixMilli()}
	}
	list, err := json.Marshal(rows)
	if err != nil {
		return wrap("write the stamps", err)
	}
	with := `WITH v (prefix, first_at, last_at) AS (SELECT t.value ->> 0, CAST(t.value ->> 1 AS BIGINT), CAST(t.value ->> 2 AS BIGINT) FROM ` +
		t.dialect.elements("$1") + `) `
	const widen = ` DO UPDATE SET
		first_at = CASE WHEN excluded.first_at < T.first_at OR T.first_at = 0 THEN excluded.first_at ELSE T.first_at END,
		last_at = CASE WHEN excluded.last_at > T.last_at THEN excluded.last_at ELSE T.last_at END
		WHERE excluded.first_at < T.first_at OR excluded.last_at > T.last_at OR T.first_at = 0`
	// CROSS JOIN makes SQLite begin with v: its planner thinks nothing of reading all keys, with v inside.
	_, err = t.ExecContext(ctx, with+`INSERT INTO seen (prefix, first_at, last_at)
		SELECT k.prefix, v.first_at, v.last_at FROM v CROSS JOIN keys k WHERE k.prefix = v.prefix ORDER BY k.prefix
		ON CONFLICT (prefix)`+strings.ReplaceAll(widen, "T.", "seen."), string(list))
	if err != nil {
		return wrap("stamp the keys", err)
	}
	_, err = t.ExecContext(ctx, with+`INSERT INTO account_seen (account_id, org, live, environment, first_at, last_at)
		SELECT a.id, a.org, a.live, a.environment, MIN(v.first_at), MAX(v.last_at)
		FROM v CROSS JOIN keys k CROSS JOIN service_accounts a
		WHERE k.prefix = v.prefix AND k.kind = 'service_account' AND a.id = k.subject_id GROUP BY a.id, a.org, a.live, a.environment ORDER BY a.id
		ON CONFLICT (account_id)`+strings.ReplaceAll(widen, "T.", "account_seen."), string(list))
	return wrap("stamp the accounts", err)
}

// A PendingEdge has not confirmed a revocation yet, and has not signed off. Times are by the database's clock.
type PendingEdge struct {
	ID          string
	Seen        time.Time // when it reported last
	Until       time.Time // it refuses from then on at the latest, as long as it reaches the database or a Redis that holds the revocation
	UntilCutOff time.Time // the same if it reaches neither
}

// A Confirmation says how many of the edges that may accept a key have applied its revocation.
type Confirmation struct {
	Edges     int // all that have not signed off, but for those that have been cut off for longer than they serve anything
	Confirmed int
	Pending   []PendingEdge
	Gone      []PendingEdge // counted no more: they may have accepted the key after the revocation, and never confirmed it, but can accept it no longer
}

// ConfirmRevocation waits until every edge heard of in the last 10 s has applied what was committed before at (Revoked.At), or for wait at most, and
// says how far all edges are. A zero at confirms nobody. The revocation stands whatever it returns.
func (s *Store) ConfirmRevocation(ctx context.Context, at time.Time, wait time.Duration) (Confirmation, error) {
	deadline := time.NewTimer(wait)
	defer deadline.Stop()
	for {
		c, awaited, err := s.confirmed(ctx, at)
		if err != nil || awaited == 0 {
			return c, err
		}
		select {
		case <-ctx.Done():
			return c, ctx.Err()
		case <-deadline.C:
			return c, nil
		case <-time.After(pollEdges):
		}
	}
}

// Confirmations says of several revocations, each by its Revoked.At, how far all edges are now.
func (s *Store) Confirmations(ctx context.Context, at []time.Time) ([]Confirmation, error) {
	edges, now, err := s.edges(ctx)
	if err != nil {
		return nil, err
	}
	all := make([]Confirmation, len(at))
	for i, t := range at {
		all[i], _ = confirmation(edges, now, t)
	}
	return all, nil
}

func (s *Store) confirmed(ctx context.Context, at time.Time) (Confirmation, int, error) {
	edges, now, err := s.edges(ctx)
	if err != nil {
		return Confirmation{}, 0, err
	}
	c, awaited := confirmation(edges, now, at)
	return c, awaited, nil
}

// An edge is what one has reported of itself; times are in microseconds.
type edge struct {
	id                      string
	applied, seen, maxStale int64
}

// edges are all that have not signed off, those that can serve nothing any more among them until Prune takes them; and the time by the database's clock.
func (s *Store) edges(ctx context.Context) ([]edge, time.Time, error) {
	now, err := s.clock(ctx, s.r)
	if err != nil {
		return nil, now, err
	}
	rows, err := s.r.QueryContext(ctx, `SELECT id, applied_at_us, seen_at_us, max_stale_us FROM edges ORDER BY id`)
	if err != nil {
		return nil, now, wrap("read the edges", err)
	}
	edges, err := collect(rows, func(rows *sql.Rows) (edge, error) {
		var e edge
		err := rows.Scan(&e.id, &e.applied, &e.seen, &e.maxStale)
		return e, err
	})
	return edges, now, wrap("read the edges", err)
}

// confirmation also says how many of the pending edges are worth waiting for.
func confirmation(edges []edge, now, at time.Time) (Confirmation, int) {
	c, awaited := Confirmation{}, 0
	begun := at
	if at.IsZero() {
		begun = now
	}
	for _, e := range edges {
		expired := e.seen+e.maxStale < now.Add(-liveEdge).UnixMicro()
		if !at.IsZero() && e.applied >= at.UnixMicro() {
			if !expired {
				c.Edges++
				c.Confirmed++
			}
			continue
		}
		seen := time.UnixMicro(e.seen).UTC()
		alive := now.Sub(seen) <= liveEdge
		// What it knew to be good when it was in touch last, which may be a little after its last report, it serves for maxStale.
		touch := begun
		if last := seen.Add(liveEdge); last.Before(touch) {
			touch = last
		}
		cutOff := touch.Add(time.Duration(e.maxStale) * time.Microsecond).UTC()
		// A record that it checked right before the revocation is good there for that long, even if it reads no change.
		until := begun.Add(liveEdge).UTC()
		if cutOff.Before(until) {
			until = cutOff
		}
		p := PendingEdge{ID: e.id, Seen: seen, Until: until, UntilCutOff: cutOff}
		if expired || !alive && cutOff.Before(now) {
			if cutOff.After(begun) {
				c.Gone = append(c.Gone, p)
			}
			continue
		}
		c.Edges++
		c.Pending = append(c.Pending, p)
		if alive {
			awaited++
		}
	}
	return c, awaited
}
