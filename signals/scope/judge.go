package scope

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// JudgeConfig says where the judge is. URL is required.
type JudgeConfig struct {
	URL   string   // of the OpenAI-compatible API, as https://judge.example/v1; /chat/completions is added
	Model string   // "": the first that the server lists, asked for before the first question
	Key   string   // sent as a bearer token; "" sends none
	Proxy *url.URL // nil: none. The environment's is never used: a prompt goes where a setting of ours says

	Timeout time.Duration // for one question, repetitions included; default 20 s

	Registerer prometheus.Registerer // nil: no metrics
	Logger     *slog.Logger          // nil: the model that was found is not said
	Now        func() time.Time      // nil: time.Now
}

// ErrAway says that the judge did not answer, and may later: it cannot be reached, is overloaded, or refuses our key. Nothing is known about the prompt.
var ErrAway = errors.New("the judge does not answer")

// ErrRefused says that the judge answers, and will not take this question in any way of asking: it is too long for the model, or the model does not exist.
// It is no outage: whoever writes prompts could else switch the judge off for everybody.
var ErrRefused = errors.New("the judge does not take the question")

// A Judge asks a language model. It is safe for concurrent use.
//
// One question is tried up to three times within its timeout, with growing, jittered pauses, or the pause that the server asks for. After some questions in a row
// that failed it asks nobody for a while, up to a minute, and then tries one.
type Judge struct {
	cfg     JudgeConfig
	base    string // of the API
	client  *http.Client
	metrics judgeMetrics

	mu      sync.Mutex
	model   string // "" until it is known
	dialect dialect
	fails   int
	until   time.Time // nobody is asked before
	probing bool
}

type judgeMetrics struct {
	seconds *prometheus.HistogramVec
	errors  *prometheus.CounterVec
	away    prometheus.Gauge
}

// A dialect is what the server understands of the API; the ways of asking, most exact first.
type dialect struct {
	format   format
	newLimit bool // max_completion_tokens instead of max_tokens
	noSeed   bool // no temperature
}

type format uint8

const (
	bySchema format = iota // response_format json_schema
	byObject               // response_format json_object
	byWords                // the instructions alone
)

// answerTokens is the most that an answer may take.
func (d dialect) answerTokens() int64 {
	if d.newLimit {
		return 8 * maxAnswerTokens // models that want the new name think first, and their thoughts count
	}
	return maxAnswerTokens
}

const (
	maxAnswerBytes  = 64 << 10
	maxModelsBytes  = 4 << 20
	maxAnswerTokens = 300
	maxTries        = 3
	breakAfter      = 3 // questions that failed in a row
	breakMin        = 2 * time.Second
	breakMax        = time.Minute
)

// ParseJudgeURL checks a judge's address. A key or a question in it would end up in logs, so neither is taken.
func ParseJudgeURL(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, errors.New("not an http or https URL")
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("must hold no user, password, query or fragment")
	}
	return u, nil
}

// NewJudge returns a Judge that has asked nobody yet.
func NewJudge(cfg JudgeConfig) (*Judge, error) {
	u, err := ParseJudgeURL(cfg.URL)
	if err != nil {
		return nil, fmt.Errorf("judge's URL: %w", err)
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = 20 * time.Second
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.Proxy = http.ProxyURL(cfg.Proxy)
	j := &Judge{cfg: cfg, model: cfg.Model, base: strings.TrimSuffix(strings.TrimRight(u.String(), "/"), chatPath), client: &http.Client{
		Transport: transport,
		// A redirect would carry a prompt to an address that nobody configured.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	j.metrics = judgeMetrics{
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "sluice_scope_judge_duration_seconds", Help: "Time of one request to the judge, by how it ended.",
			Buckets: []float64{.1, .25, .5, 1, 2, 4, 8, 15, 30, 60}}, []string{"result"}),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sluice_scope_judge_errors_total", Help: "Requests to the judge that brought no answer, by reason."}, []string{"reason"}),
		away:   prometheus.NewGauge(prometheus.GaugeOpts{Name: "sluice_scope_judge_away", Help: "1 while the judge failed so often that it is asked only now and then."}),
	}
	if cfg.Registerer != nil {
		cfg.Registerer.MustRegister(j.metrics.seconds, j.metrics.errors, j.metrics.away)
	}
	return j, nil
}

// Away says whether the judge failed lately so often that it is asked only now and then, and has not answered since.
func (j *Judge) Away() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.fails >= breakAfter
}

// resting says whether the judge is away, and not to be asked yet.
func (j *Judge) resting() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.fails >= breakAfter && (j.probing || j.cfg.Now().Before(j.until))
}

// allow says whether a question may be sent now.
func (j *Judge) allow() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.fails < breakAfter {
		return true
	}
	if j.probing || j.cfg.Now().Before(j.until) {
		return false
	}
	j.probing = true
	return true
}

// result tells the breaker how a question ended. retryAfter is what the server asked for; 0: nothing.
func (j *Judge) result(ok bool, retryAfter time.Duration) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.probing = false
	if ok {
		j.fails = 0
		j.metrics.away.Set(0)
		return
	}
	j.fails++
	if j.fails >= breakAfter {
		wait := min(breakMin<<min(j.fails-breakAfter, 10), breakMax)
		j.until = j.cfg.Now().Add(max(wait/2+rand.N(wait), min(retryAfter, breakMax)))
		j.metrics.away.Set(1)
	}
}

// A reply is what the judge said, and what it cost.
type reply struct {
	opinion
	tokensIn, tokensOut int64 // as the server counts; 0, 0 where it does not
	free                bool  // nobody can be charged for it
}

// ask sends a question, unless the judge is left alone just now, and has m pay for it; a nil m pays everything. Its error is ErrAway or ErrRefused,
// wrapped, what m says, or ctx's.
func (j *Judge) ask(ctx context.Context, q question, m *meter) (reply, error) {
	var r reply
	err := j.probe(ctx, func(ctx context.Context) (retryAfter time.Duration, err error) {
		r, retryAfter, err = j.tries(ctx, q, m)
		return retryAfter, err
	})
	return r, err
}

// probe calls f, which asks the server something within the judge's timeout, unless the breaker is open, and tells the breaker how it ended.
func (j *Judge) probe(ctx context.Context, f func(context.Context) (retryAfter time.Duration, err error)) error {
	if !j.allow() {
		return fmt.Errorf("%w: it has failed too often and is left alone for a while", ErrAway)
	}
	limited, cancel := context.WithTimeout(ctx, j.cfg.Timeout)
	defer cancel()
	retryAfter, err := f(limited)
	switch {
	case err != nil && ctx.Err() != nil:
		err = ctx.Err()
		j.release() // the caller gave up; that says nothing about the judge
	case errors.Is(err, ErrAway):
		j.result(false, retryAfter)
	case err == nil || errors.Is(err, ErrRefused):
		j.result(true, 0)
	default:
		j.release()
	}
	return err
}

// release ends a question that says nothing about the judge.
func (j *Judge) release() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.probing = false
}

func (j *Judge) tries(ctx context.Context, q question, m *meter) (reply, time.Duration, error) {
	wait := 250 * time.Millisecond
	for try := 1; ; try++ {
		r, failed := j.negotiate(ctx, q, m)
		if failed == nil {
			return r, 0, nil
		}
		if failed.err != nil {
			return r, 0, failed.err
		}
		j.metrics.errors.WithLabelValues(failed.reason).Inc()
		err := fmt.Errorf("%w: %s", ErrAway, failed.text)
		if failed.reason == "refused" {
			err = fmt.Errorf("%w: %s", ErrRefused, failed.text)
		}
		if !failed.again || try == maxTries {
			return r, failed.retryAfter, err
		}
		pause := max(wait/2+rand.N(wait), failed.retryAfter)
		if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < pause {
			return r, failed.retryAfter, err
		}
		select {
		case <-ctx.Done():
			return r, failed.retryAfter, err
		case <-time.After(pause):
		}
		wait *= 2
	}
}

// A failure is a request that brought no answer. Its text holds nothing of the question and of the key.
type failure struct {
	reason     string // a label: unreachable, timeout, key, overloaded, server, refused, answer
	text       string
	again      bool
	retryAfter time.Duration
	billed     bool         // the server may have done the work, and charge for it
	refusal    *serverError // of a 400, which may say what the server does not understand; never shown
	err        error        // it was not sent at all, for this reason; nothing else is set
}

// negotiate asks in the way that worked last, and where the server refuses the request itself, in plainer ways. A way that works is kept where the
// server had named what it does not understand; else the refusal may have been the prompt's doing, and holds for this question only.
func (j *Judge) negotiate(ctx context.Context, q question, m *meter) (reply, *failure) {
	d := j.dialectNow()
	learned := d
	for {
		r, failed := j.once(ctx, q, d, m)
		if failed == nil && learned != j.dialectNow() {
			j.mu.Lock()
			j.dialect = learned
			j.mu.Unlock()
		}
		if failed == nil || failed.refusal == nil {
			return r, failed
		}
		switch why := failed.refusal; {
		case !d.newLimit && why.names(q, "max_tokens"):
			d.newLimit, learned.newLimit = true, true
		case !d.noSeed && why.names(q, "temperature"):
			d.noSeed, learned.noSeed = true, true
		case d.format < byWords:
			d.format++
			if why.names(q, "response_format") || why.names(q, "json_schema") || why.names(q, "json_object") {
				learned.format = d.format
			}
		default:
			return r, failed
		}
	}
}

func (j *Judge) dialectNow() dialect {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.dialect
}
