package spool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

var (
	// ErrFull means that the entries do not fit under MaxBytes or would leave less than MinFreeBytes on the disk. Nothing was written. Try
	// again when the drain has made room.
	ErrFull = errors.New("spool: full")
	// ErrBusy means that MaxPendingBytes already wait for the disk. Nothing was written. Try again soon.
	ErrBusy = errors.New("spool: too much waits for the disk")
	// ErrTooLarge means that an entry is over MaxRecordBytes, or a call over MaxPendingBytes. It never fits.
	ErrTooLarge = errors.New("spool: too large")
	// ErrClosed means that the log is closed or closing.
	ErrClosed = errors.New("spool: closed")
	// ErrLocked means that another process has the directory. The error's text names it.
	ErrLocked = errors.New("spool: directory in use")
)

// Config is how a log is opened. The zero value of each member but Dir is usable.
type Config struct {
	Dir             string        // made if it is missing
	SegmentBytes    int64         // a segment is closed when the next batch would take it over this; 64 MiB
	MaxBytes        int64         // of all files of the directory, quarantine included; 8 GiB
	MinFreeBytes    int64         // intake stops while the disk has less free; 512 MiB, negative for none
	MaxAge          time.Duration // older records go to the quarantine when Next meets them; 0: never
	MaxPendingBytes int           // waiting for the disk, and the limit of one call; 128 MiB
	Registerer      prometheus.Registerer
	Logger          *slog.Logger
	Now             func() time.Time
}

// A Log is an open spool. Its methods may be called from any goroutine; Next and Rewind are one reader's, however many call them.
type Log struct {
	cfg     Config
	sync    func(*os.File) error // fdatasync, but for tests of its failure
	lock    *os.File
	metrics *metrics
	park    *quarantine

	wake     chan struct{} // something is pending, or closing is set
	appended chan struct{}
	stopped  chan struct{} // closed when run has returned
	free     atomic.Int64  // bytes of disk, as of the last second
	parked   atomic.Int64  // bytes of the quarantine
	active   *writer       // run's own
	scratch  []byte        // run's own: the buffer of the last batch, for the next but one

	ackMu sync.Mutex // one writer of ack files at a time; taken before mu

	mu      sync.Mutex // guards the following and the state of segments
	closed  bool
	group   *group // what the next write takes; nil if nothing waits
	writing int64  // bytes of the batch that is being written
	spare   []byte
	nextSeq uint64
	segs    []*segment // in order of first
	bytes   int64      // of all segment files

	reader reader
}

// Open locks the directory and recovers what is in it. Damage is reported, never an error: Open fails if the directory cannot be made, locked or
// listed. It reads every frame's header, so it takes about as long as reading the files once where records are small.
func Open(cfg Config) (*Log, error) {
	return open(cfg, datasync)
}

func open(cfg Config, sync func(*os.File) error) (*Log, error) {
	setDefault(&cfg.SegmentBytes, 64<<20)
	setDefault(&cfg.MaxBytes, 8<<30)
	setDefault(&cfg.MinFreeBytes, 512<<20)
	setDefault(&cfg.MaxPendingBytes, 128<<20)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err == nil {
		err = makeDir(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	lock, err := lockDir(cfg.Dir, cfg.Now())
	if err != nil {
		return nil, err
	}
	l := &Log{
		cfg:      cfg,
		sync:     sync,
		lock:     lock,
		wake:     make(chan struct{}, 1),
		appended: make(chan struct{}, 1),
		stopped:  make(chan struct{}),
		nextSeq:  1,
	}
	l.park = &quarantine{dir: filepath.Join(cfg.Dir, quarantineDir), log: l}
	l.metrics = newMetrics(l)
	err = l.recover()
	if err == nil {
		err = l.metrics.register(cfg.Registerer)
	}
	if err != nil {
		lock.Close()
		return nil, err
	}
	l.survey()
	go l.run()
	return l, nil
}

func setDefault[T int | int64](v *T, d T) {
	if *v == 0 {
		*v = d
	}
}

// Close refuses new entries, writes what waits, and unlocks the directory. If ctx ends first the disk does not answer: Close returns, the lock stays
// until the process ends, and callers of Append still wait for their own contexts.
func (l *Log) Close(ctx context.Context) error {
	l.mu.Lock()
	already := l.closed
	l.closed = true
	l.mu.Unlock()
	poke(l.wake)
	select {
	case <-l.stopped:
	case <-ctx.Done():
		return fmt.Errorf("spool: closing: %w", ctx.Err())
	}
	if already {
		return nil
	}
	l.reader.close()
	l.park.close()
	l.metrics.unregister(l.cfg.Registerer)
	return l.lock.Close()
}

// poke leaves a token in a channel of capacity one.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// recover reads the directory into l. Nothing else runs yet.
func (l *Log) recover() error {
	segs, err := listSegments(l.cfg.Dir)
	if err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	for i, s := range segs {
		err = l.recoverSegment(s, i == len(segs)-1)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			s.broken = true
			l.metrics.readErrors.Inc()
			l.cfg.Logger.Error("spool: segment left alone, it cannot be read", "segment", s.name(), "bytes", s.size, "error", err)
		}
		// A segment that cannot be read has more records than are known.
		l.nextSeq = max(l.nextSeq, s.first+s.n+uint64(s.size)/frameHeaderSize+1)
		l.bytes += s.size
		l.segs = append(l.segs, s)
	}
	l.dropFinished()
	removeOrphans(l.cfg.Dir, l.segs)
	if n := l.liveRecords(); n > 0 {
		l.cfg.Logger.Info("spool: records found", "records", n, "segments", len(l.segs), "bytes", l.bytes)
	}
	return nil
}

func (l *Log) recoverSegment(s *segment, newest bool) error {
	f, err := os.OpenFile(s.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	err = s.readHead(f)
	if err != nil {
		return err
	}
	s.done, err = readAck(ackPath(s.path), s.salt)
	if err != nil {
		l.cfg.Logger.Warn("spool: ack file damaged, records of its segment will be delivered again", "segment", s.name(), "error", err)
	}
	w := walk{seg: s, payloads: newest, damage: func(it found) { l.quarantineDamage(s, f, it) }}
	err = w.run(f)
	if err != nil {
		return err
	}
	if torn := s.size - s.end; torn > 0 && newest {
		l.metrics.tornTails.Inc()
		l.cfg.Logger.Warn("spool: torn tail cut", "segment", s.name(), "offset", s.end, "bytes", torn)
		err = f.Truncate(s.end)
		if err != nil {
			return err
		}
		s.size = s.end
	}
	s.finished = s.done.trim(s.n)
	return nil
}

// A walk goes through a segment file once and fills in what is known of the segment.
type walk struct {
	seg      *segment
	payloads bool
	frame    func(found) // may be nil
	damage   func(found) // lost sequence numbers are at most those that seg covers once the walk has ended
}

// run sets the segment's end, n and marks. The end is behind the last complete call: what a stopped write left behind it is torn.
func (w *walk) run(r io.ReaderAt) error {
	s := w.seg
	sc := scanner{r: r, salt: s.salt, off: s.start, end: s.size, next: s.first}
	if w.payloads {
		sc.want = func(uint64) bool { return true }
	}
	s.end = sc.off
	for {
		it, err := sc.scan()
		if err == io.EOF || err == nil && it.torn {
			return nil
		}
		if err != nil {
			return err
		}
		if it.damaged {
			if it.lost == 0 && sc.off == sc.end {
				// Nothing follows that would tell how many.
				it.lost = 1
				sc.next++
			}
			w.damage(it)
		} else {
			s.mark(it.seq-s.first, it.off, it.at)
			if w.frame != nil {
				w.frame(it)
			}
		}
		// Behind damage nobody can say which call is complete: keep what is good.
		if it.rest == 0 || it.damaged {
			s.end, s.n = sc.off, sc.next-s.first
		}
	}
}

// survey refreshes what has to be asked for: free disk and the quarantine's size.
func (l *Log) survey() {
	free, err := diskFree(l.cfg.Dir)
	if err != nil {
		l.cfg.Logger.Error("spool: free disk unknown", "error", err)
	} else {
		l.free.Store(free)
	}
	l.parked.Store(dirBytes(l.park.dir))
}

func (l *Log) liveRecords() uint64 {
	var n uint64
	for _, s := range l.segs {
		n += s.live()
	}
	return n
}

// dropFinished deletes the sealed segments that have nothing left to deliver. It takes l.mu only to look.
func (l *Log) dropFinished() {
	l.mu.Lock()
	var drop []*segment
	l.segs = slices.DeleteFunc(l.segs, func(s *segment) bool {
		if !s.sealed || s.broken || s.live() > 0 {
			return false
		}
		drop = append(drop, s)
		l.bytes -= s.size
		return true
	})
	l.mu.Unlock()
	for _, s := range drop {
		// The segment goes first: an ack file alone is nothing, a segment alone would be delivered again.
		err := os.Remove(s.path)
		if err != nil {
			l.cfg.Logger.Error("spool: finished segment stays", "segment", s.name(), "error", err)
			continue
		}
		os.Remove(ackPath(s.path))
	}
}

// Stats is the state of a log at one moment.
type Stats struct {
	Bytes           int64 // of all files, quarantine included: what MaxBytes limits
	Capacity        int64 // MaxBytes
	Records         int64 // waiting to be delivered
	Segments        int
	Oldest          time.Time // when the oldest waiting record was enqueued, never too late and early by at most a MiB of records; zero: none
	QuarantineBytes int64
	DiskFreeBytes   int64
}

// Stats says how full the log is.
func (l *Log) Stats() Stats {
	st := Stats{Capacity: l.cfg.MaxBytes, QuarantineBytes: l.parked.Load(), DiskFreeBytes: l.free.Load()}
	l.mu.Lock()
	defer l.mu.Unlock()
	st.Bytes = l.bytes + st.QuarantineBytes
	st.Records = int64(l.liveRecords())
	st.Segments = len(l.segs)
	for _, s := range l.segs {
		if s.live() == 0 || s.broken || len(s.marks) == 0 {
			continue
		}
		at := time.UnixMilli(s.nearest(s.done.firstClear()).at)
		if st.Oldest.IsZero() || at.Before(st.Oldest) {
			st.Oldest = at
		}
	}
	return st
}
