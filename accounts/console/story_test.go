package console_test

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"flowstate.inc/sluice/auth"
)

// modal is true while a dialog of the page is open and in front.
const modal = `document.querySelector("#overlay dialog:modal")`

// key reads the raw key of the reveal.
func (tb *tab) key() string {
	tb.Helper()
	tb.wait(`document.querySelector("#key")`)
	key := tb.eval(`document.querySelector("#key").textContent`)
	if !regexp.MustCompile("^" + auth.KeyPattern + "$").MatchString(key) {
		tb.Fatalf("no key is revealed: %.20q", key)
	}
	return key
}

// lacks fails if the page holds the secret part of the key anywhere: text, attributes, what forms hold, or its address.
func (tb *tab) lacks(key, when string) {
	tb.Helper()
	secret := key[17:]
	tb.wait(`document.documentElement && document.readyState === "complete"`) // going back may still be on its way
	if got := tb.eval(`document.documentElement.outerHTML + [...document.querySelectorAll("input, textarea")].map(e => e.value).join() + location.href`); strings.Contains(got, secret) {
		tb.Errorf("%s: the page holds the key", when)
	}
	for _, address := range tb.seen() {
		if strings.Contains(address, secret) {
			tb.Errorf("%s: the address %s holds the key", when, address)
		}
	}
}

// TestStoryByMouse does every sentence of the page with the mouse: empty state, create, reveal once, find, edit, delete.
func TestStoryByMouse(t *testing.T) {
	b, s := newBrowser(t), newSite(t)
	tb := b.tab(t, s, s.session(t, "acme", auth.AllPermissions()...))
	tb.open(listPath)
	if !strings.Contains(tb.visible(), "Production AI calls aren’t people") {
		t.Fatal("no empty state")
	}
	tb.click(".empty a.button")
	tb.wait(modal + ` && location.search.includes("create=1")`)

	// Errors stand beside the field, and what was typed survives.
	tb.do(chromedp.SendKeys(chromedp.CSS("#f-description"), "Summarises the day's news."))
	tb.click("dialog button.primary")
	tb.wait(`document.querySelector("#f-name-error")`)
	tb.axe("create with errors")
	tb.shot("create-errors")
	if got := tb.eval(`document.querySelector("#f-description").value + "|" + document.activeElement.id`); got != "Summarises the day's news.|f-name" {
		t.Errorf("after an error: %q", got)
	}
	tb.do(chromedp.SendKeys(chromedp.CSS("#f-name"), "nightly-digest-summariser"))
	tb.click(`input[value="production"]`)
	tb.do(chromedp.SendKeys(chromedp.CSS("#f-scope"), "Summarises internal news."))
	tb.click("dialog button.primary")
	key := tb.key()
	tb.wait(modal)
	tb.axe("reveal")
	for _, scheme := range []string{"light", "dark"} {
		tb.scheme(scheme)
		tb.shot("reveal-" + scheme + "-1280")
		tb.size(390, 844)
		tb.shot("reveal-" + scheme + "-390")
		tb.holds("reveal " + scheme)
		tb.size(1280, 800)
	}
	for i, part := range []string{"OTEL_EXPORTER_OTLP_HEADERS", "CLAUDE_CODE_ENABLE_TELEMETRY=1", "--fail-with-body", "kind: Secret"} {
		tb.click(".tabs label:nth-child(" + string(rune('1'+i)) + ")")
		tb.wait(`document.querySelector("dialog").innerText.includes("` + part + `")`)
	}

	// A click outside does nothing; Escape asks; Done is not armed.
	tb.do(chromedp.MouseClickXY(5, 5))
	tb.wait(modal)
	tb.keys(kb.Escape)
	tb.wait(`document.querySelector("#reveal-ask").open`)
	tb.axe("reveal asks")
	tb.shot("reveal-ask")
	tb.click("#reveal-ask [data-close]")
	tb.wait(`!document.querySelector("#reveal-ask").open`)
	tb.click("[data-done]")
	tb.wait(modal + ` && document.activeElement.matches("[data-saved]")`)

	// The first event turns the line below the key, live.
	if err := s.Stamp(t.Context(), []auth.Stamp{{Prefix: key[:16], First: time.Now(), Last: time.Now()}}); err != nil {
		t.Fatal(err)
	}
	tb.wait(`document.querySelector(".waiting.arrived").innerText.includes("First event received")`)
	tb.shot("reveal-arrived")
	tb.click("[data-saved]")
	tb.click("[data-done]")
	tb.wait(`!document.querySelector("dialog[open]")`)
	tb.lacks(key, "after Done")
	if got := tb.eval("location.pathname + location.search"); got != listPath {
		t.Errorf("after Done: %s", got)
	}

	// Neither a reload nor going back nor forward shows it again.
	tb.do(chromedp.Reload())
	tb.wait(`document.querySelector("[data-account]")`)
	tb.lacks(key, "after a reload")
	tb.travel(-1)
	tb.lacks(key, "after going back")
	tb.travel(1)
	tb.lacks(key, "after going forward")

	// Found by its prefix; the whole key pasted is cut before it leaves the page.
	tb.open(listPath)
	tb.click("#q")
	tb.do(chromedp.Evaluate[chromedp.Void](`document.execCommand("insertText", false, "x-flowstate-key: ` + key + `"); undefined`))
	if got := tb.eval(`document.querySelector("#q").value`); got != "x-flowstate-key: "+key[:16] {
		t.Errorf("the search holds %q", got)
	}
	tb.do(chromedp.SendKeys(chromedp.CSS("#q"), kb.Enter))
	tb.wait(`location.search.includes("` + key[:16] + `") && document.body.innerText.includes("The key is active")`)
	tb.lacks(key, "after the search")

	// Edit in the drawer; the list below keeps its place, and the focus returns.
	tb.click(`[aria-label^="Edit "]`)
	tb.wait(modal + ` && document.querySelector("dialog.drawer")`)
	tb.keys(kb.Escape)
	tb.wait(`!document.querySelector("#overlay dialog") && document.activeElement.ariaLabel === "Edit nightly-digest-summariser / production"`)
	tb.click(`[aria-label^="Edit "]`)
	tb.wait(modal)
	tb.click(`dialog input[value="staging"]`)
	tb.click("dialog button.primary")
	tb.wait(`document.querySelector("[data-toast]")?.innerText.includes("Saved nightly-digest-summariser / staging")`)
	tb.shot("toast")
	tb.axe("toast")
	if got := s.find(t, "nightly").Environment; got != auth.Staging {
		t.Errorf("environment %s", got)
	}

	// Delete: the confirmation names it; afterwards its prefix is found, marked as deleted.
	tb.click(`[aria-label^="Delete "]`)
	tb.wait(modal + ` && document.activeElement.innerText === "Keep it"`)
	if !strings.Contains(tb.visible(), "Delete nightly-digest-summariser / staging?") {
		t.Error("the confirmation does not name the account")
	}
	tb.click("dialog button.destroy")
	tb.wait(`document.querySelector("[data-toast]")?.innerText.includes("Deleted nightly-digest-summariser / staging and revoked its key")`)
	tb.wait(`document.body.innerText.includes("The key was revoked")`)
	tb.open(listPath)
	if !strings.Contains(tb.visible(), "No live service accounts") {
		t.Error("no empty state after the last account is deleted")
	}
	tb.click(".empty a.button")
	tb.wait(`document.querySelector("tr.deleted")`)
	tb.click(`[aria-label^="Recreate "]`)
	tb.wait(modal + ` && document.querySelector("#f-name").value === "nightly-digest-summariser"`)
	s.lacksSecret(t, key)
}

// press goes with Tab to the element that the selector names, and presses Enter (or another key) on it.
func (tb *tab) press(sel, key string) {
	tb.Helper()
	for range 80 {
		if tb.eval(`document.activeElement.matches('`+sel+`')`) == "true" {
			if tb.eval(`(() => { const s = getComputedStyle(document.activeElement); const row = document.activeElement.closest("tr"); return s.outlineStyle !== "none" || (row && getComputedStyle(row).outlineStyle !== "none") || document.activeElement.closest("label") !== null })()`) != "true" {
				tb.Errorf("the focus on %s is not visible", sel)
			}
			if key != "" {
				tb.keys(key)
			}
			return
		}
		tb.keys(kb.Tab)
	}
	tb.dump()
	tb.Fatalf("Tab never reaches %s", sel)
}

// TestStoryByKeyboard does the same without a mouse.
func TestStoryByKeyboard(t *testing.T) {
	b, s := newBrowser(t), newSite(t)
	tb := b.tab(t, s, s.session(t, "acme", auth.AllPermissions()...))
	tb.open(listPath)
	tb.press("a.skip", kb.Enter)
	tb.wait(`document.activeElement.id === "main"`)
	tb.keys("c")
	tb.wait(modal + ` && document.activeElement.id === "f-name"`)
	tb.keys("nightly-digest-summariser")
	tb.press(`input[name="environment"]`, " ")
	tb.keys(kb.ArrowRight)
	tb.wait(`document.querySelector('input[value="staging"]').checked`)
	tb.press("#f-scope", "")
	tb.keys("Summarises internal news.")
	tb.press("dialog button.primary", kb.Enter)
	key := tb.key()
	tb.wait(modal)
	for range 25 { // the focus stays within the dialog
		tb.keys(kb.Tab)
		if tb.eval(`document.activeElement === document.body || !!document.activeElement.closest("dialog")`) != "true" {
			tb.dump()
			t.Fatal("Tab leaves the reveal")
		}
	}
	tb.press(`.tabs input`, kb.ArrowRight)
	tb.wait(`document.querySelector("#tab-1").checked`)
	tb.keys(kb.Escape)
	tb.wait(`document.querySelector("#reveal-ask").open && document.activeElement.matches("#reveal-ask [data-close]")`)
	tb.keys(kb.Escape) // is "go back to the key"
	tb.wait(`!document.querySelector("#reveal-ask").open && ` + modal)
	tb.keys(kb.Escape)
	tb.wait(`document.querySelector("#reveal-ask").open`)
	tb.keys(kb.Enter)
	tb.wait(`!document.querySelector("#reveal-ask").open && ` + modal)
	tb.press("[data-saved]", " ")
	tb.press("[data-done]", kb.Enter)
	tb.wait(`!document.querySelector("dialog[open]") && document.activeElement.closest("[data-account]")`)
	tb.lacks(key, "after Done")

	tb.keys("/")
	tb.wait(`document.activeElement.id === "q"`)
	tb.keys(key)
	tb.keys(kb.Enter)
	tb.wait(`document.body.innerText.includes("The key is active")`)
	tb.lacks(key, "after the search")
	tb.press(`[aria-label^="Edit "]`, kb.Enter)
	tb.wait(modal + ` && document.activeElement.id === "f-name"`)
	tb.press("#f-team", "")
	tb.keys("platform")
	tb.keys(kb.Enter)
	tb.wait(`document.querySelector("[data-toast]")?.innerText.includes("Saved")`)
	if got := s.find(t, "nightly").Team; got != "platform" {
		t.Errorf("team %q", got)
	}
	tb.press("details.menu summary", kb.Enter)
	tb.wait(`document.querySelector("details.menu[open]")`)
	tb.shot("menu")
	tb.keys(kb.Escape)
	tb.wait(`!document.querySelector("details.menu[open]") && document.activeElement.matches("summary")`)
	tb.press(`[aria-label^="Delete "]`, kb.Enter)
	tb.wait(modal + ` && document.activeElement.innerText === "Keep it"`)
	tb.keys(kb.Enter)
	tb.wait(`!document.querySelector("#overlay dialog") && document.activeElement.ariaLabel?.startsWith("Delete ")`)
	tb.keys(kb.Enter)
	tb.wait(modal)
	tb.press("dialog button.destroy", kb.Enter)
	tb.wait(`document.querySelector("[data-toast]")?.innerText.includes("revoked its key")`)

	// Single-key shortcuts can be switched off, and stay off.
	tb.keys("?")
	tb.wait(`document.querySelector("#shortcuts").open`)
	tb.axe("shortcuts")
	tb.press("#shortcuts-on", " ")
	tb.keys(kb.Escape)
	tb.wait(`!document.querySelector("#shortcuts").open`)
	tb.open(listPath + "?state=all")
	tb.keys("/")
	tb.wait(`document.activeElement.id !== "q"`)
	s.lacksSecret(t, key)
}

// TestRevealWarns leaves the reveal by a reload before it was saved: the browser asks, and the key is not there after.
func TestRevealWarns(t *testing.T) {
	b, s := newBrowser(t), newSite(t)
	tb := b.tab(t, s, s.session(t, "acme", auth.AllPermissions()...))
	tb.open(listPath + "?create=1")
	tb.wait(modal)
	tb.do(chromedp.SendKeys(chromedp.CSS("#f-name"), "chatbot"))
	tb.click(`input[value="production"]`)
	tb.click("dialog button.primary")
	key := tb.key()
	tb.wait(modal)
	tb.click("#dialog-title") // a page that was not touched may not ask
	asked := tb.acceptDialogs()
	tb.do(chromedp.Evaluate[chromedp.Void](`setTimeout(() => location.reload()); undefined`))
	tb.wait(`document.querySelector("[data-account]") && !document.querySelector("dialog[open]")`)
	if asked() != 1 {
		t.Errorf("the browser asked %d times", asked())
	}
	tb.lacks(key, "after leaving")
}

// TestPostsOnce presses the button of a slow form twice.
func TestPostsOnce(t *testing.T) {
	b, s := newBrowser(t), newSite(t)
	tb := b.tab(t, s, s.session(t, "acme", auth.AllPermissions()...))
	tb.open(listPath + "?create=1")
	tb.wait(modal)
	tb.do(chromedp.SendKeys(chromedp.CSS("#f-name"), "chatbot"))
	tb.click(`input[value="production"]`)
	tb.do(chromedp.Evaluate[chromedp.Void](`document.querySelector("dialog button.primary").click(); document.querySelector("dialog button.primary").click(); undefined`))
	tb.key()
	page, err := s.Accounts(t.Context(), "acme", filterAll)
	if err != nil || len(page.Items) != 1 {
		t.Errorf("%d accounts: %v", len(page.Items), err)
	}
}
