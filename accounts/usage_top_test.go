package accounts_test

import (
	"testing"
	"time"

	"flowstate.inc/sluice/accounts"
	"flowstate.inc/sluice/auth"
)

// What sluice top shows: all keys of a subject together, deleted accounts, persons and detectors too, of one org or of all.
func TestUsageBySubject(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		if _, at, err := w.UsageFreshness(t.Context()); err != nil || !at.IsZero() {
			t.Errorf("before any use: %v (%v)", at, err)
		}
		job := w.create(t, "job", "production").Account
		if _, err := w.CreateOrg(t.Context(), cli, "other"); err != nil {
			t.Fatal(err)
		}
		var alice [2]string
		for i := range alice {
			k, _, err := w.CreateKey(t.Context(), cli, "other", accounts.NewKey{Kind: auth.KindPerson, ID: "alice@example.com"})
			if err != nil {
				t.Fatal(err)
			}
			alice[i] = k.Prefix
		}
		if _, _, err := w.DeleteAccount(t.Context(), cli, "acme", job.ID); err != nil {
			t.Fatal(err)
		}
		hour := time.Now().UTC().Truncate(time.Hour)
		const large = int64(1) << 55
		err := w.Use(t.Context(), auth.UsageBatch{Writer: "edge", Seq: 1, Usage: []auth.KeyUsage{
			{Prefix: job.KeyPrefix, Hour: hour.Add(-time.Hour), Usage: auth.Usage{Requests: 1, Accepted: 2, Filtered: 3, Invalid: 4, Unavailable: 5, Refused: 6, Bytes: large}},
			{Prefix: job.KeyPrefix, Hour: hour, Usage: auth.Usage{Requests: 10, Bytes: large}},
			{Prefix: alice[0], Hour: hour, Usage: auth.Usage{Filtered: 1}},
			{Prefix: alice[1], Hour: hour, Usage: auth.Usage{Filtered: 2}},
		}})
		if err != nil {
			t.Fatal(err)
		}
		ask := func(org string, since, until time.Time) map[string]accounts.SubjectUsage {
			t.Helper()
			rows, err := w.UsageBySubject(t.Context(), org, since, until)
			if err != nil {
				t.Fatal(err)
			}
			out := map[string]accounts.SubjectUsage{}
			for _, r := range rows {
				out[r.Org+" "+r.Subject.Label] = r
			}
			return out
		}
		all := ask("", hour.Add(-24*time.Hour), hour.Add(time.Hour))
		want := auth.Usage{Requests: 11, Accepted: 2, Filtered: 3, Invalid: 4, Unavailable: 5, Refused: 6, Bytes: 2 * large}
		if got := all["acme service: job / production"]; len(all) != 2 || got.Usage != want || got.Subject.ID != job.ID {
			t.Errorf("%+v", all)
		}
		if got := all["other person: alice@example.com"]; got.Filtered != 3 {
			t.Errorf("%+v", all)
		}
		if one := ask("acme", hour, hour.Add(time.Hour)); len(one) != 1 || one["acme service: job / production"].Requests != 10 {
			t.Errorf("%+v", one)
		}
		if none := ask("acme", hour.Add(time.Hour), hour.Add(2*time.Hour)); len(none) != 0 {
			t.Errorf("%+v", none)
		}
		if err := w.ReportEdge(t.Context(), "edge", time.Now(), 15*time.Minute); err != nil {
			t.Fatal(err)
		}
		if n, at, err := w.UsageFreshness(t.Context()); err != nil || n != 1 || at.IsZero() {
			t.Errorf("%d edges, written at %v (%v)", n, at, err)
		}
	})
}
