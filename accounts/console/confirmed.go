package console

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"flowstate.inc/sluice/accounts"
	"flowstate.inc/sluice/auth"
)

// A pending is a deletion that not all edges are known to have confirmed. It stays on every page until they have, or until it is dismissed.
type pending struct {
	ID    string // of the account
	Text  string
	Edges []string // each, and until when it may accept the key; none where they could not be asked
	Back  string   // the page that shows it
}

// A deletion is what the cookie of pending ones holds of each: no names, so they are looked up again, and meanwhile the edges may have learnt of it.
type deletion struct {
	account string
	at      int64 // by the database's clock, in microseconds
}

const (
	maxDeletions = 8         // in the cookie; the oldest go first
	unconfirmed  = time.Hour // how long one is kept while nobody can be asked; longer than any --auth-max-stale that makes sense
)

func (c *Console) deletions(r *http.Request) (all []deletion) {
	for one := range strings.SplitSeq(c.cookieValue(r, pendingCookie), "~") {
		account, at, _ := strings.Cut(one, ".")
		if us, err := strconv.ParseInt(at, 10, 64); err == nil && len(all) < maxDeletions {
			all = append(all, deletion{account, us})
		}
	}
	return all
}

// keepDeletions has the pages from the next on ask about these.
func (c *Console) keepDeletions(w http.ResponseWriter, r *http.Request, all []deletion, lasts time.Duration) {
	all = all[max(len(all)-maxDeletions, 0):]
	parts := make([]string, 0, len(all))
	for _, d := range all {
		parts = append(parts, d.account+"."+strconv.FormatInt(d.at, 10))
	}
	if len(parts) == 0 {
		lasts = -time.Second
	}
	http.SetCookie(w, c.cookie(r, pendingCookie, strings.Join(parts, "~"), lasts))
}

// pendingOn is what the page of r shows of deletions, and shows again for as long as there is something to show; and a toast for one that all edges have
// confirmed meanwhile.
func (c *Console) pendingOn(w http.ResponseWriter, r *http.Request, v *visit) (*toast, []pending) {
	asked := c.deletions(r)
	if len(asked) == 0 || !v.admin.Can(auth.SettingsIntegrationsUpdate) {
		return nil, nil
	}
	back := accountsPath
	if r.Method == http.MethodGet {
		back = r.URL.RequestURI()
	}
	var (
		done  *toast
		shown []pending
		kept  []deletion
		last  = time.Now()
	)
	for _, d := range asked {
		a, err := c.store.Account(r.Context(), v.admin.Org, d.account)
		if err != nil {
			if !errors.Is(err, accounts.ErrNotFound) { // the page itself says what is wrong
				kept, last = append(kept, d), time.Now().Add(unconfirmed)
			}
			continue
		}
		p := pending{ID: a.ID, Text: "Deleted " + label(a) + " and revoked its key", Back: back}
		now, err := c.store.ConfirmRevocation(r.Context(), time.UnixMicro(d.at), time.Millisecond)
		switch {
		case err != nil:
			c.log.WarnContext(r.Context(), "edges cannot be asked what they refuse", "request_id", v.request, "error", err.Error())
			p.Text += "; how many edges refuse it already is unknown."
			last = time.Now().Add(unconfirmed)
		case len(now.Pending) == 0:
			done = &toast{Text: fmt.Sprintf("%s; refused by %d of %d edges.", p.Text, now.Confirmed, now.Edges)}
			continue
		default:
			p.Text += fmt.Sprintf("; refused by %d of %d edges so far.", now.Confirmed, now.Edges)
			p.Edges = mayAccept(now.Pending)
			if until := slices.MaxFunc(now.Pending, func(a, b accounts.PendingEdge) int { return a.UntilCutOff.Compare(b.UntilCutOff) }).UntilCutOff; until.After(last) {
				last = until
			}
		}
		shown, kept = append(shown, p), append(kept, d)
	}
	c.keepDeletions(w, r, kept, time.Until(last)+time.Minute)
	return done, shown
}

// mayAccept says of each edge until when.
func mayAccept(edges []accounts.PendingEdge) []string {
	const clock = "15:04:05"
	var lines []string
	for _, e := range edges {
		lines = append(lines, fmt.Sprintf("%s, last heard of at %s, until %s UTC, or until %s UTC if it reaches neither the database nor Redis",
			e.ID, e.Seen.UTC().Format(clock), e.Until.UTC().Format(clock), e.UntilCutOff.UTC().Format(clock)))
	}
	return lines
}

// dismiss forgets a deletion that not all edges have confirmed.
func (c *Console) dismiss(w http.ResponseWriter, r *http.Request, _ *visit) error {
	if err := parseForm(r); err != nil {
		return err
	}
	left := slices.DeleteFunc(c.deletions(r), func(d deletion) bool { return d.account == r.PostFormValue("id") })
	c.keepDeletions(w, r, left, unconfirmed)
	http.Redirect(w, r, LocalPath(r.PostFormValue("back")), http.StatusSeeOther)
	return nil
}
