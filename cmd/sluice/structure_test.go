package main

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "flowstate.inc/sluice"

// A pkg is what `go list` says of a package.
type pkg struct {
	ImportPath   string
	Doc          string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

func listPackages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Doc,Imports,TestImports,XTestImports", module+"/...")
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("%v: %s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	dec := json.NewDecoder(strings.NewReader(string(out)))
	var list []pkg
	for {
		var p pkg
		err := dec.Decode(&p)
		if err == io.EOF {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
}

// room is the top-level folder of a package of ours.
func room(path string) string {
	name, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(path, module), "/"), "/")
	return name
}

// The import rules of the design: rooms import in one direction, and each library has its rooms.
func TestImports(t *testing.T) {
	rooms := map[string][]string{
		"cmd":      {"auth", "signals", "accounts", "ingest", "deploy"},
		"ingest":   {"auth", "signals"},
		"auth":     {},
		"signals":  {"auth"},
		"accounts": {"auth", "signals"},
		"bench":    {},
		"deploy":   {},
	}
	// What a tier of the look-up chain costs cannot be seen from outside a process.
	exceptions := map[string][]string{module + "/bench/lookups": {"auth", "accounts", "deploy"}}
	libraries := map[string][]string{
		"github.com/valyala/fasthttp":   {"ingest", "bench"},
		"github.com/segmentio/kafka-go": {"ingest", "signals", "bench", "cmd"},
		"github.com/redis/go-redis":     {"auth", "cmd"},
		"database/sql":                  {"accounts", "signals", "deploy", "cmd"},
		"github.com/jackc/pgx":          {"accounts", "signals", "cmd"},
		"modernc.org/sqlite":            {"accounts", "signals", "cmd"},
	}
	for _, p := range listPackages(t) {
		from := room(p.ImportPath)
		may, known := rooms[from]
		if !known {
			t.Errorf("%s is in no room of the design", p.ImportPath)
			continue
		}
		for _, imported := range p.Imports {
			if strings.HasPrefix(imported, module) {
				if to := room(imported); to != from && !slices.Contains(may, to) && !slices.Contains(exceptions[p.ImportPath], to) {
					t.Errorf("%s imports %s: %s may import %v", p.ImportPath, imported, from, may)
				}
				continue
			}
			for library, at := range libraries {
				if (imported == library || strings.HasPrefix(imported, library+"/")) && !slices.Contains(at, from) {
					t.Errorf("%s imports %s, which lives in %v", p.ImportPath, imported, at)
				}
			}
			if imported == "testing" {
				t.Errorf("%s imports testing outside its tests", p.ImportPath)
			}
		}
	}
}

// One file of ingest sees fasthttp.
func TestOneFileSeesFasthttp(t *testing.T) {
	out, err := exec.Command("git", "-C", "../../ingest", "grep", "--untracked", "-l", `"github.com/valyala/fasthttp`, "--", "*.go").Output()
	if err != nil {
		t.Skip("not a git checkout")
	}
	var files []string
	for _, f := range strings.Fields(string(out)) {
		if !strings.HasSuffix(f, "_test.go") {
			files = append(files, f)
		}
	}
	if !slices.Equal(files, []string{"server.go"}) {
		t.Errorf("fasthttp is seen by %v", files)
	}
}

// Every package says what it is for.
func TestPackageDocs(t *testing.T) {
	for _, p := range listPackages(t) {
		if len(p.Doc) < 20 {
			t.Errorf("%s has no doc comment", p.ImportPath)
		}
	}
}
