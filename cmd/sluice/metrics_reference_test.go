package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"math/big"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"github.com/spf13/pflag"

	"flowstate.inc/sluice/signals"
)

const metricsHead = `# Metrics

Generated from the code: ` + "`go test ./cmd/sluice -run TestReference -update`" + `. Every metric that a process with all roles, a spool and a certificate has on ` + "`GET /metrics`" + ` of
` + "`--ops-addr`" + `, whether or not it has a sample yet; and beside them what the Prometheus client adds of the Go runtime and the process (` + "`go_*`, `process_*`, `promhttp_*`" + `).

- ` + "`sluice_ingest_records_received_total`" + ` equals the sum of ` + "`sluice_ingest_records_total`" + ` over outcomes and reasons, for each kind: no record is lost from sight.
- No label has a key, an account, an org or a session in it: ` + "`sluice top`" + ` and the console answer questions about those.
- What a role does not do it has no metrics of. A sample that only an event makes (a code, a reason) is missing until then.
`

// A family is one metric as the page shows it.
type family struct {
	name, help, kind string
	labels           []string
	values           map[string][]string // of a label, as seen
}

var (
	descName   = regexp.MustCompile(`fqName: "([^"]+)", help: ("(?:[^"\\]|\\.)*")`)
	descLabels = regexp.MustCompile(`variableLabels: \{([^}]*)\}`)
)

// TestReferenceOfMetrics starts everything that serve starts, with nothing to reach, and lists what is registered.
func TestReferenceOfMetrics(t *testing.T) {
	families, gathered := registered(t)
	problems, err := testutil.GatherAndLint(prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) { return gathered, nil }))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	var b strings.Builder
	b.WriteString(metricsHead)
	area, known := "", labelValues(t)
	for _, f := range families {
		if a := strings.Split(f.name, "_")[1]; a != area {
			area = a
			fmt.Fprintf(&b, "\n## sluice_%s\n\n| metric | type | labels | meaning |\n|---|---|---|---|\n", area)
		}
		if f.kind == "" {
			t.Errorf("%s: its type is not known without a sample; let registered make one", f.name)
		}
		var labels []string
		for _, l := range f.labels {
			values := valuesOf(known, f, l)
			if values == "" {
				t.Errorf("%s: what may label %s be? Say so in labelValues", f.name, l)
			}
			labels = append(labels, "`"+l+"`: "+values)
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", f.name, f.kind, strings.Join(labels, "; "), cell(f.help))
	}
	generated(t, "metrics.md", b.String())
}

// labelValues says what a label may be where no sample shows it, for a metric or, by the label alone, for all.
func labelValues(t *testing.T) map[string]string {
	requests := constantsOf(t, "ingest", "refusal")
	for _, r := range constantsOf(t, "auth", "RefusalReason") {
		if !slices.Contains(requests, r) {
			requests = append(requests, r)
		}
	}
	slices.Sort(requests)
	return map[string]string{
		"sluice_ingest_requests_total reason": listed(requests),
		"sluice_ingest_requests_total kind":   listed([]string{"logs", "spans", "metrics", "signals", "whoami", "other"}),
		"code":                                "the HTTP status",
		"method":                              "the HTTP method",
		"route":                               "the path's pattern, `none` where there is none",
		"topic":                               "a topic of Kafka, as configured",
		"partition":                           "a partition's number",
		"version":                             "of the build",
		"commit":                              "of the build",
		"go_version":                          "of the build",
		"broker":                              "a broker's address",
		"listener":                            "`http`, `grpc`",
		"sluice_tls_certificate_reloads_total result": "`ok`, `failed`",
		"sluice_ingest_own_signals_total outcome":     listed([]string{"accepted", "filtered", "invalid", "unavailable"}),
		"sluice_scope_judge_duration_seconds result":  "`answered`, `failed`",
		"sluice_scope_judge_errors_total reason":      listed([]string{"answer", "key", "overloaded", "refused", "server", "timeout", "unreachable"}),
		"sluice_scope_messages_total outcome":         listed([]string{"account_unknown", "no_account", "no_prompt", "no_scope", "not_a_service", "read", "too_old", "unreadable"}),
		"sluice_scope_failures_total step":            "what failed: `commit`, `count`, `topic` (one is missing, or no broker can be asked), or the step that is repeated",
		"sluice_scope_tokens_total direction":         "`in`, `out`",
		"sluice_scope_verdicts_total verdict":         listed([]string{"in", "out", "unsure", "abstained"}),
		"sluice_scope_verdicts_total why":             "why there is no verdict, or an unsure one; empty else",
		"sluice_trace_spans_total outcome":            "`exported`, `failed`, `dropped`",
		"sluice_kafka_topic_problems severity":        "`fatal`, `warning`",
	}
}

func valuesOf(known map[string]string, f family, label string) string {
	if s := known[f.name+" "+label]; s != "" {
		return s
	}
	if s := known[label]; s != "" {
		return s
	}
	return listed(f.values[label])
}

func listed(values []string) string {
	if len(values) == 0 {
		return ""
	}
	return "`" + strings.Join(values, "`, `") + "`"
}

// constantsOf are the values of a room's constants of one string type, from the source.
func constantsOf(t *testing.T, room, typeName string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(repositoryRoot, room, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, file := range files {
		tree, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(tree, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok {
				return true
			}
			if id, ok := spec.Type.(*ast.Ident); !ok || id.Name != typeName {
				return true
			}
			for _, v := range spec.Values {
				if lit, ok := v.(*ast.BasicLit); ok && lit.Kind == token.STRING {
					s, err := strconv.Unquote(lit.Value)
					if err != nil {
						t.Fatal(err)
					}
					out = append(out, s)
				}
			}
			return true
		})
	}
	if len(out) == 0 {
		t.Fatalf("%s has no constants of type %s", room, typeName)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// registered runs a serve that reaches nothing, and returns every metric of ours that is described, and the samples.
func registered(t *testing.T) ([]family, []*dto.MetricFamily) {
	t.Helper()
	var cfg config
	flags := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	cfg.serveFlags(flags)
	cert, key := certificateFiles(t)
	if err := flags.Parse([]string{
		"--postgres-url=postgres://u:p@127.0.0.1:1/x", "--redis-url=redis://127.0.0.1:1", "--kafka-brokers=127.0.0.1:1", "--spool-dir=" + t.TempDir(),
		"--edge-addr=127.0.0.1:0", "--grpc-addr=127.0.0.1:0", "--admin-addr=127.0.0.1:0", "--ops-addr=127.0.0.1:0", "--drain-delay=0s", "--judge-url=http://127.0.0.1:1", "--judge-model=x", "--tls-cert=" + cert, "--tls-key=" + key,
	}); err != nil {
		t.Fatal(err)
	}
	p, closeAll, err := newServing(t.Context(), &cfg, discardLogger(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll()
	// It registers where it runs, not where it is wired.
	ctx, stop := context.WithCancel(t.Context())
	stop()
	_ = signals.Retain(ctx, signals.RetentionConfig{Store: p.signals.store, Registerer: p.reg, Logger: p.log}) // it has nothing to keep
	// One request, so that the admin API's histogram has a sample.
	p.admin.Handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/api/v1", nil))
	families, samples := describe(t, p.reg)
	if err := p.durable.log.Close(t.Context()); err != nil {
		t.Error(err)
	}
	return families, samples
}

func describe(t *testing.T, reg *prometheus.Registry) ([]family, []*dto.MetricFamily) {
	gathered, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]*dto.MetricFamily{}
	var samples []*dto.MetricFamily
	for _, mf := range gathered {
		byName[mf.GetName()] = mf
		if strings.HasPrefix(mf.GetName(), "sluice_") {
			samples = append(samples, mf)
		}
	}
	descs := make(chan *prometheus.Desc)
	go func() {
		reg.Describe(descs)
		close(descs)
	}()
	var out []family
	for d := range descs {
		name := descName.FindStringSubmatch(d.String())
		if name == nil {
			t.Errorf("a description that cannot be read: %s", d)
			continue
		}
		if !strings.HasPrefix(name[1], "sluice_") {
			continue
		}
		help, err := strconv.Unquote(name[2])
		if err != nil {
			t.Fatal(err)
		}
		f := family{name: name[1], help: help, values: map[string][]string{}}
		if m := descLabels.FindStringSubmatch(d.String()); m != nil && m[1] != "" {
			f.labels = strings.Split(m[1], ",")
		}
		mf := byName[f.name]
		switch {
		case mf != nil:
			f.kind = strings.ToLower(mf.GetType().String())
		case strings.HasSuffix(f.name, "_total"):
			f.kind = "counter"
		case strings.HasSuffix(f.name, "_duration_seconds"):
			f.kind = "histogram"
		case len(f.labels) > 0 && !strings.HasSuffix(f.name, "_seconds"):
			f.kind = "gauge"
		}
		for _, m := range mf.GetMetric() {
			for _, l := range m.GetLabel() {
				if v := l.GetValue(); !slices.Contains(f.values[l.GetName()], v) {
					f.values[l.GetName()] = append(f.values[l.GetName()], v)
				}
			}
		}
		for _, v := range f.values {
			slices.Sort(v)
		}
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b family) int { return strings.Compare(a.name, b.name) })
	return out, samples
}

// certificateFiles makes a certificate that is good for an hour.
func certificateFiles(t *testing.T) (string, string) {
	t.Helper()
	return certificateUntil(t, time.Now().Add(time.Hour))
}

func certificateUntil(t *testing.T, until time.Time) (string, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"localhost"}, NotBefore: until.Add(-48 * time.Hour), NotAfter: until}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name, kind string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return write("cert.pem", "CERTIFICATE", der), write("key.pem", "PRIVATE KEY", pkcs8)
}
