package auth

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// An edge without a single request learns all the same that the database has gone, and that it is back.
func TestIdleEdgeProbesTheDatabase(t *testing.T) {
	for _, hang := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			d := newDatabase(time.Now)
			var said bytes.Buffer // written by one goroutine, which has ended when it is read
			c := newChain(t, d, func(cfg *ChainConfig) { cfg.Logger = slog.New(slog.NewTextHandler(&said, nil)) })
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			ran := make(chan error, 1)
			go func() { ran <- c.Run(ctx) }()
			<-time.After(time.Minute)
			if up := counted(t, c, "sluice_auth_tier_up_truth"); up != 1 {
				t.Fatalf("tier_up_truth is %v while the database is up", up)
			}
			if n := d.probed.Load(); n < 20 || n > 40 {
				t.Errorf("%d probes in a minute, want one in two seconds", n)
			}
			d.set(func() { d.hang, d.down = hang, errDown })
			<-time.After(8 * time.Second)
			if up := counted(t, c, "sluice_auth_tier_up_truth"); up != 0 || c.Status().TruthUp {
				t.Errorf("hang %v: tier_up_truth is %v 8 s after the database went away", hang, up)
			}
			d.set(func() { d.hang, d.down = false, nil })
			<-time.After(4 * time.Second)
			if up := counted(t, c, "sluice_auth_tier_up_truth"); up != 1 {
				t.Errorf("hang %v: tier_up_truth is %v 4 s after the database came back", hang, up)
			}
			if n := counted(t, c, "sluice_auth_lookups_total"); n != 0 {
				t.Errorf("probes count as %v look-ups", n)
			}
			stop()
			if err := <-ran; err != nil {
				t.Error(err)
			}
			if lost, back := strings.Index(said.String(), "database does not answer look-ups"), strings.Index(said.String(), "database answers look-ups of keys again"); lost < 0 || back < lost ||
				strings.Count(said.String(), "look-ups of keys") != 2 {
				t.Errorf("the log says\n%s", &said)
			}
		})
	}
}

func TestIdleEdgeProbesRedis(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *testRedis) {
		clk := new(clockwork)
		c := newChain(t, newDatabase(clk.now), r.use)
		step := func() {
			clk.advance(2 * time.Second)
			c.probe(t.Context())
		}
		step()
		if !c.Status().RedisUp {
			t.Fatal("Redis is said to be away")
		}
		r.proxy.set(cut)
		for range breakAfter {
			step()
		}
		if c.Status().RedisUp {
			t.Errorf("Redis is said to be up after %d probes that failed", breakAfter)
		}
		r.proxy.set(working)
		eventually(t, "Redis is said to be up again", func() bool { step(); return c.Status().RedisUp })
	})
}
