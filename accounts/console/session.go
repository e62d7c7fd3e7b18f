package console

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"flowstate.inc/sluice/accounts"
	"flowstate.inc/sluice/auth"
)

// sessionFor is how long a sign-in lasts: a working day, so that a browser left open overnight asks again.
const sessionFor = 12 * time.Hour

const (
	sessionCookie = "sluice-session"
	toastCookie   = "sluice-toast"
	pendingCookie = "sluice-pending-" // and the account's id
)

// isSecure says whether cookies are for https only: by configuration, or as the request came.
func (c *Console) isSecure(r *http.Request) bool { return c.secure || r.TLS != nil }

// cookie makes one of our cookies. Over https its name says that it came from this host alone, for the whole of it.
func (c *Console) cookie(r *http.Request, name, value string, maxAge time.Duration) *http.Cookie {
	secure := c.isSecure(r)
	if secure {
		name = "__Host-" + name
	}
	return &http.Cookie{Name: name, Value: value, Path: "/", MaxAge: int(maxAge / time.Second), HttpOnly: true, Secure: secure, SameSite: http.SameSiteLaxMode}
}

func (c *Console) cookieValue(r *http.Request, name string) string {
	if c.isSecure(r) {
		name = "__Host-" + name
	}
	found, err := r.Cookie(name)
	if err != nil {
		return ""
	}
	return found.Value
}

// admit finds out who is asking. Nobody is no error.
func (c *Console) admit(r *http.Request, v *visit) error {
	id := c.cookieValue(r, sessionCookie)
	if id == "" {
		return nil
	}
	session, err := c.store.Session(r.Context(), id)
	if errors.Is(err, accounts.ErrNoAdmin) {
		return nil
	}
	if err != nil {
		return err
	}
	// Who signed in by a token is signed in for as long as the token is good.
	if prefix, byToken := strings.CutPrefix(session.Admin.Actor, "token:"); byToken {
		active, err := c.store.TokenActive(r.Context(), session.Admin.Org, prefix)
		if err != nil {
			return err
		}
		if !active {
			return nil
		}
	}
	v.admin, v.signed = session.Admin, true
	return nil
}

// SignIn opens a session for admin and sets its cookie: what the sign-in by OpenID Connect calls when the provider has
// said who it is. The caller answers the request.
func (c *Console) SignIn(w http.ResponseWriter, r *http.Request, admin auth.Admin, via string) error {
	by := accounts.By{Actor: admin.Actor, IP: c.clientIP(r), Via: via}
	id, err := c.store.CreateSession(r.Context(), by, admin, sessionFor)
	if err != nil {
		return err
	}
	http.SetCookie(w, c.cookie(r, sessionCookie, id, sessionFor))
	return nil
}

type signInPage struct {
	frame
	Problem, Notice        string
	SignInURL, SignInLabel string
	Next                   string
}

func (c *Console) signInForm(w http.ResponseWriter, r *http.Request, v *visit, status int, p signInPage) error {
	p.frame = c.frame(w, r, v, "", "Sign in")
	p.Alone = true
	p.SignInURL, p.SignInLabel = c.signIn.URL, c.signIn.Label
	if p.SignInURL != "" && p.Next != "" {
		p.SignInURL = withParam(p.SignInURL, "next", p.Next)
	}
	return c.show(w, r, status, "signin", p)
}

func (c *Console) signInPage(w http.ResponseWriter, r *http.Request, v *visit) error {
	next := LocalPath(r.URL.Query().Get("next"))
	if v.signed {
		http.Redirect(w, r, next, http.StatusSeeOther)
		return nil
	}
	p := signInPage{Next: next}
	switch {
	case signInProblems[r.URL.Query().Get("problem")] != "":
		p.Problem = signInProblems[r.URL.Query().Get("problem")]
	case r.URL.Query().Get("out") != "":
		p.Notice = "You are signed out."
	case r.URL.Query().Get("ended") != "":
		p.Notice = "Your sign-in had ended, so nothing was changed. Sign in and try again."
	}
	return c.signInForm(w, r, v, http.StatusOK, p)
}

// signInProblems are what a sign-in by OpenID Connect comes back with when it led nowhere.
var signInProblems = map[string]string{
	"failed": "The sign-in did not hold: it was cancelled, took too long or was not meant for this browser. Nothing was changed; try again.",
	"denied": "Your organisation vouched for you, but none of your groups opens anything here. Ask whoever runs Sluice for a grant.",
	"away":   "Your organisation's sign-in cannot be reached at the moment. Try again later, or use a token.",
}

// signInByToken takes an admin token. A telemetry key, an unknown token and a revoked one are refused alike.
func (c *Console) signInByToken(w http.ResponseWriter, r *http.Request, v *visit) error {
	if err := parseForm(r); err != nil {
		return err
	}
	next := LocalPath(r.PostFormValue("next"))
	admin, err := c.store.Authenticate(r.Context(), strings.TrimSpace(r.PostFormValue("token")))
	if errors.Is(err, accounts.ErrNoAdmin) {
		return c.signInForm(w, r, v, http.StatusUnauthorized, signInPage{Next: next,
			Problem: "That is no admin token that works here: it may be mistyped, revoked or expired, or be a telemetry key."})
	}
	if err != nil {
		return err
	}
	return c.enter(w, r, admin, next)
}

func (c *Console) enter(w http.ResponseWriter, r *http.Request, admin auth.Admin, next string) error {
	if err := c.SignIn(w, r, admin, "console"); err != nil {
		return err
	}
	http.Redirect(w, r, next, http.StatusSeeOther)
	return nil
}

type oncePage struct {
	frame
	Token string
}

// oncePage asks before it spends a one-time link: what only reads the address must not use it up.
func (c *Console) oncePage(w http.ResponseWriter, r *http.Request, v *visit) error {
	p := oncePage{frame: c.frame(w, r, v, "", "Sign in"), Token: r.URL.Query().Get("token")}
	p.Alone = true
	if p.Token == "" {
		return errNotFound
	}
	body, err := c.render.page("once", p)
	if err != nil {
		return err
	}
	writeSecretPage(w, r, http.StatusOK, body)
	return nil
}

func (c *Console) signInOnce(w http.ResponseWriter, r *http.Request, v *visit) error {
	if err := parseForm(r); err != nil {
		return err
	}
	admin, err := c.store.TakeLink(r.Context(), r.PostFormValue("token"))
	if errors.Is(err, accounts.ErrNoAdmin) {
		return c.signInForm(w, r, v, http.StatusUnauthorized, signInPage{Next: "/",
			Problem: "That link was used already or has expired. Restart sluice dev for another one, or use a token."})
	}
	if err != nil {
		return err
	}
	return c.enter(w, r, admin, "/")
}

func (c *Console) signOut(w http.ResponseWriter, r *http.Request, _ *visit) error {
	if id := c.cookieValue(r, sessionCookie); id != "" {
		if err := c.store.EndSession(r.Context(), id); err != nil {
			return err
		}
	}
	http.SetCookie(w, c.cookie(r, sessionCookie, "", -time.Second))
	http.Redirect(w, r, signInPath+"?out=1", http.StatusSeeOther)
	return nil
}

// LocalPath is next if it is an address of this site, else "/": a sign-in leads nowhere else.
func LocalPath(next string) string {
	u, err := url.Parse(next)
	if err != nil || u.IsAbs() || u.Host != "" || u.User != nil || !strings.HasPrefix(next, "/") ||
		strings.HasPrefix(next, "//") || strings.ContainsAny(next, "\\\t\r\n") || strings.HasPrefix(u.Path, signInPath) {
		return "/"
	}
	return next
}

// setToast has the next page say what was done: a word of ours, an account's id, numbers. What it says is looked up then,
// so that the cookie holds no text.
func (c *Console) setToast(w http.ResponseWriter, r *http.Request, parts ...string) {
	http.SetCookie(w, c.cookie(r, toastCookie, strings.Join(parts, "."), time.Minute))
}

func (c *Console) takeToast(w http.ResponseWriter, r *http.Request, v *visit) *toast {
	value := c.cookieValue(r, toastCookie)
	if value == "" {
		return nil
	}
	http.SetCookie(w, c.cookie(r, toastCookie, "", -time.Second))
	parts := strings.Split(value, ".")
	if len(parts) < 2 {
		return nil
	}
	if t := alertToast(parts, r.URL.RequestURI()); t != nil && slices.ContainsFunc(policyReaders(), v.admin.Can) {
		return t
	}
	if !v.admin.Can(auth.SettingsIntegrationsUpdate) {
		return nil
	}
	a, err := c.store.Account(r.Context(), v.admin.Org, parts[1])
	if err != nil {
		return nil // the page itself says what is wrong, if anything is
	}
	switch {
	case parts[0] == "edited":
		return &toast{Text: "Saved " + label(a) + "."}
	case parts[0] == "gone" && !a.Live():
		return &toast{Text: label(a) + " was deleted already, " + c.render.when(a.DeletedAt).Relative + " by " + a.DeletedBy + "."}
	case parts[0] == "deleted" && len(parts) == 4 && !a.Live():
		edges, _ := strconv.Atoi(parts[2])
		ms, err := strconv.Atoi(parts[3])
		text := "Deleted " + label(a) + " and revoked its key"
		if edges > 0 && err == nil {
			text += fmt.Sprintf("; refused by %d of %d edges after %.1f s", edges, edges, float64(ms)/1000)
		}
		return &toast{Text: text + "."}
	}
	return nil
}
