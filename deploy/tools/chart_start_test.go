package tools

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestChartStarts gives the environment that the chart gives each pod to the binary's own check of its configuration: a variable that is not
// one of its, or a value that it would not start with, fails. Secrets are files, and no value holds one.
func TestChartStarts(t *testing.T) {
	sluice := binary(t)
	for _, name := range []string{"minimal", "full", "autoscaled"} {
		docs, err := render("sluice", testValues(t, name))
		if err != nil {
			t.Fatal(err)
		}
		for role, pod := range pods(decode(t, docs)) {
			t.Run(name+"/"+role, func(t *testing.T) {
				dir := t.TempDir()
				c := pod.Spec.Containers[0]
				env := []string{"HOME=" + dir}
				for _, e := range c.Env {
					value := e.Value
					if rest, ok := strings.CutPrefix(value, "/etc/sluice/"); ok {
						value = filepath.Join(dir, rest)
						secretFile(t, value, filepath.Base(filepath.Dir(rest)))
					}
					if strings.Contains(value, "://") && strings.Contains(value, "@") {
						t.Errorf("%s holds a password", e.Name)
					}
					env = append(env, e.Name+"="+value)
				}
				if role == "migrate" {
					reachesForDatabase(t, sluice, c.Args, env)
					return
				}
				if role == "admin" && name == "full" && !slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, "SLUICE_JUDGE_URL=") }) {
					t.Error("the console is not told that prompts are judged")
				}
				cmd := exec.Command(sluice, "config", "check")
				cmd.Env = env
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Errorf("%v\n%s", err, out)
				}
			})
		}
	}
}

// reachesForDatabase runs `sluice migrate` with the environment that it is given, whose database is a closed port: what gets as far as to be refused there has
// taken every setting before it.
func reachesForDatabase(t *testing.T, sluice string, args, env []string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), sluice, args...)
	cmd.Env = env
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(out), "connection refused") {
		t.Errorf("%v does not get to its database: %v\n%s", args, err, out)
	}
}

// secretFile is what a mounted secret would hold.
func secretFile(t *testing.T, path, what string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	content := strings.Repeat("s3cret", 8)
	switch what {
	case "postgres":
		content = "postgres://sluice:s3cret@127.0.0.1:1/sluice"
	case "redis":
		content = "redis://:s3cret@redis:6379/0"
	case "signal-types":
		content = `{"add":[]}`
	case "kafka-tls", "tls":
		var err error
		if content, err = certificate(); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// binary is sluice, built as it is in the image.
func binary(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sluice")
	cmd := exec.Command("go", "build", "-o", path, "./cmd/sluice")
	cmd.Dir = "../.."
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}
