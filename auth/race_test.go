package auth

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
)

// The ways in which other gateways bring a revoked key back, each tried here.

func TestFillInFlightDuringRevoke(t *testing.T) {
	d := newDatabase(new(clockwork).now)
	c := newChain(t, d, nil)
	reads(t, c)
	_, cred := d.create("digest")
	held, release := d.hold()
	before := make(chan error, 1)
	go func() {
		_, err := c.Authenticate(context.Background(), cred, anywhere)
		before <- err
	}()
	<-held // Truth has read the good record and has not answered yet
	c.Apply(d.revoke(cred))
	after := make(chan error, 1)
	go func() { // starts after Apply returned, and joins the flight
		_, err := c.Authenticate(context.Background(), cred, anywhere)
		after <- err
	}()
	eventually(t, "the second joins", func() bool { return counted(t, c, "sluice_auth_flights_shared_total") == 1 })
	release()
	err := <-after
	var r *Refusal
	if !errors.As(err, &r) || r.Reason != Revoked {
		t.Fatalf("a request that started after the revocation got %v", err)
	}
	<-before // began before: either answer is right
	refused(t, c, cred, Revoked)
}

// The flight is over when the revocation comes, but its result is not handed out yet.
func TestRevokeBetweenFlightAndAnswer(t *testing.T) {
	d := newDatabase(new(clockwork).now)
	c := newChain(t, d, nil)
	_, cred := d.create("digest")
	k := flightKey{id: cred.Key.ID, hash: cred.Key.Hash}
	f, leader, _ := c.flights.join(k)
	if !leader {
		t.Fatal("there was a flight")
	}
	got := make(chan error, 1)
	go func() {
		_, err := c.Authenticate(context.Background(), cred, anywhere)
		got <- err
	}()
	eventually(t, "the request joins", func() bool { return counted(t, c, "sluice_auth_flights_shared_total") == 1 })
	e, _, err := c.fill(t.Context(), k, anywhere)
	if err != nil {
		t.Fatal(err)
	}
	c.Apply(d.revoke(cred))
	c.flights.mu.Lock()
	delete(c.flights.m, k)
	c.flights.mu.Unlock()
	f.entry = e
	close(f.done)
	var r *Refusal
	if err := <-got; !errors.As(err, &r) || r.Reason != Revoked {
		t.Fatalf("got %v", err)
	}
}

func TestRefillAfterDelete(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *testRedis) {
		d := newDatabase(new(clockwork).now)
		_, cred := d.create("digest")
		old := d.keys[cred.Key.Prefix()]
		c := newChain(t, d, r.use)
		reads(t, c)
		accepted(t, c, cred)
		eventually(t, "Redis holds the record", func() bool { return inRedis(t, c, cred).Version == old.Version })
		c.Apply(d.revoke(cred))
		// The entry is evicted, Redis still holds the old record, and the database's answer was read before the revoke.
		c.l1.InvalidateAll()
		d.set(func() {
			revoked := d.keys[old.Prefix]
			d.keys[old.Prefix] = old
			gate := make(chan struct{})
			d.gate, d.held = gate, make(chan struct{})
			held := d.held
			go func() {
				<-held
				d.set(func() { d.keys[old.Prefix] = revoked })
				close(gate)
			}()
		})
		refused(t, c, cred, Revoked)
		propagates(t, c)
		eventually(t, "Redis holds the revocation", func() bool { return !inRedis(t, c, cred).RevokedAt.IsZero() })
		// A writer that comes late with the old record does not get through either.
		err := c.shared.put(t.Context(), old, d.clock().Add(time.Hour).UnixNano())
		if err != nil {
			t.Fatal(err)
		}
		if inRedis(t, c, cred).RevokedAt.IsZero() {
			t.Fatal("an older record replaced the revocation in Redis")
		}
	})
}

func TestEditRacingRevoke(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *testRedis) {
		d := newDatabase(new(clockwork).now)
		_, cred := d.create("digest")
		c := newChain(t, d, r.use)
		reads(t, c)
		edit := d.change(cred, func(r *Record) { r.Principal.Name = "renamed" })
		edited := d.keys[cred.Key.Prefix()]
		revoke := d.revoke(cred)
		revoked := d.keys[cred.Key.Prefix()]
		// The two arrive in the wrong order, everywhere.
		c.Apply(revoke)
		c.Apply(edit)
		id := cred.Key.ID
		c.insert(id, c.newEntry(revoked, nil, c.clock()))
		c.insert(id, c.newEntry(edited, nil, c.clock()))
		for _, rec := range []Record{revoked, edited} {
			err := c.shared.put(t.Context(), rec, d.clock().UnixNano())
			if err != nil {
				t.Fatal(err)
			}
		}
		refused(t, c, cred, Revoked)
		c.l1.InvalidateAll()
		refused(t, c, cred, Revoked)
		if v := inRedis(t, c, cred).Version; v != revoke.Version {
			t.Fatalf("Redis holds version %d, want %d", v, revoke.Version)
		}
	})
}

func TestRedisRestoredFromOldSnapshot(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *testRedis) {
		d := newDatabase(new(clockwork).now)
		_, cred := d.create("digest")
		a := newChain(t, d, r.use)
		reads(t, a)
		accepted(t, a, cred)
		eventually(t, "Redis holds the record", func() bool { return inRedis(t, a, cred).Version != 0 })
		key, feed := a.shared.key(cred.Key.ID), a.shared.feedKey
		snapshot := map[string]map[string]string{}
		for _, k := range []string{key, feed} {
			snapshot[k] = r.HGetAll(t.Context(), k).Val()
		}

		d.revoke(cred) // by another process
		reads(t, a)
		refused(t, a, cred, Revoked)
		if inRedis(t, a, cred).RevokedAt.IsZero() {
			t.Fatal("the first edge to read a revocation did not bring it to Redis")
		}
		for k, fields := range snapshot {
			r.Del(t.Context(), k)
			r.HSet(t.Context(), k, fields)
		}
		// Neither the edge that was there, with L1 evicted, nor one that starts now takes the old record.
		a.l1.InvalidateAll()
		refused(t, a, cred, Revoked)
		r.Del(t.Context(), key)
		r.HSet(t.Context(), key, snapshot[key])
		b := newChain(t, d, r.use)
		reads(t, b)
		refused(t, b, cred, Revoked)

		// The loss is noticed, and what is recent is written again: an edge that starts while the database is away knows.
		r.Del(t.Context(), key, feed)
		r.HSet(t.Context(), key, snapshot[key])
		r.HSet(t.Context(), feed, snapshot[feed])
		reads(t, a) // notices
		reads(t, a) // repairs
		d.set(func() { d.down = errDown })
		cold := newChain(t, d, r.use)
		_, err := cold.Authenticate(t.Context(), cred, anywhere)
		if !errors.Is(err, ErrUnavailable) && !errors.Is(err, ErrUnknownKey) {
			t.Fatalf("an edge that starts while the database is away got %v", err)
		}
	})
}

func TestBusyKeyFarPastItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDatabase(time.Now)
		_, cred := d.create("digest")
		c := newChain(t, d, nil)
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		ran := make(chan error, 1)
		go func() { ran <- c.Run(ctx) }()
		synctest.Wait()
		// Three hours of a busy key, well beyond the hour of an entry.
		for range 3 * 3600 * 5 {
			accepted(t, c, cred)
			<-time.After(200 * time.Millisecond)
		}
		if n := d.asked.Load(); n < 3 || n > 5 {
			t.Errorf("the database was asked %d times in three hours", n)
		}
		// The push is cut: no more changes come, but the database answers for keys.
		d.set(func() { d.feedDown = errDown })
		for range 300 {
			accepted(t, c, cred)
			<-time.After(100 * time.Millisecond)
		}
		asked := d.asked.Load()
		if asked > 9 {
			t.Errorf("with the feed cut for 30 s the database was asked %d times", asked)
		}
		d.revoke(cred)
		begun := time.Now()
		for {
			_, err := c.Authenticate(ctx, cred, anywhere)
			if errors.Is(err, ErrUnknownKey) {
				break
			}
			if took := time.Since(begun); took > 10*time.Second {
				t.Fatalf("still accepted %v after the revocation", took)
			}
			<-time.After(10 * time.Millisecond)
		}
		t.Logf("refused %v after the revocation, the push cut", time.Since(begun))
		stop()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
}

// With the push cut just before the revocation, the entry is fresh by the feed, not by its own check.
func TestPushCutJustBeforeRevoke(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDatabase(time.Now)
		_, cred := d.create("digest")
		c := newChain(t, d, nil)
		reads(t, c)
		accepted(t, c, cred)
		for range 100 {
			reads(t, c)
			<-time.After(time.Second)
		}
		d.set(func() { d.feedDown = errDown })
		d.revoke(cred)
		begun := time.Now()
		for {
			_, err := c.Authenticate(t.Context(), cred, anywhere)
			if errors.Is(err, ErrUnknownKey) {
				break
			}
			if time.Since(begun) > 10*time.Second {
				t.Fatal("still accepted after 10 s")
			}
			<-time.After(10 * time.Millisecond)
		}
	})
}

func TestRevokeWhileRedisIsDown(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *testRedis) {
		clk := new(clockwork)
		d := newDatabase(clk.now)
		_, cred := d.create("digest")
		a, b := newChain(t, d, r.use), newChain(t, d, r.use)
		for _, c := range []*Chain{a, b} {
			reads(t, c)
			accepted(t, c, cred)
		}
		eventually(t, "Redis holds the record", func() bool { return inRedis(t, a, cred).Version != 0 })
		r.proxy.set(cut)
		a.Apply(d.revoke(cred))
		refused(t, a, cred, Revoked)
		if a.propagate(t.Context()) == nil {
			t.Fatal("Redis took a change while it was down")
		}
		err := b.readFeed(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		r.proxy.set(working) // and still holds the old record
		clk.advance(2 * time.Second)
		b.l1.InvalidateAll()
		refused(t, b, cred, Revoked)
		eventually(t, "the change that could not be written reaches Redis", func() bool {
			return a.propagate(t.Context()) == nil && !inRedis(t, a, cred).RevokedAt.IsZero()
		})
	})
}

func TestChangesCommitOutOfOrder(t *testing.T) {
	clk := new(clockwork)
	d := newDatabase(clk.now)
	_, cred := d.create("digest")
	c := newChain(t, d, nil)
	reads(t, c)
	accepted(t, c, cred)
	// The revocation takes its time stamp, and commits 50 s and many reads later.
	late := d.clock()
	for range 50 {
		clk.advance(time.Second)
		d.create("other")
		reads(t, c)
		accepted(t, c, cred)
	}
	d.revoke(cred)
	d.set(func() { d.changes[len(d.changes)-1].At = late })
	clk.advance(time.Second)
	reads(t, c)
	refused(t, c, cred, Revoked)
}

// A writer that was paused commits its change when every read has gone past its time: the second reads find it.
func TestChangeCommitsFarTooLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDatabase(time.Now)
		_, cred := d.create("digest")
		c := newChain(t, d, nil)
		ctx, stop := context.WithCancel(t.Context())
		ran := make(chan error, 1)
		go func() { ran <- c.Run(ctx) }()
		synctest.Wait()
		accepted(t, c, cred)
		late := d.clock()
		<-time.After(10*time.Minute + time.Second/2)
		d.revoke(cred)
		d.set(func() { d.changes[len(d.changes)-1].At = late })
		<-time.After(time.Minute)
		synctest.Wait()
		refused(t, c, cred, Revoked)
		stop()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
}

// Redis's word up to when it holds all changes is older than the record it is taken for, whatever happens between the two reads.
func TestMarkIsReadBeforeTheRecord(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *testRedis) {
		clk := new(clockwork)
		d := newDatabase(clk.now)
		_, cred := d.create("digest")
		c := newChain(t, d, r.use)
		reads(t, c)
		accepted(t, c, cred)
		eventually(t, "Redis holds the record", func() bool { return inRedis(t, c, cred).Version > 0 })
		reads(t, c)
		mark := c.shared.pending.upTo.Load()
		r.AddHook(afterCommand(func() { c.shared.pending.upTo.Store(mark + int64(time.Minute)) }))
		clk.advance(5 * time.Minute)
		e := c.better(t.Context(), cred.Key.ID, nil)
		if e == nil || e.vouched > c.chainTime(mark) {
			t.Errorf("vouched for by a mark that is newer than the record: %+v", e)
		}
	})
}

// afterCommand is a hook of go-redis that runs after each command.
type afterCommand func()

func (h afterCommand) DialHook(next redis.DialHook) redis.DialHook { return next }
func (h afterCommand) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		defer h()
		return next(ctx, cmd)
	}
}
func (h afterCommand) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// The edge that brings a revocation into Redis first and cannot fetch its record tries again: without the record an edge that is cut off from
// the database could not tell the revocation from an edit.
func TestRecordOfARevocationIsFetchedLater(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *testRedis) {
		d := newDatabase(new(clockwork).now)
		_, cred := d.create("digest")
		c := newChain(t, d, r.use)
		reads(t, c)
		c.Apply(d.revoke(cred))
		d.set(func() { d.down = errDown })
		propagates(t, c)
		d.set(func() { d.down = nil })
		if rec := inRedis(t, c, cred); rec.Version != 0 {
			t.Fatalf("fetched from a database that is down: %+v", rec)
		}
		propagates(t, c)
		if rec := inRedis(t, c, cred); rec.RevokedAt.IsZero() {
			t.Errorf("Redis holds %+v", rec)
		}
		if n := c.shared.pending.len(); n != 0 {
			t.Errorf("%d changes are pending", n)
		}
	})
}

// A change that is older than everything the edge remembers must not matter, and forgetting it must not either.
func TestRecentOutlivesEveryRecord(t *testing.T) {
	clk := new(clockwork)
	d := newDatabase(clk.now)
	_, cred := d.create("digest")
	c := newChain(t, d, nil)
	reads(t, c)
	accepted(t, c, cred)
	old, _ := c.l1.GetIfPresent(cred.Key.ID)
	c.Apply(d.revoke(cred))
	for range 100 {
		clk.advance(time.Minute)
		reads(t, c)
		c.recent.prune(c.feed.Load().dbNow.Add(-c.window() - 2*c.cfg.Bounds.Overlap))
		c.l1.Set(cred.Key.ID, old) // as if it had survived all the time
		d.set(func() { d.down = errDown })
		_, err := c.Authenticate(t.Context(), cred, anywhere)
		if err == nil {
			t.Fatalf("accepted %d changes known", c.recent.len())
		}
		d.set(func() { d.down = nil })
		c.truthUp.success(c.clock())
	}
	if n := c.recent.len(); n != 0 {
		t.Errorf("%d changes are remembered past the window", n)
	}
}

// inRedis reads the record as another edge would.
func inRedis(t *testing.T, c *Chain, cred Credentials) Record {
	t.Helper()
	rec, _, _, err := c.shared.get(context.Background(), cred.Key.ID)
	if err != nil {
		return Record{}
	}
	return rec
}
