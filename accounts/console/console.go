package console

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"flowstate.inc/sluice/accounts"
	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/signals"
)

// Config is what New needs. Store is required; everything else has a zero value that works.
type Config struct {
	Store *accounts.Store

	// Signals keeps alerts and policies. nil: there is no Alerts and no Policy page here, and no signal trail on an
	// account's page.
	Signals *signals.Store

	// Decider has the taxonomy that drafts of policy are checked by and the caps that simulations use. nil: the built-in ones.
	Decider *signals.Decider

	// Scope says what the scope judge made of an account's prompts. The zero value: nothing is shown of it.
	Scope accounts.ScopeJudge

	// EdgeURL is where workloads send to, as the outside sees it, like https://ingest.example.com: it stands in the
	// paste-ready set-up of a new key. "" means http://localhost:4318.
	EdgeURL string

	// URL is the console as the outside sees it. With https the cookies are Secure and named __Host-…. "" means that the
	// request decides: Secure where it came by TLS.
	URL string

	// SignIn is where the sign-in by OpenID Connect begins. With no URL the sign-in page says that it is not set up, and
	// that tokens work.
	SignIn SignIn

	// ClientIP says which address a request came from, for the audit; nil means its RemoteAddr. Give the function that
	// knows the trusted proxies.
	ClientIP func(*http.Request) string

	// Rules names the rules of the active policy that name an account, for the page that deletes it. nil: those in Signals.
	Rules func(ctx context.Context, org, id, name, environment string) ([]string, error)

	// Sections are cards that other rooms put on an account's page, between its scope and its keys: usage, the signal
	// trail. Each is called with an account of the admin's own org; an error leaves the card out and is logged.
	Sections []Section

	Logger *slog.Logger     // nil: slog.Default
	Now    func() time.Time // nil: time.Now
}

// SignIn is the way in that is not a token.
type SignIn struct {
	URL   string // of the handler that begins the sign-in; "" means that it is not set up
	Label string // on the button; "" means "Sign in"
}

// A Console is the http.Handler of all pages. Mount it at the root: its paths are absolute. Use New.
type Console struct {
	store    *accounts.Store
	signals  *signals.Store
	live     *liveFeed
	decider  *signals.Decider
	scope    accounts.ScopeJudge
	compiler *signals.PolicyCompiler
	render   *renderer
	log      *slog.Logger
	now      func() time.Time
	edgeURL  string
	secure   bool // by configuration
	signIn   SignIn
	clientIP func(*http.Request) string
	rules    func(ctx context.Context, org, id, name, environment string) ([]string, error)
	sections []Section
	export   http.Handler
	handler  http.Handler
}

// New builds the console. It fails only if a template or asset is broken, which the tests would have found.
func New(cfg Config) (*Console, error) {
	if cfg.Store == nil {
		return nil, errors.New("console: Config.Store is required")
	}
	c := &Console{
		store: cfg.Store, signals: cfg.Signals, scope: cfg.Scope, live: newLiveFeed(), log: cfg.Logger, now: cfg.Now, edgeURL: strings.TrimRight(cfg.EdgeURL, "/"), signIn: cfg.SignIn,
		clientIP: cfg.ClientIP, rules: cfg.Rules, sections: cfg.Sections, secure: strings.HasPrefix(cfg.URL, "https://"),
	}
	if c.log == nil {
		c.log = slog.Default()
	}
	if c.now == nil {
		c.now = time.Now
	}
	if c.edgeURL == "" {
		c.edgeURL = "http://localhost:4318"
	}
	if c.signIn.Label == "" {
		c.signIn.Label = "Sign in"
	}
	if c.clientIP == nil {
		c.clientIP = remoteIP
	}
	var err error
	if c.render, err = newRenderer(c.now); err != nil {
		return nil, err
	}
	if c.signals != nil {
		if c.decider, c.compiler, err = newPolicyTools(cfg.Decider); err != nil {
			return nil, err
		}
		if c.rules == nil {
			c.rules = c.rulesNaming
		}
	}
	c.sections = append([]Section{c.scopeSection, c.usageSection}, c.sections...)
	c.export = c.newExport()
	c.handler = c.wrap(c.mux())
	return c, nil
}

// ServeHTTP answers for every path; those that are no page are 404.
func (c *Console) ServeHTTP(w http.ResponseWriter, r *http.Request) { c.handler.ServeHTTP(w, r) }

// A page is one route that needs a session. Any one of its permissions opens it; with none any session does.
type page struct {
	pattern string
	opens   []auth.Permission
	serve   func(http.ResponseWriter, *http.Request, *visit) error
}

const (
	accountsPath = "/settings/ai/service-accounts"
	pendingPath  = "/revocation/pending"
	dismissPath  = "/revocation/dismiss"
	auditPath    = "/settings/ai/audit-log"
	signInPath   = "/sign-in"
)

// routes lists every page behind the sign-in. The table of permissions in the tests walks it.
func (c *Console) routes() []page {
	manage, govern, write := []auth.Permission{auth.SettingsIntegrationsUpdate}, []auth.Permission{auth.AIGovernanceView}, []auth.Permission{auth.AIPolicyAdmin}
	pages := []page{
		{"GET /{$}", nil, c.home},
		{"GET " + accountsPath, manage, c.list},
		{"POST " + accountsPath, manage, c.create},
		{"GET " + pendingPath, manage, c.pending},
		{"POST " + dismissPath, manage, c.dismiss},
		{"GET " + accountsPath + "/{id}", manage, c.account},
		{"POST " + accountsPath + "/{id}/edit", manage, c.edit},
		{"POST " + accountsPath + "/{id}/scope/try", manage, c.tryScope},
		{"POST " + accountsPath + "/{id}/delete", manage, c.delete},
		{"GET " + accountsPath + "/{id}/first-event", manage, c.firstEvent},
		{"GET " + refusalsPath, manage, c.refusals},
		{"GET " + auditPath, govern, c.audit},
		{"GET " + auditPath + "/export", govern, c.auditExport},
	}
	if c.signals == nil {
		return pages
	}
	return append(pages, []page{
		{"GET " + alertsPath, govern, c.alerts},
		{"GET " + alertsPath + "/new", govern, c.alertsNew},
		{"POST " + alertsPath + "/resolve", govern, c.resolve},
		{"POST " + alertsPath + "/reopen", govern, c.reopen},
		{"GET " + policyPath, policyReaders(), c.policy},
		{"GET " + policyEditPath, write, c.policyEdit},
		{"POST " + policyDraftsPath, write, c.createDraft},
		{"GET " + policyPath + "/drafts/{id}", policyReaders(), c.draft},
		{"POST " + policyPath + "/drafts/{id}/activate", write, c.activate},
	}...)
}

// policyReaders may look at policy: who drafts must see what is in force, and what a draft would do.
func policyReaders() []auth.Permission {
	return []auth.Permission{auth.AIGovernanceView, auth.AIPolicyAdmin}
}

func (c *Console) mux() *http.ServeMux {
	mux := http.NewServeMux()
	for _, p := range c.routes() {
		mux.Handle(p.pattern, c.guarded(p))
	}
	mux.HandleFunc("GET /assets/", c.render.serveAsset)
	mux.Handle("GET "+signInPath, c.open(c.signInPage))
	mux.Handle("POST "+signInPath, c.open(c.signInByToken))
	mux.Handle("GET "+signInPath+"/once", c.open(c.oncePage))
	mux.Handle("POST "+signInPath+"/once", c.open(c.signInOnce))
	mux.Handle("POST /sign-out", c.open(c.signOut))
	mux.Handle("/", c.open(func(http.ResponseWriter, *http.Request, *visit) error { return errNotFound }))
	return mux
}

// home sends the admin to the first page that their permissions open.
func (c *Console) home(w http.ResponseWriter, r *http.Request, v *visit) error {
	for _, group := range c.nav(r.Context(), v, "") {
		for _, l := range group.Links {
			http.Redirect(w, r, l.URL, http.StatusSeeOther)
			return nil
		}
	}
	return &deniedError{opens: auth.AllPermissions()}
}

// A visit is one request as the pages know it.
type visit struct {
	admin   auth.Admin // zero where nobody is signed in
	signed  bool
	request string // the request's id
	path    string // without a key that was pasted into it
}

func (v *visit) by(c *Console, r *http.Request) accounts.By {
	return accounts.By{Actor: v.admin.Actor, IP: c.clientIP(r), Via: "console"}
}

// What a page can answer instead of itself. Everything else is a 500.
var (
	errNotFound    = errors.New("no such page")
	errCrossOrigin = errors.New("posted from another origin")
)

// A deniedError is a page that the admin may not open, and what would.
type deniedError struct{ opens []auth.Permission }

func (e *deniedError) Error() string { return "missing permission " + e.words() }

func (e *deniedError) words() string {
	names := make([]string, len(e.opens))
	for i, p := range e.opens {
		names[i] = string(p)
	}
	return strings.Join(names, " or ")
}

// A badRequestError is a form or an address that no page of ours makes; text is for the admin.
type badRequestError struct{ text string }

func (e *badRequestError) Error() string { return "bad request: " + e.text }

// A goneError is a change of an account that somebody else has deleted meanwhile.
type goneError struct{ account accounts.Account }

func (e *goneError) Error() string { return "the account " + e.account.ID + " was deleted meanwhile" }

// guarded serves p to those who are signed in and may open it.
func (c *Console) guarded(p page) http.Handler {
	return c.open(func(w http.ResponseWriter, r *http.Request, v *visit) error {
		if !v.signed {
			return c.askToSignIn(w, r)
		}
		if p.opens != nil && !slices.ContainsFunc(p.opens, v.admin.Can) {
			return &deniedError{opens: p.opens}
		}
		return p.serve(w, r, v)
	})
}

// open serves a page whether somebody is signed in or not, and turns its error into a page.
func (c *Console) open(serve func(http.ResponseWriter, *http.Request, *visit) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v := &visit{request: requestID(r), path: cutKeys(r.URL.Path)}
		if err := c.admit(r, v); err != nil {
			c.fail(w, r, v, err)
			return
		}
		if err := serve(w, r, v); err != nil {
			c.fail(w, r, v, err)
		}
	})
}

// askToSignIn sends a reader to the sign-in and back; what was posted is not carried along.
func (c *Console) askToSignIn(w http.ResponseWriter, r *http.Request) error {
	target := signInPath
	switch {
	case isPoll(r):
		w.WriteHeader(http.StatusUnauthorized)
		return nil
	case r.Method == http.MethodGet || r.Method == http.MethodHead:
		if next := r.URL.RequestURI(); next != "/" {
			target += "?next=" + url.QueryEscape(next)
		}
	default:
		target += "?ended=1"
	}
	http.Redirect(w, r, target, http.StatusSeeOther)
	return nil
}

// fail answers with the page for err and logs what only the log may know.
func (c *Console) fail(w http.ResponseWriter, r *http.Request, v *visit, err error) {
	var denied *deniedError
	var bad *badRequestError
	var gone *goneError
	var tooLarge *http.MaxBytesError
	p := messagePage{frame: c.frame(w, r, v, "", "Something went wrong"), Drawing: "lost"}
	status := http.StatusInternalServerError
	switch {
	case errors.As(err, &denied):
		status = http.StatusForbidden
		p.Title, p.Drawing = "Permission needed", "lock"
		p.Headline, p.Permission = "You can’t open this page", denied.words()
		p.Happened = "You are signed in as " + v.admin.Actor + ", who lacks a permission."
	case errors.Is(err, errNotFound), errors.Is(err, accounts.ErrNotFound), errors.Is(err, signals.ErrNotFound):
		status = http.StatusNotFound
		p.Title = "Not found"
		p.Headline = "There is nothing here"
		p.Happened = "The address is mistyped, or what it led to belongs to another organisation."
		p.Safe = "Deleted accounts keep their page, so this was not one of yours."
	case errors.Is(err, errCrossOrigin):
		status = http.StatusForbidden
		p.Title, p.Headline, p.Drawing = "Refused", "That came from another site", "lock"
		p.Happened, p.Safe = "A page of another site sent this form in your name, which is refused.", "Nothing was changed."
	case errors.As(err, &tooLarge):
		status = http.StatusRequestEntityTooLarge
		p.Title, p.Headline = "Too much text", "The form is too large"
		p.Happened = "Nothing was changed. Go back and shorten what was typed."
	case errors.As(err, &bad):
		status = http.StatusBadRequest
		p.Title, p.Headline = "Not understood", "That could not be read"
		p.Happened, p.Safe = bad.text, "Nothing was changed."
	case errors.As(err, &gone):
		status = http.StatusConflict
		a := gone.account
		p.Title, p.Headline = "Deleted meanwhile", label(a)+" was deleted meanwhile"
		p.Happened = "By " + a.DeletedBy + ", " + c.render.when(a.DeletedAt).Relative + ". What you typed was not saved; going back shows it again, to be copied."
		p.Links = []link{{Label: "The deleted account", URL: accountURL(a.ID)}, {Label: "Recreate it", URL: withParam(withParam(accountURL(a.ID), "create", "1"), "from", a.ID)}}
	case errors.Is(err, context.Canceled) && r.Context().Err() != nil:
		return // the reader has gone
	case accounts.Unavailable(err):
		status = http.StatusServiceUnavailable
		w.Header().Set("Retry-After", "5")
		p.Title, p.Headline = "Try again shortly", "The database does not answer"
		p.Happened = "This page could not be made just now. Telemetry of known keys goes on meanwhile."
		p.Safe = "If you were saving something, look whether it was saved before you try again."
	default:
		p.Headline = "Something went wrong here"
		p.Happened = "This is a fault of Sluice, not of what you did."
		p.Safe = "If you were saving something, look whether it was saved before you try again. The request’s id leads to the cause in the log."
	}
	if status >= http.StatusInternalServerError {
		c.log.LogAttrs(r.Context(), slog.LevelError, "console page failed", slog.String("request_id", v.request),
			slog.String("path", v.path), slog.Int("status", status), slog.String("error", cutKeys(err.Error())))
	}
	if v.signed {
		p.Links = append(p.Links, link{Label: "Back to the start", URL: "/"})
	} else {
		p.Alone = true
		p.Links = []link{{Label: "Sign in", URL: signInPath}}
	}
	body, renderErr := c.render.page("message", p)
	if renderErr != nil {
		c.log.LogAttrs(r.Context(), slog.LevelError, "console error page failed", slog.String("request_id", v.request), slog.String("error", renderErr.Error()))
		http.Error(w, "Something went wrong. Request "+v.request, status)
		return
	}
	writePage(w, r, status, body)
}

// show renders a page and sends it.
func (c *Console) show(w http.ResponseWriter, r *http.Request, status int, name string, data any) error {
	body, err := c.render.page(name, data)
	if err != nil {
		return fmt.Errorf("show %s: %w", name, err)
	}
	writePage(w, r, status, body)
	return nil
}
