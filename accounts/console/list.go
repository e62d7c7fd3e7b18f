package console

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"

	"flowstate.inc/sluice/accounts"
	"flowstate.inc/sluice/auth"
)

// pageRows keeps a page of the list below 60 KB with names of 80 characters.
const pageRows = 50

// A listState is all that the list's address says. Its zero value is the list as the menu opens it.
type listState struct {
	Q, Environment, State, Seen, Sort, Cursor string
}

func readListState(q url.Values) listState {
	return listState{
		Q: strings.TrimSpace(q.Get("q")), Environment: q.Get("environment"), State: q.Get("state"), Seen: q.Get("seen"),
		Sort: q.Get("sort"), Cursor: q.Get("cursor"),
	}
}

// url is the address of the list in this state.
func (s listState) url() string {
	q := url.Values{}
	for _, p := range s.params() {
		q.Set(p.Name, p.Value)
	}
	if s.Cursor != "" {
		q.Set("cursor", s.Cursor)
	}
	if s.Q != "" {
		q.Set("q", s.Q)
	}
	if len(q) == 0 {
		return accountsPath
	}
	return accountsPath + "?" + q.Encode()
}

// params are the filters and the order, which a new search keeps.
func (s listState) params() []hidden {
	var out []hidden
	for _, p := range []hidden{{"environment", s.Environment}, {"state", s.State}, {"seen", s.Seen}, {"sort", s.Sort}} {
		if p.Value != "" {
			out = append(out, p)
		}
	}
	return out
}

func (s listState) filtered() bool { return s.Environment != "" || s.State != "" || s.Seen != "" }

// with is the state after a change that begins the list anew.
func (s listState) with(change func(*listState)) listState {
	change(&s)
	s.Cursor = ""
	return s
}

func (s listState) filter() accounts.AccountFilter {
	f := accounts.AccountFilter{
		Q: s.Q, State: accounts.State(s.State), Seen: accounts.Seen(s.Seen), Sort: accounts.AccountSort(s.Sort), Cursor: s.Cursor, Limit: pageRows,
	}
	if s.Environment != "" {
		f.Environments = strings.Split(s.Environment, ",")
	}
	return f
}

type listPage struct {
	frame
	BaseURL, CreateURL string
	Query              string
	Kept               []hidden
	Filters            []menu
	ClearURL           string // "" while nothing is filtered
	ClearMore          bool   // filters beside the search
	Found              *foundKey
	Columns            []column
	Rows               []accountRow
	NextURL, FirstURL  string
	Empty              string // "", "none", "deleted" or "match": why there are no rows
	Deleted            int
	ShowDeletedURL     string
	Dialogs            accountDialogs
}

type menu struct {
	Label, Value string
	Set          bool
	Options      []option
}

type option struct {
	Label, URL string
	Current    bool
}

type column struct {
	Label, URL, Class string
	Sorted            string // ascending, descending, or "" where the list is not sorted by it
}

type accountRow struct {
	ID, Name, Environment, Label         string
	URL, EditURL, DeleteURL, RecreateURL string
	TwinURL                              string
	FirstSeen, LastSeen, DeletedAt       whenView
	AbuseDetection, Deleted              bool
}

// A foundKey says whose key, or which admin token, a searched prefix is of, and whether it still opens anything.
type foundKey struct {
	Prefix, Label, URL  string
	account             string // its id, where it is a service account's
	Token               bool
	State               string // active, revoked; a token's also expired
	RevokedBy           string
	RevokedAt, LastUsed whenView
	CreatedBy           string // of tokens, as Created
	Created             whenView
}

func (c *Console) list(w http.ResponseWriter, r *http.Request, v *visit) error {
	state := readListState(r.URL.Query())
	p, err := c.listPage(w, r, v, state)
	if err != nil {
		return err
	}
	if p.Dialogs, err = c.dialogs(r, v, state.url()); err != nil {
		return err
	}
	return c.show(w, r, http.StatusOK, "list", p)
}

// listPage is the list in one state, without a dialog over it.
func (c *Console) listPage(w http.ResponseWriter, r *http.Request, v *visit, s listState) (*listPage, error) {
	found, err := c.store.Accounts(r.Context(), v.admin.Org, s.filter())
	var invalid *accounts.InvalidError
	if errors.As(err, &invalid) {
		return nil, &badRequestError{text: "The address asks for a filter, an order or a page that this list does not have."}
	}
	if err != nil {
		return nil, err
	}
	p := &listPage{
		frame: c.frame(w, r, v, accountsPath, "AI Service Accounts"), BaseURL: accountsPath, CreateURL: withParam(s.url(), "create", "1"),
		Query: s.Q, Kept: s.params(), Filters: s.menus(), Columns: s.columns(), ClearMore: s.filtered(),
	}
	p.Shortcuts = append([]shortcut{{"c", "Create a service account"}}, p.Shortcuts...)
	if s.filtered() || s.Q != "" {
		p.ClearURL = listState{Sort: s.Sort}.url()
	}
	for _, a := range found.Items {
		p.Rows = append(p.Rows, c.row(a, s.url()))
	}
	if found.Next != "" {
		next := s
		next.Cursor = found.Next
		p.NextURL = next.url()
	}
	if s.Cursor != "" {
		p.FirstURL = s.with(func(*listState) {}).url()
	}
	if p.Found, err = c.foundKey(r.Context(), v, s.Q); err != nil {
		return nil, err
	}
	if p.Found != nil && p.Found.account != "" && len(p.Rows) == 0 && !s.filtered() { // found by text that names no account, such as a line that holds the key
		a, err := c.store.Account(r.Context(), v.admin.Org, p.Found.account)
		if err != nil {
			return nil, err
		}
		p.Rows = append(p.Rows, c.row(a, s.url()))
	}
	if len(p.Rows) == 0 {
		return p, c.sayWhyEmpty(r.Context(), v, s, p)
	}
	return p, nil
}

func (c *Console) row(a accounts.Account, here string) accountRow {
	row := accountRow{
		ID: a.ID, Name: a.Name, Environment: a.Environment, Label: label(a), URL: accountURL(a.ID),
		FirstSeen: c.render.when(a.FirstSeenAt), LastSeen: c.render.when(a.LastSeenAt), DeletedAt: c.render.when(a.DeletedAt),
		AbuseDetection: a.AbuseDetection, Deleted: !a.Live(),
	}
	again := withParam(withParam(here, "create", "1"), "from", a.ID)
	if row.Deleted {
		row.RecreateURL = again
	} else {
		row.EditURL, row.DeleteURL, row.TwinURL = withParam(here, "edit", a.ID), withParam(here, "delete", a.ID), again
	}
	return row
}

// foundKey looks at a search that holds a key's prefix or enough of its beginning, of whatever kind of subject, or an admin token's. Asking by a
// whole key or its hash, which leaves a trace in the audit, is the admin API's identify.
func (c *Console) foundKey(ctx context.Context, v *visit, q string) (*foundKey, error) {
	i, err := c.store.FindByPrefix(ctx, v.admin.Org, q)
	if errors.Is(err, accounts.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if t := i.Token; t != nil {
		return &foundKey{Prefix: t.Prefix, Label: "admin " + i.Subject().Label, Token: true, State: t.State(c.now()), CreatedBy: t.CreatedBy, Created: c.render.when(t.CreatedAt),
			RevokedBy: t.RevokedBy, RevokedAt: c.render.when(t.RevokedAt)}, nil
	}
	k := i.Key
	found := &foundKey{
		Prefix: k.Prefix, Label: k.Label, State: k.State(), RevokedBy: k.RevokedBy,
		RevokedAt: c.render.when(k.RevokedAt), LastUsed: c.render.when(k.LastUsedAt),
	}
	if k.Kind == auth.KindServiceAccount {
		found.URL, found.account = accountURL(k.SubjectID), k.SubjectID
	}
	return found, nil
}

func (c *Console) sayWhyEmpty(ctx context.Context, v *visit, s listState, p *listPage) error {
	counts, err := c.store.CountAccounts(ctx, v.admin.Org)
	if err != nil {
		return err
	}
	p.Deleted, p.ShowDeletedURL = counts.Deleted, listState{State: string(accounts.StateDeleted)}.url()
	switch {
	case counts.Live == 0 && counts.Deleted == 0:
		p.Empty = "none"
	case counts.Live == 0 && s.Q == "" && !s.filtered():
		p.Empty = "deleted"
	default:
		p.Empty = "match"
		if p.ClearURL == "" { // only a cursor past the end comes here without a filter
			p.ClearURL = accountsPath
		}
	}
	return nil
}

func (s listState) menus() []menu {
	make1 := func(label, now string, set func(*listState, string), options [][2]string) menu {
		m := menu{Label: label, Set: now != ""}
		for _, o := range options {
			value, text := o[0], o[1]
			m.Options = append(m.Options, option{Label: text, Current: value == now, URL: s.with(func(s *listState) { set(s, value) }).url()})
			if value == now {
				m.Value = text
			}
		}
		if m.Set && m.Value == "" { // several values by hand, as the admin API takes them
			m.Value = now
		}
		return m
	}
	return []menu{
		make1("Environment", s.Environment, func(s *listState, to string) { s.Environment = to },
			[][2]string{{"", "Every environment"}, {auth.Production, auth.Production}, {auth.Staging, auth.Staging}, {auth.Development, auth.Development}}),
		make1("Seen", s.Seen, func(s *listState, to string) { s.Seen = to },
			[][2]string{{"", "Seen or not"}, {string(accounts.SeenNever), "never seen"}, {string(accounts.SeenIdle), "idle for 30 days"}}),
		make1("State", s.State, func(s *listState, to string) { s.State = to },
			[][2]string{{"", "Live"}, {string(accounts.StateDeleted), "deleted"}, {string(accounts.StateAll), "live and deleted"}}),
	}
}

func (s listState) columns() []column {
	now := s.Sort
	if now == "" {
		now = string(accounts.SortName)
		if s.Seen != "" {
			now = string(accounts.SortLastSeen)
		}
	}
	sortable := func(label string, by accounts.AccountSort, latestFirst bool) column {
		up, down := string(by), "-"+string(by)
		next, col := up, column{Label: label}
		if latestFirst {
			next = down
		}
		switch now {
		case up:
			col.Sorted, next = "ascending", down
		case down:
			col.Sorted, next = "descending", up
		}
		col.URL = s.with(func(s *listState) { s.Sort = next }).url()
		return col
	}
	return []column{
		sortable("Name", accounts.SortName, false),
		sortable("Environment", accounts.SortEnvironment, false),
		sortable("First seen", accounts.SortFirstSeen, true),
		sortable("Last seen", accounts.SortLastSeen, true),
		{Label: "Abuse detection"},
		{Label: "Actions", Class: "acts"},
	}
}
