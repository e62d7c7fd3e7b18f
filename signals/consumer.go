package signals

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/segmentio/kafka-go"
)

// ConsumerConfig is what a Consumer is made of. Brokers, Store, DeadLetter and Logger are required.
type ConsumerConfig struct {
	Brokers []string
	Dialer  *kafka.Dialer // for TLS and SASL; nil: plain
	Topic   string        // default ai_signals
	Group   string        // default sluice-alerts
	Store   *Store

	// DeadLetter keeps a message that can never be read. It returns nil only when the message is acknowledged by all in-sync
	// replicas of the dead letters' topic: the offset is committed after that. ErrTooLarge: it will never take one of that size.
	DeadLetter func(ctx context.Context, m DeadLetter) error

	Batch  int           // most messages in one transaction; default 500
	Linger time.Duration // how long a batch waits to become full; default 20 ms
	// SessionTimeout is how long the partitions of a consumer that died are idle. Default 6 s, the shortest that brokers take
	// unless group.min.session.timeout.ms says otherwise.
	SessionTimeout time.Duration

	Registerer prometheus.Registerer
	Logger     *slog.Logger
}

// ErrTooLarge is what ConsumerConfig.DeadLetter says of a message that no retry makes fit.
var ErrTooLarge = errors.New("the message is too large")

// A DeadLetter is a message that could not be read, as it was, with headers that say where it stood and why it is here. One that with
// them is too large is cut, and sluice-dead-bytes says how large its value was.
type DeadLetter struct {
	Key     []byte
	Value   []byte
	Headers []Header
}

// A Consumer moves signals from Kafka into Alerts, each exactly once by its id. Offsets are committed after the store, so a
// crash at any moment only means that some messages are read again. While the store is away it waits, reads nothing
// further and stays in its group.
type Consumer struct {
	cfg     ConsumerConfig
	metrics consumerMetrics
	said    *QuietLog
	topics  Topics

	mu         sync.Mutex
	lag        map[int]int64 // by partition, as of its last message
	next       map[int]int64 // by partition: the offset after what was settled in this session
	generation int           // of the partitions that are ours
}

type consumerMetrics struct {
	stored, duplicate, dead prometheus.Counter
	storeFails, deadFails   prometheus.Counter
	commitFails, topicFails prometheus.Counter
	paused, lag             prometheus.Gauge
	delay                   prometheus.Histogram
}

// NewConsumer returns a Consumer that has not connected yet.
func NewConsumer(cfg ConsumerConfig) *Consumer {
	if cfg.Topic == "" {
		cfg.Topic = "ai_signals"
	}
	if cfg.Group == "" {
		cfg.Group = "sluice-alerts"
	}
	if cfg.Batch == 0 {
		cfg.Batch = 500
	}
	if cfg.Linger == 0 {
		cfg.Linger = 20 * time.Millisecond
	}
	if cfg.SessionTimeout == 0 {
		cfg.SessionTimeout = 6 * time.Second
	}
	messages := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sluice_alerts_messages_total",
		Help: "Messages of the signals topic that are settled, by what became of them."}, []string{"outcome"})
	fails := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sluice_alerts_failures_total",
		Help: "Tries of the alerts consumer that failed and are repeated, by step."}, []string{"step"})
	m := consumerMetrics{
		stored: messages.WithLabelValues("stored"), duplicate: messages.WithLabelValues("duplicate"), dead: messages.WithLabelValues("dead_lettered"),
		storeFails: fails.WithLabelValues("store"), deadFails: fails.WithLabelValues("dead_letter"), commitFails: fails.WithLabelValues("commit"), topicFails: fails.WithLabelValues("topic"),
		paused: prometheus.NewGauge(prometheus.GaugeOpts{Name: "sluice_alerts_paused", Help: "1 while the alerts consumer waits for its store or for the dead letters' topic."}),
		lag:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "sluice_alerts_lag_messages", Help: "Messages of this consumer's partitions that it has not settled, as of the last it read."}),
		delay: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "sluice_alerts_delay_seconds",
			Help: "Time from the edge's receipt of a signal to its row in Alerts.",
			// Live pages promise two seconds; what was spooled or waited for a store comes hours later.
			Buckets: []float64{.05, .1, .25, .5, 1, 2, 5, 15, 60, 600, 3600, 14400}}),
	}
	if cfg.Registerer != nil {
		cfg.Registerer.MustRegister(messages, fails, m.paused, m.lag, m.delay)
	}
	said := NewQuietLog(cfg.Logger)
	return &Consumer{cfg: cfg, metrics: m, lag: map[int]int64{}, next: map[int]int64{}, said: said,
		topics: Topics{Brokers: cfg.Brokers, Dialer: cfg.Dialer, Names: []string{cfg.Topic}, Reader: "alerts consumer", Failures: m.topicFails, Log: said}}
}

const (
	retryMin = 200 * time.Millisecond
	retryMax = 10 * time.Second
	// lastCommit bounds the commit of what was stored when the consumer is told to stop.
	lastCommit = 2 * time.Second
)

// Run consumes until ctx ends, and then leaves the group. It returns ctx's error. A topic that is missing is waited for.
func (c *Consumer) Run(ctx context.Context) error {
	for {
		partitions, ok := c.topics.Await(ctx)
		if !ok {
			return ctx.Err()
		}
		session, end := context.WithCancel(ctx)
		var watch sync.WaitGroup
		watch.Go(func() { c.topics.Watch(session, partitions, end) })
		c.consume(session, end)
		end()
		watch.Wait()
	}
}

// consume is a member of the group until ctx ends; end does that.
func (c *Consumer) consume(ctx context.Context, end func()) {
	c.mu.Lock()
	clear(c.next)
	c.mu.Unlock()
	r := kafka.NewReader(kafka.ReaderConfig{
		Brokers: c.cfg.Brokers, Dialer: c.cfg.Dialer, Topic: c.cfg.Topic, GroupID: c.cfg.Group,
		StartOffset: kafka.FirstOffset, // a group that is new has missed nothing
		MinBytes:    1, MaxBytes: 16 << 20, MaxWait: time.Second, QueueCapacity: 2 * c.cfg.Batch,
		JoinGroupBackoff: 200 * time.Millisecond, // its default of 5 s is what a first start would wait
		SessionTimeout:   c.cfg.SessionTimeout, HeartbeatInterval: c.cfg.SessionTimeout / 3, RebalanceTimeout: c.cfg.SessionTimeout,
		ReadBackoffMin: 50 * time.Millisecond, ReadBackoffMax: time.Second,
		ErrorLogger: c.said.Complaints("alerts consumer"), OffsetOutOfRangeError: true,
	})
	var watch sync.WaitGroup
	watch.Go(func() { c.watchGroup(ctx, r) })
	watch.Go(func() { c.watchEnds(ctx, r, end) })
	defer watch.Wait()
	defer end()
	defer func() {
		if err := r.Close(); err != nil {
			c.cfg.Logger.Warn("alerts consumer did not leave its group", "error", err)
		}
	}()
	for {
		generation := c.current()
		batch, err := c.fetch(ctx, r)
		if len(batch) == 0 {
			if ctx.Err() != nil {
				return
			}
			if errors.Is(err, kafka.OffsetOutOfRange) {
				c.rewind(ctx, r)
				pause(ctx, retryMin)
				return
			}
			c.said.Say(slog.LevelWarn, "read", "alerts consumer cannot read", "error", err)
			if !pause(ctx, retryMin) {
				return
			}
			continue
		}
		c.said.Well(ReadsWell, "alerts consumer reads again")
		if !c.settle(ctx, batch) {
			return
		}
		c.commit(ctx, r, batch)
		c.noteLag(generation, batch)
		if errors.Is(err, kafka.OffsetOutOfRange) {
			c.rewind(ctx, r)
			return
		}
	}
}

// fetch waits for a message and takes what comes within the linger. With a batch its error is nil, or OffsetOutOfRange, which does not come again.
func (c *Consumer) fetch(ctx context.Context, r *kafka.Reader) ([]kafka.Message, error) {
	m, err := r.FetchMessage(ctx)
	if err != nil {
		return nil, err
	}
	batch := []kafka.Message{m}
	soon, cancel := context.WithTimeout(ctx, c.cfg.Linger)
	defer cancel()
	for len(batch) < c.cfg.Batch {
		m, err := r.FetchMessage(soon)
		if errors.Is(err, kafka.OffsetOutOfRange) {
			return batch, err
		}
		if err != nil {
			break // the linger is over; a real error comes again
		}
		batch = append(batch, m)
	}
	return batch, nil
}

// settle stores what is an event and keeps what is none as a dead letter. It returns false only when ctx ended before all was
// settled; then nothing of the batch is committed.
func (c *Consumer) settle(ctx context.Context, batch []kafka.Message) bool {
	good := make([]Received, 0, len(batch))
	from := make([]kafka.Message, 0, len(batch))
	for _, m := range batch {
		e, err := DecodeEvent(m.Value)
		if err != nil {
			if !c.bury(ctx, m, err) {
				return false
			}
			continue
		}
		good, from = append(good, Received{e, m.Value}), append(from, m)
	}
	err := c.store(ctx, good)
	if !errors.Is(err, ErrNotAnEvent) {
		return err == nil
	}
	// One of them can never be stored: one by one, the others pass.
	for i := range good {
		err := c.store(ctx, good[i:i+1])
		switch {
		case errors.Is(err, ErrNotAnEvent):
			if !c.bury(ctx, from[i], err) {
				return false
			}
		case err != nil:
			return false
		}
	}
	return true
}

// store puts events into the store, again and again until it takes them. Its errors are ErrNotAnEvent and ctx's.
func (c *Consumer) store(ctx context.Context, batch []Received) error {
	if len(batch) == 0 {
		return nil
	}
	wait := retryMin
	away := NewQuietLog(c.cfg.Logger) // this batch's
	for {
		n, err := c.cfg.Store.Put(ctx, batch)
		if err == nil {
			c.metrics.paused.Set(0)
			away.Well(0, "alerts are stored again")
			c.metrics.stored.Add(float64(n))
			c.metrics.duplicate.Add(float64(len(batch) - n))
			now := time.Now()
			for _, r := range batch {
				c.metrics.delay.Observe(now.Sub(r.Event.ReceivedAt).Seconds())
			}
			return nil
		}
		if errors.Is(err, ErrNotAnEvent) {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		c.metrics.storeFails.Inc()
		c.metrics.paused.Set(1)
		away.Say(slog.LevelWarn, "store", "alerts cannot be stored; the consumer waits", "error", err, "signals", len(batch))
		if !pause(ctx, wait) {
			return ctx.Err()
		}
		wait = min(2*wait, retryMax)
	}
}

// bury keeps a message that can never be read, until that is acknowledged. It returns false when ctx ended before.
func (c *Consumer) bury(ctx context.Context, m kafka.Message, why error) bool {
	d := DeadLetter{Key: m.Key, Value: m.Value}
	for _, h := range m.Headers {
		d.Headers = append(d.Headers, Header{h.Key, h.Value})
	}
	d.Headers = append(d.Headers,
		Header{"sluice-dead-reason", []byte(why.Error())}, Header{"sluice-dead-topic", []byte(m.Topic)},
		Header{"sluice-dead-partition", []byte(strconv.Itoa(m.Partition))}, Header{"sluice-dead-offset", []byte(strconv.FormatInt(m.Offset, 10))})
	cut, wait := false, retryMin
	for {
		err := c.cfg.DeadLetter(ctx, d)
		if err == nil {
			c.metrics.paused.Set(0)
			c.metrics.dead.Inc()
			c.cfg.Logger.Error("signal cannot be read; it is in the dead letters", "partition", m.Partition, "offset", m.Offset, "error", why, "cut", cut)
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		if errors.Is(err, ErrTooLarge) && d.cut(len(m.Value)) {
			cut = true
			continue
		}
		c.metrics.deadFails.Inc()
		c.metrics.paused.Set(1)
		c.cfg.Logger.Warn("dead letter cannot be kept; the consumer waits", "error", err, "wait", wait)
		if !pause(ctx, wait) {
			return false
		}
		wait = min(2*wait, retryMax)
	}
}

const deadBytes = "sluice-dead-bytes"

// cut makes a dead letter smaller: it halves the value, and then drops what the message had beside it. It returns false when nothing is left to go.
func (d *DeadLetter) cut(was int) bool {
	own := func(h Header) bool { return !strings.HasPrefix(h.Key, "sluice-dead-") }
	switch {
	case len(d.Value) > 0:
		d.Value = d.Value[:len(d.Value)/2]
	case slices.ContainsFunc(d.Headers, own):
		d.Headers = slices.DeleteFunc(d.Headers, own)
	case len(d.Key) > 0:
		d.Key = nil
	default:
		return false
	}
	if d.Headers[len(d.Headers)-1].Key != deadBytes {
		d.Headers = append(d.Headers, Header{deadBytes, []byte(strconv.Itoa(was))})
	}
	return true
}

// commit says that a batch is settled. One that fails is read again by whoever has the partition next, and stored once all
// the same. What was stored just as ctx ended is committed too.
func (c *Consumer) commit(ctx context.Context, r *kafka.Reader, batch []kafka.Message) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastCommit)
	defer cancel()
	if err := r.CommitMessages(ctx, batch...); err != nil {
		c.metrics.commitFails.Inc()
		c.cfg.Logger.Warn("offsets cannot be committed; these messages may be read again", "error", err, "messages", len(batch))
	}
}

func (c *Consumer) current() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.generation
}

// noteLag keeps how far the partitions of a batch are behind, unless they were shared out anew since it was begun: they may be somebody else's.
func (c *Consumer) noteLag(generation int, batch []kafka.Message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range batch {
		c.next[m.Partition] = m.Offset + 1
	}
	if generation != c.generation {
		return
	}
	for _, m := range batch {
		c.lag[m.Partition] = max(0, m.HighWaterMark-m.Offset-1)
	}
	var lag int64
	for _, n := range c.lag {
		lag += n
	}
	c.metrics.lag.Set(float64(lag))
}

// watchGroup forgets how far partitions are behind when the group shares them out anew: what is still ours is known again with its next message.
func (c *Consumer) watchGroup(ctx context.Context, r *kafka.Reader) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		if r.Stats().Rebalances > 0 {
			c.shared()
		}
		select {
		case <-ctx.Done():
			c.shared()
			return
		case <-tick.C:
		}
	}
}

func (c *Consumer) shared() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.generation++
	clear(c.lag)
	c.metrics.lag.Set(0)
}

// pause waits, a little more or less so that several consumers do not knock at once. It returns false when ctx ended.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d/2 + rand.N(d))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
