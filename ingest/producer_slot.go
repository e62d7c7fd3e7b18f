package ingest

import (
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/segmentio/kafka-go/protocol/produce"
)

// slotsPerBroker is how many requests may be under way to one broker, each with its own connection and never two with the
// same partition. Two, so that one partition whose followers are slow does not hold up all the others of its broker. The second is used only
// when the first has been under way for patience, and a message comes or the sweep passes: one request with all that waits costs both sides less than two with a half each.
const (
	slotsPerBroker = 2
	patience       = 10 * time.Millisecond
	doubtHolds     = time.Second
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

	// After an attempt that got no answer nothing is sent until the leaders are looked up, for doubtHolds at most: with the broker its partitions have
	// perhaps moved, and what a slot has taken can go nowhere else before the attempt has ended.
	doubt      *metaRound
	doubtSince time.Time
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

// doubted says whether it is to be found out first who leads the broker's partitions. It is called with p.mu held.
func (b *kafkaBroker) doubted(now time.Time) bool {
	if b.doubt == nil {
		return false
	}
	select {
	case <-b.doubt.done:
	default:
		if now.Sub(b.doubtSince) < doubtHolds {
			return true
		}
	}
	b.doubt = nil
	return false
}

// claim takes a slot that may send what is ready, if there is one: whoever gets it gathers, and sends. Where there is none the sweep tries again. It is
// called with p.mu held.
func (b *kafkaBroker) claim(now time.Time) *kafkaSlot {
	if b.retired || b.doubted(now) {
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
		b.p.tell(slog.LevelWarn, "kafka broker is away", slog.Int("broker", int(b.id)), slog.String("addr", b.addr), slog.Any("error", err))
	} else {
		b.p.tell(slog.LevelInfo, "kafka broker is back", slog.Int("broker", int(b.id)), slog.String("addr", b.addr))
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
	if now := time.Now(); !s.b.doubted(now) {
		s.gather(now)
	}
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
			s.p.tell(slog.LevelError, "panic while sending to kafka", slog.String("stack", string(debug.Stack())))
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
