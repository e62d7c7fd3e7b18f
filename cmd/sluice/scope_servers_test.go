package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

// On servers, with the judge in a process of its own: it raises through Kafka without an edge, and a second one shares its work and its budget.
func TestScopeJudgeOnServers(t *testing.T) {
	at := onServers(t)
	judge := newScriptedJudge(t)
	at.must(t, nil, "migrate", "--partitions", "2")
	var created struct {
		Account struct{ ID string }
		Key     string
	}
	at.must(t, &created, "accounts", "create", "--org", "acme", "--name", "nightly-digest-summariser", "--environment", "production", "--intended-scope", demoScope, "--json")
	var token struct{ Token string }
	at.must(t, &token, "tokens", "create", "--org", "acme", "--permission", "SETTINGS_INTEGRATIONS_UPDATE", "--permission", "AI_GOVERNANCE_VIEW", "--json")
	edge := at.start(t, "serve", "--roles", "edge,admin,alerts", "--alerts-group", "alerts_"+at.suffix)
	s := &judgeScene{program: edge, t: t, judge: judge, account: created.Account.ID, token: token.Token, work: newWorkload(t, edge.Edge, created.Key)}
	var judges []*judgeScene
	for range 2 {
		p := at.start(t, append([]string{"serve", "--roles", "scope", "--scope-group", "scope_" + at.suffix}, judge.args(t, "--judge-requests-per-day", "3")...)...)
		judges = append(judges, &judgeScene{program: p, t: t})
	}
	// The group begins with what comes once it has its partitions.
	n := 0
	if !until(60*time.Second, s.exited, func() bool {
		n++
		s.work.prompt(t, fmt.Sprintf("A poem of %s lines", strings.Repeat("many ", n%7)))
		s.work.chat(t, fmt.Sprintf("A poem of %s verses", strings.Repeat("few ", n%7)))
		return strings.Contains(s.get("/api/v1/alerts"), "off_topic_production")
	}) {
		t.Fatalf("no alert\n%s", judges[0].err.String())
	}
	alerts := s.get("/api/v1/alerts")
	for _, want := range []string{`"label":"service: nightly-digest-summariser / production"`, `"severity":"WARN"`, `"key_prefix":null`} {
		if !strings.Contains(alerts, want) {
			t.Errorf("the alert has no %s: %s", want, alerts)
		}
	}
	for i := range 8 {
		s.work.prompt(t, "Poem "+strings.Repeat("x", i+1))
	}
	if !until(30*time.Second, s.exited, func() bool {
		return judges[0].metric(`sluice_scope_verdicts_total{verdict="abstained",why="budget"}`)+judges[1].metric(`sluice_scope_verdicts_total{verdict="abstained",why="budget"}`) > 0
	}) {
		t.Error("the budget is endless")
	}
	if n := len(judge.asked()); n > 3 {
		t.Errorf("%d questions on a budget of 3", n)
	}
	var page struct {
		Items []struct{ Verdict string }
	}
	if err := json.Unmarshal([]byte(s.get("/api/v1/service-accounts/"+s.account+"/scope/verdicts")), &page); err != nil || len(page.Items) == 0 || len(page.Items) > 3 {
		t.Errorf("verdicts: %+v %v", page, err)
	}
}
