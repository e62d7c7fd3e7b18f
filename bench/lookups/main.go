// Command lookups measures the look-up chain on real servers: which tier answers, how fast each is, what L1 costs in memory, and what a flood of
// unknown keys does to good ones. It is the one part of bench that imports Sluice's own rooms: what a tier costs cannot be seen from outside a process.
//
//	go run ./bench/lookups -postgres-url URL -redis-url URL -out bench/results/lookups.jsonl
//
// It makes a database of its own with -keys accounts, each with its key, and drops it at the end. Look-ups are drawn from a Zipf distribution
// over a shuffled order of the keys: P(rank k) ∝ (1+k)^-s. Results are printed as JSON lines, and appended to -out.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"net/url"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"flowstate.inc/sluice/accounts"
	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/deploy"
)

// options are what a run is told.
type options struct {
	postgres, redis string
	keys, lookups   int
	l1              int     // records in L1
	zipf            float64 // s, above 1
	unknown, good   int     // requests a second of the flood, and of good keys beside it
	flood           time.Duration
}

func main() {
	var o options
	flag.StringVar(&o.postgres, "postgres-url", os.Getenv("TEST_DATABASE_URL"), "PostgreSQL, where a database is made")
	flag.StringVar(&o.redis, "redis-url", os.Getenv("TEST_REDIS_URL"), "Redis, which is filled")
	flag.IntVar(&o.keys, "keys", 1_000_000, "keys in PostgreSQL")
	flag.IntVar(&o.lookups, "lookups", 3_000_000, "look-ups of the Zipf run")
	flag.IntVar(&o.l1, "l1", 100_000, "records in L1")
	flag.Float64Var(&o.zipf, "zipf", 1.1, "s of the Zipf distribution, above 1")
	flag.IntVar(&o.unknown, "unknown", 5000, "unknown keys a second of the flood")
	flag.IntVar(&o.good, "good", 2000, "good requests a second beside the flood")
	flag.DurationVar(&o.flood, "flood", 15*time.Second, "how long the flood lasts")
	out := flag.String("out", "", "file to append the results to")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	w := io.Writer(os.Stdout)
	if *out != "" {
		f, err := os.OpenFile(*out, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
		if err != nil {
			log.Fatal(err)
		}
		defer f.Close()
		w = io.MultiWriter(w, f)
	}
	if _, err := measure(ctx, o, w); err != nil {
		log.Fatal(err)
	}
}

// A report is what a run found, one line of JSON each.
type report struct {
	Zipf   zipfResult
	Memory memoryResult
	Flood  floodResult
}

// A tier is how often one tier was asked and what it took, in microseconds. For l1 and all it is the whole look-up, for the others the question to
// them alone.
type tier struct {
	Tier    string  `json:"tier"`
	Answers int     `json:"answers"`
	Share   float64 `json:"share"` // of all look-ups
	P50us   float64 `json:"p50_us"`
	P99us   float64 `json:"p99_us"`
}

type zipfResult struct {
	What        string  `json:"what"`
	Keys        int     `json:"keys"`
	L1          int     `json:"l1_keys"`
	S           float64 `json:"zipf_s"`
	Lookups     int     `json:"lookups"`
	Warm        int     `json:"warm_up"`
	Touched     int     `json:"distinct_keys"`
	Unavailable int64   `json:"unavailable_503"`
	Tiers       []tier  `json:"tiers"`
	CPUs        int     `json:"cpus"`
}

type memoryResult struct {
	What   string  `json:"what"`
	L1     int     `json:"l1_keys"`
	Held   int     `json:"held"`
	Bytes  int64   `json:"bytes"`
	PerKey float64 `json:"bytes_per_key"`
}

type floodResult struct {
	What          string           `json:"what"`
	Unknown       int64            `json:"unknown_requests"`
	UnknownPerSec float64          `json:"unknown_per_second"`
	Good          int64            `json:"good_requests"`
	GoodFailed    int64            `json:"good_failed"`
	GoodP99us     float64          `json:"good_p99_us"`
	GoodCold      int64            `json:"good_of_keys_not_seen_before"`
	Asked         int64            `json:"postgres_lookups"`
	Misses        int64            `json:"postgres_lookups_of_unknown_keys"`
	MissesPerSec  float64          `json:"postgres_lookups_of_unknown_keys_per_second"`
	Budget        int              `json:"budget_per_second"`
	Answers       map[string]int64 `json:"answers"`
}

// A world is a database full of keys.
type world struct {
	store *accounts.Store
	keys  []auth.Key
	asked atomic.Int64 // questions about keys
	took  timings      // of them
}

// measure runs everything, writes a line for each result and returns them.
func measure(ctx context.Context, o options, out io.Writer) (report, error) {
	var r report
	if o.postgres == "" || o.redis == "" {
		return r, errors.New("give -postgres-url and -redis-url")
	}
	w, done, err := makeWorld(ctx, o)
	if err != nil {
		return r, err
	}
	defer done()
	enc := json.NewEncoder(out)
	if r.Zipf, err = w.zipf(ctx, o); err != nil {
		return r, err
	}
	if err := enc.Encode(r.Zipf); err != nil {
		return r, err
	}
	if r.Memory, err = w.memory(ctx, o); err != nil {
		return r, err
	}
	if err := enc.Encode(r.Memory); err != nil {
		return r, err
	}
	if r.Flood, err = w.flood(ctx, o); err != nil {
		return r, err
	}
	return r, enc.Encode(r.Flood)
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
		began := time.Now()
		rec, err := w.store.Key(ctx, prefix)
		w.took.add(time.Since(began))
		return rec, err
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

// lookups is sluice_auth_lookups_total, by tier and result.
func (r *running) lookups() map[string]int {
	out := map[string]int{}
	families, err := r.reg.Gather()
	if err != nil {
		log.Print(err)
	}
	for _, f := range families {
		if f.GetName() != "sluice_auth_lookups_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			var name string
			for _, l := range m.GetLabel() {
				if name != "" {
					name += " "
				}
				name += l.GetValue()
			}
			out[name] = int(m.GetCounter().GetValue()) // "hit l1": labels come sorted by name
		}
	}
	return out
}

var somewhere = netip.MustParseAddr("192.0.2.1")

// zipf looks keys up as a fleet's traffic would: a third of the look-ups warm the tiers up, the rest counts.
func (w *world) zipf(ctx context.Context, o options) (zipfResult, error) {
	r := zipfResult{What: "zipf", Keys: o.keys, L1: o.l1, S: o.zipf, CPUs: runtime.GOMAXPROCS(0)}
	c, err := w.start(ctx, o)
	if err != nil {
		return r, err
	}
	defer c.stop()
	const workers = 8
	touched := make([]atomic.Bool, len(w.keys))
	var unavailable atomic.Int64
	run := func(n int, all, l1 *timings) error {
		var wg sync.WaitGroup
		var failed atomic.Pointer[error]
		for id := range workers {
			wg.Go(func() {
				draw := rand.NewZipf(rand.New(rand.NewPCG(uint64(id), uint64(n))), o.zipf, 1, uint64(len(w.keys)-1))
				var mine, fast []time.Duration
				for i := 0; i < n/workers && ctx.Err() == nil; i++ {
					at := draw.Uint64()
					touched[at].Store(true)
					began := time.Now()
					_, err := c.Authenticate(ctx, auth.Credentials{Key: w.keys[at]}, somewhere)
					took := time.Since(began)
					if errors.Is(err, auth.ErrUnavailable) {
						unavailable.Add(1) // the database took longer than half a second: a client would send again
						continue
					}
					if err != nil {
						failed.Store(&err)
						return
					}
					mine = append(mine, took)
					// Nothing that asks Redis takes less than this, hardly anything in memory more.
					if took < 15*time.Microsecond {
						fast = append(fast, took)
					}
				}
				all.add(mine...)
				l1.add(fast...)
			})
		}
		wg.Wait()
		if err := failed.Load(); err != nil {
			return *err
		}
		return ctx.Err()
	}
	r.Warm = o.lookups / 3
	var all, l1 timings
	if err := run(r.Warm, &all, &l1); err != nil {
		return r, err
	}
	before := c.lookups()
	all.reset()
	l1.reset()
	w.took.reset()
	r.Lookups = o.lookups - r.Warm
	unavailable.Store(0)
	began := time.Now()
	if err := run(r.Lookups, &all, &l1); err != nil {
		return r, err
	}
	log.Printf("%d look-ups by %d workers in %v", r.Lookups, workers, time.Since(began).Round(time.Millisecond))
	after := c.lookups()
	r.Unavailable = unavailable.Load()
	for i := range touched {
		if touched[i].Load() {
			r.Touched++
		}
	}
	redis := timings{all: slices.DeleteFunc(slices.Clone(all.all), func(d time.Duration) bool { return d < 15*time.Microsecond })}
	for _, t := range []struct {
		name  string
		count string
		of    *timings
	}{{"l1", "hit l1", &l1}, {"redis", "hit redis", &redis}, {"postgres", "hit truth", &w.took}, {"all", "", &all}} {
		n := after[t.count] - before[t.count]
		if t.count == "" {
			n = len(all.all)
		}
		p50, p99 := t.of.percentiles()
		r.Tiers = append(r.Tiers, tier{Tier: t.name, Answers: n, Share: float64(n) / float64(r.Lookups), P50us: p50, P99us: p99})
	}
	return r, nil
}

// memory fills L1 and weighs it.
func (w *world) memory(ctx context.Context, o options) (memoryResult, error) {
	r := memoryResult{What: "l1_memory", L1: o.l1}
	c, err := w.start(ctx, o)
	if err != nil {
		return r, err
	}
	defer c.stop()
	before := heap()
	var wg sync.WaitGroup
	var failed atomic.Int64
	n := min(len(w.keys), o.l1+o.l1/2) // more than it may hold
	for id := range 8 {
		wg.Go(func() {
			for i := id; i < n && ctx.Err() == nil; i += 8 {
				if _, err := c.Authenticate(ctx, auth.Credentials{Key: w.keys[i]}, somewhere); err != nil {
					failed.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if f := failed.Load(); f > 0 {
		return r, fmt.Errorf("%d look-ups failed", f)
	}
	r.Bytes = heap() - before
	r.Held = c.Status().Keys
	r.PerKey = float64(r.Bytes) / float64(max(1, r.Held))
	return r, ctx.Err()
}

func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// flood sends well-formed keys that do not exist, from a thousand addresses, beside good keys from elsewhere.
func (w *world) flood(ctx context.Context, o options) (floodResult, error) {
	const budget = 500 // ChainConfig.MissesPerSecond's default
	r := floodResult{What: "flood", Budget: budget, Answers: map[string]int64{}}
	c, err := w.start(ctx, o)
	if err != nil {
		return r, err
	}
	defer c.stop()
	var answers [3]atomic.Int64 // refused, unavailable, accepted
	var good, failed, cold atomic.Int64
	var goodTook timings
	// The flood comes upon an edge at work, most of whose keys are not in L1.
	const calm = 2 * time.Second
	ctx, cancel := context.WithTimeout(ctx, calm+o.flood)
	defer cancel()
	var wg sync.WaitGroup
	// Bursts of 10 ms: a rate of thousands a second needs no timer each.
	pace := func(perSecond int, do func(n int)) {
		const burst = 10 * time.Millisecond
		tick := time.NewTicker(burst)
		defer tick.Stop()
		began, sent := time.Now(), 0
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				due := int(time.Since(began).Seconds() * float64(perSecond))
				for ; sent < due; sent++ {
					n := sent
					wg.Go(func() { do(n) })
				}
			}
		}
	}
	var pacers sync.WaitGroup
	var before int64
	var began time.Time
	pacers.Go(func() {
		select {
		case <-ctx.Done():
			return
		case <-time.After(calm):
		}
		before, began = w.asked.Load(), time.Now()
		pace(o.unknown, func(n int) {
			_, key := auth.MintKey(auth.KindServiceAccount)
			from := netip.AddrFrom4([4]byte{198, 51, byte(n / 250 % 4), byte(n % 250)})
			_, err := c.Authenticate(context.WithoutCancel(ctx), auth.Credentials{Key: key}, from)
			switch {
			case errors.Is(err, auth.ErrUnknownKey):
				answers[0].Add(1)
			case errors.Is(err, auth.ErrUnavailable):
				answers[1].Add(1)
			default:
				answers[2].Add(1)
			}
		})
	})
	pacers.Go(func() {
		pace(o.good, func(n int) {
			// Nine of ten requests are of a tenth of the keys, which is known soon; the others of keys that this edge may never have seen.
			key := w.keys[n%max(1, min(len(w.keys), 10_000)/10)]
			if n%10 == 0 {
				key = w.keys[len(w.keys)-1-n%len(w.keys)]
				cold.Add(1)
			}
			from := netip.AddrFrom4([4]byte{192, 0, 2, byte(n % 20)})
			began := time.Now()
			_, err := c.Authenticate(context.WithoutCancel(ctx), auth.Credentials{Key: key}, from)
			goodTook.add(time.Since(began))
			good.Add(1)
			if err != nil {
				failed.Add(1)
			}
		})
	})
	pacers.Wait()
	wg.Wait()
	r.Unknown = answers[0].Load() + answers[1].Load() + answers[2].Load()
	r.UnknownPerSec = float64(r.Unknown) / time.Since(began).Seconds()
	r.Answers["refused_401"], r.Answers["unavailable_503"], r.Answers["accepted"] = answers[0].Load(), answers[1].Load(), answers[2].Load()
	r.Good, r.GoodFailed, r.GoodCold, r.Asked = good.Load(), failed.Load(), cold.Load(), w.asked.Load()-before
	// What was asked and found is a good key's look-up, which has no budget but that of the slots.
	r.Misses = int64(c.lookups()["miss truth"])
	r.MissesPerSec = float64(r.Misses) / time.Since(began).Seconds()
	_, r.GoodP99us = goodTook.percentiles()
	return r, nil
}

// timings collects durations.
type timings struct {
	mu  sync.Mutex
	all []time.Duration // guarded by mu
}

func (t *timings) add(d ...time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.all = append(t.all, d...)
}

func (t *timings) reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.all = nil
}

// percentiles are p50 and p99 in microseconds.
func (t *timings) percentiles() (float64, float64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.all) == 0 {
		return 0, 0
	}
	slices.Sort(t.all)
	at := func(p float64) float64 {
		return float64(t.all[min(len(t.all)-1, int(p*float64(len(t.all))))].Nanoseconds()) / 1000
	}
	return at(.5), at(.99)
}
