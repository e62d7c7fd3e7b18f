package accounts

import (
	"encoding/json"
	"errors"
	"time"

	"flowstate.inc/sluice/auth"
)

// What callers can act on. Errors of the Store wrap one of these, or are the database's.
var (
	ErrNotFound            = errors.New("not found")                                      // unknown, or of another org
	ErrConflict            = errors.New("the name is taken by a live account")            // in this org and environment
	ErrStale               = errors.New("the account has changed since it was read")      // the expected version is not the current one
	ErrDeleted             = errors.New("the account is deleted")                         // and can be read, not edited
	ErrUnknownOrg          = errors.New("unknown org")                                    // orgs are made by CreateOrg and EnsureFirstOrg only
	ErrOrgExists           = errors.New("the org exists")                                 // CreateOrg
	ErrIdempotencyMismatch = errors.New("the idempotency key was used with another body") // CreateAccount
	ErrAccountKey          = errors.New("the key belongs to a service account")           // it ends with its account, not on its own
	ErrNoAdmin             = errors.New("no such admin token or session")                 // unknown, malformed, expired and revoked alike
)

// By says who makes a change and from where, for the audit.
type By struct {
	Actor string // the admin's name as the sign-in knows it, `token: NAME`, or `cli`
	IP    string // of the client; "" where there is none
	Via   string // api, console, cli, oidc or system
}

// An Account is one service account as it stands, deleted ones included. It is a value; nothing in it is shared.
type Account struct {
	ID             string
	Org            string
	Name           string
	Environment    string
	Description    string
	IntendedScope  string
	AbuseDetection bool
	Team           string
	CostCentre     string
	Limits         auth.Limits // per edge; zero is the edge's default
	KeyPrefix      string      // of the newest key
	Version        int64       // rises with every change but sightings; the ETag
	FirstSeenAt    time.Time   // zero: never
	LastSeenAt     time.Time   // zero: never
	CreatedAt      time.Time
	CreatedBy      string
	UpdatedAt      time.Time
	DeletedAt      time.Time // zero while the account is live
	DeletedBy      string
}

// Label names the account as audits and alerts show it, like `service: nightly-digest-summariser / production`.
func (a Account) Label() string { return serviceLabel(a.Name, a.Environment) }

func serviceLabel(name, environment string) string { return "service: " + name + " / " + environment }

// Live says whether the account is not deleted.
func (a Account) Live() bool { return a.DeletedAt.IsZero() }

// MarshalJSON is the account as the admin API answers it: times in RFC 3339 and UTC, null where there is none.
func (a Account) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		ID             string      `json:"id"`
		Org            string      `json:"org"`
		Name           string      `json:"name"`
		Environment    string      `json:"environment"`
		Description    string      `json:"description"`
		IntendedScope  string      `json:"intended_scope"`
		AbuseDetection bool        `json:"abuse_detection"`
		Team           string      `json:"team"`
		CostCentre     string      `json:"cost_centre"`
		Limits         auth.Limits `json:"limits"`
		KeyPrefix      string      `json:"key_prefix"`
		FirstSeenAt    *string     `json:"first_seen_at"`
		LastSeenAt     *string     `json:"last_seen_at"`
		CreatedAt      *string     `json:"created_at"`
		CreatedBy      string      `json:"created_by"`
		UpdatedAt      *string     `json:"updated_at"`
		DeletedAt      *string     `json:"deleted_at"`
		DeletedBy      *string     `json:"deleted_by"`
	}{
		a.ID, a.Org, a.Name, a.Environment, a.Description, a.IntendedScope, a.AbuseDetection, a.Team, a.CostCentre, a.Limits, a.KeyPrefix,
		jsonTime(a.FirstSeenAt), jsonTime(a.LastSeenAt), jsonTime(a.CreatedAt), a.CreatedBy, jsonTime(a.UpdatedAt), jsonTime(a.DeletedAt), jsonText(a.DeletedBy),
	})
}

// NewAccount is what CreateAccount needs. Name and Environment are required.
type NewAccount struct {
	Name           string // 1 to 80 characters after trimming
	Environment    string // production, staging or development, in any case
	Description    string // at most 2,000 characters
	IntendedScope  string // at most 4,000 characters
	AbuseDetection *bool  // nil: on
	Team           string // at most 80 characters
	CostCentre     string // at most 80 characters
	Limits         auth.Limits
}

// AccountUpdate is what UpdateAccount changes: the fields that are not nil.
type AccountUpdate struct {
	Name              *string
	Environment       *string
	Description       *string
	IntendedScope     *string
	AbuseDetection    *bool
	Team              *string
	CostCentre        *string
	RequestsPerSecond *int64
	BytesPerSecond    *int64
}

// Created is what CreateAccount returns.
type Created struct {
	Account  Account
	Key      string // the raw key, here and never again; "" when Repeated
	Repeated bool   // an earlier call with the same idempotency key made the account
}

// Revoked is what the calls that revoke return. At goes to [Store.ConfirmRevocation].
type Revoked struct {
	Prefixes []string  // the keys that are dead now
	At       time.Time // by the database's clock, after the commit; zero when the database did not answer any more
}

// A Key is one key as it stands, without its hash: of a service account, a person or a detector.
type Key struct {
	Prefix      string
	Org         string
	Kind        auth.Kind
	SubjectID   string
	Label       string // `service: NAME / ENVIRONMENT`, `person: NAME` or `detector: NAME`
	CreatedAt   time.Time
	CreatedBy   string
	RevokedAt   time.Time // zero while the key is active
	RevokedBy   string
	FirstUsedAt time.Time // zero: never
	LastUsedAt  time.Time // zero: never
}

// Active says whether the key is not revoked.
func (k Key) Active() bool { return k.RevokedAt.IsZero() }

// State is "active" or "revoked".
func (k Key) State() string {
	if k.Active() {
		return "active"
	}
	return "revoked"
}

// A Subject names who a key or an audit row is about.
type Subject struct {
	Kind  string `json:"kind"`
	ID    string `json:"id"`
	Label string `json:"label"`
}

// Subject is who the key speaks for.
func (k Key) Subject() Subject { return Subject{string(k.Kind), k.SubjectID, k.Label} }

// MarshalJSON is the key as the admin API answers it.
func (k Key) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Prefix      string  `json:"prefix"`
		Org         string  `json:"org"`
		Kind        string  `json:"kind"`
		Subject     Subject `json:"subject"`
		State       string  `json:"state"`
		CreatedAt   *string `json:"created_at"`
		CreatedBy   string  `json:"created_by"`
		RevokedAt   *string `json:"revoked_at"`
		RevokedBy   *string `json:"revoked_by"`
		FirstUsedAt *string `json:"first_used_at"`
		LastUsedAt  *string `json:"last_used_at"`
	}{
		k.Prefix, k.Org, string(k.Kind), k.Subject(), k.State(), jsonTime(k.CreatedAt), k.CreatedBy,
		jsonTime(k.RevokedAt), jsonText(k.RevokedBy), jsonTime(k.FirstUsedAt), jsonTime(k.LastUsedAt),
	})
}

// timeFormat is RFC 3339 with milliseconds always, so that the texts sort as the times do.
const timeFormat = "2006-01-02T15:04:05.000Z07:00"

func jsonTime(t time.Time) *string {
	if t.IsZero() {
		return nil
	}
	s := t.UTC().Format(timeFormat)
	return &s
}

func jsonText(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func fromMilli(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}
