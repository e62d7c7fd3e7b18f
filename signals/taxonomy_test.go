package signals

import (
	"regexp"
	"strings"
	"testing"
	"unicode"
)

func testTaxonomy(t testing.TB, cfg TaxonomyConfig) *Taxonomy {
	t.Helper()
	tax, err := NewTaxonomy(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return tax
}

func TestTaxonomyHoldsEveryTypeOfTheDomain(t *testing.T) {
	want := map[Category]string{
		ContentSafety: "pii_detected secret_detected api_key_in_prompt customer_data_pattern banned_content_pattern",
		BrandUsage:    "brand_violation off_topic_production personal_use_company_account abuse_pattern wasteful_prompting",
		Budget:        "forecast_breach",
		Operational:   "monitoring_gap model_regression_signal auth_context_mismatch key_misuse_detected",
	}
	tax := testTaxonomy(t, TaxonomyConfig{})
	n := 0
	for category, types := range want {
		for _, name := range strings.Fields(types) {
			n++
			st := tax.Resolve(name)
			if st.Type != name || st.Category != category {
				t.Errorf("Resolve(%q) = %+v, want category %s", name, st, category)
			}
			if (st.AppliesTo == Persons) != (name == PersonalUse) {
				t.Errorf("%s applies to %s", name, st.AppliesTo)
			}
			if st.BaseSeverity == Block {
				t.Errorf("%s is BLOCK without anybody saying so", name)
			}
		}
	}
	if got := len(tax.Types()); got != n {
		t.Errorf("the taxonomy has %d types, the domain %d", got, n)
	}
	if st := tax.Resolve("moon_phase"); st != (SignalType{"moon_phase", Other, Both, Warn}) {
		t.Errorf("unknown type: %+v", st)
	}
}

func TestTaxonomyConfig(t *testing.T) {
	tax := testTaxonomy(t, TaxonomyConfig{
		Add:         []SignalType{{Type: "Lunch.Break", Category: Budget, AppliesTo: Services, BaseSeverity: Info}, {Type: "plain"}},
		PersonsOnly: []string{"wasteful-prompting", "gossip"},
	})
	f := func(name string, want SignalType) {
		t.Helper()
		if got := tax.Resolve(name); got != want {
			t.Errorf("Resolve(%q) = %+v, want %+v", name, got, want)
		}
	}
	f("lunch_break", SignalType{"lunch_break", Budget, Services, Info})
	f("plain", SignalType{"plain", Other, Both, Warn})
	f("wasteful_prompting", SignalType{"wasteful_prompting", BrandUsage, Persons, Info})
	f("gossip", SignalType{"gossip", Other, Persons, Warn})
	f(PersonalUse, SignalType{PersonalUse, BrandUsage, Persons, Warn})

	bad := func(cfg TaxonomyConfig, want string) {
		t.Helper()
		if _, err := NewTaxonomy(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("NewTaxonomy(%+v): %v, want an error with %q", cfg, err, want)
		}
	}
	bad(TaxonomyConfig{Add: []SignalType{{Type: "ok"}, {Type: "personalUse-companyAccount", AppliesTo: Both}}}, "add[1]")
	bad(TaxonomyConfig{Add: []SignalType{{Type: "9lives"}}}, "not a type name")
	bad(TaxonomyConfig{Add: []SignalType{{Type: "a", Category: "fun"}}}, "not a category")
	bad(TaxonomyConfig{Add: []SignalType{{Type: "a", AppliesTo: "cats"}}}, "applies_to")
	bad(TaxonomyConfig{Add: []SignalType{{Type: "a", BaseSeverity: "LOUD"}}}, "base_severity")
	bad(TaxonomyConfig{PersonsOnly: []string{"ünlike"}}, "persons_only[0]")
}

func TestNormaliseType(t *testing.T) {
	f := func(in, want string) {
		t.Helper()
		got, ok := NormaliseType(in)
		if got != want || ok != (want != "") {
			t.Errorf("NormaliseType(%q) = %q, %v, want %q", in, got, ok, want)
		}
	}
	for _, s := range []string{
		PersonalUse, "PERSONAL_USE_COMPANY_ACCOUNT", "Personal-Use-Company-Account", "personal.use.company.account",
		"personal use company account", "  personal_use_company_account\t\n", "\u00a0personal_use_company_account\u2003",
		"\u3000Personal use-company.account\u0085",
	} {
		f(s, PersonalUse)
	}
	f("a", "a")
	f("A9_", "a9_")
	f(strings.Repeat("a", 64), strings.Repeat("a", 64))
	f(strings.Repeat("a", 65), "")
	for _, s := range []string{
		"", " ", "_a", "-a", "9a", "a/b", "a\tb", "a\x00", "a\u00a0b", "personal_use\u200b_company_account", "\ufeffpii_detected",
		"\uff50ersonal_use_company_account",  // full-width p
		"personal_use_company_account\u200d", // zero-width joiner at the end
		"\u212aey_misuse_detected",           // the Kelvin sign, whose lower case is k
		"p\u0131i_detected",                  // dotless i
		"per\u017fonal_use_company_account",  // long s, whose upper case is S
		"p\u0435rsonal_use_company_account",  // Cyrillic e
		"personal\u2010use\u2010company\u2010account",
		"personal_use_company_account\xff",
	} {
		f(s, "")
	}
}

func TestSpellingsThatReadTheSameAreOneType(t *testing.T) {
	tax := testTaxonomy(t, TaxonomyConfig{PersonsOnly: []string{"gossip_at_work"}})
	f := func(in, want string) {
		t.Helper()
		name, ok := NormaliseType(in)
		if !ok {
			t.Fatalf("%q is invalid", in)
		}
		if st := tax.Resolve(name); st.Type != want || st.AppliesTo != Persons {
			t.Errorf("%q is %+v, want %s for persons", in, st, want)
		}
	}
	f("personal__use_company_account", PersonalUse)
	f("personal - use - company - account", PersonalUse)
	f("personalUseCompanyAccount", PersonalUse)
	f("personal_use_company_account_", PersonalUse)
	f("personal_use_company_account...", PersonalUse)
	f("p_e_r_s_o_n_a_l_use_company_account", PersonalUse)
	f("gossipAtWork", "gossip_at_work")
}

// reads is how a person reads a type: letters and digits, whatever their case and what stands between them.
func reads(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsLetter(r) || unicode.IsDigit(r) {
			return unicode.ToLower(r)
		}
		return -1
	}, s)
}

func FuzzNormaliseType(f *testing.F) {
	for _, s := range []string{PersonalUse, "Personal-Use.Company Account", "personalUseCompanyAccount", "\u212aey", "\uff50ii", "a\u200bb", "", "_", "9"} {
		f.Add(s)
	}
	pattern := regexp.MustCompile(`^[a-z][a-z0-9_]{0,63}$`)
	tax, err := NewTaxonomy(TaxonomyConfig{})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name, ok := NormaliseType(s)
		if !ok {
			if name != "" {
				t.Fatalf("NormaliseType(%q) is invalid and %q", s, name)
			}
			return
		}
		if !pattern.MatchString(name) {
			t.Fatalf("NormaliseType(%q) = %q", s, name)
		}
		if again, ok := NormaliseType(name); !ok || again != name {
			t.Fatalf("NormaliseType(%q) = %q, and of that %q", s, name, again)
		}
		st := tax.Resolve(name)
		if again := tax.Resolve(st.Type); again != st {
			t.Fatalf("Resolve(%q) = %+v, and of that %+v", name, st, again)
		}
		if reads(s) == reads(PersonalUse) && (st.Type != PersonalUse || st.AppliesTo != Persons) {
			t.Fatalf("%q reads as %s and is %+v", s, PersonalUse, st)
		}
	})
}
