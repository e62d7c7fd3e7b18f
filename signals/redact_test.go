package signals

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"flowstate.inc/sluice/auth"
)

func TestKeysAreCutToTheirPrefix(t *testing.T) {
	if !strings.HasSuffix(auth.KeyPattern, keySecret) {
		t.Fatalf("auth.KeyPattern is %s now", auth.KeyPattern)
	}
	tokens := []string{}
	for _, k := range []auth.Kind{auth.KindServiceAccount, auth.KindPerson, auth.KindDetector} {
		raw, _ := auth.MintKey(k)
		tokens = append(tokens, raw)
	}
	raw, _ := auth.MintAdminToken()
	for _, raw := range append(tokens, raw) {
		secret := raw[len("fsk_")+12:]
		r := one(t, "", `{"type":"api_key_in_prompt","id":"`+raw+`","session_id":"`+raw+`","subject":{"kind":"person","id":"`+raw+`"},"details":{"found":"x`+raw+`y","`+raw+`":1}}`)
		e := Event{SourceID: r.SourceID, SessionID: r.SessionID, Subject: EventSubject{ID: r.Subject.ID}, Details: r.Details}
		b := string(e.AppendJSON(nil))
		if r.Fault != nil || strings.Contains(b, secret) || strings.Count(b, raw[:16]+"_[redacted]") != 5 {
			t.Errorf("%v %s", r.Fault, b)
		}
		l := FromLogRecord(attrs("signal.type", `"a"`, "x", `"`+raw+`"`, "session.id", `"`+raw+`"`), 1, 0, nil, 0, &Ordinals{}, Limits{})
		if l.Fault != nil || strings.Contains(string(l.Details)+l.SessionID, secret) {
			t.Errorf("%+v", l)
		}
	}
	for _, s := range []string{"", "fsk_", "fsk_abcdefghijkl", "fsk_abcdefghijkl_short", "plain"} {
		if got, ok := redact(s); got != s || !ok {
			t.Errorf("%q is cut to %q", s, got)
		}
	}
}

// spell writes s with every character (each: n of them) escaped, and the whole escaped again, times over.
func spell(s string, each func(i int) bool, times int) string {
	var b strings.Builder
	for i := range len(s) {
		if each(i) {
			fmt.Fprintf(&b, `\u%04x`, s[i])
		} else {
			b.WriteByte(s[i])
		}
	}
	out := b.String()
	for range times {
		quoted, err := json.Marshal(out)
		if err != nil {
			panic(err)
		}
		out = string(quoted[1 : len(quoted)-1])
	}
	return out
}

// unspelt decodes until nothing changes: what the most patient reader of all would see.
func unspelt(s string) string {
	for {
		next := string(unescape([]byte(s), nil))
		if next == s {
			return s
		}
		s = next
	}
}

func TestKeysAreCutInEverySpelling(t *testing.T) {
	raw, _ := auth.MintKey(auth.KindServiceAccount)
	secret := raw[len("fsk_")+13:]
	for name, each := range map[string]func(int) bool{
		"first":  func(i int) bool { return i == 0 },
		"all":    func(int) bool { return true },
		"last":   func(i int) bool { return i == len(raw)-1 },
		"score":  func(i int) bool { return raw[i] == '_' },
		"second": func(i int) bool { return i%2 == 1 },
	} {
		for times := range 4 {
			s := spell(raw, each, times)
			upper := regexp.MustCompile(`u00[0-9a-f]{2}`).ReplaceAllStringFunc(s, func(e string) string { return "u" + strings.ToUpper(e[1:]) })
			for _, s := range []string{s, upper, strings.ReplaceAll(s, `\\`, `\u005c`), strings.ReplaceAll(s, `\\`, `\\u005c`)} {
				for _, details := range []string{
					`{"found":"x ` + s + ` y","n":1}`, `{"` + s + `":true}`, `{"a":[{"b":"` + s + ` and ` + s + `"}]}`, `{"say":"\"` + s + `\"\n"}`,
				} {
					r := one(t, "", `{"type":"api_key_in_prompt","details":`+details+`}`)
					if r.Fault != nil {
						t.Fatalf("%s, %d times: %+v", name, times, r.Fault)
					}
					read := unspelt(string(r.Details))
					if strings.Contains(read, secret) || !strings.Contains(read, raw[:16]+"_[redacted]") || !json.Valid(r.Details) {
						t.Errorf("%s, %d times: %s becomes %s", name, times, details, r.Details)
					}
				}
			}
		}
	}
	// What is no key stays as it was, to the byte.
	for _, details := range []string{`{"a":"\u0066sk_abc \\u0066","b":"C:\\temp\\fsk_","c":"\u00e9\n\ud83d\ude00","d":"\\"}`} {
		if r := one(t, "", `{"type":"a","details":`+details+`}`); string(r.Details) != details {
			t.Errorf("%s becomes %s", details, r.Details)
		}
	}
	// The deepest that is looked into, and one more.
	if got, ok := redact(spell(raw, func(i int) bool { return i == 0 }, 10)); !ok || strings.Contains(got, secret) {
		t.Errorf("ten times over: %t %.100s", ok, got)
	}
	chain := "\\" + strings.Repeat("u005c", maxSpelling) + "u0066" + raw[1:]
	if r := one(t, "", `{"type":"a","details":{"x":"`+chain+`"}}`); r.Fault == nil || r.Fault.Reason != TooDeep {
		t.Errorf("a chain of escapes: %+v %s", r.Fault, r.Details)
	}
	if r := one(t, "", `{"type":"a","session_id":"`+strings.Repeat(`\\`, 1)+strings.Repeat("u005c", maxSpelling)+`u0066"}`); r.Fault == nil || r.Fault.Reason != Malformed {
		t.Errorf("a chain of escapes in an id: %+v", r.Fault)
	}
	if _, err := ParseRules([]byte(`{"rules":[{"id":"a","types":["a"],"when":"source_id == '\u0066` + raw[1:] + `'","action":"WARN","scope":{"org":true}}]}`)); err == nil {
		t.Error("a rule holds a key")
	}
}

func FuzzRedact(f *testing.F) {
	raw, _ := auth.MintKey(auth.KindPerson)
	f.Add(`"\u0066` + raw[1:] + `"`)
	f.Add(`{"` + spell(raw, func(i int) bool { return i < 9 }, 2) + `":"\\\n"}`)
	f.Fuzz(func(t *testing.T, s string) {
		b, ok := redactBytes([]byte(s))
		if !ok {
			return
		}
		if found, ok := holdsKey(b); found || !ok {
			t.Errorf("%q still holds a key: %q", s, b)
		}
		if json.Valid([]byte(s)) && !json.Valid(b) {
			t.Errorf("%q is no longer JSON: %q", s, b)
		}
	})
}
