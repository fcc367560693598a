package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"podseal.io/podseal/internal/install"
)

const (
	twoPods = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: app, image: b}]}\n---\n" +
		"apiVersion: v1\nkind: Pod\nmetadata: {name: out, labels: {sidecar.istio.io/inject: 'false'}}\nspec: {containers: [{name: app, image: b}]}\n"
	moduleConfig = "apiVersion: deckhouse.io/v1alpha1\nkind: ModuleConfig\nmetadata: {name: istio}\nspec: {enabled: true, version: 3, settings: {sidecar: {excludeOutboundPorts: ['3306']}}}\n"
)

func TestInjectOffline(t *testing.T) {
	t.Setenv("KUBECONFIG", filepath.Join(t.TempDir(), "none"))
	t.Setenv("HOME", t.TempDir())
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	mc, wrong := file("mc", moduleConfig), file("wrong", strings.ReplaceAll(moduleConfig, "3306", "x"))
	pods, bad := file("pods.yaml", twoPods), file("bad.json", "[")
	if err := os.Mkdir(filepath.Join(dir, "empty"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		args           []string
		code           int
		stdout, stderr string
	}{
		"settings":       {[]string{"-f", pods, "--settings", mc}, 0, "- -o\n    - \"3306\"", "no proxy: pod default/out: label"},
		"image":          {[]string{"-f", pods, "--settings", mc, "--proxy-image", "r/p:1"}, 0, "image: r/p:1\n", ""},
		"image of this":  {[]string{"-f", pods, "--settings", mc}, 0, "image: podseal.io/podseal-proxy:", ""},
		"native":         {[]string{"-f", pods, "--settings", mc}, 0, "restartPolicy: Always", ""},
		"domain":         {[]string{"-f", pods, "--settings", mc, "--cluster-domain", "corp.example"}, 0, "svc.corp.example", ""},
		"namespace":      {[]string{"-f", pods, "--settings", mc, "-n", "shop"}, 0, "namespaces/shop/pods/a", ""},
		"folder":         {[]string{"-f", dir, "--settings", mc}, exitBadInput, "", "nothing is written:\ndocument 1: not YAML"},
		"settings wrong": {[]string{"-f", pods, "--settings", wrong}, exitBadInput, "", "settings.sidecar.excludeOutboundPorts[0]"},
		"settings none":  {[]string{"-f", pods, "--settings", bad}, exitBadInput, "", "not a ModuleConfig"},
		"no file":        {[]string{}, exitUsage, "", "-f FILE"},
		"no such file":   {[]string{"-f", "/nowhere", "--settings", mc}, exitNoInput, "", "/nowhere"},
		"empty folder":   {[]string{"-f", filepath.Join(dir, "empty"), "--settings", mc}, exitNoInput, "", "no file with manifests"},
		"no cluster":     {[]string{"-f", pods}, exitFailed, "", "--settings FILE"},
		"native, wrong":  {[]string{"-f", pods, "--native-sidecars", "x"}, exitUsage, "", "auto, true, false"},
	} {
		stdout, stderr, code := podseal(t, append([]string{"inject"}, tc.args...)...)
		if code != tc.code || !strings.Contains(stdout, tc.stdout) || !strings.Contains(stderr, tc.stderr) {
			t.Errorf("%s: exit code %d\n%s\n%s", name, code, stdout, stderr)
		}
		if code != 0 && stdout != "" {
			t.Errorf("%s: something was written", name)
		}
	}
	out := filepath.Join(dir, "out")
	if stdout, stderr, code := podseal(t, "inject", "-f", pods, "--settings", mc, "-o", out); code != 0 || stdout != "" {
		t.Errorf("to a file: %d %s %s", code, stdout, stderr)
	}
	if b, err := os.ReadFile(out); err != nil || !strings.Contains(string(b), "istio-proxy") {
		t.Errorf("to a file: %v", err)
	}
}

// apiServer answers what reading single objects takes.
func apiServer(t *testing.T, objects map[string]any) string {
	t.Helper()
	resource := func(name, kind string, namespaced bool) map[string]any {
		return map[string]any{"name": name, "kind": kind, "namespaced": namespaced, "verbs": []string{"get"}}
	}
	list := func(gv string, r ...map[string]any) any {
		return map[string]any{"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": gv, "resources": r}
	}
	group := func(name, version string) any {
		v := map[string]any{"groupVersion": name + "/" + version, "version": version}
		return map[string]any{"name": name, "versions": []any{v}, "preferredVersion": v}
	}
	answers := map[string]any{
		"/version":                    map[string]any{"major": "1", "minor": "32"},
		"/api":                        map[string]any{"kind": "APIVersions", "versions": []string{"v1"}},
		"/apis":                       map[string]any{"kind": "APIGroupList", "groups": []any{group("apps", "v1"), group("deckhouse.io", "v1alpha1")}},
		"/api/v1":                     list("v1", resource("namespaces", "Namespace", false), resource("configmaps", "ConfigMap", true)),
		"/apis/apps/v1":               list("apps/v1", resource("deployments", "Deployment", true)),
		"/apis/deckhouse.io/v1alpha1": list("deckhouse.io/v1alpha1", resource("moduleconfigs", "ModuleConfig", false)),
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			t.Errorf("%s %s", r.Method, r.URL)
		}
		w.Header().Set("Content-Type", "application/json")
		answer, ok := answers[r.URL.Path]
		if !ok {
			answer, ok = objects[r.URL.Path]
		}
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			answer = map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
		}
		if err := json.NewEncoder(w).Encode(answer); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(server.Close)
	kubeconfig := filepath.Join(t.TempDir(), "config")
	text := "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: '" + server.URL + "'}}]\ncontexts: [{name: x, context: {cluster: c, namespace: shop}}]\ncurrent-context: x\n"
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return kubeconfig
}

// The settings, the image and the domain are those of the cluster.
func TestInjectByTheCluster(t *testing.T) {
	values := install.Values{"image": map[string]any{"hub": "registry.example.com", "tag": "v7"}, "clusterDomain": "corp.example"}
	objects := map[string]any{
		"/apis/deckhouse.io/v1alpha1/moduleconfigs/istio": map[string]any{
			"apiVersion": "deckhouse.io/v1alpha1", "kind": "ModuleConfig", "metadata": map[string]any{"name": "istio"},
			"spec": map[string]any{"version": 3, "settings": map[string]any{"sidecar": map[string]any{"excludeOutboundPorts": []string{"3306"}}}},
		},
		"/api/v1/namespaces/shop":    map[string]any{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": "shop"}},
		"/api/v1/namespaces/guarded": map[string]any{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": "guarded", "labels": map[string]string{"pod-security.kubernetes.io/enforce": "baseline"}}},
	}
	for part, path := range map[install.Part]string{install.PartControlPlane: "d8-istio/deployments/istiod", install.PartManager: "podseal-system/deployments/" + managerName} {
		all, err := install.Render(values, part)
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range all {
			if u.GetKind() == "Deployment" {
				objects["/apis/apps/v1/namespaces/"+path] = u.Object
			}
		}
	}
	kubeconfig := apiServer(t, objects)
	pods := filepath.Join(t.TempDir(), "pods")
	if err := os.WriteFile(pods, []byte(twoPods), 0o600); err != nil {
		t.Fatal(err)
	}
	stdout, stderr, code := podseal(t, "inject", "-f", pods, "--kubeconfig", kubeconfig)
	for _, want := range []string{"image: registry.example.com/podseal-proxy:v7", "imagePullPolicy: IfNotPresent", "svc.corp.example", "\"3306\"", "namespaces/shop/pods/a", "value: istiod.d8-istio.svc:15012"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %s in\n%s", want, stdout)
		}
	}
	if code != 0 || strings.Contains(stdout, "restartPolicy: Always") { // 1.32 may have them switched off
		t.Errorf("exit code %d: %s", code, stderr)
	}
	if stdout, stderr, code = podseal(t, "inject", "-f", pods, "--kubeconfig", kubeconfig, "-n", "guarded"); code != exitBadInput || stdout != "" || !strings.Contains(stderr, "Pod Security") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	delete(objects, "/apis/apps/v1/namespaces/d8-istio/deployments/istiod")
	if _, stderr, code = podseal(t, "inject", "-f", pods, "--kubeconfig", kubeconfig); code != exitFailed || !strings.Contains(stderr, "is the mesh enabled?") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}
