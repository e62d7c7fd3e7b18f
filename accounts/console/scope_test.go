package console_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"flowstate.inc/sluice/accounts"
	"flowstate.inc/sluice/accounts/console"
	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/signals/scope"
)

// judged is a console with a judge that finds everything out of scope.
func judged(t *testing.T) (*site, *scope.Store) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]any{"choices": []any{map[string]any{"finish_reason": "stop",
			"message": map[string]any{"content": `{"verdict":"out","confidence":0.93,"reason":"Poetry <b>is</b> not about tickets."}`}}}})
	}))
	t.Cleanup(server.Close)
	judge, err := scope.NewJudge(scope.JudgeConfig{URL: server.URL, Model: "judge-model-1", Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t)
	store := scope.NewStore(scope.StoreConfig{Writer: s.writer, Reader: s.reader})
	c, err := console.New(console.Config{Store: s.Store, Signals: s.signals,
		Scope: accounts.ScopeJudge{Store: store, Assessor: scope.NewAssessor(scope.AssessorConfig{Judge: judge, Store: store, Each: scope.Budget{Requests: 500}})}})
	if err != nil {
		t.Fatal(err)
	}
	s.server.Config.Handler = c
	return s, store
}

const goodScope = "Summarises support tickets into a digest for each team."

func TestTryAPromptInTheDrawer(t *testing.T) {
	s, _ := judged(t)
	created, err := s.CreateAccount(t.Context(), by, "acme", accounts.NewAccount{Name: "digest", Environment: auth.Production, IntendedScope: "Anything."}, "")
	if err != nil {
		t.Fatal(err)
	}
	a := created.Account
	session := s.session(t, "acme", auth.SettingsIntegrationsUpdate)
	text := string(s.do(t, session, http.MethodGet, listPath+"/"+a.ID+"?edit="+a.ID, nil).body)
	for _, want := range []string{"Try a prompt against this scope", `formaction="` + listPath + "/" + a.ID + `/scope/try"`, "too vague to judge by"} {
		if !strings.Contains(text, want) {
			t.Errorf("the drawer lacks %q", want)
		}
	}
	form := url.Values{"version": {"1"}, "name": {"digest"}, "environment": {auth.Production}, "intended_scope": {goodScope}, "try_prompt": {"a <i>poem</i>"}}
	text = string(s.do(t, session, http.MethodPost, listPath+"/"+a.ID+"/scope/try", form).body)
	for _, want := range []string{"Out of scope", "confidence 93 %", "Poetry &lt;b&gt;is&lt;/b&gt; not about tickets.", "a &lt;i&gt;poem&lt;/i&gt;", goodScope} {
		if !strings.Contains(text, want) {
			t.Errorf("the answer lacks %q", want)
		}
	}
	if got, err := s.Account(t.Context(), "acme", a.ID); err != nil || got.IntendedScope != "Anything." {
		t.Errorf("trying saved the scope: %q %v", got.IntendedScope, err)
	}
	form.Set("try_prompt", " ")
	if text = string(s.do(t, session, http.MethodPost, listPath+"/"+a.ID+"/scope/try", form).body); !strings.Contains(text, "is missing") {
		t.Error("an empty prompt is tried")
	}
}

func TestVerdictsOnTheAccountsPage(t *testing.T) {
	s, store := judged(t)
	s.seedVerdicts(t, store)
	session := s.session(t, "acme", auth.SettingsIntegrationsUpdate)
	text := string(s.do(t, session, http.MethodGet, listPath+"/"+s.digest(t).ID, nil).body)
	for _, want := range []string{"Scope judge", "Out of scope", "In scope", "Unsure", "Asked the judge today", "of 500 times", "judge-model-1", "withheld"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	off := newSite(t)
	quiet := off.account(t, "quiet", auth.Production).Account
	text = string(off.do(t, off.session(t, "acme", auth.SettingsIntegrationsUpdate), http.MethodGet, listPath+"/"+quiet.ID+"?edit="+quiet.ID, nil).body)
	if !strings.Contains(text, "No judge is configured") || strings.Contains(text, "formaction") {
		t.Error("without a judge the drawer offers one")
	}
}

// digest is the account that seedVerdicts makes.
func (s *site) digest(t *testing.T) accounts.Account {
	t.Helper()
	a, err := s.AccountByName(t.Context(), "acme", "digest", auth.Production)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func (s *site) seedVerdicts(t *testing.T, store *scope.Store) {
	t.Helper()
	created, err := s.CreateAccount(t.Context(), by, "acme", accounts.NewAccount{Name: "digest", Environment: auth.Production, IntendedScope: goodScope}, "")
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for i, v := range []scope.Judged{
		{Verdict: scope.In, Confidence: .95, Reason: "It asks for the digest."}, {Verdict: scope.Out, Confidence: .91, Reason: "Poetry is not about tickets."},
		{Verdict: scope.Unsure, Why: scope.Malformed}, {Verdict: scope.Out, Confidence: .88},
	} {
		v.ID, v.Org, v.AccountID, v.At, v.AskedAt = "scv_"+strings.Repeat("0", 31)+string(rune('0'+i)), "acme", created.Account.ID, now, now
		v.Model, v.PromptVersion, v.ScopeVersion, v.InputHash, v.Found = "judge-model-1", "1", "abc", "def", "user_prompt"
		if err := store.Keep(t.Context(), &v); err != nil {
			t.Fatal(err)
		}
	}
}
