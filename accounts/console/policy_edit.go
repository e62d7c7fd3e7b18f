package console

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"flowstate.inc/sluice/accounts"
	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/signals"
)

type draftPage struct {
	frame
	PolicyURL, ActivateURL string
	CopyURL                string // writes another draft that begins with this one; "" where the admin may not
	ID, By, Against        string
	At                     whenView
	Rules                  []ruleView
	Diff                   []ruleDiff
	Warnings               []signals.PolicyError
	Problem                string // why it can no longer be activated
	Version                int64  // that it became; 0 while it is a draft
	Stale                  bool   // another version is in force than when it was written: it can no longer be activated
	Base, Active           string // these two, in words
	MayActivate            bool
	Days                   int
	Spans                  []option
	Simulation             *simulationView
}

type simulationView struct {
	Signals, Changed, Fails int
	Truncated               bool
	Moves, Hits             []countRow
	Examples                []exampleRow
}

type countRow struct {
	Label string
	Count int
}

type exampleRow struct{ Type, Subject, Was, Would, By, URL string }

const (
	// simulateMost bounds what one page looks at: at some 2 µs a signal and rule it stays well within a second.
	simulateMost     = 20_000
	simulateExamples = 10
)

func draftURL(id string) string { return policyPath + "/drafts/" + url.PathEscape(id) }

// draft is the page on which one decides: what differs, what it would have done, and the button.
func (c *Console) draft(w http.ResponseWriter, r *http.Request, v *visit) error {
	return c.draftPage(w, r, v, http.StatusOK, "")
}

func (c *Console) draftPage(w http.ResponseWriter, r *http.Request, v *visit, status int, problem string) error {
	draft, err := c.signals.Draft(r.Context(), v.admin.Org, r.PathValue("id"))
	if err != nil {
		return err
	}
	active, err := c.activePolicy(r.Context(), v.admin.Org)
	if err != nil {
		return err
	}
	p := &draftPage{
		frame: c.frame(w, r, v, policyPath, "Policy draft"), PolicyURL: policyPath, ActivateURL: draftURL(draft.ID) + "/activate", ID: draft.ID, By: draft.CreatedBy,
		At: c.render.when(draft.CreatedAt), Rules: ruleViews(draft.Rules), Against: "no policy", Problem: problem, MayActivate: v.admin.Can(auth.AIPolicyAdmin), Days: 14,
	}
	var before []signals.Rule
	base := int64(0)
	if active != nil {
		before, base, p.Against = active.Rules, active.Version, "version "+strconv.FormatInt(active.Version, 10)+", in force"
	}
	p.Diff = diffRules(before, draft.Rules)
	if draft.Version != nil {
		p.Version = *draft.Version
	}
	p.Stale = p.Version == 0 && base != draft.BaseVersion
	p.Base, p.Active = versionWords(draft.BaseVersion), versionWords(base)
	if p.MayActivate {
		p.CopyURL = editPolicyURL(draft.ID)
	}
	for _, days := range []int{7, 14, 30, 90} {
		current := r.URL.Query().Get("days") == strconv.Itoa(days)
		if current {
			p.Days = days
		}
		p.Spans = append(p.Spans, option{Label: strconv.Itoa(days) + " days", URL: withParam(draftURL(draft.ID), "days", strconv.Itoa(days))})
	}
	for i := range p.Spans {
		p.Spans[i].Current = p.Spans[i].Label == strconv.Itoa(p.Days)+" days"
	}
	compiled, err := c.compiler.Compile(0, draft.Rules)
	var wrong signals.PolicyErrors
	switch {
	case errors.As(err, &wrong): // it compiled when it was saved: the types that are known have changed since
		p.Problem, p.Warnings, p.MayActivate = "It no longer holds together, so it can’t be activated.", wrong, false
	case err != nil:
		return err
	default:
		unknown, err := signals.UnknownAccounts(draft.Rules, func(id, name, environment string) (bool, error) {
			var a accounts.Account
			var err error
			if id != "" {
				a, err = c.store.Account(r.Context(), v.admin.Org, id)
			} else {
				a, err = c.store.AccountByName(r.Context(), v.admin.Org, name, environment)
			}
			if errors.Is(err, accounts.ErrNotFound) {
				return false, nil
			}
			return a.Live(), err
		})
		if err != nil {
			return err
		}
		p.Warnings = append(slices.Clip(compiled.Warnings), unknown...)
		if p.Simulation, err = c.simulate(r.Context(), v, compiled, p.Days); err != nil {
			return err
		}
	}
	return c.show(w, r, status, "draft", p)
}

func versionWords(n int64) string {
	if n == 0 {
		return "no policy"
	}
	return "version " + strconv.FormatInt(n, 10)
}

func (c *Console) simulate(ctx context.Context, v *visit, draft *signals.Policy, days int) (*simulationView, error) {
	s := c.decider.Simulate(draft)
	truncated, err := c.signals.Each(ctx, v.admin.Org, c.now().Add(-time.Duration(days)*24*time.Hour), simulateMost, func(a *signals.Alert) bool {
		s.Add(&a.Event)
		return true
	})
	if err != nil {
		return nil, err
	}
	view := &simulationView{Signals: s.Signals, Changed: s.Changed, Fails: s.RuleFails, Truncated: truncated, Moves: counts(s.Moves), Hits: counts(s.RuleHits)}
	for i, e := range s.Examples {
		if i == simulateExamples {
			break
		}
		row := exampleRow{Type: e.Type, Subject: e.Subject, Was: string(e.Severity), Would: string(e.Would), By: "no rule: as it was raised, or its environment’s cap"}
		if v.admin.Can(auth.AIGovernanceView) {
			row.URL = withParam(alertsPath+"?open=all", "alert", e.ID)
		}
		if e.WouldBy != nil {
			row.By = e.WouldBy.ID
		}
		view.Examples = append(view.Examples, row)
	}
	return view, nil
}

// counts brings a count by name into the order of the names.
func counts(m map[string]int) []countRow {
	rows := make([]countRow, 0, len(m))
	for _, name := range slices.Sorted(maps.Keys(m)) {
		rows = append(rows, countRow{Label: name, Count: m[name]})
	}
	return rows
}

func (c *Console) activate(w http.ResponseWriter, r *http.Request, v *visit) error {
	draft, err := c.signals.Draft(r.Context(), v.admin.Org, r.PathValue("id"))
	if err != nil {
		return err
	}
	if _, err := c.compiler.Compile(0, draft.Rules); err != nil {
		return c.draftPage(w, r, v, http.StatusConflict, "It no longer holds together, so it was not activated.")
	}
	_, err = c.signals.Activate(r.Context(), v.admin.Org, draft.ID, c.signalsBy(r, v))
	if errors.Is(err, signals.ErrActivated) {
		return c.draftPage(w, r, v, http.StatusConflict, "It was in force before. To go back to it, draft its version again.")
	}
	if errors.Is(err, signals.ErrStale) {
		return c.draftPage(w, r, v, http.StatusConflict, "It was not activated, and nothing has changed.")
	}
	if err != nil {
		return err
	}
	c.setToast(w, r, "activated", "1", "0")
	http.Redirect(w, r, policyPath, http.StatusSeeOther)
	return nil
}
