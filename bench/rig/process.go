package rig

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A Server is a process under test.
type Server struct {
	Name  string
	Addr  string // host:port that takes OTLP/HTTP
	Path  string
	Topic string
	PID   int

	allocs func(context.Context) (uint64, error) // objects allocated so far; nil: not told
	admin  string                                // address of the admin API, of Sluice with that role
	pprof  string                                // address of net/http/pprof; "": none

	cmd  *exec.Cmd
	done chan struct{}
	once sync.Once
	log  string
}

// start runs a program and waits until url answers 200.
func (r *Rig) start(ctx context.Context, s *Server, url string, env []string, program string, args ...string) error {
	s.log = filepath.Join(r.Dir, s.Name+".log")
	out, err := os.Create(s.log)
	if err != nil {
		return err
	}
	defer out.Close()
	s.cmd = exec.Command(program, args...)
	s.cmd.Dir = r.Dir
	s.cmd.Env = append(os.Environ(), env...)
	s.cmd.Stdout, s.cmd.Stderr = out, out
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		return err
	}
	s.PID = s.cmd.Process.Pid
	s.done = make(chan struct{})
	go func() {
		defer close(s.done)
		_ = s.cmd.Wait() // how it ended shows in its log
	}()
	r.mu.Lock()
	r.children = append(r.children, s)
	r.mu.Unlock()
	deadline := time.After(30 * time.Second)
	for {
		if _, err := get(ctx, url); err == nil {
			return nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
			continue
		case <-s.done:
			err = errors.New("ended before it was ready")
		case <-deadline:
			err = errors.New("not ready after 30 s")
		case <-ctx.Done():
			err = ctx.Err()
		}
		s.Stop()
		said, _ := os.ReadFile(s.log)
		return fmt.Errorf("%s %w: %s", s.Name, err, tail(said))
	}
}

// Stop ends the process: by SIGTERM, then by SIGKILL.
func (s *Server) Stop() {
	s.once.Do(func() {
		_ = s.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-s.done:
		case <-time.After(3 * time.Second):
			_ = s.cmd.Process.Kill()
			<-s.done
		}
	})
}

// Said is the end of what the process wrote to its log.
func (s *Server) Said() string {
	b, _ := os.ReadFile(s.log)
	return tail(b)
}

// Allocs is how many objects the process has allocated; false where it does not say.
func (s *Server) Allocs(ctx context.Context) (uint64, bool) {
	if s.allocs == nil {
		return 0, false
	}
	n, err := s.allocs(ctx)
	return n, err == nil
}

// ticks is the kernel's USER_HZ, which is 100 on every Linux that Go runs on.
const ticks = 100

// CPU is what a process has used, user and system.
func CPU(pid int) (user, system time.Duration, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:])) // the name may hold spaces
	u, err := strconv.ParseInt(fields[11], 10, 64)
	if err != nil {
		return 0, 0, err
	}
	k, err := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(u) * time.Second / ticks, time.Duration(k) * time.Second / ticks, err
}

// MachineCPU is what all processes of the machine have used.
func MachineCPU() (time.Duration, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	fields := strings.Fields(line)
	sum := int64(0)
	for i, f := range fields[1:] {
		if i == 3 || i == 4 || i >= 7 { // idle, iowait, steal and guests
			continue
		}
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return time.Duration(sum) * time.Second / ticks, nil
}

// PeakRSS is the most memory that a process has had resident, in bytes.
func PeakRSS(pid int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(b), "VmHWM:")
	line, _, _ := strings.Cut(rest, "\n")
	n, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(line), "kB")), 10, 64)
	return n << 10, err
}

// get reads a page that is expected to be 200.
func get(ctx context.Context, url string) ([]byte, error) { return getWithin(ctx, url, 5) }

func getWithin(ctx context.Context, url string, seconds int) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(seconds)*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != 200 {
		err = fmt.Errorf("%s: %s", url, res.Status)
	}
	return b, err
}
