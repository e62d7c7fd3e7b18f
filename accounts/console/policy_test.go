package console_test

import (
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
		d, err := s.signals.CreateDraft(t.Context(), "acme", by, rules)
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
	for _, p := range [][2]string{{"GET", "/settings/ai/policy?draft=active"}, {"POST", "/settings/ai/policy/drafts"}, {"POST", "/settings/ai/policy/drafts/x/activate"}} {
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
	for _, path := range []string{first, "/settings/ai/policy?version=1", "/settings/ai/policy?draft=1", "/settings/ai/policy?version=x"} {
		if got := s.do(t, rival, http.MethodGet, path, nil); got.StatusCode != http.StatusNotFound {
			t.Errorf("%s of another org: %d", path, got.StatusCode)
		}
	}
}
