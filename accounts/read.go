package accounts

import (
	"context"
	"database/sql"
	"fmt"

	"flowstate.inc/sluice/auth"
)

// selectAccount is followed by WHERE. a is the account, s its sightings.
const selectAccount = `SELECT a.id, a.org, a.name, a.environment, a.description, a.intended_scope, a.abuse_detection, a.team, a.cost_centre,
	a.requests_per_second, a.bytes_per_second, a.key_prefix, a.version, s.first_at, s.last_at, a.created_at, a.created_by, a.updated_at, a.deleted_at, a.deleted_by
	FROM service_accounts a JOIN account_seen s ON s.account_id = a.id`

func scanAccount(row interface{ Scan(...any) error }) (Account, error) {
	var a Account
	var first, last, created, updated int64
	var deleted sql.NullInt64
	var deletedBy sql.NullString
	err := row.Scan(&a.ID, &a.Org, &a.Name, &a.Environment, &a.Description, &a.IntendedScope, &a.AbuseDetection, &a.Team, &a.CostCentre,
		&a.Limits.RequestsPerSecond, &a.Limits.BytesPerSecond, &a.KeyPrefix, &a.Version, &first, &last, &created, &a.CreatedBy, &updated, &deleted, &deletedBy)
	if err != nil {
		return Account{}, err
	}
	a.FirstSeenAt, a.LastSeenAt, a.CreatedAt, a.UpdatedAt = fromMilli(first), fromMilli(last), fromMilli(created), fromMilli(updated)
	a.DeletedAt, a.DeletedBy = fromMilli(deleted.Int64), deletedBy.String
	return a, nil
}

// Account reads one account, a deleted one too. Errors: ErrNotFound, for other orgs' ids as well.
func (s *Store) Account(ctx context.Context, org, id string) (Account, error) {
	a, err := scanAccount(s.r.QueryRowContext(ctx, selectAccount+` WHERE a.org = $1 AND a.id = $2`, org, id))
	return a, wrap("read the account", err)
}

// AccountByName reads the live account of this name, in any case, and environment. Errors: ErrNotFound.
func (s *Store) AccountByName(ctx context.Context, org, name, environment string) (Account, error) {
	a, err := scanAccount(s.r.QueryRowContext(ctx, selectAccount+` WHERE a.org = $1 AND a.environment = $2 AND a.name_lower = $3 AND a.deleted_at IS NULL`,
		org, environment, lower(name)))
	return a, wrap("read the account by name", err)
}

// AccountCounts says how many accounts there are, counting no further than CountLimit, so that an empty list can say why it is empty.
type AccountCounts struct {
	Live, Deleted int
}

// CountLimit is where CountAccounts stops: its answer reads as "this many or more".
const CountLimit = 10_000

// CountAccounts counts the org's accounts.
func (s *Store) CountAccounts(ctx context.Context, org string) (AccountCounts, error) {
	var c AccountCounts
	for live, n := range map[bool]*int{true: &c.Live, false: &c.Deleted} {
		err := s.r.QueryRowContext(ctx, `SELECT COUNT(*) FROM (SELECT 1 AS one FROM service_accounts WHERE org = $1 AND live = $2 LIMIT $3) AS counted`,
			org, live, CountLimit).Scan(n)
		if err != nil {
			return AccountCounts{}, wrap("count the accounts", err)
		}
	}
	return c, nil
}

// selectKey is followed by WHERE. k is the key, a its account where it has one, n its sightings.
const selectKey = `SELECT k.prefix, k.org, k.kind, k.subject_id, k.subject_name, k.created_at, k.created_by, k.revoked_at, k.revoked_by,
	COALESCE(n.first_at, 0), COALESCE(n.last_at, 0), COALESCE(a.name, ''), COALESCE(a.environment, '')
	FROM keys k LEFT JOIN seen n ON n.prefix = k.prefix LEFT JOIN service_accounts a ON k.kind = 'service_account' AND a.id = k.subject_id`

func scanKey(row interface{ Scan(...any) error }) (Key, error) {
	var k Key
	var created, first, last int64
	var revoked sql.NullInt64
	var revokedBy sql.NullString
	var subjectName, name, environment string
	err := row.Scan(&k.Prefix, &k.Org, &k.Kind, &k.SubjectID, &subjectName, &created, &k.CreatedBy, &revoked, &revokedBy, &first, &last, &name, &environment)
	if err != nil {
		return Key{}, err
	}
	k.CreatedAt, k.RevokedAt, k.RevokedBy = fromMilli(created), fromMilli(revoked.Int64), revokedBy.String
	k.FirstUsedAt, k.LastUsedAt = fromMilli(first), fromMilli(last)
	k.Label = serviceLabel(name, environment)
	if k.Kind != auth.KindServiceAccount {
		k.Label = string(k.Kind) + ": " + subjectName
	}
	return k, nil
}

// AccountKeys lists every key that the account ever had, newest first. Errors: ErrNotFound.
func (s *Store) AccountKeys(ctx context.Context, org, id string) ([]Key, error) {
	rows, err := s.r.QueryContext(ctx, selectKey+` WHERE k.org = $1 AND k.subject_id = $2 AND k.kind = 'service_account'
		ORDER BY k.created_at DESC, k.prefix DESC LIMIT 1000`, org, id)
	if err != nil {
		return nil, wrap("read the account's keys", err)
	}
	keys, err := collect(rows, func(rows *sql.Rows) (Key, error) { return scanKey(rows) })
	if err != nil {
		return nil, wrap("read the account's keys", err)
	}
	// An account never is without a key, so none means no account.
	if len(keys) == 0 {
		return nil, fmt.Errorf("read the account's keys: %w", ErrNotFound)
	}
	return keys, nil
}

// noKey turns "no such row" into auth.ErrNoKey, which the chain caches; every other error it does not.
func noKey(step string, err error) error {
	if isNoRows(err) {
		return auth.ErrNoKey
	}
	return wrap(step, err)
}
