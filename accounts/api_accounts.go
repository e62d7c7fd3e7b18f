package accounts

import (
	"net/http"
	"regexp"
	"strconv"
	"strings"

	"flowstate.inc/sluice/auth"
)

// listAnswer is every list: next_cursor is absent on the last page.
type listAnswer[T any] struct {
	Items []T    `json:"items"`
	Next  string `json:"next_cursor,omitempty"`
}

func writePage[T any](w http.ResponseWriter, p Page[T]) error {
	if p.Items == nil {
		p.Items = []T{} // [], not null
	}
	return WriteJSON(w, http.StatusOK, listAnswer[T](p))
}

func (a *API) listAccounts(w http.ResponseWriter, r *http.Request, admin auth.Admin) error {
	q, err := readQuery(r)
	if err != nil {
		return err
	}
	f := AccountFilter{
		Q: q.text("q"), Environments: q.list("environment"), State: State(q.text("state")), Seen: Seen(q.text("seen")),
		Sort: AccountSort(q.text("sort")), Cursor: q.text("cursor"), Limit: q.limit(),
	}
	if err := q.done(); err != nil {
		return err
	}
	p, err := a.cfg.Store.Accounts(r.Context(), admin.Org, f)
	if err != nil {
		return err
	}
	return writePage(w, p)
}

// createAnswer carries the raw key, which is nowhere else, ever.
type createAnswer struct {
	Account         Account `json:"account"`
	Key             *string `json:"key"`
	KeyAlreadyShown bool    `json:"key_already_shown,omitempty"`
}

func (a *API) createAccount(w http.ResponseWriter, r *http.Request, admin auth.Admin) error {
	o, err := readObject(r)
	if err != nil {
		return err
	}
	var in NewAccount
	set(&in.Name, o.text("name"))
	set(&in.Environment, o.text("environment"))
	set(&in.Description, o.text("description"))
	set(&in.IntendedScope, o.text("intended_scope"))
	in.AbuseDetection = o.flag("abuse_detection")
	set(&in.Team, o.text("team"))
	set(&in.CostCentre, o.text("cost_centre"))
	perSecond, bytesPerSecond := readLimits(o)
	set(&in.Limits.RequestsPerSecond, perSecond)
	set(&in.Limits.BytesPerSecond, bytesPerSecond)
	if err := o.done(readOnly); err != nil {
		return err
	}
	c, err := a.cfg.Store.CreateAccount(r.Context(), a.by(r, admin), admin.Org, in, r.Header.Get("Idempotency-Key"))
	if err != nil {
		return err
	}
	w.Header().Set("ETag", etag(c.Account))
	w.Header().Set("Location", "/api/v1/service-accounts/"+c.Account.ID)
	if c.Repeated {
		return WriteJSON(w, http.StatusOK, createAnswer{Account: c.Account, KeyAlreadyShown: true})
	}
	return WriteJSON(w, http.StatusCreated, createAnswer{Account: c.Account, Key: &c.Key})
}

func readLimits(o *object) (*int64, *int64) {
	limits := o.sub("limits")
	if limits == nil {
		return nil, nil
	}
	perSecond, bytesPerSecond := limits.whole("requests_per_second"), limits.whole("bytes_per_second")
	_ = limits.done(nil) // what it collects is taken over below
	o.c.errs = append(o.c.errs, limits.c.errs...)
	return perSecond, bytesPerSecond
}

const notEditable = "is read-only"

// readOnly explains members of an account that no request may set.
var readOnly = map[string]string{
	"key":           "cannot be set or edited: to rotate the credential, delete the account and create it again",
	"key_prefix":    "cannot be set or edited: to rotate the credential, delete the account and create it again",
	"id":            notEditable,
	"org":           notEditable,
	"first_seen_at": notEditable,
	"last_seen_at":  notEditable,
	"created_at":    notEditable,
	"created_by":    notEditable,
	"updated_at":    notEditable,
	"deleted_at":    "is read-only: DELETE deletes the account",
	"deleted_by":    notEditable,
}

var accountIDPattern = regexp.MustCompile(`^sa_[0-9a-f]{32}$`)

// accountID reads the path. A malformed id is one that does not exist.
func accountID(r *http.Request) (string, error) {
	id := r.PathValue("id")
	if !accountIDPattern.MatchString(id) {
		return "", ErrNotFound
	}
	return id, nil
}

// etag is the account's version. Sightings do not change it.
func etag(a Account) string { return `"` + strconv.FormatInt(a.Version, 10) + `"` }

func (a *API) getAccount(w http.ResponseWriter, r *http.Request, admin auth.Admin) error {
	id, err := accountID(r)
	if err != nil {
		return err
	}
	acc, err := a.cfg.Store.Account(r.Context(), admin.Org, id)
	if err != nil {
		return err
	}
	w.Header().Set("ETag", etag(acc))
	return WriteJSON(w, http.StatusOK, acc)
}

func (a *API) patchAccount(w http.ResponseWriter, r *http.Request, admin auth.Admin) error {
	id, err := accountID(r)
	if err != nil {
		return err
	}
	o, err := readObject(r)
	if err != nil {
		return err
	}
	up := AccountUpdate{
		Name: o.text("name"), Environment: o.text("environment"), Description: o.text("description"), IntendedScope: o.text("intended_scope"),
		AbuseDetection: o.flag("abuse_detection"), Team: o.text("team"), CostCentre: o.text("cost_centre"),
	}
	up.RequestsPerSecond, up.BytesPerSecond = readLimits(o)
	if err := o.done(readOnly); err != nil {
		return err
	}
	expected, err := a.ifMatch(r, admin.Org, id)
	if err != nil {
		return err
	}
	acc, err := a.cfg.Store.UpdateAccount(r.Context(), a.by(r, admin), admin.Org, id, expected, up)
	if err != nil {
		return err
	}
	w.Header().Set("ETag", etag(acc))
	return WriteJSON(w, http.StatusOK, acc)
}

// ifMatch reads the version that the client expects, 0 for any. Of several the current one is taken where it is among them; the update checks again.
func (a *API) ifMatch(r *http.Request, org, id string) (int64, error) {
	values := r.Header.Values("If-Match")
	if len(values) == 0 {
		return 0, nil
	}
	var versions []int64
	for part := range strings.SplitSeq(strings.Join(values, ","), ",") {
		part = strings.TrimSpace(part)
		if part == "*" {
			return 0, nil
		}
		// A weak tag never matches strongly, and a tag that we never gave matches nothing.
		if n, err := strconv.ParseInt(strings.Trim(part, `"`), 10, 64); err == nil && n > 0 && strings.HasPrefix(part, `"`) {
			versions = append(versions, n)
		}
	}
	acc, err := a.cfg.Store.Account(r.Context(), org, id)
	if err != nil {
		return 0, err
	}
	for _, v := range versions {
		if v == acc.Version {
			return v, nil
		}
	}
	return 0, ErrStale
}

// deleteAnswer tells that the account is gone here, and how far the other edges are.
type deleteAnswer struct {
	Account    Account    `json:"account"`
	Revocation revocation `json:"revocation"`
}

func (a *API) deleteAccount(w http.ResponseWriter, r *http.Request, admin auth.Admin) error {
	id, err := accountID(r)
	if err != nil {
		return err
	}
	acc, rev, err := a.cfg.Store.DeleteAccount(r.Context(), a.by(r, admin), admin.Org, id)
	if err != nil {
		return err
	}
	return WriteJSON(w, http.StatusOK, deleteAnswer{acc, a.confirm(r, rev)})
}

func (a *API) accountKeys(w http.ResponseWriter, r *http.Request, admin auth.Admin) error {
	id, err := accountID(r)
	if err != nil {
		return err
	}
	keys, err := a.cfg.Store.AccountKeys(r.Context(), admin.Org, id)
	if err != nil {
		return err
	}
	return writePage(w, Page[Key]{Items: keys})
}

func (a *API) signalTypes(w http.ResponseWriter, _ *http.Request, _ auth.Admin) error {
	return WriteJSON(w, http.StatusOK, map[string]any{"items": a.cfg.SignalTypes()})
}
