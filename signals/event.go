package signals

import (
	"crypto/rand"
	"crypto/sha256"
	_ "embed" // the schema
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"strconv"
	"time"

	"flowstate.inc/sluice/auth"
)

// What names an event on the wire.
const (
	EventType   = "inc.flowstate.signal.v1"                             // ce_type
	EventSchema = "https://schemas.flowstate.inc/sluice/signal.v1.json" // ce_dataschema, and $id of Schema
)

// Schema is the JSON Schema (2020-12) of an event's value.
//
//go:embed schema/signal.v1.json
var Schema string

// An Event is one signal as it stands on ai_signals and in Alerts: what was stated, what was decided, and the badge as it
// was at that moment. Later changes of the account rewrite no event.
type Event struct {
	ID           string          `json:"id"`        // sig_ and 32 hex digits, always ours
	SourceID     string          `json:"source_id"` // the sender's id, null where it gave none
	Org          string          `json:"org"`
	Type         string          `json:"type"`
	Category     Category        `json:"category"`
	Severity     Severity        `json:"severity"`      // effective: capped, or set by Rule
	BaseSeverity Severity        `json:"base_severity"` // as raised; the type's where the raiser names none
	Rule         *RuleRef        `json:"rule"`          // the policy rule that set Severity, or null
	DetectedAt   time.Time       `json:"detected_at"`
	ReceivedAt   time.Time       `json:"received_at"`
	Subject      EventSubject    `json:"subject"`
	Service      *EventService   `json:"service"`    // the badge; null where no service account is behind the subject
	SessionID    string          `json:"session_id"` // null where there is none
	KeyPrefix    string          `json:"key_prefix"` // of the key that it came with; null where Sluice raised it without one
	Details      json.RawMessage `json:"details"`    // an object, as sent
}

// A RuleRef names the rule of a policy version.
type RuleRef struct {
	PolicyVersion int64  `json:"policy_version"`
	ID            string `json:"id"`
	Action        Action `json:"action"`
}

// An Action is what a policy rule does with a signal: it sets the severity.
type Action string

// The actions of a rule. None of them drops a signal.
const (
	ActionObserve Action = "OBSERVE"
	ActionWarn    Action = "WARN"
	ActionBlock   Action = "BLOCK"
)

// An EventSubject says whom a signal is about.
type EventSubject struct {
	Kind  string      `json:"kind"` // service_account, person, detector, session, turn
	ID    string      `json:"id"`
	Label string      `json:"label"`           // for people: service: nightly-digest-summariser / production
	Owner *EventOwner `json:"owner,omitempty"` // of a session or turn, where it is known
}

// An EventOwner says whose session or turn a subject is.
type EventOwner struct {
	Kind  string `json:"kind"`
	ID    string `json:"id"`
	Label string `json:"label"`
}

// An EventService is the service badge.
type EventService struct {
	ID             string `json:"id"`
	Name           string `json:"name"`
	Environment    string `json:"environment"`
	Description    string `json:"description"`
	IntendedScope  string `json:"intended_scope"`
	AbuseDetection bool   `json:"abuse_detection"`
	Team           string `json:"team"`
	CostCentre     string `json:"cost_centre"`
}

// serviceOf is the badge of a principal, nil for what is no service account.
func serviceOf(p *auth.Principal) *EventService {
	if p == nil || p.Kind != auth.KindServiceAccount {
		return nil
	}
	return &EventService{ID: p.ID, Name: p.Name, Environment: p.Environment, Description: p.Description,
		IntendedScope: p.IntendedScope, AbuseDetection: p.AbuseDetection, Team: p.Team, CostCentre: p.CostCentre}
}

// ServiceLabel is how a service account is called wherever a person reads it.
func ServiceLabel(name, environment string) string { return "service: " + name + " / " + environment }

// Key is the Kafka key, ORG/KIND/ID of the subject.
func (e *Event) Key() []byte {
	return []byte(e.Org + "/" + e.Subject.Kind + "/" + e.Subject.ID)
}

// A Header is one Kafka record header.
type Header struct {
	Key   string
	Value []byte
}

// Headers are the event's attributes by the Kafka binding of CloudEvents 1.0 in binary mode.
func (e *Event) Headers() []Header {
	return []Header{
		{"ce_specversion", []byte("1.0")},
		{"ce_id", []byte(e.ID)},
		{"ce_source", []byte("/orgs/" + e.Org)},
		{"ce_type", []byte(EventType)},
		{"ce_subject", []byte(e.Subject.Label)},
		{"ce_time", e.DetectedAt.UTC().AppendFormat(nil, time.RFC3339Nano)},
		{"ce_dataschema", []byte(EventSchema)},
		{"content-type", []byte("application/json")},
	}
}

// MarshalJSON is AppendJSON, for encoding/json.
func (e *Event) MarshalJSON() ([]byte, error) { return e.AppendJSON(nil), nil }

// AppendJSON appends the event's value: one line, members in the order of the schema.
func (e *Event) AppendJSON(b []byte) []byte {
	b = appendMember(b, `{"id":`, e.ID)
	b = appendOptional(b, `,"source_id":`, e.SourceID)
	b = appendMember(b, `,"org":`, e.Org)
	b = appendMember(b, `,"type":`, e.Type)
	b = appendMember(b, `,"category":`, string(e.Category))
	b = appendMember(b, `,"severity":`, string(e.Severity))
	b = appendMember(b, `,"base_severity":`, string(e.BaseSeverity))
	if e.Rule == nil {
		b = append(b, `,"rule":null`...)
	} else {
		b = append(b, `,"rule":{"policy_version":`...)
		b = strconv.AppendInt(b, e.Rule.PolicyVersion, 10)
		b = appendMember(b, `,"id":`, e.Rule.ID)
		b = appendMember(b, `,"action":`, string(e.Rule.Action))
		b = append(b, '}')
	}
	b = appendTime(b, `,"detected_at":"`, e.DetectedAt)
	b = appendTime(b, `,"received_at":"`, e.ReceivedAt)
	b = appendMember(b, `,"subject":{"kind":`, e.Subject.Kind)
	b = appendMember(b, `,"id":`, e.Subject.ID)
	b = appendMember(b, `,"label":`, e.Subject.Label)
	if o := e.Subject.Owner; o != nil {
		b = appendMember(b, `,"owner":{"kind":`, o.Kind)
		b = appendMember(b, `,"id":`, o.ID)
		b = appendMember(b, `,"label":`, o.Label)
		b = append(b, '}')
	}
	b = append(b, '}')
	if s := e.Service; s == nil {
		b = append(b, `,"service":null`...)
	} else {
		b = appendMember(b, `,"service":{"id":`, s.ID)
		b = appendMember(b, `,"name":`, s.Name)
		b = appendMember(b, `,"environment":`, s.Environment)
		b = appendMember(b, `,"description":`, s.Description)
		b = appendMember(b, `,"intended_scope":`, s.IntendedScope)
		b = append(b, `,"abuse_detection":`...)
		b = strconv.AppendBool(b, s.AbuseDetection)
		b = appendMember(b, `,"team":`, s.Team)
		b = appendMember(b, `,"cost_centre":`, s.CostCentre)
		b = append(b, '}')
	}
	b = appendOptional(b, `,"session_id":`, e.SessionID)
	b = appendOptional(b, `,"key_prefix":`, e.KeyPrefix)
	b = append(b, `,"details":`...)
	if len(e.Details) == 0 {
		b = append(b, '{', '}')
	} else {
		b = append(b, e.Details...)
	}
	return append(b, '}')
}

func appendMember(b []byte, name, value string) []byte {
	return appendString(append(b, name...), value)
}

func appendOptional(b []byte, name, value string) []byte {
	b = append(b, name...)
	if value == "" {
		return append(b, "null"...)
	}
	return appendString(b, value)
}

func appendTime(b []byte, name string, t time.Time) []byte {
	b = append(b, name...)
	b = t.UTC().AppendFormat(b, time.RFC3339Nano)
	return append(b, '"')
}

// eventID makes the id of a signal: a hash of org, subject and what its sender calls it, so that a retry is the same
// signal; fresh where nothing says that two are one. Every part is written with its length, so that no two lists of parts
// hash alike.
func eventID(org, kind, id string, what identity) string {
	var sum [sha256.Size]byte
	if what.how == 0 {
		_, _ = rand.Read(sum[:16]) // never fails: crypto/rand ends the process rather than return an error
		return "sig_" + hex.EncodeToString(sum[:16])
	}
	var buf [256]byte
	b := append(buf[:0], "sluice.signal.v1"...)
	b = append(b, what.how)
	for _, part := range [...]string{org, kind, id, what.scope, what.id} {
		b = binary.AppendUvarint(b, uint64(len(part)))
		b = append(b, part...)
	}
	b = append(b, what.content[:]...)
	b = binary.AppendUvarint(b, uint64(what.ordinal))
	sum = sha256.Sum256(b)
	return "sig_" + hex.EncodeToString(sum[:16])
}
