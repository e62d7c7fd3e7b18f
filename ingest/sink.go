package ingest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"flowstate.inc/sluice/ingest/spool"
	"github.com/prometheus/client_golang/prometheus"
)

// SinkConfig is what a Sink is made of. Only Producer is needed.
type SinkConfig struct {
	Producer *Producer
	Spool    *spool.Log // nil: none, and what Kafka does not take in time is refused

	// SpoolTimeout is the longest that a message waits for the disk; 1 s.
	SpoolTimeout time.Duration

	// MaxKeyBytes bounds what may be under way for one key, so that one sender cannot use up what all share: what waits, and attempts that go on although
	// nobody waits for them. Above it deliver answers ErrOverloaded at once. A quarter of the producer's limit unless said.
	MaxKeyBytes int64

	// ReplayBytesPerSecond bounds what the drain sends beside live traffic; 32 MiB. It has one batch of at most 1 MiB under way at a time.
	ReplayBytesPerSecond int

	Registerer prometheus.Registerer // nil: no metrics are exported
	Logger     *slog.Logger          // nil: slog.Default
}

// A Sink makes messages durable: in Kafka or, when Kafka does not take them in time, in the spool.
//
// It promises that a message it calls inKafka is acknowledged by all in-sync replicas, that one it calls inSpool is fsynced, and that it answers within
// its caller's deadline for Kafka and SpoolTimeout. A message may end in both: an attempt that was given up may have been written all
// the same, under the same flowstate-msg-id.
//
// A partition that has missed a message is sick until one gets through: meanwhile its messages go to the spool without waiting, but for one probe a second,
// which the drain makes with a message that waits. It is kept by partition, not by leader: a leader that is away costs each of its partitions
// one wait, and a partition that is short of replicas leaves the others of its leader alone.
type Sink struct {
	cfg      SinkConfig
	producer *Producer
	log      *slog.Logger
	said     *logLimiter
	breakers *breakers
	metrics  *sinkMetrics

	waiting atomic.Int64 // bytes of all calls of deliver
	mu      sync.Mutex
	byKey   map[string]*keyUse
	sweepAt int        // how many keys byKey may have before those with nothing under way are looked for
	drains  sync.Mutex // one drain at a time

	fullAt atomic.Int64 // unix ns of the last time that the spool was full; 0: not since it had room
}

// NewSink returns a sink that is ready to deliver. What is in the spool already is sent by Drain.
func NewSink(cfg SinkConfig) *Sink {
	if cfg.SpoolTimeout == 0 {
		cfg.SpoolTimeout = time.Second
	}
	if cfg.MaxKeyBytes == 0 {
		cfg.MaxKeyBytes = max(cfg.Producer.cfg.MaxInFlightBytes/4, int64(cfg.Producer.cfg.MaxMessageBytes))
	}
	if cfg.ReplayBytesPerSecond == 0 {
		cfg.ReplayBytesPerSecond = 32 << 20
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	s := &Sink{cfg: cfg, producer: cfg.Producer, log: cfg.Logger, said: newLogLimiter(time.Minute), breakers: newBreakers(), byKey: map[string]*keyUse{}, sweepAt: leastSweep}
	s.metrics = newSinkMetrics(s, cfg.Registerer)
	return s
}

// A fate is what became of one message.
type fate uint8

const (
	notKept    fate = iota // neither in Kafka, for all we know, nor in the spool
	inKafka                // acknowledged by all in-sync replicas
	inSpool                // fsynced
	neverFits              // too large for Kafka as it is
	neverTaken             // invalid to Kafka for what it is
)

// errSpool is why messages that Kafka did not take were not kept either.
type errSpool struct{ err, kafka error }

func (e *errSpool) Error() string { return fmt.Sprintf("%v, and %v", e.kafka, e.err) }

func (e *errSpool) Unwrap() error { return e.err }

// deliver makes messages durable and says in fates, which has a place for each and is empty, what became of them. The error is nil if none is notKept. key is
// whose budget they count against. The end of ctx, and deadline unless it is zero, end the wait for Kafka, and SpoolTimeout after deadline the wait for the
// disk ends too, so that a request that delivers in several rounds has that time once; deliver owns messages from here on, but for
// those with a lease, which the caller holds until it returns.
func (s *Sink) deliver(ctx context.Context, deadline time.Time, key string, messages []Message, fates []fate) error {
	bytes := int64(0)
	for i := range messages {
		bytes += int64(recordSize(&messages[i]) + entryOverhead)
	}
	use, err := s.begin(key, len(messages), bytes)
	if err != nil {
		return err
	}
	defer func() {
		s.waiting.Add(-bytes)
		use.add(-bytes)
	}()
	sending, span := childSpan(ctx, "produce")
	err = s.toKafka(sending, deadline, use, messages, fates)
	kept := err == nil && !slices.Contains(fates, notKept)
	endDelivery(span, len(messages), !kept)
	if kept {
		return nil
	}
	if errors.Is(err, ErrOverloaded) || s.cfg.Spool == nil {
		return err
	}
	ctx, span = childSpan(ctx, "spool")
	err = s.toSpool(ctx, deadline, messages, fates, err)
	endDelivery(span, len(messages), err != nil)
	return err
}

// A tooMuch is why a request can never be taken, however empty the edge is: what it needs at once is over a limit.
type tooMuch struct {
	what        string
	need, limit int64
	flag        string // the limit's
}

func (e *tooMuch) Error() string {
	return fmt.Sprintf("%s %d bytes, and %d (%s) is the most at once", e.what, e.need, e.limit, e.flag)
}

// A keyUse is what is under way for one key: the bytes of its calls of deliver, and of attempts whose call has left without their end.
type keyUse struct{ bytes atomic.Int64 }

// add may be called on nil, which is nobody's.
func (u *keyUse) add(n int64) {
	if u != nil {
		u.bytes.Add(n)
	}
}

const leastSweep = 1024

// begin counts bytes against the key and against all, which bounds what waits for the leaders or the disk too. What comes alone is not held to the key's share.
func (s *Sink) begin(key string, messages int, bytes int64) (*keyUse, error) {
	if limit := s.producer.cfg.MaxInFlightBytes; bytes > limit {
		s.producer.metrics.failed(KindTooLarge, messages)
		return nil, &tooMuch{"its messages take", bytes, limit, "--max-inflight-bytes"}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.waiting.Load(); n > 0 && n+bytes > s.producer.cfg.MaxInFlightBytes {
		s.producer.metrics.failed(KindOverloaded, messages)
		return nil, ErrOverloaded
	}
	use := s.byKey[key]
	if use == nil {
		if len(s.byKey) >= s.sweepAt {
			maps.DeleteFunc(s.byKey, func(_ string, u *keyUse) bool { return u.bytes.Load() == 0 }) // it grows only here
			s.sweepAt = max(leastSweep, 2*len(s.byKey))
		}
		use = &keyUse{}
		s.byKey[key] = use
	}
	if n := use.bytes.Load(); n > 0 && n+bytes > s.cfg.MaxKeyBytes {
		s.metrics.keyOverloads.Inc()
		return nil, fmt.Errorf("%w for this key", ErrOverloaded)
	}
	use.add(bytes)
	s.waiting.Add(bytes)
	return use, nil
}

// toKafka sends what may be sent, each partition's messages by a call of their own, so that an error is about one partition. It returns the first error.
func (s *Sink) toKafka(ctx context.Context, deadline time.Time, use *keyUse, messages []Message, fates []fate) error {
	if len(messages) == 1 {
		return s.toPartition(ctx, deadline, use, s.producer.partitionOf(messages[0].Topic, messages[0].Key), messages, fates)
	}
	groups := s.producer.groupByPartition(messages)
	if len(groups) == 1 {
		return s.toPartition(ctx, deadline, use, groups[0].partition, messages, fates)
	}
	errs := make([]error, len(groups))
	var wg sync.WaitGroup
	for i, g := range groups {
		wg.Go(func() {
			sent, theirs := make([]Message, len(g.places)), make([]fate, len(g.places))
			for j, at := range g.places {
				sent[j] = messages[at]
			}
			errs[i] = s.toPartition(ctx, deadline, use, g.partition, sent, theirs)
			for j, at := range g.places { // the groups have different places
				fates[at] = theirs[j]
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if errors.Is(err, ErrOverloaded) {
			return err
		}
	}
	return errors.Join(errs...)
}

// toPartition sends messages of one partition, unless it is known to be sick.
func (s *Sink) toPartition(ctx context.Context, deadline time.Time, use *keyUse, part partitionID, messages []Message, fates []fate) error {
	probe := false
	if s.cfg.Spool != nil {
		if s.breakers.sick(part) && s.producer.Healthy() != nil {
			return nil // the look-up of the leaders tells sooner than a sender's wait
		}
		var ok bool
		if ok, probe = s.breakers.admit(part, time.Now(), liveProbeAfter); !ok {
			return nil
		}
	}
	began := time.Now()
	err := s.producer.produce(ctx, deadline, use, messages)
	if err == nil {
		for i := range fates {
			fates[i] = inKafka
		}
		s.learn(part, nil, 0, probe)
		return nil
	}
	sent, again := readResult(err, len(messages))
	copy(fates, sent)
	if again { // those that fit were not sent because of those that never will
		var rest []Message
		for i := range messages {
			if fates[i] != neverFits {
				rest = append(rest, messages[i])
			}
		}
		if len(rest) == 0 {
			s.breakers.inconclusive(part, probe)
			return nil
		}
		err = s.producer.produce(ctx, deadline, use, rest)
		sent, _ = readResult(err, len(rest))
		for i := range fates {
			if fates[i] != neverFits {
				fates[i], sent = sent[0], sent[1:]
			}
		}
	}
	s.learn(part, err, time.Since(began), probe)
	if err != nil && slices.Contains(fates, notKept) {
		return err
	}
	return nil
}

// readResult says what a call of Produce tells of each of its n messages; retry means that all but those that never fit are to be sent again.
func readResult(err error, n int) (sent []fate, retry bool) {
	sent = make([]fate, n)
	set := func(places []int, f fate) {
		for _, i := range places {
			sent[i] = f
		}
	}
	var refused *RefusedError
	var away *UnavailableError
	switch {
	case err == nil:
		for i := range sent {
			sent[i] = inKafka
		}
	case errors.As(err, &refused):
		if refused.Acked {
			for i := range sent {
				sent[i] = inKafka
			}
		}
		set(refused.TooLarge, neverFits)
		set(refused.Rejected, neverTaken)
		return sent, !refused.Acked
	case errors.As(err, &away):
		set(away.Acked, inKafka)
		set(away.TooLarge, neverFits)
		set(away.Rejected, neverTaken)
	}
	return sent, false
}

// learn keeps what a call that waited so long has told about the partition.
func (s *Sink) learn(part partitionID, err error, waited time.Duration, probe bool) {
	if s.cfg.Spool == nil {
		return // there is nowhere else to send it
	}
	var away *UnavailableError
	switch {
	case err == nil:
		s.breakers.heal(part, func() { s.log.Info("kafka takes the messages of a topic again", "topic", part.topic) })
	case errors.As(err, &away) && away.Kind == KindCancelled && waited < s.producer.cfg.Timeout/2:
		// The request was late by itself: its time was over before Kafka had its own.
		s.breakers.inconclusive(part, probe)
	case errors.As(err, &away) && away.Kind != KindClosed && !errors.Is(err, context.Canceled):
		if s.breakers.trip(part, time.Now(), func() {
			s.log.Warn("kafka does not take messages of a topic, they go to the spool", "topic", part.topic, "partition", part.index, "error", err)
		}) {
			s.metrics.trips.Inc()
		}
	default: // too much under way, messages that nobody would take, or the end: nothing about the partition
		s.breakers.inconclusive(part, probe)
	}
}

// toSpool keeps what Kafka did not take, all or none.
func (s *Sink) toSpool(ctx context.Context, deadline time.Time, messages []Message, fates []fate, why error) error {
	var entries []spool.Entry
	for i, f := range fates {
		if f == notKept {
			entries = append(entries, entryOf(&messages[i]))
		}
	}
	// The request's time for Kafka may be over, and the edge may be stopping: neither is a reason to lose it now.
	by := time.Now()
	if !deadline.IsZero() && deadline.Before(by) {
		by = deadline
	}
	ctx, cancel := context.WithDeadline(context.WithoutCancel(ctx), by.Add(s.cfg.SpoolTimeout))
	defer cancel()
	if err := s.cfg.Spool.Append(ctx, entries); err != nil {
		if why == nil {
			why = errSick
		}
		if errors.Is(err, spool.ErrFull) {
			s.full(err)
		}
		return &errSpool{err: err, kafka: why}
	}
	s.hasRoom()
	for i, f := range fates {
		if f == notKept {
			fates[i] = inSpool
		}
	}
	if why == nil {
		s.metrics.straight.Add(float64(len(entries)))
	} else {
		s.metrics.missed.Add(float64(len(entries)))
	}
	return nil
}

// spoolFullEnds is how long the spool must have refused nothing before it has room again. Near its limit it takes what is small, and what the drain has just
// made room for, and refuses the next.
const spoolFullEnds = 10 * time.Second

// full says once that the spool is full.
func (s *Sink) full(err error) {
	if s.fullAt.Swap(time.Now().UnixNano()) == 0 {
		s.log.Warn("the spool is full, senders are answered 503 until it has room", "error", err)
	}
}

// Full says whether the spool has refused something and not had room since. It is false without a spool.
func (s *Sink) Full() bool { return s.fullAt.Load() != 0 }

// hasRoom says once that the spool has room again. It is called when a message found a place, and when the drain has made some.
func (s *Sink) hasRoom() {
	if last := s.fullAt.Load(); last != 0 && time.Now().UnixNano()-last > int64(spoolFullEnds) && s.fullAt.CompareAndSwap(last, 0) {
		s.log.Info("the spool has room again")
	}
}

var errSick = errors.New("the partition does not take messages")

func entryOf(m *Message) spool.Entry {
	e := spool.Entry{Topic: m.Topic, Key: m.Key, Value: m.Value, Headers: make([]spool.Header, len(m.Headers))}
	for i, h := range m.Headers {
		e.Headers[i] = spool.Header(h)
	}
	return e
}
