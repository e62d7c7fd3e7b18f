package auth

import (
	"context"
	"errors"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"
)

// The reasons for which Truth was not asked. All of them are ErrUnavailable to the caller.
var (
	errOverTotal  = errors.New("look-ups over budget")
	errOverSource = errors.New("look-ups of this address over budget")
	errOverAsker  = errors.New("unknown subjects of this detector over budget")
	errOverSlots  = errors.New("too many look-ups at once")
	errBreaker    = errors.New("database away")
	errBehind     = errors.New("database answers with an older version than it announced")
)

const (
	maxSources = 65_536 // addresses that are remembered; the least used go first
	maxAskers  = 16_384 // detectors' keys, the same
)

// budget keeps look-ups in Truth within what it can bear. A look-up of a key that no cache knows pays from the budget of
// its address and from the common one, and is paid back when the key turns out to be good; so only misses count, and a
// flood of them spends its own address's share. A subject that a detector names pays from the budget of the detector's key and
// from the common one, by the same rule, so that a detector with an old list of names starves nobody. A quarter of the common budget is for addresses that sent a good key within
// the last hour, so that a flood from everywhere leaves them their look-ups; an eighth is for the first look-up of an address, so that a flood from
// some hundred addresses leaves newcomers theirs. Against a flood that never uses an address twice nothing tells a newcomer apart. Keys that are known pay
// nothing and have half of the slots to themselves.
type budget struct {
	total     bucket
	familiar  bucket // the quarter
	first     bucket // the eighth
	perSecond int64  // of total
	reserved  int64  // of familiar
	welcome   int64  // of first
	perSource int64
	perAsker  int64
	sources   *otter.Cache[netip.Addr, *source]
	askers    *otter.Cache[string, *bucket]
	slots     chan struct{}
	unknown   chan struct{} // the part of slots that unknown keys may hold
}

// A source is one address, or one customer's network.
type source struct {
	bucket
	good atomic.Int64 // chain time at which it last sent a good key that had to be looked up; 0 for never
}

const (
	budgetBurst = int64(2 * time.Second)
	familiarFor = int64(time.Hour)
)

func newBudget(cfg ChainConfig) *budget {
	reserved, welcome := int64(cfg.MissesPerSecond)/4, int64(cfg.MissesPerSecond)/8
	return &budget{
		perSecond: max(int64(cfg.MissesPerSecond)-reserved-welcome, 1),
		reserved:  reserved,
		welcome:   welcome,
		perSource: int64(cfg.MissesPerSource),
		perAsker:  int64(cfg.MissesPerDetector),
		sources:   otter.Must(&otter.Options[netip.Addr, *source]{MaximumSize: maxSources}),
		askers:    otter.Must(&otter.Options[string, *bucket]{MaximumSize: maxAskers}),
		slots:     make(chan struct{}, cfg.Concurrent),
		unknown:   make(chan struct{}, max(cfg.Concurrent/2, 1)),
	}
}

// A payment is what pay took, for payBack.
type payment struct {
	from   *source
	common *bucket
	rate   int64
}

// pay takes one miss from the address's budget and the common one.
func (b *budget) pay(now int64, remote netip.Addr) (payment, error) {
	s := b.source(remote)
	newcomer := s.full.Load() == 0
	if _, ok := s.take(now, 1, b.perSource, budgetBurst); !ok {
		return payment{}, errOverSource
	}
	good := s.good.Load()
	for _, of := range []struct {
		bucket *bucket
		rate   int64
		mayUse bool
	}{
		{&b.total, b.perSecond, true},
		{&b.familiar, b.reserved, good != 0 && now-good <= familiarFor},
		{&b.first, b.welcome, newcomer},
	} {
		if !of.mayUse || of.rate == 0 {
			continue
		}
		if _, ok := of.bucket.take(now, 1, of.rate, budgetBurst); ok {
			return payment{s, of.bucket, of.rate}, nil
		}
	}
	s.refund(1, b.perSource)
	return payment{}, errOverTotal
}

// payBack returns what pay took, for a look-up that was not made, or found a key.
func (b *budget) payBack(p payment) {
	p.from.refund(1, b.perSource)
	p.common.refund(1, p.rate)
}

// payFor takes one look-up of a subject from the budget of the detector with this key prefix ("": nobody's) and the common one.
// What it returns is for refundFor, for a subject that there is.
func (b *budget) payFor(now int64, by string) (*bucket, error) {
	var own *bucket
	if by != "" {
		var ok bool
		if own, ok = b.askers.GetIfPresent(by); !ok {
			own, _ = b.askers.ComputeIfAbsent(by, func() (*bucket, bool) { return new(bucket), false })
		}
		if _, ok := own.take(now, 1, b.perAsker, budgetBurst); !ok {
			return nil, errOverAsker
		}
	}
	if _, ok := b.total.take(now, 1, b.perSecond, budgetBurst); !ok {
		if own != nil {
			own.refund(1, b.perAsker)
		}
		return nil, errOverTotal
	}
	return own, nil
}

func (b *budget) refundFor(own *bucket) {
	b.total.refund(1, b.perSecond)
	if own != nil {
		own.refund(1, b.perAsker)
	}
}

// vouch notes that an address sent a good key that another tier knew.
func (b *budget) vouch(now int64, remote netip.Addr) { b.source(remote).good.Store(now) }

func (b *budget) source(remote netip.Addr) *source {
	remote = remote.Unmap().WithZone("")
	if remote.Is6() {
		p, _ := remote.Prefix(64) // one customer, one /64; 64 is never too long
		remote = p.Addr()
	}
	if s, ok := b.sources.GetIfPresent(remote); ok {
		return s
	}
	s, _ := b.sources.ComputeIfAbsent(remote, func() (*source, bool) { return new(source), false })
	return s
}

// enter waits for a slot until ctx ends. The caller calls leave with the same known.
func (b *budget) enter(ctx context.Context, known bool) error {
	if !known {
		select {
		case b.unknown <- struct{}{}:
		case <-ctx.Done():
			return errOverSlots
		}
	}
	select {
	case b.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		if !known {
			<-b.unknown
		}
		return errOverSlots
	}
}

func (b *budget) leave(known bool) {
	<-b.slots
	if !known {
		<-b.unknown
	}
}

// refund gives n units back.
func (b *bucket) refund(n, rate int64) { b.full.Add(-cost(n, rate)) }

const (
	breakAfter = 3                      // failures in a row
	breakFor   = int64(1 * time.Second) // until one request tries again
)

// A breaker stops asking somebody who has failed several times in a row; then one caller a second tries. The zero value
// is closed.
type breaker struct {
	// One word, so that a success and a failure at once leave what one of them meant: below breakAfter the failures in a row, and closed;
	// from there on the chain time of the next try.
	state    atomic.Int64
	asked    atomic.Int64 // chain time of the last that was allowed
	answered atomic.Int64 // chain time of the last success; 0 for none
}

// allow reports whether the caller may ask. Who asks must report success or failure.
func (b *breaker) allow(now int64) bool {
	s := b.state.Load()
	if s >= breakAfter && (now < s || !b.state.CompareAndSwap(s, now+breakFor)) {
		return false
	}
	b.asked.Store(now)
	return true
}

// idle reports whether nobody has asked for so long, or the last who did met a failure: then somebody should find out.
func (b *breaker) idle(now, long int64) bool {
	return now-b.asked.Load() >= long || b.state.Load() != 0
}

func (b *breaker) success(now int64) {
	b.answered.Store(now)
	if b.state.Load() != 0 {
		b.state.Store(0)
	}
}

func (b *breaker) failure(now int64) {
	for {
		old := b.state.Load()
		next := old + 1
		if next >= breakAfter {
			next = now + breakFor
		}
		if b.state.CompareAndSwap(old, next) {
			return
		}
	}
}

// answeredSince reports whether a success is that new.
func (b *breaker) answeredSince(at int64) bool {
	last := b.answered.Load()
	return last != 0 && last >= at
}

func (b *breaker) closed() bool { return b.state.Load() < breakAfter }
