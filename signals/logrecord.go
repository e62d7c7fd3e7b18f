package signals

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// An Attribute is one attribute of a log record, its value as JSON. FromLogRecord borrows both.
type Attribute struct {
	Key   string
	Value json.RawMessage
}

// FromLogRecord reads one OTLP log record whose event name is flowstate.signal. raw is the record's protobuf; index its
// place among the signals of the request; ordinals is shared by all of them. A zero field of lim means its default.
//
// signal.type, .severity, .id, .subject.kind|id|name|environment, .subject.owner.kind|id and session.id are read, each a
// string; another that begins with signal. is a detail like the rest, and named in Warning. event.name and flowstate.* say nothing about the signal and are dropped; the others become its details. Where
// an attribute is given twice, whichever it is, the signal is invalid. The record's time is when it was detected, else its observed time.
// It borrows everything it is given; the result owns its bytes.
func FromLogRecord(attrs []Attribute, timeUnixNano, observedUnixNano uint64, raw []byte, index int, ordinals *Ordinals, lim Limits) Raised {
	r := Raised{Index: index}
	l := logRecord{raised: &r, details: []byte{'{'}}
	var seen names
	for _, a := range attrs {
		if !seen.add(a.Key) {
			r.fail(DuplicateField, "attribute %s is given twice", quoted(a.Key))
			continue
		}
		l.attribute(a)
	}
	if l.subject != (SubjectRef{}) || l.owner != (OwnerRef{}) {
		s := l.subject
		if l.owner != (OwnerRef{}) {
			o := l.owner
			s.Owner = &o
		}
		r.Subject = &s
	}
	if r.Fault == nil && r.Type == "" {
		r.fail(BadType, "the attribute signal.type is missing")
	}
	if len(l.details) > 1 {
		r.setDetails(append(l.details, '}'), lim.orDefaults())
	}
	r.DetectedAt = unixNano(timeUnixNano, observedUnixNano)
	r.identify("", "", raw, ordinals)
	return r
}

// A logRecord is a record while its attributes are read.
type logRecord struct {
	raised  *Raised
	subject SubjectRef
	owner   OwnerRef
	details []byte
}

// signalAttributes are those that are read, for the warning about one that is not.
const signalAttributes = "signal.type, .severity, .id, .subject.kind|id|name|environment, .subject.owner.kind|id"

func (l *logRecord) attribute(a Attribute) {
	r := l.raised
	switch a.Key {
	case "signal.type":
		if s, ok := l.text(a, BadType); ok {
			r.setType(s)
		}
	case "signal.severity":
		if s, ok := l.text(a, BadSeverity); ok {
			r.setSeverity(s)
		}
	case "signal.id":
		l.id(&r.SourceID, a, Malformed)
	case "session.id":
		l.id(&r.SessionID, a, Malformed)
	case "signal.subject.kind":
		l.id(&l.subject.Kind, a, BadSubject)
	case "signal.subject.id":
		l.id(&l.subject.ID, a, BadSubject)
	case "signal.subject.name":
		l.id(&l.subject.Name, a, BadSubject)
	case "signal.subject.environment":
		l.id(&l.subject.Environment, a, BadSubject)
	case "signal.subject.owner.kind":
		l.id(&l.owner.Kind, a, BadSubject)
	case "signal.subject.owner.id":
		l.id(&l.owner.ID, a, BadSubject)
	case "event.name":
	default:
		l.detail(a)
	}
}

func (l *logRecord) detail(a Attribute) {
	if strings.HasPrefix(a.Key, "flowstate.") {
		return
	}
	if strings.HasPrefix(a.Key, "signal.") && l.raised.Warning == "" {
		l.raised.Warning = fmt.Sprintf("attribute %s is none of Sluice's (%s) and was kept as a detail", quoted(a.Key), signalAttributes)
	}
	if len(l.details) > 1 {
		l.details = append(l.details, ',')
	}
	l.details = appendString(l.details, a.Key)
	l.details = append(l.details, ':')
	value := a.Value[skipSpace(a.Value, 0):]
	switch {
	case len(value) == 0: // an attribute without a value
		l.details = append(l.details, "null"...)
	case !validJSON(value):
		l.raised.fail(Malformed, "attribute %s has no readable value", quoted(a.Key))
		l.details = append(l.details, "null"...)
	default:
		l.details = append(l.details, value...)
	}
}

func (l *logRecord) id(into *string, a Attribute, reason Reason) {
	if s, ok := l.text(a, reason); ok {
		l.raised.setID(into, a.Key, s, reason)
	}
}

func (l *logRecord) text(a Attribute, reason Reason) (string, bool) {
	value := a.Value[skipSpace(a.Value, 0):]
	if len(value) == 0 || value[0] != '"' || !validJSON(value) {
		l.raised.fail(reason, "attribute %s must be a string", a.Key)
		return "", false
	}
	return text(value[:skipString(value, 0)]), true
}

// unixNano is the first of two OTLP times that is set, or the zero time.
func unixNano(at, observed uint64) time.Time {
	if at == 0 {
		at = observed
	}
	if at == 0 {
		return time.Time{}
	}
	const second = uint64(time.Second)
	return time.Unix(int64(at/second), int64(at%second)).UTC()
}
