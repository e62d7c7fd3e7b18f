package console

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"flowstate.inc/sluice/accounts"
)

// A pending is a deletion that not all edges have confirmed. It stays on every page until they have, or until it is dismissed.
type pending struct {
	Text  string
	Edges []string // each, and until when it may accept the key
	Back  string   // the page that shows it
}

// confirmedBy says how many of the edges refuse a deleted account's key, after how long, and which may still accept it until when. parts are numbers:
// confirmed, edges (-1: they could not be asked), milliseconds, and the time of the revocation by the database's clock in microseconds.
func (c *Console) confirmedBy(ctx context.Context, parts []string) (string, []accounts.PendingEdge) {
	var n [4]int64
	for i := range n {
		var err error
		if n[i], err = strconv.ParseInt(parts[i], 10, 64); err != nil {
			return "", nil
		}
	}
	confirmed, edges := n[0], n[1]
	switch {
	case edges < 0:
		return "; how many edges refuse it already is unknown", nil
	case edges == 0:
		return "", nil
	case confirmed >= edges:
		return fmt.Sprintf("; refused by %d of %d edges after %.1f s", confirmed, edges, float64(n[2])/1000), nil
	}
	// The cookie holds no names, so they are asked for again; meanwhile they may have learnt of it.
	now, err := c.store.ConfirmRevocation(ctx, time.UnixMicro(n[3]), time.Millisecond)
	if err != nil {
		return fmt.Sprintf("; refused by %d of %d edges so far", confirmed, edges), nil
	}
	if len(now.Pending) == 0 {
		return fmt.Sprintf("; refused by %d of %d edges", now.Confirmed, now.Edges), nil
	}
	return fmt.Sprintf("; refused by %d of %d edges so far", now.Confirmed, now.Edges), now.Pending
}

// pendingOn is what the page of r shows of a deletion, and shows again for as long as there is something to show.
func (c *Console) pendingOn(w http.ResponseWriter, r *http.Request, text string, edges []accounts.PendingEdge) *pending {
	p := &pending{Text: text, Edges: mayAccept(edges), Back: accountsPath}
	if r.Method == http.MethodGet {
		p.Back = r.URL.RequestURI()
	}
	last := slices.MaxFunc(edges, func(a, b accounts.PendingEdge) int { return a.UntilCutOff.Compare(b.UntilCutOff) }).UntilCutOff
	http.SetCookie(w, c.cookie(r, toastCookie, c.cookieValue(r, toastCookie), max(time.Until(last), 0)+time.Minute))
	return p
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
	http.SetCookie(w, c.cookie(r, toastCookie, "", -time.Second))
	http.Redirect(w, r, LocalPath(r.PostFormValue("back")), http.StatusSeeOther)
	return nil
}
