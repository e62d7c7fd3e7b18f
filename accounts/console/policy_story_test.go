package console_test

import (
	"strings"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"flowstate.inc/sluice/auth"
)

// TestPolicyStory drafts a policy by keyboard, mends what is wrong with it, and puts it in force.
func TestPolicyStory(t *testing.T) {
	b, s := newBrowser(t), newSite(t)
	tb := b.tab(t, s, s.session(t, "acme", auth.AllPermissions()...))
	tb.open("/settings/ai/policy")
	tb.keys("c")
	tb.wait(`document.activeElement.id === "r0-id"`)
	tb.do(chromedp.SendKeys(chromedp.CSS("#r0-id"), "no-pii"))
	tb.do(chromedp.SendKeys(chromedp.CSS("#r0-types"), "pii detected!, contentSafety"))
	tb.do(chromedp.SetValue(chromedp.CSS("#r0-action"), "BLOCK"))
	tb.press("#r0-types", kb.Enter)
	tb.wait(`document.querySelector("#r0-types-error")?.innerText.includes("neither a type nor a category") && document.activeElement.id === "r0-types"`)
	tb.axe("policy with errors")
	tb.do(chromedp.SetValue(chromedp.CSS("#r0-types"), "pii_detected, contentSafety"))
	tb.press(`button[value="json"]`, kb.Enter)
	tb.wait(`document.querySelector("#rules")?.value.includes('"no-pii"')`)
	tb.press(`button[value="form"]`, kb.Enter)
	tb.wait(`document.querySelector("#r0-id")?.value === "no-pii" && document.querySelector("#r0-action").value === "BLOCK"`)
	tb.press(`button[value="add"]`, kb.Enter)
	tb.wait(`document.activeElement.id === "r1-id"`)
	tb.press(`button[value="remove-1"]`, kb.Enter)
	tb.wait(`document.querySelector("#r0-id") && !document.querySelector("#r1-id")`)
	tb.press(".savebar button.primary", kb.Enter)
	tb.wait(`document.body?.innerText.includes("Difference to no policy")`)
	tb.press(".head button.primary", kb.Enter)
	tb.wait(`document.querySelector("[data-toast]")?.innerText.includes("Activated.") && document.body.innerText.includes("Version 1")`)
}

// TestWithoutScript reads, creates and sees the key with scripts switched off: the dialogs stand in the page.
func TestWithoutScript(t *testing.T) {
	b, s := newBrowser(t), newSite(t)
	s.seed(t, 0)
	tb := b.tab(t, s, s.session(t, "acme", auth.AllPermissions()...))
	if _, err := chromedp.Call(tb.ctx, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true}); err != nil {
		t.Fatal(err)
	}
	tb.open(listPath)
	tb.click("#create")
	tb.do(chromedp.SendKeys(chromedp.CSS("#f-name"), "batch-scorer"))
	tb.click(`input[value="development"]`)
	tb.shot("noscript-create")
	tb.click("dialog button.primary")
	tb.do(chromedp.WaitVisible(chromedp.CSS("#key")))
	key, err := chromedp.Run(tb.ctx, chromedp.TextContent(chromedp.CSS("#key")))
	if err != nil || !strings.HasPrefix(key, "fsk_") {
		t.Fatalf("no key: %.8q %v", key, err)
	}
	tb.shot("noscript-reveal")
	tb.click("[data-saved]")
	tb.click("[data-done]")
	tb.do(chromedp.WaitVisible(chromedp.CSS("tr[data-account]")))
	html, err := chromedp.Run(tb.ctx, chromedp.OuterHTML(chromedp.CSS("html")))
	if err != nil || strings.Contains(html, key[17:]) || !strings.Contains(html, "batch-scorer") {
		t.Errorf("after Done the page holds the key, or not the account: %v", err)
	}
	tb.click(`[aria-label="Delete batch-scorer / development"]`)
	tb.click("dialog button.destroy")
	tb.do(chromedp.WaitVisible(chromedp.CSS("[data-toast]")))
	if s.find(t, "support").Name != "support-chatbot" {
		t.Error("another account is gone")
	}
}
