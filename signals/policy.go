package signals

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/text/unicode/norm"
)

// Limits of a policy draft.
const (
	MaxRules      = 1_000
	MaxDraftBytes = 1 << 20
	maxScopeNames = 1_000 // in one rule
	maxRuleTypes  = 200   // in one rule
)

// A Scope says whose signals a rule looks at. Exactly one of its members is set.
type Scope struct {
	Org            bool     `json:"org,omitempty"`             // everybody's
	Team           []string `json:"team,omitempty"`            // of the service account
	CostCentre     []string `json:"cost_centre,omitempty"`     // of the service account
	ServiceAccount []string `json:"service_account,omitempty"` // id, or "name/environment", which survives delete-and-recreate
}

// A Rule is one rule of a policy, as an admin writes it.
type Rule struct {
	ID     string   `json:"id"`
	Types  []string `json:"types"`          // types or categories
	When   string   `json:"when,omitempty"` // CEL over the signal; "" matches always
	Action Action   `json:"action"`
	Scope  Scope    `json:"scope"`
}

// A PolicyError points at what is wrong in a draft.
type PolicyError struct {
	Pointer string `json:"pointer"`        // JSON pointer into the draft, such as /rules/2/when
	Rule    string `json:"rule,omitempty"` // the rule's id, where it has one
	Detail  string `json:"detail"`
}

// PolicyErrors is everything that is wrong in a draft, so that it is mended in one go.
type PolicyErrors []PolicyError

func (e PolicyErrors) Error() string {
	var s strings.Builder
	for i, one := range e {
		if i > 0 {
			s.WriteString("; ")
		}
		s.WriteString(one.Pointer + ": " + one.Detail)
	}
	return s.String()
}

// A NewDraft is a draft as it is proposed.
type NewDraft struct {
	Rules []Rule
	// BaseVersion is the version that its author had read, 0 for none: activated while another is in force, it would undo that one unseen.
	// Nil: the one in force when it is saved.
	BaseVersion *int64
}

// ParseRules reads the rules of a draft, and forgets the rest.
func ParseRules(body []byte) ([]Rule, error) {
	d, err := ParseDraft(body)
	return d.Rules, err
}

// ParseDraft reads {"rules": [...], "base_version": n} as it is posted. It checks the shape only: Compile checks what the rules say.
// Members are compared as decoded and by case. Its error is always a PolicyErrors.
func ParseDraft(body []byte) (NewDraft, error) {
	bad := func(pointer, detail string) (NewDraft, error) {
		return NewDraft{}, PolicyErrors{{Pointer: pointer, Detail: detail}}
	}
	if len(body) > MaxDraftBytes {
		return bad("", fmt.Sprintf("the draft is larger than %d bytes", MaxDraftBytes))
	}
	if found, ok := holdsKey(body); found || !ok {
		return bad("", "the draft holds a whole key, which everybody would read; name keys by their prefix")
	}
	body = bytes.TrimRight(body[skipSpace(body, 0):], " \t\r\n")
	if len(body) == 0 || body[0] != '{' || !validJSON(body) {
		return bad("", `a draft is a JSON object, {"rules": [...]}`)
	}
	if err := checkValue(body, 8); err != nil {
		return bad("", err.Error())
	}
	var draft struct {
		Rules       []json.RawMessage `json:"rules"`
		BaseVersion *int64            `json:"base_version"`
	}
	if err := exact(body, &draft, "rules", "base_version"); err != nil {
		return bad("", reason(err))
	}
	if draft.Rules == nil {
		return bad("/rules", "is missing; a policy without rules is []")
	}
	if draft.BaseVersion != nil && *draft.BaseVersion < 0 {
		return bad("/base_version", "is the version that was read, 0 for none")
	}
	d := NewDraft{Rules: make([]Rule, len(draft.Rules)), BaseVersion: draft.BaseVersion}
	var errs PolicyErrors
	for i, raw := range draft.Rules {
		if err := exactRule(raw, &d.Rules[i]); err != nil {
			errs = append(errs, PolicyError{Pointer: fmt.Sprintf("/rules/%d", i), Rule: d.Rules[i].ID, Detail: reason(err)})
		}
	}
	if errs != nil {
		return NewDraft{}, errs
	}
	return d, nil
}

func exactRule(raw []byte, into *Rule) error {
	if err := exact(raw, into, "id", "types", "when", "action", "scope"); err != nil {
		return err
	}
	var inner struct {
		Scope json.RawMessage `json:"scope"`
	}
	if err := json.Unmarshal(raw, &inner); err != nil || len(inner.Scope) == 0 {
		return err
	}
	return onlyMembers(inner.Scope, "org", "team", "cost_centre", "service_account")
}

// onlyMembers refuses a member of another name, which encoding/json would take where it differs by case only: of "action" and "Action"
// the last would win. What is no object is not looked at.
func onlyMembers(obj []byte, names ...string) error {
	if obj[0] != '{' {
		return nil
	}
	return members(obj, func(name string, _ []byte) error {
		if !slices.Contains(names, name) {
			return fmt.Errorf("unknown field %s", quoted(name))
		}
		return nil
	})
}

// exact decodes an object that has these members alone.
func exact(b []byte, into any, names ...string) error {
	if err := json.Unmarshal(b, into); err != nil {
		return err
	}
	return onlyMembers(b, names...)
}

func strict(b []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	return d.Decode(into)
}

// reason words an error of encoding/json for somebody who writes rules, not Go.
func reason(err error) string {
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) {
		if wrong.Field == "" {
			return "must be an object, and is a " + wrong.Value
		}
		return wrong.Field + " is a " + wrong.Value + ", which is not what belongs there"
	}
	return strings.TrimPrefix(err.Error(), "json: ")
}

// A Policy is a compiled list of rules. It is immutable and safe for concurrent use.
type Policy struct {
	Version  int64         // of the org's active policies; 0 for a draft
	Warnings []PolicyError // what compiles and probably is not what was meant, such as a type that nobody knows

	rules  []*rule // in the order of the draft
	index  map[string]*scopes
	byCats map[Category]*scopes
	tax    *Taxonomy
}

// A rule is a Rule, compiled.
type rule struct {
	Rule
	ref      *RuleRef // shared by every event that it decides
	types    []string // canonical
	cats     []Category
	when     *condition // nil: always
	narrow   int
	position int
}

// How narrow a scope is.
const (
	scopeOrg = iota + 1
	scopeTeam
	scopeCostCentre
	scopeAccount
)

func (s Scope) narrowness() int {
	switch {
	case len(s.ServiceAccount) > 0:
		return scopeAccount
	case len(s.CostCentre) > 0:
		return scopeCostCentre
	case len(s.Team) > 0:
		return scopeTeam
	}
	return scopeOrg
}

// before orders rules by precedence: the narrower scope, then the stricter action, then the place in the draft.
func (r *rule) before(o *rule) int {
	if r.narrow != o.narrow {
		return o.narrow - r.narrow
	}
	if a, b := r.Action.Severity().rank(), o.Action.Severity().rank(); a != b {
		return b - a
	}
	return r.position - o.position
}

// scopes are the rules of one type or category, found by what a signal's service is.
type scopes struct {
	accounts, costCentres, teams map[string][]*rule
	org                          []*rule
}

func (s *scopes) add(r *rule) {
	put := func(m *map[string][]*rule, keys []string) {
		if *m == nil {
			*m = map[string][]*rule{}
		}
		for _, k := range keys {
			// A rule may name an account both ways; it is one rule all the same.
			if list := (*m)[k]; len(list) == 0 || list[len(list)-1] != r {
				(*m)[k] = append(list, r)
			}
		}
	}
	switch r.narrow {
	case scopeAccount:
		keys := make([]string, len(r.Scope.ServiceAccount))
		for i, name := range r.Scope.ServiceAccount {
			keys[i] = accountKey(name)
		}
		put(&s.accounts, keys)
	case scopeCostCentre:
		put(&s.costCentres, r.Scope.CostCentre)
	case scopeTeam:
		put(&s.teams, r.Scope.Team)
	default:
		s.org = append(s.org, r)
	}
}

// accountKey folds the case of "name/environment", since two accounts of an org never differ by case alone; ids stay as
// they are. Names of accounts are kept in NFC, so what an admin types is brought to it.
func accountKey(s string) string {
	if strings.Contains(s, "/") {
		return strings.ToLower(norm.NFC.String(s))
	}
	return s
}

// A PolicyCompiler checks and compiles rules. It is immutable and safe for concurrent use.
type PolicyCompiler struct {
	tax *Taxonomy
	cel *conditions
}

// NewPolicyCompiler returns a compiler for policies over the types of tax.
func NewPolicyCompiler(tax *Taxonomy) (*PolicyCompiler, error) {
	c, err := newConditions()
	if err != nil {
		return nil, err
	}
	return &PolicyCompiler{tax: tax, cel: c}, nil
}

// Compile checks every rule and compiles the conditions. version is the policy's, 0 for a draft.
// Its error is always a PolicyErrors, which points at every rule that is wrong.
func (c *PolicyCompiler) Compile(version int64, rules []Rule) (*Policy, error) {
	if len(rules) > MaxRules {
		return nil, PolicyErrors{{Pointer: "/rules", Detail: fmt.Sprintf("has %d rules, over the limit of %d", len(rules), MaxRules)}}
	}
	p := &Policy{Version: version, index: map[string]*scopes{}, byCats: map[Category]*scopes{}, tax: c.tax}
	var errs PolicyErrors
	ids := map[string]int{}
	for i, in := range rules {
		k := check{at: fmt.Sprintf("/rules/%d", i), rule: in.ID}
		r := c.compile(&k, version, i, in)
		if first, twice := ids[in.ID]; twice {
			k.fail("/id", "is the id of rule %d already", first)
		}
		ids[in.ID] = i
		errs = append(errs, k.errs...)
		p.Warnings = append(p.Warnings, k.warnings...)
		p.rules = append(p.rules, r)
	}
	if errs != nil {
		return nil, errs
	}
	// Added in the order of precedence, every list of the index is in that order.
	for _, r := range slices.SortedFunc(slices.Values(p.rules), (*rule).before) {
		for _, t := range r.types {
			add(p.index, t, r)
		}
		for _, cat := range r.cats {
			add(p.byCats, cat, r)
		}
	}
	return p, nil
}

func add[K comparable](m map[K]*scopes, k K, r *rule) {
	if m[k] == nil {
		m[k] = &scopes{}
	}
	m[k].add(r)
}

// A check collects what is wrong with one rule.
type check struct {
	at, rule       string
	errs, warnings []PolicyError
}

func (k *check) fail(where, format string, args ...any) {
	k.errs = append(k.errs, PolicyError{k.at + where, k.rule, fmt.Sprintf(format, args...)})
}

func (k *check) warn(where, format string, args ...any) {
	k.warnings = append(k.warnings, PolicyError{k.at + where, k.rule, fmt.Sprintf(format, args...)})
}

func (c *PolicyCompiler) compile(k *check, version int64, position int, in Rule) *rule {
	r := &rule{Rule: in, position: position, narrow: in.Scope.narrowness(), ref: &RuleRef{PolicyVersion: version, ID: in.ID, Action: in.Action}}
	if !goodRuleID(in.ID) {
		k.fail("/id", "%s is not a rule's id: use letters, digits, dots, dashes and underscores, at most 64", quoted(in.ID))
	}
	c.types(k, r)
	switch in.Action {
	case ActionObserve, ActionWarn, ActionBlock:
	default:
		k.fail("/action", "%s is not OBSERVE, WARN or BLOCK", quoted(string(in.Action)))
	}
	checkScope(k, in.Scope)
	if in.When != "" {
		when, err := c.cel.compile(in.When)
		if err != nil {
			k.fail("/when", "%s", err)
		}
		r.when = when
	}
	return r
}

func goodRuleID(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	return !strings.ContainsFunc(s, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '.' && c != '-' && c != '_'
	})
}

func (c *PolicyCompiler) types(k *check, r *rule) {
	switch {
	case len(r.Types) == 0:
		k.fail("/types", "is empty: name types or categories (%s)", joined(Categories()))
	case len(r.Types) > maxRuleTypes:
		k.fail("/types", "has more than %d entries", maxRuleTypes)
	}
	for i, s := range r.Types {
		at := fmt.Sprintf("/types/%d", i)
		if cat := Category(s); slices.Contains(Categories(), cat) {
			if !slices.Contains(r.cats, cat) {
				r.cats = append(r.cats, cat)
			}
			continue
		}
		name, ok := NormaliseType(s)
		if !ok {
			k.fail(at, "%s is neither a type nor a category (%s)", quoted(s), joined(Categories()))
			continue
		}
		if !c.tax.Known(name) {
			k.warn(at, "nobody has declared the type %s; the rule waits for signals of exactly that name", quoted(name))
		}
		name = c.tax.Resolve(name).Type
		if !slices.Contains(r.types, name) {
			r.types = append(r.types, name)
		}
	}
}

func joined[S ~string](list []S) string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = string(s)
	}
	return strings.Join(out, ", ")
}

func checkScope(k *check, s Scope) {
	set := 0
	if s.Org {
		set++
	}
	for _, list := range []struct {
		name  string
		names []string
	}{{"team", s.Team}, {"cost_centre", s.CostCentre}, {"service_account", s.ServiceAccount}} {
		if len(list.names) == 0 {
			continue
		}
		set++
		if len(list.names) > maxScopeNames {
			k.fail("/scope/"+list.name, "has more than %d entries", maxScopeNames)
		}
		for i, name := range list.names {
			if fault := badID(name); fault != "" {
				k.fail(fmt.Sprintf("/scope/%s/%d", list.name, i), "%s", fault)
			}
		}
	}
	if set != 1 {
		k.fail("/scope", `must have exactly one of "org": true, "team": [...], "cost_centre": [...], "service_account": [id or "name/environment", ...]`)
	}
}

// Known reports whether a normalised type is declared, in any spelling.
func (t *Taxonomy) Known(normalised string) bool {
	_, ok := t.byBare[bare(normalised)]
	return ok
}
