//go:build unix && !linux

package spool

import "errors"

func mountTmpfs(string) error { return errors.ErrUnsupported }

func unmount(string) {}
