package console

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"flowstate.inc/sluice/accounts"
)

// create makes an account. Its answer is the only page that ever holds the raw key: there is no redirect, so no second
// address could show it, and the same form posted again is answered with "shown already".
func (c *Console) create(w http.ResponseWriter, r *http.Request, v *visit) error {
	if err := parseForm(r); err != nil {
		return err
	}
	posted := postedAccount(r)
	in := accounts.NewAccount{
		Name: posted.Name, Environment: posted.Environment, Description: posted.Description, IntendedScope: posted.IntendedScope,
		AbuseDetection: &posted.AbuseDetection, Team: posted.Team, CostCentre: posted.CostCentre,
	}
	token := r.PostFormValue("token")
	if token == "" || len(token) > accounts.MaxIdempotencyKey {
		return &badRequestError{text: "The form lacks its token. Open it again and retry."}
	}
	created, err := c.store.CreateAccount(r.Context(), v.by(c, r), v.admin.Org, in, "console:"+token)
	if err != nil {
		return c.createAgain(w, r, v, posted, token, err)
	}
	p, err := c.listPage(w, r, v, listState{})
	if err != nil {
		// The account exists and its key is in our hands alone: show it, whatever the list below it does.
		c.log.WarnContext(r.Context(), "list below the reveal failed", "request_id", v.request, "error", cutKeys(err.Error()))
		p = &listPage{frame: c.frame(w, r, v, accountsPath, "AI Service Accounts"), BaseURL: accountsPath, CreateURL: accountsPath + "?create=1"}
	}
	if created.Repeated {
		p.Dialogs.Shown = &shownDialog{Label: label(created.Account), AccountURL: accountURL(created.Account.ID), CloseURL: accountsPath}
		return c.show(w, r, http.StatusOK, "list", p)
	}
	p.Dialogs.Reveal = c.revealDialog(created)
	body, err := c.render.page("list", p)
	if err != nil {
		return fmt.Errorf("show the reveal: %w", err)
	}
	writeSecretPage(w, r, http.StatusCreated, body)
	return nil
}

// createAgain shows the form once more, with what was typed and what is wrong with it.
func (c *Console) createAgain(w http.ResponseWriter, r *http.Request, v *visit, posted accounts.Account, token string, cause error) error {
	form := newAccountForm(posted)
	if errors.Is(cause, accounts.ErrIdempotencyMismatch) {
		form.Problem = "This form created an account already, with other values. Nothing was created now; press the button to create this one too."
		token = ""
	} else if !form.explain(cause) {
		return cause
	}
	form.forget()
	p, err := c.listPage(w, r, v, listState{})
	if err != nil {
		return err
	}
	p.Dialogs.Create, err = c.createDialog(r.Context(), v, accountsPath, nil)
	if err != nil {
		return err
	}
	p.Dialogs.Create.Form = form
	if token != "" {
		p.Dialogs.Create.Token = token
	}
	return c.show(w, r, http.StatusUnprocessableEntity, "list", p)
}

func (c *Console) edit(w http.ResponseWriter, r *http.Request, v *visit) error {
	if err := parseForm(r); err != nil {
		return err
	}
	version, err := strconv.ParseInt(r.PostFormValue("version"), 10, 64)
	if err != nil || version <= 0 {
		return &badRequestError{text: "The form lacks the version of the account. Open it again and retry."}
	}
	id, posted := r.PathValue("id"), postedAccount(r)
	_, err = c.store.UpdateAccount(r.Context(), v.by(c, r), v.admin.Org, id, version, accounts.AccountUpdate{
		Name: &posted.Name, Environment: &posted.Environment, Description: &posted.Description, IntendedScope: &posted.IntendedScope,
		AbuseDetection: &posted.AbuseDetection, Team: &posted.Team, CostCentre: &posted.CostCentre,
	})
	if err == nil {
		c.setToast(w, r, "edited", id)
		http.Redirect(w, r, backTo(r), http.StatusSeeOther)
		return nil
	}
	now, readErr := c.store.Account(r.Context(), v.admin.Org, id)
	if readErr != nil {
		return readErr
	}
	d := newEditDialog(now, accountURL(id))
	d.Form = newAccountForm(posted)
	d.Form.EnvironmentNote = environmentNote
	d.Try = c.tryView(now, posted.IntendedScope, "")
	switch {
	case errors.Is(err, accounts.ErrStale):
		d.Form.Problem = fmt.Sprintf("Somebody changed this account meanwhile; it is now “%s”, changed %s. Save again to put your version in its place.",
			label(now), c.render.when(now.UpdatedAt).Relative)
	case errors.Is(err, accounts.ErrDeleted):
		return &goneError{now}
	case d.Form.explain(err):
		d.Version = version
	default:
		return err
	}
	d.Form.forget()
	p, err := c.accountPage(w, r, v, now)
	if err != nil {
		return err
	}
	p.Dialogs.Edit = d
	return c.show(w, r, http.StatusUnprocessableEntity, "account", p)
}

// confirmWithin is how long a delete waits for the edges, as the admin API does.
const confirmWithin = 2 * time.Second

func (c *Console) delete(w http.ResponseWriter, r *http.Request, v *visit) error {
	if err := parseForm(r); err != nil {
		return err
	}
	before, err := c.store.Account(r.Context(), v.admin.Org, r.PathValue("id"))
	if err != nil {
		return err
	}
	a, revoked, err := c.store.DeleteAccount(r.Context(), v.by(c, r), v.admin.Org, r.PathValue("id"))
	if err != nil {
		return err
	}
	asked := time.Now()
	confirmation, err := c.store.ConfirmRevocation(r.Context(), revoked.At, confirmWithin)
	if err != nil { // the revocation stands whatever this says
		c.log.WarnContext(r.Context(), "revocation not confirmed", "request_id", v.request, "error", err.Error())
	}
	if err != nil || len(confirmation.Pending) > 0 {
		c.keepDeletion(w, r, a.ID, revoked.At)
	} else if !before.Live() { // by somebody else, or by this form sent twice
		c.setToast(w, r, "gone", a.ID)
	} else {
		c.setToast(w, r, "deleted", a.ID, strconv.Itoa(confirmation.Edges), strconv.FormatInt(time.Since(asked).Milliseconds(), 10))
	}
	http.Redirect(w, r, backTo(r), http.StatusSeeOther)
	return nil
}

// firstEvent answers the page that waits for a new account's first event.
func (c *Console) firstEvent(w http.ResponseWriter, r *http.Request, v *visit) error {
	a, err := c.store.Account(r.Context(), v.admin.Org, r.PathValue("id"))
	if err != nil {
		return err
	}
	var answer struct {
		FirstSeenAt *time.Time `json:"first_seen_at"`
	}
	if !a.FirstSeenAt.IsZero() {
		answer.FirstSeenAt = &a.FirstSeenAt
	}
	body, err := json.Marshal(answer)
	if err != nil {
		return fmt.Errorf("encode the first event: %w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	send(w, r, http.StatusOK, body)
	return nil
}
