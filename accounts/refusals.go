package accounts

import (
	"context"
	"database/sql"
	"encoding/json"
	"strings"
	"time"

	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/signals"
)

const (
	// maxRefusals is how many refusals are kept of each org, and of those that belong to none.
	maxRefusals = 1000
	// refusalRetention is how long they are kept at most.
	refusalRetention = 7 * 24 * time.Hour
)

// A Refusal is a request that an edge refused, or several of the same sender, key and reason within a second.
type Refusal struct {
	ID        string
	Org       string // of the key, where its prefix is known, be it with a wrong secret; "" else
	At        time.Time
	Code      int    // of HTTP
	Reason    string // from the closed list of the edge's metrics
	Address   string
	Prefix    string // "" where no well-formed key was sent
	Path      string
	UserAgent string
	RequestID string // of the last
	Count     int64
}

// MarshalJSON is the refusal as the admin API answers it.
func (r Refusal) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		ID        string  `json:"id"`
		At        *string `json:"at"`
		Code      int     `json:"code"`
		Reason    string  `json:"reason"`
		Address   string  `json:"address"`
		Prefix    *string `json:"key_prefix"`
		Path      string  `json:"path"`
		UserAgent string  `json:"user_agent"`
		RequestID string  `json:"request_id"`
		Count     int64   `json:"count"`
	}{r.ID, jsonTime(r.At), r.Code, r.Reason, r.Address, jsonText(r.Prefix), r.Path, r.UserAgent, r.RequestID, r.Count})
}

// AddRefusals keeps refusals, their orgs found by their prefixes whatever Org says, and of each org the last 1,000. ID is made here.
func (s *Store) AddRefusals(ctx context.Context, refusals []Refusal) error {
	if len(refusals) == 0 {
		return nil
	}
	_, err := s.write(ctx, func(ctx context.Context, t *tx) error {
		rows := make([][10]any, len(refusals))
		for i, r := range refusals {
			rows[i] = [10]any{signals.NewID("ref", r.At), r.At.UnixMilli(), r.Code, r.Reason, r.Address, r.Prefix, r.Path, r.UserAgent, r.RequestID, r.Count}
		}
		list, err := json.Marshal(rows)
		if err != nil {
			return wrap("write the refusals", err)
		}
		added, err := t.QueryContext(ctx, `WITH v (id, at, code, reason, address, prefix, path, user_agent, request_id, count) AS (SELECT t.value ->> 0,
			CAST(t.value ->> 1 AS BIGINT), CAST(t.value ->> 2 AS BIGINT), t.value ->> 3, t.value ->> 4, t.value ->> 5, t.value ->> 6, t.value ->> 7,
			t.value ->> 8, CAST(t.value ->> 9 AS BIGINT) FROM `+t.dialect.elements("$1")+`)
			INSERT INTO refusals (id, org, at, code, reason, address, prefix, path, user_agent, request_id, count)
			SELECT v.id, COALESCE(k.org, ''), v.at, v.code, v.reason, v.address, v.prefix, v.path, v.user_agent, v.request_id, v.count
			FROM v LEFT JOIN keys k ON k.prefix = v.prefix WHERE v.id <> '' RETURNING org`, string(list))
		if err != nil {
			return wrap("write the refusals", err)
		}
		orgs, err := collect(added, func(rows *sql.Rows) (string, error) {
			var org string
			err := rows.Scan(&org)
			return org, err
		})
		if err != nil {
			return wrap("write the refusals", err)
		}
		for _, org := range distinct(orgs) {
			_, err := t.ExecContext(ctx, `DELETE FROM refusals WHERE org = $1 AND id <= (SELECT id FROM refusals WHERE org = $1 ORDER BY id DESC LIMIT 1 OFFSET $2)`,
				org, maxRefusals)
			if err != nil {
				return wrap("keep the last refusals", err)
			}
		}
		return nil
	})
	return wrap("add refusals", err)
}

// A RefusalFilter narrows a list of refusals. The zero value lists all of the org's.
type RefusalFilter struct {
	Prefix  string // of a key, or text that holds a whole one
	Account string // of whose keys
	Reasons []string
	Cursor  string
	Limit   int // 1 to MaxLimit; 0: DefaultLimit
}

const selectRefusal = `SELECT id, org, at, code, reason, address, prefix, path, user_agent, request_id, count FROM refusals`

func scanRefusal(rows *sql.Rows) (Refusal, error) {
	var r Refusal
	var at int64
	err := rows.Scan(&r.ID, &r.Org, &at, &r.Code, &r.Reason, &r.Address, &r.Prefix, &r.Path, &r.UserAgent, &r.RequestID, &r.Count)
	r.At = fromMilli(at)
	return r, err
}

// Refusals lists the refusals that belong to an org, latest first. Those of unknown and malformed keys belong to none. Errors: ErrNotFound for an
// account that is not there, *InvalidError.
func (s *Store) Refusals(ctx context.Context, org string, f RefusalFilter) (Page[Refusal], error) {
	limit, err := checkLimit(f.Limit)
	if err != nil {
		return Page[Refusal]{}, err
	}
	var a args
	where := " WHERE org = " + a.add(org)
	if f.Prefix != "" {
		prefix, ok := auth.PrefixOf(f.Prefix)
		if !ok {
			return Page[Refusal]{}, invalid("prefix", "must be a key's prefix")
		}
		f.Prefix = prefix
		where += " AND prefix = " + a.add(prefix)
	}
	if f.Account != "" {
		if !accountIDPattern.MatchString(f.Account) {
			return Page[Refusal]{}, ErrNotFound
		}
		if _, err := s.Account(ctx, org, f.Account); err != nil {
			return Page[Refusal]{}, err
		}
		where += " AND prefix IN (SELECT k.prefix FROM keys k WHERE k.org = " + a.add(org) + " AND k.subject_id = " + a.add(f.Account) + ")"
	}
	if len(f.Reasons) > 0 {
		var places []string
		for _, r := range f.Reasons {
			places = append(places, a.add(r))
		}
		where += " AND reason IN (" + strings.Join(places, ", ") + ")"
	}
	in := fingerprint("refusals", org, f.Prefix, f.Account, f.Reasons)
	after, begun, err := decodePlace(f.Cursor, in)
	if err != nil {
		return Page[Refusal]{}, err
	}
	if begun {
		where += " AND id < " + a.add(after.ID)
	}
	rows, err := s.r.QueryContext(ctx, selectRefusal+where+" ORDER BY id DESC LIMIT "+a.add(limit+1), a...)
	if err != nil {
		return Page[Refusal]{}, wrap("list the refusals", err)
	}
	items, err := collect(rows, scanRefusal)
	if err != nil {
		return Page[Refusal]{}, wrap("list the refusals", err)
	}
	p := Page[Refusal]{Items: items}
	if len(items) > limit {
		p.Items = items[:limit]
		p.Next = place{In: in, ID: items[limit-1].ID}.encode()
	}
	return p, nil
}

// LastRefusals lists the refusals of all orgs and of none since a time, oldest first, at most limit: for who operates Sluice, never for an org's
// admin.
func (s *Store) LastRefusals(ctx context.Context, since time.Time, limit int) ([]Refusal, error) {
	rows, err := s.r.QueryContext(ctx, selectRefusal+` WHERE at >= $1 ORDER BY at DESC, id DESC LIMIT $2`, since.UnixMilli(), limit)
	if err != nil {
		return nil, wrap("read the last refusals", err)
	}
	items, err := collect(rows, scanRefusal)
	for i, j := 0, len(items)-1; i < j; i, j = i+1, j-1 {
		items[i], items[j] = items[j], items[i]
	}
	return items, wrap("read the last refusals", err)
}
