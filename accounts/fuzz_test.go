package accounts

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"
)

// FuzzParseObject holds what is read member by member against encoding/json: the same objects are taken, but for members given twice.
func FuzzParseObject(f *testing.F) {
	for _, s := range []string{`{}`, `{"a":1,"b":null}`, `{"a":{"b":[1,2]}}`, `{"a":1,"a":2}`, `{} {}`, `[]`, `{"a"}`, `{"a":1,}`, ` {"ä":"\u0000"} `, ``, `{"a":1}x`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		o, err := parseObject([]byte(s), "")
		var members map[string]json.RawMessage
		good := json.Unmarshal([]byte(s), &members) == nil && members != nil
		if err != nil {
			if inv, ok := err.(*InvalidError); good && ok && inv.Fields[0].Detail != "is given twice" {
				t.Errorf("%q is refused: %v", s, err)
			}
			return
		}
		if !good || len(o.members) != len(members) {
			t.Errorf("%q is taken as %d members, is %d", s, len(o.members), len(members))
		}
		for name, raw := range o.members {
			if string(raw) != strings.TrimSpace(string(members[name])) {
				t.Errorf("%q: member %q is %s, want %s", s, name, raw, members[name])
			}
		}
	})
}

// FuzzCursor: no cursor, however made up, is taken in another list than its own, or brings text that a database would refuse.
func FuzzCursor(f *testing.F) {
	f.Add(place{In: "here", Text: "a", Num: 7, Env: "staging", ID: "sa_1"}.encode())
	f.Add("eyJmIjoiaGVyZSJ9")
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		p, begun, err := decodePlace(s, "here")
		if err != nil || !begun {
			return
		}
		if p.In != "here" || !plainText(p.Text+p.Env+p.ID) {
			t.Errorf("%q is taken as %+v", s, p)
		}
		again, _, err := decodePlace(p.encode(), "here")
		if err != nil || again != p {
			t.Errorf("%+v comes back as %+v, %v", p, again, err)
		}
	})
}

// FuzzAccountText: what the checker lets through is trimmed, within its limit, and stays as it is when it is checked again.
func FuzzAccountText(f *testing.F) {
	f.Add(" Nightly Digest ", "line\r\nline")
	f.Add("U\u0308", "\u202e")
	f.Add("a\u0000", strings.Repeat("x", MaxDescription+1))
	f.Fuzz(func(t *testing.T, name, description string) {
		a, err := checkAccount(Account{Name: name, Environment: "production", Description: description})
		if err != nil {
			return
		}
		if a.Name == "" || utf8.RuneCountInString(a.Name) > MaxName || utf8.RuneCountInString(a.Description) > MaxDescription || !plainText(a.Name) {
			t.Errorf("%q is taken as %q", name, a.Name)
		}
		if again, err := checkAccount(a); err != nil || again != a {
			t.Errorf("%+v becomes %+v, %v", a, again, err)
		}
	})
}

// FuzzDefuse: no cell of an export begins as a formula, and nothing is lost.
func FuzzDefuse(f *testing.F) {
	f.Add("=1")
	f.Add("plain")
	f.Fuzz(func(t *testing.T, cell string) {
		got := defuse(cell)
		if strings.TrimPrefix(got, "'") != strings.TrimPrefix(cell, "'") {
			t.Errorf("defuse(%q) = %q", cell, got)
		}
		if got != "" && strings.ContainsAny(got[:1], "=+-@\t\r\n") {
			t.Errorf("defuse(%q) = %q", cell, got)
		}
	})
}
