package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestDocsCommands runs every sh block of deploy/docs by bash, as it stands: the blocks of a section of the second level one after another in one shell,
// against a sluice serve on PostgreSQL, Redis and Kafka, with the variables that the runbook tells its reader to set. Where a block of text follows one of
// sh, its output must have those lines, in that order; `…` in them stands for anything. Blocks with needs= are named, and only looked at by bash -n.
func TestDocsCommands(t *testing.T) {
	t.Parallel()
	pages := docPages(t)
	for _, d := range pages {
		for _, b := range d.blocks {
			if strings.HasPrefix(b.info, "sh") {
				if out, err := exec.CommandContext(t.Context(), "bash", "-n", "-c", b.lines).CombinedOutput(); err != nil {
					t.Errorf("%s:%d: %v\n%s", d.path, b.line, err, out)
				}
				if !b.runs() {
					t.Logf("%s:%d is not run: it %s", d.path, b.line, strings.TrimPrefix(b.info, "sh "))
				}
			}
		}
	}
	env := docsPlace(t)
	for _, d := range pages {
		if !strings.HasPrefix(d.path, "deploy/") {
			continue // README.md's are stories
		}
		for _, section := range d.sections() {
			t.Run(strings.TrimSuffix(filepath.Base(d.path), ".md")+" "+section, func(t *testing.T) { runSection(t, d, section, env(t)) })
		}
	}
}

// sections are those with something to run.
func (d *doc) sections() []string {
	var names []string
	for _, b := range d.blocks {
		if b.runs() && !slices.Contains(names, b.section) {
			names = append(names, b.section)
		}
	}
	return names
}

// docsPlace starts what the commands are run against, and gives what makes the variables of one section, with an account of its own.
func docsPlace(t *testing.T) func(*testing.T) []string {
	p := onServers(t)
	p.redisOfItsOwn(t)
	p.must(t, nil, "migrate", "--partitions=2")
	spool := filepath.Join(p.dir, "spool")
	g := p.start(t, "serve", "--spool-dir="+spool)
	p.must(t, nil, "orgs", "create", "acme")
	p.must(t, nil, "orgs", "create", "beta")
	services := docServices(t)
	checkout, err := filepath.Abs(repositoryRoot)
	if err != nil {
		t.Fatal(err)
	}
	restored, ports := "docs_restored_"+p.suffix, freePorts(t, 3)
	_, db := p.store(t)
	t.Cleanup(func() {
		if _, err := db.Exec("DROP DATABASE IF EXISTS " + restored + " WITH (FORCE)"); err != nil {
			t.Error(err)
		}
	})
	return func(t *testing.T) []string {
		var made struct {
			Account struct {
				ID        string `json:"id"`
				KeyPrefix string `json:"key_prefix"`
			} `json:"account"`
			Key string `json:"key"`
		}
		p.must(t, &made, "accounts", "create", "--org=acme", "--name="+t.Name(), "--environment=production", "--json")
		var token struct {
			Token string `json:"token"`
		}
		p.must(t, &token, "tokens", "create", "--org=acme", "--permission=SETTINGS_INTEGRATIONS_UPDATE,AI_GOVERNANCE_VIEW,AI_POLICY_ADMIN", "--json")
		return slices.Concat(os.Environ(), p.env, []string{
			"EDGE=" + g.Edge, "ADMIN=" + g.Admin, "OPS=" + g.Ops, "SLUICE_ORG=acme", "TOKEN=" + token.Token, "KEY=" + made.Key, "PREFIX=" + made.Account.KeyPrefix,
			"ID=" + made.Account.ID, "SPOOL=" + spool, "ORPHAN=" + fillSpool(t, 1, p.topic("logs"), p.topic("spans")), "CHECKOUT=" + checkout, "DRILL=" + services, "PAGER=cat",
			"RESTORED_DB=" + restored, "RESTORED_URL=" + strings.Replace(p.url, "/program_"+p.suffix, "/"+restored, 1),
			"EDGE_PORT=" + ports[0], "OPS_PORT=" + ports[1], "ADMIN_PORT=" + ports[2],
		})
	}
}

// freePorts are ports of loopback that nobody listens on yet, and that the kernel gives nobody.
func freePorts(t *testing.T, n int) []string {
	t.Helper()
	var ports []string
	for len(ports) < n {
		_, port, err := net.SplitHostPort(freeAddr(t))
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(ports, port) {
			ports = append(ports, port)
		}
	}
	return ports
}

// redisOfItsOwn takes a database of the Redis server that no other test has: the docs flush it.
func (p *place) redisOfItsOwn(t *testing.T) {
	t.Helper()
	for i, e := range p.env {
		if strings.HasPrefix(e, "SLUICE_REDIS_URL=") {
			p.env[i] = strings.TrimSuffix(e, "/") + redisDatabase(t)
		}
	}
}

// docServices is where the drills start services that they may break. Whatever of them is left is stopped at the end.
func docServices(t *testing.T) string {
	dir, err := os.MkdirTemp("", "docs")
	if err != nil {
		t.Fatal(err)
	}
	// PostgreSQL runs as a user of its own and must get through.
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd := exec.Command(filepath.Join(repositoryRoot, ".ci", "services.sh"), "clean")
		cmd.Env = append(os.Environ(), "DIR="+filepath.Join(dir, "services"))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("clean: %v\n%s", err, out)
		}
		_ = os.RemoveAll(dir)
	})
	return dir
}

// sectionTime is what a section may take: the longest has a drill in it.
const sectionTime = 2 * time.Minute

func runSection(t *testing.T, d *doc, section string, env []string) {
	var script strings.Builder
	script.WriteString("set -euo pipefail\ncd \"$CHECKOUT\"\n")
	for _, b := range d.blocks {
		if b.section == section && b.runs() {
			fmt.Fprintf(&script, "printf '%s\\n' | tee /dev/stderr\n%s\n", d.mark(b), b.lines)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), sectionTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", script.String())
	cmd.Env = env
	var out, both lockedBuffer
	cmd.Stdout, cmd.Stderr = &tee{&out, &both}, &both
	// What a drill leaves in the background ends with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if cmd.Process != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	if err != nil && ctx.Err() == nil {
		t.Fatalf("%v\n%s", err, lastLines(both.String(), 60))
	}
	if ctx.Err() != nil {
		t.Fatalf("it takes longer than %v\n%s", sectionTime, lastLines(both.String(), 60))
	}
	t.Logf("%s", both.String())
	d.checkOutput(t, section, out.String())
}

type tee [2]*lockedBuffer

func (w *tee) Write(p []byte) (int, error) {
	n, err := w[0].Write(p)
	m, err2 := w[1].Write(p)
	return min(n, m), cmp.Or(err, err2)
}

func (d *doc) mark(b docBlock) string { return fmt.Sprintf("@@ %s:%d", d.path, b.line) }

// checkOutput holds the blocks of text to what the blocks before them have printed.
func (d *doc) checkOutput(t *testing.T, section, out string) {
	for i, b := range d.blocks {
		if b.section != section || b.info != "text" || i == 0 || !d.blocks[i-1].runs() {
			continue
		}
		_, printed, _ := strings.Cut(out, d.mark(d.blocks[i-1])+"\n")
		printed, _, _ = strings.Cut(printed, "@@ "+d.path)
		for want := range strings.Lines(b.lines) {
			want = strings.TrimSpace(want)
			pattern := strings.ReplaceAll(regexp.QuoteMeta(want), "…", ".*")
			loc := regexp.MustCompile(regexp.MustCompile(` +`).ReplaceAllString(pattern, ` +`)).FindStringIndex(printed)
			if loc == nil {
				t.Errorf("%s:%d: no %q in\n%s", d.path, b.line, want, bytes.TrimSpace([]byte(printed)))
				break
			}
			printed = printed[loc[1]:]
		}
	}
}
