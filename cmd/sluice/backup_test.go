package main

import (
	"database/sql"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// TestBackupAndRestore does what deploy/docs/runbook.md says of backups: pg_dump under load, a disaster, pg_restore into an empty database, the keys in Redis dropped,
// and the alerts read again from Kafka by a new group. What is revoked in the backup stays refused, what was made after it is unknown, the audit
// chains hold, and every acknowledged signal is in Alerts once. What is lost is held too, since the page says it: a revocation after the backup is undone.
func TestBackupAndRestore(t *testing.T) {
	p := onServers(t)
	p.redisOfItsOwn(t)
	p.must(t, nil, "migrate", "--partitions=2")
	g := p.start(t, "serve")
	alive, revoked, later := p.account(t, "acme", "alive"), p.account(t, "acme", "revoked before"), p.account(t, "acme", "revoked after")
	p.must(t, nil, "accounts", "delete", revoked.Account.ID, "--yes")
	load := startTraffic(t, alive.Key, g.Edge)
	load.more(t, 50)
	_, db := p.store(t)
	resolved := resolveOne(t, p, g, db)

	dump := filepath.Join(p.dir, "sluice.dump")
	runTool(t, "pg_dump", "--format=custom", "--file="+dump, p.url)
	load.more(t, 50)
	made := p.account(t, "acme", "made after")
	p.must(t, nil, "accounts", "delete", later.Account.ID, "--yes")
	awaitWhoami(t, g.Edge, made.Key, 200)
	awaitWhoami(t, g.Edge, later.Key, 401)
	load.stop()
	load.checkStored(t, db) // the group has committed beyond what the dump has
	g.kill()

	restored := *p
	restored.url = newDatabase(t, os.Getenv("TEST_DATABASE_URL"), "restored_"+p.suffix)
	restored.env = append([]string{}, p.env...)
	for i, e := range restored.env {
		if strings.HasPrefix(e, "SLUICE_POSTGRES_URL=") {
			restored.env[i] = "SLUICE_POSTGRES_URL=" + restored.url
		}
	}
	runTool(t, "pg_restore", "--no-owner", "--exit-on-error", "--dbname="+restored.url, dump)
	if text := restored.must(t, nil, "migrate"); !strings.Contains(text, "schema: 0 migrations") {
		t.Errorf("the dump has another schema: %s", text)
	}
	dropKeys(t, p)
	g = restored.start(t, "serve", "--alerts-group=sluice-alerts-restored")

	awaitWhoami(t, g.Edge, alive.Key, 200)
	for what, key := range map[string]string{"revoked before the backup": revoked.Key, "made after it": made.Key} {
		if code := whoami(t, g.Edge, key); code != http.StatusUnauthorized {
			t.Errorf("a key that was %s gets %d", what, code)
		}
	}
	// The page tells whoever restores to delete these again, and how to find them.
	if code := whoami(t, g.Edge, later.Key); code != http.StatusOK {
		t.Errorf("a key that was revoked after the backup gets %d: mend the page", code)
	}
	restored.must(t, nil, "accounts", "delete", later.Account.ID, "--yes")
	awaitWhoami(t, g.Edge, later.Key, http.StatusUnauthorized)
	if text := restored.must(t, nil, "audit", "verify", "--org=acme"); !strings.Contains(text, "intact") {
		t.Errorf("audit verify: %s", text)
	}
	again := openDatabase(t, restored.url)
	load.checkStored(t, again)
	var resolution sql.NullString
	if err := again.QueryRowContext(t.Context(), `SELECT resolution FROM alerts WHERE id = $1`, resolved).Scan(&resolution); err != nil || resolution.String != "acknowledged" {
		t.Errorf("the alert that was resolved before the backup: %v, %v", resolution, err)
	}
	fresh := startTraffic(t, alive.Key, g.Edge)
	fresh.more(t, 10)
	fresh.stop()
}

// resolveOne waits for an alert, resolves it by the admin API, and gives its id.
func resolveOne(t *testing.T, p *place, g *program, db *sql.DB) string {
	t.Helper()
	var id string
	if !until(30*time.Second, nil, func() bool { return db.QueryRowContext(t.Context(), `SELECT id FROM alerts LIMIT 1`).Scan(&id) == nil }) {
		t.Fatal("no alert arrives")
	}
	token := p.token(t, "acme", "AI_GOVERNANCE_VIEW")
	got, err := send(t.Context(), http.DefaultClient, http.MethodPost, g.Admin+"/api/v1/alerts/"+id+"/resolve", `{"resolution":"acknowledged"}`, "Authorization", "Bearer "+token)
	if err != nil || got.status != http.StatusOK {
		t.Fatalf("resolve: %d %s, %v", got.status, got.body, err)
	}
	return id
}

func runTool(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

// dropKeys removes everything of ours from Redis.
func dropKeys(t *testing.T, p *place) {
	t.Helper()
	var raw string
	for _, e := range p.env {
		if value, ok := strings.CutPrefix(e, "SLUICE_REDIS_URL="); ok {
			raw = value
		}
	}
	options, err := redis.ParseURL(raw)
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(options)
	defer client.Close()
	keys := client.Scan(t.Context(), 0, "sluice:*", 1000).Iterator()
	n := 0
	for keys.Next(t.Context()) {
		if err := client.Del(t.Context(), keys.Val()).Err(); err != nil {
			t.Fatal(err)
		}
		n++
	}
	if err := keys.Err(); err != nil || n == 0 {
		t.Fatalf("%d keys were in Redis, %v", n, err)
	}
}

func openDatabase(t *testing.T, url string) *sql.DB {
	t.Helper()
	db, err := sql.Open("pgx", url)
	if err != nil {
		t.Fatal("cannot open the database")
	}
	t.Cleanup(func() { db.Close() })
	return db
}
