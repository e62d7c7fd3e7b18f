package signals

import (
	"encoding/json"
	"fmt"
	"time"
)

// Own is a signal that Sluice raises itself, such as key_misuse_detected.
type Own struct {
	Type       string
	Severity   Severity       // "": the type's base severity
	ID         string         // what makes two of them the same signal; "": every one is new
	DetectedAt time.Time      // zero: when it is decided
	SessionID  string         // "" where there is none
	Details    map[string]any // what encoding/json can write; no prompts and no keys
}

// NewRaised makes a signal that is then decided like any other, with the principal it is about (its KeyPrefix "" where no
// key was involved). An error means that own itself is wrong, which is a mistake of the caller.
func NewRaised(own Own) (Raised, error) {
	r := Raised{DetectedAt: own.DetectedAt.UTC()}
	if own.DetectedAt.IsZero() {
		r.DetectedAt = time.Time{}
	}
	r.setType(own.Type)
	if own.Severity != "" {
		r.setSeverity(string(own.Severity))
	}
	if own.ID != "" {
		r.setID(&r.SourceID, "id", own.ID, Malformed)
		// A scope of its own: a workload that chooses the same id must not be able to hide what Sluice says of it.
		r.identity = identity{how: 's', id: own.ID}
	}
	if own.SessionID != "" {
		r.setID(&r.SessionID, "session_id", own.SessionID, Malformed)
	}
	if len(own.Details) > 0 {
		b, err := json.Marshal(own.Details)
		if err != nil {
			return Raised{}, fmt.Errorf("raise %s: details: %w", own.Type, err)
		}
		r.setDetails(b, Limits{}.orDefaults())
	}
	if r.Fault != nil {
		return Raised{}, fmt.Errorf("raise %s: %s: %s", own.Type, r.Fault.Reason, r.Fault.Detail)
	}
	return r, nil
}
