package console

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/signals"
)

const alertsPath = "/ai/alerts"

// An alertState is all that the address of Alerts says. Its zero value is what the menu opens: open ones of WARN and above,
// the newest first.
type alertState struct {
	All                  bool // resolved ones too
	Severities           []signals.Severity
	Categories           []signals.Category
	Environment          string
	Account, Type        string
	Since, Until         time.Time
	Sort                 string
	Cursor               string
	SinceText, UntilText string
	badValues            bool // a time that is none
}

// catPrefix makes one parameter for each category: cat:contentSafety.
const catPrefix = "cat:"

func readAlertState(q url.Values) alertState {
	s := alertState{
		All: q.Get("open") == "all", Environment: q.Get("environment"), Account: q.Get("account"), Type: strings.TrimSpace(q.Get("type")),
		Sort: q.Get("sort"), Cursor: q.Get("cursor"), SinceText: q.Get("since"), UntilText: q.Get("until"),
	}
	for v := range strings.SplitSeq(q.Get("severity"), ",") {
		if v != "" {
			s.Severities = append(s.Severities, signals.Severity(strings.ToUpper(v)))
		}
	}
	for _, c := range signals.Categories() {
		if q.Has(catPrefix + string(c)) {
			s.Categories = append(s.Categories, c)
		}
	}
	for _, bound := range []struct {
		text string
		at   *time.Time
	}{{s.SinceText, &s.Since}, {s.UntilText, &s.Until}} {
		if bound.text == "" {
			continue
		}
		t, err := time.Parse(time.RFC3339, bound.text)
		if err != nil {
			s.badValues = true
			continue
		}
		*bound.at = t
	}
	return s
}

func (s alertState) url() string {
	q := url.Values{}
	if s.All {
		q.Set("open", "all")
	}
	if len(s.Severities) > 0 {
		texts := make([]string, len(s.Severities))
		for i, v := range s.Severities {
			texts[i] = string(v)
		}
		q.Set("severity", strings.Join(texts, ","))
	}
	for _, c := range s.Categories {
		q.Set(catPrefix+string(c), "1")
	}
	for name, value := range map[string]string{
		"environment": s.Environment, "account": s.Account, "type": s.Type, "sort": s.Sort, "cursor": s.Cursor, "since": s.SinceText, "until": s.UntilText,
	} {
		if value != "" {
			q.Set(name, value)
		}
	}
	if len(q) == 0 {
		return alertsPath
	}
	return alertsPath + "?" + q.Encode()
}

// with is the state after a change that begins the list anew.
func (s alertState) with(change func(*alertState)) alertState {
	s.Severities, s.Categories = slices.Clone(s.Severities), slices.Clone(s.Categories)
	change(&s)
	s.Cursor = ""
	return s
}

// severities are those that are shown: INFO only when asked for.
func (s alertState) severities() []signals.Severity {
	if len(s.Severities) == 0 {
		return []signals.Severity{signals.Block, signals.Warn}
	}
	return s.Severities
}

func (s alertState) filter() signals.AlertFilter {
	f := signals.AlertFilter{
		Severities: s.severities(), Categories: s.Categories, Account: s.Account, Since: s.Since, Until: s.Until,
		Sort: signals.AlertSort(s.Sort), Cursor: s.Cursor, Limit: pageRows,
	}
	if !s.All {
		open := true
		f.Open = &open
	}
	if s.Environment != "" {
		f.Environments = strings.Split(s.Environment, ",")
	}
	if s.Type != "" {
		f.Types = strings.Split(s.Type, ",")
	}
	return f
}

type alertsPage struct {
	frame
	BaseURL                  string
	Unacknowledged           string
	OpenOnly                 chip
	Severities, Categories   []chip
	Menus                    []menu
	Only                     []chip // filters that have no chip of their own: an account, a type, a time
	ClearURL                 string
	Chart                    *chart
	Columns                  []column
	Rows                     []alertRow
	Back                     string
	NewURL                   string // tells of what arrives; "" while it could not stand on this page
	Announce                 bool   // what arrives would stand anywhere in this order: it is announced, and put in its place when asked for
	NextURL, FirstURL        string
	Calm                     bool // nothing is open, with no filter of the reader's
	Alert                    *alertDrawer
	MayResolve               bool
	AnyOpenRows, AnyDoneRows bool
}

// A chip is a filter that is on or off.
type chip struct {
	Label, URL, Severity string
	Badge                *badgeView // instead of the label
	On                   bool
}

type alertRow struct {
	ID, Type, Category, Severity, URL string
	Badge                             *badgeView
	Subject                           string // where there is no badge
	Detected                          whenView
	Open                              bool
	Resolution                        string
}

// A badgeView is the service badge.
type badgeView struct{ Name, Environment, URL string }

type alertDrawer struct {
	ID, Type, Category, CategoryWords, Severity, BaseSeverity string
	Subject                                                   string
	Badge                                                     *badgeView
	Description, IntendedScope                                string
	AbuseDetection                                            bool
	OnlyURL                                                   string // this account's signals alone
	OnlyTypeURL                                               string
	KeyPrefix, Session, SourceID, Owner                       string
	TriedFrom, RefusalsURL                                    string // of a revoked key that is used again: where it came from, and all its tries
	Rule                                                      string
	Detected, Received, ResolvedAt                            whenView
	Details                                                   string
	Open                                                      bool
	Resolution, Note, ResolvedBy                              string
	CloseURL, Back                                            string
	Explained                                                 *explainView
}

func (c *Console) alerts(w http.ResponseWriter, r *http.Request, v *visit) error {
	s := readAlertState(r.URL.Query())
	made := c.now()
	if err := c.live.catchUp(r.Context(), c.signals, v.admin.Org, made); err != nil {
		return err
	}
	found, err := c.signals.Alerts(r.Context(), v.admin.Org, s.filter())
	if errors.Is(err, signals.ErrBadQuestion) || s.badValues {
		return &badRequestError{text: "The address asks for a filter, an order or a page that Alerts does not have."}
	}
	if err != nil {
		return err
	}
	p := &alertsPage{frame: c.frame(w, r, v, alertsPath, "Alerts and signals"), BaseURL: alertsPath, Back: s.url(), Columns: s.columns()}
	p.Shortcuts = []shortcut{
		{"j", "Next signal"}, {"k", "Signal before"}, {"Enter", "Open the signal"}, {"e", "Acknowledge it"}, {"u", "Undo, or reopen it"},
		{"?", "Show this list"}, {"Esc", "Close the drawer"},
	}
	n, err := c.live.unacknowledged(r.Context(), c.signals, v.admin.Org, c.now())
	if err != nil {
		return err
	}
	p.Unacknowledged = countWords(n)
	p.filters(s, c.accountChip(r.Context(), v, s))
	if p.Chart, err = c.chart(r.Context(), v.admin.Org, s); err != nil {
		return err
	}
	for i := range found.Items {
		row := c.alertRow(v, &found.Items[i], s.url())
		p.AnyOpenRows, p.AnyDoneRows = p.AnyOpenRows || row.Open, p.AnyDoneRows || !row.Open
		p.Rows = append(p.Rows, row)
	}
	if s.Cursor == "" && s.Until.IsZero() {
		p.Announce = s.Sort != "" && s.Sort != string(signals.SortNewest)
		p.NewURL = withParam(alertsPath+"/new"+strings.TrimPrefix(s.url(), alertsPath), "after", made.UTC().Format(time.RFC3339Nano))
	}
	if found.NextCursor != "" {
		next := s
		next.Cursor = found.NextCursor
		p.NextURL = next.url()
	}
	if s.Cursor != "" {
		p.FirstURL = s.with(func(*alertState) {}).url()
	}
	p.Calm = p.ClearURL == ""
	if id := r.URL.Query().Get("alert"); id != "" {
		a, err := c.signals.Alert(r.Context(), v.admin.Org, id)
		if err != nil {
			return err
		}
		p.Alert = c.alertDrawer(v, &a, s)
		if p.Alert.Explained, err = c.explain(r.Context(), v.admin.Org, &a.Event); err != nil {
			return err
		}
	}
	return c.show(w, r, http.StatusOK, "alerts", p)
}

// accountChip is the filter of one account, as its badge: deleted accounts have one too. An id that is nobody's stays without.
func (c *Console) accountChip(ctx context.Context, v *visit, s alertState) *chip {
	if s.Account == "" {
		return nil
	}
	ch := &chip{Label: "One account", URL: s.with(func(s *alertState) { s.Account = "" }).url()}
	if a, err := c.store.Account(ctx, v.admin.Org, s.Account); err == nil {
		ch.Badge = &badgeView{Name: a.Name, Environment: a.Environment}
	}
	return ch
}

func (p *alertsPage) filters(s alertState, account *chip) {
	p.OpenOnly = chip{Label: "Open only", On: !s.All, URL: s.with(func(s *alertState) { s.All = !s.All }).url()}
	shown := s.severities()
	for _, severity := range []signals.Severity{signals.Block, signals.Warn, signals.Info} {
		next := toggled(shown, severity)
		slices.Sort(next)
		if len(next) == 0 || slices.Equal(next, []signals.Severity{signals.Block, signals.Warn}) {
			next = nil // as the menu opens it
		}
		p.Severities = append(p.Severities, chip{Severity: string(severity), Label: string(severity), On: slices.Contains(shown, severity),
			URL: s.with(func(s *alertState) { s.Severities = next }).url()})
	}
	for _, category := range signals.Categories() {
		p.Categories = append(p.Categories, chip{Label: categoryWords(category), On: slices.Contains(s.Categories, category),
			URL: s.with(func(s *alertState) { s.Categories = toggled(s.Categories, category) }).url()})
	}
	environment := menu{Label: "Environment", Value: s.Environment, Set: s.Environment != ""}
	for _, value := range []string{"", auth.Production, auth.Staging, auth.Development} {
		text := value
		if value == "" {
			text = "Every environment"
		}
		environment.Options = append(environment.Options, option{Label: text, Current: s.Environment == value,
			URL: s.with(func(s *alertState) { s.Environment = value }).url()})
	}
	p.Menus = []menu{environment}
	if account != nil {
		p.Only = append(p.Only, *account)
	}
	if s.Type != "" {
		p.Only = append(p.Only, chip{Label: s.Type, URL: s.with(func(s *alertState) { s.Type = "" }).url()})
	}
	if s.SinceText+s.UntilText != "" {
		p.Only = append(p.Only, chip{Label: span(s.Since, s.Until), URL: s.with(func(s *alertState) {
			s.Since, s.Until, s.SinceText, s.UntilText = time.Time{}, time.Time{}, "", ""
		}).url()})
	}
	if s.All || len(s.Severities)+len(s.Categories) > 0 || s.Environment+s.Account+s.Type+s.SinceText+s.UntilText != "" {
		p.ClearURL = alertState{Sort: s.Sort}.url()
	}
}

func toggled[T comparable](list []T, item T) []T {
	if i := slices.Index(list, item); i >= 0 {
		return slices.Delete(slices.Clone(list), i, i+1)
	}
	return append(slices.Clone(list), item)
}

// span says a bounded time in words.
func span(since, until time.Time) string {
	const minute = "2 Jan, 15:04"
	switch {
	case since.IsZero():
		return "until " + until.UTC().Format(minute)
	case until.IsZero():
		return "since " + since.UTC().Format(minute)
	}
	return since.UTC().Format(minute) + " to " + until.UTC().Format(minute)
}

// categoryWords says a category as a person would.
func categoryWords(c signals.Category) string {
	switch c {
	case signals.ContentSafety:
		return "Content safety"
	case signals.BrandUsage:
		return "Brand and usage"
	case signals.Budget:
		return "Budget"
	case signals.Operational:
		return "Operational"
	}
	return "Other"
}

func resolutionWords(r signals.Resolution) string {
	switch r {
	case signals.Acknowledged:
		return "Acknowledged"
	case signals.FalsePositive:
		return "False positive"
	case signals.Escalated:
		return "Escalated"
	}
	return ""
}

func (s alertState) columns() []column {
	now := s.Sort
	if now == "" {
		now = string(signals.SortNewest)
	}
	sortable := func(label string, by signals.AlertSort, first string) column {
		col, next := column{Label: label}, first
		switch now {
		case string(by):
			col.Sorted, next = "ascending", "-"+string(by)
		case "-" + string(by):
			col.Sorted, next = "descending", string(by)
		}
		col.URL = s.with(func(s *alertState) { s.Sort = next }).url()
		return col
	}
	return []column{
		sortable("Severity", signals.SortSeverity, string(signals.SortLoudest)),
		sortable("Signal", signals.SortType, string(signals.SortType)),
		{Label: "Subject"},
		sortable("Detected", signals.SortDetected, string(signals.SortNewest)),
		{Label: "State"},
	}
}

func (c *Console) badge(v *visit, s *signals.EventService) *badgeView {
	if s == nil {
		return nil
	}
	b := &badgeView{Name: s.Name, Environment: s.Environment}
	if v.admin.Can(auth.SettingsIntegrationsUpdate) {
		b.URL = accountURL(s.ID)
	}
	return b
}

func (c *Console) alertRow(v *visit, a *signals.Alert, here string) alertRow {
	e := &a.Event
	row := alertRow{
		ID: e.ID, Type: e.Type, Category: categoryWords(e.Category), Severity: string(e.Severity), URL: withParam(here, "alert", e.ID),
		Subject: e.Subject.Label, Detected: c.render.when(e.DetectedAt), Open: a.Open(), Resolution: resolutionWords(a.Resolution),
	}
	if row.Badge = c.badge(v, e.Service); row.Badge != nil {
		row.Badge.URL = "" // the row leads to the drawer, which has the link
	}
	return row
}

func (c *Console) alertDrawer(v *visit, a *signals.Alert, s alertState) *alertDrawer {
	e := &a.Event
	d := &alertDrawer{
		ID: e.ID, Type: e.Type, Category: string(e.Category), CategoryWords: categoryWords(e.Category), Severity: string(e.Severity), BaseSeverity: string(e.BaseSeverity),
		Subject: e.Subject.Label, Badge: c.badge(v, e.Service), KeyPrefix: e.KeyPrefix, Session: e.SessionID, SourceID: e.SourceID,
		Detected: c.render.when(e.DetectedAt), Received: c.render.when(e.ReceivedAt), ResolvedAt: c.render.when(a.ResolvedAt),
		Open: a.Open(), Resolution: resolutionWords(a.Resolution), Note: a.Note, ResolvedBy: a.ResolvedBy, CloseURL: s.url(), Back: s.url(),
		Details: indented(e.Details), OnlyTypeURL: alertState{Type: e.Type}.url(),
	}
	if e.Service != nil {
		d.Description, d.IntendedScope, d.AbuseDetection = e.Service.Description, e.Service.IntendedScope, e.Service.AbuseDetection
		d.OnlyURL = alertState{Account: e.Service.ID}.url()
	}
	if e.Subject.Owner != nil {
		d.Owner = e.Subject.Owner.Label
	}
	if e.Rule != nil {
		d.Rule = ruleWords(e.Rule)
	}
	if e.Type == signals.KeyMisuseDetected {
		var details struct {
			Address string `json:"address"`
		}
		if json.Unmarshal(e.Details, &details) == nil {
			d.TriedFrom = details.Address
		}
		if v.admin.Can(auth.SettingsIntegrationsUpdate) && e.KeyPrefix != "" {
			d.RefusalsURL = withParam(refusalsPath, "q", e.KeyPrefix)
		}
	}
	return d
}

func indented(raw json.RawMessage) string {
	var buf bytes.Buffer
	if len(raw) == 0 || json.Indent(&buf, raw, "", "  ") != nil {
		return "{}"
	}
	return buf.String()
}
