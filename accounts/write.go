package accounts

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"

	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/signals"
)

// MaxIdempotencyKey is how long an idempotency key may be, in bytes.
const MaxIdempotencyKey = 255

// CreateAccount makes an account, its key and their audit rows. idempotencyKey is "" for none: with one, a repeat with the same input within a day
// returns the account that the first call made, and no key. Errors: *InvalidError, ErrUnknownOrg, ErrConflict, ErrIdempotencyMismatch.
func (s *Store) CreateAccount(ctx context.Context, by By, org string, in NewAccount, idempotencyKey string) (Created, error) {
	a := Account{
		Org: org, Name: in.Name, Environment: in.Environment, Description: in.Description, IntendedScope: in.IntendedScope,
		AbuseDetection: in.AbuseDetection == nil || *in.AbuseDetection, Team: in.Team, CostCentre: in.CostCentre, Limits: in.Limits,
	}
	a, err := checkAccount(a)
	if err != nil {
		return Created{}, err
	}
	if len(idempotencyKey) > MaxIdempotencyKey || !utf8.ValidString(idempotencyKey) {
		return Created{}, invalid("Idempotency-Key", "must be at most %d bytes of UTF-8", MaxIdempotencyKey)
	}
	body := hashAccount(a)
	if idempotencyKey != "" {
		if again, err := s.repeated(ctx, org, idempotencyKey, body); !errors.Is(err, ErrNotFound) {
			return again, err
		}
	}
	var out Created
	_, err = s.write(ctx, func(ctx context.Context, t *tx) error {
		raw, key := auth.MintKey(auth.KindServiceAccount)
		a.ID, a.KeyPrefix, a.Version = signals.NewID("sa", t.now), key.Prefix(), nextVersion(0, t)
		a.CreatedAt, a.CreatedBy, a.UpdatedAt = t.now, by.Actor, t.now
		out = Created{Account: a, Key: raw}
		return t.createAccount(ctx, by, a, key, idempotencyKey, body)
	})
	// Two requests with one idempotency key at once: the one that came second finds what the first made.
	if errors.Is(err, errIdempotencyTaken) {
		return s.repeated(ctx, org, idempotencyKey, body)
	}
	if err != nil {
		return Created{}, err
	}
	return out, nil
}

var errIdempotencyTaken = errors.New("the idempotency key was used meanwhile")

func (t *tx) createAccount(ctx context.Context, by By, a Account, key auth.Key, idempotencyKey string, body [32]byte) error {
	if err := t.orgExists(ctx, a.Org); err != nil {
		return err
	}
	if idempotencyKey != "" {
		h := sha256.Sum256([]byte(idempotencyKey))
		_, err := t.ExecContext(ctx, `INSERT INTO idempotency_keys (org, key_hash, body_hash, account_id, created_at) VALUES ($1, $2, $3, $4, $5)`,
			a.Org, h[:], body[:], a.ID, t.now.UnixMilli())
		if classify(err) == classUnique {
			return errIdempotencyTaken
		}
		if err != nil {
			return wrap("keep the idempotency key", err)
		}
	}
	_, err := t.ExecContext(ctx, `INSERT INTO service_accounts (id, org, name, name_lower, environment, description, intended_scope, abuse_detection,
		team, cost_centre, requests_per_second, bytes_per_second, key_prefix, version, created_at, created_by, updated_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)`,
		a.ID, a.Org, a.Name, lower(a.Name), a.Environment, a.Description, a.IntendedScope, a.AbuseDetection,
		a.Team, a.CostCentre, a.Limits.RequestsPerSecond, a.Limits.BytesPerSecond, a.KeyPrefix, a.Version, t.now.UnixMilli(), a.CreatedBy, t.now.UnixMilli())
	if classify(err) == classUnique {
		return fmt.Errorf("%w: %s / %s", ErrConflict, a.Name, a.Environment)
	}
	if err != nil {
		return wrap("insert the account", err)
	}
	_, err = t.ExecContext(ctx, `INSERT INTO account_seen (account_id, org, live, environment, first_at, last_at) VALUES ($1, $2, TRUE, $3, 0, 0)`,
		a.ID, a.Org, a.Environment)
	if err != nil {
		return wrap("insert the account's sightings", err)
	}
	if err := t.insertKey(ctx, a.Org, a.ID, "", key, a.Version, by); err != nil {
		return err
	}
	return t.audit(ctx, a.Org, by, Event{
		Action: "service_account.created", Target: Subject{string(auth.KindServiceAccount), a.ID, a.Label()}, After: accountFields(a),
	})
}

// repeated finds what an idempotency key made. ErrNotFound: it was not used yet.
func (s *Store) repeated(ctx context.Context, org, idempotencyKey string, body [32]byte) (Created, error) {
	h := sha256.Sum256([]byte(idempotencyKey))
	var id string
	var was []byte
	err := s.r.QueryRowContext(ctx, `SELECT account_id, body_hash FROM idempotency_keys WHERE org = $1 AND key_hash = $2`, org, h[:]).Scan(&id, &was)
	if err != nil {
		return Created{}, wrap("look up the idempotency key", err)
	}
	if string(was) != string(body[:]) {
		return Created{}, ErrIdempotencyMismatch
	}
	a, err := s.Account(ctx, org, id)
	if err != nil {
		return Created{}, err
	}
	return Created{Account: a, Repeated: true}, nil
}

// hashAccount tells one request's input from another's, after normalisation: what was asked, not how it was written.
func hashAccount(a Account) [32]byte {
	abuse := "off"
	if a.AbuseDetection {
		abuse = "on"
	}
	var b []byte
	for _, f := range []string{a.Name, a.Environment, a.Description, a.IntendedScope, abuse, a.Team, a.CostCentre} {
		b = binary.AppendUvarint(b, uint64(len(f)))
		b = append(b, f...)
	}
	b = binary.AppendVarint(b, a.Limits.RequestsPerSecond)
	b = binary.AppendVarint(b, a.Limits.BytesPerSecond)
	return sha256.Sum256(b)
}

// UpdateAccount changes the fields of up that are not nil. expected is the version that the caller read, 0 for any. A change of nothing is not
// written. Errors: *InvalidError, ErrNotFound, ErrDeleted, ErrStale, ErrConflict.
func (s *Store) UpdateAccount(ctx context.Context, by By, org, id string, expected int64, up AccountUpdate) (Account, error) {
	var out Account
	_, err := s.write(ctx, func(ctx context.Context, t *tx) error {
		old, err := t.lockAccount(ctx, org, id)
		switch {
		case err != nil:
			return err
		case !old.Live():
			return ErrDeleted
		case expected != 0 && expected != old.Version:
			return ErrStale
		}
		a, err := checkAccount(up.apply(old))
		if err != nil {
			return err
		}
		before, after := changedFields(old, a)
		if len(after) == 0 {
			out = old
			return nil
		}
		a.Version, a.UpdatedAt = nextVersion(old.Version, t), t.now
		out = a
		return t.updateAccount(ctx, by, a, before, after)
	})
	if err != nil {
		return Account{}, err
	}
	return out, nil
}

func (up AccountUpdate) apply(a Account) Account {
	set(&a.Name, up.Name)
	set(&a.Environment, up.Environment)
	set(&a.Description, up.Description)
	set(&a.IntendedScope, up.IntendedScope)
	set(&a.AbuseDetection, up.AbuseDetection)
	set(&a.Team, up.Team)
	set(&a.CostCentre, up.CostCentre)
	set(&a.Limits.RequestsPerSecond, up.RequestsPerSecond)
	set(&a.Limits.BytesPerSecond, up.BytesPerSecond)
	return a
}

func set[T any](dst, src *T) {
	if src != nil {
		*dst = *src
	}
}

func (t *tx) updateAccount(ctx context.Context, by By, a Account, before, after fields) error {
	_, err := t.ExecContext(ctx, `UPDATE service_accounts SET name = $3, name_lower = $4, environment = $5, description = $6, intended_scope = $7,
		abuse_detection = $8, team = $9, cost_centre = $10, requests_per_second = $11, bytes_per_second = $12, version = $13, updated_at = $14
		WHERE org = $1 AND id = $2`,
		a.Org, a.ID, a.Name, lower(a.Name), a.Environment, a.Description, a.IntendedScope, a.AbuseDetection, a.Team, a.CostCentre,
		a.Limits.RequestsPerSecond, a.Limits.BytesPerSecond, a.Version, a.UpdatedAt.UnixMilli())
	if classify(err) == classUnique {
		return fmt.Errorf("%w: %s / %s", ErrConflict, a.Name, a.Environment)
	}
	if err != nil {
		return wrap("update the account", err)
	}
	if _, err := t.ExecContext(ctx, `UPDATE account_seen SET environment = $2 WHERE account_id = $1`, a.ID, a.Environment); err != nil {
		return wrap("update the account's sightings", err)
	}
	keys, err := t.activeKeys(ctx, a.Org, a.ID)
	if err != nil {
		return err
	}
	for _, k := range keys {
		if err := t.bumpKey(ctx, k, a.Version); err != nil {
			return err
		}
	}
	return t.audit(ctx, a.Org, by, Event{
		Action: "service_account.updated", Target: Subject{string(auth.KindServiceAccount), a.ID, a.Label()}, Before: before, After: after,
	})
}

// DeleteAccount soft-deletes the account and revokes its keys in one transaction. When it returns, this process accepts none of the keys any more;
// ConfirmRevocation with Revoked.At tells of the other edges. Deleting a deleted account changes nothing and returns it, so that a retry after a
// lost answer learns the same. Errors: ErrNotFound.
func (s *Store) DeleteAccount(ctx context.Context, by By, org, id string) (Account, Revoked, error) {
	var out Account
	var rev Revoked
	at, err := s.write(ctx, func(ctx context.Context, t *tx) error {
		a, err := t.lockAccount(ctx, org, id)
		if err != nil {
			return err
		}
		rev.Prefixes = rev.Prefixes[:0] // a retry of the transaction begins anew
		if !a.Live() {
			out = a
			return nil
		}
		label := a.Label()
		a.Version, a.UpdatedAt, a.DeletedAt, a.DeletedBy = nextVersion(a.Version, t), t.now, t.now, by.Actor
		out = a
		return t.deleteAccount(ctx, by, a, label, &rev)
	})
	if err != nil {
		return Account{}, Revoked{}, err
	}
	rev.At = at
	if at.IsZero() {
		// Nothing was changed now, or the clock could not be read: any time after the commit will do.
		rev.At, _ = s.clock(ctx, s.w)
	}
	return out, rev, nil
}

func (t *tx) deleteAccount(ctx context.Context, by By, a Account, label string, rev *Revoked) error {
	_, err := t.ExecContext(ctx, `UPDATE service_accounts SET version = $3, updated_at = $4, deleted_at = $4, deleted_by = $5 WHERE org = $1 AND id = $2`,
		a.Org, a.ID, a.Version, t.now.UnixMilli(), by.Actor)
	if err != nil {
		return wrap("delete the account", err)
	}
	if _, err := t.ExecContext(ctx, `UPDATE account_seen SET live = FALSE WHERE account_id = $1`, a.ID); err != nil {
		return wrap("delete the account's sightings from the live ones", err)
	}
	keys, err := t.activeKeys(ctx, a.Org, a.ID)
	if err != nil {
		return err
	}
	revoked := []string{} // of this account; rev may hold those of others
	for _, k := range keys {
		if err := t.revokeKey(ctx, k, a.Version, by); err != nil {
			return err
		}
		revoked = append(revoked, k.Prefix)
	}
	rev.Prefixes = append(rev.Prefixes, revoked...)
	before := accountFields(a)
	return t.audit(ctx, a.Org, by, Event{
		Action: "service_account.deleted", Target: Subject{string(auth.KindServiceAccount), a.ID, label},
		Before: before, After: fields{"deleted_at": *jsonTime(t.now), "revoked_keys": revoked},
	})
}

// nextVersion rises with every change, and past every version that a restored backup forgot: it is the time in milliseconds where that is more.
func nextVersion(old int64, t *tx) int64 { return max(old+1, t.now.UnixMilli()) }

func (t *tx) orgExists(ctx context.Context, org string) error {
	var slug string
	err := t.QueryRowContext(ctx, `SELECT slug FROM orgs WHERE slug = $1`, org).Scan(&slug)
	if errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("%w: %q", ErrUnknownOrg, org)
	}
	return wrap("look up the org", err)
}

// lockAccount reads the account and keeps other changes of it away until the transaction ends.
func (t *tx) lockAccount(ctx context.Context, org, id string) (Account, error) {
	a, err := scanAccount(t.QueryRowContext(ctx, selectAccount+` WHERE a.org = $1 AND a.id = $2`+t.dialect.forUpdate("a"), org, id))
	return a, wrap("read the account", err)
}

// A lockedKey is a key in a transaction that is about to change it.
type lockedKey struct {
	Prefix  string
	Version int64
}

// activeKeys locks the subject's keys that are not revoked, in the order of their prefixes.
func (t *tx) activeKeys(ctx context.Context, org, subject string) ([]lockedKey, error) {
	rows, err := t.QueryContext(ctx, `SELECT k.prefix, k.version FROM keys k WHERE k.org = $1 AND k.subject_id = $2 AND k.kind = 'service_account'
		AND k.revoked_at IS NULL ORDER BY k.prefix`+t.dialect.forUpdate("k"), org, subject)
	if err != nil {
		return nil, wrap("read the account's keys", err)
	}
	return collect(rows, func(rows *sql.Rows) (lockedKey, error) {
		var k lockedKey
		err := rows.Scan(&k.Prefix, &k.Version)
		return k, err
	})
}

func (t *tx) insertKey(ctx context.Context, org, subject, name string, key auth.Key, version int64, by By) error {
	_, err := t.ExecContext(ctx, `INSERT INTO keys (prefix, org, kind, subject_id, subject_name, hash, version, created_at, created_by)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`,
		key.Prefix(), org, string(key.Kind), subject, name, key.Hash[:], version, t.now.UnixMilli(), by.Actor)
	if err != nil {
		return wrap("insert the key", err)
	}
	return t.changed(ctx, key.Prefix(), version)
}

func (t *tx) bumpKey(ctx context.Context, k lockedKey, version int64) error {
	version = max(version, k.Version+1)
	if _, err := t.ExecContext(ctx, `UPDATE keys SET version = $2 WHERE prefix = $1`, k.Prefix, version); err != nil {
		return wrap("raise the key's version", err)
	}
	return t.changed(ctx, k.Prefix, version)
}

func (t *tx) revokeKey(ctx context.Context, k lockedKey, version int64, by By) error {
	version = max(version, k.Version+1)
	_, err := t.ExecContext(ctx, `UPDATE keys SET version = $2, revoked_at = $3, revoked_by = $4 WHERE prefix = $1`, k.Prefix, version, t.now.UnixMilli(), by.Actor)
	if err != nil {
		return wrap("revoke the key", err)
	}
	return t.changed(ctx, k.Prefix, version)
}

// changed writes the row that every edge reads, by the database's clock.
func (t *tx) changed(ctx context.Context, prefix string, version int64) error {
	var at int64
	err := t.QueryRowContext(ctx, `INSERT INTO key_changes (prefix, version, at) VALUES ($1, $2, `+t.dialect.clock()+` / 1000) RETURNING at`,
		prefix, version).Scan(&at)
	if err != nil {
		return wrap("write the key's change", err)
	}
	t.changes = append(t.changes, auth.Change{Prefix: prefix, Version: version, At: fromMilli(at)})
	return nil
}

// collect reads all rows and closes them.
func collect[T any](rows *sql.Rows, scan func(*sql.Rows) (T, error)) ([]T, error) {
	var out []T
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("scan: %w", err), rows.Close())
		}
		out = append(out, v)
	}
	return out, errors.Join(rows.Err(), rows.Close())
}
