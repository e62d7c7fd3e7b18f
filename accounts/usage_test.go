package accounts_test

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"flowstate.inc/sluice/accounts"
	"flowstate.inc/sluice/auth"
)

// usedBy is one use of a key by the n-th sender.
func usedBy(prefix string, n int, at time.Time) auth.SenderUse {
	return auth.SenderUse{Prefix: prefix, Sender: auth.Sender{Address: netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), UserAgent: "job/1", Service: "digest"}, First: at, Last: at, Count: 1, New: true}
}

func TestUsage(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		s := newSite(t, w)
		a := w.create(t, "job", "production").Account
		now := time.Now().UTC()
		hour := now.Truncate(time.Hour)
		use := func(writer string, seq int64, at time.Time, n int64) {
			t.Helper()
			err := w.Use(t.Context(), auth.UsageBatch{Writer: writer, Seq: seq, Usage: []auth.KeyUsage{
				{Prefix: a.KeyPrefix, Hour: at, Usage: auth.Usage{Requests: n, Accepted: 2 * n, Filtered: 3 * n, Invalid: 4 * n, Unavailable: 5 * n, Refused: 6 * n, Bytes: 7 * n}},
				{Prefix: "fsk_nobodynobody", Hour: at, Usage: auth.Usage{Requests: n}},
			}})
			if err != nil {
				t.Fatal(err)
			}
		}
		use("edge-1", 10, hour, 1)
		use("edge-1", 10, hour, 1) // whose answer was lost
		use("edge-1", 9, hour, 1)  // which came late
		use("edge-2", 3, hour, 10)
		use("edge-1", 11, hour.Add(-time.Hour), 100)
		use("edge-1", 12, hour.Add(-40*24*time.Hour), 1000)
		got := s.want(t, 200, "manage", "GET", "/api/v1/service-accounts/"+a.ID+"/usage", "")
		if got.get(t, "keys.0.total.requests") != 111.0 || got.get(t, "keys.0.total.sent") != 222.0 || got.get(t, "keys.0.total.bytes") != 777.0 || got.get(t, "keys.0.total.refused") != 666.0 {
			t.Errorf("total: %s", got.body)
		}
		if got.count(t, "keys.0.buckets") != 2 || got.get(t, "keys.0.buckets.0.requests") != 100.0 || got.get(t, "keys.0.buckets.1.filtered") != 33.0 {
			t.Errorf("buckets: %s", got.body)
		}
		got = s.want(t, 200, "manage", "GET", "/api/v1/service-accounts/"+a.ID+"/usage?since="+hour.Add(-41*24*time.Hour).Format(time.RFC3339)+"&until="+hour.Add(-39*24*time.Hour).Format(time.RFC3339), "")
		if got.get(t, "keys.0.total.requests") != 1000.0 {
			t.Errorf("of another time: %s", got.body)
		}
		for query, status := range map[string]int{"?since=2020-01-01": 400, "?since=2026-01-02&until=2026-01-01": 400, "?step=day": 400, "?until=x": 400} {
			s.want(t, status, "manage", "GET", "/api/v1/service-accounts/"+a.ID+"/usage"+query, "")
		}
		s.want(t, 404, "other", "GET", "/api/v1/service-accounts/"+a.ID+"/usage", "")
		s.want(t, 404, "manage", "GET", "/api/v1/service-accounts/sa_0/usage", "")
		s.want(t, 403, "govern", "GET", "/api/v1/service-accounts/"+a.ID+"/usage", "")
		s.want(t, 401, "", "GET", "/api/v1/service-accounts/"+a.ID+"/usage", "")

		// Twenty senders, of which the last sixteen are kept.
		for n := range 20 {
			err := w.Use(t.Context(), auth.UsageBatch{Writer: "edge-3", Seq: int64(n + 1), Senders: []auth.SenderUse{usedBy(a.KeyPrefix, n, now.Add(time.Duration(n)*time.Second))}})
			if err != nil {
				t.Fatal(err)
			}
		}
		again := usedBy(a.KeyPrefix, 7, now.Add(time.Minute))
		again.New, again.Count = false, 41
		if err := w.Use(t.Context(), auth.UsageBatch{Writer: "edge-3", Seq: 99, Senders: []auth.SenderUse{again}}); err != nil {
			t.Fatal(err)
		}
		got = s.want(t, 200, "manage", "GET", "/api/v1/service-accounts/"+a.ID+"/usage", "")
		if got.count(t, "keys.0.senders") != 16 || got.text(t, "keys.0.senders.0.address") != "192.0.2.7" || got.get(t, "keys.0.senders.0.requests") != 42.0 ||
			got.text(t, "keys.0.senders.1.address") != "192.0.2.19" || got.text(t, "keys.0.senders.15.address") != "192.0.2.4" {
			t.Errorf("senders: %s", got.body)
		}

		w.clock.advance(100 * 24 * time.Hour)
		if err := w.Prune(t.Context(), time.Hour); err != nil {
			t.Fatal(err)
		}
		u, err := w.AccountUsage(t.Context(), "acme", a.ID, now.Add(-time.Hour), now)
		if err != nil || len(u.Keys) != 1 || len(u.Keys[0].Buckets) != 0 || len(u.Keys[0].Senders) != 0 {
			t.Errorf("after its retention: %+v, %v", u, err)
		}
	})
}

// TestUsageFromManyEdges: edges that write the same keys at once lose nothing, and never end in a deadlock.
func TestUsageFromManyEdges(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		const edges, rounds = 4, 20
		var prefixes []string
		ids := map[string]string{}
		for n := range 20 {
			a := w.create(t, fmt.Sprintf("job-%02d", n), "production").Account
			prefixes = append(prefixes, a.KeyPrefix)
			ids[a.KeyPrefix] = a.ID
		}
		var wg sync.WaitGroup
		for e := range edges {
			wg.Go(func() {
				for r := range rounds {
					b := auth.UsageBatch{Writer: fmt.Sprint("edge-", e), Seq: int64(r + 1)}
					for i, p := range prefixes {
						b.Usage = append(b.Usage, auth.KeyUsage{Prefix: p, Hour: time.Now().UTC().Truncate(time.Hour), Usage: auth.Usage{Accepted: 1}})
						b.Senders = append(b.Senders, usedBy(p, (i+r*e)%30, time.Now()))
					}
					if err := w.Use(context.Background(), b); err != nil {
						t.Errorf("edge %d: %v", e, err)
					}
				}
			})
		}
		wg.Wait()
		if n := w.deadlocks(t); n != 0 {
			t.Errorf("%d deadlocks", n)
		}
		for _, p := range prefixes {
			u, err := w.AccountUsage(t.Context(), "acme", ids[p], time.Time{}, time.Time{})
			if err != nil || u.Keys[0].Total.Accepted != edges*rounds || len(u.Keys[0].Senders) > auth.MaxSendersOfAKey {
				t.Errorf("%s: %+v, %v", p, u, err)
			}
		}
	})
}

func TestRefusals(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		s := newSite(t, w)
		a := w.create(t, "job", "production").Account
		b := w.create(t, "other-job", "production").Account
		theirs, err := w.CreateAccount(t.Context(), cli, "other", accounts.NewAccount{Name: "job", Environment: "production"}, "")
		if err != nil {
			t.Fatal(err)
		}
		now := time.Now()
		refuse := func(n int, prefix, reason string) accounts.Refusal {
			return accounts.Refusal{At: now.Add(time.Duration(n) * time.Millisecond), Code: 401, Reason: reason, Address: "192.0.2.9", Prefix: prefix, Path: "/v1/logs",
				UserAgent: "job/1", RequestID: fmt.Sprintf("%016x", n), Count: 1, Org: "acme"} // which is looked up, not believed
		}
		err = w.AddRefusals(t.Context(), []accounts.Refusal{
			refuse(1, a.KeyPrefix, "revoked"), refuse(2, b.KeyPrefix, "hash_mismatch"), refuse(3, theirs.Account.KeyPrefix, "revoked"),
			refuse(4, "", "malformed"), refuse(5, "fsk_nobodynobody", "unknown"),
		})
		if err != nil {
			t.Fatal(err)
		}
		got := s.want(t, 200, "manage", "GET", "/api/v1/refusals", "")
		if got.count(t, "items") != 2 || got.text(t, "items.0.reason") != "hash_mismatch" || got.text(t, "items.1.key_prefix") != a.KeyPrefix {
			t.Errorf("of acme: %s", got.body)
		}
		if got := s.want(t, 200, "other", "GET", "/api/v1/refusals", ""); got.count(t, "items") != 1 {
			t.Errorf("of other: %s", got.body)
		}
		for query, n := range map[string]int{"?prefix=" + a.KeyPrefix: 1, "?account=" + b.ID: 1, "?reason=revoked,unknown": 1, "?account=" + a.ID + "&reason=unknown": 0} {
			if got := s.want(t, 200, "manage", "GET", "/api/v1/refusals"+query, ""); got.count(t, "items") != n {
				t.Errorf("%s: %s", query, got.body)
			}
		}
		first := s.want(t, 200, "manage", "GET", "/api/v1/refusals?limit=1", "")
		second := s.want(t, 200, "manage", "GET", "/api/v1/refusals?limit=1&cursor="+first.text(t, "next_cursor"), "")
		if second.count(t, "items") != 1 || second.text(t, "items.0.reason") != "revoked" || second.get(t, "next_cursor") != nil {
			t.Errorf("second page: %s", second.body)
		}
		for query, status := range map[string]int{"?prefix=nonsense": 400, "?limit=0": 400, "?x=1": 400, "?cursor=zzz": 400, "?account=sa_1": 404, "?account=" + theirs.Account.ID: 404} {
			s.want(t, status, "manage", "GET", "/api/v1/refusals"+query, "")
		}
		s.want(t, 403, "govern", "GET", "/api/v1/refusals", "")
		s.want(t, 401, "", "GET", "/api/v1/refusals", "")
		all, err := w.LastRefusals(t.Context(), now, 100)
		if err != nil || len(all) != 5 || all[0].RequestID != fmt.Sprintf("%016x", 1) || all[4].Org != "" {
			t.Errorf("all: %+v, %v", all, err)
		}

		// A flood of one org pushes out its own only.
		for part := range 6 {
			var flood []accounts.Refusal
			for n := range 200 {
				flood = append(flood, refuse(100+part*200+n, a.KeyPrefix, "revoked"))
			}
			if err := w.AddRefusals(t.Context(), flood); err != nil {
				t.Fatal(err)
			}
		}
		if all, err = w.LastRefusals(t.Context(), now, 5000); err != nil || len(all) != 1003 {
			t.Errorf("%d are kept, %v", len(all), err)
		}
		w.clock.advance(8 * 24 * time.Hour)
		if err := w.Prune(t.Context(), time.Hour); err != nil {
			t.Fatal(err)
		}
		if all, err = w.LastRefusals(t.Context(), time.Time{}, 10); err != nil || len(all) != 0 {
			t.Errorf("%d are kept for ever, %v", len(all), err)
		}
	})
}
