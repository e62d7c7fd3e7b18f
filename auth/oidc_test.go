package auth

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/coreos/go-oidc/v3/oidc/oidctest"
)

// identityProvider is one over HTTP. A code is good once and only with the verifier of its challenge.
type identityProvider struct {
	*httptest.Server
	key       *ecdsa.PrivateKey
	signer    *ecdsa.PrivateKey // the same, unless it forges
	keys      *oidctest.Server
	challenge string // of the code that was given out last; "" once it was used
	claims    map[string]any
	userinfo  map[string]any
	noID      bool
	down      atomic.Bool
}

func newProvider(t *testing.T) *identityProvider {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p := &identityProvider{key: key, signer: key}
	p.keys = &oidctest.Server{PublicKeys: []oidctest.PublicKey{{PublicKey: key.Public(), KeyID: "k1", Algorithm: oidc.ES256}}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		if p.down.Load() {
			http.Error(w, "away", http.StatusBadGateway)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{
			"issuer": p.URL, "authorization_endpoint": p.URL + "/auth", "token_endpoint": p.URL + "/token", "jwks_uri": p.URL + "/keys",
			"userinfo_endpoint": p.URL + "/userinfo", "id_token_signing_alg_values_supported": []string{"ES256"},
		})
	})
	mux.Handle("GET /keys", p.keys)
	mux.HandleFunc("POST /token", p.token)
	mux.HandleFunc("GET /userinfo", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer at-1" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(p.userinfo)
	})
	p.Server = httptest.NewServer(mux)
	t.Cleanup(p.Close)
	p.keys.SetIssuer(p.URL)
	return p
}

func (p *identityProvider) token(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	if p.down.Load() {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	sum := sha256.Sum256([]byte(r.PostFormValue("code_verifier")))
	if p.challenge == "" || r.PostFormValue("code") != "code-1" || base64.RawURLEncoding.EncodeToString(sum[:]) != p.challenge {
		w.WriteHeader(http.StatusBadRequest)
		_, _ = w.Write([]byte(`{"error":"invalid_grant"}`))
		return
	}
	p.challenge = ""
	answer := map[string]any{"access_token": "at-1", "token_type": "Bearer"}
	if !p.noID {
		claims, _ := json.Marshal(p.claims)
		answer["id_token"] = oidctest.SignIDToken(p.signer, "k1", oidc.ES256, string(claims))
	}
	_ = json.NewEncoder(w).Encode(answer)
}

// A reader is a browser between the two.
type reader struct {
	o      *OIDC
	p      *identityProvider
	cookie *http.Cookie
	query  url.Values // of the redirect to the provider
}

func (b *reader) begin(t *testing.T, next string) {
	t.Helper()
	w := httptest.NewRecorder()
	err := b.o.Begin(w, httptest.NewRequest("GET", "/sign-in/oidc", nil), next)
	if err != nil {
		t.Fatal(err)
	}
	res := w.Result()
	to, err := res.Location()
	if err != nil || !strings.HasPrefix(to.String(), b.p.URL+"/auth?") || res.StatusCode != http.StatusSeeOther {
		t.Fatalf("sent to %v, %v", to, err)
	}
	b.cookie, b.query = res.Cookies()[0], to.Query()
	if !b.cookie.HttpOnly || !b.cookie.Secure || b.cookie.SameSite != http.SameSiteLaxMode || b.cookie.Name != "__Host-sluice-oidc" || b.cookie.Path != "/" {
		t.Errorf("cookie %v", b.cookie)
	}
	if b.query.Get("code_challenge_method") != "S256" || !strings.Contains(b.query.Get("scope"), "openid") || b.query.Get("response_type") != "code" {
		t.Errorf("query %v", b.query)
	}
	for _, secret := range []string{b.query.Get("nonce"), b.query.Get("state")} {
		if strings.Contains(b.cookie.Value, secret) {
			t.Error("the cookie is not sealed")
		}
	}
	b.p.challenge = b.query.Get("code_challenge")
	b.p.claims = map[string]any{
		"iss": b.p.URL, "aud": "sluice", "sub": "u-17", "nonce": b.query.Get("nonce"), "exp": time.Now().Add(time.Hour).Unix(), "iat": time.Now().Unix(),
		"email": "kim@acme.example", "groups": []string{"staff", "ai-admins"},
	}
}

func (b *reader) finish(t *testing.T, query url.Values) (Admin, string, error) {
	t.Helper()
	w := httptest.NewRecorder()
	r := httptest.NewRequest("GET", "/sign-in/oidc/callback?"+query.Encode(), nil)
	if b.cookie != nil {
		r.AddCookie(b.cookie)
	}
	a, next, err := b.o.Finish(w, r)
	if c := w.Result().Cookies(); len(c) != 1 || c[0].MaxAge >= 0 {
		t.Error("the cookie is not cleared")
	}
	return a, next, err
}

func (b *reader) answer() url.Values {
	return url.Values{"state": {b.query.Get("state")}, "code": {"code-1"}}
}

func newReader(t *testing.T) *reader {
	t.Helper()
	p := newProvider(t)
	o, err := NewOIDC(OIDCConfig{
		Issuer: p.URL, ClientID: "sluice", ClientSecret: "s3cret", RedirectURL: "https://sluice.example/sign-in/oidc/callback",
		Grants: []Grant{
			{Group: "ai-admins", Org: "acme", Permissions: []Permission{SettingsIntegrationsUpdate, AIGovernanceView}},
			{Group: "other-org", Org: "umbrella", Permissions: []Permission{AIPolicyAdmin}},
			{Group: "policy", Org: "acme", Permissions: []Permission{AIPolicyAdmin, AIGovernanceView}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return &reader{o: o, p: p}
}

func TestSignIn(t *testing.T) {
	b := newReader(t)
	f := func(next, wantNext string, change map[string]any, want Admin) {
		t.Helper()
		b.begin(t, next)
		maps.Copy(b.p.claims, change)
		a, next, err := b.finish(t, b.answer())
		if err != nil {
			t.Fatal(err)
		}
		if next != wantNext || a.Org != want.Org || a.Actor != want.Actor || len(a.Permissions) != len(want.Permissions) {
			t.Fatalf("got %+v, to %q", a, next)
		}
		for _, p := range want.Permissions {
			if !a.Can(p) {
				t.Fatalf("got %+v", a)
			}
		}
	}
	two := []Permission{SettingsIntegrationsUpdate, AIGovernanceView}
	f("/ai/alerts?open=true", "/ai/alerts?open=true", nil, Admin{"acme", "kim@acme.example", two})
	f("//evil.example", "/", nil, Admin{"acme", "kim@acme.example", two})
	f("https://evil.example", "/", map[string]any{"groups": []string{"policy", "ai-admins"}}, Admin{"acme", "kim@acme.example", AllPermissions()})
	f(`/\evil.example`, "/", map[string]any{"groups": []string{"other-org", "policy", "ai-admins"}}, Admin{"acme", "kim@acme.example", AllPermissions()})
	f("/a\tb", "/", map[string]any{"groups": "other-org"}, Admin{"umbrella", "kim@acme.example", []Permission{AIPolicyAdmin}})
	f("", "/", map[string]any{"email_verified": false}, Admin{"acme", "u-17@" + b.p.URL, two})
	f("", "/", map[string]any{"aud": []string{"sluice", "more"}, "azp": "sluice"}, Admin{"acme", "kim@acme.example", two})

	b.begin(t, "/")
	delete(b.p.claims, "groups")
	b.p.userinfo = map[string]any{"sub": "u-17", "groups": []string{"ai-admins"}, "email": "somebody@else.example"}
	a, _, err := b.finish(t, b.answer())
	if err != nil || a.Org != "acme" || a.Actor != "kim@acme.example" {
		t.Errorf("groups of userinfo: %+v, %v", a, err)
	}
}

func TestSignInRefused(t *testing.T) {
	b := newReader(t)
	f := func(what string, want error, prepare func(q url.Values)) {
		t.Helper()
		b.begin(t, "/")
		q := b.answer()
		prepare(q)
		a, _, err := b.finish(t, q)
		if !errors.Is(err, want) || a.Org != "" || a.Permissions != nil {
			t.Errorf("%s: got %+v, %v", what, a, err)
		}
		if err != nil && strings.Contains(err.Error(), q.Get("state")) && q.Get("state") != "" {
			t.Errorf("%s: the error holds the state", what)
		}
	}
	claim := func(name string, v any) func(url.Values) { return func(url.Values) { b.p.claims[name] = v } }
	f("wrong nonce", ErrSignIn, claim("nonce", "another"))
	f("no nonce", ErrSignIn, func(url.Values) { delete(b.p.claims, "nonce") })
	f("wrong audience", ErrSignIn, claim("aud", "another"))
	f("audiences without azp", ErrSignIn, claim("aud", []string{"sluice", "more"}))
	f("azp of another", ErrSignIn, func(url.Values) { b.p.claims["aud"], b.p.claims["azp"] = []string{"sluice", "more"}, "more" })
	f("wrong issuer", ErrSignIn, claim("iss", "https://evil.example"))
	f("expired", ErrSignIn, claim("exp", time.Now().Add(-time.Hour).Unix()))
	f("access token of another", ErrSignIn, claim("at_hash", "bm90IGl0IGF0IGFsbA"))
	f("wrong state", ErrSignIn, func(q url.Values) { q.Set("state", "c3RhdGU") })
	f("no state", ErrSignIn, func(q url.Values) { q.Del("state") })
	f("no code", ErrSignIn, func(q url.Values) { q.Del("code") })
	f("wrong code", ErrSignIn, func(q url.Values) { q.Set("code", "code-2") })
	f("mixed-up issuer", ErrSignIn, func(q url.Values) { q.Set("iss", "https://evil.example") })
	f("cancelled", ErrSignIn, func(q url.Values) { q.Set("error", "access_denied") })
	f("no cookie", ErrSignIn, func(url.Values) { b.cookie = nil })
	f("damaged cookie", ErrSignIn, func(url.Values) { b.cookie.Value = "A" + b.cookie.Value[1:] + "A" })
	f("PKCE of another", ErrSignIn, func(url.Values) { b.p.challenge = "another" })
	f("no groups that count", ErrNotAllowed, claim("groups", []string{"staff"}))
	f("no groups", ErrNotAllowed, claim("groups", nil))
	f("userinfo of another", ErrSignIn, func(url.Values) {
		delete(b.p.claims, "groups")
		b.p.userinfo = map[string]any{"sub": "u-18", "groups": []string{"ai-admins"}}
	})
	f("no ID token", ErrSignIn, func(url.Values) { b.p.noID = true })
	b.p.noID = false

	forger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b.p.signer = forger
	f("forged signature", ErrSignIn, func(url.Values) {})
	b.p.signer = b.p.key
	f("provider away", ErrProviderAway, func(url.Values) { b.p.down.Store(true) })
	b.p.down.Store(false)

	// A cookie of one process does not open in another with its own secret.
	b.begin(t, "/")
	stranger := newReader(t)
	stranger.cookie = b.cookie
	_, _, err = stranger.finish(t, b.answer())
	if !errors.Is(err, ErrSignIn) {
		t.Errorf("cookie of another process: %v", err)
	}
}

func TestSignInHoldsOnce(t *testing.T) {
	b := newReader(t)
	b.begin(t, "/")
	_, _, err := b.finish(t, b.answer())
	if err != nil {
		t.Fatal(err)
	}
	b.p.challenge = b.query.Get("code_challenge") // even a provider that takes a code twice does not help
	_, _, err = b.finish(t, b.answer())
	if !errors.Is(err, ErrSignIn) {
		t.Errorf("replayed: %v", err)
	}
	clk := new(clockwork)
	b.o.cfg.Now = clk.now
	b.begin(t, "/")
	clk.advance(signInFor + time.Second)
	_, _, err = b.finish(t, b.answer())
	if !errors.Is(err, ErrSignIn) {
		t.Errorf("after ten minutes: %v", err)
	}
}

// The provider may be away when the process starts, and at the first sign-in.
func TestProviderIsFoundLater(t *testing.T) {
	b := newReader(t)
	b.p.down.Store(true)
	w := httptest.NewRecorder()
	err := b.o.Begin(w, httptest.NewRequest("GET", "/", nil), "/")
	if !errors.Is(err, ErrProviderAway) || len(w.Result().Cookies()) != 0 {
		t.Errorf("got %v", err)
	}
	b.p.down.Store(false)
	b.begin(t, "/")
	_, _, err = b.finish(t, b.answer())
	if err != nil {
		t.Error(err)
	}
}

func TestOIDCConfigIsChecked(t *testing.T) {
	good := OIDCConfig{Issuer: "https://id.example", ClientID: "c", RedirectURL: "https://s.example/cb",
		Grants: []Grant{{"g", "acme", []Permission{AIGovernanceView}}}}
	f := func(what string, edit func(*OIDCConfig)) {
		t.Helper()
		cfg := good
		edit(&cfg)
		_, err := NewOIDC(cfg)
		if (err == nil) != (what == "") {
			t.Errorf("%s: %v", what, err)
		}
	}
	f("", func(*OIDCConfig) {})
	f("", func(c *OIDCConfig) { c.RedirectURL = "http://localhost:8318/cb" })
	f("no issuer", func(c *OIDCConfig) { c.Issuer = "" })
	f("plain http", func(c *OIDCConfig) { c.RedirectURL = "http://s.example/cb" })
	f("no URL", func(c *OIDCConfig) { c.RedirectURL = "/cb" })
	f("no grants", func(c *OIDCConfig) { c.Grants = nil })
	f("unknown permission", func(c *OIDCConfig) { c.Grants = []Grant{{"g", "acme", []Permission{"ROOT"}}} })
	f("short secret", func(c *OIDCConfig) { c.CookieSecret = []byte("short") })
}
