package main

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/segmentio/kafka-go"
)

// The stories in testdata/stories are what a user types, run against the real program. Beside testscript's own commands they have:
//
//	start NAME ARGS…      start `sluice ARGS…`, wait until it is ready, and set $NAME_EDGE, $NAME_ADMIN, $NAME_OPS, $NAME_KAFKA, $NAME_KEY, $NAME_TOKEN, $NAME_ACCOUNT
//	stop NAME             SIGTERM, and wait; the exit status must be 0
//	kill9 NAME            SIGKILL, and wait
//	http METHOD URL [NAME:VALUE…] [BODY]   one request; the code and the body are stdout
//	await PATTERN COMMAND…   run a command of this list or sluice until its output matches
//	produce BROKERS TOPIC KEY VALUE [NAME:VALUE…]   one message, acknowledged
//	judge NAME            start a scripted judge of scopes, and set $NAME_URL
//	json PATH FILE VAR    set $VAR to a value of a JSON file
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"sluice": func() { os.Exit(run()) }})
}

func TestStories(t *testing.T) {
	runStories(t, "testdata/stories", nil)
}

// TestStoriesOnServers is the same on PostgreSQL, Redis and Kafka.
func TestStoriesOnServers(t *testing.T) {
	postgres, redis, brokers := os.Getenv("TEST_DATABASE_URL"), os.Getenv("TEST_REDIS_URL"), os.Getenv("TEST_KAFKA_BROKERS")
	if postgres == "" || redis == "" || brokers == "" {
		if os.Getenv("SLUICE_REQUIRE_SERVICES") == "1" {
			t.Fatal("TEST_DATABASE_URL, TEST_REDIS_URL and TEST_KAFKA_BROKERS are required")
		}
		t.Skip("TEST_DATABASE_URL, TEST_REDIS_URL and TEST_KAFKA_BROKERS are not set")
	}
	runStories(t, "testdata/servers", func(env *testscript.Env) error {
		suffix := fmt.Sprintf("%x", rand.Uint64())
		url, err := ownDatabase(env, postgres, "story_"+suffix)
		if err != nil {
			return err
		}
		env.Setenv("SLUICE_POSTGRES_URL", url)
		env.Setenv("SLUICE_REDIS_URL", redis)
		env.Setenv("SLUICE_KAFKA_BROKERS", brokers)
		for _, topic := range []string{"logs", "spans", "metrics", "signals", "signals-dlq"} {
			env.Setenv(envName("topic-"+topic), "story_"+topic+"_"+suffix)
		}
		return nil
	})
}

// ownDatabase makes a database for one story, and drops it after it.
func ownDatabase(env *testscript.Env, url, name string) (string, error) {
	db, err := sql.Open("pgx", url)
	if err != nil {
		return "", err
	}
	if _, err := db.Exec("CREATE DATABASE " + name); err != nil {
		return "", err
	}
	env.Defer(func() {
		_, _ = db.Exec("DROP DATABASE " + name + " WITH (FORCE)")
		db.Close()
	})
	before, query, _ := strings.Cut(url, "?")
	return before[:strings.LastIndex(before, "/")+1] + name + "?" + query, nil
}

func runStories(t *testing.T, dir string, setup func(*testscript.Env) error) {
	testscript.Run(t, testscript.Params{
		Dir:                 dir,
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			s := &servers{running: map[string]*server{}}
			env.Values[serversKey{}] = s
			env.Defer(s.killAll)
			if setup != nil {
				return setup(env)
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"start": cmdStart, "stop": cmdStop, "kill9": cmdKill9, "http": cmdHTTP, "await": cmdAwait, "json": cmdJSON,
			"produce": cmdProduce, "judge": cmdJudge,
		},
	})
}

type serversKey struct{}

// servers are what a story has started.
type servers struct {
	mu      sync.Mutex
	running map[string]*server
}

type server struct {
	cmd    *exec.Cmd
	out    lockedBuffer
	err    lockedBuffer
	exited chan struct{}
}

// A lockedBuffer may be read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (s *servers) killAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, srv := range s.running {
		_ = srv.cmd.Process.Kill()
		<-srv.exited
	}
}

func serversOf(ts *testscript.TestScript) *servers { return ts.Value(serversKey{}).(*servers) }

func cmdStart(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: start NAME ARGS…")
	}
	name, args := args[0], args[1:]
	ports := []string{"--edge-addr=127.0.0.1:0", "--grpc-addr=127.0.0.1:0", "--admin-addr=127.0.0.1:0", "--ops-addr=127.0.0.1:0", "--drain-delay=0s"}
	if args[0] == "dev" {
		ports = append(ports, "--kafka-addr=127.0.0.1:0", "--json")
	}
	binary, err := exec.LookPath("sluice")
	ts.Check(err)
	srv := &server{cmd: exec.Command(binary, append(args, ports...)...), exited: make(chan struct{})}
	srv.cmd.Dir = ts.MkAbs(".")
	srv.cmd.Env = environment(ts)
	srv.cmd.Stdout, srv.cmd.Stderr = &srv.out, &srv.err
	ts.Check(srv.cmd.Start())
	go func() {
		_ = srv.cmd.Wait()
		close(srv.exited)
	}()
	s := serversOf(ts)
	s.mu.Lock()
	s.running[name] = srv
	s.mu.Unlock()
	ready := func() bool {
		if args[0] == "dev" {
			return strings.HasSuffix(srv.out.String(), "}\n")
		}
		return strings.Contains(srv.err.String(), `"msg":"ready"`)
	}
	if !until(60*time.Second, srv.exited, ready) {
		ts.Fatalf("%s is not ready\n%s%s", name, srv.out.String(), srv.err.String())
	}
	if args[0] == "dev" {
		var line map[string]string
		ts.Check(json.Unmarshal([]byte(srv.out.String()), &line))
		for variable, member := range map[string]string{"EDGE": "edge", "ADMIN": "admin", "OPS": "ops", "KAFKA": "kafka", "KEY": "key", "TOKEN": "admin_token",
			"ACCOUNT": "account_id", "GRPC": "grpc", "LINK": "console_link"} {
			ts.Setenv(name+"_"+variable, line[member])
		}
		return
	}
	for _, text := range strings.Split(srv.err.String(), "\n") {
		var line map[string]any
		if json.Unmarshal([]byte(text), &line) != nil || line["msg"] != "ready" {
			continue
		}
		for _, member := range []string{"edge", "admin", "ops", "grpc"} {
			if addr, ok := line[member].(string); ok {
				ts.Setenv(name+"_"+strings.ToUpper(member), "http://"+addr)
			}
		}
	}
}

// environment is the story's own, as a process needs it.
func environment(ts *testscript.TestScript) []string {
	env := os.Environ()
	for _, name := range []string{"HOME", "PATH", "WORK", "SLUICE_POSTGRES_URL", "SLUICE_REDIS_URL", "SLUICE_KAFKA_BROKERS", "SLUICE_TOPIC_LOGS", "SLUICE_TOPIC_SPANS",
		"SLUICE_TOPIC_METRICS", "SLUICE_TOPIC_SIGNALS", "SLUICE_TOPIC_SIGNALS_DLQ"} {
		if v := ts.Getenv(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// until polls until ok, and gives up when the time has passed or done is closed.
func until(limit time.Duration, done <-chan struct{}, ok func() bool) bool {
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			return false
		case <-done:
			return ok()
		case <-tick.C:
		}
	}
	return true
}

func cmdStop(ts *testscript.TestScript, neg bool, args []string) {
	srv := end(ts, args, syscall.SIGTERM)
	if code := srv.cmd.ProcessState.ExitCode(); (code != 0) != neg {
		ts.Fatalf("exit status %d\n%s", code, srv.err.String())
	}
}

func cmdKill9(ts *testscript.TestScript, _ bool, args []string) { end(ts, args, syscall.SIGKILL) }

func end(ts *testscript.TestScript, args []string, sig syscall.Signal) *server {
	if len(args) != 1 {
		ts.Fatalf("usage: stop NAME")
	}
	s := serversOf(ts)
	s.mu.Lock()
	srv := s.running[args[0]]
	delete(s.running, args[0])
	s.mu.Unlock()
	if srv == nil {
		ts.Fatalf("%s is not running", args[0])
	}
	ts.Check(srv.cmd.Process.Signal(sig))
	select {
	case <-srv.exited:
	case <-time.After(30 * time.Second):
		_ = srv.cmd.Process.Kill()
		ts.Fatalf("%s did not stop\n%s", args[0], srv.err.String())
	}
	ts.Logf("[%s]\n%s%s", args[0], srv.out.String(), srv.err.String())
	return srv
}

func cmdHTTP(ts *testscript.TestScript, neg bool, args []string) {
	out, err := doHTTP(args)
	if (err != nil) != neg {
		ts.Fatalf("%v: %s", err, out)
	}
	_, _ = io.WriteString(ts.Stdout(), out)
}

// doHTTP gives "CODE BODY"; an error means that nobody answered.
func doHTTP(args []string) (string, error) {
	if len(args) < 2 {
		return "", fmt.Errorf("usage: http METHOD URL [NAME:VALUE…] [BODY]")
	}
	method, url, rest := args[0], args[1], args[2:]
	var body string
	header := http.Header{}
	for i, a := range rest {
		name, value, ok := strings.Cut(a, ":")
		if ok && !strings.ContainsAny(name, `{["`) {
			header.Add(name, strings.TrimSpace(value))
			continue
		}
		if i != len(rest)-1 {
			return "", fmt.Errorf("%q is neither a header nor the last argument", a)
		}
		body = a
	}
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return "", err
	}
	req.Header = header
	if user, password, ok := strings.Cut(header.Get("Basic"), ":"); ok {
		req.SetBasicAuth(user, password)
		req.Header.Del("Basic")
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d %s\n", res.StatusCode, bytes.TrimSpace(b)), nil
}

func cmdAwait(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: await PATTERN COMMAND…")
	}
	var last string
	matched := func() bool {
		if args[1] == "http" {
			last, _ = doHTTP(args[2:])
		} else {
			binary, err := exec.LookPath(args[1])
			ts.Check(err)
			cmd := exec.Command(binary, args[2:]...)
			cmd.Dir, cmd.Env = ts.MkAbs("."), environment(ts)
			b, _ := cmd.CombinedOutput()
			last = string(b)
		}
		return strings.Contains(last, args[0]) != neg
	}
	if !until(15*time.Second, nil, matched) {
		ts.Fatalf("no %q in\n%s", args[0], last)
	}
	_, _ = io.WriteString(ts.Stdout(), last)
}

func cmdProduce(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 4 {
		ts.Fatalf("usage: produce BROKERS TOPIC KEY VALUE [NAME:VALUE…]")
	}
	w := &kafka.Writer{Addr: kafka.TCP(strings.Split(args[0], ",")...), Topic: args[1], RequiredAcks: kafka.RequireAll, Balancer: &kafka.Hash{}}
	m := kafka.Message{Key: []byte(args[2]), Value: []byte(args[3])}
	for _, h := range args[4:] {
		name, value, _ := strings.Cut(h, ":")
		m.Headers = append(m.Headers, kafka.Header{Key: name, Value: []byte(value)})
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	// A topic made a moment ago is unknown to whoever asked the broker before.
	var err error
	until(20*time.Second, ctx.Done(), func() bool {
		err = w.WriteMessages(ctx, m)
		return !errors.Is(err, kafka.UnknownTopicOrPartition)
	})
	ts.Check(err)
	ts.Check(w.Close())
}

func cmdJSON(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 3 {
		ts.Fatalf("usage: json PATH FILE VAR")
	}
	text := ts.ReadFile(args[1])
	if i := strings.IndexAny(text, "{["); i > 0 {
		text = text[i:] // after the code that http prints
	}
	var v any
	dec := json.NewDecoder(strings.NewReader(text))
	dec.UseNumber()
	ts.Check(dec.Decode(&v))
	for _, step := range strings.Split(args[0], ".") {
		switch x := v.(type) {
		case map[string]any:
			v = x[step]
		case []any:
			i, err := strconv.Atoi(step)
			ts.Check(err)
			if i >= len(x) {
				ts.Fatalf("%s has no %s in %s", args[1], args[0], text)
			}
			v = x[i]
		default:
			ts.Fatalf("%s has no %s in %s", args[1], args[0], text)
		}
	}
	if v == nil {
		v = ""
	}
	ts.Setenv(args[2], fmt.Sprint(v))
}

// TestReadmeIsCovered finds each command of the README among those that the stories and the gate run: the same words, and all of its arguments.
func TestReadmeIsCovered(t *testing.T) {
	readme, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	var ran [][]string
	for _, pattern := range []string{"testdata/*/*.txtar", "../../.ci/run"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(string(b)) {
				if words := commandOf(line); words != nil {
					ran = append(ran, words)
				}
			}
		}
	}
	for _, b := range parseDoc(t, "README.md", string(readme)).blocks {
		if b.info != "sh" {
			continue
		}
		for line := range strings.Lines(b.lines) {
			want := commandOf(line)
			if want != nil && !slices.ContainsFunc(ran, func(words []string) bool { return sameCommand(want, words) }) {
				t.Errorf("nothing runs this command of the README: %s", line)
			}
		}
	}
}

// commandOf are the words of a line of shell, or of a story where it must succeed; nil where it runs nothing.
func commandOf(line string) []string {
	words := strings.Fields(line)
	switch {
	case len(words) == 0 || strings.HasPrefix(words[0], "#") || words[0] == "!":
		return nil
	case words[0] == "exec":
		return words[1:]
	case words[0] == "start" && len(words) > 2: // NAME, and what `sluice` is told
		return append([]string{"sluice"}, words[2:]...)
	case len(words) > 3 && words[0] == "go" && words[1] == "run" && words[2] == "./cmd/sluice":
		return append([]string{"sluice"}, words[3:]...)
	}
	return words
}

// sameCommand reports whether ran begins with want's words before its first argument, and has its arguments somewhere.
func sameCommand(want, ran []string) bool {
	verb := slices.IndexFunc(want, func(w string) bool { return strings.HasPrefix(w, "-") || strings.ContainsAny(w, "$./") })
	if verb < 0 {
		verb = len(want)
	}
	return len(ran) >= len(want) && slices.Equal(want[:verb], ran[:verb]) &&
		!slices.ContainsFunc(want[verb:], func(w string) bool { return !slices.Contains(ran[verb:], w) })
}
