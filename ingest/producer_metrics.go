package ingest

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type producerMetrics struct {
	byTopic        map[string]topicCounters
	failures       map[ErrorKind]prometheus.Counter
	attempts       map[ErrorKind]prometheus.Counter
	retries        prometheus.Counter
	metadataErrors prometheus.Counter
	duration       prometheus.Histogram
}

type topicCounters struct{ messages, bytes prometheus.Counter }

// newProducerMetrics registers with reg unless it is nil.
func newProducerMetrics(p *Producer, reg prometheus.Registerer) *producerMetrics {
	messages := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sluice_kafka_produced_messages_total",
		Help: "Messages acknowledged by all in-sync replicas.",
	}, []string{"topic"})
	bytes := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sluice_kafka_produced_bytes_total",
		Help: "Bytes of these messages before compression, keys and headers included.",
	}, []string{"topic"})
	failures := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sluice_kafka_produce_failed_messages_total",
		Help: "Messages that were given up, by reason; a later try of the caller counts anew.",
	}, []string{"kind"})
	attempts := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sluice_kafka_produce_errors_total",
		Help: "Attempts to write a batch to a partition that failed, by reason; most of them are repeated.",
	}, []string{"kind"})
	m := &producerMetrics{
		byTopic:  make(map[string]topicCounters, len(p.cfg.Topics)),
		failures: make(map[ErrorKind]prometheus.Counter, len(errorKinds)),
		attempts: make(map[ErrorKind]prometheus.Counter, len(errorKinds)),
		retries: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_kafka_produce_retries_total",
			Help: "Batches that are tried again after a failed attempt.",
		}),
		metadataErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_kafka_metadata_errors_total",
			Help: "Look-ups of the partitions' leaders that no broker answered.",
		}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "sluice_kafka_produce_request_duration_seconds",
			Help:    "From forming a produce request to its answer or failure, connecting included.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2, 4},
		}),
	}
	for _, t := range p.cfg.Topics {
		m.byTopic[t] = topicCounters{messages: messages.WithLabelValues(t), bytes: bytes.WithLabelValues(t)}
	}
	for _, k := range errorKinds {
		m.failures[k] = failures.WithLabelValues(string(k))
		m.attempts[k] = attempts.WithLabelValues(string(k))
	}
	if reg == nil {
		return m
	}
	gauge := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f)
	}
	reg.MustRegister(messages, bytes, failures, attempts, m.retries, m.metadataErrors, m.duration,
		gauge("sluice_kafka_in_flight_bytes", "Bytes of messages that wait for Kafka or are under way.",
			func() float64 { return float64(p.inFlight.Load()) }),
		gauge("sluice_kafka_in_flight_bytes_limit", "Above this many bytes in flight calls are refused.",
			func() float64 { return float64(p.cfg.MaxInFlightBytes) }),
		gauge("sluice_kafka_queued_messages", "Messages that wait for a request or another try.",
			func() float64 { return float64(p.queued.Load()) }),
		gauge("sluice_kafka_brokers", "Brokers that lead partitions of our topics, as last heard.",
			func() float64 { return float64(p.State().Brokers) }),
		gauge("sluice_kafka_brokers_reachable", "Of these, the ones whose last exchange with us went well.",
			func() float64 { return float64(p.State().Reachable) }),
		gauge("sluice_kafka_metadata_age_seconds", "Since a broker last told us the partitions' leaders.",
			func() float64 { return p.State().MetadataAge.Seconds() }),
	)
	return m
}

func (m *producerMetrics) topic(name string) topicCounters { return m.byTopic[name] }
func (m *producerMetrics) failed(kind ErrorKind, messages int) {
	m.failures[kind].Add(float64(messages))
}
func (m *producerMetrics) attemptFailed(kind ErrorKind) { m.attempts[kind].Inc() }
func (m *producerMetrics) retried()                     { m.retries.Inc() }
func (m *producerMetrics) metadataFailed()              { m.metadataErrors.Inc() }
func (m *producerMetrics) request(took time.Duration)   { m.duration.Observe(took.Seconds()) }
