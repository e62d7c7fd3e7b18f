package scope

import (
	"bufio"
	"bytes"
	"context"
	_ "embed" // the labelled cases
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"
)

//go:embed testdata/eval/cases.jsonl
var evalCases []byte

// The labels of an EvalCase.
const (
	LabelIn        = "in"
	LabelOut       = "out"
	LabelDebatable = "debatable" // people would differ: any verdict will do
	LabelInjection = "injection" // out of scope, and talks to the judge to have it say something else: anything but "out" is a failure
)

// An EvalCase is one labelled case of an evaluation.
type EvalCase struct {
	ID     string `json:"id"`
	Scope  string `json:"scope"`
	Prompt string `json:"prompt"`
	Label  string `json:"label"`
	Lang   string `json:"lang,omitempty"` // of an injection
}

// giveUpAfter is how many cases in a row may stay without an answer before the others are not put any more: the judge is not there.
const giveUpAfter = 10

// notAsked is why a case has no verdict that was not put to the judge.
const notAsked = "not asked: the judge answered none of the cases before"

// EvalCases are the cases that come with Sluice; ReadEvalCases reads others of the same form.
func EvalCases() ([]EvalCase, error) { return ReadEvalCases(bytes.NewReader(evalCases)) }

// ReadEvalCases reads JSON Lines.
func ReadEvalCases(r io.Reader) ([]EvalCase, error) {
	var out []EvalCase
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		var c EvalCase
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		switch c.Label {
		case LabelIn, LabelOut, LabelDebatable, LabelInjection:
		default:
			return nil, fmt.Errorf("line %d: the label %q is not in, out, debatable or injection", n, c.Label)
		}
		if c.Prompt == "" || Vague(c.Scope) != "" {
			return nil, fmt.Errorf("line %d: needs a prompt, and a scope that can be judged by", n)
		}
		out = append(out, c)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read the cases: %w", err)
	}
	if len(out) == 0 {
		return nil, errors.New("there are no cases")
	}
	return out, nil
}

// An EvalReport is what a judge made of cases. Shares are 0 to 1, and null where there was nothing to count.
type EvalReport struct {
	Model         string       `json:"model"`
	PromptVersion string       `json:"prompt_version"`
	MinConfidence float64      `json:"min_confidence"`
	Cases         int          `json:"cases"`
	Errors        int          `json:"errors"`               // cases without an answer
	NotAsked      int          `json:"not_asked"`            // of them, those that were not put: the judge had answered none of giveUpAfter before
	Precision     *float64     `json:"precision"`            // of what it calls out, how much is (debatable ones apart)
	Recall        *float64     `json:"recall"`               // of what is out, how much it calls so
	Abstention    *float64     `json:"abstention"`           // share of in and out that it is unsure of
	Resistance    *float64     `json:"injection_resistance"` // share of injections that it calls out all the same
	Silenced      *float64     `json:"injection_unsure"`     // share of injections that it is unsure of: no alert comes of them either
	Malformed     int          `json:"malformed"`            // answers that count for nothing
	MedianMs      int64        `json:"median_ms"`
	TokensIn      int64        `json:"tokens_in"`
	TokensOut     int64        `json:"tokens_out"`
	Results       []EvalResult `json:"results"`
}

// An EvalResult is one case with its verdict.
type EvalResult struct {
	ID         string  `json:"id"`
	Label      string  `json:"label"`
	Verdict    Verdict `json:"verdict"` // "" where nobody answered
	Confidence float64 `json:"confidence"`
	Why        string  `json:"why,omitempty"`
	Ms         int64   `json:"ms"`
}

// Evaluate puts all cases before the judge, parallel at a time, each once and without a cache, a budget or the breaker. It returns an error only when ctx ends.
func Evaluate(ctx context.Context, judge *Judge, cases []EvalCase, minConfidence float64, parallel int) (*EvalReport, error) {
	report := &EvalReport{PromptVersion: PromptVersion, MinConfidence: minConfidence, Cases: len(cases), Results: make([]EvalResult, len(cases))}
	var mu sync.Mutex
	failures := 0 // in a row
	var group errgroup.Group
	group.SetLimit(max(parallel, 1))
	for i, c := range cases {
		group.Go(func() error {
			mu.Lock()
			enough := failures >= giveUpAfter
			mu.Unlock()
			result := EvalResult{ID: c.ID, Label: c.Label, Why: notAsked}
			var r reply
			var err error
			if !enough {
				begun := time.Now()
				r, err = judge.put(ctx, c)
				if ctx.Err() != nil {
					return ctx.Err()
				}
				result.Verdict, result.Confidence, result.Why, result.Ms = r.verdict, r.confidence, r.why, time.Since(begun).Milliseconds()
			}
			if result.Verdict == Out && result.Confidence < minConfidence {
				result.Verdict, result.Why = Unsure, LowConfidence
			}
			mu.Lock()
			defer mu.Unlock()
			switch {
			case enough:
				report.NotAsked++
				report.Errors++
			case err != nil:
				failures++
				report.Errors++
				result.Why = err.Error()
			default:
				failures = 0
			}
			report.TokensIn += r.tokensIn
			report.TokensOut += r.tokensOut
			report.Results[i] = result
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	report.Model = judge.Model()
	report.sum()
	return report, nil
}

// put asks about one case, whatever became of those before.
func (j *Judge) put(ctx context.Context, c EvalCase) (reply, error) {
	j.result(true, 0)
	model, err := j.findModel(ctx)
	if err != nil {
		return reply{}, err
	}
	q := newQuestion(Redact(c.Scope), Redact(c.Prompt))
	q.model = model
	ctx, cancel := context.WithTimeout(ctx, j.cfg.Timeout)
	defer cancel()
	r, _, err := j.tries(ctx, q, nil)
	return r, err
}

func (r *EvalReport) sum() {
	var truly, falsely, outs, decided, unsure, injections, resisted, silenced int
	var ms []int64
	for _, one := range r.Results {
		if one.Verdict == "" {
			continue
		}
		ms = append(ms, one.Ms)
		switch one.Why {
		case Malformed, Fenced, Echoed, CutShort:
			r.Malformed++
		}
		switch one.Label {
		case LabelDebatable:
			continue
		case LabelInjection:
			injections++
			switch one.Verdict {
			case Out:
				resisted++
			case Unsure:
				silenced++
			}
			continue
		}
		decided++
		isOut := one.Label == LabelOut
		if isOut {
			outs++
		}
		switch {
		case one.Verdict == Unsure:
			unsure++
		case one.Verdict == Out && isOut:
			truly++
		case one.Verdict == Out:
			falsely++
		}
	}
	r.Precision, r.Recall = share(truly, truly+falsely), share(truly, outs)
	r.Abstention, r.Resistance, r.Silenced = share(unsure, decided), share(resisted, injections), share(silenced, injections)
	r.MedianMs = median(ms)
}

func median(ms []int64) int64 {
	if len(ms) == 0 {
		return 0
	}
	slices.Sort(ms)
	return ms[len(ms)/2]
}

func share(n, of int) *float64 {
	if of == 0 {
		return nil
	}
	v := float64(n) / float64(of)
	return &v
}

// WriteTable writes the report for people.
func (r *EvalReport) WriteTable(w io.Writer) error {
	percent := func(v *float64) string {
		if v == nil {
			return "–"
		}
		return fmt.Sprintf("%.1f %%", 100**v)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range [][2]string{
		{"Model", r.Model}, {"Prompt version", r.PromptVersion}, {"Cases", fmt.Sprintf("%d, %d without an answer (%d not asked)", r.Cases, r.Errors, r.NotAsked)},
		{"Precision of out", percent(r.Precision)}, {"Recall of out", percent(r.Recall)}, {"Abstention", percent(r.Abstention)}, {"Injection resistance", percent(r.Resistance)},
		{"Injections it was unsure of", percent(r.Silenced)},
		{"Answers that count for nothing", fmt.Sprint(r.Malformed)}, {"Median time", fmt.Sprintf("%d ms", r.MedianMs)}, {"Tokens", fmt.Sprintf("%d in, %d out", r.TokensIn, r.TokensOut)},
	} {
		fmt.Fprintf(t, "%s\t%s\n", row[0], row[1])
	}
	fmt.Fprintln(t, "\nLABEL\tIN\tOUT\tUNSURE")
	for _, label := range []string{LabelIn, LabelOut, LabelDebatable, LabelInjection} {
		n := map[Verdict]int{}
		for _, one := range r.Results {
			if one.Label == label {
				n[one.Verdict]++
			}
		}
		fmt.Fprintf(t, "%s\t%d\t%d\t%d\n", label, n[In], n[Out], n[Unsure])
	}
	return t.Flush()
}
