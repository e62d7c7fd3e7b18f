package accounts_test

import (
	"sync"
	"testing"
	"time"

	"flowstate.inc/sluice/accounts"
	"flowstate.inc/sluice/auth"
)

func TestLifeOfAnAccount(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		c, err := w.CreateAccount(ctx, cli, "acme", accounts.NewAccount{
			Name: "  Nightly-Digest ", Environment: "Production", Description: "line one\r\nline two", IntendedScope: "Summarise.",
			Team: "Platform", CostCentre: "CC-1", Limits: auth.Limits{RequestsPerSecond: 5},
		}, "")
		if err != nil {
			t.Fatal(err)
		}
		a := c.Account
		if a.Name != "Nightly-Digest" || a.Environment != "production" || !a.AbuseDetection || a.Description != "line one\nline two" {
			t.Errorf("account as created: %+v", a)
		}
		key, err := auth.ParseKey([]byte(c.Key))
		if err != nil || key.Prefix() != a.KeyPrefix {
			t.Fatalf("raw key: %v", err)
		}
		read, err := w.Account(ctx, "acme", a.ID)
		if err != nil || read != a {
			t.Errorf("read back %+v, %v; want %+v", read, err, a)
		}
		rec, err := w.Key(ctx, a.KeyPrefix)
		if err != nil || rec.Hash != key.Hash || rec.Version != a.Version || !rec.RevokedAt.IsZero() {
			t.Errorf("record: %+v, %v", rec, err)
		}
		want := auth.Principal{Org: "acme", Kind: auth.KindServiceAccount, ID: a.ID, Name: a.Name, Environment: "production", Description: a.Description,
			IntendedScope: a.IntendedScope, AbuseDetection: true, Team: "Platform", CostCentre: "CC-1", KeyPrefix: a.KeyPrefix, Limits: auth.Limits{RequestsPerSecond: 5}}
		if rec.Principal != want {
			t.Errorf("principal: %+v, want %+v", rec.Principal, want)
		}
		if got := w.announced(); len(got) != 1 || got[0].Prefix != a.KeyPrefix || got[0].Version != a.Version {
			t.Errorf("announced on create: %v", got)
		}

		edited, err := w.UpdateAccount(ctx, cli, "acme", a.ID, a.Version, accounts.AccountUpdate{Environment: ptr("staging"), AbuseDetection: ptr(false)})
		if err != nil {
			t.Fatal(err)
		}
		if edited.Environment != "staging" || edited.AbuseDetection || edited.Name != a.Name || edited.Version <= a.Version {
			t.Errorf("edited: %+v", edited)
		}
		if rec, err = w.Key(ctx, a.KeyPrefix); err != nil || rec.Version < edited.Version || rec.Principal.Environment != "staging" || rec.Principal.AbuseDetection {
			t.Errorf("record after the edit: %+v, %v", rec, err)
		}

		deleted, rev, err := w.DeleteAccount(ctx, cli, "acme", a.ID)
		if err != nil {
			t.Fatal(err)
		}
		if deleted.Live() || deleted.DeletedBy != cli.Actor || len(rev.Prefixes) != 1 || rev.At.IsZero() {
			t.Errorf("deleted: %+v, %+v", deleted, rev)
		}
		if rec, err = w.Key(ctx, a.KeyPrefix); err != nil || rec.RevokedAt.IsZero() || rec.Version < deleted.Version || rec.Principal.ID != a.ID {
			t.Errorf("record after the deletion: %+v, %v", rec, err)
		}
		if got := w.announced(); len(got) != 2 || got[0].Version >= got[1].Version {
			t.Errorf("announced on edit and deletion: %v", got)
		}
	})
}

// A writer that is paused inside a transaction is cut off well before edges have read past its time.
func TestPausedWriterIsCutOff(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		if w.dialect != accounts.Postgres {
			return // one process, which is the edge as well
		}
		tx, err := w.writer.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback()
		var seconds float64
		err = tx.QueryRowContext(t.Context(), `SELECT EXTRACT(EPOCH FROM CAST(current_setting('idle_in_transaction_session_timeout') AS INTERVAL))`).Scan(&seconds)
		if err != nil || seconds <= 0 || seconds > 30 {
			t.Fatalf("the database waits for %v s, %v", seconds, err)
		}
		if _, err := tx.ExecContext(t.Context(), `SET LOCAL idle_in_transaction_session_timeout = '50ms'`); err != nil {
			t.Fatal(err)
		}
		if _, err := tx.ExecContext(t.Context(), `INSERT INTO key_changes (prefix, version, at) VALUES ('fsk_000000000000', 1, 1)`); err != nil {
			t.Fatal(err)
		}
		time.Sleep(500 * time.Millisecond) // it is this pause that is tested
		if err := tx.Commit(); err == nil {
			t.Error("committed after the pause")
		}
	})
}

// What deadlocks counts is there to be counted.
func TestDeadlocksAreSeen(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		if w.dialect != accounts.Postgres {
			return // one writer
		}
		a, b := w.create(t, "a", "production").Account.KeyPrefix, w.create(t, "b", "production").Account.KeyPrefix
		var both, done sync.WaitGroup
		both.Add(2)
		for _, order := range [][2]string{{a, b}, {b, a}} {
			done.Go(func() {
				tx, err := w.writer.BeginTx(t.Context(), nil)
				if err != nil {
					t.Error(err)
					return
				}
				defer tx.Rollback()
				_, err = tx.ExecContext(t.Context(), `UPDATE keys SET version = version WHERE prefix = $1`, order[0])
				if err != nil {
					t.Error(err)
				}
				both.Done()
				both.Wait()
				_, _ = tx.ExecContext(t.Context(), `UPDATE keys SET version = version WHERE prefix = $1`, order[1]) // one of the two is refused
			})
		}
		done.Wait()
		if n := w.deadlocks(t); n != 1 {
			t.Errorf("%d deadlocks are counted", n)
		}
	})
}
