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

// A booking is what one question was allowed to cost.
type booking struct {
	day            int64
	account        string
	tokens, micros int64
}

// book takes one question and its most likely cost out of the day's budgets, in all and of the account, or returns errSpent and takes nothing.
func (s *Store) book(ctx context.Context, account string, tokens, micros int64, all, each Budget) (booking, error) {
	b := booking{day: day(s.now()), account: account, tokens: tokens, micros: micros}
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	tx, err := s.w.BeginTx(ctx, nil)
	if err != nil {
		return b, wrap("book a question", err)
	}
	defer func() { _ = tx.Rollback() }() // after a commit it says that there is nothing to undo
	for _, part := range []struct {
		account string
		most    Budget
	}{{"", all}, {account, each}} {
		most := part.most.orEndless()
		if most.Requests < 1 || tokens > most.Tokens || micros > most.Micros {
			return b, errSpent
		}
		res, err := tx.ExecContext(ctx, `INSERT INTO scope_spend (day, account_id, requests, tokens, micros) VALUES ($1, $2, 1, $3, $4)
			ON CONFLICT (day, account_id) DO UPDATE SET requests = scope_spend.requests + 1, tokens = scope_spend.tokens + excluded.tokens,
			micros = scope_spend.micros + excluded.micros
			WHERE scope_spend.requests + 1 <= $5 AND scope_spend.tokens + excluded.tokens <= $6 AND scope_spend.micros + excluded.micros <= $7`,
			b.day, part.account, tokens, micros, most.Requests, most.Tokens, most.Micros)
		if err != nil {
			return b, wrap("book a question", err)
		}
		n, err := res.RowsAffected()
		if err != nil {
			return b, wrap("book a question", err)
		}
		if n == 0 {
			return b, errSpent
		}
	}
	return b, wrap("book a question", tx.Commit())
}

// settle puts what a question did cost in the place of what was booked. The request itself stays counted.
func (s *Store) settle(ctx context.Context, b booking, tokens, micros int64) error {
	if tokens == b.tokens && micros == b.micros {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
	defer cancel()
	tx, err := s.w.BeginTx(ctx, nil)
	if err != nil {
		return wrap("settle a question", err)
	}
	defer func() { _ = tx.Rollback() }() // as in book
	// In the order of book, so that two of them never wait for each other.
	for _, account := range []string{"", b.account} {
		if _, err := tx.ExecContext(ctx, `UPDATE scope_spend SET tokens = tokens + $1, micros = micros + $2 WHERE day = $3 AND account_id = $4`,
			tokens-b.tokens, micros-b.micros, b.day, account); err != nil {
			return wrap("settle a question", err)
		}
	}
	return wrap("settle a question", tx.Commit())
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
