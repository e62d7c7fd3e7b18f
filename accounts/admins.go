package accounts

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"flowstate.inc/sluice/auth"
)

// An AdminToken opens the admin API. Its secret is stored as a hash only.
type AdminToken struct {
	Prefix      string
	Org         string
	Name        string
	Permissions []auth.Permission
	CreatedAt   time.Time
	CreatedBy   string
	ExpiresAt   time.Time // zero: never
	RevokedAt   time.Time // zero while active
	RevokedBy   string
}

// MarshalJSON is the token, without its secret, as the CLI prints it.
func (a AdminToken) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Prefix      string            `json:"prefix"`
		Org         string            `json:"org"`
		Name        string            `json:"name"`
		Permissions []auth.Permission `json:"permissions"`
		CreatedAt   *string           `json:"created_at"`
		CreatedBy   string            `json:"created_by"`
		ExpiresAt   *string           `json:"expires_at"`
		RevokedAt   *string           `json:"revoked_at"`
		RevokedBy   *string           `json:"revoked_by"`
	}{a.Prefix, a.Org, a.Name, a.Permissions, jsonTime(a.CreatedAt), a.CreatedBy, jsonTime(a.ExpiresAt), jsonTime(a.RevokedAt), jsonText(a.RevokedBy)})
}

// CreateToken makes an admin token and returns it with the raw token, which is never shown again. A zero expires is never.
// Errors: *InvalidError, ErrUnknownOrg.
func (s *Store) CreateToken(ctx context.Context, by By, org, name string, permissions []auth.Permission, expires time.Time) (AdminToken, string, error) {
	var c checker
	name = c.name("name", name)
	permissions = checkPermissions(&c, permissions)
	if !expires.IsZero() && !expires.After(s.now()) {
		c.fail("expires_at", "must be in the future")
	}
	if err := c.err(); err != nil {
		return AdminToken{}, "", err
	}
	var out AdminToken
	var raw string
	_, err := s.write(ctx, func(ctx context.Context, t *tx) error {
		var key auth.Key
		raw, key = auth.MintAdminToken()
		out = AdminToken{Prefix: key.Prefix(), Org: org, Name: name, Permissions: permissions, CreatedAt: t.now, CreatedBy: by.Actor,
			ExpiresAt: fromMilli(milliOrZero(expires))}
		if err := t.orgExists(ctx, org); err != nil {
			return err
		}
		_, err := t.ExecContext(ctx, `INSERT INTO admin_tokens (prefix, org, name, hash, permissions, created_at, created_by, expires_at)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`,
			out.Prefix, org, name, key.Hash[:], joinPermissions(permissions), t.now.UnixMilli(), by.Actor, nullMilli(expires))
		if err != nil {
			return wrap("insert the admin token", err)
		}
		return t.audit(ctx, org, by, Event{Action: "token.created", Target: out.subject(), After: fields{
			"name": name, "permissions": permissions, "token_prefix": out.Prefix, "expires_at": jsonTime(expires),
		}})
	})
	if err != nil {
		return AdminToken{}, "", err
	}
	return out, raw, nil
}

func (a AdminToken) subject() Subject { return Subject{"admin_token", a.Prefix, "token: " + a.Name} }

func checkPermissions(c *checker, permissions []auth.Permission) []auth.Permission {
	if len(permissions) == 0 {
		c.fail("permissions", "at least one is required")
	}
	for _, p := range permissions {
		if _, ok := auth.ParsePermission(string(p)); !ok {
			c.fail("permissions", "must be of %v", auth.AllPermissions())
			break
		}
	}
	permissions = slices.Clone(permissions)
	slices.Sort(permissions)
	return slices.Compact(permissions)
}

func joinPermissions(permissions []auth.Permission) string {
	texts := make([]string, len(permissions))
	for i, p := range permissions {
		texts[i] = string(p)
	}
	return strings.Join(texts, " ")
}

func splitPermissions(s string) []auth.Permission {
	var out []auth.Permission
	for f := range strings.FieldsSeq(s) {
		out = append(out, auth.Permission(f))
	}
	return out
}

func nullMilli(t time.Time) sql.NullInt64 {
	return sql.NullInt64{Int64: milliOrZero(t), Valid: !t.IsZero()}
}

// Tokens lists the org's admin tokens, revoked and expired ones too, newest first, the newest 1,000 of them.
func (s *Store) Tokens(ctx context.Context, org string) ([]AdminToken, error) {
	rows, err := s.r.QueryContext(ctx, selectToken+` WHERE org = $1 ORDER BY created_at DESC, prefix DESC LIMIT 1000`, org)
	if err != nil {
		return nil, wrap("list the admin tokens", err)
	}
	return collect(rows, func(rows *sql.Rows) (AdminToken, error) {
		t, _, err := scanToken(rows)
		return t, err
	})
}

const selectToken = `SELECT prefix, org, name, hash, permissions, created_at, created_by, expires_at, revoked_at, revoked_by FROM admin_tokens`

func scanToken(row interface{ Scan(...any) error }) (AdminToken, []byte, error) {
	var t AdminToken
	var hash []byte
	var permissions string
	var created int64
	var expires, revoked sql.NullInt64
	var revokedBy sql.NullString
	err := row.Scan(&t.Prefix, &t.Org, &t.Name, &hash, &permissions, &created, &t.CreatedBy, &expires, &revoked, &revokedBy)
	t.Permissions, t.CreatedAt, t.ExpiresAt = splitPermissions(permissions), fromMilli(created), fromMilli(expires.Int64)
	t.RevokedAt, t.RevokedBy = fromMilli(revoked.Int64), revokedBy.String
	return t, hash, err
}

// RevokeToken ends an admin token: no request that starts after it returned is accepted by any process, since tokens are looked up each time.
// Revoking a revoked token changes nothing. Errors: ErrNotFound.
func (s *Store) RevokeToken(ctx context.Context, by By, org, prefix string) (AdminToken, error) {
	var out AdminToken
	_, err := s.write(ctx, func(ctx context.Context, t *tx) error {
		var err error
		out, _, err = scanToken(t.QueryRowContext(ctx, selectToken+` WHERE org = $1 AND prefix = $2`+t.dialect.forUpdate("admin_tokens"), org, prefix))
		if err != nil {
			return wrap("read the admin token", err)
		}
		if !out.RevokedAt.IsZero() {
			return nil
		}
		out.RevokedAt, out.RevokedBy = t.now, by.Actor
		_, err = t.ExecContext(ctx, `UPDATE admin_tokens SET revoked_at = $2, revoked_by = $3 WHERE prefix = $1`, prefix, t.now.UnixMilli(), by.Actor)
		if err != nil {
			return wrap("revoke the admin token", err)
		}
		return t.audit(ctx, org, by, Event{Action: "token.revoked", Target: out.subject(),
			Before: fields{"name": out.Name, "permissions": out.Permissions}, After: fields{"revoked_at": *jsonTime(t.now)}})
	})
	if err != nil {
		return AdminToken{}, err
	}
	return out, nil
}

// Authenticate says who an admin token speaks for. Errors: ErrNoAdmin for unknown, malformed, expired and revoked ones alike; else the database's.
func (s *Store) Authenticate(ctx context.Context, raw string) (auth.Admin, error) {
	key, err := auth.ParseAdminToken([]byte(raw))
	if err != nil {
		return auth.Admin{}, fmt.Errorf("read the admin token: %w", ErrNoAdmin)
	}
	t, hash, err := scanToken(s.r.QueryRowContext(ctx, selectToken+` WHERE prefix = $1`, key.Prefix()))
	if err != nil {
		return auth.Admin{}, noAdmin("look up the admin token", err)
	}
	if subtle.ConstantTimeCompare(hash, key.Hash[:]) != 1 || !t.RevokedAt.IsZero() || (!t.ExpiresAt.IsZero() && !s.now().Before(t.ExpiresAt)) {
		return auth.Admin{}, fmt.Errorf("look up the admin token: %w", ErrNoAdmin)
	}
	return auth.Admin{Org: t.Org, Actor: "token:" + t.Prefix, Permissions: t.Permissions}, nil
}

// A Session is one sign-in at the console.
type Session struct {
	Admin     auth.Admin
	CreatedAt time.Time
	ExpiresAt time.Time
}

// CreateSession signs admin in for ttl and returns the id for the cookie: 256 random bits in base64url, of which the hash is stored.
// Errors: ErrUnknownOrg, *InvalidError.
func (s *Store) CreateSession(ctx context.Context, by By, admin auth.Admin, ttl time.Duration) (string, error) {
	return s.admit(ctx, by, admin, ttl, "session")
}

// CreateLink makes a one-time sign-in link's secret, good for ttl. Errors: as CreateSession.
func (s *Store) CreateLink(ctx context.Context, by By, admin auth.Admin, ttl time.Duration) (string, error) {
	return s.admit(ctx, by, admin, ttl, "link")
}

func (s *Store) admit(ctx context.Context, by By, admin auth.Admin, ttl time.Duration, kind string) (string, error) {
	var c checker
	admin.Permissions = checkPermissions(&c, admin.Permissions)
	if ttl <= 0 {
		c.fail("ttl", "must be positive")
	}
	if err := c.err(); err != nil {
		return "", err
	}
	var secret [32]byte
	_, _ = rand.Read(secret[:]) // never fails: crypto/rand ends the program instead
	id := base64.RawURLEncoding.EncodeToString(secret[:])
	hash := sha256.Sum256([]byte(id))
	_, err := s.write(ctx, func(ctx context.Context, t *tx) error {
		if err := t.orgExists(ctx, admin.Org); err != nil {
			return err
		}
		_, err := t.ExecContext(ctx, `INSERT INTO sessions (hash, kind, org, actor, permissions, created_at, expires_at) VALUES ($1, $2, $3, $4, $5, $6, $7)`,
			hash[:], kind, admin.Org, admin.Actor, joinPermissions(admin.Permissions), t.now.UnixMilli(), t.now.Add(ttl).UnixMilli())
		if err != nil {
			return wrap("insert the "+kind, err)
		}
		return t.audit(ctx, admin.Org, by, Event{Action: kind + ".created", Target: Subject{"admin", admin.Actor, "admin: " + admin.Actor},
			After: fields{"permissions": admin.Permissions, "expires_at": *jsonTime(t.now.Add(ttl))}})
	})
	if err != nil {
		return "", err
	}
	return id, nil
}

// Session reads a sign-in. Errors: ErrNoAdmin for unknown and expired ones alike.
func (s *Store) Session(ctx context.Context, id string) (Session, error) {
	hash := sha256.Sum256([]byte(id))
	ses, err := scanSession(s.r.QueryRowContext(ctx, `SELECT org, actor, permissions, created_at, expires_at FROM sessions
		WHERE hash = $1 AND kind = 'session' AND expires_at > $2`, hash[:], s.now().UnixMilli()))
	return ses, noAdmin("look up the session", err)
}

// TakeLink uses up a one-time link and says who it signs in. Of two calls at once one succeeds. Errors: ErrNoAdmin for unknown, used and expired ones.
func (s *Store) TakeLink(ctx context.Context, secret string) (auth.Admin, error) {
	hash := sha256.Sum256([]byte(secret))
	ses, err := scanSession(s.w.QueryRowContext(ctx, `DELETE FROM sessions WHERE hash = $1 AND kind = 'link' AND expires_at > $2
		RETURNING org, actor, permissions, created_at, expires_at`, hash[:], s.now().UnixMilli()))
	return ses.Admin, noAdmin("take the one-time link", err)
}

// EndSession signs out. An unknown session is no error.
func (s *Store) EndSession(ctx context.Context, id string) error {
	hash := sha256.Sum256([]byte(id))
	_, err := s.w.ExecContext(ctx, `DELETE FROM sessions WHERE hash = $1 AND kind = 'session'`, hash[:])
	return wrap("end the session", err)
}

func scanSession(row *sql.Row) (Session, error) {
	var ses Session
	var permissions string
	var created, expires int64
	err := row.Scan(&ses.Admin.Org, &ses.Admin.Actor, &permissions, &created, &expires)
	if err != nil {
		return Session{}, err
	}
	ses.Admin.Permissions = splitPermissions(permissions)
	ses.CreatedAt, ses.ExpiresAt = fromMilli(created), fromMilli(expires)
	return ses, nil
}
