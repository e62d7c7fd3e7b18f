package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"flowstate.inc/sluice/auth"
)

// TestAway takes PostgreSQL, Redis or both from two running edges, by cutting or freezing their connections, starts a third meanwhile, and holds what
// callers get to the table of deploy/docs/outages.md: before --auth-max-stale is over, after it, and when what was away is back.
func TestAway(t *testing.T) {
	table := readOutages(t)
	for _, o := range []struct{ postgres, redis string }{{"up", "down"}, {"down", "up"}, {"down", "down"}, {"slow", "up"}, {"slow", "slow"}, {"up", "slow"}} {
		t.Run("PostgreSQL "+o.postgres+", Redis "+o.redis, func(t *testing.T) {
			if testing.Short() && (o.postgres == "slow" || o.redis == "slow") {
				t.Skip("slow ones are left out of the short form")
			}
			t.Parallel()
			away(t, o.postgres, o.redis, table[[3]string{o.postgres, o.redis, "15 min at most"}], table[[3]string{o.postgres, o.redis, "longer"}])
		})
	}
}

// An outageRow is what callers get: served, 401 or 503.
type outageRow struct{ known, elsewhere, cold, unknown, revoked, coldRevoked string }

func readOutages(t *testing.T) map[[3]string]outageRow {
	t.Helper()
	b, err := os.ReadFile("../../deploy/docs/outages.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[[3]string]outageRow{}
	for line := range strings.Lines(string(b)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(cells) != 9 {
			continue
		}
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		rows[[3]string(cells[:3])] = outageRow{cells[3], cells[4], cells[5], cells[6], cells[7], cells[8]}
	}
	return rows
}

func away(t *testing.T, postgres, redis string, before, after outageRow) {
	const maxStale = 15 * time.Second
	f := newFleet(t)
	direct := f.redis
	pg, pgURL := newGate(t, f.url)
	cache, redisURL := newGate(t, f.redis)
	start := func(roles string) *edge {
		return f.start(pgURL, "--roles="+roles, "--redis-url="+redisURL, "--auth-max-stale="+maxStale.String())
	}
	here, neighbour := start("edge,admin"), start("edge")
	known, elsewhere := callerOf(f, "known"), callerOf(f, "elsewhere")
	revoked, later := callerOf(f, "revoked"), callerOf(f, "later")
	raw, _ := auth.MintKey(auth.KindServiceAccount)
	unknown := caller{key: raw}
	expect := func(what string, e *edge, c caller, want string) {
		t.Helper()
		a := e.answer(t, c.key)
		if a.said() != want || a.code == http.StatusServiceUnavailable && a.retryAfter == "" {
			t.Errorf("%s: %d with Retry-After %q, want %s", what, a.code, a.retryAfter, want)
		}
		if a.took >= time.Second {
			t.Errorf("%s: answered after %v", what, a.took)
		}
	}
	// What an edge has to ask for may take another try on a busy machine, where a question misses its 40 ms of Redis, or its time for PostgreSQL: a 503, as the
	// sender is told. Nothing else may come before the answer that is wanted, unless it is what was right before, and none takes longer than a second.
	tries := func(deadline time.Time, what string, e *edge, c caller, want string, or ...string) {
		t.Helper()
		var a answer
		if !until(time.Until(deadline), nil, func() bool {
			if a = e.answer(t, c.key); a.took >= time.Second {
				t.Errorf("%s: answered after %v", what, a.took)
			}
			if said := a.said(); said != want && said != "503" && !slices.Contains(or, said) {
				t.Errorf("%s: %d, want %s", what, a.code, want)
			}
			return a.said() == want
		}) {
			t.Errorf("%s: %d with Retry-After %q to the end, want %s", what, a.code, a.retryAfter, want)
		}
	}
	soon := func(what string, e *edge, c caller, want string) {
		t.Helper()
		tries(time.Now().Add(5*time.Second), what, e, c, want)
	}
	soon("known", here, known, "served")
	soon("later", here, later, "served")
	soon("elsewhere", neighbour, elsewhere, "served")
	soon("to be revoked", here, revoked, "served")
	f.remove(here, revoked.account)
	expect("revoked", here, revoked, "401")
	client, err := auth.OpenRedis(direct)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	held := func(c caller, what string) func() bool {
		return func() bool {
			return strings.Contains(client.HGet(context.Background(), "sluice:key:"+c.prefix, "d").Val(), what)
		}
	}
	for _, is := range []func() bool{held(known, "hash"), held(elsewhere, "hash"), held(revoked, "revoked_at")} {
		if !until(20*time.Second, nil, is) {
			t.Fatal("Redis does not hold the records")
		}
	}

	gone := time.Now()
	pg.set(postgres)
	cache.set(redis)
	expect("revoked", here, revoked, before.revoked)
	expect("known", here, known, before.known)
	soon("known to Redis", here, elsewhere, before.elsewhere)
	soon("unknown", here, unknown, before.unknown)
	cold := start("edge")
	soon("known, edge just started", cold, known, before.cold)
	soon("revoked, edge just started", cold, revoked, before.coldRevoked)
	switch postgres {
	case "up": // a revocation holds on all edges without Redis
		d, _, _ := f.remove(here, later.account)
		if d.Revocation.Edges != 3 || d.Revocation.Confirmed != 3 {
			t.Errorf("revoked without Redis: %+v", d)
		}
		expect("revoked meanwhile", here, later, "401")
		soon("revoked meanwhile, neighbour", neighbour, later, "401")
	case "down":
		if code := f.ask(here, http.MethodDelete, "/api/v1/service-accounts/"+later.account, nil); code != http.StatusServiceUnavailable {
			t.Errorf("DELETE is answered %d while PostgreSQL is down", code)
		}
	}

	if after.known == "503" {
		// The bound counts from the last reading of the changes, up to a second before; then up to a grace of one more is over.
		for a := here.answer(t, known.key); a.said() == before.known; a = here.answer(t, known.key) {
			if a.took >= time.Second {
				t.Errorf("answered after %v", a.took)
			}
			if time.Since(gone) > maxStale+5*time.Second {
				t.Fatal("the known key outlives --auth-max-stale")
			}
			<-time.After(100 * time.Millisecond)
		}
		if lasted := time.Since(gone); lasted < maxStale-3*time.Second || lasted > maxStale+2*time.Second {
			t.Errorf("the known key was served for %v, want about %v", lasted, maxStale)
		}
	} else {
		<-time.After(time.Until(gone.Add(maxStale + time.Second))) // that the bound is over changes nothing
	}
	expect("known, later", here, known, after.known)
	// What Redis holds is as good as the latest reading of any edge, which may be a second later than this one's.
	tries(gone.Add(maxStale+2*time.Second), "known to Redis, later", here, elsewhere, after.elsewhere, before.elsewhere)
	tries(gone.Add(maxStale+2*time.Second), "known, edge just started, later", cold, known, after.cold, before.cold)
	soon("unknown, later", here, unknown, after.unknown)
	expect("revoked, later", here, revoked, after.revoked)
	soon("revoked, edge just started, later", cold, revoked, after.coldRevoked)

	pg.set("up")
	cache.set("up")
	back := time.Now().Add(3 * time.Second) // the breakers try once a second, and an answer takes less than one
	for _, e := range []*edge{here, neighbour, cold} {
		tries(back, "known, back", e, known, "served")
		tries(back, "known to Redis, back", e, elsewhere, "served")
		tries(back, "revoked, back", e, revoked, "401")
	}
	tries(back, "unknown, back", here, unknown, "401")
}

// A caller is who sends with a key.
type caller struct{ account, key, prefix string }

func callerOf(f *fleet, name string) caller {
	a, key := f.account(name, auth.Limits{})
	return caller{a.ID, key, a.KeyPrefix}
}

type answer struct {
	code       int
	retryAfter string
	took       time.Duration
}

// said is the answer in the words of the table.
func (a answer) said() string {
	switch a.code {
	case http.StatusOK:
		return "served"
	case http.StatusUnauthorized:
		return "401"
	case http.StatusServiceUnavailable:
		return "503"
	}
	return http.StatusText(a.code)
}

// answer sends a signal that needs no Kafka.
func (e *edge) answer(t *testing.T, key string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, e.edge+"/v1/signals", strings.NewReader(filteredSignal))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Flowstate-Key", key)
	began := time.Now()
	res, err := e.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, res.Body)
	_ = res.Body.Close()
	return answer{res.StatusCode, res.Header.Get("Retry-After"), time.Since(began)}
}

// A gate stands before a server: up, down (connections are cut and refused) or slow (they stay, and nothing passes).
type gate struct {
	ln     net.Listener
	target string

	mu      sync.Mutex // guards the following
	state   string
	changed chan struct{} // closed at the next change
	conns   map[net.Conn]bool
}

// newGate returns a gate before the server of a URL, and the URL through it.
func newGate(t *testing.T, serverURL string) (*gate, string) {
	t.Helper()
	u, err := url.Parse(serverURL)
	if err != nil {
		t.Fatal("the server's URL is malformed")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{ln: ln, target: u.Host, state: "up", changed: make(chan struct{}), conns: map[net.Conn]bool{}}
	go g.serve()
	t.Cleanup(func() {
		_ = ln.Close()
		g.set("down")
	})
	u.Host = ln.Addr().String()
	return g, u.String()
}

func (g *gate) set(state string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.state = state
	close(g.changed)
	g.changed = make(chan struct{})
	if state == "down" {
		for c := range g.conns {
			_ = c.Close()
		}
		clear(g.conns)
	}
}

// open waits until something may pass; false: nothing will.
func (g *gate) open() bool {
	for {
		g.mu.Lock()
		state, changed := g.state, g.changed
		g.mu.Unlock()
		if state != "slow" {
			return state == "up"
		}
		<-changed
	}
}

func (g *gate) serve() {
	for {
		c, err := g.ln.Accept()
		if err != nil {
			return
		}
		go g.pass(c)
	}
}

func (g *gate) pass(c net.Conn) {
	defer c.Close()
	if !g.keep(c) || !g.open() {
		return
	}
	up, err := net.Dial("tcp", g.target)
	if err != nil {
		return
	}
	defer up.Close()
	if !g.keep(up) {
		return
	}
	var both sync.WaitGroup
	pipe := func(dst, src net.Conn) {
		defer dst.Close()
		b := make([]byte, 16<<10)
		for {
			n, err := src.Read(b)
			if n > 0 && g.open() {
				_, _ = dst.Write(b[:n])
			}
			if err != nil {
				return
			}
		}
	}
	both.Go(func() { pipe(up, c) })
	both.Go(func() { pipe(c, up) })
	both.Wait()
}

// keep has the connection cut when the gate goes down.
func (g *gate) keep(c net.Conn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.state == "down" {
		return false
	}
	g.conns[c] = true
	return true
}
