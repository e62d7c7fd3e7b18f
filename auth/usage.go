package auth

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"hash/maphash"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"
)

const (
	usageBatch    = 2000             // rows of each sort in one transaction
	usageTimeout  = 5 * time.Second  // for one batch
	sendersEvery  = 5 * time.Second  // between two looks at who sent; what was sent is written each second
	senderIdle    = time.Minute      // after which an edge forgets a sender; the database has it
	newSenders    = 16               // of one key, that are noted between two looks
	maxSenders    = 200_000          // on one edge, about 300 bytes each
	maxSenderText = 120              // bytes that are kept of a user agent and of a service's name
	maxUsageRows  = 1_000_000        // keys and hours that could not be written yet
	usageBucket   = time.Hour        // of the database's rows
	keptSenders   = MaxSendersOfAKey // of one key on one edge
)

// MaxSendersOfAKey is how many senders of a key are known: the last ones.
const MaxSendersOfAKey = 16

// Usage is what was done with a key. Records count as the ledger counts them: what their sender was told.
type Usage struct {
	Requests    int64 // authenticated ones whose body was read, whatever their answer
	Accepted    int64 // records, as all until Unavailable
	Filtered    int64
	Invalid     int64
	Unavailable int64
	Refused     int64 // requests with the right secret that were refused all the same: over a limit, revoked, of another org
	Bytes       int64 // of the bodies, as sent
}

// Add adds o to u.
func (u *Usage) Add(o Usage) {
	u.Requests += o.Requests
	u.Accepted += o.Accepted
	u.Filtered += o.Filtered
	u.Invalid += o.Invalid
	u.Unavailable += o.Unavailable
	u.Refused += o.Refused
	u.Bytes += o.Bytes
}

// A KeyUsage is what was done with a key in one hour.
type KeyUsage struct {
	Prefix string
	Hour   time.Time // its first moment, by the edge's clock in UTC; a request counts in the hour in which it is flushed, within a second
	Usage
}

// A Sender is who used a key: where from, with what, and what it calls itself.
type Sender struct {
	Address   netip.Addr
	UserAgent string // at most 120 bytes
	Service   string // service.name of the first resource, at most 120 bytes; "" where none was sent
}

// A SenderUse is how often a sender used a key since the last time this was said.
type SenderUse struct {
	Prefix string
	Sender
	First, Last time.Time
	Count       int64
	New         bool // this edge had not said it before
}

// A UsageBatch is to be added to what is known, once: a Writer's batches have rising numbers, and one that was added already, or any before it, is
// not added again. So an edge that does not hear whether a batch was written sends it again.
type UsageBatch struct {
	Writer  string // one edge process
	Seq     int64
	Usage   []KeyUsage  // sorted by prefix and hour, each once
	Senders []SenderUse // sorted by prefix, each sender once
}

// usageCounts are the counts of one key on one edge since the last flush, beside its stamps.
type usageCounts struct {
	requests, accepted, filtered, invalid, unavailable, refused, bytes atomic.Int64

	queued  atomic.Bool // in usage.dirty
	senders atomic.Pointer[senderList]
	noted   atomic.Int32 // new senders since the last look
}

func (u *usageCounts) take() Usage {
	return Usage{
		Requests: u.requests.Swap(0), Accepted: u.accepted.Swap(0), Filtered: u.filtered.Swap(0), Invalid: u.invalid.Swap(0),
		Unavailable: u.unavailable.Swap(0), Refused: u.refused.Swap(0), Bytes: u.bytes.Swap(0),
	}
}

// A senderList is immutable; its senders count.
type senderList struct{ all []*sender }

type sender struct {
	hash uint64
	who  Sender

	first, last atomic.Int64 // unix ms; first since the last flush, 0 for none
	count       atomic.Int64 // since the last flush
	said        bool         // guarded by usage.flushing
}

// usage collects what was done with which keys. A request adds to atomics of its key and takes no lock, but once a key and flush, and for a
// sender that was not there before.
type usage struct {
	seed   maphash.Seed
	writer string
	total  atomic.Int64 // senders in memory

	mu    sync.Mutex
	dirty []*keyState // guarded by mu
	// sending has the keys with a senderList, skipped those that have none because the edge had too many, gone the senders that were pushed out
	// of a list. Guarded by mu.
	sending []*keyState
	skipped []*keyState
	gone    []SenderUse

	flushing sync.Mutex              // one flush at a time
	pending  map[usageRow]Usage      // guarded by flushing
	uses     []SenderUse             // guarded by flushing: not yet in a batch
	batch    *UsageBatch             // guarded by flushing: sent, and not known to be written
	looked   time.Time               // guarded by flushing
	closing  map[*keyState][]*sender // guarded by flushing: lists that were dropped at the last look; a request may still hold them
	seq      int64                   // guarded by flushing
}

type usageRow struct {
	id   PublicID
	hour int64 // unix seconds
}

func newUsage(now time.Time, edgeID string) *usage {
	return &usage{
		seed: maphash.MakeSeed(), writer: edgeID + "-" + rand.Text(), seq: now.UnixNano(),
		pending: map[usageRow]Usage{}, closing: map[*keyState][]*sender{},
	}
}

// Use adds to what was done with the key: a few atomic additions, no lock a flood could wait for, no allocation.
func (i Identity) Use(u Usage) { i.chain.use(i.state, u) }

func (c *Chain) use(s *keyState, u Usage) {
	if c.usage == nil {
		return
	}
	n := &s.usage
	for _, part := range [...]struct {
		at *atomic.Int64
		n  int64
	}{
		{&n.requests, u.Requests}, {&n.accepted, u.Accepted}, {&n.filtered, u.Filtered}, {&n.invalid, u.Invalid}, {&n.unavailable, u.Unavailable},
		{&n.refused, u.Refused}, {&n.bytes, u.Bytes},
	} {
		if part.n != 0 {
			part.at.Add(part.n)
		}
	}
	// After the counts: a flush lowers the flag before it takes them.
	if !n.queued.Load() && n.queued.CompareAndSwap(false, true) {
		c.usage.mu.Lock()
		c.usage.dirty = append(c.usage.dirty, s)
		c.usage.mu.Unlock()
	}
}

// NoteSender notes who used the key at t: the last 16 on each edge, and in the database. agent and service are borrowed, and cut to 120
// bytes. A sender that is known already costs a hash of both and two atomics, no allocation. Of new ones at most 16 a key are noted every five
// seconds, so that a key that is used from everywhere costs no more.
func (i Identity) NoteSender(address netip.Addr, agent, service []byte, t time.Time) {
	u := i.chain.usage
	if u == nil {
		return
	}
	agent, service = agent[:min(len(agent), maxSenderText)], service[:min(len(service), maxSenderText)]
	var h maphash.Hash
	h.SetSeed(u.seed)
	from := address.As16()
	for _, b := range from {
		_ = h.WriteByte(b) // a Write would move from to the heap
	}
	_, _ = h.Write(agent)
	_ = h.WriteByte(0)
	_, _ = h.Write(service)
	sum, ms := h.Sum64(), t.UnixMilli()
	if list := i.state.usage.senders.Load(); list != nil {
		for _, s := range list.all {
			if s.hash == sum {
				s.use(ms)
				return
			}
		}
	}
	if n := &i.state.usage.noted; n.Load() >= newSenders || n.Add(1) > newSenders {
		i.chain.metrics.sendersSkipped.Inc()
		return
	}
	u.add(i.state, &sender{hash: sum, who: Sender{address, CleanText(agent, maxSenderText), CleanText(service, maxSenderText)}}, ms, i.chain.metrics)
}

func (s *sender) use(ms int64) {
	s.first.CompareAndSwap(0, ms)
	s.last.Store(ms)
	s.count.Add(1)
}

// CleanText copies at most max bytes of what a stranger sent, fit to be stored and shown: valid UTF-8 without control characters, and of a
// key that somebody put there its prefix alone.
func CleanText(b []byte, max int) string {
	b = b[:min(len(b), max)]
	s := strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == utf8.RuneError {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(string(b), "?"))
	if prefix, ok := PrefixOf(s); ok {
		return prefix + "…"
	}
	return s
}

// add puts a new sender into the key's list, in place of the one not seen for longest where the list is full.
func (u *usage) add(st *keyState, s *sender, ms int64, m *metrics) {
	u.mu.Lock()
	defer u.mu.Unlock()
	old := st.usage.senders.Load()
	next := &senderList{}
	if old != nil {
		for _, other := range old.all {
			if other.hash == s.hash { // another request was quicker
				other.use(ms)
				return
			}
		}
		next.all = slices.Clone(old.all)
	}
	switch {
	case len(next.all) >= keptSenders:
		oldest := 0
		for i, other := range next.all {
			if other.last.Load() < next.all[oldest].last.Load() {
				oldest = i
			}
		}
		if out, ok := next.all[oldest].flush(st.id); ok {
			u.gone = append(u.gone, out)
		}
		next.all[oldest] = s
	case u.total.Load() >= maxSenders:
		m.sendersSkipped.Inc()
		if old == nil {
			u.skipped = append(u.skipped, st)
		}
		return
	default:
		u.total.Add(1)
		next.all = append(next.all, s)
	}
	s.use(ms)
	st.usage.senders.Store(next)
	if old == nil {
		u.sending = append(u.sending, st)
	}
}

// flush takes what the sender did since the last flush.
func (s *sender) flush(id PublicID) (SenderUse, bool) {
	n := s.count.Swap(0)
	if n == 0 {
		return SenderUse{}, false
	}
	last := s.last.Load()
	first := s.first.Swap(0)
	if first == 0 || first > last {
		first = last
	}
	out := SenderUse{Prefix: id.String(), Sender: s.who, First: time.UnixMilli(first), Last: time.UnixMilli(last), Count: n, New: !s.said}
	s.said = true
	return out, true
}

func (c *Chain) runUsage(ctx context.Context) {
	tick := time.NewTicker(c.cfg.Bounds.Poll)
	defer tick.Stop()
	trouble := trouble{log: c.cfg.Logger, what: "writes of usage"}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			err := c.flushUsage(ctx, false)
			if ctx.Err() == nil {
				trouble.note(err)
			}
		}
	}
}

// FlushUsage writes what was done with keys since the last call, and by whom, at most 2,000 rows a transaction. What cannot be written is kept,
// one row a key and hour, and tried again with the next call. Run calls it each second and once at its end. What a process that is killed had not
// flushed, a second's worth, is lost: it is a count, not a record.
func (c *Chain) FlushUsage(ctx context.Context) error { return c.flushUsage(ctx, true) }

func (c *Chain) flushUsage(ctx context.Context, whole bool) error {
	u := c.usage
	if u == nil {
		return nil
	}
	u.flushing.Lock()
	defer u.flushing.Unlock()
	now := c.cfg.Now()
	u.collect(now, c.metrics)
	// Senders that wait for a database that is away wait where they are.
	if len(u.uses) == 0 && (whole || now.Sub(u.looked) >= sendersEvery) {
		u.looked = now
		u.look(now)
	}
	for u.next() {
		call, cancel := context.WithTimeout(ctx, usageTimeout)
		err := c.cfg.Truth.Use(call, *u.batch)
		cancel()
		if err != nil {
			c.metrics.usageErrors.Inc()
			return fmt.Errorf("write usage: %w", err)
		}
		u.batch = nil
	}
	return nil
}

// collect takes the counts of all keys that were used.
func (u *usage) collect(now time.Time, m *metrics) {
	u.mu.Lock()
	dirty := u.dirty
	u.dirty = nil
	u.mu.Unlock()
	hour := now.UTC().Truncate(usageBucket).Unix()
	for _, st := range dirty {
		st.usage.queued.Store(false) // before the counts are taken: what comes after is queued again
		used := st.usage.take()
		if used == (Usage{}) {
			continue
		}
		row := usageRow{st.id, hour}
		sum, ok := u.pending[row]
		if !ok && len(u.pending) >= maxUsageRows {
			m.usageDropped.Inc()
			continue
		}
		sum.Add(used)
		u.pending[row] = sum
	}
}

// look takes what the senders did, and forgets those lists of which nobody has sent for a minute.
func (u *usage) look(now time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.uses = append(u.uses, u.gone...)
	u.gone = nil
	for st, senders := range u.closing {
		for _, s := range senders {
			if use, ok := s.flush(st.id); ok {
				u.uses = append(u.uses, use)
			}
		}
		delete(u.closing, st)
	}
	for _, st := range u.skipped {
		st.usage.noted.Store(0) // at most 16 times here, by noted itself
	}
	u.skipped = nil
	idle := now.Add(-senderIdle).UnixMilli()
	kept := u.sending[:0]
	for _, st := range u.sending {
		st.usage.noted.Store(0)
		list := st.usage.senders.Load()
		busy := false
		for _, s := range list.all {
			busy = busy || s.last.Load() >= idle
			if use, ok := s.flush(st.id); ok {
				u.uses = append(u.uses, use)
			}
		}
		if busy {
			kept = append(kept, st)
			continue
		}
		st.usage.senders.Store(nil)
		u.total.Add(-int64(len(list.all)))
		u.closing[st] = list.all
	}
	clear(u.sending[len(kept):])
	u.sending = kept
}

// next makes a batch of what waits, unless there is one already. It reports whether there is one.
func (u *usage) next() bool {
	if u.batch != nil {
		return true
	}
	if len(u.pending) == 0 && len(u.uses) == 0 {
		return false
	}
	u.seq++
	b := &UsageBatch{Writer: u.writer, Seq: u.seq}
	for row, sum := range u.pending {
		if len(b.Usage) == usageBatch {
			break
		}
		b.Usage = append(b.Usage, KeyUsage{Prefix: row.id.String(), Hour: time.Unix(row.hour, 0).UTC(), Usage: sum})
		delete(u.pending, row)
	}
	slices.SortFunc(b.Usage, func(x, y KeyUsage) int { return cmp.Or(strings.Compare(x.Prefix, y.Prefix), x.Hour.Compare(y.Hour)) })
	n := min(len(u.uses), usageBatch)
	b.Senders = mergeSenders(u.uses[:n])
	u.uses = u.uses[n:]
	if len(u.uses) == 0 {
		u.uses = nil
	}
	u.batch = b
	return true
}

// mergeSenders sorts, and joins what is said twice of one sender, which can be: one that was pushed out and came back.
func mergeSenders(uses []SenderUse) []SenderUse {
	sorted := slices.SortedFunc(slices.Values(uses), func(x, y SenderUse) int {
		return cmp.Or(strings.Compare(x.Prefix, y.Prefix), x.Address.Compare(y.Address), strings.Compare(x.UserAgent, y.UserAgent), strings.Compare(x.Service, y.Service))
	})
	merged := sorted[:0]
	for _, s := range sorted {
		if n := len(merged); n > 0 && merged[n-1].Prefix == s.Prefix && merged[n-1].Sender == s.Sender {
			last := &merged[n-1]
			last.Count += s.Count
			last.New = last.New || s.New
			if s.First.Before(last.First) {
				last.First = s.First
			}
			if s.Last.After(last.Last) {
				last.Last = s.Last
			}
			continue
		}
		merged = append(merged, s)
	}
	return merged
}
