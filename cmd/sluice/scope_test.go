package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlplog/otlploghttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	otellog "go.opentelemetry.io/otel/log"
	sdklog "go.opentelemetry.io/otel/sdk/log"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// A scriptedJudge is a server of the OpenAI-compatible chat API that says what its script has for a word of the prompt.
type scriptedJudge struct {
	*httptest.Server
	mu     sync.Mutex
	bodies []string // of all requests
	down   bool     // answers 503
	held   chan struct{}
}

func startScriptedJudge() *scriptedJudge {
	j := &scriptedJudge{}
	j.Server = httptest.NewServer(http.HandlerFunc(j.serve))
	return j
}

func newScriptedJudge(t *testing.T) *scriptedJudge {
	t.Helper()
	j := startScriptedJudge()
	t.Cleanup(func() {
		j.hold(false)
		j.Close()
	})
	return j
}

// cmdJudge is a command of the stories: it starts a scripted judge, whose key is judge-key-of-the-test, and sets $NAME_URL.
func cmdJudge(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 || neg {
		ts.Fatalf("usage: judge NAME")
	}
	j := startScriptedJudge()
	ts.Defer(j.Close)
	ts.Setenv(args[0]+"_URL", j.URL+"/v1")
}

// hold lets requests wait until it is called again.
func (j *scriptedJudge) hold(on bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.held != nil {
		close(j.held)
		j.held = nil
	}
	if on {
		j.held = make(chan struct{})
	}
}

func (j *scriptedJudge) setDown(down bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.down = down
}

func (j *scriptedJudge) asked() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return append([]string(nil), j.bodies...)
}

func (j *scriptedJudge) serve(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/v1/models" {
		_, _ = io.WriteString(w, `{"object":"list","data":[{"id":"scripted-1"}]}`)
		return
	}
	b, _ := io.ReadAll(r.Body)
	j.mu.Lock()
	j.bodies = append(j.bodies, string(b))
	down, held := j.down, j.held
	j.mu.Unlock()
	if held != nil {
		select {
		case <-held:
		case <-r.Context().Done():
			return
		}
	}
	if down || r.URL.Path != "/v1/chat/completions" || r.Header.Get("Authorization") != "Bearer judge-key-of-the-test" {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	var req struct{ Messages []struct{ Content string } }
	if json.Unmarshal(b, &req) != nil || len(req.Messages) != 2 {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	_, prompt, _ := strings.Cut(req.Messages[1].Content, "<<<REQUEST ")
	verdict := `{"verdict":"in","confidence":0.95,"reason":"It is about the tickets."}`
	switch {
	case strings.Contains(prompt, "poem"):
		verdict = `{"verdict":"out","confidence":0.97,"reason":"Creative writing is not part of making digests."}`
	case strings.Contains(prompt, "maybe"):
		verdict = `{"verdict":"out","confidence":0.3,"reason":"Hard to say."}`
	case strings.Contains(prompt, "Anna earn"):
		verdict = `{"verdict":"out","confidence":0.9,"reason":"It asks: how much does Anna earn"}`
	case strings.Contains(prompt, "mumble"):
		verdict = "I would rather talk about something else."
	}
	_ = json.NewEncoder(w).Encode(map[string]any{
		"choices": []any{map[string]any{"finish_reason": "stop", "message": map[string]any{"role": "assistant", "content": verdict}}},
		"usage":   map[string]any{"prompt_tokens": 400, "completion_tokens": 30},
	})
}

// judgeArgs make a program ask the judge, as people would: the key in a file.
func (j *scriptedJudge) args(t *testing.T, more ...string) []string {
	t.Helper()
	file := t.TempDir() + "/key"
	if err := os.WriteFile(file, []byte("judge-key-of-the-test\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return append([]string{"--judge-url", j.URL + "/v1", "--judge-model", "scripted-1", "--judge-key-file", file, "--judge-sample", "1"}, more...)
}

// A workload sends prompts as OpenTelemetry's own SDK does: to a log, as Claude Code, and in spans, by the GenAI conventions.
type workload struct {
	logs  *sdklog.LoggerProvider
	spans *sdktrace.TracerProvider
}

func newWorkload(t *testing.T, edge, key string) *workload {
	t.Helper()
	headers := map[string]string{"x-flowstate-key": key}
	logs, err := otlploghttp.New(t.Context(), otlploghttp.WithEndpointURL(edge+"/v1/logs"), otlploghttp.WithHeaders(headers))
	if err != nil {
		t.Fatal(err)
	}
	spans, err := otlptracehttp.New(t.Context(), otlptracehttp.WithEndpointURL(edge+"/v1/traces"), otlptracehttp.WithHeaders(headers))
	if err != nil {
		t.Fatal(err)
	}
	w := &workload{sdklog.NewLoggerProvider(sdklog.WithProcessor(sdklog.NewBatchProcessor(logs))), sdktrace.NewTracerProvider(sdktrace.WithBatcher(spans))}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = w.logs.Shutdown(ctx) // the edge may be gone by now
		_ = w.spans.Shutdown(ctx)
	})
	return w
}

func (w *workload) prompt(t *testing.T, text string) {
	t.Helper()
	var r otellog.Record
	r.SetTimestamp(time.Now())
	r.SetBody(attribute.StringValue("claude_code.user_prompt"))
	r.AddAttributes(attribute.String("event.name", "user_prompt"), attribute.String("prompt", text), attribute.String("session.id", "session-1"))
	w.logs.Logger("com.anthropic.claude_code.events").Emit(t.Context(), r)
	if err := w.logs.ForceFlush(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (w *workload) chat(t *testing.T, text string) {
	t.Helper()
	messages, err := json.Marshal([]any{
		map[string]any{"role": "system", "parts": []any{map[string]any{"type": "text", "content": "You make digests."}}},
		map[string]any{"role": "user", "parts": []any{map[string]any{"type": "text", "content": text}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	_, span := w.spans.Tracer("test").Start(t.Context(), "chat m")
	span.SetAttributes(attribute.String("gen_ai.operation.name", "chat"), attribute.String("gen_ai.input.messages", string(messages)))
	span.End()
	if err := w.spans.ForceFlush(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// A judgeScene is a running Sluice with a judge, and a workload of the demo's account.
type judgeScene struct {
	*program
	t       *testing.T
	judge   *scriptedJudge
	work    *workload
	account string
	token   string
}

// get asks the admin API.
func (s *judgeScene) get(path string) string {
	s.t.Helper()
	r, err := send(s.t.Context(), http.DefaultClient, "GET", s.Admin+path, "", "Authorization", "Bearer "+s.token)
	if err != nil || r.status != 200 {
		s.t.Fatalf("GET %s: %d %v %s", path, r.status, err, r.body)
	}
	return string(r.body)
}

func (s *judgeScene) await(path, want string) string {
	s.t.Helper()
	var last string
	if !until(30*time.Second, s.exited, func() bool {
		last = s.get(path)
		return strings.Contains(last, want)
	}) {
		s.t.Fatalf("%s has no %q: %s\n%s", path, want, last, s.err.String())
	}
	return last
}

// metric is the sum of a metric's series whose name and labels begin so.
func (s *judgeScene) metric(prefix string) float64 {
	s.t.Helper()
	r, err := send(s.t.Context(), http.DefaultClient, "GET", s.Ops+"/metrics", "")
	if err != nil {
		s.t.Fatal(err)
	}
	sum := 0.0
	for line := range strings.Lines(string(r.body)) {
		if strings.HasPrefix(line, prefix) {
			var v float64
			if _, err := fmt.Sscan(line[strings.LastIndexByte(line, ' ')+1:], &v); err != nil {
				s.t.Fatal(line)
			}
			sum += v
		}
	}
	return sum
}

func (s *judgeScene) awaitMetric(prefix string, want float64) {
	s.t.Helper()
	if !until(30*time.Second, s.exited, func() bool { return s.metric(prefix) >= want }) {
		s.t.Fatalf("%s is %v, want %v\n%s", prefix, s.metric(prefix), want, s.err.String())
	}
}

func newJudgeScene(t *testing.T, at *place, judge *scriptedJudge, more ...string) *judgeScene {
	t.Helper()
	s := &judgeScene{t: t, judge: judge, program: at.start(t, append([]string{"dev"}, judge.args(t, more...)...)...)}
	s.account, s.token = s.Account, s.Token
	if s.Key != "" { // shown on the first start only
		s.work = newWorkload(t, s.Edge, s.Key)
	}
	return s
}

// On a Sluice with a judge, what is out of scope becomes an alert with the badge, and nothing else does.
func TestScopeJudge(t *testing.T) {
	t.Parallel()
	judge := newScriptedJudge(t)
	s := newJudgeScene(t, onDev(t), judge)
	verdicts := func(what string, n float64) { s.awaitMetric(`sluice_scope_verdicts_total{verdict="`+what, n) }

	s.work.prompt(t, "Digest today's tickets of team blue.")
	verdicts("in", 1)
	s.work.prompt(t, "<REDACTED>")
	verdicts("abstained", 1)
	s.work.prompt(t, "maybe something about tickets")
	s.work.chat(t, "mumble")
	verdicts("unsure", 2)
	// The secret in it stays here.
	s.work.prompt(t, "Write a poem about my key sk-proj-abcdefghijklmnopqrstuvwx1234 and password: hunter2hunter2")
	alerts := s.await("/api/v1/alerts", "off_topic_production")
	for _, want := range []string{`"label":"service: nightly-digest-summariser / production"`, `"severity":"WARN"`, `"session_id":"session-1"`, `"key_prefix":null`,
		`"judge_model":"scripted-1"`, `"reason":"Creative writing is not part of making digests."`, `"scope_version":"`, `"input_hash":"`} {
		if !strings.Contains(alerts, want) {
			t.Errorf("the alert has no %s: %s", want, alerts)
		}
	}
	if n := strings.Count(alerts, `"type":"off_topic_production"`); n != 1 {
		t.Errorf("%d alerts: %s", n, alerts)
	}
	// The same again, by other words of telemetry, is the same alert and no new question.
	before := len(judge.asked())
	s.work.chat(t, "write a  POEM about my key sk-proj-abcdefghijklmnopqrstuvwx1234 and password: hunter2hunter2")
	s.awaitMetric("sluice_scope_raised_total", 2)
	if n := len(judge.asked()); n != before {
		t.Errorf("%d questions for a like input", n-before)
	}
	s.work.chat(t, "Another poem, please.")
	s.awaitMetric("sluice_scope_raised_total", 3)
	if !until(20*time.Second, s.exited, func() bool { return strings.Count(s.get("/api/v1/alerts"), `"type":"off_topic_production"`) == 2 }) {
		t.Errorf("alerts: %s", s.get("/api/v1/alerts"))
	}
	for _, body := range judge.asked() {
		if strings.Contains(body, "sk-proj") || strings.Contains(body, "hunter2") || strings.Contains(body, s.Key) {
			t.Errorf("a secret left: %s", body)
		}
	}
	for where, text := range map[string]string{"log": s.err.String(), "alerts": s.get("/api/v1/alerts")} {
		if strings.Contains(text, "poem") || strings.Contains(text, "hunter2") || strings.Contains(text, "judge-key-of-the-test") {
			t.Errorf("the %s holds a prompt or a key", where)
		}
	}
}

// While the judge is away everything else goes on, and budgets outlive a restart.
func TestScopeJudgeAway(t *testing.T) {
	t.Parallel()
	judge, at := newScriptedJudge(t), onDev(t)
	s := newJudgeScene(t, at, judge, "--judge-requests-per-day", "3", "--judge-max-lag", "1m")
	judge.hold(true)
	s.work.prompt(t, "A poem, held.")
	s.awaitMetric("sluice_scope_sampled_total", 1)
	began := time.Now()
	r, err := send(t.Context(), http.DefaultClient, "POST", s.Edge+"/v1/signals", `{"type":"forecast_breach","id":"while-away"}`, "x-flowstate-key", s.Key)
	if err != nil || r.status != 200 {
		t.Fatalf("%d %v", r.status, err)
	}
	s.await("/api/v1/alerts", "forecast_breach")
	s.work.prompt(t, "A poem, which waits.")
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the rest took %v while the judge is away", took)
	}
	judge.setDown(true)
	judge.hold(false)
	s.awaitMetric("sluice_scope_judge_errors_total", 1)
	judge.setDown(false)
	// It comes back, and what waited is judged: of three questions a day, failed ones among them.
	s.awaitMetric(`sluice_scope_verdicts_total{verdict="out"`, 1)
	for i := range 4 {
		s.work.prompt(t, fmt.Sprintf("Poem of the %s kind", strings.Repeat("x", i+1)))
	}
	s.awaitMetric(`sluice_scope_verdicts_total{verdict="abstained",why="budget"}`, 1)
	s.awaitMetric(`sluice_scope_verdicts_total`, 6)
	key := s.Key // shown on the first start only
	s.stop(t)
	before := len(judge.asked())
	s = newJudgeScene(t, at, judge, "--judge-requests-per-day", "3")
	s.work = newWorkload(t, s.Edge, key)
	s.work.prompt(t, "A poem after the restart")
	s.awaitMetric(`sluice_scope_verdicts_total{verdict="abstained",why="budget"}`, 1)
	if n := len(judge.asked()); n != before {
		t.Errorf("%d questions over the budget of the day", n-before)
	}
}

// want asks the admin API for a change, and gives its answer.
func (s *judgeScene) want(method, path, body string) string {
	s.t.Helper()
	r, err := send(s.t.Context(), http.DefaultClient, method, s.Admin+path, body, "Authorization", "Bearer "+s.token)
	if err != nil || r.status > 299 {
		s.t.Fatalf("%s %s: %d %v %s", method, path, r.status, err, r.body)
	}
	return string(r.body)
}

// The judge alone raises no higher than WARN; the org's own policy may, since the org decided so. What an admin edits holds for the next prompts, and the page
// says what it is that is judged.
func TestScopeJudgeAndPolicy(t *testing.T) {
	t.Parallel()
	judge := newScriptedJudge(t)
	s := newJudgeScene(t, onDev(t), judge)
	verdicts := "/api/v1/service-accounts/" + s.account + "/scope/verdicts"
	s.await(verdicts, `"judging":true`)
	s.work.prompt(t, "How much does Anna earn?")
	alert := s.await("/api/v1/alerts", "off_topic_production")
	for _, want := range []string{`"severity":"WARN"`, `"base_severity":"WARN"`, `"rule":null`} {
		if !strings.Contains(alert, want) {
			t.Errorf("by the judge alone: no %s: %s", want, alert)
		}
	}
	if kept := s.await(verdicts, `"verdict":"out"`); !strings.Contains(kept, `"reason":null`) || strings.Contains(alert, "Anna") {
		t.Errorf("the reason repeats a short prompt: %s", kept)
	}
	activate := func(action string) {
		t.Helper()
		draft := s.want("POST", "/api/v1/policy/drafts", `{"rules":[{"id":"scope-creep","types":["off_topic_production"],"action":"`+action+`","scope":{"org":true}}]}`)
		var made struct{ ID string }
		if err := json.Unmarshal([]byte(draft), &made); err != nil {
			t.Fatal(err)
		}
		s.want("POST", "/api/v1/policy/drafts/"+made.ID+"/activate", "")
	}
	// Policy reaches what raises within a moment: another prompt until it has.
	raisedAt := func(severity string) {
		t.Helper()
		poem := "A poem at " + severity
		if !until(30*time.Second, s.exited, func() bool {
			poem += " again"
			s.work.prompt(t, poem)
			return strings.Contains(s.get("/api/v1/alerts"), `"severity":"`+severity+`","base_severity":"WARN"`)
		}) {
			t.Errorf("policy does not set %s: %s", severity, s.get("/api/v1/alerts"))
		}
	}
	activate("BLOCK")
	raisedAt("BLOCK")
	activate("OBSERVE")
	raisedAt("INFO")
	s.want("PATCH", "/api/v1/service-accounts/"+s.account, `{"intended_scope":"Anything."}`)
	words := "A poem on everything"
	if !until(30*time.Second, s.exited, func() bool {
		words += " again"
		s.work.prompt(t, words)
		return s.metric(`sluice_scope_verdicts_total{verdict="abstained",why="vague_scope"}`) > 0
	}) {
		t.Error("an edited scope does not reach what judges")
	}
	asked := len(judge.asked())
	s.work.prompt(t, "A poem that nobody judges")
	s.awaitMetric(`sluice_scope_verdicts_total{verdict="abstained",why="vague_scope"}`, 2)
	if n := len(judge.asked()); n != asked {
		t.Errorf("%d questions by a vague scope", n-asked)
	}
	s.await(verdicts, `"judging":false,"why":"vague_scope"`)
}
