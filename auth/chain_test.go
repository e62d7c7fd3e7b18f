package auth

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestAuthenticate(t *testing.T) {
	d := newDatabase(new(clockwork).now)
	raw, cred := d.create("digest")
	c := newChain(t, d, nil)
	reads(t, c)
	i := accepted(t, c, cred)
	if i.Org != "acme" || i.Name != "digest" || i.Kind != KindServiceAccount || i.KeyPrefix != cred.Key.Prefix() {
		t.Errorf("principal %+v", i.Principal)
	}
	if again := accepted(t, c, cred); again.Principal != i.Principal {
		t.Error("the principal is not shared")
	}
	cred.Slug = "acme"
	accepted(t, c, cred)
	cred.Slug = "other"
	refused(t, c, cred, SlugMismatch)
	cred.Slug = ""
	stolen := cred
	stolen.Key.Hash[31] ^= 1
	refused(t, c, stolen, HashMismatch)
	_, other := MintKey(KindPerson)
	refused(t, c, Credentials{Key: other}, Unknown)
	refused(t, c, Credentials{Key: other}, Unknown)
	if n := d.asked.Load(); n != 2 {
		t.Errorf("the database was asked %d times, want once for each prefix", n)
	}

	f := func(flowstate, authorization string, reason RefusalReason, sentinel error) {
		t.Helper()
		_, err := c.AuthenticateHeaders(t.Context(), []byte(flowstate), []byte(authorization), anywhere)
		var r *Refusal
		if !errors.As(err, &r) || r.Reason != reason || !errors.Is(err, sentinel) || strings.Contains(err.Error(), raw) {
			t.Errorf("got %v", err)
		}
	}
	f("", "", NoCredentials, ErrNoCredentials)
	f(raw[:50], "", Malformed, ErrMalformedKey)
	f(strings.Replace(raw, "fsk", "fpk", 1), "", Malformed, ErrMalformedKey)
	_, err := c.AuthenticateHeaders(t.Context(), []byte(raw), nil, anywhere)
	if err != nil {
		t.Error(err)
	}
	if n := counted(t, c, "sluice_auth_refusals_total"); n != 7 {
		t.Errorf("%v refusals counted, want 7", n)
	}
}

func TestMissIsForgottenWhenTheKeyIsMade(t *testing.T) {
	clk := new(clockwork)
	d := newDatabase(clk.now)
	_, cred := d.create("digest")
	rec := d.keys[cred.Key.Prefix()]
	d.set(func() { delete(d.keys, rec.Prefix); d.changes = nil })
	c := newChain(t, d, nil)
	reads(t, c)
	refused(t, c, cred, Unknown)
	asked := d.asked.Load()
	d.set(func() { d.keys[rec.Prefix] = rec })
	refused(t, c, cred, Unknown)
	if d.asked.Load() != asked {
		t.Error("a miss is not remembered")
	}
	c.Apply(Change{Prefix: rec.Prefix, Version: rec.Version, At: d.clock()})
	accepted(t, c, cred) // at once by the change

	d.set(func() { delete(d.keys, rec.Prefix) })
	c.l1.InvalidateAll()
	refused(t, c, cred, Unknown)
	d.set(func() { d.keys[rec.Prefix] = rec })
	clk.advance(6 * time.Second)
	accepted(t, c, cred) // and by time
}

// Truth's "no such key" is never overruled by a stale record.
func TestNoSuchKeyIsFinal(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *testRedis) {
		clk := new(clockwork)
		d := newDatabase(clk.now)
		_, cred := d.create("digest")
		c := newChain(t, d, r.use)
		reads(t, c)
		accepted(t, c, cred)
		eventually(t, "Redis holds the record", func() bool { return inRedis(t, c, cred).Version > 0 })
		d.set(func() { clear(d.keys) })
		clk.advance(11 * time.Second) // the feed is not read any more
		refused(t, c, cred, Unknown)
		eventually(t, "Redis forgets the record", func() bool { return inRedis(t, c, cred).Version == 0 })
		d.set(func() { d.down = errDown })
		clk.advance(6 * time.Second)
		unavailable(t, c, cred)
	})
}

func TestEditsReachTheEdge(t *testing.T) {
	d := newDatabase(new(clockwork).now)
	_, cred := d.create("digest")
	c := newChain(t, d, nil)
	reads(t, c)
	before := accepted(t, c, cred)
	before.Touch(time.UnixMilli(5000))
	d.change(cred, func(r *Record) {
		r.Principal.Name, r.Principal.Environment, r.Principal.AbuseDetection = "renamed", Staging, false
		r.Principal.Limits.RequestsPerSecond = 7
	})
	reads(t, c)
	after := accepted(t, c, cred)
	if after.Name != "renamed" || after.Environment != Staging || after.AbuseDetection || after.Limits.RequestsPerSecond != 7 {
		t.Errorf("principal %+v", after.Principal)
	}
	if before.state != after.state {
		t.Error("an edit starts the key's stamps and buckets anew")
	}
	if before.Name != "digest" {
		t.Error("an edit changed a principal that a request held")
	}
}

func TestOneFlightForAKey(t *testing.T) {
	d := newDatabase(new(clockwork).now)
	_, cred := d.create("digest")
	c := newChain(t, d, nil)
	held, release := d.hold()
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			_, err := c.Authenticate(context.Background(), cred, anywhere)
			if err != nil {
				t.Error(err)
			}
		})
	}
	<-held
	eventually(t, "all wait", func() bool { return counted(t, c, "sluice_auth_flights_shared_total") == 49 })
	release()
	wg.Wait()
	if n := d.asked.Load(); n != 1 {
		t.Errorf("the database was asked %d times", n)
	}
}

// A request that gives up takes nobody else with it.
func TestFlightOutlivesItsFirstRequest(t *testing.T) {
	d := newDatabase(new(clockwork).now)
	_, cred := d.create("digest")
	c := newChain(t, d, nil)
	held, release := d.hold()
	ctx, cancel := context.WithCancel(t.Context())
	first, second := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := c.Authenticate(ctx, cred, anywhere)
		first <- err
	}()
	<-held
	go func() {
		_, err := c.Authenticate(context.Background(), cred, anywhere)
		second <- err
	}()
	eventually(t, "the second joins", func() bool { return counted(t, c, "sluice_auth_flights_shared_total") == 1 })
	cancel()
	if err := <-first; !errors.Is(err, ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	release()
	if err := <-second; err != nil {
		t.Error(err)
	}
}

// A flood of unknown keys: those who are known do not notice, other addresses get their look-ups, and the database's
// share is kept.
func TestFloodStarvesNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDatabase(time.Now)
		_, known := d.create("known")
		c := newChain(t, d, nil)
		reads(t, c)
		accepted(t, c, known)
		asked := d.asked.Load()
		flooder := netip.MustParseAddr("2001:db8:1:2::1")
		overBudget := 0
		const seconds = 10
		for s := range seconds * 10 {
			for range 500 { // 5,000 a second
				_, junk := MintKey(KindServiceAccount)
				flooder = flooder.Next() // all of one /64
				_, err := c.Authenticate(t.Context(), Credentials{Key: junk}, flooder)
				switch {
				case errors.Is(err, ErrUnavailable):
					overBudget++
				case !errors.Is(err, ErrUnknownKey):
					t.Fatal(err)
				}
			}
			accepted(t, c, known)
			if s%5 == 0 { // keys that this edge sees for the first time, from elsewhere
				_, fresh := d.create("fresh")
				accepted(t, c, fresh)
			}
			reads(t, c)
			<-time.After(100 * time.Millisecond)
		}
		questions := d.asked.Load() - asked
		t.Logf("%d junk keys, %d over budget, %d questions", seconds*5000, overBudget, questions)
		if questions > 100*(seconds+2)+25 {
			t.Errorf("the database was asked %d times in %d s", questions, seconds)
		}
	})
}

// A flood from everywhere takes the common budget, and what addresses of good keys have to themselves stays: keys that this edge sees for the first
// time are answered there, while the database is asked no more than it may be.
func TestFloodFromEverywhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDatabase(time.Now)
		_, known := d.create("known")
		c := newChain(t, d, nil)
		reads(t, c)
		accepted(t, c, known)
		asked := d.asked.Load()
		from := netip.MustParseAddr("198.18.0.0")
		const seconds, fresh = 10, 20
		for range seconds * 10 {
			for range 500 { // 5,000 a second
				_, junk := MintKey(KindServiceAccount)
				from = from.Next()
				_, err := c.Authenticate(t.Context(), Credentials{Key: junk}, from)
				if !errors.Is(err, ErrUnavailable) && !errors.Is(err, ErrUnknownKey) {
					t.Fatal(err)
				}
			}
			for range fresh {
				_, cold := d.create("cold")
				accepted(t, c, cold)
			}
			reads(t, c)
			<-time.After(100 * time.Millisecond)
		}
		misses := d.asked.Load() - asked - seconds*10*fresh
		t.Logf("%d junk keys, %d misses, %d good keys looked up", seconds*5000, misses, seconds*10*fresh)
		if misses > 500*(seconds+2) {
			t.Errorf("the database was asked for %d unknown keys in %d s", misses, seconds)
		}
	})
}

// The address that is over its budget must not decide for others who ask for the same key at the same time.
func TestBudgetOfAnotherAddress(t *testing.T) {
	d := newDatabase(new(clockwork).now)
	_, cred := d.create("digest")
	c := newChain(t, d, func(cfg *ChainConfig) { cfg.MissesPerSource = 1 })
	for range 3 {
		_, _ = c.budget.pay(c.clock(), anywhere)
	}
	_, err := c.Authenticate(t.Context(), cred, anywhere)
	if !errors.Is(err, ErrUnavailable) || !errors.Is(err, errOverSource) {
		t.Fatalf("got %v", err)
	}
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() { _, _ = c.Authenticate(context.Background(), cred, anywhere) })
		wg.Go(func() {
			_, err := c.Authenticate(context.Background(), cred, netip.MustParseAddr("198.51.100.9"))
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestFlightOfAnAddressOverBudget(t *testing.T) {
	d := newDatabase(new(clockwork).now)
	_, cred := d.create("digest")
	c := newChain(t, d, nil)
	k := flightKey{id: cred.Key.ID, hash: cred.Key.Hash}
	f, _, _ := c.flights.join(k) // of the address that is over its budget
	got := make(chan error, 1)
	go func() {
		_, err := c.Authenticate(context.Background(), cred, anywhere)
		got <- err
	}()
	eventually(t, "the request joins", func() bool { return counted(t, c, "sluice_auth_flights_shared_total") == 1 })
	c.flights.mu.Lock()
	delete(c.flights.m, k)
	c.flights.mu.Unlock()
	f.err = errOverSource
	close(f.done)
	if err := <-got; err != nil {
		t.Error(err)
	}
}

func TestRevokedUseIsReportedOnceAMinute(t *testing.T) {
	clk := new(clockwork)
	d := newDatabase(clk.now)
	_, cred := d.create("digest")
	var reports atomic.Int64
	var from atomic.Pointer[netip.Addr]
	c := newChain(t, d, func(cfg *ChainConfig) {
		cfg.OnRevokedUse = func(rec Record, remote netip.Addr) {
			if rec.Prefix != cred.Key.Prefix() || rec.Principal.Name != "digest" {
				t.Errorf("reported %+v", rec)
			}
			reports.Add(1)
			from.Store(&remote)
		}
	})
	reads(t, c)
	accepted(t, c, cred)
	c.Apply(d.revoke(cred))
	stolen := cred
	stolen.Key.Hash[0]++
	refused(t, c, stolen, HashMismatch) // who has only the prefix raises nothing
	for range 1000 {
		refused(t, c, cred, Revoked)
		clk.advance(50 * time.Millisecond)
	}
	if n := reports.Load(); n != 1 || *from.Load() != anywhere {
		t.Errorf("%d reports within a minute", n)
	}
	clk.advance(11 * time.Second)
	refused(t, c, cred, Revoked)
	if n := reports.Load(); n != 2 {
		t.Errorf("%d reports after a minute", n)
	}
}

func TestSubjects(t *testing.T) {
	clk := new(clockwork)
	d := newDatabase(clk.now)
	_, cred := d.create("digest")
	c := newChain(t, d, nil)
	reads(t, c)
	ctx := t.Context()
	f := func(want error, p *Principal, err error) {
		t.Helper()
		if !errors.Is(err, want) || (err == nil) != (p != nil) {
			t.Fatalf("got %+v, %v, want %v", p, err, want)
		}
	}
	for range 3 {
		p, err := c.Account(ctx, "acme", "", "sa_digest")
		f(nil, p, err)
		p, err = c.AccountByName(ctx, "acme", "", "digest", Production)
		f(nil, p, err)
		p, err = c.AccountByName(ctx, "acme", "", "digest", Staging)
		f(ErrNoKey, p, err)
		p, err = c.Account(ctx, "umbrella", "", "sa_digest")
		f(ErrNoKey, p, err)
	}
	if n := d.asked.Load(); n != 5 {
		t.Errorf("the database was asked %d times, want 5", n)
	}
	// Renamed: the old name is nobody's at once, the new one is found at once.
	c.Apply(d.change(cred, func(r *Record) { r.Principal.Name = "weekly" }))
	p, err := c.AccountByName(ctx, "acme", "", "digest", Production)
	f(ErrNoKey, p, err)
	p, err = c.AccountByName(ctx, "acme", "", " Weekly ", Production) // names differ by more than case
	f(nil, p, err)
	// Deleted and made again under the same name.
	c.Apply(d.revoke(cred))
	p, err = c.AccountByName(ctx, "acme", "", "weekly", Production)
	f(ErrNoKey, p, err)
	p, err = c.Account(ctx, "acme", "", "sa_digest")
	f(ErrNoKey, p, err)
	_, again := d.create("weekly")
	reads(t, c)
	p, err = c.AccountByName(ctx, "acme", "", "weekly", Production)
	f(nil, p, err)
	if p.KeyPrefix != again.Key.Prefix() {
		t.Error("the old account came back")
	}
	// Nobody can say.
	d.set(func() { d.down = errDown })
	p, err = c.Account(ctx, "acme", "", "sa_other")
	f(ErrUnavailable, p, err)
	clk.advance(time.Minute)
	p, err = c.AccountByName(ctx, "acme", "", "weekly", Production)
	f(nil, p, err) // known: stale
	clk.advance(20 * time.Minute)
	p, err = c.AccountByName(ctx, "acme", "", "weekly", Production)
	f(ErrUnavailable, p, err)
}

// A detector that names what there is not, on and on, spends its own budget and nobody else's.
func TestUnknownSubjectsStarveNobody(t *testing.T) {
	clk := new(clockwork)
	d := newDatabase(clk.now)
	d.create("digest")
	c := newChain(t, d, func(cfg *ChainConfig) { cfg.MissesPerSecond, cfg.MissesPerDetector = 40, 5 })
	reads(t, c)
	ctx := t.Context()
	unknown := 0
	for i := range 200 {
		_, err := c.Account(ctx, "acme", "fdk_flooding", fmt.Sprintf("sa_%d", i))
		if errors.Is(err, ErrNoKey) {
			unknown++
		} else if !errors.Is(err, ErrUnavailable) {
			t.Fatal(err)
		}
	}
	if unknown < 10 || unknown > 11 { // two seconds at once
		t.Errorf("the database was asked for %d unknown subjects of one detector", unknown)
	}
	for i := range 5 {
		if _, err := c.AccountByName(ctx, "acme", "fdk_other", fmt.Sprintf("gone-%d", i), Production); !errors.Is(err, ErrNoKey) {
			t.Errorf("another detector: %v", err)
		}
	}
	if _, err := c.Account(ctx, "acme", "", "sa_none"); !errors.Is(err, ErrNoKey) {
		t.Errorf("an admin: %v", err)
	}
	// What another has found is found for it too, though it may not ask; and time mends all.
	if _, err := c.Account(ctx, "acme", "fdk_other", "sa_digest"); err != nil {
		t.Error(err)
	}
	if _, err := c.Account(ctx, "acme", "fdk_flooding", "sa_digest"); err != nil {
		t.Error(err)
	}
	clk.advance(time.Second)
	if _, err := c.Account(ctx, "acme", "fdk_flooding", "sa_later"); !errors.Is(err, ErrNoKey) {
		t.Errorf("a second later: %v", err)
	}
	// Subjects that there are cost nothing.
	for i := range 100 {
		name := fmt.Sprintf("job-%d", i)
		d.create(name)
		if _, err := c.Account(ctx, "acme", "fdk_busy", "sa_"+name); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
}

// The name that Truth found has moved on to another account before its record was read.
func TestSubjectRenamedMeanwhile(t *testing.T) {
	d := newDatabase(new(clockwork).now)
	_, cred := d.create("weekly")
	c := newChain(t, d, func(cfg *ChainConfig) {
		cfg.Truth.AccountKeyByName = func(context.Context, string, string, string) (string, error) { return cred.Key.Prefix(), nil }
	})
	p, err := c.AccountByName(t.Context(), "acme", "", "digest", Production)
	if !errors.Is(err, ErrNoKey) {
		t.Errorf("got %+v, %v", p, err)
	}
}

func TestConfigIsChecked(t *testing.T) {
	_, err := NewChain(ChainConfig{})
	if err == nil {
		t.Error("a chain without a database")
	}
}

// Everything at once, for the race detector: users of two edges, edits, revocations, feeds, stamps. Nobody is accepted
// after the Apply of their revocation by the process that made it.
func TestConcurrently(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *testRedis) {
		d := newDatabase(new(clockwork).now)
		few := func(cfg *ChainConfig) { // evictions all the time
			r.use(cfg)
			cfg.MaxKeys = 16
		}
		c, other := newChain(t, d, few), newChain(t, d, few)
		ctx, stop := context.WithCancel(t.Context())
		ran := make(chan error, 2)
		go func() { ran <- c.Run(ctx) }()
		go func() { ran <- other.Run(ctx) }()
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for range 20 {
					revokeUnderLoad(t, d, c, other)
				}
			})
		}
		wg.Wait()
		stop()
		for range 2 {
			if err := <-ran; err != nil {
				t.Error(err)
			}
		}
	})
}

func revokeUnderLoad(t *testing.T, d *database, c, other *Chain) {
	_, cred := d.create("x")
	var gone atomic.Bool
	var users sync.WaitGroup
	for range 3 {
		users.Go(func() {
			for range 50 {
				was := gone.Load()
				i, err := c.Authenticate(context.Background(), cred, anywhere)
				if err == nil {
					i.Touch(time.Now())
					i.Allow()
				}
				if was && err == nil {
					t.Error("accepted after the revocation")
				}
				_, _ = other.Authenticate(context.Background(), cred, anywhere)
			}
		})
	}
	c.Apply(d.change(cred, func(r *Record) { r.Principal.Team = "t" }))
	c.Apply(d.revoke(cred))
	gone.Store(true)
	users.Wait()
}

// A database that was restored from a backup has gone back in its versions. It is the truth all the same, once what
// was announced before is forgotten.
func TestDatabaseGoesBack(t *testing.T) {
	clk := new(clockwork)
	d := newDatabase(clk.now)
	_, cred := d.create("digest")
	backup := d.keys[cred.Key.Prefix()]
	d.change(cred, func(r *Record) { r.Principal.Name = "renamed" })
	d.set(func() { d.changes = nil })
	c := newChain(t, d, nil)
	reads(t, c)
	if i := accepted(t, c, cred); i.Name != "renamed" {
		t.Fatal(i.Name)
	}
	d.set(func() { d.keys[backup.Prefix] = backup })
	for range 61 {
		clk.advance(time.Minute)
		reads(t, c)
	}
	asked := d.asked.Load()
	for range 10 {
		if i := accepted(t, c, cred); i.Name != "digest" {
			t.Fatal(i.Name)
		}
	}
	if n := d.asked.Load() - asked; n != 1 {
		t.Errorf("the database was asked %d times", n)
	}
}
