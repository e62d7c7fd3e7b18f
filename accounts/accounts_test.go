package accounts_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"flowstate.inc/sluice/accounts"
	"flowstate.inc/sluice/auth"
)

func TestNamesAreUniqueAmongTheLiving(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		make := func(org, name, env string) error {
			_, err := w.CreateAccount(ctx, cli, org, accounts.NewAccount{Name: name, Environment: env}, "")
			return err
		}
		if _, err := w.CreateOrg(ctx, cli, "globex"); err != nil {
			t.Fatal(err)
		}
		first := w.create(t, "Ünïcode-Job", "production").Account
		for _, same := range []string{"Ünïcode-Job", "üNÏCODE-JOB", " ünïcode-job ", "U\u0308nïcode-job"} {
			if err := make("acme", same, "production"); !errors.Is(err, accounts.ErrConflict) {
				t.Errorf("%q: %v", same, err)
			}
		}
		for _, other := range [][3]string{{"acme", "ünïcode-job", "staging"}, {"globex", "ünïcode-job", "production"}, {"acme", "ünïcode_job", "production"}} {
			if err := make(other[0], other[1], other[2]); err != nil {
				t.Errorf("%v: %v", other, err)
			}
		}
		second := w.create(t, "second", "production").Account
		if _, err := w.UpdateAccount(ctx, cli, "acme", second.ID, 0, accounts.AccountUpdate{Name: ptr("ÜNÏCODE-JOB")}); !errors.Is(err, accounts.ErrConflict) {
			t.Errorf("renamed into a living name: %v", err)
		}
		// Its own name in another case is no conflict.
		if a, err := w.UpdateAccount(ctx, cli, "acme", first.ID, 0, accounts.AccountUpdate{Name: ptr("ÜNÏCODE-JOB")}); err != nil || a.Name != "ÜNÏCODE-JOB" {
			t.Errorf("renamed into itself: %v, %v", a.Name, err)
		}
		if _, _, err := w.DeleteAccount(ctx, cli, "acme", first.ID); err != nil {
			t.Fatal(err)
		}
		if err := make("acme", "ünïcode-job", "production"); err != nil {
			t.Errorf("the name of a deleted account: %v", err)
		}
		if err := make("nobody", "x", "production"); !errors.Is(err, accounts.ErrUnknownOrg) {
			t.Errorf("unknown org: %v", err)
		}
	})
}

func TestEditsAndTheirRefusals(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		a := w.create(t, "job", "production").Account
		w.announced()
		same, err := w.UpdateAccount(ctx, cli, "acme", a.ID, a.Version, accounts.AccountUpdate{Name: ptr(" job "), Environment: ptr("PRODUCTION")})
		if err != nil || same != a || len(w.announced()) != 0 {
			t.Errorf("an edit of nothing: %+v, %v", same, err)
		}
		b, err := w.UpdateAccount(ctx, cli, "acme", a.ID, a.Version, accounts.AccountUpdate{Team: ptr("t"), RequestsPerSecond: ptr(int64(7))})
		if err != nil || b.Team != "t" || b.Limits.RequestsPerSecond != 7 || b.UpdatedAt.Before(a.UpdatedAt) {
			t.Errorf("edited: %+v, %v", b, err)
		}
		if _, err := w.UpdateAccount(ctx, cli, "acme", a.ID, a.Version, accounts.AccountUpdate{Team: ptr("u")}); !errors.Is(err, accounts.ErrStale) {
			t.Errorf("stale: %v", err)
		}
		var invalid *accounts.InvalidError
		if _, err := w.UpdateAccount(ctx, cli, "acme", a.ID, 0, accounts.AccountUpdate{Name: ptr(" ")}); !errors.As(err, &invalid) || invalid.Fields[0].Field != "name" {
			t.Errorf("invalid: %v", err)
		}
		if _, err := w.CreateOrg(ctx, cli, "globex"); err != nil {
			t.Fatal(err)
		}
		for _, org := range []string{"globex", "nobody"} {
			if _, err := w.UpdateAccount(ctx, cli, org, a.ID, 0, accounts.AccountUpdate{Team: ptr("u")}); !errors.Is(err, accounts.ErrNotFound) {
				t.Errorf("edit from %s: %v", org, err)
			}
			if _, _, err := w.DeleteAccount(ctx, cli, org, a.ID); !errors.Is(err, accounts.ErrNotFound) {
				t.Errorf("deletion from %s: %v", org, err)
			}
			if _, err := w.Account(ctx, org, a.ID); !errors.Is(err, accounts.ErrNotFound) {
				t.Errorf("read from %s: %v", org, err)
			}
			if _, err := w.AccountKeys(ctx, org, a.ID); !errors.Is(err, accounts.ErrNotFound) {
				t.Errorf("keys from %s: %v", org, err)
			}
		}
		d, rev, err := w.DeleteAccount(ctx, cli, "acme", a.ID)
		if err != nil || !slices.Equal(rev.Prefixes, []string{a.KeyPrefix}) {
			t.Fatalf("deleted: %+v, %v", rev, err)
		}
		w.announced()
		again, rev, err := w.DeleteAccount(ctx, accounts.By{Actor: "somebody else"}, "acme", a.ID)
		if err != nil || again != d || len(rev.Prefixes) != 0 || rev.At.IsZero() || len(w.announced()) != 0 {
			t.Errorf("deleted again: %+v, %+v, %v", again, rev, err)
		}
		if _, err := w.UpdateAccount(ctx, cli, "acme", a.ID, 0, accounts.AccountUpdate{Team: ptr("u")}); !errors.Is(err, accounts.ErrDeleted) {
			t.Errorf("edit of a deleted one: %v", err)
		}
		keys, err := w.AccountKeys(ctx, "acme", a.ID)
		if err != nil || len(keys) != 1 || keys[0].State() != "revoked" || keys[0].RevokedBy != cli.Actor || keys[0].Label != "service: job / production" {
			t.Errorf("keys: %+v, %v", keys, err)
		}
		if c, err := w.CountAccounts(ctx, "acme"); err != nil || c != (accounts.AccountCounts{Live: 0, Deleted: 1}) {
			t.Errorf("counts: %+v, %v", c, err)
		}
	})
}

// TestListsAgainstAnOracle compares every filter and order, page by page, with the same question asked of a slice in Go.
func TestListsAgainstAnOracle(t *testing.T) {
	if testing.Short() {
		t.Skip("all of it is the database's work")
	}
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		r := rand.New(rand.NewPCG(1, 2))
		var all []accounts.Account
		var stamps []auth.Stamp
		now := w.clock.now()
		for i := range 120 {
			w.clock.advance(time.Millisecond)
			a := w.create(t, fmt.Sprintf("%s %d%%_x", []string{"Digest", "chat", "EVAL"}[r.IntN(3)], i), []string{"production", "staging", "development"}[r.IntN(3)]).Account
			if r.IntN(3) > 0 {
				last := now.Add(-time.Duration(r.IntN(60)) * 24 * time.Hour)
				stamps = append(stamps, auth.Stamp{Prefix: a.KeyPrefix, First: last.Add(-time.Hour), Last: last})
			}
			all = append(all, a)
		}
		if err := w.Stamp(ctx, stamps); err != nil {
			t.Fatal(err)
		}
		for i := range all {
			if r.IntN(4) == 0 {
				if _, _, err := w.DeleteAccount(ctx, cli, "acme", all[i].ID); err != nil {
					t.Fatal(err)
				}
			}
			var err error
			if all[i], err = w.Account(ctx, "acme", all[i].ID); err != nil {
				t.Fatal(err)
			}
		}
		sorts := append([]accounts.AccountSort{""}, accounts.AccountSorts()...)
		of := 4
		if w.dialect == accounts.SQLite {
			of = 8 // it is slow under -race
		}
		for _, sort := range sorts {
			for _, state := range []accounts.State{"", "live", "deleted", "all"} {
				for _, seen := range []accounts.Seen{"", "never", "idle"} {
					for _, q := range []string{"", "DIG", "%_", "nothing"} {
						for _, envs := range [][]string{nil, {"staging"}, {"Production", "development", "production"}} {
							f := accounts.AccountFilter{Q: q, Environments: envs, State: state, Seen: seen, Sort: sort, Limit: 25}
							if r.IntN(of) > 0 {
								continue // the product is large; a part of it is taken at random, the same each time
							}
							got := pages(t, w, f)
							want := ask(all, f, w.clock.now())
							if !slices.Equal(ids(got), ids(want)) {
								t.Fatalf("%+v: %d accounts, want %d", f, len(got), len(want))
							}
						}
					}
				}
			}
		}
	})
}

func pages(t *testing.T, w *world, f accounts.AccountFilter) []accounts.Account {
	t.Helper()
	var out []accounts.Account
	for {
		p, err := w.Accounts(t.Context(), "acme", f)
		if err != nil {
			t.Fatalf("%+v: %v", f, err)
		}
		if len(p.Items) > f.Limit || (p.Next != "" && len(p.Items) < f.Limit) {
			t.Fatalf("%+v: a page of %d", f, len(p.Items))
		}
		out = append(out, p.Items...)
		if p.Next == "" {
			return out
		}
		f.Cursor = p.Next
	}
}

func ids(all []accounts.Account) []string {
	out := make([]string, len(all))
	for i, a := range all {
		out[i] = a.ID
	}
	return out
}

// ask is what a list promises, in plain Go.
func ask(all []accounts.Account, f accounts.AccountFilter, now time.Time) []accounts.Account {
	sort := f.Sort
	if sort == "" {
		sort = accounts.SortName
		if f.Seen != "" {
			sort = accounts.SortLastSeen
		}
	}
	column, down := strings.CutPrefix(string(sort), "-")
	var out []accounts.Account
	for _, a := range all {
		state := f.State == "all" || (f.State == "deleted") != a.Live()
		env := len(f.Environments) == 0 || slices.ContainsFunc(f.Environments, func(e string) bool { return strings.EqualFold(e, a.Environment) })
		seen := f.Seen == "" || f.Seen == "never" && a.LastSeenAt.IsZero() || f.Seen == "idle" && !a.LastSeenAt.IsZero() && a.LastSeenAt.Before(now.Add(-accounts.IdleAfter))
		if state && env && seen && strings.Contains(strings.ToLower(a.Name), strings.ToLower(f.Q)) {
			out = append(out, a)
		}
	}
	byName := func(a, b accounts.Account) int {
		return strings.Compare(strings.ToLower(a.Name), strings.ToLower(b.Name))
	}
	slices.SortFunc(out, func(a, b accounts.Account) int {
		n := 0
		switch accounts.AccountSort(column) {
		case accounts.SortName:
			n = byName(a, b)
		case accounts.SortEnvironment:
			if n = strings.Compare(a.Environment, b.Environment); n == 0 {
				n = byName(a, b)
			}
		case accounts.SortCreated:
			n = a.CreatedAt.Compare(b.CreatedAt)
		case accounts.SortFirstSeen:
			n = a.FirstSeenAt.Compare(b.FirstSeenAt)
		case accounts.SortLastSeen:
			n = a.LastSeenAt.Compare(b.LastSeenAt)
		}
		if n == 0 {
			n = strings.Compare(a.ID, b.ID)
		}
		if down {
			n = -n
		}
		return n
	})
	return out
}

func TestSearchByPrefix(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		c := w.create(t, "leaky", "production")
		w.create(t, "dry", "production")
		if _, err := w.CreateOrg(ctx, cli, "globex"); err != nil {
			t.Fatal(err)
		}
		find := func(org, q string, state accounts.State) int {
			t.Helper()
			p, err := w.Accounts(ctx, org, accounts.AccountFilter{Q: q, State: state})
			if err != nil {
				t.Fatal(err)
			}
			return len(p.Items)
		}
		for _, deleted := range []bool{false, true} {
			if deleted {
				if _, _, err := w.DeleteAccount(ctx, cli, "acme", c.Account.ID); err != nil {
					t.Fatal(err)
				}
			}
			for _, q := range []string{c.Account.KeyPrefix, c.Key, "x-flowstate-key=" + c.Key + "\"", " " + c.Account.KeyPrefix + " "} {
				if n := find("acme", q, ""); n != 1 {
					t.Errorf("deleted %v: %d found", deleted, n)
				}
				if n := find("globex", q, ""); n != 0 {
					t.Errorf("another org finds %d", n)
				}
			}
		}
		if n := find("acme", c.Account.KeyPrefix[:9], ""); n != 1 {
			t.Errorf("by the beginning of the prefix: %d found", n)
		}
		if n := find("globex", c.Account.KeyPrefix[:9], ""); n != 0 {
			t.Errorf("by the beginning of the prefix, another org finds %d", n)
		}
		if n := find("acme", c.Account.KeyPrefix, "live"); n != 0 {
			t.Errorf("%d live ones found", n)
		}
		// A cursor of one list is refused in another.
		for i := range 3 {
			w.create(t, fmt.Sprint("more ", i), "staging")
		}
		p, err := w.Accounts(ctx, "acme", accounts.AccountFilter{Limit: 1})
		if err != nil || p.Next == "" {
			t.Fatal(p, err)
		}
		var invalid *accounts.InvalidError
		for _, f := range []accounts.AccountFilter{
			{Cursor: p.Next, Sort: "-name"}, {Cursor: p.Next, Q: "more"}, {Cursor: p.Next, Environments: []string{"staging"}}, {Cursor: p.Next + "x"}, {Cursor: "%"},
		} {
			if _, err := w.Accounts(ctx, "acme", f); !errors.As(err, &invalid) || invalid.Fields[0].Field != "cursor" {
				t.Errorf("%+v: %v", f, err)
			}
		}
		if _, err := w.Accounts(ctx, "globex", accounts.AccountFilter{Cursor: p.Next}); !errors.As(err, &invalid) {
			t.Errorf("another org takes the cursor: %v", err)
		}
	})
}

func TestIdempotencyKeys(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		in := accounts.NewAccount{Name: "once", Environment: "staging"}
		var wg sync.WaitGroup
		results := make([]accounts.Created, 8)
		for i := range results {
			wg.Go(func() {
				var err error
				if results[i], err = w.CreateAccount(ctx, cli, "acme", in, "retry-me"); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		fresh := 0
		for _, c := range results {
			if c.Account.ID != results[0].Account.ID {
				t.Error("two accounts were made")
			}
			if !c.Repeated {
				fresh++
			}
			if c.Repeated != (c.Key == "") {
				t.Error("the key is shown twice, or never")
			}
		}
		if fresh != 1 {
			t.Errorf("%d calls say that they made it", fresh)
		}
		if _, err := w.CreateAccount(ctx, cli, "acme", accounts.NewAccount{Name: "other", Environment: "staging"}, "retry-me"); !errors.Is(err, accounts.ErrIdempotencyMismatch) {
			t.Errorf("another body: %v", err)
		}
		// A refused create keeps no idempotency key.
		if _, err := w.CreateAccount(ctx, cli, "acme", in, "conflict"); !errors.Is(err, accounts.ErrConflict) {
			t.Errorf("conflict: %v", err)
		}
		in.Environment = "production"
		if c, err := w.CreateAccount(ctx, cli, "acme", in, "conflict"); err != nil || c.Repeated {
			t.Errorf("after a conflict: %+v, %v", c, err)
		}
		w.clock.advance(25 * time.Hour)
		if err := w.Prune(ctx, time.Hour); err != nil {
			t.Fatal(err)
		}
		if _, err := w.CreateAccount(ctx, cli, "acme", accounts.NewAccount{Name: "other", Environment: "staging"}, "retry-me"); err != nil {
			t.Errorf("a day later: %v", err)
		}
	})
}

// TestRaces has many do the same at once: one wins, the others are told, and the audit's chain holds.
func TestRaces(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		const n = 12
		together := func(f func(i int) error) []error {
			var wg sync.WaitGroup
			errs := make([]error, n)
			for i := range n {
				wg.Go(func() { errs[i] = f(i) })
			}
			wg.Wait()
			return errs
		}
		won := func(errs []error, lost ...error) int {
			t.Helper()
			wins := 0
			for _, err := range errs {
				if err == nil {
					wins++
				} else if !slices.ContainsFunc(lost, func(l error) bool { return errors.Is(err, l) }) {
					t.Error(err)
				}
			}
			return wins
		}
		errs := together(func(i int) error {
			_, err := w.CreateAccount(ctx, cli, "acme", accounts.NewAccount{Name: []string{"race", "RACE"}[i%2], Environment: "production"}, "")
			return err
		})
		if got := won(errs, accounts.ErrConflict); got != 1 {
			t.Errorf("%d creates of one name won", got)
		}
		a, err := w.AccountByName(ctx, "acme", "Race", "production")
		if err != nil {
			t.Fatal(err)
		}
		errs = together(func(i int) error {
			_, err := w.UpdateAccount(ctx, cli, "acme", a.ID, a.Version, accounts.AccountUpdate{Team: ptr(fmt.Sprint(i))})
			return err
		})
		if got := won(errs, accounts.ErrStale); got != 1 {
			t.Errorf("%d edits of one version won", got)
		}
		errs = together(func(i int) error {
			if i%3 == 0 {
				_, _, err := w.DeleteAccount(ctx, cli, "acme", a.ID)
				return err
			}
			_, err := w.UpdateAccount(ctx, cli, "acme", a.ID, 0, accounts.AccountUpdate{Team: ptr(fmt.Sprint("x", i))})
			return err
		})
		won(errs, accounts.ErrDeleted)
		if rec, err := w.Key(ctx, a.KeyPrefix); err != nil || rec.RevokedAt.IsZero() {
			t.Errorf("an edit brought the key back: %+v, %v", rec, err)
		}
		// What was announced rose, and the highest is what the database has.
		highest := int64(0)
		for _, ch := range w.announced() {
			if ch.Prefix == a.KeyPrefix {
				highest = max(highest, ch.Version)
			}
		}
		if rec, err := w.Key(ctx, a.KeyPrefix); err != nil || rec.Version != highest {
			t.Errorf("announced up to %d, stored %d, %v", highest, rec.Version, err)
		}
		errs = together(func(i int) error {
			_, _, err := w.CreateKey(ctx, cli, "acme", accounts.NewKey{Kind: auth.KindDetector, Name: fmt.Sprint("detector ", i)})
			return err
		})
		if got := won(errs); got != n {
			t.Errorf("%d of %d audited changes went through", got, n)
		}
		report, err := w.VerifyAudit(ctx, "acme")
		if err != nil || !report.Intact() {
			t.Errorf("audit: %+v, %v", report, err)
		}
	})
}

func TestOrgs(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		if _, err := w.EnsureFirstOrg(ctx, cli, "typo"); !errors.Is(err, accounts.ErrUnknownOrg) {
			t.Errorf("a second org by accident: %v", err)
		}
		if o, err := w.EnsureFirstOrg(ctx, cli, "acme"); err != nil || o.Slug != "acme" {
			t.Errorf("the org that exists: %v, %v", o, err)
		}
		if _, err := w.CreateOrg(ctx, cli, "acme"); !errors.Is(err, accounts.ErrOrgExists) {
			t.Errorf("twice: %v", err)
		}
		var invalid *accounts.InvalidError
		for _, slug := range []string{"", "A", "a/b", "a:b", "-a", "a-", "ä", strings.Repeat("a", 64)} {
			if _, err := w.CreateOrg(ctx, cli, slug); !errors.As(err, &invalid) {
				t.Errorf("slug %q: %v", slug, err)
			}
		}
		if _, err := w.CreateOrg(ctx, cli, "a"); err != nil {
			t.Error(err)
		}
		orgs, err := w.Orgs(ctx)
		if err != nil || len(orgs) != 2 || orgs[0].Slug != "a" || orgs[1].Slug != "acme" {
			t.Errorf("orgs: %v, %v", orgs, err)
		}
		// Of several that each make the first org at once, one does.
		for _, q := range []string{`DELETE FROM audit_events`, `DELETE FROM audit_heads`, `DELETE FROM orgs`} {
			if _, err := w.writer.ExecContext(ctx, q); err != nil {
				t.Fatal(err)
			}
		}
		var wg sync.WaitGroup
		errs := make([]error, 6)
		for i := range errs {
			wg.Go(func() { _, errs[i] = w.EnsureFirstOrg(ctx, cli, fmt.Sprint("first-", i)) })
		}
		wg.Wait()
		made := 0
		for _, err := range errs {
			if err == nil {
				made++
			} else if !errors.Is(err, accounts.ErrUnknownOrg) {
				t.Error(err)
			}
		}
		if made != 1 {
			t.Errorf("%d first orgs", made)
		}
	})
}
