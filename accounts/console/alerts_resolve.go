package console

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"flowstate.inc/sluice/signals"
)

func ruleWords(r *signals.RuleRef) string {
	return fmt.Sprintf("%s sets %s (policy version %d)", r.ID, r.Action, r.PolicyVersion)
}

// maxUndo is how many alerts a toast can take back: their ids stand in its cookie.
const maxUndo = 50

func (c *Console) resolve(w http.ResponseWriter, r *http.Request, v *visit) error {
	if err := parseForm(r); err != nil {
		return err
	}
	ids, how := r.PostForm["ids"], signals.Resolution(r.PostFormValue("resolution"))
	if len(ids) == 0 {
		return c.noneSelected(w, r)
	}
	found, left, err := c.signals.ResolveOpen(r.Context(), v.admin.Org, c.signalsBy(r, v), ids, how, strings.TrimSpace(strings.ReplaceAll(r.PostFormValue("note"), "\r\n", "\n")))
	if err != nil {
		return settleError(err)
	}
	c.live.forget(v.admin.Org)
	c.setToast(w, r, append([]string{string(how), strconv.Itoa(len(found)), strconv.Itoa(len(left))}, undoable(found)...)...)
	http.Redirect(w, r, alertsBack(r), http.StatusSeeOther)
	return nil
}

func (c *Console) reopen(w http.ResponseWriter, r *http.Request, v *visit) error {
	if err := parseForm(r); err != nil {
		return err
	}
	ids := r.PostForm["ids"]
	if len(ids) == 0 {
		return c.noneSelected(w, r)
	}
	var found, left []signals.Alert
	var err error
	how := "undone"
	if at, bad := strconv.ParseInt(r.PostFormValue("resolved_at"), 10, 64); bad == nil {
		found, left, err = c.signals.Undo(r.Context(), v.admin.Org, c.signalsBy(r, v), ids, time.UnixMilli(at))
	} else {
		how = "reopened"
		found, left, err = c.signals.ReopenResolved(r.Context(), v.admin.Org, c.signalsBy(r, v), ids)
	}
	if err != nil {
		return settleError(err)
	}
	c.live.forget(v.admin.Org)
	c.setToast(w, r, how, strconv.Itoa(len(found)), strconv.Itoa(len(left)))
	http.Redirect(w, r, alertsBack(r), http.StatusSeeOther)
	return nil
}

func (c *Console) signalsBy(r *http.Request, v *visit) signals.By {
	by := v.by(c, r)
	return signals.By{Actor: by.Actor, IP: by.IP, Via: by.Via}
}

func settleError(err error) error {
	if errors.Is(err, signals.ErrNotFound) {
		return errNotFound
	}
	if errors.Is(err, signals.ErrBadQuestion) {
		return &badRequestError{text: fmt.Sprintf("Choose how it is resolved, with at most %d signals and a note of at most %d bytes.", signals.MaxBulk, signals.MaxNote)}
	}
	return err
}

// leftWords says of how many nothing was done, and what they have been already.
func leftWords(n int, more, been string) string {
	if n == 1 {
		return "1" + more + " has been " + been + " and stays as it is"
	}
	return strconv.Itoa(n) + more + " have been " + been + " and stay as they are"
}

// noneSelected answers a form of Alerts that names no signal.
func (c *Console) noneSelected(w http.ResponseWriter, r *http.Request) error {
	c.setToast(w, r, "none", "0", "0")
	http.Redirect(w, r, alertsBack(r), http.StatusSeeOther)
	return nil
}

// undoable are when alerts were resolved, and which.
func undoable(found []signals.Alert) []string {
	if len(found) > maxUndo {
		return nil
	}
	parts := make([]string, 0, len(found)+1)
	for i := range found {
		if i == 0 {
			parts = append(parts, strconv.FormatInt(found[i].ResolvedAt.UnixMilli(), 10)) // one for all
		}
		parts = append(parts, found[i].Event.ID)
	}
	return parts
}

// alertsBack is where a form on Alerts came from.
func alertsBack(r *http.Request) string {
	back := r.PostFormValue("back")
	u, err := url.Parse(back)
	if err != nil || u.IsAbs() || u.Host != "" || u.Path != alertsPath {
		return alertsPath
	}
	return back
}

// alertToast says what was done to how many signals; resolving can be taken back, since what is offered to resolve is open. here is the page that shows the toast, and is shown again after the undo.
func alertToast(parts []string, here string) *toast {
	if len(parts) < 3 {
		return nil
	}
	n, err := strconv.Atoi(parts[1])
	left, err2 := strconv.Atoi(parts[2])
	if err != nil || err2 != nil {
		return nil
	}
	signalsWords := strconv.Itoa(n) + " signals"
	if n == 1 {
		signalsWords = "the signal"
	}
	t, been := &toast{}, "resolved already"
	switch parts[0] {
	case "activated":
		t.Text = "Activated. Every edge that reaches the database or Redis takes the new version within a second."
	case "none":
		t.Text = "No signal was selected."
	case "reopened":
		t.Text, been = "Reopened "+signalsWords+".", "open"
	case "undone":
		t.Text, been = "Reopened "+signalsWords+".", "changed since"
	case string(signals.Acknowledged):
		t.Text = "Acknowledged " + signalsWords + "."
	case string(signals.FalsePositive):
		t.Text = "Closed " + signalsWords + " as false positive."
	case string(signals.Escalated):
		t.Text = "Escalated " + signalsWords + "."
	default:
		return nil
	}
	switch {
	case left > 0 && n == 0:
		t.Text = "Nothing was changed: " + leftWords(left, "", been) + "."
	case left > 0:
		t.Text = strings.TrimSuffix(t.Text, ".") + "; " + leftWords(left, " more", been) + "."
	}
	if len(parts) > 4 {
		t.Undo = &undo{Action: alertsPath + "/reopen", Fields: []hidden{{"back", here}, {"resolved_at", parts[3]}}}
		for _, id := range parts[4:] {
			t.Undo.Fields = append(t.Undo.Fields, hidden{"ids", id})
		}
	}
	return t
}
