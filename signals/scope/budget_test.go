package scope

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// What a question was booked at is given back only where nobody can have been charged for it.
func TestWhatAFailureCosts(t *testing.T) {
	gone := httptest.NewServer(nil)
	gone.Close()
	const prompt = "What does it cost?"
	asking := tokensOf(newQuestion(account("sa_1").IntendedScope, prompt))
	each(t, func(t *testing.T, store *Store, now *clock) {
		for _, c := range []struct {
			name   string
			answer func(http.ResponseWriter, string) // nil: nobody listens
			err    error
			billed int64 // requests, at the most they can cost
		}{
			{"nobody listens", nil, ErrAway, 0},
			{"too many requests", fails(429, ""), ErrAway, 0},
			{"not available", fails(503, ""), ErrAway, 0},
			{"our key is refused", fails(401, ""), ErrAway, 0},
			{"filtered", fails(400, `{"error":{"code":"content_filter"}}`), nil, 0},
			{"too long", fails(413, ""), nil, 0},
			{"not taken in any way", fails(400, "{}"), nil, 0},
			{"broken", fails(500, ""), ErrAway, maxTries},
			{"its gateway gave up", fails(504, ""), ErrAway, maxTries},
			{"no JSON", raw("<html>"), ErrAway, maxTries},
			{"too slow", says(outAnswer), ErrAway, 1},
			{"it counts nothing", raw(`{"choices":[{"finish_reason":"stop","message":{"content":"in"}}]}`), nil, 1},
		} {
			t.Run(c.name, func(t *testing.T) {
				now.advance(48 * time.Hour) // a day with budgets of its own, and without the verdicts before
				at, timeout := gone.URL, 10*time.Second
				switch {
				case c.name == "too slow":
					timeout = 100 * time.Millisecond
					over := make(chan struct{})
					at = newServer(t, func(http.ResponseWriter, string) { <-over }).URL
					t.Cleanup(func() { close(over) }) // before the server's, which waits for it
				case c.answer != nil:
					at = newServer(t, c.answer).URL
				}
				a := NewAssessor(AssessorConfig{Judge: newJudge(t, at, timeout, nil), Store: store, Now: now.now})
				if _, err := a.Assess(t.Context(), account("sa_1"), Asked{Text: prompt, At: now.now()}); !errors.Is(err, c.err) || (err == nil) != (c.err == nil) {
					t.Error(err)
				}
				for _, who := range []string{"", "sa_1"} {
					if spent, err := store.Spent(t.Context(), who); err != nil || spent.Requests != 1 || spent.Tokens != c.billed*(asking+maxAnswerTokens) {
						t.Errorf("%q spent %+v %v, want %d × %d tokens", who, spent, err, c.billed, asking+maxAnswerTokens)
					}
				}
			})
		}
	})
}

// No budget is overdrawn by repetitions, by an answer that may be longer than most, or by another account: each is asked before a request is sent.
func TestBudgetsOfEachKind(t *testing.T) {
	const prompt = "What does it cost?"
	asking := tokensOf(newQuestion(account("sa_1").IntendedScope, prompt))
	once := asking + maxAnswerTokens
	prices := Prices{In: 1, Out: 10}
	each(t, func(t *testing.T, store *Store, now *clock) {
		for _, c := range []struct {
			name      string
			all, each Budget
			script    []func(http.ResponseWriter, string)
			sent      int // requests, of one question of sa_1
			abstained string
		}{
			{"tokens in all", Budget{Tokens: once - 1}, Budget{}, []func(http.ResponseWriter, string){says(outAnswer)}, 0, BudgetSpent},
			{"tokens of the account", Budget{}, Budget{Tokens: once - 1}, []func(http.ResponseWriter, string){says(outAnswer)}, 0, BudgetSpent},
			{"tokens that suffice", Budget{Tokens: once}, Budget{Tokens: once}, []func(http.ResponseWriter, string){says(outAnswer)}, 1, ""},
			{"money in all", Budget{Micros: prices.micros(asking, maxAnswerTokens) - 1}, Budget{}, []func(http.ResponseWriter, string){says(outAnswer)}, 0, BudgetSpent},
			{"money of the account", Budget{}, Budget{Micros: prices.micros(asking, maxAnswerTokens) - 1}, []func(http.ResponseWriter, string){says(outAnswer)}, 0, BudgetSpent},
			{"money that suffices", Budget{}, Budget{Micros: prices.micros(asking, maxAnswerTokens)}, []func(http.ResponseWriter, string){says(outAnswer)}, 1, ""},
			{"tokens for one try of three", Budget{}, Budget{Tokens: 2*once - 1}, []func(http.ResponseWriter, string){fails(500, ""), says(outAnswer)}, 1, BudgetSpent},
			{"tokens for two", Budget{}, Budget{Tokens: 2 * once}, []func(http.ResponseWriter, string){fails(500, ""), says(outAnswer)}, 2, ""},
			{"tries that cost nothing", Budget{}, Budget{Tokens: once}, []func(http.ResponseWriter, string){fails(429, ""), fails(503, ""), says(outAnswer)}, 3, ""},
			{"a longer answer", Budget{}, Budget{Tokens: 2 * once}, []func(http.ResponseWriter, string){fails(400, `{"error":{"param":"max_tokens"}}`), says(outAnswer)}, 1, BudgetSpent},
			{"a longer answer that fits", Budget{}, Budget{Tokens: asking + 8*maxAnswerTokens}, []func(http.ResponseWriter, string){fails(400, `{"error":{"param":"max_tokens"}}`), says(outAnswer)}, 2, ""},
		} {
			t.Run(c.name, func(t *testing.T) {
				now.advance(48 * time.Hour) // a day with budgets of its own, and without the verdicts before
				s := newServer(t, c.script...)
				a := NewAssessor(AssessorConfig{Judge: newJudge(t, s.URL, 10*time.Second, nil), Store: store, Now: now.now, All: c.all, Each: c.each, Prices: prices})
				got, err := a.Assess(t.Context(), account("sa_1"), Asked{Text: prompt, At: now.now()})
				if err != nil || got.Abstained != c.abstained || len(s.asked()) != c.sent {
					t.Errorf("%+v %v, %d requests, want %q and %d", got, err, len(s.asked()), c.abstained, c.sent)
				}
				if a.cfg.Judge.Away() {
					t.Error("a budget that is used up is taken for an outage")
				}
				if c.all != (Budget{}) || c.abstained == "" {
					return
				}
				// Another account's budget is its own.
				n := len(s.asked())
				if _, err := a.Assess(t.Context(), account("sa_2"), Asked{Text: strings.ToUpper(prompt), At: now.now()}); err != nil {
					t.Error(err)
				}
				if alone := c.each.Tokens >= once; alone && len(s.asked()) == n {
					t.Error("one account's budget is another's")
				}
			})
		}
	})
}
