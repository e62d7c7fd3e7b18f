package accounts_test

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"flowstate.inc/sluice/accounts"
	"flowstate.inc/sluice/auth"
)

// TestRoutesOfOtherRooms: they stand behind the same sign-in, and their documents join ours.
func TestRoutesOfOtherRooms(t *testing.T) {
	s := newSite(t, newWorld(t, accounts.SQLite))
	joined := s.with(t, accounts.APIConfig{
		Store: s.Store, Authenticate: s.AuthenticateRequest, Logger: slog.New(slog.NewJSONHandler(s.log, nil)),
		Routes: []accounts.Route{
			{Method: "GET", Path: "/api/v1/alerts/{id}", Permissions: []auth.Permission{auth.AIGovernanceView}, Handle: func(w http.ResponseWriter, r *http.Request, admin auth.Admin) error {
				switch r.PathValue("id") {
				case "gone":
					return &accounts.Problem{Status: http.StatusGone, Code: "gone", Detail: "It is gone."}
				case "panic":
					panic("BUG: a test")
				}
				return accounts.WriteJSON(w, http.StatusOK, map[string]string{"org": admin.Org})
			}},
			{Method: "GET", Path: "/api/v1/service-accounts/{id}/trail", Permissions: []auth.Permission{auth.AIGovernanceView}, Handle: func(w http.ResponseWriter, r *http.Request, _ auth.Admin) error {
				return accounts.WriteJSON(w, http.StatusOK, r.PathValue("id"))
			}},
		},
		OpenAPI: [][]byte{[]byte(`{"paths":{"/api/v1/alerts/{id}":{"get":{"responses":{}}}},"components":{"schemas":{"Alert":{"type":"object"}}}}`)},
	})
	ask := func(token, path string, status int) string {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), "GET", joined.server.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+s.tokens[token])
		resp, err := joined.server.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode != status {
			t.Errorf("%s with %s: %d, want %d", path, token, resp.StatusCode, status)
		}
		var v any
		if err := json.NewDecoder(resp.Body).Decode(&v); err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if got := ask("govern", "/api/v1/alerts/1", 200); got != `{"org":"acme"}` {
		t.Errorf("answer %s", got)
	}
	ask("manage", "/api/v1/alerts/1", 403)
	ask("", "/api/v1/alerts/1", 401)
	if got := ask("govern", "/api/v1/alerts/gone", 410); !strings.Contains(got, "urn:sluice:problem:gone") {
		t.Errorf("problem %s", got)
	}
	if got := ask("govern", "/api/v1/alerts/panic", 500); strings.Contains(got, "a test") {
		t.Errorf("a panic is told to the client: %s", got)
	}
	// What another room says below an account is said of accounts that there are, in this org: deleted ones too.
	ours := s.create(t, "job", "production").Account.ID
	theirs, err := s.CreateAccount(t.Context(), cli, "other", accounts.NewAccount{Name: "job", Environment: "production"}, "")
	if err != nil {
		t.Fatal(err)
	}
	ask("govern", "/api/v1/service-accounts/"+ours+"/trail", 200)
	if _, _, err := s.DeleteAccount(t.Context(), cli, "acme", ours); err != nil {
		t.Fatal(err)
	}
	ask("govern", "/api/v1/service-accounts/"+ours+"/trail", 200)
	ask("govern", "/api/v1/service-accounts/"+theirs.Account.ID+"/trail", 404)
	ask("govern", "/api/v1/service-accounts/sa_1/trail", 404)
	ask("manage", "/api/v1/service-accounts/sa_1/trail", 403)
	doc := ask("", "/api/v1/openapi.json", 200)
	for _, want := range []string{`"/api/v1/alerts/{id}"`, `"/api/v1/keys"`, `"Alert"`, `"Account"`} {
		if !strings.Contains(doc, want) {
			t.Errorf("the joined document lacks %s", want)
		}
	}
}

// TestDeleteWaitsForTheEdges: the answer says how many live edges refuse the key, and until when the others may not.
func TestDeleteWaitsForTheEdges(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		s := newSite(t, w)
		ctx := t.Context()
		_, now, err := w.Changes(ctx, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if err := w.ReportEdge(ctx, "edge-behind", now, 15*time.Minute); err != nil {
			t.Fatal(err)
		}
		if err := w.ReportEdge(ctx, "edge-ahead", now.Add(time.Hour), 15*time.Minute); err != nil {
			t.Fatal(err)
		}
		a := w.create(t, "job", "production").Account
		got := s.want(t, 200, "manage", "DELETE", "/api/v1/service-accounts/"+a.ID, "")
		if got.get(t, "revocation.edges") != 2.0 || got.get(t, "revocation.confirmed") != 1.0 || got.get(t, "revocation.pending.0.edge") != "edge-behind" {
			t.Errorf("revocation: %s", got.body)
		}
		k, _, err := w.CreateKey(ctx, cli, "acme", accounts.NewKey{Kind: auth.KindPerson, ID: "u"})
		if err != nil {
			t.Fatal(err)
		}
		if got := s.want(t, 200, "manage", "DELETE", "/api/v1/keys/"+k.Prefix, ""); got.get(t, "revocation.confirmed") != 1.0 {
			t.Errorf("revocation: %s", got.body)
		}
		// Where the edges cannot be asked, nobody knows: 0 of 0 would read as all of them.
		b := w.create(t, "another", "production").Account
		if _, err := w.writer.ExecContext(ctx, "ALTER TABLE edges RENAME TO edges_away"); err != nil {
			t.Fatal(err)
		}
		got = s.want(t, 200, "manage", "DELETE", "/api/v1/service-accounts/"+b.ID, "")
		if got.get(t, "account.deleted_at") == nil || !strings.Contains(string(got.body), `"revocation":{"edges":null,"confirmed":null,"pending":[]}`) {
			t.Errorf("without an answer of the database: %s", got.body)
		}
	})
}
