package accounts_test

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"flowstate.inc/sluice/accounts"
	"flowstate.inc/sluice/auth"
)

// identifyParts asks for the key of an account by what people paste, and for an admin token.
func (s *site) identifyParts(t *testing.T, keys, id, raw string) {
	t.Helper()
	prefix := raw[:16]
	hash := sha256.Sum256([]byte(raw))
	for body, by := range map[string]string{
		`{"prefix":"` + prefix + `..."}`:                                     "prefix",
		`{"prefix":"` + prefix + `…"}`:                                       "prefix",
		`{"prefix":"x-flowstate-key: ` + raw[:40] + `"}`:                     "prefix",
		`{"prefix":"` + raw[:12] + `…"}`:                                     "leading_part",
		`{"prefix":"KEY=` + raw[:15] + `***"}`:                               "leading_part",
		`{"prefix":" ` + raw[:14] + `...` + raw[60:] + `"}`:                  "leading_part",
		`{"sha256":"sha256:` + hex.EncodeToString(hash[:]) + `"}`:            "sha256",
		`{"sha256":"` + base64.StdEncoding.EncodeToString(hash[:]) + `"}`:    "sha256",
		`{"key":"export KEY='` + raw + `' # of the digest"}`:                 "key",
		`{"sha256":"` + strings.ToUpper(hex.EncodeToString(hash[:])) + ` "}`: "sha256",
	} {
		got := s.want(t, 200, "manage", "POST", keys+"/identify", body)
		if got.get(t, "account.id") != id || got.get(t, "found_by") != by || got.get(t, "admin_token") != nil {
			t.Errorf("%s: %s", body, got.body)
		}
		s.want(t, 404, "other", "POST", keys+"/identify", body)
	}
	for body, status := range map[string]int{
		`{"prefix":"` + raw[:11] + `…"}`:                          400, // seven characters
		`{"prefix":"` + swapCase(raw[:12]) + `…"}`:                400, // no such tag
		`{"prefix":"fsk_` + swapCase(raw[4:12]) + `…"}`:           404,
		`{"prefix":"fpk_` + raw[4:12] + `…"}`:                     404,
		`{"prefix":"digest"}`:                                     400,
		`{"sha256":"` + strings.Repeat("0", 64) + `"}`:            404,
		`{"sha256":"` + strings.Repeat("0", 63) + `"}`:            400,
		`{"key":"` + raw[:len(raw)-1] + `!"}`:                     400,
		`{"key":"` + raw + `","prefix":"` + prefix + `"}`:         400,
		`{"prefix":"` + strings.Repeat("x", 20) + raw[:12] + `"}`: 400, // in the middle of a word
	} {
		if got := s.do(t, "manage", "POST", keys+"/identify", body); got.status != status || strings.Contains(string(got.body), raw[5:11]) {
			t.Errorf("%s: %d, want %d: %s", body, got.status, status, got.body)
		}
	}

	token, secret, err := s.CreateToken(t.Context(), cli, "acme", "deploys", auth.AllPermissions(), s.clock.now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	hash = sha256.Sum256([]byte(secret))
	for _, state := range []string{"active", "revoked"} {
		for _, body := range []string{`{"key":"Authorization: Bearer ` + secret + `"}`, `{"prefix":"` + token.Prefix + `"}`, `{"prefix":"` + token.Prefix[:13] + `…"}`, `{"sha256":"` + hex.EncodeToString(hash[:]) + `"}`} {
			got := s.want(t, 200, "manage", "POST", keys+"/identify", body)
			if got.get(t, "subject.label") != "token: deploys" || got.get(t, "key.state") != state || got.get(t, "account") != nil || got.get(t, "admin_token.created_by") != cli.Actor {
				t.Errorf("%s: %s", body, got.body)
			}
			s.want(t, 404, "other", "POST", keys+"/identify", body)
		}
		if _, err := s.RevokeToken(t.Context(), cli, "acme", token.Prefix); err != nil {
			t.Fatal(err)
		}
	}
	unknown, _ := auth.MintAdminToken()
	s.want(t, 404, "manage", "POST", keys+"/identify", `{"key":"`+unknown+`"}`)
}

func swapCase(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z':
			return r - 'a' + 'A'
		case 'A' <= r && r <= 'Z':
			return r - 'A' + 'a'
		}
		return r
	}, s)
}

// In an incident every key of the org ends, in more than one transaction, and nobody else's.
func TestRevokeAll(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		s := newSite(t, w)
		var prefixes []string
		const n = 130 // more than one transaction
		for i := range n {
			prefixes = append(prefixes, w.create(t, fmt.Sprint("job ", i), "production").Account.KeyPrefix)
		}
		for _, in := range []accounts.NewKey{{Kind: auth.KindPerson, ID: "alice@example.com"}, {Kind: auth.KindDetector, Name: "pii"}} {
			k, _, err := w.CreateKey(t.Context(), cli, "acme", in)
			if err != nil {
				t.Fatal(err)
			}
			prefixes = append(prefixes, k.Prefix)
		}
		gone := w.create(t, "gone before", "staging").Account
		if _, _, err := w.DeleteAccount(t.Context(), cli, "acme", gone.ID); err != nil {
			t.Fatal(err)
		}
		kept, _, err := w.CreateKey(t.Context(), cli, "other", accounts.NewKey{Kind: auth.KindDetector, Name: "pii"})
		if err != nil {
			t.Fatal(err)
		}
		for body, status := range map[string]int{`{}`: 400, `{"org":"other"}`: 404, `{"org":null}`: 400, `{"org":"acme","yes":true}`: 400} {
			s.want(t, status, "manage", "POST", "/api/v1/keys/revoke-all", body)
		}
		before := time.Now()
		got := s.want(t, 200, "manage", "POST", "/api/v1/keys/revoke-all", `{"org":"acme"}`)
		if got.get(t, "deleted_accounts") != float64(n) || got.get(t, "revoked_keys") != float64(n+2) {
			t.Errorf("%s", got.body)
		}
		changes, _, err := w.Changes(t.Context(), before.Add(-time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		last := map[string]int64{}
		for _, ch := range changes {
			last[ch.Prefix] = max(last[ch.Prefix], ch.Version)
		}
		for _, p := range prefixes {
			r, err := w.Key(t.Context(), p)
			if err != nil || r.RevokedAt.IsZero() || last[p] != r.Version {
				t.Errorf("%s: revoked at %v, version %d, announced %d (%v)", p, r.RevokedAt, r.Version, last[p], err)
			}
		}
		if r, err := w.Key(t.Context(), kept.Prefix); err != nil || !r.RevokedAt.IsZero() {
			t.Errorf("another org's key: %v (%v)", r.RevokedAt, err)
		}
		if c, err := w.CountAccounts(t.Context(), "acme"); err != nil || c.Live != 0 || c.Deleted != n+1 {
			t.Errorf("%+v (%v)", c, err)
		}
		rows := s.want(t, 200, "govern", "GET", "/api/v1/audit-events?action=org.keys_revoked", "")
		if rows.count(t, "items") != 1 || rows.get(t, "items.0.after.deleted_accounts") != float64(n) {
			t.Errorf("%s", rows.body)
		}
		deleted := s.want(t, 200, "govern", "GET", "/api/v1/audit-events?action=service_account.deleted&limit=100", "")
		for i := range deleted.count(t, "items") {
			row := fmt.Sprintf("items.%d.", i)
			a, err := w.Account(t.Context(), "acme", deleted.get(t, row+"target.id").(string))
			if err != nil || fmt.Sprint(deleted.get(t, row+"after.revoked_keys")) != "["+a.KeyPrefix+"]" {
				t.Fatalf("%s: its row says that %v were revoked (%v)", a.KeyPrefix, deleted.get(t, row+"after.revoked_keys"), err)
			}
		}
		// Again changes nothing more.
		again := s.want(t, http.StatusOK, "manage", "POST", "/api/v1/keys/revoke-all", `{"org":"acme"}`)
		if again.get(t, "revoked_keys") != 0.0 {
			t.Errorf("%s", again.body)
		}
		if _, err := w.RevokeAll(t.Context(), cli, "nobody"); err == nil {
			t.Error("of an org that there is not")
		}
	})
}
