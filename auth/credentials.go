package auth

import (
	"encoding/base64"
	"errors"
)

// ErrNoCredentials means that the request named no key at all, or used a scheme that carries none.
var ErrNoCredentials = errors.New("no credentials")

// maxSlug bounds the org's slug in Basic credentials. Slugs are shorter.
const maxSlug = 63

// Credentials are what a request showed. They own their bytes.
type Credentials struct {
	Key  Key
	Slug string // the org's slug; "" unless the scheme was Basic
}

// FromHeaders reads the key from the values of the headers x-flowstate-key and authorization, either of which may be
// empty. It borrows both and keeps neither. x-flowstate-key wins: where it is set, authorization is not looked at, so
// that a proxy's own credentials never get in the way. The forms are
//
//	x-flowstate-key: KEY
//	authorization: Bearer KEY
//	authorization: Basic base64(slug:KEY)
//
// with the scheme in any case and spaces around anything. The errors are ErrNoCredentials and ErrMalformedKey; no
// look-up is made.
func FromHeaders(flowstateKey, authorization []byte) (Credentials, error) {
	if raw := trim(flowstateKey); len(raw) > 0 {
		key, err := ParseKey(raw)
		return Credentials{Key: key}, err
	}
	scheme, rest := cutScheme(trim(authorization))
	switch {
	case equalFold(scheme, "bearer") && len(rest) > 0:
		key, err := ParseKey(rest)
		return Credentials{Key: key}, err
	case equalFold(scheme, "basic") && len(rest) > 0:
		return fromBasic(rest)
	}
	return Credentials{}, ErrNoCredentials
}

// PrefixFromHeaders finds the public part of a key in the values of the headers that FromHeaders reads, be the rest of it cut, mistyped or that of an
// admin token: so that those who look at refused requests see whose key was meant. It proves nothing.
func PrefixFromHeaders(flowstateKey, authorization []byte) (string, bool) {
	const most = 512 // bytes that are looked at
	raw := trim(flowstateKey)
	if len(raw) == 0 {
		var scheme []byte
		scheme, raw = cutScheme(trim(authorization))
		if equalFold(scheme, "basic") {
			raw = raw[:min(len(raw), most)]
			for len(raw) > 0 && raw[len(raw)-1] == '=' {
				raw = raw[:len(raw)-1]
			}
			plain := make([]byte, base64.RawStdEncoding.DecodedLen(len(raw)))
			n, _ := base64.RawStdEncoding.Decode(plain, raw) // what decodes of it will do
			raw = plain[:n]
		}
	}
	return PrefixOf(string(raw[:min(len(raw), most)]))
}

func fromBasic(encoded []byte) (Credentials, error) {
	for len(encoded) > 0 && encoded[len(encoded)-1] == '=' { // padding is often forgotten by hand-made clients
		encoded = encoded[:len(encoded)-1]
	}
	var buf [maxSlug + 1 + KeyLength + 2]byte // with room for the end of a line inside
	if base64.RawStdEncoding.DecodedLen(len(encoded)) > len(buf) {
		return Credentials{}, ErrMalformedKey
	}
	n, err := base64.RawStdEncoding.Decode(buf[:], encoded)
	if err != nil {
		return Credentials{}, ErrMalformedKey
	}
	plain := buf[:n]
	// The key's length is fixed, so it is cut from the end; whatever is before it is the slug and its colon.
	plain = trim(plain)
	at := len(plain) - KeyLength - 1
	if at < 1 || plain[at] != ':' {
		return Credentials{}, ErrMalformedKey // without a slug Basic says nothing that Bearer does not
	}
	key, err := ParseKey(plain[at+1:])
	if err != nil {
		return Credentials{}, ErrMalformedKey
	}
	return Credentials{Key: key, Slug: string(plain[:at])}, nil
}

func cutScheme(v []byte) ([]byte, []byte) {
	for i, c := range v {
		if isSpace(c) {
			return v[:i], trim(v[i:])
		}
	}
	return v, nil
}

func trim(v []byte) []byte {
	for len(v) > 0 && isSpace(v[0]) {
		v = v[1:]
	}
	for len(v) > 0 && isSpace(v[len(v)-1]) {
		v = v[:len(v)-1]
	}
	return v
}

// isSpace counts the end of a line as a space: a key pasted from a file into an environment variable often brings one,
// and some clients pass it on.
func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\r' || c == '\n' }

// equalFold compares in ASCII, without allocating; lower must be lower case.
func equalFold(v []byte, lower string) bool {
	if len(v) != len(lower) {
		return false
	}
	for i, c := range v {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}
