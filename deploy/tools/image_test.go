package tools

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

func dockerfile(t *testing.T) []instructions.Stage {
	t.Helper()
	b, err := os.ReadFile("../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := parser.Parse(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range parsed.Warnings {
		t.Error(w.Short)
	}
	lint := linter.New(&linter.Config{Warn: func(rule, description, url, message string, _ []parser.Range) {
		t.Errorf("%s: %s (%s %s)", rule, message, description, url)
	}})
	stages, _, err := instructions.Parse(parsed.AST, lint)
	if err != nil {
		t.Fatal(err)
	}
	return stages
}

// TestDockerfile holds the image to what it promises: a pinned base, nobody's user, one binary.
func TestDockerfile(t *testing.T) {
	stages := dockerfile(t)
	for _, s := range stages {
		if pinned := regexp.MustCompile(`:\d+\.\d+\.\d+`).MatchString(s.BaseName); !pinned && s.BaseName != "scratch" {
			t.Errorf("the base %s is not pinned to a version", s.BaseName)
		}
	}
	mod, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	if want := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindStringSubmatch(string(mod))[1]; !strings.HasPrefix(stages[0].BaseName, "golang:"+want+".") {
		t.Errorf("it is built by %s, go.mod wants Go %s", stages[0].BaseName, want)
	}
	last := stages[len(stages)-1]
	if last.BaseName != "scratch" {
		t.Errorf("the image stands on %s", last.BaseName)
	}
	user := ""
	for _, c := range last.Commands {
		if u, ok := c.(*instructions.UserCommand); ok {
			user = u.User
		}
	}
	if user != "65532:65532" {
		t.Errorf("it runs as %q; Kubernetes can tell that a user is not root by its number only", user)
	}
}

// TestImageBuild does what the Dockerfile's build does: from the files that .dockerignore lets through and nothing else, by the same command. The binary
// is static, says the version it was given, and is byte for byte the one that release.sh's command makes of the same files elsewhere.
func TestImageBuild(t *testing.T) {
	var command string
	for _, c := range dockerfile(t)[0].Commands {
		if run, ok := c.(*instructions.RunCommand); ok && strings.Contains(run.CmdLine[0], "go build") {
			command = run.CmdLine[0]
		}
	}
	if command == "" {
		t.Fatal("the Dockerfile has no go build")
	}
	src := buildContext(t)
	out := filepath.Join(t.TempDir(), "sluice")
	cmd := exec.Command("sh", "-ec", strings.ReplaceAll(command, "/out/sluice", out))
	cmd.Dir = src
	cmd.Env = append(os.Environ(), "TARGETOS=linux", "TARGETARCH=amd64", "VERSION=9.8.7", "COMMIT=0123456789abcdef", "DATE=2026-01-02T03:04:05Z", "GOFLAGS=")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	f, err := elf.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if libs, err := f.ImportedLibraries(); err != nil || len(libs) > 0 {
		t.Errorf("it is linked with %v, %v", libs, err)
	}
	if slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		t.Error("it wants a loader, and the image has none")
	}
	if b, err := exec.Command(out, "version", "--json").CombinedOutput(); err != nil || !strings.Contains(string(b), `"version":"9.8.7"`) ||
		!strings.Contains(string(b), `"commit":"0123456789abcdef"`) {
		t.Errorf("version: %s, %v", b, err)
	}
	if a, b := sum(t, out), sum(t, releaseBuild(t)); a != b {
		t.Errorf("the image's binary is %s, release.sh makes %s", a, b)
	}
}

// releaseBuild runs the go build of release.sh, as it stands there, on a build context of its own.
func releaseBuild(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("../release.sh")
	if err != nil {
		t.Fatal(err)
	}
	command := regexp.MustCompile(`(?s)GOOS=\S+ GOARCH=\S+ go build .*?\./cmd/sluice\n`).FindString(string(b))
	if command == "" {
		t.Fatal("release.sh has no go build")
	}
	cmd := exec.Command("bash", "-euc", command)
	cmd.Dir = buildContext(t)
	dist := t.TempDir()
	cmd.Env = append(os.Environ(), "target=linux/amd64", "version=9.8.7", "commit=0123456789abcdef", "date=2026-01-02T03:04:05Z", "dist="+dist, "name=sluice", "GOFLAGS=", "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	return filepath.Join(dist, "sluice")
}

func sum(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(b))
}

// buildContext copies what a builder would be sent.
func buildContext(t *testing.T) string {
	t.Helper()
	f, err := os.Open("../../.dockerignore")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	patterns, err := ignorefile.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	ignored, err := patternmatcher.New(patterns)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	files := 0
	err = filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel("../..", path)
		if err != nil || d.IsDir() {
			if rel == ".git" || filepath.Base(rel) == "node_modules" {
				return filepath.SkipDir
			}
			return err
		}
		out, err := ignored.MatchesOrParentMatches(rel)
		if err != nil || out {
			return err
		}
		files++
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		to := filepath.Join(dir, rel)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		return os.WriteFile(to, b, 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the build context has %d files", files)
	return dir
}

// TestCompose loads the file as docker compose does, schema and all, and holds every service to what it needs on a machine of its own.
func TestCompose(t *testing.T) {
	dir := t.TempDir()
	if b, err := exec.Command("../compose-secrets.sh", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	options, err := cli.NewProjectOptions([]string{"../compose.yaml"}, cli.WithoutEnvironmentResolution)
	if err != nil {
		t.Fatal(err)
	}
	p, err := options.LoadProject(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, secret := range p.Secrets {
		b, err := os.ReadFile(filepath.Join(dir, "secrets", filepath.Base(secret.File)))
		if err != nil || len(b) < 32 {
			t.Errorf("compose-secrets.sh does not make %s: %v", name, err)
		}
	}
	password := regexp.MustCompile(`(?i)password|secret|token`)
	for name, s := range p.Services {
		if !regexp.MustCompile(`:v?\d+\.\d+\.\d+|:\d+\.\d+-|^sluice:`).MatchString(s.Image) {
			t.Errorf("%s: %s is not pinned to a version", name, s.Image)
		}
		for k, v := range s.Environment {
			if password.MatchString(k) && v != nil && *v != "" && !strings.HasPrefix(*v, "/run/secrets/") {
				t.Errorf("%s: %s is given in plain", name, k)
			}
		}
		own := name == "sluice" || name == "migrate"
		if (s.HealthCheck == nil) != own {
			t.Errorf("%s: health check %v; the image of Sluice has nothing to ask with, the others are waited for", name, s.HealthCheck)
		}
		if own && (!s.ReadOnly || !slices.Equal(s.CapDrop, []string{"ALL"})) {
			t.Errorf("%s does not run read-only and without capabilities", name)
		}
		for _, port := range s.Ports {
			if port.HostIP != "127.0.0.1" {
				t.Errorf("%s: port %s is open to the network", name, port.Published)
			}
		}
		for _, v := range s.Volumes {
			if v.Type == "bind" {
				if _, err := os.Stat(v.Source); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
	}
	// The environment of the two services of ours passes the binary's own check.
	sluice := binary(t)
	environment := func(service string) []string {
		env := []string{"HOME=" + dir}
		for k, v := range p.Services[service].Environment {
			env = append(env, k+"="+strings.ReplaceAll(*v, "/run/secrets", filepath.Join(dir, "secrets")))
		}
		return env
	}
	cmd := exec.Command(sluice, "config", "check")
	cmd.Env = environment("sluice")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("sluice: %v\n%s", err, b)
	}
	url := filepath.Join(dir, "secrets/postgres-url")
	b, err := os.ReadFile(url)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(url, bytes.Replace(b, []byte("@postgres:5432"), []byte("@127.0.0.1:1"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	reachesForDatabase(t, sluice, p.Services["migrate"].Command, environment("migrate"))
}
