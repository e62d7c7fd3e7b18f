package scope

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// A server is a scripted judge: each request takes the next answer of its script, and the last one stays.
type server struct {
	*httptest.Server
	mu     sync.Mutex
	script []func(w http.ResponseWriter, body string)
	bodies []string
}

func newServer(t *testing.T, script ...func(http.ResponseWriter, string)) *server {
	t.Helper()
	s := &server{script: script}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		s.mu.Lock()
		s.bodies = append(s.bodies, string(b))
		answer := s.script[0]
		if len(s.script) > 1 {
			s.script = s.script[1:]
		}
		s.mu.Unlock()
		answer(w, string(b))
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *server) asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.bodies)
}

// says answers with a content.
func says(content string) func(http.ResponseWriter, string) {
	return func(w http.ResponseWriter, _ string) { completion(w, content, "stop") }
}

func completion(w http.ResponseWriter, content, finish string) {
	_ = json.NewEncoder(w).Encode(map[string]any{
		"choices": []any{map[string]any{"finish_reason": finish, "message": map[string]any{"role": "assistant", "content": content}}},
		"usage":   map[string]any{"prompt_tokens": 100, "completion_tokens": 20},
	})
}

func fails(code int, body string, header ...string) func(http.ResponseWriter, string) {
	return func(w http.ResponseWriter, _ string) {
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(code)
		_, _ = io.WriteString(w, body)
	}
}

func raw(body string) func(http.ResponseWriter, string) { return fails(200, body) }

func newJudge(t *testing.T, url string, timeout time.Duration, reg prometheus.Registerer) *Judge {
	t.Helper()
	j, err := NewJudge(JudgeConfig{URL: url + "/v1", Model: "m", Key: "judge-secret-key", Timeout: timeout, Registerer: reg})
	if err != nil {
		t.Fatal(err)
	}
	return j
}

const outAnswer = `{"verdict":"out","confidence":0.9,"reason":"Not about tickets."}`

// What a server does is read as what it is: an answer, one that counts for nothing, or none.
func TestJudge(t *testing.T) {
	for _, c := range []struct {
		name    string
		script  []func(http.ResponseWriter, string)
		verdict Verdict
		why     string
		err     error
		asked   int
	}{
		{"honest", []func(http.ResponseWriter, string){says(outAnswer)}, Out, "", nil, 1},
		{"one that repeats the fence", []func(http.ResponseWriter, string){func(w http.ResponseWriter, body string) {
			_, fence, _ := strings.Cut(body, `\u003cREQUEST `)
			completion(w, `{"verdict":"in","confidence":1,"reason":"`+fence[:32]+`"}`, "stop")
		}}, Unsure, Fenced, nil, 1},
		{"one that repeats all of it", []func(http.ResponseWriter, string){func(w http.ResponseWriter, body string) { completion(w, body, "stop") }}, Unsure, Fenced, nil, 1},
		{"malformed", []func(http.ResponseWriter, string){says("Certainly! out")}, Unsure, Malformed, nil, 1},
		{"cut short", []func(http.ResponseWriter, string){func(w http.ResponseWriter, _ string) { completion(w, outAnswer, "length") }}, Unsure, CutShort, nil, 1},
		{"filtered", []func(http.ResponseWriter, string){func(w http.ResponseWriter, _ string) { completion(w, outAnswer, "content_filter") }}, Unsure, Refused, nil, 1},
		{"declining", []func(http.ResponseWriter, string){raw(`{"choices":[{"message":{"content":null,"refusal":"I can't"}}]}`)}, Unsure, Refused, nil, 1},
		{"calling tools", []func(http.ResponseWriter, string){raw(`{"choices":[{"message":{"content":"{}","tool_calls":[{}]}}]}`)}, Unsure, Malformed, nil, 1},
		{"two choices", []func(http.ResponseWriter, string){raw(`{"choices":[{"message":{"content":"{}"}},{"message":{"content":"{}"}}]}`)}, Unsure, Malformed, nil, 1},
		{"endless", []func(http.ResponseWriter, string){raw(strings.Repeat(" ", 1<<20))}, Unsure, Malformed, nil, 1},
		{"a busy server", []func(http.ResponseWriter, string){fails(429, `{}`), fails(500, `{}`), says(outAnswer)}, Out, "", nil, 3},
		{"a broken server", []func(http.ResponseWriter, string){fails(503, `{}`)}, "", "", ErrAway, 3},
		{"no JSON at all", []func(http.ResponseWriter, string){raw("<html>")}, "", "", ErrAway, 3},
		{"one that does not know us", []func(http.ResponseWriter, string){fails(401, `{"error":{"code":"invalid_api_key","message":"judge-secret-key"}}`)}, "", "", ErrAway, 1},
		{"one that sends us elsewhere", []func(http.ResponseWriter, string){fails(307, "", "Location", "http://192.0.2.1/")}, "", "", ErrRefused, 1},
		{"one without schemas", []func(http.ResponseWriter, string){fails(400, `{"error":{"message":"response_format json_schema is not supported"}}`), says(outAnswer)}, Out, "", nil, 2},
		{"one without formats", []func(http.ResponseWriter, string){fails(400, `{}`), fails(422, `{}`), says(outAnswer)}, Out, "", nil, 3},
		{"one with the new limit and no temperature", []func(http.ResponseWriter, string){
			fails(400, `{"error":{"message":"Unsupported parameter: 'max_tokens'"}}`), fails(400, `{"error":{"message":"'temperature' does not support 0"}}`), says(outAnswer)}, Out, "", nil, 3},
		{"one that takes nothing", []func(http.ResponseWriter, string){fails(400, `{"error":{"message":"my prompt said: limerick"}}`)}, "", "", ErrRefused, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, c.script...)
			got, err := newJudge(t, s.URL, 10*time.Second, nil).ask(t.Context(), questionOf("Digests of tickets.", "limerick"), nil)
			if !errors.Is(err, c.err) || (err == nil) != (c.err == nil) || got.verdict != c.verdict || got.why != c.why {
				t.Errorf("%s (%s), %v; want %s (%s), %v", got.verdict, got.why, err, c.verdict, c.why, c.err)
			}
			if err != nil && (strings.Contains(err.Error(), "judge-secret-key") || strings.Contains(err.Error(), "limerick")) {
				t.Errorf("the error tells: %v", err)
			}
			if n := len(s.asked()); n != c.asked {
				t.Errorf("%d requests, want %d", n, c.asked)
			}
		})
	}
}

// questionOf is a question to the model of newJudge.
func questionOf(scope, prompt string) question {
	q := newQuestion(scope, prompt)
	q.model = "m"
	return q
}

// What a server named and did without is kept: the second question is asked in the plainer way at once. A refusal that may be the prompt's doing is not.
func TestJudgeLearns(t *testing.T) {
	for _, c := range []struct {
		name, prompt, refusal string
		kept                  bool
	}{
		{"it names the format", "p", `{"error":{"message":"response_format json_schema is not supported"}}`, true},
		{"by the parameter's field", "p about response_format", `{"error":{"param":"response_format","message":"no"}}`, true},
		{"at the top", "p", `{"object":"error","message":"no","param":"response_format.type","code":400}`, true},
		{"it names nothing", "p", `{}`, false},
		{"it repeats the prompt", "what is a response_format?", `{"error":{"message":"cannot answer: what is a response_format?"}}`, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, fails(400, c.refusal), says(outAnswer))
			j := newJudge(t, s.URL, 10*time.Second, nil)
			for _, prompt := range []string{c.prompt, "another"} {
				if _, err := j.ask(t.Context(), questionOf("s", prompt), nil); err != nil {
					t.Fatal(err)
				}
			}
			asked := s.asked()
			if len(asked) != 3 || !strings.Contains(asked[0], "json_schema") || !strings.Contains(asked[1], "json_object") {
				t.Fatalf("asked %q", asked)
			}
			if kept := strings.Contains(asked[2], "json_object"); kept != c.kept {
				t.Errorf("kept is %v", kept)
			}
		})
	}
}

// Who writes prompts cannot switch the judge off: a question that is refused is an answer of the server, at rest or as the probe after an outage.
func TestRefusalsAreNoOutage(t *testing.T) {
	for name, refusal := range map[string]func(http.ResponseWriter, string){
		"filtered": fails(400, `{"error":{"code":"content_filter","message":"x"}}`), "too long": fails(413, ""), "bad": fails(400, "{}"),
		"moderated": fails(403, `{"error":{"code":403,"message":"flagged","metadata":{"reasons":["violence"]}}}`), "gone": fails(404, ""),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var answer atomic.Value
			s := newServer(t, func(w http.ResponseWriter, body string) { answer.Load().(func(http.ResponseWriter, string))(w, body) })
			now := &clock{at: time.Now()}
			j, err := NewJudge(JudgeConfig{URL: s.URL, Model: "m", Now: now.now})
			if err != nil {
				t.Fatal(err)
			}
			answer.Store(refusal)
			for range breakAfter + 1 {
				if _, err := j.ask(t.Context(), questionOf("s", "p"), nil); err != nil && !errors.Is(err, ErrRefused) {
					t.Fatal(err)
				}
			}
			if j.Away() || j.resting() {
				t.Error("refused prompts switched it off")
			}
			answer.Store(fails(401, ""))
			for range breakAfter {
				if _, err := j.ask(t.Context(), questionOf("s", "p"), nil); !errors.Is(err, ErrAway) {
					t.Fatal(err)
				}
			}
			now.advance(2 * breakMax)
			if !j.Away() || j.resting() {
				t.Error("an outage did not open the breaker, or it is not over")
			}
			answer.Store(refusal)
			if _, err := j.ask(t.Context(), questionOf("s", "p"), nil); err != nil && !errors.Is(err, ErrRefused) || j.Away() {
				t.Errorf("a refused probe keeps it off: %v", err)
			}
		})
	}
}

// Without a model the server is asked for one, once, and again when it has it no more; what is asked for then is what it lists.
func TestJudgeFindsAModel(t *testing.T) {
	for _, c := range []struct {
		name, list string
		code       int
		want       string
		err        error
	}{
		{"the only one", `{"data":[{"id":"qwen"}]}`, 200, "qwen", nil},
		{"the first that may chat", `{"data":[{"id":"nomic-embed-text"},{"id":"qwen"},{"id":"llama"}]}`, 200, "qwen", nil},
		{"none", `{"data":[]}`, 200, "default", nil},
		{"no such path", ``, 404, "default", nil},
		{"no JSON", `<html>`, 200, "default", nil},
		{"away", ``, 503, "", ErrAway},
		{"our key is refused", ``, 401, "", ErrAway},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			lists := 0
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/v1/models" || r.Method != http.MethodGet || r.Header.Get("Authorization") != "Bearer k" {
					t.Errorf("asked %s %s", r.Method, r.URL)
				}
				lists++
				w.WriteHeader(c.code)
				_, _ = io.WriteString(w, c.list)
			}))
			t.Cleanup(s.Close)
			j, err := NewJudge(JudgeConfig{URL: s.URL + "/v1/chat/completions", Key: "k"})
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				got, err := j.findModel(t.Context())
				if !errors.Is(err, c.err) || (err == nil) != (c.err == nil) || err == nil && got != c.want {
					t.Errorf("%q %v", got, err)
				}
			}
			if c.err == nil && (lists != 1 || j.Model() != c.want) {
				t.Errorf("%d lists, model %q", lists, j.Model())
			}
			if j.forget(); c.err == nil && j.Model() != "" {
				t.Error("a model that is gone is kept")
			}
		})
	}
}

// Prompts go through a proxy only where a setting of ours says so.
func TestJudgeProxy(t *testing.T) {
	proxy := newServer(t, says(outAnswer))
	at, err := url.Parse(proxy.URL)
	if err != nil {
		t.Fatal(err)
	}
	j, err := NewJudge(JudgeConfig{URL: "http://judge.invalid/v1", Model: "m", Proxy: at})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := j.ask(t.Context(), questionOf("s", "p"), nil); err != nil || r.verdict != Out || len(proxy.asked()) != 1 {
		t.Errorf("through the proxy: %+v %v", r, err)
	}
	if j, err = NewJudge(JudgeConfig{URL: "http://judge.invalid/v1", Model: "m"}); err != nil {
		t.Fatal(err)
	}
	transport, ok := j.client.Transport.(*http.Transport)
	if !ok {
		t.Fatal("the transport is the default one, which uses the environment's proxy")
	}
	if to, err := transport.Proxy(&http.Request{URL: at}); to != nil || err != nil {
		t.Errorf("by way of %v %v", to, err)
	}
}

// A slow judge costs its timeout and no more, a dead one soon nothing, and one that is back is used again.
func TestJudgeAway(t *testing.T) {
	back := make(chan struct{})
	s := newServer(t, func(w http.ResponseWriter, _ string) {
		select {
		case <-back:
			completion(w, outAnswer, "stop")
		case <-time.After(200 * time.Millisecond):
		}
	})
	reg := prometheus.NewRegistry()
	var mu sync.Mutex
	now := time.Now()
	clock := func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	j, err := NewJudge(JudgeConfig{URL: s.URL, Model: "m", Timeout: 50 * time.Millisecond, Registerer: reg, Now: clock})
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for range breakAfter {
		if _, err := j.ask(t.Context(), questionOf("s", "p"), nil); !errors.Is(err, ErrAway) {
			t.Fatal(err)
		}
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("%d slow answers took %v", breakAfter, took)
	}
	n := len(s.asked())
	if _, err := j.ask(t.Context(), questionOf("s", "p"), nil); !errors.Is(err, ErrAway) || !j.Away() || len(s.asked()) != n {
		t.Errorf("a dead judge is asked: %v", err)
	}
	if got := testutil.ToFloat64(j.metrics.away); got != 1 {
		t.Errorf("away is %v", got)
	}
	close(back)
	mu.Lock()
	now = now.Add(2 * breakMax)
	mu.Unlock()
	if r, err := j.ask(t.Context(), questionOf("s", "p"), nil); err != nil || r.verdict != Out || j.Away() {
		t.Errorf("a judge that is back: %v %v", r, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := j.ask(ctx, questionOf("s", "p"), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that gave up: %v", err)
	}
}

func TestJudgeURL(t *testing.T) {
	for at, ok := range map[string]bool{
		"http://127.0.0.1:11434/v1": true, "https://judge.example/v1/": true, "https://judge.example/v1/chat/completions": true,
		"": false, "judge.example": false, "ftp://x/": false, "https://user:secret@x/": false, "https://x/?key=secret": false,
	} {
		_, err := NewJudge(JudgeConfig{URL: at, Model: "m"})
		if (err == nil) != ok {
			t.Errorf("%s: %v", at, err)
		}
		if err != nil && strings.Contains(fmt.Sprint(err), "secret") {
			t.Errorf("the error tells: %v", err)
		}
	}
}
