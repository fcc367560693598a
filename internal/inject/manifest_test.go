package inject

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"podseal.io/podseal/internal/settings"
)

// controllers makes pods of a template, as each controller of Kubernetes does.
func controllers() map[string]func(template corev1.PodTemplateSpec) *corev1.Pod {
	owned := func(t corev1.PodTemplateSpec, apiVersion, kind, name string) *corev1.Pod {
		t = *t.DeepCopy()
		t.OwnerReferences = []metav1.OwnerReference{{APIVersion: apiVersion, Kind: kind, Name: name, Controller: new(true)}}
		t.GenerateName = name + "-"
		return &corev1.Pod{ObjectMeta: t.ObjectMeta, Spec: t.Spec}
	}
	return map[string]func(corev1.PodTemplateSpec) *corev1.Pod{
		"apps/v1 Deployment": func(t corev1.PodTemplateSpec) *corev1.Pod {
			p := owned(t, "apps/v1", "ReplicaSet", "web-5d9c7b")
			if p.Labels == nil {
				p.Labels = map[string]string{}
			}
			p.Labels["pod-template-hash"] = "5d9c7b"
			return p
		},
		"apps/v1 StatefulSet": func(t corev1.PodTemplateSpec) *corev1.Pod { return owned(t, "apps/v1", "StatefulSet", "web") },
		"apps/v1 DaemonSet":   func(t corev1.PodTemplateSpec) *corev1.Pod { return owned(t, "apps/v1", "DaemonSet", "web") },
		"apps/v1 ReplicaSet":  func(t corev1.PodTemplateSpec) *corev1.Pod { return owned(t, "apps/v1", "ReplicaSet", "web") },
		"batch/v1 Job":        func(t corev1.PodTemplateSpec) *corev1.Pod { return owned(t, "batch/v1", "Job", "web") },
		"batch/v1 CronJob":    func(t corev1.PodTemplateSpec) *corev1.Pod { return owned(t, "batch/v1", "Job", "web-29384720") },
	}
}

// object is a controller's object in YAML, with the template in it.
func object(t testing.TB, kind, namespace string, template corev1.PodTemplateSpec) []byte {
	t.Helper()
	apiVersion, kind, _ := strings.Cut(kind, " ")
	spec := map[string]any{"template": template}
	if kind == "CronJob" {
		spec = map[string]any{"jobTemplate": map[string]any{"spec": spec}}
	}
	b, err := yaml.Marshal(map[string]any{"apiVersion": apiVersion, "kind": kind, "metadata": map[string]any{"name": "web", "namespace": namespace}, "spec": spec})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// templateIn reads the template of such an object.
func templateIn(t testing.TB, kind string, b []byte) corev1.PodTemplateSpec {
	t.Helper()
	type spec struct{ Template corev1.PodTemplateSpec }
	var o struct {
		Spec struct {
			spec
			JobTemplate struct{ Spec spec }
		}
	}
	if err := yaml.Unmarshal(b, &o); err != nil {
		t.Fatal(err)
	}
	if strings.HasSuffix(kind, "CronJob") {
		return o.Spec.JobTemplate.Spec.Template
	}
	return o.Spec.Template
}

// TestManifestsAgreeWithTheWebhook: every golden pod, as a template of every kind:
// the pod that the controller makes of the injected template is the one that the
// webhook makes of the pod of the plain template.
// Contract 5.11, 5.16: the workload is the same, too.
func TestManifestsAgreeWithTheWebhook(t *testing.T) {
	inputs, err := filepath.Glob("testdata/*.in.yaml")
	if err != nil || len(inputs) == 0 {
		t.Fatal("no test data", err)
	}
	for _, in := range inputs {
		text, err := os.ReadFile(in)
		if err != nil {
			t.Fatal(err)
		}
		var c goldenCase
		if err := yaml.UnmarshalStrict(text, &c); err != nil {
			t.Fatal(err)
		}
		for kind, make := range controllers() {
			t.Run(strings.TrimSuffix(filepath.Base(in), ".in.yaml")+" "+kind, func(t *testing.T) { c.compare(t, kind, make) })
		}
	}
}

func (c *goldenCase) compare(t *testing.T, kind string, make func(corev1.PodTemplateSpec) *corev1.Pod) {
	req := c.request(t)
	template := corev1.PodTemplateSpec{Spec: *c.Pod.Spec.DeepCopy()}
	template.Labels, template.Annotations = c.Pod.Labels, c.Pod.Annotations
	req.Pod = make(template)
	want, warnings, refused := Pod(req)

	got, err := ReadManifests(object(t, kind, c.Namespace.Name, template), Installation{
		Settings: req.Settings, Params: req.Params, Namespace: func(string) (*corev1.Namespace, error) { return c.Namespace, nil },
	})
	switch {
	case refused != nil:
		for line := range strings.Lines(refused.Error()) {
			if err == nil || !strings.Contains(err.Error(), "web: "+strings.TrimSpace(line)) {
				t.Errorf("not refused with %q: %v", line, err)
			}
		}
		return
	case err != nil:
		t.Fatal(err)
	case want == nil:
		t.Fatal("the golden pod isn't injected: a pod for this test is")
	}
	injected := make(templateIn(t, kind, got.YAML))
	if diff := cmp.Diff(want, injected); diff != "" {
		t.Error(diff)
	}
	for i, w := range warnings {
		if i >= len(got.Warnings) || !strings.HasSuffix(got.Warnings[i], "web: "+w) {
			t.Errorf("warning %q is not among %q", w, got.Warnings)
		}
	}
	if again := Decide(injected, c.Namespace, c.Namespace.Name, &req.Settings); again.Inject {
		t.Error("the webhook injects it again")
	}
}

func testInstallation() Installation {
	return Installation{Settings: settings.Default(""), Params: testParams(), DefaultNamespace: "default"}
}

const manifestStream = `# a comment stays where nothing is injected
apiVersion: v1
kind: Service
metadata: {name: web}   # as it was
---
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: ConfigMap
  metadata: {name: c}
- apiVersion: apps/v1
  kind: Deployment
  metadata: {name: web, namespace: shop}
  spec:
    replicas: 9007199254740993
    futureOfDeployments: {kept: true}
    template:
      spec:
        futureOfPods: [1]
        containers:
        - {name: app, image: a, futureOfContainers: x, resources: {requests: {cpu: 0.5}}, livenessProbe: {futureOfProbes: 1, httpGet: {path: /, port: 80}}}
---
# only a comment
---
{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "app"}]}}
---
apiVersion: v1
kind: Pod
metadata: {name: out, labels: {sidecar.istio.io/inject: "false"}}
spec: {containers: [{name: app}]}
---
apiVersion: apps.example.com/v1
kind: Thing
metadata: {name: t}
spec: {template: {spec: {containers: [{name: app}]}}}
`

func TestManifests(t *testing.T) {
	got, err := ReadManifests([]byte(manifestStream), testInstallation())
	if err != nil {
		t.Fatal(err)
	}
	out := string(got.YAML)
	for _, want := range []string{
		"# a comment stays where nothing is injected\n", "metadata: {name: web}   # as it was\n---\n", "# only a comment\n",
		"replicas: 9007199254740993\n", "futureOfDeployments:\n", "futureOfPods:\n", "futureOfContainers: x\n", "futureOfProbes: 1\n", "cpu: 0.5\n",
		"path: /app-health/app/livez", "kind: ConfigMap", "kubernetes://apis/apps.example.com/v1/namespaces/default/things/t", "kubernetes://apis/v1/namespaces/default/pods/p",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if n := strings.Count(out, "name: istio-proxy\n"); n != 3 {
		t.Errorf("%d proxies, want 3", n)
	}
	if strings.Contains(out, "creationTimestamp") || strings.Contains(out, "\nstatus:") {
		t.Error("empty fields were added")
	}
	if len(got.Left) != 1 || got.Left[0] != "pod default/out: label sidecar.istio.io/inject=false of the pod" {
		t.Errorf("left: %q", got.Left)
	}
	again, err := ReadManifests(got.YAML, testInstallation())
	if err != nil || string(again.YAML) != out {
		t.Errorf("injected twice it is not the same: %v\n%s", err, cmp.Diff(out, string(again.YAML)))
	}
}

func TestManifestsThatAreRefused(t *testing.T) {
	const pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: shop}\nspec: {containers: [{name: app}]}\n"
	for name, tc := range map[string]struct {
		in   string
		says []string
	}{
		"no YAML":            {"a: [", []string{"document 1: not YAML"}},
		"no object":          {pod + "---\n[1]", []string{"document 2"}},
		"wrong type":         {"apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: 1}]}", []string{"pod default/p", "name"}},
		"item":               {"kind: List\nitems: [1]", []string{"items[0]"}},
		"all faults at once": {strings.ReplaceAll(pod, "name: p", "annotations: {sidecar.istio.io/proxyCPU: x, sidecar.istio.io/logLevel: loud}, name: p") + "---\na: [", []string{"proxyCPU", "pod shop/p: annotation sidecar.istio.io/logLevel", "document 2"}},
		"Pod Security of a namespace in the stream": {
			pod + "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {pod-security.kubernetes.io/enforce: baseline}}\n", []string{"Pod Security"},
		},
		"lists for ever": {strings.Repeat("kind: List\nitems: [{", 1) + strings.Repeat("kind: List, items: [{", 20) + strings.Repeat("}]", 20) + "}]", []string{"deep"}},
	} {
		got, err := ReadManifests([]byte(tc.in), testInstallation())
		if err == nil || got.YAML != nil {
			t.Errorf("%s: not refused", name)
			continue
		}
		for _, want := range tc.says {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: no %q in %v", name, want, err)
			}
		}
	}
}

func FuzzManifests(f *testing.F) {
	f.Add([]byte(manifestStream))
	f.Add([]byte("kind: List\nitems: [{kind: CronJob, spec: {jobTemplate: {spec: {template: {spec: {containers: []}}}}}}]"))
	f.Add([]byte("---\n---\n{}"))
	f.Fuzz(func(t *testing.T, in []byte) {
		got, err := ReadManifests(in, testInstallation())
		if err != nil {
			return
		}
		if _, err := ReadManifests(got.YAML, testInstallation()); err != nil {
			t.Errorf("what it wrote it can't read: %v\n%s", err, got.YAML)
		}
	})
}
