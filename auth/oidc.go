package auth

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"
)

// The errors of a sign-in. What they wrap is for the log.
var (
	// ErrSignIn means that the sign-in did not hold: forged, replayed, expired, cancelled, or not for us. The reader may
	// begin again.
	ErrSignIn = errors.New("sign-in failed")
	// ErrNotAllowed means that the provider vouched for somebody whose groups open nothing here.
	ErrNotAllowed = errors.New("signed in, without any permission")
	// ErrProviderAway means that the identity provider could not be asked.
	ErrProviderAway = errors.New("identity provider away")
)

const (
	signInFor       = 10 * time.Minute // from the first redirect to the callback
	providerTimeout = 5 * time.Second
	maxUsedStates   = 100_000
)

// A Grant gives the members of a group of the identity provider permissions in one org.
type Grant struct {
	Group       string
	Org         string
	Permissions []Permission
}

// An OIDCConfig configures the sign-in by OpenID Connect: the authorization code flow with PKCE.
type OIDCConfig struct {
	Issuer       string // exactly as the provider's discovery document says
	ClientID     string
	ClientSecret string   // "" for a public client: PKCE is always used
	RedirectURL  string   // of the handler that calls Finish, as browsers see it; https, or http on loopback
	Scopes       []string // besides openid; profile and email when nil
	GroupsClaim  string   // "groups"; a list or a single text
	// Grants are tried in order. Who is in groups of several orgs gets the org of the first grant that matches, and all
	// permissions that match for it.
	Grants []Grant
	// CookieSecret seals the cookie that carries a sign-in under way; all admin processes behind one address share it.
	// At least 32 bytes; nil makes one, good for this process alone.
	CookieSecret []byte
	Client       *http.Client     // one with a time-out of 5 s
	Now          func() time.Time // time.Now
}

// OIDC signs admins in. Its methods are safe for concurrent use. It keeps no sessions: the caller opens one for the Admin.
type OIDC struct {
	cfg    OIDCConfig
	seal   seal
	cookie string
	secure bool

	mu       sync.Mutex // guards the following
	provider *oidc.Provider
	used     map[string]time.Time // states that were answered, until they would have expired anyway
}

// signIn is a sign-in under way, sealed into the reader's cookie.
type signIn struct {
	State    string    `json:"state"`
	Nonce    string    `json:"nonce"`
	Verifier string    `json:"verifier"`
	Next     string    `json:"next"`
	Expires  time.Time `json:"expires"`
}

// NewOIDC checks the configuration. It asks nobody: the provider is discovered at the first sign-in, and again until it
// answers.
func NewOIDC(cfg OIDCConfig) (*OIDC, error) {
	redirect, err := url.Parse(cfg.RedirectURL)
	switch {
	case cfg.Issuer == "" || cfg.ClientID == "":
		return nil, errors.New("oidc: issuer and client id are needed")
	case err != nil || redirect.Host == "":
		return nil, errors.New("oidc: the redirect URL is no URL")
	case redirect.Scheme != "https" && !isLoopback(redirect.Hostname()):
		return nil, errors.New("oidc: the redirect URL must be https")
	case len(cfg.Grants) == 0:
		return nil, errors.New("oidc: without a grant nobody may do anything")
	}
	for _, g := range cfg.Grants {
		if g.Group == "" || g.Org == "" || len(g.Permissions) == 0 {
			return nil, fmt.Errorf("oidc: a grant needs group, org and permissions: %+v", g)
		}
		for _, p := range g.Permissions {
			if _, ok := ParsePermission(string(p)); !ok {
				return nil, fmt.Errorf("oidc: no such permission: %q", p)
			}
		}
	}
	if cfg.CookieSecret == nil {
		cfg.CookieSecret = make([]byte, 32)
		_, _ = rand.Read(cfg.CookieSecret)
	}
	if len(cfg.CookieSecret) < 32 {
		return nil, errors.New("oidc: the cookie secret needs 32 bytes")
	}
	if cfg.Scopes == nil {
		cfg.Scopes = []string{"profile", "email"}
	}
	if cfg.GroupsClaim == "" {
		cfg.GroupsClaim = "groups"
	}
	if cfg.Client == nil {
		cfg.Client = &http.Client{Timeout: providerTimeout}
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s, err := newSeal(cfg.CookieSecret, "sluice sign-in under way")
	if err != nil {
		return nil, err
	}
	o := &OIDC{cfg: cfg, seal: s, cookie: "sluice-oidc", secure: redirect.Scheme == "https", used: map[string]time.Time{}}
	if o.secure {
		o.cookie = "__Host-sluice-oidc" // browsers take it over https and from this very host only
	}
	return o, nil
}

func isLoopback(host string) bool {
	return host == "localhost" || host == "127.0.0.1" || host == "::1"
}

// Begin sends the reader to the provider. next is where they want to be after it: a path of this site, else "/" is taken.
// On an error nothing was written.
func (o *OIDC) Begin(w http.ResponseWriter, r *http.Request, next string) error {
	p, err := o.discover(r.Context())
	if err != nil {
		return err
	}
	in := signIn{State: randomText(), Nonce: randomText(), Verifier: oauth2.GenerateVerifier(), Next: localPath(next), Expires: o.cfg.Now().Add(signInFor)}
	plain, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("begin sign-in: %w", err)
	}
	http.SetCookie(w, o.newCookie(o.seal.close(plain), int(signInFor/time.Second)))
	w.Header().Set("Cache-Control", "no-store")
	http.Redirect(w, r, o.oauth(p).AuthCodeURL(in.State, oidc.Nonce(in.Nonce), oauth2.S256ChallengeOption(in.Verifier)), http.StatusSeeOther)
	return nil
}

// Finish reads the provider's callback and says who signed in and where they wanted to go. Each sign-in holds once. It
// clears the cookie in any case and writes nothing else. The errors are ErrSignIn, ErrNotAllowed and ErrProviderAway.
func (o *OIDC) Finish(w http.ResponseWriter, r *http.Request) (Admin, string, error) {
	http.SetCookie(w, o.newCookie("", -1))
	w.Header().Set("Cache-Control", "no-store")
	in, err := o.underWay(r)
	if err != nil {
		return Admin{}, "", fmt.Errorf("%w: %w", ErrSignIn, err)
	}
	q := r.URL.Query()
	switch {
	case q.Has("iss") && q.Get("iss") != o.cfg.Issuer: // RFC 9207: another provider's answer
		return Admin{}, "", fmt.Errorf("%w: the answer is of another issuer", ErrSignIn)
	case q.Get("error") != "":
		return Admin{}, "", fmt.Errorf("%w: the provider answered %.100q", ErrSignIn, q.Get("error"))
	case q.Get("code") == "":
		return Admin{}, "", fmt.Errorf("%w: no code", ErrSignIn)
	}
	p, err := o.discover(r.Context())
	if err != nil {
		return Admin{}, "", err
	}
	ctx, cancel := context.WithTimeout(oidc.ClientContext(r.Context(), o.cfg.Client), 2*providerTimeout)
	defer cancel()
	token, err := o.oauth(p).Exchange(ctx, q.Get("code"), oauth2.VerifierOption(in.Verifier))
	if err != nil {
		var answer *oauth2.RetrieveError
		if errors.As(err, &answer) && answer.Response.StatusCode < 500 {
			return Admin{}, "", fmt.Errorf("%w: the provider refused the code: %s", ErrSignIn, answer.ErrorCode)
		}
		return Admin{}, "", fmt.Errorf("%w: exchange the code: %w", ErrProviderAway, err)
	}
	admin, err := o.admin(ctx, p, token, in.Nonce)
	if err != nil {
		return Admin{}, "", err
	}
	return admin, in.Next, nil
}

// underWay returns the sign-in of the cookie, if the callback's state is its own, and uses it up.
func (o *OIDC) underWay(r *http.Request) (signIn, error) {
	var in signIn
	c, err := r.Cookie(o.cookie)
	if err != nil {
		return in, errors.New("no sign-in under way in this browser")
	}
	plain, err := o.seal.open(c.Value)
	if err != nil {
		return in, err
	}
	err = json.Unmarshal(plain, &in)
	if err != nil {
		return in, err
	}
	now := o.cfg.Now()
	switch {
	case now.After(in.Expires):
		return in, errors.New("it took too long")
	case subtle.ConstantTimeCompare([]byte(r.URL.Query().Get("state")), []byte(in.State)) == 0:
		return in, errors.New("state of another sign-in")
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, ok := o.used[in.State]; ok {
		return in, errors.New("state used before")
	}
	if len(o.used) >= maxUsedStates {
		for s, until := range o.used {
			if now.After(until) {
				delete(o.used, s)
			}
		}
		if len(o.used) >= maxUsedStates {
			return in, errors.New("too many sign-ins")
		}
	}
	o.used[in.State] = in.Expires
	return in, nil
}

// admin verifies the ID token and maps its groups.
func (o *OIDC) admin(ctx context.Context, p *oidc.Provider, token *oauth2.Token, nonce string) (Admin, error) {
	raw, _ := token.Extra("id_token").(string)
	if raw == "" {
		return Admin{}, fmt.Errorf("%w: no ID token", ErrSignIn)
	}
	id, err := p.VerifierContext(ctx, &oidc.Config{ClientID: o.cfg.ClientID, Now: o.cfg.Now}).Verify(ctx, raw)
	if err != nil {
		return Admin{}, fmt.Errorf("%w: ID token: %w", ErrSignIn, err)
	}
	if subtle.ConstantTimeCompare([]byte(id.Nonce), []byte(nonce)) == 0 {
		return Admin{}, fmt.Errorf("%w: ID token with the nonce of another sign-in", ErrSignIn)
	}
	if id.AccessTokenHash != "" {
		err := id.VerifyAccessToken(token.AccessToken)
		if err != nil {
			return Admin{}, fmt.Errorf("%w: access token: %w", ErrSignIn, err)
		}
	}
	claims := map[string]json.RawMessage{}
	err = id.Claims(&claims)
	if err != nil {
		return Admin{}, fmt.Errorf("%w: claims: %w", ErrSignIn, err)
	}
	if azp := text(claims["azp"]); len(id.Audience) > 1 && azp != o.cfg.ClientID {
		return Admin{}, fmt.Errorf("%w: ID token issued to %.100q", ErrSignIn, azp)
	}
	if _, ok := claims[o.cfg.GroupsClaim]; !ok {
		err := o.askUserInfo(ctx, p, token, id.Subject, claims)
		if err != nil {
			return Admin{}, err
		}
	}
	actor := text(claims["email"])
	if actor == "" || string(claims["email_verified"]) == "false" {
		actor = id.Subject + "@" + o.cfg.Issuer
	}
	groups := texts(claims[o.cfg.GroupsClaim])
	a := o.grant(groups)
	a.Actor = actor
	if len(a.Permissions) == 0 {
		return Admin{}, fmt.Errorf("%w: %s, in %d groups", ErrNotAllowed, actor, len(groups))
	}
	return a, nil
}

// askUserInfo adds the claims of the userinfo endpoint, where many providers keep the groups.
func (o *OIDC) askUserInfo(ctx context.Context, p *oidc.Provider, token *oauth2.Token, subject string, claims map[string]json.RawMessage) error {
	if p.UserInfoEndpoint() == "" {
		return nil
	}
	info, err := p.UserInfo(ctx, oauth2.StaticTokenSource(token))
	if err != nil {
		return fmt.Errorf("%w: userinfo: %w", ErrProviderAway, err)
	}
	if info.Subject != subject {
		return fmt.Errorf("%w: userinfo of somebody else", ErrSignIn)
	}
	more := map[string]json.RawMessage{}
	err = info.Claims(&more)
	if err != nil {
		return fmt.Errorf("%w: userinfo: %w", ErrSignIn, err)
	}
	for name, v := range more {
		if _, ok := claims[name]; !ok { // what is signed wins
			claims[name] = v
		}
	}
	return nil
}

func (o *OIDC) grant(groups []string) Admin {
	var a Admin
	for _, g := range o.cfg.Grants {
		if !slices.Contains(groups, g.Group) || a.Org != "" && g.Org != a.Org {
			continue
		}
		a.Org = g.Org
		for _, p := range g.Permissions {
			if !a.Can(p) {
				a.Permissions = append(a.Permissions, p)
			}
		}
	}
	return a
}

func (o *OIDC) discover(ctx context.Context) (*oidc.Provider, error) {
	o.mu.Lock()
	p := o.provider
	o.mu.Unlock()
	if p != nil {
		return p, nil
	}
	ctx, cancel := context.WithTimeout(oidc.ClientContext(ctx, o.cfg.Client), providerTimeout)
	defer cancel()
	p, err := oidc.NewProvider(ctx, o.cfg.Issuer)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrProviderAway, err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.provider = p
	return p, nil
}

func (o *OIDC) oauth(p *oidc.Provider) *oauth2.Config {
	return &oauth2.Config{
		ClientID: o.cfg.ClientID, ClientSecret: o.cfg.ClientSecret, Endpoint: p.Endpoint(), RedirectURL: o.cfg.RedirectURL,
		Scopes: append([]string{oidc.ScopeOpenID}, o.cfg.Scopes...),
	}
}

// newCookie is Lax, because the way back from the provider is a navigation from another site.
func (o *OIDC) newCookie(value string, maxAge int) *http.Cookie {
	return &http.Cookie{Name: o.cookie, Value: value, Path: "/", MaxAge: maxAge, HttpOnly: true, Secure: o.secure, SameSite: http.SameSiteLaxMode}
}

func randomText() string {
	b := make([]byte, sha256.Size)
	_, _ = rand.Read(b)
	return base64.RawURLEncoding.EncodeToString(b)
}

// localPath keeps an open redirect from hiding in next: browsers read a backslash as a slash and skip control characters.
func localPath(next string) string {
	if !strings.HasPrefix(next, "/") || strings.HasPrefix(next, "//") {
		return "/"
	}
	for _, c := range next {
		if c == '\\' || c < ' ' || c == 0x7f {
			return "/"
		}
	}
	return next
}

func text(v json.RawMessage) string {
	var s string
	if json.Unmarshal(v, &s) != nil {
		return ""
	}
	return s
}

func texts(v json.RawMessage) []string {
	var list []string
	if json.Unmarshal(v, &list) == nil {
		return list
	}
	if s := text(v); s != "" {
		return []string{s}
	}
	return nil
}
