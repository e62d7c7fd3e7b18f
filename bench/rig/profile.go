package rig

import (
	"context"
	"fmt"
	"os"
	"strconv"
)

// Profile takes a CPU profile of a server that is under load, keeps it in file and returns what to read of it: the functions that take most.
func (r *Rig) Profile(ctx context.Context, s *Server, file string, seconds, lines int) (string, error) {
	if s.pprof != "" {
		if b, err := getWithin(ctx, fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", s.pprof, seconds), seconds+10); err == nil {
			if err := os.WriteFile(file, b, 0o644); err != nil {
				return "", err
			}
			flat, err := output(ctx, "", "go", "tool", "pprof", "-top", "-nodecount", strconv.Itoa(lines), r.Bin.Sluice, file)
			if err != nil {
				return "", err
			}
			deep, err := output(ctx, "", "go", "tool", "pprof", "-top", "-cum", "-nodecount", strconv.Itoa(2*lines), r.Bin.Sluice, file)
			return flat + "\n" + deep, err
		}
	}
	pid := strconv.Itoa(s.PID)
	if _, err := output(ctx, "", "perf", "record", "-q", "-F", "499", "-g", "-p", pid, "-o", file, "--", "sleep", strconv.Itoa(seconds)); err != nil {
		return "", fmt.Errorf("neither pprof on the ops listener nor perf: %w", err)
	}
	flat, err := output(ctx, "", "perf", "report", "-i", file, "--stdio", "--no-children", "-g", "none", "--percent-limit", "0.5")
	if err != nil {
		return "", err
	}
	deep, err := output(ctx, "", "perf", "report", "-i", file, "--stdio", "--children", "-g", "none", "--percent-limit", "1.5")
	return flat + "\n" + deep, err
}
