package signals

import (
	"errors"
	"fmt"
	"slices"
	"testing"
)

func TestUnknownAccounts(t *testing.T) {
	named := func(accounts ...string) Rule { return Rule{ID: "r", Scope: Scope{ServiceAccount: accounts}} }
	var asked []string
	live := func(id, name, environment string) (bool, error) {
		asked = append(asked, id+"|"+name+"|"+environment)
		return id == "sa_1" || name == "mail/digest" && environment == "production", nil
	}
	got, err := UnknownAccounts([]Rule{{ID: "org", Scope: Scope{Org: true}}, named("sa_1", "mail/digest/Production", "sa_2"), named("sa_2", "digest/production")}, live)
	if err != nil {
		t.Fatal(err)
	}
	var at []string
	for _, w := range got {
		at = append(at, w.Rule+" "+w.Pointer)
	}
	if want := []string{"r /rules/1/scope/service_account/2", "r /rules/2/scope/service_account/0", "r /rules/2/scope/service_account/1"}; !slices.Equal(at, want) {
		t.Errorf("got %v", got)
	}
	if want := []string{"sa_1||", "|mail/digest|production", "sa_2||", "|digest|production"}; !slices.Equal(asked, want) {
		t.Errorf("asked %v", asked)
	}

	asked = nil
	var many []string
	for i := range 3 * namedMost {
		many = append(many, fmt.Sprintf("sa_%d", i+10))
	}
	if got, err := UnknownAccounts([]Rule{named(many...)}, live); err != nil || len(got) != namedMost || len(asked) != namedMost {
		t.Errorf("%d warnings of %d questions, %v", len(got), len(asked), err)
	}
	away := errors.New("away")
	if _, err := UnknownAccounts([]Rule{named("sa_1")}, func(string, string, string) (bool, error) { return false, away }); !errors.Is(err, away) {
		t.Errorf("got %v", err)
	}
}
