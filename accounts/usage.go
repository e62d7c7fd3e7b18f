package accounts

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"time"

	"flowstate.inc/sluice/auth"
)

const (
	// usageRetention is how long the hours of a key's usage, and its senders, are kept.
	usageRetention = 90 * 24 * time.Hour
	// writerRetention is how long the number of an edge's last batch is kept: it sends none again after a day.
	writerRetention = 24 * time.Hour
	// MaxUsageSpan bounds one question about usage; DefaultUsageSpan is what is answered where none is asked for.
	MaxUsageSpan     = 31 * 24 * time.Hour
	DefaultUsageSpan = 7 * 24 * time.Hour
)

// Use adds an edge's counts, each batch once: one that was added before, or is older than the writer's last, changes nothing. Unknown prefixes are
// ignored. It touches no version. Rows are locked in the order of their ids. auth.Truth asks it.
func (s *Store) Use(ctx context.Context, b auth.UsageBatch) error {
	_, err := s.write(ctx, func(ctx context.Context, t *tx) error {
		res, err := t.ExecContext(ctx, `INSERT INTO usage_writers (writer, seq, at) VALUES ($1, $2, $3)
			ON CONFLICT (writer) DO UPDATE SET seq = excluded.seq, at = excluded.at WHERE usage_writers.seq < excluded.seq`, b.Writer, b.Seq, t.now.UnixMilli())
		if err != nil {
			return wrap("number the usage", err)
		}
		added, err := res.RowsAffected()
		if err != nil || added == 0 {
			return wrap("number the usage", err)
		}
		if err := t.addUsage(ctx, b.Usage); err != nil {
			return err
		}
		return t.addSenders(ctx, b.Senders)
	})
	return wrap("add usage", err)
}

func (t *tx) addUsage(ctx context.Context, usage []auth.KeyUsage) error {
	if len(usage) == 0 {
		return nil
	}
	rows := make([][9]any, len(usage))
	for i, u := range usage {
		rows[i] = [9]any{u.Prefix, u.Hour.UnixMilli(), u.Requests, u.Accepted, u.Filtered, u.Invalid, u.Unavailable, u.Refused, u.Bytes}
	}
	list, err := json.Marshal(rows)
	if err != nil {
		return wrap("write the usage", err)
	}
	number := func(i int) string { return fmt.Sprintf("CAST(t.value ->> %d AS BIGINT)", i) }
	query := `WITH v (prefix, hour, requests, accepted, filtered, invalid, unavailable, refused, bytes) AS (SELECT t.value ->> 0`
	for i := 1; i <= 8; i++ {
		query += ", " + number(i)
	}
	query += ` FROM ` + t.dialect.elements("$1") + `)
		INSERT INTO key_usage (prefix, hour, requests, accepted, filtered, invalid, unavailable, refused, bytes)
		SELECT v.prefix, v.hour, v.requests, v.accepted, v.filtered, v.invalid, v.unavailable, v.refused, v.bytes
		FROM v CROSS JOIN keys k WHERE k.prefix = v.prefix ORDER BY v.prefix, v.hour
		ON CONFLICT (prefix, hour) DO UPDATE SET requests = key_usage.requests + excluded.requests, accepted = key_usage.accepted + excluded.accepted,
		filtered = key_usage.filtered + excluded.filtered, invalid = key_usage.invalid + excluded.invalid,
		unavailable = key_usage.unavailable + excluded.unavailable, refused = key_usage.refused + excluded.refused, bytes = key_usage.bytes + excluded.bytes`
	_, err = t.ExecContext(ctx, query, string(list))
	return wrap("write the usage", err)
}

// addSenders adds to the senders of keys, and keeps the last ones of each key that has a new one.
func (t *tx) addSenders(ctx context.Context, senders []auth.SenderUse) error {
	if len(senders) == 0 {
		return nil
	}
	rows := make([][7]any, len(senders))
	var grown [][1]string
	for i, u := range senders {
		rows[i] = [7]any{u.Prefix, u.Address.String(), u.UserAgent, u.Service, u.First.UnixMilli(), u.Last.UnixMilli(), u.Count}
		if u.New && (len(grown) == 0 || grown[len(grown)-1][0] != u.Prefix) {
			grown = append(grown, [1]string{u.Prefix})
		}
	}
	list, err := json.Marshal(rows)
	if err != nil {
		return wrap("write the senders", err)
	}
	_, err = t.ExecContext(ctx, `WITH v (prefix, address, user_agent, service, first_at, last_at, count) AS (SELECT t.value ->> 0, t.value ->> 1, t.value ->> 2,
		t.value ->> 3, CAST(t.value ->> 4 AS BIGINT), CAST(t.value ->> 5 AS BIGINT), CAST(t.value ->> 6 AS BIGINT) FROM `+t.dialect.elements("$1")+`)
		INSERT INTO key_senders (prefix, address, user_agent, service, first_at, last_at, count)
		SELECT v.prefix, v.address, v.user_agent, v.service, v.first_at, v.last_at, v.count
		FROM v CROSS JOIN keys k WHERE k.prefix = v.prefix ORDER BY v.prefix, v.address, v.user_agent, v.service
		ON CONFLICT (prefix, address, user_agent, service) DO UPDATE SET count = key_senders.count + excluded.count,
		first_at = CASE WHEN excluded.first_at < key_senders.first_at THEN excluded.first_at ELSE key_senders.first_at END,
		last_at = CASE WHEN excluded.last_at > key_senders.last_at THEN excluded.last_at ELSE key_senders.last_at END`, string(list))
	if err != nil || len(grown) == 0 {
		return wrap("write the senders", err)
	}
	if list, err = json.Marshal(grown); err != nil {
		return wrap("keep the last senders", err)
	}
	_, err = t.ExecContext(ctx, `DELETE FROM key_senders WHERE (prefix, address, user_agent, service) IN (
		SELECT prefix, address, user_agent, service FROM (SELECT prefix, address, user_agent, service,
			ROW_NUMBER() OVER (PARTITION BY prefix ORDER BY last_at DESC, address, user_agent, service) AS place
			FROM key_senders WHERE prefix IN (SELECT t.value ->> 0 FROM `+t.dialect.elements("$1")+`)) AS ranked WHERE place > $2)`, string(list), auth.MaxSendersOfAKey)
	return wrap("keep the last senders", err)
}

// An AccountUsage is what an account's keys were used for between two hours.
type AccountUsage struct {
	Since, Until time.Time // whole hours; Until is the end of the last
	Keys         []KeyUse  // newest first, with those never used
}

// A KeyUse is what was done with one key.
type KeyUse struct {
	Key     Key
	Total   auth.Usage
	Buckets []UsageBucket // hours in which something was done, oldest first
	Senders []KeySender   // the last 16, whenever they sent, latest first
}

// A UsageBucket is one hour.
type UsageBucket struct {
	At time.Time // its beginning
	auth.Usage
}

// A KeySender is who used a key.
type KeySender struct {
	Address   string
	UserAgent string // "" where it sent none, at most 120 bytes
	Service   string // service.name of the first resource; "" where none was sent
	First     time.Time
	Last      time.Time
	Requests  int64
}

// AccountUsage answers what the account's keys were used for from since to until, widened to whole hours: the zero until is now, the zero since
// DefaultUsageSpan before it. Errors: ErrNotFound, *InvalidError.
func (s *Store) AccountUsage(ctx context.Context, org, id string, since, until time.Time) (AccountUsage, error) {
	if until.IsZero() {
		until = s.now()
	}
	if whole := until.UTC().Truncate(time.Hour); whole.Before(until) {
		until = whole.Add(time.Hour)
	}
	if since.IsZero() {
		since = until.Add(-DefaultUsageSpan)
	}
	out := AccountUsage{Since: since.UTC().Truncate(time.Hour), Until: until.UTC()}
	switch span := out.Until.Sub(out.Since); {
	case span <= 0:
		return out, invalid("until", "must be after since")
	case span > MaxUsageSpan:
		return out, invalid("since", "must be at most %d days before until", MaxUsageSpan/(24*time.Hour))
	}
	keys, err := s.AccountKeys(ctx, org, id)
	if err != nil {
		return out, err
	}
	for _, k := range keys {
		use := KeyUse{Key: k}
		if use.Buckets, err = s.usageOf(ctx, k.Prefix, out.Since, out.Until); err != nil {
			return out, err
		}
		for _, b := range use.Buckets {
			use.Total.Add(b.Usage)
		}
		if use.Senders, err = s.sendersOf(ctx, k.Prefix); err != nil {
			return out, err
		}
		out.Keys = append(out.Keys, use)
	}
	return out, nil
}

func (s *Store) usageOf(ctx context.Context, prefix string, since, until time.Time) ([]UsageBucket, error) {
	rows, err := s.r.QueryContext(ctx, `SELECT hour, requests, accepted, filtered, invalid, unavailable, refused, bytes FROM key_usage
		WHERE prefix = $1 AND hour >= $2 AND hour < $3 ORDER BY hour`, prefix, since.UnixMilli(), until.UnixMilli())
	if err != nil {
		return nil, wrap("read the usage", err)
	}
	out, err := collect(rows, func(rows *sql.Rows) (UsageBucket, error) {
		var b UsageBucket
		var hour int64
		err := rows.Scan(&hour, &b.Requests, &b.Accepted, &b.Filtered, &b.Invalid, &b.Unavailable, &b.Refused, &b.Bytes)
		b.At = fromMilli(hour)
		return b, err
	})
	return out, wrap("read the usage", err)
}

func (s *Store) sendersOf(ctx context.Context, prefix string) ([]KeySender, error) {
	rows, err := s.r.QueryContext(ctx, `SELECT address, user_agent, service, first_at, last_at, count FROM key_senders WHERE prefix = $1
		ORDER BY last_at DESC, address, user_agent, service LIMIT $2`, prefix, auth.MaxSendersOfAKey)
	if err != nil {
		return nil, wrap("read the senders", err)
	}
	out, err := collect(rows, func(rows *sql.Rows) (KeySender, error) {
		var k KeySender
		var first, last int64
		err := rows.Scan(&k.Address, &k.UserAgent, &k.Service, &first, &last, &k.Requests)
		k.First, k.Last = fromMilli(first), fromMilli(last)
		return k, err
	})
	return out, wrap("read the senders", err)
}
