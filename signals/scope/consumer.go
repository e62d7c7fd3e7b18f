package scope

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/segmentio/kafka-go"
	"golang.org/x/sync/errgroup"

	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/signals"
)

// ConsumerConfig is what a Consumer is made of. Brokers, LogsTopic, SpansTopic, Assessor, Account, Raise and Logger are required.
type ConsumerConfig struct {
	Brokers               []string
	Dialer                *kafka.Dialer // for TLS and SASL; nil: plain
	LogsTopic, SpansTopic string
	Group                 string // default sluice-scope
	// FromStart makes a new group read what the topics hold already; else it begins with what comes.
	FromStart bool

	Assessor *Assessor
	// Account answers who a service account of org is; auth.ErrNoKey, wrapped or not, says that there is none (any more).
	Account func(ctx context.Context, org, id string) (*auth.Principal, error)
	// Raise sends a signal of Sluice's own about an account.
	Raise func(ctx context.Context, p *auth.Principal, own signals.Own) error

	Shares   Shares         // of prompts that are judged
	MaxLag   time.Duration  // what is older by the broker's clock is not judged; default 5 min
	Parallel int            // questions under way at once; default 2
	Draw     func() float64 // of the sample, at least 0 and below 1; nil: by chance

	SessionTimeout time.Duration // default 10 s
	Registerer     prometheus.Registerer
	Logger         *slog.Logger
	Now            func() time.Time // nil: time.Now
}

// What a Consumer counts of an account, beside the Verdicts and an Assessor's reasons to abstain.
const (
	Seen           = "seen"            // prompts
	Sampled        = "sampled"         // of them, those that were to be judged
	TooOld         = "too_old"         // they were older than MaxLag when they were read
	AccountUnknown = "account_unknown" // the database could not be asked whose they are before they were
)

// alwaysFirst is how many prompts of an account are judged on a day whatever the sample, by each process: who asks one thing a night is looked at too.
const alwaysFirst = 10

// A Consumer takes samples of what workloads are asked. Offsets are committed after the samples of a batch were assessed, so a crash means that some are
// assessed again, with the verdicts that they had.
type Consumer struct {
	cfg      ConsumerConfig
	accounts *otter.Cache[accountKey, *auth.Principal] // nil principals are accounts that are not there
	metrics  consumerMetrics
	said     *signals.QuietLog
	topics   signals.Topics

	waiting atomic.Bool // said in the log

	mu     sync.Mutex
	counts map[countKey]Count
	first  map[accountKey]int // prompts of today
	day    int64
	lag    map[partition]int64
}

type accountKey struct{ org, id string }

type partition struct {
	topic  string
	number int
}

type consumerMetrics struct {
	messages, failures       *prometheus.CounterVec
	prompts, sampled, raised prometheus.Counter
	paused, lag              prometheus.Gauge
}

// accountTTL is how long an edit of a scope may go unnoticed.
const accountTTL = 10 * time.Second

// NewConsumer returns a Consumer that has not connected yet.
func NewConsumer(cfg ConsumerConfig) *Consumer {
	if cfg.Group == "" {
		cfg.Group = "sluice-scope"
	}
	if cfg.MaxLag <= 0 {
		cfg.MaxLag = 5 * time.Minute
	}
	if cfg.Parallel <= 0 {
		cfg.Parallel = 2
	}
	if cfg.SessionTimeout == 0 {
		cfg.SessionTimeout = 10 * time.Second
	}
	if cfg.Draw == nil {
		cfg.Draw = rand.Float64
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	c := &Consumer{cfg: cfg, said: signals.NewQuietLog(cfg.Logger), counts: map[countKey]Count{}, first: map[accountKey]int{}, lag: map[partition]int64{},
		accounts: otter.Must(&otter.Options[accountKey, *auth.Principal]{MaximumSize: 10_000, ExpiryCalculator: otter.ExpiryWriting[accountKey, *auth.Principal](accountTTL)}),
		metrics: consumerMetrics{
			messages: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sluice_scope_messages_total", Help: "Messages of the telemetry topics that the scope consumer settled, by what they were to it."}, []string{"outcome"}),
			prompts:  prometheus.NewCounter(prometheus.CounterOpts{Name: "sluice_scope_prompts_total", Help: "Prompts found in the telemetry of service accounts with an intended scope."}),
			sampled:  prometheus.NewCounter(prometheus.CounterOpts{Name: "sluice_scope_sampled_total", Help: "Prompts that were chosen to be judged."}),
			raised:   prometheus.NewCounter(prometheus.CounterOpts{Name: "sluice_scope_raised_total", Help: "Signals that were raised, repetitions of the same one included."}),
			failures: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sluice_scope_failures_total", Help: "Tries of the scope consumer that failed and are repeated, by step."}, []string{"step"}),
			paused:   prometheus.NewGauge(prometheus.GaugeOpts{Name: "sluice_scope_paused", Help: "1 while the scope consumer waits for the judge, the database or Kafka."}),
			lag:      prometheus.NewGauge(prometheus.GaugeOpts{Name: "sluice_scope_lag_messages", Help: "Messages of this consumer's partitions that it has not settled, as of the last it read."}),
		},
	}
	if cfg.Registerer != nil {
		m := &c.metrics
		cfg.Registerer.MustRegister(m.messages, m.prompts, m.sampled, m.raised, m.failures, m.paused, m.lag)
	}
	c.topics = signals.Topics{Brokers: cfg.Brokers, Dialer: cfg.Dialer, Names: []string{cfg.LogsTopic, cfg.SpansTopic}, Reader: "scope consumer",
		Failures: c.metrics.failures.WithLabelValues("topic"), Log: c.said}
	return c
}

const (
	batchSize   = 200
	batchLinger = 100 * time.Millisecond
	retryMin    = 250 * time.Millisecond
	retryMax    = 10 * time.Second
	lastCommit  = 2 * time.Second
)

// Run consumes until ctx ends, and then leaves the group. It returns ctx's error. A topic that is missing is waited for.
func (c *Consumer) Run(ctx context.Context) error {
	leave := c.present(ctx)
	if leave == nil {
		return ctx.Err()
	}
	defer leave()
	for {
		partitions, ok := c.topics.Await(ctx)
		if !ok {
			return ctx.Err()
		}
		session, end := context.WithCancel(ctx)
		var watch sync.WaitGroup
		watch.Go(func() { c.topics.Watch(session, partitions, end) })
		c.consume(session)
		end()
		watch.Wait()
	}
}

// consume is a member of the group until ctx ends.
func (c *Consumer) consume(ctx context.Context) {
	clear(c.lag) // partitions may be gone, or somebody else's
	start := kafka.LastOffset
	if c.cfg.FromStart {
		start = kafka.FirstOffset
	}
	r := kafka.NewReader(kafka.ReaderConfig{
		Brokers: c.cfg.Brokers, Dialer: c.cfg.Dialer, GroupTopics: []string{c.cfg.LogsTopic, c.cfg.SpansTopic}, GroupID: c.cfg.Group, StartOffset: start,
		MinBytes: 1, MaxBytes: 16 << 20, MaxWait: time.Second, QueueCapacity: batchSize, JoinGroupBackoff: 200 * time.Millisecond,
		SessionTimeout: c.cfg.SessionTimeout, HeartbeatInterval: c.cfg.SessionTimeout / 3, RebalanceTimeout: c.cfg.SessionTimeout,
		ReadBackoffMin: 50 * time.Millisecond, ReadBackoffMax: time.Second, ErrorLogger: c.said.Complaints("scope consumer"),
	})
	defer func() {
		if err := r.Close(); err != nil {
			c.cfg.Logger.Warn("scope consumer did not leave its group", "error", err)
		}
	}()
	for {
		batch, err := c.fetch(ctx, r)
		if len(batch) == 0 {
			if ctx.Err() != nil {
				return
			}
			c.said.Say(slog.LevelWarn, "read", "scope consumer cannot read", "error", err)
			if !pause(ctx, retryMin) {
				return
			}
			continue
		}
		c.said.Well(signals.ReadsWell, "scope consumer reads again")
		if !c.settle(ctx, batch) {
			return
		}
		c.commit(ctx, r, batch)
	}
}

func (c *Consumer) fetch(ctx context.Context, r *kafka.Reader) ([]kafka.Message, error) {
	m, err := r.FetchMessage(ctx)
	if err != nil {
		return nil, err
	}
	batch := []kafka.Message{m}
	soon, cancel := context.WithTimeout(ctx, batchLinger)
	defer cancel()
	for len(batch) < batchSize {
		m, err := r.FetchMessage(soon)
		if err != nil {
			break // the linger is over; a real error comes again
		}
		batch = append(batch, m)
	}
	return batch, nil
}

// settle assesses what a batch says was asked. It returns false only when ctx ended before.
func (c *Consumer) settle(ctx context.Context, batch []kafka.Message) bool {
	var samples []sample
	for _, m := range batch {
		found, ok := c.look(ctx, m)
		if !ok {
			return false
		}
		samples = append(samples, found...)
	}
	var group errgroup.Group
	group.SetLimit(c.cfg.Parallel)
	for _, s := range samples {
		group.Go(func() error { return c.judge(ctx, s) })
	}
	err := group.Wait()
	c.flush(ctx)
	return err == nil
}

// judge assesses one sample and raises what is out. It fails only when ctx ended before.
func (c *Consumer) judge(ctx context.Context, s sample) error {
	var out Assessment
	known, alive := c.retry(ctx, "judge", s.until, func() error {
		var err error
		out, err = c.cfg.Assessor.Assess(ctx, s.account, s.asked)
		return err
	})
	switch {
	case !alive:
		return context.Canceled
	case !known:
		c.abstain(s.account, JudgeAway)
		return nil
	}
	if out.Abstained != "" {
		c.note(s.account, out.Abstained)
		return nil
	}
	c.note(s.account, string(out.Verdict))
	if out.Verdict != Out {
		return nil
	}
	about := *s.account
	about.KeyPrefix = "" // it speaks of what was asked, not of a key
	// However long it takes: a verdict that is kept and never raised would be an alert lost.
	if _, alive = c.retry(ctx, "raise", noEnd, func() error { return c.cfg.Raise(ctx, &about, Finding(&out.Judged, s.asked)) }); !alive {
		return context.Canceled
	}
	c.metrics.raised.Inc()
	return nil
}

// Finding is the signal of a verdict out. Its id is the same for like inputs of an account on a day under one scope: a replay raises nothing twice, and what
// comes again tomorrow is said again.
func Finding(v *Judged, asked Asked) signals.Own {
	details := map[string]any{
		"verdict": string(v.Verdict), "confidence": v.Confidence, "judge_model": v.Model, "prompt_version": v.PromptVersion, "scope_version": v.ScopeVersion,
		"input_hash": v.InputHash, "found_in": asked.Found, "raised_by": "scope judge",
	}
	for name, value := range map[string]string{"reason": v.Reason, "trace_id": asked.TraceID, "span_id": asked.SpanID, "verdict_id": v.ID} {
		if value != "" {
			details[name] = value
		}
	}
	return signals.Own{
		Type: signals.OffTopicProduction, Severity: signals.Warn, DetectedAt: asked.At, SessionID: asked.SessionID, Details: details,
		ID: "scope_" + v.InputHash[:32] + "_" + v.ScopeVersion + "_" + asked.At.UTC().Format("2006-01-02"),
	}
}

// noEnd lets retry go on until ctx ends.
var noEnd time.Time

// retry repeats f with growing pauses until it succeeds, until is past, or ctx ends. The first result says that it succeeded, the second that ctx goes on.
func (c *Consumer) retry(ctx context.Context, step string, until time.Time, f func() error) (bool, bool) {
	wait := retryMin
	for {
		err := f()
		if err == nil {
			c.metrics.paused.Set(0)
			if c.waiting.Swap(false) {
				c.cfg.Logger.Info("scope consumer goes on", "step", step)
			}
			return true, true
		}
		if ctx.Err() != nil {
			return false, false
		}
		c.metrics.failures.WithLabelValues(step).Inc()
		if until != noEnd && c.cfg.Now().Add(wait).After(until) {
			return false, true
		}
		c.metrics.paused.Set(1)
		if !c.waiting.Swap(true) {
			c.cfg.Logger.Warn("scope consumer waits; what is too old by then is not judged", "step", step, "error", err, "max_lag", c.cfg.MaxLag)
		}
		if !pause(ctx, wait) {
			return false, false
		}
		wait = min(2*wait, retryMax)
	}
}

// note counts for the account's page.
func (c *Consumer) note(p *auth.Principal, what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := countKey{p.Org, p.ID, what}
	n := c.counts[k]
	c.counts[k] = Count{n.Count + 1, c.cfg.Now()}
}

// flush writes the counts. They are for people to see: what cannot be written waits for the next batch.
func (c *Consumer) flush(ctx context.Context) {
	c.mu.Lock()
	counts := c.counts
	c.counts = map[countKey]Count{}
	c.mu.Unlock()
	err := c.cfg.Assessor.cfg.Store.addCounts(context.WithoutCancel(ctx), counts)
	if err == nil {
		return
	}
	c.metrics.failures.WithLabelValues("count").Inc()
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, n := range counts {
		have := c.counts[k]
		c.counts[k] = Count{have.Count + n.Count, n.Last}
	}
}

func (c *Consumer) commit(ctx context.Context, r *kafka.Reader, batch []kafka.Message) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastCommit)
	defer cancel()
	if err := r.CommitMessages(ctx, batch...); err != nil {
		c.metrics.failures.WithLabelValues("commit").Inc()
		c.cfg.Logger.Warn("scope consumer's offsets cannot be committed; these messages may be read again", "error", err, "messages", len(batch))
	}
	for _, m := range batch {
		c.lag[partition{m.Topic, m.Partition}] = max(0, m.HighWaterMark-m.Offset-1)
	}
	var lag int64
	for _, n := range c.lag {
		lag += n
	}
	c.metrics.lag.Set(float64(lag))
}

// pause waits, a little more or less so that several consumers do not knock at once. It returns false when ctx ended.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d/2 + rand.N(d))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
