package spool

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// lockDir takes the lock of a directory without waiting. The kernel lets it go when the file is closed or the process ends, however it ends,
// so a lock is never stale; what the file says is only for people.
func lockDir(dir string, now time.Time) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	err = flock(f)
	if err == nil {
		host, _ := os.Hostname()
		f.Truncate(0)
		fmt.Fprintf(f, "process %d on %s since %s\n", os.Getpid(), host, now.UTC().Format(time.RFC3339))
		return f, nil
	}
	defer f.Close()
	if !errors.Is(err, errHeld) {
		return nil, fmt.Errorf("spool: lock %s: %w", dir, err)
	}
	holder, _ := io.ReadAll(io.LimitReader(f, 256))
	return nil, fmt.Errorf("%w: %s is held by %s", ErrLocked, dir, strings.TrimSpace(string(holder)))
}
