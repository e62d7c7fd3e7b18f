package main

import (
	"database/sql"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"time"

	"flowstate.inc/sluice/accounts"
)

// killRounds is how often the process is killed; each time some deletes are under way.
const killRounds = 24

// TestKillDuringDeletes kills the admin process at moments around the deletes that it serves: each account is deleted as a whole, with its key and its
// audit row, or not at all; what was answered 200 is deleted; and the key of what is deleted is refused by an edge that was never told.
func TestKillDuringDeletes(t *testing.T) {
	t.Run("dev", func(t *testing.T) {
		p := onDev(t)
		killDuringDeletes(t, p, func() *program { return p.start(t, "dev") }, nil)
	})
	t.Run("serve", func(t *testing.T) {
		p := onServers(t)
		p.must(t, nil, "migrate", "--partitions=1")
		edge := p.start(t, "serve", "--roles=edge")
		killDuringDeletes(t, p, func() *program { return p.start(t, "serve", "--roles=admin") }, edge)
	})
}

// A victim is an account, and what the database says of it.
type victim struct {
	id, key  string
	answered bool // 200 to its delete
	deleted  bool
}

func killDuringDeletes(t *testing.T, p *place, start func() *program, edge *program) {
	ctx := t.Context()
	store, db := p.store(t)
	by := accounts.By{Actor: "test", Via: "cli"}
	if _, err := store.EnsureFirstOrg(ctx, by, demoOrg); err != nil {
		t.Fatal(err)
	}
	token := p.token(t, demoOrg, "SETTINGS_INTEGRATIONS_UPDATE")
	client := newClient(nil)
	const perRound = 6
	var all []*victim
	// The moment is drawn from an interval that follows what the last rounds found, so that it straddles the deletes however slow the machine is.
	within := 30 * time.Millisecond
	wholly, not := 0, 0
	for round := range killRounds {
		var now []*victim
		for i := range perRound {
			c, err := store.CreateAccount(ctx, by, demoOrg, accounts.NewAccount{Name: fmt.Sprintf("victim %d-%d", round, i), Environment: "staging"}, "")
			if err != nil {
				t.Fatal(err)
			}
			now = append(now, &victim{id: c.Account.ID, key: c.Key})
		}
		admin := start()
		at := edge
		if at == nil {
			at = admin
		}
		// The edge knows the keys: it has them in its cache when they are deleted.
		for _, v := range now {
			if got, err := send(ctx, client, http.MethodGet, at.Edge+"/v1/whoami", "", "x-flowstate-key", v.key); err != nil || got.status != http.StatusOK {
				t.Fatalf("before the delete: %d %s, %v", got.status, got.body, err)
			}
		}
		var deletes sync.WaitGroup
		for _, v := range now {
			deletes.Go(func() {
				got, err := send(ctx, client, http.MethodDelete, admin.Admin+"/api/v1/service-accounts/"+v.id, "", "Authorization", "Bearer "+token)
				v.answered = err == nil && got.status == http.StatusOK
			})
		}
		<-time.After(rand.N(within)) // the moment is what this test is about
		admin.kill()
		deletes.Wait()
		gone := 0
		for _, v := range now {
			checkWhole(t, db, v)
			if v.deleted {
				gone++
			} else if v.answered {
				t.Errorf("round %d: the delete of %s was answered 200 and has not happened", round, v.id)
			}
		}
		wholly, not = wholly+gone, not+perRound-gone
		switch gone {
		case 0:
			within *= 2
		case perRound:
			within = within*2/3 + time.Millisecond
		}
		report, err := store.VerifyAudit(ctx, demoOrg)
		if err != nil || !report.Intact() {
			t.Errorf("round %d: audit %+v, %v", round, report, err)
		}
		all = append(all, now...)
	}
	t.Logf("%d deletes happened, %d did not", wholly, not)
	if wholly == 0 || not == 0 {
		t.Errorf("the kills missed the deletes: %d happened, %d did not", wholly, not)
	}
	if edge == nil {
		edge = start()
	}
	for _, v := range all {
		checkWhole(t, db, v) // again: PostgreSQL finishes the commit of a client that is gone
		want := http.StatusOK
		if v.deleted {
			want = http.StatusUnauthorized
		}
		var got reply
		if !until(12*time.Second, nil, func() bool {
			var err error
			got, err = send(ctx, client, http.MethodGet, edge.Edge+"/v1/whoami", "", "x-flowstate-key", v.key)
			return err == nil && got.status == want
		}) {
			t.Errorf("the key of %s, deleted %v: %d %s", v.id, v.deleted, got.status, got.body)
		}
	}
	if text := p.must(t, nil, "audit", "verify", "--org", demoOrg); text == "" {
		t.Error("audit verify says nothing")
	}
}

// checkWhole reads everything that a delete changes in one statement, so that a commit that is under way on the server is seen or not seen.
func checkWhole(t *testing.T, db *sql.DB, v *victim) {
	t.Helper()
	var account, key, sightings bool
	var rows, changes int
	err := db.QueryRowContext(t.Context(), `SELECT a.deleted_at IS NOT NULL, k.revoked_at IS NOT NULL, NOT s.live,
		(SELECT COUNT(*) FROM audit_events e WHERE e.org = a.org AND e.target_id = a.id AND e.action = 'service_account.deleted'),
		(SELECT COUNT(*) FROM key_changes c WHERE c.prefix = k.prefix) - 1
		FROM service_accounts a JOIN keys k ON k.subject_id = a.id JOIN account_seen s ON s.account_id = a.id WHERE a.id = $1`, v.id).
		Scan(&account, &key, &sightings, &rows, &changes)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	if account {
		n = 1
	}
	if key != account || sightings != account || rows != n || changes != n {
		t.Errorf("%s is half deleted: account %v, key %v, sightings %v, %d audit rows, %d key changes", v.id, account, key, sightings, rows, changes)
	}
	v.deleted = account
}

// token makes an admin token by the command line.
func (p *place) token(t *testing.T, org string, permissions ...string) string {
	t.Helper()
	args := []string{"tokens", "create", "--org", org, "--json"}
	for _, permission := range permissions {
		args = append(args, "--permission", permission)
	}
	var out struct {
		Token string `json:"token"`
	}
	p.must(t, &out, args...)
	return out.Token
}
