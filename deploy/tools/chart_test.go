package tools

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	apps "k8s.io/api/apps/v1"
	autoscaling "k8s.io/api/autoscaling/v2"
	batch "k8s.io/api/batch/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	policy "k8s.io/api/policy/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/yaml"
)

const chartDir = "../helm/sluice"

// render gives the chart's documents for a file of values of testdata, or the error that an installer would see.
func render(release string, values map[string]any) ([]string, error) {
	chart, err := loader.LoadDir(chartDir)
	if err != nil {
		return nil, err
	}
	vals, err := util.ToRenderValues(chart, values, common.ReleaseOptions{Name: release, Namespace: "telemetry", Revision: 1, IsInstall: true}, common.DefaultCapabilities)
	if err != nil {
		return nil, err
	}
	files, err := engine.Render(chart, vals)
	if err != nil {
		return nil, err
	}
	var docs []string
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if filepath.Ext(name) != ".yaml" {
			continue
		}
		for _, doc := range regexp.MustCompile(`(?m)^---\s*$`).Split(files[name], -1) {
			if strings.TrimSpace(doc) != "" {
				docs = append(docs, doc)
			}
		}
	}
	return docs, nil
}

func testValues(t *testing.T, name string) map[string]any {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name+".yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var v map[string]any
	if err := yaml.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// objects are the documents of one rendering as what the API server would take them for, by kind and name.
type objects map[string]meta.Object

func decode(t *testing.T, docs []string) objects {
	t.Helper()
	out := objects{}
	for _, doc := range docs {
		var kind struct{ APIVersion, Kind string }
		if err := yaml.Unmarshal([]byte(doc), &kind); err != nil {
			t.Fatalf("%v\n%s", err, doc)
		}
		var o meta.Object
		switch kind.APIVersion + " " + kind.Kind {
		case "apps/v1 StatefulSet":
			o = &apps.StatefulSet{}
		case "apps/v1 Deployment":
			o = &apps.Deployment{}
		case "batch/v1 Job":
			o = &batch.Job{}
		case "v1 Service":
			o = &core.Service{}
		case "v1 ServiceAccount":
			o = &core.ServiceAccount{}
		case "v1 ConfigMap":
			o = &core.ConfigMap{}
		case "policy/v1 PodDisruptionBudget":
			o = &policy.PodDisruptionBudget{}
		case "autoscaling/v2 HorizontalPodAutoscaler":
			o = &autoscaling.HorizontalPodAutoscaler{}
		case "networking.k8s.io/v1 NetworkPolicy":
			o = &networking.NetworkPolicy{}
		case "networking.k8s.io/v1 Ingress":
			o = &networking.Ingress{}
		case "monitoring.coreos.com/v1 ServiceMonitor":
			o = &monitoring.ServiceMonitor{}
		case "monitoring.coreos.com/v1 PrometheusRule":
			o = &monitoring.PrometheusRule{}
		default:
			t.Fatalf("nobody checks %s %s", kind.APIVersion, kind.Kind)
		}
		if err := yaml.UnmarshalStrict([]byte(doc), o); err != nil {
			t.Errorf("%s: %v\n%s", kind.Kind, err, doc)
			continue
		}
		for _, problem := range validation.IsDNS1123Label(o.GetName()) {
			t.Errorf("%s %q: %s", kind.Kind, o.GetName(), problem)
		}
		for k, v := range o.GetLabels() {
			for _, problem := range append(validation.IsQualifiedName(k), validation.IsValidLabelValue(v)...) {
				t.Errorf("%s %s: label %s=%s: %s", kind.Kind, o.GetName(), k, v, problem)
			}
		}
		key := kind.Kind + " " + o.GetName()
		if out[key] != nil {
			t.Errorf("%s is rendered twice", key)
		}
		out[key] = o
	}
	return out
}

func all[T meta.Object](o objects) []T {
	var out []T
	for _, key := range slices.Sorted(maps.Keys(o)) {
		if v, ok := o[key].(T); ok {
			out = append(out, v)
		}
	}
	return out
}

// pods are the pod templates of a rendering, by the component that they are.
func pods(o objects) map[string]core.PodTemplateSpec {
	out := map[string]core.PodTemplateSpec{}
	for _, s := range all[*apps.StatefulSet](o) {
		out[s.Labels["app.kubernetes.io/component"]] = s.Spec.Template
	}
	for _, d := range all[*apps.Deployment](o) {
		out[d.Labels["app.kubernetes.io/component"]] = d.Spec.Template
	}
	for _, j := range all[*batch.Job](o) {
		out[j.Labels["app.kubernetes.io/component"]] = j.Spec.Template
	}
	return out
}

// TestChart renders the chart as it would be installed in several ways, and holds each to what Kubernetes takes and what the roles need.
func TestChart(t *testing.T) {
	for _, name := range []string{"minimal", "full", "autoscaled"} {
		for _, release := range []string{"sluice", "a-release-with-a-name-that-is-as-long-as-helm-takes-it"} {
			t.Run(name+"/"+release, func(t *testing.T) {
				docs, err := render(release, testValues(t, name))
				if err != nil {
					t.Fatal(err)
				}
				o := decode(t, docs)
				checkPods(t, o)
				if got := checkSelectors(t, o); !maps.Equal(got, wired[name]) {
					t.Errorf("it has %v, want %v", got, wired[name])
				}
				checkEdge(t, o, name == "autoscaled")
				if name == "full" {
					checkFull(t, o)
				}
			})
		}
	}
}

func checkPods(t *testing.T, o objects) {
	t.Helper()
	for role, pod := range pods(o) {
		spec := pod.Spec
		if s := spec.SecurityContext; s == nil || s.RunAsNonRoot == nil || !*s.RunAsNonRoot || s.RunAsUser == nil || *s.RunAsUser != 65532 || s.FSGroup == nil || *s.FSGroup != 65532 ||
			s.SeccompProfile == nil || s.SeccompProfile.Type != core.SeccompProfileTypeRuntimeDefault {
			t.Errorf("%s: the pod does not keep to the restricted pod security standard: %+v", role, s)
		}
		if spec.AutomountServiceAccountToken == nil || *spec.AutomountServiceAccountToken {
			t.Errorf("%s: it is given a token of the API server, and needs none", role)
		}
		if len(spec.Containers) != 1 {
			t.Fatalf("%s has %d containers", role, len(spec.Containers))
		}
		c := spec.Containers[0]
		s := c.SecurityContext
		if s == nil || s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation || s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem ||
			s.Capabilities == nil || !slices.Equal(s.Capabilities.Drop, []core.Capability{"ALL"}) {
			t.Errorf("%s: the container does not keep to the restricted pod security standard: %+v", role, s)
		}
		if c.Resources.Limits.Memory().IsZero() || c.Resources.Requests.Cpu().IsZero() || !c.Resources.Limits.Cpu().IsZero() {
			t.Errorf("%s: wants a limit on memory, a request for CPU, and no limit on CPU: %+v", role, c.Resources)
		}
		volumes := map[string]bool{"spool": role == "edge"}
		for _, v := range spec.Volumes {
			volumes[v.Name] = true
		}
		for _, m := range c.VolumeMounts {
			if !volumes[m.Name] {
				t.Errorf("%s mounts %s, which is no volume of it", role, m.Name)
			}
		}
		if len(c.VolumeMounts) != len(spec.Volumes)+map[bool]int{true: 1}[role == "edge"] {
			t.Errorf("%s: %d volumes, %d mounts", role, len(spec.Volumes), len(c.VolumeMounts))
		}
		if role == "migrate" {
			continue
		}
		for what, p := range map[string]*core.Probe{"startup": c.StartupProbe, "liveness": c.LivenessProbe, "readiness": c.ReadinessProbe} {
			if p == nil || p.HTTPGet == nil || p.HTTPGet.Port.StrVal != "ops" {
				t.Errorf("%s has no %s probe on its ops port", role, what)
			}
		}
		if len(spec.TopologySpreadConstraints) != 2 {
			t.Errorf("%s is not spread over zones and nodes", role)
		}
	}
}

func checkEdge(t *testing.T, o objects, autoscaled bool) {
	t.Helper()
	sets := all[*apps.StatefulSet](o)
	if len(sets) != 1 {
		t.Fatalf("%d stateful sets", len(sets))
	}
	s := sets[0].Spec
	if r := s.PersistentVolumeClaimRetentionPolicy; r == nil || r.WhenScaled != apps.RetainPersistentVolumeClaimRetentionPolicyType ||
		r.WhenDeleted != apps.RetainPersistentVolumeClaimRetentionPolicyType {
		t.Errorf("spools do not outlive their edges: %+v", r)
	}
	if len(s.VolumeClaimTemplates) != 1 || s.VolumeClaimTemplates[0].Name != "spool" {
		t.Errorf("volume claims: %+v", s.VolumeClaimTemplates)
	}
	if o["Service "+s.ServiceName] == nil {
		t.Errorf("its service %s is not rendered", s.ServiceName)
	}
	if (s.Replicas == nil) != autoscaled || (len(all[*autoscaling.HorizontalPodAutoscaler](o)) == 1) != autoscaled {
		t.Errorf("replicas %v, autoscaled %v: one of them counts the pods", s.Replicas, autoscaled)
	}
	// stopTimeout of cmd/sluice is 20 s, and the spool is closed after it.
	var drain int64
	for _, e := range s.Template.Spec.Containers[0].Env {
		if e.Name == "SLUICE_DRAIN_DELAY" {
			if _, err := fmt.Sscanf(e.Value, "%ds", &drain); err != nil {
				t.Fatal(err)
			}
		}
	}
	if g := s.Template.Spec.TerminationGracePeriodSeconds; g == nil || *g < drain+25 {
		t.Errorf("an edge that drains for %d s is killed after %v", drain, g)
	}
}

func checkFull(t *testing.T, o objects) {
	t.Helper()
	if got := slices.Sorted(maps.Keys(pods(o))); !slices.Equal(got, []string{"admin", "alerts", "edge", "migrate", "scope"}) {
		t.Errorf("roles: %v", got)
	}
	rules := all[*monitoring.PrometheusRule](o)
	if len(rules) != 1 {
		t.Fatalf("%d PrometheusRules", len(rules))
	}
	names, alerts := map[string]bool{}, 0
	for _, g := range rules[0].Spec.Groups {
		if names[g.Name] {
			t.Errorf("two groups of rules are named %s", g.Name)
		}
		names[g.Name] = true
		for _, r := range g.Rules {
			if r.Alert == "" {
				continue
			}
			alerts++
			if want := "https://docs.example.com/sluice#" + strings.ToLower(r.Alert); r.Annotations["runbook_url"] != want {
				t.Errorf("%s: %s, want %s", r.Alert, r.Annotations["runbook_url"], want)
			}
		}
	}
	source, err := os.ReadFile("../prometheus/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.Count(string(source), "- alert: "); alerts != want {
		t.Errorf("%d alerts, alerts.yaml has %d", alerts, want)
	}
	dashboards, err := filepath.Glob("../grafana/dashboards/*.json")
	if err != nil || len(dashboards) == 0 {
		t.Fatal(dashboards, err)
	}
	for _, d := range dashboards {
		if o["ConfigMap sluice-"+strings.TrimSuffix(filepath.Base(d), ".json")] == nil &&
			!slices.ContainsFunc(slices.Collect(maps.Keys(o)), func(k string) bool { return strings.HasSuffix(k, "-"+strings.TrimSuffix(filepath.Base(d), ".json")) }) {
			t.Errorf("%s is not rendered", d)
		}
	}
}

// TestChartRefuses holds the schema and the templates to saying what is wrong, before anything is installed.
func TestChartRefuses(t *testing.T) {
	for _, c := range []struct{ name, values, want string }{
		{"nothing", `{}`, "kafka.brokers"},
		{"a slip of the pen", `{kafka: {brokers: ["k:9092"]}, edges: {}}`, "edges"},
		{"a broker without its port", `{kafka: {brokers: [kafka]}}`, "brokers"},
		{"a mechanism without a user", `{kafka: {brokers: ["k:9092"], sasl: {mechanism: PLAIN}}}`, "kafka.sasl.user"},
		{"a mechanism that Sluice does not speak", `{kafka: {brokers: ["k:9092"], sasl: {mechanism: GSSAPI}}}`, "mechanism"},
		{"what the chart sets itself", `{kafka: {brokers: ["k:9092"]}, config: {roles: edge}}`, "roles"},
		{"a secret among the settings", `{kafka: {brokers: ["k:9092"]}, config: {kafka-password: x}}`, "kafka-password"},
		{"an issuer without a secret", `{kafka: {brokers: ["k:9092"]}, oidc: {issuer: "https://id.example.com", clientId: s}, admin: {url: "https://s.example.com"}}`, "oidc.existingSecret"},
		{"an issuer that sends admins nowhere", `{kafka: {brokers: ["k:9092"]}, oidc: {issuer: "https://id.example.com", clientId: s, existingSecret: o}}`, "admin.url"},
		{"a judge without an address", `{kafka: {brokers: ["k:9092"]}, scope: {enabled: true}}`, "scope.judge.url"},
		{"an ingress without a host", `{kafka: {brokers: ["k:9092"]}, edge: {ingress: {enabled: true}}}`, "edge.ingress.host"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var v map[string]any
			if err := yaml.Unmarshal([]byte(c.values), &v); err != nil {
				t.Fatal(err)
			}
			if _, err := render("sluice", v); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want something about %s", err, c.want)
			}
		})
	}
}

func TestChartLint(t *testing.T) {
	result := lint.RunAll(chartDir, testValues(t, "full"), "telemetry")
	for _, m := range result.Messages {
		if m.Severity >= support.WarningSev {
			t.Error(m)
		}
	}
}
