package deploy_test

import (
	"encoding/json"
	"fmt"
	"html"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const runbookPage = "https://flowstate.inc/sluice/blob/main/deploy/docs/runbook.md#"

// A dashboard is the part of Grafana's JSON that the tests look at.
type dashboard struct {
	UID, Title    string
	SchemaVersion int
	Templating    struct {
		List []struct {
			Name, Type string
			Datasource datasource
			Query      json.RawMessage
		}
	}
	Annotations struct {
		List []struct {
			Datasource datasource
			Expr       string
		}
	}
	Panels []panel
}

type datasource struct{ Type, UID string }

type panel struct {
	ID                       int
	Type, Title, Description string
	Datasource               datasource
	GridPos                  struct{ X, Y, W, H int }
	FieldConfig              struct{ Defaults struct{ Unit string } }
	Targets                  []struct {
		RefID, Expr, LegendFormat string
		Datasource                datasource
	}
	Links []struct{ URL string }
}

func dashboards(t *testing.T) map[string]dashboard {
	t.Helper()
	files, err := filepath.Glob("grafana/dashboards/*.json")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	out := map[string]dashboard{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		var d dashboard
		if err := json.Unmarshal(b, &d); err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		out[f] = d
	}
	return out
}

// TestDashboards holds every panel to what makes it readable at 3 a.m.: what is normal, in what unit, and where the runbook goes on.
func TestDashboards(t *testing.T) {
	for file, d := range dashboards(t) {
		if want := "sluice-" + strings.TrimSuffix(filepath.Base(file), ".json"); d.UID != want {
			t.Errorf("%s: uid %q, want %q: links to it would break", file, d.UID, want)
		}
		if d.SchemaVersion < 39 || d.Title == "" {
			t.Errorf("%s: schema %d, title %q", file, d.SchemaVersion, d.Title)
		}
		var names []string
		for _, v := range d.Templating.List {
			names = append(names, v.Name)
			if v.Type == "query" {
				ofVariable(t, file+" variable "+v.Name, v.Datasource)
			}
		}
		if !slices.Equal(names, []string{"datasource", "job", "instance"}) {
			t.Errorf("%s: variables %q", file, names)
		}
		for _, a := range d.Annotations.List {
			ofVariable(t, file+" annotations", a.Datasource)
		}
		ids, titles := map[int]bool{}, map[string]bool{}
		for i, p := range d.Panels {
			at := fmt.Sprintf("%s: panel %d %q", file, p.ID, p.Title)
			if p.ID <= 0 || ids[p.ID] || p.Title == "" || titles[p.Title] {
				t.Errorf("%s: no id or title of its own", at)
			}
			ids[p.ID], titles[p.Title] = true, true
			g := p.GridPos
			if g.W <= 0 || g.H <= 0 || g.X < 0 || g.Y < 0 || g.X+g.W > 24 {
				t.Errorf("%s: is outside of the grid: %+v", at, g)
			}
			for _, o := range d.Panels[:i] {
				og := o.GridPos
				if g.X < og.X+og.W && og.X < g.X+g.W && g.Y < og.Y+og.H && og.Y < g.Y+g.H {
					t.Errorf("%s: lies over %q", at, o.Title)
				}
			}
			if p.Type != "row" {
				p.check(t, at)
			}
		}
	}
}

func (p panel) check(t *testing.T, at string) {
	if !strings.Contains(p.Description, "ormal: ") || !strings.Contains(p.Description, runbookPage) {
		t.Errorf("%s: its description must say what is normal and name the runbook: %q", at, p.Description)
	}
	if p.FieldConfig.Defaults.Unit == "" {
		t.Errorf("%s: no unit", at)
	}
	if len(p.Links) != 1 || !strings.HasPrefix(p.Links[0].URL, runbookPage) || !strings.Contains(p.Description, p.Links[0].URL) {
		t.Errorf("%s: links %v, its description says %q", at, p.Links, p.Description)
	}
	ofVariable(t, at, p.Datasource)
	refs := map[string]bool{}
	for _, q := range p.Targets {
		ofVariable(t, at, q.Datasource)
		if refs[q.RefID] || q.RefID == "" || q.Expr == "" || q.LegendFormat == "" {
			t.Errorf("%s: query %+v", at, q)
		}
		refs[q.RefID] = true
	}
	if len(refs) == 0 {
		t.Errorf("%s: no query", at)
	}
}

func ofVariable(t *testing.T, at string, d datasource) {
	t.Helper()
	if d != (datasource{"prometheus", "${datasource}"}) {
		t.Errorf("%s: %+v is not the data source that was chosen", at, d)
	}
}

// TestGrafanaProvisioning holds what Grafana is started with under Compose to the services and files that there are.
func TestGrafanaProvisioning(t *testing.T) {
	var compose struct {
		Services map[string]struct{ Volumes []string }
	}
	readYAML(t, "compose.yaml", &compose)
	mounted := func(path string) string {
		for _, v := range compose.Services["grafana"].Volumes {
			if from, rest, ok := strings.Cut(v, ":"); ok && strings.HasPrefix(from, "./") && strings.TrimSuffix(rest, ":ro") == path {
				return from
			}
		}
		t.Errorf("nothing is mounted at %s of grafana", path)
		return ""
	}
	if from := mounted("/etc/grafana/provisioning"); filepath.Clean(from) != "grafana/provisioning" {
		t.Errorf("Grafana is provisioned from %s", from)
	}
	var sources struct {
		Datasources []struct {
			UID, Type, URL string
			IsDefault      bool `yaml:"isDefault"`
		}
	}
	readYAML(t, "grafana/provisioning/datasources/prometheus.yaml", &sources)
	if len(sources.Datasources) != 1 {
		t.Fatalf("%d sources of data", len(sources.Datasources))
	}
	d := sources.Datasources[0]
	u, err := url.Parse(d.URL)
	if err != nil || d.Type != "prometheus" || !d.IsDefault || u.Port() != "9090" {
		t.Errorf("the source of data: %+v, %v", d, err)
	} else if _, ok := compose.Services[u.Hostname()]; !ok {
		t.Errorf("no service is called %s", u.Hostname())
	}
	var boards struct {
		Providers []struct {
			Type    string
			Options struct{ Path string }
		}
	}
	readYAML(t, "grafana/provisioning/dashboards/sluice.yaml", &boards)
	if len(boards.Providers) != 1 || boards.Providers[0].Type != "file" {
		t.Fatalf("providers of dashboards: %+v", boards.Providers)
	}
	if from := mounted(boards.Providers[0].Options.Path); filepath.Clean(from) != "grafana/dashboards" {
		t.Errorf("dashboards come from %s", from)
	}
}

// TestDashboardPictures holds the pictures of the docs to the panels that there are; .ci/panels.sh draws them anew.
func TestDashboardPictures(t *testing.T) {
	for file, d := range dashboards(t) {
		picture := filepath.Join("docs/pictures", strings.TrimSuffix(filepath.Base(file), ".json")+".svg")
		b, err := os.ReadFile(picture)
		if err != nil {
			t.Error(err)
			continue
		}
		for _, p := range d.Panels {
			if !strings.Contains(html.UnescapeString(string(b)), ">"+p.Title+"<") {
				t.Errorf("%s has no %q: .ci/panels.sh 80 deploy/docs/pictures", picture, p.Title)
			}
		}
	}
}

// TestRunbookHeadings finds the heading of every link into the runbook, from the dashboards, the rules and the tests of these.
func TestRunbookHeadings(t *testing.T) {
	page, err := os.ReadFile("docs/runbook.md")
	if err != nil {
		t.Fatal(err)
	}
	anchors := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^#+ +(.*)$`).FindAllStringSubmatch(string(page), -1) {
		anchors[strings.ReplaceAll(regexp.MustCompile(`[^\pL\pN_ -]`).ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-")] = true
	}
	for _, pattern := range []string{"grafana/dashboards/*.json", "prometheus/*.yaml"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatal(files, err)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range regexp.MustCompile(`runbook\.md#([a-zA-Z0-9_-]+)`).FindAllStringSubmatch(string(b), -1) {
				if !anchors[m[1]] {
					t.Errorf("%s: the runbook has no #%s", f, m[1])
				}
			}
		}
	}
}

var (
	promString = regexp.MustCompile(`"(?:[^"\\]|\\.)*"`)
	promLabels = regexp.MustCompile(`\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^()]*)\)`)
	promSelect = regexp.MustCompile(`([a-zA-Z_:][a-zA-Z0-9_:]*)\s*\{([^{}]*)\}`)
	promRange  = regexp.MustCompile(`\[[^\]]*\]`)
	promName   = regexp.MustCompile(`[a-zA-Z_:][a-zA-Z0-9_:]*\s*\(?`)
	promLabel  = regexp.MustCompile(`[a-zA-Z_][a-zA-Z0-9_]*`)
)

// metricsOf are the metrics that an expression reads, with the labels that it selects by. It knows as much of PromQL as our expressions use; what they
// mean is for promtool and .ci/panels.sh.
func metricsOf(expr string) map[string][]string {
	expr = promString.ReplaceAllString(strings.NewReplacer("$__rate_interval", "1m").Replace(expr), "")
	out := map[string][]string{}
	for _, m := range promSelect.FindAllStringSubmatch(expr, -1) {
		out[m[1]] = append(out[m[1]], promLabel.FindAllString(m[2], -1)...)
	}
	expr = promLabels.ReplaceAllString(promRange.ReplaceAllString(promSelect.ReplaceAllString(expr, "$1 "), ""), " ")
	for _, m := range promName.FindAllString(expr, -1) {
		switch name := strings.TrimSpace(m); {
		case strings.HasSuffix(name, "("), slices.Contains([]string{"and", "or", "unless", "bool", "offset", "d", "e3"}, name): // a function, an operator, 1d, 1e3
		default:
			out[name] = append(out[name], "job")
		}
	}
	return out
}

func TestMetricsOf(t *testing.T) {
	got := metricsOf(`(sum by (a, b) (rate(x_total{c="d{e}",f=~"g"}[5m])) or vector(0)) / on (job) group_left () (y:z > 1e3) unless on (q) w offset 1d and 0 * sum(v[$__rate_interval])`)
	want := map[string][]string{"x_total": {"c", "f", "job"}, "y:z": {"job"}, "w": {"job"}, "v": {"job"}}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// TestQueriesNameMetrics finds every metric and label that a dashboard, a recording rule or an alert asks for in docs/metrics.md, which is made from the
// code: a metric that is renamed leaves no panel empty and no alert silent.
func TestQueriesNameMetrics(t *testing.T) {
	page, err := os.ReadFile("docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	known := map[string][]string{
		"up": nil, "ALERTS": {"alertname", "alertstate"}, "process_start_time_seconds": nil, "process_cpu_seconds_total": nil,
		"process_resident_memory_bytes": nil, "process_open_fds": nil, "process_max_fds": nil, "go_goroutines": nil,
	}
	line := regexp.MustCompile("(?m)^\\| `(sluice_[a-z0-9_]+)` \\| (\\w+) \\| ([^|]*) \\|")
	for _, m := range line.FindAllStringSubmatch(string(page), -1) {
		var labels []string
		for _, l := range regexp.MustCompile("`([a-z_]+)`:").FindAllStringSubmatch(m[3], -1) {
			labels = append(labels, l[1])
		}
		if m[2] == "histogram" {
			known[m[1]+"_bucket"], known[m[1]+"_sum"], known[m[1]+"_count"] = append(slices.Clone(labels), "le"), labels, labels
		} else {
			known[m[1]] = labels
		}
	}
	recorded := map[string]bool{}
	for _, r := range rules(t, "prometheus/rules.yaml") {
		recorded[r.Record] = true
		for _, by := range regexp.MustCompile(`by \(([^)]*)\)`).FindAllStringSubmatch(r.Expr, -1) {
			known[r.Record] = append(known[r.Record], promLabel.FindAllString(by[1], -1)...)
		}
		if known[r.Record] == nil {
			known[r.Record] = []string{}
		}
	}
	used := map[string]bool{}
	check := func(at, expr string) {
		for name, labels := range metricsOf(expr) {
			used[name] = true
			has, ok := known[name]
			if !ok {
				t.Errorf("%s: nobody has %s: %s", at, name, expr)
			}
			for _, l := range labels {
				if !slices.Contains(has, l) && !slices.Contains([]string{"namespace", "job", "instance"}, l) {
					t.Errorf("%s: %s has no label %s", at, name, l)
				}
			}
		}
	}
	for file, d := range dashboards(t) {
		for _, p := range d.Panels {
			for _, q := range p.Targets {
				check(file+" "+p.Title, q.Expr)
			}
		}
		for _, a := range d.Annotations.List {
			check(file+" annotations", a.Expr)
		}
	}
	for _, file := range []string{"prometheus/rules.yaml", "prometheus/alerts.yaml"} {
		for _, r := range rules(t, file) {
			check(file+" "+r.Alert+r.Record, r.Expr)
		}
	}
	for name := range recorded {
		if !used[name] {
			t.Errorf("%s is recorded, and nobody asks for it", name)
		}
	}
}
