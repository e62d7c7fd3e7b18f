package signals

import "strings"

// decide finds the rule that decides e, or nil; errs counts conditions that could not be evaluated. It looks only at
// rules of e's type or category, and only at those whose scope fits, in the order of precedence: the first match wins.
func (p *Policy) decide(e *Event) (*RuleRef, int) {
	byType, byCat := p.index[e.Type], p.byCats[e.Category]
	if byType == nil && byCat == nil {
		return nil, 0
	}
	f := facts{event: e}
	errs := 0
	if s := e.Service; s != nil {
		named := strings.ToLower(s.Name + "/" + s.Environment)
		if ref := first(&f, &errs, byType.account(s.ID), byType.account(named), byCat.account(s.ID), byCat.account(named)); ref != nil {
			return ref, errs
		}
		if s.CostCentre != "" {
			if ref := first(&f, &errs, byType.costCentre(s.CostCentre), byCat.costCentre(s.CostCentre), nil, nil); ref != nil {
				return ref, errs
			}
		}
		if s.Team != "" {
			if ref := first(&f, &errs, byType.team(s.Team), byCat.team(s.Team), nil, nil); ref != nil {
				return ref, errs
			}
		}
	}
	return first(&f, &errs, byType.wholeOrg(), byCat.wholeOrg(), nil, nil), errs
}

// The rules of a scope; a nil *scopes has none.
func (s *scopes) account(key string) []*rule {
	if s == nil {
		return nil
	}
	return s.accounts[key]
}

func (s *scopes) costCentre(name string) []*rule {
	if s == nil {
		return nil
	}
	return s.costCentres[name]
}

func (s *scopes) team(name string) []*rule {
	if s == nil {
		return nil
	}
	return s.teams[name]
}

func (s *scopes) wholeOrg() []*rule {
	if s == nil {
		return nil
	}
	return s.org
}

// first merges lists that are each in the order of precedence and returns the first rule whose condition holds.
// A rule that stands in several lists is looked at once.
func first(f *facts, errs *int, a, b, c, d []*rule) *RuleRef {
	lists := [4][]*rule{a, b, c, d}
	var last *rule
	for {
		best := -1
		for i, list := range lists {
			if len(list) > 0 && (best < 0 || list[0].before(lists[best][0]) < 0) {
				best = i
			}
		}
		if best < 0 {
			return nil
		}
		r := lists[best][0]
		lists[best] = lists[best][1:]
		if r == last {
			continue
		}
		last = r
		if r.when == nil {
			return r.ref
		}
		ok, err := r.when.matches(f)
		if err != nil {
			*errs++
		}
		if ok {
			return r.ref
		}
	}
}

// A Finding says what explain found of one rule.
type Finding string

// What can be found of a rule.
const (
	FoundOtherType  Finding = "other_type"      // the signal's type and category are not among its types
	FoundOutOfScope Finding = "out_of_scope"    // the signal's subject is not in its scope
	FoundFalse      Finding = "condition_false" // its condition does not hold
	FoundError      Finding = "condition_error" // its condition could not be evaluated, so it does not match
	FoundBeaten     Finding = "beaten"          // it matches, and one with precedence matches too
	FoundWinner     Finding = "winner"          // it decides
)

// A RuleFinding is one rule's part of an explanation.
type RuleFinding struct {
	Rule    string  `json:"rule"`
	Action  Action  `json:"action"`
	Scope   string  `json:"scope"` // org, team, cost_centre or service_account
	Finding Finding `json:"finding"`
	Detail  string  `json:"detail,omitempty"` // the error, or what beat it
}

// An Explanation says which rule decides an event, and why the others do not.
type Explanation struct {
	PolicyVersion int64         `json:"policy_version"` // 0: a draft
	Rule          *RuleRef      `json:"rule"`           // null: no rule decides
	BaseSeverity  Severity      `json:"base_severity"`
	Severity      Severity      `json:"severity"` // what it comes to, by rule or by cap
	Capped        bool          `json:"capped"`   // no rule decides, and the environment's cap lowered it
	Rules         []RuleFinding `json:"rules"`    // every rule, in the order of the policy
}

// Explain looks at every rule one by one, without the index that decide uses: the two must agree, and a test holds them to it.
func (p *Policy) Explain(e *Event) Explanation {
	x := Explanation{PolicyVersion: p.Version, BaseSeverity: e.BaseSeverity, Rules: make([]RuleFinding, len(p.rules))}
	var winner *rule
	won := -1
	f := facts{event: e}
	for i, r := range p.rules {
		found := &x.Rules[i]
		*found = RuleFinding{Rule: r.ID, Action: r.Action, Scope: scopeName(r.narrow)}
		switch {
		case !r.hasType(e):
			found.Finding = FoundOtherType
			continue
		case !r.inScope(e.Service):
			found.Finding = FoundOutOfScope
			continue
		}
		if r.when != nil {
			ok, err := r.when.matches(&f)
			if err != nil {
				found.Finding, found.Detail = FoundError, err.Error()
				continue
			}
			if !ok {
				found.Finding = FoundFalse
				continue
			}
		}
		found.Finding = FoundBeaten
		if winner == nil || r.before(winner) < 0 {
			winner, won = r, i
		}
	}
	if winner == nil {
		return x
	}
	for i := range x.Rules {
		if x.Rules[i].Finding == FoundBeaten {
			x.Rules[i].Detail = beatenBy(p.rules[i], winner)
		}
	}
	x.Rules[won].Finding, x.Rules[won].Detail = FoundWinner, ""
	x.Rule = winner.ref
	return x
}

func beatenBy(r, winner *rule) string {
	switch {
	case r.narrow != winner.narrow:
		return winner.ID + " has the narrower scope (" + scopeName(winner.narrow) + ")"
	case r.Action != winner.Action:
		return winner.ID + " has the stricter action"
	}
	return winner.ID + " stands before it"
}

func scopeName(narrow int) string {
	switch narrow {
	case scopeAccount:
		return "service_account"
	case scopeCostCentre:
		return "cost_centre"
	case scopeTeam:
		return "team"
	}
	return "org"
}

func (r *rule) hasType(e *Event) bool {
	for _, t := range r.types {
		if t == e.Type {
			return true
		}
	}
	for _, c := range r.cats {
		if c == e.Category {
			return true
		}
	}
	return false
}

func (r *rule) inScope(s *EventService) bool {
	if r.narrow == scopeOrg {
		return true
	}
	if s == nil {
		return false
	}
	for _, name := range r.Scope.ServiceAccount {
		if key := accountKey(name); key == s.ID || key == strings.ToLower(s.Name+"/"+s.Environment) {
			return true
		}
	}
	for _, name := range r.Scope.CostCentre {
		if name == s.CostCentre {
			return true
		}
	}
	for _, name := range r.Scope.Team {
		if name == s.Team {
			return true
		}
	}
	return false
}

// Explain says how the Decider, with policy p (nil: none), comes to the severity of an event.
func (d *Decider) Explain(p *Policy, e *Event) Explanation {
	x := Explanation{BaseSeverity: e.BaseSeverity, Rules: []RuleFinding{}}
	if p != nil {
		x = p.Explain(e)
	}
	again := *e
	again.Rule = x.Rule
	x.Severity = d.severity(&again)
	x.Capped = x.Rule == nil && x.Severity != x.BaseSeverity
	return x
}
