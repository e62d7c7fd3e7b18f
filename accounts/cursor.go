package accounts

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits of the pages of every list.
const (
	DefaultLimit = 50
	MaxLimit     = 200
)

// A place is where a page ended. What it is a place in, is fingerprinted: a cursor of one list, filter or sort is refused in another, since it
// would skip rows there without a word. It is not signed: whoever makes one up sees only rows that the list shows anyway.
type place struct {
	In   string `json:"f"`           // fingerprint of the list with its filters
	Text string `json:"t,omitempty"` // last value of the sort column, where that is a text
	Num  int64  `json:"n,omitempty"` // … or a number
	Env  string `json:"e,omitempty"` // last environment, where that sorts first
	ID   string `json:"i,omitempty"` // last id, which breaks ties
}

// fingerprint is short: a clash costs a page that begins at an odd place, no more.
func fingerprint(parts ...any) string {
	b, err := json.Marshal(parts)
	if err != nil {
		panic("BUG: a list's filters are not JSON: " + err.Error())
	}
	h := sha256.Sum256(b)
	return base64.RawURLEncoding.EncodeToString(h[:6])
}

func (p place) encode() string {
	b, err := json.Marshal(p)
	if err != nil {
		panic("BUG: a cursor is not JSON: " + err.Error())
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

// decodePlace reads a cursor of the list with this fingerprint; the second result is false for none, which is the beginning.
func decodePlace(cursor, in string) (place, bool, error) {
	if cursor == "" {
		return place{}, false, nil
	}
	b, err := base64.RawURLEncoding.DecodeString(cursor)
	var p place
	if err != nil || len(b) > 4096 || json.Unmarshal(b, &p) != nil || p.In != in || !plainText(p.Text) || !plainText(p.Env) || !plainText(p.ID) {
		return place{}, false, invalid("cursor", "is not one of this list with these filters; begin again without it")
	}
	return p, true, nil
}

// plainText is true for what may be sent to the database as a text: PostgreSQL refuses zero bytes and broken UTF-8, which nothing stored holds.
func plainText(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

func checkLimit(limit int) (int, error) {
	switch {
	case limit == 0:
		return DefaultLimit, nil
	case limit < 0 || limit > MaxLimit:
		return 0, invalid("limit", "must be 1 to %d", MaxLimit)
	}
	return limit, nil
}

// args numbers the parameters of a statement that is put together.
type args []any

func (a *args) add(v any) string {
	*a = append(*a, v)
	return fmt.Sprintf("$%d", len(*a))
}

// contains is a LIKE pattern for texts that hold s. LIKE differs in case between the databases: both sides are lower-cased in Go.
func contains(s string) string {
	return "%" + likeEscaper.Replace(lower(s)) + "%"
}

var likeEscaper = strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`)
