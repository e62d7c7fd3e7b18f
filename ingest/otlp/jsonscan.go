package otlp

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"unicode/utf16"
	"unicode/utf8"
)

// maxSkipDepth bounds what an unknown member may hold.
const maxSkipDepth = 256

// decoder reads JSON from src and writes protobuf to dst, in one pass and without a tree between them.
type decoder struct {
	src []byte
	i   int
	dst []byte
	in  string // the message being read, for errors
}

func (d *decoder) fail(r Reason) error { return &MalformedError{In: d.in, Reason: r, Offset: d.i} }

// peek is the next byte that is not white space, and 0 at the end of the body.
func (d *decoder) peek() byte {
	for d.i < len(d.src) {
		c := d.src[d.i]
		if c > ' ' {
			return c
		}
		if c != ' ' && c != '\n' && c != '\r' && c != '\t' {
			return c
		}
		d.i++
	}
	return 0
}

// eat passes over c, if it is what comes next.
func (d *decoder) eat(c byte) bool {
	if d.peek() != c || d.i >= len(d.src) {
		return false
	}
	d.i++
	return true
}

func (d *decoder) need(c byte) error {
	if d.eat(c) {
		return nil
	}
	if d.i >= len(d.src) {
		return d.fail(Truncated)
	}
	return d.fail(BadJSON)
}

func (d *decoder) literal(s string) error {
	if !bytes.HasPrefix(d.src[d.i:], []byte(s)) {
		return d.fail(BadJSON)
	}
	d.i += len(s)
	return nil
}

// null passes over a null, which in OTLP/JSON is as good as absent.
func (d *decoder) null() (bool, error) {
	if d.peek() != 'n' {
		return false, nil
	}
	return true, d.literal("null")
}

// more is called before each element of an object or a list whose opening has been read: false at its end.
func (d *decoder) more(first bool, closing byte) (bool, error) {
	if !first && d.i < len(d.src) && d.src[d.i] == ',' { // as it is where nobody added white space
		d.i++
		return true, nil
	}
	if d.eat(closing) {
		return false, nil
	}
	if first {
		return true, nil
	}
	return true, d.need(',')
}

// member reads a member's name and its colon. The name is good until the next one is read.
func (d *decoder) member() ([]byte, error) {
	if d.peek() != '"' {
		return nil, d.need('"')
	}
	name, escaped, err := d.raw()
	if err != nil {
		return nil, err
	}
	if escaped {
		if name, err = d.unescape(nil, name); err != nil {
			return nil, err
		}
	}
	return name, d.need(':')
}

// at passes over text, a member's name with its quotes and colon, if exactly that comes next. It saves reading the names that
// come again and again; where it says no, member reads whatever is there.
func (d *decoder) at(text string) bool {
	if len(d.src)-d.i < len(text) || string(d.src[d.i:d.i+len(text)]) != text {
		return false
	}
	d.i += len(text)
	return true
}

// raw reads a string at its opening quote, and returns what stands between the quotes, escapes and all.
func (d *decoder) raw() ([]byte, bool, error) {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	d.i++
	start, i := d.i, d.i
	high := uint64(0)
	escaped := false
	src := d.src
	for {
		for i+8 <= len(src) {
			x := binary.LittleEndian.Uint64(src[i:])
			quote, slash := x^(ones*'"'), x^(ones*'\\')
			stop := ((quote-ones)&^quote | (slash-ones)&^slash | (x-ones*0x20)&^x) & highs
			if stop != 0 {
				n := bits.TrailingZeros64(stop) &^ 7
				high |= x & highs & (1<<n - 1)
				i += n >> 3
				break
			}
			high |= x & highs
			i += 8
		}
		if i >= len(src) {
			d.i = i
			return nil, false, d.fail(Truncated)
		}
		c := src[i]
		switch {
		case c == '"':
			d.i = i + 1
			s := src[start:i]
			if high != 0 && !utf8.Valid(s) {
				return nil, false, d.fail(BadUTF8)
			}
			return s, escaped, nil
		case c == '\\':
			escaped = true
			i += 2
		case c < 0x20:
			d.i = i
			return nil, false, d.fail(BadJSON)
		default:
			high |= uint64(c) & 0x80
			i++
		}
	}
}

// unescape appends the text of s, whose bytes are valid UTF-8. Half of a surrogate pair becomes U+FFFD, as JSON readers
// have it: a client that cut a prompt in the middle of an emoji does not lose its batch.
func (d *decoder) unescape(dst, s []byte) ([]byte, error) {
	for {
		n := bytes.IndexByte(s, '\\')
		if n < 0 {
			return append(dst, s...), nil
		}
		dst = append(dst, s[:n]...)
		if n+1 >= len(s) {
			return nil, d.fail(BadJSON)
		}
		c := s[n+1]
		s = s[n+2:]
		switch c {
		case '"', '\\', '/':
			dst = append(dst, c)
		case 'b':
			dst = append(dst, '\b')
		case 'f':
			dst = append(dst, '\f')
		case 'n':
			dst = append(dst, '\n')
		case 'r':
			dst = append(dst, '\r')
		case 't':
			dst = append(dst, '\t')
		case 'u':
			r, ok := hex4(s)
			if !ok {
				return nil, d.fail(BadJSON)
			}
			s = s[4:]
			if utf16.IsSurrogate(r) {
				pair := rune(utf8.RuneError)
				if len(s) >= 6 && s[0] == '\\' && s[1] == 'u' {
					if low, ok := hex4(s[2:]); ok {
						pair = utf16.DecodeRune(r, low)
					}
				}
				if pair != utf8.RuneError {
					s = s[6:]
				}
				r = pair
			}
			dst = utf8.AppendRune(dst, r)
		default:
			return nil, d.fail(BadJSON)
		}
	}
}

func hex4(s []byte) (rune, bool) {
	if len(s) < 4 {
		return 0, false
	}
	r := rune(0)
	for _, c := range s[:4] {
		v := unhex(c)
		if v > 15 {
			return 0, false
		}
		r = r<<4 | rune(v)
	}
	return r, true
}

// unhex is the value of a hexadecimal digit, and more than 15 for any other byte.
func unhex(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10
	}
	return 0xff
}

// number reads a JSON number and returns its text.
func (d *decoder) number() ([]byte, error) {
	start := d.i
	if d.i < len(d.src) && d.src[d.i] == '-' {
		d.i++
	}
	zero := d.i < len(d.src) && d.src[d.i] == '0'
	n := d.digits()
	if n == 0 || zero && n > 1 {
		return nil, d.fail(BadJSON)
	}
	if d.i < len(d.src) && d.src[d.i] == '.' {
		d.i++
		if d.digits() == 0 {
			return nil, d.fail(BadJSON)
		}
	}
	if d.i < len(d.src) && d.src[d.i]|0x20 == 'e' {
		d.i++
		if d.i < len(d.src) && (d.src[d.i] == '+' || d.src[d.i] == '-') {
			d.i++
		}
		if d.digits() == 0 {
			return nil, d.fail(BadJSON)
		}
	}
	return d.src[start:d.i], nil
}

func (d *decoder) digits() int {
	start := d.i
	for d.i < len(d.src) && d.src[d.i] >= '0' && d.src[d.i] <= '9' {
		d.i++
	}
	return d.i - start
}

// skip passes over one value of any kind, checking that it is JSON.
func (d *decoder) skip(depth int) error {
	if depth > maxSkipDepth {
		return d.fail(TooDeep)
	}
	switch c := d.peek(); c {
	case '"':
		s, escaped, err := d.raw()
		if err == nil && escaped {
			_, err = d.unescape(nil, s)
		}
		return err
	case 't':
		return d.literal("true")
	case 'f':
		return d.literal("false")
	case 'n':
		return d.literal("null")
	case '{', '[':
		d.i++
		for first := true; ; first = false {
			ok, err := d.more(first, c+2) // both closing brackets stand two after their opening ones
			if err != nil || !ok {
				return err
			}
			if c == '{' {
				if _, err := d.member(); err != nil {
					return err
				}
			}
			if err := d.skip(depth + 1); err != nil {
				return err
			}
		}
	default:
		if d.i >= len(d.src) {
			return d.fail(Truncated)
		}
		_, err := d.number()
		return err
	}
}
