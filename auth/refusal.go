package auth

import (
	"errors"
	"net/netip"
)

// The errors of a look-up. Callers of the edge see one 401 for ErrUnknownKey, ErrMalformedKey and ErrNoCredentials
// alike (else the answers would tell a thief which keys are worth keeping), and 503 for ErrUnavailable.
var (
	// ErrUnknownKey is every refusal after the format: no such key, revoked, wrong secret, wrong slug.
	// It always comes as a *Refusal, which says which, for logs and metrics only.
	ErrUnknownKey = errors.New("unknown key")
	// ErrUnavailable means that nobody could say: the database and the caches were away, or over their budget.
	ErrUnavailable = errors.New("authentication unavailable")
	// ErrNoKey is what Truth answers for a prefix, an account or a name that does not exist.
	ErrNoKey = errors.New("no such key")
)

// A RefusalReason says why a request was refused. The list is closed: it is a label of metrics.
type RefusalReason string

// The reasons of a refusal.
const (
	NoCredentials RefusalReason = "no_credentials"
	Malformed     RefusalReason = "malformed"
	Unknown       RefusalReason = "unknown"
	Revoked       RefusalReason = "revoked"
	HashMismatch  RefusalReason = "hash_mismatch" // the prefix exists, the secret is another
	SlugMismatch  RefusalReason = "slug_mismatch" // the key is good, and of another org than Basic's user name says
)

func refusalReasons() []RefusalReason {
	return []RefusalReason{NoCredentials, Malformed, Unknown, Revoked, HashMismatch, SlugMismatch}
}

// A Refusal is an error that knows why. It wraps ErrUnknownKey, ErrMalformedKey or ErrNoCredentials.
type Refusal struct {
	Reason RefusalReason
	Prefix string     // public; "" where there was no well-formed key
	Org    string     // "" unless the key exists and its secret was right
	Remote netip.Addr // may be invalid
}

// Error is for logs. The sender of the key must not see it.
func (r *Refusal) Error() string {
	if r.Prefix == "" {
		return "refused: " + string(r.Reason)
	}
	return "refused " + r.Prefix + ": " + string(r.Reason)
}

// Unwrap says what the caller may be told.
func (r *Refusal) Unwrap() error {
	switch r.Reason {
	case NoCredentials:
		return ErrNoCredentials
	case Malformed:
		return ErrMalformedKey
	}
	return ErrUnknownKey
}
