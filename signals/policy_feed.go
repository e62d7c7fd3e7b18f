package signals

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// An ActivePolicy is the policy that an org has in force, as the store and Redis keep it.
type ActivePolicy struct {
	Org     string `json:"org"`
	Version int64  `json:"version"`
	Rules   []Rule `json:"rules"`
}

// PoliciesConfig is what Policies are made of.
type PoliciesConfig struct {
	Compiler *PolicyCompiler

	// Versions answers the active version of every org that has one, Active the policy of one: Store's. Nil Versions: no policy.
	Versions func(ctx context.Context) (map[string]int64, error)
	Active   func(ctx context.Context, org string) (ActivePolicy, error)

	// Remember and Recall keep what is in force in Redis, as one value, for edges that start while the database is away. Nil: nowhere.
	Remember func(ctx context.Context, value []byte) error
	Recall   func(ctx context.Context) ([]byte, error)

	Interval   time.Duration // between two looks at Versions; default 500 ms, so that a change holds everywhere within a second
	Registerer prometheus.Registerer
	Logger     *slog.Logger
}

// Policies holds the active policy of every org, follows what is activated, and answers the Decider. A policy, once read,
// stays in force until another is read: an outage of the database changes nothing. Orgs are read one by one: where one org's
// policy cannot be read or compiled, that org keeps what it had, or what Redis had of it, and the others go on. What one look had no
// time for comes with the next. Until any has been read from anywhere, signals are decided without policy, and counted.
type Policies struct {
	cfg     PoliciesConfig
	current atomic.Pointer[map[string]*Policy] // nil: never read; swapped whole, never written
	mu      sync.Mutex                         // one look at a time; guards what follows
	broken  map[string]int64                   // versions that do not compile here, so that each is reported once
	unread  map[string]int64                   // versions that could not be read at the last look, so that each is reported once
	turn    int                                // which of these is tried first, so that one that hangs keeps no other waiting for ever
	away    bool                               // the last look at the database failed, and the log said so
	rescued bool                               // what Redis has was looked through
	unkept  bool                               // something changed since Redis was told
	metrics policyMetrics
}

type policyMetrics struct {
	conditionErrors, blind                      prometheus.Counter
	decidedRule, decidedNone                    prometheus.Counter
	readDatabase, readCache, readFailed, broken prometheus.Counter
	orgFailed                                   prometheus.Counter
	lastRead, orgs, behind                      prometheus.Gauge
}

const (
	lookTimeout = 2 * time.Second // one look at the database or Redis
	// orgTimeout bounds the read of one org's policy, and in all what one look spends on orgs that could not be read before: a new version of
	// another org is still in force within a second.
	orgTimeout = 400 * time.Millisecond
)

// NewPolicies returns Policies that know nothing yet: call Refresh, or Run.
func NewPolicies(cfg PoliciesConfig) *Policies {
	if cfg.Interval == 0 {
		cfg.Interval = 500 * time.Millisecond
	}
	p := &Policies{cfg: cfg, broken: map[string]int64{}, unread: map[string]int64{}}
	counter := func(name, help string) prometheus.Counter {
		return newCounter(cfg.Registerer, prometheus.CounterOpts{Name: name, Help: help})
	}
	decided := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sluice_policy_decisions_total",
		Help: "Signals decided, by whether a policy rule set their severity."}, []string{"by"})
	reads := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sluice_policy_reads_total",
		Help: "Looks for active policies, by where the answer came from."}, []string{"from"})
	p.metrics = policyMetrics{
		conditionErrors: counter("sluice_policy_condition_errors_total", "Conditions of policy rules that could not be evaluated, and so did not match."),
		blind:           counter("sluice_policy_blind_decisions_total", "Signals decided before any policy could be read from the database or Redis."),
		decidedRule:     decided.WithLabelValues("rule"), decidedNone: decided.WithLabelValues("none"),
		readDatabase: reads.WithLabelValues("database"), readCache: reads.WithLabelValues("cache"), readFailed: reads.WithLabelValues("nowhere"),
		broken:    counter("sluice_policy_unreadable_versions_total", "Active policy versions that this binary cannot compile; the version before stays in force."),
		orgFailed: counter("sluice_policy_org_read_failures_total", "Reads of one org's active policy that failed while those of others went on; the version before stays in force."),
		behind:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "sluice_policy_orgs_behind", Help: "Orgs whose active policy version is not in force here, because it cannot be read or compiled."}),
		lastRead:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "sluice_policy_last_read_timestamp_seconds", Help: "When the active policies were last read from the database."}),
		orgs:      prometheus.NewGauge(prometheus.GaugeOpts{Name: "sluice_policy_active", Help: "Orgs that have an active policy."}),
	}
	if cfg.Registerer != nil {
		cfg.Registerer.MustRegister(decided, reads, p.metrics.lastRead, p.metrics.orgs, p.metrics.behind)
	}
	return p
}

func newCounter(reg prometheus.Registerer, opts prometheus.CounterOpts) prometheus.Counter {
	c := prometheus.NewCounter(opts)
	if reg != nil {
		reg.MustRegister(c)
	}
	return c
}

// Rule is the Decider's Policy hook.
func (p *Policies) Rule(e *Event) *RuleRef {
	current := p.current.Load()
	if current == nil {
		p.metrics.blind.Inc()
		return nil
	}
	var ref *RuleRef
	if policy := (*current)[e.Org]; policy != nil {
		var fails int
		ref, fails = policy.decide(e)
		if fails > 0 {
			p.metrics.conditionErrors.Add(float64(fails))
		}
	}
	if ref == nil {
		p.metrics.decidedNone.Inc()
		return nil
	}
	p.metrics.decidedRule.Inc()
	return ref
}

// Policy is the active policy of an org as this process knows it, nil where there is none.
func (p *Policies) Policy(org string) *Policy {
	current := p.current.Load()
	if current == nil {
		return nil
	}
	return (*current)[org]
}

// Ready reports whether active policies have been read from anywhere.
func (p *Policies) Ready() bool { return p.current.Load() != nil }

// Run follows what is activated until ctx ends. wake makes it look at once; nil is never. It returns ctx's error.
func (p *Policies) Run(ctx context.Context, wake <-chan struct{}) error {
	t := time.NewTicker(p.cfg.Interval)
	defer t.Stop()
	for {
		p.Refresh(ctx)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		case <-wake:
		}
	}
}

// Refresh looks once: at the database and, where that is away and nothing has been read yet, at Redis. What an activation
// in this process calls, so that the very next signal is decided by it.
func (p *Policies) Refresh(parent context.Context) {
	p.mu.Lock()
	defer p.mu.Unlock()
	ctx, cancel := context.WithTimeout(parent, lookTimeout)
	defer cancel()
	err := p.read(ctx)
	if err == nil {
		p.metrics.readDatabase.Inc()
		if p.away {
			p.away = false
			p.cfg.Logger.Info("active policies are read from the database again")
		}
		return
	}
	if !p.away && parent.Err() == nil {
		p.away = true
		p.cfg.Logger.Warn("active policies cannot be read from the database; what was read last stays in force", "error", err, "in_force", p.current.Load() != nil)
	}
	if p.current.Load() == nil && p.recall() {
		p.metrics.readCache.Inc()
		return
	}
	p.metrics.readFailed.Inc()
}

// read brings what is in force up to date with the database, as far as there is time.
func (p *Policies) read(ctx context.Context) error {
	if p.cfg.Versions == nil {
		p.swap(map[string]*Policy{})
		p.metrics.lastRead.SetToCurrentTime()
		return nil
	}
	versions, err := p.cfg.Versions(ctx)
	if err != nil {
		return err
	}
	next := map[string]*Policy{}
	if old := p.current.Load(); old != nil {
		maps.Copy(next, *old)
	}
	for org := range next {
		if versions[org] == 0 {
			delete(next, org)
		}
	}
	maps.DeleteFunc(p.unread, func(org string, _ int64) bool { return versions[org] == 0 })
	due, again := p.due(next, versions)
	left := p.readOrgs(ctx, next, versions, due)
	if len(again) > 0 {
		p.unkept = p.swap(maps.Clone(next)) || p.unkept // what was read waits for none that may hang
		short, cancel := context.WithTimeout(ctx, orgTimeout)
		defer cancel()
		left += p.readOrgs(short, next, versions, again)
	}
	p.rescue(next, versions)
	p.metrics.behind.Set(float64(behind(next, versions)))
	if left > 0 && len(next) == 0 {
		return ctx.Err() // no time for a single one: that is as if nothing could be read
	}
	p.unkept = p.swap(next) || p.unkept
	if left == 0 {
		p.metrics.lastRead.SetToCurrentTime()
		p.remember()
	}
	return nil
}

// due are the orgs whose version in force is not here, and apart those that could not be read before.
func (p *Policies) due(in map[string]*Policy, versions map[string]int64) (due, again []string) {
	for org, version := range versions {
		old := in[org]
		switch {
		case old != nil && old.Version >= version: // two looks may answer out of order; a version is never taken back
		case p.broken[org] == version:
		case p.unread[org] != 0:
			again = append(again, org)
		default:
			due = append(due, org)
		}
	}
	slices.Sort(due)
	slices.Sort(again)
	if len(again) > 0 {
		p.turn++
		first := p.turn % len(again)
		again = append(again[first:], again[:first]...)
	}
	return due, again
}

// readOrgs reads and compiles policies into next until ctx ends, and returns how many it did not come to.
func (p *Policies) readOrgs(ctx context.Context, next map[string]*Policy, versions map[string]int64, orgs []string) int {
	for i, org := range orgs {
		if ctx.Err() != nil {
			return len(orgs) - i
		}
		one, cancel := context.WithTimeout(ctx, orgTimeout)
		active, err := p.cfg.Active(one, org)
		cancel()
		if err == nil {
			delete(p.unread, org)
			p.take(next, active)
			continue
		}
		if errors.Is(ctx.Err(), context.Canceled) {
			return len(orgs) - i // the process ends, which is no fault of the org
		}
		p.metrics.orgFailed.Inc()
		if p.unread[org] != versions[org] {
			p.unread[org] = versions[org]
			p.cfg.Logger.Error("active policy of an org cannot be read; what it had stays in force", "org", org, "version", versions[org], "error", err)
		}
	}
	return 0
}

// rescue gives orgs that have a policy which could not be taken, and had none before, what Redis has of them.
func (p *Policies) rescue(next map[string]*Policy, versions map[string]int64) {
	if p.rescued || p.cfg.Recall == nil {
		return
	}
	lost := func(org string) bool { return versions[org] != 0 && next[org] == nil }
	if !slices.ContainsFunc(slices.Collect(maps.Keys(versions)), lost) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), lookTimeout) // of its own, like recall's
	defer cancel()
	all, err := p.recalled(ctx)
	if err != nil {
		p.cfg.Logger.Warn("active policies cannot be read from Redis", "error", err)
		return
	}
	p.rescued = true
	for _, active := range all {
		if lost(active.Org) && p.broken[active.Org] != active.Version {
			p.take(next, active)
		}
	}
}

// behind counts the orgs whose version here is not the one in force.
func behind(in map[string]*Policy, versions map[string]int64) int {
	n := 0
	for org, version := range versions {
		if policy := in[org]; policy == nil || policy.Version < version {
			n++
		}
	}
	return n
}

// take compiles a policy into next. One that does not compile here leaves what was in force.
func (p *Policies) take(next map[string]*Policy, active ActivePolicy) {
	policy, err := p.cfg.Compiler.Compile(active.Version, active.Rules)
	if err != nil {
		p.broken[active.Org] = active.Version
		p.metrics.broken.Inc()
		p.cfg.Logger.Error("active policy does not compile; the version before stays in force", "org", active.Org, "version", active.Version, "error", err)
		return
	}
	next[active.Org] = policy
	p.cfg.Logger.Info("policy in force", "org", active.Org, "version", active.Version, "rules", len(policy.rules))
}

func (p *Policies) swap(next map[string]*Policy) bool {
	old := p.current.Load()
	if old != nil && maps.Equal(*old, next) {
		return false
	}
	p.current.Store(&next)
	p.metrics.orgs.Set(float64(len(next)))
	return true
}

// remember keeps what is in force in Redis, best effort: the database has it.
func (p *Policies) remember() {
	if p.cfg.Remember == nil || !p.unkept {
		return
	}
	p.unkept = false
	ctx, cancel := context.WithTimeout(context.Background(), lookTimeout) // of its own, like recall's
	defer cancel()
	current := *p.current.Load()
	all := []ActivePolicy{}
	for org, policy := range current {
		all = append(all, ActivePolicy{Org: org, Version: policy.Version, Rules: policy.Rules()})
	}
	if len(p.unread)+len(p.broken) > 0 {
		// Of an org that has nothing here, what Redis has may be the last that could be read: it must not go.
		kept, err := p.recalled(ctx)
		if err != nil {
			p.cfg.Logger.Warn("active policies cannot be kept in Redis", "error", err)
			return
		}
		for _, active := range kept {
			if current[active.Org] == nil && (p.unread[active.Org] != 0 || p.broken[active.Org] != 0) {
				all = append(all, active)
			}
		}
	}
	value, err := json.Marshal(all)
	if err == nil {
		err = p.cfg.Remember(ctx, value)
	}
	if err != nil {
		p.cfg.Logger.Warn("active policies cannot be kept in Redis", "error", err)
	}
}

// recall takes what Redis keeps. The database may have taken the whole budget of the look, so this has one of its own.
func (p *Policies) recall() bool {
	if p.cfg.Recall == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), lookTimeout)
	defer cancel()
	all, err := p.recalled(ctx)
	if err != nil {
		p.cfg.Logger.Warn("active policies cannot be read from Redis", "error", err)
		return false
	}
	if all == nil {
		p.cfg.Logger.Warn("Redis keeps no active policies")
		return false
	}
	next := map[string]*Policy{}
	for _, active := range all {
		p.take(next, active)
	}
	p.swap(next)
	return true
}

// recalled is what Redis keeps; nil where it keeps nothing.
func (p *Policies) recalled(ctx context.Context) ([]ActivePolicy, error) {
	if p.cfg.Recall == nil {
		return nil, nil
	}
	value, err := p.cfg.Recall(ctx)
	if err != nil || len(value) == 0 {
		return nil, err
	}
	var all []ActivePolicy
	if err := json.Unmarshal(value, &all); err != nil {
		return nil, fmt.Errorf("read what Redis keeps: %w", err)
	}
	return all, nil
}

// Rules are the rules as they were written. The caller owns the slice, not what is in it.
func (p *Policy) Rules() []Rule {
	rules := make([]Rule, len(p.rules))
	for i, r := range p.rules {
		rules[i] = r.Rule
	}
	return rules
}
