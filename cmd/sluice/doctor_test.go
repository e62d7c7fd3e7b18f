package main

import (
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"flowstate.inc/sluice/auth"
)

func (d *doctor) find(check string) finding {
	for _, f := range d.findings {
		if f.Check == check {
			return f
		}
	}
	return finding{}
}

func TestDoctorReadsCertificates(t *testing.T) {
	for _, c := range []struct {
		left time.Duration
		want string
	}{{-time.Hour, findingFails}, {time.Hour, findingWarning}, {30 * 24 * time.Hour, ""}, {40 * time.Hour, findingWarning}} {
		cert, key := certificateUntil(t, time.Now().Add(c.left))
		d := &doctor{cfg: &config{tlsCert: cert, tlsKey: key}}
		d.certificate(t.Context())
		f := d.find("certificate")
		if c.want != "" && f.Status != c.want {
			t.Errorf("a certificate with %s left: %+v", c.left, f)
		}
		// certificateUntil's begins two days before it ends.
		if c.want == "" && (f.Status != findingFails || !strings.Contains(f.Seen, "begins")) {
			t.Errorf("a certificate that is not good yet: %+v", f)
		}
	}
}

// A clock is off only by what the way to it does not explain.
func TestDoctorReadsClocks(t *testing.T) {
	before := time.Now()
	after := before.Add(100 * time.Millisecond)
	for _, c := range []struct {
		theirs time.Time
		want   string
	}{
		{before, findingOK}, {after, findingOK}, {after.Add(400 * time.Millisecond), findingOK}, {before.Add(-time.Second), findingWarning},
		{after.Add(time.Second), findingWarning}, {before.Add(-time.Minute), findingFails}, {after.Add(time.Minute), findingFails},
	} {
		var d doctor
		d.clock("clock", before, after, c.theirs)
		if d.findings[0].Status != c.want {
			t.Errorf("%s after the question: %+v", c.theirs.Sub(before), d.findings[0])
		}
	}
}

// What an ACL refuses is named.
func TestDoctorTriesRightsInRedis(t *testing.T) {
	raw := os.Getenv("TEST_REDIS_URL")
	if raw == "" {
		if os.Getenv("SLUICE_REQUIRE_SERVICES") == "1" {
			t.Fatal("TEST_REDIS_URL is required")
		}
		t.Skip("TEST_REDIS_URL is not set")
	}
	admin, err := auth.OpenRedis(raw)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	examine := func(rules ...any) finding {
		user := fmt.Sprintf("doctor_%x", rand.Uint64())
		if err := admin.Do(t.Context(), append([]any{"ACL", "SETUSER", user, "on", ">pw"}, rules...)...).Err(); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := admin.Do(t.Context(), "ACL", "DELUSER", user).Err(); err != nil {
				t.Error(err)
			}
		}()
		own := *u
		own.User = url.UserPassword(user, "pw")
		d := &doctor{cfg: &config{redisURL: own.String()}}
		d.redis(t.Context())
		return d.find("redis rights")
	}
	// As the finding itself says.
	if f := examine("~sluice:*", "+hmget", "+hset", "+pexpire", "+pttl", "+del", "+get", "+set", "+eval", "+evalsha", "+script", "+time", "+info", "+ping", "+hello", "+client"); f.Status != findingOK {
		t.Errorf("with the rights that it asks for: %+v", f)
	}
	f := examine("~sluice:*", "+@all", "-evalsha", "-pexpire")
	if f.Status != findingFails || !strings.Contains(f.Seen, "EVALSHA") || !strings.Contains(f.Seen, "PEXPIRE") || strings.Contains(f.Seen, "HMGET") {
		t.Errorf("without two of them: %+v", f)
	}
	if f := examine("~other:*", "+@all"); f.Status != findingFails || !strings.Contains(f.Seen, "HSET") {
		t.Errorf("on other keys only: %+v", f)
	}
}
