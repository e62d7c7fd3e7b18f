package console_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"flowstate.inc/sluice/accounts/console"
	"flowstate.inc/sluice/auth"
)

func TestSignIn(t *testing.T) {
	s := newSite(t)
	key := s.account(t, "chatbot", auth.Production).Key
	if text := s.do(t, "", http.MethodGet, "/sign-in", nil).text(t); !strings.Contains(text, "Sign-in is not set up here; tokens work.") {
		t.Errorf("sign-in page: %s", text)
	}
	token, raw, err := s.CreateToken(t.Context(), by, "acme", "ci", []auth.Permission{auth.SettingsIntegrationsUpdate}, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"", key, "fat_nonsense", raw[:len(raw)-1] + "x"} {
		if a := s.do(t, "", http.MethodPost, "/sign-in", url.Values{"token": {bad}}); a.StatusCode != http.StatusUnauthorized || len(a.Cookies()) > 0 {
			t.Errorf("token %.8q: %d", bad, a.StatusCode)
		}
	}
	in := s.do(t, "", http.MethodPost, "/sign-in", url.Values{"token": {raw}, "next": {listPath + "?state=all"}})
	if in.StatusCode != http.StatusSeeOther || in.Header.Get("Location") != listPath+"?state=all" || len(in.Cookies()) != 1 {
		t.Fatalf("sign in: %d to %q", in.StatusCode, in.Header.Get("Location"))
	}
	cookie := in.Cookies()[0]
	if !cookie.HttpOnly || cookie.SameSite != http.SameSiteLaxMode || cookie.Secure {
		t.Errorf("cookie %v", cookie)
	}
	if got := s.do(t, cookie.Value, http.MethodGet, listPath, nil).StatusCode; got != http.StatusOK {
		t.Errorf("signed in: %d", got)
	}
	// Signed in for as long as the token is good.
	if _, err := s.RevokeToken(t.Context(), by, "acme", token.Prefix); err != nil {
		t.Fatal(err)
	}
	if got := s.do(t, cookie.Value, http.MethodGet, listPath, nil); got.StatusCode != http.StatusSeeOther {
		t.Errorf("after the token was revoked: %d", got.StatusCode)
	}
	link, err := s.CreateLink(t.Context(), by, auth.Admin{Org: "acme", Actor: "dev", Permissions: auth.AllPermissions()}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 { // a prefetch spends nothing
		if got := s.do(t, "", http.MethodGet, "/sign-in/once?token="+link, nil); got.StatusCode != http.StatusOK || len(got.Cookies()) > 0 {
			t.Fatalf("landing: %d", got.StatusCode)
		}
	}
	once := s.do(t, "", http.MethodPost, "/sign-in/once", url.Values{"token": {link}})
	if once.StatusCode != http.StatusSeeOther || len(once.Cookies()) != 1 {
		t.Fatalf("once: %d", once.StatusCode)
	}
	if twice := s.do(t, "", http.MethodPost, "/sign-in/once", url.Values{"token": {link}}); twice.StatusCode != http.StatusUnauthorized {
		t.Errorf("twice: %d", twice.StatusCode)
	}
	session := once.Cookies()[0].Value
	if out := s.do(t, session, http.MethodPost, "/sign-out", url.Values{}); out.StatusCode != http.StatusSeeOther {
		t.Errorf("sign out: %d", out.StatusCode)
	}
	if got := s.do(t, session, http.MethodGet, listPath, nil); got.StatusCode != http.StatusSeeOther {
		t.Errorf("after sign out: %d", got.StatusCode)
	}
	if strings.Contains(s.log.String(), link) || strings.Contains(s.log.String(), raw[17:]) {
		t.Error("the log holds a secret")
	}
}

func TestCookiesOverHTTPS(t *testing.T) {
	s := newSite(t, func(c *console.Config) { c.URL = "https://console.acme.example" })
	link, err := s.CreateLink(t.Context(), by, auth.Admin{Org: "acme", Actor: "dev", Permissions: auth.AllPermissions()}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	a := s.do(t, "", http.MethodPost, "/sign-in/once", url.Values{"token": {link}})
	if c := a.Cookies()[0]; c.Name != "__Host-sluice-session" || !c.Secure || c.Path != "/" || c.Domain != "" {
		t.Errorf("cookie %v", c)
	}
}

func TestCrossOriginPosts(t *testing.T) {
	s := newSite(t)
	a := s.account(t, "chatbot", auth.Production).Account
	id := s.session(t, "acme", auth.AllPermissions()...)
	for _, header := range [][2]string{{"Sec-Fetch-Site", "cross-site"}, {"Sec-Fetch-Site", "same-site"}, {"Origin", "https://evil.example"}} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.server.URL+listPath+"/"+a.ID+"/delete", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set(header[0], header[1])
		req.AddCookie(&http.Cookie{Name: "sluice-session", Value: id})
		if got := s.send(t, req).StatusCode; got != http.StatusForbidden {
			t.Errorf("%v: %d", header, got)
		}
	}
	if !s.find(t, "chatbot").Live() {
		t.Error("a post from elsewhere deleted the account")
	}
}

func TestLocalPath(t *testing.T) {
	f := func(next, want string) {
		t.Helper()
		if got := console.LocalPath(next); got != want {
			t.Errorf("LocalPath(%q) = %q, want %q", next, got, want)
		}
	}
	f("", "/")
	f("/settings/ai/audit-log?actor=a", "/settings/ai/audit-log?actor=a")
	for _, bad := range []string{"//evil.example", "https://evil.example", "/\\evil.example", "\\\\evil", "javascript:alert(1)", "evil", "/sign-in", "/a\nb", "///evil"} {
		f(bad, "/")
	}
}
