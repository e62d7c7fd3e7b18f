package auth

import (
	"errors"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A success at the same time as the failure that opens the breaker leaves it closed or open, and the success after it closed: never open on
// a tier that answers.
func TestBreakerWithSuccessAndFailureAtOnce(t *testing.T) {
	var turn atomic.Int64
	breakers := make([]breaker, 1_000_000)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range breakers {
			for turn.Load() <= int64(i) { // both begin at once, without a scheduler in between
			}
			breakers[i].failure(1)
		}
	}()
	for i := range breakers {
		breakers[i].failure(1)
		breakers[i].failure(1)
		turn.Store(int64(i) + 1)
		breakers[i].success(1)
	}
	<-done
	for i := range breakers {
		b := &breakers[i]
		b.success(1)
		if !b.closed() || !b.allow(2) || b.idle(2, 1) {
			t.Fatalf("open after a success, in round %d", i)
		}
	}
}

// What the database does not answer is no miss: it costs nobody's budget.
func TestUnansweredLookUpsCostNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDatabase(new(clockwork).now)
		_, cred := d.create("digest")
		stranger := netip.MustParseAddr("198.51.100.9")
		c := newChain(t, d, func(cfg *ChainConfig) {
			cfg.MissesPerSource, cfg.Bounds.Answer = 1, 20*time.Millisecond // two at once
		})
		ask := func() error {
			_, junk := MintKey(KindServiceAccount)
			_, err := c.Authenticate(t.Context(), Credentials{Key: junk}, stranger)
			return err
		}
		d.set(func() { d.down = errDown })
		for range breakAfter - 1 {
			if err := ask(); !errors.Is(err, errDown) {
				t.Fatalf("got %v", err)
			}
		}
		d.set(func() { d.down = nil })
		for range cap(c.budget.unknown) {
			c.budget.unknown <- struct{}{}
		}
		for range 3 {
			if err := ask(); !errors.Is(err, errOverSlots) {
				t.Fatalf("got %v", err)
			}
		}
		for range cap(c.budget.unknown) {
			<-c.budget.unknown
		}
		for range 2 {
			if err := ask(); !errors.Is(err, ErrUnknownKey) {
				t.Fatalf("got %v", err)
			}
		}
		if err := ask(); !errors.Is(err, errOverSource) {
			t.Errorf("misses cost nothing: %v", err)
		}
		accepted(t, c, cred)
	})
}

// A flood from enough addresses to spend the common budget leaves an address that was never heard of its first look-up.
func TestNewcomersInAFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDatabase(time.Now)
		c := newChain(t, d, nil)
		reads(t, c)
		from := make([]netip.Addr, 200)
		for i := range from {
			from[i] = netip.AddrFrom4([4]byte{198, 18, 0, byte(i)})
		}
		newcomer := netip.MustParseAddr("203.0.113.0")
		over := 0
		for range 100 {
			for i := range 500 { // 5,000 a second
				_, junk := MintKey(KindServiceAccount)
				_, err := c.Authenticate(t.Context(), Credentials{Key: junk}, from[i%len(from)])
				if errors.Is(err, errOverTotal) {
					over++
				}
			}
			_, cold := d.create("cold")
			newcomer = newcomer.Next()
			_, err := c.Authenticate(t.Context(), cold, newcomer)
			if err != nil {
				t.Fatalf("a newcomer's good key: %v", err)
			}
			reads(t, c)
			<-time.After(100 * time.Millisecond)
		}
		if over == 0 {
			t.Error("the flood spent nothing")
		}
	})
}

// A record that the feed does not stand for is not served because the database has no time for it, only because it fails: it may be revoked.
func TestNoSlotIsNoOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		clk := new(clockwork)
		d := newDatabase(clk.now)
		_, cred := d.create("digest")
		c := newChain(t, d, func(cfg *ChainConfig) { cfg.Bounds.Answer = 50 * time.Millisecond })
		reads(t, c)
		accepted(t, c, cred)
		for range cap(c.budget.slots) {
			c.budget.slots <- struct{}{}
		}
		clk.advance(11 * time.Second) // the feed is cut
		c.truthUp.success(c.clock())  // and look-ups of others are answered
		unavailable(t, c, cred)
		clk.advance(time.Second) // nobody's any more
		accepted(t, c, cred)
		clk.advance(59 * time.Minute)
		reads(t, c) // the hour of its record is over, but the feed would have told of a revocation
		c.truthUp.success(c.clock())
		accepted(t, c, cred)
	})
}
