package spool

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const keepBuffer = 4 << 20 // a buffer that grew beyond this is not kept for the next batch

// A group is the calls that one write serves.
type group struct {
	buf     []byte // room for a segment's header, then frames
	records int
	firstAt int64
	done    chan struct{} // closed when err is set
	err     error
}

// Append keeps entries and returns when they are on disk; their bytes are the caller's again as soon as it returns, however it returns.
//
// The entries of one call are kept all or none. On [ErrFull], [ErrBusy], [ErrTooLarge] and [ErrClosed] none was. On other errors, an ended ctx
// among them, they were not acknowledged but may come out of Next: the sender should send again under the same ids.
func (l *Log) Append(ctx context.Context, entries []Entry) error {
	if len(entries) == 0 {
		return nil
	}
	err := ctx.Err()
	if err != nil {
		return fmt.Errorf("spool: not begun: %w", err)
	}
	need := 0
	for i := range entries {
		n := frameSizeLimit(&entries[i], "")
		if n > MaxRecordBytes {
			l.metrics.refused.tooLarge.Inc()
			return fmt.Errorf("%w: entry %d takes %d bytes, the limit is %d", ErrTooLarge, i, n, MaxRecordBytes)
		}
		need += n
	}
	g, err := l.join(entries, need)
	if err != nil {
		return err
	}
	poke(l.wake)
	select {
	case <-g.done:
		return g.err
	case <-ctx.Done():
		select {
		case <-g.done:
			return g.err
		default:
		}
		l.metrics.refused.abandoned.Inc()
		return fmt.Errorf("spool: waiting for the disk: %w", ctx.Err())
	}
}

// join puts the entries into the group that waits for the disk.
func (l *Log) join(entries []Entry, need int) (*group, error) {
	now := l.cfg.Now().UnixMilli()
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.admit(int64(need))
	if err != nil {
		return nil, err
	}
	g := l.group
	if g == nil {
		g = &group{buf: l.spare, done: make(chan struct{})}
		if cap(g.buf) < segmentHeaderSize {
			g.buf = make([]byte, segmentHeaderSize, segmentHeaderSize+need)
		}
		g.buf = g.buf[:segmentHeaderSize]
		l.spare, l.group = nil, g
	}
	for i := range entries {
		at := now
		if !entries[i].At.IsZero() {
			at = entries[i].At.UnixMilli()
		}
		if g.records == 0 {
			g.firstAt = at
		}
		g.buf = appendFrame(g.buf, &entries[i], "", at, len(entries)-1-i)
		g.records++
	}
	return g, nil
}

// admit says whether need more bytes may wait for the disk. The caller holds l.mu.
func (l *Log) admit(need int64) error {
	if l.closed {
		return ErrClosed
	}
	if need > int64(l.cfg.MaxPendingBytes) {
		l.metrics.refused.tooLarge.Inc()
		return fmt.Errorf("%w: the call takes %d bytes, the limit is %d", ErrTooLarge, need, l.cfg.MaxPendingBytes)
	}
	var pending int64
	if l.group != nil {
		pending = int64(len(l.group.buf))
	}
	if pending > 0 && pending+need > int64(l.cfg.MaxPendingBytes) {
		l.metrics.refused.busy.Inc()
		return ErrBusy
	}
	full, err := l.fits(pending+segmentHeaderSize, need)
	if err != nil {
		full.Inc()
	}
	return err
}

// fits says whether need more bytes fit beside what is written and pending, by the log's own limit and the disk's, and else which count that is. The
// caller holds l.mu.
func (l *Log) fits(pending, need int64) (prometheus.Counter, error) {
	pending += l.writing + need
	if used := l.bytes + l.parked.Load() + pending; used > l.cfg.MaxBytes {
		return l.metrics.refused.full, fmt.Errorf("%w: %d of %d bytes used", ErrFull, used-need, l.cfg.MaxBytes)
	}
	if free := l.free.Load(); l.cfg.MinFreeBytes >= 0 && free-pending < l.cfg.MinFreeBytes {
		return l.metrics.refused.disk, fmt.Errorf("%w: %d bytes of disk free, %d must stay", ErrFull, free, l.cfg.MinFreeBytes)
	}
	return nil, nil
}

// HasRoom says whether so many bytes more would fit now.
func (l *Log) HasRoom(n int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, err := l.fits(0, n)
	return err == nil
}

// run is the log's goroutine: it writes groups, and once a second looks after the disk.
func (l *Log) run() {
	defer close(l.stopped)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-l.wake:
		case <-tick.C:
			l.survey()
			l.sealFinished()
		}
		for {
			g := l.take()
			if g == nil {
				break
			}
			l.commit(g)
			close(g.done)
		}
		l.mu.Lock()
		stop := l.closed && l.group == nil
		l.mu.Unlock()
		if stop {
			l.seal()
			l.dropFinished()
			return
		}
	}
}

func (l *Log) take() *group {
	l.mu.Lock()
	defer l.mu.Unlock()
	g := l.group
	if g == nil {
		return nil
	}
	l.group = nil
	l.writing = int64(len(g.buf))
	if l.spare == nil {
		l.spare, l.scratch = l.scratch, nil
	}
	return g
}

// commit writes one group and publishes it to the reader, or fails it.
func (l *Log) commit(g *group) {
	if w := l.active; w != nil && w.off+int64(len(g.buf)) > l.cfg.SegmentBytes {
		l.seal()
	}
	at, err := int64(0), error(nil)
	if l.active == nil {
		l.active, err = createWriter(l.cfg.Dir, l.nextSeq, l.cfg.Now())
	}
	if err == nil {
		at, err = l.active.write(g.buf, l.timedSync)
	}
	if err != nil {
		l.fail(g, err)
		return
	}
	w := l.active
	l.mu.Lock()
	s := w.seg
	if s.n == 0 {
		l.segs = append(l.segs, s)
	}
	grown := w.off - s.size
	l.bytes += grown
	s.mark(s.n, at, g.firstAt)
	s.size, s.end = w.off, w.off
	s.n += uint64(g.records)
	l.nextSeq = w.next
	l.writing = 0
	l.mu.Unlock()
	l.free.Add(-grown) // until the next survey
	l.metrics.records.Add(float64(g.records))
	l.metrics.bytes.Add(float64(len(g.buf) - segmentHeaderSize))
	if cap(g.buf) <= keepBuffer {
		l.scratch = g.buf
	}
	poke(l.appended)
}

// fail gives the file up. The sequence numbers of the batch are not used again: it may be on disk after all.
func (l *Log) fail(g *group, err error) {
	g.err = err
	l.metrics.refused.failed.Inc()
	l.cfg.Logger.Error("spool: batch not kept", "records", g.records, "bytes", len(g.buf), "error", err)
	if w := l.active; w != nil {
		w.abandon()
		l.active = nil
		l.mu.Lock()
		w.seg.sealed = true
		l.mu.Unlock()
	}
	l.mu.Lock()
	l.writing = 0
	l.nextSeq += uint64(g.records)
	l.mu.Unlock()
	l.dropFinished()
}

// seal ends the active segment.
func (l *Log) seal() {
	w := l.active
	if w == nil {
		return
	}
	l.active = nil
	w.f.Close() // all that was acknowledged is synced
	l.mu.Lock()
	w.seg.sealed = true
	l.mu.Unlock()
	l.dropFinished()
}

// sealFinished lets a drained active segment go, so that what was delivered does not stay on disk.
func (l *Log) sealFinished() {
	if l.active == nil {
		return
	}
	l.mu.Lock()
	drained := l.active.seg.live() == 0
	l.mu.Unlock()
	if drained {
		l.seal()
	}
}
