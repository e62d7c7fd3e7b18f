package signals

import (
	"fmt"
	"strings"

	"golang.org/x/text/unicode/norm"
)

// namedMost is how many of a draft's service accounts are looked for: each costs a query.
const namedMost = 200

// UnknownAccounts warns of service accounts that rules name and that are not there: such a rule decides nothing until they are, which is right for an account
// that is about to be made again, and otherwise a slip of the pen. live says whether there is one of this id, or where id is "" of this name and environment.
// Its error ends the search.
func UnknownAccounts(rules []Rule, live func(id, name, environment string) (bool, error)) ([]PolicyError, error) {
	var warnings []PolicyError
	seen := map[string]bool{}
	for i, r := range rules {
		for j, named := range r.Scope.ServiceAccount {
			known, asked := seen[named]
			if !asked {
				if len(seen) == namedMost {
					return warnings, nil
				}
				id, name, environment := named, "", ""
				if k := strings.LastIndexByte(named, '/'); k >= 0 {
					id, name, environment = "", norm.NFC.String(named[:k]), strings.ToLower(named[k+1:])
				}
				var err error
				if known, err = live(id, name, environment); err != nil {
					return nil, err
				}
				seen[named] = known
			}
			if !known {
				warnings = append(warnings, PolicyError{Pointer: fmt.Sprintf("/rules/%d/scope/service_account/%d", i, j), Rule: r.ID,
					Detail: fmt.Sprintf("names %s, and there is no such live service account", quoted(named))})
			}
		}
	}
	return warnings, nil
}
