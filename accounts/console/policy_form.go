package console

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"flowstate.inc/sluice/signals"
)

const (
	policyEditPath   = policyPath + "/edit"
	policyDraftsPath = policyPath + "/drafts"
)

// editPolicyURL leads to the form, filled with the rules in force ("active"), those of a version or those of a draft.
func editPolicyURL(from string) string { return policyEditPath + "?from=" + url.QueryEscape(from) }

// A policyEditor is the page on which a draft is written, as a form or as the JSON that the admin API takes. Adding and removing
// rules, and going from one to the other, is a post that saves nothing, so that all of it works without JavaScript.
type policyEditor struct {
	frame
	PolicyURL, Action string
	From              string // what it was filled with, in words
	Base              string // the version in force when it was opened
	JSON              bool
	Text              string // the rules as JSON
	Rules             []ruleForm
	Errors            []ruleError
	Kinds             []categoryTypes
	Variables         []signals.Variable
}

// A ruleForm is one rule as it was typed.
type ruleForm struct {
	N                      int
	Number                 int // as people count
	ID, Types, When, Names field
	Action, Scope          selection
}

// A selection is a field with a closed list of values, one of which is chosen.
type selection struct {
	ID, Name, Label, Value, Error string
	Options                       []selected
}

type selected struct {
	Value, Label string
	On           bool
}

// A ruleError is one thing that is wrong, and where.
type ruleError struct{ Rule, Where, Detail, URL string }

type categoryTypes struct {
	Category, Words string
	Types           []string
}

// policyEdit begins with the rules in force, or those of a version or a draft: to roll back, one drafts an old version again.
func (c *Console) policyEdit(w http.ResponseWriter, r *http.Request, v *visit) error {
	from := r.URL.Query().Get("from")
	rules, words, err := c.rulesOf(r.Context(), v.admin.Org, from)
	if err != nil {
		return err
	}
	p := c.policyEditor(w, r, v, words)
	active, err := c.activePolicy(r.Context(), v.admin.Org)
	if err != nil {
		return err
	}
	p.Base = "0"
	if active != nil {
		p.Base = strconv.FormatInt(active.Version, 10)
	}
	p.JSON = r.URL.Query().Get("view") == "json"
	if len(rules) == 0 {
		rules = []signals.Rule{{Action: signals.ActionObserve, Scope: signals.Scope{Org: true}}}
	}
	if err := p.fill(rules); err != nil {
		return err
	}
	if len(p.Rules) > 0 {
		p.Rules[0].ID.Focus = true
	}
	return c.show(w, r, http.StatusOK, "editor", p)
}

func (c *Console) rulesOf(ctx context.Context, org, from string) ([]signals.Rule, string, error) {
	if from == "" || from == "active" {
		active, err := c.activePolicy(ctx, org)
		if err != nil || active == nil {
			return nil, "", err
		}
		return active.Rules, "version " + strconv.FormatInt(active.Version, 10) + ", in force", nil
	}
	if number, err := strconv.ParseInt(from, 10, 64); err == nil {
		version, err := c.signals.PolicyVersion(ctx, org, number)
		return version.Rules, "version " + from, err
	}
	draft, err := c.signals.Draft(ctx, org, from)
	return draft.Rules, "the draft by " + draft.CreatedBy, err
}

func (c *Console) policyEditor(w http.ResponseWriter, r *http.Request, v *visit, from string) *policyEditor {
	p := &policyEditor{frame: c.frame(w, r, v, policyPath, "Draft a new version"), PolicyURL: policyPath, Action: policyDraftsPath, From: from, Variables: signals.Variables()}
	for _, category := range signals.Categories() {
		kind := categoryTypes{Category: string(category), Words: categoryWords(category)}
		for _, t := range c.decider.Taxonomy().Types() {
			if t.Category == category {
				kind.Types = append(kind.Types, t.Type)
			}
		}
		p.Kinds = append(p.Kinds, kind)
	}
	return p
}

// fill shows rules in both forms.
func (p *policyEditor) fill(rules []signals.Rule) error {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if rules == nil {
		rules = []signals.Rule{}
	}
	if err := enc.Encode(map[string]any{"rules": rules}); err != nil {
		return fmt.Errorf("encode the rules: %w", err)
	}
	p.Text = cutKeys(buf.String())
	p.Rules = nil
	for i, r := range rules {
		p.Rules = append(p.Rules, newRuleForm(i, r))
	}
	return nil
}

// scopeKinds are the scopes as the form names them.
var scopeKinds = []selected{
	{Value: "org", Label: "The whole organisation"}, {Value: "team", Label: "Teams"}, {Value: "cost_centre", Label: "Cost centres"}, {Value: "service_account", Label: "Service accounts"},
}

func newRuleForm(n int, r signals.Rule) ruleForm {
	at := func(name string) string { return "r" + strconv.Itoa(n) + "-" + name }
	text := func(name, label, value string) field {
		return field{ID: at(name), Name: at(name), Label: label, Value: cutKeys(value)}
	}
	choose := func(name, label, value string, options ...selected) selection {
		for i := range options {
			options[i].On = options[i].Value == value
		}
		return selection{ID: at(name), Name: at(name), Label: label, Value: value, Options: options}
	}
	f := ruleForm{N: n, Number: n + 1, ID: text("id", "Name of the rule", r.ID), Types: text("types", "Signals", strings.Join(r.Types, ", ")), When: text("when", "Condition", r.When)}
	f.ID.Help, f.ID.Placeholder, f.ID.Required = "Stands in every event that it decides. Letters, digits, dots, dashes and underscores.", "no-pii-in-prompts", true
	f.Types.Help, f.Types.Placeholder, f.Types.Required = "Types or categories, separated by commas.", "pii_detected, contentSafety", true
	f.When.Multiline, f.When.Help, f.When.Placeholder = true, "CEL over the signal; empty holds always.", `has(details.amount) && details.amount > 100`
	f.Action = choose("action", "Sets", string(r.Action), selected{Value: "OBSERVE", Label: "INFO (OBSERVE)"}, selected{Value: "WARN", Label: "WARN"}, selected{Value: "BLOCK", Label: "BLOCK"})
	kind, names := "org", []string(nil)
	switch s := r.Scope; {
	case len(s.ServiceAccount) > 0:
		kind, names = "service_account", s.ServiceAccount
	case len(s.CostCentre) > 0:
		kind, names = "cost_centre", s.CostCentre
	case len(s.Team) > 0:
		kind, names = "team", s.Team
	}
	f.Scope = choose("scope", "For", kind, slices.Clone(scopeKinds)...)
	f.Names = text("names", "Which ones", strings.Join(names, "\n"))
	f.Names.Multiline, f.Names.Help, f.Names.Placeholder = true, "One a line; not for the whole organisation. An account by name/environment, so that the rule survives delete and recreate.", "nightly-digest-summariser/production"
	return f
}

// readRuleForms reads the rules that were typed, as they stand: what is wrong with them the compiler says.
func readRuleForms(form url.Values) []signals.Rule {
	rules := []signals.Rule{}
	for n := range signals.MaxRules {
		at := "r" + strconv.Itoa(n) + "-"
		if !form.Has(at + "id") {
			break
		}
		get := func(name string) string {
			return strings.TrimSpace(strings.ReplaceAll(form.Get(at+name), "\r\n", "\n"))
		}
		list := func(text, separators string) []string {
			var out []string
			for _, part := range strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(separators, r) }) {
				if part = strings.TrimSpace(part); part != "" {
					out = append(out, part)
				}
			}
			return out
		}
		r := signals.Rule{ID: get("id"), Types: list(get("types"), ",\n"), When: get("when"), Action: signals.Action(get("action"))}
		names := list(get("names"), "\n")
		switch get("scope") {
		case "team":
			r.Scope.Team = names
		case "cost_centre":
			r.Scope.CostCentre = names
		case "service_account":
			r.Scope.ServiceAccount = names
		default:
			r.Scope.Org = true
		}
		rules = append(rules, r)
	}
	return rules
}

// namesUnused are the rules for the whole organisation that name somebody all the same: whoever typed that means one of the two, and the wider would hit everybody.
func namesUnused(form url.Values, rules []signals.Rule) signals.PolicyErrors {
	var wrong signals.PolicyErrors
	for i, r := range rules {
		if r.Scope.Org && strings.TrimSpace(form.Get("r"+strconv.Itoa(i)+"-names")) != "" {
			wrong = append(wrong, signals.PolicyError{Rule: r.ID, Pointer: "/rules/" + strconv.Itoa(i) + "/scope",
				Detail: "the rule is for the whole organisation, and names somebody: choose whom the names are of, or leave them out"})
		}
	}
	return wrong
}

// point shows each error beside the field that it is about, and all of them in one list that leads there.
func (p *policyEditor) point(wrong signals.PolicyErrors, form url.Values) {
	for _, e := range wrong {
		shown := ruleError{Rule: e.Rule, Detail: cutKeys(e.Detail), Where: e.Pointer}
		parts := strings.Split(strings.TrimPrefix(e.Pointer, "/rules/"), "/")
		n, err := strconv.Atoi(parts[0])
		if p.JSON || err != nil || n >= len(p.Rules) || len(parts) < 2 {
			p.Errors = append(p.Errors, shown)
			continue
		}
		r := &p.Rules[n]
		shown.Where = "rule " + strconv.Itoa(n+1)
		add := func(id string, into *string) {
			if *into != "" {
				*into += "; "
			}
			*into += shown.Detail
			shown.URL = "#" + id
		}
		switch parts[1] {
		case "id":
			add(r.ID.ID, &r.ID.Error)
		case "types":
			add(r.Types.ID, &r.Types.Error)
		case "when":
			add(r.When.ID, &r.When.Error)
		case "action":
			add(r.Action.ID, &r.Action.Error)
		case "scope":
			if kind := form.Get(r.Scope.Name); kind != "org" && len(parts) == 2 {
				shown.Detail = "name at least one, or choose the whole organisation"
			}
			add(r.Names.ID, &r.Names.Error)
		}
		p.Errors = append(p.Errors, shown)
	}
	for i := range p.Rules { // the first that is wrong has the focus
		for _, f := range []*field{&p.Rules[i].ID, &p.Rules[i].Types, &p.Rules[i].When, &p.Rules[i].Names} {
			if f.Error != "" {
				f.Focus = true
				return
			}
		}
	}
}

// createDraft keeps rules that compile. Those that do not are shown again, with what is wrong with each; so are those that are
// not to be saved yet.
func (c *Console) createDraft(w http.ResponseWriter, r *http.Request, v *visit) error {
	if err := parseForm(r); err != nil {
		return err
	}
	do, asJSON := r.PostFormValue("do"), r.PostForm.Has("rules")
	p := c.policyEditor(w, r, v, cutKeys(r.PostFormValue("from")))
	base, err := readBase(r.PostForm)
	if err != nil {
		return err
	}
	p.Base = r.PostForm.Get("base")
	var rules []signals.Rule
	var unused signals.PolicyErrors
	if asJSON {
		var in signals.NewDraft
		in, err = signals.ParseDraft([]byte(r.PostFormValue("rules")))
		if rules = in.Rules; in.BaseVersion != nil {
			base = in.BaseVersion
		}
	} else {
		rules = readRuleForms(r.PostForm)
		if do == "" || do == "save" {
			unused = namesUnused(r.PostForm, rules)
		}
		var text []byte
		if text, err = json.Marshal(map[string]any{"rules": rules}); err == nil {
			_, err = signals.ParseRules(text) // which says what no rule may hold
		}
	}
	number, isRemoval := strings.CutPrefix(do, "remove-")
	switch {
	case err != nil:
	case do == "add":
		rules = append(rules, signals.Rule{Action: signals.ActionObserve, Scope: signals.Scope{Org: true}})
		return c.showEditor(w, r, p, rules, false, len(rules)-1)
	case isRemoval:
		n, err := strconv.Atoi(number)
		if err != nil || n < 0 || n >= len(rules) {
			return &badRequestError{text: "The form has no such rule."}
		}
		return c.showEditor(w, r, p, slices.Delete(rules, n, n+1), false, min(n, len(rules)-2))
	case do == "json", do == "form":
		return c.showEditor(w, r, p, rules, do == "json", 0)
	default:
		_, err = c.compiler.Compile(0, rules)
	}
	var wrong signals.PolicyErrors
	if errors.As(err, &wrong) || err == nil && len(unused) > 0 {
		wrong = append(wrong, unused...)
		p.JSON = asJSON
		if asJSON {
			p.Text = cutKeys(r.PostFormValue("rules"))
		} else if err := p.fill(rules); err != nil {
			return err
		}
		if !asJSON { // a scope without names reads as the whole organisation; what was chosen stays chosen
			for i := range p.Rules {
				p.Rules[i].Scope = chosen(p.Rules[i].Scope, r.PostFormValue(p.Rules[i].Scope.Name))
				p.Rules[i].Names.Value = cutKeys(r.PostFormValue(p.Rules[i].Names.Name))
			}
		}
		p.point(wrong, r.PostForm)
		return c.show(w, r, http.StatusUnprocessableEntity, "editor", p)
	}
	if err != nil {
		return err
	}
	draft, err := c.signals.CreateDraft(r.Context(), v.admin.Org, c.signalsBy(r, v), signals.NewDraft{Rules: rules, BaseVersion: base})
	if errors.Is(err, signals.ErrBadQuestion) {
		return &badRequestError{text: "The draft names a version that was never in force."}
	}
	if err != nil {
		return err
	}
	http.Redirect(w, r, draftURL(draft.ID), http.StatusSeeOther)
	return nil
}

// readBase is the version that was in force when the form was opened: an edit of that one, not of what came after. Nil where the form does not say.
func readBase(form url.Values) (*int64, error) {
	text := form.Get("base")
	if text == "" {
		return nil, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return nil, &badRequestError{text: "The form does not say which version it was opened on."}
	}
	return &n, nil
}

// showEditor shows the rules again, nothing saved.
func (c *Console) showEditor(w http.ResponseWriter, r *http.Request, p *policyEditor, rules []signals.Rule, asJSON bool, focus int) error {
	p.JSON = asJSON
	if err := p.fill(rules); err != nil {
		return err
	}
	for i := range p.Rules {
		if name := p.Rules[i].Scope.Name; r.PostFormValue("do") != "form" && r.PostForm.Has(name) && !strings.HasPrefix(r.PostFormValue("do"), "remove-") {
			p.Rules[i].Scope = chosen(p.Rules[i].Scope, r.PostFormValue(name))
		}
	}
	if focus >= 0 && focus < len(p.Rules) {
		p.Rules[focus].ID.Focus = true
	}
	return c.show(w, r, http.StatusOK, "editor", p)
}

func chosen(s selection, value string) selection {
	s.Value = value
	for i := range s.Options {
		s.Options[i].On = s.Options[i].Value == value
	}
	return s
}
