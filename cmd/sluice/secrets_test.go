package main

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/twmb/franz-go/pkg/kgo"

	"flowstate.inc/sluice/auth"
)

// TestSecretsAreNowhere makes keys by every entrance, uses, pastes, edits, identifies and deletes them, and then looks for them in everything that is
// written or shown: files, tables, Redis, Kafka, logs, metrics, the audit and its exports, pages and answers.
func TestSecretsAreNowhere(t *testing.T) {
	t.Run("dev", func(t *testing.T) {
		p := onDev(t)
		g := p.start(t, "dev")
		s := &secretive{place: p, program: g, client: newClient(nil), token: g.Token, topics: []string{"otlp_logs", "otlp_spans", "otlp_metrics", "ai_signals", "ai_signals_dlq"}, brokers: g.Kafka}
		s.hide("the demo's key", g.Key)
		s.flow(t)
		s.look(t)
	})
	t.Run("serve", func(t *testing.T) {
		p := onServers(t)
		p.must(t, nil, "migrate", "--partitions=1")
		p.must(t, nil, "orgs", "create", demoOrg)
		g := p.start(t, "serve")
		s := &secretive{place: p, program: g, client: newClient(nil), brokers: os.Getenv("TEST_KAFKA_BROKERS"),
			token: p.token(t, demoOrg, "SETTINGS_INTEGRATIONS_UPDATE", "AI_GOVERNANCE_VIEW", "AI_POLICY_ADMIN")}
		for _, topic := range []string{"logs", "spans", "metrics", "signals", "signals-dlq"} {
			s.topics = append(s.topics, p.topic(topic))
		}
		s.flow(t)
		s.look(t)
	})
}

// secretive is a running place whose secrets are known.
type secretive struct {
	*place
	*program
	client  *http.Client
	token   string
	brokers string
	topics  []string

	secrets map[string]string // what none may hold → whose it is and how it is written
}

// hide notes a secret in the forms that it might be written in: what follows its prefix as it is, and all of it in hexadecimal and in base64 at each of
// the three offsets.
func (s *secretive) hide(whose, raw string) {
	if s.secrets == nil {
		s.secrets = map[string]string{}
	}
	if prefix, ok := auth.PrefixOf(raw); ok {
		s.secrets[strings.TrimPrefix(raw, prefix)[1:]] = whose
	} else {
		s.secrets[raw] = whose
	}
	s.secrets[hex.EncodeToString([]byte(raw))] = whose + " in hexadecimal"
	s.secrets[strings.ToUpper(hex.EncodeToString([]byte(raw)))] = whose + " in hexadecimal"
	for offset := range 3 {
		for _, e := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding} {
			text := e.EncodeToString([]byte(strings.Repeat("x", offset) + raw))
			s.secrets[text[4:len(text)-4]] = whose + " in base64"
		}
	}
}

// escape is one character as JSON may write it, in a string within a string too.
var escape = regexp.MustCompile(`\\+u00([0-9A-Fa-f]{2})`)

// holds says whose secret is in b; "" where there is none.
func (s *secretive) holds(b []byte) string {
	decoded := b
	if bytes.Contains(b, []byte(`\u00`)) {
		decoded = escape.ReplaceAllFunc(b, func(e []byte) []byte {
			var c [1]byte
			if _, err := hex.Decode(c[:], e[len(e)-2:]); err != nil {
				panic("BUG: " + err.Error())
			}
			return c[:]
		})
	}
	for secret, whose := range s.secrets {
		if bytes.Contains(b, []byte(secret)) || bytes.Contains(decoded, []byte(secret)) {
			return whose
		}
	}
	return ""
}

func (s *secretive) lacks(t *testing.T, where string, b []byte) {
	t.Helper()
	if whose := s.holds(b); whose != "" {
		t.Errorf("%s holds %s", where, whose)
	}
}

// api makes one call of the admin API. The answer of a reveal may hold the secret, every other one may not.
func (s *secretive) api(t *testing.T, status int, method, path, body string, header ...string) reply {
	t.Helper()
	r := s.ask(t, status, method, s.Admin+path, body, append(header, "Authorization", "Bearer "+s.token)...)
	if status != http.StatusCreated {
		s.lacks(t, method+" of the API", r.body)
		s.lacks(t, "the header of the API's answer", fmt.Append(nil, r.header))
	}
	return r
}

func (s *secretive) ask(t *testing.T, status int, method, target, body string, header ...string) reply {
	t.Helper()
	r, err := send(t.Context(), s.client, method, target, body, header...)
	if err != nil {
		t.Fatal(err)
	}
	if r.status != status {
		t.Fatalf("%s %s: %d, want %d: %s", method, target, r.status, status, r.body)
	}
	return r
}

// hidden is a key as a detector may have found it: some of its characters escaped, and all of it a string within a string.
func hidden(key string) string {
	each := ""
	for i := range len(key) {
		each += fmt.Sprintf(`\u%04X`, key[i])
	}
	within := strings.ReplaceAll(each, `\`, `\\`)
	return fmt.Sprintf(`{"plain":%q,"first":"\u0066%s","each":"%s","within":"{\"a\":\"%s\"}","%s":[{"\u0066%s":1}]}`, key, key[1:], each, within, each, key[1:])
}

// use sends with a key, in each way that it may be sent, and each kind of telemetry.
func (s *secretive) use(t *testing.T, status int, key string) {
	t.Helper()
	for _, header := range [][]string{
		{"x-flowstate-key", key},
		{"Authorization", "Bearer " + key},
		{"Authorization", "Basic " + base64.StdEncoding.EncodeToString([]byte(demoOrg+":"+key))},
	} {
		for path, body := range map[string]string{
			"/v1/signals": `[{"type":"forecast_breach"},{"type":"personal_use_company_account"},{"type":"-"},{"type":"api_key_in_prompt","details":` + hidden(key) + `}]`,
			"/v1/logs":    `{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"body":{"stringValue":"hello"}},{"eventName":"flowstate.signal","attributes":[{"key":"signal.type","value":{"stringValue":"prompt_injection"}},{"key":"found","value":{"stringValue":` + strconv.Quote(hidden(key)) + `}}]}]}]}]}`,
			"/v1/traces":  `{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"5b8efff798038103d269b633813fc60c","spanId":"eee19b7ec3c1b174","name":"chat","kind":1,"startTimeUnixNano":"1","endTimeUnixNano":"2"}]}]}]}`,
			"/v1/metrics": `{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"name":"n","gauge":{"dataPoints":[{"asInt":"1","timeUnixNano":"1"}]}}]}]}]}`,
		} {
			r := s.ask(t, status, http.MethodPost, s.Edge+path, body, header...)
			s.lacks(t, "the edge's answer", append(r.body, fmt.Append(nil, r.header)...))
		}
		r := s.ask(t, status, http.MethodGet, s.Edge+"/v1/whoami", "", header...)
		s.lacks(t, "the edge's answer", append(r.body, fmt.Append(nil, r.header)...))
	}
}

// cli runs a command whose output must hold no secret.
func (s *secretive) cli(t *testing.T, args ...string) {
	t.Helper()
	s.lacks(t, "the output of sluice "+strings.Join(args[:2], " "), []byte(s.must(t, nil, args...)))
}

func (s *secretive) flow(t *testing.T) {
	s.hide("the admin token", s.token)

	// Through the admin API.
	made := s.api(t, 201, http.MethodPost, "/api/v1/service-accounts", `{"name":"by-api","environment":"production"}`, "Idempotency-Key", "once")
	byAPI, id := made.member("key"), made.member("account.id")
	s.hide("the key made by API", byAPI)
	s.api(t, 200, http.MethodPost, "/api/v1/service-accounts", `{"name":"by-api","environment":"production"}`, "Idempotency-Key", "once")
	detector := s.api(t, 201, http.MethodPost, "/api/v1/keys", `{"kind":"detector","name":"pii"}`).member("key")
	person := s.api(t, 201, http.MethodPost, "/api/v1/keys", `{"kind":"person","id":"ada@acme.example"}`).member("key")
	s.hide("the detector's key", detector)
	s.hide("the person's key", person)

	// Through the command line. Each prints the key once, and once only.
	var created struct {
		Key     string `json:"key"`
		Account struct {
			ID string `json:"id"`
		} `json:"account"`
	}
	s.must(t, &created, "accounts", "create", "--org", demoOrg, "--name", "by-cli", "--environment", "staging", "--json")
	s.hide("the key made by CLI", created.Key)
	text := s.must(t, nil, "accounts", "create", "--org", demoOrg, "--name", "by-cli-as-text", "--environment", "staging")
	asText := regexp.MustCompile(auth.KeyPattern).FindString(text)
	s.hide("the key made by CLI as text", asText)
	if n := strings.Count(text, asText[17:]); asText == "" || n != 1 {
		t.Errorf("accounts create prints the key %d times:\n%s", n, text)
	}
	text = s.must(t, nil, "tokens", "create", "--org", demoOrg, "--permission", "AI_GOVERNANCE_VIEW")
	token, _, _ := strings.Cut(text, "\n")
	s.hide("the token made by CLI", token)
	if n := strings.Count(text, token[17:]); n != 1 {
		t.Errorf("tokens create prints the token %d times:\n%s", n, text)
	}

	// Through the console.
	byConsole, page := s.throughConsole(t)

	keys := []string{byAPI, detector, person, created.Key, asText, byConsole}
	for _, key := range keys {
		s.use(t, 200, key)
		s.api(t, 200, http.MethodGet, "/api/v1/service-accounts?q="+key, "")
		s.api(t, 200, http.MethodGet, "/api/v1/audit-events?target="+key, "")
		s.api(t, 200, http.MethodPost, "/api/v1/keys/identify", `{"key":"`+key+`"}`)
		s.api(t, 404, http.MethodGet, "/api/v1/service-accounts/"+key, "")
		s.api(t, 400, http.MethodPost, "/api/v1/service-accounts", `{"name":"`+key+`","environment":"production"}`)
		s.api(t, 401, http.MethodGet, "/api/v1/keys", "", "Authorization", "Bearer "+key) // two headers: none counts
		s.cli(t, "keys", "find", key, "--org", demoOrg)
		// The page that is led to holds the prefix only.
		for _, path := range []string{"/settings/ai/service-accounts?q=", "/settings/ai/audit-log?target=", "/nowhere/"} {
			r := page(http.MethodGet, path+url.QueryEscape(key), nil)
			s.lacks(t, "the console's redirect", fmt.Append(nil, r.header))
			if to := r.header.Get("Location"); to != "" {
				page(http.MethodGet, to, nil)
			}
		}
	}
	if !until(20*time.Second, nil, func() bool {
		return strings.Contains(string(s.api(t, 200, http.MethodGet, "/api/v1/alerts", "").body), "prompt_injection")
	}) {
		t.Error("no alert has arrived")
	}
	s.api(t, 200, http.MethodPatch, "/api/v1/service-accounts/"+id, `{"environment":"staging","description":"edited"}`)
	s.cli(t, "accounts", "edit", created.Account.ID, "--org", demoOrg, "--team", "platform")
	s.cli(t, "accounts", "list", "--org", demoOrg, "--state", "all")

	s.api(t, 200, http.MethodDelete, "/api/v1/service-accounts/"+id, "")
	s.cli(t, "accounts", "delete", created.Account.ID, "--org", demoOrg, "--yes")
	s.use(t, 401, byAPI) // which raises key_misuse_detected
	s.use(t, 401, byAPI[:len(byAPI)-1]+"-")
	s.api(t, 200, http.MethodPost, "/api/v1/keys/identify", `{"key":"`+byAPI+`"}`)
	if !until(20*time.Second, nil, func() bool {
		return strings.Contains(string(s.api(t, 200, http.MethodGet, "/api/v1/alerts?type=key_misuse_detected", "").body), "key_misuse_detected")
	}) {
		t.Error("the use of a revoked key has raised nothing")
	}

	for _, path := range []string{
		"/api/v1/service-accounts?state=all&limit=100", "/api/v1/service-accounts/" + id, "/api/v1/service-accounts/" + id + "/keys",
		"/api/v1/service-accounts/" + id + "/filtered-signals", "/api/v1/service-accounts/" + id + "/invalid-records", "/api/v1/keys", "/api/v1/alerts?limit=100", "/api/v1/alerts/counts", "/api/v1/alerts/histogram",
		"/api/v1/audit-events?limit=100", "/api/v1/audit-events?format=csv", "/api/v1/audit-events?format=ndjson", "/api/v1/policy/active", "/api/v1/policy/versions",
		"/api/v1/policy/drafts", "/api/v1/openapi.json",
	} {
		s.api(t, 200, http.MethodGet, path, "")
	}
	for _, path := range []string{
		"/settings/ai/service-accounts?state=all", "/settings/ai/service-accounts?create=1&from=" + id, "/settings/ai/service-accounts/" + id, "/settings/ai/audit-log",
		"/settings/ai/audit-log/export?format=csv", "/settings/ai/audit-log/export?format=ndjson", "/settings/ai/policy", "/ai/alerts", "/ai/alerts?open=all", "/sign-in",
	} {
		page(http.MethodGet, path, nil)
	}
	prefix, _ := auth.PrefixOf(byAPI)
	if r := page(http.MethodGet, "/settings/ai/service-accounts?q="+prefix, nil); !strings.Contains(string(r.body), "by-api") {
		t.Errorf("the prefix of a deleted account is not found: %d", r.status)
	}
}

// throughConsole signs in with the token and makes an account by the form. It returns its key, and what opens further pages, which must hold no secret.
func (s *secretive) throughConsole(t *testing.T) (string, func(method, path string, form url.Values) reply) {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	client := newClient(jar)
	do := func(method, path string, form url.Values) reply {
		t.Helper()
		var header []string
		body := ""
		if form != nil {
			header, body = []string{"Content-Type", "application/x-www-form-urlencoded", "Sec-Fetch-Site", "same-origin"}, form.Encode()
		}
		r, err := send(t.Context(), client, method, s.Admin+path, body, header...)
		if err != nil {
			t.Fatal(err)
		}
		if r.status >= 500 {
			t.Errorf("%s %s: %d", method, path, r.status)
		}
		return r
	}
	if r := do(http.MethodPost, "/sign-in", url.Values{"token": {s.token}}); r.status != http.StatusSeeOther {
		t.Fatalf("sign in: %d", r.status)
	}
	base, err := url.Parse(s.Admin)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range jar.Cookies(base) {
		s.hide("the cookie "+c.Name, c.Value)
	}
	page := func(method, path string, form url.Values) reply {
		t.Helper()
		r := do(method, path, form)
		s.lacks(t, "the page "+path[:min(len(path), 40)], r.body)
		return r
	}
	const list = "/settings/ai/service-accounts"
	once := regexp.MustCompile(`name="token" value="([^"]*)"`).FindSubmatch(page(http.MethodGet, list+"?create=1", nil).body)
	if once == nil {
		t.Fatal("the form of Create has no token")
	}
	form := url.Values{"name": {"by-console"}, "environment": {"production"}, "abuse_detection": {"on"}, "token": {string(once[1])}}
	reveal := do(http.MethodPost, list, form)
	key := regexp.MustCompile(auth.KeyPattern).FindString(string(reveal.body))
	if reveal.status != http.StatusCreated || key == "" {
		t.Fatalf("create by form: %d", reveal.status)
	}
	s.hide("the key made in the console", key)
	page(http.MethodPost, list, form) // the same form again
	return key, page
}

// look searches all that was written.
func (s *secretive) look(t *testing.T) {
	resp := s.ask(t, 200, http.MethodGet, s.Ops+"/metrics", "")
	s.lacks(t, "/metrics", resp.body)
	if !bytes.Contains(resp.body, []byte("sluice_ingest_records_total")) {
		t.Error("there are no metrics")
	}
	s.lacks(t, "/readyz", s.ask(t, 200, http.MethodGet, s.Ops+"/readyz", "").body)
	s.lookIntoKafka(t)
	if s.servers {
		s.lookIntoPostgres(t)
		s.lookIntoRedis(t)
	}
	s.stop(t)
	if !strings.Contains(s.err.String(), "admin request") {
		t.Errorf("the log says nothing of the requests:\n%s", s.err.String())
	}
	s.lacks(t, "the log", []byte(s.err.String()))
	if s.servers {
		s.lacks(t, "standard output", []byte(s.out.String()))
		return
	}
	// dev says what it seeded, once: its key, its token and its link.
	for _, reveal := range []string{s.Key, s.Token} {
		if n := strings.Count(s.out.String(), reveal[17:]); n != 1 {
			t.Errorf("standard output holds a secret of the demo %d times", n)
		}
	}
	s.lacks(t, "standard output", []byte(strings.NewReplacer(s.Key, "", s.Token, "").Replace(s.out.String())))
	files := 0
	err := filepath.WalkDir(filepath.Join(s.dir, "data"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		files++
		s.lacks(t, path, b)
		return err
	})
	if err != nil || files < 3 {
		t.Errorf("%d files, %v", files, err)
	}
}

func (s *secretive) lookIntoKafka(t *testing.T) {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(s.brokers, ",")...), kgo.ConsumeTopics(s.topics...), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	seen := map[string]int{}
	records := 0
	// What was raised last is at the end: when it is there, all is.
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline) && (len(seen) < 4 || !strings.Contains(fmt.Sprint(seen), "key_misuse_detected")); {
		fetches := client.PollFetches(t.Context())
		if errs := fetches.Errors(); len(errs) > 0 {
			t.Fatal(errs)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			records++
			seen[r.Topic]++
			if bytes.Contains(r.Value, []byte("key_misuse_detected")) {
				seen["key_misuse_detected"]++
			}
			s.lacks(t, "topic "+r.Topic, r.Value)
			s.lacks(t, "a key of topic "+r.Topic, r.Key)
			for _, h := range r.Headers {
				s.lacks(t, "header "+h.Key+" of topic "+r.Topic, h.Value)
			}
		})
	}
	if records < 50 || seen["key_misuse_detected"] == 0 {
		t.Errorf("Kafka holds %v", seen)
	}
}

// lookIntoPostgres dumps every table of the database as text; what is stored as bytes is in hexadecimal there.
func (s *secretive) lookIntoPostgres(t *testing.T) {
	t.Helper()
	_, db := s.store(t)
	column := func(query string) []string {
		rows, err := db.QueryContext(t.Context(), query)
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		var out []string
		for rows.Next() {
			var v string
			if err := rows.Scan(&v); err != nil {
				t.Fatal(err)
			}
			out = append(out, v)
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
		return out
	}
	tables := column(`SELECT tablename FROM pg_tables WHERE schemaname = 'public'`)
	if len(tables) < 15 {
		t.Errorf("tables: %v", tables)
	}
	rows := 0
	for _, table := range tables {
		for _, row := range column(`SELECT CAST(r AS TEXT) FROM ` + table + ` r`) {
			rows++
			s.lacks(t, "table "+table, []byte(row))
		}
	}
	if rows < 50 {
		t.Errorf("%d rows in all", rows)
	}
}

// lookIntoRedis reads every key and value; others may share the server.
func (s *secretive) lookIntoRedis(t *testing.T) {
	t.Helper()
	options, err := redis.ParseURL(os.Getenv("TEST_REDIS_URL"))
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(options)
	defer client.Close()
	ctx := t.Context()
	n := 0
	each := client.Scan(ctx, 0, "*", 1000).Iterator()
	for each.Next(ctx) {
		key := each.Val()
		kind, err := client.Type(ctx, key).Result()
		if err != nil {
			t.Fatal(err)
		}
		var value any
		switch kind {
		case "string":
			value, err = client.Get(ctx, key).Result()
		case "hash":
			value, err = client.HGetAll(ctx, key).Result()
		case "list":
			value, err = client.LRange(ctx, key, 0, -1).Result()
		case "set":
			value, err = client.SMembers(ctx, key).Result()
		case "zset":
			value, err = client.ZRangeWithScores(ctx, key, 0, -1).Result()
		case "none": // expired meanwhile
			continue
		default:
			t.Fatalf("%s is a %s, which this test does not read", key, kind)
		}
		if err != nil && err != redis.Nil {
			t.Fatal(err)
		}
		s.lacks(t, "Redis", []byte(key))
		s.lacks(t, "Redis's "+kind+" at "+key, fmt.Append(nil, value))
		n++
	}
	if err := each.Err(); err != nil || n == 0 {
		t.Errorf("%d keys in Redis, %v", n, err)
	}
}

// A form that would find nothing proves nothing.
func TestSecretsAreFound(t *testing.T) {
	raw, _ := auth.MintKey(auth.KindServiceAccount)
	s := &secretive{}
	s.hide("it", raw)
	asJSON, err := json.Marshal(map[string][]byte{"v": []byte("a" + raw)})
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{
		"KEY=" + raw, raw[17:], fmt.Sprintf("%x", raw), fmt.Sprintf("%X", "ab"+raw+"c"), string(asJSON),
		hidden(raw), strings.ReplaceAll(hidden(raw), raw, ""), base64.StdEncoding.EncodeToString([]byte(raw)), base64.StdEncoding.EncodeToString([]byte("acme:" + raw)), base64.RawURLEncoding.EncodeToString([]byte("ab" + raw + "yz")),
	} {
		if s.holds([]byte(text)) == "" {
			t.Errorf("%q is not found", text)
		}
	}
	if prefix, _ := auth.PrefixOf(raw); s.holds([]byte(prefix+" and its SHA-256")) != "" {
		t.Error("the prefix counts as a secret")
	}
}
