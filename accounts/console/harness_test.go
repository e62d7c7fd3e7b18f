package console_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/html"

	"flowstate.inc/sluice/accounts"
	"flowstate.inc/sluice/accounts/console"
	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/deploy"
	"flowstate.inc/sluice/signals"
)

var by = accounts.By{Actor: "ada@acme.example", IP: "192.0.2.7", Via: "cli"}

const listPath = "/settings/ai/service-accounts"

// A site is a console on a database of its own, served over a socket.
type site struct {
	*accounts.Store
	signals *signals.Store
	server  *httptest.Server
	dir     string // of the database
	log     *logBuffer

	writer, reader *sql.DB
}

// A logBuffer keeps what the console logs, for the tests that search it.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func newSite(t *testing.T, adapt ...func(*console.Config)) *site {
	t.Helper()
	s := &site{dir: t.TempDir(), log: &logBuffer{}}
	writer, reader, err := accounts.OpenSQLite(filepath.Join(s.dir, "sluice.db"))
	if err != nil {
		t.Fatal(err)
	}
	s.writer, s.reader = writer, reader
	t.Cleanup(func() {
		if err := errors.Join(reader.Close(), writer.Close()); err != nil {
			t.Error(err)
		}
	})
	if _, err := deploy.Migrate(t.Context(), writer, deploy.SQLite); err != nil {
		t.Fatal(err)
	}
	s.Store = accounts.NewStore(accounts.StoreConfig{Writer: writer, Reader: reader, Dialect: accounts.SQLite})
	s.signals = signals.NewStore(signals.StoreConfig{Writer: writer, Reader: reader, Dialect: signals.SQLite})
	for _, org := range []string{"acme", "rival"} {
		if _, err := s.CreateOrg(t.Context(), by, org); err != nil {
			t.Fatal(err)
		}
	}
	cfg := console.Config{Store: s.Store, Signals: s.signals, EdgeURL: "https://ingest.acme.example", Logger: slog.New(slog.NewJSONHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	for _, f := range adapt {
		f(&cfg)
	}
	c, err := console.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.server = httptest.NewServer(c)
	t.Cleanup(s.server.Close)
	return s
}

// account makes an account and returns it with its raw key.
func (s *site) account(t *testing.T, name, environment string) accounts.Created {
	t.Helper()
	created, err := s.CreateAccount(t.Context(), by, "acme", accounts.NewAccount{Name: name, Environment: environment}, "")
	if err != nil {
		t.Fatal(err)
	}
	return created
}

// session signs an admin of acme in and returns the cookie's value.
func (s *site) session(t *testing.T, org string, permissions ...auth.Permission) string {
	t.Helper()
	id, err := s.CreateSession(t.Context(), by, auth.Admin{Org: org, Actor: "grace@" + org + ".example", Permissions: permissions}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// An answer is a response that was read to its end.
type answer struct {
	*http.Response
	body string
}

// do sends a request with a session ("" for none) and follows no redirect.
func (s *site) do(t *testing.T, session, method, path string, form url.Values) answer {
	t.Helper()
	var body io.Reader
	if form != nil {
		body = strings.NewReader(form.Encode())
	}
	req, err := http.NewRequestWithContext(t.Context(), method, s.server.URL+path, body)
	if err != nil {
		t.Fatal(err)
	}
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set("Sec-Fetch-Site", "same-origin")
	}
	if session != "" {
		req.AddCookie(&http.Cookie{Name: "sluice-session", Value: session})
	}
	return s.send(t, req)
}

func (s *site) send(t *testing.T, req *http.Request) answer {
	t.Helper()
	client := &http.Client{Transport: s.server.Client().Transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{Response: resp, body: string(raw)}
}

// text is the visible text of the page, without scripts and attributes, with single spaces.
func (a answer) text(t *testing.T) string {
	t.Helper()
	doc, err := html.Parse(strings.NewReader(a.body))
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for n := range doc.Descendants() {
		if n.Type == html.TextNode {
			b.WriteString(n.Data)
			b.WriteByte(' ')
		}
	}
	return strings.Join(strings.Fields(b.String()), " ")
}

// value is the value of the first input of that name.
func (a answer) value(t *testing.T, name string) string {
	t.Helper()
	for _, n := range a.elements(t, "input") {
		if attr(n, "name") == name {
			return attr(n, "value")
		}
	}
	t.Fatalf("no input named %q in the page", name)
	return ""
}

func (a answer) elements(t *testing.T, tag string) []*html.Node {
	t.Helper()
	doc, err := html.Parse(strings.NewReader(a.body))
	if err != nil {
		t.Fatal(err)
	}
	var found []*html.Node
	for n := range doc.Descendants() {
		if n.Type == html.ElementNode && n.Data == tag {
			found = append(found, n)
		}
	}
	return found
}

func attr(n *html.Node, name string) string {
	for _, a := range n.Attr {
		if a.Key == name {
			return a.Val
		}
	}
	return ""
}

// seed fills acme as the pages look in use: a few accounts in words, some seen, one deleted, and many more if asked.
func (s *site) seed(t *testing.T, many int) {
	t.Helper()
	type workload struct {
		name, environment, description, scope string
		first, last                           time.Duration // ago; 0: never
	}
	day := 24 * time.Hour
	for _, w := range []workload{
		{"nightly-digest-summariser", auth.Production, "Summarises the day's internal news into one digest, at 02:00.", "Summarises internal news. Does not answer questions, and does not talk to customers.", 40 * day, 3 * time.Minute},
		{"nightly-digest-summariser", auth.Staging, "The same on yesterday's news.", "", 38 * day, 5 * time.Hour},
		{"support-chatbot", auth.Production, "Answers customers on the help pages.", "Answers questions about our product for signed-in customers; hands over to people where it is unsure.", 90 * day, 20 * time.Second},
		{"eval-harness", auth.Development, "", "", 0, 0},
		{"invoice-extraction-for-accounts-payable-eu-west-1-blue-deployment-canary-batch-07", auth.Production, "", "", 200 * day, 50 * day},
		{"claude-code-ci", auth.Staging, "Reviews pull requests in CI.", "", 12 * day, 26 * time.Hour},
	} {
		created, err := s.CreateAccount(t.Context(), by, "acme", accounts.NewAccount{
			Name: firstRunes(w.name, 80), Environment: w.environment, Description: w.description, IntendedScope: w.scope, Team: "platform",
		}, "")
		if err != nil {
			t.Fatal(err)
		}
		if w.last > 0 {
			now := time.Now()
			err := s.Stamp(t.Context(), []auth.Stamp{{Prefix: created.Account.KeyPrefix, First: now.Add(-w.first), Last: now.Add(-w.last)}})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	off := false
	quiet := s.account(t, "red-team-probe", auth.Development).Account
	if _, err := s.UpdateAccount(t.Context(), by, "acme", quiet.ID, 0, accounts.AccountUpdate{AbuseDetection: &off}); err != nil {
		t.Fatal(err)
	}
	gone := s.account(t, "legacy-translator", auth.Production).Account
	if _, _, err := s.DeleteAccount(t.Context(), by, "acme", gone.ID); err != nil {
		t.Fatal(err)
	}
	for i := range many {
		s.account(t, fmt.Sprintf("workload-%04d", i), []string{auth.Production, auth.Staging, auth.Development}[i%3])
	}
}

// received is a signal about an account, as it stands on the topic.
func received(t *testing.T, a accounts.Account, kind string, category signals.Category, severity signals.Severity, ago time.Duration) signals.Received {
	t.Helper()
	at := time.Now().Add(-ago).UTC().Truncate(time.Millisecond)
	e := &signals.Event{
		ID: "sig_" + fmt.Sprintf("%032x", rand.Uint64()), Org: a.Org, Type: kind, Category: category, Severity: severity, BaseSeverity: signals.Block,
		DetectedAt: at, ReceivedAt: at, SessionID: "session-7", KeyPrefix: a.KeyPrefix,
		Subject: signals.EventSubject{Kind: string(auth.KindServiceAccount), ID: a.ID, Label: a.Label()},
		Service: &signals.EventService{ID: a.ID, Name: a.Name, Environment: a.Environment, Description: a.Description, IntendedScope: a.IntendedScope, AbuseDetection: a.AbuseDetection},
		Details: []byte(`{"budget":{"spent_usd":412.5,"forecast_usd":600},"html":"<script>alert(1)</script>"}`),
	}
	if kind == signals.KeyMisuseDetected {
		e.Details = []byte(`{"address":"198.51.100.9","key_prefix":"` + a.KeyPrefix + `","revoked_at":"2026-11-28T03:00:00Z"}`)
	}
	if severity == signals.Block {
		e.Rule = &signals.RuleRef{PolicyVersion: 3, ID: "org-wide-block", Action: signals.ActionBlock}
	}
	value, err := e.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	return signals.Received{Event: e, Value: value}
}

// raise stores a signal about an account, as the alerts consumer does, and returns its id.
func (s *site) raise(t *testing.T, a accounts.Account, kind string, category signals.Category, severity signals.Severity, ago time.Duration) string {
	t.Helper()
	r := received(t, a, kind, category, severity, ago)
	if n, err := s.signals.Put(t.Context(), []signals.Received{r}); err != nil || n != 1 {
		t.Fatalf("stored %d: %v", n, err)
	}
	return r.Event.ID
}

// seedSignals raises some of every sort on what seed made.
func (s *site) seedSignals(t *testing.T) {
	t.Helper()
	digest, chatbot, long := s.find(t, "nightly-digest"), s.find(t, "support-chatbot"), s.find(t, "invoice-extraction")
	for i := range 40 {
		s.raise(t, []accounts.Account{digest, chatbot, long}[i%3], []string{"pii_detected", "wasteful_prompting", "off_topic_production", "secret_detected"}[i%4],
			[]signals.Category{signals.ContentSafety, signals.BrandUsage, signals.BrandUsage, signals.ContentSafety}[i%4],
			[]signals.Severity{signals.Warn, signals.Info, signals.Block, signals.Warn, signals.Warn}[i%5], time.Duration(i*i)*6*time.Minute)
	}
	s.raise(t, chatbot, signals.KeyMisuseDetected, signals.Operational, signals.Warn, 2*time.Minute)
	s.raise(t, digest, "forecast_breach", signals.Budget, signals.Warn, time.Minute)
	err := s.signals.AddDrops(t.Context(), []signals.Drop{{Org: "acme", SubjectKind: string(auth.KindServiceAccount), SubjectID: digest.ID,
		Type: "personal_use_company_account", Reason: signals.PersonsOnly, Count: 12, LastAt: time.Now().Add(-time.Hour)},
		{Org: "acme", SubjectKind: string(auth.KindServiceAccount), SubjectID: digest.ID, Type: "pii_detected", Reason: signals.BadSeverity, Count: 84, LastAt: time.Now().Add(-2 * time.Hour)}})
	if err != nil {
		t.Fatal(err)
	}
}

func firstRunes(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n])
	}
	return s
}

// TestServe keeps a seeded console running for a look by hand:
//
//	SLUICE_CONSOLE_SERVE=127.0.0.1:8318 go test -run TestServe ./accounts/console
func TestServe(t *testing.T) {
	addr := os.Getenv("SLUICE_CONSOLE_SERVE")
	if addr == "" {
		return // only for a look by hand
	}
	s := newSite(t)
	s.seed(t, 1000)
	s.seedSignals(t)
	link, err := s.CreateLink(t.Context(), by, auth.Admin{Org: "acme", Actor: "grace@acme.example", Permissions: auth.AllPermissions()}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Addr: addr, Handler: s.server.Config.Handler, ReadHeaderTimeout: time.Second}
	ctx, stop := signal.NotifyContext(t.Context(), os.Interrupt)
	defer stop()
	go func() {
		<-ctx.Done()
		_ = server.Shutdown(context.WithoutCancel(ctx))
	}()
	fmt.Printf("sign in at http://%s/sign-in/once?token=%s\n", addr, link)
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		t.Fatal(err)
	}
}

// find is the first account of acme whose name holds q.
func (s *site) find(t *testing.T, q string) accounts.Account {
	t.Helper()
	p, err := s.Accounts(t.Context(), "acme", accounts.AccountFilter{Q: q, Limit: 1})
	if err != nil || len(p.Items) == 0 {
		t.Fatalf("no account like %q: %v", q, err)
	}
	return p.Items[0]
}

var filterAll = accounts.AccountFilter{State: accounts.StateAll}
