package accounts

import (
	"context"
	"database/sql"
	"fmt"
	"strings"

	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/signals"
)

// NewKey is what CreateKey needs: the key of a person or a detector. The keys of service accounts come with their account.
type NewKey struct {
	Kind auth.Kind // auth.KindPerson or auth.KindDetector
	ID   string    // of the person (required: the user's id or e-mail address) or the detector ("": made here), at most 200 characters
	Name string    // 1 to 80 characters; "" for a person: their id
}

// CreateKey makes a key for a person or a detector, and returns it with the raw key, which is never shown again. A subject may have several.
// Errors: *InvalidError, ErrUnknownOrg.
func (s *Store) CreateKey(ctx context.Context, by By, org string, in NewKey) (Key, string, error) {
	var c checker
	in.ID = c.text("id", in.ID, MaxSubjectID, false)
	switch in.Kind {
	case auth.KindPerson:
		if in.ID == "" {
			c.fail("id", "is required: the person's user id or e-mail address")
		}
		if strings.TrimSpace(in.Name) == "" {
			in.Name = firstRunes(in.ID, MaxName)
		}
	case auth.KindDetector:
	default:
		c.fail("kind", "must be person or detector; a service account's key comes with the account")
	}
	in.Name = c.name("name", in.Name)
	if strings.Contains(in.ID, "/") {
		c.fail("id", "must not hold a slash")
	}
	if err := c.err(); err != nil {
		return Key{}, "", err
	}
	var out Key
	var raw string
	_, err := s.write(ctx, func(ctx context.Context, t *tx) error {
		id := in.ID
		if id == "" {
			id = signals.NewID("det", t.now)
		}
		var key auth.Key
		raw, key = auth.MintKey(in.Kind)
		out = Key{Prefix: key.Prefix(), Org: org, Kind: in.Kind, SubjectID: id, Label: string(in.Kind) + ": " + in.Name, CreatedAt: t.now, CreatedBy: by.Actor}
		if err := t.orgExists(ctx, org); err != nil {
			return err
		}
		if err := t.insertKey(ctx, org, id, in.Name, key, nextVersion(0, t), by); err != nil {
			return err
		}
		return t.audit(ctx, org, by, Event{Action: "key.created", Target: out.Subject(), After: fields{"key_prefix": out.Prefix, "name": in.Name}})
	})
	if err != nil {
		return Key{}, "", err
	}
	return out, raw, nil
}

func firstRunes(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n])
	}
	return s
}

// A KeyFilter is the question that a list of keys answers. The zero value lists the active keys of persons and detectors, newest first.
type KeyFilter struct {
	Kinds   []auth.Kind // auth.KindPerson, auth.KindDetector; none: both
	Revoked bool        // revoked ones too
	Cursor  string
	Limit   int // 1 to MaxLimit; 0: DefaultLimit
}

// Keys lists the keys of persons and detectors, newest first. Errors: *InvalidError.
func (s *Store) Keys(ctx context.Context, org string, f KeyFilter) (Page[Key], error) {
	limit, err := checkLimit(f.Limit)
	if err != nil {
		return Page[Key]{}, err
	}
	kinds := f.Kinds
	if len(kinds) == 0 {
		kinds = []auth.Kind{auth.KindDetector, auth.KindPerson}
	}
	for _, k := range kinds {
		if k != auth.KindPerson && k != auth.KindDetector {
			return Page[Key]{}, invalid("kind", "must be person or detector; an account's keys are listed with the account")
		}
	}
	in := fingerprint("keys", org, kinds, f.Revoked)
	after, begun, err := decodePlace(f.Cursor, in)
	if err != nil {
		return Page[Key]{}, err
	}
	var a args
	var branches []string
	for _, kind := range kinds {
		where := "k.org = " + a.add(org) + " AND k.kind = " + a.add(string(kind))
		if !f.Revoked {
			where += " AND k.revoked_at IS NULL"
		}
		if begun {
			where += " AND (k.created_at, k.prefix) < (" + a.add(after.Num) + ", " + a.add(after.ID) + ")"
		}
		branches = append(branches, "SELECT created_at, prefix FROM (SELECT k.created_at, k.prefix FROM keys k WHERE "+where+
			" ORDER BY k.created_at DESC, k.prefix DESC LIMIT "+a.add(limit+1)+") AS branch")
	}
	const order = " ORDER BY u.created_at DESC, u.prefix DESC"
	merged := "(SELECT u.created_at, u.prefix FROM (" + strings.Join(branches, " UNION ALL ") + ") AS u" + order + " LIMIT " + a.add(limit+1) + ") AS u"
	from := strings.Replace(selectKey, "FROM keys k", "FROM "+merged+" JOIN keys k ON k.prefix = u.prefix", 1)
	rows, err := s.r.QueryContext(ctx, from+order, a...)
	if err != nil {
		return Page[Key]{}, wrap("list the keys", err)
	}
	items, err := collect(rows, func(rows *sql.Rows) (Key, error) { return scanKey(rows) })
	if err != nil {
		return Page[Key]{}, wrap("list the keys", err)
	}
	p := Page[Key]{Items: items}
	if len(items) > limit {
		p.Items = items[:limit]
		last := p.Items[limit-1]
		p.Next = place{In: in, Num: last.CreatedAt.UnixMilli(), ID: last.Prefix}.encode()
	}
	return p, nil
}

// RevokeKey revokes the key of a person or a detector, with DeleteAccount's promises. Revoking a revoked key changes nothing.
// Errors: ErrNotFound, ErrAccountKey.
func (s *Store) RevokeKey(ctx context.Context, by By, org, prefix string) (Key, Revoked, error) {
	var rev Revoked
	at, err := s.write(ctx, func(ctx context.Context, t *tx) error {
		rev.Prefixes = nil
		done, err := t.revokeOwn(ctx, by, org, prefix)
		if done {
			rev.Prefixes = []string{prefix}
		}
		return err
	})
	if err != nil {
		return Key{}, Revoked{}, err
	}
	rev.At = at
	if at.IsZero() {
		rev.At, _ = s.clock(ctx, s.w)
	}
	k, err := s.key(ctx, org, "k.prefix = $2", prefix)
	return k, rev, err
}

// revokeOwn revokes one key of a person or a detector, and reports whether it was alive.
func (t *tx) revokeOwn(ctx context.Context, by By, org, prefix string) (bool, error) {
	var version int64
	var revoked sql.NullInt64
	var kind, subject, name string
	err := t.QueryRowContext(ctx, `SELECT k.version, k.revoked_at, k.kind, k.subject_id, k.subject_name FROM keys k WHERE k.org = $1 AND k.prefix = $2`+
		t.dialect.forUpdate("k"), org, prefix).Scan(&version, &revoked, &kind, &subject, &name)
	switch {
	case err != nil:
		return false, wrap("read the key", err)
	case kind == string(auth.KindServiceAccount):
		return false, ErrAccountKey
	case revoked.Valid:
		return false, nil
	}
	if err := t.revokeKey(ctx, lockedKey{prefix, version}, nextVersion(version, t), by); err != nil {
		return false, err
	}
	return true, t.audit(ctx, org, by, Event{
		Action: "key.revoked", Target: Subject{kind, subject, kind + ": " + name},
		Before: fields{"key_prefix": prefix, "name": name}, After: fields{"revoked_at": *jsonTime(t.now)},
	})
}

func (s *Store) key(ctx context.Context, org, where string, arg any) (Key, error) {
	k, err := scanKey(s.r.QueryRowContext(ctx, selectKey+` WHERE k.org = $1 AND `+where, org, arg))
	return k, wrap("read the key", err)
}

// noAdmin turns "no such row" into ErrNoAdmin.
func noAdmin(step string, err error) error {
	if isNoRows(err) {
		return fmt.Errorf("%s: %w", step, ErrNoAdmin)
	}
	return wrap(step, err)
}
