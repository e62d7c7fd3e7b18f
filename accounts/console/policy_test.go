package console_test

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/signals"
)

const (
	orgBlock = `{"rules": [{"id": "no-pii", "types": ["pii_detected"], "action": "BLOCK", "scope": {"org": true}}]}`
	digestOK = `{"rules": [{"id": "no-pii", "types": ["pii_detected"], "action": "BLOCK", "scope": {"org": true}},
		{"id": "digest-may", "types": ["pii_detected"], "when": "signal.severity == 'WARN'", "action": "OBSERVE", "scope": {"service_account": ["nightly-digest-summariser/production"]}}]}`
)

// seedPolicy puts two versions in force and leaves a draft, whose id it returns.
func (s *site) seedPolicy(t *testing.T) string {
	t.Helper()
	by := signals.By{Actor: "lin@acme.example"}
	id := ""
	for i, text := range []string{orgBlock, strings.ReplaceAll(digestOK, `"when": "signal.severity == 'WARN'", `, ""), orgBlock} {
		rules, err := signals.ParseRules([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		d, err := s.signals.CreateDraft(t.Context(), "acme", by, signals.NewDraft{Rules: rules})
		if err != nil {
			t.Fatal(err)
		}
		if id = d.ID; i == 2 {
			break // stays a draft
		}
		if _, err := s.signals.Activate(t.Context(), "acme", d.ID, by); err != nil {
			t.Fatal(err)
		}
	}
	return id
}

func TestPolicy(t *testing.T) {
	s := newSite(t)
	a := s.account(t, "nightly-digest-summariser", auth.Production).Account
	s.raise(t, a, "pii_detected", signals.ContentSafety, signals.Warn, time.Hour)
	viewer, admin := s.session(t, "acme", auth.AIGovernanceView), s.session(t, "acme", auth.AIGovernanceView, auth.AIPolicyAdmin)
	if text := s.do(t, viewer, http.MethodGet, "/settings/ai/policy", nil).text(t); !strings.Contains(text, "No policy yet") || !strings.Contains(text, "AI_POLICY_ADMIN") {
		t.Errorf("without a policy: %s", text)
	}
	for _, p := range [][2]string{{"GET", "/settings/ai/policy/edit?from=active"}, {"POST", "/settings/ai/policy/drafts"}, {"POST", "/settings/ai/policy/drafts/x/activate"}} {
		if got := s.do(t, viewer, p[0], p[1], url.Values{}); got.StatusCode != http.StatusForbidden || !strings.Contains(got.text(t), "AI_POLICY_ADMIN") {
			t.Errorf("%v by a viewer: %d", p, got.StatusCode)
		}
	}
	bad := `{"rules": [{"id": "x y", "types": [], "action": "SHOUT", "when": "signal.", "scope": {}}]}`
	wrong := s.do(t, admin, http.MethodPost, "/settings/ai/policy/drafts", url.Values{"rules": {bad}})
	if wrong.StatusCode != http.StatusUnprocessableEntity || !strings.Contains(wrong.text(t), "/rules/0/when") || !strings.Contains(wrong.text(t), "SHOUT") {
		t.Errorf("a draft that does not hold together: %d %s", wrong.StatusCode, wrong.text(t))
	}
	draft := func(text string) string {
		t.Helper()
		got := s.do(t, admin, http.MethodPost, "/settings/ai/policy/drafts", url.Values{"rules": {text}})
		if got.StatusCode != http.StatusSeeOther {
			t.Fatalf("draft: %d %s", got.StatusCode, got.text(t))
		}
		return got.Header.Get("Location")
	}
	first := draft(orgBlock)
	page := s.do(t, viewer, http.MethodGet, first, nil).text(t)
	for _, part := range []string{"Difference to no policy", "no-pii added", "1 of 1 signals of the last 14 days", "WARN→BLOCK 1", "service: nightly-digest-summariser / production"} {
		if !strings.Contains(page, part) {
			t.Errorf("the draft's page lacks %q: %s", part, page)
		}
	}
	if got := s.do(t, admin, http.MethodPost, first+"/activate", url.Values{}); got.StatusCode != http.StatusSeeOther {
		t.Fatalf("activate: %d", got.StatusCode)
	}
	second := draft(strings.ReplaceAll(digestOK, `"when": "signal.severity == 'WARN'", `, ""))
	if got := s.do(t, admin, http.MethodPost, second+"/activate", url.Values{}); got.StatusCode != http.StatusSeeOther {
		t.Fatalf("activate: %d", got.StatusCode)
	}
	if got := s.do(t, admin, http.MethodPost, first+"/activate", url.Values{}); got.StatusCode != http.StatusConflict {
		t.Errorf("a version of the past again: %d", got.StatusCode)
	}
	drawer := s.do(t, admin, http.MethodGet, "/settings/ai/policy?version=2", nil).text(t)
	for _, part := range []string{"Difference to version 1", "digest-may added", "service account nightly-digest-summariser/production", "grace@acme.example"} {
		if !strings.Contains(drawer, part) {
			t.Errorf("the version's drawer lacks %q", part)
		}
	}
	why := s.do(t, viewer, http.MethodGet, "/ai/alerts?alert="+s.newest(t), nil).text(t)
	for _, part := range []string{"Version 2 would make it", "digest-may decides: sets INFO", "no-pii matches, and gives way"} {
		if !strings.Contains(why, part) {
			t.Errorf("the explanation lacks %q", part)
		}
	}
	confirm := s.do(t, s.session(t, "acme", auth.SettingsIntegrationsUpdate), http.MethodGet, listPath+"?delete="+a.ID, nil).text(t)
	if !strings.Contains(confirm, "Named by one policy rule : digest-may") && !strings.Contains(confirm, "Named by one policy rule: digest-may") {
		t.Errorf("the confirmation does not name the rule: %s", confirm)
	}
	rival := s.session(t, "rival", auth.AllPermissions()...)
	for _, path := range []string{first, "/settings/ai/policy?version=1", "/settings/ai/policy/edit?from=1", "/settings/ai/policy/edit?from=" + strings.TrimPrefix(first, "/settings/ai/policy/drafts/"), "/settings/ai/policy?version=x", "/settings/ai/policy?version=2&against=1"} {
		if got := s.do(t, rival, http.MethodGet, path, nil); got.StatusCode != http.StatusNotFound {
			t.Errorf("%s of another org: %d", path, got.StatusCode)
		}
	}
}

// TestPolicyForm writes rules by the form, as a browser without JavaScript posts it.
func TestPolicyForm(t *testing.T) {
	s := newSite(t)
	s.seedPolicy(t)
	admin := s.session(t, "acme", auth.AIPolicyAdmin)
	const drafts = "/settings/ai/policy/drafts"
	post := func(status int, form url.Values) answer {
		t.Helper()
		got := s.do(t, admin, http.MethodPost, drafts, form)
		if got.StatusCode != status {
			t.Fatalf("%d, want %d: %s", got.StatusCode, status, got.text(t))
		}
		return got
	}
	holds := func(got answer, parts ...string) {
		t.Helper()
		for _, part := range parts {
			if !strings.Contains(got.body, part) {
				t.Errorf("the form lacks %q:\n%s", part, got.body)
			}
		}
	}
	holds(s.do(t, admin, http.MethodGet, "/settings/ai/policy/edit?from=active", nil), `value="no-pii"`, `value="digest-may"`, "nightly-digest-summariser/production</textarea>", `<option value="service_account" selected>`, "Begins with version 2, in force")
	holds(s.do(t, admin, http.MethodGet, "/settings/ai/policy/edit?from=active&view=json", nil), "&#34;digest-may&#34;")
	if got := s.do(t, admin, http.MethodGet, "/settings/ai/policy/edit?from=1", nil); strings.Contains(got.body, "digest-may") {
		t.Error("version 1 is filled in with a rule of version 2")
	}
	form := url.Values{
		"r0-id": {"no-pii"}, "r0-types": {"pii_detected, contentSafety"}, "r0-when": {""}, "r0-action": {"BLOCK"}, "r0-scope": {"org"}, "r0-names": {""},
		"r1-id": {"mail"}, "r1-types": {"forecast_breach"}, "r1-when": {"has(details.amount) && details.amount > 100"}, "r1-action": {"WARN"}, "r1-scope": {"team"}, "r1-names": {"mail\r\nNews Room"},
	}
	with := func(name, value string) url.Values {
		next := url.Values{}
		for k, v := range form {
			next[k] = v
		}
		next.Set(name, value)
		return next
	}
	// What saves nothing: another rule, one less, the same as JSON and back.
	holds(post(200, with("do", "add")), `value="no-pii"`, `name="r2-id"`, "mail\nNews Room</textarea>")
	if got := post(200, with("do", "remove-0")); strings.Contains(got.body, "no-pii\"") || !strings.Contains(got.body, `id="r0-id" name="r0-id" value="mail"`) {
		t.Errorf("one less: %s", got.body)
	}
	holds(post(200, with("do", "json")), "&#34;News Room&#34;", `name="do" value="form"`)
	holds(post(200, url.Values{"rules": {orgBlock}, "do": {"form"}}), `id="r0-id" name="r0-id" value="no-pii"`)
	post(400, with("do", "remove-7"))
	// Errors stand beside the field that they are about, and the list of them leads there.
	wrong := with("r1-when", "details.amount > ")
	wrong.Set("r0-types", "pii_detected, no type!")
	wrong.Set("r0-scope", "service_account")
	got := post(422, wrong)
	holds(got, "Nothing was saved.", `<a href="#r0-types">no-pii</a>`, `id="r0-types-error"`, "is neither a type nor a category", `<a href="#r1-when">mail</a>`, `id="r1-when-error"`, "line 1, column",
		`id="r0-names-error"`, "name at least one", `<option value="service_account" selected>`, "details.amount &gt;</textarea>", "unexpected end")
	holds(post(422, with("r0-names", "nightly-digest-summariser/production")), "Nothing was saved.", `<a href="#r0-names">no-pii</a>`, "for the whole organisation, and names somebody", "nightly-digest-summariser/production</textarea>")
	holds(post(422, url.Values{"rules": {`{"rules": [`}}), "Nothing was saved.")
	key := s.account(t, "leaky", auth.Production).Key
	if got := post(422, with("r1-when", `key_prefix == "`+key+`"`)); strings.Contains(got.body, key) || !strings.Contains(got.body, "a whole key") {
		t.Errorf("a key in a condition: %s", got.body)
	}
	// Saved, it is what was typed.
	draft := post(303, form).Header.Get("Location")
	holds(s.do(t, admin, http.MethodGet, draft, nil), "team mail, News Room", "has(details.amount) &amp;&amp; details.amount &gt; 100", "Activate for everybody", "Difference to version 2, in force")
	// A rule for an account that is not there is a slip of the pen, or for one that is about to come.
	named := with("r1-scope", "service_account")
	named.Set("r1-names", "Leaky/production\r\nleaky/staging\r\nsa_nope")
	got = s.do(t, admin, http.MethodGet, post(303, named).Header.Get("Location"), nil)
	holds(got, "/rules/1/scope/service_account/1", "names &#34;leaky/staging&#34;, and there is no such live service account", "names &#34;sa_nope&#34;", "Activate for everybody")
	if strings.Contains(got.body, "names &#34;Leaky/production&#34;") {
		t.Error("a live account is called unknown")
	}
}

// TestStaleDraft cannot be activated, and says what to do instead.
func TestStaleDraft(t *testing.T) {
	s := newSite(t)
	late := "/settings/ai/policy/drafts/" + s.seedPolicy(t) // written on version 2
	admin := s.session(t, "acme", auth.AIPolicyAdmin)
	first := s.do(t, admin, http.MethodPost, "/settings/ai/policy/drafts", url.Values{"rules": {orgBlock}}).Header.Get("Location")
	if got := s.do(t, admin, http.MethodPost, first+"/activate", url.Values{}); got.StatusCode != http.StatusSeeOther {
		t.Fatalf("activate: %d", got.StatusCode)
	}
	got := s.do(t, admin, http.MethodPost, late+"/activate", url.Values{})
	if text := got.text(t); got.StatusCode != http.StatusConflict || !strings.Contains(text, "nothing has changed") || !strings.Contains(text, "drafted on version 2, and version 3 came into force") ||
		strings.Contains(text, "Activate for everybody") || !strings.Contains(got.body, `href="/settings/ai/policy/edit?from=pol_`) {
		t.Errorf("a stale draft: %d %s", got.StatusCode, text)
	}
	active, err := s.signals.ActivePolicyVersion(t.Context(), "acme")
	if err != nil || active.Version != 3 {
		t.Errorf("in force: %+v %v", active, err)
	}
	again := strings.TrimPrefix(late, "/settings/ai/policy/drafts/")
	if got := s.do(t, admin, http.MethodGet, "/settings/ai/policy/edit?from="+again, nil); got.StatusCode != http.StatusOK || !strings.Contains(got.body, "no-pii") {
		t.Errorf("a copy of it: %d", got.StatusCode)
	}
	drawer := s.do(t, admin, http.MethodGet, "/settings/ai/policy?version=1&against=2", nil).text(t)
	if !strings.Contains(drawer, "Difference to version 2") || !strings.Contains(drawer, "digest-may removed") {
		t.Errorf("a version against another: %s", drawer)
	}
}

// TestDraftThatNoLongerHolds was stored when less was checked: it cannot be activated.
func TestDraftThatNoLongerHolds(t *testing.T) {
	s := newSite(t)
	draft := "/settings/ai/policy/drafts/" + s.seedPolicy(t)
	if _, err := s.writer.ExecContext(t.Context(), `UPDATE policy_drafts SET rules = REPLACE(rules, '"BLOCK"', '"SHOUT"') WHERE version IS NULL`); err != nil {
		t.Fatal(err)
	}
	got := s.do(t, s.session(t, "acme", auth.AIPolicyAdmin), http.MethodPost, draft+"/activate", url.Values{})
	if text := got.text(t); got.StatusCode != http.StatusConflict || !strings.Contains(text, "It no longer holds together") {
		t.Errorf("%d %s", got.StatusCode, text)
	}
	if active, err := s.signals.ActivePolicyVersion(t.Context(), "acme"); err != nil || active.Version != 2 {
		t.Errorf("in force: %+v %v", active, err)
	}
}

// TestDraftOfWhatWasRead: a form that was opened on one version and saved after another came into force can't undo that one.
func TestDraftOfWhatWasRead(t *testing.T) {
	s := newSite(t)
	s.seedPolicy(t) // version 2 is in force
	admin := s.session(t, "acme", auth.AIPolicyAdmin)
	const drafts = "/settings/ai/policy/drafts"
	for _, view := range []string{"form", "json"} {
		opened := s.do(t, admin, http.MethodGet, "/settings/ai/policy/edit?from=active&view="+view, nil)
		base := opened.value(t, "base")
		between := s.do(t, admin, http.MethodPost, drafts, url.Values{"rules": {orgBlock}}).Header.Get("Location")
		if got := s.do(t, admin, http.MethodPost, between+"/activate", url.Values{}); got.StatusCode != http.StatusSeeOther {
			t.Fatalf("activate: %d", got.StatusCode)
		}
		form := url.Values{"base": {base}, "do": {"add"}, "r0-id": {"a"}, "r0-types": {"pii_detected"}, "r0-action": {"WARN"}, "r0-scope": {"org"}}
		if view == "json" {
			form = url.Values{"base": {base}, "rules": {orgBlock}, "do": {"form"}}
		}
		again := s.do(t, admin, http.MethodPost, drafts, form) // saves nothing, and forgets nothing
		if got := again.value(t, "base"); got != base {
			t.Errorf("%s: the base became %q from %q", view, got, base)
		}
		form.Set("do", "save")
		late := s.do(t, admin, http.MethodPost, drafts, form).Header.Get("Location")
		if got := s.do(t, admin, http.MethodPost, late+"/activate", url.Values{}); got.StatusCode != http.StatusConflict || !strings.Contains(got.text(t), "drafted on version "+base) {
			t.Errorf("%s: %d %s", view, got.StatusCode, got.text(t))
		}
	}
	for _, base := range []string{"99", "-1", "x"} {
		if got := s.do(t, admin, http.MethodPost, drafts, url.Values{"base": {base}, "rules": {orgBlock}, "do": {"save"}}); got.StatusCode != http.StatusBadRequest {
			t.Errorf("base %s: %d", base, got.StatusCode)
		}
	}
}

// TestLargeDraft: the form takes what the admin API takes.
func TestLargeDraft(t *testing.T) {
	s := newSite(t)
	admin := s.session(t, "acme", auth.AIPolicyAdmin)
	rules := make([]string, 900)
	for i := range rules {
		rules[i] = fmt.Sprintf(`{"id":"r%d","types":["pii_detected"],"when":"details.x == '%s'","action":"WARN","scope":{"org":true}}`, i, strings.Repeat("é", 400))
	}
	text := `{"rules":[` + strings.Join(rules, ",") + `]}`
	if len(text) < 700<<10 || len(text) > 1<<20 {
		t.Fatalf("%d bytes", len(text))
	}
	if got := s.do(t, admin, http.MethodPost, "/settings/ai/policy/drafts", url.Values{"rules": {text}, "do": {"save"}}); got.StatusCode != http.StatusSeeOther {
		t.Errorf("%d bytes of rules: %d %.200s", len(text), got.StatusCode, got.text(t))
	}
	if got := s.do(t, admin, http.MethodPost, "/settings/ai/policy/drafts", url.Values{"rules": {strings.Repeat("é", 1<<20)}, "do": {"save"}}); got.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("more than that: %d", got.StatusCode)
	}
	if got := s.do(t, admin, http.MethodPost, "/ai/alerts/resolve", url.Values{"note": {strings.Repeat("x", 200<<10)}}); got.StatusCode != http.StatusRequestEntityTooLarge && got.StatusCode != http.StatusForbidden {
		t.Errorf("another form of that size: %d", got.StatusCode)
	}
}

// TestDrawerWithoutAPolicyThatHolds opens a signal while the version in force does not compile here.
func TestDrawerWithoutAPolicyThatHolds(t *testing.T) {
	s := newSite(t)
	s.seedPolicy(t)
	alert := s.raise(t, s.account(t, "chatbot", auth.Production).Account, "pii_detected", signals.ContentSafety, signals.Warn, 0)
	if _, err := s.writer.ExecContext(t.Context(), `UPDATE policy_versions SET rules = REPLACE(rules, '"BLOCK"', '"SHOUT"')`); err != nil {
		t.Fatal(err)
	}
	got := s.do(t, s.session(t, "acme", auth.AIGovernanceView), http.MethodGet, "/ai/alerts?alert="+alert, nil)
	if got.StatusCode != http.StatusOK || !strings.Contains(got.text(t), "Version 2 does not hold together here") || !strings.Contains(got.text(t), "session-7") {
		t.Errorf("%d %s", got.StatusCode, got.text(t))
	}
}

// TestPolicyAdminFindsPolicy opens Policy with the permission to draft alone, and nothing else.
func TestPolicyAdminFindsPolicy(t *testing.T) {
	s := newSite(t)
	draft := s.seedPolicy(t)
	a := s.account(t, "nightly-digest-summariser", auth.Production).Account
	s.raise(t, a, "pii_detected", signals.ContentSafety, signals.Warn, time.Hour)
	admin := s.session(t, "acme", auth.AIPolicyAdmin)
	if to := s.do(t, admin, http.MethodGet, "/", nil).Header.Get("Location"); to != "/settings/ai/policy" {
		t.Errorf("home leads to %q", to)
	}
	for _, path := range []string{"/settings/ai/policy", "/settings/ai/policy?version=1", "/settings/ai/policy/edit?from=active", "/settings/ai/policy/drafts/" + draft} {
		got := s.do(t, admin, http.MethodGet, path, nil)
		if got.StatusCode != http.StatusOK || strings.Contains(got.body, "/ai/alerts") {
			t.Errorf("%s: %d, or it leads where the admin may not go", path, got.StatusCode)
		}
	}
	for _, path := range []string{"/ai/alerts", "/settings/ai/audit-log", listPath} {
		if got := s.do(t, admin, http.MethodGet, path, nil); got.StatusCode != http.StatusForbidden {
			t.Errorf("%s: %d", path, got.StatusCode)
		}
	}
}
