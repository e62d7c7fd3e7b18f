package auth

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
)

func TestOpenRedis(t *testing.T) {
	f := func(url string, is func(redis.UniversalClient) bool) {
		t.Helper()
		c, err := OpenRedis(url)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		if !is(c) {
			t.Errorf("%s opened a %T", url, c)
		}
	}
	single := func(c redis.UniversalClient) bool {
		one, ok := c.(*redis.Client)
		return ok && one.Options().ContextTimeoutEnabled && one.Options().DialTimeout == redisDial
	}
	f("redis://user:secret@127.0.0.1:1/3", single)
	f("rediss://127.0.0.1:1", func(c redis.UniversalClient) bool { return single(c) && c.(*redis.Client).Options().TLSConfig != nil })
	f("redis://127.0.0.1:1?read_timeout=3s", func(c redis.UniversalClient) bool {
		return single(c) && c.(*redis.Client).Options().ReadTimeout == 3*time.Second
	})
	f("redis://127.0.0.1:1?addr=127.0.0.1:2", func(c redis.UniversalClient) bool {
		cl, ok := c.(*redis.ClusterClient)
		return ok && cl.Options().ContextTimeoutEnabled
	})
	f("redis://127.0.0.1:1?master_name=m", func(c redis.UniversalClient) bool { return c.(*redis.Client).Options().ContextTimeoutEnabled })
	for _, url := range []string{"redis://user:hunter2@[bad", "http://user:hunter2@host", "redis://user:hunter2@h/x", "redis://user:hunter2@h?no_such=1", "localhost:hunter2", "redis:hunter2@h:1", "hunter2", "redis://:123/hunter2@h:1/0", "redis://:20261129/hunter2@h:1/0", "redis://:1?hunter2@h", "redis://u:hun@ter2@h", "\x7f:hunter2"} {
		_, err := OpenRedis(url)
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v", url, err)
		}
	}
}

// Junk in Redis is a miss, no more.
func TestJunkInRedis(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *testRedis) {
		d := newDatabase(new(clockwork).now)
		_, cred := d.create("digest")
		c := newChain(t, d, r.use)
		reads(t, c)
		key := c.shared.key(cred.Key.ID)
		for _, junk := range []map[string]string{
			{"v": "x", "c": "1", "d": "{}"},
			{"v": digits(0), "c": "x", "d": "{}"},
			{"v": digits(0), "c": digits(1), "d": "{"},
			{"v": digits(0), "c": digits(1), "d": `{"hash":"AAAA"}`},
			{"d": "x"},
		} {
			c.l1.InvalidateAll()
			r.Del(t.Context(), key)
			r.HSet(t.Context(), key, junk)
			accepted(t, c, cred)
		}
		c.l1.InvalidateAll()
		r.Del(t.Context(), key)
		r.Set(t.Context(), key, "of another type", 0)
		accepted(t, c, cred)
	})
}

// A record survives Redis whole, secrets are not in it, and everything there ends by itself.
func TestRecordInRedis(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *testRedis) {
		d := newDatabase(new(clockwork).now)
		raw, cred := d.create("digest")
		d.change(cred, func(rec *Record) {
			rec.RevokedAt = time.UnixMilli(1_700_000_000_123)
			rec.Principal.Limits = Limits{RequestsPerSecond: 5, BytesPerSecond: 6}
			rec.Principal.IntendedScope = "sums up <things> & more"
			rec.Principal.AbuseDetection = false
		})
		want := d.keys[cred.Key.Prefix()]
		c := newChain(t, d, r.use)
		reads(t, c)
		got, version, _, err := c.shared.get(t.Context(), cred.Key.ID)
		if err != nil || got != (Record{}) || version != want.Version { // the feed has brought the version alone
			t.Fatalf("got %+v, %v", got, err)
		}
		c.l1.InvalidateAll()
		refused(t, c, cred, Revoked)
		eventually(t, "Redis holds the record", func() bool { return inRedis(t, c, cred).Version > 0 })
		got, _, checked, err := c.shared.get(t.Context(), cred.Key.ID)
		if err != nil || !got.RevokedAt.Equal(want.RevokedAt) || got.Principal != want.Principal || got.Hash != want.Hash {
			t.Fatalf("got %+v, %v", got, err)
		}
		if age := d.clock().Sub(time.Unix(0, checked)); age < 0 || age > 10*time.Second {
			t.Errorf("checked %v ago by the database's clock", age)
		}
		for _, k := range r.Keys(t.Context(), r.prefix+"*").Val() {
			left := r.PTTL(t.Context(), k).Val()
			if left <= time.Hour || left > c.window() {
				t.Errorf("%s ends in %v", k, left)
			}
			for _, v := range r.HGetAll(t.Context(), k).Val() {
				if strings.Contains(v, raw[17:]) {
					t.Error("a secret is in Redis")
				}
			}
		}
	})
}

// Names and labels are part of what others build on.
func TestMetrics(t *testing.T) {
	d := newDatabase(new(clockwork).now)
	c := newChain(t, d, nil)
	families, err := c.cfg.Registerer.(*prometheus.Registry).Gather()
	if err != nil {
		t.Fatal(err)
	}
	closed := map[string]bool{"tier": true, "result": true, "reason": true, "budget": true}
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "sluice_auth_") || f.GetHelp() == "" {
			t.Errorf("%s: %q", f.GetName(), f.GetHelp())
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if !closed[l.GetName()] {
					t.Errorf("%s has the label %s", f.GetName(), l.GetName())
				}
			}
		}
	}
	_, err = NewChain(c.cfg)
	if err == nil {
		t.Error("two chains on one registry")
	}
}
