//go:build !race

package auth

import (
	"testing"
	"time"
)

// What every request pays for its key.
func TestHitAllocatesNothing(t *testing.T) {
	d := newDatabase(time.Now)
	raw, _ := d.create("digest")
	c := newChain(t, d, func(cfg *ChainConfig) {
		cfg.DefaultLimits = Limits{RequestsPerSecond: 1 << 30, BytesPerSecond: 1 << 40}
	})
	reads(t, c)
	key, now := []byte(raw), time.Now()
	ctx := t.Context()
	request := func() {
		i, err := c.AuthenticateHeaders(ctx, key, nil, anywhere)
		if err != nil || !i.Allow().OK {
			t.Fatal("refused")
		}
		i.Spend(1000)
		i.Touch(now)
	}
	request()
	if n := testing.AllocsPerRun(1000, request); n != 0 {
		t.Errorf("%v allocations", n)
	}
	bearer := append([]byte("Bearer "), raw...)
	if n := testing.AllocsPerRun(1000, func() { _, _ = FromHeaders(nil, bearer) }); n != 0 {
		t.Errorf("%v allocations to read a header", n)
	}
}

func BenchmarkAuthenticate(b *testing.B) {
	d := newDatabase(time.Now)
	raw, cred := d.create("digest")
	c := newChain(&testing.T{}, d, nil)
	_, _ = c.Authenticate(b.Context(), cred, anywhere)
	key := []byte(raw)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			_, err := c.AuthenticateHeaders(b.Context(), key, nil, anywhere)
			if err != nil {
				b.Fatal(err)
			}
		}
	})
}
