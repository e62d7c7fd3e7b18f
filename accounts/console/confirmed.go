package console

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"flowstate.inc/sluice/accounts"
	"flowstate.inc/sluice/auth"
)

// A pending is what a page shows of deletions that not all edges are known to have confirmed. It stays on every page until they have, or until it is
// dismissed; one that they have confirmed meanwhile is shown once more.
type pending struct {
	Deletions []deletion
	Waiting   bool   // at least one of them is not confirmed
	URL       string // of the same, as it is then
	Dismiss   string
	Back      string // the page that shows it
}

type deletion struct {
	ID      string // of the account
	Text    string
	Waiting bool
	Summary string   // which edges, and until when at the latest
	Edges   []string // each, and until when it may accept the key; none where they could not be asked
	Open    bool     // the list of them is shown at once
}

// A kept deletion has a cookie of its own, written once: two tabs, or an answer that comes late, take nothing of each other away. It holds no names, so
// they are looked up again, and meanwhile the edges may have learnt of it.
type kept struct {
	account string
	at      time.Time // by the database's clock
}

const (
	maxKept = 40             // so many are asked about, the newest first
	keepFor = 24 * time.Hour // longer than any --auth-max-stale that makes sense: an edge that is cut off for that long is counted no more
)

func (c *Console) keepDeletion(w http.ResponseWriter, r *http.Request, account string, at time.Time) {
	if at.IsZero() { // the database went away right after it
		at = time.Now()
	}
	if c.cookieValue(r, pendingCookie+account) == "" { // else it was deleted before, and the earlier time is the right one
		http.SetCookie(w, c.cookie(r, pendingCookie+account, strconv.FormatInt(at.UnixMicro(), 10), keepFor))
	}
}

func (c *Console) forgetDeletion(w http.ResponseWriter, r *http.Request, account string) {
	http.SetCookie(w, c.cookie(r, pendingCookie+account, "", -time.Second))
}

// deletions are those that the browser keeps, the oldest first.
func (c *Console) deletions(r *http.Request) []kept {
	prefix := c.cookie(r, pendingCookie, "", 0).Name
	var all []kept
	for _, cookie := range r.Cookies() {
		account, ok := strings.CutPrefix(cookie.Name, prefix)
		us, err := strconv.ParseInt(cookie.Value, 10, 64)
		if ok && err == nil {
			all = append(all, kept{account, time.UnixMicro(us)})
		}
	}
	slices.SortStableFunc(all, func(a, b kept) int { return a.at.Compare(b.at) })
	return all[max(len(all)-maxKept, 0):]
}

// pendingOn is what the page of r shows of deletions; nil where there is nothing.
func (c *Console) pendingOn(w http.ResponseWriter, r *http.Request, v *visit) *pending {
	all := c.deletions(r)
	if len(all) == 0 || !v.admin.Can(auth.SettingsIntegrationsUpdate) {
		return nil
	}
	back := accountsPath
	switch {
	case r.URL.Path == pendingPath:
		back = LocalPath(r.URL.Query().Get("back"))
	case r.Method == http.MethodGet:
		back = r.URL.RequestURI()
	}
	p := &pending{URL: pendingPath + "?" + url.Values{"back": {back}}.Encode(), Dismiss: dismissPath, Back: back}
	at := make([]time.Time, len(all))
	for i, d := range all {
		at[i] = d.at
	}
	confirmations, err := c.store.Confirmations(r.Context(), at)
	if err != nil {
		c.log.WarnContext(r.Context(), "edges cannot be asked what they refuse", "request_id", v.request, "error", err.Error())
		confirmations = nil
	}
	for i, one := range all {
		a, err := c.store.Account(r.Context(), v.admin.Org, one.account)
		switch {
		case err == nil && !a.Live():
		case err == nil || errors.Is(err, accounts.ErrNotFound): // no deletion of ours
			c.forgetDeletion(w, r, one.account)
			continue
		default:
			continue // the page itself says what is wrong
		}
		d := deletion{ID: a.ID, Text: "Deleted " + label(a) + " and revoked its key", Waiting: true}
		switch {
		case confirmations == nil:
			d.Text += "; how many edges refuse it already is unknown."
		case len(confirmations[i].Pending) > 0:
			now := confirmations[i]
			d.Text += fmt.Sprintf("; refused by %d of %d edges so far.", now.Confirmed, now.Edges)
			d.Edges, d.Summary, d.Open = mayAccept(now.Pending), latest(now.Pending), len(all) == 1
		default:
			d.Waiting = false
			d.Text += refusedBy(confirmations[i].Edges) + "."
			c.forgetDeletion(w, r, a.ID)
		}
		p.Deletions, p.Waiting = append(p.Deletions, d), p.Waiting || d.Waiting
	}
	if len(p.Deletions) == 0 {
		return nil
	}
	return p
}

// refusedBy says that all edges have confirmed; nothing where there are none.
func refusedBy(edges int) string {
	if edges == 0 {
		return ""
	}
	return fmt.Sprintf("; refused by %d of %d edges", edges, edges)
}

// latest names the edges by one of them, with the time after which none may accept it.
func latest(edges []accounts.PendingEdge) string {
	last := slices.MaxFunc(edges, func(a, b accounts.PendingEdge) int {
		return cmp.Or(a.UntilCutOff.Compare(b.UntilCutOff), strings.Compare(b.ID, a.ID))
	})
	text := last.ID
	if more := len(edges) - 1; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text + ", until " + last.UntilCutOff.Format("15:04:05 MST") + " at the latest"
}

// mayAccept says of each edge until when.
func mayAccept(edges []accounts.PendingEdge) []string {
	var each []string
	for _, e := range edges {
		text := fmt.Sprintf("%s, last heard of at %s, until %s", e.ID, e.Seen.Format("15:04:05"), e.Until.Format("15:04:05 MST"))
		if e.UntilCutOff.After(e.Until) {
			text += fmt.Sprintf(", or until %s if it reaches neither the database nor Redis", e.UntilCutOff.Format("15:04:05 MST"))
		}
		each = append(each, text)
	}
	return each
}

// pending answers the script that asks again for what a page shows of deletions. There is no body where nothing is left.
func (c *Console) pending(w http.ResponseWriter, r *http.Request, v *visit) error {
	p := c.pendingOn(w, r, v)
	if p == nil {
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	body, err := c.render.part("pending", p)
	if err != nil {
		return fmt.Errorf("show pending deletions: %w", err)
	}
	writePage(w, r, http.StatusOK, body)
	return nil
}

func (c *Console) dismiss(w http.ResponseWriter, r *http.Request, _ *visit) error {
	if err := parseForm(r); err != nil {
		return err
	}
	for _, d := range c.deletions(r) {
		if d.account == r.PostFormValue("id") {
			c.forgetDeletion(w, r, d.account)
		}
	}
	http.Redirect(w, r, LocalPath(r.PostFormValue("back")), http.StatusSeeOther)
	return nil
}
