package signals

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
)

// oneCompiler is shared: setting CEL up is most of what a small policy costs.
var oneCompiler = sync.OnceValues(func() (*PolicyCompiler, error) {
	tax, err := NewTaxonomy(TaxonomyConfig{})
	if err != nil {
		return nil, err
	}
	return NewPolicyCompiler(tax)
})

func compiler(t testing.TB) *PolicyCompiler {
	t.Helper()
	c, err := oneCompiler()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func compile(t testing.TB, rules ...Rule) *Policy {
	t.Helper()
	p, err := compiler(t).Compile(1, rules)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// policyOf is a Decider's Policy hook of one policy.
func policyOf(p *Policy) func(*Event) *RuleRef {
	return func(e *Event) *RuleRef {
		ref, _ := p.decide(e)
		return ref
	}
}

// The seed's own case: a BLOCK that is right for engineers would break the summariser that legitimately processes PII.
func TestPolicyOfTheSeed(t *testing.T) {
	p := compile(t,
		Rule{ID: "no-pii-in-prompts", Types: []string{"pii_detected"}, Action: ActionBlock, Scope: Scope{Org: true}},
		Rule{ID: "summariser-may", Types: []string{"pii_detected"}, Action: ActionObserve, Scope: Scope{ServiceAccount: []string{"customer-summariser/production"}}},
	)
	d := testDecider(t, DeciderConfig{Policy: policyOf(p)})
	f := func(name, environment, id string, want Severity, rule string) {
		t.Helper()
		sender := person()
		if name != "" {
			sender = service(id, name, environment, true)
		}
		r := entrances["json"](t, "PII-detected", "", nil)
		e := d.Decide(t.Context(), sender, &r, received).Event
		if e.Severity != want || e.BaseSeverity != Warn || e.Rule == nil || e.Rule.ID != rule || e.Rule.PolicyVersion != 1 {
			t.Errorf("%s / %s: %s by %+v, want %s by %s", name, environment, e.Severity, e.Rule, want, rule)
		}
		if x := d.Explain(p, e); x.Severity != want || x.Rule.ID != rule {
			t.Errorf("%s / %s: explain says %+v", name, environment, x)
		}
	}
	f("", "", "", Block, "no-pii-in-prompts")
	f("customer-summariser", "production", "sa_1", Info, "summariser-may")
	f("customer-summariser", "production", "sa_recreated", Info, "summariser-may")
	f("customer-summariser", "staging", "sa_3", Block, "no-pii-in-prompts")
	f("nightly-digest-summariser", "development", "sa_4", Block, "no-pii-in-prompts")
}

func TestRulePrecedence(t *testing.T) {
	e := func(mut func(*Event)) *Event {
		e := &Event{Type: "pii_detected", Category: ContentSafety, BaseSeverity: Warn, Service: &EventService{ID: "sa_1", Name: "Digest", Environment: "production", Team: "mail", CostCentre: "cc-7"}}
		if mut != nil {
			mut(e)
		}
		return e
	}
	pii := []string{"pii_detected"}
	f := func(name, want string, e *Event, rules ...Rule) {
		t.Helper()
		p := compile(t, rules...)
		ref, _ := p.decide(e)
		got := ""
		if ref != nil {
			got = ref.ID
		}
		if got != want {
			t.Errorf("%s: %q wins, want %q", name, got, want)
		}
	}
	org := Rule{ID: "org", Types: pii, Action: ActionBlock, Scope: Scope{Org: true}}
	team := Rule{ID: "team", Types: pii, Action: ActionWarn, Scope: Scope{Team: []string{"other", "mail"}}}
	cc := Rule{ID: "cc", Types: []string{"contentSafety"}, Action: ActionObserve, Scope: Scope{CostCentre: []string{"cc-7"}}}
	byID := Rule{ID: "id", Types: pii, Action: ActionObserve, Scope: Scope{ServiceAccount: []string{"sa_1"}}}
	byName := Rule{ID: "name", Types: []string{"contentSafety"}, Action: ActionWarn, Scope: Scope{ServiceAccount: []string{"digest/production"}}}
	f("narrowest", "id", e(nil), org, team, cc, byID)
	f("cost centre before team", "cc", e(nil), org, team, cc)
	f("team before org", "team", e(nil), org, team)
	f("org", "org", e(nil), org)
	f("stricter in one scope, by name, by category", "name", e(nil), byID, byName)
	f("first of equals", "a", e(nil), Rule{ID: "a", Types: pii, Action: ActionWarn, Scope: Scope{Org: true}}, Rule{ID: "b", Types: pii, Action: ActionWarn, Scope: Scope{Org: true}})
	f("a person is in no scope but the org's", "org", e(func(e *Event) { e.Service = nil }), org, team, cc, byID, byName)
	f("another type", "", e(func(e *Event) { e.Type, e.Category = "forecast_breach", Budget }), org, team, cc, byID, byName)
	f("no team is not the empty team", "org", e(func(e *Event) {
		e.Service.Team, e.Service.CostCentre, e.Service.ID = "", "", "sa_2"
		e.Service.Name = "x"
	}), org, team, cc, byID, byName)
	no := byID
	no.When = `severity == "BLOCK"`
	f("a narrow rule whose condition fails gives way", "team", e(nil), org, team, no)
	twice := Rule{ID: "both", Types: []string{"pii_detected", "contentSafety", "PII.Detected"}, When: "false", Action: ActionBlock, Scope: Scope{ServiceAccount: []string{"sa_1", "Digest/Production", "sa_1"}}}
	f("named in every way and false", "org", e(nil), org, twice)
}

func TestConditions(t *testing.T) {
	e := &Event{Type: "forecast_breach", Category: Budget, BaseSeverity: Warn, SessionID: "s", DetectedAt: received, ReceivedAt: received,
		Subject: EventSubject{Kind: "service_account", ID: "sa_1"}, Service: &EventService{ID: "sa_1", Name: "digest", Environment: "production", Team: "mail"},
		Details: json.RawMessage(`{"amount":120,"ratio":1.5,"model":"gpt","tags":["a","b"],"deep":{"x":null}}`)}
	c := compiler(t)
	f := func(when string, want bool, fails bool) {
		t.Helper()
		cond, err := c.cel.compile(when)
		if err != nil {
			t.Errorf("%s: %v", when, err)
			return
		}
		got, err := cond.matches(&facts{event: e})
		if got != want || (err != nil) != fails {
			t.Errorf("%s: %v, %v", when, got, err)
		}
	}
	f(`type == "forecast_breach" && category == "budget" && severity == "WARN"`, true, false)
	f(`details.amount > 100`, true, false)
	f(`details.amount >= 120 && details.ratio < 2 && details.amount == 120`, true, false)
	f(`details.model.startsWith("gp") && "a" in details.tags && details.tags.size() == 2`, true, false)
	f(`details.deep.x == null`, true, false)
	f(`has(details.missing) && details.missing > 1`, false, false)
	f(`details.missing > 1`, false, true)
	f(`details.model > 1`, false, true)
	f(`subject.kind == "service_account" && service.team == "mail" && service.cost_centre == ""`, true, false)
	f(`service.environment in ["production", "staging"]`, true, false)
	f(`detected_at < timestamp("2027-01-01T00:00:00Z") && detected_at.getHours() == 22`, true, false)
	f(`details.model.matches("^g.t$")`, true, false)
	f(`details.model.upperAscii() == "GPT"`, true, false)
	f(`details.tags.all(a, details.tags.all(b, details.tags.all(c, a != "z")))`, true, false)

	bad := func(when, want string) {
		t.Helper()
		if _, err := c.cel.compile(when); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want an error with %q", when, err, want)
		}
	}
	bad(`type = "a"`, "line 1, column 6")
	bad("type == \"a\" &&\n knid == 1", "line 2, column 2")
	bad(`subject.knid == "person"`, "subject")
	bad(`type == 1`, "no matching overload")
	bad(`details.amount`, "not true or false")
	bad(`"yes"`, "not true or false")
	bad(strings.Repeat("(", 200)+"true"+strings.Repeat(")", 200), "recursion")
	bad(strings.Repeat("true && ", 1000)+"true", "size")
	bad(`type.matches("(")`, "regex")

	e.Details = json.RawMessage(`{"list":[` + strings.TrimSuffix(strings.Repeat("1,", 300), ",") + `]}`)
	f(`details.list.all(a, details.list.all(b, details.list.all(c, a == c)))`, false, true) // over the cost limit
}

func TestDraftErrorsPointAtTheRule(t *testing.T) {
	c := compiler(t)
	f := func(draft string, want ...string) {
		t.Helper()
		rules, err := ParseRules([]byte(draft))
		if err == nil {
			_, err = c.Compile(0, rules)
		}
		var errs PolicyErrors
		if !errors.As(err, &errs) {
			t.Errorf("%s: %v, want PolicyErrors", draft, err)
			return
		}
		var got []string
		for _, e := range errs {
			got = append(got, e.Pointer)
			if e.Detail == "" {
				t.Errorf("%s: no detail at %s", draft, e.Pointer)
			}
		}
		if strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("%s: errors at %v (%v), want %v", draft, got, err, want)
		}
	}
	good := `{"id":"ok","types":["pii_detected"],"action":"WARN","scope":{"org":true}}`
	f(`[]`, "")
	f(`nope`, "")
	f(`{"rules":[],"rules":[]}`, "")
	f(`{"rules":[],"extra":1}`, "")
	f(`{}`, "/rules")
	f(`{"rules":{}}`, "")
	f(`{"rules":[5]}`, "/rules/0")
	f(`{"rules":[`+good+`,{"id":"x","typs":["a"],"action":"WARN","scope":{"org":true}}]}`, "/rules/1")
	f(`{"rules":[`+good+`,`+good+`]}`, "/rules/1/id")
	f(`{"rules":[{"id":"","types":[],"action":"DROP","scope":{},"when":"tru"}]}`, "/rules/0/id", "/rules/0/types", "/rules/0/action", "/rules/0/scope", "/rules/0/when")
	f(`{"rules":[{"id":"a b","types":["ünlike"],"action":"warn","scope":{"org":true,"team":["a"]}}]}`, "/rules/0/id", "/rules/0/types/0", "/rules/0/action", "/rules/0/scope")
	f(`{"rules":[{"id":"a","types":["pii_detected"],"action":"WARN","scope":{"team":["ok",""]}}]}`, "/rules/0/scope/team/1")
	f(`{"rules":[{"id":"a","types":["pii_detected"],"action":"WARN","scope":{"org":false}}]}`, "/rules/0/scope")
	f(`{"rules":[{"id":"a","types":["pii_detected"],"action":"WARN","scope":{"service_account":"x"}}]}`, "/rules/0")
	// Names are exact: of two that differ by case, one would win unseen.
	f(`{"rules":[{"id":"a","types":["pii_detected"],"action":"BLOCK","Action":"OBSERVE","scope":{"org":true}}]}`, "/rules/0")
	f(`{"rules":[{"id":"a","types":["pii_detected"],"Action":"OBSERVE","scope":{"org":true}}]}`, "/rules/0")
	f(`{"rules":[{"id":"a","types":["pii_detected"],"action":"WARN","scope":{"org":true,"Org":false,"team":["x"]}}]}`, "/rules/0")
	f(`{"rules":[`+good+`],"Rules":[]}`, "")
	f(`{"rules":[],"base_version":-1}`, "/base_version")
	f(`{"rules":[],"base_version":"3"}`, "")

	many := make([]Rule, MaxRules+1)
	if _, err := c.Compile(0, many); err == nil {
		t.Error("too many rules pass")
	}
	p, err := c.Compile(0, []Rule{{ID: "a", Types: []string{"pii_detectd"}, Action: ActionWarn, Scope: Scope{Org: true}}})
	if err != nil || len(p.Warnings) != 1 || p.Warnings[0].Pointer != "/rules/0/types/0" {
		t.Errorf("a type that nobody declared: %v %+v", err, p)
	}
}

// randomPolicy and randomEvent draw from few names, so that rules meet and beat each other.
func randomPolicy(t testing.TB, r *rand.Rand, n int) *Policy {
	t.Helper()
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	rules := make([]Rule, n)
	for i := range rules {
		rules[i] = Rule{ID: fmt.Sprintf("r%d", i), Action: Action(pick("OBSERVE", "WARN", "BLOCK"))}
		for range 1 + r.IntN(2) {
			rules[i].Types = append(rules[i].Types, pick("pii_detected", "PII-detected", "forecast_breach", "moon_phase", "contentSafety", "budget", "other"))
		}
		switch r.IntN(4) {
		case 0:
			rules[i].Scope.Org = true
		case 1:
			rules[i].Scope.Team = []string{pick("mail", "web"), pick("mail", "web")}
		case 2:
			rules[i].Scope.CostCentre = []string{pick("cc-1", "cc-2")}
		default:
			rules[i].Scope.ServiceAccount = []string{pick("sa_1", "sa_2", "digest/production", "Digest/Staging"), pick("sa_1", "sa_2", "digest/production", "Digest/Staging")}
		}
		rules[i].When = pick("", "", `severity == "BLOCK"`, `details.n > 2`, `has(details.n) && details.n > 2`, `service.environment == "staging"`, `type == "pii_detected"`)
	}
	return compile(t, rules...)
}

func randomSignal(t testing.TB, r *rand.Rand, d *Decider) *Event {
	t.Helper()
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	body := `{"type":"` + pick("pii_detected", "forecast_breach", "moon_phase", "secret_detected") + `","severity":"` + pick("INFO", "WARN", "BLOCK") + `","details":` + pick(`{}`, `{"n":1}`, `{"n":3}`, `{"n":"x"}`) + `}`
	items, err := ParseRequest("", []byte(body), "", Limits{})
	if err != nil {
		t.Fatal(err)
	}
	sender := person()
	if r.IntN(5) > 0 {
		sender = service(pick("sa_1", "sa_2", "sa_3"), pick("digest", "Digest", "web"), pick("production", "staging", "development"), true)
		sender.Team, sender.CostCentre = pick("mail", "web", ""), pick("cc-1", "cc-2", "cc-3", "")
	}
	v := d.Decide(t.Context(), sender, &items[0], received)
	if v.Event == nil {
		t.Fatalf("%s: %+v", body, v)
	}
	return v.Event
}

func TestExplainAgreesWithTheEdge(t *testing.T) {
	decided := 0
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 1))
		p := randomPolicy(t, r, 1+r.IntN(30))
		d := testDecider(t, DeciderConfig{Policy: policyOf(p)})
		for range 100 {
			e := randomSignal(t, r, d)
			x := d.Explain(p, e)
			if (x.Rule == nil) != (e.Rule == nil) || x.Rule != nil && *x.Rule != *e.Rule || x.Severity != e.Severity || x.BaseSeverity != e.BaseSeverity {
				t.Fatalf("seed %d: %s: the edge says %s by %+v, explain %s by %+v", seed, e.AppendJSON(nil), e.Severity, e.Rule, x.Severity, x.Rule)
			}
			winners := 0
			for _, found := range x.Rules {
				if found.Finding == FoundWinner {
					winners++
				}
			}
			if want := map[bool]int{true: 1, false: 0}[e.Rule != nil]; winners != want {
				t.Fatalf("seed %d: %d winners", seed, winners)
			}
			decided += winners
			conforms(t, e)
		}
	}
	if decided < 1000 {
		t.Errorf("only %d of 4,000 events were decided by a rule: the test shows little", decided)
	}
}

func FuzzPolicy(f *testing.F) {
	f.Add([]byte(`{"rules":[{"id":"a","types":["pii_detected","budget"],"when":"details.n > 1 && service.team == \"mail\"","action":"WARN","scope":{"team":["mail"]}}]}`), []byte(`{"n":2}`))
	f.Add([]byte(`{"rules":[{"id":"a","types":["contentSafety"],"when":"details.exists(k, k.matches('^a+$'))","action":"BLOCK","scope":{"service_account":["digest/production"]}}]}`), []byte(`{"aa":[1]}`))
	f.Add([]byte(`{"rules":[{"id":"a","types":["other"],"when":"1/0 == 1","action":"OBSERVE","scope":{"org":true}}]}`), []byte(`{}`))
	f.Fuzz(func(t *testing.T, draft, details []byte) {
		rules, err := ParseRules(draft)
		var p *Policy
		if err == nil {
			p, err = compiler(t).Compile(1, rules)
		}
		if err != nil {
			var errs PolicyErrors
			if !errors.As(err, &errs) || len(errs) == 0 {
				t.Fatalf("%s: %v", draft, err)
			}
			return
		}
		if details = details[skipSpace(details, 0):]; len(details) == 0 || details[0] != '{' || !validJSON(details) {
			return
		}
		for _, service := range []*EventService{nil, {ID: "sa_1", Name: "digest", Environment: "production", Team: "mail"}} {
			e := &Event{Type: "pii_detected", Category: ContentSafety, BaseSeverity: Warn, Service: service, Details: details, DetectedAt: received, ReceivedAt: received}
			ref, _ := p.decide(e)
			if x := p.Explain(e); x.Rule != ref {
				t.Fatalf("%s: decided by %+v, explained by %+v", draft, ref, x.Rule)
			}
		}
	})
}

func BenchmarkPolicy(b *testing.B) {
	for _, n := range []int{0, 10, 100, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			rules := make([]Rule, n)
			for i := range rules {
				rules[i] = Rule{ID: fmt.Sprintf("r%d", i), Types: []string{"pii_detected"}, Action: ActionWarn, When: `details.n > 5`, Scope: Scope{ServiceAccount: []string{fmt.Sprintf("svc-%d/production", i)}}}
			}
			p := compile(b, rules...)
			e := &Event{Type: "pii_detected", Category: ContentSafety, BaseSeverity: Warn, Details: json.RawMessage(`{"n":7}`), Service: &EventService{ID: "sa_1", Name: "svc-7", Environment: "production"}}
			b.ReportAllocs()
			for b.Loop() {
				p.decide(e)
			}
		})
	}
}
