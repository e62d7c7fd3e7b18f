package console_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"flowstate.inc/sluice/auth"
)

// TestDeleteSaysWhichEdgesRefuse: the page after a delete says how many edges refuse the key, and which may still accept it until when.
func TestDeleteSaysWhichEdgesRefuse(t *testing.T) {
	s := newSite(t)
	session := s.session(t, "acme", auth.SettingsIntegrationsUpdate)
	_, now, err := s.Changes(t.Context(), time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	report := func(edge string, at time.Time) {
		t.Helper()
		if err := s.ReportEdge(t.Context(), edge, at); err != nil {
			t.Fatal(err)
		}
	}
	after := func(name string) string {
		t.Helper()
		a := s.account(t, name, auth.Production).Account
		deleted := s.do(t, session, http.MethodPost, listPath+"/"+a.ID+"/delete", url.Values{"back": {listPath}})
		if deleted.StatusCode != http.StatusSeeOther {
			t.Fatal(deleted.StatusCode)
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.server.URL+listPath, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.AddCookie(&http.Cookie{Name: "sluice-session", Value: session})
		for _, c := range deleted.Cookies() {
			req.AddCookie(c)
		}
		return s.send(t, req).text(t)
	}
	report("edge-1", now.Add(time.Hour))
	report("edge-2", now.Add(time.Hour))
	if text := after("one"); !strings.Contains(text, "revoked its key; refused by 2 of 2 edges after 0.") {
		t.Errorf("with both ahead: %s", text)
	}
	report("edge-2", now.Add(-time.Second))
	if text := after("two"); !strings.Contains(text, "refused by 1 of 2 edges so far. May still accept it: edge-2 until ") {
		t.Errorf("with one behind: %s", text)
	}
}
