package spool

import (
	"os"
	"syscall"
)

const errHeld = syscall.EWOULDBLOCK

func flock(f *os.File) error {
	return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
}

// datasync is F_FULLFSYNC: fsync alone does not empty the disk's own cache here.
func datasync(f *os.File) error { return f.Sync() }

func diskFree(dir string) (int64, error) {
	var st syscall.Statfs_t
	err := syscall.Statfs(dir, &st)
	return int64(st.Bavail) * int64(st.Bsize), err
}
