package main

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"flowstate.inc/sluice/deploy"
	"flowstate.inc/sluice/ingest"
)

// How often serve looks at its topics: something that keeps messages from being written is looked at sooner. What it has said it says again after a while.
const (
	lookAtTopics     = time.Minute
	lookAtTopicsSoon = 5 * time.Second
	sayTopicsAgain   = 10 * time.Minute
)

// A migrated is what serve knows of what sluice migrate makes: the tables, without which nobody's key can be judged, and the topics.
type migrated struct {
	db     *sql.DB
	schema atomic.Bool // it was complete once; migrations only add
	cfg    *config
	log    *slog.Logger
	gauge  *prometheus.GaugeVec

	mu       sync.Mutex
	topics   []ingest.TopicProblem
	topicErr error // they could not be looked at
	looked   bool
}

func newMigrated(c *config, db *sql.DB, reg prometheus.Registerer, log *slog.Logger) *migrated {
	m := &migrated{db: db, cfg: c, log: log, gauge: prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "sluice_kafka_topic_problems",
		Help: "Things about a topic that somebody should look at, as of the last look: fatal ones keep messages from being written. The log and /readyz name them.",
	}, []string{"topic", "severity"})}
	reg.MustRegister(m.gauge)
	return m
}

// lacksSchema says what to do where the database was never migrated, or not for this binary; "" where all is well or nobody can say.
func (m *migrated) lacksSchema(ctx context.Context) string {
	if m.schema.Load() {
		return ""
	}
	n, err := deploy.Pending(ctx, m.db, deploy.Postgres)
	switch {
	case err != nil:
		return ""
	case n == 0:
		m.schema.Store(true)
		return ""
	}
	return fmt.Sprintf("the database lacks %d migrations: run sluice migrate", n)
}

// watch looks at the topics until ctx ends, and says what is wrong when that changes and every ten minutes.
func (m *migrated) watch(ctx context.Context) error {
	k, err := m.cfg.kafkaConfig()
	if err != nil {
		return err
	}
	var said string
	var saidAt time.Time
	for {
		problems, err := ingest.CheckTopics(ctx, k, m.cfg.topicSpecs(), ingest.DefaultMaxMessageBytes)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		m.note(problems, err)
		if text := describeTopicProblems(problems); err == nil && (text != said || text != "" && time.Since(saidAt) > sayTopicsAgain) {
			said, saidAt = text, time.Now()
			m.say(problems)
		}
		wait := lookAtTopics
		if err != nil || slices.ContainsFunc(problems, func(p ingest.TopicProblem) bool { return p.Fatal }) {
			wait = lookAtTopicsSoon
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
	}
}

func (m *migrated) say(problems []ingest.TopicProblem) {
	if len(problems) == 0 {
		m.log.Info("kafka topics are as they should be")
	}
	for _, p := range problems {
		level := slog.LevelWarn
		if p.Fatal {
			level = slog.LevelError
		}
		m.log.Log(context.Background(), level, "kafka topic "+p.Message, "topic", p.Topic)
	}
}

func (m *migrated) note(problems []ingest.TopicProblem, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.looked, m.topicErr = true, err
	if err != nil {
		return // what was seen last stands
	}
	m.topics = problems
	for _, topic := range m.cfg.topics.all() {
		fatal, others := 0, 0
		for _, p := range problems {
			switch {
			case p.Topic != topic:
			case p.Fatal:
				fatal++
			default:
				others++
			}
		}
		m.gauge.WithLabelValues(topic, "fatal").Set(float64(fatal))
		m.gauge.WithLabelValues(topic, "warning").Set(float64(others))
	}
}

// topicHealth is what /readyz says of the topics.
func (m *migrated) topicHealth() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case !m.looked:
		return fmt.Errorf("not looked at yet")
	case m.topicErr != nil:
		return m.topicErr
	case len(m.topics) > 0:
		return fmt.Errorf("%s", describeTopicProblems(m.topics))
	}
	return nil
}

func describeTopicProblems(problems []ingest.TopicProblem) string {
	var parts []string
	for _, p := range problems {
		parts = append(parts, p.Topic+" "+p.Message)
	}
	return strings.Join(parts, "; ")
}

// topicSpecs are the topics as they were asked for.
func (c *config) topicSpecs() []ingest.TopicSpec {
	var specs []ingest.TopicSpec
	inSync := c.minInSync
	if inSync == 0 && c.replication >= 3 {
		inSync = 2 // the broker's own default is 1: then an acknowledged message may be on one disk only
	}
	for _, name := range c.topics.all() {
		specs = append(specs, ingest.TopicSpec{Name: name, Partitions: c.partitions, Replication: c.replication, MinInSyncReplicas: inSync})
	}
	return specs
}

// prepareTopics makes the topics that are missing and returns their names, and what is wrong with those that exist.
func (c *config) prepareTopics(ctx context.Context) ([]string, []ingest.TopicProblem, error) {
	k, err := c.kafkaConfig()
	if err != nil {
		return nil, nil, err
	}
	made, err := ingest.EnsureTopics(ctx, k, c.topicSpecs())
	if err != nil {
		return made, nil, err
	}
	// All of them exist now, but another broker than the one that was asked may not know it yet.
	for deadline := time.Now().Add(knownWithin); ; {
		problems, err := ingest.CheckTopics(ctx, k, c.topicSpecs(), ingest.DefaultMaxMessageBytes)
		if err != nil || time.Now().After(deadline) || !slices.ContainsFunc(problems, func(p ingest.TopicProblem) bool { return p.Missing }) {
			return made, problems, err
		}
		select {
		case <-ctx.Done():
			return made, problems, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// knownWithin is how long the brokers of a cluster have to tell each other of a topic that was made.
const knownWithin = 15 * time.Second
