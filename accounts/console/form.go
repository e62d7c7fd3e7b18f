package console

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"flowstate.inc/sluice/accounts"
	"flowstate.inc/sluice/auth"
)

// A field is one input of a form with its label, its help and what is wrong with it.
type field struct {
	ID, Name, Label, Help string
	Type                  string // "" is text
	Placeholder           string
	Value, Error          string
	Required              bool
	Multiline             bool
	Focus                 bool
}

// A choice is a field with a closed list of values.
type choice struct {
	ID, Value, Error string
	Options          []choiceOption
}

type choiceOption struct{ Value, Help string }

// An accountForm is what an admin says about an account; create and edit share it.
type accountForm struct {
	Problem         string // what is wrong with the form as a whole
	Name            field
	Environment     choice
	EnvironmentNote string
	Description     field
	IntendedScope   field
	AbuseDetection  bool
	Team            field
	CostCentre      field
}

// newAccountForm is the form filled with a; of a new account only what is known of it.
func newAccountForm(a accounts.Account) accountForm {
	return accountForm{
		Name: field{ID: "f-name", Name: "name", Label: "Name", Value: a.Name, Required: true, Focus: true,
			Help: "What alerts, policies and the audit call it, like nightly-digest-summariser. At most 80 characters."},
		Environment: choice{ID: "f-environment", Value: a.Environment, Options: []choiceOption{
			{auth.Production, "Signals keep the severity they were raised with."},
			{auth.Staging, "Signals are WARN at most, unless a policy rule sets more."},
			{auth.Development, "Signals are INFO at most, unless a policy rule sets more."},
		}},
		Description: field{ID: "f-description", Name: "description", Label: "Description", Value: a.Description, Multiline: true,
			Help: "What this workload does. Recommended: whoever handles a signal about it reads this first."},
		IntendedScope: field{ID: "f-scope", Name: "intended_scope", Label: "Intended scope", Value: a.IntendedScope, Multiline: true,
			Help:        "A sentence on what it is allowed to do. Recommended: used in audits, and as the prompt of scope-creep detection.",
			Placeholder: "Summarises internal news into one digest a night. Does not talk to customers."},
		AbuseDetection: a.AbuseDetection,
		Team: field{ID: "f-team", Name: "team", Label: "Team", Value: a.Team,
			Help: "Policy rules can be scoped to it."},
		CostCentre: field{ID: "f-cost-centre", Name: "cost_centre", Label: "Cost centre", Value: a.CostCentre,
			Help: "Policy rules can be scoped to it."},
	}
}

// postedAccount reads the fields of an accountForm. What is wrong with them the store says.
func postedAccount(r *http.Request) accounts.Account {
	return accounts.Account{
		Name: r.PostFormValue("name"), Environment: r.PostFormValue("environment"), Description: r.PostFormValue("description"),
		IntendedScope: r.PostFormValue("intended_scope"), AbuseDetection: r.PostFormValue("abuse_detection") == "on",
		Team: r.PostFormValue("team"), CostCentre: r.PostFormValue("cost_centre"),
	}
}

// explain puts what the store found wrong beside the fields, and reports whether err was of that sort.
func (f *accountForm) explain(err error) bool {
	var invalid *accounts.InvalidError
	switch {
	case errors.As(err, &invalid):
		for _, e := range invalid.Fields {
			f.put(e)
		}
	case errors.Is(err, accounts.ErrConflict):
		f.Name.Error = fmt.Sprintf("A live account in %s has this name already, whatever its capitals. Choose another name or environment.", f.Environment.Value)
	default:
		return false
	}
	f.focusFirstError()
	return true
}

func (f *accountForm) put(e accounts.FieldError) {
	for _, at := range []*field{&f.Name, &f.Description, &f.IntendedScope, &f.Team, &f.CostCentre} {
		if at.Name == e.Field {
			at.Error = at.Label + " " + e.Detail + "."
			return
		}
	}
	if e.Field == "environment" {
		f.Environment.Error = "Choose one of the three."
		return
	}
	f.Problem = strings.TrimSpace(f.Problem + " " + e.Field + " " + e.Detail + ".")
}

func (f *accountForm) focusFirstError() {
	f.Name.Focus = false
	for _, at := range []*field{&f.Name, &f.Description, &f.IntendedScope, &f.Team, &f.CostCentre} {
		if at.Error != "" {
			at.Focus = true
			return
		}
	}
}

// forget takes keys out of what is shown again: a text that held one was refused, and the page must not repeat it.
func (f *accountForm) forget() {
	for _, at := range []*field{&f.Name, &f.Description, &f.IntendedScope, &f.Team, &f.CostCentre} {
		at.Value = cutKeys(at.Value)
	}
}

// parseForm reads the posted form within its limit.
func parseForm(r *http.Request) error {
	if err := r.ParseForm(); err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return err
		}
		return &badRequestError{text: "The form could not be read."}
	}
	return nil
}
