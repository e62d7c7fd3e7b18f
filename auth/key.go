package auth

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"hash/crc32"
)

// The shape of a key: tag, 12 base62 of public id, "_", 43 base62 of secret (256 random bits), 6 base62 of checksum.
const (
	tagLen    = 4
	publicLen = 12
	secretLen = 43
	sumLen    = 6
	prefixLen = tagLen + publicLen
	// KeyLength is the length of every key and admin token, in bytes.
	KeyLength = prefixLen + 1 + secretLen + sumLen
)

// KeyPattern is the published regular expression (RE2 and PCRE alike) that finds keys and admin tokens of Sluice in any
// text. It has no word boundaries, because a key may follow "%20" or "\n" in what a scanner reads; ParseKey and
// ParseAdminToken check the last six characters, which leaves about one false find in four thousand million.
const KeyPattern = `f(?:sk|pk|dk|at)_[0-9A-Za-z]{12}_[0-9A-Za-z]{49}`

// ErrMalformedKey means that the bytes cannot be a key: wrong length, alphabet, tag or checksum. No look-up was made.
var ErrMalformedKey = errors.New("malformed key")

// KindAdmin is the kind of an admin token's Key. It is never the kind of a Principal.
const KindAdmin Kind = "admin"

// A PublicID is the part of a key that may be shown: the tag and the public id, 16 ASCII bytes such as
// fsk_2xT4mQz9LkPa. As an array it is a map key and a field without any allocation.
type PublicID [prefixLen]byte

// String returns the prefix as it is shown and stored.
func (id PublicID) String() string { return string(id[:]) }

// ParsePrefix reads a prefix exactly as String wrote it.
func ParsePrefix(s string) (PublicID, bool) {
	var id PublicID
	if len(s) != prefixLen {
		return id, false
	}
	copy(id[:], s)
	if _, ok := kindOf(id[:]); !ok || !allBase62(id[tagLen:]) {
		return PublicID{}, false
	}
	return id, true
}

// A Key is what the gateway keeps of a key that somebody sent. It is a value that holds neither the secret nor the
// sender's bytes, so nothing downstream can leak either.
type Key struct {
	ID   PublicID
	Hash [32]byte // SHA-256 of the whole key: 256 random bits need no slow hash (NIST SP 800-63B)
	Kind Kind
}

// Prefix returns the public part of the key as text. It allocates.
func (k Key) Prefix() string { return k.ID.String() }

// MintKey makes a key from 256 random bits. raw is the secret, to be shown once and never stored.
// It panics on a kind that has no keys, which is a bug of the caller.
func MintKey(k Kind) (string, Key) {
	switch k {
	case KindServiceAccount:
		return mint("fsk_", k)
	case KindPerson:
		return mint("fpk_", k)
	case KindDetector:
		return mint("fdk_", k)
	}
	panic("BUG: no keys of kind " + string(k))
}

// MintAdminToken makes a token of the admin API. It has the shape of a key, but is never accepted as one.
func MintAdminToken() (string, Key) { return mint("fat_", KindAdmin) }

// ParseKey reads a telemetry key. It borrows raw and allocates nothing. Everything that can be refused without a
// look-up is refused here, with ErrMalformedKey: admin tokens too.
func ParseKey(raw []byte) (Key, error) {
	k, err := parse(raw)
	if err != nil || k.Kind == KindAdmin {
		return Key{}, ErrMalformedKey
	}
	return k, nil
}

// ParseAdminToken reads a token of the admin API, as ParseKey reads a key. Telemetry keys are malformed here.
func ParseAdminToken(raw []byte) (Key, error) {
	k, err := parse(raw)
	if err != nil || k.Kind != KindAdmin {
		return Key{}, ErrMalformedKey
	}
	return k, nil
}

// PrefixOf finds the first whole key (or admin token) in pasted text, else the first bare prefix, and cuts it to the
// prefix. A log line, a header or a line of an .env file will do.
func PrefixOf(s string) (string, bool) {
	found := ""
	for i := 0; i+prefixLen <= len(s); i++ {
		if s[i] != 'f' {
			continue
		}
		id, ok := ParsePrefix(s[i : i+prefixLen])
		if !ok {
			continue
		}
		if rest := s[i:]; len(rest) >= KeyLength {
			if _, err := parse([]byte(rest[:KeyLength])); err == nil {
				return id.String(), true
			}
		}
		if end := i + prefixLen; found == "" && (end == len(s) || base62Value(s[end]) < 0) {
			found = id.String()
		}
	}
	return found, found != ""
}

func parse(raw []byte) (Key, error) {
	if len(raw) != KeyLength {
		return Key{}, ErrMalformedKey
	}
	kind, ok := kindOf(raw)
	if !ok || raw[prefixLen] != '_' || !allBase62(raw[tagLen:prefixLen]) || !allBase62(raw[prefixLen+1:]) {
		return Key{}, ErrMalformedKey
	}
	body := raw[:KeyLength-sumLen]
	if [sumLen]byte(raw[KeyLength-sumLen:]) != checksum(body) {
		return Key{}, ErrMalformedKey
	}
	return Key{ID: PublicID(raw[:prefixLen]), Hash: sha256.Sum256(raw), Kind: kind}, nil
}

func kindOf(raw []byte) (Kind, bool) {
	switch string(raw[:tagLen]) { // the compiler compares in place
	case "fsk_":
		return KindServiceAccount, true
	case "fpk_":
		return KindPerson, true
	case "fdk_":
		return KindDetector, true
	case "fat_":
		return KindAdmin, true
	}
	return "", false
}

const base62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

func mint(tag string, kind Kind) (string, Key) {
	raw := make([]byte, 0, KeyLength)
	raw = append(raw, tag...)
	raw = appendRandom(raw, publicLen)
	raw = append(raw, '_')
	raw = appendRandom(raw, secretLen)
	sum := checksum(raw)
	raw = append(raw, sum[:]...)
	return string(raw), Key{ID: PublicID(raw[:prefixLen]), Hash: sha256.Sum256(raw), Kind: kind}
}

// appendRandom appends n characters of base62, each equally likely. Six bits of a random byte give one of 64 values;
// the two too many are thrown away.
func appendRandom(dst []byte, n int) []byte {
	var buf [64]byte
	for n > 0 {
		_, _ = rand.Read(buf[:]) // never fails: crypto/rand ends the process instead
		for _, b := range buf {
			if v := int(b & 63); v < len(base62) && n > 0 {
				dst = append(dst, base62[v])
				n--
			}
		}
	}
	return dst
}

// checksum is the CRC-32 (IEEE) of all before it, as six digits of base62, the most significant first.
func checksum(body []byte) [sumLen]byte {
	var out [sumLen]byte
	v := crc32.ChecksumIEEE(body)
	for i := sumLen - 1; i >= 0; i-- {
		out[i] = base62[v%62]
		v /= 62
	}
	return out
}

func allBase62(b []byte) bool {
	signs := int8(0)
	for _, c := range b {
		signs |= base62Values[c]
	}
	return signs >= 0
}

func base62Value(c byte) int { return int(base62Values[c]) }

// base62Values are the digits' values, and -1 for every other byte.
var base62Values = func() (values [256]int8) {
	for i := range values {
		values[i] = -1
	}
	for i := range len(base62) {
		values[base62[i]] = int8(i)
	}
	return values
}()
