package signals

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"
)

// The walk below works on bytes that json.Valid has passed, so that it has no syntax errors of its own to report.

// errDuplicate and errDepth are what checkValue finds; anything else about a value is json.Valid's to say.
var (
	errDuplicate = errors.New("member given twice")
	errDepth     = errors.New("nested too deep")
)

// validJSON reports whether b is one JSON value in valid UTF-8, which encoding/json does not ask for.
func validJSON(b []byte) bool { return utf8.Valid(b) && json.Valid(b) }

// skipSpace returns the first index at or after i that is not JSON white space.
func skipSpace(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\t' || b[i] == '\n' || b[i] == '\r') {
		i++
	}
	return i
}

// skipString returns the index after the string that starts at i.
func skipString(b []byte, i int) int {
	for i++; b[i] != '"'; i++ {
		if b[i] == '\\' {
			i++
		}
	}
	return i + 1
}

// skipValue returns the index after the value that starts at i.
func skipValue(b []byte, i int) int {
	switch b[i] {
	case '"':
		return skipString(b, i)
	case '{', '[':
		depth := 0
		for {
			switch b[i] {
			case '"':
				i = skipString(b, i)
				continue
			case '{', '[':
				depth++
			case '}', ']':
				depth--
			}
			i++
			if depth == 0 {
				return i
			}
		}
	}
	for i < len(b) && b[i] != ',' && b[i] != '}' && b[i] != ']' && b[i] != ' ' && b[i] != '\t' && b[i] != '\n' && b[i] != '\r' {
		i++
	}
	return i
}

// members calls visit for each member of a valid object, with the decoded name and the value's bytes, which alias obj.
func members(obj []byte, visit func(name string, value []byte) error) error {
	i := skipSpace(obj, skipSpace(obj, 0)+1)
	for obj[i] != '}' {
		end := skipString(obj, i)
		name, err := unquote(obj[i:end])
		if err != nil {
			return err
		}
		i = skipSpace(obj, end)
		i = skipSpace(obj, i+1) // past the colon
		end = skipValue(obj, i)
		if err := visit(name, obj[i:end]); err != nil {
			return err
		}
		i = skipSpace(obj, end)
		if obj[i] == ',' {
			i = skipSpace(obj, i+1)
		}
	}
	return nil
}

// elements calls visit for each element of a valid array; the bytes alias arr.
func elements(arr []byte, visit func(value []byte) error) error {
	i := skipSpace(arr, skipSpace(arr, 0)+1)
	for arr[i] != ']' {
		end := skipValue(arr, i)
		if err := visit(arr[i:end]); err != nil {
			return err
		}
		i = skipSpace(arr, end)
		if arr[i] == ',' {
			i = skipSpace(arr, i+1)
		}
	}
	return nil
}

// unquote decodes a valid JSON string. The result owns its bytes.
func unquote(q []byte) (string, error) {
	if bytes.IndexByte(q, '\\') < 0 {
		return string(q[1 : len(q)-1]), nil
	}
	var s string
	if err := json.Unmarshal(q, &s); err != nil {
		return "", fmt.Errorf("decode string: %w", err)
	}
	return s, nil
}

// A names set finds a name given twice. Objects are small as a rule, so it starts as a list.
type names struct {
	few  []string
	many map[string]struct{}
}

// add reports whether name is new.
func (n *names) add(name string) bool {
	if n.many != nil {
		_, there := n.many[name]
		n.many[name] = struct{}{}
		return !there
	}
	for _, s := range n.few {
		if s == name {
			return false
		}
	}
	n.few = append(n.few, name)
	if len(n.few) > 16 {
		n.many = make(map[string]struct{}, 2*len(n.few))
		for _, s := range n.few {
			n.many[s] = struct{}{}
		}
	}
	return true
}

// checkValue walks a valid value: errDepth where it nests deeper than depth containers, errDuplicate where an object at
// any level has a member twice, compared as decoded, since "\u0074ype" and "type" are one name to every reader.
func checkValue(v []byte, depth int) error {
	_, err := walk(v, skipSpace(v, 0), depth)
	return err
}

// walk checks the value that starts at i and returns the index after it. It looks at each byte once, however deep it stands.
func walk(b []byte, i, depth int) (int, error) {
	if b[i] != '{' && b[i] != '[' {
		return skipValue(b, i), nil
	}
	if depth == 0 {
		return 0, errDepth
	}
	var seen names
	object := b[i] == '{'
	i = skipSpace(b, i+1)
	for b[i] != '}' && b[i] != ']' {
		if object {
			end := skipString(b, i)
			name, err := unquote(b[i:end])
			if err != nil {
				return 0, err
			}
			if !seen.add(name) {
				return 0, fmt.Errorf("%w: %s", errDuplicate, quoted(name))
			}
			i = skipSpace(b, skipSpace(b, end)+1) // past the colon
		}
		var err error
		i, err = walk(b, i, depth-1)
		if err != nil {
			return 0, err
		}
		i = skipSpace(b, i)
		if b[i] == ',' {
			i = skipSpace(b, i+1)
		}
	}
	return i + 1, nil
}

// quoted is s for an error message: quoted, without control characters, cut to a length that fits a line.
func quoted(s string) string {
	const most = 64
	if len(s) > most {
		cut := most
		for cut > 0 && !utf8.RuneStart(s[cut]) {
			cut--
		}
		s = s[:cut] + "…"
	}
	return fmt.Sprintf("%q", s)
}

const hexDigits = "0123456789abcdef"

// appendString appends s as a JSON string. Bytes that are not UTF-8 become U+FFFD, so that the result is always valid.
func appendString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRuneInString(s[i:])
			if r == utf8.RuneError && n == 1 {
				dst = append(dst, s[start:i]...)
				dst = append(dst, "\ufffd"...)
				i++
				start = i
				continue
			}
			i += n
			continue
		}
		if c >= ' ' && c != '"' && c != '\\' {
			i++
			continue
		}
		dst = append(dst, s[start:i]...)
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\r':
			dst = append(dst, '\\', 'r')
		case '\t':
			dst = append(dst, '\\', 't')
		default:
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
		i++
		start = i
	}
	dst = append(dst, s[start:]...)
	return append(dst, '"')
}
