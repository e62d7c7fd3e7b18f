package signals

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"flowstate.inc/sluice/auth"
)

// A console is the API with its sign-in: every permission, of acme, unless said.
type console struct {
	*world
	mux      *http.ServeMux
	policies *Policies
	decider  *Decider
	admin    auth.Admin
}

func newConsole(t *testing.T, w *world) *console {
	t.Helper()
	c := &console{world: w, mux: http.NewServeMux(), admin: auth.Admin{Org: "acme", Actor: "ada@acme.example", Permissions: auth.AllPermissions()}}
	c.policies = NewPolicies(PoliciesConfig{Compiler: compiler(t), Versions: w.Versions, Active: w.Active, Logger: quiet()})
	sa, summariser := service("sa_1", "digest", "development", true), service("sa_2", "customer/summariser", "production", false)
	known := directory{sa, summariser}
	c.decider = testDecider(t, DeciderConfig{Policy: c.policies.Rule}, known...)
	api := NewAPI(APIConfig{Store: w.Store, Decider: c.decider, Compiler: compiler(t), Policies: c.policies, Account: known.account, AccountByName: known.byName, Now: w.clock})
	for _, r := range api.Routes() {
		c.mux.HandleFunc(r.Method+" "+r.Path, func(rw http.ResponseWriter, req *http.Request) {
			rw.Header().Set("X-Request-Id", "req_1")
			if !slices.ContainsFunc(r.Permissions, c.admin.Can) {
				rw.WriteHeader(http.StatusForbidden)
				return
			}
			req.Body = http.MaxBytesReader(rw, req.Body, max(r.MaxBody, 1))
			if err := r.Handle(rw, req, c.admin); err != nil {
				t.Errorf("%s %s: %v", r.Method, r.Path, err)
				rw.WriteHeader(http.StatusInternalServerError)
			}
		})
	}
	return c
}

// call makes a request, checks its status, and its answer against the schema named in the OpenAPI document.
func (c *console) call(t *testing.T, method, path, body string, status int, schema string) map[string]any {
	t.Helper()
	req := httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body))
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	w := httptest.NewRecorder()
	c.mux.ServeHTTP(w, req)
	if w.Code != status {
		t.Fatalf("%s %s %s: %d %s, want %d", method, path, body, w.Code, w.Body, status)
	}
	var m map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &m); err != nil {
		t.Fatalf("%s %s: %s", method, path, w.Body)
	}
	want := "application/json"
	if status >= 400 {
		want = "application/problem+json"
		for _, name := range []string{"type", "title", "status", "detail", "instance"} {
			if m[name] == nil {
				t.Errorf("%s %s: problem without %s: %s", method, path, name, w.Body)
			}
		}
	}
	if ct := w.Header().Get("Content-Type"); ct != want {
		t.Errorf("%s %s: Content-Type %s", method, path, ct)
	}
	if schema != "" {
		checkSchema(t, schema, w.Body.Bytes())
	}
	return m
}

func checkSchema(t *testing.T, name string, value []byte) {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(OpenAPI))
	if err != nil {
		t.Fatal(err)
	}
	const at = "https://sluice.test/openapi.json"
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource(at, doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile(at + "#/components/schemas/" + name)
	if err != nil {
		t.Fatal(err)
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(value))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Validate(v); err != nil {
		t.Errorf("%s is no %s: %v", value, name, err)
	}
}

func TestOpenAPISaysWhatRoutesDo(t *testing.T) {
	var doc struct {
		Paths map[string]map[string]json.RawMessage
	}
	if err := json.Unmarshal(OpenAPI, &doc); err != nil {
		t.Fatal(err)
	}
	described := 0
	for _, r := range NewAPI(APIConfig{}).Routes() {
		var op struct {
			Description string
			RequestBody any
		}
		if err := json.Unmarshal(doc.Paths[r.Path][strings.ToLower(r.Method)], &op); err != nil {
			t.Errorf("%s %s is not described", r.Method, r.Path)
			continue
		}
		described++
		for _, p := range r.Permissions {
			if !strings.Contains(op.Description, string(p)) {
				t.Errorf("%s %s: the description does not name %s", r.Method, r.Path, p)
			}
		}
	}
	in := 0
	for _, methods := range doc.Paths {
		for m := range methods {
			if m != "parameters" {
				in++
			}
		}
	}
	if in != described {
		t.Errorf("%d methods are described, %d exist", in, described)
	}
}

func items(m map[string]any) []any {
	list, _ := m["items"].([]any)
	return list
}

func TestAlertsAPI(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		c := newConsole(t, w)
		for i := range 5 {
			w.put(t, event(i, func(e *Event) {
				e.Severity = []Severity{Info, Warn, Block}[i%3]
				if i == 4 {
					e.Type, e.Category, e.Org = "forecast_breach", Budget, "rival"
				}
			}))
		}
		id := func(n int) string { return event(n, nil).ID }
		get := func(query string, want ...int) map[string]any {
			t.Helper()
			m := c.call(t, "GET", "/api/v1/alerts"+query, "", 200, "AlertPage")
			var got, wanted []string
			for _, it := range items(m) {
				got = append(got, it.(map[string]any)["id"].(string))
			}
			for _, n := range want {
				wanted = append(wanted, id(n))
			}
			if !slices.Equal(got, wanted) {
				t.Errorf("%s: %v, want %v", query, got, wanted)
			}
			return m
		}
		get("", 3, 2, 1, 0)
		get("?severity=WARN,BLOCK", 2, 1)
		get("?severity=block&severity=warn&sort=detected_at", 1, 2)
		get("?sort=-severity", 2, 1, 3, 0)
		get("?category=contentSafety&environment=production&account=sa_1&open=true&type=PII-detected", 3, 2, 1, 0)
		get("?category=budget")
		next, _ := get("?limit=3", 3, 2, 1)["next_cursor"].(string)
		get("?limit=3&cursor="+next, 0)
		for _, query := range []string{"?colour=red", "?sort=colour", "?limit=0", "?limit=201", "?limit=x", "?severity=LOUD", "?category=fun", "?open=maybe", "?since=noon", "?cursor=junk", "?account=a&account=b", "?limit=3&sort=type&cursor=" + next, "?type=%00", "?account=%ff"} {
			c.call(t, "GET", "/api/v1/alerts"+query, "", 400, "")
		}
		if m := c.call(t, "GET", "/api/v1/alerts/counts", "", 200, "AlertCounts"); m["unacknowledged"] != 2.0 {
			t.Errorf("counts: %v", m)
		}
		if m := c.call(t, "GET", "/api/v1/alerts/histogram?buckets=4&since=2026-11-23T22:40:12Z&until=2026-11-23T22:40:16Z", "", 200, "AlertHistogram"); fmt.Sprint(m["buckets"].([]any)[1]) != "map[at:2026-11-23T22:40:13Z block:0 info:0 warn:1]" {
			t.Errorf("histogram: %v", m)
		}
		c.call(t, "GET", "/api/v1/alerts/histogram", "", 200, "AlertHistogram")
		c.call(t, "GET", "/api/v1/alerts/histogram?since=2026-11-24&until=2026-11-23", "", 400, "")

		if m := c.call(t, "GET", "/api/v1/alerts/"+id(1), "", 200, "Alert"); m["resolution"] != nil || m["subject"].(map[string]any)["label"] != "service: digest / production" {
			t.Errorf("alert: %v", m)
		}
		for _, other := range []string{id(4), "nope", "%00"} {
			c.call(t, "GET", "/api/v1/alerts/"+other, "", 404, "")
			c.call(t, "POST", "/api/v1/alerts/"+other+"/resolve", `{"resolution":"escalated"}`, 404, "")
			c.call(t, "POST", "/api/v1/alerts/"+other+"/reopen", "", 404, "")
		}
		raw, key := auth.MintKey(auth.KindServiceAccount)
		m := c.call(t, "POST", "/api/v1/alerts/"+id(1)+"/resolve", `{"resolution":"false_positive","note":"see `+raw+`"}`, 200, "Alert")
		if m["resolution"] != "false_positive" || m["resolved_by"] != "ada@acme.example" || m["note"] != "see "+key.Prefix()+"_[redacted]" {
			t.Errorf("resolved: %v", m)
		}
		get("?open=true", 3, 2, 0)
		get("?open=false", 1)
		if m := c.call(t, "POST", "/api/v1/alerts/"+id(1)+"/reopen", "", 200, "Alert"); m["resolution"] != nil || m["note"] != nil {
			t.Errorf("reopened: %v", m)
		}
		both := `["` + id(2) + `","` + id(1) + `"]`
		if m := c.call(t, "POST", "/api/v1/alerts/resolve", `{"ids":`+both+`,"resolution":"acknowledged"}`, 200, "AlertPage"); len(items(m)) != 2 {
			t.Errorf("bulk: %v", m)
		}
		get("?open=true", 3, 0)
		c.call(t, "POST", "/api/v1/alerts/reopen", `{"ids":`+both+`}`, 200, "AlertPage")
		get("?open=true", 3, 2, 1, 0)
		for _, body := range []string{"", `{}`, `{"resolution":"fine"}`, `{"resolution":"escalated","note":7}`, `{"resolution":"escalated","extra":1}`, `{"resolution":"escalated","resolution":"acknowledged"}`, `[]`, `{`, `{"resolution":"escalated","ids":["x"]}`} {
			c.call(t, "POST", "/api/v1/alerts/"+id(1)+"/resolve", body, 400, "")
		}
		c.call(t, "POST", "/api/v1/alerts/resolve", `{"ids":[],"resolution":"escalated"}`, 400, "")
		c.call(t, "POST", "/api/v1/alerts/resolve", `{"ids":["`+id(1)+`","`+id(4)+`"],"resolution":"escalated"}`, 404, "")
		c.call(t, "POST", "/api/v1/alerts/resolve", `{"note":"`+strings.Repeat("x", 70_000)+`"}`, 413, "")

		drops := NewDrops(w.AddDrops, quiet())
		r := one(t, "", `{"type":"personalUse-company account"}`)
		for range 3 {
			v := c.decider.Decide(t.Context(), service("sa_1", "digest", "production", true), &r, received)
			drops.Count("acme", &v, 1, received)
		}
		drops.CountInvalid(service("sa_1", "digest", "production", true), "signals", BadType, 2, received)
		drops.Flush(t.Context())
		m = c.call(t, "GET", "/api/v1/service-accounts/sa_1/invalid-records", "", 200, "InvalidRecords")
		if fmt.Sprint(items(m)) != "[map[count:2 last_at:2026-11-23T22:40:12Z reason:bad_type type:signals]]" {
			t.Errorf("invalid: %v", m)
		}
		m = c.call(t, "GET", "/api/v1/service-accounts/sa_1/filtered-signals", "", 200, "FilteredSignals")
		if fmt.Sprint(items(m)) != "[map[count:3 last_at:2026-11-23T22:40:12Z reason:applies_to_persons_only type:personal_use_company_account]]" {
			t.Errorf("filtered: %v", m)
		}
		c.admin.Org = "rival"
		if m := c.call(t, "GET", "/api/v1/service-accounts/sa_1/filtered-signals", "", 200, "FilteredSignals"); len(items(m)) != 0 {
			t.Errorf("another org sees %v", m)
		}
		get("", 4)
	})
}

func TestPolicyAPI(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		c := newConsole(t, w)
		if m := c.call(t, "GET", "/api/v1/policy/active", "", 200, "PolicyVersion"); m["version"] != 0.0 || m["active"] != false {
			t.Errorf("no policy: %v", m)
		}
		if len(items(c.call(t, "GET", "/api/v1/policy/variables", "", 200, ""))) != len(Variables()) {
			t.Error("variables are missing")
		}
		seed := `{"rules":[
			{"id":"no-pii","types":["pii_detected"],"action":"BLOCK","scope":{"org":true}},
			{"id":"summariser-may","types":["pii_detected"],"when":"service.environment == \"production\"","action":"OBSERVE","scope":{"service_account":["Customer/Summariser/production"]}}]}`
		d := c.call(t, "POST", "/api/v1/policy/drafts", seed, 201, "PolicyDraftCreated")
		id := d["id"].(string)
		if w := d["warnings"].([]any); len(w) != 0 {
			t.Errorf("warnings: %v", w)
		}
		c.call(t, "GET", "/api/v1/policy/drafts/"+id, "", 200, "PolicyDraft")
		if m := c.call(t, "GET", "/api/v1/policy/drafts", "", 200, ""); len(items(m)) != 1 {
			t.Errorf("drafts: %v", m)
		}
		m := c.call(t, "POST", "/api/v1/policy/drafts", `{"rules":[{"id":"a","types":["pii_detected"],"when":"severity = 1","action":"BLOCK","scope":{"org":true}}]}`, 400, "")
		if e := m["errors"].([]any)[0].(map[string]any); e["field"] != "/rules/0/when" || e["rule"] != "a" || !strings.Contains(e["detail"].(string), "line 1, column 10") {
			t.Errorf("a wrong condition: %v", m)
		}
		raw, _ := auth.MintKey(auth.KindServiceAccount)
		c.call(t, "POST", "/api/v1/policy/drafts", `{"rules":[{"id":"a","types":["pii_detected"],"when":"key_prefix == \"`+raw+`\"","action":"BLOCK","scope":{"org":true}}]}`, 400, "")
		c.call(t, "POST", "/api/v1/policy/drafts", `{"rules":[`+strings.Repeat(" ", MaxDraftBytes)+`]}`, 413, "")
		c.call(t, "POST", "/api/v1/policy/drafts/nope/activate", "", 404, "")

		// Stored before the policy: what a simulation looks at.
		decide := func(p *auth.Principal, body string) *Event {
			t.Helper()
			r := one(t, "", body)
			return c.decider.Decide(t.Context(), p, &r, received).Event
		}
		summariser := service("sa_2", "customer/summariser", "production", false)
		c.policies.Refresh(t.Context())
		w.put(t, decide(person(), `{"type":"pii_detected","id":"1"}`), decide(summariser, `{"type":"pii_detected","id":"2"}`), decide(summariser, `{"type":"brand_violation","id":"3"}`))
		m = c.call(t, "POST", "/api/v1/policy/drafts/"+id+"/simulate", `{"days":30}`, 200, "PolicySimulation")
		if m["signals"] != 3.0 || m["changed"] != 2.0 || fmt.Sprint(m["moves"]) != "map[WARN→BLOCK:1 WARN→INFO:1]" || fmt.Sprint(m["rule_hits"]) != "map[no-pii:1 summariser-may:1]" {
			t.Errorf("simulation: %v", m)
		}
		c.call(t, "POST", "/api/v1/policy/drafts/"+id+"/simulate", "", 200, "PolicySimulation")
		c.call(t, "POST", "/api/v1/policy/drafts/"+id+"/simulate", `{"days":0}`, 400, "")

		// A reader may not activate; whoever may, changes the very next signal.
		c.admin.Permissions = []auth.Permission{auth.AIGovernanceView}
		rec := httptest.NewRecorder()
		c.mux.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), "POST", "/api/v1/policy/drafts/"+id+"/activate", nil))
		if rec.Code != 403 {
			t.Errorf("a reader activates: %d", rec.Code)
		}
		c.admin.Permissions = []auth.Permission{auth.AIPolicyAdmin}
		v := c.call(t, "POST", "/api/v1/policy/drafts/"+id+"/activate", "", 200, "PolicyVersion")
		if v["version"] != 1.0 || v["activated_by"] != "ada@acme.example" {
			t.Errorf("activated: %v", v)
		}
		if e := decide(person(), `{"type":"pii_detected"}`); e.Severity != Block || e.Rule.ID != "no-pii" || e.Rule.PolicyVersion != 1 {
			t.Errorf("the next signal: %+v", e)
		}
		if e := decide(summariser, `{"type":"pii_detected"}`); e.Severity != Info || e.Rule.ID != "summariser-may" {
			t.Errorf("the summariser's next signal: %+v", e)
		}
		c.call(t, "POST", "/api/v1/policy/drafts/"+id+"/activate", "", 200, "PolicyVersion")
		c.call(t, "GET", "/api/v1/policy/active", "", 200, "PolicyVersion")
		c.call(t, "GET", "/api/v1/policy/versions/1", "", 200, "PolicyVersion")
		c.call(t, "GET", "/api/v1/policy/versions/2", "", 404, "")
		c.call(t, "GET", "/api/v1/policy/versions/one", "", 404, "")
		empty := c.call(t, "POST", "/api/v1/policy/drafts", `{"rules":[]}`, 201, "PolicyDraftCreated")["id"].(string)
		c.call(t, "POST", "/api/v1/policy/drafts/"+empty+"/activate", "{}", 200, "PolicyVersion")
		c.call(t, "POST", "/api/v1/policy/drafts/"+id+"/activate", "", 409, "")
		// Two drafts of one version: the second would undo the first, which its author never saw.
		c.admin.Permissions = []auth.Permission{auth.AIPolicyAdmin}
		first := c.call(t, "POST", "/api/v1/policy/drafts", `{"rules":[]}`, 201, "PolicyDraftCreated")["id"].(string)
		second := c.call(t, "POST", "/api/v1/policy/drafts", seed, 201, "PolicyDraftCreated")["id"].(string)
		c.call(t, "POST", "/api/v1/policy/drafts/"+first+"/activate", "", 200, "PolicyVersion")
		m = c.call(t, "POST", "/api/v1/policy/drafts/"+second+"/activate", "", 409, "")
		if m["type"] != "urn:sluice:problem:draft-stale" || !strings.Contains(m["detail"].(string), "Version 3 came into force after this draft was written on version 2") || !strings.Contains(m["detail"].(string), "/api/v1/policy/versions/3") {
			t.Errorf("a stale draft: %v", m)
		}
		if m := c.call(t, "GET", "/api/v1/policy/active", "", 200, "PolicyVersion"); m["version"] != 3.0 {
			t.Errorf("a stale draft came into force: %v", m)
		}
		// Who may draft may look at what it would do.
		c.call(t, "POST", "/api/v1/policy/drafts/"+second+"/simulate", "", 200, "PolicySimulation")
		c.call(t, "POST", "/api/v1/policy/explain", `{"signal":{"type":"pii_detected"},"draft":"`+second+`"}`, 200, "PolicyExplained")
		if m := c.call(t, "GET", "/api/v1/policy/versions", "", 200, ""); len(items(m)) != 3 {
			t.Errorf("versions: %v", m)
		}
		if e := decide(person(), `{"type":"pii_detected"}`); e.Severity != Warn || e.Rule != nil {
			t.Errorf("after the empty policy: %+v", e)
		}

		c.admin.Permissions = []auth.Permission{auth.AIGovernanceView}
		decided := func() float64 {
			m := c.policies.metrics
			return testutil.ToFloat64(m.decidedRule) + testutil.ToFloat64(m.decidedNone) + testutil.ToFloat64(m.blind)
		}
		before := decided()
		defer func() {
			if n := decided() - before; n != 1 { // the alert that is explained below was really decided
				t.Errorf("explaining was counted as deciding: %v", n)
			}
		}()
		explain := func(body string, want string) {
			t.Helper()
			m := c.call(t, "POST", "/api/v1/policy/explain", body, 200, "PolicyExplained")
			rule := "-"
			if r, ok := m["rule"].(map[string]any); ok {
				rule = r["id"].(string)
			}
			if got := fmt.Sprint(m["outcome"], " ", m["severity"], " ", rule, " ", m["capped"]); got != want {
				t.Errorf("%s: %s, want %s: %v", body, got, want, m)
			}
		}
		explain(`{"signal":{"type":"pii_detected"}}`, "accepted WARN - false")
		explain(`{"signal":{"type":"pii_detected"},"account":"sa_1"}`, "accepted INFO - true")
		explain(`{"signal":{"type":"pii_detected"},"account":"sa_1","draft":"`+id+`"}`, "accepted BLOCK no-pii false")
		explain(`{"signal":{"type":"pii_detected"},"account":"customer/summariser/production","draft":"`+id+`"}`, "accepted INFO summariser-may false")
		explain(`{"signal":{"type":"personal_use_company_account"},"account":"sa_1"}`, "filtered <nil> - <nil>")
		explain(`{"signal":{"typ":"a"}}`, "invalid <nil> - <nil>")
		explain(`{"alert":"`+decide(person(), `{"type":"pii_detected","id":"1"}`).ID+`","draft":"`+id+`"}`, "accepted BLOCK no-pii false")
		for _, body := range []string{"", `{}`, `{"alert":"x","signal":{}}`, `{"signal":{"type":"a"},"account":"sa_9"}`, `{"signal":{"type":"a"},"account":"a/b"}`, `{"signal":7}`, `{"signal":[{"type":"a"},{"type":"b"}]}`} {
			c.call(t, "POST", "/api/v1/policy/explain", body, 400, "")
		}
		c.call(t, "POST", "/api/v1/policy/explain", `{"alert":"sig_0"}`, 404, "")
		c.call(t, "POST", "/api/v1/policy/explain", `{"signal":{"type":"a"},"draft":"x"}`, 404, "")
	})
}

// TestActivationChecksAgain: a draft that got into the store when less was checked does not come into force.
func TestActivationChecksAgain(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		c := newConsole(t, w)
		good := Rule{ID: "good", Types: []string{"pii_detected"}, Action: ActionWarn, Scope: Scope{Org: true}}
		draft := func(rules ...Rule) string {
			t.Helper()
			d, err := w.CreateDraft(t.Context(), "acme", admin, NewDraft{Rules: rules}) // the store itself checks no rule
			if err != nil {
				t.Fatal(err)
			}
			return "/api/v1/policy/drafts/" + d.ID
		}
		c.call(t, "POST", draft(good)+"/activate", "", 200, "PolicyVersion")
		for pointer, spoil := range map[string]func(*Rule){
			"/rules/1/when":   func(r *Rule) { r.When = `details.amount >` },
			"/rules/1/action": func(r *Rule) { r.Action = "DROP" },
			"/rules/1/types":  func(r *Rule) { r.Types = nil },
			"/rules/1/scope":  func(r *Rule) { r.Scope = Scope{} },
			"/rules/1/id":     func(r *Rule) { r.ID = good.ID },
		} {
			bad := good
			bad.ID = "bad"
			spoil(&bad)
			at := draft(good, bad)
			m := c.call(t, "POST", at+"/activate", "", 400, "")
			found, _ := m["errors"].([]any)
			if len(found) != 1 || found[0].(map[string]any)["field"] != pointer || found[0].(map[string]any)["rule"] != bad.ID {
				t.Errorf("%s: %v", pointer, m)
			}
			if m := c.call(t, "GET", at, "", 200, ""); m["version"] != nil {
				t.Errorf("%s: the draft became version %v", pointer, m["version"])
			}
		}
		// A row that no rule was ever read from.
		if _, err := w.db.ExecContext(t.Context(), `UPDATE policy_drafts SET rules = REPLACE(rules, '"WARN"', '"SHOUT"') WHERE version IS NULL`); err != nil {
			t.Fatal(err)
		}
		for _, d := range items(c.call(t, "GET", "/api/v1/policy/drafts", "", 200, "")) {
			if d := d.(map[string]any); d["version"] == nil {
				c.call(t, "POST", "/api/v1/policy/drafts/"+d["id"].(string)+"/activate", "", 400, "")
			}
		}
		if m := c.call(t, "GET", "/api/v1/policy/active", "", 200, "PolicyVersion"); m["version"] != 1.0 {
			t.Errorf("in force: %v", m)
		}
		if p := c.policies.Policy("acme"); p.Version != 1 {
			t.Errorf("the edge decides by version %d", p.Version)
		}
	})
}
