package auth

import (
	"bytes"
	"encoding/base64"
	"errors"
	"regexp"
	"runtime"
	"strings"
	"testing"
)

// These never change: keys out there were made by them.
const (
	fixedKey   = "fsk_0123456789AB_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefg1iQjAX"
	fixedAdmin = "fat_0123456789AB_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefg3mUt9v"
)

func TestMintAndParse(t *testing.T) {
	pattern := regexp.MustCompile("^" + KeyPattern + "$")
	seen := map[string]bool{}
	f := func(raw string, key Key, kind Kind, tag string, parse func([]byte) (Key, error)) {
		t.Helper()
		if len(raw) != KeyLength || !strings.HasPrefix(raw, tag) || !pattern.MatchString(raw) || key.Kind != kind || seen[raw] {
			t.Fatalf("bad %s key %q", kind, raw)
		}
		seen[raw] = true
		got, err := parse([]byte(raw))
		if err != nil || got != key || got.Prefix() != raw[:16] {
			t.Fatalf("parsed %+v, %v", got, err)
		}
		for i := range raw { // any one character changed
			other := []byte(raw)
			other[i] = base62[(max(base62Value(raw[i]), 0)+1)%62]
			_, err := parse(other)
			if !errors.Is(err, ErrMalformedKey) {
				t.Fatalf("%q parsed", other)
			}
		}
	}
	for range 20 {
		for kind, tag := range map[Kind]string{KindServiceAccount: "fsk_", KindPerson: "fpk_", KindDetector: "fdk_"} {
			raw, key := MintKey(kind)
			f(raw, key, kind, tag, ParseKey)
			_, err := ParseAdminToken([]byte(raw))
			if !errors.Is(err, ErrMalformedKey) {
				t.Fatal("a telemetry key opens the admin API")
			}
		}
		raw, key := MintAdminToken()
		f(raw, key, KindAdmin, "fat_", ParseAdminToken)
		_, err := ParseKey([]byte(raw))
		if !errors.Is(err, ErrMalformedKey) {
			t.Fatal("an admin token is a telemetry key")
		}
	}
}

func TestFormatIsFixed(t *testing.T) {
	_, err := ParseKey([]byte(fixedKey))
	if err != nil {
		s := checksum([]byte(fixedKey[:KeyLength-sumLen]))
		t.Errorf("%v: the checksum came to %s", err, s[:])
	}
	_, err = ParseAdminToken([]byte(fixedAdmin))
	if err != nil {
		s := checksum([]byte(fixedAdmin[:KeyLength-sumLen]))
		t.Errorf("%v: the checksum came to %s", err, s[:])
	}
}

func TestFromHeaders(t *testing.T) {
	raw, key := MintKey(KindServiceAccount)
	other, _ := MintKey(KindPerson)
	admin, _ := MintAdminToken()
	basic := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	f := func(flowstate, authorization, slug string, want error) {
		t.Helper()
		got, err := FromHeaders([]byte(flowstate), []byte(authorization))
		if !errors.Is(err, want) {
			t.Fatalf("%q, %q: got %v, want %v", flowstate, authorization, err, want)
		}
		if want == nil && (got.Key != key || got.Slug != slug) {
			t.Fatalf("%q, %q: got %+v", flowstate, authorization, got)
		}
		if want != nil && got != (Credentials{}) {
			t.Fatalf("%q, %q: got %+v with an error", flowstate, authorization, got)
		}
	}
	f(raw, "", "", nil)
	f("  "+raw+"\t\r\n", "", "", nil)
	f(raw, "Bearer "+other, "", nil)
	f(raw, "Basic junk", "", nil)
	f("", "Bearer "+raw, "", nil)
	f(" ", "  bEaReR   "+raw+" ", "", nil)
	f("", "BEARER\t"+raw, "", nil)
	f("", "Basic "+basic("acme:"+raw), "acme", nil)
	f("", "basic  "+basic("acme:"+raw)+" ", "acme", nil)
	f("", "Basic "+strings.TrimRight(basic("ac:"+raw), "="), "ac", nil)
	f("", "Basic "+basic("acme:"+raw+"\n"), "acme", nil)
	f("", "Basic "+basic(strings.Repeat("s", maxSlug)+":"+raw), strings.Repeat("s", maxSlug), nil)

	f("", "", "", ErrNoCredentials)
	f(" ", "\t", "", ErrNoCredentials)
	f("", raw, "", ErrNoCredentials)
	f("", "Bearer", "", ErrNoCredentials)
	f("", "Bearer  ", "", ErrNoCredentials)
	f("", "Negotiate abc", "", ErrNoCredentials)
	f("junk", "Bearer "+raw, "", ErrMalformedKey) // what wins must be right
	f(admin, "", "", ErrMalformedKey)
	f("", "Bearer "+raw+" "+raw, "", ErrMalformedKey)
	f("", "Bearer "+raw[:60], "", ErrMalformedKey)
	f("", "Basic "+basic(raw), "", ErrMalformedKey)
	f("", "Basic "+basic(":"+raw), "", ErrMalformedKey)
	f("", "Basic "+basic("acme "+raw), "", ErrMalformedKey)
	f("", "Basic "+basic(strings.Repeat("s", 500)+":"+raw), "", ErrMalformedKey)
	f("", "Basic !!!", "", ErrMalformedKey)
}

func TestPrefixOf(t *testing.T) {
	raw, key := MintKey(KindServiceAccount)
	f := func(text, want string) {
		t.Helper()
		got, ok := PrefixOf(text)
		if got != want || ok != (want != "") {
			t.Fatalf("%q: got %q", text, got)
		}
	}
	f(raw, key.Prefix())
	f(key.Prefix(), key.Prefix())
	f("OTEL_EXPORTER_OTLP_HEADERS=x-flowstate-key="+raw+",a=b", key.Prefix())
	f("refused "+key.Prefix()+": revoked", key.Prefix())
	f("x%20"+raw, key.Prefix())
	f("fsk_xxxxxxxxxxxx then "+raw, key.Prefix()) // a whole key says more than a placeholder
	f(raw[:40], key.Prefix())
	f(key.Prefix()+"Z", "")
	f("fsk_", "")
	f("f", "")
	f("", "")
	f("fxk_0123456789AB", "")
}

func TestParsePrefixAndPermission(t *testing.T) {
	_, key := MintKey(KindDetector)
	id, ok := ParsePrefix(key.Prefix())
	if !ok || id != key.ID {
		t.Error("a prefix does not survive the trip")
	}
	for _, s := range []string{"", "fsk_", "fsk_0123456789A-", "xsk_0123456789AB", key.Prefix() + "x"} {
		if _, ok := ParsePrefix(s); ok {
			t.Errorf("%q is a prefix", s)
		}
	}
	p, ok := ParsePermission("AI_POLICY_ADMIN")
	if a := (Admin{Permissions: []Permission{p}}); !ok || !a.Can(AIPolicyAdmin) || a.Can(AIGovernanceView) {
		t.Error("permissions")
	}
	if _, ok := ParsePermission("ai_policy_admin"); ok {
		t.Error("a permission of another spelling")
	}
}

// allocated runs f and returns the bytes that it allocated.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

func FuzzParseKey(f *testing.F) {
	raw, _ := MintKey(KindServiceAccount)
	admin, _ := MintAdminToken()
	f.Add([]byte(raw))
	f.Add([]byte(admin))
	f.Add([]byte(raw[:65]))
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		was := bytes.Clone(b)
		var k Key
		var err error
		if n := allocated(func() { k, err = ParseKey(b) }); n > 64<<10 { // however long it is
			t.Fatalf("%d bytes allocated for %d", n, len(b))
		}
		if !bytes.Equal(was, b) {
			t.Fatal("changed its argument")
		}
		if err != nil {
			if k != (Key{}) || !errors.Is(err, ErrMalformedKey) {
				t.Fatal("a key with an error")
			}
			return
		}
		if !regexp.MustCompile("^" + KeyPattern + "$").Match(b) {
			t.Fatalf("%q is a key, and not by the pattern", b)
		}
		prefix, ok := PrefixOf("key=" + string(b) + "!")
		if !ok || prefix != k.Prefix() {
			t.Fatalf("%q is not found in a text", b)
		}
	})
}

func FuzzFromHeaders(f *testing.F) {
	raw, _ := MintKey(KindServiceAccount)
	f.Add([]byte(raw), []byte(""))
	f.Add([]byte(""), []byte("Bearer "+raw))
	f.Add([]byte(""), []byte("Basic "+base64.StdEncoding.EncodeToString([]byte("acme:"+raw))))
	f.Add([]byte(" "), []byte("basic "))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		wasA, wasB := bytes.Clone(a), bytes.Clone(b)
		var got Credentials
		var err error
		if n := allocated(func() { got, err = FromHeaders(a, b) }); n > uint64(4*(len(a)+len(b))+64<<10) {
			t.Fatalf("%d bytes allocated for %d", n, len(a)+len(b))
		}
		if !bytes.Equal(wasA, a) || !bytes.Equal(wasB, b) {
			t.Fatal("changed its arguments")
		}
		if err != nil {
			if got != (Credentials{}) || !errors.Is(err, ErrMalformedKey) && !errors.Is(err, ErrNoCredentials) {
				t.Fatal("credentials with an error")
			}
			return
		}
		for i := range a {
			a[i] = 0xdb
		}
		for i := range b {
			b[i] = 0xdb
		}
		again, err := FromHeaders(wasA, wasB)
		if err != nil || again != got {
			t.Fatal("borrowed bytes were kept")
		}
		if strings.ContainsRune(got.Slug, ':') && len(got.Slug) == 0 || got.Key.Kind == KindAdmin {
			t.Fatal("impossible credentials")
		}
	})
}

func FuzzPrefixOf(f *testing.F) {
	raw, _ := MintKey(KindServiceAccount)
	f.Add("a " + raw + " b")
	f.Add("fsk_0123456789AB_")
	f.Fuzz(func(t *testing.T, s string) {
		var prefix string
		var ok bool
		if n := allocated(func() { prefix, ok = PrefixOf(s) }); n > 64<<10 { // however long it is
			t.Fatalf("%d bytes allocated for %d", n, len(s))
		}
		if !ok {
			return
		}
		if _, good := ParsePrefix(prefix); !good || !strings.Contains(s, prefix) {
			t.Fatalf("found %q in %q", prefix, s)
		}
	})
}

func TestPrefixFromHeaders(t *testing.T) {
	raw, key := MintKey(KindServiceAccount)
	token, admin := MintAdminToken()
	basic := func(s string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte(s)) }
	for _, tt := range []struct{ key, authorization, want string }{
		{raw, "", key.Prefix()},
		{raw[:30], "", key.Prefix()},
		{raw[:len(raw)-1] + "!", "", key.Prefix()},
		{" \"" + raw + "\" ", "", key.Prefix()},
		{raw[:prefixLen], "", key.Prefix()},
		{token, "", admin.Prefix()},
		{raw[:10], "", ""},
		{"nonsense", "Bearer " + raw, ""}, // x-flowstate-key wins
		{"", "Bearer " + raw[:50], key.Prefix()},
		{"", basic("acme:" + raw), key.Prefix()},
		{"", basic("acme:" + raw[:40]), key.Prefix()},
		{"", basic(raw), key.Prefix()},
		{"", "Basic !!!", ""},
		{"", "", ""},
		{strings.Repeat("x", 100_000) + " " + raw, "", ""},
	} {
		got, ok := PrefixFromHeaders([]byte(tt.key), []byte(tt.authorization))
		if got != tt.want || ok != (tt.want != "") {
			t.Errorf("%q, %q: %q, %v; want %q", tt.key, tt.authorization, got, ok, tt.want)
		}
	}
}
