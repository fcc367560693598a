package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"podseal.io/podseal/internal/analysis"
	"podseal.io/podseal/internal/discovery"
	"podseal.io/podseal/internal/install"
	"podseal.io/podseal/internal/settings"
)

// manifests is what somebody's repository may have.
const manifests = `apiVersion: apps/v1
kind: Deployment
metadata: {name: api, namespace: shop}
spec:
  selector: {matchLabels: {app: api}}
  template:
    metadata: {labels: {app: api}}
    spec: {containers: [{name: app, securityContext: {runAsUser: 1337}}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {mtl: {mode: STRICT}}
---
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: f, namespace: shop}
spec: {}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: tick}
spec: {schedule: "* * * * *", jobTemplate: {spec: {template: {spec: {hostNetwork: true}}}}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: c}
`

// In CI no cluster is asked, and the exit code says whether there is something of
// the level that counts.
func TestAnalyzeFiles(t *testing.T) {
	t.Setenv("KUBECONFIG", filepath.Join(t.TempDir(), "none"))
	file := filepath.Join(t.TempDir(), "m.yaml")
	if err := os.WriteFile(file, []byte(manifests), 0o600); err != nil {
		t.Fatal(err)
	}
	stdout, stderr, code := podseal(t, "analyze", "-f", file)
	if code != 0 {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	for _, want := range []string{
		"Warning [IST0144] (Pod shop/api " + file + ") container app runs as user 1337", "Warning [IST0133] (PeerAuthentication shop/strict " + file + ") spec.mtl: unknown field",
		"Warning [PDS0107] (EnvoyFilter shop/f " + file + ")",
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q in:\n%s", want, stdout)
		}
	}
	for _, tc := range []struct {
		args []string
		code int
		n    int
	}{
		{[]string{"--fail-on", "warning"}, exitFindings, 3},
		{[]string{"--fail-on", "Warning", "-S", "*=*"}, 0, 0},
		{[]string{"--fail-on", "warning", "-S", "IST01*=Pod shop/api", "-S", "PDS0107=EnvoyFilter f.shop"}, exitFindings, 1},
		{[]string{"--output-threshold", "error"}, 0, 0},
	} {
		stdout, stderr, code := podseal(t, append([]string{"analyze", "-f", file, "-o", "json"}, tc.args...)...)
		var found []analysis.Message
		if err := json.Unmarshal([]byte(stdout), &found); err != nil || code != tc.code || len(found) != tc.n {
			t.Errorf("%q: exit code %d, %d findings, %v: %s", tc.args, code, len(found), err, stderr)
		}
	}
	if err := os.WriteFile(file, []byte("apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {ports: 5}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, stderr, code := podseal(t, "analyze", "-f", file); code != exitBadInput || !strings.Contains(stderr, "Service default/x") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	for _, tc := range []struct {
		args   []string
		stderr string
	}{
		{[]string{"--fail-on", "all"}, "info, warning, error"}, {[]string{"--use-kube"}, "is for -f"}, {[]string{"-S", "x"}, "CODE=KIND"}, {[]string{"x"}, "takes no arguments"}, {[]string{"-o", "table"}, "log, json, yaml"},
	} {
		if _, stderr, code := podseal(t, append([]string{"analyze"}, tc.args...)...); code != exitUsage || !strings.Contains(stderr, tc.stderr) {
			t.Errorf("%q: exit code %d: %s", tc.args, code, stderr)
		}
	}
}

// Of a cluster also the mesh's own webhooks and roots are looked at; what may not be
// listed is said.
func TestAnalyzeCluster(t *testing.T) {
	scheme, err := install.Scheme()
	if err != nil {
		t.Fatal(err)
	}
	pa := peerAuthentication()
	pa.SetNamespace("shop")
	pa.SetName("p")
	pa.Object["spec"] = map[string]any{"mtl": map[string]any{}}
	ready := false
	objects := []client.Object{
		pa,
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{"istio-injection": "enabled"}}},
		&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "x", Namespace: "shop"}, Spec: corev1.PodSpec{ServiceAccountName: "x"}, Status: corev1.PodStatus{Phase: corev1.PodRunning}},
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: settings.RootConfigMap, Namespace: settings.Namespace}, Data: map[string]string{"root-cert.pem": "no certificate"}},
		&admissionv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: install.InjectorName}, Webhooks: []admissionv1.MutatingWebhook{{ClientConfig: admissionv1.WebhookClientConfig{}}}},
		&discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{Name: "istiod-1", Namespace: settings.Namespace, Labels: map[string]string{discoveryv1.LabelServiceName: "istiod"}},
			Endpoints:  []discoveryv1.Endpoint{{Conditions: discoveryv1.EndpointConditions{Ready: &ready}}},
		},
	}
	read := func() string {
		t.Helper()
		in := &analysis.Input{Now: time.Now(), Cluster: discovery.Cluster{Settings: settings.Default(""), RootNamespace: settings.Namespace}, Files: map[discovery.Key]string{}}
		if _, err := readCluster(t.Context(), fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).Build(), in); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, m := range (&analyzeOptions{failOn: "error", show: "info"}).pick(analysis.Analyze(*in)) {
			got = append(got, m.Code+" "+m.Name+" "+m.Text)
		}
		return strings.Join(got, "\n")
	}
	got := read()
	for _, want := range []string{"IST0139 " + install.InjectorName + " no control plane is ready", "IST0139 " + install.ValidatorName + " it is not there", "IST0103 x", "IST0133 p spec.mtl"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in:\n%s", want, got)
		}
	}
	ready = true
	if got := read(); !strings.Contains(got, install.InjectorName+" it has no caBundle") {
		t.Error(got)
	}
}

// What is in files stands in the place of what is in the cluster, with its age.
func TestAnalyzeOverlay(t *testing.T) {
	in := &analysis.Input{Cluster: discovery.Cluster{Settings: settings.Default("")}, Files: map[discovery.Key]string{}}
	old := peerAuthentication()
	old.SetName("p")
	old.SetNamespace("shop")
	old.SetCreationTimestamp(metav1.NewTime(now))
	addPolicy(in, old)
	in.Services = []*corev1.Service{{ObjectMeta: metav1.ObjectMeta{Name: "s", Namespace: "shop"}}}
	objects, err := decodeObjects(strings.NewReader("{apiVersion: security.istio.io/v1beta1, kind: PeerAuthentication, metadata: {name: p, namespace: shop}, spec: {}}\n---\n{apiVersion: v1, kind: Service, metadata: {name: s, namespace: shop, labels: {a: b}}}\n---\n{apiVersion: v1, kind: Pod, metadata: {name: x, namespace: shop}, spec: {}}"))
	if err != nil {
		t.Fatal(err)
	}
	var files []fileObject
	for _, o := range objects {
		files = append(files, fileObject{"f", o})
	}
	if err := addObjects(in, files); err != nil {
		t.Fatal(err)
	}
	if p := in.PeerAuthentications; len(p) != 1 || !p[0].GetCreationTimestamp().Time.Equal(now) || len(in.Services) != 1 || in.Services[0].Labels["a"] != "b" || !discovery.InMesh(in.Pods[0]) || in.Files[discovery.Key{Kind: "Pod", Namespace: "shop", Name: "x"}] != "f" {
		t.Errorf("%+v %+v", in.PeerAuthentications, in.Files)
	}
	for pattern, want := range map[string]bool{"*": true, "a*c": true, "a*d": false, "abc": true, "ab": false, "*b*": true} {
		if like(pattern, "abc") != want {
			t.Errorf("%q", pattern)
		}
	}
}
