package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"flowstate.inc/sluice/accounts"
	"flowstate.inc/sluice/auth"
)

// The three permissions, and who needs which, by the design.
const (
	manage = auth.SettingsIntegrationsUpdate
	govern = auth.AIGovernanceView
	policy = auth.AIPolicyAdmin
)

// An operation of the admin API: who may, and a request that is good. {id} and the like stand for things of acme.
type operation struct {
	may  []auth.Permission
	body string
}

// operations names every one that the served document has.
var operations = map[string]operation{
	"get /api/v1/service-accounts":                       {[]auth.Permission{manage}, ""},
	"post /api/v1/service-accounts":                      {[]auth.Permission{manage}, `{"name":"new","environment":"staging"}`},
	"get /api/v1/service-accounts/{id}":                  {[]auth.Permission{manage}, ""},
	"patch /api/v1/service-accounts/{id}":                {[]auth.Permission{manage}, `{"description":"edited"}`},
	"get /api/v1/service-accounts/{id}/keys":             {[]auth.Permission{manage}, ""},
	"get /api/v1/service-accounts/{id}/filtered-signals": {[]auth.Permission{manage, govern}, ""},
	"get /api/v1/service-accounts/{id}/invalid-records":  {[]auth.Permission{manage, govern}, ""},
	"get /api/v1/service-accounts/{id}/usage":            {[]auth.Permission{manage}, ""},
	"get /api/v1/service-accounts/{id}/scope/verdicts":   {[]auth.Permission{manage}, ""},
	"post /api/v1/service-accounts/{id}/scope/try":       {[]auth.Permission{manage}, `{"prompt":"What is new?"}`},
	"get /api/v1/refusals":                               {[]auth.Permission{manage}, ""},
	"get /api/v1/keys":                                   {[]auth.Permission{manage}, ""},
	"post /api/v1/keys":                                  {[]auth.Permission{manage}, `{"kind":"detector","name":"new"}`},
	"post /api/v1/keys/identify":                         {[]auth.Permission{manage}, `{"prefix":"{prefix}"}`},
	"post /api/v1/keys/revoke-all":                       {[]auth.Permission{manage}, `{"org":"acme"}`},
	"get /api/v1/audit-events":                           {[]auth.Permission{govern}, ""},
	"get /api/v1/signal-types":                           {[]auth.Permission{manage, govern, policy}, ""},
	"get /api/v1/alerts":                                 {[]auth.Permission{govern}, ""},
	"get /api/v1/alerts/counts":                          {[]auth.Permission{govern}, ""},
	"get /api/v1/alerts/histogram":                       {[]auth.Permission{govern}, ""},
	"get /api/v1/alerts/{alert}":                         {[]auth.Permission{govern}, ""},
	"post /api/v1/alerts/resolve":                        {[]auth.Permission{govern}, `{"ids":["{alert}"],"resolution":"acknowledged"}`},
	"post /api/v1/alerts/reopen":                         {[]auth.Permission{govern}, `{"ids":["{alert}"]}`},
	"post /api/v1/alerts/{alert}/resolve":                {[]auth.Permission{govern}, `{"resolution":"acknowledged"}`},
	"post /api/v1/alerts/{alert}/reopen":                 {[]auth.Permission{govern}, ""},
	"get /api/v1/policy/active":                          {[]auth.Permission{govern, policy}, ""},
	"get /api/v1/policy/versions":                        {[]auth.Permission{govern, policy}, ""},
	"get /api/v1/policy/versions/{version}":              {[]auth.Permission{govern, policy}, ""},
	"get /api/v1/policy/variables":                       {[]auth.Permission{govern, policy}, ""},
	"get /api/v1/policy/drafts":                          {[]auth.Permission{govern, policy}, ""},
	"post /api/v1/policy/drafts":                         {[]auth.Permission{policy}, rules},
	"get /api/v1/policy/drafts/{draft}":                  {[]auth.Permission{govern, policy}, ""},
	"post /api/v1/policy/drafts/{draft}/simulate":        {[]auth.Permission{govern, policy}, ""},
	"post /api/v1/policy/drafts/{draft}/activate":        {[]auth.Permission{policy}, ""},
	"post /api/v1/policy/explain":                        {[]auth.Permission{govern, policy}, `{"alert":"{alert}"}`},
	// Last: they take away what the others need.
	"delete /api/v1/keys/{prefix}":         {[]auth.Permission{manage}, ""},
	"delete /api/v1/service-accounts/{id}": {[]auth.Permission{manage}, ""},
}

const rules = `{"rules":[{"id":"r","types":["prompt_injection"],"action":"WARN","scope":{"org":true}}]}`

// A scene is a running sluice dev with things of acme in it, and everyone who might call.
type scene struct {
	*place
	*program
	client *http.Client
	things map[string]string
	tokens map[auth.Permission]string
	rival  string // every permission, of another org
	secret []string
}

func newScene(t *testing.T) *scene {
	t.Helper()
	p := onDev(t)
	s := &scene{place: p, program: p.start(t, "dev"), client: newClient(nil), tokens: map[auth.Permission]string{}}
	p.must(t, nil, "orgs", "create", "rival")
	store, _ := p.store(t)
	by := accounts.By{Actor: "test", Via: "cli"}
	token := func(org string, permissions ...auth.Permission) string {
		_, raw, err := store.CreateToken(t.Context(), by, org, "a test", permissions, time.Time{})
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	for _, permission := range auth.AllPermissions() {
		s.tokens[permission] = token(demoOrg, permission)
	}
	s.rival = token("rival", auth.AllPermissions()...)
	all := s.Token
	must := func(status int, method, path, body, member string) string {
		r := s.call(t, all, method, path, body)
		if r.status != status {
			t.Fatalf("%s %s: %d %s", method, path, r.status, r.body)
		}
		return r.member(member)
	}
	s.things = map[string]string{"{id}": s.Account, "{version}": "1"}
	detector := must(201, http.MethodPost, "/api/v1/keys", `{"kind":"detector","name":"pii"}`, "key")
	person := must(201, http.MethodPost, "/api/v1/keys", `{"kind":"person","id":"ada@acme.example"}`, "key")
	s.secret = []string{s.Key, detector, person}
	s.things["{prefix}"], _ = auth.PrefixOf(detector)
	s.things["{draft}"] = must(201, http.MethodPost, "/api/v1/policy/drafts", rules, "id")
	must(200, http.MethodPost, "/api/v1/policy/drafts/"+s.things["{draft}"]+"/activate", "", "")
	r, err := send(t.Context(), s.client, http.MethodPost, s.Edge+"/v1/signals", `{"type":"prompt_injection"}`, "x-flowstate-key", s.Key)
	if err != nil || r.status != http.StatusOK {
		t.Fatalf("send a signal: %d %s, %v", r.status, r.body, err)
	}
	if !until(20*time.Second, nil, func() bool {
		var list struct {
			Items []struct {
				ID string `json:"id"`
			} `json:"items"`
		}
		if err := json.Unmarshal(s.call(t, all, http.MethodGet, "/api/v1/alerts", "").body, &list); err != nil || len(list.Items) == 0 {
			return false
		}
		s.things["{alert}"] = list.Items[0].ID
		return true
	}) {
		t.Fatal("the alert has not arrived")
	}
	return s
}

// call makes a request of the admin API with an admin token, or none.
func (s *scene) call(t *testing.T, token, method, path, body string, header ...string) reply {
	t.Helper()
	if token != "" {
		header = append(header, "Authorization", "Bearer "+token)
	}
	r, err := send(t.Context(), s.client, method, s.Admin+path, body, header...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// fill puts the things of acme into a path or a body, and says whether there were any.
func (s *scene) fill(text string) (string, bool) {
	was := text
	for name, thing := range s.things {
		text = strings.ReplaceAll(text, name, thing)
	}
	return text, text != was
}

// TestEveryCallerOfEveryRoute asks every operation of the served document as a stranger, with each kind of telemetry key, as another org and with each
// permission by itself. Nobody who may not changes anything or learns anything.
func TestEveryCallerOfEveryRoute(t *testing.T) {
	s := newScene(t)
	var document struct {
		Paths map[string]map[string]json.RawMessage `json:"paths"`
	}
	if err := json.Unmarshal(s.call(t, "", http.MethodGet, "/api/v1/openapi.json", "").body, &document); err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{}
	for path, methods := range document.Paths {
		if path == "/api/v1/openapi.json" || path == "/api/v1" { // for everybody
			continue
		}
		switch {
		case strings.HasPrefix(path, "/api/v1/alerts/{id}"):
			path = strings.Replace(path, "{id}", "{alert}", 1)
		case strings.HasPrefix(path, "/api/v1/policy/drafts/{id}"):
			path = strings.Replace(path, "{id}", "{draft}", 1)
		}
		for method, raw := range methods {
			if method == "parameters" {
				continue
			}
			var o struct {
				Description string           `json:"description"`
				Security    []map[string]any `json:"security"`
			}
			if err := json.Unmarshal(raw, &o); err != nil {
				t.Fatal(err)
			}
			name := method + " " + path
			op, known := operations[name]
			if !known {
				t.Errorf("the document has %s, of which this test does not know who may", name)
				continue
			}
			documented[name] = true
			if len(o.Security) == 0 {
				t.Errorf("the document does not say that %s needs a token", name)
			}
			for _, permission := range op.may {
				if !strings.Contains(o.Description, string(permission)) {
					t.Errorf("the document does not say that %s is for %s", name, permission)
				}
			}
		}
	}
	// The order: what deletes comes last.
	last := strings.NewReplacer("delete", "~", "post /api/v1/keys/revoke-all", "~~")
	names := slices.SortedFunc(maps.Keys(operations), func(a, b string) int { return strings.Compare(last.Replace(a), last.Replace(b)) })
	before := s.state(t)
	refuse := func(name, who string, r reply, status int) {
		t.Helper()
		if r.status != status {
			t.Errorf("%s by %s: %d, want %d: %s", name, who, r.status, status, r.body)
		}
		for thing, text := range s.things {
			if thing != "{version}" && strings.Contains(string(r.body), text) {
				t.Errorf("%s by %s learns of %s", name, who, thing)
			}
		}
	}
	for _, name := range names {
		if !documented[name] {
			t.Errorf("the document has no %s", name)
		}
		op := operations[name]
		method, path, _ := strings.Cut(name, " ")
		method = strings.ToUpper(method)
		path, inPath := s.fill(path)
		body, inBody := s.fill(op.body)
		refuse(name, "a stranger", s.call(t, "", method, path, body), http.StatusUnauthorized)
		refuse(name, "a stranger with rubbish", s.call(t, "fat_000000000000_nothing", method, path, body), http.StatusUnauthorized)
		for _, key := range s.secret {
			refuse(name, "a telemetry key", s.call(t, key, method, path, body), http.StatusUnauthorized)
			refuse(name, "a telemetry key in its own header", s.call(t, "", method, path, body, "x-flowstate-key", key), http.StatusUnauthorized)
			refuse(name, "a telemetry key as a cookie", s.call(t, "", method, path, body, "Cookie", "sluice-session="+key), http.StatusUnauthorized)
		}
		for _, permission := range auth.AllPermissions() {
			if !slices.Contains(op.may, permission) {
				refuse(name, string(permission), s.call(t, s.tokens[permission], method, path, body), http.StatusForbidden)
			}
		}
		// Another org: what it names of ours does not exist; what it lists and makes is its own.
		r := s.call(t, s.rival, method, path, body)
		switch {
		case inPath || inBody || name == "post /api/v1/keys/revoke-all": // which names its org
			refuse(name, "another org", r, http.StatusNotFound)
		case r.status >= 300:
			t.Errorf("%s by another org: %d: %s", name, r.status, r.body)
		default:
			refuse(name, "another org", r, r.status)
		}
	}
	if after := s.state(t); after != before {
		t.Errorf("somebody who may not has changed something:\n%s\n▸\n%s", before, after)
	}
	for _, name := range names {
		op := operations[name]
		method, path, _ := strings.Cut(name, " ")
		path, _ = s.fill(path)
		body, _ := s.fill(op.body)
		for i, permission := range op.may {
			if i > 0 && method == "post" {
				continue // made already
			}
			r := s.call(t, s.tokens[permission], strings.ToUpper(method), path, body)
			if strings.HasSuffix(path, "/scope/try") { // who may is told that there is no judge here
				if r.status != http.StatusConflict {
					t.Errorf("%s by %s: %d: %s", name, permission, r.status, r.body)
				}
				continue
			}
			if r.status >= 300 {
				t.Errorf("%s by %s: %d: %s", name, permission, r.status, r.body)
			}
		}
	}
	if r := s.call(t, s.rival, http.MethodPost, "/api/v1/policy/explain", `{"signal":{"type":"x"},"account":"`+s.Account+`"}`); r.status != http.StatusBadRequest {
		t.Errorf("another org explains by our account: %d %s", r.status, r.body)
	}
}

// state is what the API says of acme, but when its accounts were seen.
func (s *scene) state(t *testing.T) string {
	t.Helper()
	var out strings.Builder
	for _, path := range []string{"/api/v1/service-accounts/" + s.Account, "/api/v1/keys", "/api/v1/audit-events", "/api/v1/alerts", "/api/v1/policy/drafts", "/api/v1/policy/active"} {
		var v any
		if err := json.Unmarshal(s.call(t, s.Token, http.MethodGet, path, "").body, &v); err != nil {
			t.Fatal(path, err)
		}
		if m, ok := v.(map[string]any); ok {
			delete(m, "first_seen_at")
			delete(m, "last_seen_at")
			if items, ok := m["items"].([]any); ok && path == "/api/v1/keys" {
				for _, item := range items {
					delete(item.(map[string]any), "last_used_at")
				}
			}
		}
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&out, "%s\n", b)
	}
	return out.String()
}

// TestEveryCallerOfEveryPage is the same for the pages, with sessions.
func TestEveryCallerOfEveryPage(t *testing.T) {
	s := newScene(t)
	const list = "/settings/ai/service-accounts"
	sessions := map[string]*http.Client{"a stranger": s.client}
	sign := func(name, token string) {
		jar, err := cookiejar.New(nil)
		if err != nil {
			t.Fatal(err)
		}
		client := newClient(jar)
		if r := s.post(t, client, "/sign-in", url.Values{"token": {token}}); r.status != http.StatusSeeOther {
			t.Fatalf("sign in as %s: %d", name, r.status)
		}
		sessions[name] = client
	}
	for permission, token := range s.tokens {
		sign(string(permission), token)
	}
	sign("another org", s.rival)
	for _, key := range s.secret {
		if r := s.post(t, s.client, "/sign-in", url.Values{"token": {key}}); r.status != http.StatusUnauthorized || r.header.Get("Set-Cookie") != "" {
			t.Errorf("a telemetry key signs in: %d", r.status)
		}
	}
	id, alert := s.Account, s.things["{alert}"]
	prefix, _ := auth.PrefixOf(s.Key)
	before := s.state(t)
	for _, p := range []struct {
		path    string
		needs   auth.Permission
		form    url.Values // nil: a GET
		ofRival int
		also    auth.Permission // opens it too
	}{
		{list, manage, nil, 200, ""},
		{list + "?q=nightly", manage, nil, 200, ""},
		{list + "?create=1", manage, nil, 200, ""},
		{list + "?edit=" + id, manage, nil, 404, ""},
		{list + "?delete=" + id, manage, nil, 404, ""},
		{list + "/" + id, manage, nil, 404, ""},
		{list + "/" + id + "/first-event", manage, nil, 404, ""},
		{"/settings/ai/audit-log", govern, nil, 200, ""},
		{"/settings/ai/audit-log/export?format=csv", govern, nil, 200, ""},
		{"/settings/ai/policy", govern, nil, 200, policy},
		{"/ai/alerts", govern, nil, 200, ""},
		{"/ai/alerts/resolve", govern, url.Values{"id": {alert}, "resolution": {"acknowledged"}}, 303, ""}, // to a list that says of none that it was
		{"/ai/alerts/reopen", govern, url.Values{"id": {alert}}, 303, ""},
		{list, manage, url.Values{}, 400, ""},
		{list + "/" + id + "/edit", manage, url.Values{"version": {"1"}, "name": {"x"}, "environment": {"staging"}}, 404, ""},
		{list + "/" + id + "/delete", manage, url.Values{}, 404, ""},
	} {
		for who, client := range sessions {
			if who == string(p.needs) && p.form != nil {
				continue // it would change what the others must not reach
			}
			r := s.visit(t, client, p.path, p.form)
			text := string(r.body)
			what := fmt.Sprintf("%s (form: %v) by %s: %d to %q", p.path, p.form != nil, who, r.status, r.header.Get("Location"))
			may := who == string(p.needs) || who == string(p.also)
			if !may && (strings.Contains(text, prefix) || strings.Contains(text, "prompt_injection")) {
				t.Errorf("%s, and it shows the account", what)
			}
			switch {
			case who == "a stranger":
				toSignIn := r.status == http.StatusSeeOther && strings.HasPrefix(r.header.Get("Location"), "/sign-in")
				if !toSignIn && r.status != http.StatusUnauthorized { // which is for what scripts ask
					t.Error(what)
				}
			case who == "another org":
				if r.status != p.ofRival && (p.form == nil || r.status < 400) {
					t.Errorf("%s, want %d", what, p.ofRival)
				}
			case may:
				if r.status != http.StatusOK {
					t.Errorf("%s, want 200", what)
				}
			default:
				if r.status != http.StatusForbidden || !strings.Contains(text, string(p.needs)) && !strings.Contains(r.header.Get("Content-Type"), "json") {
					t.Errorf("%s, want 403 and the name of %s", what, p.needs)
				}
			}
		}
	}
	// A post from another site is refused, whoever is signed in.
	for _, path := range []string{list, list + "/" + id + "/edit", list + "/" + id + "/delete", "/ai/alerts/resolve", "/sign-in", "/sign-out"} {
		for _, header := range [][]string{{"Sec-Fetch-Site", "cross-site"}, {"Sec-Fetch-Site", "same-site"}, {"Origin", "https://evil.example"}, {"Origin", "null"}} {
			r, err := send(t.Context(), sessions[string(manage)], http.MethodPost, s.Admin+path, url.Values{"token": {s.Token}}.Encode(),
				append(header, "Content-Type", "application/x-www-form-urlencoded")...)
			if err != nil || r.status != http.StatusForbidden || r.header.Get("Set-Cookie") != "" {
				t.Errorf("a post to %s with %v: %d, %v", path, header, r.status, err)
			}
		}
	}
	if after := s.state(t); after != before {
		t.Errorf("somebody who may not has changed something:\n%s\n▸\n%s", before, after)
	}
}

// visit opens a page, or posts a form as the page itself would.
func (s *scene) visit(t *testing.T, client *http.Client, path string, form url.Values) reply {
	t.Helper()
	if form != nil {
		return s.post(t, client, path, form)
	}
	r, err := send(t.Context(), client, http.MethodGet, s.Admin+path, "")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (s *scene) post(t *testing.T, client *http.Client, path string, form url.Values) reply {
	t.Helper()
	r, err := send(t.Context(), client, http.MethodPost, s.Admin+path, form.Encode(), "Content-Type", "application/x-www-form-urlencoded", "Sec-Fetch-Site", "same-origin", "Origin", s.Admin)
	if err != nil {
		t.Fatal(err)
	}
	return r
}
