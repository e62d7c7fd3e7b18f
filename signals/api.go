package signals

import (
	"bytes"
	"context"
	_ "embed" // the OpenAPI document
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"flowstate.inc/sluice/auth"
)

// OpenAPI describes the routes of this room: paths, and schemas beside those of the accounts room, which it refers to.
//
//go:embed openapi.json
var OpenAPI []byte

// APIConfig is what NewAPI needs. Store, Decider, Compiler and Policies are required.
type APIConfig struct {
	Store    *Store
	Decider  *Decider
	Compiler *PolicyCompiler
	Policies *Policies

	// Account answers who a service account of org is, by id, for explain: as DeciderConfig.Account.
	Account func(ctx context.Context, org, by, id string) (*auth.Principal, error)
	// AccountByName is the same, by name and environment.
	AccountByName func(ctx context.Context, org, by, name, environment string) (*auth.Principal, error)

	ClientIP func(r *http.Request) string // for the audit; nil: ""
	Via      string                       // how the audit names this way in; "": api
	Now      func() time.Time             // nil: time.Now
}

// An API answers for alerts and policy. It is a list of routes, for whoever serves the admin API to put behind its sign-in.
type API struct{ cfg APIConfig }

// A Route is one method of one path.
type Route struct {
	Method      string
	Path        string            // as http.ServeMux reads it, in full from /api/v1
	Permissions []auth.Permission // any one of them opens it
	MaxBody     int64             // bytes that its body may need
	// Handle answers an admin of an org. What the client did wrong it answers itself, by RFC 9457; an error is the store's, or
	// a bug, and nothing was written. Its X-Request-Id must be in w's header.
	Handle func(w http.ResponseWriter, r *http.Request, admin auth.Admin) error
}

// NewAPI makes the API.
func NewAPI(cfg APIConfig) *API {
	if cfg.ClientIP == nil {
		cfg.ClientIP = func(*http.Request) string { return "" }
	}
	if cfg.Via == "" {
		cfg.Via = "api"
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &API{cfg: cfg}
}

const smallBody = 64 << 10

// Routes is the whole of this room's API; OpenAPI says the same, and a test compares them.
func (a *API) Routes() []Route {
	view, write := []auth.Permission{auth.AIGovernanceView}, []auth.Permission{auth.AIPolicyAdmin}
	either := []auth.Permission{auth.AIGovernanceView, auth.AIPolicyAdmin}
	trail := []auth.Permission{auth.SettingsIntegrationsUpdate, auth.AIGovernanceView}
	route := func(method, path string, p []auth.Permission, max int64, h func(*request) error) Route {
		return Route{method, path, p, max, func(w http.ResponseWriter, r *http.Request, admin auth.Admin) error {
			return answer(h(&request{w: w, r: r, admin: admin, by: By{Actor: admin.Actor, IP: a.cfg.ClientIP(r), Via: a.cfg.Via}}), w)
		}}
	}
	return []Route{
		route("GET", "/api/v1/alerts", view, 0, a.listAlerts),
		route("GET", "/api/v1/alerts/counts", view, 0, a.alertCounts),
		route("GET", "/api/v1/alerts/histogram", view, 0, a.alertHistogram),
		route("GET", "/api/v1/alerts/{id}", view, 0, a.getAlert),
		route("POST", "/api/v1/alerts/resolve", view, smallBody, a.resolveMany),
		route("POST", "/api/v1/alerts/reopen", view, smallBody, a.reopenMany),
		route("POST", "/api/v1/alerts/{id}/resolve", view, smallBody, a.resolveOne),
		route("POST", "/api/v1/alerts/{id}/reopen", view, smallBody, a.reopenOne),
		route("GET", "/api/v1/service-accounts/{id}/filtered-signals", trail, 0, func(q *request) error { return a.dropped(q, Filtered) }),
		route("GET", "/api/v1/service-accounts/{id}/invalid-records", trail, 0, func(q *request) error { return a.dropped(q, Invalid) }),
		route("GET", "/api/v1/policy/active", either, 0, a.activePolicy),
		route("GET", "/api/v1/policy/versions", either, 0, a.listVersions),
		route("GET", "/api/v1/policy/versions/{version}", either, 0, a.getVersion),
		route("GET", "/api/v1/policy/variables", either, 0, a.variables),
		route("GET", "/api/v1/policy/drafts", either, 0, a.listDrafts),
		route("POST", "/api/v1/policy/drafts", write, MaxDraftBytes, a.createDraft),
		route("GET", "/api/v1/policy/drafts/{id}", either, 0, a.getDraft),
		route("POST", "/api/v1/policy/drafts/{id}/activate", write, smallBody, a.activate),
		route("POST", "/api/v1/policy/drafts/{id}/simulate", either, smallBody, a.simulate),
		route("POST", "/api/v1/policy/explain", either, 2*(256<<10), a.explain),
	}
}

// A request is one call by an admin.
type request struct {
	w     http.ResponseWriter
	r     *http.Request
	admin auth.Admin
	by    By
}

func (q *request) json(status int, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write the answer: %w", err)
	}
	q.w.Header().Set("Content-Type", "application/json")
	q.w.WriteHeader(status)
	_, _ = q.w.Write(append(body, '\n')) // the client has gone; nobody is left to tell
	return nil
}

// A problem is an answer of RFC 9457.
type problem struct {
	status int
	code   string // ends urn:sluice:problem:CODE; stable, for programs
	detail string
	fields []fieldError
}

type fieldError struct {
	Field  string `json:"field"`
	Rule   string `json:"rule,omitempty"`
	Detail string `json:"detail"`
}

func (p *problem) Error() string { return p.code + ": " + p.detail }

func badField(field, format string, args ...any) error {
	return &problem{http.StatusBadRequest, "invalid-input", "Some of what was sent is not acceptable; errors has what and why.", []fieldError{{Field: field, Detail: fmt.Sprintf(format, args...)}}}
}

// answer is the one place that turns what the client did wrong into an answer. Any other error goes on.
func answer(err error, w http.ResponseWriter) error {
	var p *problem
	var policy PolicyErrors
	var tooLarge *http.MaxBytesError
	var stale *StaleError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &p):
	case errors.As(err, &policy):
		p = &problem{http.StatusBadRequest, "invalid-policy", "Some rules cannot be used; errors points at each.", nil}
		for _, e := range policy {
			p.fields = append(p.fields, fieldError{e.Pointer, e.Rule, e.Detail})
		}
	case errors.As(err, &tooLarge):
		p = &problem{http.StatusRequestEntityTooLarge, "too-large", "The body is over " + strconv.FormatInt(tooLarge.Limit, 10) + " bytes.", nil}
	case errors.Is(err, ErrNotFound):
		p = &problem{http.StatusNotFound, "not-found", "There is no such thing in this org.", nil}
	case errors.Is(err, ErrActivated):
		p = &problem{http.StatusConflict, "draft-activated", "The draft was in force before. To roll back, make a new draft of its rules.", nil}
	case errors.As(err, &stale):
		p = &problem{http.StatusConflict, "draft-stale", fmt.Sprintf("Version %d came into force after this draft was written on %s, so activating it would undo that one. Nothing was changed. "+
			"Compare the draft with GET /api/v1/policy/versions/%d, and post the rules that should hold as a new draft.", stale.Active, versionWords(stale.Base), stale.Active), nil}
	case errors.Is(err, ErrBadQuestion):
		p = &problem{http.StatusBadRequest, "invalid-input", strings.TrimPrefix(err.Error(), ErrBadQuestion.Error()+": "), nil}
	default:
		return err
	}
	body, err := json.Marshal(struct {
		Type     string       `json:"type"`
		Title    string       `json:"title"`
		Status   int          `json:"status"`
		Detail   string       `json:"detail"`
		Instance string       `json:"instance"`
		Errors   []fieldError `json:"errors,omitempty"`
	}{"urn:sluice:problem:" + p.code, http.StatusText(p.status), p.status, p.detail, w.Header().Get("X-Request-Id"), p.fields})
	if err != nil {
		return fmt.Errorf("write the problem: %w", err)
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.status)
	_, _ = w.Write(body) // the client has gone; nobody is left to tell
	return nil
}

func versionWords(n int64) string {
	if n == 0 {
		return "no policy"
	}
	return "version " + strconv.FormatInt(n, 10)
}

// body reads the whole body, JSON by its content type. An empty one is nil.
func (q *request) body() ([]byte, error) {
	if ct := q.r.Header.Get("Content-Type"); ct != "" {
		media, _, err := mime.ParseMediaType(ct)
		if err != nil || media != "application/json" {
			return nil, &problem{http.StatusUnsupportedMediaType, "unsupported-media-type", "Send JSON with Content-Type: application/json.", nil}
		}
	}
	b, err := io.ReadAll(q.r.Body)
	if err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return nil, err
		}
		return nil, badField("body", "could not be read to its end")
	}
	return bytes.TrimSpace(b), nil
}

// read reads the body into v, strictly. An empty body leaves v as it is.
func (q *request) read(v any) error {
	b, err := q.body()
	if err != nil || len(b) == 0 {
		return err
	}
	if b[0] != '{' || !validJSON(b) {
		return badField("body", "must be one JSON object")
	}
	if err := checkValue(b, 40); err != nil {
		return badField("body", "%s", err)
	}
	if err := strict(b, v); err != nil {
		return badField("body", "%s", reason(err))
	}
	return nil
}

// A query is the query string, read parameter by parameter.
type query struct {
	values url.Values
	errs   []fieldError
}

func (q *request) query() (*query, error) {
	values, err := url.ParseQuery(q.r.URL.RawQuery)
	if err != nil {
		return nil, badField("query", "is malformed")
	}
	return &query{values: values}, nil
}

func (q *query) fail(field, format string, args ...any) {
	q.errs = append(q.errs, fieldError{Field: field, Detail: fmt.Sprintf(format, args...)})
}

func (q *query) text(name string) string {
	vs := q.values[name]
	delete(q.values, name)
	if len(vs) > 1 {
		q.fail(name, "is given twice")
	}
	if len(vs) == 0 {
		return ""
	}
	if badText(vs[0]) {
		q.fail(name, "must be text")
	}
	return vs[0]
}

// list reads a comma-separated parameter; given several times, it is joined.
func (q *query) list(name string) []string {
	vs := q.values[name]
	delete(q.values, name)
	var out []string
	for part := range strings.SplitSeq(strings.Join(vs, ","), ",") {
		if part = strings.TrimSpace(part); part != "" {
			out = append(out, part)
		}
	}
	return out
}

func (q *query) number(name string, least, most int) int {
	s := q.text(name)
	if s == "" {
		return 0
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < least || n > most {
		q.fail(name, "must be %d to %d", least, most)
	}
	return n
}

// time reads a time of RFC 3339, or a date, which is its first moment in UTC.
func (q *query) time(name string) time.Time {
	s := q.text(name)
	if s == "" {
		return time.Time{}
	}
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(layout, s); err == nil && !t.Before(earliest) && t.Before(latest) {
			return t
		}
	}
	q.fail(name, "must be a time of RFC 3339 such as 2026-11-23T14:00:00Z, or a date")
	return time.Time{}
}

// done says what was wrong, parameters that nobody read among it.
func (q *query) done() error {
	unread := make([]string, 0, len(q.values))
	for name := range q.values {
		unread = append(unread, name)
	}
	slices.Sort(unread)
	for _, name := range unread {
		q.fail(shown(name), "is not a parameter here")
	}
	if q.errs == nil {
		return nil
	}
	return &problem{http.StatusBadRequest, "invalid-input", "Some of what was sent is not acceptable; errors has what and why.", q.errs}
}
