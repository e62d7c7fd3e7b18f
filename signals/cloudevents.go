package signals

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"mime"
	"net/url"
	"strings"
)

const eventType = "application/cloudevents+json"

// cloudEvent reads one CloudEvent of version 1.0 and returns its source, which is part of its identity.
//
// Data in the shape of an item (it has a member "type") is read as the item; then the event's own type is the name of the
// event, with a dot in it (inc.flowstate.signal.v1), or says the same. Without such data the event's type is the signal's
// type, and its data the details. The event's id and time stand where the item names none, and so does an extension attribute severity. A plain event type beside
// another type in the data is refused: nobody can say which of the two the filter should believe. So is, by the Decider, one with
// a dot that it knows as a type.
func (p *parser) cloudEvent(r *Raised, obj []byte) string {
	var (
		seen                                                   names
		version, id, source, kind, at, severity, dataType, b64 string
		data                                                   []byte
	)
	_ = members(obj, func(name string, value []byte) error {
		if !seen.add(name) {
			r.fail(DuplicateField, "%s is given twice", quoted(name))
			return nil
		}
		into := map[string]*string{"specversion": &version, "id": &id, "source": &source, "type": &kind, "time": &at, "severity": &severity,
			"datacontenttype": &dataType, "data_base64": &b64}[name]
		switch {
		case name == "data":
			if !isNull(value) {
				data = value
			}
		case into != nil:
			*into, _ = p.text(r, name, value, Malformed)
		}
		return nil
	})
	r.Sent = shown(kind)
	if version != "1.0" {
		r.fail(Malformed, "specversion must be \"1.0\"")
		return ""
	}
	if source == "" || len(source) > 2048 {
		r.fail(Malformed, "source must be a URI reference of at most 2,048 bytes")
	}
	if id == "" {
		r.fail(Malformed, "id is missing: a CloudEvent needs one")
	}
	if dataType != "" && !isJSONType(dataType) {
		r.fail(Malformed, "datacontenttype must be JSON")
		return ""
	}
	if b64 != "" {
		if data != nil {
			r.fail(DuplicateField, "data and data_base64 are both given")
			return ""
		}
		raw, err := base64.StdEncoding.DecodeString(b64)
		if err != nil || !validJSON(raw) {
			r.fail(Malformed, "data_base64 does not hold JSON")
			return ""
		}
		data = raw[skipSpace(raw, 0):]
	}
	p.eventData(r, kind, data)
	if r.SourceID == "" && id != "" {
		r.setID(&r.SourceID, "id", id, Malformed)
	}
	if r.DetectedAt.IsZero() && at != "" {
		r.setTime("time", at)
	}
	p.eventSeverity(r, severity)
	return source
}

// eventSeverity takes the severity that stands beside the data. Passing it over, as other extension attributes are, would turn a BLOCK into the type's default.
func (p *parser) eventSeverity(r *Raised, sent string) {
	if sent == "" {
		return
	}
	item := r.Severity
	r.setSeverity(sent)
	if item != "" && item != r.Severity {
		r.fail(DuplicateField, "the event's severity %s and data.severity %s differ: give it once", quoted(sent), quoted(string(item)))
	}
}

func (p *parser) eventData(r *Raised, kind string, data []byte) {
	if data == nil {
		r.setType(kind)
		return
	}
	if data[0] != '{' {
		r.fail(Malformed, "data must be an object")
		return
	}
	hasType := false
	_ = members(data, func(name string, _ []byte) error {
		hasType = hasType || name == "type"
		return nil
	})
	if !hasType {
		r.setType(kind)
		r.setDetails(data, p.lim)
		return
	}
	p.object(r, data)
	name, ok := NormaliseType(kind)
	if strings.Contains(kind, ".") {
		r.eventType = name
		return
	}
	if !ok || name != r.Type {
		r.fail(DuplicateField, "the event's type %s and data.type %s differ: name the signal's type once", quoted(kind), quoted(r.Sent))
	}
}

func isJSONType(s string) bool {
	media, _, err := mime.ParseMediaType(s)
	return err == nil && (media == "application/json" || media == "text/json" || strings.HasSuffix(media, "+json"))
}

// A BinaryEvent is the attributes of a CloudEvent in binary mode of the HTTP binding: the headers that begin with ce-, without that,
// in lower case, in the order that they came in. The body is its data, of the request's content type.
type BinaryEvent []BinaryAttribute

// A BinaryAttribute is one of them, as it was sent.
type BinaryAttribute struct{ Name, Value string }

// Request brings the event into structured mode, for ParseRequest: its content type and its body. The event and the body are
// borrowed. What is wrong with the attributes ParseRequest finds, as in structured mode; the error is of the body: ErrContentType
// or ErrBody.
func (e BinaryEvent) Request(contentType string, body []byte) (string, []byte, error) {
	if strings.TrimSpace(contentType) == "" && len(body) > 0 {
		contentType = "application/json"
	}
	if len(body) > 0 {
		if !isJSONType(contentType) {
			return "", nil, fmt.Errorf("%w: %s; the data of a CloudEvent must be JSON", ErrContentType, quoted(contentType))
		}
		if !validJSON(body) {
			return "", nil, fmt.Errorf("%w: %s", ErrBody, whyInvalid(body))
		}
	}
	out := []byte{'{'}
	for _, a := range e {
		value, err := url.PathUnescape(a.Value) // by the binding, what is not printable ASCII is percent-encoded
		if err != nil {
			value = a.Value
		}
		out = append(appendString(append(appendString(out, a.Name), ':'), value), ',')
	}
	if len(body) > 0 {
		return eventType, append(append(append(out, `"data":`...), body...), '}'), nil
	}
	return eventType, append(bytes.TrimSuffix(out, []byte{','}), '}'), nil
}

// InBinary reports whether a request with an attribute ce-specversion is an event in binary mode: structured mode says so in its
// content type, which goes first.
func InBinary(contentType string) bool {
	media, _, err := mime.ParseMediaType(contentType)
	return err != nil || !strings.HasPrefix(media, "application/cloudevents")
}
