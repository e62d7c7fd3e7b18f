package console

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"strconv"

	"flowstate.inc/sluice/accounts"
	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/signals/scope"
)

// latestVerdicts is how many verdicts an account's page shows; the admin API has them all.
const latestVerdicts = 5

// A scopeView is the card of an account's page that says whether its prompts are judged, and what came of it.
type scopeView struct {
	Judging  bool
	Unknown  bool   // nobody can say
	Text     string // why not, or what leaves
	Days     int
	Facts    []usageFact
	Verdicts []verdictView
	EditURL  string // "" for a deleted account
}

type verdictView struct {
	Verdict    string // in, out, unsure; "" where nothing was judged
	Label      string
	Icon       string
	Tone       string // of the tag
	Confidence string
	Text       string
	Model      string
	At         whenView
}

func (c *Console) verdictView(v *scope.Judged, abstained string) verdictView {
	out := verdictView{Verdict: string(v.Verdict), Confidence: strconv.Itoa(int(v.Confidence*100+.5)) + " %", Text: v.Reason, Model: v.Model, At: c.render.when(v.At)}
	switch {
	case abstained != "":
		out.Label, out.Icon, out.Confidence, out.Text = "Not judged", "info", "", accounts.ScopeReason(abstained)
	case v.Verdict == scope.In:
		out.Label, out.Icon, out.Tone = "In scope", "check", "success"
	case v.Verdict == scope.Out:
		out.Label, out.Icon, out.Tone = "Out of scope", "triangle", "warning"
	default:
		out.Label, out.Icon = "Unsure", "info"
		if why := accounts.ScopeReason(v.Why); v.Why != scope.JudgeUnsure || out.Text == "" {
			out.Text = why
		}
		if v.Why != scope.JudgeUnsure && v.Why != scope.LowConfidence {
			out.Confidence = ""
		}
	}
	if out.Text == "" {
		out.Text = "The judge’s reason is withheld: it would repeat the prompt."
	}
	return out
}

// scopeSection is a Section.
func (c *Console) scopeSection(ctx context.Context, admin auth.Admin, a accounts.Account) (template.HTML, error) {
	if !admin.Can(auth.SettingsIntegrationsUpdate) || c.scope.Store == nil {
		return "", nil
	}
	state, err := c.scope.State(ctx, a)
	if err != nil {
		return "", err
	}
	v := scopeView{Judging: state.Judging, Unknown: state.Unknown, Text: state.Text, Days: accounts.ScopeDays}
	if a.Live() {
		v.EditURL = withParam(accountURL(a.ID), "edit", a.ID)
	}
	for _, row := range []struct{ what, label, note string }{
		{scope.Seen, "Prompts seen", ""}, {scope.Sampled, "Chosen to be judged", "a sample"}, {string(scope.In), "In scope", ""}, {string(scope.Out), "Out of scope", "each raises off_topic_production, like ones once a day"},
		{string(scope.Unsure), "Unsure", ""}, {scope.NoBody, "Without a text", ""}, {string(scope.VagueScope), "Not judged: scope too vague", ""},
		{scope.BudgetSpent, "Not judged: budget used up", ""}, {scope.JudgeAway, "Not judged: judge away", ""}, {scope.JudgeRefused, "Not judged: refused", ""},
		{scope.TooOld, "Not judged: too old when read", ""}, {scope.AccountUnknown, "Not judged: account not looked up in time", ""},
	} {
		if n := state.Counts[row.what].Count; n > 0 {
			v.Facts = append(v.Facts, usageFact{row.label, grouped(n), row.note})
		}
	}
	if state.Budget.Requests > 0 {
		v.Facts = append(v.Facts, usageFact{"Asked the judge today", grouped(state.Spent.Requests) + " of " + grouped(state.Budget.Requests) + " times", ""})
	}
	kept, err := c.scope.Store.Verdicts(ctx, a.Org, a.ID, "", latestVerdicts)
	if err != nil {
		return "", err
	}
	for i := range kept {
		v.Verdicts = append(v.Verdicts, c.verdictView(&kept[i], ""))
	}
	var buf bytes.Buffer
	if err := c.render.pages["scope"].ExecuteTemplate(&buf, "scope", v); err != nil {
		return "", fmt.Errorf("render the scope: %w", err)
	}
	return template.HTML(buf.String()), nil
}

// A tryView is the part of the edit drawer where a prompt can be tried against the scope as it is typed.
type tryView struct {
	Action string // "": this process knows of no judge
	Vague  string // why the scope cannot be judged by; "" where it can
	Prompt field
	Result *verdictView
}

func (c *Console) tryView(a accounts.Account, intended, prompt string) tryView {
	v := tryView{Vague: scope.Vague(intended).Text(), Prompt: field{ID: "f-try", Name: "try_prompt", Label: "Try a prompt against this scope", Value: prompt, Multiline: true,
		Help: "Goes to the judge with the scope as typed above, secrets cut out. Nothing is saved or raised.", Placeholder: "Write me a poem about the weather."}}
	if c.scope.Assessor != nil {
		v.Action = accountURL(a.ID) + "/scope/try"
	}
	return v
}

// tryScope answers the edit drawer once more, as it was typed, with what the judge says of a prompt.
func (c *Console) tryScope(w http.ResponseWriter, r *http.Request, v *visit) error {
	if err := parseForm(r); err != nil {
		return err
	}
	a, err := c.liveAccount(r.Context(), v, r.PathValue("id"))
	if err != nil {
		return err
	}
	version, err := strconv.ParseInt(r.PostFormValue("version"), 10, 64)
	if err != nil || version <= 0 {
		return &badRequestError{text: "The form lacks the version of the account. Open it again and retry."}
	}
	posted := postedAccount(r)
	d := newEditDialog(a, accountURL(a.ID))
	d.Version, d.Form = version, newAccountForm(posted)
	d.Form.EnvironmentNote = environmentNote
	d.Form.Name.Focus = false
	d.Try = c.tryView(a, posted.IntendedScope, cutKeys(r.PostFormValue("try_prompt")))
	d.Try.Prompt.Focus = true
	out, err := c.scope.Try(r.Context(), a, posted.IntendedScope, d.Try.Prompt.Value)
	var invalid *accounts.InvalidError
	var problem *accounts.Problem
	switch {
	case err == nil:
		result := c.verdictView(&out.Judged, out.Abstained)
		d.Try.Result = &result
	case errors.As(err, &invalid):
		for _, f := range invalid.Fields {
			d.Try.Prompt.Error = "This " + f.Detail + "."
		}
	case errors.As(err, &problem):
		d.Try.Prompt.Error = problem.Detail
	default:
		return err
	}
	d.Form.forget()
	p, err := c.accountPage(w, r, v, a)
	if err != nil {
		return err
	}
	p.Dialogs.Edit = d
	return c.show(w, r, http.StatusOK, "account", p)
}
