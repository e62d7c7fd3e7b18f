package auth

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// The feed: each second, at once when woken, reported by the database's clock.
func TestFeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDatabase(time.Now)
		_, cred := d.create("digest")
		wake := make(chan struct{}, 1)
		c := newChain(t, d, func(cfg *ChainConfig) { cfg.Wake = wake })
		if s := c.Status(); s.FeedLoaded || !s.TruthUp || !s.RedisUp || s.Stale {
			t.Errorf("at start %+v", s)
		}
		ctx, stop := context.WithCancel(t.Context())
		ran := make(chan error, 1)
		go func() { ran <- c.Run(ctx) }()
		synctest.Wait()
		if s := c.Status(); !s.FeedLoaded || c.recent.len() != 1 {
			t.Errorf("after the first read %+v, %d changes", s, c.recent.len())
		}
		accepted(t, c, cred)
		<-time.After(300 * time.Millisecond)
		d.revoke(cred)
		committed := d.clock()
		accepted(t, c, cred) // nobody has said anything yet
		wake <- struct{}{}
		synctest.Wait()
		refused(t, c, cred, Revoked)
		if at, _ := d.lastReport("edge-1"); at.Before(committed) {
			t.Errorf("reported %v, the change committed at %v", at, committed)
		}
		_, second := d.create("second")
		accepted(t, c, second)
		d.revoke(second)
		committed = d.clock()
		<-time.After(1100 * time.Millisecond) // without a wake
		refused(t, c, second, Revoked)
		if at, _ := d.lastReport("edge-1"); at.Before(committed) {
			t.Errorf("reported %v, the change committed at %v", at, committed)
		}
		stop()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
}

// An edge says that it is there before it has read any change, and though it cannot: a revocation must not be called complete without it.
func TestEdgeReportsBeforeItReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDatabase(time.Now)
		d.feedDown = errDown
		var slow atomic.Bool
		slow.Store(true)
		c := newChain(t, d, func(cfg *ChainConfig) {
			changes := cfg.Truth.Changes
			cfg.Truth.Changes = func(ctx context.Context, since time.Time) ([]Change, time.Time, error) {
				if slow.Load() {
					<-ctx.Done()
				}
				return changes(ctx, since)
			}
		})
		ctx, stop := context.WithCancel(t.Context())
		ran := make(chan error, 1)
		go func() { ran <- c.Run(ctx) }()
		synctest.Wait()
		if at, ok := d.lastReport("edge-1"); !ok || !at.IsZero() {
			t.Errorf("reported %v, %v", at, ok)
		}
		slow.Store(false)
		d.set(func() { delete(d.reported, "edge-1") })
		<-time.After(3 * time.Second)
		if at, ok := d.lastReport("edge-1"); !ok || !at.IsZero() {
			t.Errorf("while its reads fail: reported %v, %v", at, ok)
		}
		d.set(func() { d.feedDown = nil })
		<-time.After(1100 * time.Millisecond)
		if at, _ := d.lastReport("edge-1"); at.IsZero() {
			t.Error("what was read is not reported")
		}
		stop()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
}
