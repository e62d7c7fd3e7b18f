package main

import (
	"bytes"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A blockedWriter is a pipe that nobody reads until it is let go.
type blockedWriter struct {
	mu     sync.Mutex
	text   bytes.Buffer
	letGo  chan struct{}
	writes chan struct{} // one for each write that has begun
}

func (b *blockedWriter) Write(p []byte) (int, error) {
	b.writes <- struct{}{}
	<-b.letGo
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func TestLogWriter(t *testing.T) {
	w := &blockedWriter{letGo: make(chan struct{}), writes: make(chan struct{}, 3*logLines)}
	log, _, out, err := startLog(w, "info", "text")
	if err != nil {
		t.Fatal(err)
	}
	log.Info("the first")
	<-w.writes
	for i := range logLines + 7 {
		log.Info("another", "n", i)
	}
	close(w.letGo)
	out.Flush()
	w.mu.Lock()
	defer w.mu.Unlock()
	text := w.text.String()
	if n := strings.Count(text, "msg=another"); n != logLines {
		t.Errorf("%d lines written, want %d", n, logLines)
	}
	last := text[strings.LastIndex(strings.TrimSuffix(text, "\n"), "\n")+1:]
	if !strings.Contains(last, "lines of the log were left out") || !strings.Contains(last, "left_out=7") {
		t.Errorf("the last line is %s", last)
	}
}

// TestLogNobodyReads: a pipe that nobody reads, as of a log driver that stands still, holds up neither requests nor the end.
func TestLogNobodyReads(t *testing.T) {
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	g := onDev(t).startLogging(t, writer, "dev")
	writer.Close()
	unknown := regexp.MustCompile(`.{4}$`).ReplaceAllString(g.Key, "0000")
	client := newClient(nil)
	ask := func(method, target string, header ...string) reply {
		t.Helper()
		r, err := send(t.Context(), client, method, target, "", header...)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	export := func(key string) int {
		t.Helper()
		return ask(http.MethodPost, g.Edge+"/v1/logs", "X-Flowstate-Key", key, "Content-Type", "application/x-protobuf").status
	}
	counted := regexp.MustCompile(`(?m)^sluice_log_lines_dropped_total [1-9]`)
	// At the level debug each of them is a line of some 250 bytes: the pipe takes 64 KiB, and logLines wait.
	deadline := time.Now().Add(time.Minute)
	for !counted.Match(ask(http.MethodGet, g.Ops+"/metrics").body) {
		if time.Now().After(deadline) {
			t.Fatal("no line of the log is left out")
		}
		for range 500 {
			if code := export(unknown); code < 400 {
				t.Fatal(code)
			}
		}
	}
	if code := export(g.Key); code != http.StatusOK {
		t.Errorf("a good request: %d", code)
	}
	reader.Close() // and now the reader ends: what is written is an error, and nobody's end
	if code := export(g.Key); code != http.StatusOK {
		t.Errorf("a good request after the log's reader has ended: %d", code)
	}
	if err := g.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-g.exited:
	case <-time.After(20 * time.Second):
		t.Fatal("it does not end")
	}
	if code := g.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("status %d", code)
	}
}
