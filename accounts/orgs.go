package accounts

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// An Org is one customer. Its slug never changes.
type Org struct {
	Slug      string
	CreatedAt time.Time
}

// MarshalJSON is the org as the CLI prints it.
func (o Org) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Slug      string  `json:"slug"`
		CreatedAt *string `json:"created_at"`
	}{o.Slug, jsonTime(o.CreatedAt)})
}

// CreateOrg makes an org. Errors: *InvalidError, ErrOrgExists.
func (s *Store) CreateOrg(ctx context.Context, by By, slug string) (Org, error) {
	return s.createOrg(ctx, by, slug, false)
}

// EnsureFirstOrg makes the org when there is none at all yet, and else only says whether it exists: the way of `sluice accounts create`, where a
// mistyped slug must not make an org. Errors: *InvalidError, ErrUnknownOrg.
func (s *Store) EnsureFirstOrg(ctx context.Context, by By, slug string) (Org, error) {
	o, err := s.Org(ctx, slug)
	if !errors.Is(err, ErrUnknownOrg) {
		return o, err
	}
	var other string
	err = s.r.QueryRowContext(ctx, `SELECT slug FROM orgs LIMIT 1`).Scan(&other)
	if err == nil {
		return Org{}, fmt.Errorf("%w: %q", ErrUnknownOrg, slug)
	}
	if !isNoRows(err) {
		return Org{}, wrap("look for orgs", err)
	}
	o, err = s.createOrg(ctx, by, slug, true)
	if errors.Is(err, ErrOrgExists) {
		// Somebody made the first one meanwhile: this very one, or another.
		return s.Org(ctx, slug)
	}
	return o, err
}

func (s *Store) createOrg(ctx context.Context, by By, slug string, onlyFirst bool) (Org, error) {
	if !slugPattern.MatchString(slug) {
		return Org{}, invalid("org", "must be 1 to 63 characters of a-z, 0-9 and -, and neither begin nor end with -")
	}
	var o Org
	_, err := s.write(ctx, func(ctx context.Context, t *tx) error {
		o = Org{Slug: slug, CreatedAt: t.now}
		var n int
		if err := t.QueryRowContext(ctx, `SELECT COUNT(*) FROM (SELECT 1 AS one FROM orgs LIMIT 1) AS counted`).Scan(&n); err != nil {
			return wrap("look for orgs", err)
		}
		first := n == 0
		if onlyFirst && !first {
			return ErrOrgExists
		}
		_, err := t.ExecContext(ctx, `INSERT INTO orgs (slug, is_first, created_at, created_by) VALUES ($1, $2, $3, $4)`, slug, first, t.now.UnixMilli(), by.Actor)
		if classify(err) == classUnique {
			return fmt.Errorf("%w: %q", ErrOrgExists, slug)
		}
		if err != nil {
			return wrap("insert the org", err)
		}
		genesis := make([]byte, 32)
		if _, err := t.ExecContext(ctx, `INSERT INTO audit_heads (org, count, at, hash) VALUES ($1, 0, 0, $2)`, slug, genesis); err != nil {
			return wrap("begin the org's audit", err)
		}
		return t.audit(ctx, slug, by, Event{Action: "org.created", Target: Subject{"org", slug, "org: " + slug}, After: fields{"slug": slug}})
	})
	if err != nil {
		return Org{}, err
	}
	return o, nil
}

// Org reads one org. Errors: ErrUnknownOrg.
func (s *Store) Org(ctx context.Context, slug string) (Org, error) {
	var created int64
	err := s.r.QueryRowContext(ctx, `SELECT created_at FROM orgs WHERE slug = $1`, slug).Scan(&created)
	if isNoRows(err) {
		return Org{}, fmt.Errorf("%w: %q", ErrUnknownOrg, slug)
	}
	if err != nil {
		return Org{}, wrap("read the org", err)
	}
	return Org{Slug: slug, CreatedAt: fromMilli(created)}, nil
}

// Orgs lists all orgs by slug. It is for the operator's tools: whoever signs in sees one org only.
func (s *Store) Orgs(ctx context.Context) ([]Org, error) {
	rows, err := s.r.QueryContext(ctx, `SELECT slug, created_at FROM orgs ORDER BY slug`)
	if err != nil {
		return nil, wrap("list the orgs", err)
	}
	return collect(rows, func(rows *sql.Rows) (Org, error) {
		var o Org
		var created int64
		err := rows.Scan(&o.Slug, &created)
		o.CreatedAt = fromMilli(created)
		return o, err
	})
}
