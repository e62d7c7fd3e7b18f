package accounts

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"flowstate.inc/sluice/auth"
)

// An AuditFilter is the question that the audit log answers, newest rows first. The zero value is all of it.
type AuditFilter struct {
	Actions     []string // any of; none: all
	Actors      []string
	TargetKinds []string  // service_account, person, detector, admin_token, admin, org, audit
	Target      string    // id of what was changed; a whole key or prefix stands for the subject of that key
	Since       time.Time // rows at or after; zero: no bound
	Until       time.Time // rows before; zero: no bound
	Cursor      string
	Limit       int // 1 to MaxLimit; 0: DefaultLimit
}

// auditBranches bounds how many index ranges one filter may be made of.
const auditBranches = 20

// Audit lists rows of the org's audit, newest first. With one kind of filter a page reads a bounded number of rows; each further one reads on through
// the rows that only the first matches. Errors: *InvalidError.
func (s *Store) Audit(ctx context.Context, org string, f AuditFilter) (Page[AuditEvent], error) {
	limit, err := checkLimit(f.Limit)
	if err != nil {
		return Page[AuditEvent]{}, err
	}
	q, err := s.auditQuery(ctx, org, f)
	if err != nil {
		return Page[AuditEvent]{}, err
	}
	items, err := s.auditPage(ctx, q, limit+1)
	if err != nil {
		return Page[AuditEvent]{}, err
	}
	p := Page[AuditEvent]{Items: items}
	if len(items) > limit {
		p.Items = items[:limit]
		p.Next = place{In: q.in, Num: p.Items[limit-1].Seq}.encode()
	}
	return p, nil
}

// AuditAll is every row that the filter matches (its Limit aside), newest first, for exports: it holds a page of them at a time, and no connection
// between two pages. It ends after the first error.
func (s *Store) AuditAll(ctx context.Context, org string, f AuditFilter) iter.Seq2[AuditEvent, error] {
	const page = 1000
	return func(yield func(AuditEvent, error) bool) {
		q, err := s.auditQuery(ctx, org, f)
		if err != nil {
			yield(AuditEvent{}, err)
			return
		}
		for {
			items, err := s.auditPage(ctx, q, page)
			if err != nil {
				yield(AuditEvent{}, err)
				return
			}
			for _, e := range items {
				if !yield(e, nil) {
					return
				}
			}
			if len(items) < page {
				return
			}
			q.before = items[len(items)-1].Seq
		}
	}
}

// An auditQuery is a checked AuditFilter: rows with from <= seq < before.
type auditQuery struct {
	org          string
	from, before int64
	actions      []string
	actors       []string
	kinds        []string
	target       string
	in           string
}

func (s *Store) auditQuery(ctx context.Context, org string, f AuditFilter) (auditQuery, error) {
	q := auditQuery{org: org, before: 1 << 62, actions: distinct(f.Actions), actors: distinct(f.Actors), kinds: distinct(f.TargetKinds), target: f.Target}
	var c checker
	for field, values := range map[string][]string{"action": q.actions, "actor": q.actors, "target_kind": q.kinds, "target": {q.target}} {
		if slices.ContainsFunc(values, func(v string) bool { return !plainText(v) || len(v) > 400 }) {
			c.fail(field, "must be text without control characters, at most 400 bytes long")
		}
		if len(values) > auditBranches {
			c.fail(field, "must be at most %d values", auditBranches)
		}
	}
	if err := c.err(); err != nil {
		return auditQuery{}, err
	}
	if err := s.resolveTarget(ctx, &q); err != nil {
		return auditQuery{}, err
	}
	q.in = fingerprint("audit", org, q.actions, q.actors, q.kinds, q.target, milliOrZero(f.Since), milliOrZero(f.Until))
	// Along the chain time never falls, so a range of time is a range of seq, found by two steps into the index on time.
	if !f.Since.IsZero() {
		seq, err := s.firstSeqAt(ctx, org, f.Since)
		if err != nil {
			return auditQuery{}, err
		}
		q.from = seq
	}
	if !f.Until.IsZero() {
		seq, err := s.firstSeqAt(ctx, org, f.Until)
		if err != nil {
			return auditQuery{}, err
		}
		q.before = seq
	}
	after, begun, err := decodePlace(f.Cursor, q.in)
	if err != nil {
		return auditQuery{}, err
	}
	if begun {
		q.before = min(q.before, after.Num)
	}
	return q, nil
}

// resolveTarget turns a pasted key or prefix into the subject that the rows name.
func (s *Store) resolveTarget(ctx context.Context, q *auditQuery) error {
	prefix, ok := auth.PrefixOf(q.target)
	if !ok {
		return nil
	}
	q.target = prefix
	var subject string
	err := s.r.QueryRowContext(ctx, `SELECT subject_id FROM keys WHERE org = $1 AND prefix = $2`, q.org, prefix).Scan(&subject)
	switch {
	case err == nil:
		q.target = subject
	case !isNoRows(err):
		return wrap("look up the target's key", err)
	}
	return nil
}

// firstSeqAt is the first row at or after t, or past the end.
func (s *Store) firstSeqAt(ctx context.Context, org string, t time.Time) (int64, error) {
	var seq int64
	err := s.r.QueryRowContext(ctx, `SELECT seq FROM audit_events WHERE org = $1 AND at >= $2 ORDER BY at, seq LIMIT 1`, org, t.UnixMilli()).Scan(&seq)
	if isNoRows(err) {
		return 1 << 62, nil
	}
	return seq, wrap("find the time in the audit", err)
}

func distinct(values []string) []string {
	values = slices.Clone(values)
	slices.Sort(values)
	return slices.Compact(values)
}

const auditColumns = `e.org, e.seq, e.id, e.at, e.actor, e.action, e.target_kind, e.target_id, e.target_label, e.before_json, e.after_json, e.source_ip, e.source_via, e.hash`

// query merges one branch per value of the narrowest filter given: each is a range of one index in the order of the chain, and ends after a page.
func (q auditQuery) query(limit int) (string, []any) {
	type filter struct {
		column string
		values []string
	}
	var filters []filter
	if q.target != "" {
		filters = append(filters, filter{"e.target_id", []string{q.target}})
	}
	for _, f := range []filter{{"e.actor", q.actors}, {"e.action", q.actions}, {"e.target_kind", q.kinds}} {
		if len(f.values) > 0 {
			filters = append(filters, f)
		}
	}
	var a args
	common := "e.org = " + a.add(q.org) + " AND e.seq < " + a.add(q.before) + " AND e.seq >= " + a.add(q.from)
	for _, f := range filters[min(1, len(filters)):] {
		in := make([]string, len(f.values))
		for i, v := range f.values {
			in[i] = a.add(v)
		}
		common += " AND " + f.column + " IN (" + strings.Join(in, ", ") + ")"
	}
	last := a.add(limit)
	branch := func(where string) string {
		return "SELECT org, seq FROM (SELECT e.org, e.seq FROM audit_events e WHERE " + where + " ORDER BY e.seq DESC LIMIT " + last + ") AS branch"
	}
	var branches []string
	if len(filters) == 0 {
		branches = append(branches, branch(common))
	} else {
		for _, v := range filters[0].values {
			branches = append(branches, branch(common+" AND "+filters[0].column+" = "+a.add(v)))
		}
	}
	return "SELECT " + auditColumns + " FROM (SELECT u.org, u.seq FROM (" + strings.Join(branches, " UNION ALL ") + ") AS u ORDER BY u.seq DESC LIMIT " + last +
		") AS u JOIN audit_events e ON e.org = u.org AND e.seq = u.seq ORDER BY u.seq DESC", a
}

func (s *Store) auditPage(ctx context.Context, q auditQuery, limit int) ([]AuditEvent, error) {
	query, args := q.query(limit)
	rows, err := s.r.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, wrap("read the audit", err)
	}
	items, err := collect(rows, scanAudit)
	return items, wrap("read the audit", err)
}

func scanAudit(rows *sql.Rows) (AuditEvent, error) {
	var e AuditEvent
	var at int64
	var before, after sql.NullString
	var hash []byte
	err := rows.Scan(&e.Org, &e.Seq, &e.ID, &at, &e.Actor, &e.Action, &e.Target.Kind, &e.Target.ID, &e.Target.Label, &before, &after, &e.IP, &e.Via, &hash)
	if err != nil {
		return AuditEvent{}, err
	}
	e.At = fromMilli(at)
	if before.Valid {
		e.Before = json.RawMessage(before.String)
	}
	if after.Valid {
		e.After = json.RawMessage(after.String)
	}
	if len(hash) != len(e.Hash) {
		return AuditEvent{}, fmt.Errorf("the hash of audit row %d is %d bytes long", e.Seq, len(hash))
	}
	e.Hash = [32]byte(hash)
	return e, nil
}
