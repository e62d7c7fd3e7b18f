package ingest

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"flowstate.inc/sluice/auth"
)

const (
	// keptRefusals is how many refusals an edge remembers, of keys that it knows and of others each.
	keptRefusals = 1000
	// takenRefusals bounds what one TakeRefusals returns of each.
	takenRefusals = 100
	maxPathText   = 100
	maxAgentText  = 120
)

// A Refused is a request that the edge answered with a 4xx. It holds no key: what a stranger sent is cut, and keys in it to their prefix.
type Refused struct {
	At        time.Time `json:"at"`
	Code      int       `json:"code"`
	Reason    string    `json:"reason"`  // as in sluice_ingest_requests_total
	Address   string    `json:"address"` // "" where it is not known
	Prefix    string    `json:"key_prefix"`
	Path      string    `json:"path"`
	UserAgent string    `json:"user_agent"`
	RequestID string    `json:"request_id"`    // of the last
	Count     int64     `json:"count"`         // 1, but for what TakeRefusals put together
	Seq       uint64    `json:"seq,omitempty"` // from 1; with Reason it is this process's alone
}

// refusals remembers the last refused requests. Those of keys that the edge knows have room of their own, so that a flood of strangers
// does not push them out. A request stores one pointer and takes no lock.
type refusals struct {
	known, strangers ring
}

type ring struct {
	next  atomic.Uint64
	slots [keptRefusals]atomic.Pointer[slot]

	mu    sync.Mutex
	taken uint64 // guarded by mu: how far TakeRefusals has come
}

type slot struct {
	seq uint64
	r   Refused
}

func (g *ring) add(r Refused) {
	seq := g.next.Add(1) - 1
	r.Seq = seq + 1
	g.slots[seq%keptRefusals].Store(&slot{seq, r})
}

// since returns what is still there from number seq on, oldest first.
func (g *ring) since(seq uint64) []Refused {
	next := g.next.Load()
	if next > keptRefusals {
		seq = max(seq, next-keptRefusals)
	}
	var out []Refused
	for ; seq < next; seq++ {
		// A slot may be written over meanwhile, or not be written yet.
		if s := g.slots[seq%keptRefusals].Load(); s != nil && s.seq == seq {
			out = append(out, s.r)
		}
	}
	return out
}

// take returns what came since it was called last; the same sender, key, reason and path is said once, with a count.
func (g *ring) take() []Refused {
	g.mu.Lock()
	defer g.mu.Unlock()
	from := g.taken
	g.taken = g.next.Load()
	type same struct{ address, prefix, reason, path, agent string }
	var out []Refused
	at := map[same]int{}
	for _, r := range g.since(from) {
		k := same{r.Address, r.Prefix, r.Reason, r.Path, r.UserAgent}
		i, ok := at[k]
		switch {
		case ok:
			r.Count += out[i].Count
			out[i] = r
		case len(out) < takenRefusals:
			at[k] = len(out)
			out = append(out, r)
		}
	}
	return out
}

// note remembers an answer, if it refuses for a reason of the client's.
func (e *Edge) note(rt route, r *request, res response) {
	if res.code < 400 || res.code >= 500 {
		return
	}
	n := Refused{At: time.Now().UTC(), Code: res.code, Reason: string(res.reason), UserAgent: auth.CleanText(r.userAgent, maxAgentText),
		RequestID: r.id.String(), Count: 1}
	if r.remote.IsValid() {
		n.Address = r.remote.String()
	}
	if rt.kind != "" {
		n.Path = string(r.path) // one of ours
	} else {
		n.Path = auth.CleanText(r.path, maxPathText)
	}
	// Of a malformed key too, where its beginning is whole: whose it was meant to be is what one wants to know.
	if !r.ambiguous {
		n.Prefix, _ = auth.PrefixFromHeaders(r.key, r.authorization)
	}
	switch res.reason {
	case noCredentials, malformedKey, ambiguousKey, unknownKey, unknownPath, wrongMethod, malformedRequest, headersTooLarge, readTimeout:
		e.refusals.strangers.add(n)
	default:
		e.refusals.known.add(n)
	}
}

// Refusals returns the last refused requests of this edge, oldest first: up to 1,000 of keys that it knows, and as many others.
func (e *Edge) Refusals() []Refused {
	out := append(e.refusals.known.since(0), e.refusals.strangers.since(0)...)
	slices.SortStableFunc(out, func(a, b Refused) int { return a.At.Compare(b.At) })
	return out
}

// TakeRefusals returns what was refused since it was called last, as far as it is remembered, those of one sender for one reason put together: at
// most 100 rows of keys that the edge knows, and as many others. It is called by one goroutine, each second.
func (e *Edge) TakeRefusals() []Refused {
	return append(e.refusals.known.take(), e.refusals.strangers.take()...)
}
