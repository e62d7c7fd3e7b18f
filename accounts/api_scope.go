package accounts

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/signals/scope"
)

// A ScopeJudge is what the admin API and the console ask of the scope judge. The zero value has no verdicts and judges nothing.
type ScopeJudge struct {
	Store    *scope.Store    // nil: no verdicts
	Assessor *scope.Assessor // nil: no judge is configured
}

// MaxPrompt bounds a prompt that is tried, in characters.
const MaxPrompt = 8_000

// Why nothing is judged, beside what the scope package says of single prompts.
const (
	judgeOff     = "judge_off"     // no process judges
	judgeUnknown = "judge_unknown" // one may
	notSampled   = "not_sampled"   // the share of this account is 0
	deleted      = "deleted"
	noPrompts    = "no_bodies" // the telemetry of the last days says that prompts were sent, and has none
)

// ScopeDays is how far back a ScopeState looks.
const ScopeDays = 7

// A ScopeState says whether an account's prompts are judged, by whichever process, and what came of it on the last ScopeDays days.
type ScopeState struct {
	Judging bool
	Unknown bool   // nobody can say whether they are
	Why     string // why not, for programs; "" where they are
	Text    string // for people: why not, or what leaves
	Counts  map[string]scope.Count
	Spent   scope.Budget // today, by this account
	Budget  scope.Budget // of an account a day, where somebody judges
}

// State says how an account stands with the judge. What judges telemetry is mostly another process than this one, so it goes by what those say of themselves.
func (j ScopeJudge) State(ctx context.Context, a Account) (ScopeState, error) {
	var s ScopeState
	var there judges
	var spent scope.Budget // in all
	if j.Store != nil {
		var err error
		if s.Counts, err = j.Store.Counts(ctx, a.Org, a.ID, ScopeDays); err != nil {
			return s, err
		}
		if s.Spent, err = j.Store.Spent(ctx, a.ID); err != nil {
			return s, err
		}
		if spent, err = j.Store.Spent(ctx, ""); err != nil {
			return s, err
		}
		if there, err = j.judges(ctx, a); err != nil {
			return s, err
		}
	}
	s.Budget = there.each
	vague := scope.Vague(a.IntendedScope)
	switch {
	case !a.Live():
		s.Why, s.Text = deleted, "The account is deleted, so nothing more of it is judged."
	case vague != "":
		s.Why, s.Text = string(vague), vague.Text()
	case there.live == 0 && !there.lost.IsZero():
		s.Why, s.Unknown = judgeUnknown, true
		s.Text = "Whether its prompts are judged is not known: a process that judges was last heard of at " + there.lost.Format("15:04 on 2 January") + " (UTC), and did not say that it stopped."
	case there.live == 0:
		s.Why = judgeOff
		s.Text = "No process judges telemetry, so nothing of it leaves for a judge. The role scope with --judge-url turns it on."
		if j.Assessor != nil {
			s.Text += " Only a prompt that is tried in the edit drawer goes to one."
		}
	case !there.sampled:
		s.Why, s.Text = notSampled, "The share of this account's prompts that is judged is set to none."
	case s.Counts[scope.NoBody].Count > 0 && s.Counts[scope.NoBody].Count == s.Counts[scope.Seen].Count:
		s.Why = noPrompts
		s.Text = "Its telemetry says that it was asked something, and not what. Claude Code sends prompts only with OTEL_LOG_USER_PROMPTS=1; for others switch the capture of message content on."
	case there.away == there.live:
		s.Why, s.Text = scope.JudgeAway, "The judge does not answer just now. What is asked meanwhile waits a few minutes for it, and is then left unjudged."
	case overspent(s.Spent, there.each):
		s.Why, s.Text = scope.BudgetSpent, "The account's budget of today is used up. It begins anew at midnight UTC."
	case overspent(spent, there.all):
		s.Why, s.Text = scope.BudgetSpent, "The budget of today in all is used up. It begins anew at midnight UTC."
	default:
		s.Judging = true
		s.Text = "A sample of what it is asked goes to a language model" + there.models + " with its intended scope, after secrets that can be told by their shape were cut out."
	}
	return s, nil
}

// judges are the processes that judge telemetry, as they bear on one account.
type judges struct {
	live, away int
	lost       time.Time // when one was last heard of that may be gone; zero where none is
	sampled    bool
	models     string // " (one, two)", "" where none is known yet
	all, each  scope.Budget
}

func (j ScopeJudge) judges(ctx context.Context, a Account) (judges, error) {
	known, err := j.Store.Judges(ctx)
	if err != nil {
		return judges{}, err
	}
	var out judges
	var models []string
	for _, p := range known {
		if !p.Live(j.Store.Now()) {
			if p.SeenAt.After(out.lost) {
				out.lost = p.SeenAt
			}
			continue
		}
		if out.live == 0 {
			out.all, out.each = p.All, p.Each
		}
		out.live++
		if p.Away {
			out.away++
		}
		out.sampled = out.sampled || p.Shares.Of(a.Name, a.Environment) > 0
		if p.Model != "" && !slices.Contains(models, p.Model) {
			models = append(models, p.Model)
		}
	}
	if len(models) > 0 {
		out.models = " (" + strings.Join(models, ", ") + ")"
	}
	return out, nil
}

func overspent(spent, most scope.Budget) bool {
	return most.Requests > 0 && spent.Requests >= most.Requests || most.Tokens > 0 && spent.Tokens >= most.Tokens || most.Micros > 0 && spent.Micros >= most.Micros
}

// Try asks the judge about a prompt, against a scope that may not be saved. Errors: *InvalidError; *Problem where no judge is configured or it does not answer.
func (j ScopeJudge) Try(ctx context.Context, a Account, intended, prompt string) (scope.Assessment, error) {
	var c checker
	prompt = strings.TrimSpace(prompt)
	switch {
	case prompt == "":
		c.fail("prompt", "is missing: what might the workload be asked?")
	case len([]rune(prompt)) > MaxPrompt:
		c.fail("prompt", "is longer than %d characters", MaxPrompt)
	}
	if len([]rune(intended)) > MaxIntendedScope {
		c.fail("intended_scope", "is longer than %d characters", MaxIntendedScope)
	}
	if err := c.err(); err != nil {
		return scope.Assessment{}, err
	}
	if j.Assessor == nil {
		return scope.Assessment{}, &Problem{Status: http.StatusConflict, Code: "judge-off", Detail: "This process knows of no judge, so nothing can be tried: its --judge-url is not set."}
	}
	out, err := j.Assessor.Try(ctx, &auth.Principal{Org: a.Org, Kind: auth.KindServiceAccount, ID: a.ID, Name: a.Name, Environment: a.Environment,
		IntendedScope: intended}, prompt)
	if errors.Is(err, scope.ErrAway) {
		return out, &Problem{Status: http.StatusServiceUnavailable, Code: codeUnavailable, Detail: "The judge does not answer. Nothing is lost; try again.",
			header: http.Header{"Retry-After": {"10"}}}
	}
	return out, err
}

// ScopeReason says why a prompt was not judged, or why its verdict is unsure, in a sentence; "" for a code that needs none.
func ScopeReason(code string) string {
	switch code {
	case string(scope.NoScope), string(scope.VagueScope):
		return scope.Vagueness(code).Text()
	case scope.NoBody:
		return "There is no text to judge."
	case scope.BudgetSpent:
		return "A budget of the day is used up, the account's or that in all. It begins anew at midnight UTC."
	case scope.JudgeAway:
		return "The judge did not answer in time."
	case scope.TooOld:
		return "It was too old when its turn came."
	case scope.AccountUnknown:
		return "The database could not be asked whose it is before it was too old."
	case scope.JudgeRefused:
		return "The judge’s server does not take the question: it is too long for its model, or there is no such model."
	case scope.JudgeUnsure:
		return "The judge cannot tell."
	case scope.LowConfidence:
		return "The judge thinks it is out of scope, with too little confidence to say so."
	case scope.Malformed, scope.CutShort:
		return "The judge’s answer is not of the form that was asked for, so it counts for nothing."
	case scope.Fenced, scope.Echoed:
		return "The judge repeated what it was shown instead of judging it, so its answer counts for nothing."
	case scope.Refused:
		return "The judge declined to answer."
	}
	return ""
}

type scopeVerdict struct {
	ID            *string `json:"id"` // null for one that was only tried
	At            *string `json:"at"`
	AskedAt       *string `json:"asked_at"`
	Verdict       *string `json:"verdict"` // null where nothing was judged
	Confidence    float64 `json:"confidence"`
	Why           *string `json:"why"`    // why it is unsure, or why nothing was judged
	Detail        *string `json:"detail"` // the same, as a sentence
	Reason        *string `json:"reason"` // the judge's
	FoundIn       string  `json:"found_in"`
	Model         string  `json:"model"`
	PromptVersion string  `json:"prompt_version"`
	ScopeVersion  string  `json:"scope_version"`
	InputHash     *string `json:"input_hash"`
	TokensIn      int64   `json:"tokens_in"`
	TokensOut     int64   `json:"tokens_out"`
	Prompt        *string `json:"prompt"` // null unless prompts are kept
}

func verdictOf(v *scope.Judged, abstained string) scopeVerdict {
	why := v.Why
	if abstained != "" {
		why = abstained
	}
	return scopeVerdict{ID: jsonText(v.ID), At: jsonTime(v.At), AskedAt: jsonTime(v.AskedAt), Verdict: jsonText(string(v.Verdict)), Confidence: v.Confidence, Why: jsonText(why),
		Detail: jsonText(ScopeReason(why)), Reason: jsonText(v.Reason), FoundIn: v.Found, Model: v.Model, PromptVersion: v.PromptVersion, ScopeVersion: v.ScopeVersion,
		InputHash: jsonText(v.InputHash), TokensIn: v.TokensIn, TokensOut: v.TokensOut, Prompt: jsonText(v.Prompt)}
}

// tryScope judges a prompt against the account's scope, or the one in the body.
func (a *API) tryScope(w http.ResponseWriter, r *http.Request, admin auth.Admin) error {
	id, err := accountID(r)
	if err != nil {
		return err
	}
	acc, err := a.cfg.Store.Account(r.Context(), admin.Org, id)
	if err != nil {
		return err
	}
	o, err := readObject(r)
	if err != nil {
		return err
	}
	prompt, intended := o.text("prompt"), o.text("intended_scope")
	if err := o.done(nil); err != nil {
		return err
	}
	if prompt == nil {
		prompt = new(string)
	}
	if intended == nil {
		intended = &acc.IntendedScope
	}
	out, err := a.cfg.Scope.Try(r.Context(), acc, *intended, *prompt)
	if err != nil {
		return err
	}
	return WriteJSON(w, http.StatusOK, verdictOf(&out.Judged, out.Abstained))
}

type scopeCount struct {
	What  string  `json:"what"`
	Count int64   `json:"count"`
	Last  *string `json:"last_at"`
}

type scopeAnswer struct {
	Judging *bool          `json:"judging"` // null where nobody can say
	Why     *string        `json:"why"`
	Detail  *string        `json:"detail"`
	Days    int            `json:"days"`
	Counts  []scopeCount   `json:"counts"`
	Items   []scopeVerdict `json:"items"`
	Next    string         `json:"next_cursor,omitempty"`
}

// scopeCounts are what is counted, in the order in which it is told.
var scopeCounts = []string{scope.Seen, scope.Sampled, string(scope.In), string(scope.Out), string(scope.Unsure), scope.NoBody, string(scope.VagueScope), scope.BudgetSpent, scope.JudgeAway, scope.JudgeRefused,
	scope.TooOld, scope.AccountUnknown}

func (a *API) scopeVerdicts(w http.ResponseWriter, r *http.Request, admin auth.Admin) error {
	id, err := accountID(r)
	if err != nil {
		return err
	}
	acc, err := a.cfg.Store.Account(r.Context(), admin.Org, id)
	if err != nil {
		return err
	}
	q, err := readQuery(r)
	if err != nil {
		return err
	}
	cursor, wanted := q.text("cursor"), q.limit()
	if err := q.done(); err != nil {
		return err
	}
	limit, err := checkLimit(wanted)
	if err != nil {
		return err
	}
	in := fingerprint("scope", acc.ID)
	before, _, err := decodePlace(cursor, in)
	if err != nil {
		return err
	}
	state, err := a.cfg.Scope.State(r.Context(), acc)
	if err != nil {
		return err
	}
	out := scopeAnswer{Why: jsonText(state.Why), Detail: jsonText(state.Text), Days: ScopeDays, Counts: []scopeCount{}, Items: []scopeVerdict{}}
	if !state.Unknown {
		out.Judging = &state.Judging
	}
	for _, what := range scopeCounts {
		if n, ok := state.Counts[what]; ok {
			out.Counts = append(out.Counts, scopeCount{what, n.Count, jsonTime(n.Last)})
		}
	}
	if a.cfg.Scope.Store == nil {
		return WriteJSON(w, http.StatusOK, out)
	}
	items, err := a.cfg.Scope.Store.Verdicts(r.Context(), admin.Org, acc.ID, before.ID, limit+1)
	if err != nil {
		return err
	}
	if len(items) > limit {
		items = items[:limit]
		out.Next = place{In: in, ID: items[limit-1].ID}.encode()
	}
	for i := range items {
		out.Items = append(out.Items, verdictOf(&items[i], ""))
	}
	return WriteJSON(w, http.StatusOK, out)
}
