package signals

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// truth is the database and Redis of a feed, either of which can be away.
type truth struct {
	mu        sync.Mutex
	active    map[string]ActivePolicy
	kept      []byte
	away      bool
	redisOff  bool
	illegible map[string]bool // orgs whose policy cannot be read
	hanging   map[string]bool // orgs whose read does not return
	slow      time.Duration   // of each read
}

func (tr *truth) set(org string, version int64, action Action) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if tr.active == nil {
		tr.active = map[string]ActivePolicy{}
	}
	tr.active[org] = ActivePolicy{org, version, []Rule{{ID: "r", Types: []string{"pii_detected"}, Action: action, Scope: Scope{Org: true}}}}
}

func (tr *truth) do(f func()) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	f()
}

func (tr *truth) policies(t *testing.T, reg prometheus.Registerer) *Policies {
	t.Helper()
	return NewPolicies(PoliciesConfig{Compiler: compiler(t), Registerer: reg, Logger: quiet(), Interval: 10 * time.Millisecond,
		Versions: func(context.Context) (map[string]int64, error) {
			tr.mu.Lock()
			defer tr.mu.Unlock()
			if tr.away {
				return nil, errors.New("away")
			}
			out := map[string]int64{}
			for org, a := range tr.active {
				out[org] = a.Version
			}
			return out, nil
		},
		Active: func(ctx context.Context, org string) (ActivePolicy, error) {
			tr.mu.Lock()
			hangs, slow := tr.hanging[org], tr.slow
			tr.mu.Unlock()
			if hangs {
				<-ctx.Done()
				return ActivePolicy{}, ctx.Err()
			}
			if slow > 0 {
				select {
				case <-ctx.Done():
					return ActivePolicy{}, ctx.Err()
				case <-time.After(slow):
				}
			}
			tr.mu.Lock()
			defer tr.mu.Unlock()
			if tr.illegible[org] {
				return ActivePolicy{}, errors.New("invalid character")
			}
			return tr.active[org], nil
		},
		Remember: func(_ context.Context, b []byte) error {
			tr.mu.Lock()
			defer tr.mu.Unlock()
			if tr.redisOff {
				return errors.New("away")
			}
			tr.kept = b
			return nil
		},
		Recall: func(context.Context) ([]byte, error) {
			tr.mu.Lock()
			defer tr.mu.Unlock()
			if tr.redisOff {
				return nil, errors.New("away")
			}
			return tr.kept, nil
		},
	})
}

func rule1(p *Policies, org string) string {
	ref := p.Rule(&Event{Org: org, Type: "pii_detected", Category: ContentSafety, BaseSeverity: Warn})
	if ref == nil {
		return ""
	}
	return string(ref.Action)
}

func TestPoliciesFollowWhatIsActivated(t *testing.T) {
	var tr truth
	tr.set("acme", 1, ActionWarn)
	p := tr.policies(t, prometheus.NewRegistry())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx, nil) }()
	await := func(org, want string) {
		t.Helper()
		eventually(t, org, func() error {
			if got := rule1(p, org); got != want {
				return errors.New(got)
			}
			return nil
		})
	}
	await("acme", "WARN")
	tr.set("acme", 2, ActionBlock)
	tr.set("rival", 1, ActionObserve)
	await("acme", "BLOCK")
	await("rival", "OBSERVE")
	// An outage changes nothing, and what was activated meanwhile comes with its end.
	tr.do(func() { tr.away = true })
	tr.set("acme", 3, ActionObserve)
	p.Refresh(t.Context())
	if got := rule1(p, "acme"); got != "BLOCK" {
		t.Errorf("in an outage: %s", got)
	}
	tr.do(func() { tr.away = false })
	await("acme", "OBSERVE")
	// A version is never taken back, one that does not compile leaves the one before, an org without policy has none.
	tr.set("acme", 2, ActionBlock)
	p.Refresh(t.Context())
	if got := rule1(p, "acme"); got != "OBSERVE" {
		t.Errorf("taken back: %s", got)
	}
	tr.set("acme", 4, "DROP")
	p.Refresh(t.Context())
	if got := rule1(p, "acme"); got != "OBSERVE" || p.Policy("acme").Version != 3 {
		t.Errorf("a version that does not compile: %s", got)
	}
	tr.set("acme", 5, ActionWarn)
	await("acme", "WARN")
	tr.do(func() { delete(tr.active, "rival") })
	await("rival", "")
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// One org whose policy cannot be read, or does not compile, holds up nobody else, and keeps what it had: also over a restart.
func TestOneOrgsPolicyHoldsUpNobody(t *testing.T) {
	for name, spoil := range map[string]func(*truth){
		"unreadable":       func(tr *truth) { tr.set("acme", 2, ActionWarn); tr.illegible = map[string]bool{"acme": true} },
		"does not compile": func(tr *truth) { tr.set("acme", 2, "DROP") },
	} {
		t.Run(name, func(t *testing.T) {
			var tr truth
			for _, org := range []string{"aaa", "acme", "zzz"} {
				tr.set(org, 1, ActionBlock)
			}
			reg := prometheus.NewRegistry()
			p := tr.policies(t, reg)
			p.Refresh(t.Context())
			spoil(&tr)
			tr.set("aaa", 2, ActionObserve)
			tr.set("zzz", 2, ActionObserve)
			tr.set("new", 1, ActionWarn)
			in := func(p *Policies) string {
				return strings.Join([]string{rule1(p, "aaa"), rule1(p, "acme"), rule1(p, "zzz"), rule1(p, "new")}, " ")
			}
			const want = "OBSERVE BLOCK OBSERVE WARN"
			for range 3 {
				p.Refresh(t.Context())
			}
			if got := in(p); got != want {
				t.Errorf("in force: %s, want %s", got, want)
			}
			if n, err := testutil.GatherAndCount(reg, "sluice_policy_orgs_behind"); err != nil || n != 1 || testutil.ToFloat64(p.metrics.behind) != 1 {
				t.Errorf("orgs behind: %d %v %v", n, err, testutil.ToFloat64(p.metrics.behind))
			}
			if testutil.ToFloat64(p.metrics.orgFailed)+testutil.ToFloat64(p.metrics.broken) == 0 {
				t.Error("counted nowhere")
			}
			for range 2 { // another process finds the last good one in Redis, and leaves it there
				again := tr.policies(t, nil)
				again.Refresh(t.Context())
				if got := in(again); got != want {
					t.Errorf("after a restart: %s, want %s", got, want)
				}
				tr.set("new", 2, ActionWarn)
				again.Refresh(t.Context())
			}
			tr.redisOff = true
			without := tr.policies(t, nil)
			without.Refresh(t.Context())
			if got := in(without); got != "OBSERVE  OBSERVE WARN" {
				t.Errorf("without Redis: %q", got)
			}
			tr.redisOff = false
			tr.set("new", 3, ActionBlock)
			without.Refresh(t.Context()) // keeps the others in Redis, and this org too
			last := tr.policies(t, nil)
			last.Refresh(t.Context())
			if got := rule1(last, "acme"); got != "BLOCK" {
				t.Errorf("the last good one is gone from Redis: %q", got)
			}
			tr.illegible = nil
			tr.set("acme", 3, ActionWarn)
			p.Refresh(t.Context())
			if got := rule1(p, "acme"); got != "WARN" || testutil.ToFloat64(p.metrics.behind) != 0 {
				t.Errorf("mended: %s, %v behind", got, testutil.ToFloat64(p.metrics.behind))
			}
		})
	}
}

// Orgs whose policy never arrives hold up nobody: a version of another org is in force within a second all the same.
func TestHangingOrgsHoldUpNobody(t *testing.T) {
	var tr truth
	tr.hanging = map[string]bool{}
	for _, org := range []string{"a1", "a2", "a3", "a4", "a5", "a6", "b"} {
		tr.set(org, 1, ActionBlock)
		tr.hanging[org] = org != "b"
	}
	p := tr.policies(t, nil)
	p.Refresh(t.Context())
	p.Refresh(t.Context())
	if got := rule1(p, "b"); got != "BLOCK" {
		t.Fatalf("the one that can be read: %q", got)
	}
	tr.set("b", 2, ActionWarn)
	began := time.Now()
	p.Refresh(t.Context())
	if got, took := rule1(p, "b"), time.Since(began); got != "WARN" || took > time.Second {
		t.Errorf("a new version: %q, after %v", got, took)
	}
	// One of them comes to itself, whichever it is.
	tr.do(func() { tr.hanging["a4"] = false })
	for range 6 {
		p.Refresh(t.Context())
	}
	if got := rule1(p, "a4"); got != "BLOCK" {
		t.Errorf("read again: %q", got)
	}
}

// A load that takes longer than one look goes on with the next, without Redis too.
func TestALargeLoadMakesProgress(t *testing.T) {
	tr := truth{slow: 30 * time.Millisecond, redisOff: true}
	const orgs = 100
	for i := range orgs {
		tr.set(fmt.Sprintf("org-%03d", i), 1, ActionBlock)
	}
	reg := prometheus.NewRegistry()
	p := tr.policies(t, reg)
	p.Refresh(t.Context())
	if !p.Ready() || rule1(p, "org-000") != "BLOCK" || testutil.ToFloat64(p.metrics.behind) == 0 {
		t.Fatalf("after one look: ready %v, %v behind", p.Ready(), testutil.ToFloat64(p.metrics.behind))
	}
	for range 3 {
		p.Refresh(t.Context())
	}
	if behind := testutil.ToFloat64(p.metrics.behind); behind != 0 || rule1(p, "org-099") != "BLOCK" {
		t.Errorf("%v orgs are still behind", behind)
	}
}

func TestPoliciesStartWhileTheDatabaseIsAway(t *testing.T) {
	var tr truth
	tr.set("acme", 7, ActionBlock)
	tr.policies(t, nil).Refresh(t.Context())
	if tr.kept == nil {
		t.Fatal("nothing was kept in Redis")
	}
	tr.away = true
	reg := prometheus.NewRegistry()
	p := tr.policies(t, reg)
	if p.Ready() || rule1(p, "acme") != "" {
		t.Error("a policy out of nowhere")
	}
	p.Refresh(t.Context())
	if !p.Ready() || rule1(p, "acme") != "BLOCK" || p.Policy("acme").Version != 7 {
		t.Errorf("from Redis: %s", rule1(p, "acme"))
	}
	err := testutil.GatherAndCompare(reg, strings.NewReader(`
		# HELP sluice_policy_blind_decisions_total Signals decided before any policy could be read from the database or Redis.
		# TYPE sluice_policy_blind_decisions_total counter
		sluice_policy_blind_decisions_total 1
		# HELP sluice_policy_reads_total Looks for active policies, by where the answer came from.
		# TYPE sluice_policy_reads_total counter
		sluice_policy_reads_total{from="cache"} 1
		sluice_policy_reads_total{from="database"} 0
		sluice_policy_reads_total{from="nowhere"} 0
	`), "sluice_policy_blind_decisions_total", "sluice_policy_reads_total")
	if err != nil {
		t.Error(err)
	}
	// With both away there is none, and it is counted; the first that comes back is taken.
	tr.redisOff = true
	p = tr.policies(t, nil)
	p.Refresh(t.Context())
	if p.Ready() {
		t.Error("ready with nothing to read")
	}
	tr.away = false
	p.Refresh(t.Context())
	if rule1(p, "acme") != "BLOCK" {
		t.Error("the database is back, and its policy is not in force")
	}
}

// Signals that are decided while policies change are decided by one version or the other, whole.
func TestPolicyChangesUnderLoad(t *testing.T) {
	var tr truth
	tr.set("acme", 1, ActionBlock)
	p := tr.policies(t, nil)
	p.Refresh(t.Context())
	d := testDecider(t, DeciderConfig{Policy: p.Rule})
	by := map[Action]Severity{ActionBlock: Block, ActionObserve: Info}
	var wg sync.WaitGroup
	stop := make(chan struct{})
	var last [2]atomic.Int64 // the version that decided last
	for i := range last {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				r := Raised{Type: "pii_detected"}
				v := d.Decide(t.Context(), person(), &r, received)
				want := ActionBlock
				if v.Event.Rule != nil && v.Event.Rule.PolicyVersion%2 == 0 {
					want = ActionObserve
				}
				if v.Event.Rule == nil || v.Event.Rule.Action != want || v.Event.Severity != by[want] {
					t.Errorf("decided %s by %+v", v.Event.Severity, v.Event.Rule)
					return
				}
				last[i].Store(v.Event.Rule.PolicyVersion)
			}
		})
	}
	for version := int64(2); version < 40; version++ {
		action := ActionBlock
		if version%2 == 0 {
			action = ActionObserve
		}
		tr.set("acme", version, action)
		p.Refresh(t.Context())
		if got := p.Policy("acme").Version; got != version {
			t.Fatalf("version %d is in force, want %d", got, version)
		}
		eventually(t, "the version decides", func() error {
			if last[0].Load() != version || last[1].Load() != version {
				return errors.New("not yet")
			}
			return nil
		})
	}
	close(stop)
	wg.Wait()
}

func TestDropsSurviveAnOutage(t *testing.T) {
	var (
		got  []Drop
		away = true
	)
	d := NewDrops(func(_ context.Context, drops []Drop) error {
		if away {
			return errors.New("away")
		}
		got = append(got, drops...)
		return nil
	}, quiet())
	v := Verdict{Outcome: Filtered, Reason: PersonsOnly, Type: PersonalUse, About: About{"service_account", "sa_1"}}
	d.Count("acme", &v, 1, received)
	d.Flush(t.Context())
	d.Count("acme", &v, 1, received.Add(time.Second))
	d.Count("acme", &Verdict{Outcome: Accepted}, 1, received)
	d.Flush(t.Context())
	away = false
	d.Flush(t.Context())
	d.Flush(t.Context())
	if len(got) != 1 || got[0].Count != 2 || !got[0].LastAt.Equal(received.Add(time.Second)) {
		t.Errorf("got %+v", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	d.Count("acme", &v, 1, received)
	cancel()
	if err := d.Run(ctx); !errors.Is(err, context.Canceled) || len(got) != 2 {
		t.Errorf("at the end: %v %+v", err, got)
	}
}
