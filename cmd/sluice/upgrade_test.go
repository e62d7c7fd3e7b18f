package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"flowstate.inc/sluice/deploy"
)

// TestUpgradeAndRollback walks the way of deploy/docs/runbook.md from the release before the last migration to this one and back, while a workload sends: the
// old program serves on the old schema; the new one migrates it; both serve side by side; the new one serves alone; then the old one again, on the new schema.
// No request is refused, what was acknowledged is in Alerts once, and a revocation holds across the versions.
func TestUpgradeAndRollback(t *testing.T) {
	t.Parallel()
	now := onServers(t)
	now.redisOfItsOwn(t)
	before := now.with(previousProgram(t))

	before.must(t, nil, "migrate", "--partitions=2")
	oldEdge := before.start(t, "serve")
	first := before.account(t, "acme", "first")
	gone := before.account(t, "acme", "gone")
	before.must(t, nil, "accounts", "delete", gone.Account.ID, "--yes")
	load := startTraffic(t, first.Key, oldEdge.Edge)
	load.more(t, 20)

	// The schema goes first, under the feet of the old program.
	text := now.must(t, nil, "migrate")
	if strings.Contains(text, " 0 migrations") {
		t.Fatalf("the program before this one has the same schema: %s", text)
	}
	load.more(t, 20)
	onNewSchema := before.account(t, "acme", "by the old program on the new schema")
	awaitWhoami(t, oldEdge.Edge, onNewSchema.Key, 200)

	// Side by side: what one does holds for the other.
	newEdge := now.start(t, "serve")
	load.through(oldEdge.Edge, newEdge.Edge)
	load.more(t, 20)
	byNew := now.account(t, "acme", "by the new program")
	for name, edge := range map[string]*program{"old": oldEdge, "new": newEdge} {
		for what, key := range map[string]string{"first": first.Key, "on the new schema": onNewSchema.Key, "by the new one": byNew.Key} {
			if code := whoami(t, edge.Edge, key); code != 200 {
				t.Errorf("%s edge, %s: %d", name, what, code)
			}
		}
		if code := whoami(t, edge.Edge, gone.Key); code != 401 {
			t.Errorf("%s edge: %d for a key that was revoked before", name, code)
		}
	}
	for deleter, id := range map[*place]madeAccount{now: onNewSchema, before: byNew} {
		if text := deleter.must(t, nil, "accounts", "delete", id.Account.ID, "--yes"); !strings.Contains(text, "refused by 2 of 2 edges") {
			t.Errorf("a delete beside the other version says: %s", text)
		}
		awaitWhoami(t, oldEdge.Edge, id.Key, 401)
		awaitWhoami(t, newEdge.Edge, id.Key, 401)
	}

	// The old one leaves, then comes back for the new one: the rollback.
	load.through(newEdge.Edge)
	load.more(t, 1) // none is under way on the old one
	oldEdge.stop(t)
	load.more(t, 20)
	checkReads(t, now)
	oldEdge = before.start(t, "serve")
	load.through(oldEdge.Edge, newEdge.Edge)
	load.more(t, 10)
	load.through(oldEdge.Edge)
	load.more(t, 1)
	newEdge.stop(t)
	load.more(t, 20)
	checkReads(t, before)
	back := before.account(t, "acme", "after the rollback")
	awaitWhoami(t, oldEdge.Edge, back.Key, 200)
	awaitWhoami(t, oldEdge.Edge, byNew.Key, 401)
	load.stop()
	_, db := now.store(t)
	load.checkStored(t, db)
}

// checkReads reads by the command line what the other version has written.
func checkReads(t *testing.T, p *place) {
	t.Helper()
	if text := p.must(t, nil, "accounts", "list"); !strings.Contains(text, "first") {
		t.Errorf("accounts list: %s", text)
	}
	if text := p.must(t, nil, "audit", "verify", "--org=acme"); !strings.Contains(text, "intact") {
		t.Errorf("audit verify: %s", text)
	}
}

// previousProgram builds the program of the commit before the newest migration, and keeps it in the user's cache, as the gate does with what takes long. Where the
// history does not reach so far, as in a shallow clone, the test is skipped; the gate says so.
func previousProgram(t *testing.T) string {
	t.Helper()
	commit, ok := previousSchema(t)
	if !ok {
		t.Skip("the git history does not reach back before the last migration: fetch it (git fetch --unshallow) to run this test")
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = t.TempDir()
	}
	kept := filepath.Join(cache, "sluice-ci", "previous", commit+"-"+runtime.Version(), "sluice")
	if _, err := os.Stat(kept); err == nil {
		return kept
	}
	source, archive, built := t.TempDir(), filepath.Join(t.TempDir(), "source.tar"), kept+"."+strconv.Itoa(os.Getpid())
	for _, c := range [][]string{
		{"git", "-C", repositoryRoot, "archive", "--format=tar", "--output=" + archive, commit},
		{"tar", "-C", source, "-xf", archive},
		{"go", "build", "-C", source, "-buildvcs=false", "-o", built, "./cmd/sluice"},
		{"mv", built, kept}, // at once whole, since another run may look for it
	} {
		if out, err := exec.CommandContext(t.Context(), c[0], c[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(c, " "), err, out)
		}
	}
	t.Logf("the program before is of %s", commit)
	return kept
}

// previousSchema is the newest commit that lacks a migration of this program.
func previousSchema(t *testing.T) (string, bool) {
	t.Helper()
	git := func(args ...string) (string, bool) {
		out, err := exec.CommandContext(t.Context(), "git", append([]string{"-C", repositoryRoot}, args...)...).Output()
		return strings.TrimSpace(string(out)), err == nil
	}
	files, err := deploy.Migrations.ReadDir("migrations")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if _, ok := git("cat-file", "-e", "HEAD:deploy/migrations/"+f.Name()); !ok {
			return git("rev-parse", "--verify", "HEAD^{commit}") // it is not committed yet
		}
	}
	added, ok := git("log", "-1", "--diff-filter=A", "--format=%H", "--", "deploy/migrations/*.sql")
	if !ok || added == "" {
		return "", false
	}
	return git("rev-parse", "--verify", "--quiet", added+"^{commit}^1")
}
