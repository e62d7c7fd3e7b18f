package scope

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"flowstate.inc/sluice/signals"
)

// A Store keeps verdicts, counts and budgets, in a database that deploy.Migrate has brought up to date. The handles stay the caller's.
type Store struct {
	w, r *sql.DB
	now  func() time.Time
}

// StoreConfig is what NewStore needs.
type StoreConfig struct {
	Writer *sql.DB          // for SQLite limited to one connection, beginning immediate
	Reader *sql.DB          // nil: Writer
	Now    func() time.Time // nil: time.Now
}

// NewStore makes a Store. It does not touch the database.
func NewStore(cfg StoreConfig) *Store {
	s := &Store{w: cfg.Writer, r: cfg.Reader, now: cfg.Now}
	if s.r == nil {
		s.r = s.w
	}
	if s.now == nil {
		s.now = time.Now
	}
	return s
}

// Now is the time that the store goes by.
func (s *Store) Now() time.Time { return s.now() }

const storeTimeout = 5 * time.Second

// A Judged is one verdict, as it is kept.
type Judged struct {
	ID            string // scv_…; sorts by time
	Org           string
	AccountID     string
	At            time.Time
	AskedAt       time.Time
	Verdict       Verdict
	Confidence    float64
	Why           string // why it is unsure; "" else
	Reason        string // the judge's; "" where it was withheld
	Found         string // the event or attribute that the prompt stood in
	Model         string
	PromptVersion string
	ScopeVersion  string
	InputHash     string
	TokensIn      int64
	TokensOut     int64
	Prompt        string // redacted; "" unless configured
}

const judgedColumns = `id, org, account_id, at, asked_at, verdict, confidence, why, reason, found, model, prompt_version, scope_version, input_hash, tokens_in, tokens_out, prompt`

// Keep writes a verdict.
func (s *Store) Keep(ctx context.Context, v *Judged) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	var prompt any
	if v.Prompt != "" {
		prompt = v.Prompt
	}
	_, err := s.w.ExecContext(ctx, `INSERT INTO scope_verdicts (`+judgedColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)`,
		v.ID, v.Org, v.AccountID, v.At.UnixMilli(), v.AskedAt.UnixMilli(), string(v.Verdict), int64(v.Confidence*1000+.5), v.Why, v.Reason, v.Found, v.Model, v.PromptVersion,
		v.ScopeVersion, v.InputHash, v.TokensIn, v.TokensOut, prompt)
	return wrap("keep a verdict", err)
}

func scanJudged(row interface{ Scan(...any) error }) (Judged, error) {
	var v Judged
	var at, asked, confidence int64
	var verdict string
	var prompt sql.NullString
	err := row.Scan(&v.ID, &v.Org, &v.AccountID, &at, &asked, &verdict, &confidence, &v.Why, &v.Reason, &v.Found, &v.Model, &v.PromptVersion, &v.ScopeVersion, &v.InputHash,
		&v.TokensIn, &v.TokensOut, &prompt)
	v.At, v.AskedAt, v.Verdict, v.Confidence, v.Prompt = time.UnixMilli(at).UTC(), time.UnixMilli(asked).UTC(), Verdict(verdict), float64(confidence)/1000, prompt.String
	return v, err
}

// Like is the latest verdict on the same input under the same scope, by the same model in the same words, since a time; nil where there is none.
func (s *Store) Like(ctx context.Context, v *Judged, since time.Time) (*Judged, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	like, err := scanJudged(s.w.QueryRowContext(ctx, `SELECT `+judgedColumns+` FROM scope_verdicts WHERE org = $1 AND account_id = $2 AND input_hash = $3 AND at >= $4
		AND scope_version = $5 AND model = $6 AND prompt_version = $7 ORDER BY at DESC LIMIT 1`,
		v.Org, v.AccountID, v.InputHash, since.UnixMilli(), v.ScopeVersion, v.Model, v.PromptVersion))
	if err == sql.ErrNoRows {
		return nil, nil
	}
	if err != nil {
		return nil, wrap("look for a verdict", err)
	}
	return &like, nil
}

// Verdicts lists the verdicts of an account, latest first, at most limit of those before the verdict with the id before; "" begins with the latest.
func (s *Store) Verdicts(ctx context.Context, org, account, before string, limit int) ([]Judged, error) {
	if before == "" {
		before = "scv_~" // after every id
	}
	rows, err := s.r.QueryContext(ctx, `SELECT `+judgedColumns+` FROM scope_verdicts WHERE org = $1 AND account_id = $2 AND id < $3 ORDER BY id DESC LIMIT $4`, org, account, before, limit)
	if err != nil {
		return nil, wrap("list verdicts", err)
	}
	defer rows.Close()
	var out []Judged
	for rows.Next() {
		v, err := scanJudged(rows)
		if err != nil {
			return nil, wrap("list verdicts", err)
		}
		out = append(out, v)
	}
	return out, wrap("list verdicts", rows.Err())
}

// A Count is how often something was seen.
type Count struct {
	Count int64
	Last  time.Time
}

type countKey struct{ org, account, what string }

// addCounts adds to the counts of today.
func (s *Store) addCounts(ctx context.Context, counts map[countKey]Count) error {
	if len(counts) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	tx, err := s.w.BeginTx(ctx, nil)
	if err != nil {
		return wrap("count", err)
	}
	defer func() { _ = tx.Rollback() }() // after a commit it says that there is nothing to undo
	for _, k := range sortedKeys(counts) {
		c := counts[k]
		if _, err := tx.ExecContext(ctx, `INSERT INTO scope_counts (org, account_id, day, what, count, last_at) VALUES ($1, $2, $3, $4, $5, $6)
			ON CONFLICT (org, account_id, day, what) DO UPDATE SET count = scope_counts.count + excluded.count,
			last_at = CASE WHEN excluded.last_at > scope_counts.last_at THEN excluded.last_at ELSE scope_counts.last_at END`,
			k.org, k.account, day(c.Last), k.what, c.Count, c.Last.UnixMilli()); err != nil {
			return wrap("count", err)
		}
	}
	return wrap("count", tx.Commit())
}

// Counts are what was seen of an account on the last days, today among them, by what became of it: the names beside Seen.
func (s *Store) Counts(ctx context.Context, org, account string, days int) (map[string]Count, error) {
	rows, err := s.r.QueryContext(ctx, `SELECT what, SUM(count), MAX(last_at) FROM scope_counts WHERE org = $1 AND account_id = $2 AND day > $3 GROUP BY what`,
		org, account, day(s.now())-int64(days))
	if err != nil {
		return nil, wrap("read the counts", err)
	}
	defer rows.Close()
	out := map[string]Count{}
	for rows.Next() {
		var what string
		var n, last int64
		if err := rows.Scan(&what, &n, &last); err != nil {
			return nil, wrap("read the counts", err)
		}
		out[what] = Count{n, time.UnixMilli(last).UTC()}
	}
	return out, wrap("read the counts", rows.Err())
}

// Prune removes verdicts older than keep, counts and budgets of more than 90 days, and processes that were not heard of for a day. Several processes may do so at once.
func (s *Store) Prune(ctx context.Context, keep time.Duration) error {
	steps := []struct {
		query string
		arg   int64
	}{
		{`DELETE FROM scope_spend WHERE day < $1`, day(s.now()) - 90},
		{`DELETE FROM scope_counts WHERE day < $1`, day(s.now()) - 90},
		{`DELETE FROM scope_judges WHERE seen_at < $1`, s.now().Add(-presentKnown).UnixMilli()},
	}
	if keep > 0 {
		steps = append(steps, struct {
			query string
			arg   int64
		}{`DELETE FROM scope_verdicts WHERE at < $1`, s.now().Add(-keep).UnixMilli()})
	}
	for _, step := range steps {
		if _, err := s.w.ExecContext(ctx, step.query, step.arg); err != nil {
			return wrap("remove old verdicts", err)
		}
	}
	return nil
}

// day is the day of a time in UTC, since 1970.
func day(t time.Time) int64 { return t.Unix() / 86_400 }

func wrap(step string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", step, err)
}

func newVerdictID(now time.Time) string { return signals.NewID("scv", now) }
