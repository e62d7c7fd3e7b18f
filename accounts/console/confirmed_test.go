package console_test

import (
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp/kb"

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
	for _, want := range []string{"Deleted two / production and revoked its key; refused by 1 of 6 edges so far.", "May still accept its key: edge-2 and 4 more, until ", "edge-2, last heard of at ", "edge-6, last heard of at ", "Ask again", "Dismiss"} {
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

	// What a tab does with the cookies of before another deletion takes nothing of that away, nor does deleting one again.
	before := maps.Clone(kept)
	post(listPath+"/"+edited.ID+"/delete", url.Values{"back": {listPath}})
	s.request(t, session, before, http.MethodPost, "/revocation/dismiss", url.Values{"id": {second}})
	maps.Copy(kept, before)
	post(listPath+"/"+edited.ID+"/delete", url.Values{"back": {listPath}})
	if text := s.text(t, session, kept, listPath); strings.Count(text, "Deleted three") != 1 || strings.Count(text, "Deleted four") != 1 || strings.Contains(text, "Deleted two") {
		t.Errorf("after two tabs: %s", text)
	}
	// A live account, and one of nobody, are no deletions whatever a cookie says.
	live := s.account(t, "five", auth.Production).Account
	for _, id := range []string{live.ID, "sa_nobody"} {
		kept["sluice-pending-"+id] = &http.Cookie{Name: "sluice-pending-" + id, Value: "1"}
	}
	if text := s.text(t, session, kept, listPath); strings.Contains(text, "Deleted five") || strings.Count(text, "and revoked its key") != 2 || len(kept) != 2 {
		t.Errorf("of cookies of others: %d cookies, %s", len(kept), text)
	}

	for i := range 5 {
		report("edge-"+strconv.Itoa(2+i), now.Add(time.Hour))
	}
	// A page that is fetched for a part of it leaves them to the next whole one; the toast of an edit to.
	post(listPath+"/"+live.ID+"/edit", url.Values{"name": {"five"}, "environment": {auth.Production}, "version": {strconv.FormatInt(live.Version, 10)}, "description": {"edited"}, "abuse_detection": {"on"}})
	if text := s.part(t, session, kept, listPath); strings.Contains(text, "refused by") || strings.Contains(text, "Saved five") {
		t.Errorf("a page fetched for a part of it: %s", text)
	}
	for _, path := range []string{listPath, "/revocation/pending?back=/"} {
		text := s.text(t, session, maps.Clone(kept), path)
		for _, want := range []string{"Deleted three / production and revoked its key; refused by 6 of 6 edges.", "Deleted four / production and revoked its key; refused by 6 of 6 edges."} {
			if !strings.Contains(text, want) || strings.Contains(text, "May still accept") || strings.Contains(text, "Ask again") {
				t.Errorf("%s, when all have confirmed: %s", path, text)
			}
		}
		if path == listPath && !strings.Contains(text, "Saved five / production.") {
			t.Errorf("no toast beside it: %s", text)
		}
	}
	s.text(t, session, kept, listPath)
	if text := s.text(t, session, kept, listPath); len(kept) != 0 || strings.Contains(text, "refused by") {
		t.Errorf("on the page after that: %d cookies, %s", len(kept), text)
	}
}

// TestDeletedAccountAtTheEdges: what everybody sees of a deletion on the account's own page, and of many at once.
func TestDeletedAccountAtTheEdges(t *testing.T) {
	s := newSite(t)
	mine, hers := s.session(t, "acme", auth.SettingsIntegrationsUpdate), s.session(t, "acme", auth.SettingsIntegrationsUpdate)
	kept, none := map[string]*http.Cookie{}, map[string]*http.Cookie{}
	ago := func(d time.Duration, query, id string) {
		t.Helper()
		per := d.Milliseconds()
		if strings.Contains(query, "_us") {
			per = d.Microseconds()
		}
		if _, err := s.writer.ExecContext(t.Context(), query, per, id); err != nil {
			t.Fatal(err)
		}
	}
	for edge, applied := range map[string]time.Time{"edge-1": time.Now().Add(time.Hour), "edge-2": time.Now().Add(-time.Hour), "edge-3": time.Now().Add(-time.Hour)} {
		if err := s.ReportEdge(t.Context(), edge, applied, time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	var ids []string
	for i := range 5 {
		id := s.account(t, "job "+strconv.Itoa(i), auth.Production).Account.ID
		ids = append(ids, id)
		if _, _, err := s.DeleteAccount(t.Context(), by, "acme", id); err != nil {
			t.Fatal(err)
		}
		name := "sluice-pending-" + id
		kept[name] = &http.Cookie{Name: name, Value: strconv.FormatInt(time.Now().UnixMicro(), 10)}
	}
	page := listPath + "/" + ids[0]
	if text := s.text(t, hers, none, page); !strings.Contains(text, "its key revoked. What it sent before is kept.") || strings.Contains(text, "nothing new is accepted") {
		t.Errorf("at once, when nobody can say yet: %s", text)
	}
	ago(40*time.Second, `UPDATE service_accounts SET deleted_at = deleted_at - ? WHERE id = ?`, ids[0])
	if text := s.text(t, hers, none, page); !strings.Contains(text, "its key revoked; refused by 1 of 3 edges so far. What it sent before is kept.") || !strings.Contains(text, "edge-2 and 1 more, until ") || strings.Contains(text, "nothing new is accepted") {
		t.Errorf("a colleague sees: %s", text)
	}
	many := s.text(t, mine, kept, listPath)
	for _, want := range []string{"Deleted 5 accounts and revoked their keys, which edges may still accept until ", "Dismiss all", "Deleted job 3 / production and revoked its key; refused by 1 of 3 edges so far."} {
		if !strings.Contains(many, want) {
			t.Errorf("with five deletions, %q is not in %s", want, many)
		}
	}
	// One edge never comes back: after its time it is counted no more, and named.
	ago(2*time.Minute, `UPDATE edges SET seen_at_us = seen_at_us - ? WHERE id = ?`, "edge-3")
	ago(90*time.Second, `UPDATE service_accounts SET deleted_at = deleted_at - ? WHERE id = ?`, ids[0])
	ago(time.Hour, `UPDATE edges SET applied_at_us = applied_at_us + 2 * ? WHERE id = ?`, "edge-2")
	if text := s.text(t, hers, none, page); !strings.Contains(text, "; refused by 2 of 3 edges; edge-3, last heard of at ") || !strings.Contains(text, "never said so and can accept it no longer, since ") {
		t.Errorf("when one was given up: %s", text)
	}
	if res := s.request(t, mine, kept, http.MethodPost, "/revocation/dismiss", url.Values{"id": ids}); res.StatusCode != http.StatusSeeOther || len(kept) != 0 {
		t.Errorf("%d, and %d cookies are left", res.StatusCode, len(kept))
	}
	ago(48*time.Hour, `UPDATE service_accounts SET deleted_at = deleted_at - ? WHERE id = ?`, ids[0])
	if text := s.text(t, hers, none, page); !strings.Contains(text, "nothing new is accepted") {
		t.Errorf("two days later: %s", text)
	}
}

// text is a page as a browser with these cookies gets it, which are kept up to date.
func (s *site) text(t *testing.T, session string, jar map[string]*http.Cookie, path string) string {
	t.Helper()
	return s.request(t, session, jar, http.MethodGet, path, nil).text(t)
}

// part is a page as the script gets it that wants a part of it.
func (s *site) part(t *testing.T, session string, jar map[string]*http.Cookie, path string) string {
	t.Helper()
	return s.requestWith(t, http.Header{"Sluice-Part": {"1"}}, session, jar, http.MethodGet, path, nil).text(t)
}

func (s *site) request(t *testing.T, session string, jar map[string]*http.Cookie, method, path string, form url.Values) answer {
	t.Helper()
	return s.requestWith(t, nil, session, jar, method, path, form)
}

func (s *site) requestWith(t *testing.T, header http.Header, session string, jar map[string]*http.Cookie, method, path string, form url.Values) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.server.URL+path, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set("Sec-Fetch-Site", "same-origin")
	}
	for name, values := range header {
		req.Header[name] = values
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

// TestPendingDeletionsInABrowser: what a page shows of them changes by itself, and being dismissed it takes nothing else away.
func TestPendingDeletionsInABrowser(t *testing.T) {
	b, s := newBrowser(t), newSite(t)
	_, now, err := s.Changes(t.Context(), time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	report := func(at time.Time) {
		t.Helper()
		for _, edge := range []string{"edge-1", "edge-2"} {
			if err := s.ReportEdge(t.Context(), edge, at, 15*time.Minute); err != nil {
				t.Fatal(err)
			}
		}
	}
	report(now.Add(-time.Second))
	s.account(t, "stays", auth.Production)
	tb := b.tab(t, s, s.session(t, "acme", auth.AllPermissions()...))
	for i, name := range []string{"nightly-digest-summariser", "support-chatbot"} {
		a := s.account(t, name, auth.Production).Account
		tb.open(listPath + "?delete=" + a.ID)
		tb.click("dialog button.destroy")
		tb.wait(`document.querySelectorAll("[data-pending].warning .deletion").length === ` + strconv.Itoa(i+1))
	}
	tb.wait(`document.querySelector("[data-auto]").hidden === false`)
	for _, scheme := range []string{"light", "dark"} {
		tb.scheme(scheme)
		tb.axe("pending " + scheme)
		tb.shot("pending-" + scheme + "-1280")
		tb.size(390, 844)
		tb.holds("pending " + scheme)
		tb.shot("pending-" + scheme + "-390")
		tb.size(1280, 800)
	}
	// What was opened stays so, and what was typed stays.
	tb.open("/settings/ai/policy/edit")
	tb.click(`[data-pending] summary`)
	tb.click(`#main input[type="text"]`)
	tb.keys("a rule")
	shown := tb.eval(`document.querySelector("[data-pending] ul").innerText`)
	time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(time.Second))) // the text has seconds
	report(now.Add(-time.Second))                                             // they are heard of again, so it changes
	tb.click(`[data-ask]`)
	tb.wait(`document.querySelector("[data-pending] ul").innerText !== ` + strconv.Quote(shown))
	if got := tb.eval(`document.querySelectorAll("[data-pending] details").length + " " + document.querySelector("[data-pending] details").open`); got != "2 true" {
		t.Errorf("details, the first of them open: %s", got)
	}
	tb.click(`[data-pending] form button`)
	tb.wait(`document.querySelectorAll("[data-pending] .deletion").length === 1`)
	if got := tb.eval(`document.querySelector('#main input[type="text"]').value`); got != "a rule" {
		t.Errorf("the form holds %q", got)
	}
	// A dialog that the page fetches takes nothing of it away; then it says by itself that all have confirmed.
	tb.open(listPath)
	tb.click(`[aria-label^="Edit stays"]`)
	tb.wait(modal)
	tb.keys(kb.Escape)
	report(now.Add(time.Hour))
	tb.wait(`document.querySelector("[data-pending].success")?.innerText.includes("Deleted support-chatbot / production and revoked its key; refused by 2 of 2 edges.")`)
	tb.axe("confirmed")
	tb.shot("pending-confirmed")
	tb.open(listPath)
	if tb.eval(`document.querySelector("[data-pending]") === null`) != "true" {
		t.Error("it is shown a second time")
	}
}
