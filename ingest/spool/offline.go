package spool

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// A SegmentInfo is what Ls and Verify say of one segment.
type SegmentInfo struct {
	Name           string
	Bytes          int64
	Records        int64            // lost ones included
	Pending        int64            // not yet delivered; includes records whose damage Ls cannot see
	Topics         map[string]int64 // pending records by topic; Verify only
	Oldest, Newest time.Time        // enqueue times of its records; zero where there are none
	AckDamaged     bool             // its records would be delivered again
	TornBytes      int64            // an incomplete write at the end; of the newest segment of a running process it is one under way
	Damage         []Damage
	Err            error // why the rest of it could not be read
}

// Damage is bytes of a segment that are no record.
type Damage struct {
	Offset, Bytes int64
	Records       int64 // lost by it; 0 for a segment's head, 1 at least at the end of a segment
	Delivered     bool  // all of them were finished before
}

// OK reports whether nothing is wrong with the segment. A torn tail is not wrong.
func (s *SegmentInfo) OK() bool {
	return s.Err == nil && len(s.Damage) == 0 && !s.AckDamaged
}

// ErrNoSpool is the error for a directory that is none: no process has had a spool there, nor was anything put aside.
var ErrNoSpool = errors.New("no spool")

// Check returns ErrNoSpool, with where there is one, for a directory that holds neither segments nor a spool's lock: whoever asks about the wrong
// directory, such as the volume around it, must not read that nothing waits.
func Check(dir string) error {
	segs, err := listSegments(dir)
	if err != nil {
		return err
	}
	if len(segs) > 0 || hasLock(dir) || filepath.Base(filepath.Clean(dir)) == "quarantine" && hasLock(filepath.Dir(filepath.Clean(dir))) {
		return nil
	}
	below, err := filepath.Glob(filepath.Join(dir, "*", "lock"))
	if err == nil && len(below) > 0 {
		return fmt.Errorf("%s is %w; there is one in %s", dir, ErrNoSpool, filepath.Dir(below[0]))
	}
	return fmt.Errorf("%s is %w: it holds neither segments nor a lock", dir, ErrNoSpool)
}

func hasLock(dir string) bool {
	info, err := os.Stat(filepath.Join(dir, "lock"))
	return err == nil && info.Mode().IsRegular()
}

// Ls describes the segments of a spool or quarantine directory by their frames' headers. It takes no lock and changes nothing.
func Ls(dir string) ([]SegmentInfo, error) {
	return inspect(dir, false)
}

// Verify is Ls that reads and checks every byte. It takes no lock and changes nothing.
func Verify(dir string) ([]SegmentInfo, error) {
	return inspect(dir, true)
}

func inspect(dir string, payloads bool) ([]SegmentInfo, error) {
	segs, err := listSegments(dir)
	if err != nil {
		return nil, err
	}
	infos := make([]SegmentInfo, 0, len(segs))
	for _, s := range segs {
		info, err := inspectSegment(s, payloads)
		if errors.Is(err, os.ErrNotExist) {
			continue // drained meanwhile
		}
		info.Err = cmp.Or(info.Err, err)
		infos = append(infos, info)
	}
	return infos, nil
}

func inspectSegment(s *segment, payloads bool) (SegmentInfo, error) {
	info := SegmentInfo{Name: s.name(), Bytes: s.size}
	f, err := os.Open(s.path)
	if err != nil {
		return info, err
	}
	defer f.Close()
	err = s.readHead(f)
	if err != nil {
		return info, err
	}
	s.done, err = readAck(ackPath(s.path), s.salt)
	info.AckDamaged = err != nil
	if payloads {
		info.Topics = make(map[string]int64)
	}
	lost := uint64(0) // of them not finished
	w := walk{seg: s, payloads: payloads}
	w.damage = func(it found) {
		fresh := uint64(0)
		for i := range it.lost {
			if !s.done.get(it.seq - s.first + i) {
				fresh++
			}
		}
		lost += fresh
		info.Damage = append(info.Damage, Damage{Offset: it.off, Bytes: it.size, Records: int64(it.lost), Delivered: it.lost > 0 && fresh == 0})
	}
	w.frame = func(it found) {
		at := time.UnixMilli(it.at)
		if info.Oldest.IsZero() || at.Before(info.Oldest) {
			info.Oldest = at
		}
		if at.After(info.Newest) {
			info.Newest = at
		}
		if payloads && !s.done.get(it.seq-s.first) {
			p, err := parsePayload(it.payload)
			if err != nil {
				info.Damage = append(info.Damage, Damage{Offset: it.off, Bytes: it.size, Records: 1})
				lost++
				return
			}
			info.Topics[string(p.topic)]++
		}
	}
	err = w.run(f)
	info.Records = int64(s.n)
	info.Pending = int64(s.n-s.done.trim(s.n)) - int64(lost)
	info.TornBytes = s.size - s.end
	if err != nil {
		info.TornBytes = 0
	}
	return info, err
}

// Each calls visit with every record of a directory that is not finished, in order, until visit returns an error, which it returns. It takes no lock and
// changes nothing; damage is passed over. To empty a directory, Open it.
func Each(dir string, visit func(Record) error) error {
	segs, err := listSegments(dir)
	if err != nil {
		return err
	}
	for _, s := range segs {
		err = eachOf(s, visit)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

func eachOf(s *segment, visit func(Record) error) error {
	f, err := os.Open(s.path)
	if err != nil {
		return err
	}
	defer f.Close()
	err = s.readHead(f)
	if err != nil {
		return err
	}
	// The end is that of the last complete call, which a first walk finds.
	w := walk{seg: s, damage: func(found) {}}
	err = w.run(f)
	if err != nil {
		return err
	}
	done, _ := readAck(ackPath(s.path), s.salt) // damaged: nothing is finished
	sc := scanner{r: f, salt: s.salt, off: s.start, end: s.end, next: s.first}
	sc.want = func(seq uint64) bool { return !done.get(seq - s.first) }
	for {
		it, err := sc.scan()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if it.damaged || it.payload == nil {
			continue
		}
		p, err := parsePayload(it.payload)
		if err != nil {
			continue
		}
		err = visit(p.record(it.seq, it.at))
		if err != nil {
			return err
		}
	}
}
