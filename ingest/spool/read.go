package spool

import (
	"errors"
	"io"
	"math"
	"os"
	"sync"
)

// expireBytes is about how many bytes of expired records Next collects before it moves them, as one write.
const expireBytes = 4 << 20

// Limit bounds what one call of Next returns. Zero means no limit.
type Limit struct {
	Records int
	Bytes   int // keys, values and headers; the first record is returned whatever its size
}

// A reader is the place of Next in the log.
type reader struct {
	mu   sync.Mutex // taken before Log.ackMu and Log.mu
	seg  *segment   // nil: the beginning
	f    *os.File   // of seg; nil if it could not be opened
	scan scanner
}

func (r *reader) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.leave()
	r.seg = nil
}

func (r *reader) leave() {
	if r.f != nil {
		r.f.Close()
	}
	r.f, r.scan = nil, scanner{}
}

// Next returns the records behind the ones it returned last that are neither committed nor parked, in order, and none if it has reached the end; it does not
// wait (see Wake). A record that is returned and not finished comes again after Rewind, or when the log is opened again.
//
// Records for which pass is true are passed over and stay; pass must not keep key. A nil pass takes all.
//
// Damage that it meets is quarantined and counted on the way, and so are records older than MaxAge. A segment that the disk does not let it
// read is logged, counted and passed over until the next Rewind. The error is that of a quarantine that cannot be written; records returned with it
// are good.
func (l *Log) Next(limit Limit, pass func(topic string, key []byte) bool) ([]Record, error) {
	if limit.Records <= 0 {
		limit.Records = math.MaxInt
	}
	if limit.Bytes <= 0 {
		limit.Bytes = math.MaxInt
	}
	l.reader.mu.Lock()
	defer l.reader.mu.Unlock()
	r := &l.reader
	var out, expired []Record
	size, expiredSize := 0, 0
	for len(out) < limit.Records {
		it, rec, err := l.nextRecord(r, pass)
		if err == io.EOF {
			break
		}
		if err != nil {
			return out, err
		}
		n := rec.bytes()
		if l.cfg.MaxAge > 0 && l.cfg.Now().Sub(rec.At) > l.cfg.MaxAge {
			expired = append(expired, rec)
			expiredSize += n
			if expiredSize > expireBytes {
				err = l.expire(expired)
				if err != nil {
					return out, err
				}
				expired, expiredSize = nil, 0
			}
			continue
		}
		if len(out) > 0 && n > limit.Bytes-size {
			r.scan.off, r.scan.next = it.off, it.seq // it comes first the next time
			break
		}
		size += n
		out = append(out, rec)
	}
	return out, l.expire(expired)
}

func (r *Record) bytes() int {
	n := len(r.Topic) + len(r.Key) + len(r.Value)
	for i := range r.Headers {
		n += len(r.Headers[i].Key) + len(r.Headers[i].Value)
	}
	return n
}

// nextRecord goes to the next unfinished record that is not passed over. The error is io.EOF at the end of the log.
func (l *Log) nextRecord(r *reader, pass func(string, []byte) bool) (found, Record, error) {
	for {
		if !l.position(r) {
			return found{}, Record{}, io.EOF
		}
		it, err := r.scan.scan()
		switch {
		case err == io.EOF:
			continue // position decides what follows
		case err != nil:
			l.unreadable(r, err)
			continue
		case it.damaged || it.torn:
			// What is torn has been cut or lies behind the end: here it is damage too.
			err = l.lose(r, it)
			if err != nil {
				return found{}, Record{}, err
			}
			continue
		case it.payload == nil:
			continue // finished
		}
		p, err := parsePayload(it.payload)
		if err != nil {
			it.damaged, it.lost = true, 1
			err = l.lose(r, it)
			if err != nil {
				return found{}, Record{}, err
			}
			continue
		}
		if pass != nil && pass(string(p.topic), p.key) {
			continue
		}
		rec := p.record(it.seq, it.at)
		rec.segment = r.seg
		return it, rec, nil
	}
}

// position sees to it that the scanner stands before unread bytes, going on to the next segment where one is used up.
func (l *Log) position(r *reader) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		if r.seg != nil {
			r.scan.end = r.seg.end
			if r.f != nil && (r.scan.off < r.scan.end || r.scan.unchecked.size > 0) && r.seg.live() > 0 {
				return true
			}
			if !r.seg.sealed {
				return false // more may come
			}
		}
		next := l.segmentAfter(r.seg)
		if next == nil {
			return false
		}
		r.leave()
		r.seg = next
		l.enter(r)
	}
}

// segmentAfter returns the first readable segment behind s. The caller holds l.mu.
func (l *Log) segmentAfter(s *segment) *segment {
	for _, t := range l.segs {
		if !t.broken && t.live() > 0 && (s == nil || s.before(t)) {
			return t
		}
	}
	return nil
}

// enter opens the reader's segment close to its first unfinished record. The caller holds l.mu, which want takes, too: it is called by scan only.
func (l *Log) enter(r *reader) {
	s := r.seg
	f, err := os.Open(s.path)
	if err != nil {
		l.metrics.readErrors.Inc()
		l.cfg.Logger.Error("spool: segment passed over", "segment", s.name(), "error", err)
		return
	}
	m := s.nearest(s.done.firstClear())
	r.f = f
	r.scan = scanner{r: f, salt: s.salt, off: m.off, end: s.end, next: s.first + m.ordinal}
	r.scan.want = func(seq uint64) bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return !s.done.get(seq - s.first)
	}
}

// unreadable gives the segment up until the next Rewind. Nothing in it is marked: the disk may answer later.
func (l *Log) unreadable(r *reader, err error) {
	l.metrics.readErrors.Inc()
	l.cfg.Logger.Error("spool: segment passed over, the disk does not give it", "segment", r.seg.name(), "offset", r.scan.off, "error", err)
	r.f.Close()
	r.f = nil
}

// lose quarantines damaged bytes and finishes the records that stood there.
func (l *Log) lose(r *reader, it found) error {
	s := r.seg
	l.mu.Lock()
	if it.lost == 0 && it.off+it.size == s.end {
		// Nothing that follows tells how many, but what was appended does.
		it.lost = s.first + s.n - min(it.seq, s.first+s.n)
		r.scan.next = it.seq + it.lost
	}
	l.mu.Unlock()
	err := l.quarantineDamage(s, r.f, it)
	if err != nil {
		return err
	}
	l.dropFinished()
	return nil
}

// Rewind takes Next back to the oldest record that is not finished.
func (l *Log) Rewind() {
	l.reader.close()
}

// Wake returns a channel that receives after something was appended. It is for the goroutine that calls Next.
func (l *Log) Wake() <-chan struct{} { return l.appended }

// Commit finishes records that were delivered: they do not come again. A segment whose last record is finished is deleted. Records that are finished
// already are passed over.
//
// On an error the records do not come again from this log, but may after it is opened again.
func (l *Log) Commit(records []Record) error {
	n, err := l.finish(records)
	l.metrics.committed.Add(float64(n))
	return err
}

// finish marks records and makes that durable. It returns how many were not finished before.
func (l *Log) finish(records []Record) (int, error) {
	l.ackMu.Lock()
	defer l.ackMu.Unlock()
	n := 0
	var touched []*segment
	l.mu.Lock()
	for i := range records {
		s := records[i].segment
		if s == nil {
			continue // not ours
		}
		if s.done.set(records[i].Seq - s.first) {
			s.finished++
			n++
		}
		if len(touched) == 0 || touched[len(touched)-1] != s {
			touched = append(touched, s)
		}
	}
	l.mu.Unlock()
	l.dropFinished()
	var errs []error
	written := make(map[*segment]bool, len(touched))
	for _, s := range touched {
		l.mu.Lock()
		gone := s.sealed && s.live() == 0
		l.mu.Unlock()
		if gone || written[s] {
			continue
		}
		written[s] = true
		errs = append(errs, l.writeAck(s))
	}
	return n, errors.Join(errs...)
}
