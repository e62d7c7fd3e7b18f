package scope

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"
	"time"
	"unicode"

	"github.com/prometheus/client_golang/prometheus"

	"flowstate.inc/sluice/auth"
)

// AssessorConfig is what an Assessor judges with. Judge and Store are required.
type AssessorConfig struct {
	Judge *Judge
	Store *Store

	MinConfidence float64 // an "out" below it is unsure; default 0.7
	All, Each     Budget  // of a day: in all, and of one account
	Prices        Prices
	CacheFor      time.Duration // how long a verdict stands for like inputs; default 24 h
	KeepPrompts   bool          // keep the prompt, redacted, with its verdict

	Registerer prometheus.Registerer // nil: no metrics
	Now        func() time.Time      // nil: time.Now
}

// Why nothing was judged, beside the Vaguenesses.
const (
	NoBody       = "no_body"       // the telemetry says that something was asked, and not what
	BudgetSpent  = "budget"        // of the account or in all
	JudgeAway    = "judge_away"    // and the prompt has become too old to wait for it
	JudgeRefused = "judge_refused" // it does not take the question
)

// An Assessor says whether a prompt is within a scope: by rule where it can abstain, by an earlier verdict on a like input, else by its Judge within the
// budgets. It is safe for concurrent use.
type Assessor struct {
	cfg      AssessorConfig
	verdicts *prometheus.CounterVec
	tokens   *prometheus.CounterVec
	cached   prometheus.Counter
}

// NewAssessor returns an Assessor that has asked nobody yet.
func NewAssessor(cfg AssessorConfig) *Assessor {
	if cfg.MinConfidence == 0 {
		cfg.MinConfidence = .7
	}
	if cfg.CacheFor == 0 {
		cfg.CacheFor = 24 * time.Hour
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	a := &Assessor{cfg: cfg,
		verdicts: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sluice_scope_verdicts_total",
			Help: "Prompts that were assessed, by verdict (in, out, unsure, abstained) and why."}, []string{"verdict", "why"}),
		tokens: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sluice_scope_tokens_total", Help: "Tokens that questions to the judge came to, by direction: as it counts, else at the most."}, []string{"direction"}),
		cached: prometheus.NewCounter(prometheus.CounterOpts{Name: "sluice_scope_cached_total", Help: "Prompts that an earlier verdict on a like input answered."}),
	}
	if cfg.Registerer != nil {
		cfg.Registerer.MustRegister(a.verdicts, a.tokens, a.cached)
	}
	return a
}

// Judge is the judge that it asks.
func (a *Assessor) Judge() *Judge { return a.cfg.Judge }

// Budgets are the bounds of a day, in all and for one account.
func (a *Assessor) Budgets() (Budget, Budget) { return a.cfg.All, a.cfg.Each }

// An Assessment is what came of one prompt: a verdict, or why there is none.
type Assessment struct {
	Judged           // Verdict is "" where nothing was judged
	Abstained string // why nothing was judged; "" else
	Cached    bool   // an earlier verdict on a like input
}

// Assess judges what an account was asked. Errors: ErrAway, or the database's, wrapped; then nothing is known and it may be tried again.
func (a *Assessor) Assess(ctx context.Context, p *auth.Principal, asked Asked) (Assessment, error) {
	out, err := a.assess(ctx, p, asked, true)
	if err != nil {
		return out, err
	}
	a.count(out)
	return out, nil
}

// Try judges a prompt against a scope that may not be saved yet, for the account's budget. Nothing of it is kept but what it cost. Errors as of Assess.
func (a *Assessor) Try(ctx context.Context, p *auth.Principal, prompt string) (Assessment, error) {
	return a.assess(ctx, p, Asked{Text: present(prompt), Found: "try", At: a.cfg.Now()}, false)
}

func (a *Assessor) assess(ctx context.Context, p *auth.Principal, asked Asked, keep bool) (Assessment, error) {
	out := Assessment{Judged: Judged{
		Org: p.Org, AccountID: p.ID, At: a.cfg.Now().UTC(), AskedAt: asked.At, Found: asked.Found, PromptVersion: PromptVersion,
		ScopeVersion: ScopeVersion(p.IntendedScope),
	}}
	if v := Vague(p.IntendedScope); v != "" {
		out.Abstained = string(v)
		return out, nil
	}
	if asked.Text == "" {
		out.Abstained = NoBody
		return out, nil
	}
	// What is judged is what is hashed, so that a secret is in neither.
	prompt := Redact(cut(asked.Text, 4*maxPromptBytes, maxPromptBytes))
	out.InputHash = inputHash(p, prompt)
	var err error
	if out.Model, err = a.cfg.Judge.findModel(ctx); err != nil {
		return out, err
	}
	if keep {
		like, err := a.cfg.Store.Like(ctx, &out.Judged, a.cfg.Now().Add(-a.cfg.CacheFor))
		if err != nil {
			return out, err
		}
		if like != nil {
			a.cached.Inc()
			like.AskedAt = asked.At
			return Assessment{Judged: *like, Cached: true}, nil
		}
	}
	if a.cfg.Judge.resting() {
		return out, ErrAway
	}
	q := newQuestion(Redact(p.IntendedScope), prompt)
	q.model = out.Model
	m := &meter{store: a.cfg.Store, account: p.ID, prices: a.cfg.Prices, all: a.cfg.All, each: a.cfg.Each, asking: tokensOf(q)}
	r, err := a.cfg.Judge.ask(ctx, q, m)
	a.tokens.WithLabelValues("in").Add(float64(m.usedIn))
	a.tokens.WithLabelValues("out").Add(float64(m.usedOut))
	settled := m.settle(ctx)
	switch {
	case errors.Is(err, errSpent):
		out.Abstained = BudgetSpent
		return out, settled
	case errors.Is(err, ErrRefused):
		out.Abstained = JudgeRefused
		return out, settled
	case err != nil || settled != nil:
		return out, errors.Join(err, settled)
	}
	if out.TokensIn, out.TokensOut = r.tokensIn, r.tokensOut; out.TokensIn+out.TokensOut == 0 {
		out.TokensIn, out.TokensOut = m.usedIn, m.usedOut
	}
	out.Verdict, out.Confidence, out.Why, out.Reason = r.verdict, r.confidence, r.why, r.reason
	if out.Verdict == Out && out.Confidence < a.cfg.MinConfidence {
		out.Verdict, out.Why = Unsure, LowConfidence
	}
	if !keep {
		return out, nil
	}
	if a.cfg.KeepPrompts {
		out.Prompt = cut(prompt, maxPromptBytes, tailBytes)
	}
	out.ID = newVerdictID(a.cfg.Now())
	return out, a.cfg.Store.Keep(ctx, &out.Judged)
}

func (a *Assessor) count(out Assessment) {
	verdict, why := string(out.Verdict), out.Why
	if out.Abstained != "" {
		verdict, why = "abstained", out.Abstained
	}
	a.verdicts.WithLabelValues(verdict, why).Inc()
}

// ScopeVersion names a scope by what it says: it changes with every edit and comes back with an old text.
func ScopeVersion(scope string) string {
	sum := sha256.Sum256([]byte(strings.TrimSpace(scope)))
	return hex.EncodeToString(sum[:6])
}

// inputHash is the same for like inputs of one account: capitals, spaces and numbers apart. Salted with the account it cannot be looked up elsewhere, but
// who has it and guesses a short prompt can confirm the guess.
func inputHash(p *auth.Principal, prompt string) string {
	var b strings.Builder
	b.WriteString(p.Org + "\x00" + p.ID + "\x00")
	digit, space := false, true
	for _, r := range strings.ToLower(prompt) {
		switch {
		case unicode.IsDigit(r):
			if !digit {
				b.WriteByte('0')
			}
			digit, space = true, false
		case unicode.IsSpace(r):
			if !space {
				b.WriteByte(' ')
			}
			digit, space = false, true
		default:
			b.WriteRune(r)
			digit, space = false, false
		}
	}
	sum := sha256.Sum256([]byte(strings.TrimSpace(b.String())))
	return hex.EncodeToString(sum[:])
}
