package main

import (
	"net/http"
	"testing"
	"time"
)

// TestExplainKnowsNoDeletedAccount asks a process that has an edge and one that has none: neither explains for an account that
// can send nothing any more, and both name it while it lives.
func TestExplainKnowsNoDeletedAccount(t *testing.T) {
	ask := func(t *testing.T, g *program, token string) {
		t.Helper()
		client := newClient(nil)
		call := func(status int, method, path, body string) reply {
			t.Helper()
			var r reply
			if !until(10*time.Second, nil, func() bool {
				var err error
				r, err = send(t.Context(), client, method, g.Admin+path, body, "Authorization", "Bearer "+token)
				return err == nil && r.status == status
			}) {
				t.Fatalf("%s %s: %d, want %d: %s", method, path, r.status, status, r.body)
			}
			return r
		}
		made := call(201, http.MethodPost, "/api/v1/service-accounts", `{"name":"short-lived","environment":"staging"}`)
		id := made.member("account.id")
		for _, account := range []string{id, "short-lived/staging"} {
			r := call(200, http.MethodPost, "/api/v1/policy/explain", `{"signal":{"type":"secret_detected","severity":"BLOCK"},"account":"`+account+`"}`)
			if r.member("severity") != "WARN" {
				t.Errorf("%s: %s", account, r.body)
			}
		}
		call(200, http.MethodDelete, "/api/v1/service-accounts/"+id, "")
		for _, account := range []string{id, "short-lived/staging"} {
			call(400, http.MethodPost, "/api/v1/policy/explain", `{"signal":{"type":"pii_detected"},"account":"`+account+`"}`)
		}
	}
	t.Run("dev", func(t *testing.T) {
		g := onDev(t).start(t, "dev")
		ask(t, g, g.Token)
	})
	t.Run("without an edge", func(t *testing.T) {
		p := onServers(t)
		p.must(t, nil, "migrate", "--partitions=1")
		p.must(t, nil, "orgs", "create", demoOrg)
		token := p.token(t, demoOrg, "SETTINGS_INTEGRATIONS_UPDATE", "AI_GOVERNANCE_VIEW")
		ask(t, p.start(t, "serve", "--roles=admin"), token)
	})
}
