package tools

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"reflect"
	"regexp"
	"slices"
	"testing"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	apps "k8s.io/api/apps/v1"
	autoscaling "k8s.io/api/autoscaling/v2"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	policy "k8s.io/api/policy/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"
)

// checkSelectors holds everything that names pods, ports or services to those that there are, and returns how many there were of each.
func checkSelectors(t *testing.T, o objects) map[string]int {
	t.Helper()
	found := map[string]int{}
	byRole := pods(o)
	selected := func(what string, sel map[string]string) string {
		var found []string
		for role, pod := range byRole {
			if labels.SelectorFromSet(sel).Matches(labels.Set(pod.Labels)) {
				found = append(found, role)
			}
		}
		if len(found) != 1 {
			t.Errorf("%s selects %v", what, found)
			return ""
		}
		return found[0]
	}
	port := func(what, role, name string) {
		if role != "" && !slices.ContainsFunc(byRole[role].Spec.Containers[0].Ports, func(p core.ContainerPort) bool { return p.Name == name }) {
			t.Errorf("%s: %s has no port %s", what, role, name)
		}
	}
	services := map[string]*core.Service{}
	for _, s := range all[*core.Service](o) {
		services[s.Name] = s
		role := selected("service "+s.Name, s.Spec.Selector)
		for _, p := range s.Spec.Ports {
			port("service "+s.Name, role, p.TargetPort.StrVal)
		}
	}
	for _, b := range all[*policy.PodDisruptionBudget](o) {
		found["budget of "+selected("disruption budget "+b.Name, b.Spec.Selector.MatchLabels)]++
	}
	for role, pod := range byRole {
		for _, c := range pod.Spec.TopologySpreadConstraints {
			if got := selected(role+"'s spread over "+c.TopologyKey, c.LabelSelector.MatchLabels); got != role {
				t.Errorf("%s is spread away from %s", role, got)
			}
		}
	}
	for _, a := range all[*autoscaling.HorizontalPodAutoscaler](o) {
		found["autoscaler"]++
		to := a.Spec.ScaleTargetRef
		if _, ok := o[to.Kind+" "+to.Name].(*apps.StatefulSet); !ok || to.APIVersion != "apps/v1" {
			t.Errorf("the autoscaler scales %+v, which is not rendered", to)
		}
	}
	for _, n := range all[*networking.NetworkPolicy](o) {
		role := selected("network policy "+n.Name, n.Spec.PodSelector.MatchLabels)
		found["policy of "+role]++
		for _, in := range n.Spec.Ingress {
			for _, p := range in.Ports {
				port("network policy "+n.Name, role, p.Port.StrVal)
			}
		}
	}
	for _, in := range all[*networking.Ingress](o) {
		found["ingress"]++
		b := in.Spec.Rules[0].HTTP.Paths[0].Backend.Service
		if s := services[b.Name]; s == nil || !slices.ContainsFunc(s.Spec.Ports, func(p core.ServicePort) bool { return p.Name == b.Port.Name }) {
			t.Errorf("ingress %s: no service %s with a port %s", in.Name, b.Name, b.Port.Name)
		}
	}
	for _, m := range all[*monitoring.ServiceMonitor](o) {
		found["service monitor"]++
		sel, err := meta.LabelSelectorAsSelector(&m.Spec.Selector)
		if err != nil {
			t.Fatal(err)
		}
		jobs := map[string]bool{}
		for _, s := range services {
			if sel.Matches(labels.Set(s.Labels)) {
				jobs[s.Labels[m.Spec.JobLabel]] = true
			}
		}
		if len(jobs) != len(byRole)-1 { // migrate is not scraped
			t.Errorf("the service monitor finds the jobs %v, there are %d roles", jobs, len(byRole)-1)
		}
	}
	return found
}

// wired says how many of each thing that names pods a rendering of testdata has.
var wired = map[string]map[string]int{
	"minimal": {"budget of edge": 1, "budget of admin": 1, "budget of alerts": 1},
	"full": {"budget of edge": 1, "budget of admin": 1, "budget of alerts": 1, "ingress": 2, "service monitor": 1,
		"policy of edge": 1, "policy of admin": 1, "policy of alerts": 1, "policy of scope": 1, "policy of migrate": 1},
	"autoscaled": {"budget of edge": 1, "autoscaler": 1},
}

// TestNetworkPolicy holds what each role may connect to against where the values send it: a port that is left out cuts it off from what it needs.
func TestNetworkPolicy(t *testing.T) {
	docs, err := render("sluice", testValues(t, "full"))
	if err != nil {
		t.Fatal(err)
	}
	o := decode(t, docs)
	for role, want := range map[string][]int{ // Kafka on 9093, the collector on 4318, the issuer on 443, the judge on 8443; by secrets 5432 and 6379
		"edge":    {53, 4318, 5432, 6379, 9093},
		"alerts":  {53, 4318, 5432, 6379, 9093},
		"admin":   {53, 443, 4318, 5432, 6379, 8443, 9093},
		"scope":   {53, 4318, 5432, 6379, 8443, 9093},
		"migrate": {53, 5432, 6379, 9093},
	} {
		n, ok := o["NetworkPolicy sluice-"+role].(*networking.NetworkPolicy)
		if !ok {
			t.Errorf("%s has no network policy", role)
			continue
		}
		var got []int
		for _, e := range n.Spec.Egress {
			for _, p := range e.Ports {
				if *p.Protocol == core.ProtocolTCP {
					got = append(got, p.Port.IntValue())
				}
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s may connect to the ports %v, needs %v", role, got, want)
		}
	}
}

// TestDrainPod makes the pod of the runbook's orphaned spool as it stands there, of the StatefulSet that the chart renders: it must be one that the API server takes,
// with the edge's user, settings and secrets.
func TestDrainPod(t *testing.T) {
	page, err := os.ReadFile("../docs/runbook.md")
	if err != nil {
		t.Fatal(err)
	}
	program := regexp.MustCompile(`(?s)statefulset/sluice-edge -o json \| jq '(.*?)' \| kubectl apply`).FindSubmatch(page)
	if program == nil {
		t.Fatal("the runbook makes no pod of the StatefulSet")
	}
	docs, err := render("sluice", testValues(t, "full"))
	if err != nil {
		t.Fatal(err)
	}
	o := decode(t, docs)
	set, err := json.Marshal(o["StatefulSet sluice-edge"])
	if err != nil {
		t.Fatal(err)
	}
	jq := exec.Command("jq", string(program[1]))
	jq.Stdin = bytes.NewReader(set)
	out, err := jq.Output()
	if err != nil {
		t.Fatal(err)
	}
	var pod core.Pod
	if err := yaml.UnmarshalStrict(out, &pod); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	edge := pods(o)["edge"].Spec
	c := pod.Spec.Containers[0]
	if !reflect.DeepEqual(pod.Spec.SecurityContext, edge.SecurityContext) || !reflect.DeepEqual(c.SecurityContext, edge.Containers[0].SecurityContext) {
		t.Errorf("it runs as %+v, %+v", pod.Spec.SecurityContext, c.SecurityContext)
	}
	if !reflect.DeepEqual(c.Env, edge.Containers[0].Env) || !slices.Equal(c.Args, []string{"spool", "drain", "--dir", "/var/lib/sluice/spool/log"}) || c.LivenessProbe != nil {
		t.Errorf("its container is %+v", c)
	}
	volumes := map[string]bool{}
	for _, v := range pod.Spec.Volumes {
		volumes[v.Name] = true
	}
	for _, m := range c.VolumeMounts {
		if !volumes[m.Name] {
			t.Errorf("it mounts %s, which is no volume of it", m.Name)
		}
	}
}
