package otlp

import (
	"errors"
	"fmt"
)

// Oversize counts the records that no part could hold.
type Oversize struct {
	Records int
	First   Record // of them; its place is that in the payload
	Largest int    // bytes that the largest of them needs as a message of its own, its headers included; 0 where all is headers
	Max     int    // bytes that a message may have
}

// String is the sentence for the client's answer; it is "" where no record was too large.
func (o Oversize) String() string {
	switch {
	case o.Records == 0:
		return ""
	case o.Largest == 0:
		return fmt.Sprintf("%d too large to be stored, first %v (their resource, scope or metric takes more than half of the %d bytes of a message)",
			o.Records, o.First, o.Max)
	}
	return fmt.Sprintf("%d too large to be stored even alone, first %v (with its resource and scope the largest needs %d bytes, the limit is %d)",
		o.Records, o.First, o.Largest, o.Max)
}

// SplitTo cuts payload, which Rewrite made, into parts of at most max bytes: between resources, else between scopes, else
// between records; a metric that is over max alone between its data points. Each part carries the headers of what it was
// cut from (resource, scope, schema URLs, the metric's name and so on), so that each is a whole request of the same kind,
// and parts keep the order of the records. A payload that fits is one part, the same bytes.
//
// emit is called with each part, the place of its first record in the payload and the number of its records; a part that was cut belongs to it. An error of
// emit ends the splitting and is returned. A record that no part can hold is counted in Oversize, and the others are still emitted.
//
// Where a payload has to be cut, headers may take half of max at most; what stands under larger ones is too large as well.
// So the parts together are never more than a few times the payload, whatever a client puts into its headers.
func SplitTo(payload []byte, kind Kind, max int, emit func(part []byte, first, records int) error) (Oversize, error) {
	levels := levelsOf(kind)
	if len(payload) <= max {
		n, ok := countRecords(levels, payload)
		if !ok {
			return Oversize{}, errSplit
		}
		return Oversize{}, emit(payload, 0, n)
	}
	s := splitter{kind: kind, max: max, over: Oversize{Max: max}}
	err := s.split(levels, payload, max, 0, emit)
	return s.over, err
}

// errSplit means that the payload did not come out of Rewrite.
var errSplit = errors.New("otlp: cannot split a payload that is not valid OTLP")

// level says which fields of a message hold the messages of the next level, by a bit each.
type level uint32

// split holds, from the request down to the message that holds records, which fields lead on.
var split = struct{ logs, metrics []level }{
	logs:    []level{1 << 1, 1 << 2, 1 << 2},
	metrics: []level{1 << 1, 1 << 2, 1 << 2, 1<<5 | 1<<7 | 1<<9 | 1<<10 | 1<<11, 1 << 1},
}

// metricLevels is how many of the levels are left where a Metric's content is.
const metricLevels = 2

func levelsOf(kind Kind) []level {
	if kind == Metrics {
		return split.metrics
	}
	return split.logs
}

func (l level) leads(f *fields) bool { return f.wire == wireBytes && f.num < 32 && l&(1<<f.num) != 0 }

func countRecords(levels []level, b []byte) (int, bool) {
	if len(levels) == 0 {
		return 1, true
	}
	n := 0
	f := fields{b: b}
	for f.next() {
		if !levels[0].leads(&f) {
			continue
		}
		sub, ok := countRecords(levels[1:], f.val)
		if !ok {
			return 0, false
		}
		n += sub
	}
	return n, !f.bad
}

type splitter struct {
	kind   Kind
	max    int
	at     int    // place of the next record
	metric []byte // content of the metric under way
	over   Oversize
}

// tooLarge takes down n records in b, whose levels are left, that no part can hold.
func (s *splitter) tooLarge(levels []level, b []byte, n int) {
	if s.over.Records == 0 && n > 0 {
		s.over.First = Record{s.kind, s.at, ""}
		if s.kind == Metrics && len(levels) < metricLevels {
			s.over.First.Name = cutName(metricName(s.metric))
		} else {
			s.over.First.Name = nameOf(s.kind, levels, b)
		}
	}
	s.over.Records += n
	s.at += n
}

// split cuts the content b of a message whose content may have budget bytes, so that the whole part stays within max. around
// is what the messages around it add.
func (s *splitter) split(levels []level, b []byte, budget, around int, emit func([]byte, int, int) error) error {
	if len(levels) == metricLevels {
		s.metric = b
	}
	var header []byte
	f := fields{b: b}
	for f.next() {
		if !levels[0].leads(&f) {
			header = append(header, f.raw...)
		}
	}
	if f.bad {
		return errSplit
	}
	if around+len(header) > s.max/2 {
		n, ok := countRecords(levels, b)
		if !ok {
			return errSplit
		}
		s.tooLarge(levels, b, n)
		return nil
	}
	var run [][]byte // fields that go out together
	size, records := len(header), 0
	flush := func() error {
		if records == 0 {
			return nil
		}
		part := append(make([]byte, 0, size), header...)
		for _, raw := range run {
			part = append(part, raw...)
		}
		n := records
		run, size, records = run[:0], len(header), 0
		return emit(part, s.at-n, n)
	}
	for f := (fields{b: b}); f.next(); {
		if !levels[0].leads(&f) {
			continue
		}
		n, ok := countRecords(levels[1:], f.val)
		if !ok {
			return errSplit
		}
		if n == 0 {
			continue
		}
		if size+len(f.raw) > budget {
			if err := flush(); err != nil {
				return err
			}
		}
		if len(header)+len(f.raw) <= budget {
			run = append(run, f.raw)
			size += len(f.raw)
			records += n
			s.at += n
			continue
		}
		if err := s.descend(levels, header, &f, budget, around, emit); err != nil {
			return err
		}
	}
	return flush()
}

// descend cuts the one field f, which is too large even if it goes out alone under its header.
func (s *splitter) descend(levels []level, header []byte, f *fields, budget, around int, emit func([]byte, int, int) error) error {
	if len(levels) == 1 {
		s.tooLarge(nil, f.val, 1)
		s.over.Largest = max(s.over.Largest, around+len(header)+len(f.raw))
		return nil
	}
	// A part is no larger than the field that it is cut from, so its tag and length take no more bytes than they do now.
	frame := len(f.raw) - len(f.val)
	num := f.num
	return s.split(levels[1:], f.val, budget-len(header)-frame, around+len(header)+frame, func(inner []byte, first, records int) error {
		part := append(make([]byte, 0, len(header)+frame+len(inner)), header...)
		return emit(appendBytesField(part, num, inner), first, records)
	})
}

// Halve cuts payload, which Rewrite made and which holds two records at least, into two requests of the same kind: the first half of its records, by
// number, and the rest, each under copies of the headers that it stood under. emit is called with each, the place of its first record in the payload and the
// number of its records; the part belongs to it. An error of emit ends it and is returned.
//
// It is for a payload that a broker finds too large without saying by how much: sizes cannot tell which of its records is the cause.
func Halve(payload []byte, kind Kind, emit func(part []byte, first, records int) error) error {
	levels := levelsOf(kind)
	n, ok := countRecords(levels, payload)
	if !ok || n < 2 {
		return errSplit
	}
	for _, r := range [2]places{{0, n / 2}, {n / 2, n}} {
		part, _ := r.copy(nil, levels, payload, 0)
		if err := emit(part, r.from, r.to-r.from); err != nil {
			return err
		}
	}
	return nil
}

// places are records of a payload, by their number.
type places struct{ from, to int }

// copy appends the content b of a message without the records at other places, and without what only held those. at is the place of the message's first
// record; it returns that of the first one behind it.
func (r places) copy(dst []byte, levels []level, b []byte, at int) ([]byte, int) {
	for f := (fields{b: b}); f.next(); {
		if !levels[0].leads(&f) {
			dst = append(dst, f.raw...)
			continue
		}
		n, _ := countRecords(levels[1:], f.val) // the whole was counted before
		switch {
		case n == 0 || at+n <= r.from || at >= r.to:
		case at >= r.from && at+n <= r.to:
			dst = append(dst, f.raw...)
		default:
			inner, _ := r.copy(nil, levels[1:], f.val, at)
			dst = appendBytesField(dst, f.num, inner)
		}
		at += n
	}
	return dst, at
}
