package ingest

import (
	"errors"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// errBudget says that the bytes of other bodies have to go first.
var errBudget = errors.New("too many bytes of request bodies are in memory")

// ofBudget says whether err is from charge.take.
func ofBudget(err error) bool {
	var never *tooMuch
	return errors.Is(err, errBudget) || errors.As(err, &never)
}

const (
	smallBody = 64 << 10 // up to here a body counts, but its key has no share to keep to
	largeBody = 1 << 20  // from here on a body leaves the last quarter of the budget to others

	// modest is what the buffers of a small body come to: as sent, decoded and copied, each from the pool. From here on a request leaves the last
	// eighth of the budget to others.
	modest = 4 * smallBody
)

// A budget bounds the bytes of request bodies that are in memory at once: as sent, decompressed and rewritten, over all listeners. Bytes
// are charged as they arrive, not as they are announced, so that a client that promises much and sends little holds little.
//
// Who sends much must not shut out who sends little: bodies over largeBody may fill three quarters of it only, those over modest seven eighths, and the
// bodies of one key a half. A body that announces its size is held to what it announces from its first byte.
// A request that is its key's only one is not held to the key's share, so that any body within the limits passes an idle edge.
type budget struct {
	limit int64
	used  atomic.Int64

	mu     sync.Mutex
	shares map[string]*share // by key prefix: those with a body over smallBody

	refusals prometheus.Counter
}

// A share is what the larger bodies of one key hold.
type share struct {
	bytes    int64
	requests int
}

func newBudget(limit int64, reg prometheus.Registerer) *budget {
	b := &budget{limit: limit, shares: map[string]*share{}, refusals: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "sluice_ingest_body_refusals_total",
		Help: "Requests refused because too many bytes of bodies were in memory (--max-body-bytes), in all or of one key.",
	})}
	reg.MustRegister(b.refusals,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "sluice_ingest_body_bytes",
			Help: "Bytes of request bodies in memory: as sent, decompressed and rewritten.",
		}, func() float64 { return float64(b.used.Load()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "sluice_ingest_body_limit_bytes",
			Help: "How many bytes of request bodies may be in memory (--max-body-bytes).",
		}, func() float64 { return float64(limit) }))
	return b
}

// A charge is what one request holds of the budget. The zero charge of a budget and a key holds nothing.
type charge struct {
	budget    *budget
	key       string // prefix
	announced int64  // the size that the body says it has; 0: it does not say
	bytes     int64
	shared    *share // nil while the request is small
}

// take charges n bytes more, or nothing and errBudget, or tooMuch where that would be so on an idle edge too.
func (c *charge) take(n int) error {
	b, total := c.budget, c.bytes+int64(n)
	ceiling := b.limit
	switch size := max(total, c.announced); {
	case size > largeBody:
		ceiling = b.limit / 4 * 3
	case size > modest:
		ceiling = b.limit / 8 * 7
	}
	if total > ceiling {
		return &tooMuch{"what is made of it takes", total, ceiling, "of --max-body-bytes"}
	}
	if !b.add(int64(n), ceiling) {
		b.refusals.Inc()
		return errBudget
	}
	if total > smallBody && !c.takeShare(total) {
		b.used.Add(-int64(n))
		b.refusals.Inc()
		return errBudget
	}
	c.bytes = total
	return nil
}

// add adds n bytes if they stay within the ceiling. What does not fit is never added, not even for a moment: others would be refused for it.
func (b *budget) add(n, ceiling int64) bool {
	for {
		used := b.used.Load()
		if used+n > ceiling {
			return false
		}
		if b.used.CompareAndSwap(used, used+n) {
			return true
		}
	}
}

// takeShare raises what the request holds of its key's share to total bytes.
func (c *charge) takeShare(total int64) bool {
	b := c.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	s := c.shared
	if s == nil {
		if s = b.shares[c.key]; s == nil {
			s = &share{}
			b.shares[c.key] = s
		}
		if s.requests > 0 && s.bytes+total > b.limit/2 {
			return false
		}
		s.requests++
		s.bytes += total
		c.shared = s
		return true
	}
	if s.requests > 1 && s.bytes+total-c.bytes > b.limit/2 {
		return false
	}
	s.bytes += total - c.bytes
	return true
}

// give returns n bytes.
func (c *charge) give(n int) {
	c.bytes -= int64(n)
	if c.shared != nil {
		c.budget.mu.Lock()
		c.shared.bytes -= int64(n)
		c.budget.mu.Unlock()
	}
	c.budget.used.Add(-int64(n))
}

// release returns all of it. A second call does nothing.
func (c *charge) release() {
	if s := c.shared; s != nil {
		b := c.budget
		b.mu.Lock()
		s.bytes -= c.bytes
		s.requests--
		if s.requests == 0 {
			delete(b.shares, c.key)
		}
		b.mu.Unlock()
		c.shared = nil
	}
	if c.bytes != 0 {
		c.budget.used.Add(-c.bytes)
		c.bytes = 0
	}
}
