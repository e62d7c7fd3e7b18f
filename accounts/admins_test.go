package accounts_test

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"flowstate.inc/sluice/accounts"
	"flowstate.inc/sluice/auth"
)

func TestAdminTokens(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		tok, raw, err := w.CreateToken(ctx, cli, "acme", "ci", []auth.Permission{auth.AIPolicyAdmin, auth.AIGovernanceView, auth.AIPolicyAdmin}, time.Time{})
		if err != nil {
			t.Fatal(err)
		}
		admin, err := w.Authenticate(ctx, raw)
		want := []auth.Permission{auth.AIGovernanceView, auth.AIPolicyAdmin}
		if err != nil || admin.Org != "acme" || admin.Actor != "token:"+tok.Prefix || !slices.Equal(admin.Permissions, want) || admin.Can(auth.SettingsIntegrationsUpdate) {
			t.Errorf("admin: %+v, %v", admin, err)
		}
		refused := func(what, raw string) {
			t.Helper()
			if _, err := w.Authenticate(ctx, raw); !errors.Is(err, accounts.ErrNoAdmin) {
				t.Errorf("%s: %v", what, err)
			}
		}
		other, _ := auth.MintAdminToken()
		refused("unknown", other)
		refused("of another secret", tok.Prefix+other[len(tok.Prefix):])
		refused("malformed", raw+"x")
		refused("empty", "")
		refused("a telemetry key", w.create(t, "job", "staging").Key)
		_, short, err := w.CreateToken(ctx, cli, "acme", "short", want, w.clock.now().Add(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Authenticate(ctx, short); err != nil {
			t.Error(err)
		}
		w.clock.advance(2 * time.Hour)
		refused("expired", short)
		if _, err := w.RevokeToken(ctx, cli, "other", tok.Prefix); !errors.Is(err, accounts.ErrNotFound) {
			t.Errorf("revoked from another org: %v", err)
		}
		for range 2 {
			if got, err := w.RevokeToken(ctx, cli, "acme", tok.Prefix); err != nil || got.RevokedAt.IsZero() || got.RevokedBy != cli.Actor {
				t.Errorf("revoked: %+v, %v", got, err)
			}
		}
		refused("revoked", raw)
		list, err := w.Tokens(ctx, "acme")
		if err != nil || len(list) != 2 || list[1].Prefix != tok.Prefix {
			t.Errorf("tokens: %+v, %v", list, err)
		}
		var invalid *accounts.InvalidError
		for _, bad := range [][]auth.Permission{nil, {"ROOT"}} {
			if _, _, err := w.CreateToken(ctx, cli, "acme", "bad", bad, time.Time{}); !errors.As(err, &invalid) {
				t.Errorf("permissions %v: %v", bad, err)
			}
		}
		if _, _, err := w.CreateToken(ctx, cli, "acme", "bad", want, w.clock.now()); !errors.As(err, &invalid) {
			t.Errorf("expired from the start: %v", err)
		}
		if _, _, err := w.CreateToken(ctx, cli, "nobody", "bad", want, time.Time{}); !errors.Is(err, accounts.ErrUnknownOrg) {
			t.Errorf("unknown org: %v", err)
		}
	})
}

func TestSessionsAndLinks(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		admin := auth.Admin{Org: "acme", Actor: "ada@acme.example", Permissions: []auth.Permission{auth.AIGovernanceView}}
		id, err := w.CreateSession(ctx, cli, admin, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		ses, err := w.Session(ctx, id)
		if err != nil || ses.Admin.Org != "acme" || ses.Admin.Actor != admin.Actor || !ses.Admin.Can(auth.AIGovernanceView) || ses.ExpiresAt.Sub(ses.CreatedAt) != time.Hour {
			t.Errorf("session: %+v, %v", ses, err)
		}
		if n := len(w.column(t, `SELECT actor FROM sessions WHERE CAST(hash AS TEXT) = $1`, id)); n != 0 {
			t.Error("the session's id is stored")
		}
		gone := func(what, id string) {
			t.Helper()
			if _, err := w.Session(ctx, id); !errors.Is(err, accounts.ErrNoAdmin) {
				t.Errorf("%s: %v", what, err)
			}
		}
		gone("unknown", "x")
		link, err := w.CreateLink(ctx, cli, admin, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		gone("a link as a session", link)
		if _, err := w.TakeLink(ctx, id); !errors.Is(err, accounts.ErrNoAdmin) {
			t.Errorf("a session as a link: %v", err)
		}
		var wg sync.WaitGroup
		var mu sync.Mutex
		taken := 0
		for range 6 {
			wg.Go(func() {
				a, err := w.TakeLink(ctx, link)
				mu.Lock()
				defer mu.Unlock()
				if err == nil && a.Actor == admin.Actor {
					taken++
				} else if !errors.Is(err, accounts.ErrNoAdmin) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if taken != 1 {
			t.Errorf("a one-time link was taken %d times", taken)
		}
		late, err := w.CreateLink(ctx, cli, admin, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		second, err := w.CreateSession(ctx, cli, admin, 3*time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		w.clock.advance(2 * time.Hour)
		gone("expired", id)
		if _, err := w.TakeLink(ctx, late); !errors.Is(err, accounts.ErrNoAdmin) {
			t.Errorf("an expired link: %v", err)
		}
		if err := w.Prune(ctx, time.Hour); err != nil {
			t.Fatal(err)
		}
		if n := len(w.column(t, `SELECT actor FROM sessions`)); n != 1 {
			t.Errorf("%d sessions left", n)
		}
		for range 2 {
			if err := w.EndSession(ctx, second); err != nil {
				t.Error(err)
			}
		}
		gone("ended", second)
		if _, err := w.CreateSession(ctx, cli, auth.Admin{Org: "nobody", Permissions: admin.Permissions}, time.Hour); !errors.Is(err, accounts.ErrUnknownOrg) {
			t.Errorf("unknown org: %v", err)
		}
		var invalid *accounts.InvalidError
		if _, err := w.CreateSession(ctx, cli, auth.Admin{Org: "acme"}, time.Hour); !errors.As(err, &invalid) {
			t.Errorf("no permissions: %v", err)
		}
	})
}
