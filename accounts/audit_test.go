package accounts_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"flowstate.inc/sluice/accounts"
	"flowstate.inc/sluice/auth"
)

// trail reads the whole audit of acme, oldest first.
func (w *world) trail(t *testing.T) []accounts.AuditEvent {
	t.Helper()
	var out []accounts.AuditEvent
	for e, err := range w.AuditAll(t.Context(), "acme", accounts.AuditFilter{}) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, e)
	}
	slices.Reverse(out)
	return out
}

func TestAuditSaysWhoWhatBeforeAfterAndWhence(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		c, err := w.CreateAccount(ctx, cli, "acme", accounts.NewAccount{Name: "digest", Environment: "production", Description: "d", IntendedScope: "s"}, "")
		if err != nil {
			t.Fatal(err)
		}
		id := c.Account.ID
		if _, err := w.UpdateAccount(ctx, cli, "acme", id, 0, accounts.AccountUpdate{IntendedScope: ptr("s2"), Environment: ptr("staging")}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Identify(ctx, cli, "acme", accounts.Query{Raw: c.Key}); err != nil {
			t.Fatal(err)
		}
		if _, _, err := w.DeleteAccount(ctx, cli, "acme", id); err != nil {
			t.Fatal(err)
		}
		k, _, err := w.CreateKey(ctx, cli, "acme", accounts.NewKey{Kind: auth.KindDetector, Name: "pii"})
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := w.RevokeKey(ctx, cli, "acme", k.Prefix); err != nil {
			t.Fatal(err)
		}
		tok, _, err := w.CreateToken(ctx, cli, "acme", "ci", auth.AllPermissions(), time.Time{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.RevokeToken(ctx, cli, "acme", tok.Prefix); err != nil {
			t.Fatal(err)
		}
		full := func(scope, env string) string {
			return `{"abuse_detection":true,"bytes_per_second":0,"cost_centre":"","description":"d","environment":"` + env + `","intended_scope":"` + scope +
				`","key_prefix":"` + c.Account.KeyPrefix + `","name":"digest","requests_per_second":0,"team":""}`
		}
		want := []struct{ action, label, before, after string }{
			{"org.created", "org: acme", "", `{"slug":"acme"}`},
			{"service_account.created", "service: digest / production", "", full("s", "production")},
			{"service_account.updated", "service: digest / staging", `{"environment":"production","intended_scope":"s"}`, `{"environment":"staging","intended_scope":"s2"}`},
			{"key.identified", "service: digest / staging", "", `{"by":"key","key_prefix":"` + c.Account.KeyPrefix + `"}`},
			{"service_account.deleted", "service: digest / staging", full("s2", "staging"), `{"deleted_at":`},
			{"key.created", "detector: pii", "", `{"key_prefix":"` + k.Prefix + `","name":"pii"}`},
			{"key.revoked", "detector: pii", `{"key_prefix":"` + k.Prefix + `","name":"pii"}`, `{"revoked_at":`},
			{"token.created", "token: ci", "", `{"expires_at":null,"name":"ci","permissions":`},
			{"token.revoked", "token: ci", `{"name":"ci","permissions":`, `{"revoked_at":`},
		}
		got := w.trail(t)
		if len(got) != len(want) {
			t.Fatalf("%d rows, want %d", len(got), len(want))
		}
		for i, e := range got {
			x := want[i]
			if e.Seq != int64(i+1) || e.Action != x.action || e.Target.Label != x.label || e.Actor != cli.Actor || e.IP != cli.IP || e.Via != cli.Via {
				t.Errorf("row %d: %+v", i, e)
			}
			if !strings.HasPrefix(string(e.Before), x.before) || !strings.HasPrefix(string(e.After), x.after) || (x.before == "") != (e.Before == nil) {
				t.Errorf("row %d, %s: before %s after %s", i, e.Action, e.Before, e.After)
			}
		}
		b, err := json.Marshal(got[1])
		if err != nil || !strings.Contains(string(b), `"source":{"ip":"192.0.2.7","via":"cli"}`) || !strings.Contains(string(b), `"before":null`) {
			t.Errorf("as JSON: %s, %v", b, err)
		}
		// A key or its prefix stands for its subject.
		for _, target := range []string{id, c.Account.KeyPrefix, "KEY=" + c.Key} {
			p, err := w.Audit(ctx, "acme", accounts.AuditFilter{Target: target})
			if err != nil || len(p.Items) != 4 {
				t.Errorf("by target: %d rows, %v", len(p.Items), err)
			}
		}
		if p, err := w.Audit(ctx, "globex", accounts.AuditFilter{}); err != nil || len(p.Items) != 0 {
			t.Errorf("another org reads %d rows, %v", len(p.Items), err)
		}
	})
}

// TestAuditFiltersAgainstAnOracle compares filters and pages with the same question asked of a slice in Go.
func TestAuditFiltersAgainstAnOracle(t *testing.T) {
	if testing.Short() {
		t.Skip("all of it is the database's work")
	}
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		for i := range 40 {
			w.clock.advance(time.Second)
			by := accounts.By{Actor: []string{"ada", "grace", "alan"}[i%3], Via: "api"}
			a, err := w.CreateAccount(ctx, by, "acme", accounts.NewAccount{Name: fmt.Sprint("job ", i), Environment: "staging"}, "")
			if err != nil {
				t.Fatal(err)
			}
			if i%4 == 0 {
				if _, _, err := w.DeleteAccount(ctx, by, "acme", a.Account.ID); err != nil {
					t.Fatal(err)
				}
			}
		}
		all := w.trail(t)
		mid, late := all[len(all)/3].At, all[2*len(all)/3].At
		for _, actions := range [][]string{nil, {"service_account.deleted"}, {"service_account.created", "org.created", "nothing", "org.created"}} {
			for _, actors := range [][]string{nil, {"ada"}, {"grace", "nobody"}} {
				for _, kinds := range [][]string{nil, {"org"}, {"service_account", "org"}} {
					for _, target := range []string{"", all[5].Target.ID} {
						for _, since := range []time.Time{{}, mid} {
							for _, until := range []time.Time{{}, late, time.UnixMilli(1)} {
								f := accounts.AuditFilter{Actions: actions, Actors: actors, TargetKinds: kinds, Target: target, Since: since, Until: until, Limit: 7}
								var want, got []int64
								for _, e := range slices.Backward(all) {
									in := func(list []string, v string) bool { return len(list) == 0 || slices.Contains(list, v) }
									if in(actions, e.Action) && in(actors, e.Actor) && in(kinds, e.Target.Kind) && (target == "" || target == e.Target.ID) &&
										!e.At.Before(since) && (until.IsZero() || e.At.Before(until)) {
										want = append(want, e.Seq)
									}
								}
								for {
									p, err := w.Audit(ctx, "acme", f)
									if err != nil {
										t.Fatal(err)
									}
									for _, e := range p.Items {
										got = append(got, e.Seq)
									}
									if f.Cursor = p.Next; f.Cursor == "" {
										break
									}
								}
								if !slices.Equal(got, want) {
									t.Fatalf("%+v: %v, want %v", f, got, want)
								}
							}
						}
					}
				}
			}
		}
	})
}

// TestAuditFindsTampering does to the table what somebody with access to it might, before and after retention.
func TestAuditFindsTampering(t *testing.T) {
	if testing.Short() {
		t.Skip("all of it is the database's work")
	}
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		for i := range 20 {
			w.clock.advance(time.Minute)
			w.create(t, fmt.Sprint("job ", i), "staging")
		}
		verify := func(what string, want ...string) accounts.AuditReport {
			t.Helper()
			r, err := w.VerifyAudit(ctx, "acme")
			if err != nil {
				t.Fatal(err)
			}
			var kinds []string
			for _, p := range r.Problems {
				kinds = append(kinds, p.Kind)
			}
			if !slices.Equal(slices.Compact(kinds), want) {
				t.Errorf("%s: %v, want %v", what, r.Problems, want)
			}
			return r
		}
		exec := func(queries ...string) {
			t.Helper()
			for _, q := range queries {
				if _, err := w.writer.ExecContext(ctx, q); err != nil {
					t.Fatal(q, err)
				}
			}
		}
		tamper := func(what string, want []string, queries ...string) {
			t.Helper()
			exec(`CREATE TABLE kept_events AS SELECT * FROM audit_events`, `CREATE TABLE kept_heads AS SELECT * FROM audit_heads`, `CREATE TABLE kept_checkpoints AS SELECT * FROM audit_checkpoints`)
			exec(queries...)
			verify(what, want...)
			for _, table := range []string{"events", "heads", "checkpoints"} {
				exec(`DELETE FROM audit_`+table, `INSERT INTO audit_`+table+` SELECT * FROM kept_`+table, `DROP TABLE kept_`+table)
			}
			verify("put back after " + what)
		}
		all := func(first, last int64) {
			t.Helper()
			mid := (first + last) / 2
			const edited, removed, cutOff, added, head = accounts.AuditEdited, accounts.AuditRemoved, accounts.AuditCutOff, accounts.AuditAdded, accounts.AuditHead
			for _, column := range []string{"actor", "action", "target_id", "target_label", "target_kind", "after_json", "before_json", "source_ip", "source_via", "id"} {
				tamper("edited "+column, []string{edited}, fmt.Sprintf(`UPDATE audit_events SET %s = 'x' WHERE seq = %d`, column, mid))
			}
			tamper("edited at", []string{edited}, fmt.Sprintf(`UPDATE audit_events SET at = at + 1 WHERE seq = %d`, mid))
			tamper("edited the first", []string{edited}, fmt.Sprintf(`UPDATE audit_events SET actor = 'x' WHERE seq = %d`, first))
			tamper("edited the last", []string{edited}, fmt.Sprintf(`UPDATE audit_events SET actor = 'x' WHERE seq = %d`, last))
			tamper("edited a hash", []string{edited}, fmt.Sprintf(`UPDATE audit_events SET hash = (SELECT e.hash FROM audit_events e WHERE e.seq = %d) WHERE seq = %d`, last, mid))
			tamper("removed one", []string{removed}, fmt.Sprintf(`DELETE FROM audit_events WHERE seq = %d`, mid))
			tamper("removed the first", []string{removed}, fmt.Sprintf(`DELETE FROM audit_events WHERE seq = %d`, first))
			tamper("removed the beginning", []string{removed}, fmt.Sprintf(`DELETE FROM audit_events WHERE seq < %d`, mid))
			tamper("cut off the end", []string{cutOff, head}[:1], fmt.Sprintf(`DELETE FROM audit_events WHERE seq > %d`, mid))
			tamper("cut off the last", []string{cutOff}, fmt.Sprintf(`DELETE FROM audit_events WHERE seq = %d`, last))
			tamper("removed all", []string{cutOff}, `DELETE FROM audit_events`)
			tamper("cut off with the count", []string{head}, fmt.Sprintf(`DELETE FROM audit_events WHERE seq = %d`, last), `UPDATE audit_heads SET count = count - 1`)
			tamper("closed a gap", []string{edited, cutOff}, fmt.Sprintf(`DELETE FROM audit_events WHERE seq = %d`, mid),
				fmt.Sprintf(`UPDATE audit_events SET seq = seq + 1000000 WHERE seq > %d`, mid), `UPDATE audit_events SET seq = seq - 1000001 WHERE seq > 1000000`)
			tamper("swapped two", []string{edited}, fmt.Sprintf(`UPDATE audit_events SET seq = 1000000 WHERE seq = %d`, mid),
				fmt.Sprintf(`UPDATE audit_events SET seq = %d WHERE seq = %d`, mid, mid+1), fmt.Sprintf(`UPDATE audit_events SET seq = %d WHERE seq = 1000000`, mid+1))
			tamper("added one", []string{added}, `UPDATE audit_heads SET count = count - 0`,
				fmt.Sprintf(`INSERT INTO audit_events SELECT org, seq + 1, id, at, actor, action, target_kind, target_id, target_label, before_json, after_json, source_ip, source_via, hash
				FROM audit_events WHERE seq = %d`, last))
			tamper("removed the head", []string{head}, `DELETE FROM audit_heads`)
			tamper("edited the head", []string{head}, `UPDATE audit_heads SET hash = (SELECT e.hash FROM audit_events e WHERE e.seq = `+fmt.Sprint(mid)+`)`)
		}
		r := verify("untouched")
		if r.Rows != 21 || r.First != 1 || r.Head != 21 || r.Checkpoint != 0 {
			t.Errorf("report: %+v", r)
		}
		all(1, 21)

		trail := w.trail(t)
		n, err := w.PruneAudit(ctx, accounts.By{Actor: "system", Via: "system"}, "acme", trail[10].At)
		if err != nil || n != 10 {
			t.Fatalf("retention took %d rows, %v", n, err)
		}
		r = verify("after retention")
		if r.Rows != 12 || r.First != 11 || r.Head != 22 || r.Checkpoint != 10 {
			t.Errorf("report after retention: %+v", r)
		}
		w.create(t, "later", "staging")
		all(11, 23)
		tamper("removed the checkpoint", []string{accounts.AuditRemoved}, `DELETE FROM audit_checkpoints`)
		tamper("edited the checkpoint", []string{accounts.AuditEdited}, `UPDATE audit_checkpoints SET hash = (SELECT e.hash FROM audit_events e WHERE e.seq = 15)`)
		tamper("put an old row back", []string{accounts.AuditAdded}, `INSERT INTO audit_events SELECT org, 3, id, at, actor, action, target_kind, target_id, target_label,
			before_json, after_json, source_ip, source_via, hash FROM audit_events WHERE seq = 12`)

		// Retention of everything leaves its own row, and goes on from its own checkpoints.
		w.clock.advance(time.Hour)
		if n, err = w.PruneAudit(ctx, cli, "acme", w.clock.now().Add(24*time.Hour)); err != nil || n != 13 {
			t.Errorf("second retention took %d rows, %v", n, err)
		}
		verify("after the second retention")
		if n, err = w.PruneAudit(ctx, cli, "acme", w.clock.now().Add(-24*time.Hour)); err != nil || n != 0 {
			t.Errorf("third retention took %d rows, %v", n, err)
		}
		w.create(t, "much later", "staging")
		verify("at the end")

		exec(`DELETE FROM audit_heads`)
		if _, err := w.CreateAccount(ctx, cli, "acme", accounts.NewAccount{Name: "x", Environment: "staging"}, ""); err == nil {
			t.Error("a change without an audit went through")
		}
	})
}
