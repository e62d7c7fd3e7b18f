package deploy_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// A ruleFile is the part of a file of Prometheus rules that the tests look at.
type ruleFile struct {
	Groups []struct {
		Name  string
		Rules []rule
	}
}

type rule struct {
	Alert, Record, Expr string
	Labels, Annotations map[string]string
}

func rules(t *testing.T, file string) []rule {
	t.Helper()
	var f ruleFile
	readYAML(t, file, &f)
	var out []rule
	for _, g := range f.Groups {
		out = append(out, g.Rules...)
	}
	if len(out) == 0 {
		t.Fatalf("%s has no rules", file)
	}
	return out
}

func readYAML(t *testing.T, file string, into any) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(b, into); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

// TestAlertsSayWhatToDo holds every alert to what somebody needs who is woken by it.
func TestAlertsSayWhatToDo(t *testing.T) {
	seen := map[string]bool{}
	name := regexp.MustCompile(`^Sluice[A-Z][A-Za-z]+$`)
	for _, r := range rules(t, "prometheus/alerts.yaml") {
		if !name.MatchString(r.Alert) || seen[r.Alert] {
			t.Errorf("alert %q: not a name of the form SluiceWhatIsWrong, or there twice", r.Alert)
		}
		seen[r.Alert] = true
		switch r.Labels["severity"] {
		case "critical", "warning", "info":
		default:
			t.Errorf("%s: severity %q", r.Alert, r.Labels["severity"])
		}
		for _, a := range []string{"summary", "description"} {
			if r.Annotations[a] == "" {
				t.Errorf("%s has no %s", r.Alert, a)
			}
		}
		if want := "https://flowstate.inc/sluice/blob/main/deploy/docs/runbook.md#" + strings.ToLower(r.Alert); r.Annotations["runbook_url"] != want {
			t.Errorf("%s: runbook_url is %q, want %s", r.Alert, r.Annotations["runbook_url"], want)
		}
	}
}

// TestAlertsAreTested holds the promtool tests to a moment when each alert fires and one when it does not; .ci/full runs them.
func TestAlertsAreTested(t *testing.T) {
	files, err := filepath.Glob("prometheus/*_test.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	fires, quiet := map[string]bool{}, map[string]bool{}
	for _, file := range files {
		var f struct {
			Tests []struct {
				Alerts []struct {
					Name     string `yaml:"alertname"`
					Expected []any  `yaml:"exp_alerts"`
				} `yaml:"alert_rule_test"`
			}
		}
		readYAML(t, file, &f)
		for _, test := range f.Tests {
			for _, a := range test.Alerts {
				fires[a.Name] = fires[a.Name] || len(a.Expected) > 0
				quiet[a.Name] = quiet[a.Name] || len(a.Expected) == 0
			}
		}
	}
	for _, r := range rules(t, "prometheus/alerts.yaml") {
		if !fires[r.Alert] || !quiet[r.Alert] {
			t.Errorf("%s: a test sees it fire: %v, and not fire: %v", r.Alert, fires[r.Alert], quiet[r.Alert])
		}
	}
}

// TestRunbookSections holds the section of each alert to what somebody needs at night: what it means, what users notice, a command to look with, what to do, and when it ends.
func TestRunbookSections(t *testing.T) {
	b, err := os.ReadFile("docs/runbook.md")
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string]string{}
	for _, s := range regexp.MustCompile(`(?m)^#{2,3} `).Split(string(b), -1) {
		name, text, _ := strings.Cut(s, "\n")
		sections[name] = text
	}
	for _, r := range rules(t, "prometheus/alerts.yaml") {
		text, ok := sections[r.Alert]
		if !ok {
			t.Errorf("the runbook has no section for %s", r.Alert)
			continue
		}
		for _, part := range []string{"**Means**", "**Users**", "```sh", "**Do**", "**Clears**"} {
			if !strings.Contains(text, part) {
				t.Errorf("the runbook's %s has no %s", r.Alert, part)
			}
		}
	}
}
