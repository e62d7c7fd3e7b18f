package accounts

import (
	"context"
	"database/sql"
	"errors"
)

// The methods of this file are what the console asks beyond the admin API.

// KeyByPrefix reads one key of the org, whoever it speaks for and whether or not it is revoked. Unlike Identify it leaves no row in the audit: a list
// that is searched is reloaded at will, and shows no more than the list of keys does. Errors: ErrNotFound, for other orgs' keys as well.
func (s *Store) KeyByPrefix(ctx context.Context, org, prefix string) (Key, error) {
	return s.key(ctx, org, "k.prefix = $2", prefix)
}

// TokenActive says whether an admin token of the org is good still: a sign-in by it ends with it.
func (s *Store) TokenActive(ctx context.Context, org, prefix string) (bool, error) {
	t, _, err := scanToken(s.r.QueryRowContext(ctx, selectToken+` WHERE org = $1 AND prefix = $2`, org, prefix))
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, wrap("look up the admin token", err)
	}
	return t.RevokedAt.IsZero() && (t.ExpiresAt.IsZero() || s.now().Before(t.ExpiresAt)), nil
}
