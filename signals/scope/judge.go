package scope

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// JudgeConfig says where the judge is. URL and Model are required.
type JudgeConfig struct {
	URL   string // of the OpenAI-compatible API, as https://judge.example/v1; /chat/completions is added
	Model string
	Key   string // sent as a bearer token; "" sends none

	Timeout time.Duration // for one question, repetitions included; default 20 s

	Registerer prometheus.Registerer // nil: no metrics
	Now        func() time.Time      // nil: time.Now
}

// ErrAway says that the judge did not answer, and may later: it cannot be reached, is overloaded, or refuses our key. Nothing is known about the prompt.
var ErrAway = errors.New("the judge does not answer")

// ErrRefused says that the judge answers, and will not take this question in any way of asking: it is too long for the model, or the model does not exist.
var ErrRefused = errors.New("the judge does not take the question")

// A Judge asks a language model. It is safe for concurrent use.
//
// One question is tried up to three times within its timeout, with growing, jittered pauses, or the pause that the server asks for. After some questions in a row
// that failed it asks nobody for a while, up to a minute, and then tries one.
type Judge struct {
	cfg      JudgeConfig
	endpoint string
	client   *http.Client
	metrics  judgeMetrics

	mu      sync.Mutex
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

const (
	maxAnswerBytes  = 64 << 10
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
	if cfg.Model == "" {
		return nil, errors.New("the judge needs a model")
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = 20 * time.Second
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	j := &Judge{cfg: cfg, endpoint: strings.TrimRight(u.String(), "/"), client: &http.Client{
		// A redirect would carry a prompt to an address that nobody configured.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	if !strings.HasSuffix(j.endpoint, "/chat/completions") {
		j.endpoint += "/chat/completions"
	}
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

// Model is what the judge was told to be.
func (j *Judge) Model() string { return j.cfg.Model }

// Away says whether the judge failed lately so often that it is not asked.
func (j *Judge) Away() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.fails >= breakAfter && j.cfg.Now().Before(j.until)
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
}

// ask sends a question. Its error is ErrAway or ErrRefused, wrapped, or ctx's.
func (j *Judge) ask(ctx context.Context, q question) (reply, error) {
	if !j.allow() {
		return reply{}, fmt.Errorf("%w: it has failed too often and is left alone for a while", ErrAway)
	}
	limited, cancel := context.WithTimeout(ctx, j.cfg.Timeout)
	defer cancel()
	r, retryAfter, err := j.tries(limited, q)
	if err != nil && ctx.Err() != nil {
		j.mu.Lock()
		j.probing = false // the caller gave up; that says nothing about the judge
		j.mu.Unlock()
		return r, ctx.Err()
	}
	j.result(err == nil, retryAfter)
	return r, err
}

func (j *Judge) tries(ctx context.Context, q question) (reply, time.Duration, error) {
	wait := 250 * time.Millisecond
	for try := 1; ; try++ {
		r, failed := j.negotiate(ctx, q)
		if failed == nil {
			return r, 0, nil
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
	refusal    string // the words of a 400, which may say what the server does not understand; never shown
}

// negotiate asks in the way that worked last, and where the server refuses the request itself, in plainer ways. The first that works is kept.
func (j *Judge) negotiate(ctx context.Context, q question) (reply, *failure) {
	j.mu.Lock()
	d := j.dialect
	j.mu.Unlock()
	for {
		r, failed := j.once(ctx, q, d)
		if failed == nil || failed.refusal == "" {
			if failed == nil && d != j.dialectNow() {
				j.mu.Lock()
				j.dialect = d
				j.mu.Unlock()
			}
			return r, failed
		}
		words := strings.ToLower(failed.refusal)
		switch {
		case !d.newLimit && strings.Contains(words, "max_tokens"):
			d.newLimit = true
		case !d.noSeed && strings.Contains(words, "temperature"):
			d.noSeed = true
		case d.format < byWords:
			d.format++
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

// schema is the JSON Schema of an answer.
var schema = json.RawMessage(`{"type":"object","properties":{"verdict":{"type":"string","enum":["in","out","unsure"]},"confidence":{"type":"number"},"reason":{"type":"string"}},"required":["verdict","confidence","reason"],"additionalProperties":false}`)

func (j *Judge) body(q question, d dialect) []byte {
	req := map[string]any{"model": j.cfg.Model, "messages": q.chat, "stream": false}
	limit := "max_tokens"
	if d.newLimit {
		// Models that want this name think first, and their thoughts count.
		limit = "max_completion_tokens"
	}
	req[limit] = maxAnswerTokens
	if d.newLimit {
		req[limit] = 8 * maxAnswerTokens
	}
	if !d.noSeed {
		req["temperature"] = 0
	}
	switch d.format {
	case bySchema:
		req["response_format"] = map[string]any{"type": "json_schema", "json_schema": map[string]any{"name": "scope_verdict", "strict": true, "schema": schema}}
	case byObject:
		req["response_format"] = map[string]any{"type": "json_object"}
	}
	b, err := json.Marshal(req)
	if err != nil {
		panic("BUG: a question is not JSON: " + err.Error())
	}
	return b
}

func (j *Judge) once(ctx context.Context, q question, d dialect) (reply, *failure) {
	begun := j.cfg.Now()
	r, failed := j.post(ctx, q, j.body(q, d))
	result := "answered"
	if failed != nil {
		result = "failed"
	}
	j.metrics.seconds.WithLabelValues(result).Observe(j.cfg.Now().Sub(begun).Seconds())
	return r, failed
}

func (j *Judge) post(ctx context.Context, q question, body []byte) (reply, *failure) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, j.endpoint, bytes.NewReader(body))
	if err != nil {
		return reply{}, &failure{reason: "unreachable", text: "its address cannot be used"}
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "sluice-scope")
	if j.cfg.Key != "" {
		req.Header.Set("Authorization", "Bearer "+j.cfg.Key)
	}
	res, err := j.client.Do(req)
	if err != nil {
		return reply{}, broken(ctx, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswerBytes+1))
	if err != nil {
		return reply{}, broken(ctx, err)
	}
	switch code := res.StatusCode; {
	case code == http.StatusOK && len(b) > maxAnswerBytes:
		return reply{opinion: opinion{verdict: Unsure, why: Malformed}}, nil
	case code == http.StatusOK:
		return readCompletion(q, b)
	case code == http.StatusUnauthorized || code == http.StatusForbidden:
		return reply{}, &failure{reason: "key", text: fmt.Sprintf("it refuses our key (%d%s)", code, errorCode(b))}
	case code == http.StatusTooManyRequests:
		return reply{}, &failure{reason: "overloaded", text: "it says too many requests (429" + errorCode(b) + ")", again: true, retryAfter: retryAfter(res.Header, j.cfg.Now())}
	case code == http.StatusRequestTimeout || code >= 500:
		return reply{}, &failure{reason: "server", text: fmt.Sprintf("it failed (%d%s)", code, errorCode(b)), again: true, retryAfter: retryAfter(res.Header, j.cfg.Now())}
	case code == http.StatusBadRequest || code == http.StatusUnprocessableEntity:
		return reply{}, &failure{reason: "refused", text: fmt.Sprintf("it does not take our request (%d%s)", code, errorCode(b)), refusal: string(b) + " "}
	default:
		return reply{}, &failure{reason: "refused", text: fmt.Sprintf("it answers %d%s", code, errorCode(b))}
	}
}

// broken is a request that ended without an answer.
func broken(ctx context.Context, err error) *failure {
	if ctx.Err() != nil {
		return &failure{reason: "timeout", text: "it took too long"}
	}
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err // without the address, which the log has elsewhere
	}
	return &failure{reason: "unreachable", text: err.Error(), again: true}
}

// readCompletion reads what a server of the chat API answers.
func readCompletion(q question, b []byte) (reply, *failure) {
	var c struct {
		Choices []struct {
			FinishReason string `json:"finish_reason"`
			Message      struct {
				Content   *string           `json:"content"`
				Refusal   *string           `json:"refusal"`
				ToolCalls []json.RawMessage `json:"tool_calls"`
			} `json:"message"`
		} `json:"choices"`
		Usage struct {
			Prompt     int64 `json:"prompt_tokens"`
			Completion int64 `json:"completion_tokens"`
		} `json:"usage"`
	}
	if json.Unmarshal(b, &c) != nil {
		return reply{}, &failure{reason: "answer", text: "it answers no JSON of the chat API", again: true}
	}
	r := reply{tokensIn: max(c.Usage.Prompt, 0), tokensOut: max(c.Usage.Completion, 0)}
	if len(c.Choices) != 1 {
		r.opinion = opinion{verdict: Unsure, why: Malformed}
		return r, nil
	}
	one := c.Choices[0]
	switch {
	case one.Message.Refusal != nil && *one.Message.Refusal != "" || one.FinishReason == "content_filter":
		r.opinion = opinion{verdict: Unsure, why: Refused}
	case one.FinishReason == "length":
		r.opinion = opinion{verdict: Unsure, why: CutShort}
	case one.Message.Content == nil || len(one.Message.ToolCalls) > 0:
		r.opinion = opinion{verdict: Unsure, why: Malformed}
	default:
		r.opinion = q.read(*one.Message.Content)
	}
	return r, nil
}

var codePattern = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}$`)

// errorCode is the code that a server gives its error, for the log: the words beside it may repeat what was sent.
func errorCode(b []byte) string {
	var e struct {
		Error struct {
			Code any    `json:"code"`
			Type string `json:"type"`
		} `json:"error"`
	}
	if json.Unmarshal(b, &e) != nil {
		return ""
	}
	for _, s := range []any{e.Error.Code, e.Error.Type} {
		if s, ok := s.(string); ok && codePattern.MatchString(s) {
			return " " + s
		}
	}
	return ""
}

// retryAfter is what the server asks for, a minute at most.
func retryAfter(h http.Header, now time.Time) time.Duration {
	s := h.Get("Retry-After")
	if n, err := strconv.ParseInt(s, 10, 32); err == nil {
		return min(max(time.Duration(n)*time.Second, 0), time.Minute)
	}
	if t, err := http.ParseTime(s); err == nil {
		return min(max(t.Sub(now), 0), time.Minute)
	}
	return 0
}
