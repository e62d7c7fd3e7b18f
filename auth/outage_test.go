package auth

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestOutageMatrix holds the table of deploy/docs/outages.md, cell by cell: what a caller gets while the database or Redis is up, down
// or slow, before and after MaxStale.
func TestOutageMatrix(t *testing.T) {
	table := readOutages(t)
	states := []proxyMode{working, cut, silent}
	names := []string{"up", "down", "slow"}
	eachRedis(t, func(t *testing.T, r *testRedis) {
		for ti, truth := range states {
			for ri, cache := range states {
				for _, past := range []bool{false, true} {
					name := fmt.Sprintf("database %s, Redis %s, past MaxStale %v", names[ti], names[ri], past)
					want, ok := table[[3]string{names[ti], names[ri], map[bool]string{false: "15 min at most", true: "longer"}[past]}]
					if !ok {
						t.Errorf("the table has no row for: %s", name)
					}
					t.Run(name, func(t *testing.T) { outageCell(t, r, truth, cache, past, want) })
				}
			}
		}
	})
}

// An outage is one row of the table: what each caller gets, served, 401 or 503.
type outage struct{ known, elsewhere, cold, unknown, revoked, coldRevoked string }

// readOutages reads the table: database, Redis and how long, to what callers get.
func readOutages(t *testing.T) map[[3]string]outage {
	t.Helper()
	b, err := os.ReadFile("../deploy/docs/outages.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[[3]string]outage{}
	for line := range strings.Lines(string(b)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(cells) != 9 {
			continue
		}
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		if cells[0] == "up" || cells[0] == "down" || cells[0] == "slow" {
			rows[[3]string(cells[:3])] = outage{cells[3], cells[4], cells[5], cells[6], cells[7], cells[8]}
		}
	}
	if len(rows) != 18 {
		t.Fatalf("the table has %d rows, want 18", len(rows))
	}
	return rows
}

func outageCell(t *testing.T, r *testRedis, truth, cache proxyMode, past bool, want outage) {
	clk := new(clockwork)
	d := newDatabase(clk.now)
	r = openTestRedis(t, r.url) // no connection that the cell before has cut, and a cache of its own
	use := func(cfg *ChainConfig) {
		r.use(cfg)
		if truth == silent {
			cfg.Bounds.Truth = 50 * time.Millisecond
		}
		if cache == silent {
			cfg.Bounds.Redis = 50 * time.Millisecond
		}
	}
	_, known := d.create("known")
	_, elsewhere := d.create("elsewhere")
	_, revoked := d.create("revoked")
	_, other := MintKey(KindServiceAccount)
	unknown := Credentials{Key: other}
	stolen := known
	stolen.Key.Hash[0]++

	c, neighbour := newChain(t, d, use), newChain(t, d, use)
	reads(t, c)
	reads(t, neighbour)
	accepted(t, c, known)
	accepted(t, c, revoked)
	accepted(t, neighbour, elsewhere)
	c.Apply(d.revoke(revoked))
	refused(t, c, revoked, Revoked)
	eventually(t, "Redis holds the records", func() bool {
		return inRedis(t, c, known).Version > 0 && inRedis(t, c, elsewhere).Version > 0 && !inRedis(t, c, revoked).RevokedAt.IsZero()
	})

	age := time.Minute
	if past {
		age = c.cfg.MaxStale + time.Second
	}
	clk.advance(age)
	r.age(t, age)
	r.proxy.set(cache)
	switch truth {
	case cut:
		d.set(func() { d.down = errDown })
	case silent:
		d.set(func() { d.hang = true })
	}
	cold := newChain(t, d, use) // starts now
	refused(t, c, stolen, HashMismatch)
	for _, ask := range []struct {
		who, want string
		edge      *Chain
		cred      Credentials
		reason    RefusalReason // of a 401
	}{
		{"revoked", want.revoked, c, revoked, Revoked},
		{"known", want.known, c, known, ""},
		{"known to Redis", want.elsewhere, c, elsewhere, ""},
		{"cold start", want.cold, cold, known, ""},
		{"unknown", want.unknown, c, unknown, Unknown},
		{"revoked, cold start", want.coldRevoked, cold, revoked, Revoked},
	} {
		t.Run(ask.who, func(t *testing.T) {
			begun := time.Now()
			switch ask.want {
			case "served":
				accepted(t, ask.edge, ask.cred)
			case "503":
				unavailable(t, ask.edge, ask.cred)
			case "401":
				refused(t, ask.edge, ask.cred, ask.reason)
			default:
				t.Errorf("the table says %q", ask.want)
			}
			if took := time.Since(begun); took >= time.Second {
				t.Errorf("answered after %v", took)
			}
		})
	}

	// Back again: everybody is served, as soon as the breakers try.
	r.proxy.set(working)
	d.set(func() { d.down, d.hang = nil, false })
	clk.advance(2 * time.Second)
	for _, c := range []*Chain{c, cold} {
		accepted(t, c, known)
		accepted(t, c, elsewhere)
		refused(t, c, revoked, Revoked)
	}
}

// age makes everything in Redis older, as far as Redis can tell.
func (r *testRedis) age(t *testing.T, by time.Duration) {
	t.Helper()
	keys, err := r.Keys(t.Context(), r.prefix+"*").Result()
	if err != nil || len(keys) == 0 {
		t.Fatal("nothing in Redis", err)
	}
	for _, k := range keys {
		left := r.PTTL(t.Context(), k).Val()
		if left <= 0 {
			t.Fatalf("%s has no TTL", k)
		}
		r.PExpire(t.Context(), k, left-by)
	}
}

// A busy key through an outage of the database longer than MaxStale, by errors and by silence.
func TestBusyKeyThroughOutage(t *testing.T) {
	for _, hang := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			d := newDatabase(time.Now)
			_, cred := d.create("digest")
			c := newChain(t, d, nil)
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			ran := make(chan error, 1)
			go func() { ran <- c.Run(ctx) }()
			synctest.Wait()
			accepted(t, c, cred)
			<-time.After(30 * time.Minute)
			asked := d.asked.Load()
			d.set(func() {
				d.hang = hang
				d.down = errDown
			})
			begun := time.Now()
			var lastGood time.Duration
			slow := 0
			for time.Since(begun) < 20*time.Minute {
				sent := time.Now()
				_, err := c.Authenticate(ctx, cred, anywhere)
				took := time.Since(sent)
				if took > time.Second {
					t.Fatalf("an answer took %v", took)
				}
				if err == nil && took > 50*time.Millisecond {
					slow++
				}
				switch {
				case err == nil:
					lastGood = time.Since(begun)
				case !errors.Is(err, ErrUnavailable):
					t.Fatalf("got %v", err)
				}
				<-time.After(100 * time.Millisecond)
			}
			if lastGood > 15*time.Minute || lastGood < 15*time.Minute-3*time.Second {
				t.Errorf("served until %v after the outage began, want 15 min", lastGood)
			}
			questions := d.asked.Load() - asked
			t.Logf("hang %v: served for %v, %d questions, %d answers over 50 ms", hang, lastGood, questions, slow)
			if slow > 10 {
				t.Errorf("%d answers waited for the database", slow)
			}
			if questions > 20*60*2 {
				t.Errorf("the database was asked %d times during its outage", questions)
			}
			d.set(func() { d.hang, d.down = false, nil })
			<-time.After(2 * time.Second)
			accepted(t, c, cred)
			stop()
			if err := <-ran; err != nil {
				t.Error(err)
			}
		})
	}
}

// A key that nobody has used for more than an hour: the feed stands for its record for that hour, and MaxStale counts
// from there, not from the outage.
func TestIdleKeyInOutage(t *testing.T) {
	clk := new(clockwork)
	d := newDatabase(clk.now)
	_, cred := d.create("digest")
	c := newChain(t, d, nil)
	reads(t, c)
	accepted(t, c, cred)
	for range 70 {
		clk.advance(time.Minute)
		reads(t, c)
	}
	d.set(func() { d.down = errDown })
	accepted(t, c, cred)
	clk.advance(6 * time.Minute)
	unavailable(t, c, cred)
}

// An edge that is cut off from the database but not from Redis learns of revocations from the others, and knows from
// them that its keys are still good.
func TestCutOffEdgeFollowsTheFleet(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *testRedis) {
		clk := new(clockwork)
		d := newDatabase(clk.now)
		_, cred := d.create("digest")
		_, gone := d.create("gone")
		healthy := newChain(t, d, r.use)
		away := &database{now: clk.now, down: nil, skew: d.skew, keys: d.keys, changes: d.changes, stamps: map[string]Stamp{}, reported: map[string]time.Time{}}
		alone := newChain(t, away, r.use)
		for _, c := range []*Chain{healthy, alone} {
			reads(t, c)
			accepted(t, c, cred)
			accepted(t, c, gone)
		}
		away.set(func() { away.down = errDown })
		for range 50 {
			clk.advance(time.Minute)
			reads(t, healthy)
			propagates(t, alone)
			accepted(t, alone, cred)
			accepted(t, alone, gone)
		}
		healthy.Apply(d.revoke(gone))
		propagates(t, healthy)
		clk.advance(2 * time.Second)
		refused(t, alone, gone, Revoked)
		accepted(t, alone, cred)
		if s := alone.Status(); !s.HasRedis || !s.RedisUp || s.FeedAge < time.Minute {
			t.Errorf("status %+v", s)
		}
		if !alone.Status().Stale || counted(t, alone, "sluice_auth_stale_serving") != 1 {
			t.Error("serving without the database is not shown")
		}
	})
}
