package signals

// maxSimulated is how many changed signals a Simulation names; all are counted.
const maxSimulated = 100

// A Simulation is what a draft would have done to signals that are in Alerts, compared with what was done.
type Simulation struct {
	Signals   int               `json:"signals"`    // looked at
	Changed   int               `json:"changed"`    // with another severity
	Moves     map[string]int    `json:"moves"`      // by "WARN→BLOCK"
	RuleHits  map[string]int    `json:"rule_hits"`  // by rule of the draft: how many signals it would have decided
	RuleFails int               `json:"rule_fails"` // conditions that could not be evaluated
	Examples  []SimulatedChange `json:"examples"`   // the first hundred that change
	Truncated bool              `json:"truncated"`  // there were more signals than were looked at
	Warnings  []PolicyError     `json:"warnings"`   // of the draft
	draft     *Policy
	decider   *Decider
}

// A SimulatedChange is one signal whose severity the draft would have changed.
type SimulatedChange struct {
	ID       string   `json:"id"`
	Type     string   `json:"type"`
	Subject  string   `json:"subject"` // its label
	Severity Severity `json:"severity"`
	Rule     *RuleRef `json:"rule"`
	Would    Severity `json:"would"`
	WouldBy  *RuleRef `json:"would_by"`
}

// Simulate begins a simulation of a draft with the caps of d. It is for one goroutine.
func (d *Decider) Simulate(draft *Policy) *Simulation {
	s := &Simulation{Moves: map[string]int{}, RuleHits: map[string]int{}, Examples: []SimulatedChange{}, Warnings: draft.Warnings, draft: draft, decider: d}
	for _, r := range draft.rules {
		s.RuleHits[r.ID] = 0 // a rule that would never have decided anything is worth seeing
	}
	if s.Warnings == nil {
		s.Warnings = []PolicyError{}
	}
	return s
}

// Add looks at one signal as it stands in Alerts. It borrows e.
func (s *Simulation) Add(e *Event) {
	s.Signals++
	again := *e
	ref, fails := s.draft.decide(&again)
	again.Rule = ref
	again.Severity = s.decider.severity(&again)
	s.RuleFails += fails
	if ref != nil {
		s.RuleHits[ref.ID]++
	}
	if again.Severity == e.Severity {
		return
	}
	s.Changed++
	s.Moves[string(e.Severity)+"→"+string(again.Severity)]++
	if len(s.Examples) < maxSimulated {
		s.Examples = append(s.Examples, SimulatedChange{e.ID, e.Type, e.Subject.Label, e.Severity, e.Rule, again.Severity, ref})
	}
}
