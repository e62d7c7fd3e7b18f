package accounts_test

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"flowstate.inc/sluice/accounts"
	"flowstate.inc/sluice/signals/scope"
)

// newScopeJudge is a judge that finds everything out of scope, on the site's own database.
func newScopeJudge(t *testing.T, w *world) accounts.ScopeJudge {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]any{"choices": []any{map[string]any{"finish_reason": "stop",
			"message": map[string]any{"content": `{"verdict":"out","confidence":0.9,"reason":"Not about tickets."}`}}}})
	}))
	t.Cleanup(server.Close)
	judge, err := scope.NewJudge(scope.JudgeConfig{URL: server.URL, Model: "m", Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	store := scope.NewStore(scope.StoreConfig{Writer: w.writer, Reader: w.reader})
	return accounts.ScopeJudge{Store: store, Assessor: scope.NewAssessor(scope.AssessorConfig{Judge: judge, Store: store})}
}

// scopeAnswers is every answer of the scope's routes, without a judge and with one.
func (s *site) scopeAnswers(t *testing.T, one, stranger string) {
	t.Helper()
	if got := s.want(t, 200, "manage", "GET", one+"/scope/verdicts", ""); got.get(t, "judging") != false || got.get(t, "why") != "no_scope" {
		t.Errorf("no scope: %s", got.body)
	}
	s.want(t, 409, "manage", "POST", one+"/scope/try", `{"prompt":"x"}`)
	j := s.with(t, accounts.APIConfig{Store: s.Store, Authenticate: s.AuthenticateRequest, Logger: slog.New(slog.NewJSONHandler(s.log, nil)), Scope: newScopeJudge(t, s.world)})
	const intended = "Summarises support tickets into a digest for each team."
	if got := j.want(t, 200, "manage", "POST", one+"/scope/try", `{"prompt":"a poem","intended_scope":"`+intended+`"}`); got.get(t, "verdict") != "out" || got.get(t, "reason") != "Not about tickets." || got.get(t, "id") != nil {
		t.Errorf("tried: %s", got.body)
	}
	if got := j.want(t, 200, "manage", "POST", one+"/scope/try", `{"prompt":"a poem","intended_scope":"anything"}`); got.get(t, "verdict") != nil || got.get(t, "why") != "vague_scope" {
		t.Errorf("tried a vague scope: %s", got.body)
	}
	j.want(t, 400, "manage", "POST", one+"/scope/try", `{"prompt":" "}`)
	j.want(t, 404, "manage", "POST", stranger+"/scope/try", `{"prompt":"x"}`)
	j.want(t, 413, "manage", "POST", one+"/scope/try", `{"prompt":"`+strings.Repeat("x", 200_000)+`"}`)
	j.want(t, 415, "manage", "POST", one+"/scope/try", `x`, "Content-Type", "text/plain")
	j.want(t, 400, "manage", "GET", one+"/scope/verdicts?limit=0", "")
	j.want(t, 404, "manage", "GET", stranger+"/scope/verdicts", "")
}
