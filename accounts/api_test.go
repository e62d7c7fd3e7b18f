package accounts_test

import (
	"crypto/sha256"
	"encoding/csv"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"flowstate.inc/sluice/accounts"
	"flowstate.inc/sluice/auth"
)

// TestAPIAnswersAsDocumented goes through every route and status, so that the document says neither less nor more than the handlers do.
func TestAPIAnswersAsDocumented(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		s := newSite(t, w)
		const list, keys = "/api/v1/service-accounts", "/api/v1/keys"
		made := s.want(t, 201, "manage", "POST", list, `{"name":"digest","environment":"production","limits":{"requests_per_second":3}}`)
		id, raw, tag := made.text(t, "account.id"), made.text(t, "key"), made.header.Get("ETag")
		if loc := made.header.Get("Location"); loc != list+"/"+id {
			t.Errorf("Location %q", loc)
		}
		prefix := made.text(t, "account.key_prefix")
		one := list + "/" + id
		stranger := list + "/sa_" + strings.Repeat("0", 32)

		first := s.want(t, 201, "manage", "POST", list, `{"name":"twice","environment":"staging"}`, "Idempotency-Key", "k1")
		again := s.want(t, 200, "manage", "POST", list, `{"name":" twice ","environment":"STAGING","abuse_detection":true}`, "Idempotency-Key", "k1")
		if again.get(t, "account.id") != first.get(t, "account.id") || again.get(t, "key") != nil || again.get(t, "key_already_shown") != true {
			t.Errorf("repeated: %s", again.body)
		}
		s.want(t, 422, "manage", "POST", list, `{"name":"thrice","environment":"staging"}`, "Idempotency-Key", "k1")
		s.want(t, 409, "manage", "POST", list, `{"name":"DIGEST","environment":"production"}`)
		s.want(t, 400, "manage", "POST", list, `{"name":"","environment":"mars"}`)
		s.want(t, 415, "manage", "POST", list, `name=x`, "Content-Type", "application/x-www-form-urlencoded")
		s.want(t, 413, "manage", "POST", list, `{"description":"`+strings.Repeat("x", 200_000)+`"}`)

		s.want(t, 200, "manage", "GET", list, "")
		s.want(t, 400, "manage", "GET", list+"?state=undead", "")
		if got := s.want(t, 200, "manage", "GET", one, "").header.Get("ETag"); got != tag {
			t.Errorf("ETag %s, want %s", got, tag)
		}
		s.want(t, 404, "manage", "GET", stranger, "")
		s.want(t, 404, "manage", "GET", list+"/undefined", "")

		s.want(t, 412, "manage", "PATCH", one, `{"description":"x"}`, "If-Match", `"1"`)
		patched := s.want(t, 200, "manage", "PATCH", one, `{"description":"x","limits":{"bytes_per_second":9}}`, "If-Match", tag)
		if patched.header.Get("ETag") == tag || patched.get(t, "limits.requests_per_second") != 3.0 || patched.get(t, "limits.bytes_per_second") != 9.0 {
			t.Errorf("patched: %s", patched.body)
		}
		s.want(t, 412, "manage", "PATCH", one, `{"description":"y"}`, "If-Match", tag)
		s.want(t, 400, "manage", "PATCH", one, `{"key_prefix":"fsk_000000000000"}`)
		s.want(t, 404, "manage", "PATCH", stranger, `{"description":"x"}`)
		s.want(t, 413, "manage", "PATCH", one, `{"description":"`+strings.Repeat("x", 200_000)+`"}`)
		s.want(t, 415, "manage", "PATCH", one, `x`, "Content-Type", "text/plain")
		other := s.want(t, 201, "manage", "POST", list, `{"name":"other","environment":"production"}`).text(t, "account.id")
		s.want(t, 409, "manage", "PATCH", list+"/"+other, `{"name":"Digest"}`)

		s.want(t, 200, "manage", "GET", one+"/keys", "")
		s.want(t, 404, "manage", "GET", stranger+"/keys", "")
		s.want(t, 200, "manage", "GET", one+"/usage", "")
		s.want(t, 400, "manage", "GET", one+"/usage?since=yesterday", "")
		s.want(t, 404, "manage", "GET", stranger+"/usage", "")
		s.scopeAnswers(t, one, stranger)
		s.want(t, 200, "manage", "GET", "/api/v1/refusals?account="+id, "")
		s.want(t, 400, "manage", "GET", "/api/v1/refusals?limit=0", "")
		s.want(t, 404, "manage", "GET", "/api/v1/refusals?account=sa_nothing", "")

		person := s.want(t, 201, "manage", "POST", keys, `{"kind":"person","id":"grace@acme.example"}`)
		s.want(t, 201, "manage", "POST", keys, `{"kind":"detector","name":"pii-detector"}`)
		s.want(t, 400, "manage", "POST", keys, `{"kind":"service_account","name":"x"}`)
		s.want(t, 413, "manage", "POST", keys, `{"name":"`+strings.Repeat("x", 200_000)+`"}`)
		s.want(t, 415, "manage", "POST", keys, `x`, "Content-Type", "text/plain")
		if n := s.want(t, 200, "manage", "GET", keys, "").count(t, "items"); n != 2 {
			t.Errorf("%d keys", n)
		}
		if n := s.want(t, 200, "manage", "GET", keys+"?kind=detector", "").count(t, "items"); n != 1 {
			t.Errorf("%d detectors' keys", n)
		}
		s.want(t, 400, "manage", "GET", keys+"?limit=0", "")
		pp := person.text(t, "item.prefix")
		s.want(t, 409, "manage", "DELETE", keys+"/"+prefix, "")
		s.want(t, 404, "manage", "DELETE", keys+"/fpk_000000000000", "")
		for range 2 { // the second changes nothing
			if got := s.want(t, 200, "manage", "DELETE", keys+"/"+pp, "").get(t, "item.state"); got != "revoked" {
				t.Errorf("state %v", got)
			}
		}

		hash := sha256.Sum256([]byte(raw))
		for _, body := range []string{`{"key":"x-flowstate-key: ` + raw + `"}`, `{"prefix":"` + prefix + `"}`, `{"sha256":"` + hex.EncodeToString(hash[:]) + `"}`} {
			got := s.want(t, 200, "manage", "POST", keys+"/identify", body)
			if got.get(t, "account.id") != id || got.get(t, "key.state") != "active" || got.get(t, "subject.label") != "service: digest / production" {
				t.Errorf("identified: %s", got.body)
			}
			if strings.Contains(string(got.body), raw) {
				t.Error("the raw key is echoed")
			}
		}
		if got := s.want(t, 200, "manage", "POST", keys+"/identify", `{"prefix":"`+pp+`"}`); got.get(t, "account") != nil || got.get(t, "key.state") != "revoked" {
			t.Errorf("identified: %s", got.body)
		}
		s.identifyParts(t, keys, id, raw)
		stray, _ := auth.MintKey(auth.KindServiceAccount)
		s.want(t, 404, "manage", "POST", keys+"/identify", `{"key":"`+stray+`"}`)
		s.want(t, 400, "manage", "POST", keys+"/identify", `{"key":"`+raw[:40]+`"}`)
		s.want(t, 400, "manage", "POST", keys+"/identify", `{}`)
		s.want(t, 413, "manage", "POST", keys+"/identify", `{"key":"`+strings.Repeat("x", 200_000)+`"}`)
		s.want(t, 415, "manage", "POST", keys+"/identify", `x`, "Content-Type", "text/plain")
		s.want(t, 200, "other", "POST", keys+"/revoke-all", `{"org":"other"}`)
		s.want(t, 404, "manage", "POST", keys+"/revoke-all", `{"org":"other"}`)
		s.want(t, 413, "manage", "POST", keys+"/revoke-all", `{"org":"`+strings.Repeat("x", 200_000)+`"}`)
		s.want(t, 415, "manage", "POST", keys+"/revoke-all", `x`, "Content-Type", "text/plain")

		s.want(t, 200, "manage", "DELETE", one, "")
		deleted := s.want(t, 200, "manage", "DELETE", one, "")
		if deleted.get(t, "account.deleted_at") == nil || deleted.get(t, "revocation.edges") != 0.0 {
			t.Errorf("deleted: %s", deleted.body)
		}
		s.want(t, 404, "manage", "DELETE", stranger, "")
		s.want(t, 409, "manage", "PATCH", one, `{"description":"late"}`)
		s.want(t, 200, "manage", "GET", one, "")

		s.want(t, 200, "govern", "GET", "/api/v1/audit-events?action=key.created,service_account.deleted", "")
		s.want(t, 200, "govern", "GET", "/api/v1/audit-events?format=csv", "")
		s.want(t, 200, "govern", "GET", "/api/v1/audit-events?format=ndjson", "")
		s.want(t, 400, "govern", "GET", "/api/v1/audit-events?since=yesterday", "")
		s.want(t, 200, "policy", "GET", "/api/v1/signal-types", "")
		s.want(t, 200, "", "GET", "/api/v1/openapi.json", "")
		if index := s.want(t, 200, "", "GET", "/api/v1", ""); !slices.Contains(index.get(t, "paths").([]any), any("/api/v1/service-accounts/{id}")) {
			t.Errorf("index: %s", index.body)
		}

		// An admin of an org that is not there, and one without any permission.
		ghost := s.as(t, auth.Admin{Org: "ghost", Actor: "ghost", Permissions: auth.AllPermissions()})
		ghost.want(t, 404, "", "POST", list, `{"name":"a","environment":"staging"}`)
		ghost.want(t, 404, "", "POST", keys, `{"kind":"detector","name":"a"}`)
		s.as(t, auth.Admin{Org: "acme", Actor: "nobody"}).want(t, 403, "", "GET", "/api/v1/signal-types", "")
		s.strangers(t, id)
		s.faults(t, id, pp)
		for name, op := range s.spec.ops {
			for _, status := range op.statuses {
				if !s.answered.has(name + " " + status) {
					t.Errorf("%s %s is documented and was never answered", name, status)
				}
			}
		}
		for _, r := range accounts.RoutesForTest(s.api) {
			if s.spec.ops[r.Method+" "+r.Path] == nil {
				t.Errorf("%s %s is not documented", r.Method, r.Path)
			}
		}
		if n := len(accounts.RoutesForTest(s.api)); n != len(s.spec.ops) {
			t.Errorf("%d routes, %d documented", n, len(s.spec.ops))
		}
	})
}

// everyRoute is one request to each route that needs a sign-in, with the permissions that open it.
func everyRoute(id string) map[string][]string {
	manage, govern := []string{"all", "manage"}, []string{"all", "govern"}
	return map[string][]string{
		"GET /api/v1/service-accounts":                           manage,
		"POST /api/v1/service-accounts":                          manage,
		"GET /api/v1/service-accounts/" + id:                     manage,
		"PATCH /api/v1/service-accounts/" + id:                   manage,
		"DELETE /api/v1/service-accounts/" + id:                  manage,
		"GET /api/v1/service-accounts/" + id + "/keys":           manage,
		"GET /api/v1/service-accounts/" + id + "/usage":          manage,
		"GET /api/v1/service-accounts/" + id + "/scope/verdicts": manage,
		"POST /api/v1/service-accounts/" + id + "/scope/try":     manage,
		"GET /api/v1/refusals":                                   manage,
		"GET /api/v1/keys":                                       manage,
		"POST /api/v1/keys":                                      manage,
		"DELETE /api/v1/keys/fpk_000000000000":                   manage,
		"POST /api/v1/keys/identify":                             manage,
		"POST /api/v1/keys/revoke-all":                           manage,
		"GET /api/v1/audit-events":                               govern,
		"GET /api/v1/signal-types":                               {"all", "manage", "govern", "policy"},
	}
}

// strangers tries every route with everything that must not open it.
func (s *site) strangers(t *testing.T, id string) {
	t.Helper()
	telemetry := s.create(t, fmt.Sprint("telemetry ", id), "development").Key
	unknown, _ := auth.MintAdminToken()
	token, revoked, err := s.CreateToken(t.Context(), cli, "acme", "revoked", auth.AllPermissions(), s.clock.now().Add(1e9))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.RevokeToken(t.Context(), cli, "acme", token.Prefix); err != nil {
		t.Fatal(err)
	}
	for route, open := range everyRoute(id) {
		method, path, _ := strings.Cut(route, " ")
		for name, raw := range map[string]string{"none": "", "unknown": unknown, "malformed": "fat_nonsense", "telemetry": telemetry, "revoked": revoked} {
			a := s.do(t, raw, method, path, "")
			if a.status != http.StatusUnauthorized || a.header.Get("WWW-Authenticate") == "" {
				t.Errorf("%s with a %s token: %d", route, name, a.status)
			}
		}
		for _, name := range []string{"manage", "govern", "policy"} {
			a := s.do(t, name, method, path, "")
			if may := strings.Contains(strings.Join(open, " "), name); (a.status == http.StatusForbidden) == may {
				t.Errorf("%s with %s: %d", route, name, a.status)
			} else if !may && !strings.Contains(a.text(t, "detail"), "This needs the permission ") {
				t.Errorf("%s with %s: %s", route, name, a.body)
			}
		}
		if strings.Contains(path, id) {
			if a := s.do(t, "other", method, path, `{}`); a.status != http.StatusNotFound {
				t.Errorf("%s from another org: %d", route, a.status)
			}
		}
	}
}

// faults asks every route while the database does not answer, and while it answers nonsense.
func (s *site) faults(t *testing.T, id, prefix string) {
	t.Helper()
	body := map[string]string{
		"POST /api/v1/service-accounts":        `{"name":"late","environment":"staging"}`,
		"PATCH /api/v1/service-accounts/" + id: `{"team":"late"}`,
		"POST /api/v1/keys":                    `{"kind":"detector","name":"late"}`,
		"POST /api/v1/keys/identify":           `{"prefix":"` + prefix + `"}`,
		"POST /api/v1/keys/revoke-all":         `{"org":"acme"}`,
	}
	for _, f := range []struct {
		err    error
		status int
	}{{errAway, http.StatusServiceUnavailable}, {errBroken, http.StatusInternalServerError}} {
		broken := newSiteOn(t, s, f.err)
		for route, open := range everyRoute(id) {
			method, path, _ := strings.Cut(route, " ")
			a := broken.do(t, open[0], method, path, body[route])
			if a.status != f.status {
				t.Errorf("%s while the database says %v: %d, want %d: %s", route, f.err, a.status, f.status, a.body)
			}
			if f.status == 503 && a.header.Get("Retry-After") == "" {
				t.Errorf("%s: 503 without Retry-After", route)
			}
			if strings.Contains(string(a.body), f.err.Error()) {
				t.Errorf("%s tells of our insides: %s", route, a.body)
			}
		}
	}
}

func TestAPIBodies(t *testing.T) {
	s := newSite(t, newWorld(t, accounts.SQLite))
	stray, _ := auth.MintKey(auth.KindPerson)
	f := func(body, field string) {
		t.Helper()
		a := s.want(t, 400, "manage", "POST", "/api/v1/service-accounts", body)
		if got := a.get(t, "errors.0.field"); got != field {
			t.Errorf("%s: field %v, want %s", body, got, field)
		}
		if strings.Contains(string(a.body), stray) {
			t.Errorf("%s: the answer echoes a key", body)
		}
	}
	f(`[]`, "body")
	f(`null`, "body")
	f(`{"name":`, "body")
	f(`{} {}`, "body")
	f(``, "body")
	f("{\"name\":\"\xff\"}", "body")
	f(`{"name":"a","environment":"staging","colour":"red"}`, "colour")
	f(`{"name":"a","environment":"staging","`+stray+`":1}`, "[a key]")
	f(`{"name":"a","name":"b","environment":"staging"}`, "name")
	f(`{"name":7,"environment":"staging"}`, "name")
	f(`{"environment":"staging"}`, "name")
	f(`{"name":"a"}`, "environment")
	f(`{"name":"a","environment":null}`, "environment")
	f(`{"name":"a\u0000b","environment":"staging"}`, "name")
	f(`{"name":"a\u202eb","environment":"staging"}`, "name")
	f(`{"name":"`+strings.Repeat("ä", 81)+`","environment":"staging"}`, "name")
	f(`{"name":"`+stray+`","environment":"staging"}`, "name")
	f(`{"name":"a","environment":"staging","description":"KEY=`+stray+`"}`, "description")
	f(`{"name":"a","environment":"staging","description":"`+strings.Repeat("x", 2001)+`"}`, "description")
	f(`{"name":"a","environment":"staging","intended_scope":"`+strings.Repeat("x", 4001)+`"}`, "intended_scope")
	f(`{"name":"a","environment":"staging","abuse_detection":"yes"}`, "abuse_detection")
	f(`{"name":"a","environment":"staging","limits":{"requests_per_second":-1}}`, "limits.requests_per_second")
	f(`{"name":"a","environment":"staging","limits":{"requests_per_second":1.5}}`, "limits.requests_per_second")
	f(`{"name":"a","environment":"staging","limits":{"requests_per_second":1e30}}`, "limits.requests_per_second")
	f(`{"name":"a","environment":"staging","limits":{"requests_per_second":"5"}}`, "limits.requests_per_second")
	f(`{"name":"a","environment":"staging","limits":{"a":1}}`, "limits.a")
	f(`{"name":"a","environment":"staging","limits":7}`, "limits")
	f(`{"name":"a","environment":"staging","id":"sa_1"}`, "id")
	a := s.want(t, 400, "manage", "POST", "/api/v1/service-accounts", `{"name":"","environment":"x","team":"`+strings.Repeat("x", 81)+`"}`)
	if n := a.count(t, "errors"); n != 3 {
		t.Errorf("not all that is wrong is said at once: %s", a.body)
	}
	ok := s.want(t, 201, "manage", "POST", "/api/v1/service-accounts", `{"name":" `+strings.Repeat("ä", 80)+` ","environment":"STAGING","description":null,"limits":null}`)
	if ok.get(t, "account.first_seen_at") != nil || ok.get(t, "account.environment") != "staging" {
		t.Errorf("created: %s", ok.body)
	}
	whole := s.want(t, 201, "manage", "POST", "/api/v1/service-accounts", `{"name":"w","environment":"staging","limits":{"requests_per_second":5.0,"bytes_per_second":5e3}}`)
	if whole.get(t, "account.limits.requests_per_second") != 5.0 || whole.get(t, "account.limits.bytes_per_second") != 5000.0 {
		t.Errorf("whole numbers written otherwise: %s", whole.body)
	}
	if q := s.want(t, 400, "manage", "GET", "/api/v1/keys?cursor=%00", ""); q.text(t, "errors.0.field") != "cursor" {
		t.Errorf("a parameter with a control character: %s", q.body)
	}
	p := s.want(t, 400, "manage", "PATCH", "/api/v1/service-accounts/"+ok.text(t, "account.id"), `{"key":"fsk_x"}`)
	if !strings.Contains(p.text(t, "errors.0.detail"), "delete the account and create it again") {
		t.Errorf("PATCH of the key: %s", p.body)
	}
	for _, field := range []string{"name", "environment"} {
		s.want(t, 400, "manage", "PATCH", "/api/v1/service-accounts/"+ok.text(t, "account.id"), `{"`+field+`":null}`)
	}
}

func TestAPIPathsAndMethods(t *testing.T) {
	s := newSite(t, newWorld(t, accounts.SQLite))
	f := func(method, path string, status int, allow string) {
		t.Helper()
		a := s.want(t, status, "all", method, path, "")
		if got := a.header.Get("Allow"); got != allow {
			t.Errorf("%s %s: Allow %q, want %q", method, path, got, allow)
		}
	}
	f("PUT", "/api/v1/service-accounts", 405, "GET, HEAD, POST")
	f("POST", "/api/v1/audit-events", 405, "GET, HEAD")
	f("GET", "/api/v1/keys/identify", 405, "POST")
	f("BREW", "/api/v1/keys", 405, "GET, HEAD, POST")
	f("GET", "/api/v1/nothing", 404, "")
	f("GET", "/api/v1/service-accounts/", 404, "")
	f("GET", "/api/v1//keys", 404, "")
	f("GET", "/", 404, "")
	f("GET", "/api/v1/service-accounts/sa_%00", 404, "")
	f("GET", "/api/v1/service-accounts/%ff", 404, "")
	f("GET", "/api/v1/service-accounts?colour=red", 400, "")
	f("GET", "/api/v1/service-accounts?q=%00", 400, "")
	f("GET", "/api/v1/service-accounts?q=%ff", 400, "")
	f("GET", "/api/v1/service-accounts?q=%zz", 400, "")
	f("GET", "/api/v1/service-accounts?state=live&state=all", 400, "")
	f("GET", "/api/v1/service-accounts?cursor=eyJ9", 400, "")
	f("GET", "/api/v1/service-accounts?limit=201", 400, "")
	f("GET", "/api/v1/service-accounts?limit=x", 400, "")
	f("GET", "/api/v1/audit-events?until=9999-12-31T00:00:00Z", 400, "")
	f("GET", "/api/v1/audit-events?target=%ff", 400, "")
	f("GET", "/api/v1/audit-events?since=2026-01-01&until=2027-01-01T00:00:00%2B02:00", 200, "")

	// The caller's request id is taken where it is one.
	a := s.want(t, 200, "all", "GET", "/api/v1/keys", "", "X-Request-Id", "caller-0001")
	if got := a.header.Get("X-Request-Id"); got != "caller-0001" {
		t.Errorf("X-Request-Id %q", got)
	}
	raw, _ := auth.MintKey(auth.KindPerson)
	a = s.want(t, 200, "all", "GET", "/api/v1/keys", "", "X-Request-Id", raw[:60])
	if got := a.header.Get("X-Request-Id"); strings.Contains(raw, got) {
		t.Errorf("a key was taken as X-Request-Id %q", got)
	}
}

func TestAuditExport(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		s := newSite(t, w)
		for i := range 30 {
			_, err := w.CreateAccount(t.Context(), accounts.By{Actor: "=HYPERLINK(1)", Via: "api"}, "acme",
				accounts.NewAccount{Name: fmt.Sprintf("=cmd, \"%d\"", i), Environment: "staging", Description: "two\nlines"}, "")
			if err != nil {
				t.Fatal(err)
			}
		}
		a := s.want(t, 200, "govern", "GET", "/api/v1/audit-events?format=csv&action=service_account.created", "")
		rows, err := csv.NewReader(strings.NewReader(string(a.body))).ReadAll()
		if err != nil || len(rows) != 31 {
			t.Fatalf("%d rows, %v", len(rows), err)
		}
		if rows[0][0] != "id" || rows[1][3] != "'=HYPERLINK(1)" || rows[1][7] != `service: =cmd, "29" / staging` || !json.Valid([]byte(rows[1][9])) {
			t.Errorf("row: %q", rows[1])
		}
		if cd := a.header.Get("Content-Disposition"); cd != `attachment; filename="audit-acme.csv"` {
			t.Errorf("Content-Disposition %q", cd)
		}
		a = s.want(t, 200, "govern", "GET", "/api/v1/audit-events?format=ndjson&action=service_account.created", "")
		lines := strings.Split(strings.TrimSpace(string(a.body)), "\n")
		if len(lines) != 30 || !strings.Contains(lines[0], `"actor":"=HYPERLINK(1)"`) {
			t.Errorf("%d lines, the first %s", len(lines), lines[0])
		}
		empty := s.want(t, 200, "govern", "GET", "/api/v1/audit-events?format=csv&action=nothing", "")
		if !strings.HasPrefix(string(empty.body), "id,seq,") {
			t.Errorf("empty export: %q", empty.body)
		}
	})
}

func TestDefuse(t *testing.T) {
	f := func(in, want string) {
		t.Helper()
		if got := accounts.DefuseForTest(in); got != want {
			t.Errorf("defuse(%q) = %q, want %q", in, got, want)
		}
	}
	f("", "")
	f("plain", "plain")
	f("a=b", "a=b")
	for _, first := range []string{"=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠"} {
		f(first+"1", "'"+first+"1")
	}
}
