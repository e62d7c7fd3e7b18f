package signals

import (
	"fmt"
	"testing"

	"flowstate.inc/sluice/auth"
)

// What a condition needs says no only where the whole condition does, errors included.
func TestConditionNeeds(t *testing.T) {
	tests := []struct {
		when  string
		needs int
	}{
		{`session_id == "s1"`, 1},
		{`"s1" == session_id`, 1},
		{`session_id == "s1" && service.name == "digest"`, 2},
		{`(service.name == "digest" && type == "secret_detected") && session_id == "s1"`, 3},
		{`details.amount > 100 && session_id == "s1"`, 1},
		{`session_id == "s1" && details.amount > 100`, 1},
		{`session_id == "s1" || service.name == "digest"`, 0},
		{`!(session_id == "s1")`, 0},
		{`session_id != "s1"`, 0},
		{`session_id == service.name`, 0},
		{`session_id == "s" + "1"`, 0},
		{`details.id == "s1"`, 0},
		{`["s1"].exists(session_id, session_id == "s1")`, 0},
		{`session_id == "s1" ? service.name == "digest" : false`, 0},
	}
	var events []*Event
	for _, session := range []string{"s1", "s2", ""} {
		for _, service := range []*EventService{nil, {Name: "digest"}, {Name: "s1"}} {
			for _, details := range []string{``, `{"amount":101,"id":"s1"}`, `{"amount":"much"}`} {
				events = append(events, &Event{Type: "secret_detected", SessionID: session, Service: service, Details: []byte(details)})
			}
		}
	}
	for _, tt := range tests {
		when := compile(t, Rule{ID: "r", Types: []string{"secret_detected"}, When: tt.when, Action: ActionWarn, Scope: Scope{Org: true}}).rules[0].when
		if len(when.needs) != tt.needs {
			t.Errorf("%s: %d needs, not %d", tt.when, len(when.needs), tt.needs)
		}
		whole := *when
		whole.needs = nil
		for i, e := range events {
			got, err := when.matches(&facts{event: e})
			want, wantErr := whole.matches(&facts{event: e})
			if got != want || (err == nil) != (wantErr == nil) {
				t.Errorf("%s of event %d: %v %v, and without the needs %v %v", tt.when, i, got, err, want, wantErr)
			}
		}
	}
}

// A policy of a thousand rules, each for another session, allocates nothing for those that do not match.
func TestManyRulesCostLittle(t *testing.T) {
	rules := make([]Rule, MaxRules)
	for i := range rules {
		rules[i] = Rule{ID: fmt.Sprint("r", i), Types: []string{"secret_detected"}, When: fmt.Sprintf(`session_id == "s%d"`, i), Action: ActionWarn, Scope: Scope{Org: true}}
	}
	p := compile(t, rules...)
	e := &Event{Type: "secret_detected", SessionID: "another"}
	if got := testing.AllocsPerRun(10, func() {
		if rule, _ := p.decide(e); rule != nil {
			t.Fatal(rule)
		}
	}); got > 4 {
		t.Errorf("%v allocations", got)
	}
	e.SessionID = "s700"
	if rule, errs := p.decide(e); rule == nil || rule.ID != "r700" || errs != 0 {
		t.Errorf("%+v, %d errors", rule, errs)
	}
}

// What is filtered by its type is what Decide filters, and nothing is that Decide would let through.
func TestFilteredByTypeAgreesWithDecide(t *testing.T) {
	tax, err := NewTaxonomy(TaxonomyConfig{Add: []SignalType{{Type: "holiday_request", Category: Other, AppliesTo: Persons, BaseSeverity: Info}}})
	if err != nil {
		t.Fatal(err)
	}
	d := testDecider(t, DeciderConfig{Taxonomy: tax})
	for _, p := range []*auth.Principal{service("sa_1", "digest", "production", false), person(), detector()} {
		for _, sent := range []string{"personal_use_company_account", "Personal-Use.Company Account", "  personal_use_company_account\n", "personalusecompanyaccount", "holiday_request",
			"secret_detected", "abuse_pattern", "unknown_thing", "", "9", "personal_use_company_accоunt", "key_misuse_detected"} {
			r := FromLogRecord(attrs("signal.type", fmt.Sprintf("%q", sent)), 1, 0, nil, 0, &Ordinals{}, Limits{})
			want := d.Decide(t.Context(), p, &r, received)
			got, ok := d.FilteredByType(p, []byte(sent))
			if ok && (got.Outcome != want.Outcome || got.Reason != want.Reason || got.Type != want.Type || got.About != want.About || got.Event != nil) {
				t.Errorf("%s of a %s: %+v, and Decide says %+v", sent, p.Kind, got, want)
			}
			if want.Reason == PersonsOnly && ok != (p.Kind == auth.KindServiceAccount) {
				t.Errorf("%s of a %s: filtered by type %v", sent, p.Kind, ok)
			}
		}
	}
	p := service("sa_1", "digest", "production", true)
	name := []byte("personal_use_company_account")
	if got := testing.AllocsPerRun(100, func() { d.FilteredByType(p, name) }); got > 0 {
		t.Errorf("%v allocations", got)
	}
}
