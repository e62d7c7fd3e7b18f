package ingest

import (
	"bytes"
	"slices"
	"strconv"

	"flowstate.inc/sluice/ingest/otlp"
	"flowstate.inc/sluice/signals"
)

// maxMessageText is how much an answer says about what was filtered and invalid (design §6).
const maxMessageText = 4 << 10

// maxNotes bounds the kinds of what was filtered and invalid that are told apart: a sender chooses the names of types.
const maxNotes = 64

// A batch is what one request leaves behind: messages that own their bytes, and the outcomes to settle when they are acknowledged.
//
// The edge keeps those that are done with, and the scratch in them, for the next request.
type batch struct {
	messages []Message
	carried  []carried // what each message carries
	tally    tally
	rejected int           // records filtered or invalid, for partial_success
	notes    noteList      // what an answer says about them, at most maxNotes
	unnoted  int           // records beyond those
	warned   bool          // some of what was accepted has a warning among the notes
	filtered []tallied     // for the counts by subject
	refused  []invalidItem // events that Kafka itself refused for good, by their places in the request

	request *requestID // of the request; nil where there is none
	named   []byte     // a copy of it, which its events share

	payload  *lease // of the telemetry; released when the answer is decided
	ended    []ended
	fates    []fate
	rewriter otlp.Rewriter
	found    finder
	text     []byte
}

// requestID is the request's id, in memory that messages may keep.
func (b *batch) requestID() []byte {
	if b.named == nil && b.request != nil {
		b.named = bytes.Clone(b.request.bytes())
	}
	return b.named
}

// maxScratch bounds what a batch that is kept holds of each list.
const maxScratch = 64

func (e *Edge) batch() *batch {
	b, ok := e.batches.Get().(*batch)
	if !ok {
		b = &batch{}
	}
	return b
}

// done takes back a batch whose request is answered. The messages themselves may still be under way.
func (e *Edge) done(b *batch) {
	b.payload.release()
	*b = batch{
		carried: b.carried[:0], tally: tally{b.tally.counts[:0]}, notes: emptied(b.notes), filtered: emptied(b.filtered), ended: b.ended[:0], fates: b.fates[:0],
		rewriter: b.rewriter, found: b.found, text: b.text[:0],
	}
	if cap(b.carried) > maxScratch || cap(b.ended) > maxScratch || cap(b.fates) > maxScratch {
		b.carried, b.ended, b.fates = nil, nil, nil
	}
	b.found.reset()
	e.batches.Put(b)
}

// emptied is an empty list in the same memory, unless that is large.
func emptied[S ~[]T, T any](list S) S {
	if cap(list) > maxScratch {
		return nil
	}
	clear(list)
	return list[:0]
}

// carried is what one message carries.
type carried struct {
	kind    string
	payload otlp.Kind // 0: a signal's event
	records int
	first   int // place of its first record in the payload that was made of the request
	index   int // of a signal in its request
}

// A noteList counts filtered and invalid records by type and reason.
type noteList []note

type note struct {
	kind    string // of the records
	what    string // a signal's type, or the kind again
	outcome signals.Outcome
	reason  signals.Reason
	detail  string // of the first
	n       int
}

func (b *batch) reject(kind, what string, o signals.Outcome, reason signals.Reason, detail string, n int) {
	b.tally.add(kind, o, reason, n)
	b.rejected += n
	for i := range b.notes {
		if b.notes[i].what == what && b.notes[i].reason == reason {
			b.notes[i].n += n
			return
		}
	}
	if len(b.notes) < maxNotes {
		b.notes = append(b.notes, note{kind, what, o, reason, detail, n})
		return
	}
	b.unnoted += n
}

// warned and its reasons are how a note says that something passed, and was probably meant otherwise.
const (
	warned           signals.Outcome = "warning"
	unknownAttribute signals.Reason  = "unknown_attribute"
	nothingFound     signals.Reason  = "nothing_found"
)

// warn notes what a sender should hear of what passed.
func (b *batch) warn(what string, reason signals.Reason, detail string) {
	b.warned = true
	for i := range b.notes {
		if b.notes[i].what == what && b.notes[i].reason == reason {
			b.notes[i].n++
			return
		}
	}
	if len(b.notes) < maxNotes {
		b.notes = append(b.notes, note{"", what, warned, reason, detail, 1})
	}
}

// refuse takes down a message that Kafka itself will never take.
func (b *batch) refuse(m *Message, c carried, reason signals.Reason, detail string) {
	if c.payload != 0 {
		detail += ": " + otlp.FirstRecord(m.Value, c.payload, b.rewriter.Place(c.first)).String()
	}
	b.reject(c.kind, c.kind, signals.Invalid, reason, detail, c.records)
	if c.kind == kindSignals {
		b.refused = append(b.refused, invalidItem{c.index, reason, detail})
	}
}

func (b *batch) add(m Message, c carried) {
	b.messages = append(b.messages, m)
	b.carried = append(b.carried, c)
}

// message names type × count × reason, in at most maxMessageText bytes.
func (b *batch) message() string {
	s := b.text[:0]
	for i := range b.notes {
		n := &b.notes[i]
		size := len(n.outcome) + len(n.what) + len(n.reason) + 32
		if n.outcome == signals.Invalid || n.outcome == warned {
			size += len(n.detail)
		}
		if len(s)+size > maxMessageText-64 {
			s = append(s, "; and "...)
			s = append(strconv.AppendInt(s, int64(len(b.notes)-i), 10), " more kinds"...)
			break
		}
		if len(s) > 0 {
			s = append(s, "; "...)
		}
		s = append(append(append(append(s, n.outcome...), ": "...), n.what...), " × "...)
		s = append(append(append(strconv.AppendInt(s, int64(n.n), 10), " ("...), n.reason...), ')')
		if (n.outcome == signals.Invalid || n.outcome == warned) && n.detail != "" {
			s = append(append(s, ": "...), n.detail...)
		}
	}
	if b.unnoted > 0 {
		s = append(s, "; and "...)
		s = append(strconv.AppendInt(s, int64(b.unnoted), 10), " more records"...)
	}
	b.text = s
	return string(s)
}

// split adds the parts of a payload that is over max bytes. It fails where they cannot be charged.
func (b *batch) split(m Message, c carried, max int, charged *charge) error {
	parts := partsOf{b: b, m: m, c: c, charged: charged}
	over, err := otlp.SplitTo(m.Value, c.payload, max, parts.add)
	if ofBudget(err) {
		return err
	}
	if err != nil {
		panic("BUG: a payload that was rewritten does not split: " + err.Error())
	}
	if over.Records > 0 {
		over.First.Place = b.rewriter.Place(over.First.Place)
		b.reject(c.kind, c.kind, signals.Invalid, signals.TooLarge, over.String(), over.Records)
	}
	return nil
}

// halve adds the two halves of a payload of several records, by their number.
func (b *batch) halve(m Message, c carried) {
	parts := partsOf{b: b, m: m, c: c}
	if err := otlp.Halve(m.Value, c.payload, parts.add); err != nil {
		panic("BUG: a payload that was rewritten does not split: " + err.Error())
	}
}

// partsOf adds the parts of m. The id of each names the records that it holds: a retry may be cut elsewhere, since the badge has grown or the broker's
// limit has changed, and a consumer that drops what it has seen must then get some records twice rather than miss others.
type partsOf struct {
	b *batch
	m Message
	c carried

	charged *charge // nil: what they were cut from is counted elsewhere
}

func (n *partsOf) add(piece []byte, first, records int) error {
	m := Message{Topic: n.m.Topic, Key: slices.Clone(n.m.Key), Value: piece, Headers: make([]Header, len(n.m.Headers))}
	for i, h := range n.m.Headers { // of their own: they may outlive the lease of the whole
		m.Headers[i] = Header{h.Key, slices.Clone(h.Value)}
	}
	first += n.c.first
	id := &m.Headers[len(m.Headers)-1].Value
	*id = append((*id)[:msgIDLength], '-') // without the range of what was cut
	*id = append(strconv.AppendInt(*id, int64(first), 10), '-')
	*id = strconv.AppendInt(*id, int64(records), 10)
	if n.charged != nil {
		if err := n.charged.take(heldBy(&m)); err != nil {
			return err
		}
	}
	n.b.add(m, carried{kind: n.c.kind, payload: n.c.payload, records: records, first: first})
	return nil
}
