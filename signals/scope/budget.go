package scope

import (
	"cmp"
	"context"
	"errors"
	"math"
	"slices"
)

// A Budget bounds what may be spent on a day, by the clock of UTC. Zero bounds nothing.
type Budget struct {
	Requests int64
	Tokens   int64 // in and out together
	Micros   int64 // millionths of the currency of Prices
}

// Prices are what a million tokens cost, in any currency. Zero: nothing.
type Prices struct{ In, Out float64 }

// micros is the price of tokens. A price of 1 for a million tokens is one millionth a token.
func (p Prices) micros(in, out int64) int64 {
	return int64(math.Ceil(float64(in)*p.In + float64(out)*p.Out))
}

// errSpent says that a budget of the day is used up.
var errSpent = errors.New("a budget of the day is used up")

// A meter pays for the requests of one question out of the day's budgets, in all and of the account: each before it is sent, at the most it can cost. A nil
// meter pays for everything.
type meter struct {
	store     *Store
	account   string
	prices    Prices
	all, each Budget
	asking    int64 // tokens that the question takes, about

	day             int64
	requests        int64 // 1 once something is booked: repetitions are one question
	tokens, micros  int64 // booked
	usedIn, usedOut int64 // by the requests that are done
}

// allow books one more request with an answer of so many tokens, or returns errSpent and books nothing.
func (m *meter) allow(ctx context.Context, answer int64) error {
	if m == nil {
		return nil
	}
	in, out := m.usedIn+m.asking, m.usedOut+answer
	return m.book(ctx, max(in+out, m.tokens), max(m.prices.micros(in, out), m.micros))
}

// charge notes what a request came to: what the server counts, else the most that it can be. What it may have done without an answer counts too.
func (m *meter) charge(in, out, answer int64) {
	switch {
	case m == nil:
	case in+out > 0:
		m.usedIn, m.usedOut = m.usedIn+in, m.usedOut+out
	default:
		m.usedIn, m.usedOut = m.usedIn+m.asking, m.usedOut+answer
	}
}

// book raises what is booked to tokens and micros.
func (m *meter) book(ctx context.Context, tokens, micros int64) error {
	if m.requests == 1 && tokens == m.tokens && micros == m.micros {
		return nil
	}
	if m.requests == 0 {
		m.day = day(m.store.now())
	}
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	tx, err := m.store.w.BeginTx(ctx, nil)
	if err != nil {
		return wrap("book a question", err)
	}
	defer func() { _ = tx.Rollback() }() // after a commit it says that there is nothing to undo
	requests, moreTokens, moreMicros := 1-m.requests, tokens-m.tokens, micros-m.micros
	for _, part := range []struct {
		account string
		most    Budget
	}{{"", m.all}, {m.account, m.each}} {
		most := part.most.orEndless()
		if most.Requests < 1 || tokens > most.Tokens || micros > most.Micros {
			return errSpent
		}
		res, err := tx.ExecContext(ctx, `INSERT INTO scope_spend (day, account_id, requests, tokens, micros) VALUES ($1, $2, $3, $4, $5)
			ON CONFLICT (day, account_id) DO UPDATE SET requests = scope_spend.requests + excluded.requests, tokens = scope_spend.tokens + excluded.tokens,
			micros = scope_spend.micros + excluded.micros
			WHERE scope_spend.requests + excluded.requests <= $6 AND scope_spend.tokens + excluded.tokens <= $7 AND scope_spend.micros + excluded.micros <= $8`,
			m.day, part.account, requests, moreTokens, moreMicros, most.Requests, most.Tokens, most.Micros)
		if err != nil {
			return wrap("book a question", err)
		}
		n, err := res.RowsAffected()
		if err != nil {
			return wrap("book a question", err)
		}
		if n == 0 {
			return errSpent
		}
	}
	if err := tx.Commit(); err != nil {
		return wrap("book a question", err)
	}
	m.requests, m.tokens, m.micros = 1, tokens, micros
	return nil
}

// settle puts what the question did cost in the place of what was booked. The question itself stays counted.
func (m *meter) settle(ctx context.Context) error {
	tokens, micros := m.usedIn+m.usedOut, m.prices.micros(m.usedIn, m.usedOut)
	if tokens == m.tokens && micros == m.micros {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
	defer cancel()
	tx, err := m.store.w.BeginTx(ctx, nil)
	if err != nil {
		return wrap("settle a question", err)
	}
	defer func() { _ = tx.Rollback() }() // as in book
	// In the order of book, so that two of them never wait for each other.
	for _, account := range []string{"", m.account} {
		if _, err := tx.ExecContext(ctx, `UPDATE scope_spend SET tokens = tokens + $1, micros = micros + $2 WHERE day = $3 AND account_id = $4`,
			tokens-m.tokens, micros-m.micros, m.day, account); err != nil {
			return wrap("settle a question", err)
		}
	}
	if err := tx.Commit(); err != nil {
		return wrap("settle a question", err)
	}
	m.tokens, m.micros = tokens, micros
	return nil
}

func (b Budget) orEndless() Budget {
	for _, v := range []*int64{&b.Requests, &b.Tokens, &b.Micros} {
		if *v == 0 {
			*v = math.MaxInt64 / 2
		}
	}
	return b
}

// Spent is what was spent today: of one account, or in all by the account "".
func (s *Store) Spent(ctx context.Context, account string) (Budget, error) {
	var b Budget
	err := s.r.QueryRowContext(ctx, `SELECT COALESCE(SUM(requests), 0), COALESCE(SUM(tokens), 0), COALESCE(SUM(micros), 0) FROM scope_spend WHERE day = $1 AND account_id = $2`,
		day(s.now()), account).Scan(&b.Requests, &b.Tokens, &b.Micros)
	return b, wrap("read what was spent", err)
}

// tokensOf is about how many tokens a question takes, never too few for common text: in English a token is four bytes, in others two or three.
func tokensOf(q question) int64 {
	n := 0
	for _, m := range q.chat {
		n += len(m.Content)
	}
	return int64(n/2) + 16
}

func sortedKeys(m map[countKey]Count) []countKey {
	keys := make([]countKey, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b countKey) int {
		return cmp.Or(cmp.Compare(a.org, b.org), cmp.Compare(a.account, b.account), cmp.Compare(a.what, b.what))
	})
	return keys
}
