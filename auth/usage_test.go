package auth

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"
)

// A counter is Truth.Use in memory: each batch once, as the database adds it.
type counter struct {
	mu      sync.Mutex // guards the following
	seq     map[string]int64
	usage   map[string]Usage
	senders map[string]map[Sender]int64
	largest int
	refuse  error // fails before anything is added
	lose    error // fails after it was
}

func newCounter() *counter {
	return &counter{seq: map[string]int64{}, usage: map[string]Usage{}, senders: map[string]map[Sender]int64{}}
}

func (c *counter) use(_ context.Context, b UsageBatch) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refuse != nil {
		return c.refuse
	}
	c.largest = max(c.largest, len(b.Usage), len(b.Senders))
	if b.Seq > c.seq[b.Writer] {
		c.seq[b.Writer] = b.Seq
		for _, u := range b.Usage {
			sum := c.usage[u.Prefix]
			sum.Add(u.Usage)
			c.usage[u.Prefix] = sum
		}
		for _, s := range b.Senders {
			if c.senders[s.Prefix] == nil {
				c.senders[s.Prefix] = map[Sender]int64{}
			}
			c.senders[s.Prefix][s.Sender] += s.Count
		}
	}
	return c.lose
}

func (c *counter) set(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
}

func countedChain(t *testing.T) (*Chain, *database, *counter, *clockwork) {
	t.Helper()
	clk := new(clockwork)
	d, n := newDatabase(clk.now), newCounter()
	return newChain(t, d, func(cfg *ChainConfig) { cfg.Truth.Use = n.use }), d, n, clk
}

func identity(t *testing.T, c *Chain, cred Credentials) Identity {
	t.Helper()
	id, err := c.Authenticate(t.Context(), cred, anywhere)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// Counts of many goroutines arrive once each, though the database is away, and though its answers are lost.
func TestUsageIsAddedOnce(t *testing.T) {
	c, d, n, _ := countedChain(t)
	_, one := d.create("one")
	_, two := d.create("two")
	ids := []Identity{identity(t, c, one), identity(t, c, two)}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 500 {
				ids[i%2].Use(Usage{Requests: 1, Bytes: 10})
				ids[i%2].Use(Usage{Accepted: 2, Filtered: 1})
			}
		})
	}
	failed := errors.New("away")
	for i := range 30 {
		n.set(func() {
			n.refuse, n.lose = nil, nil
			switch i % 3 {
			case 0:
				n.refuse = failed
			case 1:
				n.lose = failed
			}
		})
		err := c.FlushUsage(t.Context())
		if err != nil && !errors.Is(err, failed) {
			t.Fatal(err)
		}
	}
	wg.Wait()
	n.set(func() { n.refuse, n.lose = nil, nil })
	if err := c.FlushUsage(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := Usage{Requests: 2000, Accepted: 4000, Filtered: 2000, Bytes: 20_000}
	for _, id := range ids {
		if got := n.usage[id.KeyPrefix]; got != want {
			t.Errorf("%s: %+v, want %+v", id.KeyPrefix, got, want)
		}
	}
}

func TestRefusedUseIsCounted(t *testing.T) {
	c, d, n, _ := countedChain(t)
	_, cred := d.create("one")
	identity(t, c, cred)
	wrong := cred
	wrong.Slug = "another"
	refused(t, c, wrong, SlugMismatch)
	stolen := cred
	stolen.Key.Hash[0]++
	refused(t, c, stolen, HashMismatch) // whoever that was had no key
	c.Apply(d.revoke(cred))
	refused(t, c, cred, Revoked)
	refused(t, c, cred, Revoked)
	if err := c.FlushUsage(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := n.usage[cred.Key.Prefix()]; got != (Usage{Refused: 3}) {
		t.Errorf("%+v", got)
	}
}

func TestManyKeysAreWrittenInBatches(t *testing.T) {
	c, d, n, _ := countedChain(t)
	for i := range 3 * usageBatch / 2 {
		_, cred := d.create(fmt.Sprint("job-", i))
		id := identity(t, c, cred)
		id.Use(Usage{Accepted: 1})
		id.NoteSender(anywhere, []byte("job/1"), nil, time.Now())
	}
	if err := c.FlushUsage(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(n.usage) != 3*usageBatch/2 || len(n.senders) != len(n.usage) || n.largest > usageBatch {
		t.Errorf("%d keys, %d with senders, %d rows at once", len(n.usage), len(n.senders), n.largest)
	}
}

func TestSenders(t *testing.T) {
	c, d, n, clk := countedChain(t)
	_, cred := d.create("one")
	id := identity(t, c, cred)
	from := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}) }
	now := clk.now()
	note := func(i int, agent, service string) {
		now = now.Add(time.Millisecond)
		id.NoteSender(from(i), []byte(agent), []byte(service), now)
	}
	long, key := strings.Repeat("é", 100), "curl "+"fsk_abcdefghijkl"
	for range 5 {
		note(1, "job/1", "digest")
		note(1, "job/2", "digest")
		note(1, "job/1", "")
		note(2, long, "a\x00b\nc")
		note(3, key, "")
	}
	if err := c.FlushUsage(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := n.senders[cred.Key.Prefix()]
	for s, count := range got {
		if count != 5 || len(s.UserAgent) > maxSenderText+3 || strings.ContainsAny(s.Service, "\x00\n") {
			t.Errorf("%+v: %d", s, count)
		}
	}
	if len(got) != 5 || got[Sender{from(1), "job/2", "digest"}] != 5 {
		t.Errorf("%v", got)
	}
	// From everywhere: sixteen new ones in five seconds, and sixteen in memory.
	for i := range 1000 {
		note(100+i, "job/1", "")
	}
	if err := c.FlushUsage(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(got) > 5+newSenders || len(id.state.usage.senders.Load().all) > MaxSendersOfAKey || counted(t, c, "sluice_auth_senders_skipped_total") < 900 {
		t.Errorf("%d senders, %d in memory", len(got), len(id.state.usage.senders.Load().all))
	}
	// Idle ones leave memory, and what a request adds meanwhile is not lost.
	list := id.state.usage.senders.Load()
	clk.advance(2 * senderIdle)
	if err := c.FlushUsage(t.Context()); err != nil {
		t.Fatal(err)
	}
	if id.state.usage.senders.Load() != nil || c.usage.total.Load() != 0 {
		t.Error("idle senders stay in memory")
	}
	late := list.all[len(list.all)-1]
	before := got[late.who]
	late.use(clk.now().UnixMilli())
	if err := c.FlushUsage(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got[late.who] != before+1 {
		t.Error("a use by a sender that was just forgotten is lost")
	}
}

// A key that was turned away because the edge knew too many senders is noted again once there is room.
func TestSendersAfterTooMany(t *testing.T) {
	c, d, n, clk := countedChain(t)
	_, cred := d.create("one")
	id := identity(t, c, cred)
	note := func(i byte) { id.NoteSender(netip.AddrFrom4([4]byte{192, 0, 2, i}), []byte("job"), nil, clk.now()) }
	c.usage.total.Store(maxSenders)
	for i := range byte(2 * newSenders) {
		note(i)
	}
	if err := c.FlushUsage(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := n.senders[cred.Key.Prefix()]; len(got) != 0 {
		t.Fatalf("noted although there were too many: %v", got)
	}
	c.usage.total.Store(0)
	note(1)
	if err := c.FlushUsage(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := n.senders[cred.Key.Prefix()]; len(got) != 1 {
		t.Errorf("%v, want one sender", got)
	}
}

func TestUsageAllocatesNothing(t *testing.T) {
	c, d, _, _ := countedChain(t)
	_, cred := d.create("one")
	id := identity(t, c, cred)
	agent, service, now := []byte("job/1"), []byte("digest"), time.Now()
	id.NoteSender(anywhere, agent, service, now)
	id.Use(Usage{Accepted: 1})
	if n := testing.AllocsPerRun(100, func() {
		id.Use(Usage{Requests: 1, Bytes: 100})
		id.Use(Usage{Accepted: 1, Filtered: 1})
		id.NoteSender(anywhere, agent, service, now)
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
