package accounts

import (
	"net/http"

	"flowstate.inc/sluice/auth"
)

func (a *API) listKeys(w http.ResponseWriter, r *http.Request, admin auth.Admin) error {
	q, err := readQuery(r)
	if err != nil {
		return err
	}
	f := KeyFilter{Revoked: q.flag("revoked"), Cursor: q.text("cursor"), Limit: q.limit()}
	for _, k := range distinct(q.list("kind")) {
		f.Kinds = append(f.Kinds, auth.Kind(k))
	}
	if err := q.done(); err != nil {
		return err
	}
	p, err := a.cfg.Store.Keys(r.Context(), admin.Org, f)
	if err != nil {
		return err
	}
	return writePage(w, p)
}

// keyAnswer carries the raw key, which is nowhere else, ever.
type keyAnswer struct {
	Item Key    `json:"item"`
	Key  string `json:"key"`
}

func (a *API) createKey(w http.ResponseWriter, r *http.Request, admin auth.Admin) error {
	o, err := readObject(r)
	if err != nil {
		return err
	}
	var in NewKey
	var kind string
	set(&kind, o.text("kind"))
	set(&in.ID, o.text("id"))
	set(&in.Name, o.text("name"))
	in.Kind = auth.Kind(kind)
	if err := o.done(nil); err != nil {
		return err
	}
	k, raw, err := a.cfg.Store.CreateKey(r.Context(), a.by(r, admin), admin.Org, in)
	if err != nil {
		return err
	}
	return WriteJSON(w, http.StatusCreated, keyAnswer{k, raw})
}

func (a *API) revokeKey(w http.ResponseWriter, r *http.Request, admin auth.Admin) error {
	// A whole key in the path is taken as its prefix: whoever found it wants it dead.
	prefix, ok := auth.PrefixOf(r.PathValue("prefix"))
	if !ok {
		return ErrNotFound
	}
	k, rev, err := a.cfg.Store.RevokeKey(r.Context(), a.by(r, admin), admin.Org, prefix)
	if err != nil {
		return err
	}
	return WriteJSON(w, http.StatusOK, struct {
		Item       Key        `json:"item"`
		Revocation revocation `json:"revocation"`
	}{k, a.confirm(r, rev)})
}

// identifiedKey is the key within the answer of identify.
type identifiedKey struct {
	Prefix     string  `json:"prefix"`
	State      string  `json:"state"`
	CreatedAt  *string `json:"created_at"`
	RevokedAt  *string `json:"revoked_at"`
	RevokedBy  *string `json:"revoked_by"`
	LastUsedAt *string `json:"last_used_at"`
}

func (a *API) identify(w http.ResponseWriter, r *http.Request, admin auth.Admin) error {
	o, err := readObject(r)
	if err != nil {
		return err
	}
	var q Query
	set(&q.Raw, o.text("key"))
	set(&q.Prefix, o.text("prefix"))
	set(&q.SHA256, o.text("sha256"))
	if err := o.done(nil); err != nil {
		return err
	}
	found, err := a.cfg.Store.Identify(r.Context(), a.by(r, admin), admin.Org, q)
	if err != nil {
		return err
	}
	return WriteJSON(w, http.StatusOK, a.identified(found))
}

type identifiedAnswer struct {
	Subject Subject       `json:"subject"`
	Account *Account      `json:"account"`
	Key     identifiedKey `json:"key"`
	Token   *AdminToken   `json:"admin_token"`
	FoundBy string        `json:"found_by"`
}

func (a *API) identified(found Identified) identifiedAnswer {
	k, t := found.Key, found.Token
	out := identifiedAnswer{found.Subject(), found.Account, identifiedKey{found.Prefix(), k.State(), jsonTime(k.CreatedAt), jsonTime(k.RevokedAt),
		jsonText(k.RevokedBy), jsonTime(k.LastUsedAt)}, t, found.FoundBy}
	if t != nil {
		out.Key = identifiedKey{t.Prefix, t.State(a.cfg.Store.now()), jsonTime(t.CreatedAt), jsonTime(t.RevokedAt), jsonText(t.RevokedBy), nil}
	}
	return out
}
