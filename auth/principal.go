package auth

import "time"

// A Kind says what sort of subject a key speaks for.
type Kind string

// The kinds of subject. A key's own prefix (fsk_, fpk_, fdk_) repeats it, but the key record decides.
const (
	KindServiceAccount Kind = "service_account"
	KindPerson         Kind = "person"
	KindDetector       Kind = "detector"
)

// The environments of a service account. They drive the severity of its signals.
const (
	Production  = "production"
	Staging     = "staging"
	Development = "development"
)

// Limits are what one key may send through one edge. Zero means the edge's default.
type Limits struct {
	RequestsPerSecond int64 `json:"requests_per_second"`
	BytesPerSecond    int64 `json:"bytes_per_second"`
}

// A Principal is who a key speaks for. It is immutable and shared by all requests made with the key.
// The fields from Environment to CostCentre are set for service accounts only.
type Principal struct {
	Org            string `json:"org"` // the org's slug, which never changes
	Kind           Kind   `json:"kind"`
	ID             string `json:"id"`
	Name           string `json:"name"`
	Environment    string `json:"environment,omitempty"`
	Description    string `json:"description,omitempty"`
	IntendedScope  string `json:"intended_scope,omitempty"`
	AbuseDetection bool   `json:"abuse_detection"`
	Team           string `json:"team,omitempty"`
	CostCentre     string `json:"cost_centre,omitempty"`
	KeyPrefix      string `json:"key_prefix"`
	Limits         Limits `json:"limits"`
}

// A Record is what the tiers keep of a key. It holds no secret: Hash is the SHA-256 of the whole key.
type Record struct {
	Prefix    string
	Hash      [32]byte
	Version   int64     // rises with every create, edit and revocation of the key or its account
	RevokedAt time.Time // zero while the key is active
	Principal Principal
}

// A Change is one row of key_changes: the key has at least this version now.
type Change struct {
	Prefix  string
	Version int64
	At      time.Time // by the database's clock
}

// A Stamp is when a key was first and last used, by the edge's receive time.
type Stamp struct {
	Prefix      string
	First, Last time.Time
}
