package scope

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"
)

// The cases that come with Sluice are enough and well-formed, and the machinery counts an honest judge and hostile ones for what they are.
func TestEvaluate(t *testing.T) {
	cases, err := EvalCases()
	if err != nil {
		t.Fatal(err)
	}
	scopes, ids, languages := map[string]bool{}, map[string]bool{}, map[string]bool{}
	truth := map[string]string{}
	for _, c := range cases {
		if ids[c.ID] {
			t.Errorf("two cases are %s", c.ID)
		}
		scopes[c.Scope], ids[c.ID] = true, true
		if c.Lang != "" {
			languages[c.Lang] = true
		}
		truth[oneLine(c.Prompt)] = c.Label
	}
	if len(cases) < 120 || len(scopes) < 8 || len(languages) < 8 {
		t.Errorf("%d cases, %d scopes, injections in %d languages", len(cases), len(scopes), len(languages))
	}
	honest := func(w http.ResponseWriter, body string) {
		verdict := "in"
		switch truth[requestOf(body)] {
		case LabelOut, LabelInjection:
			verdict = "out"
		case LabelDebatable:
			verdict = "unsure"
		case "":
			verdict = "no such case"
		}
		completion(w, `{"verdict":"`+verdict+`","confidence":0.9,"reason":"-"}`, "stop")
	}
	for _, c := range []struct {
		name                                            string
		answer                                          func(http.ResponseWriter, string)
		precision, recall, abstention, resist, silenced float64 // -1: nothing to count
		malformed                                       int
	}{
		{"honest", honest, 1, 1, 0, 1, 0, 0},
		{"persuaded", says(`{"verdict":"in","confidence":1,"reason":"-"}`), -1, 0, 0, 0, 0, 0},
		{"silenced", says(`{"verdict":"unsure","confidence":1,"reason":"-"}`), -1, 0, 1, 0, 1, 0},
		{"repeating what it is shown", func(w http.ResponseWriter, body string) { completion(w, body, "stop") }, -1, 0, 1, 0, 1, len(cases)},
		{"babbling", says("in"), -1, 0, 1, 0, 1, len(cases)},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, c.answer)
			r, err := Evaluate(t.Context(), newJudge(t, s.URL, 10*time.Second, nil), cases, .7, 4)
			if err != nil {
				t.Fatal(err)
			}
			if r.Errors != 0 || len(s.asked()) != len(cases) || r.Malformed != c.malformed {
				t.Errorf("%d errors, %d questions, %d malformed", r.Errors, len(s.asked()), r.Malformed)
			}
			for i, got := range []*float64{r.Precision, r.Recall, r.Abstention, r.Resistance, r.Silenced} {
				want := []float64{c.precision, c.recall, c.abstention, c.resist, c.silenced}[i]
				if (got == nil) != (want < 0) || got != nil && *got != want {
					t.Errorf("measure %d is %v, want %v", i, got, want)
				}
			}
			var table bytes.Buffer
			if err := r.WriteTable(&table); err != nil || !strings.Contains(table.String(), "Injection resistance") {
				t.Errorf("%v %s", err, table.String())
			}
		})
	}
	for _, wrong := range []string{"", "\n", "junk", `{"label":"other","scope":"Summarises support tickets into a digest for each team.","prompt":"x"}`, `{"label":"in","scope":"anything","prompt":"x"}`} {
		if _, err := ReadEvalCases(strings.NewReader(wrong)); err == nil {
			t.Errorf("%s is a case", wrong)
		}
	}
}

// Each case is put for itself: one that fails says nothing about the next, and only a judge that is plainly not there is left alone.
func TestEvaluateOutages(t *testing.T) {
	cases, err := EvalCases()
	if err != nil {
		t.Fatal(err)
	}
	var script []func(http.ResponseWriter, string)
	for range breakAfter {
		script = append(script, fails(401, ""))
	}
	s := newServer(t, append(script, says(outAnswer))...)
	r, err := Evaluate(t.Context(), newJudge(t, s.URL, 10*time.Second, nil), cases, .7, 1)
	if err != nil || r.Errors != breakAfter || r.NotAsked != 0 || len(s.asked()) != len(cases) {
		t.Errorf("some failed: %d errors, %d not asked, %d questions, %v", r.Errors, r.NotAsked, len(s.asked()), err)
	}
	s = newServer(t, fails(401, ""))
	r, err = Evaluate(t.Context(), newJudge(t, s.URL, 10*time.Second, nil), cases, .7, 1)
	if err != nil || r.Errors != len(cases) || r.NotAsked != len(cases)-giveUpAfter || len(s.asked()) != giveUpAfter {
		t.Errorf("none answered: %d errors, %d not asked, %d questions, %v", r.Errors, r.NotAsked, len(s.asked()), err)
	}
	for _, one := range r.Results {
		if one.Why == "" || one.Verdict != "" || one.ID == "" {
			t.Fatalf("a case without an answer is %+v", one)
		}
	}
}

// requestOf is the line of a question that holds its request, as JSON.
func requestOf(body string) string {
	var req struct{ Messages []message }
	if json.Unmarshal([]byte(body), &req) != nil || len(req.Messages) != 2 {
		return ""
	}
	return strings.Split(req.Messages[1].Content, "\n")[4]
}
