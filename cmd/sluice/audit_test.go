package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"flowstate.inc/sluice/accounts"
)

// TestAuditVerify tampers with the audit of an org each, in the way that it is called after, before retention and after it. The command's exit status
// is 1 then, and 0 where nobody has; what it prints names the row.
func TestAuditVerify(t *testing.T) {
	if testing.Short() {
		t.Skip("all of it is the database's work")
	}
	t.Run("sqlite", func(t *testing.T) { auditVerify(t, onDev(t)) })
	t.Run("postgres", func(t *testing.T) { auditVerify(t, onServers(t)) })
}

func auditVerify(t *testing.T, p *place) {
	store, db := p.store(t)
	by := accounts.By{Actor: "test", Via: "cli"}
	const columns = "id, at, actor, action, target_kind, target_id, target_label, before_json, after_json, source_ip, source_via, hash"
	// Row 5 of 8 is the one that is tampered with; retention takes the first three, and writes row 9.
	kinds := []struct {
		name, finds string
		queries     []string
	}{
		{"untouched", "", nil},
		{"edited", "edited_or_moved", []string{`UPDATE audit_events SET actor = 'x' WHERE org = $1 AND seq = 5`}},
		{"removed", "removed", []string{`DELETE FROM audit_events WHERE org = $1 AND seq = 5`}},
		{"reordered", "edited_or_moved", []string{
			`UPDATE audit_events SET seq = 1000 WHERE org = $1 AND seq = 5`, `UPDATE audit_events SET seq = 5 WHERE org = $1 AND seq = 6`,
			`UPDATE audit_events SET seq = 6 WHERE org = $1 AND seq = 1000`,
		}},
		{"cut-off", "cut_off", []string{`DELETE FROM audit_events WHERE org = $1 AND seq >= 8`}},
		{"added", "added", []string{`INSERT INTO audit_events (org, seq, ` + columns + `) SELECT org, 1000, ` + columns + ` FROM audit_events WHERE org = $1 AND seq = 5`}},
		{"headless", "head", []string{`DELETE FROM audit_heads WHERE org = $1`}},
	}
	for _, retention := range []bool{false, true} {
		for _, kind := range kinds {
			org := kind.name
			if retention {
				org += "-after-retention"
			}
			if _, err := store.CreateOrg(t.Context(), by, org); err != nil {
				t.Fatal(err)
			}
			var at time.Time
			for i := range 7 {
				if i == 3 {
					at = time.Now().Add(time.Millisecond)
					for time.Now().Before(at) { // the log's times are of milliseconds
					}
				}
				if _, err := store.CreateAccount(t.Context(), by, org, accounts.NewAccount{Name: fmt.Sprint("job ", i), Environment: "staging"}, ""); err != nil {
					t.Fatal(err)
				}
			}
			if retention {
				if n, err := store.PruneAudit(t.Context(), by, org, at); err != nil || n < 3 {
					t.Fatalf("retention took %d rows, %v", n, err)
				}
			}
			if text, code := p.command(t, "audit", "verify", "--org", org); code != 0 || !strings.Contains(text, "is intact") {
				t.Errorf("%s, untouched: exit status %d: %s", org, code, text)
			}
			for _, q := range kind.queries {
				if _, err := db.ExecContext(t.Context(), q, org); err != nil {
					t.Fatal(q, err)
				}
			}
			if kind.finds == "" {
				continue
			}
			for _, form := range [][]string{nil, {"--json"}} {
				text, code := p.command(t, append([]string{"audit", "verify", "--org", org}, form...)...)
				if code != 1 || !strings.Contains(text, "is not intact") || !strings.Contains(text, kind.finds) {
					t.Errorf("%s %v: exit status %d: %s", org, form, code, text)
				}
			}
		}
	}
	if text, code := p.command(t, "audit", "verify", "--org", "nobody"); code != 1 || strings.Contains(text, "intact") {
		t.Errorf("an unknown org: exit status %d: %s", code, text)
	}
}
