package console_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// A browser is one Chromium; its tabs share nothing.
type browser struct{ ctx context.Context }

// newBrowser starts the Chromium that SLUICE_CHROMIUM names. Without it the browser tests are not run, or fail where
// SLUICE_REQUIRE_SERVICES=1 says that everything must be there.
func newBrowser(t *testing.T) *browser {
	t.Helper()
	path := os.Getenv("SLUICE_CHROMIUM")
	if path == "" {
		if os.Getenv("SLUICE_REQUIRE_SERVICES") == "1" {
			t.Fatal("SLUICE_CHROMIUM is not set")
		}
		t.Skip("SLUICE_CHROMIUM names no browser")
	}
	profile, err := os.MkdirTemp("", "sluice-chromium-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// Chromium's last processes may still write as it ends.
		deadline := time.Now().Add(10 * time.Second)
		for os.RemoveAll(profile) != nil && time.Now().Before(deadline) {
			<-time.After(50 * time.Millisecond)
		}
	})
	alloc, stop := chromedp.NewExecAllocator(context.Background(), chromedp.ExecPath(path), chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.NoFirstRun, chromedp.UserDataDir(profile), chromedp.Flag("disable-quic", true), chromedp.Flag("disable-dev-shm-usage", true),
		chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-sync", true),
		chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"))
	t.Cleanup(stop)
	ctx, end := chromedp.NewContext(alloc)
	t.Cleanup(end)
	if err := chromedp.Do(ctx); err != nil { // no deadline here: it would end the browser
		t.Fatal(err)
	}
	return &browser{ctx: ctx}
}

// A tab is one page of a site with a profile of its own. Whatever a page throws, logs as an error or is refused by the
// content policy fails its test.
type tab struct {
	*testing.T
	ctx  context.Context
	site *site

	mu       sync.Mutex
	requests []string // the address of every request
}

func (b *browser) tab(t *testing.T, s *site, session string) *tab {
	t.Helper()
	ctx, end := chromedp.NewContext(b.ctx, chromedp.WithNewBrowserContext())
	t.Cleanup(end)
	if err := chromedp.Do(ctx); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	t.Cleanup(cancel)
	tb := &tab{T: t, ctx: ctx, site: s}
	requests, thrown, said := chromedp.Events(ctx, network.RequestWillBeSent), chromedp.Events(ctx, runtime.ExceptionThrown), chromedp.Events(ctx, runtime.ConsoleAPICalled)
	var listeners sync.WaitGroup
	t.Cleanup(func() { cancel(); listeners.Wait() })
	listeners.Go(func() {
		for ev, err := range requests {
			if err != nil {
				return
			}
			tb.mu.Lock()
			tb.requests = append(tb.requests, ev.Request.URL)
			tb.mu.Unlock()
		}
	})
	listeners.Go(func() {
		for ev, err := range thrown {
			if err != nil {
				return
			}
			t.Errorf("the page threw: %s %v", ev.ExceptionDetails.Text, ev.ExceptionDetails.Exception)
		}
	})
	listeners.Go(func() {
		for ev, err := range said {
			if err != nil {
				return
			}
			if ev.Type == "error" {
				t.Errorf("the page logged an error: %v", ev.Args)
			}
		}
	})
	if session != "" {
		yes := true
		_, err := chromedp.Call(ctx, network.SetCookie, network.SetCookieParams{Name: "sluice-session", Value: session, URL: s.server.URL, HTTPOnly: &yes})
		if err != nil {
			t.Fatal(err)
		}
	}
	tb.size(1280, 800)
	return tb
}

func (tb *tab) do(actions ...chromedp.Action[chromedp.Void]) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.ctx, 20*time.Second)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		tb.dump()
		tb.Fatal(err)
	}
}

// dump says where a failing test was.
func (tb *tab) dump() {
	where, _ := chromedp.Run(tb.ctx, chromedp.Evaluate[string](`location.href + "\n" + document.title + "\n" + document.activeElement.outerHTML.slice(0, 300)`))
	tb.Logf("at %s", where)
}

func (tb *tab) size(width, height int64) {
	tb.Helper()
	tb.do(chromedp.EmulateViewport(width, height))
}

func (tb *tab) scheme(scheme string) {
	tb.Helper()
	_, err := chromedp.Call(tb.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}, {Name: "prefers-reduced-motion", Value: "reduce"}},
	})
	if err != nil {
		tb.Fatal(err)
	}
}

func (tb *tab) open(path string) {
	tb.Helper()
	tb.do(chromedp.Navigate(tb.site.server.URL + path))
}

// click clicks the first visible element of a CSS selector, by mouse.
func (tb *tab) click(sel string) {
	tb.Helper()
	tb.do(chromedp.Click(chromedp.CSS(sel), chromedp.NodeVisible))
}

// keys types, into whatever has the focus. A key that types something goes down and types in one message, as a keyboard has it: in two, the Enter that follows a link could type into the dialog
// that has opened between them.
func (tb *tab) keys(keys string) {
	tb.Helper()
	tb.do(chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		for _, r := range keys {
			events := kb.Encode(r)
			if len(events) == 3 {
				events[0].Text, events[0].UnmodifiedText = events[1].Text, events[1].UnmodifiedText
				events = []*input.DispatchKeyEventParams{events[0], events[2]}
			}
			for _, e := range events {
				if _, err := cdp.Call(ctx, target, input.DispatchKeyEvent, *e); err != nil {
					return err
				}
			}
		}
		return nil
	}))
}

// wait waits until a JavaScript expression is true.
func (tb *tab) wait(expression string) {
	tb.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		// A page that is being left cannot answer: ask the next one.
		if ok, err := chromedp.Run(tb.ctx, chromedp.Evaluate[bool]("!!("+expression+")")); err == nil && ok {
			return
		}
		if time.Now().After(deadline) {
			tb.dump()
			tb.Fatalf("never came true: %s", expression)
		}
		select {
		case <-tb.ctx.Done():
			tb.Fatal(tb.ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// travel goes back (-1) or forward (1) in the tab's history, and waits for the page there.
func (tb *tab) travel(by int) {
	tb.Helper()
	where := tb.eval("performance.timeOrigin + location.href")
	tb.do(chromedp.Evaluate[chromedp.Void]("history.go(" + strconv.Itoa(by) + "); undefined"))
	tb.wait(`document.readyState === "complete" && performance.timeOrigin + location.href !== ` + strconv.Quote(where))
}

// eval is the text that a JavaScript expression gives.
func (tb *tab) eval(expression string) string {
	tb.Helper()
	s, err := chromedp.Run(tb.ctx, chromedp.Evaluate[string]("String("+expression+")"))
	if err != nil {
		tb.dump()
		tb.Fatalf("%s: %v", expression, err)
	}
	return s
}

// visible is the text of the page as one sees it.
func (tb *tab) visible() string { tb.Helper(); return tb.eval("document.body.innerText") }

// seen reports the addresses that the tab asked for.
func (tb *tab) seen() []string {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	return append([]string(nil), tb.requests...)
}

// acceptDialogs answers "leave" to every question whether to leave the page, and counts them.
func (tb *tab) acceptDialogs() func() int {
	dialogs := chromedp.Events(tb.ctx, page.JavascriptDialogOpening)
	var mu sync.Mutex
	n := 0
	go func() {
		for _, err := range dialogs {
			if err != nil {
				return
			}
			mu.Lock()
			n++
			mu.Unlock()
			_, _ = chromedp.Call(tb.ctx, page.HandleJavaScriptDialog, page.HandleJavaScriptDialogParams{Accept: true})
		}
	}()
	return func() int { mu.Lock(); defer mu.Unlock(); return n }
}

// shot writes a picture of the page to SLUICE_SHOTS, where that is set.
func (tb *tab) shot(name string) {
	tb.Helper()
	dir := os.Getenv("SLUICE_SHOTS")
	if dir == "" {
		return
	}
	png, err := chromedp.Run(tb.ctx, chromedp.CaptureScreenshot())
	if err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644); err != nil {
		tb.Fatal(err)
	}
}

// axe lets axe-core (the file that SLUICE_AXE names, never kept here) judge the page as it stands.
func (tb *tab) axe(state string) {
	tb.Helper()
	path := os.Getenv("SLUICE_AXE")
	if path == "" {
		if os.Getenv("SLUICE_REQUIRE_SERVICES") == "1" {
			tb.Fatal("SLUICE_AXE is not set")
		}
		return
	}
	script, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	tb.do(chromedp.Evaluate[chromedp.Void](string(script) + "; undefined"))
	raw, err := chromedp.Run(tb.ctx, chromedp.Evaluate[string](`axe.run(document, {resultTypes: ["violations"]}).then(r => JSON.stringify(r.violations
		.filter(v => v.impact === "serious" || v.impact === "critical")
		.map(v => ({id: v.id, help: v.help, nodes: v.nodes.slice(0, 3).map(n => n.html.slice(0, 200) + " " + n.failureSummary)}))))`, chromedp.EvalAwaitPromise))
	if err != nil {
		tb.Fatal(err)
	}
	var violations []struct {
		ID, Help string
		Nodes    []string
	}
	if err := json.Unmarshal([]byte(raw), &violations); err != nil {
		tb.Fatal(err)
	}
	for _, v := range violations {
		tb.Errorf("%s: axe: %s: %s\n%s", state, v.ID, v.Help, strings.Join(v.Nodes, "\n"))
	}
}

// holds fails if the page scrolls sideways: nothing may be lost at 390 px or 200 % zoom.
func (tb *tab) holds(state string) {
	tb.Helper()
	if wide := tb.eval(`document.documentElement.scrollWidth > document.documentElement.clientWidth ? [...document.querySelectorAll("*")].filter(e => e.getBoundingClientRect().right > innerWidth + 1).slice(0, 3).map(e => e.outerHTML.slice(0, 120)).join(" | ") || "yes" : ""`); wide != "" {
		tb.Errorf("%s: the page is wider than the window: %s", state, wide)
	}
}
