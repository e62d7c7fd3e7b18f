package ingest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/produce"
)

const (
	firstBackoff = 20 * time.Millisecond
	maxBackoff   = 500 * time.Millisecond
)

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
	if err != nil {
		s.b.doubt, s.b.doubtSince = p.round.Load(), now
	}
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
