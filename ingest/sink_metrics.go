package ingest

import "github.com/prometheus/client_golang/prometheus"

// pauseReason is why a topic's replay stands still until somebody does something. The list is closed: it is a metric label.
type pauseReason string

const (
	pausedUnknown       pauseReason = "unknown_topic"
	pausedAuthorization pauseReason = "authorization"
	pausedNotConfigured pauseReason = "not_configured"
)

var pauseReasons = []pauseReason{pausedUnknown, pausedAuthorization, pausedNotConfigured}

type sinkMetrics struct {
	keyOverloads prometheus.Counter
	trips        prometheus.Counter
	straight     prometheus.Counter
	missed       prometheus.Counter

	replayed      prometheus.Counter
	replayedBytes prometheus.Counter
	misses        map[ErrorKind]prometheus.Counter
	held          prometheus.Gauge
	paused        map[pauseReason]prometheus.Gauge
}

// newSinkMetrics registers with reg unless it is nil; what is about the spool only where there is one.
func newSinkMetrics(s *Sink, reg prometheus.Registerer) *sinkMetrics {
	kept := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sluice_spool_kept_messages_total",
		Help: "Messages kept in the spool, by why: missed ones waited for Kafka first, for straight ones the partition was known to be sick.",
	}, []string{"why"})
	misses := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sluice_spool_replay_failures_total",
		Help: "Replays of messages of one partition that Kafka did not acknowledge, by reason. They are tried again.",
	}, []string{"kind"})
	paused := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "sluice_spool_replay_paused_topics",
		Help: "Topics whose messages stay in the spool until somebody does something, by reason. The log names them.",
	}, []string{"reason"})
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := &sinkMetrics{
		keyOverloads:  counter("sluice_ingest_key_overloads_total", "Requests refused because too many bytes of their key were under way."),
		trips:         counter("sluice_kafka_breaker_trips_total", "Times a partition that was well missed a message."),
		straight:      kept.WithLabelValues("straight"),
		missed:        kept.WithLabelValues("missed"),
		replayed:      counter("sluice_spool_replayed_messages_total", "Messages of the spool that Kafka has acknowledged."),
		replayedBytes: counter("sluice_spool_replayed_bytes_total", "Bytes of these messages, keys and headers included."),
		misses:        make(map[ErrorKind]prometheus.Counter, len(errorKinds)),
		held: prometheus.NewGauge(prometheus.GaugeOpts{Name: "sluice_spool_replay_held_partitions",
			Help: "Partitions whose messages wait in the spool because an earlier one did not get through."}),
		paused: make(map[pauseReason]prometheus.Gauge, len(pauseReasons)),
	}
	for _, k := range errorKinds {
		m.misses[k] = misses.WithLabelValues(string(k))
	}
	for _, r := range pauseReasons {
		m.paused[r] = paused.WithLabelValues(string(r))
	}
	if reg == nil {
		return m
	}
	reg.MustRegister(m.keyOverloads)
	if s.cfg.Spool != nil {
		reg.MustRegister(m.trips, kept, m.replayed, m.replayedBytes, misses, m.held, paused, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "sluice_kafka_breakers_open", Help: "Partitions that missed a message; their messages go straight to the spool.",
		}, func() float64 { return float64(s.breakers.n.Load()) }))
	}
	return m
}
