package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/coreos/go-oidc/v3/oidc/oidctest"

	"flowstate.inc/sluice/accounts"
	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/deploy"
	"flowstate.inc/sluice/signals"
	"flowstate.inc/sluice/signals/scope"
)

// An issuer is an OpenID Connect provider where somebody is signed in already. A code is good once, and with the verifier of its challenge.
type issuer struct {
	*httptest.Server
	key       *ecdsa.PrivateKey
	challenge string
	claims    map[string]any
	change    map[string]any // to the claims of the next ID token
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p := &issuer{key: key}
	keys := &oidctest.Server{PublicKeys: []oidctest.PublicKey{{PublicKey: key.Public(), KeyID: "k1", Algorithm: oidc.ES256}}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]any{"issuer": p.URL, "authorization_endpoint": p.URL + "/auth", "token_endpoint": p.URL + "/token",
			"jwks_uri": p.URL + "/keys", "id_token_signing_alg_values_supported": []string{"ES256"}})
	})
	mux.Handle("GET /keys", keys)
	mux.HandleFunc("GET /auth", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		p.challenge = q.Get("code_challenge")
		p.claims = map[string]any{"iss": p.URL, "aud": q.Get("client_id"), "sub": "u-17", "nonce": q.Get("nonce"), "exp": time.Now().Add(time.Hour).Unix(),
			"iat": time.Now().Unix(), "email": "kim@acme.example", "groups": []string{"staff", "ai-admins"}}
		http.Redirect(w, r, q.Get("redirect_uri")+"?"+url.Values{"code": {"code-1"}, "state": {q.Get("state")}}.Encode(), http.StatusSeeOther)
	})
	mux.HandleFunc("POST /token", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		sum := sha256.Sum256([]byte(r.PostFormValue("code_verifier")))
		if p.challenge == "" || r.PostFormValue("code") != "code-1" || base64.RawURLEncoding.EncodeToString(sum[:]) != p.challenge {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = w.Write([]byte(`{"error":"invalid_grant"}`))
			return
		}
		p.challenge = ""
		for name, v := range p.change {
			p.claims[name] = v
		}
		claims, err := json.Marshal(p.claims)
		if err != nil {
			t.Error(err)
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"access_token": "at-1", "token_type": "Bearer", "id_token": oidctest.SignIDToken(p.key, "k1", oidc.ES256, string(claims))})
	})
	p.Server = httptest.NewServer(mux)
	t.Cleanup(p.Close)
	keys.SetIssuer(p.URL)
	return p
}

// startAdmin runs the admin role on SQLite in this process, with sign-in at p, and returns the console's address.
func startAdmin(t *testing.T, p *issuer) string {
	t.Helper()
	g := &process{log: slog.New(slog.DiscardHandler), reg: newRegistry(), roles: []string{roleAdmin}, cfg: &config{
		adminAddr: "127.0.0.1:0", opsAddr: "127.0.0.1:0", authMaxStale: time.Minute, oidcIssuer: p.URL, oidcClientID: "sluice", oidcGroupsClaim: "groups",
		oidcGrants: []string{"ai-admins=acme:SETTINGS_INTEGRATIONS_UPDATE"},
	}}
	if err := g.listen(); err != nil {
		t.Fatal(err)
	}
	writer, reader, err := accounts.OpenSQLite(filepath.Join(t.TempDir(), "sluice.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { reader.Close(); writer.Close() })
	if _, err := deploy.Migrate(t.Context(), writer, deploy.SQLite); err != nil {
		t.Fatal(err)
	}
	g.store = accounts.NewStore(accounts.StoreConfig{Writer: writer, Reader: reader, Dialect: accounts.SQLite})
	g.signals.store = signals.NewStore(signals.StoreConfig{Writer: writer, Reader: reader, Dialect: signals.SQLite, Audit: auditSignals(g.store)})
	g.scope.store = scope.NewStore(scope.StoreConfig{Writer: writer, Reader: reader})
	if err := g.wire(); err != nil {
		t.Fatal(err)
	}
	if _, err := seed(t.Context(), g.store); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	ready := make(chan struct{})
	go func() { ended <- g.run(ctx, func(context.Context) error { close(ready); return nil }) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	<-ready
	return "http://" + g.adminLn.Addr().String()
}

// A visitor is a browser that follows one redirect at a time.
type visitor struct {
	client *http.Client
	at     string
}

func newVisitor(t *testing.T, admin string) *visitor {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &visitor{newClient(jar), admin}
}

// get opens a page and returns it, with the address that it leads to.
func (v *visitor) get(t *testing.T, address string) (reply, string) {
	t.Helper()
	if strings.HasPrefix(address, "/") {
		address = v.at + address
	}
	r, err := send(t.Context(), v.client, http.MethodGet, address, "")
	if err != nil {
		t.Fatal(err)
	}
	return r, r.header.Get("Location")
}

// callback walks from the button to the address that the provider leads back to.
func (v *visitor) callback(t *testing.T, next string) string {
	t.Helper()
	_, toProvider := v.get(t, signInPath+"?"+url.Values{"next": {next}}.Encode())
	_, back := v.get(t, toProvider)
	if !strings.HasPrefix(back, v.at+callbackPath) {
		t.Fatalf("the provider leads back to %q", back)
	}
	return back
}

// signedIn says whether the page behind the sign-in opens.
func (v *visitor) signedIn(t *testing.T) bool {
	t.Helper()
	r, _ := v.get(t, "/settings/ai/service-accounts")
	return r.status == http.StatusOK && strings.Contains(string(r.body), demoAccount)
}

func TestSignInByOpenIDConnect(t *testing.T) {
	p := newIssuer(t)
	admin := startAdmin(t, p)
	const page = "/settings/ai/service-accounts?state=all"

	v := newVisitor(t, admin)
	_, to := v.get(t, page)
	if !strings.HasPrefix(to, "/sign-in?") {
		t.Fatalf("a stranger is led to %q", to)
	}
	form, _ := v.get(t, to)
	if !strings.Contains(string(form.body), signInPath) {
		t.Errorf("the sign-in page has no way to the provider:\n%s", form.body)
	}
	back := v.callback(t, page)
	r, to := v.get(t, back)
	if r.status != http.StatusSeeOther || to != page || !v.signedIn(t) {
		t.Fatalf("signed in: %d to %q", r.status, to)
	}
	if list, _ := v.get(t, page); !strings.Contains(string(list.body), "kim@acme.example") {
		t.Error("the page does not say who is signed in")
	}
	if r, _ := v.get(t, "/ai/alerts"); r.status != http.StatusForbidden {
		t.Errorf("a page of another permission: %d", r.status)
	}
	// The same answer of the provider a second time, by the same browser and by another one.
	other := newVisitor(t, admin)
	for _, again := range []*visitor{v, other} {
		if _, to := again.get(t, back); !strings.HasPrefix(to, "/sign-in?problem=failed") {
			t.Errorf("a replayed answer leads to %q", to)
		}
	}
	if other.signedIn(t) {
		t.Error("a replayed answer signs in")
	}

	refused := func(what, problem string, change map[string]any, prepare func(v *visitor, back string) string) {
		t.Helper()
		v := newVisitor(t, admin)
		back := v.callback(t, page)
		if prepare != nil {
			back = prepare(v, back)
		}
		p.change = change
		r, to := v.get(t, back)
		p.change = nil
		if r.status != http.StatusSeeOther || !strings.HasPrefix(to, "/sign-in?problem="+problem) || v.signedIn(t) {
			t.Errorf("%s: %d to %q, signed in: %v", what, r.status, to, v.signedIn(t))
		}
		if slices.ContainsFunc(r.header.Values("Set-Cookie"), func(c string) bool { return strings.HasPrefix(c, "sluice-session=") }) {
			t.Errorf("%s: a session was opened", what)
		}
		if shown, _ := v.get(t, to); shown.status != http.StatusOK || !strings.Contains(string(shown.body), "ign in") {
			t.Errorf("%s: the page says nothing: %d", what, shown.status)
		}
	}
	refused("wrong nonce", "failed", map[string]any{"nonce": "another"}, nil)
	refused("wrong audience", "failed", map[string]any{"aud": "another"}, nil)
	refused("wrong issuer", "failed", map[string]any{"iss": "https://evil.example"}, nil)
	refused("expired", "failed", map[string]any{"exp": time.Now().Add(-time.Hour).Unix()}, nil)
	refused("no group that counts", "denied", map[string]any{"groups": []string{"staff"}}, nil)
	refused("another's state", "failed", nil, func(_ *visitor, back string) string {
		return newVisitor(t, admin).callback(t, page) // an answer that another browser began
	})
	refused("no state", "failed", nil, func(_ *visitor, back string) string {
		u, err := url.Parse(back)
		if err != nil {
			t.Fatal(err)
		}
		return callbackPath + "?code=" + u.Query().Get("code")
	})

	// Where it leads to is of this site.
	away := newVisitor(t, admin)
	if _, to := away.get(t, away.callback(t, "https://evil.example/")); to != "/" {
		t.Errorf("led away to %q", to)
	}
	if grant, err := parseGrant("g=acme:AI_GOVERNANCE_VIEW+AI_POLICY_ADMIN"); err != nil || !slices.Equal(grant.Permissions, []auth.Permission{govern, policy}) {
		t.Errorf("grant %+v, %v", grant, err)
	}
}
