//go:build !linux && !darwin

package spool

import (
	"errors"
	"os"
)

var (
	errHeld        = errors.New("spool: held")
	errUnsupported = errors.New("spool: needs Linux or macOS")
)

func flock(*os.File) error { return errUnsupported }

func datasync(f *os.File) error { return f.Sync() }

func diskFree(string) (int64, error) { return 0, errUnsupported }
