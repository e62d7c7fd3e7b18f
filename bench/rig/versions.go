package rig

import (
	"context"
	"os"
	"runtime"
	"strings"
	"time"
)

// A Run is what all points of a file have in common. As JSON it is the first line of the results.
type Run struct {
	Kind     string            `json:"kind"` // "run"
	At       time.Time         `json:"at"`
	Command  string            `json:"command"`
	Machine  string            `json:"machine"`
	Cores    int               `json:"cores"`
	Kernel   string            `json:"kernel"`
	Commit   string            `json:"commit"`
	Versions map[string]string `json:"versions"`
	Load     string            `json:"load_average_before"`
}

// Describe says where and with what is measured.
func (r *Rig) Describe(ctx context.Context, command string) Run {
	run := Run{
		Kind: "run", At: time.Now().UTC().Truncate(time.Second), Command: command, Machine: cpuModel(), Cores: runtime.NumCPU(),
		Versions: map[string]string{"go": runtime.Version(), "collector": CollectorVersion},
	}
	said := func(dir, name string, args ...string) string {
		out, err := output(ctx, dir, name, args...)
		if err != nil {
			return "unknown"
		}
		line, _, _ := strings.Cut(strings.TrimSpace(out), "\n")
		return line
	}
	run.Kernel = said("", "uname", "-sr")
	run.Commit = said(r.Repo, "git", "rev-parse", "--short=12", "HEAD")
	run.Versions["postgresql"] = said("", "psql", "--version")
	run.Versions["redis"] = said("", "redis-server", "--version")
	if pom, err := os.ReadFile(r.Repo + "/.ci/kafka/pom.xml"); err == nil {
		_, rest, _ := strings.Cut(string(pom), "<kafka.version>")
		run.Versions["kafka"], _, _ = strings.Cut(rest, "<")
	}
	for _, module := range []string{"github.com/valyala/fasthttp", "github.com/segmentio/kafka-go", "github.com/klauspost/compress"} {
		run.Versions[module] = said(r.Repo, "go", "list", "-m", "-f", "{{.Version}}", module)
	}
	if avg, err := os.ReadFile("/proc/loadavg"); err == nil {
		run.Load = strings.Join(strings.Fields(string(avg))[:3], " ")
	}
	return run
}

func cpuModel() string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	_, rest, ok := strings.Cut(string(b), "model name")
	if !ok {
		return runtime.GOARCH
	}
	line, _, _ := strings.Cut(rest, "\n")
	return strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(line), ":"))
}
