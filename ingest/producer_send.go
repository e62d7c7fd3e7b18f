package ingest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/produce"
)

// slotsPerBroker is how many requests may be under way to one broker, each with its own connection and never two with the
// same partition. Two, so that one partition whose followers are slow does not hold up all the others of its broker. The second is used only
// when the first has been under way for patience: one request with all that waits costs both sides less than two with a half each.
const (
	slotsPerBroker = 2
	patience       = 10 * time.Millisecond
)

const (
	firstBackoff = 20 * time.Millisecond
	maxBackoff   = 500 * time.Millisecond
)

// A kafkaBroker leads some of our partitions. Fields without atomics are guarded by Producer.mu.
type kafkaBroker struct {
	p    *Producer
	id   int32
	addr string

	reachable atomic.Bool  // the last exchange went well
	seen      atomic.Int64 // unix ns of the last exchange or the last try
	probing   atomic.Bool

	slots   [slotsPerBroker]*kafkaSlot
	ready   []*kafkaPartition // partitions with something to send
	retired bool
}

// newBroker starts a broker's slots; it is called with p.mu held.
func (p *Producer) newBroker(id int32, addr string) *kafkaBroker {
	b := &kafkaBroker{p: p, id: id, addr: addr}
	b.reachable.Store(true)
	b.seen.Store(time.Now().UnixNano())
	for i := range b.slots {
		s := &kafkaSlot{p: p, b: b, wake: sync.NewCond(&p.mu)}
		b.slots[i] = s
		p.slots[s] = struct{}{}
		p.wg.Add(1)
		go s.run()
	}
	return b
}

// retire ends the slots when they have done what they are at; it is called with p.mu held. What was ready is to be scheduled
// anew.
func (b *kafkaBroker) retire() {
	b.retired = true
	for _, part := range b.ready {
		part.listed = false
	}
	b.ready = nil
	for _, s := range b.slots {
		s.wake.Signal()
	}
}

// claim takes a slot that may send what is ready, if there is one: whoever gets it gathers, and sends. It is called with p.mu held.
func (b *kafkaBroker) claim(now time.Time) *kafkaSlot {
	if b.retired {
		return nil
	}
	for i, s := range b.slots {
		if s.busy {
			continue
		}
		if i > 0 && now.Sub(b.slots[i-1].since) < patience {
			return nil
		}
		s.busy, s.since = true, now
		return s
	}
	return nil
}

// call has a slot's own goroutine send what is ready, if a slot may. It is called with p.mu held.
func (b *kafkaBroker) call(now time.Time) {
	if s := b.claim(now); s != nil {
		s.called = true
		s.wake.Signal()
	}
}

// unlist takes back a partition that was ready to be sent, because somebody else leads it now: the slots may be stuck.
func (b *kafkaBroker) unlist(part *kafkaPartition) {
	if i := slices.Index(b.ready, part); i >= 0 {
		b.ready = slices.Delete(b.ready, i, i+1)
		part.listed = false
	}
}

// note keeps what an exchange with the broker told about it.
func (b *kafkaBroker) note(err error) {
	b.seen.Store(time.Now().UnixNano())
	if was := b.reachable.Swap(err == nil); was == (err == nil) || b.p.ctx.Err() != nil {
		return
	}
	if err != nil {
		b.p.log.Warn("kafka broker is away", "broker", b.id, "addr", b.addr, "error", err)
	} else {
		b.p.log.Info("kafka broker is back", "broker", b.id, "addr", b.addr)
	}
}

// probe finds out, beside the traffic, about one broker that is away or that nothing was heard of for a while.
func (p *Producer) probe() {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return
	}
	for _, b := range p.brokers {
		quiet := now.Sub(time.Unix(0, b.seen.Load()))
		if quiet < 10*time.Second && (b.reachable.Load() || quiet < p.cfg.MetadataTTL/2) || b.probing.Swap(true) {
			continue
		}
		p.wg.Go(func() {
			defer b.probing.Store(false)
			c, err := p.dialer.dial(p.ctx, b.addr)
			if err == nil {
				c.close()
			}
			b.note(err)
		})
	}
}

// A kafkaSlot sends one request after another to its broker. Whoever has claimed it does so: the caller that finds it idle, which saves waking another
// goroutine and being woken by it, or for all that follows the slot's own goroutine.
type kafkaSlot struct {
	p    *Producer
	b    *kafkaBroker
	conn *kafkaConn // changed with p.mu held, used by whoever has claimed the slot; Close may close it

	// Guarded by p.mu.
	wake   *sync.Cond // called, or retired and not busy
	busy   bool       // claimed
	called bool       // by the slot's own goroutine
	since  time.Time  // the request under way began

	batches []*produceBatch // of the request under way
	req     produce.Request
	readers []*recordReader

	idempotent idempotentSlot
}

func (s *kafkaSlot) run() {
	defer s.p.wg.Done()
	for s.await() {
		for s.next() {
			s.send(s.since)
		}
	}
}

// await waits until the slot's own goroutine is called. False: the broker is retired.
func (s *kafkaSlot) await() bool {
	p := s.p
	p.mu.Lock()
	defer p.mu.Unlock()
	for !s.called {
		if s.b.retired && !s.busy {
			if s.conn != nil {
				s.conn.close()
				s.conn = nil
			}
			delete(p.slots, s)
			return false
		}
		s.wake.Wait()
	}
	s.called = false
	return true
}

// next gathers what is ready. False: nothing is, and the slot is free again.
func (s *kafkaSlot) next() bool {
	p := s.p
	p.mu.Lock()
	defer p.mu.Unlock()
	s.gather(time.Now())
	s.busy = len(s.batches) > 0
	return s.busy
}

// once sends what a caller has gathered, and leaves what has become ready meanwhile to the slot's own goroutine.
func (s *kafkaSlot) once(now time.Time) {
	if len(s.batches) > 0 {
		s.send(now)
	}
	p := s.p
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(s.b.ready) > 0 {
		s.called = true
	} else {
		s.busy = false
	}
	if s.called || s.b.retired {
		s.wake.Signal()
	}
}

// send makes one attempt and decides what it was for. A panic in it is an attempt that failed: it must neither take the process down nor leave the slot, and the
// partitions of the attempt, taken for ever by a caller whose request is turned into a 500.
func (s *kafkaSlot) send(now time.Time) {
	var res *produce.Response
	err := errPanicked
	func() {
		defer func() {
			if recover() == nil {
				return
			}
			s.p.log.Error("panic while sending to kafka", "stack", string(debug.Stack()))
			if s.conn != nil {
				s.hangUp()
			}
		}()
		res, err = s.roundTrip(now)
	}()
	s.p.metrics.request(time.Since(now))
	s.settle(res, err)
}

// gather takes everything that is ready, within the limits. It is called with p.mu held.
func (s *kafkaSlot) gather(now time.Time) {
	p, b := s.p, s.b
	s.since = now
	keep, bytes := b.ready[:0], 0
	for i, part := range b.ready {
		if bytes >= maxRequestBytes {
			keep = append(keep, b.ready[i])
			continue
		}
		part.listed = false
		if bt := p.take(part, now); bt != nil {
			part.busy = true
			bytes += bt.bytes
			s.batches = append(s.batches, bt)
		}
	}
	clear(b.ready[len(keep):])
	b.ready = keep
	if len(keep) > 0 {
		b.call(now)
	}
}

// attempt is the longest that one request takes: some time is left for another try on another connection.
func (p *Producer) attempt() time.Duration { return p.cfg.Timeout * 3 / 4 }

// roundTrip makes one attempt. When it returns nothing of the attempt is going on any more.
func (s *kafkaSlot) roundTrip(now time.Time) (*produce.Response, error) {
	deadline := time.Time{}
	for _, bt := range s.batches {
		if bt.deadline.After(deadline) {
			deadline = bt.deadline
		}
	}
	if d := now.Add(s.p.attempt()); d.Before(deadline) {
		deadline = d
	}
	if err := s.connect(deadline); err != nil {
		return nil, err
	}
	s.encode(deadline.Sub(now))
	var (
		res *produce.Response
		err error
	)
	if s.p.cfg.Idempotent {
		res, err = s.exchangeNumbered(deadline)
	} else {
		res, err = ask[*produce.Response](s.conn, deadline, &s.req)
	}
	if err != nil {
		s.hangUp()
		return nil, fmt.Errorf("broker %s: %w", s.b.addr, err)
	}
	return res, nil
}

func (s *kafkaSlot) connect(deadline time.Time) error {
	if s.conn != nil && s.conn.stale(time.Now()) {
		s.hangUp()
	}
	if s.conn != nil {
		return nil
	}
	ctx, cancel := context.WithDeadline(s.p.ctx, deadline)
	defer cancel()
	c, err := s.p.dialer.dial(ctx, s.b.addr)
	if err != nil {
		return &notSent{err}
	}
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	if s.p.stopped {
		c.close()
		return &notSent{ErrProducerClosed}
	}
	s.conn = c
	return nil
}

func (s *kafkaSlot) hangUp() {
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	s.conn.close()
	s.conn = nil
}

// encode forms the request of s.batches, in memory that the slot reuses: the attempt has ended before the next one begins.
func (s *kafkaSlot) encode(budget time.Duration) {
	s.req.Acks = int16(kafka.RequireAll)
	s.req.Timeout = int32(max(100*time.Millisecond, budget-200*time.Millisecond) / time.Millisecond) // the broker's answer shall come before we hang up
	for i := range s.req.Topics {
		s.req.Topics[i].Partitions = s.req.Topics[i].Partitions[:0]
	}
	s.req.Topics = s.req.Topics[:0]
	for i, bt := range s.batches {
		if i == len(s.readers) {
			s.readers = append(s.readers, new(recordReader))
		}
		s.readers[i].reset(bt.entries)
		t := s.topic(bt.part.topic)
		t.Partitions = append(t.Partitions, produce.RequestPartition{
			Partition: bt.part.index,
			RecordSet: protocol.RecordSet{Attributes: protocol.Attributes(s.p.cfg.Compression), Records: s.readers[i]},
		})
	}
}

func (s *kafkaSlot) topic(name string) *produce.RequestTopic {
	for i := range s.req.Topics {
		if s.req.Topics[i].Topic == name {
			return &s.req.Topics[i]
		}
	}
	n := len(s.req.Topics)
	if n < cap(s.req.Topics) { // with the room its partitions had
		s.req.Topics = s.req.Topics[:n+1]
	} else {
		s.req.Topics = append(s.req.Topics, produce.RequestTopic{})
	}
	s.req.Topics[n].Topic = name
	return &s.req.Topics[n]
}

// settle decides each batch of an attempt that has ended: done, to be tried again, to be split, or failed.
func (s *kafkaSlot) settle(res *produce.Response, err error) {
	p := s.p
	s.b.note(err)
	p.mu.Lock()
	defer p.mu.Unlock()
	stale := err != nil
	now := time.Now()
	s.since = now // what it has become ready by this is its own to send
	for i, bt := range s.batches {
		s.batches[i] = nil
		part, failure := bt.part, err
		if failure == nil {
			failure = outcome(res, part)
		}
		part.busy = false
		stale = p.settleBatch(bt, failure, now) || stale
		p.schedule(part, now)
	}
	s.batches = s.batches[:0]
	for _, r := range s.readers {
		r.reset(nil)
	}
	s.idempotent.trim()
	if stale {
		p.kick()
	}
}

// outcome finds what the broker said about a partition.
func outcome(res *produce.Response, part *kafkaPartition) error {
	for i := range res.Topics {
		if res.Topics[i].Topic != part.topic {
			continue
		}
		for j := range res.Topics[i].Partitions {
			if rp := &res.Topics[i].Partitions[j]; rp.Partition == part.index {
				if rp.ErrorCode == 0 || kafka.Error(rp.ErrorCode) == kafka.DuplicateSequenceNumber { // written by an earlier attempt
					return nil
				}
				return kafka.Error(rp.ErrorCode)
			}
		}
	}
	return errNoAnswer
}

// settleBatch says whether the failure hints at metadata of ours that is out of date.
func (p *Producer) settleBatch(bt *produceBatch, err error, now time.Time) bool {
	part := bt.part
	if err == nil {
		part.failingSince, part.lastErr = time.Time{}, nil
		part.seq.advance(len(bt.entries))
		part.messages.Add(float64(len(bt.entries)))
		part.bytes.Add(float64(bt.bytes - batchOverhead))
		for i := range bt.entries {
			p.decide(&bt.entries[i], nil)
		}
		p.putBatch(bt)
		return false
	}
	if p.stopped {
		err = &closedUnderWay{err}
	}
	kind := kindOf(err)
	p.metrics.attemptFailed(kind)
	code, isCode := err.(kafka.Error)
	bt.maybe = bt.maybe || ambiguous(err)
	switch {
	case isCode && divisible(code) && len(bt.entries) > 1:
		p.split(bt)
		return false
	case isCode && divisible(code):
		p.single(bt, code)
		return false
	}
	part.fails(now, err)
	lost := isCode && lostSequence(code)
	if lost {
		part.seq.burn()
	}
	wait := min(maxBackoff, firstBackoff<<min(bt.tries, 6))
	wait = wait*3/4 + rand.N(wait/2)
	if p.stopped || isCode && !retriable(code) && !lost || !now.Add(wait).Before(bt.deadline) {
		p.failBatch(bt, err)
		return kind == KindLeader || kind == KindUnknownTopic || !isCode
	}
	bt.tries++
	p.metrics.retried()
	p.queued.Add(int64(len(bt.entries)))
	part.retry = append([]*produceBatch{bt}, part.retry...)
	p.later(part, wait)
	return kind == KindLeader || kind == KindUnknownTopic || !isCode
}

// later schedules the partition again when wait is over.
func (p *Producer) later(part *kafkaPartition, wait time.Duration) {
	part.endBackoff()
	var timer *time.Timer
	timer = time.AfterFunc(wait, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if part.backoff == timer { // else somebody was faster
			part.backoff = nil
			p.schedule(part, time.Now())
		}
	})
	part.backoff = timer
}

// split halves a batch that the broker will not have as a whole.
func (p *Producer) split(bt *produceBatch) {
	half := len(bt.entries) / 2
	left, right := p.newBatch(bt.part, bt.entries[:half]), p.newBatch(bt.part, bt.entries[half:])
	p.queued.Add(int64(len(bt.entries)))
	bt.part.retry = append([]*produceBatch{left, right}, bt.part.retry...)
	p.putBatch(bt)
}

// single decides a message that the broker refused when it came alone.
func (p *Producer) single(bt *produceBatch, code kafka.Error) {
	kind := kindOfCode(code)
	p.metrics.failed(kind, 1)
	p.say("refused "+bt.part.topic+string(kind), "kafka refuses a message for what it is",
		slog.String("topic", bt.part.topic), slog.Int("bytes", int(bt.entries[0].size)), slog.Any("error", code))
	err := errTooLargeAlone
	if kind == KindRejected {
		err = errInvalidAlone
	}
	p.decide(&bt.entries[0], err)
	p.putBatch(bt)
}

// A recordReader gives the messages of a batch to the encoder, one at a time and without allocating.
type recordReader struct {
	entries []produceEntry
	next    int
	record  protocol.Record
	key     recordBytes
	value   recordBytes
	headers []protocol.Header
}

func (r *recordReader) reset(entries []produceEntry) {
	r.entries, r.next = entries, 0
	r.record = protocol.Record{}
	r.key.Reset(nil)
	r.value.Reset(nil)
	clear(r.headers)
	r.headers = r.headers[:0]
}

// ReadRecord implements protocol.RecordReader. The record is good until the next call.
func (r *recordReader) ReadRecord() (*protocol.Record, error) {
	if r.next == len(r.entries) {
		return nil, io.EOF
	}
	m := r.entries[r.next].msg
	r.next++
	r.record = protocol.Record{}
	if m.Key != nil {
		r.key.Reset(m.Key)
		r.record.Key = &r.key
	}
	if m.Value != nil {
		r.value.Reset(m.Value)
		r.record.Value = &r.value
	}
	r.headers = r.headers[:0]
	for _, h := range m.Headers {
		r.headers = append(r.headers, protocol.Header(h))
	}
	r.record.Headers = r.headers
	return &r.record, nil
}

// recordBytes is a protocol.Bytes over memory.
type recordBytes struct{ bytes.Reader }

func (*recordBytes) Close() error { return nil }
