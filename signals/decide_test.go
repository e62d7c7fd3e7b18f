package signals

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"flowstate.inc/sluice/auth"
)

var received = time.Date(2026, 11, 23, 22, 40, 12, 0, time.UTC)

func service(id, name, environment string, abuse bool) *auth.Principal {
	return &auth.Principal{Org: "acme", Kind: auth.KindServiceAccount, ID: id, Name: name, Environment: environment, AbuseDetection: abuse,
		Description: "Summarises the day's mail", IntendedScope: "Summaries of internal mail, nothing else", Team: "mail", CostCentre: "cc-7", KeyPrefix: "fsk_" + id}
}

func person() *auth.Principal {
	return &auth.Principal{Org: "acme", Kind: auth.KindPerson, ID: "usr_ada", Name: "Ada", KeyPrefix: "fpk_ada"}
}

func detector() *auth.Principal {
	return &auth.Principal{Org: "acme", Kind: auth.KindDetector, ID: "det_billing", Name: "billing", KeyPrefix: "fdk_billing"}
}

// directory answers look-ups from a list, as auth.Chain does from its tiers.
type directory []*auth.Principal

func (d directory) account(_ context.Context, org, _, id string) (*auth.Principal, error) {
	for _, p := range d {
		if p.Org == org && p.ID == id {
			return p, nil
		}
	}
	return nil, fmt.Errorf("account: %w", auth.ErrNoKey)
}

func (d directory) byName(_ context.Context, org, _, name, environment string) (*auth.Principal, error) {
	for _, p := range d {
		if p.Org == org && strings.EqualFold(p.Name, name) && p.Environment == environment {
			return p, nil
		}
	}
	return nil, fmt.Errorf("account: %w", auth.ErrNoKey)
}

func testDecider(t testing.TB, cfg DeciderConfig, known ...*auth.Principal) *Decider {
	t.Helper()
	if cfg.Account == nil {
		cfg.Account, cfg.AccountByName = directory(known).account, directory(known).byName
	}
	d, err := NewDecider(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// entrances are the two ways in; each makes the same signal of a type, a severity and a subject in JSON.
var entrances = map[string]func(t *testing.T, typ string, severity Severity, ref *SubjectRef) Raised{
	"json": func(t *testing.T, typ string, severity Severity, ref *SubjectRef) Raised {
		t.Helper()
		b := append([]byte(`{"type":`), appendString(nil, typ)...)
		if severity != "" {
			b = appendMember(b, `,"severity":`, string(severity))
		}
		if ref != nil {
			b = append(b, `,"subject":{`...)
			sep := ""
			for _, m := range [][2]string{{"kind", ref.Kind}, {"id", ref.ID}, {"name", ref.Name}, {"environment", ref.Environment}} {
				if m[1] != "" {
					b = appendString(append(appendString(append(b, sep...), m[0]), ':'), m[1])
					sep = ","
				}
			}
			if ref.Owner != nil {
				b = appendMember(append(b, sep...), `"owner":{"kind":`, ref.Owner.Kind)
				b = append(appendMember(b, `,"id":`, ref.Owner.ID), '}')
			}
			b = append(b, '}')
		}
		return one(t, "application/json", string(append(b, '}')))
	},
	"otlp": func(t *testing.T, typ string, severity Severity, ref *SubjectRef) Raised {
		t.Helper()
		kv := []string{"event.name", `"flowstate.signal"`, "signal.type", string(appendString(nil, typ))}
		add := func(name, value string) {
			if value != "" {
				kv = append(kv, name, string(appendString(nil, value)))
			}
		}
		add("signal.severity", string(severity))
		if ref != nil {
			add("signal.subject.kind", ref.Kind)
			add("signal.subject.id", ref.ID)
			add("signal.subject.name", ref.Name)
			add("signal.subject.environment", ref.Environment)
			if ref.Owner != nil {
				add("signal.subject.owner.kind", ref.Owner.Kind)
				add("signal.subject.owner.id", ref.Owner.ID)
			}
		}
		return FromLogRecord(attrs(kv...), uint64(received.UnixNano()), 0, []byte("raw"), 0, &Ordinals{}, Limits{})
	},
}

// TestEveryCell is the table: type × kind of subject × abuse detection × environment × severity as raised, over both
// entrances, with what is expected worked out here from the words of the design and from nothing of the code under test.
func TestEveryCell(t *testing.T) {
	types := strings.Fields(`pii_detected secret_detected api_key_in_prompt customer_data_pattern banned_content_pattern brand_violation
		off_topic_production personal_use_company_account abuse_pattern wasteful_prompting forecast_breach monitoring_gap
		model_regression_signal auth_context_mismatch key_misuse_detected moon_phase tea_break robots_rest`)
	tax := testTaxonomy(t, TaxonomyConfig{
		Add:         []SignalType{{Type: "robots_rest", AppliesTo: Services, BaseSeverity: Warn}},
		PersonsOnly: []string{"tea_break"},
	})
	personsOnly := map[string]bool{"personal_use_company_account": true, "tea_break": true}
	most := map[string]string{"production": "BLOCK", "staging": "WARN", "development": "INFO"}
	order := map[string]int{"INFO": 1, "WARN": 2, "BLOCK": 3}

	cells := 0
	check := func(how, typ string, raised Severity, sender *auth.Principal, ref *SubjectRef, kind, environment string, abuse bool, known ...*auth.Principal) {
		t.Helper()
		cells++
		r := entrances[how](t, typ, raised, ref)
		v := testDecider(t, DeciderConfig{Taxonomy: tax}, known...).Decide(t.Context(), sender, &r, received)
		cell := fmt.Sprintf("%s: %s %s by %s about %s in %q, abuse detection %v", how, typ, raised, sender.Kind, kind, environment, abuse)
		want, reason := Accepted, Reason("")
		switch {
		case personsOnly[typ] && kind == "session without owner":
			want, reason = Invalid, BadSubject
		case personsOnly[typ] && kind != "person" && kind != "session of a person":
			want, reason = Filtered, PersonsOnly
		case typ == "robots_rest" && (kind == "person" || kind == "session of a person"):
			want, reason = Filtered, ServicesOnly
		case typ == "abuse_pattern" && environment != "" && !abuse:
			want, reason = Filtered, AbuseDetectionOff
		}
		if v.Outcome != want || v.Reason != reason || v.Type != typ || (v.Event != nil) != (want == Accepted) {
			t.Errorf("%s: %s %s %q, want %s %s", cell, v.Outcome, v.Reason, v.Detail, want, reason)
			return
		}
		if v.Event == nil {
			return
		}
		base := string(raised)
		if raised == "" {
			base = "WARN"
			if typ == "wasteful_prompting" {
				base = "INFO"
			}
		}
		effective := base
		if environment != "" && typ != "key_misuse_detected" && typ != "auth_context_mismatch" && order[base] > order[most[environment]] {
			effective = most[environment]
		}
		if string(v.Event.BaseSeverity) != base || string(v.Event.Severity) != effective {
			t.Errorf("%s: base %s, effective %s, want %s and %s", cell, v.Event.BaseSeverity, v.Event.Severity, base, effective)
		}
		if (v.Event.Service != nil) != (environment != "") {
			t.Errorf("%s: badge %+v", cell, v.Event.Service)
		}
		if environment != "" && (v.Event.Service.Environment != environment || v.Event.Service.Name != "digest" || v.Event.Service.AbuseDetection != abuse) {
			t.Errorf("%s: badge %+v", cell, v.Event.Service)
		}
		conforms(t, v.Event)
	}
	for how := range entrances {
		for _, typ := range types {
			for _, raised := range []Severity{"", Info, Warn, Block} {
				for _, environment := range []string{"production", "staging", "development"} {
					for _, abuse := range []bool{true, false} {
						sa := service("sa_1", "digest", environment, abuse)
						check(how, typ, raised, sa, nil, "service", environment, abuse)
						check(how, typ, raised, detector(), &SubjectRef{Kind: "service_account", ID: "sa_1"}, "service", environment, abuse, sa)
						check(how, typ, raised, detector(), &SubjectRef{Kind: "service_account", Name: "digest", Environment: environment}, "service", environment, abuse, sa)
						check(how, typ, raised, detector(), &SubjectRef{Kind: "session", ID: "s", Owner: &OwnerRef{"service_account", "sa_1"}}, "session of a service", environment, abuse, sa)
					}
				}
				check(how, typ, raised, person(), nil, "person", "", false)
				check(how, typ, raised, detector(), nil, "detector", "", false)
				check(how, typ, raised, detector(), &SubjectRef{Kind: "person", ID: "usr_ada"}, "person", "", false)
				check(how, typ, raised, detector(), &SubjectRef{Kind: "turn", ID: "s", Owner: &OwnerRef{"person", "usr_ada"}}, "session of a person", "", false)
				check(how, typ, raised, detector(), &SubjectRef{Kind: "session", ID: "s"}, "session without owner", "", false)
			}
		}
	}
	if want := 2 * len(types) * 4 * (3*2*4 + 5); cells != want {
		t.Errorf("%d cells, want %d", cells, want)
	}
}

func TestNoSpellingOfAPersonsTypePassesAsAService(t *testing.T) {
	spellings := []string{"personal_use_company_account", "PERSONAL_USE_COMPANY_ACCOUNT", " personal_use_company_account ", "personal-use-company-account", "Personal.Use Company-Account",
		"personalUseCompanyAccount", "personal__use_company_account", "personal_use_company_account_", "\u2003personal_use_company_account\u00a0",
		"\uff50ersonal_use_company_account", "personal_use\u200b_company_account", "per\u017fonal_use_company_account", "personal_use_company_acc\u03bfunt"}
	kinds := []auth.Kind{auth.KindServiceAccount, auth.KindDetector, "robot", "", "Person", "person "}
	for how, raise := range entrances {
		for _, s := range spellings {
			for _, kind := range kinds {
				p := service("sa_1", "digest", "production", true)
				p.Kind = kind
				r := raise(t, s, "", nil)
				if v := testDecider(t, DeciderConfig{}).Decide(t.Context(), p, &r, received); v.Outcome != Filtered && v.Outcome != Invalid || v.Event != nil {
					t.Errorf("%s: %q passes for kind %q: %+v", how, s, kind, v)
				}
			}
		}
	}
}

func TestSubjects(t *testing.T) {
	sa, other := service("sa_1", "digest", "production", true), service("sa_2", "digest", "staging", true)
	foreign := service("sa_3", "digest", "production", true)
	foreign.Org = "rival"
	f := func(sender *auth.Principal, typ string, ref SubjectRef, outcome Outcome, detail, label string) {
		t.Helper()
		for how, raise := range entrances {
			r := raise(t, typ, "", &ref)
			v := testDecider(t, DeciderConfig{}, sa, other, foreign).Decide(t.Context(), sender, &r, received)
			if v.Outcome != outcome || !strings.Contains(v.Detail, detail) || outcome == Invalid && v.Reason != BadSubject {
				t.Errorf("%s: %s by %s about %+v: %s %s %q, want %s with %q", how, typ, sender.Kind, ref, v.Outcome, v.Reason, v.Detail, outcome, detail)
				continue
			}
			if v.Event != nil && v.Event.Subject.Label != label {
				t.Errorf("%s: label %q, want %q", how, v.Event.Subject.Label, label)
			}
		}
	}
	d := detector()
	f(d, "forecast_breach", SubjectRef{Kind: "service_account", ID: "sa_1"}, Accepted, "", "service: digest / production")
	f(d, "forecast_breach", SubjectRef{Kind: "service_account", Name: "digest", Environment: "staging"}, Accepted, "", "service: digest / staging")
	f(d, "forecast_breach", SubjectRef{Kind: "person", ID: "usr_ada"}, Accepted, "", "person: usr_ada")
	f(d, "forecast_breach", SubjectRef{Kind: "session", ID: "s"}, Accepted, "", "session: s")
	f(d, "forecast_breach", SubjectRef{Kind: "turn", ID: "t", Owner: &OwnerRef{"service_account", "sa_1"}}, Accepted, "", "turn: t")
	f(d, "forecast_breach", SubjectRef{Kind: "detector", ID: "det_billing"}, Accepted, "", "detector: billing")
	f(d, PersonalUse, SubjectRef{Kind: "service_account", ID: "sa_1"}, Filtered, "", "")
	f(d, PersonalUse, SubjectRef{Kind: "session", ID: "s", Owner: &OwnerRef{"service_account", "sa_1"}}, Filtered, "", "")
	f(d, PersonalUse, SubjectRef{Kind: "session", ID: "s"}, Invalid, "whose session", "")
	f(d, PersonalUse, SubjectRef{Kind: "person", ID: "usr_ada"}, Accepted, "", "person: usr_ada")
	// An account called a person is no way past the filter.
	f(d, PersonalUse, SubjectRef{Kind: "person", ID: "sa_1"}, Invalid, "service account's", "")
	f(d, PersonalUse, SubjectRef{Kind: "turn", ID: "t", Owner: &OwnerRef{"person", "sa_2"}}, Invalid, "service account's", "")
	for _, typ := range []string{AbusePattern, "forecast_breach", KeyMisuseDetected, "unheard_of"} { // nor past its abuse detection, its badge and its cap
		f(d, typ, SubjectRef{Kind: "person", ID: "sa_1"}, Invalid, "service account's", "")
		f(d, typ, SubjectRef{Kind: "person", ID: "SA_01A20AB0F59B2FDE6942CF7CE081B829"}, Invalid, "service account's", "")
		f(d, typ, SubjectRef{Kind: "session", ID: "s", Owner: &OwnerRef{"person", "sa_2"}}, Invalid, "service account's", "")
	}

	f(d, "forecast_breach", SubjectRef{Kind: "service_account", ID: "sa_3"}, Invalid, "no such service account", "")
	f(d, "forecast_breach", SubjectRef{Kind: "service_account", ID: "sa_9"}, Invalid, "no such service account", "")
	f(d, "forecast_breach", SubjectRef{Kind: "service_account", Name: "digest", Environment: "development"}, Invalid, "no such service account", "")
	f(d, "forecast_breach", SubjectRef{Kind: "service_account"}, Invalid, "subject.id", "")
	f(d, "forecast_breach", SubjectRef{Kind: "service_account", Name: "digest"}, Invalid, "subject.environment", "")
	f(d, "forecast_breach", SubjectRef{Kind: "service_account", ID: "sa_1", Name: "digest", Environment: "production"}, Invalid, "not by both", "")
	f(d, "forecast_breach", SubjectRef{ID: "sa_1"}, Invalid, "kind is missing", "")
	f(d, "forecast_breach", SubjectRef{Kind: "Person", ID: "x"}, Invalid, "not service_account, person", "")
	f(d, "forecast_breach", SubjectRef{Kind: "org", ID: "x"}, Invalid, "not service_account, person", "")
	f(d, "forecast_breach", SubjectRef{Kind: "detector", ID: "det_other"}, Invalid, "not service_account, person", "")
	f(d, "forecast_breach", SubjectRef{Kind: "person"}, Invalid, "subject.id", "")
	f(d, "forecast_breach", SubjectRef{Kind: "person", Name: "Ada", Environment: "x"}, Invalid, "service accounts only", "")
	f(d, "forecast_breach", SubjectRef{Kind: "person", ID: "x", Owner: &OwnerRef{"person", "y"}}, Invalid, "owner belongs", "")
	f(d, "forecast_breach", SubjectRef{Kind: "session"}, Invalid, "subject.id", "")
	f(d, "forecast_breach", SubjectRef{Kind: "session", ID: "s", Owner: &OwnerRef{"org", "y"}}, Invalid, "owner.kind", "")
	f(d, "forecast_breach", SubjectRef{Kind: "session", ID: "s", Owner: &OwnerRef{"service_account", "sa_9"}}, Invalid, "no such service account", "")

	// From any other key, another subject is invalid, and oneself is oneself.
	f(sa, PersonalUse, SubjectRef{Kind: "person", ID: "usr_ada"}, Invalid, "only a detector's key", "")
	f(sa, "forecast_breach", SubjectRef{Kind: "person", ID: "usr_ada"}, Invalid, "only a detector's key", "")
	f(sa, "forecast_breach", SubjectRef{Kind: "service_account", ID: "sa_2"}, Invalid, "only a detector's key", "")
	f(sa, "forecast_breach", SubjectRef{Kind: "session", ID: "s"}, Invalid, "session_id", "")
	f(sa, PersonalUse, SubjectRef{Kind: "session", ID: "s", Owner: &OwnerRef{"person", "usr_ada"}}, Invalid, "only a detector's key", "")
	f(sa, "forecast_breach", SubjectRef{Kind: "service_account", ID: "sa_1"}, Accepted, "", "service: digest / production")
	f(sa, PersonalUse, SubjectRef{Kind: "service_account", ID: "sa_1"}, Filtered, "", "")
	f(sa, "forecast_breach", SubjectRef{Kind: "service_account", Name: "digest", Environment: "production"}, Accepted, "", "service: digest / production")
	f(sa, "forecast_breach", SubjectRef{Kind: "service_account", Name: "digest", Environment: "staging"}, Invalid, "only a detector's key", "")
	f(person(), PersonalUse, SubjectRef{Kind: "service_account", ID: "sa_1"}, Invalid, "only a detector's key", "")
	f(person(), PersonalUse, SubjectRef{Kind: "person", ID: "usr_ada"}, Accepted, "", "person: Ada")
	f(person(), PersonalUse, SubjectRef{Kind: "person", ID: "usr_bob"}, Invalid, "only a detector's key", "")
}

func TestSubjectNobodyCanName(t *testing.T) {
	away := func(context.Context, string, string, string) (*auth.Principal, error) {
		return nil, auth.ErrUnavailable
	}
	awayByName := func(context.Context, string, string, string, string) (*auth.Principal, error) {
		return nil, errors.New("cut")
	}
	f := func(cfg DeciderConfig, typ string, ref SubjectRef, want Outcome) {
		t.Helper()
		d, err := NewDecider(cfg)
		if err != nil {
			t.Fatal(err)
		}
		r := entrances["json"](t, typ, "", &ref)
		v := d.Decide(t.Context(), detector(), &r, received)
		if v.Outcome != want || want == Unavailable && (v.Reason != SubjectAway || v.Type != typ) {
			t.Errorf("%s about %+v: %+v, want %s", typ, ref, v, want)
		}
	}
	cut := DeciderConfig{Account: away, AccountByName: awayByName}
	f(cut, "forecast_breach", SubjectRef{Kind: "service_account", ID: "sa_1"}, Unavailable)
	f(cut, "forecast_breach", SubjectRef{Kind: "service_account", Name: "a", Environment: "production"}, Unavailable)
	f(cut, "forecast_breach", SubjectRef{Kind: "session", ID: "s", Owner: &OwnerRef{"service_account", "sa_1"}}, Unavailable)
	f(cut, "forecast_breach", SubjectRef{Kind: "person", ID: "usr_ada"}, Accepted)
	f(cut, PersonalUse, SubjectRef{Kind: "person", ID: "usr_ada"}, Accepted) // which no account is called
	f(cut, PersonalUse, SubjectRef{Kind: "person", ID: " SA_1"}, Unavailable)
	f(cut, PersonalUse, SubjectRef{Kind: "session", ID: "s", Owner: &OwnerRef{"person", "sa_1"}}, Unavailable)
	f(DeciderConfig{}, "forecast_breach", SubjectRef{Kind: "service_account", ID: "sa_1"}, Unavailable)
	wrong := func(context.Context, string, string, string) (*auth.Principal, error) {
		p := service("sa_1", "digest", "production", true)
		p.Kind = auth.KindPerson
		return p, nil
	}
	f(DeciderConfig{Account: wrong}, "forecast_breach", SubjectRef{Kind: "service_account", ID: "sa_1"}, Invalid)
}

func TestCapsAreConfigurable(t *testing.T) {
	d := testDecider(t, DeciderConfig{Caps: Caps{"production": Warn, "staging": Block}})
	f := func(environment, typ string, want Severity) {
		t.Helper()
		r := entrances["json"](t, typ, Block, nil)
		v := d.Decide(t.Context(), service("sa_1", "digest", environment, true), &r, received)
		if v.Event.Severity != want || v.Event.BaseSeverity != Block {
			t.Errorf("%s in %s: %s of %s, want %s", typ, environment, v.Event.Severity, v.Event.BaseSeverity, want)
		}
	}
	f("production", "pii_detected", Warn)
	f("production", KeyMisuseDetected, Block)
	f("staging", "pii_detected", Block)
	f("development", "pii_detected", Block)
	if _, err := NewDecider(DeciderConfig{Caps: Caps{"staging": "QUIET"}}); err == nil || !strings.Contains(err.Error(), "staging") {
		t.Errorf("a cap that is no severity: %v", err)
	}
}

func TestPolicySetsSeverityUncapped(t *testing.T) {
	var saw Severity
	rule := &RuleRef{PolicyVersion: 7, ID: "no-pii", Action: ActionBlock}
	d := testDecider(t, DeciderConfig{Policy: func(e *Event) *RuleRef {
		saw = e.Severity
		if e.Type == "pii_detected" {
			return rule
		}
		return nil
	}})
	f := func(typ string, action Action, want Severity) {
		t.Helper()
		rule.Action = action
		r := entrances["json"](t, typ, Warn, nil)
		v := d.Decide(t.Context(), service("sa_1", "digest", "development", true), &r, received)
		if v.Event.Severity != want || v.Event.BaseSeverity != Warn || saw != Warn || (v.Event.Rule != nil) != (typ == "pii_detected") {
			t.Errorf("%s %s: %s of %s, the rule saw %s", typ, action, v.Event.Severity, v.Event.BaseSeverity, saw)
		}
		conforms(t, v.Event)
	}
	f("pii_detected", ActionBlock, Block)
	f("pii_detected", ActionWarn, Warn)
	f("pii_detected", ActionObserve, Info)
	f("brand_violation", ActionBlock, Info)
}

func TestRaisedBySluice(t *testing.T) {
	d := testDecider(t, DeciderConfig{})
	own, err := NewRaised(Own{Type: KeyMisuseDetected, Details: map[string]any{"address": "192.0.2.7"}})
	if err != nil {
		t.Fatal(err)
	}
	v := d.Decide(t.Context(), service("sa_1", "digest", "development", true), &own, received)
	if v.Outcome != Accepted || v.Event.Severity != Warn || string(v.Event.Details) != `{"address":"192.0.2.7"}` || !v.Event.DetectedAt.Equal(received) || v.Event.SourceID != "" {
		t.Errorf("got %+v %+v", v, v.Event)
	}
	conforms(t, v.Event)
	own, err = NewRaised(Own{Type: OffTopicProduction, Severity: Warn, ID: "verdict-1", SessionID: "s", DetectedAt: received.Add(-time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	p := service("sa_1", "digest", "production", true)
	p.KeyPrefix = ""
	v = d.Decide(t.Context(), p, &own, received)
	if v.Event.KeyPrefix != "" || v.Event.SourceID != "verdict-1" || v.Event.SessionID != "s" || !v.Event.DetectedAt.Equal(received.Add(-time.Hour)) {
		t.Errorf("got %+v", v.Event)
	}
	conforms(t, v.Event)
	own, err = NewRaised(Own{Type: PersonalUse})
	if err != nil {
		t.Fatal(err)
	}
	if v := d.Decide(t.Context(), p, &own, received); v.Outcome != Filtered {
		t.Errorf("Sluice's own signals pass the filter: %+v", v)
	}
	for _, bad := range []Own{{}, {Type: "a", Severity: "LOUD"}, {Type: "a", Details: map[string]any{"f": func() {}}}, {Type: "a", ID: "a\nb"}} {
		if _, err := NewRaised(bad); err == nil {
			t.Errorf("%+v passes", bad)
		}
	}
}

// A deleted account is not found any more, and is no person for that.
func TestDeletedAccountIsNoPerson(t *testing.T) {
	d, err := NewDecider(DeciderConfig{
		Account: func(context.Context, string, string, string) (*auth.Principal, error) { return nil, auth.ErrNoKey },
	})
	if err != nil {
		t.Fatal(err)
	}
	const id = "sa_01a20ab0f59b2fde6942cf7ce081b829"
	scanner := &auth.Principal{Org: "acme", Kind: auth.KindDetector, ID: "scanner", Name: "scanner"}
	for _, subject := range []SubjectRef{
		{Kind: "person", ID: id},
		{Kind: "session", ID: "s1", Owner: &OwnerRef{Kind: "person", ID: id}},
	} {
		r := Raised{Type: PersonalUse, Subject: &subject}
		if v := d.Decide(context.Background(), scanner, &r, time.Now()); v.Outcome != Invalid || v.Reason != BadSubject {
			t.Errorf("%+v: %s %s", subject, v.Outcome, v.Reason)
		}
	}
}
