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
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"flowstate.inc/sluice/accounts"
	"flowstate.inc/sluice/deploy"
)

// A place is where programs of one test keep their data: a directory, or PostgreSQL, Redis and Kafka.
type place struct {
	dir     string
	env     []string // what a command needs to find the data
	servers bool
	url     string // of PostgreSQL
	suffix  string // of the topics
	binary  string // "": the one that is tested
}

// with is the same place for another build of the program.
func (p *place) with(binary string) *place {
	other := *p
	other.binary = binary
	return &other
}

// program is the path of the build that runs here.
func (p *place) program(t *testing.T) string {
	t.Helper()
	if p.binary != "" {
		return p.binary
	}
	binary, err := exec.LookPath("sluice")
	if err != nil {
		t.Fatal(err)
	}
	return binary
}

// onDev is a place for sluice dev.
func onDev(t *testing.T) *place {
	dir := t.TempDir()
	return &place{dir: dir, env: []string{"SLUICE_DATA_DIR=" + filepath.Join(dir, "data")}}
}

// onServers is a place for sluice serve: a database and topics of its own, migrated. Without the servers the test is skipped.
func onServers(t *testing.T) *place {
	t.Helper()
	postgres, redis, brokers := os.Getenv("TEST_DATABASE_URL"), os.Getenv("TEST_REDIS_URL"), os.Getenv("TEST_KAFKA_BROKERS")
	if postgres == "" || redis == "" || brokers == "" {
		if os.Getenv("SLUICE_REQUIRE_SERVICES") == "1" {
			t.Fatal("TEST_DATABASE_URL, TEST_REDIS_URL and TEST_KAFKA_BROKERS are required")
		}
		t.Skip("TEST_DATABASE_URL, TEST_REDIS_URL and TEST_KAFKA_BROKERS are not set")
	}
	p := &place{dir: t.TempDir(), servers: true, suffix: fmt.Sprintf("%x", rand.Uint64())}
	p.url = newDatabase(t, postgres, "program_"+p.suffix)
	p.env = []string{"SLUICE_POSTGRES_URL=" + p.url, "SLUICE_REDIS_URL=" + redis, "SLUICE_KAFKA_BROKERS=" + brokers}
	for _, topic := range []string{"logs", "spans", "metrics", "signals", "signals-dlq"} {
		p.env = append(p.env, envName("topic-"+topic)+"="+p.topic(topic))
	}
	return p
}

func (p *place) topic(name string) string { return "program_" + name + "_" + p.suffix }

// newDatabase makes a database, and drops it after the test.
func newDatabase(t *testing.T, base, name string) string {
	t.Helper()
	db, err := sql.Open("pgx", base)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	if _, err := db.ExecContext(t.Context(), "CREATE DATABASE "+name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := db.ExecContext(context.Background(), "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
			t.Error(err)
		}
	})
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal("TEST_DATABASE_URL is not a URL")
	}
	u.Path = "/" + name
	return u.String()
}

// store opens the place's database beside the programs.
func (p *place) store(t *testing.T) (*accounts.Store, *sql.DB) {
	t.Helper()
	dialect, schema := accounts.SQLite, deploy.SQLite
	open := func() (*sql.DB, *sql.DB, error) {
		if err := os.MkdirAll(filepath.Join(p.dir, "data"), 0o700); err != nil {
			return nil, nil, err
		}
		return accounts.OpenSQLite(filepath.Join(p.dir, "data", "sluice.db"))
	}
	if p.servers {
		dialect, schema = accounts.Postgres, deploy.Postgres
		open = func() (*sql.DB, *sql.DB, error) { return accounts.OpenPostgres(p.url) }
	}
	writer, reader, err := open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { reader.Close(); writer.Close() })
	if _, err := deploy.Migrate(t.Context(), writer, schema); err != nil {
		t.Fatal(err)
	}
	return accounts.NewStore(accounts.StoreConfig{Writer: writer, Reader: reader, Dialect: dialect}), writer
}

// command runs sluice to its end.
func (p *place) command(t *testing.T, args ...string) (string, int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), p.program(t), args...)
	cmd.Dir, cmd.Env = p.dir, slices.Concat(os.Environ(), p.env)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// must is command for what must succeed; its output is decoded into out, where that is not nil.
func (p *place) must(t *testing.T, out any, args ...string) string {
	t.Helper()
	text, code := p.command(t, args...)
	if code != 0 {
		t.Fatalf("sluice %s: exit status %d\n%s", strings.Join(args, " "), code, text)
	}
	if out != nil {
		if err := json.Unmarshal([]byte(text), out); err != nil {
			t.Fatalf("sluice %s: %v\n%s", strings.Join(args, " "), err, text)
		}
	}
	return text
}

// A program is a running sluice dev or sluice serve.
type program struct {
	server
	Edge, GRPC, Admin, Ops, Kafka string
	Key, Token, Account, Link     string // dev only: the demo's
}

// start runs sluice and returns once it is ready. It is killed when the test ends.
func (p *place) start(t *testing.T, args ...string) *program {
	t.Helper()
	return p.startLogging(t, nil, args...)
}

// startLogging is start with another place for the log than the program's own err, which ready looks at unless it is dev that is started.
func (p *place) startLogging(t *testing.T, log *os.File, args ...string) *program {
	t.Helper()
	args = append(args, "--edge-addr=127.0.0.1:0", "--grpc-addr=127.0.0.1:0", "--admin-addr=127.0.0.1:0", "--ops-addr=127.0.0.1:0", "--drain-delay=0s",
		"--log-level=debug", "--log-format=json")
	if args[0] == "dev" {
		args = append(args, "--kafka-addr=127.0.0.1:0", "--json")
	}
	g := &program{server: server{cmd: exec.Command(p.program(t), args...), exited: make(chan struct{})}}
	g.cmd.Dir, g.cmd.Env = p.dir, slices.Concat(os.Environ(), p.env)
	g.cmd.Stdout, g.cmd.Stderr = &g.out, &g.err
	if log != nil {
		g.cmd.Stderr = log
	}
	if err := g.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = g.cmd.Wait()
		close(g.exited)
	}()
	t.Cleanup(g.kill)
	if !until(60*time.Second, g.exited, func() bool { return g.readReady(t, args[0]) }) {
		t.Fatalf("sluice %s is not ready\n%s%s", args[0], g.out.String(), g.err.String())
	}
	return g
}

func (g *program) readReady(t *testing.T, command string) bool {
	t.Helper()
	if command == "dev" {
		text := g.out.String()
		if !strings.HasSuffix(text, "}\n") {
			return false
		}
		var line map[string]string
		if err := json.Unmarshal([]byte(text), &line); err != nil {
			t.Fatal(err)
		}
		g.Edge, g.GRPC, g.Admin, g.Ops, g.Kafka = line["edge"], line["grpc"], line["admin"], line["ops"], line["kafka"]
		g.Key, g.Token, g.Account, g.Link = line["key"], line["admin_token"], line["account_id"], line["console_link"]
		return true
	}
	for text := range strings.Lines(g.err.String()) {
		var line map[string]any
		if json.Unmarshal([]byte(text), &line) != nil || line["msg"] != "ready" {
			continue
		}
		for member, dst := range map[string]*string{"edge": &g.Edge, "grpc": &g.GRPC, "admin": &g.Admin, "ops": &g.Ops} {
			if addr, ok := line[member].(string); ok {
				*dst = "http://" + addr
			}
		}
		return true
	}
	return false
}

// kill is kill -9, and waits for the end.
func (g *program) kill() {
	_ = g.cmd.Process.Kill()
	<-g.exited
}

// stop is SIGTERM, and waits for the end.
func (g *program) stop(t *testing.T) {
	t.Helper()
	if err := g.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-g.exited:
	case <-time.After(30 * time.Second):
		t.Fatal("it does not stop")
	}
}

// A reply is an HTTP answer, read whole.
type reply struct {
	status int
	header http.Header
	body   []byte
}

// member is the text at a path like account.id of the JSON body; "" where there is none.
func (r reply) member(path string) string {
	var v any
	if json.Unmarshal(r.body, &v) != nil {
		return ""
	}
	for step := range strings.SplitSeq(path, ".") {
		m, ok := v.(map[string]any)
		if !ok {
			return ""
		}
		v = m[step]
	}
	s, _ := v.(string)
	return s
}

// send makes one request and follows no redirect. header is names and values in turn. An error means that nobody answered.
func send(ctx context.Context, client *http.Client, method, target, body string, header ...string) (reply, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, target, strings.NewReader(body))
	if err != nil {
		return reply{}, err
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	if body != "" && req.Header.Get("Content-Type") == "" {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := client.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return reply{res.StatusCode, res.Header, bytes.TrimSpace(b)}, err
}

// newClient follows no redirect.
func newClient(jar http.CookieJar) *http.Client {
	return &http.Client{Jar: jar, Transport: &http.Transport{}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}
