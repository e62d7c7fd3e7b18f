package otlp

import (
	"encoding/binary"
	"slices"
)

// legacyScopes is where a ResourceLogs (Spans, Metrics) kept its scopes before OTLP 0.19. The official types have forgotten
// it, but the Collector's still read it, so that it would be a way past the filter. Its content is read by the rules of
// today and leaves in field 2.
const legacyScopes = 1000

// Result counts what a body held. Records and Signals together are what was received.
type Result struct {
	Records  int // log records, spans or metric data points left in the payload
	Signals  int // log records that were signals, each given to visit
	Stripped int // attributes and entity keys of the client's that were under `flowstate.`; those of signals too
}

// A Visitor is told of the log records that are signals. Either function may be nil.
type Visitor struct {
	// Drop is asked first about a signal that names one type, as a string, and no subject, in a body without forged attributes. Where it
	// says true the signal is taken out and counted, and nothing else of it is decoded or checked. The bytes are the body's.
	Drop func(signalType []byte) bool
	// Visit is given each of the others.
	Visit func(*SignalRecord)
}

// A Rewriter is scratch that one call of Rewrite after another may use, not two at once. The zero value is ready.
type Rewriter struct {
	w walker
	c cutter
}

// Rewrite validates body, an Export…ServiceRequest of the given kind in protobuf, and appends to dst the same request with
// the badge in each Resource, without the client's own `flowstate.*` attributes and without the log records that are
// signals. The visitor hears of each of those, in order, once the whole body is known to be valid; kinds other than Logs have none.
// Where no record is left nothing is appended: there is nothing to forward.
//
// The badge must have been made by the Append functions of this package. Rewrite keeps neither body nor badge, does not
// change them, and dst must not overlap them. On a [*MalformedError] dst comes back as it was and the visitor heard nothing.
// A warm Rewriter with a warm dst costs no allocation for a body without signals, nor for signals that are dropped.
func (r *Rewriter) Rewrite(dst []byte, kind Kind, body, badge []byte, v Visitor) ([]byte, Result, error) {
	if err := r.Check(kind, body); err != nil {
		return dst, Result{}, err
	}
	dst, res := r.Copy(dst, badge, v)
	return dst, res, nil
}

// Check is the first half of Rewrite: it validates body, which must stay as it is until Copy.
func (r *Rewriter) Check(kind Kind, body []byte) error {
	r.w = walker{kind: kind, body: body, marked: r.w.marked[:0]}
	err := r.w.message(kind.request(), body)
	if kind != Logs {
		r.w.signals = false
	}
	return err
}

// Size is the most that Copy will append of the body that Check accepted last, with a badge of so many bytes.
func (r *Rewriter) Size(badge int) int {
	if r.w.records == 0 {
		return 0
	}
	return len(r.w.body) + r.w.resources*(badge+lengths)
}

// lengths is what the lengths around one resource may grow by, for each of them.
const lengths = 24

// Copy is the second half of Rewrite, for the body that Check accepted last. It lets go of the body.
func (r *Rewriter) Copy(dst, badge []byte, v Visitor) ([]byte, Result) {
	w := &r.w
	body := w.body
	r.c.taken = nil
	dst = slices.Grow(dst, r.Size(len(badge)))
	if !w.forged && !w.signals && !w.legacy {
		res := Result{Records: w.records}
		if w.records > 0 {
			dst = splice(dst, body, badge)
		}
		r.let()
		return dst, res
	}
	c := &r.c
	c.kind, c.badge, c.drop, c.visit, c.forged, c.marked, c.record, c.result = w.kind, badge, v.Drop, v.Visit, w.forged, w.marked, 0, Result{}
	c.taken = w.marked[:0] // what stands there is passed before it is written over
	start := len(dst)
	dst = c.request(dst, body)
	c.result.Records = w.records - c.result.Signals
	if c.result.Records == 0 {
		dst = dst[:start]
	}
	res := c.result
	r.let()
	return dst, res
}

// Place is which record of the body, from 0, the i-th of what Copy made of it was: the signals before it are not there any more. It is right until the next Check,
// for bodies of up to 16,384 signals.
func (r *Rewriter) Place(i int) int {
	for _, signal := range r.c.taken {
		if int(signal) > i {
			break
		}
		i++
	}
	return i
}

// kept bounds the scratch that a Rewriter keeps of each kind, in bytes.
const kept = 64 << 10

// let lets go of what is not the Rewriter's own, and of scratch that only a rare body needs.
func (r *Rewriter) let() {
	r.w.body = nil
	c := &r.c
	c.badge, c.drop, c.visit, c.marked = nil, nil, nil, nil
	if cap(r.w.marked) > kept/4 {
		r.w.marked, c.taken = nil, slices.Clone(c.taken)
	}
	if len(c.taken) > kept/4 {
		c.taken = nil // as many signals are refused
	}
	if cap(c.keys) > kept {
		c.keys = nil
	}
	if cap(c.values) > kept {
		c.values = nil
	}
}

// splice copies a valid body that has nothing to take out.
func splice(dst, body, badge []byte) []byte {
	for f := (fields{b: body}); f.next(); {
		if f.num != 1 {
			dst = append(dst, f.raw...)
			continue
		}
		held, taken := 0, 0 // bytes of the resource fields: their contents, and all
		for r := (fields{b: f.val}); r.next(); {
			if r.num == 1 {
				held += len(r.val)
				taken += len(r.raw)
			}
		}
		resource := held + len(badge)
		size := 1 + sizeUvarint(uint64(resource)) + resource + len(f.val) - taken
		dst = append(dst, 1<<3|wireBytes)
		dst = binary.AppendUvarint(dst, uint64(size))
		dst = append(dst, 1<<3|wireBytes)
		dst = binary.AppendUvarint(dst, uint64(resource))
		for r := (fields{b: f.val}); r.next(); {
			if r.num == 1 {
				dst = append(dst, r.val...)
			}
		}
		dst = append(dst, badge...)
		for r := (fields{b: f.val}); r.next(); {
			if r.num != 1 {
				dst = append(dst, r.raw...)
			}
		}
	}
	return dst
}

// cutter is the copy that takes things out of a valid body.
type cutter struct {
	kind   Kind
	badge  []byte
	drop   func([]byte) bool
	visit  func(*SignalRecord)
	result Result

	forged bool    // something under the namespace has to go
	marked []int32 // places of the records that may be signals, as the walk counted and in its order; what it has passed is cut off
	record int32   // place of the next record
	taken  []int32 // places of those that were signals

	// Of the signal under way.
	signal       SignalRecord
	keys, values []byte
	ends         []ends
}

// mayBeSignal says whether the walk marked the next record, and goes on to the one after.
func (c *cutter) mayBeSignal() bool {
	at := c.record
	c.record++
	if len(c.marked) == 0 || c.marked[0] != at {
		return false
	}
	c.marked = c.marked[1:]
	return true
}

func (c *cutter) request(dst, body []byte) []byte {
	for f := (fields{b: body}); f.next(); {
		if f.num != 1 {
			dst = append(dst, f.raw...)
			continue
		}
		before := len(dst)
		dst = append(dst, 1<<3|wireBytes)
		room := sizeUvarint(uint64(len(f.val) + len(c.badge)))
		var at int
		dst, at = openLen(dst, room)
		emptied := false
		dst, emptied = c.resource(dst, f.val)
		if emptied {
			dst = dst[:before]
			continue
		}
		dst = closeLen(dst, at, room)
	}
	return dst
}

// resource copies the content of a ResourceLogs or its like. It reports whether the signals that were taken out of it left
// nothing behind; one that the client sent empty is not ours to drop.
func (c *cutter) resource(dst, b []byte) ([]byte, bool) {
	held := len(c.badge)
	for f := (fields{b: b}); f.next(); {
		if f.num == 1 {
			held += len(f.val)
		}
	}
	dst = append(dst, 1<<3|wireBytes)
	room := sizeUvarint(uint64(held))
	dst, at := openLen(dst, room)
	for f := (fields{b: b}); f.next(); {
		switch {
		case f.num != 1:
		case c.forged:
			dst = c.strip(dst, &schema.resource, f.val)
		default:
			dst = append(dst, f.val...)
		}
	}
	dst = append(dst, c.badge...)
	dst = closeLen(dst, at, room)

	scopes := c.kind.request().fields[1].msg.fields[2].msg
	kept, dropped := 0, 0
	for f := (fields{b: b}); f.next(); {
		switch f.num {
		case 1:
		case 2, legacyScopes:
			before := len(dst)
			dst = append(dst, 2<<3|wireBytes)
			room := sizeUvarint(uint64(len(f.val)))
			dst, at = openLen(dst, room)
			emptied := false
			dst, emptied = c.scope(dst, scopes, f.val)
			if emptied {
				dropped++
				dst = dst[:before]
				continue
			}
			kept++
			dst = closeLen(dst, at, room)
		default:
			dst = append(dst, f.raw...)
		}
	}
	return dst, dropped > 0 && kept == 0
}

// scope copies the content of a ScopeLogs or its like, and reports whether taking signals out left it without records.
func (c *cutter) scope(dst []byte, m *message, b []byte) ([]byte, bool) {
	if c.kind != Logs {
		return c.stripped(dst, m, b), false
	}
	kept, taken := 0, 0
	from := 0 // b[from:] is not copied yet
	for f := (fields{b: b}); f.next(); {
		switch {
		case f.num == 2 && c.mayBeSignal() && isSignal(f.val):
			taken++
			c.taken = append(c.taken, c.record-1)
			dst = append(dst, b[from:f.i-len(f.raw)]...)
			from = f.i
			c.take(f.val)
			continue
		case f.num == 2:
			kept++
		case f.num != 1:
			continue
		}
		if c.forged {
			dst = append(dst, b[from:f.i-len(f.raw)]...)
			from = f.i
			dst = c.stripField(dst, f.num, m.fields[f.num].msg, f.val)
		}
	}
	return append(dst, b[from:]...), taken > 0 && kept == 0
}

// stripped is strip where there is something to strip.
func (c *cutter) stripped(dst []byte, m *message, b []byte) []byte {
	if !c.forged {
		return append(dst, b...)
	}
	return c.strip(dst, m, b)
}

// strip copies the content of a message of type m without the attributes under the namespace, at any depth.
func (c *cutter) strip(dst []byte, m *message, b []byte) []byte {
	for f := (fields{b: b}); f.next(); {
		known := &unknown
		if f.num < len(m.fields) {
			known = &m.fields[f.num]
		}
		switch {
		case known.typ == typeAttribute && isForged(keyOf(f.val)),
			known.typ == typeEntityKey && isForged(f.val):
			c.result.Stripped++
		case known.typ == typeMessage && known.msg.carries:
			dst = c.stripField(dst, f.num, known.msg, f.val)
		default:
			dst = append(dst, f.raw...)
		}
	}
	return dst
}

func (c *cutter) stripField(dst []byte, num int, m *message, b []byte) []byte {
	dst = appendTag(dst, num, wireBytes)
	room := sizeUvarint(uint64(len(b)))
	dst, at := openLen(dst, room)
	dst = c.strip(dst, m, b)
	return closeLen(dst, at, room)
}

// keyOf is the key of a valid KeyValue.
func keyOf(b []byte) []byte {
	for f := (fields{b: b}); f.next(); {
		if f.num == 1 {
			return f.val
		}
	}
	return nil
}
