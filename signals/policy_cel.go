package signals

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/ext"
	"cel.dev/cel-go/interpreter"
)

// Limits of one condition.
const (
	maxCondition = 4_096 // code points
	// maxCost bounds one evaluation in CEL's units, of which an operation costs one and ten bytes of a string looked at
	// one more: some ten milliseconds at the very worst, a microsecond as a rule.
	maxCost = 100_000
)

// A Variable is something that a condition may look at.
type Variable struct {
	Name string `json:"name"`
	Type string `json:"type"`
	Doc  string `json:"doc"`

	kind *cel.Type
	of   func(*facts) any
	text func(*Event) string // the same for a text; nil for others
}

// Variables lists what a condition may look at: the closed list, for the compiler as for the documentation.
// Texts that a signal does not have are "".
func Variables() []Variable {
	str := func(name, doc string, of func(*Event) string) Variable {
		return Variable{Name: name, Type: "string", Doc: doc, kind: cel.StringType, of: func(f *facts) any { return of(f.event) }, text: of}
	}
	service := func(name, doc string, of func(*EventService) string) Variable {
		return str("service."+name, doc, func(e *Event) string {
			if e.Service == nil {
				return ""
			}
			return of(e.Service)
		})
	}
	return []Variable{
		str("type", "the signal's type, normalised", func(e *Event) string { return e.Type }),
		str("category", "the category of its type", func(e *Event) string { return string(e.Category) }),
		str("severity", "the base severity: INFO, WARN or BLOCK as raised, before any cap", func(e *Event) string { return string(e.BaseSeverity) }),
		str("subject.kind", "service_account, person, detector, session or turn", func(e *Event) string { return e.Subject.Kind }),
		str("subject.id", "the subject's id", func(e *Event) string { return e.Subject.ID }),
		service("id", "of the service account behind the subject", func(s *EventService) string { return s.ID }),
		service("name", "its name", func(s *EventService) string { return s.Name }),
		service("environment", "production, staging or development", func(s *EventService) string { return s.Environment }),
		service("team", "its team", func(s *EventService) string { return s.Team }),
		service("cost_centre", "its cost centre", func(s *EventService) string { return s.CostCentre }),
		service("intended_scope", "its intended scope", func(s *EventService) string { return s.IntendedScope }),
		str("session_id", "the session", func(e *Event) string { return e.SessionID }),
		str("source_id", "the sender's id of the signal", func(e *Event) string { return e.SourceID }),
		str("key_prefix", "the prefix of the key that it came with", func(e *Event) string { return e.KeyPrefix }),
		{Name: "detected_at", Type: "timestamp", Doc: "when it was detected", kind: cel.TimestampType, of: func(f *facts) any { return f.event.DetectedAt }},
		{Name: "received_at", Type: "timestamp", Doc: "when the edge received it", kind: cel.TimestampType, of: func(f *facts) any { return f.event.ReceivedAt }},
		{Name: "details", Type: "dyn", Doc: "the details as sent; guard what may be missing: has(details.amount) && details.amount > 100", kind: cel.DynType, of: (*facts).details},
	}
}

// conditions compiles CEL over the variables.
type conditions struct {
	env   *cel.Env
	vars  map[string]func(*facts) any
	texts map[string]func(*Event) string
}

func newConditions() (*conditions, error) {
	c := &conditions{vars: map[string]func(*facts) any{}, texts: map[string]func(*Event) string{}}
	opts := []cel.EnvOption{
		cel.ParserExpressionSizeLimit(maxCondition),
		cel.ParserRecursionLimit(50),
		cel.RegexProgramSizeLimit(1_000),
		cel.CrossTypeNumericComparisons(true), // numbers of JSON are doubles: details.n > 10 must not err
		cel.DefaultUTCTimeZone(true),
		ext.Strings(ext.StringsVersion(4)),
	}
	for _, v := range Variables() {
		opts = append(opts, cel.Variable(v.Name, v.kind))
		c.vars[v.Name] = v.of
		if v.text != nil {
			c.texts[v.Name] = v.text
		}
	}
	env, err := cel.NewEnv(opts...)
	if err != nil {
		return nil, fmt.Errorf("set up policy conditions: %w", err)
	}
	c.env = env
	return c, nil
}

// A condition is a compiled CEL expression.
type condition struct {
	program cel.Program
	vars    map[string]func(*facts) any
	needs   []equality
}

// An equality is a text of the event that a condition compares with a constant, and without which it cannot hold. Looking at these first spares
// nearly all evaluations where a policy has a rule for each of many sessions, names or teams.
type equality struct {
	text func(*Event) string
	want string
}

// needs collects what stands on either side of the outermost "&&". One of them that is false makes the whole false, whatever the others are: also where
// they err.
func (c *conditions) needs(a *ast.AST, e ast.Expr, found []equality) []equality {
	if e.Kind() != ast.CallKind {
		return found
	}
	args := e.AsCall().Args()
	switch e.AsCall().FunctionName() {
	case operators.LogicalAnd:
		for _, arg := range args {
			found = c.needs(a, arg, found)
		}
	case operators.Equals:
		for i, side := range args {
			ref := a.ReferenceMap()[side.ID()]
			if other := args[1-i]; ref != nil && other.Kind() == ast.LiteralKind {
				text := c.texts[ref.Name]
				if want, ok := other.AsLiteral().Value().(string); ok && text != nil {
					found = append(found, equality{text, want})
				}
			}
		}
	}
	return found
}

// compile checks an expression: that it parses, that it uses only what there is, that it is a bool. The error says where.
func (c *conditions) compile(expression string) (*condition, error) {
	checked, issues := c.env.Compile(expression)
	if issues != nil && issues.Err() != nil {
		first := slices.MinFunc(issues.Errors(), func(a, b *cel.Error) int {
			if a.Location.Line() != b.Location.Line() {
				return a.Location.Line() - b.Location.Line()
			}
			return a.Location.Column() - b.Location.Column()
		})
		return nil, fmt.Errorf("line %d, column %d: %s", first.Location.Line(), first.Location.Column()+1, plainly(first.Message))
	}
	if !checked.OutputType().IsExactType(cel.BoolType) {
		return nil, fmt.Errorf("is %s, not true or false: compare it with something", checked.OutputType())
	}
	program, err := c.env.Program(checked, cel.EvalOptions(cel.OptOptimize), cel.CostLimit(maxCost),
		cel.OptimizeRegex(interpreter.MatchesRegexOptimization))
	if err != nil {
		return nil, err
	}
	native := checked.NativeRep()
	return &condition{program: program, vars: c.vars, needs: c.needs(native, native.Expr(), nil)}, nil
}

// plainly cuts the parser's list of everything that it would have taken, which helps nobody who writes a rule.
func plainly(message string) string {
	message = strings.TrimPrefix(message, "Syntax error: ")
	said, _, _ := strings.Cut(message, " expecting ")
	return strings.Replace(said, "mismatched input '<EOF>'", "unexpected end", 1)
}

// matches evaluates the condition. An error means that it does not match.
func (c *condition) matches(f *facts) (bool, error) {
	for i := range c.needs {
		if c.needs[i].text(f.event) != c.needs[i].want {
			return false, nil
		}
	}
	f.vars = c.vars
	out, _, err := c.program.Eval(f)
	if err != nil {
		return false, err
	}
	b, ok := out.(types.Bool)
	if !ok {
		return false, errors.New("the condition is not true or false")
	}
	return bool(b), nil
}

// facts are one event as conditions see it. The details are decoded when the first condition asks for them, once.
type facts struct {
	event   *Event
	vars    map[string]func(*facts) any
	decoded any
}

// ResolveName and Parent make facts an interpreter.Activation.
func (f *facts) ResolveName(name string) (any, bool) {
	of, ok := f.vars[name]
	if !ok {
		return nil, false
	}
	return of(f), true
}

// Parent is part of interpreter.Activation.
func (f *facts) Parent() interpreter.Activation { return nil }

func (f *facts) details() any {
	if f.decoded == nil {
		m := map[string]any{}
		if len(f.event.Details) > 0 {
			if err := json.Unmarshal(f.event.Details, &m); err != nil {
				// Details were validated when they came in; what a store returns instead has no details.
				m = map[string]any{}
			}
		}
		f.decoded = m
	}
	return f.decoded
}
