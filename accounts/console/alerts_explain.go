package console

import (
	"context"

	"flowstate.inc/sluice/signals"
)

// An explainView says how the policy in force now would decide a signal, rule by rule. What was decided when it was raised
// stands beside it and never changes.
type explainView struct {
	Version  int64 // 0: there is no policy
	Broken   bool  // it does not compile here: nobody can say
	Severity string
	Capped   bool
	Rules    []findingView
}

type findingView struct {
	ID, Why string
	Decides bool
}

func (c *Console) explain(ctx context.Context, org string, e *signals.Event) (*explainView, error) {
	active, err := c.activePolicy(ctx, org)
	if err != nil {
		return nil, err
	}
	var compiled *signals.Policy
	view := &explainView{}
	if active != nil {
		view.Version = active.Version
		if compiled, err = c.compiler.Compile(active.Version, active.Rules); err != nil {
			view.Broken = true
			return view, nil
		}
	}
	x := c.decider.Explain(compiled, e)
	view.Severity, view.Capped = string(x.Severity), x.Capped
	for _, r := range x.Rules {
		view.Rules = append(view.Rules, findingView{ID: r.Rule, Why: findingWords(r), Decides: r.Finding == signals.FoundWinner})
	}
	return view, nil
}

func findingWords(r signals.RuleFinding) string {
	words := map[signals.Finding]string{
		signals.FoundOtherType:  "is about other signals",
		signals.FoundOutOfScope: "is for others",
		signals.FoundFalse:      "its condition does not hold",
		signals.FoundError:      "its condition could not be evaluated, so it does not match",
		signals.FoundBeaten:     "matches, and gives way",
		signals.FoundWinner:     "decides: sets " + string(actionSeverity(r.Action)),
	}[r.Finding]
	if words == "" {
		words = string(r.Finding)
	}
	if r.Detail != "" {
		words += " (" + cutKeys(r.Detail) + ")"
	}
	return words
}
