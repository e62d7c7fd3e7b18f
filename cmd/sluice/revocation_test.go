package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"flowstate.inc/sluice/auth"
)

// A probe sends one key to one edge, again and again, and remembers when the last accepted request began.
type probe struct {
	edge     *edge
	accepted atomic.Int64 // how many were
	last     time.Time    // when the last of them began; read after done
	refused  chan struct{}
	done     chan struct{}
	stop     chan struct{}
	odd      string // an answer that should not have been
}

const probePace = 10 * time.Millisecond

func (f *fleet) probe(e *edge, key string) *probe {
	p := &probe{edge: e, refused: make(chan struct{}), done: make(chan struct{}), stop: make(chan struct{})}
	go func() {
		defer close(p.done)
		tick := time.NewTicker(probePace)
		defer tick.Stop()
		refused := 0
		for {
			began := time.Now()
			code, err := e.send(context.Background(), key, filteredSignal)
			switch {
			case err != nil:
				p.odd = err.Error()
			case code == http.StatusOK:
				p.last = began
				p.accepted.Add(1)
				if refused > 0 {
					p.odd = fmt.Sprintf("accepted again after %d refusals", refused)
				}
			case code == http.StatusUnauthorized:
				if refused++; refused == 1 {
					close(p.refused)
				}
			default:
				p.odd = fmt.Sprint(code)
			}
			select {
			case <-p.stop:
				return
			case <-tick.C:
			}
		}
	}()
	return p
}

func (p *probe) end(t *testing.T) {
	t.Helper()
	close(p.stop)
	<-p.done
	if p.odd != "" {
		t.Errorf("a probe got: %s", p.odd)
	}
}

// await waits until every probe was accepted a few times: the key is busy in the L1 of each edge.
func await(t *testing.T, probes []*probe) {
	t.Helper()
	ok := until(time.Minute, nil, func() bool {
		return !slices.ContainsFunc(probes, func(p *probe) bool { return p.accepted.Load() < 3 })
	})
	if !ok {
		t.Fatal("the keys are not accepted")
	}
}

// awaitEdges waits until every edge has reported and is where the feed is.
func (f *fleet) awaitEdges(want int) {
	f.t.Helper()
	ok := until(time.Minute, nil, func() bool {
		_, at, err := f.store.Changes(f.t.Context(), time.Now().Add(time.Hour))
		if err != nil {
			f.t.Fatal(err)
		}
		c, err := f.store.ConfirmRevocation(f.t.Context(), at.Add(-3*time.Second), time.Millisecond)
		return err == nil && c.Edges == want && c.Confirmed == want
	})
	if !ok {
		f.t.Fatalf("there are not %d edges that keep up", want)
	}
}

func percentile(sorted []time.Duration, p float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, int(p*float64(len(sorted))))]
}

// figure logs what was measured, and appends it to the file that SLUICE_FIGURES names, since go test shows no log of what passes.
func figure(t *testing.T, format string, args ...any) {
	t.Helper()
	t.Logf(format, args...)
	name := os.Getenv("SLUICE_FIGURES")
	if name == "" {
		return
	}
	out, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if _, err := fmt.Fprintf(out, t.Name()+": "+format+"\n", args...); err != nil {
		t.Fatal(err)
	}
}

// TestRevocationAcrossEdges deletes 300 busy accounts, ten at a time, through one of three edges under load: the process that
// served the delete accepts nothing that starts after its answer, the others nothing that starts a second later at p99.
func TestRevocationAcrossEdges(t *testing.T) {
	const batch = 10
	batches := 30
	if testing.Short() {
		batches = 3
	}
	f := newFleet(t)
	first := f.start("", "--roles=edge,admin")
	f.start("", "--roles=edge")
	f.start("", "--roles=edge")
	f.awaitEdges(3)
	beside := f.load(f.edges, 2, 20*time.Millisecond)
	var took, lags, waits []time.Duration // of DELETE's answers; after DELETE was sent; after it was answered
	late, confirmed := 0, 0
	for b := range batches {
		var all []*probe
		var mu sync.Mutex
		var wg sync.WaitGroup
		type target struct {
			id     string
			probes []*probe
		}
		var targets []target
		for n := range batch {
			a, key := f.account(fmt.Sprintf("probe-%d-%d", b, n), auth.Limits{})
			tg := target{id: a.ID}
			for _, e := range f.edges {
				tg.probes = append(tg.probes, f.probe(e, key))
			}
			targets = append(targets, tg)
			all = append(all, tg.probes...)
		}
		await(t, all)
		for _, tg := range targets {
			wg.Go(func() {
				d, asked, answered := f.remove(first, tg.id)
				if !until(15*time.Second, nil, func() bool {
					for _, p := range tg.probes {
						select {
						case <-p.refused:
						default:
							return false
						}
					}
					return true
				}) {
					t.Errorf("%s is still accepted", tg.id)
				}
				<-time.After(5 * probePace) // some more, which must be refused
				mu.Lock()
				defer mu.Unlock()
				took = append(took, answered.Sub(asked))
				if d.Revocation.Edges == 3 && d.Revocation.Confirmed == 3 {
					confirmed++
				}
				for _, p := range tg.probes {
					p.end(t)
					if p.edge == first {
						if p.last.After(answered) {
							late++
						}
						continue
					}
					lags = append(lags, p.last.Sub(asked))
					waits = append(waits, max(0, p.last.Sub(answered)))
					if d.Revocation.Confirmed == 3 && p.last.After(answered) {
						t.Errorf("DELETE said that all edges refuse, and one accepted a request that began %v later", p.last.Sub(answered))
					}
				}
			})
		}
		wg.Wait()
	}
	beside.stop(t)
	for _, s := range [][]time.Duration{took, lags, waits} {
		slices.Sort(s)
	}
	figure(t, "%d revocations, %d at a time, 3 edges: DELETE answered in p50 %v, p99 %v, max %v; %d of them confirmed by 3 of 3 edges",
		len(took), batch, percentile(took, .5), percentile(took, .99), took[len(took)-1], confirmed)
	figure(t, "the edge that served DELETE accepted %d requests that began after its answer", late)
	figure(t, "the others' last accepted request began, after DELETE was sent: p50 %v, p99 %v, max %v; after it was answered: p99 %v, max %v",
		percentile(lags, .5), percentile(lags, .99), lags[len(lags)-1], percentile(waits, .99), waits[len(waits)-1])
	if late > 0 {
		t.Error("the edge that served DELETE accepted a request after it")
	}
	if p99 := percentile(lags, .99); p99 > time.Second {
		t.Errorf("the other edges refuse within %v at p99, not a second", p99)
	}
}

// TestRevocationWithoutThePush is the same while two of three edges can read no change: NOTIFY only wakes the reading, so denying the
// reading cuts both. They still reach PostgreSQL, so a busy key is refused within 10 s, and DELETE says who has not confirmed, and until when.
// Within one cut several keys are deleted, each at another time since the last reading and since its own last look-up.
func TestRevocationWithoutThePush(t *testing.T) {
	t.Parallel()
	const perCut = 5
	cuts := 2
	if testing.Short() {
		cuts = 1
	}
	f := newFleet(t)
	f.exec("CREATE ROLE " + f.name + " LOGIN")
	f.exec("GRANT ALL ON ALL TABLES IN SCHEMA public TO " + f.name)
	u, err := url.Parse(f.url)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.User(f.name)
	first := f.start("", "--roles=edge,admin")
	f.start(u.String(), "--roles=edge")
	f.start(u.String(), "--roles=edge")
	beside := f.load(f.edges, 2, 20*time.Millisecond)
	var lags []time.Duration
	for cut := range cuts {
		f.awaitEdges(3)
		rounds := make([]*cutRound, perCut)
		for i := range rounds {
			a, key := f.account(fmt.Sprintf("cut-%d-%d", cut, i), auth.Limits{})
			rounds[i] = &cutRound{name: a.Name, account: a.ID}
			for _, e := range f.edges {
				rounds[i].probes = append(rounds[i].probes, f.probe(e, key))
			}
			await(t, rounds[i].probes)
		}
		f.exec("REVOKE SELECT ON key_changes FROM " + f.name)
		<-time.After(time.Duration(200+130*cut) * time.Millisecond) // the last reading may be under way
		var wg sync.WaitGroup
		for i, r := range rounds {
			wg.Go(func() {
				<-time.After(time.Duration(i) * 730 * time.Millisecond)
				r.revoke(f, first)
			})
		}
		wg.Wait()
		for _, r := range rounds {
			lags = append(lags, r.lags...)
		}
		f.exec("GRANT SELECT ON key_changes TO " + f.name)
	}
	beside.stop(t)
	slices.Sort(lags)
	figure(t, "%d rounds with the push cut, 2 edges each: the last accepted request began p50 %v, max %v after DELETE was sent",
		cuts*perCut, percentile(lags, .5), lags[len(lags)-1])
	if worst := lags[len(lags)-1]; worst > 10*time.Second {
		t.Errorf("refused after %v, not within 10 s", worst)
	}
}

// A cutRound is one key that is deleted while two of three edges do not learn of it.
type cutRound struct {
	name, account string
	probes        []*probe
	lags          []time.Duration // of the two, after DELETE was sent
}

func (r *cutRound) revoke(f *fleet, first *edge) {
	t := f.t
	d, asked, answered := f.remove(first, r.account)
	if v := d.Revocation; v.Edges != 3 || v.Confirmed != 1 || len(v.Pending) != 2 {
		t.Errorf("%s: DELETE says %+v; one of three edges had learnt of it", r.name, v)
	}
	for _, p := range r.probes {
		select {
		case <-p.refused:
		case <-time.After(20 * time.Second):
			t.Errorf("%s: an edge still accepts the key", r.name)
		}
		<-time.After(5 * probePace)
		p.end(t)
		if p.edge == first {
			if p.last.After(answered) {
				t.Errorf("%s: the edge that served DELETE accepted a request after it", r.name)
			}
			continue
		}
		r.lags = append(r.lags, p.last.Sub(asked))
		named := false
		for _, pending := range d.Revocation.Pending {
			if !strings.HasPrefix(pending.Edge, p.edge.id(t)+"-") {
				continue
			}
			named = true
			if p.last.After(pending.Until) {
				t.Errorf("%s: DELETE said until %v, and a request of %v was accepted", r.name, pending.Until, p.last)
			}
		}
		if !named {
			t.Errorf("%s: DELETE does not name %s among those that have not confirmed", r.name, p.edge.id(t))
		}
	}
}

// TestRevocationWithAFrozenEdge stops one of three edges by SIGSTOP: DELETE names it, and does not count it.
func TestRevocationWithAFrozenEdge(t *testing.T) {
	f := newFleet(t)
	first := f.start("", "--roles=edge,admin")
	f.start("", "--roles=edge")
	frozen := f.start("", "--roles=edge")
	f.awaitEdges(3)
	beside := f.load(f.edges[:2], 2, 20*time.Millisecond)
	a, key := f.account("frozen", auth.Limits{})
	for _, e := range f.edges {
		if code, err := e.send(t.Context(), key, filteredSignal); code != http.StatusOK {
			t.Fatal(code, err)
		}
	}
	if err := frozen.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	d, asked, answered := f.remove(first, a.ID)
	r := d.Revocation
	figure(t, "one of three edges frozen: DELETE answered after %v with %+v", answered.Sub(asked), r)
	if r.Edges != 3 || r.Confirmed != 2 || len(r.Pending) != 1 || !strings.HasPrefix(r.Pending[0].Edge, frozen.id(t)+"-") {
		t.Errorf("DELETE says %+v, want 2 of 3 and %s", r, frozen.id(t))
	} else if left := r.Pending[0].Until.Sub(answered); left <= 0 || left > 10*time.Second {
		t.Errorf("the frozen edge may accept for %v", left)
	}
	for _, e := range f.edges[:2] {
		if code, err := e.send(t.Context(), key, filteredSignal); code != http.StatusUnauthorized {
			t.Errorf("a confirmed edge answers %d, %v", code, err)
		}
	}
	if err := frozen.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	thawed := time.Now()
	if !until(10*time.Second, nil, func() bool {
		code, err := frozen.send(t.Context(), key, filteredSignal)
		return err == nil && code == http.StatusUnauthorized
	}) {
		t.Error("the thawed edge accepts the key")
	}
	t.Logf("the thawed edge refused it after %v", time.Since(thawed))
	again, key := f.account("thawed", auth.Limits{})
	f.awaitEdges(3)
	d, _, _ = f.remove(first, again.ID)
	if d.Revocation.Edges != 3 || d.Revocation.Confirmed != 3 {
		t.Errorf("with all edges awake DELETE says %+v", d.Revocation)
	}
	if code, err := frozen.send(t.Context(), key, filteredSignal); code != http.StatusUnauthorized {
		t.Errorf("a confirmed edge answers %d, %v", code, err)
	}
	beside.stop(t)
}
