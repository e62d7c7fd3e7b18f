package spool

import "syscall"

func mountTmpfs(dir string) error {
	return syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m")
}

func unmount(dir string) { syscall.Unmount(dir, syscall.MNT_DETACH) }
