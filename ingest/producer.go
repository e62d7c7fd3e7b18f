package ingest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/segmentio/kafka-go/compress"
)

// Defaults of ProducerConfig.
const (
	DefaultMaxMessageBytes  = 1 << 20  // Kafka's own default of max.message.bytes is 1 MiB + 12
	DefaultMaxInFlightBytes = 64 << 20 // in all calls of one producer
	DefaultProduceTimeout   = 4 * time.Second
	DefaultMetadataTTL      = time.Second
)

const (
	maxBatchMessages = 4096     // of one partition in one request
	maxRequestBytes  = 16 << 20 // one request; far below a broker's socket.request.max.bytes (100 MiB)
	entryOverhead    = 128      // what a waiting message costs us beside its bytes
)

// ProducerConfig configures a Producer. Brokers and Topics are needed, everything else has a default.
type ProducerConfig struct {
	KafkaConfig

	// Topics are the topics that Produce may name; their metadata is what the producer keeps fresh.
	Topics []string

	// MaxMessageBytes bounds one message as Kafka counts it (MessageSize), and the batch it travels in: at most the topics'
	// max.message.bytes. Sizes are taken before compression.
	MaxMessageBytes int

	// MaxInFlightBytes bounds the bytes of all messages that wait or are under way. A message counts until its attempt has
	// ended, not until its caller has left. Above it Produce answers ErrOverloaded at once.
	MaxInFlightBytes int64

	// Timeout is the longest that Produce waits for Kafka, and the time after which a message is given up.
	Timeout time.Duration

	// MetadataTTL is how often the leaders are looked up while nothing hints at a change (when something does: at once).
	MetadataTTL time.Duration

	// Compression of the batches; none unless said.
	Compression compress.Compression

	// Idempotent numbers the batches, so that one that is sent again, because its answer was lost, is not written again. What
	// the caller sends again is. Brokers before Kafka 3.0 want the right IDEMPOTENT_WRITE on the cluster for it.
	Idempotent bool

	Registerer prometheus.Registerer // nil: no metrics are exported
	Logger     *slog.Logger          // nil: slog.Default
}

func (c ProducerConfig) withDefaults() ProducerConfig {
	if c.MaxMessageBytes == 0 {
		c.MaxMessageBytes = DefaultMaxMessageBytes
	}
	if c.MaxInFlightBytes == 0 {
		c.MaxInFlightBytes = DefaultMaxInFlightBytes
	}
	if c.Timeout == 0 {
		c.Timeout = DefaultProduceTimeout
	}
	if c.MetadataTTL == 0 {
		c.MetadataTTL = DefaultMetadataTTL
	}
	if c.ClientID == "" {
		c.ClientID = "sluice"
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c
}

func (c *ProducerConfig) check() error {
	if err := c.KafkaConfig.check(); err != nil {
		return err
	}
	if len(c.Topics) == 0 {
		return errors.New("kafka: no topics given")
	}
	for _, t := range c.Topics {
		if t == "" {
			return errors.New("kafka: a topic has no name")
		}
	}
	switch {
	case c.MaxMessageBytes < 1<<10 || c.MaxMessageBytes > maxRequestBytes:
		return fmt.Errorf("kafka: a message limit of %d bytes is outside 1 KiB to %d MiB", c.MaxMessageBytes, maxRequestBytes>>20)
	case c.MaxInFlightBytes < int64(c.MaxMessageBytes):
		return fmt.Errorf("kafka: %d bytes in flight do not hold one message of %d bytes", c.MaxInFlightBytes, c.MaxMessageBytes)
	case c.Timeout < 100*time.Millisecond:
		return fmt.Errorf("kafka: a produce timeout of %v is below 100 ms", c.Timeout)
	case c.MetadataTTL < 50*time.Millisecond:
		return fmt.Errorf("kafka: a metadata TTL of %v is below 50 ms", c.MetadataTTL)
	case c.Compression != 0 && c.Compression.Codec() == nil:
		return fmt.Errorf("kafka: unknown compression %d", c.Compression)
	}
	return nil
}

// A Producer writes messages to Kafka with acks=all and says when they are there.
//
// Each message of a call is put into the queue of its partition. Whenever a broker has a free request slot, everything
// that waits for partitions it leads goes in one request, at once: there is no linger. A partition has at most one request
// under way, so messages of one key keep the order in which calls were made one after another, retries included. What can
// be retried is retried until the timeout; what timed out before it was sent is dropped unsent.
//
// It promises that a nil error means acknowledged by all in-sync replicas, that an answer comes within Timeout, and that
// memory is bounded by MaxInFlightBytes. It does not promise that a failed message is not in Kafka: an attempt that was
// given up may still have been written (UnavailableError.MaybeWritten).
//
// While a partition, or all of Kafka, has failed for longer than Timeout, further calls fail at once, except for one that
// is let through at a time to find out whether it is back.
type Producer struct {
	cfg     ProducerConfig
	dialer  *kafkaDialer
	log     *slog.Logger
	metrics *producerMetrics
	said    *logLimiter

	view     atomic.Pointer[kafkaView] // nil until the first metadata answer
	contact  atomic.Int64              // unix ns of the last metadata answer; the start before any
	lastErr  atomic.Pointer[error]     // of the last metadata refresh; nil when it went well
	kicks    chan struct{}             // asks for fresh metadata now
	round    atomic.Pointer[metaRound]
	inFlight atomic.Int64 // bytes
	queued   atomic.Int64 // messages not on the wire

	ctx    context.Context // ends with the producer
	cancel context.CancelFunc
	wg     sync.WaitGroup
	calls  sync.Pool // *produceCall
	spare  sync.Pool // *produceBatch

	mu      sync.Mutex
	topics  map[string][]*kafkaPartition
	brokers map[int32]*kafkaBroker
	slots   map[*kafkaSlot]struct{}
	waiting callList      // calls whose callers wait
	open    int           // messages not yet decided
	closing chan struct{} // closed by Close: no more calls
	drained chan struct{} // closed when closing and open is 0
	stopped bool

	producerID producerID // for partitions that need one; with Idempotent
}

// NewProducer starts a producer. It does not wait for Kafka and fails on wrong configuration only. Close ends it.
func NewProducer(cfg ProducerConfig) (*Producer, error) {
	cfg = cfg.withDefaults()
	if err := cfg.check(); err != nil {
		return nil, err
	}
	dialer, err := newKafkaDialer(cfg.KafkaConfig)
	if err != nil {
		return nil, err
	}
	p := &Producer{
		cfg:     cfg,
		dialer:  dialer,
		log:     cfg.Logger,
		said:    newLogLimiter(10 * time.Second),
		kicks:   make(chan struct{}, 1),
		topics:  make(map[string][]*kafkaPartition),
		brokers: make(map[int32]*kafkaBroker),
		slots:   make(map[*kafkaSlot]struct{}),
		closing: make(chan struct{}),
		drained: make(chan struct{}),
	}
	p.metrics = newProducerMetrics(p, cfg.Registerer)
	p.contact.Store(time.Now().UnixNano())
	p.round.Store(newMetaRound())
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.wg.Add(2)
	go p.watch()
	go p.sweep()
	return p, nil
}

// Produce writes msgs and returns when all of them are acknowledged by all in-sync replicas (nil), or when that has failed,
// Timeout has passed or ctx has ended. The end of ctx ends the wait, not the attempt. Errors:
//
//   - *RefusedError: Kafka will never take some messages; it says which, and whether the others are written;
//   - ErrOverloaded: too many bytes wait already; nothing was written;
//   - ErrKafkaUnavailable, always as *UnavailableError: some may be written, others not.
//
// Produce owns msgs, the slice and all bytes in it, from here on: they must not be changed, not even after it has returned.
func (p *Producer) Produce(ctx context.Context, msgs []Message) error {
	return p.produce(ctx, time.Time{}, nil, msgs)
}

// produce is Produce with a deadline for the wait, unless it is zero. Who has one may find himself sending what waits for an idle broker, his own messages
// among it: the end of ctx then ends the wait only when that attempt has ended, which it does before the deadline. Of a message with a lease it holds the
// lease until the attempt has ended, and the list of messages must be the lease's too, or nobody's. use has the bytes of attempts that go on when it returns.
func (p *Producer) produce(ctx context.Context, deadline time.Time, use *keyUse, msgs []Message) error {
	if len(msgs) == 0 {
		return nil
	}
	if ctx.Err() != nil {
		return p.refuse(&UnavailableError{Kind: KindCancelled, Err: context.Cause(ctx)}, len(msgs))
	}
	if err := p.checkSizes(msgs); err != nil {
		return err
	}
	now := time.Now()
	wait := p.cfg.Timeout
	if !deadline.IsZero() {
		if wait = min(wait, deadline.Sub(now)); wait <= 0 {
			return p.refuse(&UnavailableError{Kind: KindCancelled, Err: context.DeadlineExceeded}, len(msgs))
		}
	}
	c := p.newCall(ctx, len(msgs), now, wait)
	c.use = use
	if err := p.route(ctx, c, msgs); err != nil {
		p.recycle(c)
		return err
	}
	now = time.Now() // finding the partitions may have taken a while
	slot, err := p.enqueue(c, msgs, now, !deadline.IsZero() && c.until.Sub(now) >= p.attempt())
	if err != nil {
		p.recycle(c)
		return err
	}
	if slot != nil {
		slot.once(now)
	}
	<-c.done
	if c.late {
		return p.leave(c)
	}
	err = c.result()
	p.recycle(c)
	return err
}

// checkSizes refuses the whole call before anything of it is sent when a message cannot pass.
func (p *Producer) checkSizes(msgs []Message) error {
	var large []int
	for i := range msgs {
		if MessageSize(&msgs[i]) > p.cfg.MaxMessageBytes {
			large = append(large, i)
		}
	}
	if large == nil {
		return nil
	}
	p.metrics.failed(KindTooLarge, len(large))
	return &RefusedError{TooLarge: large}
}

// Healthy says whether Kafka looks able to take messages now, without asking it: an error when no broker has answered
// lately or the last look-up of the leaders failed.
func (p *Producer) Healthy() error {
	if e := p.lastErr.Load(); e != nil {
		return &UnavailableError{Kind: kindOf(*e), Err: *e}
	}
	if p.view.Load() == nil {
		return &UnavailableError{Kind: KindConnection, Err: errNoMetadata}
	}
	return nil
}

// Ping asks Kafka for fresh metadata and returns nil when it answered.
func (p *Producer) Ping(ctx context.Context) error {
	if err := p.awaitMetadata(ctx, time.Time{}); err != nil {
		return err
	}
	return p.Healthy()
}

// ProducerState is what a readiness page shows of a Producer.
type ProducerState struct {
	Brokers       int           // in the cluster, as last heard
	Reachable     int           // of these, the ones whose last exchange with us went well
	MetadataAge   time.Duration // since a broker last told us the leaders
	InFlightBytes int64
	Queued        int64 // messages not on the wire
	Err           error // of the last look-up of the leaders
}

// State describes the producer's view of Kafka.
func (p *Producer) State() ProducerState {
	s := ProducerState{
		MetadataAge:   time.Since(time.Unix(0, p.contact.Load())),
		InFlightBytes: p.inFlight.Load(),
		Queued:        p.queued.Load(),
	}
	if e := p.lastErr.Load(); e != nil {
		s.Err = *e
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s.Brokers = len(p.brokers)
	for _, b := range p.brokers {
		if b.reachable.Load() {
			s.Reachable++
		}
	}
	return s
}

// Close stops taking messages, writes what is queued until ctx ends, and fails the rest. It returns nil when everything was
// decided by Kafka, and never hangs. The producer is of no use afterwards.
func (p *Producer) Close(ctx context.Context) error {
	p.mu.Lock()
	first := !p.isClosing()
	if first {
		close(p.closing)
		if p.open == 0 {
			close(p.drained)
		}
	}
	p.mu.Unlock()

	select {
	case <-p.drained:
	case <-ctx.Done():
	}
	left := p.stop()
	p.wg.Wait()
	if left > 0 {
		return &UnavailableError{Kind: KindClosed, MaybeWritten: true, Err: fmt.Errorf("%d messages were not acknowledged before the producer had to close", left)}
	}
	return nil
}

// stop ends everything that runs and fails what is still open; it returns how many messages that were.
func (p *Producer) stop() int {
	p.cancel() // ends dials, waits and metadata requests
	p.mu.Lock()
	defer p.mu.Unlock()
	left := p.open
	p.stopped = true
	for _, b := range p.brokers {
		b.retire()
	}
	for s := range p.slots { // those of brokers already retired too
		if s.conn != nil {
			s.conn.close()
		}
	}
	for _, parts := range p.topics {
		for _, part := range parts {
			p.failWaiting(part, &UnavailableError{Topic: part.topic, Kind: KindClosed, Err: ErrProducerClosed})
		}
	}
	return left
}

// isClosing needs no lock to be right, but Produce decides under p.mu.
func (p *Producer) isClosing() bool {
	select {
	case <-p.closing:
		return true
	default:
		return false
	}
}
