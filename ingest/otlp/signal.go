package otlp

import (
	"bytes"
	"encoding/json"
	"math"
	"strconv"
)

// eventNameKey is the attribute that named a log record's event before LogRecord had a field for it.
const eventNameKey = "event.name"

// Limits of one signal. What is past them is handed over as [SignalRecord.Over], not decoded: a signal is a small thing, and what it costs to
// decode must stay in proportion to what was sent.
const (
	MaxSignalAttributes = 1024
	MaxSignalBytes      = 512 << 10 // of the JSON of all attributes, their keys included
)

// Attribute is one attribute of a signal, in the order in which it was sent. Value is valid JSON.
type Attribute struct {
	Key   string
	Value json.RawMessage
}

// SignalRecord is a log record that is a signal. It lives for the visitor's call only, but for the keys, which are its own.
type SignalRecord struct {
	// Attributes holds what the client sent, twins included, without the `flowstate.*` that is not the client's to write.
	// Integers are JSON numbers however large, bytes are base64, NaN and the infinities are the strings of OTLP/JSON.
	Attributes           []Attribute
	TimeUnixNano         uint64 // 0 where the sender gave none
	ObservedTimeUnixNano uint64 // 0 where the sender gave none
	Raw                  []byte // the LogRecord in protobuf as it was sent
	Over                 string // not "": the signal is over a limit, which this names, and Attributes is empty
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
			if key, value := pairOf(f.val); string(key) == eventNameKey && namesSignal(stringOf(value)) {
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

// take hands a signal to the visitor, unless its type alone says that it goes nowhere.
func (c *cutter) take(record []byte) {
	c.result.Signals++
	if c.drop != nil && !c.forged && c.dropped(record) {
		return
	}
	s := &c.signal
	*s = SignalRecord{Raw: record, Attributes: s.Attributes[:0]}
	c.keys, c.values, c.ends = c.keys[:0], c.values[:0], c.ends[:0]
	for f := (fields{b: record}); f.next(); {
		switch f.num {
		case 1:
			s.TimeUnixNano = littleEndian(f.val)
		case 6:
			key, value := pairOf(f.val)
			if isForged(key) {
				c.result.Stripped++
				continue
			}
			c.attribute(key, value)
		case 11:
			s.ObservedTimeUnixNano = littleEndian(f.val)
		}
	}
	if s.Over == "" {
		// One piece of memory for all keys and one for all values: an attribute may have two bytes.
		keys, from := string(c.keys), ends{}
		for _, to := range c.ends {
			s.Attributes = append(s.Attributes, Attribute{keys[from.key:to.key], c.values[from.value:to.value:to.value]})
			from = to
		}
	}
	if c.visit != nil {
		c.visit(s)
	}
	clear(s.Attributes)
	s.Raw = nil
}

// attribute decodes one attribute of the signal under way, within the limits.
func (c *cutter) attribute(key, value []byte) {
	s := &c.signal
	switch {
	case s.Over != "":
	case len(c.ends) == MaxSignalAttributes:
		s.Over = "it has more than " + strconv.Itoa(MaxSignalAttributes) + " attributes"
	case len(key)+len(value) > MaxSignalBytes+16: // a tag and a length are no part of the JSON
		s.Over = overBytes
	default:
		c.keys = append(c.keys, key...)
		c.values = appendAnyJSON(c.values, value)
		c.ends = append(c.ends, ends{len(c.keys), len(c.values)})
		if len(c.keys)+len(c.values) > MaxSignalBytes {
			s.Over = overBytes
		}
	}
}

const overBytes = "its attributes have more than 524288 bytes" // MaxSignalBytes, as a test says

// ends are where the key and the value of an attribute end among all of its signal's.
type ends struct{ key, value int }

// The names of attributes by which a signal may speak of somebody else than its sender, or not of one type.
var (
	signalType    = []byte("signal.type")
	signalSubject = []byte("signal.subject.")
)

// dropped asks about a signal that says of what type it is, once and as a string, and names no subject.
func (c *cutter) dropped(record []byte) bool {
	var sent []byte
	for f := (fields{b: record}); f.next(); {
		if f.num != 6 {
			continue
		}
		key, value := pairOf(f.val)
		switch {
		case len(key) < len(signalType) || key[6] != '.':
		case bytes.Equal(key, signalType):
			name := stringOf(value)
			if sent != nil || name == nil {
				return false
			}
			sent = name
		case bytes.HasPrefix(key, signalSubject):
			return false
		}
	}
	return sent != nil && c.drop(sent)
}

func littleEndian(b []byte) uint64 {
	v := uint64(0)
	for i := len(b) - 1; i >= 0; i-- {
		v = v<<8 | uint64(b[i])
	}
	return v
}

// pairOf is the key and the encoded AnyValue of a valid KeyValue, each nil where there is none.
func pairOf(b []byte) ([]byte, []byte) {
	if key, value, ok := plainKeyValue(b); ok {
		return key, value
	}
	var key, value []byte
	for f := (fields{b: b}); f.next(); {
		switch f.num {
		case 1:
			key = f.val
		case 2:
			value = f.val
		}
	}
	return key, value
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
		key, value := pairOf(f.val)
		dst = appendJSONString(dst, key)
		dst = append(dst, ':')
		dst = appendAnyJSON(dst, value)
	}
	return append(dst, '}')
}
