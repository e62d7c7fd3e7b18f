package main

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

var update = flag.Bool("update", false, "write the generated pages of deploy/docs anew")

// generated holds a page of deploy/docs to what the code says, or writes it with -update.
func generated(t *testing.T, name, want string) {
	t.Helper()
	path := filepath.Join("..", "..", "deploy", "docs", name)
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	have, need := strings.Split(string(b), "\n"), strings.Split(want, "\n")
	for i := range max(len(have), len(need)) {
		var h, n string
		if i < len(have) {
			h = have[i]
		}
		if i < len(need) {
			n = need[i]
		}
		if h != n {
			t.Fatalf("%s:%d is not what the code says; go test ./cmd/sluice -run TestReference -update\nhave %s\nwant %s", path, i+1, h, n)
		}
	}
}

func TestReferenceOfConfiguration(t *testing.T) {
	root := newRootCommand()
	listed := map[string]int{}
	for _, g := range settingGroups {
		for _, s := range g.settings {
			listed[s.name]++
			if settingFlag(root, s.name) == nil {
				t.Errorf("settingGroups lists %s, which is no flag of %v", s.name, serving)
			}
			for _, by := range strings.Split(s.by, ", ") {
				if !slices.Contains(slices.Concat(allRoles, serving, []string{everyRole, "CLI", "tail"}), by) {
					t.Errorf("%s: nothing is called %s", s.name, by)
				}
			}
		}
	}
	for name := range knownSettings(root) {
		secret := strings.TrimSuffix(name, "-file")
		if name != secret && slices.Contains(secretFlags, secret) {
			continue
		}
		if listed[name] != 1 {
			t.Errorf("--%s stands %d times in settingGroups of config_reference.go, not once", name, listed[name])
		}
	}
	generated(t, "configuration.md", configReference(root))
}

// What may be shown of a secret has nothing secret in it, also where the URL is not well made.
func TestSecretsAreNotShown(t *testing.T) {
	for _, s := range []string{
		"postgres://user:hunter2@db:5432/x?sslmode=disable", "postgres://db/x?password=hunter2", "redis://:hunter2@r:6379/0", "postgres://user:hun/ter2@db/x",
		"postgres://user:12/hunter2@db/x", "postgres://user:12#hunter2@db/x", "postgres://user:12?hunter2@db/x", "postgres://u@db:1/hunter2@db/x",
		"host=db password=hunter2", "hunter2", "://hunter2", "rediss://default:hunter2@r",
	} {
		if shown := withoutSecret(s); strings.Contains(shown, "hunter2") || strings.Contains(shown, "ter2") {
			t.Errorf("%s is shown as %s", s, shown)
		}
	}
}

// A variable a slip away from a setting's is a mistake; those of other people are none.
func TestNearestVariable(t *testing.T) {
	known := map[string]bool{}
	for name := range knownSettings(newRootCommand()) {
		known[envName(name)] = true
	}
	for name, want := range map[string]string{
		"SLUICE_POSTGRES_ULR": "SLUICE_POSTGRES_URL", "SLUICE_ROLE": "SLUICE_ROLES", "SLUICE_KAFKA_BROKER": "SLUICE_KAFKA_BROKERS", "SLUICE_REDISURL": "SLUICE_REDIS_URL",
		"SLUICE_SPOOLDIR": "SLUICE_SPOOL_DIR", "SLUICE_AUTH_MAXSTALE": "SLUICE_AUTH_MAX_STALE", "SLUICE_POSTGRES_URL_FIEL": "SLUICE_POSTGRES_URL_FILE",
		// of our tests, and of anybody
		"SLUICE_REQUIRE_SERVICES": "", "SLUICE_CHROMIUM": "", "SLUICE_AXE": "", "SLUICE_FIGURES": "", "SLUICE_SHOTS": "", "SLUICE_LEDGER_KILLS": "", "SLUICE_LEDGER_SEED": "",
		"SLUICE_SPOOL_KILLS": "", "SLUICE_TEST_ALERTS": "", "SLUICE_TEST_CONSUMER": "", "SLUICE_CONSOLE_SERVE": "", "SLUICE_URL": "", "SLUICE_VERSION": "", "SLUICE_HOME": "",
	} {
		if got, _ := nearest(name, len("SLUICE_"), known); got != want {
			t.Errorf("%s is nearest to %q, want %q", name, got, want)
		}
	}
	for _, name := range []string{"SLUICE_SERVICE_HOST", "SLUICE_SERVICE_PORT", "SLUICE_SERVICE_PORT_OTLP_HTTP", "SLUICE_PORT", "SLUICE_PORT_4318_TCP", "SLUICE_PORT_4318_TCP_ADDR",
		"SLUICE_EDGE_SERVICE_HOST", "SLUICE_ADMIN_PORT", "SLUICE_ADMIN_PORT_8318_TCP_PROTO", "SLUICE_EDGE_PORT_4318_TCP_PORT"} {
		if !serviceLink.MatchString(name) {
			t.Errorf("%s is set by Kubernetes for a Service", name)
		}
	}
	for name := range known {
		if serviceLink.MatchString(name) {
			t.Errorf("%s is a setting, and would be taken for a Service's", name)
		}
	}
}

func TestSlips(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"abc", "abc", 0}, {"abc", "acb", 1}, {"abc", "ab", 1}, {"abc", "abxc", 1}, {"abc", "xyz", 3}, {"ROLE", "ROLES", 1}, {"", "ab", 2}} {
		if got := slips(c.a, c.b); got != c.want {
			t.Errorf("slips(%q, %q) = %d, want %d", c.a, c.b, got, c.want)
		}
	}
}

// Every secret's flag says that it is one, and nothing else does.
func TestSecretFlagsAreMarked(t *testing.T) {
	serve, _, err := newRootCommand().Find([]string{"serve"})
	if err != nil {
		t.Fatal(err)
	}
	serve.Flags().VisitAll(func(f *pflag.Flag) {
		if marked := strings.Contains(f.Usage, "(secret:"); marked != slices.Contains(secretFlags, f.Name) {
			t.Errorf("--%s: its usage says secret: %v; secretFlags says otherwise", f.Name, marked)
		}
	})
}
