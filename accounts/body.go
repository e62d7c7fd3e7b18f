package accounts

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// An object is the JSON object of a request's body, read member by member, so that an unknown, a doubled and a missing one are told apart.
type object struct {
	c       checker
	path    string // "" or "limits."
	members map[string]json.RawMessage
}

// readObject reads the body. Errors: *Problem, *InvalidError, *http.MaxBytesError.
func readObject(r *http.Request) (*object, error) {
	if ct := r.Header.Get("Content-Type"); ct != "" {
		mt, _, err := mime.ParseMediaType(ct)
		if err != nil || (mt != "application/json" && mt != "application/merge-patch+json") {
			return nil, &Problem{Status: http.StatusUnsupportedMediaType, Code: codeMediaType, Detail: "Send JSON with Content-Type: application/json."}
		}
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return nil, err
		}
		return nil, invalid("body", "could not be read to its end")
	}
	if !utf8.Valid(body) {
		return nil, invalid("body", "is not valid UTF-8")
	}
	return parseObject(body, "")
}

func parseObject(body []byte, path string) (*object, error) {
	o := &object{path: path, members: map[string]json.RawMessage{}}
	notObject := invalid(strings.TrimSuffix(path+"body", ".body"), "must be one JSON object")
	d := json.NewDecoder(bytes.NewReader(body))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, notObject
	}
	for d.More() {
		t, err := d.Token()
		name, ok := t.(string)
		var raw json.RawMessage
		if err != nil || !ok || d.Decode(&raw) != nil {
			return nil, notObject
		}
		if _, twice := o.members[name]; twice {
			return nil, invalid(path+name, "is given twice")
		}
		o.members[name] = raw
	}
	if _, err := d.Token(); err != nil {
		return nil, notObject
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, notObject
	}
	return o, nil
}

// take removes a member; the second result is false where it is absent.
func (o *object) take(name string) (json.RawMessage, bool) {
	raw, ok := o.members[name]
	delete(o.members, name)
	return raw, ok
}

func isNull(raw json.RawMessage) bool { return string(raw) == "null" }

// text reads an optional string; null is the empty one, absent is nil.
func (o *object) text(name string) *string {
	raw, ok := o.take(name)
	if !ok {
		return nil
	}
	var s string
	if !isNull(raw) && json.Unmarshal(raw, &s) != nil {
		o.c.fail(o.path+name, "must be a string")
		return nil
	}
	return &s
}

// flag reads an optional boolean.
func (o *object) flag(name string) *bool {
	raw, ok := o.take(name)
	if !ok {
		return nil
	}
	var b bool
	if isNull(raw) || json.Unmarshal(raw, &b) != nil {
		o.c.fail(o.path+name, "must be true or false")
		return nil
	}
	return &b
}

// whole reads an optional whole number; null is 0. 5.0 and 5e3 are whole too: JSON has one kind of number.
func (o *object) whole(name string) *int64 {
	raw, ok := o.take(name)
	if !ok {
		return nil
	}
	var n int64
	if isNull(raw) || json.Unmarshal(raw, &n) == nil {
		return &n
	}
	const exact = 1 << 53 // up to here a float64 tells whole numbers apart
	var f float64
	if json.Unmarshal(raw, &f) != nil || f != math.Trunc(f) || math.Abs(f) > exact {
		o.c.fail(o.path+name, "must be a whole number")
		return nil
	}
	n = int64(f)
	return &n
}

// sub reads an optional object; null is one without members.
func (o *object) sub(name string) *object {
	raw, ok := o.take(name)
	if !ok {
		return nil
	}
	if isNull(raw) {
		raw = json.RawMessage("{}")
	}
	sub, err := parseObject(raw, o.path+name+".")
	if err != nil {
		var inv *InvalidError
		if errors.As(err, &inv) {
			o.c.errs = append(o.c.errs, inv.Fields...)
		}
		return nil
	}
	return sub
}

// done says what was wrong, members that nobody took among it; why explains some of those.
func (o *object) done(why map[string]string) error {
	names := make([]string, 0, len(o.members))
	for name := range o.members {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		detail, ok := why[name]
		if !ok {
			detail = "is not a field of this request"
		}
		o.c.fail(o.path+cutText(name, 80), "%s", detail)
	}
	return o.c.err()
}

// cutText keeps what is echoed short, and keys out of it.
func cutText(s string, n int) string {
	s = keyInText.ReplaceAllString(s, "[a key]")
	if r := []rune(s); len(r) > n {
		return string(r[:n]) + "…"
	}
	return s
}

// A query is the query string of a request, read parameter by parameter.
type query struct {
	c      checker
	values url.Values
}

// readQuery parses the query string. Errors: *InvalidError.
func readQuery(r *http.Request) (*query, error) {
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, invalid("query", "is malformed")
	}
	q := &query{values: values}
	for name, vs := range values {
		for _, v := range vs {
			if !plainText(v) || !plainText(name) {
				return nil, invalid(cutText(strings.Trim(strconv.QuoteToASCII(name), `"`), 80), "must be text without control characters")
			}
		}
	}
	return q, nil
}

// text reads an optional parameter; "" where it is absent.
func (q *query) text(name string) string {
	vs := q.values[name]
	delete(q.values, name)
	if len(vs) > 1 {
		q.c.fail(name, "is given twice")
	}
	if len(vs) == 0 {
		return ""
	}
	return vs[0]
}

// list reads a comma-separated parameter; given several times, it is joined.
func (q *query) list(name string) []string {
	vs := q.values[name]
	delete(q.values, name)
	var out []string
	for _, v := range vs {
		for part := range strings.SplitSeq(v, ",") {
			if part = strings.TrimSpace(part); part != "" {
				out = append(out, part)
			}
		}
	}
	return out
}

// limit reads the page size.
func (q *query) limit() int {
	s := q.text("limit")
	if s == "" {
		return 0
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > MaxLimit {
		q.c.fail("limit", "must be 1 to %d", MaxLimit)
	}
	return n
}

// flag reads true or false; absent is false.
func (q *query) flag(name string) bool {
	switch q.text(name) {
	case "", "false":
		return false
	case "true":
		return true
	}
	q.c.fail(name, "must be true or false")
	return false
}

// time reads a time of RFC 3339, or a date, which is its first moment in UTC.
func (q *query) time(name string) time.Time {
	s := q.text(name)
	if s == "" {
		return time.Time{}
	}
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		// The years bound what fits into milliseconds.
		if t, err := time.Parse(layout, s); err == nil && t.Year() >= 1970 && t.Year() < 3000 {
			return t
		}
	}
	q.c.fail(name, "must be a time of RFC 3339 such as 2026-11-23T14:00:00Z, or a date")
	return time.Time{}
}

// done says what was wrong, parameters that nobody read among it.
func (q *query) done() error {
	names := make([]string, 0, len(q.values))
	for name := range q.values {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		q.c.fail(cutText(name, 80), "is not a parameter of this list")
	}
	return q.c.err()
}
