package main

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"flowstate.inc/sluice/accounts"
	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/ingest"
	"flowstate.inc/sluice/signals"
)

// policiesKey is where Redis keeps the active policies, for edges that start while the database is away.
const policiesKey = "sluice:policies"

// redisTimeout bounds one question about policy to Redis.
const redisTimeout = 500 * time.Millisecond

// A signalParts is what edges, the admin API and the alerts consumer share of the signals room.
type signalParts struct {
	taxonomy *signals.Taxonomy
	store    *signals.Store
	compiler *signals.PolicyCompiler
	policies *signals.Policies
	drops    *signals.Drops
	decider  *signals.Decider
}

// auditSignals writes changes of alerts and policy into the audit of the accounts room, in their own transaction.
func auditSignals(store *accounts.Store) func(context.Context, *sql.Tx, signals.AuditEntry) error {
	return func(ctx context.Context, tx *sql.Tx, e signals.AuditEntry) error {
		return store.AuditTx(ctx, tx, e.Org, accounts.By(e.By), accounts.Event{
			Action: e.Action, Target: accounts.Subject{Kind: e.TargetKind, ID: e.TargetID, Label: e.TargetLabel}, Before: e.Before, After: e.After,
		})
	}
}

// wireSignals builds the room on the database that the accounts are in.
func (p *process) wireSignals() error {
	s := &p.signals
	taxonomy, err := p.cfg.taxonomy()
	if err != nil {
		return err
	}
	s.taxonomy, err = signals.NewTaxonomy(taxonomy)
	if err != nil {
		return usagef("--signal-types-file: %w", err)
	}
	s.compiler, err = signals.NewPolicyCompiler(s.taxonomy)
	if err != nil {
		return err
	}
	cfg := signals.PoliciesConfig{Compiler: s.compiler, Versions: s.store.Versions, Active: s.store.Active, Registerer: p.reg, Logger: p.log}
	if p.redis != nil {
		cfg.Remember = func(ctx context.Context, value []byte) error {
			ctx, cancel := context.WithTimeout(ctx, redisTimeout)
			defer cancel()
			return p.redis.Set(ctx, policiesKey, value, 0).Err()
		}
		cfg.Recall = func(ctx context.Context) ([]byte, error) {
			ctx, cancel := context.WithTimeout(ctx, redisTimeout)
			defer cancel()
			b, err := p.redis.Get(ctx, policiesKey).Bytes()
			if errors.Is(err, redis.Nil) {
				return nil, nil
			}
			return b, err
		}
	}
	s.policies = signals.NewPolicies(cfg)
	s.drops = signals.NewDrops(s.store.AddDrops, p.log)
	account, byName := p.accountLookups()
	caps, err := p.cfg.caps()
	if err != nil {
		return err
	}
	s.decider, err = signals.NewDecider(signals.DeciderConfig{Taxonomy: s.taxonomy, Caps: caps, Account: account, AccountByName: byName, Policy: s.policies.Rule})
	return err
}

// taxonomy is what --signal-types-file adds to the types in code.
func (c *config) taxonomy() (signals.TaxonomyConfig, error) {
	var t signals.TaxonomyConfig
	if c.signalTypesFile == "" {
		return t, nil
	}
	b, err := os.ReadFile(c.signalTypesFile)
	if err != nil {
		return t, usagef("--signal-types-file: %w", err)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&t); err != nil {
		return t, usagef("--signal-types-file %s: %w", c.signalTypesFile, err)
	}
	return t, nil
}

// caps are the highest severities by environment; nil: the usual ones.
func (c *config) caps() (signals.Caps, error) {
	if len(c.severityCaps) == 0 {
		return nil, nil
	}
	caps := signals.Caps{}
	for environment, name := range c.severityCaps {
		severity, ok := signals.ParseSeverity(name)
		if !ok || !slices.Contains([]string{auth.Production, auth.Staging, auth.Development}, environment) {
			return nil, usagef("--severity-caps: %s=%s is not ENVIRONMENT=INFO, WARN or BLOCK", environment, name)
		}
		caps[environment] = severity
	}
	return caps, nil
}

type (
	lookUpByID   = func(ctx context.Context, org, by, id string) (*auth.Principal, error)
	lookUpByName = func(ctx context.Context, org, by, name, environment string) (*auth.Principal, error)
)

// accountLookups are the edge's chain where there is one, else the database: a process that only explains has no need of a cache. Both know
// an account no longer once it is deleted.
func (p *process) accountLookups() (lookUpByID, lookUpByName) {
	if p.chain != nil {
		return p.chain.Account, p.chain.AccountByName
	}
	principal := func(ctx context.Context, prefix string, err error) (*auth.Principal, error) {
		if err != nil {
			return nil, err
		}
		rec, err := p.store.Key(ctx, prefix)
		if err == nil && !rec.RevokedAt.IsZero() {
			err = fmt.Errorf("key %s is revoked: %w", prefix, auth.ErrNoKey)
		}
		if err != nil {
			return nil, err
		}
		return &rec.Principal, nil
	}
	return func(ctx context.Context, org, _, id string) (*auth.Principal, error) {
			prefix, err := p.store.AccountKey(ctx, org, id)
			return principal(ctx, prefix, err)
		}, func(ctx context.Context, org, _, name, environment string) (*auth.Principal, error) {
			prefix, err := p.store.AccountKeyByName(ctx, org, name, environment)
			return principal(ctx, prefix, err)
		}
}

// wireAlerts builds the consumer that moves events from Kafka into Alerts.
func (p *process) wireAlerts() error {
	k, err := p.cfg.kafkaConfig()
	if err != nil {
		return err
	}
	dialer, err := k.Dialer()
	if err != nil {
		return &usageError{err}
	}
	p.consumer = signals.NewConsumer(signals.ConsumerConfig{
		Brokers: k.Brokers, Dialer: dialer, Topic: p.cfg.topics.signals, Group: p.cfg.alertsGroup, Store: p.signals.store,
		DeadLetter: p.deadLetter, Registerer: p.reg, Logger: p.log,
	})
	return nil
}

// deadLetter keeps a message that can never be read; nil only when it is acknowledged.
func (p *process) deadLetter(ctx context.Context, m signals.DeadLetter) error {
	msg := ingest.Message{Topic: p.cfg.topics.dlq, Key: m.Key, Value: m.Value}
	for _, h := range m.Headers {
		msg.Headers = append(msg.Headers, ingest.Header(h))
	}
	err := p.producer.Produce(ctx, []ingest.Message{msg})
	if refused := (*ingest.RefusedError)(nil); errors.As(err, &refused) && len(refused.TooLarge) > 0 {
		return fmt.Errorf("%w: %w", signals.ErrTooLarge, err)
	}
	return err
}

// runSignals follows policy, counts what is dropped, moves events into Alerts and removes old ones, until ctx ends.
func (p *process) runSignals(ctx context.Context, group *errgroup.Group) {
	run := func(f func(context.Context) error) {
		group.Go(func() error {
			if err := f(ctx); err != nil && !errors.Is(err, context.Canceled) {
				return err
			}
			return nil
		})
	}
	if p.runs(roleEdge) || p.runs(roleAdmin) || p.scope.consumer != nil {
		run(func(ctx context.Context) error { return p.signals.policies.Run(ctx, p.signals.store.Wake()) })
	}
	if p.runs(roleEdge) {
		run(p.signals.drops.Run)
	}
	if p.runs(roleAdmin) {
		run(p.keepHouse)
	}
	if p.scope.consumer != nil {
		run(p.scope.consumer.Run)
	}
	if p.consumer != nil {
		run(p.consumer.Run)
		run(func(ctx context.Context) error {
			return signals.Retain(ctx, signals.RetentionConfig{Store: p.signals.store, Keep: p.cfg.alertsRetention, Registerer: p.reg, Logger: p.log})
		})
	}
}

// signalRoutes are the room's part of the admin API, behind the accounts room's sign-in.
func (p *process) signalRoutes(api *signals.API) []accounts.Route {
	var routes []accounts.Route
	for _, r := range api.Routes() {
		routes = append(routes, accounts.Route{Method: r.Method, Path: r.Path, Permissions: r.Permissions, MaxBody: r.MaxBody, Handle: r.Handle})
	}
	return routes
}
