package rig

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

const org = "bench"

const alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// mint makes a service account's key in the published format, and its prefix.
func mint() (key, prefix string) {
	var random [64]byte
	rand.Read(random[:])
	b := []byte("fsk_")
	for i := range 12 + 43 {
		if i == 12 {
			b = append(b, '_')
		}
		b = append(b, alphabet[int(random[i])%len(alphabet)]) // the bias does not matter to a benchmark
	}
	sum := crc32.ChecksumIEEE(b)
	check := [6]byte{}
	for i := len(check) - 1; i >= 0; i-- {
		check[i] = alphabet[sum%62]
		sum /= 62
	}
	return string(append(b, check[:]...)), string(b[:16])
}

// AddAccounts puts n service accounts and their keys into the database by COPY: a million through the admin API would take longer than what is measured.
func (r *Rig) AddAccounts(ctx context.Context, n int) error {
	made, err := r.accounts(ctx, max(n, 0), func(int) string { return org })
	r.Keys = append(r.Keys, made...)
	return err
}

// AddOrgs makes n orgs, unless they exist, and spreads a number of service accounts over them: what a Job with these Orgs uses.
func (r *Rig) AddOrgs(ctx context.Context, n, accounts int) error {
	if _, ok := r.orgKeys[n]; ok {
		return nil
	}
	var script strings.Builder
	for i := range n {
		fmt.Fprintf(&script, "INSERT INTO orgs (slug, is_first, created_at, created_by) VALUES ('%s', FALSE, %d, 'bench') ON CONFLICT DO NOTHING;\n", orgName(i), time.Now().UnixMilli())
	}
	if err := r.sql(ctx, script.String()); err != nil {
		return err
	}
	made, err := r.accounts(ctx, accounts, func(i int) string { return orgName(i % n) })
	if err != nil {
		return err
	}
	if r.orgKeys == nil {
		r.orgKeys = make(map[int][]string)
	}
	r.orgKeys[n] = made
	return nil
}

func orgName(i int) string { return fmt.Sprintf("bench-%05d", i) }

// accounts makes n service accounts, the i-th in the org that of names, and returns their keys.
func (r *Rig) accounts(ctx context.Context, n int, of func(i int) string) ([]string, error) {
	if n == 0 {
		return nil, nil
	}
	var accounts, keys, seen strings.Builder
	var made []string
	now := time.Now().UnixMilli()
	for nth := range n {
		org := of(nth)
		r.made++
		i := r.made
		key, prefix := mint()
		made = append(made, key)
		hash := sha256.Sum256([]byte(key))
		id, name := fmt.Sprintf("sa_%016x", i), fmt.Sprintf("workload-%07d", i)
		fmt.Fprintf(&accounts, "%s\t%s\t%s\t%s\tproduction\tbench\t\tt\tplatform\t\t0\t0\t%s\t1\t%d\tbench\t%d\n", id, org, name, name, prefix, now, now)
		fmt.Fprintf(&keys, "%s\t%s\tservice_account\t%s\t\t\\\\x%s\t1\t%d\tbench\n", prefix, org, id, hex.EncodeToString(hash[:]), now)
		fmt.Fprintf(&seen, "%s\t%s\tt\tproduction\t0\t0\n", id, org)
	}
	var script strings.Builder
	script.WriteString("BEGIN;\n")
	for _, t := range []struct{ into, rows string }{
		{"service_accounts (id, org, name, name_lower, environment, description, intended_scope, abuse_detection, team, cost_centre, requests_per_second, bytes_per_second, key_prefix, version, created_at, created_by, updated_at)", accounts.String()},
		{"keys (prefix, org, kind, subject_id, subject_name, hash, version, created_at, created_by)", keys.String()},
		{"account_seen (account_id, org, live, environment, first_at, last_at)", seen.String()},
	} {
		script.WriteString("COPY " + t.into + " FROM STDIN;\n" + t.rows + "\\.\n")
	}
	script.WriteString("COMMIT;\nANALYZE;\n")
	return made, r.sql(ctx, script.String())
}

// sql runs a script of psql's.
func (r *Rig) sql(ctx context.Context, script string) error {
	file := filepath.Join(r.Dir, "accounts.sql")
	if err := os.WriteFile(file, []byte("\\set ON_ERROR_STOP on\n"+script), 0o600); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "psql", "-q", "-X", "-f", file, r.PostgresURL)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("psql: %w: %s", err, tail(out))
	}
	return os.Remove(file)
}
