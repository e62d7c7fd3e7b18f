package accounts_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"flowstate.inc/sluice/accounts"
	"flowstate.inc/sluice/auth"
)

func TestStampsNeverMoveInwards(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		a := w.create(t, "seen", "production").Account
		w.announced()
		base := time.UnixMilli(1_700_000_000_000).UTC()
		at := func(s int) time.Time { return base.Add(time.Duration(s) * time.Second) }
		f := func(first, last, wantFirst, wantLast int) {
			t.Helper()
			if err := w.Stamp(ctx, []auth.Stamp{{Prefix: a.KeyPrefix, First: at(first), Last: at(last)}, {Prefix: "fsk_unknown00000", First: at(0), Last: at(0)}}); err != nil {
				t.Fatal(err)
			}
			got, err := w.Account(ctx, "acme", a.ID)
			if err != nil || !got.FirstSeenAt.Equal(at(wantFirst)) || !got.LastSeenAt.Equal(at(wantLast)) {
				t.Errorf("account seen %v to %v, %v; want %v to %v", got.FirstSeenAt, got.LastSeenAt, err, at(wantFirst), at(wantLast))
			}
			keys, err := w.AccountKeys(ctx, "acme", a.ID)
			if err != nil || !keys[0].FirstUsedAt.Equal(at(wantFirst)) || !keys[0].LastUsedAt.Equal(at(wantLast)) {
				t.Errorf("key: %+v, %v", keys, err)
			}
			if got.Version != a.Version || !got.UpdatedAt.Equal(a.UpdatedAt) || len(w.announced()) != 0 {
				t.Error("a stamp is no change")
			}
		}
		f(10, 20, 10, 20)
		f(12, 18, 10, 20)
		f(5, 19, 5, 20)
		f(12, 30, 5, 30)
		f(1, 2, 1, 30)
		f(40, 50, 1, 50)
		// One call that names a key twice.
		if err := w.Stamp(ctx, []auth.Stamp{{Prefix: a.KeyPrefix, First: at(60), Last: at(60)}, {Prefix: a.KeyPrefix, First: at(0), Last: at(10)}}); err != nil {
			t.Fatal(err)
		}
		f(60, 60, 0, 60)
		if err := w.Stamp(ctx, nil); err != nil {
			t.Errorf("no stamps: %v", err)
		}
		// An edit of the environment, and a deletion, keep what was seen.
		if _, err := w.UpdateAccount(ctx, cli, "acme", a.ID, 0, accounts.AccountUpdate{Environment: ptr("staging")}); err != nil {
			t.Fatal(err)
		}
		if _, _, err := w.DeleteAccount(ctx, cli, "acme", a.ID); err != nil {
			t.Fatal(err)
		}
		got, err := w.Account(ctx, "acme", a.ID)
		if err != nil || !got.LastSeenAt.Equal(at(60)) {
			t.Errorf("after the deletion: %+v, %v", got, err)
		}
	})
}

// TestStampsOfManyEdges has several edges stamp the same thousands of keys in different orders: nobody deadlocks, and the widest range stays.
func TestStampsOfManyEdges(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		n := 9_000 // more than one statement takes
		if w.dialect == accounts.SQLite {
			n = 500 // SQLite is slow under -race
		}
		w.seed(t, n, 0)
		if _, err := w.writer.ExecContext(ctx, `UPDATE account_seen SET first_at = 0, last_at = 0`); err != nil {
			t.Fatal(err)
		}
		prefixes := w.column(t, `SELECT prefix FROM keys ORDER BY prefix`)
		base := w.clock.now().UTC().Truncate(time.Second)
		var wg sync.WaitGroup
		for edge := range 4 {
			wg.Go(func() {
				stamps := make([]auth.Stamp, 0, n)
				for _, p := range prefixes {
					stamps = append(stamps, auth.Stamp{Prefix: p, First: base.Add(-time.Duration(edge) * time.Second), Last: base.Add(time.Duration(edge) * time.Second)})
				}
				if edge%2 == 1 {
					slices.Reverse(stamps)
				}
				if err := w.Stamp(ctx, stamps); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := w.deadlocks(t); n != 0 {
			t.Errorf("%d deadlocks", n)
		}
		for _, table := range []string{"seen", "account_seen"} {
			var count int
			err := w.reader.QueryRowContext(ctx, `SELECT COUNT(*) FROM `+table+` WHERE first_at = $1 AND last_at = $2`,
				base.Add(-3*time.Second).UnixMilli(), base.Add(3*time.Second).UnixMilli()).Scan(&count)
			if err != nil || count != n {
				t.Errorf("%s: %d of %d rows, %v", table, count, n, err)
			}
		}
	})
}

func TestLookUps(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		a := w.create(t, "Chat", "production").Account
		f := func(want string, got string, err error) {
			t.Helper()
			if want == "" && !errors.Is(err, auth.ErrNoKey) || want != "" && (err != nil || got != want) {
				t.Errorf("%q, %v; want %q", got, err, want)
			}
		}
		byID := func(want, org, id string) {
			t.Helper()
			got, err := w.AccountKey(ctx, org, id)
			f(want, got, err)
		}
		byName := func(want, org, name, env string) {
			t.Helper()
			got, err := w.AccountKeyByName(ctx, org, name, env)
			f(want, got, err)
		}
		byID(a.KeyPrefix, "acme", a.ID)
		byID("", "other", a.ID)
		byID("", "acme", "sa_x")
		byName(a.KeyPrefix, "acme", " cHAT ", "production")
		byName("", "acme", "chat", "staging")
		byName("", "other", "chat", "production")
		if _, err := w.Key(ctx, "fsk_000000000000"); !errors.Is(err, auth.ErrNoKey) {
			t.Errorf("unknown key: %v", err)
		}
		person, raw, err := w.CreateKey(ctx, cli, "acme", accounts.NewKey{Kind: auth.KindPerson, ID: "u1", Name: "Grace"})
		if err != nil {
			t.Fatal(err)
		}
		key, err := auth.ParseKey([]byte(raw))
		if err != nil {
			t.Fatal(err)
		}
		rec, err := w.Key(ctx, person.Prefix)
		want := auth.Principal{Org: "acme", Kind: auth.KindPerson, ID: "u1", Name: "Grace", KeyPrefix: person.Prefix}
		if err != nil || rec.Hash != key.Hash || rec.Principal != want {
			t.Errorf("a person's record: %+v, %v", rec, err)
		}
		if _, _, err := w.RevokeKey(ctx, cli, "acme", person.Prefix); err != nil {
			t.Fatal(err)
		}
		again, err := w.Key(ctx, person.Prefix)
		if err != nil || again.RevokedAt.IsZero() || again.Version <= rec.Version {
			t.Errorf("revoked: %+v, %v", again, err)
		}
		if _, _, err := w.RevokeKey(ctx, cli, "acme", a.KeyPrefix); !errors.Is(err, accounts.ErrAccountKey) {
			t.Errorf("revoke an account's key: %v", err)
		}
		if _, _, err := w.DeleteAccount(ctx, cli, "acme", a.ID); err != nil {
			t.Fatal(err)
		}
		byID(a.KeyPrefix, "acme", a.ID) // its record says that it is revoked
		byName("", "acme", "chat", "production")
	})
}

func TestChangesAndConfirmation(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		_, start, err := w.Changes(ctx, time.Now().Add(1000*time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		a := w.create(t, "job", "production").Account
		edited, err := w.UpdateAccount(ctx, cli, "acme", a.ID, 0, accounts.AccountUpdate{Team: ptr("t")})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.ReportEdge(ctx, "edge-1", start, 15*time.Minute); err != nil {
			t.Fatal(err)
		}
		_, rev, err := w.DeleteAccount(ctx, cli, "acme", a.ID)
		if err != nil {
			t.Fatal(err)
		}
		changes, now, err := w.Changes(ctx, start)
		if err != nil || len(changes) != 3 || now.Before(rev.At) {
			t.Fatalf("changes %v at %v, %v; revoked at %v", changes, now, err, rev.At)
		}
		for i, ch := range changes {
			if ch.Prefix != a.KeyPrefix || ch.At.After(now) || (i > 0 && ch.Version <= changes[i-1].Version) {
				t.Errorf("change %d: %+v", i, ch)
			}
		}
		if changes[1].Version < edited.Version {
			t.Errorf("the edit's change: %+v, want at least %d", changes[1], edited.Version)
		}

		c, err := w.ConfirmRevocation(ctx, rev.At, 0)
		if err != nil || c.Edges != 1 || c.Confirmed != 0 || len(c.Pending) != 1 || !c.Pending[0].Until.Equal(rev.At.Add(10*time.Second)) {
			t.Errorf("before the edge read: %+v, %v", c, err)
		}
		// The edge reads while the call waits.
		var wg sync.WaitGroup
		wg.Go(func() {
			_, now, err := w.Changes(ctx, start)
			if err == nil {
				err = w.ReportEdge(ctx, "edge-1", now, 15*time.Minute)
			}
			if err != nil {
				t.Error(err)
			}
		})
		c, err = w.ConfirmRevocation(ctx, rev.At, 10*time.Second)
		wg.Wait()
		if err != nil || c.Edges != 1 || c.Confirmed != 1 || len(c.Pending) != 0 {
			t.Errorf("after: %+v, %v", c, err)
		}
		// One that reported long ago is not waited for, and one that stopped neither.
		if _, err := w.writer.ExecContext(ctx, `INSERT INTO edges (id, applied_at_us, seen_at_us) VALUES ('old', 1, 1)`); err != nil {
			t.Fatal(err)
		}
		if err := w.ReportEdge(ctx, "edge-2", start, 15*time.Minute); err != nil {
			t.Fatal(err)
		}
		if err := w.ForgetEdge(ctx, "edge-2"); err != nil {
			t.Fatal(err)
		}
		if c, err = w.ConfirmRevocation(ctx, rev.At, 0); err != nil || c.Edges != 1 || c.Confirmed != 1 {
			t.Errorf("with edges that are gone: %+v, %v", c, err)
		}
		if c, err = w.ConfirmRevocation(ctx, time.Time{}, 0); err != nil || c.Confirmed != 0 {
			t.Errorf("without a time: %+v, %v", c, err)
		}
		cancelled, cancel := context.WithCancel(ctx)
		cancel()
		if _, err = w.ConfirmRevocation(cancelled, time.Time{}, time.Hour); err == nil {
			t.Error("a cancelled wait ended without an error")
		}

		// Pruning takes what is older than asked, and refuses to take more.
		if err := w.Prune(ctx, time.Minute); err == nil {
			t.Error("key changes of the last hour were given up")
		}
		if _, err := w.writer.ExecContext(ctx, `UPDATE key_changes SET at = at - 7200000 WHERE version = $1`, changes[0].Version); err != nil {
			t.Fatal(err)
		}
		if err := w.Prune(ctx, time.Hour); err != nil {
			t.Fatal(err)
		}
		if left, _, err := w.Changes(ctx, time.Time{}); err != nil || len(left) != 2 {
			t.Errorf("%d changes left, %v", len(left), err)
		}
	})
}

// TestEdgesThatAreCutOff: an edge that has not signed off counts until it can serve nothing any more, however long it has not been heard of, and
// though it has read nothing yet; only those that may still answer are waited for.
func TestEdgesThatAreCutOff(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		report := func(id string, at time.Time, maxStale, ago time.Duration) {
			t.Helper()
			if err := w.ReportEdge(ctx, id, at, maxStale); err != nil {
				t.Fatal(err)
			}
			if _, err := w.writer.ExecContext(ctx, `UPDATE edges SET seen_at_us = seen_at_us - $1 WHERE id = $2`, ago.Microseconds(), id); err != nil {
				t.Fatal(err)
			}
		}
		a := w.create(t, "job", "production").Account
		_, rev, err := w.DeleteAccount(ctx, cli, "acme", a.ID)
		if err != nil {
			t.Fatal(err)
		}
		before := rev.At.Add(-time.Minute)
		report("ahead", rev.At, 15*time.Minute, 0)
		report("cut-off", before, 15*time.Minute, 15*time.Second)
		report("gone", before, 15*time.Minute, 16*time.Minute)
		report("short", before, 10*time.Second, 21*time.Second)
		asked := time.Now()
		c, err := w.ConfirmRevocation(ctx, rev.At, time.Hour)
		if err != nil || c.Edges != 2 || c.Confirmed != 1 || len(c.Pending) != 1 || c.Pending[0].ID != "cut-off" {
			t.Fatalf("%+v, %v", c, err)
		}
		if waited := time.Since(asked); waited > time.Minute {
			t.Errorf("waited %v for an edge that is cut off", waited)
		}
		p := c.Pending[0]
		if ago := rev.At.Sub(p.Seen); ago < 5*time.Second || ago > 15*time.Second {
			t.Errorf("last heard of %v before the revocation", ago)
		}
		if !p.Until.Equal(rev.At.Add(10*time.Second)) || !p.UntilCutOff.Equal(p.Seen.Add(10*time.Second+15*time.Minute)) {
			t.Errorf("revoked at %v: %+v", rev.At, p)
		}

		// Edges that report and have read nothing: of the last moment before the revocation they may know what it was.
		report("starting", time.Time{}, 10*time.Minute, 0)
		c, err = w.ConfirmRevocation(ctx, rev.At, 0)
		if err != nil || c.Edges != 3 || len(c.Pending) != 2 || c.Pending[1].ID != "starting" || !c.Pending[1].UntilCutOff.Equal(rev.At.Add(10*time.Minute)) {
			t.Errorf("%+v, %v", c, err)
		}
		if err := w.Prune(ctx, time.Hour); err != nil {
			t.Fatal(err)
		}
		report("gone", before, 2*time.Hour, 90*time.Minute)
		if err := w.Prune(ctx, time.Hour); err != nil {
			t.Fatal(err)
		}
		if c, err = w.ConfirmRevocation(ctx, rev.At, 0); err != nil || c.Edges != 4 {
			t.Errorf("after pruning: %+v, %v", c, err)
		}
		// Of a revocation of long ago, one that has read nothing and is away knows nothing that it may still serve.
		report("died", time.Time{}, 10*time.Minute, 15*time.Second)
		all, err := w.Confirmations(ctx, []time.Time{rev.At, rev.At.Add(-30 * time.Minute)})
		if err != nil || len(all) != 2 || all[0].Edges != 5 || all[0].Confirmed != 1 || all[1].Edges != 4 || all[1].Confirmed != 3 || len(all[1].Pending) != 1 || all[1].Pending[0].ID != "starting" ||
			len(all[0].Gone) != 0 || len(all[1].Gone) != 1 || all[1].Gone[0].ID != "died" {
			t.Errorf("of two revocations: %+v, %v", all, err)
		}
		if live, _, err := w.UsageFreshness(ctx); err != nil || live != 2 {
			t.Errorf("%d live edges, %v", live, err)
		}
	})
}

func TestWakeAndListen(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		select {
		case <-w.Wake():
			t.Error("woken by nothing")
		default:
		}
		w.create(t, "a", "production")
		w.create(t, "b", "production")
		select {
		case <-w.Wake():
		default:
			t.Error("not woken by a change")
		}
		if w.dialect != accounts.Postgres {
			return
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		wake, err := accounts.Listen(ctx, w.url, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		wait := func(what string) {
			t.Helper()
			select {
			case <-wake:
			case <-time.After(20 * time.Second):
				t.Fatal("not woken " + what)
			}
		}
		wait("after connecting")
		for i := range 3 {
			w.create(t, fmt.Sprint("c", i), "production")
			wait("by a change")
		}
		// Cut the listener's connection: it comes back, and wakes, since something may have been missed.
		if _, err := w.writer.ExecContext(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()`); err != nil {
			t.Fatal(err)
		}
		wait("after reconnecting")
		w.create(t, "d", "production")
		wait("by a change after reconnecting")
		cancel()
		for range wake { // closed, in the end
		}
	})
	if _, err := accounts.Listen(t.Context(), "postgres://user:hush@host:notaport/db", slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a malformed URL is taken")
	}
}
