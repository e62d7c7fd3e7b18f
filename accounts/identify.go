package accounts

import (
	"context"
	"crypto/subtle"
	"database/sql"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"regexp"
	"strings"
	"time"

	"flowstate.inc/sluice/auth"
)

// A Query says how a found key, or admin token, is looked up: by exactly one of its fields.
type Query struct {
	Raw    string // the whole key, or text that holds it; cut to its prefix and hash here, and neither kept nor logged
	Prefix string // or text that holds it, or its beginning: at least MinLeadingPart characters after fsk_, fpk_, fdk_ or fat_
	SHA256 string // of the whole key: 64 hex digits or base64, with or without sha256: before it
}

// MinLeadingPart is how many characters of a public id find a key. Eight of base62 are some 2e14: two keys that share them are a rare accident.
const MinLeadingPart = 8

// How an Identified was found.
const (
	FoundByKey         = "key"          // the whole key was given, and its hash is the stored one
	FoundBySHA256      = "sha256"       // the same, and only the hash was given
	FoundByPrefix      = "prefix"       // nothing was said of the secret
	FoundByLeadingPart = "leading_part" // as by prefix, of which only the beginning was given
)

// Identified is whose a key is. Of Key and Token one is set: the Token where it is an admin token that was found.
type Identified struct {
	Key     Key
	Account *Account // nil for persons, detectors and admin tokens
	Token   *AdminToken
	FoundBy string // one of the constants above
}

// Identify says whose key it is, whether it is alive and when it was last used, and writes that it was asked to the audit. A raw key is found by its
// hash: a key that merely begins as ours does not match. Errors: *InvalidError (for a beginning that several keys share too), ErrNotFound (of another
// org too).
func (s *Store) Identify(ctx context.Context, by By, org string, q Query) (Identified, error) {
	l, err := q.parse()
	if err != nil {
		return Identified{}, err
	}
	out, err := s.findKey(ctx, org, l)
	if err != nil {
		return Identified{}, err
	}
	if out.Token == nil && out.Key.Kind == auth.KindServiceAccount {
		a, err := s.Account(ctx, org, out.Key.SubjectID)
		if err != nil {
			return Identified{}, err
		}
		out.Account = &a
	}
	e := Event{Action: "key.identified", Target: out.Subject(), After: fields{"key_prefix": out.Prefix(), "by": out.FoundBy}}
	if out.Token != nil {
		e = Event{Action: "token.identified", Target: out.Subject(), After: fields{"token_prefix": out.Prefix(), "by": out.FoundBy}}
	}
	_, err = s.write(ctx, func(ctx context.Context, t *tx) error { return t.audit(ctx, org, by, e) })
	if err != nil {
		return Identified{}, err
	}
	return out, nil
}

// Prefix is the public part of what was found.
func (i Identified) Prefix() string {
	if i.Token != nil {
		return i.Token.Prefix
	}
	return i.Key.Prefix
}

// Subject is who it speaks for; an admin token speaks for itself.
func (i Identified) Subject() Subject {
	if i.Token != nil {
		return i.Token.subject()
	}
	return i.Key.Subject()
}

// FindByPrefix is Identify for text that holds a prefix or its beginning, for a search: it leaves no row in the audit, since a list that is searched is
// reloaded at will, and it shows no more than the lists of keys and tokens do. Account is not filled. Errors: ErrNotFound, also where the text holds
// nothing of the kind, and where several keys begin so.
func (s *Store) FindByPrefix(ctx context.Context, org, text string) (Identified, error) {
	l, err := Query{Prefix: text}.parse()
	if err != nil {
		return Identified{}, fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	found, err := s.findKey(ctx, org, l)
	if _, several := err.(*InvalidError); several {
		return Identified{}, fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	return found, err
}

// A keyLookup is a checked Query: one of hash and begins is set. A whole prefix begins one key only.
type keyLookup struct {
	hash   []byte
	begins string
	by     string
	token  bool // an admin token, where begins is set or a raw one was given
	either bool // a hash tells nothing of its kind
}

// leadingPart finds the beginning of a prefix that was cut: by dots, an ellipsis, stars, the end of the text.
var leadingPart = regexp.MustCompile(`(?:^|[^0-9A-Za-z_])(f[spda][kt]_)([0-9A-Za-z]{0,11})(?:$|[^0-9A-Za-z_])`)

func (q Query) parse() (keyLookup, error) {
	given := 0
	for _, s := range []string{q.Raw, q.Prefix, q.SHA256} {
		if s != "" {
			given++
		}
	}
	if given != 1 {
		return keyLookup{}, invalid("key", "give exactly one of key, prefix and sha256")
	}
	switch {
	case q.Raw != "":
		key, ok := wholeKey(q.Raw)
		if !ok {
			return keyLookup{}, invalid("key", "is not a whole key: its form or its checksum is wrong; give its first 16 characters, or as many as there are, as prefix")
		}
		return keyLookup{hash: key.Hash[:], by: FoundByKey, token: key.Kind == auth.KindAdmin}, nil
	case q.Prefix != "":
		return parsePrefix(q.Prefix)
	}
	text := strings.TrimSpace(q.SHA256)
	for _, before := range []string{"sha256:", "sha256=", "SHA256:", "SHA256="} {
		text = strings.TrimPrefix(text, before)
	}
	hash, err := hex.DecodeString(text)
	if err != nil {
		hash, err = base64.RawStdEncoding.DecodeString(strings.TrimRight(text, "="))
	}
	if err != nil || len(hash) != 32 {
		return keyLookup{}, invalid("sha256", "must be 64 hex digits, or base64 of 32 bytes")
	}
	return keyLookup{hash: hash, by: FoundBySHA256, either: true}, nil
}

func parsePrefix(text string) (keyLookup, error) {
	if prefix, ok := auth.PrefixOf(text); ok {
		return keyLookup{begins: prefix, by: FoundByPrefix, token: strings.HasPrefix(prefix, "fat_")}, nil
	}
	m := leadingPart.FindStringSubmatch(text)
	if m == nil || (m[1] != "fsk_" && m[1] != "fpk_" && m[1] != "fdk_" && m[1] != "fat_") {
		return keyLookup{}, invalid("prefix", "is not a key's prefix: fsk_, fpk_, fdk_ or fat_ and 12 letters or digits, or the first %d of them or more", MinLeadingPart)
	}
	if len(m[2]) < MinLeadingPart {
		return keyLookup{}, invalid("prefix", "is too short: at least %d characters after %s are needed, there are %d", MinLeadingPart, m[1], len(m[2]))
	}
	return keyLookup{begins: m[1] + m[2], by: FoundByLeadingPart, token: m[1] == "fat_"}, nil
}

func (s *Store) findKey(ctx context.Context, org string, l keyLookup) (Identified, error) {
	out := Identified{FoundBy: l.by}
	if !l.token {
		where, arg := "k.hash = $2", any(l.hash)
		switch l.by {
		case FoundByPrefix:
			where, arg = "k.prefix = $2", l.begins
		case FoundByLeadingPart:
			// LIKE takes no account of case on SQLite, and prefixes have both.
			where, arg = fmt.Sprintf("substr(k.prefix, 1, %d) = $2", len(l.begins)), l.begins
		}
		rows, err := s.r.QueryContext(ctx, selectKey+` WHERE k.org = $1 AND `+where+` LIMIT 2`, org, arg)
		if err != nil {
			return out, wrap("read the key", err)
		}
		keys, err := collect(rows, func(rows *sql.Rows) (Key, error) { return scanKey(rows) })
		switch {
		case err != nil:
			return out, wrap("read the key", err)
		case len(keys) > 1:
			return out, errSeveral(l)
		case len(keys) == 1:
			out.Key = keys[0]
			return out, nil
		case !l.either:
			return out, fmt.Errorf("read the key: %w", ErrNotFound)
		}
	}
	token, err := s.findToken(ctx, org, l)
	out.Token = token
	return out, err
}

func errSeveral(l keyLookup) error {
	return invalid("prefix", "several begin with %s: give more of it", l.begins)
}

// findToken reads all tokens of the org: there are few.
func (s *Store) findToken(ctx context.Context, org string, l keyLookup) (*AdminToken, error) {
	rows, err := s.r.QueryContext(ctx, selectToken+` WHERE org = $1`, org)
	if err != nil {
		return nil, wrap("read the admin token", err)
	}
	var found []AdminToken
	_, err = collect(rows, func(rows *sql.Rows) (struct{}, error) {
		t, hash, err := scanToken(rows)
		if l.hash != nil && subtle.ConstantTimeCompare(hash, l.hash) == 1 || l.hash == nil && strings.HasPrefix(t.Prefix, l.begins) {
			found = append(found, t)
		}
		return struct{}{}, err
	})
	switch {
	case err != nil:
		return nil, wrap("read the admin token", err)
	case len(found) == 0:
		return nil, fmt.Errorf("read the admin token: %w", ErrNotFound)
	case len(found) > 1:
		return nil, errSeveral(l)
	}
	return &found[0], nil
}

// State is active, expired or revoked at a time.
func (a AdminToken) State(now time.Time) string {
	switch {
	case !a.RevokedAt.IsZero():
		return "revoked"
	case !a.ExpiresAt.IsZero() && !now.Before(a.ExpiresAt):
		return "expired"
	}
	return "active"
}

// wholeKey finds the key, or admin token, in pasted text such as a header or a line of an .env file.
func wholeKey(s string) (auth.Key, bool) {
	for _, m := range keyInText.FindAllString(s, 8) {
		if key, err := auth.ParseKey([]byte(m)); err == nil {
			return key, true
		}
		if key, err := auth.ParseAdminToken([]byte(m)); err == nil {
			return key, true
		}
	}
	return auth.Key{}, false
}
