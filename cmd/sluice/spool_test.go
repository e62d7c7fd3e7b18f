package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"flowstate.inc/sluice/ingest/spool"
)

// sluice runs a command of the real program and gives its exit status and what it printed.
func sluice(t *testing.T, args ...string) (int, string, string) {
	t.Helper()
	binary, err := exec.LookPath("sluice")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errOut.String()
}

// fillSpool makes a spool that an edge has left, with n records of each topic.
func fillSpool(t *testing.T, n int, topics ...string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "spool")
	l, err := spool.Open(spool.Config{Dir: dir, MinFreeBytes: -1})
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		for _, topic := range topics {
			e := spool.Entry{Topic: topic, Key: []byte("acme/service_account/sa_1"), Value: fmt.Appendf(nil, "value-%d", i),
				Headers: []spool.Header{{Key: "flowstate-msg-id", Value: fmt.Appendf(nil, "msg_%s_%d", topic, i)}}}
			if err := l.Append(t.Context(), []spool.Entry{e}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	return dir
}

// An orphaned spool is listed, checked and emptied, and damage costs what is damaged.
func TestSpoolCommands(t *testing.T) {
	broker, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(2, "ai_signals"))
	if err != nil {
		t.Fatal(err)
	}
	defer broker.Close()
	kafka := "--kafka-brokers=" + broker.ListenAddrs()[0]
	dir := fillSpool(t, 10, "ai_signals", "gone")

	code, out, _ := sluice(t, "spool", "ls", "--dir", dir)
	if code != 0 || !strings.Contains(out, "SEGMENT") || !strings.Contains(out, "total") {
		t.Errorf("ls: %d\n%s", code, out)
	}
	code, out, _ = sluice(t, "spool", "verify", "--dir", dir)
	if code != 0 || !strings.Contains(out, "topic ai_signals: 10 records wait") || !strings.Contains(out, "topic gone: 10 records wait") {
		t.Errorf("verify: %d\n%s", code, out)
	}
	// Asked about the volume around it, none of them says that nothing waits.
	for _, command := range []string{"ls", "verify", "drain"} {
		around := t.TempDir()
		args := []string{"spool", command, "--dir", around}
		if command == "drain" {
			args = append(args, kafka)
		}
		if code, _, errOut := sluice(t, args...); code == 0 || !strings.Contains(errOut, "neither segments nor a lock") {
			t.Errorf("%s of an empty directory: %d %s", command, code, errOut)
		}
		if err := os.CopyFS(filepath.Join(around, "log"), os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		if code, _, errOut := sluice(t, args...); code == 0 || !strings.Contains(errOut, "there is one in "+filepath.Join(around, "log")) {
			t.Errorf("%s of the directory around a spool: %d %s", command, code, errOut)
		}
	}
	damage(t, dir, "value-4")
	code, out, errOut := sluice(t, "spool", "verify", "--dir", dir)
	if code != 1 || !strings.Contains(out, "damaged:") || !strings.Contains(out, "1 records lost") || !strings.Contains(errOut, "is damaged") {
		t.Errorf("verify of a damaged spool: %d\n%s%s", code, out, errOut)
	}
	code, out, _ = sluice(t, "spool", "verify", "--dir", dir, "--json")
	var view spoolView
	if err := json.Unmarshal([]byte(out), &view); err != nil || code != 1 || view.OK || len(view.Segments) != 1 || len(view.Segments[0].Damage) != 1 || view.Segments[0].Topics["gone"] != 10 {
		t.Errorf("verify --json: %d %v\n%s", code, err, out)
	}

	// One topic is missing: it stays, the rest goes.
	code, out, errOut = sluice(t, "spool", "drain", "--dir", dir, kafka, "--patience=1500ms")
	if code != 1 || !strings.Contains(out, "9 records sent to Kafka") || !strings.Contains(errOut, "topic gone: unknown_topic") {
		t.Errorf("drain without a topic: %d\n%s%s", code, out, errOut)
	}
	for i, r := range consume(t, broker, "ai_signals", 9) {
		if i >= 4 {
			i++ // the damaged one
		}
		marked := false
		for _, h := range r.Headers {
			marked = marked || h.Key == "flowstate-replayed" && string(h.Value) == "1"
		}
		if string(r.Value) != fmt.Sprintf("value-%d", i) || !marked {
			t.Errorf("%s at %d, marked: %v", r.Value, i, marked)
		}
	}
	later, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(2, "gone"))
	if err != nil {
		t.Fatal(err)
	}
	defer later.Close()
	code, out, errOut = sluice(t, "spool", "drain", "--dir", dir, "--kafka-brokers="+later.ListenAddrs()[0], "--json")
	var drained drainView
	if err := json.Unmarshal([]byte(out), &drained); err != nil || code != 0 || drained.Replayed != 10 || drained.Left != 0 {
		t.Errorf("drain --json: %d %v\n%s%s", code, err, out, errOut)
	}
	consume(t, later, "gone", 10)

	for _, args := range [][]string{{"spool", "ls"}, {"spool", "drain", "--dir", dir}} {
		if code, _, _ := sluice(t, args...); code != 2 {
			t.Errorf("%v: status %d, want 2", args, code)
		}
	}
	if code, _, errOut := sluice(t, "spool", "drain", "--dir", filepath.Join(dir, "typo"), kafka); code != 1 || !strings.Contains(errOut, "no such file") {
		t.Errorf("drain of nothing: %d %s", code, errOut)
	}
}

// damage flips a bit of the first record that holds text.
func damage(t *testing.T, dir, text string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.seg"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if i := bytes.Index(b, []byte(text)); i >= 0 {
			b[i] ^= 1
			if err := os.WriteFile(f, b, 0o600); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatalf("no %q in %s", text, dir)
}

func consume(t *testing.T, c *kfake.Cluster, topic string, n int) []*kgo.Record {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(c.ListenAddrs()...), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var out []*kgo.Record
	for len(out) < n {
		f := cl.PollFetches(ctx)
		if ctx.Err() != nil {
			t.Fatalf("%d of %d records of %s: %v", len(out), n, topic, f.Err())
		}
		out = append(out, f.Records()...)
	}
	return out
}

// An edge that stops while records wait in its spool says so by its status; a second process is kept off the directory; a second signal ends the delay.
func TestStopLeavesRecordsInTheSpool(t *testing.T) {
	binary, err := exec.LookPath("sluice")
	if err != nil {
		t.Fatal(err)
	}
	dir := fillSpool(t, 12, "ai_signals")
	ops := freeAddr(t)
	srv := &server{cmd: exec.Command(binary, "serve", "--roles=edge", "--postgres-url=postgres://u:p@127.0.0.1:1/x", "--redis-url=redis://127.0.0.1:1",
		"--kafka-brokers=127.0.0.1:1", "--edge-addr=127.0.0.1:0", "--grpc-addr=127.0.0.1:0", "--admin-addr=127.0.0.1:0", "--ops-addr="+ops,
		"--spool-dir="+dir, "--spool-min-free-bytes=0", "--drain-delay=10m"), exited: make(chan struct{})}
	srv.cmd.Stdout, srv.cmd.Stderr = &srv.out, &srv.err
	if err := srv.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = srv.cmd.Wait()
		close(srv.exited)
	}()
	defer func() { _ = srv.cmd.Process.Kill(); <-srv.exited }()
	if !until(time.Minute, srv.exited, func() bool { return strings.Contains(srv.err.String(), `"msg":"ready"`) }) {
		t.Fatalf("not ready\n%s", srv.err.String())
	}
	if code, _, errOut := sluice(t, "spool", "drain", "--dir", dir, "--kafka-brokers=127.0.0.1:1"); code != 1 || !strings.Contains(errOut, "directory in use") {
		t.Errorf("drain beside a running edge: %d %s", code, errOut)
	}
	got, err := doHTTP([]string{"GET", "http://" + ops + "/readyz"})
	if err != nil || !strings.Contains(got, "12 records wait for Kafka") {
		t.Errorf("readyz: %s %v", got, err)
	}
	if err := srv.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if !until(10*time.Second, srv.exited, func() bool {
		got, err = doHTTP([]string{"GET", "http://" + ops + "/readyz"})
		return err == nil && strings.HasPrefix(got, "503 ") && strings.Contains(got, `"status":"draining"`)
	}) {
		t.Errorf("readyz after SIGTERM: %s %v", got, err)
	}
	if err := srv.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if !until(30*time.Second, srv.exited, func() bool { return false }) && srv.cmd.ProcessState == nil {
		t.Fatalf("a second signal does not end the delay\n%s", srv.err.String())
	}
	if code := srv.cmd.ProcessState.ExitCode(); code != 3 || !strings.Contains(srv.err.String(), "12 records") {
		t.Errorf("status %d\n%s", code, srv.err.String())
	}
}
