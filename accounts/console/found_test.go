package console_test

import (
	"html"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"flowstate.inc/sluice/auth"
)

// TestSearchSaysWhoseKeyItIs: by a prefix, by what a page or a log cut of it, and for admin tokens, which must not pass for nobody's.
func TestSearchSaysWhoseKeyItIs(t *testing.T) {
	s := newSite(t)
	a := s.account(t, "nightly-digest-summariser", auth.Production).Account
	token, _, err := s.CreateToken(t.Context(), by, "acme", "deploys", auth.AllPermissions(), time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	session, rival := s.session(t, "acme", auth.SettingsIntegrationsUpdate), s.session(t, "rival", auth.SettingsIntegrationsUpdate)
	search := func(session, q string) string {
		return html.UnescapeString(string(s.do(t, session, http.MethodGet, listPath+"?q="+url.QueryEscape(q), nil).body))
	}
	for q, want := range map[string]string{
		a.KeyPrefix: "service: nightly-digest-summariser / production",
		"OTEL_HEADERS=x-flowstate-key=" + a.KeyPrefix[:14] + "****": "service: nightly-digest-summariser / production",
		a.KeyPrefix + "...":    "service: nightly-digest-summariser / production",
		a.KeyPrefix[:12] + "…": "service: nightly-digest-summariser / production",
		token.Prefix:           "admin token: deploys",
		token.Prefix[:13]:      "admin token: deploys",
	} {
		text := search(session, q)
		if !strings.Contains(text, want) || !strings.Contains(text, "active") || strings.Contains(want, "token") && !strings.Contains(text, "sluice tokens revoke "+token.Prefix) {
			t.Errorf("%s: the page does not say %q", q, want)
		}
		if strings.Contains(text, "No service account matches") == strings.Contains(want, "service:") {
			t.Errorf("%s: found, and the list says something else", q)
		}
		if text := search(rival, q); strings.Contains(text, want) {
			t.Errorf("%s: another org is told", q)
		}
	}
	if text := search(session, a.KeyPrefix[6:14]); !strings.Contains(text, "a search for a key needs its start") {
		t.Errorf("from the middle of a key: %s", text)
	}
	if text := search(session, a.KeyPrefix[:11]+"…"); strings.Contains(text, "belongs to") {
		t.Error("seven characters are enough to be told whose a key is")
	}
}
