package main

import (
	"context"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// liveWithin is how soon a signal that was accepted stands on a page that is open.
const liveWithin = 2 * time.Second

// TestSignalReachesWhoHasToAct is the whole way in one story: a workload sends with its key, and a person with a browser sees whose signal it is, also
// after the account was edited and deleted, and settles it.
func TestSignalReachesWhoHasToAct(t *testing.T) {
	t.Run("dev", func(t *testing.T) {
		pg := newPage(t)
		g := onDev(t).start(t, "dev")
		pg.open(g.Link)
		pg.click(`form[action="/sign-in/once"] button`)
		pg.wait(10*time.Second, `location.pathname !== "/sign-in/once"`)
		signalReachesWhoHasToAct(t, pg, g)
	})
	t.Run("servers", func(t *testing.T) {
		pg := newPage(t)
		p := onServers(t)
		p.must(t, nil, "migrate", "--partitions=2")
		p.must(t, nil, "orgs", "create", "acme")
		g := p.start(t, "serve")
		var made struct {
			Account struct {
				ID string `json:"id"`
			} `json:"account"`
			Key string `json:"key"`
		}
		p.must(t, &made, "accounts", "create", "--name=nightly-digest-summariser", "--environment=production", "--intended-scope=Summarises the day's internal news.", "--json")
		var token struct {
			Token string `json:"token"`
		}
		p.must(t, &token, "tokens", "create", "--permission=SETTINGS_INTEGRATIONS_UPDATE,AI_GOVERNANCE_VIEW", "--json")
		g.Account, g.Key, g.Token = made.Account.ID, made.Key, token.Token
		pg.open(g.Admin + "/sign-in")
		pg.do(chromedp.SendKeys(chromedp.CSS("#token"), g.Token))
		pg.click(`form[action="/sign-in"] button`)
		pg.wait(10*time.Second, `location.pathname !== "/sign-in"`)
		signalReachesWhoHasToAct(t, pg, g)
	})
}

// signalReachesWhoHasToAct is the story, for somebody who has signed in and the account nightly-digest-summariser in production.
func signalReachesWhoHasToAct(t *testing.T, pg *onePage, g *program) {
	client := newClient(nil)
	call := func(method, target, body string, header ...string) reply {
		t.Helper()
		got, err := send(t.Context(), client, method, target, body, header...)
		if err != nil || got.status != http.StatusOK {
			t.Fatalf("%s %s: %d %s %v", method, target, got.status, got.body, err)
		}
		return got
	}
	account, admin := g.Admin+"/api/v1/service-accounts/"+g.Account, "Bearer "+g.Token
	scope := call(http.MethodGet, account, "", "Authorization", admin).member("intended_scope")
	if scope == "" {
		t.Fatal("the account has no scope")
	}

	const filters = "/ai/alerts?cat%3Abudget=1&environment=production&severity=BLOCK%2CINFO%2CWARN"
	pg.open(g.Admin + filters)
	pg.wait(10*time.Second, `document.body.innerText.includes("No signal matches")`)
	pg.mark()
	got := call(http.MethodPost, g.Edge+"/v1/signals", `[{"type":"forecast_breach","id":"breach-1","details":{"forecast_usd":600}},{"type":"personal_use_company_account","id":"private-1"}]`,
		"x-flowstate-key", g.Key)
	if !strings.Contains(string(got.body), `"accepted":1`) || !strings.Contains(string(got.body), `"reason":"applies_to_persons_only"`) {
		t.Errorf("the edge says %s", got.body)
	}
	pg.wait(liveWithin, `document.querySelector("a.row")?.innerText === "forecast_breach"`)
	if !pg.marked() {
		t.Error("the page was loaded anew: the signal did not arrive by itself")
	}

	drawer := func(when, scope string) {
		t.Helper()
		const text = `document.querySelector("dialog.drawer")?.innerText`
		pg.wait(10*time.Second, text+`?.includes("service: nightly-digest-summariser / production")`)
		said := pg.text(text)
		badge := pg.text(`document.querySelector("dialog.drawer .badge").innerText`)
		if !strings.Contains(badge, "nightly-digest-summariser") || !strings.Contains(strings.ToLower(badge), "production") || strings.Contains(strings.ToLower(said), "nobody") {
			t.Errorf("%s, the badge is %q: %s", when, badge, said)
		}
		if !strings.Contains(said, scope) || strings.Contains(said, "Anything at all.") {
			t.Errorf("%s, the scope is not as it stood: %s", when, said)
		}
	}
	pg.click("a.row")
	drawer("at first", scope)
	call(http.MethodPatch, account, `{"intended_scope":"Anything at all."}`, "Authorization", admin)
	pg.do(chromedp.Reload())
	drawer("after an edit", scope)

	pg.open(g.Admin + "/settings/ai/service-accounts/" + g.Account)
	if !until(10*time.Second, nil, func() bool { // edges count what they dropped every few seconds
		pg.do(chromedp.Reload())
		return strings.Contains(pg.text(`document.body.innerText`), "personal_use_company_account")
	}) {
		t.Error("what the filter dropped stands nowhere")
	}
	trail := strings.Join(strings.Fields(pg.text(`document.querySelector("section[aria-labelledby=trail-title]").innerText`)), " ")
	for _, part := range []string{"forecast_breach", "personal_use_company_account", "1 × makes sense for people only", "open"} {
		if !strings.Contains(trail, part) {
			t.Errorf("the trail lacks %q: %s", part, trail)
		}
	}

	pg.open(g.Admin + filters)
	pg.click("a.row")
	drawer("to resolve it", scope)
	pg.click(`dialog button[value="acknowledged"]`)
	pg.wait(10*time.Second, `document.querySelectorAll("a.row").length === 0 && !document.querySelector("dialog[open]")`)
	pg.do(chromedp.Reload())
	pg.wait(10*time.Second, `document.readyState === "complete" && document.body.innerText.includes("No signal matches")`)
	if at := pg.text(`location.pathname + location.search`); at != filters {
		t.Errorf("after resolving and a reload the address is %s, want %s", at, filters)
	}

	call(http.MethodDelete, account, "", "Authorization", admin)
	pg.open(g.Admin + filters + "&open=all")
	pg.click("a.row")
	drawer("of a deleted account", scope)
}

// A onePage is one tab of a real browser.
type onePage struct {
	*testing.T
	ctx context.Context
}

// newPage starts the Chromium that SLUICE_CHROMIUM names.
func newPage(t *testing.T) *onePage {
	t.Helper()
	path := os.Getenv("SLUICE_CHROMIUM")
	if path == "" {
		if os.Getenv("SLUICE_REQUIRE_SERVICES") == "1" {
			t.Fatal("SLUICE_CHROMIUM is not set")
		}
		t.Skip("SLUICE_CHROMIUM names no browser")
	}
	alloc, stop := chromedp.NewExecAllocator(context.Background(), chromedp.ExecPath(path), chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.NoFirstRun, chromedp.Flag("disable-dev-shm-usage", true), chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"))
	t.Cleanup(stop)
	ctx, end := chromedp.NewContext(alloc)
	t.Cleanup(end)
	if err := chromedp.Do(ctx); err != nil { // no deadline here: it would end the browser
		t.Fatal(err)
	}
	return &onePage{T: t, ctx: ctx}
}

func (pg *onePage) do(actions ...chromedp.Action[chromedp.Void]) {
	pg.Helper()
	ctx, cancel := context.WithTimeout(pg.ctx, 20*time.Second)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		pg.Fatal(err)
	}
}

func (pg *onePage) open(address string) { pg.Helper(); pg.do(chromedp.Navigate(address)) }

func (pg *onePage) click(sel string) {
	pg.Helper()
	pg.do(chromedp.Click(chromedp.CSS(sel), chromedp.NodeVisible))
}

// wait waits until a JavaScript expression is true, no longer than it may take.
func (pg *onePage) wait(limit time.Duration, expression string) {
	pg.Helper()
	if !until(limit, pg.ctx.Done(), func() bool { // a page that is being left cannot answer
		ok, err := chromedp.Run(pg.ctx, chromedp.Evaluate[bool]("!!("+expression+")"))
		return err == nil && ok
	}) {
		pg.Fatalf("not true within %v: %s\n%s", limit, expression, pg.text(`location.href + "\n" + document.body.innerText.slice(0, 2000)`))
	}
}

func (pg *onePage) text(expression string) string {
	pg.Helper()
	s, err := chromedp.Run(pg.ctx, chromedp.Evaluate[string]("String("+expression+")"))
	if err != nil {
		pg.Fatalf("%s: %v", expression, err)
	}
	return s
}

// mark leaves something that a new load of the page would not have.
func (pg *onePage) mark() { pg.Helper(); pg.text(`window.marked = true`) }

func (pg *onePage) marked() bool { pg.Helper(); return pg.text(`window.marked`) == "true" }
