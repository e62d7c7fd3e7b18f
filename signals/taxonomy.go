package signals

import (
	"fmt"
	"slices"
	"strings"
)

// A Severity says how loudly a signal speaks. BLOCK is a severity for those who act on it: the gateway drops nothing by it.
type Severity string

// The severities, from the quietest to the loudest.
const (
	Info  Severity = "INFO"
	Warn  Severity = "WARN"
	Block Severity = "BLOCK"
)

// rank orders severities; an unknown one is below all.
func (s Severity) rank() int {
	switch s {
	case Info:
		return 1
	case Warn:
		return 2
	case Block:
		return 3
	}
	return 0
}

// ParseSeverity reads a severity in any case, surrounding ASCII spaces ignored.
func ParseSeverity(s string) (Severity, bool) {
	v := Severity(strings.ToUpper(strings.Trim(s, " \t\r\n")))
	return v, v.rank() > 0
}

// A Category groups types on the Alerts page.
type Category string

// The categories.
const (
	ContentSafety Category = "contentSafety"
	BrandUsage    Category = "brandUsage"
	Budget        Category = "budget"
	Operational   Category = "operational"
	Other         Category = "other"
)

// Categories lists the categories in the order in which they are shown.
func Categories() []Category {
	return []Category{ContentSafety, BrandUsage, Budget, Operational, Other}
}

// AppliesTo says which subjects a type makes sense for.
type AppliesTo string

// Whom a type applies to.
const (
	Persons  AppliesTo = "person"
	Services AppliesTo = "service"
	Both     AppliesTo = "both"
)

// The types that the code itself speaks of. The others are rows of the table below.
const (
	PersonalUse         = "personal_use_company_account"
	AbusePattern        = "abuse_pattern"
	OffTopicProduction  = "off_topic_production"
	AuthContextMismatch = "auth_context_mismatch"
	KeyMisuseDetected   = "key_misuse_detected"
)

// A SignalType is one row of the taxonomy, as GET /api/v1/signal-types prints it.
type SignalType struct {
	Type         string    `json:"type"`
	Category     Category  `json:"category"`
	AppliesTo    AppliesTo `json:"applies_to"`
	BaseSeverity Severity  `json:"base_severity"` // where the raiser names none
}

// builtin is the taxonomy of the product. No base severity is BLOCK: somebody downstream may act on a BLOCK, so only a
// raiser or a policy rule may say it. WARN is what a person should look at; INFO what is worth a trend and no more.
func builtin() []SignalType {
	return []SignalType{
		{"pii_detected", ContentSafety, Both, Warn},
		{"secret_detected", ContentSafety, Both, Warn},
		{"api_key_in_prompt", ContentSafety, Both, Warn},
		{"customer_data_pattern", ContentSafety, Both, Warn},
		{"banned_content_pattern", ContentSafety, Both, Warn},
		{"brand_violation", BrandUsage, Both, Warn},
		{OffTopicProduction, BrandUsage, Both, Warn},
		{PersonalUse, BrandUsage, Persons, Warn},
		{AbusePattern, BrandUsage, Both, Warn},
		{"wasteful_prompting", BrandUsage, Both, Info},
		{"forecast_breach", Budget, Both, Warn},
		{"monitoring_gap", Operational, Both, Warn},
		{"model_regression_signal", Operational, Both, Warn},
		{AuthContextMismatch, Operational, Both, Warn},
		{KeyMisuseDetected, Operational, Both, Warn},
	}
}

// A TaxonomyConfig widens the built-in taxonomy. It can add types and make more of them persons' only; there is no way to
// take personal_use_company_account, or any built-in type, away.
type TaxonomyConfig struct {
	Add         []SignalType `json:"add"`          // new types; category other, both and WARN where a member is empty
	PersonsOnly []string     `json:"persons_only"` // types, known or not, that apply to persons only
}

// A Taxonomy knows every type of signal. It never changes once made.
type Taxonomy struct {
	list   []SignalType
	byName map[string]SignalType
	byBare map[string]SignalType // by bare name: see Resolve
}

// NewTaxonomy makes the built-in taxonomy, widened by cfg. Its errors name the entry of cfg that is wrong.
func NewTaxonomy(cfg TaxonomyConfig) (*Taxonomy, error) {
	list := builtin()
	find := func(name string) int {
		return slices.IndexFunc(list, func(t SignalType) bool { return bare(t.Type) == bare(name) })
	}
	for i, t := range cfg.Add {
		name, ok := NormaliseType(t.Type)
		if !ok {
			return nil, fmt.Errorf("signal types: add[%d]: %q is not a type name", i, t.Type)
		}
		if at := find(name); at >= 0 {
			return nil, fmt.Errorf("signal types: add[%d]: %q is there already, as %q", i, t.Type, list[at].Type)
		}
		row := SignalType{Type: name, Category: Other, AppliesTo: Both, BaseSeverity: Warn}
		if t.Category != "" {
			row.Category = t.Category
		}
		if t.AppliesTo != "" {
			row.AppliesTo = t.AppliesTo
		}
		if t.BaseSeverity != "" {
			row.BaseSeverity = t.BaseSeverity
		}
		if !slices.Contains(Categories(), row.Category) {
			return nil, fmt.Errorf("signal types: add[%d]: %q is not a category", i, t.Category)
		}
		if row.AppliesTo != Persons && row.AppliesTo != Services && row.AppliesTo != Both {
			return nil, fmt.Errorf("signal types: add[%d]: applies_to %q is not person, service or both", i, t.AppliesTo)
		}
		if row.BaseSeverity.rank() == 0 {
			return nil, fmt.Errorf("signal types: add[%d]: base_severity %q is not INFO, WARN or BLOCK", i, t.BaseSeverity)
		}
		list = append(list, row)
	}
	for i, s := range cfg.PersonsOnly {
		name, ok := NormaliseType(s)
		if !ok {
			return nil, fmt.Errorf("signal types: persons_only[%d]: %q is not a type name", i, s)
		}
		if at := find(name); at >= 0 {
			list[at].AppliesTo = Persons
			continue
		}
		list = append(list, SignalType{Type: name, Category: Other, AppliesTo: Persons, BaseSeverity: Warn})
	}
	t := &Taxonomy{list: list, byName: map[string]SignalType{}, byBare: map[string]SignalType{}}
	for _, row := range list {
		t.byName[row.Type] = row
		t.byBare[bare(row.Type)] = row
	}
	return t, nil
}

// Types lists the taxonomy in the order of the table, configured types last. The caller owns the slice.
func (t *Taxonomy) Types() []SignalType { return slices.Clone(t.list) }

// Resolve finds the row of a normalised type. Names that differ only in where the underscores stand are one type
// (personaluse_companyaccount, personal__use_company_account, and with the lower-casing before it
// personalUseCompanyAccount): else a doubled dash would carry a persons' type past the filter. A type that nobody
// declared is kept, as category other, for both, at WARN: what we do not know we do not hide.
func (t *Taxonomy) Resolve(normalised string) SignalType {
	if row, ok := t.byName[normalised]; ok {
		return row
	}
	if row, ok := t.byBare[bare(normalised)]; ok {
		return row
	}
	return SignalType{Type: normalised, Category: Other, AppliesTo: Both, BaseSeverity: Warn}
}

func bare(name string) string { return strings.ReplaceAll(name, "_", "") }

// maxType is the longest type name, in bytes.
const maxType = 64

// NormaliseType reads a type as its sender meant it: surrounding Unicode space goes, ASCII letters become lower case,
// dashes, dots and spaces become underscores. What is left must match ^[a-z][a-z0-9_]{0,63}$. Nothing outside ASCII is
// ever folded into it: full-width letters, the Kelvin sign, zero-width characters make a name invalid, so that no two
// names which look alike can mean different things to the filter and to a reader.
func NormaliseType(s string) (string, bool) {
	s = strings.TrimSpace(s)
	if s == "" || len(s) > maxType {
		return "", false
	}
	clean := true
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z':
		case i > 0 && (c == '_' || c >= '0' && c <= '9'):
		case i > 0 && (c == '-' || c == '.' || c == ' '), c >= 'A' && c <= 'Z':
			clean = false
		default:
			return "", false
		}
	}
	if clean {
		return s, true
	}
	b := []byte(s)
	for i, c := range b {
		switch {
		case c >= 'A' && c <= 'Z':
			b[i] = c + 'a' - 'A'
		case c == '-' || c == '.' || c == ' ':
			b[i] = '_'
		}
	}
	return string(b), true
}
