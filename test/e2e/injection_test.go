package e2e

import (
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"podseal.io/podseal/test/e2e/walkthrough"
)

// life is a namespace that names its control plane by revision, with a STRICT web server
// whose log says who called, and pods whose life is in some way short of ordinary; life-pods
// has pods that name it themselves, life-other namespaces and pods that name another.
const life = `kubectl patch moduleconfig istio --type merge -p '{"spec":{"settings":{"globalVersion":"1.27"}}}'
kubectl create namespace life && kubectl label namespace life istio.io/rev=default && kubectl create namespace life-pods
kubectl create namespace life-other && kubectl label namespace life-other istio.io/rev=v1x26
kubectl apply -f - <<'EOF'
apiVersion: v1
kind: List
items:
- {apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: default, namespace: life}, spec: {mtls: {mode: STRICT}}}
- {apiVersion: v1, kind: Service, metadata: {name: web, namespace: life}, spec: {selector: {app: web}, ports: [{name: http, port: 80}]}}
- apiVersion: v1
  kind: Pod
  metadata: {name: web, namespace: life, labels: {app: web}}
  spec: {terminationGracePeriodSeconds: 1, containers: [{name: web, image: IMAGE, command: [nginx, -g, "daemon off;"]}]}
EOF
kubectl -n life wait --for=condition=Ready pod/web --timeout=90s
kubectl apply -f - <<'EOF'
apiVersion: v1
kind: List
items:
- apiVersion: batch/v1
  kind: Job
  metadata: {name: native, namespace: life}
  spec:
    backoffLimit: 0
    template:
      spec:
        restartPolicy: Never
        initContainers: [{name: early, image: IMAGE, command: [curl, -sSo, /dev/null, -m, "20", "http://web/?early"]}]
        containers: [{name: work, image: IMAGE, command: [curl, -sSo, /dev/null, -m, "20", "http://web/?native"]}]
- apiVersion: batch/v1
  kind: Job
  metadata: {name: classic, namespace: life}
  spec:
    backoffLimit: 0
    template:
      metadata: {annotations: {sidecar.istio.io/nativeSidecar: "false", proxy.istio.io/config: "{holdApplicationUntilProxyStarts: true}"}}
      spec:
        restartPolicy: Never
        containers: [{name: work, image: IMAGE, command: [sh, -c, "curl -sSo /dev/null -m 20 http://web/?classic && curl -sSf -m 20 -X POST http://127.0.0.1:15020/quitquitquit"]}]
- apiVersion: v1
  kind: Pod
  metadata: {name: hooked, namespace: life}
  spec:
    terminationGracePeriodSeconds: 20
    containers:
    - name: web
      image: IMAGE
      command: [nginx, -g, "daemon off;"]
      lifecycle:
        postStart: {exec: {command: [curl, -sSfo, /dev/null, -m, "10", "http://web/?started"]}}
        preStop: {exec: {command: [sh, -c, "sleep 1; curl -sSfo /dev/null -m 10 http://web/?stopping"]}}
- apiVersion: v1
  kind: Pod
  metadata: {name: hooked-http, namespace: life}
  spec:
    terminationGracePeriodSeconds: 10
    containers:
    - name: web
      image: IMAGE
      command: [nginx, -g, "daemon off;"]
      ports: [{name: http, containerPort: 80}]
      lifecycle: {preStop: {httpGet: {path: "/?hook", port: http}}}
- apiVersion: v1
  kind: Pod
  metadata: {name: by-label, namespace: life-pods, labels: {istio.io/rev: v1x27}}
  spec: {terminationGracePeriodSeconds: 1, containers: [{name: web, image: IMAGE, command: [sleep, infinity]}]}
- apiVersion: v1
  kind: Pod
  metadata: {name: other, namespace: life-other}
  spec: {terminationGracePeriodSeconds: 1, containers: [{name: web, image: IMAGE, command: [sleep, infinity]}]}
EOF`

// twin is a pod with much in it that injection changes.
const twin = `apiVersion: v1
kind: Pod
metadata:
  name: twin
  namespace: NAMESPACE
  labels: {app: twin}
  annotations: {sidecar.istio.io/proxyCPU: 50m, traffic.sidecar.istio.io/excludeOutboundPorts: "9999", sidecar.istio.io/userVolume: '[{"name":"more","emptyDir":{}}]', sidecar.istio.io/userVolumeMount: '[{"name":"more","mountPath":"/more"}]'}
spec:
  terminationGracePeriodSeconds: 1
  initContainers: [{name: first, image: IMAGE, command: ["true"]}]
  containers:
  - name: web
    image: IMAGE
    command: [nginx, -g, "daemon off;"]
    ports: [{name: http, containerPort: 80}]
    readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1}
    livenessProbe: {tcpSocket: {port: 80}}
    lifecycle: {preStop: {httpGet: {path: /, port: 80}}}
  - {name: istio-proxy, image: auto, env: [{name: MINE, value: "1"}]}
`

// testLife: how pods begin and end.
// Contract 5.3, 5.37, 5.42, 5.43, 5.46, 5.47 and 5.48.
func testLife(t *testing.T, e *env) {
	e.must(t, "%s", strings.ReplaceAll(life, "IMAGE", walkthrough.Image))
	e.must(t, "kubectl -n life wait --for=condition=complete job/native job/classic --timeout=90s && kubectl -n life wait --for=condition=Ready pod/hooked pod/hooked-http --timeout=60s")
	e.must(t, "kubectl -n life-pods wait --for=condition=Ready pod/by-label --timeout=60s && kubectl -n life-other wait --for=condition=Ready pod/other --timeout=60s")
	for pod, want := range map[string]bool{"-n life-pods by-label": true, "-n life-other other": false} {
		names := e.must(t, "kubectl get pod %s -o jsonpath='{.spec.initContainers[*].name}{.spec.containers[*].name}'", pod)
		if strings.Contains(names, "istio-proxy") != want {
			t.Errorf("%s: %s", pod, names)
		}
		if _, code := e.try(t, "kubectl exec %s -c web -- curl -sSo /dev/null -m 10 http://web.life/", pod); (code == 0) != want {
			t.Errorf("%s: exit code %d", pod, code)
		}
	}

	// a hook that is HTTP comes by the proxy, and one that is a program finds the proxy there
	file := filepath.Join(t.TempDir(), "log")
	e.must(t, "kubectl -n life logs -f hooked-http -c web >'%s' & kubectl -n life delete pod hooked hooked-http --timeout=60s; wait", file)
	hooked, err := os.ReadFile(file)
	if err != nil || !strings.Contains(string(hooked), "GET /?hook ") {
		t.Errorf("the hook did not come: %v\n%s", err, hooked)
	}
	seen := e.must(t, "kubectl -n life logs web -c web")
	for _, who := range []string{"early", "native", "classic", "started", "stopping"} {
		if !strings.Contains(seen, "GET /?"+who+" ") {
			t.Errorf("%s did not reach the web server:\n%s", who, seen)
		}
	}

	// /drain and /quitquitquit are for the pod alone, and POST alone; draining, it still serves
	ip := e.podIP(t, "life", "pod/web")
	for _, path := range []string{"drain", "quitquitquit"} {
		out, _ := e.try(t, "kubectl -n life-pods exec by-label -c web -- curl -sS -m 10 -o /dev/null -w '%%{http_code}' -X POST http://%s:15020/%s", ip, path)
		own, _ := e.try(t, "kubectl -n life exec web -c web -- curl -sS -m 10 -o /dev/null -w '%%{http_code}' http://127.0.0.1:15020/%s", path)
		if out == "200" || own != "405" {
			t.Errorf("%s: POST of another pod gets %s, GET of its own %s", path, out, own)
		}
	}
	e.must(t, "kubectl -n life exec web -c web -- curl -sSf -m 10 -X POST http://127.0.0.1:15020/drain")
	if out := e.must(t, "kubectl -n life exec web -c web -- curl -sSf -m 10 http://127.0.0.1:15000/status"); !strings.Contains(strings.ReplaceAll(out, " ", ""), `"draining":true`) {
		t.Errorf("after /drain: %s", out)
	}
	if ready, _ := e.try(t, "kubectl -n life exec web -c web -- curl -sS -m 10 -o /dev/null -w '%%{http_code}' http://127.0.0.1:15021/healthz/ready"); ready != "503" {
		t.Errorf("after /drain the proxy says it is ready: %s", ready)
	}
	e.must(t, "kubectl -n life-pods exec by-label -c web -- curl -sSfo /dev/null -m 10 http://%s/", ip)
	e.testTwins(t)
	e.must(t, `kubectl patch moduleconfig istio --type merge -p '{"spec":{"settings":null}}' && kubectl delete namespace life life-pods life-other --wait=false`)
}

// testTwins: what podseal inject makes of pods is what the webhook makes of them, by the
// API server itself, and it runs in the mesh where there is no webhook.
func (e *env) testTwins(t *testing.T) {
	t.Helper()
	manifest := filepath.Join(t.TempDir(), "twin.yaml")
	write := func(namespace string, more ...string) {
		text := strings.NewReplacer("NAMESPACE", namespace, "IMAGE", walkthrough.Image).Replace(twin) + strings.Join(more, "")
		if err := os.WriteFile(manifest, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	golden := goldenPods(t, "life")
	write("life", golden...)
	byHand := filepath.Join(e.s.Bin, "podseal") + " inject -f - <'" + manifest + "' 2>/dev/null | kubectl "
	one := pods(t, e.must(t, "kubectl create --dry-run=server -o json -f - <'%s' 2>/dev/null", manifest))
	two := pods(t, e.must(t, "%s create --dry-run=server -o json -f - 2>/dev/null", byHand))
	for name, pod := range one {
		if diff := cmp.Diff(pod, two[name]); diff != "" {
			t.Errorf("pod %s: the webhook (-) and podseal inject (+) differ:\n%s", name, diff)
		}
	}
	if len(one) != len(golden)+1 || len(two) != len(one) || len(golden) < 10 {
		t.Errorf("%d pods, %d by the webhook, %d by podseal inject", len(golden)+1, len(one), len(two))
	}
	write("life-pods")
	e.must(t, "%s apply -f - && kubectl -n life-pods wait --for=condition=Ready pod/twin --timeout=60s", byHand)
	e.must(t, "kubectl -n life-pods exec twin -c web -- curl -sSfo /dev/null -m 10 http://web.life/")
}

// goldenPods are the pods that injection is tested with, as documents, of those that are
// accepted by the settings of this cluster.
func goldenPods(t *testing.T, namespace string) []string {
	t.Helper()
	files, err := filepath.Glob("../../internal/inject/testdata/*.in.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var docs []string
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var c struct {
			Pod      map[string]any `json:"pod"`
			Settings map[string]any `json:"settings"`
		}
		if err := yaml.Unmarshal(text, &c); err != nil {
			t.Fatal(file, err)
		}
		name := strings.TrimSuffix(filepath.Base(file), ".in.yaml")
		if c.Settings != nil || name == "refused" {
			continue
		}
		metadata, _ := c.Pod["metadata"].(map[string]any)
		delete(metadata, "generateName")
		metadata["name"], metadata["namespace"] = name, namespace
		c.Pod["apiVersion"], c.Pod["kind"] = "v1", "Pod"
		doc, err := yaml.Marshal(c.Pod)
		if err != nil {
			t.Fatal(file, err)
		}
		docs = append(docs, "---\n"+string(doc))
	}
	return docs
}

// pods are those in JSON, by name, without what no two pods that are made alike share: the
// name of a volume that is random, time and id.
func pods(t *testing.T, text string) map[string]any {
	t.Helper()
	text = regexp.MustCompile(`kube-api-access-\w+`).ReplaceAllString(text, "kube-api-access")
	all := map[string]any{}
	for d := json.NewDecoder(strings.NewReader(text)); ; {
		var p struct {
			Metadata struct {
				Annotations, Labels map[string]string
				Name, Namespace     string
				OwnerReferences     any
			}
			Spec map[string]any
			// Items are those of a list, as which some versions of kubectl show several.
			Items []json.RawMessage
		}
		switch err := d.Decode(&p); {
		case errors.Is(err, io.EOF):
			return all
		case err != nil:
			t.Fatalf("%v:\n%s", err, text)
		}
		for _, item := range p.Items {
			maps.Copy(all, pods(t, string(item)))
		}
		if p.Spec != nil {
			all[p.Metadata.Name] = map[string]any{"metadata": p.Metadata, "spec": p.Spec}
		}
	}
}
