package ingest

import (
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"flowstate.inc/sluice/signals"
)

// The kinds of record in the ledger. For metrics a record is a data point.
const (
	kindLogs    = "logs"
	kindSpans   = "spans"
	kindMetrics = "metrics"
	kindSignals = "signals"
)

// A count is how many records of one kind ended in one outcome.
type count struct {
	kind    string
	outcome signals.Outcome
	reason  signals.Reason
	n       int
}

// A tally gathers the outcomes of one request until its answer is decided.
type tally struct {
	counts []count
}

func (t *tally) add(kind string, o signals.Outcome, r signals.Reason, n int) {
	if n == 0 {
		return
	}
	for i := range t.counts {
		c := &t.counts[i]
		if c.kind == kind && c.outcome == o && c.reason == r {
			c.n += n
			return
		}
	}
	t.counts = append(t.counts, count{kind, o, r, n})
}

// refuse turns every outcome into this one: the sender is told that nothing of the request was taken.
func (t *tally) refuse(o signals.Outcome, r signals.Reason) {
	old := t.counts
	t.counts = nil
	for _, c := range old {
		t.add(c.kind, o, r, c.n)
	}
}

func (t *tally) total(o signals.Outcome) int {
	n := 0
	for _, c := range t.counts {
		if c.outcome == o {
			n += c.n
		}
	}
	return n
}

// A ledger holds the promise "received = sum of outcomes": a tally is added to both sides at once, when the answer is decided.
type ledger struct {
	records map[string]*records // by kind

	requests *prometheus.CounterVec
	served   map[string]prometheus.Counter // by kind: the answers that nearly all get
	children sync.Map                      // requestKey → prometheus.Counter; its keys come from closed lists only
	duration *prometheus.HistogramVec
	byKind   map[string]prometheus.Observer
	forged   prometheus.Counter

	conns, maxConns *prometheus.GaugeVec
	turnedAway      *prometheus.CounterVec
}

// listenerMetrics are of one listener.
type listenerMetrics struct {
	open    prometheus.Gauge
	refused prometheus.Counter
}

func (l *ledger) listener(name string, max int) listenerMetrics {
	l.maxConns.WithLabelValues(name).Set(float64(max))
	return listenerMetrics{l.conns.WithLabelValues(name), l.turnedAway.WithLabelValues(name)}
}

// records are the two sides of the ledger for one kind.
type records struct {
	received prometheus.Counter
	outcomes []outcomeCounter // few, and those that nearly all have come first
}

type outcomeCounter struct {
	outcome signals.Outcome
	reason  signals.Reason
	n       prometheus.Counter
}

func (r *records) counter(o signals.Outcome, reason signals.Reason) prometheus.Counter {
	for i := range r.outcomes {
		if c := &r.outcomes[i]; c.reason == reason && c.outcome == o {
			return c.n
		}
	}
	panic("BUG: outcome " + string(o) + " has no reason " + string(reason))
}

type requestKey struct {
	kind   string
	code   int
	reason refusal
}

func newLedger(reg prometheus.Registerer) *ledger {
	received := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sluice_ingest_records_received_total",
		Help: "Records decoded from authenticated requests, counted when the answer is decided. For metrics a record is a data point.",
	}, []string{"kind"})
	outcomes := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sluice_ingest_records_total",
		Help: "What the sender was told of each record received. Received equals the sum of outcomes.",
	}, []string{"kind", "outcome", "reason"})
	l := &ledger{
		records: map[string]*records{},
		served:  map[string]prometheus.Counter{},
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_ingest_requests_total",
			Help: "Requests to the edge by the code of their answer and the reason for it. Those by gRPC have the HTTP code that means the same.",
		}, []string{"kind", "code", "reason"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "sluice_ingest_request_duration_seconds",
			Help: "Time from the last byte of a request's body to its answer, acknowledgement by Kafka included.",
			// From a cached refusal (tens of microseconds) to the 8 s within which every answer is given.
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 4, 8},
		}, []string{"kind"}),
		byKind: map[string]prometheus.Observer{},
		forged: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_ingest_forged_attributes_total",
			Help: "Attributes under flowstate. that clients sent and the edge removed.",
		}),
		conns: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sluice_ingest_connections",
			Help: "Open connections of clients.",
		}, []string{"listener"}),
		maxConns: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sluice_ingest_connections_limit",
			Help: "How many connections of clients may be open (--max-connections).",
		}, []string{"listener"}),
		turnedAway: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_ingest_connections_refused_total",
			Help: "Connections that were turned away because too many were open.",
		}, []string{"listener"}),
	}
	reg.MustRegister(received, outcomes, l.requests, l.duration, l.forged, l.conns, l.maxConns, l.turnedAway)
	for _, kind := range []string{kindLogs, kindSpans, kindMetrics, kindSignals} {
		of := &records{received: received.WithLabelValues(kind)}
		for _, outcome := range []signals.Outcome{signals.Accepted, signals.Filtered, signals.Invalid, signals.Unavailable} {
			for _, r := range signals.Reasons[outcome] {
				of.outcomes = append(of.outcomes, outcomeCounter{outcome, r, outcomes.WithLabelValues(kind, string(outcome), string(r))})
			}
		}
		l.records[kind] = of
	}
	// What alerts are about exists from the start: rate() does not see the increase of a series that begins above 0.
	for _, kind := range []string{kindLogs, kindSpans, kindMetrics, kindSignals, kindWhoami, kindOther} {
		l.byKind[kind] = l.duration.WithLabelValues(kind)
		l.answers(requestKey{kind, 500, panicked})
	}
	for _, kind := range []string{kindLogs, kindSpans, kindMetrics, kindSignals} {
		l.served[kind] = l.answers(requestKey{kind, 200, served})
		for _, reason := range []refusal{authAway, kafkaAway, spoolFull, overloaded, subjectAway, stopping} {
			l.answers(requestKey{kind, 503, reason})
		}
	}
	return l
}

// settle adds a decided tally to both sides of the ledger.
func (l *ledger) settle(t *tally) {
	for _, c := range t.counts {
		of, n := l.records[c.kind], float64(c.n)
		of.received.Add(n)
		of.counter(c.outcome, c.reason).Add(n)
	}
}

func (l *ledger) request(kind string, code int, reason refusal, took time.Duration) {
	if n := l.served[kind]; n != nil && code == 200 && reason == served {
		n.Inc()
	} else {
		l.answers(requestKey{kind, code, reason}).Inc()
	}
	l.byKind[kind].Observe(took.Seconds())
}

func (l *ledger) answers(key requestKey) prometheus.Counter {
	c, ok := l.children.Load(key)
	if !ok {
		c, _ = l.children.LoadOrStore(key, l.requests.WithLabelValues(key.kind, strconv.Itoa(key.code), string(key.reason)))
	}
	return c.(prometheus.Counter)
}
