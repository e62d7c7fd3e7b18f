package signals

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// A Draft is a list of rules that somebody proposes. It never changes, and all admins of the org share it.
type Draft struct {
	ID          string    `json:"id"`
	Rules       []Rule    `json:"rules"`
	BaseVersion int64     `json:"base_version"` // that its author had read; 0: none
	CreatedAt   time.Time `json:"created_at"`
	CreatedBy   string    `json:"created_by"`
	Version     *int64    `json:"version"` // that it became; null while it is a draft
}

// A PolicyVersion is a policy that is, or was, in force.
type PolicyVersion struct {
	Version     int64     `json:"version"`
	Active      bool      `json:"active"`
	Rules       []Rule    `json:"rules"`
	DraftID     string    `json:"draft_id"`
	DraftedAt   time.Time `json:"drafted_at"`
	DraftedBy   string    `json:"drafted_by"`
	ActivatedAt time.Time `json:"activated_at"`
	ActivatedBy string    `json:"activated_by"`
}

// policyPage bounds lists of drafts and versions.
const policyPage = 200

// CreateDraft keeps rules that compile as a draft of org. The caller has compiled them. A base version that org never had is ErrBadQuestion.
func (s *Store) CreateDraft(ctx context.Context, org string, by By, in NewDraft) (Draft, error) {
	rules := in.Rules
	text, err := json.Marshal(rules)
	if err != nil {
		return Draft{}, fmt.Errorf("create draft: %w", err)
	}
	now := s.now().UTC().Truncate(time.Millisecond)
	d := Draft{ID: NewID("pol", now), Rules: rules, CreatedAt: now, CreatedBy: by.Actor}
	err = s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		base, err := activeVersion(ctx, tx, org, "")
		if err != nil {
			return err
		}
		if in.BaseVersion != nil {
			if *in.BaseVersion < 0 || *in.BaseVersion > base {
				return fmt.Errorf("%w: base_version must be 0 to %d, the version in force", ErrBadQuestion, base)
			}
			base = *in.BaseVersion
		}
		d.BaseVersion = base
		_, err = tx.ExecContext(ctx, `INSERT INTO policy_drafts (id, org, rules, base_version, created_at, created_by) VALUES ($1, $2, $3, $4, $5, $6)`,
			d.ID, org, string(text), base, milli(now), by.Actor)
		if err != nil {
			return wrap("create draft", err)
		}
		return s.audit(ctx, tx, AuditEntry{Org: org, By: by, Action: "policy.drafted", TargetKind: "policy_draft", TargetID: d.ID, TargetLabel: "policy draft " + d.ID,
			After: map[string]any{"rules": len(rules), "base_version": base}})
	})
	if err != nil {
		return Draft{}, err
	}
	return d, nil
}

// activeVersion is the version in force, 0 for none. lock is a suffix that locks the row.
func activeVersion(ctx context.Context, tx *sql.Tx, org, lock string) (int64, error) {
	var v int64
	err := tx.QueryRowContext(ctx, `SELECT a.version FROM policy_active a WHERE a.org = $1`+lock, org).Scan(&v)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	return v, wrap("read the active version", err)
}

const draftColumns = `d.id, d.rules, d.base_version, d.created_at, d.created_by, d.version`

func scanDraft(scan func(...any) error) (Draft, error) {
	var d Draft
	var rules string
	var created int64
	if err := scan(&d.ID, &rules, &d.BaseVersion, &created, &d.CreatedBy, &d.Version); err != nil {
		return Draft{}, wrap("read draft", err)
	}
	d.CreatedAt = fromMilli(created)
	if err := json.Unmarshal([]byte(rules), &d.Rules); err != nil {
		return Draft{}, fmt.Errorf("read draft %s: %w", d.ID, err)
	}
	return d, nil
}

// Draft reads one draft of org.
func (s *Store) Draft(ctx context.Context, org, id string) (Draft, error) {
	return scanDraft(s.r.QueryRowContext(ctx, `SELECT `+draftColumns+` FROM policy_drafts d WHERE d.org = $1 AND d.id = $2`, org, id).Scan)
}

// Drafts lists the newest drafts of org, the newest first, at most 200.
func (s *Store) Drafts(ctx context.Context, org string) ([]Draft, error) {
	rows, err := s.r.QueryContext(ctx, `SELECT `+draftColumns+` FROM policy_drafts d WHERE d.org = $1 ORDER BY d.created_at DESC, d.id DESC LIMIT $2`, org, policyPage)
	if err != nil {
		return nil, wrap("list drafts", err)
	}
	defer rows.Close()
	list := []Draft{}
	for rows.Next() {
		d, err := scanDraft(rows.Scan)
		if err != nil {
			return nil, err
		}
		list = append(list, d)
	}
	return list, wrap("list drafts", rows.Err())
}

// A StaleError says that a draft was written on another version than the one in force, which whoever wrote it may never have
// seen: activating it would undo that one without a word. It is ErrStale.
type StaleError struct{ Base, Active int64 }

func (e *StaleError) Error() string {
	return fmt.Sprintf("%s: it was written on version %d, and version %d is in force", ErrStale, e.Base, e.Active)
}

func (e *StaleError) Unwrap() error { return ErrStale }

// Activate puts a draft in force as the next version. A draft that is in force already is returned as it stands, so that a
// retry is harmless; one that was in force before is ErrActivated: to roll back, draft its rules again. One that was written on
// another version than the one in force is a *StaleError: compare, and draft its rules again.
func (s *Store) Activate(ctx context.Context, org, draftID string, by By) (PolicyVersion, error) {
	var out PolicyVersion
	err := s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `INSERT INTO policy_active (org, version) VALUES ($1, 0) ON CONFLICT (org) DO NOTHING`, org); err != nil {
			return wrap("activate", err)
		}
		active, err := activeVersion(ctx, tx, org, s.dialect.forUpdate("a"))
		if err != nil {
			return err
		}
		d, err := scanDraft(tx.QueryRowContext(ctx, `SELECT `+draftColumns+` FROM policy_drafts d WHERE d.org = $1 AND d.id = $2`, org, draftID).Scan)
		if err != nil {
			return err
		}
		if d.Version != nil {
			if *d.Version != active {
				return fmt.Errorf("activate %s: %w", draftID, ErrActivated)
			}
			out, err = version(ctx, tx, org, active)
			return err
		}
		if d.BaseVersion != active {
			return fmt.Errorf("activate %s: %w", draftID, &StaleError{Base: d.BaseVersion, Active: active})
		}
		text, err := json.Marshal(d.Rules)
		if err != nil {
			return fmt.Errorf("activate: %w", err)
		}
		now := s.now().UTC().Truncate(time.Millisecond)
		out = PolicyVersion{Version: active + 1, Active: true, Rules: d.Rules, DraftID: d.ID, DraftedAt: d.CreatedAt, DraftedBy: d.CreatedBy, ActivatedAt: now, ActivatedBy: by.Actor}
		_, err = tx.ExecContext(ctx, `INSERT INTO policy_versions (org, version, draft_id, rules, drafted_at, drafted_by, activated_at, activated_by) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`,
			org, out.Version, d.ID, string(text), milli(d.CreatedAt), d.CreatedBy, milli(now), by.Actor)
		if err != nil {
			return wrap("activate", err)
		}
		if _, err := tx.ExecContext(ctx, `UPDATE policy_drafts SET version = $2 WHERE id = $1`, d.ID, out.Version); err != nil {
			return wrap("activate", err)
		}
		if _, err := tx.ExecContext(ctx, `UPDATE policy_active SET version = $2 WHERE org = $1`, org, out.Version); err != nil {
			return wrap("activate", err)
		}
		entry := AuditEntry{Org: org, By: by, Action: "policy.activated", TargetKind: "policy", TargetID: fmt.Sprint(out.Version), TargetLabel: fmt.Sprintf("policy version %d", out.Version),
			After: map[string]any{"version": out.Version, "rules": len(d.Rules), "draft": d.ID, "drafted_by": d.CreatedBy}}
		if active > 0 {
			entry.Before = map[string]any{"version": active}
		}
		return s.audit(ctx, tx, entry)
	})
	if err != nil {
		return PolicyVersion{}, err
	}
	select {
	case s.wake <- struct{}{}:
	default: // a wake is waiting already
	}
	return out, nil
}

const versionColumns = `v.version, v.rules, v.draft_id, v.drafted_at, v.drafted_by, v.activated_at, v.activated_by, a.version`

type rower interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

func version(ctx context.Context, q rower, org string, number int64) (PolicyVersion, error) {
	return scanVersion(q.QueryRowContext(ctx, `SELECT `+versionColumns+` FROM policy_versions v JOIN policy_active a ON a.org = v.org WHERE v.org = $1 AND v.version = $2`, org, number).Scan)
}

func scanVersion(scan func(...any) error) (PolicyVersion, error) {
	var v PolicyVersion
	var rules string
	var drafted, activated, active int64
	if err := scan(&v.Version, &rules, &v.DraftID, &drafted, &v.DraftedBy, &activated, &v.ActivatedBy, &active); err != nil {
		return PolicyVersion{}, wrap("read policy version", err)
	}
	v.Active, v.DraftedAt, v.ActivatedAt = v.Version == active, fromMilli(drafted), fromMilli(activated)
	if err := json.Unmarshal([]byte(rules), &v.Rules); err != nil {
		return PolicyVersion{}, fmt.Errorf("read policy version %d: %w", v.Version, err)
	}
	return v, nil
}

// PolicyVersion reads one version of org.
func (s *Store) PolicyVersion(ctx context.Context, org string, number int64) (PolicyVersion, error) {
	return version(ctx, s.r, org, number)
}

// ActivePolicyVersion reads the version in force; ErrNotFound where there is none yet.
func (s *Store) ActivePolicyVersion(ctx context.Context, org string) (PolicyVersion, error) {
	return scanVersion(s.r.QueryRowContext(ctx, `SELECT `+versionColumns+` FROM policy_active a JOIN policy_versions v ON v.org = a.org AND v.version = a.version WHERE a.org = $1`, org).Scan)
}

// PolicyVersions lists the newest versions of org, the newest first, at most 200.
func (s *Store) PolicyVersions(ctx context.Context, org string) ([]PolicyVersion, error) {
	rows, err := s.r.QueryContext(ctx, `SELECT `+versionColumns+` FROM policy_versions v JOIN policy_active a ON a.org = v.org WHERE v.org = $1 ORDER BY v.version DESC LIMIT $2`, org, policyPage)
	if err != nil {
		return nil, wrap("list policy versions", err)
	}
	defer rows.Close()
	list := []PolicyVersion{}
	for rows.Next() {
		v, err := scanVersion(rows.Scan)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, wrap("list policy versions", rows.Err())
}

// Versions is PoliciesConfig.Versions.
func (s *Store) Versions(ctx context.Context) (map[string]int64, error) {
	rows, err := s.r.QueryContext(ctx, `SELECT org, version FROM policy_active WHERE version > 0`)
	if err != nil {
		return nil, wrap("read active versions", err)
	}
	defer rows.Close()
	out := map[string]int64{}
	for rows.Next() {
		var org string
		var v int64
		if err := rows.Scan(&org, &v); err != nil {
			return nil, wrap("read active versions", err)
		}
		out[org] = v
	}
	return out, wrap("read active versions", rows.Err())
}

// Active is PoliciesConfig.Active.
func (s *Store) Active(ctx context.Context, org string) (ActivePolicy, error) {
	v, err := s.ActivePolicyVersion(ctx, org)
	if err != nil {
		return ActivePolicy{}, err
	}
	return ActivePolicy{Org: org, Version: v.Version, Rules: v.Rules}, nil
}
