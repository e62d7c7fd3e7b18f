package main

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"flowstate.inc/sluice/accounts"
	"flowstate.inc/sluice/auth"
)

// A fleet is several processes of the real program on one PostgreSQL database, Redis and Kafka, with one org, acme.
type fleet struct {
	t       *testing.T
	db      *sql.DB // as the database's owner
	store   *accounts.Store
	url     string // of the database, as its owner
	redis   string
	brokers string
	topics  []string // environment
	token   string   // an admin's, with every permission
	name    string   // random, for what the fleet makes outside its database
	edges   []*edge
}

// An edge is one process of a fleet.
type edge struct {
	server
	edge, admin, ops string // URLs
	grpc             string // address
	client           *http.Client
}

// id is how the edge calls itself in the database, before a random end. but for "-" and a random end.
func (e *edge) id(t *testing.T) string {
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	return host + "-" + strconv.Itoa(e.cmd.Process.Pid)
}

var tester = accounts.By{Actor: "tests@acme.example", Via: "cli"}

// redisDatabases are those of the Redis server that nobody has, but for 0, which other tests use. A Redis belongs to one PostgreSQL database: the word
// of another, that all changes are in Redis, would keep the keys of this one alive.
var redisDatabases = func() chan int {
	free := make(chan int, 15)
	for n := range cap(free) {
		free <- n + 1
	}
	return free
}()

// redisDatabase is the path of one until the test ends.
func redisDatabase(t *testing.T) string {
	n := <-redisDatabases
	t.Cleanup(func() { redisDatabases <- n })
	return "/" + strconv.Itoa(n)
}

// newFleet migrates a database and topics of its own. It starts nothing yet.
func newFleet(t *testing.T) *fleet {
	t.Helper()
	f := &fleet{t: t, redis: os.Getenv("TEST_REDIS_URL"), brokers: os.Getenv("TEST_KAFKA_BROKERS"), name: fmt.Sprintf("fleet_%x", rand.Uint64())}
	base := os.Getenv("TEST_DATABASE_URL")
	if base == "" || f.redis == "" || f.brokers == "" {
		if os.Getenv("SLUICE_REQUIRE_SERVICES") == "1" {
			t.Fatal("TEST_DATABASE_URL, TEST_REDIS_URL and TEST_KAFKA_BROKERS are required")
		}
		t.Skip("TEST_DATABASE_URL, TEST_REDIS_URL and TEST_KAFKA_BROKERS are not set")
	}
	if u, err := url.Parse(f.redis); err == nil && strings.Trim(u.Path, "/") == "" {
		u.Path = redisDatabase(t)
		f.redis = u.String()
	}
	admin := f.open(base)
	if _, err := admin.Exec("CREATE DATABASE " + f.name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := admin.Exec("DROP DATABASE " + f.name + " WITH (FORCE)"); err != nil {
			t.Error(err)
		}
		_, _ = admin.Exec("DROP ROLE IF EXISTS " + f.name)
	})
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal("TEST_DATABASE_URL is not a URL")
	}
	u.Path = "/" + f.name
	f.url = u.String()
	for _, topic := range []string{"logs", "spans", "metrics", "signals", "signals-dlq"} {
		f.topics = append(f.topics, envName("topic-"+topic)+"="+f.name+"_"+topic)
	}
	out, err := f.command("migrate", "--partitions=2").CombinedOutput()
	if err != nil {
		t.Fatalf("migrate: %v\n%s", err, out)
	}
	f.db = f.open(f.url)
	f.store = accounts.NewStore(accounts.StoreConfig{Writer: f.db, Dialect: accounts.Postgres})
	if _, err := f.store.CreateOrg(t.Context(), tester, "acme"); err != nil {
		t.Fatal(err)
	}
	_, f.token, err = f.store.CreateToken(t.Context(), tester, "acme", "tests", auth.AllPermissions(), time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *fleet) open(url string) *sql.DB {
	f.t.Helper()
	db, err := sql.Open("pgx", url)
	if err != nil {
		f.t.Fatal("cannot open the database")
	}
	f.t.Cleanup(func() { _ = db.Close() })
	return db
}

func (f *fleet) exec(query string) {
	f.t.Helper()
	if _, err := f.db.Exec(query); err != nil {
		f.t.Fatalf("%s: %v", query, err)
	}
}

// command is the program with the fleet's addresses in its environment.
func (f *fleet) command(args ...string) *exec.Cmd {
	binary, err := exec.LookPath("sluice")
	if err != nil {
		f.t.Fatal(err)
	}
	cmd := exec.Command(binary, args...)
	cmd.Env = append(os.Environ(), append(f.topics, "SLUICE_POSTGRES_URL="+f.url, "SLUICE_REDIS_URL="+f.redis, "SLUICE_KAFKA_BROKERS="+f.brokers)...)
	return cmd
}

// start adds a process, on another URL of the database where one is given.
func (f *fleet) start(databaseURL string, args ...string) *edge {
	f.t.Helper()
	ports := []string{"serve", "--edge-addr=127.0.0.1:0", "--grpc-addr=127.0.0.1:0", "--admin-addr=127.0.0.1:0", "--ops-addr=127.0.0.1:0", "--drain-delay=0s", "--log-format=json"}
	e := &edge{server: server{cmd: f.command(append(ports, args...)...), exited: make(chan struct{})}}
	if databaseURL != "" {
		e.cmd.Env = append(e.cmd.Env, "SLUICE_POSTGRES_URL="+databaseURL)
	}
	var ready readyLine
	ready.found = make(chan struct{})
	e.cmd.Stdout, e.cmd.Stderr = &e.out, io.MultiWriter(&ready, &e.err)
	if err := e.cmd.Start(); err != nil {
		f.t.Fatal(err)
	}
	go func() {
		_ = e.cmd.Wait()
		close(e.exited)
	}()
	f.t.Cleanup(func() {
		_ = e.cmd.Process.Signal(syscall.SIGCONT)
		_ = e.cmd.Process.Kill()
		<-e.exited
		if f.t.Failed() {
			f.t.Logf("edge %d:\n%s", e.cmd.Process.Pid, lastLines(e.err.String(), 20))
		}
	})
	select {
	case <-ready.found:
	case <-e.exited:
		f.t.Fatalf("the edge ended: %s", e.err.String())
	case <-time.After(2 * time.Minute):
		f.t.Fatalf("the edge is not ready: %s", e.err.String())
	}
	e.edge, e.admin, e.ops = "http://"+ready.line["edge"], "http://"+ready.line["admin"], "http://"+ready.line["ops"]
	e.grpc = ready.line["grpc"]
	e.client = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 256, MaxConnsPerHost: 256}}
	f.edges = append(f.edges, e)
	return e
}

// A readyLine finds the line that says where a process listens.
type readyLine struct {
	part  []byte
	line  map[string]string
	found chan struct{}
}

func (r *readyLine) Write(p []byte) (int, error) {
	if r.line != nil {
		return len(p), nil
	}
	r.part = append(r.part, p...)
	for {
		text, rest, ok := bytes.Cut(r.part, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		r.part = rest
		line := map[string]string{}
		_ = json.Unmarshal(text, &line) // other lines have members that are no texts
		if line["msg"] == "ready" {
			r.line = line
			close(r.found)
			return len(p), nil
		}
	}
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// stop ends the edge in good order, which writes what it had not written yet.
func (e *edge) stop(t *testing.T) {
	t.Helper()
	if err := e.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-e.exited:
	case <-time.After(time.Minute):
		t.Fatal("the edge does not end")
	}
	if code := e.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("the edge ended with %d: %s", code, lastLines(e.err.String(), 20))
	}
}

// account makes a service account in production and returns it with its key.
func (f *fleet) account(name string, limits auth.Limits) (accounts.Account, string) {
	f.t.Helper()
	c, err := f.store.CreateAccount(f.t.Context(), tester, "acme", accounts.NewAccount{
		Name: name, Environment: auth.Production, Limits: limits,
	}, "")
	if err != nil {
		f.t.Fatal(err)
	}
	return c.Account, c.Key
}

// What the edges are sent: a signal that the filter drops, which needs no Kafka, and one that it accepts.
const (
	filteredSignal = `{"type":"personal_use_company_account"}`
	acceptedSignal = `{"type":"forecast_breach"}`
)

// send posts a signal and returns the code of the answer.
func (e *edge) send(ctx context.Context, key, body string) (int, error) {
	return e.post(ctx, "/v1/signals", key, body)
}

func (e *edge) post(ctx context.Context, path, key, body string) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.edge+path, strings.NewReader(body))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "fleet-test/1")
	req.Header.Set("X-Flowstate-Key", key)
	res, err := e.client.Do(req)
	if err != nil {
		return 0, err
	}
	_, err = io.Copy(io.Discard, res.Body)
	_ = res.Body.Close()
	return res.StatusCode, err
}

// ask is one request to the admin API.
func (f *fleet) ask(e *edge, method, path string, out any) int {
	f.t.Helper()
	req, err := http.NewRequestWithContext(f.t.Context(), method, e.admin+path, nil)
	if err != nil {
		f.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+f.token)
	res, err := e.client.Do(req)
	if err != nil {
		f.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		f.t.Fatal(err)
	}
	if out != nil && res.StatusCode < 300 {
		if err := json.Unmarshal(b, out); err != nil {
			f.t.Fatalf("%s %s: %v: %s", method, path, err, b)
		}
	}
	if res.StatusCode >= 300 {
		f.t.Logf("%s %s: %d %s", method, path, res.StatusCode, b)
	}
	return res.StatusCode
}

// A deletion is what DELETE answers.
type deletion struct {
	Revocation struct {
		Edges, Confirmed int
		Pending          []struct {
			Edge  string
			Until time.Time
		}
	}
}

// remove deletes an account through e, and says when it asked and when it was answered.
func (f *fleet) remove(e *edge, id string) (deletion, time.Time, time.Time) {
	f.t.Helper()
	var d deletion
	asked := time.Now()
	code := f.ask(e, http.MethodDelete, "/api/v1/service-accounts/"+id, &d)
	answered := time.Now()
	if code != http.StatusOK {
		f.t.Errorf("DELETE: %d", code)
	}
	return d, asked, answered
}

// A load is steady traffic of accounts that nobody touches, on every edge, until stop. All of it must succeed.
type load struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
	sent   atomic.Int64
	failed atomic.Int64
	mu     sync.Mutex
	first  string // what went wrong first
}

// load sends from workers on each edge, every pace: mostly what the filter drops, a tenth goes to Kafka.
func (f *fleet) load(edges []*edge, workers int, pace time.Duration) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{cancel: cancel}
	for w := range workers {
		_, key := f.account(fmt.Sprintf("load-%d-%x", w, rand.Uint32()), auth.Limits{})
		for _, e := range edges {
			l.wg.Go(func() {
				tick := time.NewTicker(pace)
				defer tick.Stop()
				for n := w; ; n++ {
					body := filteredSignal
					if n%10 == 0 {
						body = acceptedSignal
					}
					code, err := e.send(ctx, key, body)
					if ctx.Err() != nil {
						return
					}
					l.sent.Add(1)
					if err != nil || code != http.StatusOK {
						l.failed.Add(1)
						l.mu.Lock()
						if l.first == "" {
							l.first = fmt.Sprintf("%d, %v", code, err)
						}
						l.mu.Unlock()
					}
					select {
					case <-ctx.Done():
						return
					case <-tick.C:
					}
				}
			})
		}
	}
	return l
}

// stop ends the load and reports what failed.
func (l *load) stop(t *testing.T) {
	t.Helper()
	l.cancel()
	l.wg.Wait()
	t.Logf("beside it: %d requests of other keys, %d failed", l.sent.Load(), l.failed.Load())
	if l.failed.Load() > 0 {
		t.Errorf("%d of %d requests of other keys failed, first: %s", l.failed.Load(), l.sent.Load(), l.first)
	}
}
