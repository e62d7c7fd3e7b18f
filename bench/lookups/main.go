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
	"math/rand/v2"
	"net/netip"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"flowstate.inc/sluice/auth"
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
	run := func(n int, tiers map[string]*timings) error {
		var wg sync.WaitGroup
		var failed atomic.Pointer[error]
		for id := range workers {
			wg.Go(func() {
				draw := rand.NewZipf(rand.New(rand.NewPCG(uint64(id), uint64(n))), o.zipf, 1, uint64(len(w.keys)-1))
				mine := map[string][]time.Duration{}
				for i := 0; i < n/workers && ctx.Err() == nil; i++ {
					at := draw.Uint64()
					touched[at].Store(true)
					began := time.Now()
					who, err := c.Authenticate(ctx, auth.Credentials{Key: w.keys[at]}, somewhere)
					took := time.Since(began)
					if errors.Is(err, auth.ErrUnavailable) {
						unavailable.Add(1) // the database took longer than half a second: a client would send again
						continue
					}
					if err != nil {
						failed.Store(&err)
						return
					}
					mine[who.Tier()] = append(mine[who.Tier()], took)
				}
				for name, took := range mine {
					tiers["all"].add(took...)
					if t := tiers[name]; t != nil {
						t.add(took...)
					}
				}
			})
		}
		wg.Wait()
		if err := failed.Load(); err != nil {
			return *err
		}
		return ctx.Err()
	}
	r.Warm = o.lookups / 3
	// What answered, and how long whoever asked waited for it, the tiers before it included.
	names := []string{"l1", "redis", "postgres", "all"}
	tiers := map[string]*timings{}
	for _, name := range names {
		tiers[name] = new(timings)
	}
	if err := run(r.Warm, tiers); err != nil {
		return r, err
	}
	for _, t := range tiers {
		t.reset()
	}
	r.Lookups = o.lookups - r.Warm
	unavailable.Store(0)
	began := time.Now()
	if err := run(r.Lookups, tiers); err != nil {
		return r, err
	}
	log.Printf("%d look-ups by %d workers in %v", r.Lookups, workers, time.Since(began).Round(time.Millisecond))
	r.Unavailable = unavailable.Load()
	for i := range touched {
		if touched[i].Load() {
			r.Touched++
		}
	}
	for _, name := range names {
		n := len(tiers[name].all)
		p50, p99 := tiers[name].percentiles()
		r.Tiers = append(r.Tiers, tier{Tier: name, Answers: n, Share: float64(n) / float64(r.Lookups), P50us: p50, P99us: p99})
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
