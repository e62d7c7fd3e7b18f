package auth

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestLimitOfRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDatabase(time.Now)
		_, cred := d.create("digest")
		_, other := d.create("other")
		c := newChain(t, d, func(cfg *ChainConfig) { cfg.DefaultLimits.RequestsPerSecond = 10 })
		reads(t, c)
		i, o := accepted(t, c, cred), accepted(t, c, other)
		for n := range 20 { // two seconds' worth at once
			a := i.Allow()
			if !a.OK || a.Limit != 10 || a.By != ByRequests || a.Remaining != int64(19-n) {
				t.Fatalf("request %d: %+v", n, a)
			}
		}
		a := i.Allow()
		if a.OK || a.RetryAfter != 100*time.Millisecond || a.Remaining != 0 || a.Reset != 2*time.Second {
			t.Fatalf("the 21st: %+v", a)
		}
		if !o.Allow().OK {
			t.Fatal("one key's flood stopped another")
		}
		<-time.After(a.RetryAfter)
		if !i.Allow().OK || i.Allow().OK {
			t.Fatal("after RetryAfter exactly one more passes")
		}
		// Ten times the limit for ten seconds.
		passed := 0
		for range 1000 {
			if i.Allow().OK {
				passed++
			}
			<-time.After(10 * time.Millisecond)
		}
		if passed < 99 || passed > 101 {
			t.Errorf("%d passed in ten seconds", passed)
		}
		// An edited limit holds at once, whatever the bucket held.
		c.Apply(d.change(cred, func(r *Record) { r.Principal.Limits.RequestsPerSecond = 1000 }))
		i = accepted(t, c, cred)
		<-time.After(time.Second)
		passed = 0
		for range 5000 {
			if i.Allow().OK {
				passed++
			}
		}
		if passed < 900 || passed > 2000 {
			t.Errorf("%d passed at once after the edit", passed)
		}
	})
}

func TestLimitOfBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDatabase(time.Now)
		_, cred := d.create("digest")
		d.change(cred, func(r *Record) { r.Principal.Limits.BytesPerSecond = 1000 })
		c := newChain(t, d, nil)
		reads(t, c)
		i := accepted(t, c, cred)
		if a := i.Allow(); !a.OK || a.By != ByBytes || a.Remaining != 2000 {
			t.Fatalf("%+v", a)
		}
		i.Spend(5000) // larger than the burst: passes, and the next ones pay
		a := i.Allow()
		if a.OK || a.By != ByBytes || a.RetryAfter != 3*time.Second {
			t.Fatalf("%+v", a)
		}
		<-time.After(a.RetryAfter + time.Millisecond)
		if !i.Allow().OK {
			t.Fatal("refused after RetryAfter")
		}
		i.Spend(1 << 40)
		if a := i.Allow(); a.OK || a.RetryAfter > maxDebt {
			t.Fatalf("one request shuts its key out for %v", a.RetryAfter)
		}
		<-time.After(maxDebt)
		if !i.Allow().OK {
			t.Fatal("refused after the longest debt")
		}
	})
}

func TestUnlimited(t *testing.T) {
	d := newDatabase(time.Now)
	_, cred := d.create("digest")
	c := newChain(t, d, nil)
	i := accepted(t, c, cred)
	for range 100_000 {
		i.Spend(1 << 20)
		if a := i.Allow(); !a.OK || a.Limit != 0 {
			t.Fatalf("%+v", a)
		}
	}
}

func TestLimitUnderContention(t *testing.T) {
	var b bucket
	var wg sync.WaitGroup
	passed := make(chan int, 8)
	for range 8 {
		wg.Go(func() {
			n := 0
			for range 1000 {
				if _, ok := b.take(int64(time.Hour), 1, 100, int64(2*time.Second)); ok {
					n++
				}
			}
			passed <- n
		})
	}
	wg.Wait()
	sum := 0
	for range 8 {
		sum += <-passed
	}
	if sum != 200 {
		t.Errorf("%d passed, want the burst of 200", sum)
	}
}

func TestStamps(t *testing.T) {
	d := newDatabase(time.Now)
	_, cred := d.create("digest")
	_, idle := d.create("idle")
	c := newChain(t, d, nil)
	accepted(t, c, idle)
	at := func(s int64) time.Time { return time.Unix(1_700_000_000+s, 0) }
	flush := func(want error) {
		t.Helper()
		err := c.FlushStamps(t.Context())
		if !errors.Is(err, want) {
			t.Fatalf("got %v, want %v", err, want)
		}
	}
	stamped := func(first, last int64) {
		t.Helper()
		got := d.stamps[cred.Key.Prefix()]
		if !got.First.Equal(at(first)) || !got.Last.Equal(at(last)) {
			t.Fatalf("stamped %v to %v", got.First, got.Last)
		}
	}
	i := accepted(t, c, cred)
	flush(nil)
	i.Touch(at(10))
	i.Touch(at(7)) // began earlier, ended later
	i.Touch(at(12))
	flush(nil)
	stamped(7, 12)
	flush(nil)
	if len(d.batches) != 1 {
		t.Errorf("%d statements, want 1: nothing moved", len(d.batches))
	}
	// Failures are kept, and coalesce; an evicted entry's stamps too.
	d.set(func() { d.down = errDown })
	i.Touch(at(20))
	flush(errDown)
	i.Touch(at(25))
	flush(errDown)
	c.l1.InvalidateAll()
	d.set(func() { d.down = nil })
	i = accepted(t, c, cred) // a state of its own
	i.Touch(at(5))
	flush(nil)
	stamped(5, 25)
	if len(d.stamps) != 1 {
		t.Error("a key that was never touched is stamped")
	}
	if n := counted(t, c, "sluice_auth_stamps_pending"); n != 0 {
		t.Errorf("%v pending", n)
	}
}

func TestStampsOfManyKeys(t *testing.T) {
	d := newDatabase(time.Now)
	c := newChain(t, d, nil)
	const keys = 12_000
	ids := make([]Identity, keys)
	for n := range ids {
		_, key := MintKey(KindServiceAccount)
		ids[n] = Identity{state: &keyState{id: key.ID}, chain: c}
	}
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for n := range ids {
				ids[n].Touch(time.Unix(int64(1000+w), 0))
			}
		})
	}
	for range 5 {
		wg.Go(func() { _ = c.FlushStamps(context.Background()) })
	}
	wg.Wait()
	err := c.FlushStamps(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(d.stamps) != keys {
		t.Errorf("%d keys stamped", len(d.stamps))
	}
	for _, s := range d.stamps {
		if s.First.Unix() != 1000 || s.Last.Unix() != 1003 {
			t.Fatalf("stamped %v to %v", s.First, s.Last)
		}
	}
	for _, n := range d.batches {
		if n > stampBatch {
			t.Errorf("a statement of %d stamps", n)
		}
	}
}

func TestStampsAreFlushedAtStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDatabase(time.Now)
		_, cred := d.create("digest")
		c := newChain(t, d, nil)
		ctx, stop := context.WithCancel(t.Context())
		ran := make(chan error, 1)
		go func() { ran <- c.Run(ctx) }()
		synctest.Wait()
		accepted(t, c, cred).Touch(time.Now())
		stop()
		if err := <-ran; err != nil {
			t.Fatal(err)
		}
		if len(d.stamps) != 1 {
			t.Error("the last stamps are lost")
		}
	})
}
