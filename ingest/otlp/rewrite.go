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

// Rewrite validates body, an Export…ServiceRequest of the given kind in protobuf, and appends to dst the same request with
// the badge in each Resource, without the client's own `flowstate.*` attributes and without the log records that are
// signals. visit is called for each of those, in order, once the whole body is known to be valid; it may be nil for kinds
// other than Logs. Where no record is left nothing is appended: there is nothing to forward.
//
// The badge must have been made by the Append functions of this package. Rewrite keeps neither body nor badge, does not
// change them, and dst must not overlap them. On a [*MalformedError] dst comes back as it was and visit was not called.
// A warm dst and a body with nothing to take out cost no allocation.
func Rewrite(dst []byte, kind Kind, body, badge []byte, visit func(*SignalRecord)) ([]byte, Result, error) {
	var w walker
	if err := w.message(kind.request(), body); err != nil {
		return dst, Result{}, err
	}
	if kind != Logs {
		w.signals = false
	}
	if !w.forged && !w.signals && !w.legacy {
		if w.records == 0 {
			return dst, Result{}, nil
		}
		dst = slices.Grow(dst, len(body)+w.resources*(len(badge)+24))
		return splice(dst, body, badge), Result{Records: w.records}, nil
	}
	c := cutter{kind: kind, badge: badge, visit: visit}
	start := len(dst)
	dst = slices.Grow(dst, len(body)+w.resources*(len(badge)+24))
	dst = c.request(dst, body)
	c.result.Records = w.records - c.result.Signals
	if c.result.Records == 0 {
		dst = dst[:start]
	}
	return dst, c.result, nil
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
	visit  func(*SignalRecord)
	result Result
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
		if f.num == 1 {
			dst = c.strip(dst, &schema.resource, f.val)
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
		return c.strip(dst, m, b), false
	}
	kept, taken := 0, 0
	for f := (fields{b: b}); f.next(); {
		switch {
		case f.num == 2 && isSignal(f.val):
			taken++
			c.take(f.val)
		case f.num == 2:
			kept++
			dst = c.stripField(dst, f.num, m.fields[2].msg, f.val)
		case f.num == 1:
			dst = c.stripField(dst, f.num, m.fields[1].msg, f.val)
		default:
			dst = append(dst, f.raw...)
		}
	}
	return dst, taken > 0 && kept == 0
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
