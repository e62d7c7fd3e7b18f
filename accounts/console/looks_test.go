package console_test

import (
	"fmt"
	"net/http"
	"net/url"
	"os"
	"testing"

	"flowstate.inc/sluice/auth"
)

// TestLooks opens every page in every state, light and dark, at 1280 and 390 px and at 200 % zoom (half the window), lets
// axe-core judge it, and writes the pictures to SLUICE_SHOTS for whoever wants to look.
func TestLooks(t *testing.T) {
	b := newBrowser(t)
	used, empty, all := newSite(t), newSite(t), auth.AllPermissions()
	used.seed(t, 300)
	used.seedSignals(t)
	draft := used.seedPolicy(t)
	deleted := newSite(t)
	gone := deleted.account(t, "legacy-translator", auth.Production).Account
	if _, _, err := deleted.DeleteAccount(t.Context(), by, "acme", gone.ID); err != nil {
		t.Fatal(err)
	}
	one := used.find(t, "nightly-digest-summariser")
	never := used.find(t, "eval-harness")
	long := used.find(t, "invoice-extraction")
	used.seedUsage(t, one)
	states := []struct {
		name, path string
		site       *site
		perms      []auth.Permission
	}{
		{"list", listPath, used, all},
		{"list-seen", listPath + "?sort=-last_seen_at", used, all},
		{"none-yet", listPath, empty, all},
		{"all-deleted", listPath, deleted, all},
		{"deleted", listPath + "?state=deleted", used, all},
		{"no-match", listPath + "?q=zebra&environment=staging", used, all},
		{"found-key", listPath + "?q=" + one.KeyPrefix, used, all},
		{"create", listPath + "?create=1", used, all},
		{"twin", listPath + "?create=1&from=" + one.ID, used, all},
		{"edit", listPath + "?edit=" + one.ID, used, all},
		{"delete", listPath + "?delete=" + one.ID, used, all},
		{"account", listPath + "/" + one.ID, used, all},
		{"account-never", listPath + "/" + never.ID, used, all},
		{"account-long", listPath + "/" + long.ID, used, all},
		{"audit", "/settings/ai/audit-log", used, all},
		{"audit-no-match", "/settings/ai/audit-log?actor=nobody", used, all},
		{"alerts", "/ai/alerts", used, all},
		{"alerts-all", "/ai/alerts?open=all&severity=BLOCK,INFO,WARN&cat:contentSafety=1", used, all},
		{"alerts-calm", "/ai/alerts", empty, all},
		{"alerts-no-match", "/ai/alerts?cat:other=1", used, all},
		{"alert", "/ai/alerts?alert=" + used.newest(t), used, all},
		{"policy", "/settings/ai/policy", used, all},
		{"policy-none", "/settings/ai/policy", empty, all},
		{"policy-version", "/settings/ai/policy?version=2", used, all},
		{"policy-edit", "/settings/ai/policy/edit?from=active", used, all},
		{"policy-edit-json", "/settings/ai/policy/edit?from=active&view=json", used, all},
		{"policy-edit-first", "/settings/ai/policy/edit", empty, all},
		{"policy-draft", "/settings/ai/policy/drafts/" + draft, used, all},
		{"refusals", "/settings/ai/refusals", used, all},
		{"refusals-none", "/settings/ai/refusals", empty, all},
		{"denied", listPath, used, []auth.Permission{auth.AIGovernanceView}},
		{"lost", "/nowhere", used, all},
		{"sign-in", "/sign-in", used, nil},
		{"once", "/sign-in/once?token=" + url.QueryEscape("abc"), used, nil},
	}
	for _, st := range states {
		t.Run(st.name, func(t *testing.T) {
			session := ""
			if st.perms != nil {
				session = st.site.session(t, "acme", st.perms...)
			}
			if a := st.site.do(t, session, http.MethodGet, st.path, nil); a.StatusCode >= 500 {
				t.Fatalf("%d\n%s", a.StatusCode, st.site.log)
			}
			tb := b.tab(t, st.site, session)
			for _, scheme := range []string{"light", "dark"} {
				tb.scheme(scheme)
				for _, width := range []int64{1280, 640, 390} {
					if scheme == "dark" && width < 1280 && os.Getenv("SLUICE_SHOTS") == "" {
						continue // for the eye only
					}
					tb.size(width, 844)
					tb.open(st.path)
					state := fmt.Sprintf("%s-%s-%d", st.name, scheme, width)
					tb.shot(state)
					tb.holds(state)
					if width == 1280 || scheme == "light" && width == 390 { // the rest differs in nothing that axe judges
						tb.axe(state)
					}
				}
			}
		})
	}
}
