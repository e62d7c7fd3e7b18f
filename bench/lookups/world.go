package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"flowstate.inc/sluice/accounts"
	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/deploy"
)

// A world is a database full of keys.
type world struct {
	store *accounts.Store
	keys  []auth.Key
	asked atomic.Int64 // questions about keys
}

// makeWorld makes a database with the keys, and returns how to drop it.
func makeWorld(ctx context.Context, o options) (*world, func(), error) {
	admin, reader, err := accounts.OpenPostgres(o.postgres)
	if err != nil {
		return nil, nil, err
	}
	reader.Close()
	name := fmt.Sprintf("lookups_%x", rand.Uint64())
	if _, err := admin.ExecContext(ctx, "CREATE DATABASE "+name); err != nil {
		admin.Close()
		return nil, nil, err
	}
	u, err := url.Parse(o.postgres)
	if err != nil {
		return nil, nil, errors.New("-postgres-url is not a URL")
	}
	u.Path = "/" + name
	writer, reader, err := accounts.OpenPostgres(u.String())
	if err != nil {
		return nil, nil, err
	}
	done := func() {
		reader.Close()
		writer.Close()
		if _, err := admin.ExecContext(context.WithoutCancel(ctx), "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
			log.Print(err)
		}
		admin.Close()
	}
	if _, err := deploy.Migrate(ctx, writer, deploy.Postgres); err != nil {
		done()
		return nil, nil, err
	}
	w := &world{store: accounts.NewStore(accounts.StoreConfig{Writer: writer, Reader: reader, Dialect: accounts.Postgres})}
	by := accounts.By{Actor: "bench", Via: "cli"}
	if _, err := w.store.CreateOrg(ctx, by, "acme"); err != nil {
		done()
		return nil, nil, err
	}
	began := time.Now()
	for len(w.keys) < o.keys {
		type row struct {
			ID, Prefix, Hash string
		}
		rows := make([]row, min(5000, o.keys-len(w.keys)))
		for i := range rows {
			_, key := auth.MintKey(auth.KindServiceAccount)
			rows[i] = row{fmt.Sprintf("sa_%032x", len(w.keys)), key.Prefix(), fmt.Sprintf("%x", key.Hash)}
			w.keys = append(w.keys, key)
		}
		list, err := json.Marshal(rows)
		if err != nil {
			done()
			return nil, nil, err
		}
		for _, query := range []string{
			`INSERT INTO service_accounts (id, org, name, name_lower, environment, description, intended_scope, abuse_detection, team, cost_centre, requests_per_second,
				bytes_per_second, key_prefix, version, created_at, created_by, updated_at)
				SELECT v->>'ID', 'acme', 'workload-' || (v->>'ID'), 'workload-' || (v->>'ID'), 'production', 'Summarises what came in overnight, and sends it round.',
				'Summaries of internal documents; never answers customers.', true, 'search', 'cc-1042', 0, 0, v->>'Prefix', 1, 1, 'bench', 1 FROM json_array_elements(CAST($1 AS JSON)) v`,
			`INSERT INTO keys (prefix, org, kind, subject_id, subject_name, hash, version, created_at, created_by)
				SELECT v->>'Prefix', 'acme', 'service_account', v->>'ID', '', decode(v->>'Hash', 'hex'), 1, 1, 'bench' FROM json_array_elements(CAST($1 AS JSON)) v`,
		} {
			if _, err := writer.ExecContext(ctx, query, string(list)); err != nil {
				done()
				return nil, nil, err
			}
		}
	}
	if _, err := writer.ExecContext(ctx, "ANALYZE"); err != nil {
		done()
		return nil, nil, err
	}
	log.Printf("made %d keys in %v", len(w.keys), time.Since(began).Round(time.Second))
	return w, done, nil
}

// A running chain reads its feed until stop.
type running struct {
	*auth.Chain
	reg  *prometheus.Registry
	stop func()
}

func (w *world) start(ctx context.Context, o options) (*running, error) {
	shared, err := auth.OpenRedis(o.redis)
	if err != nil {
		return nil, err
	}
	reg := prometheus.NewRegistry()
	key := func(ctx context.Context, prefix string) (auth.Record, error) {
		w.asked.Add(1)
		return w.store.Key(ctx, prefix)
	}
	c, err := auth.NewChain(auth.ChainConfig{
		Truth: auth.Truth{Key: key, AccountKey: w.store.AccountKey, AccountKeyByName: w.store.AccountKeyByName, Changes: w.store.Changes,
			ReportEdge: w.store.ReportEdge, Stamp: w.store.Stamp},
		Redis: shared, MaxKeys: o.l1, KeyPrefix: fmt.Sprintf("lookups:%x:", rand.Uint64()), Registerer: reg, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	for !c.Status().FeedLoaded {
		select {
		case <-ctx.Done():
			cancel()
			return nil, ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
	return &running{c, reg, func() {
		cancel()
		if err := <-ended; err != nil {
			log.Print(err)
		}
		shared.Close()
	}}, nil
}
