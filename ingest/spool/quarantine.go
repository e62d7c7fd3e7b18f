package spool

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
)

const quarantineDir = "quarantine"

// A quarantine keeps what cannot be delivered: raw bytes of damage, and records in segments that a Log can be opened on.
type quarantine struct {
	dir string
	log *Log

	mu  sync.Mutex // guards w
	w   *writer    // nil: the next record starts a segment
	buf []byte
}

// Park moves records that will never be delivered from the log to the quarantine, with the reason as their note. There they are safe before they are
// finished here: a crash between the two leaves them in both. [ErrLocked] means that somebody drains the quarantine at the moment.
func (l *Log) Park(records []Record, reason string) error {
	return l.moveToQuarantine(records, reason, l.metrics.parked.refused.Add)
}

func (l *Log) expire(records []Record) error {
	if len(records) == 0 {
		return nil
	}
	l.cfg.Logger.Warn("spool: records over the age limit go to the quarantine", "records", len(records),
		"oldest", records[0].At, "max_age", l.cfg.MaxAge)
	return l.moveToQuarantine(records, "expired", l.metrics.parked.expired.Add)
}

func (l *Log) moveToQuarantine(records []Record, reason string, count func(float64)) error {
	if len(records) == 0 {
		return nil
	}
	err := l.park.write(records, reason)
	if err != nil {
		return fmt.Errorf("spool: quarantine: %w", err)
	}
	n, err := l.finish(records)
	count(float64(n))
	return err
}

// write appends records to the quarantine's newest segment and syncs it. MaxBytes is not asked: the records are in the log already.
func (q *quarantine) write(records []Record, note string) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := q.log.cfg.Now()
	err := makeDir(q.dir)
	if err != nil {
		return err
	}
	// Only for as long as it takes, so that an operator can drain the quarantine of a running edge.
	lock, err := lockDir(q.dir, now)
	if err != nil {
		return err
	}
	defer lock.Close()
	q.buf = append(q.buf[:0], make([]byte, segmentHeaderSize)...)
	for i := range records {
		q.buf = appendFrame(q.buf, &records[i].Entry, note, records[i].At.UnixMilli(), 0)
	}
	if !q.usable() {
		q.seal()
		q.w, err = createWriter(q.dir, uint64(now.UnixNano()), now)
		if err != nil {
			return err
		}
	}
	before := q.w.off
	_, err = q.w.write(q.buf, q.log.sync)
	if cap(q.buf) > keepBuffer {
		q.buf = nil
	}
	if err != nil {
		q.w.abandon()
		q.w = nil
		return err
	}
	q.log.parked.Add(q.w.off - before)
	return nil
}

// usable reports whether the segment begun earlier can take more: it is not too long, and nobody has drained it since.
func (q *quarantine) usable() bool {
	if q.w == nil || q.w.off+int64(len(q.buf)) > q.log.cfg.SegmentBytes {
		return false
	}
	mine, err := q.w.f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(q.w.seg.path)
	return err == nil && os.SameFile(mine, there) && there.Size() == q.w.off
}

func (q *quarantine) seal() {
	if q.w != nil {
		q.w.f.Close()
		q.w = nil
	}
}

func (q *quarantine) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.seal()
}

// quarantineDamage copies damaged bytes out of a segment, unless that was done before, and finishes the records that stood there.
func (l *Log) quarantineDamage(s *segment, f io.ReaderAt, it found) error {
	path := filepath.Join(l.park.dir, fmt.Sprintf("damaged-%s-%d.bin", s.name(), it.off))
	_, err := os.Stat(path)
	known := err == nil
	if !known {
		err = l.copyDamage(path, f, it)
		if err != nil {
			l.cfg.Logger.Error("spool: damage not copied to the quarantine", "segment", s.name(), "offset", it.off, "bytes", it.size, "error", err)
			return fmt.Errorf("spool: quarantine: %w", err)
		}
	}
	lost := uint64(0)
	l.mu.Lock()
	for i := range it.lost {
		if s.done.set(it.seq - s.first + i) {
			s.finished++
			lost++
		}
	}
	l.mu.Unlock()
	if !known {
		l.metrics.damagedRecords.Add(float64(lost))
		l.metrics.damagedBytes.Add(float64(it.size))
		l.cfg.Logger.Error("spool: damage skipped", "segment", s.name(), "offset", it.off, "bytes", it.size, "records_lost", lost, "copy", path)
	}
	return nil
}

func (l *Log) copyDamage(path string, f io.ReaderAt, it found) error {
	err := makeDir(l.park.dir)
	if err != nil {
		return err
	}
	tmp := path + ".tmp"
	out, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, io.NewSectionReader(f, it.off, it.size))
	if err == nil {
		err = l.sync(out)
	}
	if closeErr := out.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err == nil {
		err = syncDir(l.park.dir)
	}
	if err != nil {
		os.Remove(tmp)
		return err
	}
	l.parked.Add(it.size)
	return nil
}

// dirBytes is the size of the files of a directory; 0 if there is none.
func dirBytes(dir string) int64 {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0
	}
	var n int64
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
			n += info.Size()
		}
	}
	return n
}
