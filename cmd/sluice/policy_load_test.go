package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"flowstate.inc/sluice/signals"
)

// TestPolicyChangesUnderLoad activates one version after the other while signals go through an edge: each is on the topic once, decided as a whole by one
// version that was in force, and explained as it was decided.
func TestPolicyChangesUnderLoad(t *testing.T) {
	t.Run("dev", func(t *testing.T) {
		p := onDev(t)
		g := p.start(t, "dev")
		changePolicyUnderLoad(t, p, g, g, g.Token, g.Account, g.Key, g.Kafka, "ai_signals")
	})
	t.Run("serve", func(t *testing.T) {
		p := onServers(t)
		p.must(t, nil, "migrate", "--partitions=3")
		made := p.account(t, demoOrg, "loaded")
		token := p.token(t, demoOrg, "AI_POLICY_ADMIN", "AI_GOVERNANCE_VIEW")
		edge, admin := p.start(t, "serve", "--roles=edge"), p.start(t, "serve", "--roles=admin,alerts")
		changePolicyUnderLoad(t, p, edge, admin, token, made.Account.ID, made.Key, os.Getenv("TEST_KAFKA_BROKERS"), p.topic("signals"))
	})
}

// A loadedVersion is a version of the policy in the test.
type loadedVersion struct {
	draft    string
	action   signals.Action // "": it has no rule
	inForce  time.Time      // since then at the latest, in the process that activated it
	severity signals.Severity
}

func changePolicyUnderLoad(t *testing.T, p *place, edge, admin *program, token, account, key, cluster, topic string) {
	ask := func(status int, path, body string) reply {
		t.Helper()
		r, err := send(t.Context(), http.DefaultClient, http.MethodPost, admin.Admin+path, body, "Authorization", "Bearer "+token)
		if err != nil || r.status != status {
			t.Fatalf("%s %s: %d %s, %v", path, body, r.status, r.body, err)
		}
		return r
	}
	load := startTraffic(t, key, edge.Edge)
	load.more(t, 10)
	versions := []loadedVersion{{severity: signals.Warn}} // before any, as the type has it
	for n := 1; n <= 16; n++ {
		v := loadedVersion{severity: signals.Warn}
		rules := "[]"
		if n%4 != 0 {
			v.action = []signals.Action{signals.ActionObserve, signals.ActionWarn, signals.ActionBlock}[n%3]
			v.severity = v.action.Severity()
			rules = fmt.Sprintf(`[{"id":"of-%d","types":["budget"],"when":"service.id == '%s'","action":%q,"scope":{"org":true}}]`, n, account, v.action)
		}
		v.draft = ask(http.StatusCreated, "/api/v1/policy/drafts", `{"rules":`+rules+`}`).member("id")
		ask(http.StatusOK, "/api/v1/policy/drafts/"+v.draft+"/activate", "")
		v.inForce = time.Now()
		versions = append(versions, v)
		load.more(t, 20)
	}
	load.stop()
	_, db := p.store(t)
	load.checkStored(t, db)

	copies, used := map[string]int{}, map[int]bool{}
	l := ledgerRun{t: t, cluster: strings.Split(cluster, ",")}
	for _, r := range l.readTopic(topic) {
		e, err := signals.DecodeEvent(r.Value)
		if err != nil {
			t.Fatal(err)
		}
		copies[e.SourceID]++
		n := decidedBy(t, e, versions)
		used[n] = true
		if edge == admin && e.Rule != nil && n+1 < len(versions) && e.ReceivedAt.After(versions[n+1].inForce) {
			t.Errorf("%s came after version %d was in force and was decided by %d", e.SourceID, n+1, n)
		}
		// What came before any version is explained by the last, which has no rule either.
		said := ask(http.StatusOK, "/api/v1/policy/explain", fmt.Sprintf(`{"signal":{"type":%q,"id":%q},"account":%q,"draft":%q}`, e.Type, e.SourceID, account, versions[n].draft))
		var x struct {
			Severity signals.Severity `json:"severity"`
			Rule     *signals.RuleRef `json:"rule"`
			Event    signals.Event    `json:"event"`
		}
		if err := json.Unmarshal(said.body, &x); err != nil {
			t.Fatal(err)
		}
		if x.Severity != e.Severity || (x.Rule == nil) != (e.Rule == nil) || x.Rule != nil && (x.Rule.ID != e.Rule.ID || x.Rule.Action != e.Rule.Action) || x.Event.ID != e.ID {
			t.Errorf("%s: %s by %+v, explained as %s", e.SourceID, e.Severity, e.Rule, said.body)
		}
	}
	if len(copies) != len(load.acked) {
		t.Errorf("%d signals are on the topic, %d were acknowledged", len(copies), len(load.acked))
	}
	for _, id := range load.acked {
		if copies[id] != 1 {
			t.Errorf("%s is on the topic %d times", id, copies[id])
		}
	}
	if len(used) < 5 {
		t.Errorf("only the versions %v decided anything: the test shows little", used)
	}
}

// decidedBy is the version that decided e, and the first without a rule where no rule did. It holds e to what that version says.
func decidedBy(t *testing.T, e *signals.Event, versions []loadedVersion) int {
	t.Helper()
	n := 0
	if e.Rule == nil {
		for versions[n].action != "" {
			n++
		}
	} else if n = int(e.Rule.PolicyVersion); n < 1 || n >= len(versions) {
		t.Fatalf("%s was decided by version %d, which never was", e.SourceID, n)
	}
	v := versions[n]
	if e.Severity != v.severity || e.Rule != nil && (e.Rule.ID != fmt.Sprintf("of-%d", n) || e.Rule.Action != v.action) {
		t.Errorf("%s: %s by %+v, and version %d says %s", e.SourceID, e.Severity, e.Rule, n, v.severity)
	}
	return n
}
