package console

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/signals"
)

const policyPath = "/settings/ai/policy"

type policyPage struct {
	frame
	Active   *versionView // nil: none yet
	Rules    []ruleView
	Drafts   []draftRow
	Versions []versionView
	MayDraft bool
	NewURL   string
	Version  *versionDrawer
}

type versionView struct {
	Number                  int64
	Active                  bool
	Rules                   string // how many, in words
	ActivatedAt, DraftedAt  whenView
	ActivatedBy, DraftedBy  string
	URL                     string
	activatedBySomebodyElse bool
}

// FourEyes says whether drafting and activating were done by two.
func (v versionView) FourEyes() bool { return v.activatedBySomebodyElse }

// A ruleView is one rule in words.
type ruleView struct {
	ID, Types, When, Action, Severity, Scope string
}

type draftRow struct {
	ID, URL, Rules, By string
	At                 whenView
}

type versionDrawer struct {
	versionView
	Against  string   // what the difference is to
	Others   []option // what it may be to instead
	Diff     []ruleDiff
	Rules    []ruleView
	CloseURL string
	DraftURL string // drafts a copy of it: the way to roll back; "" where the admin may not
}

// A ruleDiff is what became of one rule.
type ruleDiff struct {
	ID, What string // added, removed or changed
	Changes  []changeView
}

func (c *Console) policy(w http.ResponseWriter, r *http.Request, v *visit) error {
	p, err := c.policyPage(w, r, v)
	if err != nil {
		return err
	}
	q := r.URL.Query()
	if number := q.Get("version"); number != "" {
		if p.Version, err = c.versionDrawer(r.Context(), v, number, q.Get("against")); err != nil {
			return err
		}
	}
	return c.show(w, r, http.StatusOK, "policy", p)
}

// policyPage is the page without anything over it.
func (c *Console) policyPage(w http.ResponseWriter, r *http.Request, v *visit) (*policyPage, error) {
	p := &policyPage{frame: c.frame(w, r, v, policyPath, "Policy"), MayDraft: v.admin.Can(auth.AIPolicyAdmin), NewURL: editPolicyURL("active")}
	active, err := c.activePolicy(r.Context(), v.admin.Org)
	if err != nil {
		return nil, err
	}
	if active != nil {
		view := c.versionView(active)
		p.Active, p.Rules = &view, ruleViews(active.Rules)
	}
	versions, err := c.signals.PolicyVersions(r.Context(), v.admin.Org)
	if err != nil {
		return nil, err
	}
	for i := range versions {
		p.Versions = append(p.Versions, c.versionView(&versions[i]))
	}
	drafts, err := c.signals.Drafts(r.Context(), v.admin.Org)
	if err != nil {
		return nil, err
	}
	for _, d := range drafts {
		if d.Version == nil {
			p.Drafts = append(p.Drafts, draftRow{ID: d.ID, URL: draftURL(d.ID), Rules: countRules(len(d.Rules)), By: d.CreatedBy, At: c.render.when(d.CreatedAt)})
		}
	}
	return p, nil
}

// activePolicy is the version in force, nil where there is none yet.
func (c *Console) activePolicy(ctx context.Context, org string) (*signals.PolicyVersion, error) {
	active, err := c.signals.ActivePolicyVersion(ctx, org)
	if errors.Is(err, signals.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &active, nil
}

func (c *Console) versionView(p *signals.PolicyVersion) versionView {
	return versionView{
		Number: p.Version, Active: p.Active, Rules: countRules(len(p.Rules)), ActivatedAt: c.render.when(p.ActivatedAt), DraftedAt: c.render.when(p.DraftedAt),
		ActivatedBy: p.ActivatedBy, DraftedBy: p.DraftedBy, URL: policyPath + "?version=" + strconv.FormatInt(p.Version, 10),
		activatedBySomebodyElse: p.ActivatedBy != p.DraftedBy,
	}
}

// versionDrawer shows a version and what differs: from the one before it, or from another, such as the one in force.
func (c *Console) versionDrawer(ctx context.Context, v *visit, text, against string) (*versionDrawer, error) {
	number, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return nil, errNotFound
	}
	version, err := c.signals.PolicyVersion(ctx, v.admin.Org, number)
	if err != nil {
		return nil, err
	}
	d := &versionDrawer{versionView: c.versionView(&version), Against: "no policy", Rules: ruleViews(version.Rules), CloseURL: policyPath}
	if v.admin.Can(auth.AIPolicyAdmin) {
		d.DraftURL = editPolicyURL(strconv.FormatInt(version.Version, 10))
	}
	other := number - 1
	if against != "" {
		if other, err = strconv.ParseInt(against, 10, 64); err != nil {
			return nil, errNotFound
		}
	}
	active, err := c.activePolicy(ctx, v.admin.Org)
	if err != nil {
		return nil, err
	}
	var before []signals.Rule
	if other > 0 {
		earlier, err := c.signals.PolicyVersion(ctx, v.admin.Org, other)
		if err != nil {
			return nil, err
		}
		before, d.Against = earlier.Rules, versionWords(other)
	}
	for _, n := range []int64{number - 1, active.Version} { // there is a version, so one is in force
		if n == number || n < 1 || slices.ContainsFunc(d.Others, func(o option) bool { return o.Label == versionWords(n) }) {
			continue
		}
		d.Others = append(d.Others, option{Label: versionWords(n), Current: n == other, URL: withParam(d.URL, "against", strconv.FormatInt(n, 10))})
	}
	d.Diff = diffRules(before, version.Rules)
	return d, nil
}

func countRules(n int) string {
	if n == 1 {
		return "1 rule"
	}
	return strconv.Itoa(n) + " rules"
}

func ruleViews(rules []signals.Rule) []ruleView {
	views := make([]ruleView, len(rules))
	for i, r := range rules {
		views[i] = ruleView{ID: r.ID, Types: strings.Join(r.Types, ", "), When: r.When, Action: string(r.Action), Severity: string(actionSeverity(r.Action)), Scope: scopeWords(r.Scope)}
	}
	return views
}

// actionSeverity is what an action makes of a signal.
func actionSeverity(a signals.Action) signals.Severity {
	switch a {
	case signals.ActionBlock:
		return signals.Block
	case signals.ActionWarn:
		return signals.Warn
	}
	return signals.Info
}

func scopeWords(s signals.Scope) string {
	switch {
	case s.Org:
		return "the whole organisation"
	case len(s.Team) > 0:
		return "team " + strings.Join(s.Team, ", ")
	case len(s.CostCentre) > 0:
		return "cost centre " + strings.Join(s.CostCentre, ", ")
	case len(s.ServiceAccount) > 0:
		return "service account " + strings.Join(s.ServiceAccount, ", ")
	}
	return "nobody"
}

// diffRules says rule by rule, known by its id, what differs; what is the same is left out.
func diffRules(before, after []signals.Rule) []ruleDiff {
	var out []ruleDiff
	was, is := ruleViews(before), ruleViews(after)
	for _, r := range is {
		i := slices.IndexFunc(was, func(o ruleView) bool { return o.ID == r.ID })
		if i < 0 {
			out = append(out, ruleDiff{ID: r.ID, What: "added", Changes: ruleChanges(ruleView{}, r)})
		} else if was[i] != r {
			out = append(out, ruleDiff{ID: r.ID, What: "changed", Changes: ruleChanges(was[i], r)})
		}
	}
	for _, r := range was {
		if !slices.ContainsFunc(is, func(o ruleView) bool { return o.ID == r.ID }) {
			out = append(out, ruleDiff{ID: r.ID, What: "removed", Changes: ruleChanges(r, ruleView{})})
		}
	}
	return out
}

func ruleChanges(a, b ruleView) []changeView {
	var out []changeView
	for _, f := range [][3]string{{"Types", a.Types, b.Types}, {"Condition", a.When, b.When}, {"Action", a.Action, b.Action}, {"Scope", a.Scope, b.Scope}} {
		if f[1] != f[2] {
			out = append(out, changeView{Field: f[0], Before: f[1], After: f[2], HasBefore: f[1] != "", HasAfter: f[2] != ""})
		}
	}
	return out
}

// rulesNaming lists the rules of the active policy that name an account, by id or by name and environment.
func (c *Console) rulesNaming(ctx context.Context, org, id, name, environment string) ([]string, error) {
	active, err := c.activePolicy(ctx, org)
	if err != nil || active == nil {
		return nil, err
	}
	var out []string
	for _, r := range active.Rules {
		if slices.ContainsFunc(r.Scope.ServiceAccount, func(s string) bool { return s == id || strings.EqualFold(s, name+"/"+environment) }) {
			out = append(out, r.ID)
		}
	}
	return out, nil
}

// newPolicyTools makes what drafts are checked and simulated with.
func newPolicyTools(decider *signals.Decider) (*signals.Decider, *signals.PolicyCompiler, error) {
	if decider == nil {
		var err error
		if decider, err = signals.NewDecider(signals.DeciderConfig{}); err != nil {
			return nil, nil, fmt.Errorf("console: make the decider of simulations: %w", err)
		}
	}
	compiler, err := signals.NewPolicyCompiler(decider.Taxonomy())
	if err != nil {
		return nil, nil, fmt.Errorf("console: make the compiler of policies: %w", err)
	}
	return decider, compiler, nil
}
