package rig

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Build builds Sluice and the floor. A path of a sluice that is built already is taken instead.
func (r *Rig) Build(ctx context.Context, sluice string) error {
	fmt.Fprintln(r.Log, "building sluice and the floor")
	r.Bin.Sluice, r.Bin.Floor = filepath.Join(r.Dir, "sluice"), filepath.Join(r.Dir, "floor")
	build := map[string]string{r.Bin.Floor: "./bench/floor"}
	if sluice == "" {
		build[r.Bin.Sluice] = "./cmd/sluice"
	} else {
		r.Bin.Sluice = sluice
	}
	for bin, pkg := range build {
		if _, err := output(ctx, r.Repo, "go", "build", "-o", bin, pkg); err != nil {
			return err
		}
	}
	return nil
}

// Prepare makes tables, topics and n service accounts: the first by Sluice's command, as an operator would, the others by copying rows.
func (r *Rig) Prepare(ctx context.Context, n int) error {
	if _, err := output(ctx, r.Dir, r.Bin.Sluice, "migrate", "--postgres-url", r.PostgresURL, "--kafka-brokers", r.Brokers, "--partitions", strconv.Itoa(Partitions)); err != nil {
		return err
	}
	if err := r.Topics(ctx, FloorTopic, CollectorTopic); err != nil {
		return err
	}
	made, err := output(ctx, r.Dir, r.Bin.Sluice, "accounts", "create", "--org", org, "--name", "nightly-digest-summariser", "--environment", "production",
		"--json", "--postgres-url", r.PostgresURL)
	if err != nil {
		return err
	}
	var answer struct{ Key string }
	if err := json.Unmarshal([]byte(made), &answer); err != nil {
		return fmt.Errorf("sluice accounts create: %w", err)
	}
	if answer.Key == "" {
		return fmt.Errorf("sluice accounts create gave no key")
	}
	r.Keys = append(r.Keys, answer.Key)
	return r.AddAccounts(ctx, n-1)
}

// Sluice starts Sluice as an edge, with further arguments. What it needs beside is Kafka, PostgreSQL and Redis.
func (r *Rig) Sluice(ctx context.Context, binary, brokers string, args ...string) (*Server, error) {
	addrs, err := freeAddrs(4)
	if err != nil {
		return nil, err
	}
	s := &Server{Name: "sluice", Addr: addrs[0], Path: "/v1/logs", Topic: SluiceTopic}
	s.allocs = func(ctx context.Context) (uint64, error) {
		return prometheusValue(ctx, "http://"+addrs[2]+"/metrics", "go_memstats_mallocs_total")
	}
	s.pprof, s.admin = addrs[2], addrs[3]
	all := append([]string{"serve", "--roles=edge", "--edge-addr", addrs[0], "--grpc-addr", addrs[1], "--ops-addr", addrs[2], "--admin-addr", addrs[3],
		"--log-level=warn", "--drain-delay=0s", "--kafka-brokers", brokers, "--redis-url", r.RedisURL, "--postgres-url", r.PostgresURL}, args...)
	return s, r.start(ctx, s, "http://"+addrs[2]+"/readyz", nil, binary, all...)
}

// Floor starts the bare limit.
func (r *Rig) Floor(ctx context.Context) (*Server, error) {
	keys := filepath.Join(r.Dir, "floor.keys")
	if err := os.WriteFile(keys, []byte(strings.Join(r.Keys, "\n")+"\n"), 0o600); err != nil {
		return nil, err
	}
	addr, err := FreeAddr()
	if err != nil {
		return nil, err
	}
	s := &Server{Name: "floor", Addr: addr, Path: "/v1/logs", Topic: FloorTopic}
	s.allocs = func(ctx context.Context) (uint64, error) {
		b, err := get(ctx, "http://"+addr+"/allocs")
		if err != nil {
			return 0, err
		}
		return strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	}
	return s, r.start(ctx, s, "http://"+addr+"/ready", nil, r.Bin.Floor, "-listen", addr, "-brokers", r.Brokers, "-topic", FloorTopic, "-keys", keys)
}

func freeAddrs(n int) ([]string, error) {
	addrs := make([]string, n)
	for i := range addrs {
		var err error
		if addrs[i], err = FreeAddr(); err != nil {
			return nil, err
		}
	}
	return addrs, nil
}

// prometheusValue reads one metric without labels.
func prometheusValue(ctx context.Context, url, name string) (uint64, error) {
	b, err := get(ctx, url)
	if err != nil {
		return 0, err
	}
	for _, line := range strings.Split(string(b), "\n") {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			f, err := strconv.ParseFloat(value, 64)
			return uint64(f), err
		}
	}
	return 0, fmt.Errorf("%s has no %s", url, name)
}
