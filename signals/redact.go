package signals

import (
	"bytes"
	"regexp"
	"slices"

	"flowstate.inc/sluice/auth"
)

// keys finds whole keys and admin tokens of ours; its first group is the prefix, which may be shown.
var keys = regexp.MustCompile(`(` + auth.KeyPattern[:len(auth.KeyPattern)-len(keySecret)] + `)` + keySecret)

// keySecret is the end of auth.KeyPattern, after the prefix; a test holds the two together.
const keySecret = `_[0-9A-Za-z]{49}`

// maxSpelling is how many times over a text may be escaped: a JSON string within a JSON string within one counts three. Nobody
// writes more but to hide something, and each costs another walk.
const maxSpelling = 16

// redact cuts every key of ours that stands in a text to its prefix: a detector that finds one in a prompt may well send it
// as it was, and no store, topic or page may have it. A key is found however its characters are escaped by the rules of JSON,
// as often as JSON stands in strings of JSON. It reports false where that is more than maxSpelling times, which nobody may keep.
func redact(s string) (string, bool) {
	b, ok := redactBytes([]byte(s))
	return string(b), ok
}

// Redact is redact, for what another package of this room sends or keeps. Of what is escaped too often it keeps nothing.
func Redact(s string) string {
	clean, ok := redact(s)
	if !ok {
		return "[redacted]"
	}
	return clean
}

// redactBytes is redact for bytes, which stay valid JSON where they were. It returns b itself where b holds no key.
func redactBytes(b []byte) ([]byte, bool) {
	found, ok := holdsKey(b)
	if !found || !ok {
		return b, ok
	}
	return cutKeys(b), true
}

// holdsKey reports whether a whole key stands in b, in any spelling; ok is false where b is escaped more than maxSpelling times.
func holdsKey(b []byte) (found, ok bool) {
	if bytes.IndexByte(b, '\\') < 0 {
		return matchKey(b), true
	}
	text := bytes.Clone(b)
	for range maxSpelling {
		found = found || matchKey(text)
		n := len(text)
		text = unescape(text, nil)
		if len(text) == n {
			return found, true
		}
	}
	return found, false
}

// matchKey looks for a tag before the expensive look.
func matchKey(b []byte) bool {
	for _, tag := range [...]string{"fsk_", "fpk_", "fdk_", "fat_"} {
		if bytes.Contains(b, []byte(tag)) {
			return keys.Match(b)
		}
	}
	return false
}

// cutKeys replaces the keys of every spelling of b. It keeps for each byte of a spelling where in b it begins, so that what is
// replaced begins and ends between two characters of b, escapes being one.
func cutKeys(b []byte) []byte {
	type cut struct {
		from, to int
		prefix   string
	}
	var cuts []cut
	text, at := bytes.Clone(b), make([]int, len(b)+1)
	for i := range at {
		at[i] = i
	}
	for range maxSpelling {
		for _, m := range keys.FindAllSubmatchIndex(text, -1) {
			cuts = append(cuts, cut{at[m[0]], at[m[1]], string(text[m[2]:m[3]])})
		}
		n := len(text)
		text = unescape(text, at)
		if len(text) == n {
			break
		}
	}
	slices.SortFunc(cuts, func(a, b cut) int { return a.from - b.from })
	var out []byte
	done := 0
	for _, c := range cuts {
		if c.from < done { // the same key, found in a later spelling again
			done = max(done, c.to)
			continue
		}
		out = append(out, b[done:c.from]...)
		out = append(out, c.prefix...)
		out = append(out, "_[redacted]"...)
		done = c.to
	}
	return append(out, b[done:]...)
}

// unescape undoes one round of JSON's escapes in place, and brings at along, which says where each byte came from and where the
// last one ended; nil where nobody asks. What is no escape stays; characters that no key has become one byte that no key has.
func unescape(b []byte, at []int) []byte {
	n := 0
	for i := 0; i < len(b); n++ {
		c, size := b[i], 1
		if c == '\\' && i+1 < len(b) {
			c, size = escaped(b[i:])
		}
		b[n] = c
		if at != nil {
			at[n] = at[i]
		}
		i += size
	}
	if at != nil {
		at[n] = at[len(b)]
	}
	return b[:n]
}

// escaped reads what stands after a backslash: the byte that it means, and how long it is.
func escaped(b []byte) (byte, int) {
	switch b[1] {
	case '"', '\\', '/':
		return b[1], 2
	case 'b', 'f', 'n', 'r', 't':
		return ' ', 2
	case 'u':
		if len(b) < 6 {
			break
		}
		r := 0
		for _, c := range b[2:6] {
			digit := bytes.IndexByte([]byte("0123456789abcdef"), c|0x20)
			if digit < 0 || c < '0' {
				return '\\', 1
			}
			r = r<<4 | digit
		}
		if r >= 0x80 {
			return ' ', 6
		}
		return byte(r), 6
	}
	return '\\', 1
}
