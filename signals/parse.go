package signals

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"strings"
	"unicode/utf8"
)

// What is wrong with a request as a whole. They come wrapped with a sentence for the sender.
var (
	ErrContentType    = errors.New("unsupported content type")    // 415
	ErrBody           = errors.New("body is not JSON")            // 400
	ErrIdempotencyKey = errors.New("malformed Idempotency-Key")   // 400
	ErrTooManyItems   = errors.New("too many items in a request") // 413
)

// ContentTypes are the types that ParseRequest reads, for the answer to one that it does not.
const ContentTypes = "application/json, application/x-ndjson, application/cloudevents+json, application/cloudevents-batch+json"

// The shapes of a body.
type shape int

const (
	shapeJSON shape = iota
	shapeLines
	shapeEvent
	shapeEvents
)

// ParseRequest reads the body of POST /v1/signals: one JSON object, an array of them, NDJSON, a CloudEvent in structured
// mode, or a batch of those. An empty content type is read as JSON. It borrows body and returns one [Raised] for each
// item, in order, the wrong ones with their Fault; the result owns its bytes.
//
// Members are compared as decoded and by case. One given twice makes its item invalid, and so does one that is not
// documented: dropping a misspelt "serverity" would turn a BLOCK into the type's default and tell nobody. What a sender
// wants to add belongs into details.
//
// An error means that there are no items at all: ErrContentType, ErrBody, ErrIdempotencyKey or ErrTooManyItems.
func ParseRequest(contentType string, body []byte, idempotencyKey string, lim Limits) ([]Raised, error) {
	how, err := shapeOf(contentType)
	if err != nil {
		return nil, err
	}
	if idempotencyKey != "" {
		if fault := badID(idempotencyKey); fault != "" {
			return nil, fmt.Errorf("%w: it %s", ErrIdempotencyKey, fault)
		}
	}
	p := parser{how: how, idempotencyKey: strings.Clone(idempotencyKey), lim: lim.orDefaults()}
	body = bytes.TrimPrefix(body, []byte("\ufeff"))
	body = body[skipSpace(body, 0):]
	if len(body) == 0 {
		return nil, fmt.Errorf("%w: it is empty", ErrBody)
	}
	switch {
	case how == shapeLines:
		err = p.lines(body)
	case !validJSON(body):
		if how != shapeJSON || !p.firstLineIsObject(body) {
			return nil, fmt.Errorf("%w: %s", ErrBody, whyInvalid(body))
		}
		err = p.lines(body)
	case body[0] == '[' && how != shapeEvent:
		err = elements(body, p.item)
	case how == shapeEvents:
		return nil, fmt.Errorf("%w: a CloudEvents batch is a JSON array", ErrBody)
	case body[0] != '{':
		return nil, fmt.Errorf("%w: it must be an object or an array of objects", ErrBody)
	default:
		err = p.item(bytes.TrimRight(body, " \t\r\n"))
	}
	if err != nil {
		return nil, err
	}
	return p.items, nil
}

func shapeOf(contentType string) (shape, error) {
	if strings.TrimSpace(contentType) == "" {
		return shapeJSON, nil
	}
	media, params, err := mime.ParseMediaType(contentType)
	if err != nil {
		return 0, fmt.Errorf("%w: %s; send one of %s", ErrContentType, quoted(contentType), ContentTypes)
	}
	if cs, ok := params["charset"]; ok && !strings.EqualFold(cs, "utf-8") && !strings.EqualFold(cs, "us-ascii") {
		return 0, fmt.Errorf("%w: charset %s; send UTF-8", ErrContentType, quoted(cs))
	}
	switch media {
	case "application/json", "text/json":
		return shapeJSON, nil
	case "application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines":
		return shapeLines, nil
	case eventType:
		return shapeEvent, nil
	case "application/cloudevents-batch+json":
		return shapeEvents, nil
	}
	return 0, fmt.Errorf("%w: %s; send one of %s", ErrContentType, quoted(media), ContentTypes)
}

// whyInvalid says what json.Valid would not. It never quotes the body, which may hold prompts.
func whyInvalid(body []byte) string {
	if !utf8.Valid(body) {
		return "it is not UTF-8 (is it compressed, without Content-Encoding?)"
	}
	var any json.RawMessage
	err := json.Unmarshal(body, &any)
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		return fmt.Sprintf("it goes wrong at byte %d", syntax.Offset)
	}
	return "it is not one JSON value"
}

// A parser collects the items of one request.
type parser struct {
	how            shape
	idempotencyKey string
	lim            Limits
	ordinals       Ordinals
	items          []Raised
}

// firstLineIsObject tells NDJSON sent as application/json from junk.
func (p *parser) firstLineIsObject(body []byte) bool {
	line, _, more := bytes.Cut(body, []byte("\n"))
	return more && line[0] == '{' && validJSON(line)
}

// lines reads one item a line, empty lines skipped. A line that is not JSON is an invalid item, unless no line is JSON.
func (p *parser) lines(body []byte) error {
	some := false
	for len(body) > 0 {
		line, rest, _ := bytes.Cut(body, []byte("\n"))
		body = rest
		line = bytes.Trim(line, " \t\r")
		if len(line) == 0 {
			continue
		}
		if validJSON(line) {
			some = true
			if err := p.item(line); err != nil {
				return err
			}
			continue
		}
		r, err := p.next()
		if err != nil {
			return err
		}
		r.fail(Malformed, "the line is not JSON: %s", whyInvalid(line))
	}
	if !some {
		return fmt.Errorf("%w: none of its lines is (curl sends a file with its line ends by --data-binary, not by -d)", ErrBody)
	}
	return nil
}

func (p *parser) next() (*Raised, error) {
	if len(p.items) == p.lim.Items {
		return nil, fmt.Errorf("%w: more than %d; send several requests", ErrTooManyItems, p.lim.Items)
	}
	p.items = append(p.items, Raised{Index: len(p.items)})
	return &p.items[len(p.items)-1], nil
}

// item reads one valid JSON value as an item.
func (p *parser) item(value []byte) error {
	r, err := p.next()
	if err != nil {
		return err
	}
	if value[0] != '{' {
		r.fail(Malformed, "the item is not an object")
		return nil
	}
	scope := ""
	if p.how == shapeEvent || p.how == shapeEvents {
		scope = p.cloudEvent(r, value)
	} else {
		p.object(r, value)
	}
	if r.Fault == nil && r.Type == "" {
		r.fail(BadType, "type is missing")
	}
	r.identify(scope, p.idempotencyKey, value, &p.ordinals)
	return nil
}

// object reads an item of the documented shape.
func (p *parser) object(r *Raised, obj []byte) {
	var seen names
	// A member that is wrong is recorded in r; the walk goes on, so that the answer can name the type.
	_ = members(obj, func(name string, value []byte) error {
		if !seen.add(name) {
			r.fail(DuplicateField, "%s is given twice", quoted(name))
			return nil
		}
		p.member(r, name, value)
		return nil
	})
}

const itemMembers = "type, severity, id, detected_at, subject, session_id, details"

func (p *parser) member(r *Raised, name string, value []byte) {
	switch name {
	case "type":
		if value[0] != '"' {
			r.fail(BadType, "type must be a string")
			return
		}
		r.setType(text(value))
	case "severity":
		if s, ok := p.text(r, name, value, BadSeverity); ok {
			r.setSeverity(s)
		}
	case "id":
		if s, ok := p.text(r, name, value, Malformed); ok {
			r.setID(&r.SourceID, name, s, Malformed)
		}
	case "detected_at":
		if s, ok := p.text(r, name, value, Malformed); ok {
			r.setTime(name, s)
		}
	case "session_id":
		if s, ok := p.text(r, name, value, Malformed); ok {
			r.setID(&r.SessionID, name, s, Malformed)
		}
	case "subject":
		p.subject(r, value)
	case "details":
		if !isNull(value) {
			r.setDetails(value, p.lim)
		}
	case "specversion":
		r.fail(Malformed, "the item is a CloudEvent: send it as application/cloudevents+json or application/cloudevents-batch+json")
	default:
		r.fail(Malformed, "unknown member %s: the members are %s; anything else belongs into details", quoted(name), itemMembers)
	}
}

func (p *parser) subject(r *Raised, value []byte) {
	if isNull(value) {
		return
	}
	if value[0] != '{' {
		r.fail(BadSubject, "subject must be an object")
		return
	}
	s := &SubjectRef{}
	r.Subject = s
	var seen names
	_ = members(value, func(name string, value []byte) error {
		if !seen.add(name) {
			r.fail(DuplicateField, "subject.%s is given twice", name)
			return nil
		}
		switch name {
		case "kind":
			p.subjectText(r, &s.Kind, "subject.kind", value)
		case "id":
			p.subjectText(r, &s.ID, "subject.id", value)
		case "name":
			p.subjectText(r, &s.Name, "subject.name", value)
		case "environment":
			p.subjectText(r, &s.Environment, "subject.environment", value)
		case "owner":
			p.owner(r, s, value)
		default:
			r.fail(Malformed, "unknown member %s in subject: the members are kind, id, name, environment, owner", quoted(name))
		}
		return nil
	})
}

func (p *parser) owner(r *Raised, s *SubjectRef, value []byte) {
	if isNull(value) {
		return
	}
	if value[0] != '{' {
		r.fail(BadSubject, "subject.owner must be an object")
		return
	}
	s.Owner = &OwnerRef{}
	var seen names
	_ = members(value, func(name string, value []byte) error {
		if !seen.add(name) {
			r.fail(DuplicateField, "subject.owner.%s is given twice", name)
			return nil
		}
		switch name {
		case "kind":
			p.subjectText(r, &s.Owner.Kind, "subject.owner.kind", value)
		case "id":
			p.subjectText(r, &s.Owner.ID, "subject.owner.id", value)
		default:
			r.fail(Malformed, "unknown member %s in subject.owner: the members are kind, id", quoted(name))
		}
		return nil
	})
}

func (p *parser) subjectText(r *Raised, into *string, name string, value []byte) {
	if s, ok := p.text(r, name, value, BadSubject); ok {
		r.setID(into, name, s, BadSubject)
	}
}

// text decodes a string member; null is the same as leaving it out.
func (p *parser) text(r *Raised, name string, value []byte, reason Reason) (string, bool) {
	if isNull(value) {
		return "", false
	}
	if value[0] != '"' {
		r.fail(reason, "%s must be a string", name)
		return "", false
	}
	return text(value), true
}

// text decodes a string that is known to be valid.
func text(value []byte) string {
	s, err := unquote(value)
	if err != nil {
		panic("BUG: " + err.Error()) // json.Valid passed it
	}
	return s
}

func isNull(value []byte) bool { return value[0] == 'n' }
