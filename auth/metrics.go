package auth

import (
	"errors"
	"math"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the chain's. All children are resolved here, so that no request makes one.
type metrics struct {
	l1Hit, l1Stale, l1Miss, missHit               prometheus.Counter
	redisHit, redisStale, redisMiss, redisError   prometheus.Counter
	truthHit, truthMiss, truthError               prometheus.Counter
	redisSeconds, truthSeconds                    prometheus.Observer
	refusals                                      map[RefusalReason]prometheus.Counter
	unavailable, shared, staleServed, truthBehind prometheus.Counter

	overFlights, overBreaker, overTotal, overSource, overAsker, overSlots prometheus.Counter

	changesApplied, feedErrors, reportErrors prometheus.Counter
	changeLag                                prometheus.Histogram
	stamped, stampErrors, stampsDropped      prometheus.Counter
	stampsPending                            prometheus.Gauge

	usageErrors, usageDropped, sendersSkipped prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, c *Chain) (*metrics, error) {
	var cs []prometheus.Collector
	counter := func(name, help string) prometheus.Counter {
		m := prometheus.NewCounter(prometheus.CounterOpts{Name: "sluice_auth_" + name, Help: help})
		cs = append(cs, m)
		return m
	}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		m := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sluice_auth_" + name, Help: help}, labels)
		cs = append(cs, m)
		return m
	}
	gauge := func(name, help string, f func() float64) {
		cs = append(cs, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "sluice_auth_" + name, Help: help}, f))
	}
	m := &metrics{refusals: map[RefusalReason]prometheus.Counter{}}

	look := counters("lookups_total", "Look-ups of keys, by tier and what it held.", "tier", "result")
	m.l1Hit, m.l1Stale, m.l1Miss = look.WithLabelValues("l1", "hit"), look.WithLabelValues("l1", "stale"), look.WithLabelValues("l1", "miss")
	m.missHit = look.WithLabelValues("l1", "known_missing")
	m.redisHit, m.redisStale = look.WithLabelValues("redis", "hit"), look.WithLabelValues("redis", "stale")
	m.redisMiss, m.redisError = look.WithLabelValues("redis", "miss"), look.WithLabelValues("redis", "error")
	m.truthHit, m.truthMiss, m.truthError = look.WithLabelValues("truth", "hit"), look.WithLabelValues("truth", "miss"), look.WithLabelValues("truth", "error")

	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "sluice_auth_lookup_seconds",
		Help: "Time of one question to a tier behind L1.",
		// From a near Redis to the time-out of the database.
		Buckets: []float64{.0002, .0005, .001, .002, .005, .01, .02, .05, .1, .25, .5, 1},
	}, []string{"tier"})
	cs = append(cs, seconds)
	m.redisSeconds, m.truthSeconds = seconds.WithLabelValues("redis"), seconds.WithLabelValues("truth")

	refused := counters("refusals_total", "Requests refused, by reason. The caller is not told which.", "reason")
	for _, r := range refusalReasons() {
		m.refusals[r] = refused.WithLabelValues(string(r))
	}
	m.unavailable = counter("unavailable_total", "Requests that nobody could say anything about (503).")
	m.shared = counter("flights_shared_total", "Look-ups that joined one already under way.")
	m.staleServed = counter("stale_served_total", "Requests served by a stale record, because the database was away.")
	m.truthBehind = counter("truth_behind_total", "Look-ups in which the database answered with less than it had announced.")
	over := counters("over_budget_total", "Look-ups that were not made, by budget.", "budget")
	m.overFlights, m.overBreaker = over.WithLabelValues("flights"), over.WithLabelValues("breaker")
	m.overTotal, m.overSource, m.overSlots = over.WithLabelValues("total"), over.WithLabelValues("source"), over.WithLabelValues("concurrency")
	m.overAsker = over.WithLabelValues("detector")

	m.changesApplied = counter("changes_applied_total", "Changes of keys that became known to this process.")
	m.feedErrors = counter("feed_errors_total", "Reads of key changes that failed.")
	m.reportErrors = counter("report_errors_total", "Reports of applied changes that failed.")
	m.changeLag = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name:    "sluice_auth_change_lag_seconds",
		Help:    "From a change to its reading here, by the database's clock.",
		Buckets: []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
	})
	cs = append(cs, m.changeLag)
	gauge("feed_age_seconds", "Since the last read of key changes began; +Inf before the first.", func() float64 {
		f := c.feed.Load()
		if f == nil {
			return math.Inf(1)
		}
		return c.since(f.readAt).Seconds()
	})
	gauge("stale_serving", "1 while stale records are being served.", func() float64 { return oneIf(c.servesStale(c.clock())) })
	gauge("tier_up_redis", "1 while the breaker before Redis is closed.", func() float64 { return oneIf(c.redisUp.closed()) })
	gauge("tier_up_truth", "1 while the breaker before the database is closed.", func() float64 { return oneIf(c.truthUp.closed()) })
	gauge("l1_keys", "Records in L1.", func() float64 { return float64(c.l1.EstimatedSize()) })
	gauge("recent_changes", "Keys whose least usable version is known.", func() float64 { return float64(c.recent.len()) })
	gauge("redis_pending_changes", "Changes that Redis may not hold yet.", func() float64 {
		if c.shared == nil {
			return 0
		}
		return float64(c.shared.pending.len())
	})

	m.stamped = counter("stamps_written_total", "First and last uses written.")
	m.stampErrors = counter("stamp_errors_total", "Flushes of stamps that failed; the stamps are kept.")
	m.stampsDropped = counter("stamps_dropped_total", "Stamps dropped because a million others were waiting already.")
	m.stampsPending = prometheus.NewGauge(prometheus.GaugeOpts{Name: "sluice_auth_stamps_pending", Help: "Keys with stamps that could not be written yet."})
	cs = append(cs, m.stampsPending)

	m.usageErrors = counter("usage_errors_total", "Writes of the usage of keys that failed; the counts are kept.")
	m.usageDropped = counter("usage_dropped_total", "Counts of one key's usage dropped because a million others were waiting already.")
	m.sendersSkipped = counter("senders_skipped_total", "Uses of keys by new senders that were not noted, because their key or the edge had too many.")
	if c.cfg.Truth.Use != nil {
		gauge("senders", "Senders of keys that are kept in memory.", func() float64 { return float64(c.usage.total.Load()) })
	}

	for _, c := range cs {
		err := reg.Register(c)
		if err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) overBudget(err error) {
	switch {
	case errors.Is(err, errOverSource):
		m.overSource.Inc()
	case errors.Is(err, errOverAsker):
		m.overAsker.Inc()
	case errors.Is(err, errOverTotal):
		m.overTotal.Inc()
	default:
		m.overSlots.Inc()
	}
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
