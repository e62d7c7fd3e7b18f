package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestSpoolDiskIsFull is an edge whose Kafka is away and whose disk has no byte left (ENOSPC): it answers 503 with Retry-After, says why in its metrics and
// on /readyz, keeps what it has acknowledged, takes more when there is room again, and loses nothing of it.
func TestSpoolDiskIsFull(t *testing.T) {
	p := onServers(t)
	disk := t.TempDir()
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=2m"); err != nil {
		t.Skip("no tmpfs of our own without privilege:", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(disk, syscall.MNT_DETACH) })
	p.must(t, nil, "migrate", "--partitions=2")
	var created struct{ Key string }
	p.must(t, &created, "accounts", "create", "--org=acme", "--name=full", "--environment=production", "--json")
	filler := filepath.Join(disk, "filler") // somebody else's
	if err := os.WriteFile(filler, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	spoolDir := filepath.Join(disk, "spool")
	brokers := os.Getenv("TEST_KAFKA_BROKERS")
	g := p.start(t, "serve", "--roles=edge", "--spool-dir="+spoolDir, "--spool-min-free-bytes=0", "--kafka-brokers=127.0.0.1:1")

	client := newClient(nil)
	acked := map[string]bool{}
	padding := strings.Repeat("x", 20_000)
	n := 0
	post := func() reply {
		t.Helper()
		id := fmt.Sprintf("full-%04d", n)
		n++
		r, err := send(t.Context(), client, "POST", g.Edge+"/v1/logs", string(logsJSON([]string{id, id + padding})), "x-flowstate-key", created.Key)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case r.status == 200 && string(r.body) == "{}":
			acked[id] = true
		case r.status != 503 || r.header.Get("Retry-After") == "":
			t.Fatalf("%d %v %s", r.status, r.header, r.body)
		}
		return r
	}
	metric := func(name string) string {
		t.Helper()
		r, err := send(t.Context(), client, "GET", g.Ops+"/metrics", "")
		if err != nil {
			t.Fatal(err)
		}
		for line := range bytes.Lines(r.body) {
			if v, ok := strings.CutPrefix(string(line), name+" "); ok {
				return strings.TrimSpace(v)
			}
		}
		t.Fatalf("no metric %s", name)
		return ""
	}
	refused := 0
	for range 300 {
		if post().status == 503 {
			if refused++; refused == 10 {
				break
			}
		}
	}
	if refused < 10 || len(acked) < 10 {
		t.Fatalf("%d acknowledged, %d refused", len(acked), refused)
	}
	if metric(`sluice_spool_refused_total{reason="write_failed"}`) == "0" && metric(`sluice_spool_refused_total{reason="disk_low"}`) == "0" {
		t.Error("no metric says that the disk is full")
	}
	if metric(`sluice_ingest_records_total{kind="logs",outcome="unavailable",reason="kafka_unavailable"}`) == "0" &&
		metric(`sluice_ingest_records_total{kind="logs",outcome="unavailable",reason="spool_full"}`) == "0" {
		t.Error("the ledger does not say what was refused")
	}
	if r, err := send(t.Context(), client, "GET", g.Ops+"/readyz", ""); err != nil || r.status != 200 || !bytes.Contains(r.body, []byte("records wait for Kafka")) {
		t.Errorf("readyz: %v %d %s", err, r.status, r.body)
	}
	full := len(acked)
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if !until(20*time.Second, g.exited, func() bool { return post().status == 200 }) {
		t.Fatalf("with room again the edge takes nothing\n%s", lastLines(g.err.String(), 10))
	}
	for range 5 {
		post()
	}
	if len(acked) < full+6 {
		t.Errorf("%d acknowledged after there was room again", len(acked)-full)
	}
	g.kill() // at once: nothing may have been acknowledged that is not on disk
	p.must(t, nil, "spool", "verify", "--dir", spoolDir)
	p.must(t, nil, "spool", "drain", "--dir", spoolDir, "--kafka-brokers="+brokers)
	o := outage{t: t}
	seen := o.logs(strings.Split(brokers, ","), p.topic("logs"))
	for id := range acked {
		if seen[id] == 0 {
			t.Errorf("%s was acknowledged and is not in Kafka", id)
		}
	}
	t.Logf("%d acknowledged, %d refused; %d in Kafka", len(acked), n-len(acked), len(seen)/2)
}
