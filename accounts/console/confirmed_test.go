package console_test

import (
	"net/http"
	"net/url"
	"strconv"
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
		if err := s.ReportEdge(t.Context(), edge, at, 15*time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	kept := map[string]*http.Cookie{}
	after := func(name string) string {
		t.Helper()
		a := s.account(t, name, auth.Production).Account
		deleted := s.do(t, session, http.MethodPost, listPath+"/"+a.ID+"/delete", url.Values{"back": {listPath}})
		if deleted.StatusCode != http.StatusSeeOther {
			t.Fatal(deleted.StatusCode)
		}
		keep(kept, deleted.Cookies())
		return s.text(t, session, kept, listPath)
	}
	report("edge-1", now.Add(time.Hour))
	report("edge-2", now.Add(time.Hour))
	if text := after("one"); !strings.Contains(text, "revoked its key; refused by 2 of 2 edges after 0.") {
		t.Errorf("with both ahead: %s", text)
	}
	report("edge-2", now.Add(-time.Second))
	for i := range 5 {
		report("edge-"+strconv.Itoa(2+i), now.Add(-time.Second))
	}
	text := after("two")
	for _, want := range []string{"refused by 1 of 6 edges so far.", "May still accept its key:", "edge-2, last heard of at ", "edge-6, last heard of at ", "Ask again", "Dismiss"} {
		if !strings.Contains(text, want) {
			t.Errorf("with five behind, %q is not in %s", want, text)
		}
	}
	if strings.Contains(text, "data-toast") {
		t.Errorf("what goes away by itself says it: %s", text)
	}

	// It is there again on the next page, until it is dismissed or all have confirmed.
	if text := s.text(t, session, kept, listPath); !strings.Contains(text, "edge-6, last heard of at ") {
		t.Errorf("on the next page: %s", text)
	}
	gone := s.do(t, session, http.MethodPost, "/revocation/dismiss", url.Values{"back": {listPath + "?q=x"}})
	if gone.StatusCode != http.StatusSeeOther || gone.Header.Get("Location") != listPath+"?q=x" || len(gone.Cookies()) != 1 || gone.Cookies()[0].MaxAge >= 0 {
		t.Errorf("dismissed: %d, %v", gone.StatusCode, gone.Header)
	}
	for i := range 5 {
		report("edge-"+strconv.Itoa(2+i), now.Add(time.Hour))
	}
	if text := s.text(t, session, kept, listPath); !strings.Contains(text, "refused by 6 of 6 edges.") || strings.Contains(text, "May still accept") {
		t.Errorf("when all have confirmed: %s", text)
	}
}

// text is a page as a browser with these cookies gets it, which are kept up to date.
func (s *site) text(t *testing.T, session string, jar map[string]*http.Cookie, path string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.server.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.AddCookie(&http.Cookie{Name: "sluice-session", Value: session})
	for _, c := range jar {
		req.AddCookie(c)
	}
	page := s.send(t, req)
	keep(jar, page.Cookies())
	return page.text(t)
}

func keep(jar map[string]*http.Cookie, set []*http.Cookie) {
	for _, c := range set {
		delete(jar, c.Name)
		if c.MaxAge >= 0 {
			jar[c.Name] = c
		}
	}
}
