package accounts

import (
	"context"
	"database/sql"
	"net/http"
	"time"

	"flowstate.inc/sluice/auth"
)

// revokeChunk is how many accounts, or keys, one transaction of RevokeAll ends: others of the org wait for it no longer than about a second.
const revokeChunk = 100

// RevokedAll says what RevokeAll has ended.
type RevokedAll struct {
	Accounts int // service accounts that were deleted, with their keys
	Keys     int // keys of all kinds that were revoked
	Revoked
}

// RevokeAll ends every telemetry key that the org has: service accounts are deleted, as DeleteAccount does, since an account without a key could send
// nothing more, and the keys of persons and detectors are revoked. It works through them a hundred at a time, each hundred in one transaction with its
// audit rows and key changes, so what it did stands when it breaks off, and a second call does the rest. Accounts that are created meanwhile end too.
// Admin tokens stay. Errors: ErrUnknownOrg; the counts are right with any error.
func (s *Store) RevokeAll(ctx context.Context, by By, org string) (RevokedAll, error) {
	var out RevokedAll
	for {
		accounts, err := s.deleteSome(ctx, by, org, &out)
		if err != nil {
			return out, err
		}
		keys, err := s.revokeSome(ctx, by, org, &out)
		if err != nil {
			return out, err
		}
		if accounts+keys == 0 {
			break
		}
	}
	_, err := s.write(ctx, func(ctx context.Context, t *tx) error {
		return t.audit(ctx, org, by, Event{Action: "org.keys_revoked", Target: Subject{"org", org, "org: " + org},
			After: fields{"deleted_accounts": out.Accounts, "revoked_keys": out.Keys}})
	})
	if err != nil {
		return out, err
	}
	if out.At.IsZero() {
		out.At, _ = s.clock(ctx, s.w) // nothing was left to revoke: any time after will do
	}
	return out, nil
}

func (s *Store) deleteSome(ctx context.Context, by By, org string, out *RevokedAll) (int, error) {
	var rev Revoked
	var n int
	at, err := s.write(ctx, func(ctx context.Context, t *tx) error {
		rev, n = Revoked{}, 0 // a retry of the transaction begins anew
		if err := t.orgExists(ctx, org); err != nil {
			return err
		}
		ids, err := t.texts(ctx, `SELECT id FROM service_accounts WHERE org = $1 AND live = $2 ORDER BY id LIMIT $3`, org, true, revokeChunk)
		if err != nil {
			return wrap("list the accounts to delete", err)
		}
		for _, id := range ids {
			a, err := t.lockAccount(ctx, org, id)
			if err != nil {
				return err
			}
			if !a.Live() {
				continue
			}
			label := a.Label()
			a.Version, a.UpdatedAt, a.DeletedAt, a.DeletedBy = nextVersion(a.Version, t), t.now, t.now, by.Actor
			if err := t.deleteAccount(ctx, by, a, label, &rev); err != nil {
				return err
			}
		}
		n = len(ids)
		return nil
	})
	if err != nil {
		return 0, err
	}
	out.Accounts += n
	out.add(rev.Prefixes, at)
	return n, nil
}

func (s *Store) revokeSome(ctx context.Context, by By, org string, out *RevokedAll) (int, error) {
	var prefixes []string
	at, err := s.write(ctx, func(ctx context.Context, t *tx) error {
		var err error
		prefixes, err = t.texts(ctx, `SELECT k.prefix FROM keys k WHERE k.org = $1 AND k.kind IN ('person', 'detector') AND k.revoked_at IS NULL ORDER BY k.prefix LIMIT $2`,
			org, revokeChunk)
		if err != nil {
			return wrap("list the keys to revoke", err)
		}
		for _, prefix := range prefixes {
			if _, err := t.revokeOwn(ctx, by, org, prefix); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	out.add(prefixes, at)
	return len(prefixes), nil
}

func (r *RevokedAll) add(prefixes []string, at time.Time) {
	r.Keys += len(prefixes)
	r.Prefixes = append(r.Prefixes, prefixes...)
	if at.After(r.At) {
		r.At = at
	}
}

func (t *tx) texts(ctx context.Context, query string, args ...any) ([]string, error) {
	rows, err := t.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	return collect(rows, func(rows *sql.Rows) (string, error) {
		var s string
		err := rows.Scan(&s)
		return s, err
	})
}

func (a *API) revokeAll(w http.ResponseWriter, r *http.Request, admin auth.Admin) error {
	o, err := readObject(r)
	if err != nil {
		return err
	}
	var confirm string
	set(&confirm, o.text("org"))
	if err := o.done(nil); err != nil {
		return err
	}
	switch confirm {
	case admin.Org:
	case "":
		return invalid("org", "is required: the slug of the org whose keys are all to be revoked, as a confirmation")
	default:
		return ErrNotFound
	}
	done, err := a.cfg.Store.RevokeAll(r.Context(), a.by(r, admin), admin.Org)
	if err != nil {
		return err
	}
	return WriteJSON(w, http.StatusOK, struct {
		Accounts   int        `json:"deleted_accounts"`
		Keys       int        `json:"revoked_keys"`
		Revocation revocation `json:"revocation"`
	}{done.Accounts, done.Keys, a.confirm(r, done.Revoked)})
}
