package accounts

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/signals"
)

// An API is the admin API: an http.Handler for /api/v1 and what is below it. Whoever serves it sets the server's timeouts; exports move the write deadline on.
type API struct {
	cfg     APIConfig
	mux     *http.ServeMux
	openapi []byte
	paths   []string
	seconds *prometheus.HistogramVec
}

// APIConfig is what NewAPI needs. Store, Authenticate and Logger are required.
type APIConfig struct {
	Store *Store
	// Authenticate says who sends the request: Store.AuthenticateRequest, or that with the console's session beside it. ErrNoAdmin is a 401.
	Authenticate func(*http.Request) (auth.Admin, error)
	Logger       *slog.Logger
	Registerer   prometheus.Registerer        // nil: no metrics
	SignalTypes  func() []signals.SignalType  // nil: the taxonomy in code
	ClientIP     func(r *http.Request) string // nil: the address that the connection came from
	Tracer       trace.Tracer                 // nil: no spans
	Via          string                       // how the audit names this way in; "": api
	ConfirmWait  time.Duration                // how long a revocation waits for the edges; 0: 2 s
	Scope        ScopeJudge                   // the zero value: nothing is judged
	Routes       []Route                      // of other rooms, behind the same sign-in, limits and log
	OpenAPI      [][]byte                     // OpenAPI documents whose paths and schemas join ours, one for each of Routes' rooms
}

// A Route is one method of one path.
type Route struct {
	Method      string
	Path        string            // as http.ServeMux reads it, in full from /api/v1
	Permissions []auth.Permission // any one of them opens it
	Public      bool              // needs no sign-in, has no Permissions, and Handle gets no admin
	MaxBody     int64             // bytes of a request's body; 0: 128 KiB
	// Handle answers, or returns an error before it has written anything: a *Problem, one of this package's errors, or any other for a 500.
	Handle func(w http.ResponseWriter, r *http.Request, admin auth.Admin) error
}

// maxBody bounds the body of a request, in bytes: twice the longest texts that an account may have, in the widest encoding.
const maxBody = 128 << 10

// NewAPI makes the admin API. It panics where Routes or OpenAPI clash with its own, which is a bug of the caller.
func NewAPI(cfg APIConfig) *API {
	if cfg.SignalTypes == nil {
		taxonomy, err := signals.NewTaxonomy(signals.TaxonomyConfig{})
		if err != nil {
			panic("BUG: the taxonomy in code is refused: " + err.Error())
		}
		cfg.SignalTypes = taxonomy.Types
	}
	if cfg.ClientIP == nil {
		cfg.ClientIP = remoteHost
	}
	if cfg.Via == "" {
		cfg.Via = "api"
	}
	if cfg.ConfirmWait == 0 {
		cfg.ConfirmWait = 2 * time.Second
	}
	a := &API{cfg: cfg, mux: http.NewServeMux(), openapi: joinOpenAPI(cfg.OpenAPI)}
	if cfg.Registerer != nil {
		a.seconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "sluice_admin_request_duration_seconds", Help: "Time to answer a request of the admin API, by route and status.",
			// From one look-up to a revocation that waited for its edges.
			Buckets: []float64{.002, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"method", "route", "code"})
		cfg.Registerer.MustRegister(a.seconds)
	}
	byPath := map[string][]Route{}
	for _, r := range a.routes() {
		byPath[r.Path] = append(byPath[r.Path], r)
	}
	for _, r := range cfg.Routes {
		if strings.HasPrefix(r.Path, accountPath+"/") {
			r.Handle = a.ofAccount(r.Handle)
		}
		byPath[r.Path] = append(byPath[r.Path], r)
	}
	for p, routes := range byPath {
		a.mux.Handle(p, a.path(routes))
		a.paths = append(a.paths, p)
	}
	slices.Sort(a.paths)
	return a
}

const accountPath = "/api/v1/service-accounts/{id}"

// ofAccount lets a route of another room answer below the path of an account that there is, deleted or not, in the admin's org: only this room knows.
func (a *API) ofAccount(handle func(http.ResponseWriter, *http.Request, auth.Admin) error) func(http.ResponseWriter, *http.Request, auth.Admin) error {
	return func(w http.ResponseWriter, r *http.Request, admin auth.Admin) error {
		if _, err := a.cfg.Store.Account(r.Context(), admin.Org, r.PathValue("id")); err != nil {
			return err
		}
		return handle(w, r, admin)
	}
}

// routes is the whole of this room's API; OpenAPI says the same, and a test compares them.
func (a *API) routes() []Route {
	manage, govern := []auth.Permission{auth.SettingsIntegrationsUpdate}, []auth.Permission{auth.AIGovernanceView}
	return []Route{
		{Method: http.MethodGet, Path: "/api/v1/service-accounts", Permissions: manage, Handle: a.listAccounts},
		{Method: http.MethodPost, Path: "/api/v1/service-accounts", Permissions: manage, Handle: a.createAccount},
		{Method: http.MethodGet, Path: "/api/v1/service-accounts/{id}", Permissions: manage, Handle: a.getAccount},
		{Method: http.MethodPatch, Path: "/api/v1/service-accounts/{id}", Permissions: manage, Handle: a.patchAccount},
		{Method: http.MethodDelete, Path: "/api/v1/service-accounts/{id}", Permissions: manage, Handle: a.deleteAccount},
		{Method: http.MethodGet, Path: "/api/v1/service-accounts/{id}/keys", Permissions: manage, Handle: a.accountKeys},
		{Method: http.MethodGet, Path: "/api/v1/service-accounts/{id}/usage", Permissions: manage, Handle: a.accountUsage},
		{Method: http.MethodGet, Path: "/api/v1/service-accounts/{id}/scope/verdicts", Permissions: manage, Handle: a.scopeVerdicts},
		{Method: http.MethodPost, Path: "/api/v1/service-accounts/{id}/scope/try", Permissions: manage, Handle: a.tryScope},
		{Method: http.MethodGet, Path: "/api/v1/refusals", Permissions: manage, Handle: a.listRefusals},
		{Method: http.MethodGet, Path: "/api/v1/keys", Permissions: manage, Handle: a.listKeys},
		{Method: http.MethodPost, Path: "/api/v1/keys", Permissions: manage, Handle: a.createKey},
		{Method: http.MethodDelete, Path: "/api/v1/keys/{prefix}", Permissions: manage, Handle: a.revokeKey},
		{Method: http.MethodPost, Path: "/api/v1/keys/identify", Permissions: manage, Handle: a.identify},
		{Method: http.MethodPost, Path: "/api/v1/keys/revoke-all", Permissions: manage, Handle: a.revokeAll},
		{Method: http.MethodGet, Path: "/api/v1/audit-events", Permissions: govern, Handle: a.listAudit},
		{Method: http.MethodGet, Path: "/api/v1/signal-types", Permissions: auth.AllPermissions(), Handle: a.signalTypes},
		{Method: http.MethodGet, Path: "/api/v1", Public: true, Handle: a.serveIndex},
		{Method: http.MethodGet, Path: "/api/v1/openapi.json", Public: true, Handle: a.serveOpenAPI},
	}
}

// path answers all methods of one path.
func (a *API) path(routes []Route) http.Handler {
	allow := []string{}
	for _, r := range routes {
		allow = append(allow, r.Method)
		if r.Method == http.MethodGet {
			allow = append(allow, http.MethodHead)
		}
	}
	slices.Sort(allow)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		method := r.Method
		if method == http.MethodHead {
			method = http.MethodGet // net/http sends no body then
		}
		st := stateOf(r)
		for _, route := range routes {
			if route.Method == method {
				st.route = route.Path
				st.err = a.answer(w, r, route, st)
				return
			}
		}
		st.err = &Problem{Status: http.StatusMethodNotAllowed, Code: codeMethod, Detail: "This path answers " + strings.Join(allow, ", ") + ".",
			header: http.Header{"Allow": {strings.Join(allow, ", ")}}}
	})
}

func (a *API) answer(w http.ResponseWriter, r *http.Request, route Route, st *requestState) error {
	if route.Public {
		return route.Handle(w, r, auth.Admin{})
	}
	admin, err := a.authenticate(r)
	if err != nil {
		return err
	}
	st.admin = admin
	if !slices.ContainsFunc(route.Permissions, admin.Can) {
		names := make([]string, len(route.Permissions))
		for i, p := range route.Permissions {
			names[i] = string(p)
		}
		return &Problem{Status: http.StatusForbidden, Code: codeForbidden, Detail: "This needs the permission " + strings.Join(names, " or ") + "."}
	}
	most := route.MaxBody
	if most == 0 {
		most = maxBody
	}
	r.Body = http.MaxBytesReader(w, r.Body, most)
	return route.Handle(w, r, admin)
}

// requestState is what the outermost handler learns from the inner ones.
type requestState struct {
	id    string
	route string
	admin auth.Admin
	err   error
}

type requestStateKey struct{}

func stateOf(r *http.Request) *requestState {
	st, ok := r.Context().Value(requestStateKey{}).(*requestState)
	if !ok {
		panic("BUG: a route of the admin API was called past it")
	}
	return st
}

// ServeHTTP answers one request and logs it by its route, never by its path or query, where somebody may have pasted a key.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	started := time.Now()
	st := &requestState{id: requestID(r), route: "none"}
	r = r.WithContext(context.WithValue(r.Context(), requestStateKey{}, st))
	out := &countingWriter{ResponseWriter: w}
	if a.cfg.Tracer != nil {
		ctx, span := a.cfg.Tracer.Start(propagation.TraceContext{}.Extract(r.Context(), propagation.HeaderCarrier(r.Header)), "admin", trace.WithSpanKind(trace.SpanKindServer))
		r = r.WithContext(ctx)
		defer func() { endSpan(span, r, st, out) }()
	}
	h := out.Header()
	h.Set("X-Request-Id", st.id)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	defer func() {
		if p := recover(); p != nil {
			if p == http.ErrAbortHandler { // an export that broke off: the client must see that it is not whole
				a.log(r, st, out, started)
				panic(p)
			}
			st.err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
		if st.err != nil && out.status == 0 {
			problemOf(st.err).write(out, st.id)
		}
		a.log(r, st, out, started)
	}()
	if _, pattern := a.mux.Handler(r); pattern == "" || path.Clean(r.URL.Path) != r.URL.Path {
		st.err = fmt.Errorf("no such path: %w", ErrNotFound)
		return
	}
	a.mux.ServeHTTP(out, r)
}

func (a *API) log(r *http.Request, st *requestState, out *countingWriter, started time.Time) {
	took := time.Since(started)
	level, attrs := slog.LevelInfo, []slog.Attr{
		slog.String("request_id", st.id), slog.String("method", methodName(r.Method)), slog.String("route", st.route), slog.Int("status", out.status),
		slog.Duration("took", took), slog.String("org", st.admin.Org), slog.String("actor", st.admin.Actor),
	}
	if st.err != nil && out.status >= 500 {
		level = slog.LevelError
		attrs = append(attrs, slog.String("error", st.err.Error()))
	}
	a.cfg.Logger.LogAttrs(r.Context(), level, "admin request", attrs...)
	if a.seconds != nil {
		a.seconds.WithLabelValues(methodName(r.Method), st.route, strconv.Itoa(out.status)).Observe(took.Seconds())
	}
}

// methodName keeps made-up methods out of logs and labels.
func methodName(m string) string {
	switch m {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPatch, http.MethodDelete, http.MethodPut, http.MethodOptions:
		return m
	}
	return "other"
}

// requestID takes the caller's id where it is one, and not a key.
func requestID(r *http.Request) string {
	if id := r.Header.Get("X-Request-Id"); auth.UsableRequestID(id) {
		return id
	}
	return signals.NewID("req", time.Now())
}

// by is who makes the change of this request.
func (a *API) by(r *http.Request, admin auth.Admin) By {
	return By{Actor: admin.Actor, IP: a.cfg.ClientIP(r), Via: a.cfg.Via}
}

func remoteHost(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return ""
	}
	return host
}

// AuthenticateRequest reads the admin token of `Authorization: Bearer`. Errors: ErrNoAdmin; else the database's.
func (s *Store) AuthenticateRequest(r *http.Request) (auth.Admin, error) {
	values := r.Header.Values("Authorization")
	if len(values) != 1 {
		return auth.Admin{}, fmt.Errorf("read the Authorization header: %w", ErrNoAdmin)
	}
	scheme, token, _ := strings.Cut(strings.TrimSpace(values[0]), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return auth.Admin{}, fmt.Errorf("read the Authorization header: %w", ErrNoAdmin)
	}
	return s.Authenticate(r.Context(), strings.TrimSpace(token))
}

// A countingWriter remembers the status, 0 while nothing was sent.
type countingWriter struct {
	http.ResponseWriter
	status int
}

func (w *countingWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *countingWriter) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (w *countingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// confirm waits for the edges. A revocation stands whatever comes of it, so that an error here is an answer too: nobody knows how many there are.
func (a *API) confirm(r *http.Request, rev Revoked) revocation {
	c, err := a.cfg.Store.ConfirmRevocation(r.Context(), rev.At, a.cfg.ConfirmWait)
	if err != nil && !errors.Is(err, context.Canceled) {
		a.cfg.Logger.WarnContext(r.Context(), "the edges could not be asked whether they applied a revocation", "request_id", stateOf(r).id, "error", err)
	}
	if err != nil {
		return revocation{Pending: []pendingEdge{}}
	}
	out := revocation{Edges: &c.Edges, Confirmed: &c.Confirmed, Pending: []pendingEdge{}}
	for _, p := range c.Pending {
		out.Pending = append(out.Pending, pendingEdge{p.ID, jsonTime(p.Seen), jsonTime(p.Until), jsonTime(p.UntilCutOff)})
	}
	return out
}

// revocation is how far a revocation has come: at Edges == Confirmed no edge accepts the key. Both are nil where nobody could be asked.
type revocation struct {
	Edges     *int          `json:"edges"`
	Confirmed *int          `json:"confirmed"`
	Pending   []pendingEdge `json:"pending"`
}

type pendingEdge struct {
	Edge        string  `json:"edge"`
	Seen        *string `json:"last_seen_at"`
	Until       *string `json:"until"`         // it refuses from then on at the latest, as long as it reaches the database or the cache
	UntilCutOff *string `json:"until_cut_off"` // the same if it reaches neither
}
