package auth

import (
	"sync/atomic"
	"time"
)

// A Decision is the answer to "may this request of this key go on?". It is a value; making one allocates nothing.
type Decision struct {
	OK         bool
	By         LimitKind     // which limit speaks: the one that refused, else the one with the least left
	Limit      int64         // of that limit, a second; 0 where the key has no limit at all
	Remaining  int64         // whole requests (or bytes) that would still pass at once
	Reset      time.Duration // until Remaining is at its most again
	RetryAfter time.Duration // 0 when OK; never 0 otherwise
}

// A LimitKind names a limit in RateLimit headers and metrics.
type LimitKind string

// The limits of a key.
const (
	ByRequests LimitKind = "requests"
	ByBytes    LimitKind = "bytes"
)

// A bucket is a token bucket kept as one number: the time at which it will be full again (GCRA's theoretical arrival
// time), in nanoseconds of the chain's clock. One compare-and-swap takes from it, so senders of one key never wait for
// each other and those of another key never meet them. The rate is not part of it: an edited limit holds at once.
type bucket struct{ full atomic.Int64 }

// cost is how long n units take at rate a second.
func cost(n, rate int64) int64 {
	ns := float64(n) / float64(rate) * 1e9
	if ns > float64(maxDebt) {
		return int64(maxDebt)
	}
	return int64(ns)
}

// maxDebt bounds how long one huge request can shut its key out.
const maxDebt = 30 * time.Second

// take takes n units if the bucket holds them. It reports how far ahead of now the bucket's time is after it.
func (b *bucket) take(now, n, rate, burst int64) (int64, bool) {
	c := cost(n, rate)
	if burst < c {
		burst = c // a limit under one a burst still lets one pass
	}
	for {
		old := b.full.Load()
		start := max(old, now)
		if start+c-now > burst {
			return start - now, false
		}
		if b.full.CompareAndSwap(old, start+c) {
			return start + c - now, true
		}
	}
}

// spend takes n units whether they are there or not; what is missing is a debt that later requests wait for.
func (b *bucket) spend(now, n, rate int64) {
	c := cost(n, rate)
	for {
		old := b.full.Load()
		full := min(max(old, now)+c, now+int64(maxDebt))
		if full <= old || b.full.CompareAndSwap(old, full) {
			return
		}
	}
}

// ahead is how far ahead of now the bucket's time is: 0 when it is full.
func (b *bucket) ahead(now int64) int64 { return max(b.full.Load()-now, 0) }

// Allow asks whether one more request may pass, and takes it from the key's requests if so. A key whose bytes are in
// debt is refused as well; call Spend once the size of the body is known. It allocates nothing and never waits.
func (i Identity) Allow() Decision {
	rl, now := i.limits()
	burst := int64(i.chain.cfg.Burst)
	d := Decision{OK: true, By: ByRequests}
	bytes := Decision{OK: true, By: ByBytes}
	if rl.BytesPerSecond > 0 {
		ahead := i.state.bytes.ahead(now)
		bytes.Limit = rl.BytesPerSecond
		bytes.Reset = time.Duration(ahead)
		bytes.Remaining = units(burst-ahead, rl.BytesPerSecond)
		if ahead >= burst {
			bytes.OK = false
			bytes.Remaining = 0
			bytes.RetryAfter = max(time.Duration(ahead-burst), time.Millisecond)
			return bytes
		}
	}
	if rl.RequestsPerSecond > 0 {
		one := cost(1, rl.RequestsPerSecond)
		ahead, ok := i.state.requests.take(now, 1, rl.RequestsPerSecond, burst)
		d.Limit = rl.RequestsPerSecond
		d.Reset = time.Duration(ahead)
		d.Remaining = units(max(burst, one)-ahead, rl.RequestsPerSecond)
		if !ok {
			d.OK = false
			d.Remaining = 0
			d.RetryAfter = max(time.Duration(ahead+one-max(burst, one)), time.Millisecond)
			return d
		}
	}
	if bytes.Limit > 0 && (d.Limit == 0 || bytes.Reset > d.Reset) {
		return bytes
	}
	return d
}

// Spend takes the bytes of a body that Allow let in. The body that overdraws passes; the ones after it wait.
func (i Identity) Spend(bytes int64) {
	rl, now := i.limits()
	if rl.BytesPerSecond > 0 && bytes > 0 {
		i.state.bytes.spend(now, bytes, rl.BytesPerSecond)
	}
}

// limits returns the key's limits with the edge's defaults filled in, and the time.
func (i Identity) limits() (Limits, int64) {
	l := i.Principal.Limits
	if l.RequestsPerSecond == 0 {
		l.RequestsPerSecond = i.chain.cfg.DefaultLimits.RequestsPerSecond
	}
	if l.BytesPerSecond == 0 {
		l.BytesPerSecond = i.chain.cfg.DefaultLimits.BytesPerSecond
	}
	if l.RequestsPerSecond <= 0 && l.BytesPerSecond <= 0 {
		return Limits{}, 0
	}
	return l, i.chain.clock()
}

func units(ns, rate int64) int64 {
	if ns <= 0 {
		return 0
	}
	return int64(float64(ns) / 1e9 * float64(rate))
}
