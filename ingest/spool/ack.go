package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/bits"
	"os"
	"path/filepath"
	"strings"
)

const ackMagic = "SLUICEAK"

// A bitmap has one bit for each record of a segment: set when the record is finished.
type bitmap []byte

func (b bitmap) get(i uint64) bool {
	return i/8 < uint64(len(b)) && b[i/8]&(1<<(i%8)) != 0
}

// set sets a bit and reports whether it was clear.
func (b *bitmap) set(i uint64) bool {
	if b.get(i) {
		return false
	}
	for i/8 >= uint64(len(*b)) {
		*b = append(*b, 0)
	}
	(*b)[i/8] |= 1 << (i % 8)
	return true
}

// firstClear returns the lowest bit that is not set.
func (b bitmap) firstClear() uint64 {
	for i, v := range b {
		if v != 0xff {
			return uint64(i*8 + bits.TrailingZeros8(^v))
		}
	}
	return uint64(len(b)) * 8
}

// trim clears the bits from n on and counts those that are left.
func (b *bitmap) trim(n uint64) uint64 {
	if uint64(len(*b)) > (n+7)/8 {
		*b = (*b)[:(n+7)/8]
	}
	if last := n / 8; last < uint64(len(*b)) {
		(*b)[last] &= 1<<(n%8) - 1
	}
	var set uint64
	for _, v := range *b {
		set += uint64(bits.OnesCount8(v))
	}
	return set
}

func ackPath(segmentPath string) string {
	return strings.TrimSuffix(segmentPath, segmentSuffix) + ackSuffix
}

func appendAck(dst []byte, salt uint32, done bitmap) []byte {
	start := len(dst)
	dst = append(dst, ackMagic...)
	dst = binary.LittleEndian.AppendUint16(dst, formatVersion)
	dst = binary.LittleEndian.AppendUint16(dst, 0)
	dst = binary.LittleEndian.AppendUint32(dst, salt)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(done)*8))
	dst = append(dst, done...)
	return binary.LittleEndian.AppendUint32(dst, crc32.Checksum(dst[start:], castagnoli))
}

var errAck = errors.New("spool: ack file does not check")

func parseAck(b []byte, salt uint32) (bitmap, error) {
	const head = 8 + 2 + 2 + 4 + 4
	if len(b) < head+4 || string(b[:8]) != ackMagic ||
		crc32.Checksum(b[:len(b)-4], castagnoli) != binary.LittleEndian.Uint32(b[len(b)-4:]) ||
		binary.LittleEndian.Uint16(b[8:]) != formatVersion || binary.LittleEndian.Uint32(b[12:]) != salt ||
		uint64(binary.LittleEndian.Uint32(b[16:])) != uint64(len(b)-head-4)*8 {
		return nil, errAck
	}
	return bitmap(b[head : len(b)-4]), nil
}

// readAck returns what is finished of a segment; nothing if there is no file.
func readAck(path string, salt uint32) (bitmap, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return parseAck(b, salt)
}

// writeAck replaces a segment's ack file. The caller holds l.ackMu. The directory is not synced: a rename that is lost is a record again.
func (l *Log) writeAck(s *segment) error {
	l.mu.Lock()
	b := appendAck(nil, s.salt, s.done)
	l.mu.Unlock()
	return replaceFile(ackPath(s.path), b, l.sync)
}

// replaceFile puts b in the place of a file by write, sync and rename.
func replaceFile(path string, b []byte, sync func(*os.File) error) error {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	_, err = f.Write(b)
	if err == nil {
		err = sync(f)
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		os.Remove(tmp)
		return fmt.Errorf("spool: %w", err)
	}
	return nil
}

// removeOrphans deletes ack files whose segment is gone, and half-written replacements.
func removeOrphans(dir string, segs []*segment) {
	keep := make(map[string]bool, len(segs))
	for _, s := range segs {
		keep[ackPath(s.path)] = true
	}
	for _, pattern := range []string{"*" + ackSuffix, "*" + ackSuffix + ".tmp"} {
		found, _ := filepath.Glob(filepath.Join(escapeGlob(dir), pattern))
		for _, path := range found {
			if !keep[path] {
				os.Remove(path)
			}
		}
	}
}

// escapeGlob makes a directory's own name stand for itself in a pattern.
func escapeGlob(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}
