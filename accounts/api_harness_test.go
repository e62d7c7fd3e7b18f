package accounts_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"flowstate.inc/sluice/accounts"
	"flowstate.inc/sluice/auth"
)

// A site is the admin API over HTTP on a world. Every answer that goes through it is checked against the OpenAPI document.
type site struct {
	*world
	api    *accounts.API
	server *httptest.Server
	spec   *spec
	log    *syncBuffer
	tokens map[string]string // by name: all, manage, govern, policy, other (of another org)

	answered *answers
}

// answers is every "GET /api/v1/keys 200" that a site, or one that stands for it, gave.
type answers struct {
	mu    sync.Mutex
	given map[string]bool
}

func (a *answers) note(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.given[name] = true
}

func (a *answers) has(name string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.given[name]
}

// with is the same site, with another API on it.
func (s *site) with(t *testing.T, cfg accounts.APIConfig) *site {
	t.Helper()
	other := *s
	other.api = accounts.NewAPI(cfg)
	other.server = httptest.NewServer(other.api)
	t.Cleanup(other.server.Close)
	return &other
}

// as is the same site, where everybody is admin.
func (s *site) as(t *testing.T, admin auth.Admin) *site {
	t.Helper()
	return s.with(t, accounts.APIConfig{Store: s.Store, Logger: slog.New(slog.NewJSONHandler(s.log, nil)),
		Authenticate: func(*http.Request) (auth.Admin, error) { return admin, nil }})
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func newSite(t *testing.T, w *world) *site {
	t.Helper()
	s := &site{world: w, log: &syncBuffer{}, spec: newSpec(t), tokens: map[string]string{}, answered: &answers{given: map[string]bool{}}}
	s.api = accounts.NewAPI(accounts.APIConfig{
		Store: w.Store, Authenticate: w.AuthenticateRequest, Logger: slog.New(slog.NewJSONHandler(s.log, nil)),
		Registerer: prometheus.NewRegistry(), ConfirmWait: 50 * time.Millisecond,
	})
	s.server = httptest.NewServer(s.api)
	t.Cleanup(s.server.Close)
	if _, err := w.CreateOrg(t.Context(), cli, "other"); err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string][]auth.Permission{
		"all": auth.AllPermissions(), "manage": {auth.SettingsIntegrationsUpdate}, "govern": {auth.AIGovernanceView}, "policy": {auth.AIPolicyAdmin},
	} {
		s.token(t, "acme", name, p)
	}
	s.token(t, "other", "other", auth.AllPermissions())
	return s
}

func (s *site) token(t *testing.T, org, name string, p []auth.Permission) {
	t.Helper()
	_, raw, err := s.CreateToken(t.Context(), cli, org, name, p, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	s.tokens[name] = raw
}

// An answer is one response, read whole.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// get finds a member by its path, such as account.key_prefix or items.0.id; nil where there is none.
func (a answer) get(t *testing.T, path string) any {
	t.Helper()
	var v any
	if err := json.Unmarshal(a.body, &v); err != nil {
		t.Fatalf("not JSON: %s", a.body)
	}
	for part := range strings.SplitSeq(path, ".") {
		switch at := v.(type) {
		case map[string]any:
			v = at[part]
		case []any:
			var i int
			if _, err := fmt.Sscan(part, &i); err != nil || i >= len(at) {
				return nil
			}
			v = at[i]
		default:
			return nil
		}
	}
	return v
}

func (a answer) text(t *testing.T, path string) string {
	t.Helper()
	s, ok := a.get(t, path).(string)
	if !ok {
		t.Fatalf("%s is not a text in %s", path, a.body)
	}
	return s
}

func (a answer) count(t *testing.T, path string) int {
	t.Helper()
	items, ok := a.get(t, path).([]any)
	if !ok {
		t.Fatalf("%s is not a list in %s", path, a.body)
	}
	return len(items)
}

// do sends a request with the named token ("" for none, else a raw one) and checks the answer against OpenAPI.
func (s *site) do(t *testing.T, token, method, target, body string, header ...string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.server.URL+target, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if raw, ok := s.tokens[token]; ok {
		token = raw
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := s.server.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	a := answer{resp.StatusCode, resp.Header, b}
	s.check(t, method, req.URL.Path, a)
	return a
}

// want is do for an expected status.
func (s *site) want(t *testing.T, status int, token, method, target, body string, header ...string) answer {
	t.Helper()
	a := s.do(t, token, method, target, body, header...)
	if a.status != status {
		t.Fatalf("%s %s: %d, want %d: %s", method, target, a.status, status, a.body)
	}
	return a
}

// check holds an answer against the document, and the promises that hold for every answer.
func (s *site) check(t *testing.T, method, path string, a answer) {
	t.Helper()
	if a.header.Get("X-Request-Id") == "" {
		t.Errorf("%s %s: no X-Request-Id", method, path)
	}
	template, op := s.spec.find(method, path)
	if op == nil { // no such path or method
		if a.status != http.StatusNotFound && a.status != http.StatusMethodNotAllowed {
			t.Errorf("%s %s is not documented and answered %d", method, path, a.status)
		}
		return
	}
	if template != "/api/v1/openapi.json" && a.header.Get("Cache-Control") != "no-store" {
		t.Errorf("%s %s: Cache-Control %q", method, path, a.header.Get("Cache-Control"))
	}
	name := fmt.Sprintf("%s %s %d", method, template, a.status)
	s.answered.note(name)
	mt, _, err := mime.ParseMediaType(a.header.Get("Content-Type"))
	if err != nil {
		t.Errorf("%s: Content-Type %q", name, a.header.Get("Content-Type"))
		return
	}
	pointer, ok := op.schemas[fmt.Sprintf("%d %s", a.status, mt)]
	if !ok {
		t.Errorf("%s with %s is not documented: %s", name, mt, a.body)
		return
	}
	if !strings.HasSuffix(mt, "json") || mt == "application/x-ndjson" {
		return
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(a.body))
	if err != nil {
		t.Errorf("%s: not JSON: %s", name, a.body)
		return
	}
	if err := s.spec.compile(t, pointer).Validate(v); err != nil {
		t.Errorf("%s: %v: %s", name, err, a.body)
	}
	if mt == "application/problem+json" && a.get(t, "instance") != a.header.Get("X-Request-Id") {
		t.Errorf("%s: instance is not the request id", name)
	}
}

// A spec is the OpenAPI document as a client reads it.
type spec struct {
	compiler *jsonschema.Compiler
	mu       sync.Mutex
	compiled map[string]*jsonschema.Schema
	ops      map[string]*operation // "GET /api/v1/keys"
}

type operation struct {
	method, path string
	schemas      map[string]string // "200 application/json" ▸ JSON pointer of the schema
	statuses     []string
}

func newSpec(t *testing.T) *spec {
	t.Helper()
	raw := accounts.OpenAPIForTest()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	s := &spec{compiler: jsonschema.NewCompiler(), compiled: map[string]*jsonschema.Schema{}, ops: map[string]*operation{}}
	if err := s.compiler.AddResource("openapi.json", doc); err != nil {
		t.Fatal(err)
	}
	s.compiler.AssertFormat()
	root := doc.(map[string]any)
	escape := strings.NewReplacer("~", "~0", "/", "~1")
	for path, item := range root["paths"].(map[string]any) {
		for method, v := range item.(map[string]any) {
			if method == "parameters" {
				continue
			}
			op := &operation{method: strings.ToUpper(method), path: path, schemas: map[string]string{}}
			for status, resp := range v.(map[string]any)["responses"].(map[string]any) {
				op.statuses = append(op.statuses, status)
				at := "#/paths/" + escape.Replace(path) + "/" + method + "/responses/" + status
				m := resp.(map[string]any)
				if ref, ok := m["$ref"].(string); ok {
					at = ref
					m = root["components"].(map[string]any)["responses"].(map[string]any)[ref[strings.LastIndex(ref, "/")+1:]].(map[string]any)
				}
				for ct := range m["content"].(map[string]any) {
					op.schemas[status+" "+ct] = at + "/content/" + escape.Replace(ct) + "/schema"
				}
			}
			slices.Sort(op.statuses)
			s.ops[op.method+" "+path] = op
		}
	}
	return s
}

// find matches a path against the templates, literal ones first.
func (s *spec) find(method, path string) (string, *operation) {
	if op := s.ops[method+" "+path]; op != nil {
		return path, op
	}
	parts := strings.Split(path, "/")
	for _, op := range s.ops {
		template := strings.Split(op.path, "/")
		if op.method != method || len(template) != len(parts) {
			continue
		}
		same := true
		for i, p := range template {
			same = same && (p == parts[i] || strings.HasPrefix(p, "{") && parts[i] != "")
		}
		if same {
			return op.path, op
		}
	}
	return "", nil
}

func (s *spec) compile(t *testing.T, pointer string) *jsonschema.Schema {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if sch := s.compiled[pointer]; sch != nil {
		return sch
	}
	sch, err := s.compiler.Compile("openapi.json" + pointer)
	if err != nil {
		t.Fatalf("schema %s: %v", pointer, err)
	}
	s.compiled[pointer] = sch
	return sch
}
