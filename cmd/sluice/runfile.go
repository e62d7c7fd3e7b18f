package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// A runFile is DATA/run.json: where a running sluice dev listens, for the commands of other terminals. It holds an admin token, so
// only its owner may read it.
type runFile struct {
	PID        int    `json:"pid"`
	Edge       string `json:"edge"`
	GRPC       string `json:"grpc"`
	Admin      string `json:"admin"`
	Ops        string `json:"ops"`
	Kafka      string `json:"kafka"`
	Org        string `json:"org"`
	AdminToken string `json:"admin_token"`
}

func runFilePath(dataDir string) string { return filepath.Join(dataDir, "run.json") }

func (r *runFile) write(dataDir string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	tmp := runFilePath(dataDir) + ".tmp"
	if err := os.WriteFile(tmp, append(b, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, runFilePath(dataDir))
}

var errNotRunning = errors.New("no sluice dev is running")

// readRunFile finds the sluice dev that runs on dataDir; errNotRunning where there is none.
func readRunFile(dataDir string) (*runFile, error) {
	lock, err := lockData(dataDir)
	if err == nil {
		// Nobody holds the lock: what a killed process left behind says nothing.
		lock.Close()
		return nil, fmt.Errorf("%w on --data-dir %s", errNotRunning, dataDir)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w on --data-dir %s", errNotRunning, dataDir)
	}
	if !errors.Is(err, errLocked) {
		return nil, err
	}
	b, err := os.ReadFile(runFilePath(dataDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the sluice dev on --data-dir %s is still starting", dataDir)
	}
	if err != nil {
		return nil, err
	}
	var r runFile
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("%s: %w", runFilePath(dataDir), err)
	}
	return &r, nil
}

var errLocked = errors.New("in use by another process")

// lockData takes the data directory for this process. The lock goes with the process, however it ends.
func lockData(dataDir string) (*os.File, error) {
	path := filepath.Join(dataDir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("--data-dir %s: %w", dataDir, errLocked)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}
