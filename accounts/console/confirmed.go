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
	Folded    string // so many that they are shown only when asked for: what they are
	URL       string // of the same, as it is then
	Dismiss   string
	Back      string // the page that shows it
}

type deletion struct {
	ID, Label, URL string // of the account
	How            string // how many edges refuse it, and what became of those that never said so
	Waiting        bool
	Summary        string   // which edges, and until when at the latest
	Edges          []string // each, and until when it may accept the key; none where they could not be asked
	Open           bool     // the list of them is shown at once
	until          time.Time
}

// A kept deletion has a cookie of its own, written once: two tabs, or an answer that comes late, take nothing of each other away. It holds no names, so
// they are looked up again, and meanwhile the edges may have learnt of it.
type kept struct {
	account string
	at      time.Time // by the database's clock
}

const (
	maxKept = 40             // so many are asked about, the newest first
	maxOpen = 3              // so many are shown without being asked for
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
		d := deletion{ID: a.ID, Label: label(a), URL: accountURL(a.ID), Waiting: true, Open: len(all) == 1}
		if confirmations == nil {
			d.How = "; how many edges refuse it already is unknown"
		} else if d.tell(&confirmations[i], c.now()); !d.Waiting {
			c.forgetDeletion(w, r, a.ID)
		}
		p.Deletions, p.Waiting = append(p.Deletions, d), p.Waiting || d.Waiting
	}
	if len(p.Deletions) == 0 {
		return nil
	}
	if n := len(p.Deletions); n > maxOpen {
		last := slices.MaxFunc(p.Deletions, func(a, b deletion) int { return a.until.Compare(b.until) }).until
		p.Folded = fmt.Sprintf("Deleted %d accounts and revoked their keys", n)
		if p.Waiting && !last.IsZero() {
			p.Folded += ", which edges may still accept until " + clock(last) + " at the latest"
		}
	}
	return p
}

// tell says how far the edges are.
func (d *deletion) tell(c *accounts.Confirmation, now time.Time) {
	d.Waiting = len(c.Pending) > 0
	switch {
	case d.Waiting:
		d.How = fmt.Sprintf("; refused by %d of %d edges so far", c.Confirmed, c.Edges+len(c.Gone))
		last := slices.MaxFunc(c.Pending, func(a, b accounts.PendingEdge) int {
			return cmp.Or(a.UntilCutOff.Compare(b.UntilCutOff), strings.Compare(b.ID, a.ID))
		})
		d.until, d.Summary = last.UntilCutOff, last.ID
		if more := len(c.Pending) - 1; more > 0 {
			d.Summary += fmt.Sprintf(" and %d more", more)
		}
		d.Summary += ", until " + clock(last.UntilCutOff) + " at the latest"
		for _, e := range c.Pending {
			d.Edges = append(d.Edges, mayAccept(e, now))
		}
	case c.Edges+len(c.Gone) > 0:
		d.How = fmt.Sprintf("; refused by %d of %d edges", c.Confirmed, c.Edges+len(c.Gone))
	}
	for _, e := range c.Gone {
		d.How += fmt.Sprintf("; %s, last heard of at %s, never said so and can accept it no longer, since %s", e.ID, e.Seen.Format(time.TimeOnly), clock(e.UntilCutOff))
	}
}

func clock(t time.Time) string { return t.Format("15:04:05 MST") }

// mayAccept says of an edge until when.
func mayAccept(e accounts.PendingEdge, now time.Time) string {
	text := e.ID + ", last heard of at " + e.Seen.Format(time.TimeOnly)
	if now.After(e.Until) {
		return text + ": if it was killed it accepts nothing; frozen or cut off it may accept the key until " + clock(e.UntilCutOff)
	}
	text += ", until " + clock(e.Until)
	if e.UntilCutOff.After(e.Until) {
		text += ", or until " + clock(e.UntilCutOff) + " if it reaches neither the database nor Redis"
	}
	return text
}

// atEdges is what the page of a deleted account shows everybody of it; nil where every edge refuses its key. With neither How nor Edges nobody can say.
func (c *Console) atEdges(r *http.Request, v *visit, a accounts.Account) *deletion {
	// The store keeps when the deletion began by the clock of whoever did it, not when it was committed by the database's: an edge that has read what
	// came commitWithin later has read it.
	const commitWithin = 15 * time.Second
	since := c.now().Sub(a.DeletedAt)
	d := &deletion{ID: a.ID, Open: true}
	switch {
	case a.Live() || since > keepFor:
		return nil
	case since < 2*commitWithin:
		return d
	}
	all, err := c.store.Confirmations(r.Context(), []time.Time{a.DeletedAt.Add(commitWithin)})
	if err != nil {
		c.log.WarnContext(r.Context(), "edges cannot be asked what they refuse", "request_id", v.request, "error", err.Error())
		return d
	}
	if d.tell(&all[0], c.now()); !d.Waiting && len(all[0].Gone) == 0 {
		return nil
	}
	return d
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
		if slices.Contains(r.PostForm["id"], d.account) {
			c.forgetDeletion(w, r, d.account)
		}
	}
	http.Redirect(w, r, LocalPath(r.PostFormValue("back")), http.StatusSeeOther)
	return nil
}
