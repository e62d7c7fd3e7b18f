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

// A judgedSite is a site whose console has a judge.
type judgedSite struct {
	*site
	judge accounts.ScopeJudge
}

// judged is a console with a judge that finds everything out of scope, beside a process that judges by it.
func judged(t *testing.T) (*judgedSite, *scope.Store) {
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
	s := &judgedSite{site: newSite(t)}
	store := scope.NewStore(scope.StoreConfig{Writer: s.writer, Reader: s.reader})
	s.judge = accounts.ScopeJudge{Store: store, Assessor: scope.NewAssessor(scope.AssessorConfig{Judge: judge, Store: store, Each: scope.Budget{Requests: 500}})}
	c, err := console.New(console.Config{Store: s.Store, Signals: s.signals, Scope: s.judge})
	if err != nil {
		t.Fatal(err)
	}
	s.server.Config.Handler = c
	present(t, store, scope.Presence{ID: "scj_1", Settings: scope.Settings{Model: "judge-model-1", Shares: scope.Shares{Default: 1}, Each: scope.Budget{Requests: 500}}})
	return s, store
}

// present lets a process say that it judges.
func present(t *testing.T, store *scope.Store, p scope.Presence) {
	t.Helper()
	if p.SeenAt.IsZero() {
		p.SeenAt = store.Now()
	}
	if err := store.Present(t.Context(), &p); err != nil {
		t.Fatal(err)
	}
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
	if !strings.Contains(text, "No prompt can be tried here") || strings.Contains(text, "formaction") || strings.Contains(text, "nothing leaves") {
		t.Error("without a judge the drawer offers one, or speaks for other processes")
	}
}

// The page tells the truth about what leaves, by what the processes that judge say and not by the console's own settings.
func TestWhoJudgesOnTheAccountsPage(t *testing.T) {
	s, store := judged(t) // its console has a judge of its own
	created, err := s.CreateAccount(t.Context(), by, "acme", accounts.NewAccount{Name: "digest", Environment: auth.Production, IntendedScope: goodScope}, "")
	if err != nil {
		t.Fatal(err)
	}
	session := s.session(t, "acme", auth.SettingsIntegrationsUpdate)
	page := func() string {
		t.Helper()
		_, text, ok := strings.Cut(string(s.do(t, session, http.MethodGet, listPath+"/"+created.Account.ID, nil).body), `id="judge-title"`)
		if !ok {
			t.Fatal("no card of the judge")
		}
		text, _, _ = strings.Cut(text, "</section>")
		return text
	}
	on := scope.Settings{Model: "judge-model-1", Shares: scope.Shares{Default: 1}}
	for _, c := range []struct {
		name   string
		judges []scope.Presence
		own    bool // the console has a judge
		want   []string
		not    []string
	}{
		{"nobody, and none to try", nil, false, []string{"not judging", "No process judges telemetry"}, []string{"goes to"}},
		{"nobody, and one to try", nil, true, []string{"not judging", "No process judges telemetry", "Only a prompt that is tried"}, []string{">on<"}},
		{"another process", []scope.Presence{{Settings: on}}, false, []string{">on<", "goes to a language model (judge-model-1)"}, []string{"No process", "nothing"}},
		{"one whose judge is away", []scope.Presence{{Away: true, Settings: on}}, true, []string{"not judging", "does not answer just now"}, []string{">on<"}},
		{"two, one away", []scope.Presence{{Away: true, Settings: on}, {Settings: on}}, true, []string{">on<"}, []string{"does not answer"}},
		{"one that went silent", []scope.Presence{{SeenAt: store.Now().Add(-time.Hour), Settings: on}}, true, []string{"not known", "last heard of at"}, []string{">on<", "not judging", "nothing of it leaves"}},
		{"one beside it", []scope.Presence{{SeenAt: store.Now().Add(-time.Hour), Settings: on}, {Settings: on}}, true, []string{">on<"}, []string{"not known"}},
		{"a share of none", []scope.Presence{{Settings: scope.Settings{Shares: scope.Shares{Default: 1, By: map[string]float64{"digest/production": 0}}}}}, true, []string{"not judging", "set to none"}, []string{">on<"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := console.Config{Store: s.Store, Signals: s.signals, Scope: accounts.ScopeJudge{Store: store}}
			if c.own {
				cfg.Scope = s.judge
			}
			pages, err := console.New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			s.server.Config.Handler = pages
			known, err := store.Judges(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range known {
				if err := store.Leave(t.Context(), p.ID); err != nil {
					t.Fatal(err)
				}
			}
			for i, p := range c.judges {
				p.ID = "scj_" + string(rune('a'+i))
				present(t, store, p)
			}
			text := page()
			for _, want := range c.want {
				if !strings.Contains(text, want) {
					t.Errorf("the card lacks %q: %s", want, text)
				}
			}
			for _, not := range c.not {
				if strings.Contains(text, not) {
					t.Errorf("the card says %q: %s", not, text)
				}
			}
		})
	}
}

// What is seen and cannot be judged is said, and why.
func TestWhyNothingIsJudgedOnTheAccountsPage(t *testing.T) {
	s, _ := judged(t)
	session := s.session(t, "acme", auth.SettingsIntegrationsUpdate)
	for _, c := range []struct {
		name, scope string
		counts      map[string]int64
		want, not   []string
	}{
		{"silent", goodScope, map[string]int64{scope.Seen: 3, scope.NoBody: 3}, []string{"not judging", "asked something, and not what", "OTEL_LOG_USER_PROMPTS=1", "Without a text"}, []string{">on<", "Nothing was judged yet"}},
		{"half", goodScope, map[string]int64{scope.Seen: 3, scope.NoBody: 1}, []string{">on<", "Without a text"}, []string{"OTEL_LOG_USER_PROMPTS"}},
		{"vague", "Anything.", map[string]int64{scope.Seen: 2, string(scope.VagueScope): 2}, []string{"not judging", "too vague to judge by", "scope too vague"}, []string{">on<"}},
		{"late", goodScope, map[string]int64{scope.Seen: 5, scope.TooOld: 2, scope.AccountUnknown: 1}, []string{"too old when read", "account not looked up in time"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			created, err := s.CreateAccount(t.Context(), by, "acme", accounts.NewAccount{Name: c.name, Environment: auth.Production, IntendedScope: c.scope}, "")
			if err != nil {
				t.Fatal(err)
			}
			for what, n := range c.counts {
				if _, err := s.writer.ExecContext(t.Context(), `INSERT INTO scope_counts (org, account_id, day, what, count, last_at) VALUES ('acme', $1, $2, $3, $4, $5)`,
					created.Account.ID, time.Now().Unix()/86_400, what, n, time.Now().UnixMilli()); err != nil {
					t.Fatal(err)
				}
			}
			text := string(s.do(t, session, http.MethodGet, listPath+"/"+created.Account.ID, nil).body)
			for _, want := range c.want {
				if !strings.Contains(text, want) {
					t.Errorf("the page lacks %q", want)
				}
			}
			for _, not := range c.not {
				if strings.Contains(text, not) {
					t.Errorf("the page says %q", not)
				}
			}
		})
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
