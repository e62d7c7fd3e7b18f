package main

import (
	"errors"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"flowstate.inc/sluice/accounts/console"
	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/ingest"
)

const (
	signInPath   = "/sign-in/oidc"
	callbackPath = "/sign-in/callback"
)

// oidcConfig is the sign-in by OpenID Connect as configured; nil where it is not.
func (c *config) oidcConfig(consoleURL string) (*auth.OIDCConfig, error) {
	if c.oidcIssuer == "" && c.oidcClientID == "" {
		return nil, nil
	}
	o := &auth.OIDCConfig{
		Issuer: c.oidcIssuer, ClientID: c.oidcClientID, ClientSecret: c.oidcClientSecret, GroupsClaim: c.oidcGroupsClaim,
		RedirectURL: strings.TrimRight(consoleURL, "/") + callbackPath,
	}
	if c.oidcCookieSecret != "" {
		o.CookieSecret = []byte(c.oidcCookieSecret)
	}
	for _, s := range c.oidcGrants {
		g, err := parseGrant(s)
		if err != nil {
			return nil, err
		}
		o.Grants = append(o.Grants, g)
	}
	return o, nil
}

// parseGrant reads GROUP=ORG:PERMISSION+PERMISSION.
func parseGrant(s string) (auth.Grant, error) {
	group, rest, ok := strings.Cut(s, "=")
	org, list, ok2 := strings.Cut(rest, ":")
	if !ok || !ok2 || group == "" || org == "" {
		return auth.Grant{}, usagef("--oidc-grant %q: use GROUP=ORG:PERMISSION+PERMISSION", s)
	}
	g := auth.Grant{Group: group, Org: org}
	for _, name := range strings.Split(list, "+") {
		p, ok := auth.ParsePermission(name)
		if !ok {
			return auth.Grant{}, usagef("--oidc-grant %q: %q is not one of %v", s, name, auth.AllPermissions())
		}
		g.Permissions = append(g.Permissions, p)
	}
	return g, nil
}

// wireSignIn adds the two addresses of the sign-in to mux.
func (p *process) wireSignIn(mux *http.ServeMux, pages *console.Console, o *auth.OIDC) {
	fail := func(w http.ResponseWriter, r *http.Request, err error) {
		why := "failed"
		switch {
		case errors.Is(err, auth.ErrNotAllowed):
			why = "denied"
		case errors.Is(err, auth.ErrProviderAway):
			why = "away"
		}
		p.log.Warn("sign-in refused", "reason", why, "error", err)
		http.Redirect(w, r, "/sign-in?"+url.Values{"problem": {why}}.Encode(), http.StatusSeeOther)
	}
	mux.HandleFunc("GET "+signInPath, func(w http.ResponseWriter, r *http.Request) {
		if err := o.Begin(w, r, console.LocalPath(r.URL.Query().Get("next"))); err != nil {
			fail(w, r, err)
		}
	})
	mux.HandleFunc("GET "+callbackPath, func(w http.ResponseWriter, r *http.Request) {
		admin, next, err := o.Finish(w, r)
		if err != nil {
			fail(w, r, err)
			return
		}
		if err := pages.SignIn(w, r, admin, "oidc"); err != nil {
			p.log.Error("cannot open a session", "error", err)
			fail(w, r, err)
			return
		}
		http.Redirect(w, r, console.LocalPath(next), http.StatusSeeOther)
	})
}

// clientIP is where an admin's request came from: the connection's address, or what a trusted proxy says it is.
func clientIP(proxies []netip.Prefix) func(*http.Request) string {
	return func(r *http.Request) string {
		ap, err := netip.ParseAddrPort(r.RemoteAddr)
		if err != nil {
			return ""
		}
		return ingest.ClientAddr(ap.Addr(), strings.Join(r.Header.Values("X-Forwarded-For"), ","), proxies).String()
	}
}
