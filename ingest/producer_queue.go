package ingest

import (
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/segmentio/kafka-go"
)

// What Kafka's record batch costs at most beside the bytes of keys, values and headers.
const (
	batchOverhead  = 61
	recordOverhead = 25 // length, attributes, timestamp and offset deltas, lengths of key and value, number of headers
	headerOverhead = 10
)

// MessageSize is how large m is to Kafka when it travels alone: what ProducerConfig.MaxMessageBytes and a topic's
// max.message.bytes bound. It may be a few bytes more than the truth, never less.
func MessageSize(m *Message) int { return batchOverhead + recordSize(m) }

func recordSize(m *Message) int {
	n := recordOverhead + len(m.Key) + len(m.Value)
	for i := range m.Headers {
		n += headerOverhead + len(m.Headers[i].Key) + len(m.Headers[i].Value)
	}
	return n
}

// A produceEntry is one message on its way.
type produceEntry struct {
	msg   *Message
	call  *produceCall
	index int32 // in the call
	size  int32 // recordSize
}

// A produceBatch is what goes to one partition in one request. Once sent it stays as it is until it is decided or split.
type produceBatch struct {
	part     *kafkaPartition
	entries  []produceEntry
	bytes    int
	deadline time.Time // the latest of its messages'
	tries    int
	maybe    bool // an attempt may have been written although it was not acknowledged
}

// A kafkaPartition is the queue of one partition. All of it but the first lines is guarded by Producer.mu.
type kafkaPartition struct {
	topic    string
	index    int32
	messages prometheus.Counter
	bytes    prometheus.Counter

	leader int32 // -1: none
	queue  []produceEntry
	head   int             // queue[:head] is taken
	retry  []*produceBatch // before the queue, in this order

	busy    bool        // a request is under way
	listed  bool        // in its leader's ready list
	backoff *time.Timer // not nil: waits for another try

	seq sequence // used with ProducerConfig.Idempotent

	failingSince time.Time // zero: the last attempt went well
	lastErr      error     // why not
	lastSaid     time.Time // when lastErr was found out
}

func (p *Producer) newPartition(topic string, index int32) *kafkaPartition {
	m := p.metrics.topic(topic)
	return &kafkaPartition{topic: topic, index: index, leader: -1, messages: m.messages, bytes: m.bytes}
}

func (part *kafkaPartition) waiting() int { return len(part.queue) - part.head }

// active says whether something is on its way that will tell us how the partition is.
func (part *kafkaPartition) active() bool {
	return part.busy || len(part.retry) > 0 || part.waiting() > 0
}

// fails notes why an attempt did not go well. What a broker has just said explains more than a clock that ran out on the try after it.
func (part *kafkaPartition) fails(now time.Time, err error) {
	if part.failingSince.IsZero() {
		part.failingSince = now
	}
	var code kafka.Error
	if now.Sub(part.lastSaid) < brokersWordHolds && errors.As(part.lastErr, &code) && !errors.As(err, &code) && kindOf(err) == KindTimeout {
		return
	}
	part.lastErr, part.lastSaid = err, now
}

// brokersWordHolds is for how long a broker's answer stands as the reason of what merely times out after it.
const brokersWordHolds = 5 * time.Second

// why says what keeps the partition's messages from being written.
func (part *kafkaPartition) why() error {
	if part.lastErr != nil {
		return part.lastErr
	}
	return errTimedOut
}

func (part *kafkaPartition) endBackoff() {
	if part.backoff != nil {
		part.backoff.Stop()
		part.backoff = nil
	}
}

// enqueue puts the messages of a call, routed already, into the queues of their partitions, or none of them. With lend, where a broker is free to
// take what is ready, it returns the slot to do so with, which is the caller's for one request.
func (p *Producer) enqueue(c *produceCall, msgs []Message, now time.Time, lend bool) (*kafkaSlot, error) {
	bytes := int64(0)
	for i := range msgs {
		bytes += int64(recordSize(&msgs[i]) + entryOverhead)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.isClosing() {
		return nil, p.refuse(&UnavailableError{Kind: KindClosed, Err: ErrProducerClosed}, len(msgs))
	}
	for _, part := range c.parts {
		// One call at a time may find out whether a partition that has failed for long is back.
		if !part.failingSince.IsZero() && part.active() && c.deadline.Sub(part.failingSince) > 2*p.cfg.Timeout {
			return nil, p.refuse(&UnavailableError{Topic: part.topic, Kind: kindOf(part.lastErr), Err: &stillAway{part.lastErr}}, len(msgs))
		}
	}
	if p.inFlight.Load()+bytes > p.cfg.MaxInFlightBytes {
		p.metrics.failed(KindOverloaded, len(msgs))
		return nil, ErrOverloaded
	}
	p.inFlight.Add(bytes)
	p.queued.Add(int64(len(msgs)))
	p.open += len(msgs)
	c.pending, c.bytes = len(msgs), bytes
	p.waiting.add(c)
	var mine *kafkaSlot
	for i := range msgs {
		part := c.parts[i]
		msgs[i].lease.hold()
		part.queue = append(part.queue, produceEntry{msg: &msgs[i], call: c, index: int32(i), size: int32(recordSize(&msgs[i]))})
		b := p.list(part)
		switch {
		case b == nil || mine != nil && mine.b == b:
		case lend && mine == nil:
			mine = b.claim(now)
		default:
			b.call(now)
		}
	}
	if mine != nil {
		mine.gather(now)
	}
	return mine, nil
}

// list puts a partition that has something to send on its leader's list, and returns the leader if it was not on it. Without a leader it waits for the next
// metadata.
func (p *Producer) list(part *kafkaPartition) *kafkaBroker {
	if part.busy || part.listed || part.backoff != nil || len(part.retry) == 0 && part.waiting() == 0 {
		return nil
	}
	b := p.brokers[part.leader]
	if b == nil || p.stopped {
		return nil
	}
	part.listed = true
	b.ready = append(b.ready, part)
	return b
}

// schedule has a partition's leader send what the partition has to send.
func (p *Producer) schedule(part *kafkaPartition, now time.Time) {
	if b := p.list(part); b != nil {
		b.call(now)
	}
}

// take forms the partition's next batch; nil when nothing is left that is worth sending.
func (p *Producer) take(part *kafkaPartition, now time.Time) *produceBatch {
	p.expire(part, now)
	if len(part.retry) > 0 {
		bt := part.retry[0]
		part.retry = slices.Delete(part.retry, 0, 1)
		p.queued.Add(-int64(len(bt.entries)))
		return bt
	}
	queue := part.queue[part.head:]
	if len(queue) == 0 {
		return nil
	}
	n, bytes := 0, batchOverhead
	for n < len(queue) && n < maxBatchMessages && (n == 0 || bytes+int(queue[n].size) <= p.cfg.MaxMessageBytes && now.Before(queue[n].call.deadline)) {
		bytes += int(queue[n].size)
		queue[n].call.sent = true
		n++
	}
	bt := p.newBatch(part, queue[:n])
	p.drop(part, n)
	return bt
}

// drop takes n entries off the head of the queue.
func (p *Producer) drop(part *kafkaPartition, n int) {
	p.queued.Add(-int64(n))
	clear(part.queue[part.head : part.head+n])
	part.head += n
	switch {
	case part.head == len(part.queue):
		part.queue, part.head = part.queue[:0], 0
		if cap(part.queue) > maxBatchMessages {
			part.queue = nil // a jam has dissolved; do not keep its room
		}
	case part.head > len(part.queue)/2 && part.head >= maxBatchMessages:
		k := copy(part.queue, part.queue[part.head:])
		clear(part.queue[k:])
		part.queue, part.head = part.queue[:k], 0
	}
}

// expire fails what has waited too long. Deadlines in a queue rise, because every message has the same time; only calls that
// had to wait for metadata may stand behind later ones, and are found when it is their turn.
func (p *Producer) expire(part *kafkaPartition, now time.Time) {
	for len(part.retry) > 0 && !now.Before(part.retry[0].deadline) {
		bt := part.retry[0]
		part.retry = slices.Delete(part.retry, 0, 1)
		p.queued.Add(-int64(len(bt.entries)))
		p.failBatch(bt, part.why())
	}
	n := 0
	for queue := part.queue[part.head:]; n < len(queue) && !now.Before(queue[n].call.deadline); n++ {
		if n == 0 && p.brokers[part.leader] == nil {
			part.fails(now, errNoLeader)
		}
		err := part.why()
		p.decide(&queue[n], &UnavailableError{Topic: part.topic, Kind: kindOf(err), Err: err})
	}
	if n > 0 {
		p.metrics.failed(KindTimeout, n)
		p.drop(part, n)
	}
}

// failWaiting fails everything of a partition that is not under way.
func (p *Producer) failWaiting(part *kafkaPartition, err *UnavailableError) {
	part.endBackoff()
	for _, bt := range part.retry {
		p.queued.Add(-int64(len(bt.entries)))
		p.failBatch(bt, err)
	}
	part.retry = nil
	queue := part.queue[part.head:]
	for i := range queue {
		p.decide(&queue[i], err)
	}
	p.metrics.failed(err.Kind, len(queue))
	p.drop(part, len(queue))
}

// failBatch fails all messages of a batch.
func (p *Producer) failBatch(bt *produceBatch, cause error) {
	err := &UnavailableError{Topic: bt.part.topic, Kind: kindOf(cause), MaybeWritten: bt.maybe, Err: cause}
	p.metrics.failed(err.Kind, len(bt.entries))
	if bt.maybe {
		bt.part.seq.burn()
	}
	for i := range bt.entries {
		p.decide(&bt.entries[i], err)
	}
	p.say("fail "+bt.part.topic+string(err.Kind), "kafka did not acknowledge",
		slog.String("topic", bt.part.topic), slog.Int("partition", int(bt.part.index)), slog.Int("messages", len(bt.entries)), slog.Any("error", err))
	p.putBatch(bt)
}

// decide says what became of one message; the last one of a call ends it.
func (p *Producer) decide(e *produceEntry, err error) {
	c := e.call
	switch err {
	case nil:
	case errTooLargeAlone:
		c.large = append(c.large, int(e.index))
	case errInvalidAlone:
		c.invalid = append(c.invalid, int(e.index))
	default:
		if c.err == nil {
			c.err = err
		}
	}
	if err == nil {
		c.acked[e.index] = true
	}
	if ua, ok := err.(*UnavailableError); err == nil || ok && ua.MaybeWritten {
		c.written = true
	}
	bytes := int64(e.size + entryOverhead)
	p.inFlight.Add(-bytes)
	c.bytes -= bytes
	if c.left {
		c.use.add(-bytes)
	}
	e.msg.lease.release()
	p.open--
	if p.open == 0 && p.isClosing() {
		close(p.drained)
	}
	c.pending--
	switch {
	case c.pending > 0:
	case c.left:
		p.recycle(c)
	case c.late: // its caller is on the way here already
	default:
		p.waiting.remove(c)
		c.done <- struct{}{}
	}
}

func (p *Producer) newBatch(part *kafkaPartition, entries []produceEntry) *produceBatch {
	bt, _ := p.spare.Get().(*produceBatch)
	if bt == nil {
		bt = new(produceBatch)
	}
	bt.part = part
	bt.entries = append(bt.entries, entries...)
	bt.bytes = batchOverhead
	for i := range entries {
		bt.bytes += int(entries[i].size)
		if d := entries[i].call.deadline; d.After(bt.deadline) {
			bt.deadline = d
		}
	}
	return bt
}

// putBatch takes back a batch whose messages are all decided.
func (p *Producer) putBatch(bt *produceBatch) {
	clear(bt.entries)
	*bt = produceBatch{entries: bt.entries[:0]}
	p.spare.Put(bt)
}

// sweep ends the waits that are over, drops what has waited too long for partitions that nobody serves, so that its bytes are given back, has
// a second slot help where the first is held up.
func (p *Producer) sweep() {
	defer p.wg.Done()
	tick := time.NewTicker(max(p.cfg.Timeout/80, 10*time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-p.ctx.Done():
			return
		case now := <-tick.C:
			p.mu.Lock()
			for _, parts := range p.topics {
				for _, part := range parts {
					p.expire(part, now)
				}
			}
			for _, b := range p.brokers {
				if len(b.ready) > 0 {
					b.call(now)
				}
			}
			p.waiting.hurry(now)
			p.mu.Unlock()
		}
	}
}
