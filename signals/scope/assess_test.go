package scope

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/stdlib"
	_ "modernc.org/sqlite" // the driver

	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/deploy"
	"flowstate.inc/sluice/signals"
)

// each runs f on a store in SQLite, and on PostgreSQL when TEST_DATABASE_URL names one. SLUICE_REQUIRE_SERVICES=1 makes its absence a failure.
func each(t *testing.T, f func(t *testing.T, s *Store, now *clock)) {
	t.Helper()
	run := func(t *testing.T, db *sql.DB, dialect deploy.Dialect) {
		t.Cleanup(func() { _ = db.Close() })
		if _, err := deploy.Migrate(t.Context(), db, dialect); err != nil {
			t.Fatal(err)
		}
		now := &clock{at: time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)}
		f(t, NewStore(StoreConfig{Writer: db, Now: now.now}), now)
	}
	t.Run("sqlite", func(t *testing.T) {
		db, err := sql.Open("sqlite", "file:"+strings.ReplaceAll(filepath.Join(t.TempDir(), "s.db"), "#", "%23")+"?_pragma=journal_mode(WAL)&_pragma=busy_timeout(5000)&_txlock=immediate")
		if err != nil {
			t.Fatal(err)
		}
		db.SetMaxOpenConns(1)
		run(t, db, deploy.SQLite)
	})
	base := os.Getenv("TEST_DATABASE_URL")
	if base == "" {
		if os.Getenv("SLUICE_REQUIRE_SERVICES") == "1" {
			t.Error("TEST_DATABASE_URL is not set")
		}
		return
	}
	t.Run("postgres", func(t *testing.T) {
		_ = stdlib.GetDefaultDriver() // registers pgx
		admin, err := sql.Open("pgx", base)
		if err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprintf("scope_%d", time.Now().UnixNano())
		if _, err := admin.ExecContext(t.Context(), "CREATE DATABASE "+name); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_, _ = admin.ExecContext(context.Background(), "DROP DATABASE "+name+" WITH (FORCE)")
			_ = admin.Close()
		})
		before, query, _ := strings.Cut(base, "?")
		db, err := sql.Open("pgx", before[:strings.LastIndex(before, "/")+1]+name+"?"+query)
		if err != nil {
			t.Fatal(err)
		}
		run(t, db, deploy.Postgres)
	})
}

type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.at }

func (c *clock) advance(d time.Duration) { c.mu.Lock(); defer c.mu.Unlock(); c.at = c.at.Add(d) }

func account(id string) *auth.Principal {
	return &auth.Principal{Org: "acme", Kind: auth.KindServiceAccount, ID: id, Name: "digest", Environment: auth.Production,
		IntendedScope: "Summarises support tickets into a digest for each team."}
}

func TestAssess(t *testing.T) {
	each(t, func(t *testing.T, store *Store, now *clock) {
		s := newServer(t, says(outAnswer), says(`{"verdict":"out","confidence":0.5,"reason":"r"}`), says(`{"verdict":"in","confidence":0.9,"reason":"r"}`))
		a := NewAssessor(AssessorConfig{Judge: newJudge(t, s.URL, 10*time.Second, nil), Store: store, Now: now.now})
		ask := func(p *auth.Principal, text string) Assessment {
			t.Helper()
			now.advance(time.Millisecond)
			got, err := a.Assess(t.Context(), p, Asked{Text: text, Found: "user_prompt", At: now.now()})
			if err != nil {
				t.Fatal(err)
			}
			return got
		}
		p := account("sa_1")
		vague := *p
		vague.IntendedScope = "Anything."
		if got := ask(&vague, "x"); got.Abstained != string(VagueScope) || got.Verdict != "" {
			t.Errorf("a vague scope: %+v", got)
		}
		if got := ask(p, ""); got.Abstained != NoBody {
			t.Errorf("no body: %+v", got)
		}
		first := ask(p, "Write a poem about ticket 12")
		if first.Verdict != Out || first.Reason != "Not about tickets." || first.TokensIn != 100 || first.TokensOut != 20 || first.ID == "" {
			t.Errorf("first: %+v", first)
		}
		// Like inputs are not asked about again, until the scope, the day or the account is another.
		if got := ask(p, "write a  POEM about ticket 977"); !got.Cached || got.Verdict != Out || got.InputHash != first.InputHash {
			t.Errorf("a like input: %+v", got)
		}
		if n := len(s.asked()); n != 1 {
			t.Errorf("%d questions", n)
		}
		if got := ask(account("sa_2"), "Write a poem about ticket 12"); got.Cached || got.Verdict != Unsure || got.Why != LowConfidence || got.InputHash == first.InputHash {
			t.Errorf("low confidence: %+v", got)
		}
		edited := *p
		edited.IntendedScope = "Summarises support tickets and writes poems about them."
		if got := ask(&edited, "Write a poem about ticket 12"); got.Cached || got.Verdict != In || got.ScopeVersion == first.ScopeVersion {
			t.Errorf("another scope: %+v", got)
		}
		now.advance(25 * time.Hour)
		if got := ask(p, "Write a poem about ticket 12"); got.Cached {
			t.Error("a verdict stands for longer than a day")
		}
		// What is kept has no prompt.
		kept, err := store.Verdicts(t.Context(), "acme", "sa_1", "", 10)
		if err != nil || len(kept) != 3 || kept[2].ID != first.ID || kept[2].Confidence != .9 || kept[2].Prompt != "" {
			t.Errorf("kept %+v %v", kept, err)
		}
		if next, err := store.Verdicts(t.Context(), "acme", "sa_1", kept[0].ID, 1); err != nil || len(next) != 1 || next[0].ID != kept[1].ID {
			t.Errorf("the next page: %+v %v", next, err)
		}
		if other, err := store.Verdicts(t.Context(), "other", "sa_1", "", 10); err != nil || len(other) != 0 {
			t.Errorf("another org's: %+v %v", other, err)
		}
		if err := store.Prune(t.Context(), time.Hour); err != nil {
			t.Fatal(err)
		}
		if kept, err = store.Verdicts(t.Context(), "acme", "sa_1", "", 10); err != nil || len(kept) != 1 {
			t.Errorf("after retention: %+v %v", kept, err)
		}
	})
}

// A secret is in nothing that leaves or is kept.
func TestAssessRedacts(t *testing.T) {
	each(t, func(t *testing.T, store *Store, now *clock) {
		s := newServer(t, says(outAnswer))
		a := NewAssessor(AssessorConfig{Judge: newJudge(t, s.URL, 10*time.Second, nil), Store: store, Now: now.now, KeepPrompts: true})
		p := account("sa_1")
		p.IntendedScope += " The password: correct-horse-battery"
		if _, err := a.Assess(t.Context(), p, Asked{Text: strings.Repeat("long ", 5000) + "deploy with AKIAIOSFODNN7EXAMPLE", At: now.now()}); err != nil {
			t.Fatal(err)
		}
		kept, err := store.Verdicts(t.Context(), "acme", "sa_1", "", 1)
		if err != nil || len(kept) != 1 || !strings.Contains(kept[0].Prompt, "[redacted:aws-key]") || len(kept[0].Prompt) > maxPromptBytes+100 {
			t.Fatalf("kept %+v %v", kept, err)
		}
		for _, text := range append(s.asked(), kept[0].Prompt) {
			if strings.Contains(text, "AKIAIOSFODNN7EXAMPLE") || strings.Contains(text, "correct-horse") {
				t.Errorf("a secret left: %.300s", text)
			}
		}
	})
}

// Budgets hold for all processes together and through restarts, count what is under way, and begin anew with the day.
func TestBudgets(t *testing.T) {
	each(t, func(t *testing.T, store *Store, now *clock) {
		s := newServer(t, says(outAnswer))
		judge := newJudge(t, s.URL, 10*time.Second, nil)
		cfg := AssessorConfig{Judge: judge, Store: store, Now: now.now, All: Budget{Requests: 5}, Each: Budget{Requests: 3}}
		var group sync.WaitGroup
		var mu sync.Mutex
		outcomes := map[string]int{}
		for i := range 20 {
			a := NewAssessor(cfg) // each a process of its own
			group.Go(func() {
				got, err := a.Assess(t.Context(), account(fmt.Sprintf("sa_%d", i%2)), Asked{Text: strings.Repeat("x", i+1), At: now.now()})
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					t.Error(err)
				}
				outcomes[got.Abstained]++
			})
		}
		group.Wait()
		if n := len(s.asked()); n != 5 || outcomes[""] != 5 || outcomes[BudgetSpent] != 15 {
			t.Errorf("%d questions, outcomes %v", n, outcomes)
		}
		for account, want := range map[string]int64{"": 5, "sa_0": 3, "sa_1": 3} {
			got, err := store.Spent(t.Context(), account)
			if err != nil || got.Requests > want || got.Tokens != 120*got.Requests {
				t.Errorf("spent by %q: %+v %v", account, got, err)
			}
		}
		now.advance(24 * time.Hour)
		if got, err := NewAssessor(cfg).Assess(t.Context(), account("sa_0"), Asked{Text: "tomorrow", At: now.now()}); err != nil || got.Abstained != "" {
			t.Errorf("the next day: %+v %v", got, err)
		}
	})
	each(t, func(t *testing.T, store *Store, now *clock) {
		s := newServer(t, says(outAnswer))
		prices := Prices{In: 10, Out: 50} // of a million tokens: 100 and 20 of them are 0.002
		a := NewAssessor(AssessorConfig{Judge: newJudge(t, s.URL, 10*time.Second, nil), Store: store, Now: now.now, All: Budget{Micros: 50_000}, Prices: prices})
		n := 0
		for ; n < 100; n++ {
			got, err := a.Assess(t.Context(), account("sa_1"), Asked{Text: strings.Repeat("y", n+1), At: now.now()})
			if err != nil {
				t.Fatal(err)
			}
			if got.Abstained == BudgetSpent {
				break
			}
		}
		spent, err := store.Spent(t.Context(), "")
		if err != nil || spent.Micros != int64(n)*2000 || spent.Micros > 50_000 || n < 5 {
			t.Errorf("spent %+v on %d questions, %v", spent, n, err)
		}
	})
}

// A judge that is away costs no tokens, and the question is not lost to its caller.
func TestAssessAway(t *testing.T) {
	each(t, func(t *testing.T, store *Store, now *clock) {
		s := newServer(t, fails(503, ""), fails(503, ""), fails(503, ""), fails(413, ""), says(outAnswer))
		a := NewAssessor(AssessorConfig{Judge: newJudge(t, s.URL, 10*time.Second, nil), Store: store, Now: now.now})
		ask := func() (Assessment, error) {
			return a.Assess(t.Context(), account("sa_1"), Asked{Text: "x", At: now.now()})
		}
		if _, err := ask(); !errors.Is(err, ErrAway) {
			t.Errorf("away: %v", err)
		}
		if spent, err := store.Spent(t.Context(), ""); err != nil || spent.Tokens != 0 || spent.Requests != 1 {
			t.Errorf("spent %+v %v", spent, err)
		}
		if got, err := ask(); err != nil || got.Abstained != JudgeRefused {
			t.Errorf("refused: %+v %v", got, err)
		}
		if got, err := ask(); err != nil || got.Verdict != Out {
			t.Errorf("back: %+v %v", got, err)
		}
	})
}

func TestCounts(t *testing.T) {
	each(t, func(t *testing.T, store *Store, now *clock) {
		for range 2 {
			if err := store.addCounts(t.Context(), map[countKey]Count{{"acme", "sa_1", Seen}: {3, now.now()}, {"acme", "sa_1", NoBody}: {1, now.now()}}); err != nil {
				t.Fatal(err)
			}
		}
		got, err := store.Counts(t.Context(), "acme", "sa_1", 7)
		if err != nil || got[Seen].Count != 6 || got[NoBody].Count != 2 || !got[Seen].Last.Equal(now.now()) {
			t.Errorf("%v %v", got, err)
		}
		now.advance(8 * 24 * time.Hour)
		if got, err := store.Counts(t.Context(), "acme", "sa_1", 7); err != nil || len(got) != 0 {
			t.Errorf("a week later: %v %v", got, err)
		}
	})
}

// The signal of a verdict: WARN, the same id for the same input on a day, and no word of the prompt.
func TestFinding(t *testing.T) {
	at := time.Date(2026, 11, 23, 23, 59, 0, 0, time.UTC)
	v := &Judged{Verdict: Out, Confidence: .9, Reason: "r", Model: "m", ScopeVersion: "abc", InputHash: strings.Repeat("ab", 32)}
	own := Finding(v, Asked{Text: "the prompt", At: at, SessionID: "s"})
	if own.Severity != signals.Warn || own.Type != signals.OffTopicProduction || strings.Contains(fmt.Sprint(own), "the prompt") {
		t.Errorf("%+v", own)
	}
	if again := Finding(v, Asked{At: at}); again.ID != own.ID {
		t.Error("the same is another signal")
	}
	if next := Finding(v, Asked{At: at.Add(time.Hour)}); next.ID == own.ID {
		t.Error("the next day is the same signal")
	}
	if _, err := signals.NewRaised(own); err != nil {
		t.Error(err)
	}
}
