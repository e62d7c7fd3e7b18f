package otlp

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"math"
)

// eventNameKey is the attribute that named a log record's event before LogRecord had a field for it.
const eventNameKey = "event.name"

// Attribute is one attribute of a signal, in the order in which it was sent. Value is valid JSON, whose reader owns it.
type Attribute struct {
	Key   string
	Value json.RawMessage
}

// SignalRecord is a log record that is a signal. It belongs to the visitor but for Raw, which is part of the request's body.
type SignalRecord struct {
	// Attributes holds what the client sent, twins included, without the `flowstate.*` that is not the client's to write.
	// Integers are JSON numbers however large, bytes are base64, NaN and the infinities are the strings of OTLP/JSON.
	Attributes           []Attribute
	TimeUnixNano         uint64 // 0 where the sender gave none
	ObservedTimeUnixNano uint64 // 0 where the sender gave none
	SeverityNumber       int32  // 0 (unspecified) to 24 by OTLP; not checked
	SeverityText         string
	Body                 json.RawMessage // nil where there is none
	TraceID, SpanID      string          // lower-case hex, or ""
	Raw                  []byte          // the LogRecord in protobuf as it was sent; valid during the call only
}

// namesSignal says whether an event name makes its record a signal. It is generous, because a consumer may be: spaces
// around the name and capitals in it do not let a signal past the filter.
func namesSignal(name []byte) bool {
	return len(name) >= len(signalEvent) && foldEqual(bytes.TrimSpace(name), signalEvent)
}

// isSignal looks at every event_name and every event.name of a valid LogRecord: one that names a signal is enough.
func isSignal(record []byte) bool {
	for f := (fields{b: record}); f.next(); {
		switch f.num {
		case 6:
			if string(keyOf(f.val)) == eventNameKey && namesSignal(stringOf(valueOf(f.val))) {
				return true
			}
		case 12:
			if namesSignal(f.val) {
				return true
			}
		}
	}
	return false
}

// take hands a signal to the visitor.
func (c *cutter) take(record []byte) {
	c.result.Signals++
	s := SignalRecord{Raw: record}
	for f := (fields{b: record}); f.next(); {
		switch f.num {
		case 1:
			s.TimeUnixNano = littleEndian(f.val)
		case 2:
			s.SeverityNumber = int32(f.uvarint())
		case 3:
			s.SeverityText = string(f.val)
		case 5:
			s.Body = appendAnyJSON(nil, f.val)
		case 6:
			key := keyOf(f.val)
			if isForged(key) {
				c.result.Stripped++
				continue
			}
			s.Attributes = append(s.Attributes, Attribute{string(key), appendAnyJSON(nil, valueOf(f.val))})
		case 9:
			s.TraceID = hex.EncodeToString(f.val)
		case 10:
			s.SpanID = hex.EncodeToString(f.val)
		case 11:
			s.ObservedTimeUnixNano = littleEndian(f.val)
		}
	}
	if c.visit != nil {
		c.visit(&s)
	}
}

func littleEndian(b []byte) uint64 {
	v := uint64(0)
	for i := len(b) - 1; i >= 0; i-- {
		v = v<<8 | uint64(b[i])
	}
	return v
}

// valueOf is the encoded AnyValue of a valid KeyValue, nil where there is none.
func valueOf(b []byte) []byte {
	for f := (fields{b: b}); f.next(); {
		if f.num == 2 {
			return f.val
		}
	}
	return nil
}

// stringOf is the string that a valid AnyValue holds, nil where it holds something else.
func stringOf(b []byte) []byte {
	for f := (fields{b: b}); f.next(); {
		if f.num == 1 {
			return f.val
		}
	}
	return nil
}

// appendAnyJSON appends a valid AnyValue as plain JSON: null where it is empty or points into a table of strings that only
// profiles have. How deep it goes was bounded by the walk.
func appendAnyJSON(dst, b []byte) []byte {
	for f := (fields{b: b}); f.next(); {
		switch f.num {
		case 1:
			return appendJSONString(dst, f.val)
		case 2:
			if f.uvarint() != 0 {
				return append(dst, "true"...)
			}
			return append(dst, "false"...)
		case 3:
			return appendInt(dst, int64(f.uvarint()))
		case 4:
			return appendJSONFloat(dst, math.Float64frombits(littleEndian(f.val)))
		case 5:
			return appendArrayJSON(dst, f.val)
		case 6:
			return appendObjectJSON(dst, f.val)
		case 7:
			return appendBase64(dst, f.val)
		case 8:
			return append(dst, "null"...)
		}
	}
	return append(dst, "null"...)
}

func appendArrayJSON(dst, b []byte) []byte {
	dst = append(dst, '[')
	n := 0
	for f := (fields{b: b}); f.next(); {
		if f.num != 1 {
			continue
		}
		if n++; n > 1 {
			dst = append(dst, ',')
		}
		dst = appendAnyJSON(dst, f.val)
	}
	return append(dst, ']')
}

func appendObjectJSON(dst, b []byte) []byte {
	dst = append(dst, '{')
	n := 0
	for f := (fields{b: b}); f.next(); {
		if f.num != 1 {
			continue
		}
		if n++; n > 1 {
			dst = append(dst, ',')
		}
		dst = appendJSONString(dst, keyOf(f.val))
		dst = append(dst, ':')
		dst = appendAnyJSON(dst, valueOf(f.val))
	}
	return append(dst, '}')
}
