package console_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"flowstate.inc/sluice/accounts"
	"flowstate.inc/sluice/accounts/console"
	"flowstate.inc/sluice/auth"
)

// TestPermissions walks every page × who asks.
func TestPermissions(t *testing.T) {
	s := newSite(t)
	created := s.account(t, "quarterly-forecaster", auth.Production)
	id := created.Account.ID
	manage, govern, policy := auth.SettingsIntegrationsUpdate, auth.AIGovernanceView, auth.AIPolicyAdmin
	sessions := map[auth.Permission]string{}
	for _, p := range auth.AllPermissions() {
		sessions[p] = s.session(t, "acme", p)
	}
	rival := s.session(t, "rival", auth.AllPermissions()...)
	pages := []struct {
		method, path string
		needs        auth.Permission
		form         url.Values
		ok, ofRival  int // for who may; and for an admin of another org
	}{
		{"GET", listPath, manage, nil, 200, 200},
		{"GET", listPath + "?create=1", manage, nil, 200, 200},
		{"GET", listPath + "?create=1&from=" + id, manage, nil, 200, 404},
		{"GET", listPath + "?edit=" + id, manage, nil, 200, 404},
		{"GET", listPath + "?delete=" + id, manage, nil, 200, 404},
		{"GET", listPath + "/" + id, manage, nil, 200, 404},
		{"GET", listPath + "/" + id + "/first-event", manage, nil, 200, 404},
		{"GET", "/revocation/pending?back=/", manage, nil, 204, 204},
		{"POST", "/revocation/dismiss", manage, url.Values{}, 303, 303},
		{"POST", listPath, manage, url.Values{}, 400, 400},
		{"POST", listPath + "/" + id + "/edit", manage, url.Values{"version": {"1"}}, 422, 404},
		{"GET", "/settings/ai/audit-log", govern, nil, 200, 200},
		{"GET", "/settings/ai/audit-log/export?format=csv", govern, nil, 200, 200},
		{"POST", listPath + "/" + id + "/scope/try", manage, url.Values{"version": {"1"}, "try_prompt": {"x"}}, 200, 404},
		{"POST", listPath + "/" + id + "/delete", manage, url.Values{}, 303, 404}, // last: it deletes
	}
	for _, p := range pages {
		stranger := s.do(t, "", p.method, p.path, p.form)
		if strings.HasSuffix(p.path, "first-event") {
			if stranger.StatusCode != http.StatusUnauthorized {
				t.Errorf("stranger %s %s: %d", p.method, p.path, stranger.StatusCode)
			}
		} else if stranger.StatusCode != http.StatusSeeOther || !strings.HasPrefix(stranger.Header.Get("Location"), "/sign-in") {
			t.Errorf("stranger %s %s: %d to %q", p.method, p.path, stranger.StatusCode, stranger.Header.Get("Location"))
		}
		// A telemetry key opens nothing, whichever way it is sent.
		req, err := http.NewRequestWithContext(t.Context(), p.method, s.server.URL+p.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+created.Key)
		req.Header.Set("X-Flowstate-Key", created.Key)
		req.AddCookie(&http.Cookie{Name: "sluice-session", Value: created.Key})
		if got := s.send(t, req).StatusCode; got != http.StatusSeeOther && got != http.StatusUnauthorized {
			t.Errorf("telemetry key %s %s: %d", p.method, p.path, got)
		}
		if got := s.do(t, rival, p.method, p.path, p.form); got.StatusCode != p.ofRival {
			t.Errorf("other org %s %s: %d, want %d", p.method, p.path, got.StatusCode, p.ofRival)
		} else if strings.Contains(got.body, "quarterly-forecaster") {
			t.Errorf("other org %s %s sees the account", p.method, p.path)
		}
		for _, has := range []auth.Permission{policy, govern, manage} { // who may comes after who may not
			if has == p.needs {
				continue
			}
			got := s.do(t, sessions[has], p.method, p.path, p.form)
			if got.StatusCode != http.StatusForbidden || !strings.Contains(got.text(t), string(p.needs)) {
				t.Errorf("%s %s %s: %d, and the page must name %s", has, p.method, p.path, got.StatusCode, p.needs)
			}
		}
		if got := s.do(t, sessions[p.needs], p.method, p.path, p.form); got.StatusCode != p.ok {
			t.Errorf("%s %s %s: %d, want %d\n%s", p.needs, p.method, p.path, got.StatusCode, p.ok, got.text(t))
		}
	}
	for _, path := range []string{listPath + "/nothing", listPath + "/sa_" + strings.Repeat("0", 32), listPath + "/%00", listPath + "/..%2f..", "/settings", "/settings/ai/usage"} {
		if got := s.do(t, sessions[manage], "GET", path, nil); got.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %d, want 404", path, got.StatusCode)
		}
	}
	menu := s.do(t, sessions[govern], "GET", "/settings/ai/audit-log", nil).text(t)
	if strings.Contains(menu, "AI Service Accounts") {
		t.Error("the menu shows a page that the admin may not open")
	}
	home := s.do(t, sessions[govern], "GET", "/", nil)
	if home.Header.Get("Location") != "/ai/alerts" {
		t.Errorf("home leads to %q", home.Header.Get("Location"))
	}
}

func TestHeaders(t *testing.T) {
	s := newSite(t)
	s.seed(t, 0)
	id := s.session(t, "acme", auth.AllPermissions()...)
	for _, path := range []string{listPath, listPath + "?create=1", "/settings/ai/audit-log", "/ai/alerts", "/sign-in", "/nowhere", "/sign-in/once?token=x"} {
		a := s.do(t, id, http.MethodGet, path, nil)
		if signedIn := !strings.HasPrefix(path, "/sign-in"); signedIn && !strings.Contains(a.text(t), "Signed in as grace@acme.example") {
			t.Errorf("%s does not say who is signed in", path)
		}
		h := a.Header
		csp := h.Get("Content-Security-Policy")
		if !strings.Contains(csp, "default-src 'none'") || !strings.Contains(csp, "frame-ancestors 'none'") || strings.Contains(csp, "unsafe") {
			t.Errorf("%s: policy %q", path, csp)
		}
		for name, want := range map[string]string{"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin"} {
			if h.Get(name) != want {
				t.Errorf("%s: %s is %q", path, name, h.Get(name))
			}
		}
		// The policy would block them, so a page that has one is broken.
		if m := regexp.MustCompile(`(?i)<script>|<style|\sstyle=|\son[a-z]+=|javascript:`).FindString(a.body); m != "" {
			t.Errorf("%s: inline script or style: %q", path, m)
		}
		for _, tag := range []string{"link", "script", "img"} {
			for _, el := range a.elements(t, tag) {
				for _, name := range []string{"href", "src"} {
					if v := attr(el, name); v != "" && !strings.HasPrefix(v, "/") {
						t.Errorf("%s: %s loads %q", path, tag, v)
					}
				}
			}
		}
	}
}

// TestFaults takes the database away: the page says what is safe and names the request; the cause is in the log only.
func TestFaults(t *testing.T) {
	s := newSite(t)
	id := s.session(t, "acme", auth.AllPermissions()...)
	if err := errors.Join(s.reader.Close(), s.writer.Close()); err != nil {
		t.Fatal(err)
	}
	a := s.do(t, id, http.MethodGet, listPath, nil)
	request := a.Header.Get("X-Request-Id")
	if a.StatusCode < 500 || request == "" || !strings.Contains(a.text(t), request) || !strings.Contains(a.text(t), "look whether it was saved") {
		t.Errorf("%d: %s", a.StatusCode, a.text(t))
	}
	if strings.Contains(a.body, "sql") || strings.Contains(a.body, "database is closed") {
		t.Error("the page says the cause")
	}
	if !strings.Contains(s.log.String(), request) || !strings.Contains(s.log.String(), "database is closed") {
		t.Errorf("the log does not say the cause: %s", s.log)
	}
}

// TestPagesAreSmall measures pages as they go over the wire, with a full list of the longest names.
func TestPagesAreSmall(t *testing.T) {
	s := newSite(t)
	for i := range 60 {
		s.account(t, strings.Repeat("workload-with-a-long-name-", 3)[:76]+string(rune('a'+i/26))+string(rune('a'+i%26)), auth.Production)
	}
	id := s.session(t, "acme", auth.AllPermissions()...)
	for _, path := range []string{listPath, listPath + "?create=1", "/settings/ai/audit-log", "/assets/none"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.server.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Accept-Encoding", "gzip")
		req.AddCookie(&http.Cookie{Name: "sluice-session", Value: id})
		if a := s.send(t, req); len(a.body) > 60<<10 {
			t.Errorf("%s: %d bytes over the wire", path, len(a.body))
		} else if path == listPath {
			zr, err := gzip.NewReader(bytes.NewReader([]byte(a.body)))
			if err != nil {
				t.Fatalf("%s is not compressed: %v", path, err)
			}
			_ = zr.Close()
		}
	}
}

func TestHostileNames(t *testing.T) {
	s := newSite(t)
	name := `"><script>alert(1)</script>{{.}}'&`
	created := s.account(t, name, auth.Production)
	scope := `</textarea><img src=x onerror=alert(1)>`
	if _, err := s.UpdateAccount(t.Context(), by, "acme", created.Account.ID, 0, accounts.AccountUpdate{IntendedScope: &scope, Team: &name}); err != nil {
		t.Fatal(err)
	}
	id := s.session(t, "acme", auth.AllPermissions()...)
	at := created.Account.ID
	for _, path := range []string{
		listPath, listPath + "?q=" + url.QueryEscape(name), listPath + "?edit=" + at, listPath + "?delete=" + at, listPath + "/" + at,
		listPath + "?create=1&from=" + at, "/settings/ai/audit-log", listPath + "?environment=%22%3E%3Cscript%3E", listPath + "?sort=%3Cscript%3E", listPath + "?cursor=zzz",
	} {
		a := s.do(t, id, http.MethodGet, path, nil)
		if a.StatusCode >= 500 {
			t.Errorf("%s: %d", path, a.StatusCode)
		}
		for _, el := range a.elements(t, "script") {
			if !strings.HasPrefix(attr(el, "src"), "/assets/") {
				t.Errorf("%s: a script of somebody else", path)
			}
		}
		if len(a.elements(t, "img")) > 0 {
			t.Errorf("%s: an image of somebody else", path)
		}
	}
}

// TestCreate follows a key from its one answer: a repeat shows nothing, and nothing else holds it.
func TestCreate(t *testing.T) {
	s := newSite(t)
	id := s.session(t, "acme", auth.AllPermissions()...)
	form := url.Values{
		"name": {"nightly-digest-summariser"}, "environment": {"production"}, "description": {"d"}, "intended_scope": {"Summarises news."},
		"abuse_detection": {"on"}, "team": {"platform"}, "token": {s.do(t, id, http.MethodGet, listPath+"?create=1", nil).value(t, "token")},
	}
	a := s.do(t, id, http.MethodPost, listPath, form)
	key := regexp.MustCompile(auth.KeyPattern).FindString(a.body)
	if a.StatusCode != http.StatusCreated || key == "" {
		t.Fatalf("%d, key %q\n%s", a.StatusCode, key, a.text(t))
	}
	if a.Header.Get("Cache-Control") != "no-store" || a.Header.Get("Content-Encoding") != "" {
		t.Errorf("the reveal may be stored or is compressed: %v", a.Header)
	}
	for _, part := range []string{
		"The raw key is shown once.", "Don’t paste it into a chat window", "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf", "x-flowstate-key=" + key,
		"CLAUDE_CODE_ENABLE_TELEMETRY=1", "OTEL_LOGS_EXPORTER=otlp", "OTEL_METRICS_EXPORTER=otlp", "--fail-with-body", "--retry 3", "detected_at", "kind: Secret",
		"OTEL_EXPORTER_OTLP_ENDPOINT=https://ingest.acme.example", "Waiting for the first event",
	} {
		if !strings.Contains(strings.ReplaceAll(a.text(t), "don’t paste", "Don’t paste"), part) {
			t.Errorf("the reveal lacks %q", part)
		}
	}
	again := s.do(t, id, http.MethodPost, listPath, form)
	if again.StatusCode != http.StatusOK || strings.Contains(again.body, key) || !strings.Contains(again.text(t), "shown already") {
		t.Errorf("the same form again: %d\n%s", again.StatusCode, again.text(t))
	}
	form.Set("name", "another")
	if other := s.do(t, id, http.MethodPost, listPath, form); other.StatusCode != http.StatusUnprocessableEntity || other.value(t, "token") == form.Get("token") {
		t.Errorf("the same form with other values: %d", other.StatusCode)
	}
	found := s.find(t, "nightly")
	if found.IntendedScope != "Summarises news." || found.Team != "platform" || !found.AbuseDetection {
		t.Errorf("made %+v", found)
	}
	for _, path := range []string{listPath, listPath + "?q=" + found.KeyPrefix, listPath + "/" + found.ID, listPath + "?edit=" + found.ID, "/settings/ai/audit-log", "/settings/ai/audit-log/export?format=ndjson"} {
		if page := s.do(t, id, http.MethodGet, path, nil); strings.Contains(page.body, key) {
			t.Errorf("%s shows the key", path)
		}
	}
	s.lacksSecret(t, key)
}

// lacksSecret searches the log and the database's files.
func (s *site) lacksSecret(t *testing.T, key string) {
	t.Helper()
	secret := key[17:] // what follows the prefix
	if strings.Contains(s.log.String(), secret) {
		t.Error("the log holds the key")
	}
	files, err := os.ReadDir(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		raw, err := os.ReadFile(filepath.Join(s.dir, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(raw, []byte(secret)) {
			t.Errorf("%s holds the key", f.Name())
		}
	}
}

func TestCreateKeepsWhatWasTyped(t *testing.T) {
	s := newSite(t)
	taken := s.account(t, "Summariser", auth.Production)
	id := s.session(t, "acme", auth.SettingsIntegrationsUpdate)
	f := func(name, environment, wants string) {
		t.Helper()
		form := url.Values{"name": {name}, "environment": {environment}, "description": {"typed & kept"}, "token": {"t"}}
		a := s.do(t, id, http.MethodPost, listPath, form)
		if a.StatusCode != http.StatusUnprocessableEntity || !strings.Contains(a.text(t), wants) {
			t.Errorf("%q in %q: %d, wants %q\n%s", name, environment, a.StatusCode, wants, a.text(t))
		}
		if a.value(t, "name") != strings.ReplaceAll(name, taken.Key, taken.Account.KeyPrefix) || !strings.Contains(a.text(t), "typed & kept") {
			t.Error("what was typed is lost")
		}
		if strings.Contains(a.body, taken.Key) {
			t.Error("the page repeats a key")
		}
		if !strings.Contains(a.body, `aria-invalid="true"`) {
			t.Error("no field is marked")
		}
	}
	f("", auth.Production, "Name is required.")
	f("x", "", "Choose one of the three.")
	f("x", "moon", "Choose one of the three.")
	f(strings.Repeat("x", 81), auth.Production, "Name is 81 characters long; at most 80 are allowed.")
	f("SUMMARISER", auth.Production, "A live account in production has this name already")
	f("uses "+taken.Key, auth.Staging, "Name holds a whole key")
}

// TestAuditHasWordsForAll: every action that the code writes can be chosen on the page, and reads as words.
func TestAuditHasWordsForAll(t *testing.T) {
	s := newSite(t)
	page := string(s.do(t, s.session(t, "acme", auth.AIGovernanceView), http.MethodGet, "/settings/ai/audit-log", nil).body)
	found := 0
	for _, dir := range []string{"..", "../../signals"} {
		files, err := filepath.Glob(dir + "/*.go")
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			for _, m := range regexp.MustCompile(`Action:? *=? *"([a-z_]+[.][a-z_]+)"`).FindAllStringSubmatch(string(text), -1) {
				found++
				if !strings.Contains(page, `<option value="`+m[1]+`">`) {
					t.Errorf("%s is not among the actions", m[1])
				}
			}
		}
	}
	if found < 12 {
		t.Errorf("only %d actions found in the code", found)
	}
}

func TestEditAndDelete(t *testing.T) {
	s := newSite(t, func(c *console.Config) { c.Rules = nil })
	a := s.account(t, "chatbot", auth.Production).Account
	id := s.session(t, "acme", auth.AllPermissions()...)
	drawer := s.do(t, id, http.MethodGet, listPath+"?edit="+a.ID, nil)
	if text := drawer.text(t); !strings.Contains(text, "To rotate it") || !strings.Contains(text, "A change of environment holds for signals from now on") {
		t.Errorf("the drawer does not say how to rotate or what a change of environment does: %s", text)
	}
	form := url.Values{"name": {"chatbot"}, "environment": {"staging"}, "version": {drawer.value(t, "version")}, "back": {listPath + "?sort=-last_seen_at"}}
	if got := s.do(t, id, http.MethodPost, listPath+"/"+a.ID+"/edit", form); got.StatusCode != http.StatusSeeOther || got.Header.Get("Location") != listPath+"?sort=-last_seen_at" {
		t.Fatalf("edit: %d to %q", got.StatusCode, got.Header.Get("Location"))
	}
	if now := s.find(t, "chatbot"); now.Environment != auth.Staging || now.AbuseDetection {
		t.Errorf("after the edit: %+v", now)
	}
	stale := s.do(t, id, http.MethodPost, listPath+"/"+a.ID+"/edit", form)
	if stale.StatusCode != http.StatusUnprocessableEntity || !strings.Contains(stale.text(t), "Somebody changed this account meanwhile") {
		t.Errorf("a stale edit: %d", stale.StatusCode)
	}
	form.Set("back", "https://evil.example/")
	form.Set("version", stale.value(t, "version"))
	form.Set("name", "chatbot-2")
	if got := s.do(t, id, http.MethodPost, listPath+"/"+a.ID+"/edit", form); got.Header.Get("Location") != listPath {
		t.Errorf("led away to %q", got.Header.Get("Location"))
	}
	if err := s.Stamp(t.Context(), []auth.Stamp{{Prefix: a.KeyPrefix, First: time.Now().Add(-time.Hour), Last: time.Now().Add(-time.Hour)}}); err != nil {
		t.Fatal(err)
	}
	confirm := s.do(t, id, http.MethodGet, listPath+"?delete="+a.ID, nil)
	for _, part := range []string{"Delete chatbot-2 / staging?", "1 hour ago", "Past data is kept", a.KeyPrefix, "It has sent within the last day"} {
		if !strings.Contains(confirm.text(t), part) {
			t.Errorf("the confirmation lacks %q", part)
		}
	}
	gone := s.do(t, id, http.MethodPost, listPath+"/"+a.ID+"/delete", url.Values{})
	if gone.StatusCode != http.StatusSeeOther {
		t.Fatalf("delete: %d", gone.StatusCode)
	}
	jar := map[string]*http.Cookie{}
	s.request(t, id, jar, http.MethodPost, listPath+"/"+a.ID+"/delete", url.Values{})
	if text := s.text(t, id, jar, listPath); !strings.Contains(text, "chatbot-2 / staging was deleted already, just now by ") {
		t.Errorf("a second delete: %s", text)
	}
	if got := s.do(t, id, http.MethodPost, listPath+"/"+a.ID+"/edit", form); got.StatusCode != http.StatusConflict || !strings.Contains(got.text(t), "chatbot-2 / staging was deleted meanwhile") || !strings.Contains(got.text(t), "Recreate it") {
		t.Errorf("an edit after that: %d, %s", got.StatusCode, got.text(t))
	}
	page := s.do(t, id, http.MethodGet, listPath+"?q="+a.KeyPrefix, nil).text(t)
	if !strings.Contains(page, "deleted just now") || !strings.Contains(page, "The key was revoked") {
		t.Errorf("the prefix of a deleted account: %s", page)
	}
	if text := s.do(t, id, http.MethodGet, listPath, nil).text(t); !strings.Contains(text, "No live service accounts") {
		t.Errorf("the empty list: %s", text)
	}
	if text := s.do(t, id, http.MethodGet, listPath+"/"+a.ID, nil).text(t); !strings.Contains(text, "This account was deleted") || !strings.Contains(text, "Recreate") {
		t.Errorf("the page of a deleted account: %s", text)
	}
	for _, q := range []string{"?edit=", "?delete="} {
		if got := s.do(t, id, http.MethodGet, listPath+q+a.ID, nil); got.StatusCode != http.StatusNotFound {
			t.Errorf("%s of a deleted account: %d", q, got.StatusCode)
		}
	}
	again := s.do(t, id, http.MethodGet, listPath+"?create=1&from="+a.ID, nil)
	if again.value(t, "name") != "chatbot-2" || !strings.Contains(again.text(t), "Recreate chatbot-2 / staging") {
		t.Error("recreate is not filled in")
	}
}

// TestPastedKeys pastes a full key wherever an address can hold one.
func TestPastedKeys(t *testing.T) {
	s := newSite(t)
	created := s.account(t, "chatbot", auth.Production)
	id := s.session(t, "acme", auth.AllPermissions()...)
	prefix, key := created.Account.KeyPrefix, created.Key
	f := func(path, to string) {
		t.Helper()
		a := s.do(t, id, http.MethodGet, path, nil)
		if a.StatusCode != http.StatusSeeOther || a.Header.Get("Location") != to {
			t.Errorf("%s: %d to %q, want %q", path, a.StatusCode, a.Header.Get("Location"), to)
		}
	}
	f(listPath+"?q="+key, listPath+"?q="+prefix)
	f(listPath+"?q="+url.QueryEscape("x-flowstate-key: "+key)+"&state=all", listPath+"?q="+url.QueryEscape("x-flowstate-key: "+prefix)+"&state=all")
	f(listPath+"?q="+key[:40], listPath+"?q="+prefix) // cut short
	f(listPath+"/"+key, listPath+"/"+prefix)
	f("/settings/ai/audit-log?target="+key, "/settings/ai/audit-log?target="+prefix)
	f(listPath+"?"+key+"=1", listPath+"?"+prefix+"=1")
	if a := s.do(t, "", http.MethodGet, listPath+"?q="+key, nil); a.Header.Get("Location") != listPath+"?q="+prefix {
		t.Errorf("a stranger's key went on to %q", a.Header.Get("Location"))
	}
	page := s.do(t, id, http.MethodGet, listPath+"?q="+prefix, nil)
	if !strings.Contains(page.text(t), "The key is active; last used: never") || !strings.Contains(page.text(t), "chatbot") {
		t.Errorf("the search by prefix: %s", page.text(t))
	}
	person, raw, err := s.CreateKey(t.Context(), by, "acme", accounts.NewKey{Kind: auth.KindPerson, ID: "p1", Name: "Lin"})
	if err != nil || raw == "" {
		t.Fatal(err)
	}
	if text := s.do(t, id, http.MethodGet, listPath+"?q="+person.Prefix, nil).text(t); !strings.Contains(text, "person: Lin") {
		t.Errorf("a person's prefix: %s", text)
	}
	s.lacksSecret(t, key)
}

func TestAuditLog(t *testing.T) {
	s := newSite(t)
	s.seed(t, 0)
	id := s.session(t, "acme", auth.AllPermissions()...)
	a := s.find(t, "support-chatbot")
	scope := "Answers in English only."
	if _, err := s.UpdateAccount(t.Context(), by, "acme", a.ID, 0, accounts.AccountUpdate{IntendedScope: &scope}); err != nil {
		t.Fatal(err)
	}
	text := s.do(t, id, http.MethodGet, "/settings/ai/audit-log?target="+a.ID+"&action=service_account.updated", nil).text(t)
	for _, part := range []string{"Edited service account", "service: support-chatbot / production", "Intended scope", scope, a.IntendedScope, "ada@acme.example", "192.0.2.7 (cli)"} {
		if !strings.Contains(text, part) {
			t.Errorf("the log lacks %q", part)
		}
	}
	if strings.Contains(text, "legacy-translator") {
		t.Error("the filter lets others through")
	}
	csv := s.do(t, id, http.MethodGet, "/settings/ai/audit-log/export?format=csv&target="+a.ID, nil)
	if csv.StatusCode != http.StatusOK || strings.Count(csv.body, "\n") != 3 || !strings.Contains(csv.Header.Get("Content-Disposition"), "attachment") {
		t.Errorf("csv: %d\n%s", csv.StatusCode, csv.body)
	}
	lines := s.do(t, id, http.MethodGet, "/settings/ai/audit-log/export?format=ndjson&since=2020-01-01&until=2020-01-02", nil)
	if lines.StatusCode != http.StatusOK || lines.body != "" {
		t.Errorf("ndjson of another time: %d %q", lines.StatusCode, lines.body)
	}
	for _, bad := range []string{"?since=yesterday", "?cursor=zzz"} {
		if got := s.do(t, id, http.MethodGet, "/settings/ai/audit-log"+bad, nil); got.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %d", bad, got.StatusCode)
		}
	}
}
