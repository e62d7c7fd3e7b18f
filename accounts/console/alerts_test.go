package console_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/signals"
)

// newest is the id of the newest alert of acme.
func (s *site) newest(t *testing.T) string {
	t.Helper()
	p, err := s.signals.Alerts(t.Context(), "acme", signals.AlertFilter{Limit: 1})
	if err != nil || len(p.Items) != 1 {
		t.Fatalf("%d alerts: %v", len(p.Items), err)
	}
	return p.Items[0].Event.ID
}

func TestAlertsFilters(t *testing.T) {
	s := newSite(t)
	a, b := s.account(t, "nightly-digest-summariser", auth.Production).Account, s.account(t, "chatbot", auth.Staging).Account
	id := s.session(t, "acme", auth.AIGovernanceView)
	s.raise(t, a, "forecast_breach", signals.Budget, signals.Warn, time.Hour)
	s.raise(t, a, "pii_detected", signals.ContentSafety, signals.Block, 2*time.Hour)
	s.raise(t, b, "wasteful_prompting", signals.BrandUsage, signals.Info, 3*time.Hour)
	closed := s.raise(t, b, "secret_detected", signals.ContentSafety, signals.Warn, 4*time.Hour)
	if _, err := s.signals.Resolve(t.Context(), "acme", signals.By{Actor: "x"}, []string{closed}, signals.Escalated, "see ticket 7"); err != nil {
		t.Fatal(err)
	}
	f := func(query string, want ...string) {
		t.Helper()
		page := s.do(t, id, http.MethodGet, "/ai/alerts"+query, nil)
		var got []string
		for _, el := range page.elements(t, "a") {
			if attr(el, "class") == "row" {
				got = append(got, el.FirstChild.Data)
			}
		}
		if strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("%q: %v, want %v", query, got, want)
		}
	}
	f("", "forecast_breach", "pii_detected")
	f("?open=all", "forecast_breach", "pii_detected", "secret_detected")
	f("?severity=BLOCK,INFO,WARN", "forecast_breach", "pii_detected", "wasteful_prompting")
	f("?cat:contentSafety=1", "pii_detected")
	f("?cat:contentSafety=1&cat:budget=1&sort=type", "forecast_breach", "pii_detected")
	f("?sort=-severity", "pii_detected", "forecast_breach")
	f("?environment=staging&severity=INFO", "wasteful_prompting")
	f("?account="+b.ID+"&open=all", "secret_detected")
	f("?type=forecast_breach", "forecast_breach")
	f("?since="+url.QueryEscape(time.Now().Add(-90*time.Minute).UTC().Format(time.RFC3339)), "forecast_breach")
	f("?cat:other=1")
	for _, bad := range []string{"?severity=LOUD", "?sort=name", "?since=yesterday", "?cursor=zzz"} {
		if got := s.do(t, id, http.MethodGet, "/ai/alerts"+bad, nil); got.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %d", bad, got.StatusCode)
		}
	}
	drawer := s.do(t, id, http.MethodGet, "/ai/alerts?open=all&alert="+closed, nil)
	for _, part := range []string{"service: chatbot / staging", "Escalated", "see ticket 7", "raised as BLOCK", b.KeyPrefix, "session-7", "Reopen", "forecast_usd", "<script>alert(1)</script>"} {
		if !strings.Contains(drawer.text(t), part) {
			t.Errorf("the drawer lacks %q", part)
		}
	}
	if strings.Contains(drawer.body, `href="`+listPath) {
		t.Error("the badge leads to a page that the admin may not open")
	}
	if page := s.do(t, s.session(t, "rival", auth.AllPermissions()...), http.MethodGet, "/ai/alerts?alert="+closed, nil); page.StatusCode != http.StatusNotFound {
		t.Errorf("another org's alert: %d", page.StatusCode)
	}
	for _, path := range []string{"/ai/alerts", "/ai/alerts/new?after=2026-01-01T00:00:00Z"} {
		if got := s.do(t, s.session(t, "acme", auth.SettingsIntegrationsUpdate), http.MethodGet, path, nil); got.StatusCode != http.StatusForbidden {
			t.Errorf("%s without the permission: %d", path, got.StatusCode)
		}
	}
}

// A revoked key that is tried again: who is on call sees at once from where, and who may, all its tries.
func TestMisuseDrawer(t *testing.T) {
	s := newSite(t)
	a := s.account(t, "chatbot", auth.Production).Account
	path := "/ai/alerts?alert=" + s.raise(t, a, signals.KeyMisuseDetected, signals.Operational, signals.Warn, time.Minute)
	reader := s.do(t, s.session(t, "acme", auth.AIGovernanceView), http.MethodGet, path, nil)
	if text := reader.text(t); !strings.Contains(text, "Tried from") || !strings.Contains(text, "198.51.100.9") || strings.Contains(text, "All its refused requests") {
		t.Errorf("for a reader:\n%s", text)
	}
	admin := s.do(t, s.session(t, "acme", auth.AllPermissions()...), http.MethodGet, path, nil)
	for _, want := range []string{`href="/settings/ai/refusals?q=` + a.KeyPrefix + `"`, `href="/ai/alerts?type=key_misuse_detected"`} {
		if !strings.Contains(admin.body, want) {
			t.Errorf("the drawer lacks %s", want)
		}
	}
	other := s.do(t, s.session(t, "acme", auth.AIGovernanceView), http.MethodGet, "/ai/alerts?alert="+s.raise(t, a, "forecast_breach", signals.Budget, signals.Warn, time.Minute), nil)
	if strings.Contains(other.text(t), "Tried from") {
		t.Error("any signal is one of a revoked key")
	}
}

func TestResolveAndUndo(t *testing.T) {
	s := newSite(t)
	a := s.account(t, "chatbot", auth.Production).Account
	id := s.session(t, "acme", auth.AIGovernanceView)
	ids := []string{s.raise(t, a, "pii_detected", signals.ContentSafety, signals.Warn, time.Hour), s.raise(t, a, "forecast_breach", signals.Budget, signals.Warn, time.Hour)}
	back := "/ai/alerts?sort=type"
	done := s.do(t, id, http.MethodPost, "/ai/alerts/resolve", url.Values{"ids": ids, "resolution": {"false_positive"}, "note": {"a test"}, "back": {back}})
	if done.StatusCode != http.StatusSeeOther || done.Header.Get("Location") != back {
		t.Fatalf("resolve: %d to %q", done.StatusCode, done.Header.Get("Location"))
	}
	alert, err := s.signals.Alert(t.Context(), "acme", ids[0])
	if err != nil || alert.Resolution != signals.FalsePositive || alert.Note != "a test" || alert.ResolvedBy != "grace@acme.example" {
		t.Errorf("resolved as %+v: %v", alert, err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.server.URL+back, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.AddCookie(&http.Cookie{Name: "sluice-session", Value: id})
	for _, c := range done.Cookies() {
		req.AddCookie(c)
	}
	page := s.send(t, req)
	if !strings.Contains(page.text(t), "Closed 2 signals as false positive. Undo") {
		t.Errorf("no way back: %s", page.text(t))
	}
	if got := s.do(t, id, http.MethodPost, "/ai/alerts/reopen", url.Values{"ids": ids, "back": {"//evil.example"}}); got.Header.Get("Location") != "/ai/alerts" {
		t.Errorf("reopen: %d to %q", got.StatusCode, got.Header.Get("Location"))
	}
	if alert, err := s.signals.Alert(t.Context(), "acme", ids[1]); err != nil || !alert.Open() {
		t.Errorf("not reopened: %v", err)
	}
	for form, want := range map[*url.Values]int{
		{"ids": ids, "resolution": {"done"}}:                     http.StatusBadRequest,
		{"ids": {"sig_nothing"}, "resolution": {"acknowledged"}}: http.StatusNotFound,
		{"resolution": {"acknowledged"}}:                         http.StatusSeeOther,
		{"ids": {"a\x00b"}, "resolution": {"acknowledged"}}:      http.StatusNotFound,
	} {
		if got := s.do(t, id, http.MethodPost, "/ai/alerts/resolve", *form); got.StatusCode != want {
			t.Errorf("%v: %d, want %d", *form, got.StatusCode, want)
		}
	}
	rival := s.session(t, "rival", auth.AllPermissions()...)
	if got := s.do(t, rival, http.MethodPost, "/ai/alerts/resolve", url.Values{"ids": ids, "resolution": {"escalated"}}); got.StatusCode != http.StatusNotFound {
		t.Errorf("another org resolved it: %d", got.StatusCode)
	}
}

func TestArrivals(t *testing.T) {
	s := newSite(t)
	a := s.account(t, "chatbot", auth.Production).Account
	id := s.session(t, "acme", auth.AIGovernanceView)
	after := url.QueryEscape(time.Now().Add(-time.Second).UTC().Format(time.RFC3339Nano))
	s.raise(t, a, "pii_detected", signals.ContentSafety, signals.Warn, 0)
	s.raise(t, a, "wasteful_prompting", signals.BrandUsage, signals.Info, 0)
	f := func(query string, want int) {
		t.Helper()
		var got struct {
			New            int
			Unacknowledged string
		}
		page := s.do(t, id, http.MethodGet, "/ai/alerts/new?after="+after+query, nil)
		if err := json.Unmarshal([]byte(page.body), &got); err != nil || got.New != want || got.Unacknowledged != "1" {
			t.Errorf("%q: %d %s, want %d new", query, page.StatusCode, page.body, want)
		}
	}
	f("", 1)
	f("&severity=INFO,WARN", 2)
	f("&cat:budget=1", 0)
	f("&environment=staging", 0)
	f("&account="+a.ID, 1)
}

// TestArrivalsOutliveABurst has more arrive at once than one question to the store takes: what comes after must be told of too.
func TestArrivalsOutliveABurst(t *testing.T) {
	s := newSite(t)
	a := s.account(t, "chatbot", auth.Production).Account
	id := s.session(t, "acme", auth.AIGovernanceView)
	after := url.QueryEscape(time.Now().Add(-time.Second).UTC().Format(time.RFC3339Nano))
	const burst = 1500
	batch := make([]signals.Received, burst)
	for i := range batch {
		batch[i] = received(t, a, "pii_detected", signals.ContentSafety, signals.Warn, 0)
	}
	if n, err := s.signals.Put(t.Context(), batch); err != nil || n != burst {
		t.Fatalf("stored %d: %v", n, err)
	}
	for want := burst; want < burst+3; want++ {
		s.do(t, id, http.MethodGet, "/ai/alerts", nil) // asks the store at once
		if got := s.do(t, id, http.MethodGet, "/ai/alerts/new?after="+after, nil); !strings.HasPrefix(got.body, fmt.Sprintf(`{"new":%d,`, want)) {
			t.Errorf("%s, want %d new", got.body, want)
		}
		s.raise(t, a, "pii_detected", signals.ContentSafety, signals.Warn, 0)
	}
}

// TestAlertsStory is the inbox in a real browser: a signal arrives by itself, shows its badge, and is resolved and taken back.
func TestAlertsStory(t *testing.T) {
	b, s := newBrowser(t), newSite(t)
	a := s.account(t, "nightly-digest-summariser", auth.Production).Account
	tb := b.tab(t, s, s.session(t, "acme", auth.AllPermissions()...))
	tb.open("/ai/alerts?cat:budget=1")
	if !strings.Contains(tb.visible(), "No signal matches") {
		t.Error("no empty state")
	}
	id := s.raise(t, a, "forecast_breach", signals.Budget, signals.Warn, 0)
	tb.wait(`document.querySelector("a.row")?.innerText === "forecast_breach"`)
	tb.wait(`document.querySelector(".side .count")?.innerText.startsWith("1")`)

	// While one reads, what arrives is announced and moves nothing.
	tb.keys("j")
	tb.wait(`document.activeElement.matches("a.row")`)
	s.raise(t, a, "forecast_breach", signals.Budget, signals.Block, 0)
	tb.wait(`document.querySelector("[data-arrivals]")?.innerText.includes("1 new signal")`)
	if tb.eval(`document.querySelectorAll("a.row").length`) != "1" {
		t.Error("what arrived moved the list")
	}
	tb.shot("alerts-arrival")
	tb.click("[data-arrivals] button")
	tb.wait(`document.querySelectorAll("a.row").length === 2`)

	tb.click(`tr[data-alert="` + id + `"] a.row`)
	tb.wait(modal + ` && document.querySelector("dialog.drawer").innerText.includes("service: nightly-digest-summariser / production")`)
	if got := tb.eval(`document.querySelector("dialog.drawer .badge a").getAttribute("href")`); got != listPath+"/"+a.ID {
		t.Errorf("the badge leads to %q", got)
	}
	tb.axe("drawer")
	tb.do(chromedp.SendKeys(chromedp.CSS("#note"), "a known peak"))
	tb.click(`dialog button[value="acknowledged"]`)
	tb.wait(`document.querySelector("[data-toast]")?.innerText.includes("Acknowledged the signal.")`)
	if got := tb.eval(`document.querySelectorAll("a.row").length + location.search`); got != "1?cat%3Abudget=1" {
		t.Errorf("after resolving: %s", got)
	}
	tb.keys("u")
	tb.wait(`document.querySelector("[data-toast]")?.innerText.includes("Reopened") && document.querySelectorAll("a.row").length === 2`)

	// By keyboard alone: the row, acknowledged; the focus stays in the list.
	tb.keys("j")
	tb.keys("j")
	tb.keys("k")
	tb.keys("e")
	tb.wait(`document.querySelectorAll("a.row").length === 1 && document.activeElement.matches("a.row")`)
	tb.keys(kb.Enter)
	tb.wait(modal)
	tb.keys("e")
	tb.wait(`document.querySelectorAll("a.row").length === 0 && !document.querySelector("dialog[open]")`)
	tb.do(chromedp.Reload())
	tb.wait(`document.body?.innerText.includes("No signal matches") && location.search.includes("cat%3Abudget")`)

	// In another order it is announced, and stands in its place when asked for.
	tb.open("/ai/alerts?open=all&sort=type&account=" + a.ID)
	tb.wait(`document.querySelectorAll("a.row").length === 2`)
	if got := tb.eval(`document.querySelector(".chips .badge").innerText`); !strings.Contains(got, "nightly-digest-summariser") || !strings.Contains(got, "production") {
		t.Errorf("the filter of an account is called %q", got)
	}
	s.raise(t, a, "agent_loop", signals.Operational, signals.Warn, 0)
	tb.wait(`document.querySelector("[data-arrivals] button")?.innerText.includes("1 new signal")`)
	if got := tb.eval(`document.querySelectorAll("a.row").length`); got != "2" {
		t.Errorf("what arrived moved the list: %s rows", got)
	}
	tb.click("[data-arrivals] button")
	tb.wait(`document.querySelector("a.row").innerText === "agent_loop"`)
	tb.click(`tbody tr:nth-child(1) a.row`)
	tb.wait(modal)
	tb.click(`dialog button[value="acknowledged"]`)
	tb.wait(`document.querySelector("[data-toast]")?.innerText.includes("Acknowledged")`)

	// Bulk, with one note, taken back and done again.
	tb.open("/ai/alerts?open=all&type=forecast_breach,pii_detected")
	tb.wait(`document.querySelectorAll("a.row").length === 2`)
	s.raise(t, a, "pii_detected", signals.ContentSafety, signals.Warn, 0)
	s.raise(t, a, "pii_detected", signals.ContentSafety, signals.Warn, 0)
	tb.wait(`document.querySelectorAll("a.row").length === 4`)
	tb.click("tbody tr:nth-child(1) .pick-box")
	tb.click("tbody tr:nth-child(2) .pick-box")
	tb.wait(`getComputedStyle(document.querySelector(".bulk")).display === "flex"`)
	tb.axe("bulk")
	tb.shot("alerts-bulk")
	tb.do(chromedp.SendKeys(chromedp.CSS("#bulk-note"), "for the privacy desk"))
	picked := strings.Fields(tb.eval(`[...document.querySelectorAll("input[name=ids]:checked")].map((box) => box.value).join(" ")`))
	tb.click(`.bulk button[value="escalated"]`)
	tb.wait(`document.querySelector("[data-toast]")?.innerText.includes("Escalated 2 signals.")`)
	stand := func(resolution signals.Resolution, note string) {
		t.Helper()
		if len(picked) != 2 {
			t.Fatalf("picked %q", picked)
		}
		for _, id := range picked {
			if got, err := s.signals.Alert(t.Context(), "acme", id); err != nil || got.Resolution != resolution || got.Note != note {
				t.Errorf("%s stands as %q, note %q: %v", id, got.Resolution, got.Note, err)
			}
		}
	}
	stand(signals.Escalated, "for the privacy desk")
	tb.click(`[data-toast] button`)
	tb.wait(`document.querySelector("[data-toast]")?.innerText.includes("Reopened 2 signals.")`)
	stand("", "")
	// What a colleague has said of one meanwhile stays.
	for _, id := range picked {
		tb.click(`tr[data-alert="` + id + `"] .pick-box`)
	}
	if _, err := s.signals.Resolve(t.Context(), "acme", signals.By{Actor: "colleague@acme.example"}, picked[:1], signals.Escalated, "mine"); err != nil {
		t.Fatal(err)
	}
	tb.click(`.bulk button[value="acknowledged"]`)
	tb.wait(`document.querySelector("[data-toast]")?.innerText.includes("Acknowledged the signal; 1 more has been resolved already and stays as it is.")`)
	if got, err := s.signals.Alert(t.Context(), "acme", picked[0]); err != nil || got.Resolution != signals.Escalated || got.Note != "mine" {
		t.Errorf("the colleague's: %+v, %v", got, err)
	}
	// Those that are resolved can be reopened together.
	for _, id := range picked {
		tb.click(`tr[data-alert="` + id + `"] .pick-box`)
	}
	tb.shot("alerts-bulk-reopen")
	tb.click(`.bulk button[formaction]`)
	tb.wait(`document.querySelector("[data-toast]")?.innerText.includes("Reopened 2 signals.")`)
	stand("", "")

	// The trail has them all.
	tb.open(listPath + "/" + a.ID)
	if got := tb.eval(`[...document.querySelectorAll("#trail-title")].length + document.body.innerText.match(/forecast_breach/g).length`); got != "3" {
		t.Errorf("the trail shows %s", got)
	}
}
