package console

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"flowstate.inc/sluice/accounts"
	"flowstate.inc/sluice/auth"
)

// An eventView is one row of the audit log in words.
type eventView struct {
	Action, Target, TargetURL, Actor, Source string
	At                                       whenView
	Changed                                  bool // something was there before and after, so the difference is the point
	Changes                                  []changeView
}

type changeView struct {
	Field, Before, After string
	HasBefore, HasAfter  bool
}

type auditDay struct {
	Label  string
	Events []eventView
}

type auditPage struct {
	frame
	BaseURL               string
	Who, Since, Until     string
	TargetID, TargetLabel string
	Actions               []auditAction
	Days                  []auditDay
	CSVURL, NDJSONURL     string
	ClearURL              string
	NextURL, FirstURL     string
}

type auditAction struct {
	Value, Label string
	Current      bool
}

// auditWords says every action that this room and its neighbours write; another one is shown by its own name.
func auditWords() [][2]string {
	return [][2]string{
		{"service_account.created", "Created service account"},
		{"service_account.updated", "Edited service account"},
		{"service_account.deleted", "Deleted service account"},
		{"key.created", "Created key"},
		{"key.revoked", "Revoked key"},
		{"key.identified", "Looked up key"},
		{"token.created", "Created admin token"},
		{"token.revoked", "Revoked admin token"},
		{"session.created", "Signed in"},
		{"link.created", "Made a sign-in link"},
		{"org.created", "Created organisation"},
		{"org.keys_revoked", "Revoked all keys of the organisation"},
		{"token.identified", "Looked up admin token"},
		{"audit.pruned", "Removed old audit rows"},
		{"policy.drafted", "Drafted policy"},
		{"policy.activated", "Activated policy"},
		{"alert.resolved", "Resolved alert"},
		{"alert.reopened", "Reopened alert"},
	}
}

// An auditState is all that the log's address says.
type auditState struct {
	Actor, Action, Target, Since, Until, Cursor string // Since and Until are days, both inclusive, in UTC
}

func readAuditState(q url.Values) auditState {
	return auditState{
		Actor: strings.TrimSpace(q.Get("actor")), Action: q.Get("action"), Target: strings.TrimSpace(q.Get("target")),
		Since: q.Get("since"), Until: q.Get("until"), Cursor: q.Get("cursor"),
	}
}

func (s auditState) values() url.Values {
	q := url.Values{}
	for name, value := range map[string]string{
		"actor": s.Actor, "action": s.Action, "target": s.Target, "since": s.Since, "until": s.Until, "cursor": s.Cursor,
	} {
		if value != "" {
			q.Set(name, value)
		}
	}
	return q
}

func (s auditState) url(path string, more ...string) string {
	q := s.values()
	for i := 0; i+1 < len(more); i += 2 {
		q.Set(more[i], more[i+1])
	}
	if len(q) == 0 {
		return path
	}
	return path + "?" + q.Encode()
}

// bounds is from the first moment of Since to the one after Until.
func (s auditState) bounds() (time.Time, time.Time, error) {
	parse := func(day string) (time.Time, error) {
		if day == "" {
			return time.Time{}, nil
		}
		t, err := time.Parse(time.DateOnly, day)
		if err != nil {
			return time.Time{}, &badRequestError{text: "A day is written like 2026-03-31."}
		}
		return t, nil
	}
	since, err := parse(s.Since)
	if err != nil {
		return time.Time{}, time.Time{}, err
	}
	until, err := parse(s.Until)
	if err != nil {
		return time.Time{}, time.Time{}, err
	}
	if !until.IsZero() {
		until = until.AddDate(0, 0, 1)
	}
	return since, until, nil
}

func (s auditState) filter() (accounts.AuditFilter, error) {
	since, until, err := s.bounds()
	if err != nil {
		return accounts.AuditFilter{}, err
	}
	f := accounts.AuditFilter{Target: s.Target, Since: since, Until: until, Cursor: s.Cursor, Limit: pageRows}
	if s.Actor != "" {
		f.Actors = strings.Split(s.Actor, ",")
	}
	if s.Action != "" {
		f.Actions = strings.Split(s.Action, ",")
	}
	return f, nil
}

func (c *Console) audit(w http.ResponseWriter, r *http.Request, v *visit) error {
	s := readAuditState(r.URL.Query())
	filter, err := s.filter()
	if err != nil {
		return err
	}
	found, err := c.store.Audit(r.Context(), v.admin.Org, filter)
	var invalid *accounts.InvalidError
	if errors.As(err, &invalid) {
		return &badRequestError{text: "The address asks for a filter or a page that this log does not have."}
	}
	if err != nil {
		return err
	}
	all := s
	all.Cursor = ""
	p := &auditPage{
		frame: c.frame(w, r, v, auditPath, "Audit log"), BaseURL: auditPath, Who: s.Actor, Since: s.Since, Until: s.Until, TargetID: s.Target,
		CSVURL: all.url(auditPath+"/export", "format", "csv"), NDJSONURL: all.url(auditPath+"/export", "format", "ndjson"),
	}
	for _, words := range auditWords() {
		p.Actions = append(p.Actions, auditAction{Value: words[0], Label: words[1], Current: s.Action == words[0]})
	}
	if all != (auditState{}) {
		p.ClearURL = auditPath
	}
	for _, e := range found.Items {
		if day := e.At.UTC().Format("Monday, 2 January 2006"); len(p.Days) == 0 || p.Days[len(p.Days)-1].Label != day {
			p.Days = append(p.Days, auditDay{Label: day})
		}
		day := &p.Days[len(p.Days)-1]
		day.Events = append(day.Events, c.event(v, e))
		if s.Target != "" && p.TargetLabel == "" {
			p.TargetLabel = e.Target.Label
		}
	}
	if s.Target != "" && p.TargetLabel == "" {
		p.TargetLabel = s.Target
	}
	if s.Cursor != "" {
		p.FirstURL = all.url(auditPath)
	}
	if found.Next != "" {
		p.NextURL = all.url(auditPath, "cursor", found.Next)
	}
	return c.show(w, r, http.StatusOK, "audit", p)
}

// eventsOf is the latest of an account's audit rows.
func (c *Console) eventsOf(ctx context.Context, v *visit, id string) ([]eventView, error) {
	found, err := c.store.Audit(ctx, v.admin.Org, accounts.AuditFilter{Target: id, Limit: latestEvents})
	if err != nil {
		return nil, err
	}
	events := make([]eventView, len(found.Items))
	for i, e := range found.Items {
		events[i] = c.event(v, e)
		events[i].Target, events[i].TargetURL = "", "" // the page says it
	}
	return events, nil
}

func (c *Console) event(v *visit, e accounts.AuditEvent) eventView {
	view := eventView{Action: e.Action, Target: e.Target.Label, Actor: e.Actor, Source: e.Via, At: c.render.when(e.At)}
	for _, words := range auditWords() {
		if words[0] == e.Action {
			view.Action = words[1]
		}
	}
	if e.IP != "" {
		view.Source = e.IP + " (" + e.Via + ")"
	}
	if e.Target.Kind == string(auth.KindServiceAccount) && v.admin.Can(auth.SettingsIntegrationsUpdate) {
		view.TargetURL = accountURL(e.Target.ID)
	}
	before, after := auditFields(e.Before), auditFields(e.After)
	view.Changed = len(before) > 0 && len(after) > 0
	names := slices.Concat(slices.Collect(maps.Keys(before)), slices.Collect(maps.Keys(after)))
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		change := changeView{Field: fieldWords(name), Before: before[name], After: after[name]}
		change.HasBefore, change.HasAfter = change.Before != "", change.After != ""
		if change.HasBefore || change.HasAfter {
			view.Changes = append(view.Changes, change)
		}
	}
	return view
}

// auditFields is one side of a change with its values in words; what is empty or unset has none.
func auditFields(raw json.RawMessage) map[string]string {
	var values map[string]any
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	if len(raw) == 0 || dec.Decode(&values) != nil {
		return nil
	}
	out := map[string]string{}
	for name, value := range values {
		switch x := value.(type) {
		case nil:
		case string:
			out[name] = x
		case bool:
			out[name] = map[bool]string{true: "on", false: "off"}[x]
		case json.Number:
			if x != "0" {
				out[name] = x.String()
			}
		case []any:
			texts := make([]string, len(x))
			for i, item := range x {
				texts[i] = fmt.Sprint(item)
			}
			out[name] = strings.Join(texts, ", ")
		default:
			text, err := json.Marshal(x)
			if err == nil {
				out[name] = string(text)
			}
		}
	}
	return out
}

func fieldWords(name string) string {
	if strings.HasPrefix(name, "sig_") { // a signal's id, of a change of several
		return name
	}
	words := strings.ReplaceAll(name, "_", " ")
	if words == "" {
		return name
	}
	return strings.ToUpper(words[:1]) + words[1:]
}

type exportKey struct{}

// auditExport answers with the admin API's own export, for the same filter as the page: one writer of CSV, with formula
// characters defused, is enough.
func (c *Console) auditExport(w http.ResponseWriter, r *http.Request, v *visit) error {
	s := readAuditState(r.URL.Query())
	since, until, err := s.bounds()
	if err != nil {
		return err
	}
	q := s.values()
	q.Del("cursor")
	format := r.URL.Query().Get("format")
	if format != "csv" && format != "ndjson" {
		return &badRequestError{text: "The log is exported as csv or ndjson."}
	}
	q.Set("format", format)
	for name, t := range map[string]time.Time{"since": since, "until": until} {
		if !t.IsZero() {
			q.Set(name, t.Format(time.RFC3339))
		}
	}
	ctx := context.WithValue(r.Context(), exportKey{}, v.admin)
	inner := r.Clone(ctx)
	inner.URL = &url.URL{Path: "/api/v1/audit-events", RawQuery: q.Encode()}
	inner.RequestURI = inner.URL.RequestURI()
	c.export.ServeHTTP(w, inner)
	return nil
}

// newExport is the admin API behind the console's sign-in instead of a token; only auditExport reaches it.
func (c *Console) newExport() http.Handler {
	return accounts.NewAPI(accounts.APIConfig{
		Store: c.store, Logger: c.log, ClientIP: c.clientIP, Via: "console",
		Authenticate: func(r *http.Request) (auth.Admin, error) {
			admin, ok := r.Context().Value(exportKey{}).(auth.Admin)
			if !ok {
				return auth.Admin{}, accounts.ErrNoAdmin
			}
			return admin, nil
		},
	})
}
