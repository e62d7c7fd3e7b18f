package ingest

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"time"

	"flowstate.inc/sluice/ingest/spool"
)

// What the drain has under way at a time.
const (
	drainBatchRecords = 1024
	drainBatchBytes   = 1 << 20
)

// drainTick is how often the drain looks whether a probe is due or Kafka is back.
const drainTick = 250 * time.Millisecond

// drainRewind is how often an idle drain reads again what should not be there: a segment that the disk did not give.
const drainRewind = 30 * time.Second

// replayedHeader marks a message that comes from the spool, and so later than its neighbours in time.
var replayedHeader = Header{Key: "flowstate-replayed", Value: []byte("1")}

// A Drain sends what is in a spool to Kafka, oldest first, one batch at a time, and commits what is acknowledged.
//
// The messages of a key are sent in the order in which they were kept: once one was not acknowledged, its partition is held, which means that nothing more of
// it is read until a probe with that very message got through. What Kafka will never take is parked. A topic that is missing, or that we may not write,
// is paused as a whole and probed likewise; the log and sluice_spool_replay_paused_topics say so.
//
// One goroutine uses it. It keeps one message for each held partition in memory, and a batch.
type Drain struct {
	s        *Sink
	log      *spool.Log
	held     map[partitionID]*hold
	probes   chan probeResult
	underway int // probes
	rewind   bool
	next     time.Time // not to send before, for the sake of live traffic
	moved    time.Time // when something was acknowledged or parked last
	idle     time.Time // when the spool was read from its beginning last
	sent     int64
	parked   int64
}

// A hold is a partition whose messages wait, or a topic: then its index is -1.
type hold struct {
	first   spool.Record // what is sent next of it
	paused  pauseReason  // "" unless it is a topic that somebody must do something about
	probing bool
	next    time.Time // of a probe
}

type probeResult struct {
	partition partitionID
	outcome   replayOutcome
}

// NewDrain returns a drain of the sink's spool, which it must have.
func (s *Sink) NewDrain() *Drain {
	now := time.Now()
	return &Drain{s: s, log: s.cfg.Spool, held: map[partitionID]*hold{}, probes: make(chan probeResult, 64), moved: now, idle: now}
}

// Run drains until ctx ends. What is under way then is not committed, and comes again.
func (d *Drain) Run(ctx context.Context) { d.run(ctx, func() bool { return false }) }

// Finish drains until the spool is empty, ctx ends, or nothing has gone through for so long. It returns how many records are left.
func (d *Drain) Finish(ctx context.Context, patience time.Duration) int64 {
	d.moved = time.Now()
	d.run(ctx, func() bool { return d.log.Stats().Records == 0 || time.Since(d.moved) > patience })
	return d.log.Stats().Records
}

// Sent is how many messages Kafka has acknowledged, and how many were parked.
func (d *Drain) Sent() (int64, int64) { return d.sent, d.parked }

// Paused are the topics that wait for somebody, each with the reason.
func (d *Drain) Paused() map[string]string {
	out := map[string]string{}
	for id, h := range d.held {
		if h.paused != "" {
			out[id.topic] = string(h.paused)
		}
	}
	return out
}

// run steps until ctx ends or enough says so between two steps.
func (d *Drain) run(ctx context.Context, enough func() bool) {
	d.s.drains.Lock()
	defer d.s.drains.Unlock()
	d.rewind = true
	defer d.awaitProbes()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // before awaitProbes
	tick := time.NewTicker(drainTick)
	defer tick.Stop()
	for ctx.Err() == nil && !enough() {
		d.settleProbes()
		if wait := time.Until(d.next); wait > 0 {
			pause := time.NewTimer(wait)
			select {
			case <-ctx.Done():
			case <-pause.C:
			}
			pause.Stop()
			continue
		}
		d.probe(ctx)
		if d.step(ctx) {
			continue
		}
		select {
		case <-ctx.Done():
		case <-d.log.Wake():
		case r := <-d.probes:
			d.settleProbe(r)
		case <-tick.C:
		}
	}
}

// step sends one batch. False: there is nothing to send now.
func (d *Drain) step(ctx context.Context) bool {
	if d.s.producer.Healthy() != nil {
		return false // nobody knows the leaders
	}
	if d.rewind {
		d.log.Rewind()
		d.rewind, d.idle = false, time.Now()
	}
	records, err := d.log.Next(spool.Limit{Records: drainBatchRecords, Bytes: drainBatchBytes}, d.pass)
	if err != nil && d.s.said.allow("next") {
		d.s.log.Error("spool: the quarantine cannot be written", "error", err)
	}
	if len(records) == 0 {
		d.roomMade()
		if len(d.held) == 0 && time.Since(d.idle) > drainRewind && d.log.Stats().Records > 0 {
			d.rewind = true
		}
		return false
	}
	groups := map[partitionID][]spool.Record{}
	for _, r := range records {
		id := d.s.producer.partitionOf(r.Topic, r.Key)
		groups[id] = append(groups[id], r)
	}
	results := make(chan probeResult)
	sent := 0
	for id, group := range groups {
		switch {
		case !slices.Contains(d.s.producer.cfg.Topics, id.topic):
			d.hold(partitionID{id.topic, -1}, group[0], pausedNotConfigured)
		case d.s.breakers.sick(id):
			d.hold(id, group[0], "")
		default:
			sent++
			go func() { results <- probeResult{id, d.s.replay(ctx, id, group)} }()
		}
	}
	bytes := 0
	for range sent {
		r := <-results
		bytes += r.outcome.bytes
		d.settle(ctx, r)
	}
	d.next = time.Now().Add(time.Duration(float64(bytes) / float64(d.s.cfg.ReplayBytesPerSecond) * float64(time.Second)))
	return true
}

// roomMade is for when nothing goes to the spool any more, which would show that there is room.
func (d *Drain) roomMade() {
	if d.s.Full() && d.log.HasRoom(min(DefaultMaxMessageBytes, d.log.Stats().Capacity/8)) { // a message of the default limit; a spool may be smaller
		d.s.hasRoom()
	}
}

// pass says that a record waits for an earlier one.
func (d *Drain) pass(topic string, key []byte) bool {
	if len(d.held) == 0 {
		return false
	}
	return d.held[partitionID{topic, -1}] != nil || d.held[d.s.producer.partitionOf(topic, key)] != nil
}

// hold keeps back a partition, or a topic, until first has got through.
func (d *Drain) hold(id partitionID, first spool.Record, paused pauseReason) {
	d.held[id] = &hold{first: first, paused: paused, next: time.Now().Add(probeEvery)}
	d.count()
	if paused != "" && d.s.said.allow("paused "+id.topic) {
		d.s.log.Error("spool: the messages of a topic stay here until somebody does something", "topic", id.topic, "reason", string(paused), "remedy", remedies[paused])
	}
}

var remedies = map[pauseReason]string{
	pausedUnknown:       "make the topic with sluice migrate",
	pausedAuthorization: "let the Kafka user write the topic",
	pausedNotConfigured: "no --topic-* names it; stop this process and run sluice spool drain, which sends to the topics that it finds",
}

func (d *Drain) count() {
	n := map[pauseReason]int{}
	for _, h := range d.held {
		n[h.paused]++
	}
	d.s.metrics.held.Set(float64(n[""]))
	for _, r := range pauseReasons {
		d.s.metrics.paused[r].Set(float64(n[r]))
	}
}

// probe sends the first message of held partitions whose time has come, beside everything else.
func (d *Drain) probe(ctx context.Context) {
	if d.s.producer.Healthy() != nil {
		return
	}
	for id, h := range d.held {
		if h.probing || h.paused == pausedNotConfigured || time.Now().Before(h.next) {
			continue
		}
		to := id
		if id.index < 0 { // the partition may be known by now
			to = d.s.producer.partitionOf(h.first.Topic, h.first.Key)
		}
		if ok, _ := d.s.breakers.admit(to, time.Now(), probeEvery); !ok {
			continue
		}
		h.probing = true
		d.underway++
		go func() { d.probes <- probeResult{id, d.s.replay(ctx, to, []spool.Record{h.first})} }()
	}
}

func (d *Drain) settleProbes() {
	for {
		select {
		case r := <-d.probes:
			d.settleProbe(r)
		default:
			return
		}
	}
}

// settleProbe lets the partition go when the message got through; what was passed over meanwhile is read again.
func (d *Drain) settleProbe(r probeResult) {
	d.underway--
	if errors.Is(r.outcome.err, context.Canceled) {
		// The drain ends: it told nothing. The hold may be another one by now, or none.
		if h := d.held[r.partition]; h != nil {
			h.probing = false
		}
		return
	}
	delete(d.held, r.partition)
	d.count()
	d.settle(context.Background(), r)
	if d.held[r.partition] == nil {
		d.rewind = true
	}
}

// awaitProbes leaves nothing running, once their context has ended.
func (d *Drain) awaitProbes() {
	for d.underway > 0 {
		d.settleProbe(<-d.probes)
	}
}

// settle commits what was acknowledged, parks what never will be, and holds the partition at the first message that may be later.
func (d *Drain) settle(ctx context.Context, r probeResult) {
	o := &r.outcome
	if len(o.acked) > 0 {
		d.moved = time.Now()
		d.sent += int64(len(o.acked))
		d.s.metrics.replayed.Add(float64(len(o.acked)))
		d.s.metrics.replayedBytes.Add(float64(o.bytes))
		if err := d.log.Commit(o.acked); err != nil && d.s.said.allow("commit") {
			d.s.log.Error("spool: delivered records may be delivered again after a restart", "error", err)
		}
		d.roomMade()
	}
	for _, p := range o.refused {
		if err := d.log.Park([]spool.Record{p.record}, p.reason); err != nil {
			if d.s.said.allow("park") {
				d.s.log.Error("spool: a message that Kafka will not take cannot be moved to the quarantine", "error", err)
			}
			o.left = append([]spool.Record{p.record}, o.left...)
			continue
		}
		d.moved = time.Now()
		d.parked++
		d.s.log.Error("spool: Kafka will never take this message, it is in the quarantine", "topic", p.record.Topic, "reason", p.reason)
	}
	if len(o.left) == 0 || ctx.Err() != nil {
		return
	}
	slices.SortFunc(o.left, func(a, b spool.Record) int { return int(int64(a.Seq - b.Seq)) })
	id, paused := r.partition, pauseReason("")
	kind := kindOf(o.err)
	switch kind {
	case KindUnknownTopic:
		id.index, paused = -1, pausedUnknown
	case KindAuthorization:
		id.index, paused = -1, pausedAuthorization
	}
	switch {
	case errors.Is(o.err, ErrOverloaded):
		d.s.metrics.misses[KindOverloaded].Inc()
	case o.err != nil:
		d.s.metrics.misses[kind].Inc()
	}
	if h := d.held[id]; h == nil || o.left[0].Seq < h.first.Seq {
		d.hold(id, o.left[0], paused)
	}
}

// A replayOutcome is what became of some records of one partition.
type replayOutcome struct {
	acked   []spool.Record
	refused []parked
	left    []spool.Record // to be sent again, and not before those of the same key
	err     error          // why
	bytes   int            // of acked
}

// A parked record is one that Kafka will never take.
type parked struct {
	record spool.Record
	reason string
}

// replay sends records of one partition and says what became of them.
func (s *Sink) replay(ctx context.Context, id partitionID, records []spool.Record) replayOutcome {
	var out replayOutcome
	for len(records) > 0 {
		messages := make([]Message, len(records))
		for i := range records {
			messages[i] = replayed(&records[i])
		}
		began := time.Now()
		err := s.producer.Produce(ctx, messages)
		waited := time.Since(began)
		sent, retry := readResult(err, len(messages))
		var left []spool.Record
		for i, f := range sent {
			switch f {
			case inKafka:
				out.acked = append(out.acked, records[i])
				out.bytes += recordSize(&messages[i])
			case neverFits:
				out.refused = append(out.refused, parked{records[i], "too large for Kafka: " + strconv.Itoa(MessageSize(&messages[i])) + " bytes"})
			case neverTaken:
				out.refused = append(out.refused, parked{records[i], "invalid to Kafka"})
			default:
				left = append(left, records[i])
			}
		}
		s.learn(id, err, waited, true)
		if !retry {
			out.left, out.err = left, err
			return out
		}
		records = left
	}
	return out
}

// replayed is a record as the message it was, marked.
func replayed(r *spool.Record) Message {
	m := Message{Topic: r.Topic, Key: r.Key, Value: r.Value, Headers: make([]Header, 0, len(r.Headers)+1)}
	for _, h := range r.Headers {
		if h.Key != replayedHeader.Key {
			m.Headers = append(m.Headers, Header(h))
		}
	}
	m.Headers = append(m.Headers, replayedHeader)
	return m
}
