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
	post := func(path string, form url.Values) {
		t.Helper()
		if res := s.request(t, session, kept, http.MethodPost, path, form); res.StatusCode != http.StatusSeeOther {
			t.Fatalf("%s: %d", path, res.StatusCode)
		}
	}
	var id string // of the one that was deleted last
	after := func(name string) string {
		t.Helper()
		id = s.account(t, name, auth.Production).Account.ID
		post(listPath+"/"+id+"/delete", url.Values{"back": {listPath}})
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
	// A second deletion, and the toast of an edit, take nothing of the first away.
	second := id
	text = after("three")
	edited := s.account(t, "four", auth.Production).Account
	post(listPath+"/"+edited.ID+"/edit", url.Values{"name": {"four"}, "environment": {auth.Production}, "version": {strconv.FormatInt(edited.Version, 10)}, "description": {"edited"}, "abuse_detection": {"on"}})
	for _, text := range []string{text, s.text(t, session, kept, listPath), s.text(t, session, kept, listPath)} {
		if !strings.Contains(text, "Deleted two / production") || !strings.Contains(text, "Deleted three / production") || strings.Count(text, "edge-6, last heard of at ") != 2 {
			t.Errorf("with two deletions: %s", text)
		}
	}
	gone := s.request(t, session, kept, http.MethodPost, "/revocation/dismiss", url.Values{"id": {second}, "back": {listPath + "?q=x"}})
	if gone.StatusCode != http.StatusSeeOther || gone.Header.Get("Location") != listPath+"?q=x" {
		t.Errorf("dismissed: %d, %v", gone.StatusCode, gone.Header)
	}
	if text := s.text(t, session, kept, listPath); strings.Contains(text, "Deleted two") || !strings.Contains(text, "Deleted three") {
		t.Errorf("after one was dismissed: %s", text)
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
	return s.request(t, session, jar, http.MethodGet, path, nil).text(t)
}

func (s *site) request(t *testing.T, session string, jar map[string]*http.Cookie, method, path string, form url.Values) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.server.URL+path, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set("Sec-Fetch-Site", "same-origin")
	}
	req.AddCookie(&http.Cookie{Name: "sluice-session", Value: session})
	for _, c := range jar {
		req.AddCookie(c)
	}
	res := s.send(t, req)
	keep(jar, res.Cookies())
	return res
}

func keep(jar map[string]*http.Cookie, set []*http.Cookie) {
	for _, c := range set {
		delete(jar, c.Name)
		if c.MaxAge >= 0 {
			jar[c.Name] = c
		}
	}
}
