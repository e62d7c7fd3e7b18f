package scope

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// schema is the JSON Schema of an answer.
var schema = json.RawMessage(`{"type":"object","properties":{"verdict":{"type":"string","enum":["in","out","unsure"]},"confidence":{"type":"number"},"reason":{"type":"string"}},"required":["verdict","confidence","reason"],"additionalProperties":false}`)

func (j *Judge) body(q question, d dialect) []byte {
	req := map[string]any{"model": q.model, "messages": q.chat, "stream": false}
	limit := "max_tokens"
	if d.newLimit {
		limit = "max_completion_tokens"
	}
	req[limit] = d.answerTokens()
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

// once sends one request, which m pays for first.
func (j *Judge) once(ctx context.Context, q question, d dialect, m *meter) (reply, *failure) {
	if err := m.allow(ctx, d.answerTokens()); err != nil {
		return reply{}, &failure{err: err}
	}
	begun := j.cfg.Now()
	r, failed := j.post(ctx, q, j.body(q, d))
	result := "answered"
	if failed != nil {
		result = "failed"
	}
	j.metrics.seconds.WithLabelValues(result).Observe(j.cfg.Now().Sub(begun).Seconds())
	if failed == nil && !r.free || failed != nil && failed.billed {
		m.charge(r.tokensIn, r.tokensOut, d.answerTokens())
	}
	return r, failed
}

const (
	chatPath   = "/chat/completions"
	modelsPath = "/models"
)

// send does one request of the API, reads at most so many bytes of its answer, and says whether the server may have read it.
func (j *Judge) send(ctx context.Context, method, path string, body []byte, most int64) (code int, header http.Header, answer []byte, sent bool, err error) {
	var wrote atomic.Bool // by the transport's own goroutine
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaders: func() { wrote.Store(true) }})
	req, err := http.NewRequestWithContext(ctx, method, j.base+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, nil, false, errors.New("its address cannot be used")
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "sluice-scope")
	if j.cfg.Key != "" {
		req.Header.Set("Authorization", "Bearer "+j.cfg.Key)
	}
	res, err := j.client.Do(req)
	if err != nil {
		return 0, nil, nil, wrote.Load(), err
	}
	defer res.Body.Close()
	answer, err = io.ReadAll(io.LimitReader(res.Body, most))
	return res.StatusCode, res.Header, answer, true, err
}

func (j *Judge) post(ctx context.Context, q question, body []byte) (reply, *failure) {
	code, header, b, sent, err := j.send(ctx, http.MethodPost, chatPath, body, maxAnswerBytes+1)
	if err != nil {
		return reply{}, broken(ctx, err, sent)
	}
	if code == http.StatusOK {
		if len(b) > maxAnswerBytes {
			return reply{opinion: opinion{verdict: Unsure, why: Malformed}}, nil
		}
		return readCompletion(q, b)
	}
	said := readError(b)
	switch {
	case said.filtered && code < 500:
		return reply{opinion: opinion{verdict: Unsure, why: Refused}, free: true}, nil
	case code == http.StatusNotFound:
		j.forget()
	}
	return reply{}, j.failed(code, header, said)
}

// failed is what an answer that is no success says.
func (j *Judge) failed(code int, header http.Header, said *serverError) *failure {
	switch {
	case code == http.StatusUnauthorized || code == http.StatusForbidden:
		return &failure{reason: "key", text: fmt.Sprintf("it refuses our key (%d%s)", code, said.code)}
	case code == http.StatusTooManyRequests:
		return &failure{reason: "overloaded", text: "it says too many requests (429" + said.code + ")", again: true, retryAfter: retryAfter(header, j.cfg.Now())}
	case code == http.StatusRequestTimeout || code >= 500:
		// Who is not available has done nothing; any other server may have failed after the work.
		billed := code >= 500 && code != http.StatusServiceUnavailable
		return &failure{reason: "server", text: fmt.Sprintf("it failed (%d%s)", code, said.code), again: true, retryAfter: retryAfter(header, j.cfg.Now()), billed: billed}
	case code == http.StatusBadRequest || code == http.StatusUnprocessableEntity:
		return &failure{reason: "refused", text: fmt.Sprintf("it does not take our request (%d%s)", code, said.code), refusal: said}
	default:
		return &failure{reason: "refused", text: fmt.Sprintf("it answers %d%s", code, said.code)}
	}
}

// broken is a request that ended without an answer.
func broken(ctx context.Context, err error, sent bool) *failure {
	if ctx.Err() != nil {
		return &failure{reason: "timeout", text: "it took too long", billed: sent}
	}
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err // without the address, which the log has elsewhere
	}
	return &failure{reason: "unreachable", text: err.Error(), again: true, billed: sent}
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
		return reply{}, &failure{reason: "answer", text: "it answers no JSON of the chat API", again: true, billed: true}
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

// A serverError is what a server says of a request that it did not take.
type serverError struct {
	code     string // " CODE" for the log; "" where there is none that can be shown: the words beside it may repeat what was sent
	param    string // the parameter that it names as the cause
	words    string // all it says, in lower case; never shown
	filtered bool   // a filter of contents stopped the question
}

var codePattern = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}$`)

// filterCodes are the codes of errors by which filters of contents speak.
var filterCodes = []string{"content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation", "invalid_prompt", "moderation_blocked"}

func readError(b []byte) *serverError {
	type fields struct {
		Code  any    `json:"code"`
		Type  string `json:"type"`
		Param string `json:"param"`
		Inner struct {
			Code string `json:"code"`
		} `json:"innererror"`
		Metadata struct {
			Reasons []string `json:"reasons"` // of a moderation
		} `json:"metadata"`
	}
	out := &serverError{words: strings.ToLower(string(b))}
	var e struct {
		fields         // some servers have them at the top
		Error  *fields `json:"error"`
	}
	if json.Unmarshal(b, &e) != nil {
		return out
	}
	f := e.fields
	if e.Error != nil {
		f = *e.Error
	}
	code, _ := f.Code.(string)
	for _, s := range []string{code, f.Type} {
		if out.code == "" && codePattern.MatchString(s) {
			out.code = " " + s
		}
	}
	out.param = strings.ToLower(f.Param)
	out.filtered = len(f.Metadata.Reasons) > 0
	for _, s := range []string{code, f.Type, f.Inner.Code} {
		out.filtered = out.filtered || slices.Contains(filterCodes, s)
	}
	return out
}

// names says whether the server does not understand a parameter of ours. Words that stand in what was sent prove nothing: it may be repeating them.
func (e *serverError) names(q question, parameter string) bool {
	if e.param == parameter || strings.HasPrefix(e.param, parameter+".") {
		return true
	}
	for _, m := range q.chat {
		if strings.Contains(strings.ToLower(m.Content), parameter) {
			return false
		}
	}
	return strings.Contains(e.words, parameter)
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
