package signals

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"time"
	"unicode"
	"unicode/utf8"
)

// Limits bound what one request and one signal may hold. A zero field means its default.
type Limits struct {
	Items        int // items in one request; default 10,000
	DetailsBytes int // details of one signal, in bytes of JSON; default 262,144
	DetailsDepth int // containers within containers in details, details itself being the first; default 32
}

func (l Limits) orDefaults() Limits {
	if l.Items == 0 {
		l.Items = 10_000
	}
	if l.DetailsBytes == 0 {
		l.DetailsBytes = 256 << 10
	}
	if l.DetailsDepth == 0 {
		l.DetailsDepth = 32
	}
	return l
}

// maxID bounds every id that a sender may choose (its own, the session's, a subject's), in bytes.
const maxID = 256

// A Fault says why a signal is invalid: a reason of the closed list and a sentence for its sender, which may quote at most
// 64 characters of what was sent.
type Fault struct {
	Reason Reason
	Detail string
}

// A SubjectRef is a subject as a sender names it. Nothing in it has been looked up or believed.
type SubjectRef struct {
	Kind        string
	ID          string
	Name        string // with Environment, instead of ID, for service accounts
	Environment string
	Owner       *OwnerRef // for sessions and turns
}

// An OwnerRef is whose session or turn a subject is.
type OwnerRef struct {
	Kind string
	ID   string
}

// A Raised is one signal as its sender stated it, nothing decided. It owns its bytes.
type Raised struct {
	Index      int             // place in the request, from 0
	Sent       string          // the type as sent, for answers; at most 64 bytes
	Type       string          // the type, normalised; "" where Fault says it is invalid
	Severity   Severity        // "" where the sender names none
	SourceID   string          // the sender's id; "" where there is none
	DetectedAt time.Time       // UTC; zero where the sender names none
	Subject    *SubjectRef     // nil: the authenticated principal itself
	SessionID  string          // "" where there is none
	Details    json.RawMessage // one JSON object without insignificant space; nil where there is none
	Warning    string          // for the sender of a signal that passes: what of it was probably meant otherwise; "" where nothing
	Fault      *Fault          // not nil: the signal is invalid, and the other fields are what could be read

	identity  identity // what the event's id is made of
	eventType string   // of a CloudEvent whose data names a type too, normalised; "" where that gives no type
}

// An identity is what makes two tries of one signal the same. The zero value makes every signal a new one.
type identity struct {
	how     byte   // 'i' sender's id, 'k' Idempotency-Key, 'c' content; 0 fresh
	scope   string // 'i': the CloudEvents source, else ""
	id      string // 'i': the id; 'k': the key
	content [sha256.Size]byte
	ordinal int // 'k': the item's index; 'c': its place among equal items of the request
}

// An Ordinals counts equal items within one request, so that each has an id of its own and a retry of the whole has the
// same ids. The zero value is ready; one request uses one.
type Ordinals struct{ seen map[[sha256.Size]byte]int }

func (o *Ordinals) next(content [sha256.Size]byte) int {
	if o.seen == nil {
		o.seen = map[[sha256.Size]byte]int{}
	}
	n := o.seen[content]
	o.seen[content] = n + 1
	return n
}

// identify settles what r's id will be made of, by the first that there is: the sender's id, the request's
// Idempotency-Key and r's index, the content where it carries a time of its own.
func (r *Raised) identify(scope, idempotencyKey string, raw []byte, ordinals *Ordinals) {
	switch {
	case r.SourceID != "":
		r.identity = identity{how: 'i', scope: scope, id: r.SourceID}
	case idempotencyKey != "":
		r.identity = identity{how: 'k', id: idempotencyKey, ordinal: r.Index}
	case !r.DetectedAt.IsZero():
		sum := sha256.Sum256(raw)
		r.identity = identity{how: 'c', content: sum, ordinal: ordinals.next(sum)}
	}
}

// fail records the first fault; later ones would only repeat it.
func (r *Raised) fail(reason Reason, format string, args ...any) {
	if r.Fault == nil {
		r.Fault = &Fault{Reason: reason, Detail: fmt.Sprintf(format, args...)}
	}
}

// setType reads the type as sent.
func (r *Raised) setType(sent string) {
	r.Sent = shown(sent)
	name, ok := NormaliseType(sent)
	if !ok {
		r.fail(BadType, "type %s is not a type: use letters, digits and underscores, a letter first, at most 64 characters", quoted(sent))
		return
	}
	r.Type = name
}

// shown cuts a type as sent to what an answer may repeat.
func shown(s string) string {
	cut := min(len(s), maxType)
	for cut > 0 && cut < len(s) && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return string(bytes.ToValidUTF8([]byte(s[:cut]), []byte("\ufffd")))
}

func (r *Raised) setSeverity(sent string) {
	s, ok := ParseSeverity(sent)
	if !ok {
		r.fail(BadSeverity, "severity %s is not INFO, WARN or BLOCK", quoted(sent))
		return
	}
	r.Severity = s
}

// The times that a signal may carry: years of four digits, so that every reader of RFC 3339 agrees.
var (
	earliest = time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC)
	latest   = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)
)

func (r *Raised) setTime(name, sent string) {
	t, err := time.Parse(time.RFC3339Nano, sent)
	if err != nil || t.Before(earliest) || !t.Before(latest) {
		r.fail(Malformed, "%s %s is not a time of RFC 3339, such as 2026-11-23T22:40:12Z", name, quoted(sent))
		return
	}
	r.DetectedAt = t.UTC()
}

// setID reads an id that its sender chose.
func (r *Raised) setID(into *string, name, sent string, reason Reason) {
	if fault := badID(sent); fault != "" {
		r.fail(reason, "%s %s", name, fault)
		return
	}
	clean, ok := redact(sent)
	if !ok {
		r.fail(reason, "%s is escaped more than %d times over", name, maxSpelling)
		return
	}
	*into = clean
}

// badID says what is wrong with an id, or "". Control and format characters are refused: stores cannot keep the first,
// and nobody can see the second.
func badID(s string) string {
	if s == "" {
		return "is empty: leave it out or give it a value"
	}
	if len(s) > maxID {
		return fmt.Sprintf("is longer than %d bytes", maxID)
	}
	for _, c := range s {
		if c == utf8.RuneError || unicode.Is(unicode.Cc, c) || unicode.Is(unicode.Cf, c) {
			return "holds a character that cannot be shown"
		}
	}
	return ""
}

// setDetails takes a valid JSON object as details, copied and without insignificant space, so that an event is one line.
func (r *Raised) setDetails(value []byte, lim Limits) {
	if value[0] != '{' {
		r.fail(Malformed, "details must be an object")
		return
	}
	if err := checkValue(value, lim.DetailsDepth); err != nil {
		if errors.Is(err, errDepth) {
			r.fail(TooDeep, "details nest deeper than %d levels", lim.DetailsDepth)
			return
		}
		r.fail(DuplicateField, "details: %s", err)
		return
	}
	var b bytes.Buffer
	b.Grow(min(len(value), lim.DetailsBytes))
	if err := json.Compact(&b, value); err != nil {
		r.fail(Malformed, "details are not valid JSON")
		return
	}
	if b.Len() > lim.DetailsBytes {
		r.fail(TooLarge, "details have %d bytes, over the limit of %d", b.Len(), lim.DetailsBytes)
		return
	}
	clean, ok := redactBytes(b.Bytes())
	if !ok {
		r.fail(TooDeep, "details are escaped more than %d times over", maxSpelling)
		return
	}
	r.Details = clean
}
