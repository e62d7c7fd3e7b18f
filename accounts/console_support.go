package accounts

import (
	"context"
	"database/sql"
	"errors"
)

// The methods of this file are what the console asks beyond the admin API.

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
