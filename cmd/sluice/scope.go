package main

import (
	"context"
	"fmt"
	"net/url"
	"strconv"
	"time"

	"github.com/spf13/pflag"

	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/ingest"
	"flowstate.inc/sluice/signals"
	"flowstate.inc/sluice/signals/scope"
)

// judgeConfig is what a process is told of the scope judge.
type judgeConfig struct {
	url, model, key        string
	timeout, maxLag        time.Duration
	parallel               int
	sample                 float64
	samples                map[string]string // by NAME/ENVIRONMENT
	minConfidence          float64
	requests, requestsEach int64
	tokens, tokensEach     int64
	cost, costEach         float64
	priceIn, priceOut      float64
	keepPrompts            bool
	retention              time.Duration
	group                  string
	fromStart              bool // dev: its broker is small, and what was sent before the judge was there is judged too
	shares                 scope.Shares
	proxy                  string
	proxyURL               *url.URL
}

// judgeFlags are the flags of the scope judge; sample is the share that is judged unless said.
func (c *config) judgeFlags(f *pflag.FlagSet, sample float64) {
	j := &c.judge
	j.clientFlags(f)
	f.Float64Var(&j.sample, "judge-sample", sample, "share of an account's prompts that are judged, 0 to 1; its first ten of a day always are")
	f.StringToStringVar(&j.samples, "judge-samples", nil, "the same for single accounts, as NAME/ENVIRONMENT=SHARE, comma-separated")
	f.Float64Var(&j.minConfidence, "judge-min-confidence", .7, "confidence, 0 to 1, below which out of scope counts as unsure")
	f.Int64Var(&j.requests, "judge-requests-per-day", 5_000, "questions to the judge a day, in all processes (0: no bound)")
	f.Int64Var(&j.requestsEach, "judge-requests-per-day-per-account", 500, "the same for each account")
	f.Int64Var(&j.tokens, "judge-tokens-per-day", 5_000_000, "tokens of the judge a day, in and out, in all processes (0: no bound)")
	f.Int64Var(&j.tokensEach, "judge-tokens-per-day-per-account", 500_000, "the same for each account")
	f.Float64Var(&j.cost, "judge-cost-per-day", 0, "money for the judge a day, in all processes, in the currency of the prices (0: no bound)")
	f.Float64Var(&j.costEach, "judge-cost-per-day-per-account", 0, "the same for each account")
	f.Float64Var(&j.priceIn, "judge-price-in", 0, "price of a million tokens that the judge reads")
	f.Float64Var(&j.priceOut, "judge-price-out", 0, "price of a million tokens that the judge writes")
	f.DurationVar(&j.maxLag, "judge-max-lag", 5*time.Minute, "how long a prompt waits for a judge that is away before it is left unjudged")
	f.IntVar(&j.parallel, "judge-parallel", 2, "questions under way at once, of each process")
	f.BoolVar(&j.keepPrompts, "judge-keep-prompts", false, "keep prompts with their verdicts, secrets cut out (else only a hash)")
	f.DurationVar(&j.retention, "scope-retention", 90*24*time.Hour, "how long verdicts are kept (0: for ever)")
	f.StringVar(&j.group, "scope-group", "sluice-scope", "Kafka consumer group of the scope judge")
}

// clientFlags say where the judge is.
func (j *judgeConfig) clientFlags(f *pflag.FlagSet) {
	f.StringVar(&j.url, "judge-url", "", "OpenAI-compatible API of the scope judge, such as http://127.0.0.1:11434/v1; empty: nothing is judged, and nothing leaves")
	f.StringVar(&j.model, "judge-model", "", "model of the scope judge, as its server names it (default: the first that it lists)")
	f.StringVar(&j.key, "judge-key", "", "key for the judge's server (secret: also --judge-key-file)")
	f.StringVar(&j.proxy, "judge-proxy", "", "HTTP proxy on the way to the judge; the environment's is not used for it")
	f.DurationVar(&j.timeout, "judge-timeout", 20*time.Second, "longest time for one question to the judge")
}

func (j *judgeConfig) on() bool { return j.url != "" }

func (j *judgeConfig) check() error {
	if !j.on() {
		return nil
	}
	if err := j.checkClient(); err != nil {
		return err
	}
	if j.maxLag <= 0 || j.parallel <= 0 {
		return usagef("--judge-max-lag and --judge-parallel must be positive")
	}
	for _, n := range []float64{float64(j.requests), float64(j.requestsEach), float64(j.tokens), float64(j.tokensEach), j.cost, j.costEach, j.priceIn, j.priceOut} {
		if !(n >= 0 && n < 1e12) {
			return usagef("the budgets and prices of the judge (--judge-…-per-day, --judge-price-…) must not be negative")
		}
	}
	if (j.cost > 0 || j.costEach > 0) && j.priceIn == 0 && j.priceOut == 0 {
		return usagef("--judge-cost-per-day needs --judge-price-in and --judge-price-out")
	}
	if !(j.sample >= 0 && j.sample <= 1) || !(j.minConfidence > 0 && j.minConfidence <= 1) {
		return usagef("--judge-sample must be 0 to 1, and --judge-min-confidence above 0 and at most 1")
	}
	j.shares = scope.Shares{Default: j.sample, By: map[string]float64{}}
	for account, share := range j.samples {
		n, err := strconv.ParseFloat(share, 64)
		if err != nil || !(n >= 0 && n <= 1) {
			return usagef("--judge-samples: %s=%s is not NAME/ENVIRONMENT=SHARE with a share of 0 to 1", account, share)
		}
		j.shares.By[account] = n
	}
	return nil
}

// checkClient checks what clientFlags read.
func (j *judgeConfig) checkClient() error {
	if _, err := scope.ParseJudgeURL(j.url); err != nil {
		return usagef("--judge-url: %w", err)
	}
	if j.proxy != "" {
		u, err := scope.ParseJudgeURL(j.proxy)
		if err != nil {
			return usagef("--judge-proxy: %w", err)
		}
		j.proxyURL = u
	}
	if j.timeout <= 0 {
		return usagef("--judge-timeout must be positive")
	}
	return nil
}

func (j *judgeConfig) client(p *process) (*scope.Judge, error) {
	cfg := scope.JudgeConfig{URL: j.url, Model: j.model, Key: j.key, Proxy: j.proxyURL, Timeout: j.timeout}
	if p != nil {
		cfg.Registerer, cfg.Logger = p.reg, p.log
	}
	return scope.NewJudge(cfg)
}

// scopeParts are what the admin side and the role scope share.
type scopeParts struct {
	store    *scope.Store
	assessor *scope.Assessor // nil: no judge
	consumer *scope.Consumer
}

// wireJudge builds what judges, where a judge is configured: for the role scope, and for the admin side, where a prompt can be tried.
func (p *process) wireJudge() error {
	j := &p.cfg.judge
	if !j.on() {
		return nil
	}
	client, err := j.client(p)
	if err != nil {
		return usagef("--judge-url: %w", err)
	}
	micros := func(money float64) int64 { return int64(money * 1e6) }
	p.scope.assessor = scope.NewAssessor(scope.AssessorConfig{
		Judge: client, Store: p.scope.store, MinConfidence: j.minConfidence, KeepPrompts: j.keepPrompts,
		All:    scope.Budget{Requests: j.requests, Tokens: j.tokens, Micros: micros(j.cost)},
		Each:   scope.Budget{Requests: j.requestsEach, Tokens: j.tokensEach, Micros: micros(j.costEach)},
		Prices: scope.Prices{In: j.priceIn, Out: j.priceOut}, Registerer: p.reg,
	})
	return nil
}

// wireScope builds the consumer that judges what workloads are asked.
func (p *process) wireScope() error {
	if p.scope.assessor == nil {
		if len(p.roles) == 1 {
			p.log.Warn("the role scope has nothing to do without --judge-url")
		}
		return nil
	}
	k, err := p.cfg.kafkaConfig()
	if err != nil {
		return err
	}
	dialer, err := k.Dialer()
	if err != nil {
		return &usageError{err}
	}
	// The edge's way, where there is one, has a spool behind it.
	raise := func(ctx context.Context, about *auth.Principal, own signals.Own) error {
		return p.signalEdge.Raise(ctx, about, own)
	}
	if p.signalEdge == nil {
		sink := ingest.NewSink(ingest.SinkConfig{Producer: p.producer, Registerer: p.reg, Logger: p.log})
		raise = ingest.NewRaiser(sink, p.signals.decider, p.cfg.topics.signals, p.reg).Raise
	}
	byID, _ := p.accountLookups()
	account := func(ctx context.Context, org, id string) (*auth.Principal, error) { return byID(ctx, org, "", id) }
	p.scope.consumer = scope.NewConsumer(scope.ConsumerConfig{
		Brokers: k.Brokers, Dialer: dialer, LogsTopic: p.cfg.topics.logs, SpansTopic: p.cfg.topics.spans, Group: p.cfg.judge.group, FromStart: p.cfg.judge.fromStart,
		Assessor: p.scope.assessor, Account: account, Raise: raise, Shares: p.cfg.judge.shares, MaxLag: p.cfg.judge.maxLag, Parallel: p.cfg.judge.parallel,
		Registerer: p.reg, Logger: p.log,
	})
	return nil
}

// judges says whether this process asks the judge about telemetry.
func (p *process) judges() bool { return p.runs(roleScope) && p.cfg.judge.on() }

// sweepScope removes what is past its retention.
func (p *process) sweepScope(ctx context.Context) error {
	if err := p.scope.store.Prune(ctx, p.cfg.judge.retention); err != nil {
		return fmt.Errorf("scope: %w", err)
	}
	return nil
}
