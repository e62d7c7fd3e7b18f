package console

import (
	"context"
	"net/http"
	"slices"

	"flowstate.inc/sluice/auth"
)

// A frame is what the layout needs on every page; each page's struct embeds it.
type frame struct {
	Title     string
	Alone     bool // no menu: sign-in, and errors for those who are not signed in
	Org       string
	Actor     string
	RequestID string
	Nav       []navGroup
	Toast     *toast
	Pending   *pending
	Shortcuts []shortcut
}

type navGroup struct {
	Label string
	Links []navLink
}

type navLink struct {
	Label, URL, Icon string
	Current          bool
	Counted          bool   // has a counter
	Count            string // unacknowledged; "" while there is none
}

type link struct{ Label, URL string }

type shortcut struct{ Key, Does string }

// A toast says what was just done, with the way back where there is one.
type toast struct {
	Text string
	Undo *undo
}

type undo struct {
	Action string
	Fields []hidden
}

type hidden struct{ Name, Value string }

// partHeader is set by the script where it fetches a page for a part of it, and throws the rest away: what is shown once must not be in that.
const partHeader = "Sluice-Part"

// frame fills in what is the same on every page. current is the path of the page's link in the menu.
func (c *Console) frame(w http.ResponseWriter, r *http.Request, v *visit, current, title string) frame {
	f := frame{Title: title, Org: v.admin.Org, Actor: v.admin.Actor, RequestID: v.request}
	if !v.signed {
		f.Alone = true
		return f
	}
	f.Nav = c.nav(r.Context(), v, current)
	if r.Header.Get(partHeader) == "" {
		f.Toast = c.takeToast(w, r, v)
		f.Pending = c.pendingOn(w, r, v)
	}
	f.Shortcuts = []shortcut{{"/", "Go to the search"}, {"?", "Show this list"}, {"Esc", "Close a dialog or a menu"}}
	return f
}

// nav is the menu: only the pages that exist here, and of these only what the admin may open.
func (c *Console) nav(ctx context.Context, v *visit, current string) []navGroup {
	entries := []struct {
		group string
		opens []auth.Permission
		link  navLink
	}{
		{"AI", []auth.Permission{auth.AIGovernanceView}, navLink{Label: "Alerts and signals", URL: alertsPath, Icon: "bell"}},
		{"Settings → AI", []auth.Permission{auth.SettingsIntegrationsUpdate}, navLink{Label: "AI Service Accounts", URL: accountsPath, Icon: "machine"}},
		{"Settings → AI", []auth.Permission{auth.SettingsIntegrationsUpdate}, navLink{Label: "Refused requests", URL: refusalsPath, Icon: "x"}},
		{"Settings → AI", policyReaders(), navLink{Label: "Policy", URL: policyPath, Icon: "policy"}},
		{"Settings → AI", []auth.Permission{auth.AIGovernanceView}, navLink{Label: "Audit log", URL: auditPath, Icon: "log"}},
	}
	var groups []navGroup
	for _, e := range entries {
		if !slices.ContainsFunc(e.opens, v.admin.Can) || (e.link.URL == alertsPath || e.link.URL == policyPath) && c.signals == nil {
			continue
		}
		if e.link.URL == alertsPath {
			e.link.Counted, e.link.Count = true, c.countUnacknowledged(ctx, v)
		}
		i := slices.IndexFunc(groups, func(g navGroup) bool { return g.Label == e.group })
		if i < 0 {
			groups = append(groups, navGroup{Label: e.group})
			i = len(groups) - 1
		}
		e.link.Current = e.link.URL == current
		groups[i].Links = append(groups[i].Links, e.link)
	}
	return groups
}

// countUnacknowledged is the counter beside Alerts. A page stands without it when the store does not answer.
func (c *Console) countUnacknowledged(ctx context.Context, v *visit) string {
	n, err := c.live.unacknowledged(ctx, c.signals, v.admin.Org, c.now())
	if err != nil {
		c.log.WarnContext(ctx, "unacknowledged alerts not counted", "request_id", v.request, "error", err.Error())
	}
	if n == 0 {
		return ""
	}
	return countWords(n)
}

// A messagePage is an error in words.
type messagePage struct {
	frame
	Drawing    string // "lock" or "lost"
	Headline   string
	Happened   string
	Permission string
	Safe       string
	Links      []link
}
