package otlp

import (
	"strconv"
	"unicode/utf8"
)

// MaxName is the most bytes of a name that a Record keeps: an answer says which record is meant, and repeats nothing else of it.
const MaxName = 64

// A Record says which record of a request is meant, for the client's answer.
type Record struct {
	Kind  Kind
	Place int    // among the records of the request, from 0; a metric's are its data points
	Name  string // of a log record's event, of a span, or of a data point's metric, cut to MaxName; "" where it has none
}

// String names the record, such as `span 3 "chat"`.
func (r Record) String() string {
	what, of := "log record ", " "
	switch r.Kind {
	case Spans:
		what = "span "
	case Metrics:
		what, of = "data point ", " of the metric "
	}
	s := what + strconv.Itoa(r.Place)
	if r.Name != "" {
		s += of + strconv.Quote(r.Name)
	}
	return s
}

// FirstRecord names the first record of payload, which Rewrite made; place is the record's in the request.
func FirstRecord(payload []byte, kind Kind, place int) Record {
	return Record{kind, place, nameOf(kind, levelsOf(kind), payload)}
}

// nameOf is what the first record in b is called; levels lead from the message whose content b is to the records. A data point does not know its metric's name.
func nameOf(kind Kind, levels []level, b []byte) string {
	if len(levels) == 0 {
		return cutName(recordName(kind, b))
	}
	if kind == Metrics && len(levels) == metricLevels {
		return cutName(metricName(b))
	}
	for f := (fields{b: b}); f.next(); {
		if !levels[0].leads(&f) {
			continue
		}
		if n, ok := countRecords(levels[1:], f.val); ok && n > 0 {
			return nameOf(kind, levels[1:], f.val)
		}
	}
	return ""
}

// recordName is the name that stands in a log record or a span itself.
func recordName(kind Kind, b []byte) []byte {
	var name []byte
	for f := (fields{b: b}); f.next(); {
		switch {
		case kind == Spans && f.num == 5, kind == Logs && f.num == 12 && len(f.val) > 0:
			return f.val
		case kind == Logs && f.num == 6:
			if key, value := pairOf(f.val); string(key) == eventNameKey && name == nil {
				name = stringOf(value)
			}
		}
	}
	return name
}

func metricName(b []byte) []byte {
	for f := (fields{b: b}); f.next(); {
		if f.num == 1 {
			return f.val
		}
	}
	return nil
}

func cutName(b []byte) string {
	if len(b) <= MaxName {
		return string(b)
	}
	n := MaxName
	for !utf8.RuneStart(b[n]) {
		n--
	}
	return string(b[:n])
}
