package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	segmentHeaderSize = 36
	segmentMagic      = "SLUICESP"
	formatVersion     = 1
	segmentSuffix     = ".seg"
	ackSuffix         = ".ack"
	markEvery         = 1 << 20 // bytes between two marks of a segment
)

// A segment is one file of the log as the process knows it.
type segment struct {
	path  string
	first uint64
	salt  uint32

	// The rest is guarded by Log.mu.
	start    int64  // records begin here: behind the head, or at 0 where the head is damaged
	size     int64  // of the file, for the accounts
	end      int64  // records end here: all before is durable, nothing behind is read
	n        uint64 // records, lost ones included: sequence numbers first to first+n-1
	done     bitmap
	finished uint64 // bits set in done
	sealed   bool   // nothing is appended any more
	broken   bool   // cannot be read, or is of a newer version: left alone
	marks    []mark
}

// A mark is a place inside a segment where a frame begins; one about every MiB. They let a reader start close to what it wants and
// give the age of the oldest record without a read.
type mark struct {
	ordinal uint64
	off, at int64
}

func (s *segment) name() string { return filepath.Base(s.path) }

func (s *segment) live() uint64 { return s.n - s.finished }

// mark notes that the frame of record ordinal begins at off.
func (s *segment) mark(ordinal uint64, off, at int64) {
	if len(s.marks) == 0 || off-s.marks[len(s.marks)-1].off >= markEvery {
		s.marks = append(s.marks, mark{ordinal, off, at})
	}
}

// before is the order of segments. Numbers are unique unless somebody copied files in from elsewhere; then names decide.
func (s *segment) before(t *segment) bool {
	return s.first < t.first || s.first == t.first && s.path < t.path
}

// nearest returns the last mark at or before a record, and where the records begin if there is none.
func (s *segment) nearest(ordinal uint64) mark {
	i := sort.Search(len(s.marks), func(i int) bool { return s.marks[i].ordinal > ordinal })
	switch {
	case i > 0:
		return s.marks[i-1]
	case len(s.marks) > 0:
		return mark{off: s.start, at: s.marks[0].at}
	default:
		return mark{off: s.start}
	}
}

func segmentName(first uint64, salt uint32) string {
	return fmt.Sprintf("%016x-%08x%s", first, salt, segmentSuffix)
}

// parseSegmentName is the reverse of segmentName.
func parseSegmentName(name string) (uint64, uint32, bool) {
	stem, ok := strings.CutSuffix(name, segmentSuffix)
	if !ok || len(stem) != 16+1+8 || stem[16] != '-' {
		return 0, 0, false
	}
	first, err := strconv.ParseUint(stem[:16], 16, 64)
	if err != nil {
		return 0, 0, false
	}
	salt, err := strconv.ParseUint(stem[17:], 16, 32)
	if err != nil || segmentName(first, uint32(salt)) != name {
		return 0, 0, false
	}
	return first, uint32(salt), true
}

// listSegments returns the segments of a directory in order, with nothing known but their names and sizes.
func listSegments(dir string) ([]*segment, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var segs []*segment
	for _, e := range entries {
		first, salt, ok := parseSegmentName(e.Name())
		if !ok || !e.Type().IsRegular() {
			continue
		}
		info, err := e.Info()
		if errors.Is(err, os.ErrNotExist) {
			continue // drained meanwhile: the directory may be in use when it is only listed
		}
		if err != nil {
			return nil, err
		}
		segs = append(segs, &segment{path: filepath.Join(dir, e.Name()), first: first, salt: salt, size: info.Size(), sealed: true})
	}
	sort.Slice(segs, func(i, j int) bool { return segs[i].before(segs[j]) })
	return segs, nil
}

func appendSegmentHeader(dst []byte, first uint64, salt uint32, created time.Time) []byte {
	start := len(dst)
	dst = append(dst, segmentMagic...)
	dst = binary.LittleEndian.AppendUint16(dst, formatVersion)
	dst = binary.LittleEndian.AppendUint16(dst, 0)
	dst = binary.LittleEndian.AppendUint32(dst, salt)
	dst = binary.LittleEndian.AppendUint64(dst, first)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(created.UnixMilli()))
	return binary.LittleEndian.AppendUint32(dst, crc32.Checksum(dst[start:], castagnoli))
}

var errNewer = errors.New("spool: written by a newer version of Sluice")

// readHead finds out where the records of a segment begin. The name says all that the head does, so a damaged head is no error but bytes for the
// scan to step over: only a whole one that speaks of another version is.
func (s *segment) readHead(r io.ReaderAt) error {
	b := make([]byte, segmentHeaderSize)
	if n, err := r.ReadAt(b, 0); n < len(b) {
		if err == io.EOF {
			return nil
		}
		return err
	}
	if string(b[:8]) != segmentMagic || crc32.Checksum(b[:32], castagnoli) != binary.LittleEndian.Uint32(b[32:]) {
		return nil
	}
	if v := binary.LittleEndian.Uint16(b[8:]); v != formatVersion {
		return fmt.Errorf("%w: format %d", errNewer, v)
	}
	s.start = segmentHeaderSize
	return nil
}

// A writer appends to one new segment file. After its first error it must not be used again but for abandon.
type writer struct {
	f       *os.File
	seg     *segment
	created time.Time
	off     int64
	next    uint64
}

// createWriter makes the file of a segment that begins with sequence number first.
func createWriter(dir string, first uint64, now time.Time) (*writer, error) {
	salt := rand.Uint32()
	path := filepath.Join(dir, segmentName(first, salt))
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	return &writer{f: f, seg: &segment{path: path, first: first, salt: salt, start: segmentHeaderSize, end: segmentHeaderSize}, created: now, next: first}, nil
}

// write stamps the frames in b[segmentHeaderSize:], writes them with one call and syncs them. The first bytes of b are room for the segment's
// header, which goes out with the first batch. It returns where the frames begin in the file.
func (w *writer) write(b []byte, sync func(*os.File) error) (int64, error) {
	next := stampFrames(b[segmentHeaderSize:], w.seg.salt, w.next)
	out, at := b[segmentHeaderSize:], w.off
	if w.off == 0 {
		appendSegmentHeader(b[:0], w.seg.first, w.seg.salt, w.created)
		out = b
	}
	n, err := w.f.WriteAt(out, w.off)
	if err != nil {
		return 0, fmt.Errorf("spool: write %s: %w", w.seg.name(), err)
	}
	err = sync(w.f)
	if err != nil {
		return 0, fmt.Errorf("spool: sync %s: %w", w.seg.name(), err)
	}
	if w.off == 0 {
		err = syncDir(filepath.Dir(w.seg.path))
		if err != nil {
			return 0, err
		}
		at = segmentHeaderSize
	}
	w.off += int64(n)
	w.next = next
	return at, nil
}

// abandon closes the file after an error, cut back to what was acknowledged, or removes it if that is nothing. What cannot be cut back
// is behind the segment's end for this process, and for the next one it is records whose senders were told to come again.
func (w *writer) abandon() {
	w.f.Close()
	if w.off == 0 {
		os.Remove(w.seg.path)
		return
	}
	os.Truncate(w.seg.path, w.off)
}

// makeDir makes a directory, and those above it, so that they are still there after a power cut.
func makeDir(dir string) error {
	info, err := os.Stat(dir)
	if err == nil && !info.IsDir() {
		return &os.PathError{Op: "mkdir", Path: dir, Err: syscall.ENOTDIR}
	}
	if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	parent := filepath.Dir(dir)
	err = makeDir(parent)
	if err != nil {
		return err
	}
	err = os.Mkdir(dir, 0o700)
	if err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return syncDir(parent)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	d.Close()
	if err != nil {
		return fmt.Errorf("spool: sync directory: %w", err)
	}
	return nil
}
