package accounts

import (
	"fmt"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"

	"flowstate.inc/sluice/auth"
)

// Limits on what an account may say about itself, in characters (code points).
const (
	MaxName          = 80
	MaxDescription   = 2_000
	MaxIntendedScope = 4_000
	MaxLabel         = 80 // team and cost centre
	MaxSubjectID     = 200
	maxLimit         = 1_000_000_000_000
)

// A FieldError says what is wrong with one field, in words for the person who filled it in.
type FieldError struct {
	Field  string `json:"field"` // as the API names it
	Detail string `json:"detail"`
}

// An InvalidError lists everything wrong with the input. Nothing was changed.
type InvalidError struct {
	Fields []FieldError
}

func (e *InvalidError) Error() string {
	texts := make([]string, len(e.Fields))
	for i, f := range e.Fields {
		texts[i] = f.Field + ": " + f.Detail
	}
	return "invalid input: " + strings.Join(texts, "; ")
}

func invalid(field, format string, args ...any) *InvalidError {
	return &InvalidError{Fields: []FieldError{{field, fmt.Sprintf(format, args...)}}}
}

// A checker collects what is wrong, so that a form can show all of it at once.
type checker struct {
	errs []FieldError
}

func (c *checker) fail(field, format string, args ...any) {
	c.errs = append(c.errs, FieldError{field, fmt.Sprintf(format, args...)})
}

func (c *checker) err() error {
	if len(c.errs) == 0 {
		return nil
	}
	return &InvalidError{Fields: c.errs}
}

// keyInText finds a whole raw key, which must not be stored in a text that everybody reads.
var keyInText = regexp.MustCompile(auth.KeyPattern)

// text trims and normalises one field. Multi-line texts keep their line breaks and tabs; nothing else may hold control characters.
func (c *checker) text(field, s string, most int, multiline bool) string {
	if !utf8.ValidString(s) {
		c.fail(field, "is not valid UTF-8")
		return ""
	}
	// One form per character: names that look the same are the same. Line breaks come as CRLF from browsers.
	s = strings.TrimSpace(norm.NFC.String(strings.ReplaceAll(s, "\r\n", "\n")))
	if n := utf8.RuneCountInString(s); n > most {
		c.fail(field, "is %d characters long; at most %d are allowed", n, most)
	}
	for _, r := range s {
		if multiline && (r == '\n' || r == '\t') {
			continue
		}
		if forbiddenRune(r) {
			c.fail(field, "holds a control character (U+%04X)", r)
			break
		}
	}
	if keyInText.MatchString(s) {
		c.fail(field, "holds a whole key; keys must not be kept in texts, give its prefix instead")
	}
	return s
}

// forbiddenRune is true for control characters, line separators and the marks that reorder text: they make an audit row read as something else.
func forbiddenRune(r rune) bool {
	switch {
	case unicode.IsControl(r), r == '\u2028', r == '\u2029':
		return true
	case r >= '\u202A' && r <= '\u202E', r >= '\u2066' && r <= '\u2069':
		return true
	}
	return false
}

func (c *checker) name(field, s string) string {
	before := len(c.errs)
	s = c.text(field, s, MaxName, false)
	if s == "" && len(c.errs) == before {
		c.fail(field, "is required")
	}
	return s
}

func (c *checker) environment(field, s string) string {
	s = strings.ToLower(strings.TrimSpace(s))
	switch s {
	case auth.Production, auth.Staging, auth.Development:
		return s
	case "":
		c.fail(field, "is required: production, staging or development")
	default:
		c.fail(field, "must be production, staging or development")
	}
	return ""
}

func (c *checker) limit(field string, n int64) int64 {
	if n < 0 {
		c.fail(field, "must not be negative; 0 is the edge's default")
	}
	if n > maxLimit {
		c.fail(field, "must be at most %d", int64(maxLimit))
	}
	return n
}

// checkAccount returns a with every field trimmed and normalised, or an *InvalidError that lists all that is wrong.
func checkAccount(a Account) (Account, error) {
	var c checker
	a.Name = c.name("name", a.Name)
	a.Environment = c.environment("environment", a.Environment)
	a.Description = c.text("description", a.Description, MaxDescription, true)
	a.IntendedScope = c.text("intended_scope", a.IntendedScope, MaxIntendedScope, true)
	a.Team = c.text("team", a.Team, MaxLabel, false)
	a.CostCentre = c.text("cost_centre", a.CostCentre, MaxLabel, false)
	a.Limits.RequestsPerSecond = c.limit("limits.requests_per_second", a.Limits.RequestsPerSecond)
	a.Limits.BytesPerSecond = c.limit("limits.bytes_per_second", a.Limits.BytesPerSecond)
	return a, c.err()
}

// slugPattern keeps slugs fit for URLs, Kafka keys, HTTP Basic (no colon) and the subject of events (no slash).
var slugPattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// lower is the form in which names are compared and searched. It is computed here because LOWER differs between the databases.
func lower(s string) string { return strings.ToLower(norm.NFC.String(s)) }
