package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"podseal.io/podseal/test/e2e/walkthrough"
)

const ns = "test-istio-mtls"

// env is the cluster that the cases share.
type env struct {
	c walkthrough.Local
	s walkthrough.Setup
}

// try runs a line and returns what it printed and its exit code.
func (e *env) try(t *testing.T, format string, args ...any) (string, int) {
	t.Helper()
	out, code, err := e.c.Shell(t.Context(), fmt.Sprintf(format, args...))
	if err != nil {
		t.Fatal(err)
	}
	return out, code
}

// must runs a line that has to succeed.
func (e *env) must(t *testing.T, format string, args ...any) string {
	t.Helper()
	out, code := e.try(t, format, args...)
	if code != 0 {
		t.Fatalf("exit code %d of: %s\n%s", code, fmt.Sprintf(format, args...), out)
	}
	return out
}

// refused runs a line that has to fail and to say each of the words.
func (e *env) refused(t *testing.T, line string, words ...string) {
	t.Helper()
	out, code := e.try(t, "%s", line)
	if code == 0 {
		t.Errorf("accepted: %s\n%s", line, out)
	}
	for _, w := range words {
		if !strings.Contains(out, w) {
			t.Errorf("the refusal does not say %q:\n%s", w, out)
		}
	}
}

// eventually polls until ok says so, for at most a minute.
func eventually(t *testing.T, what string, ok func() (bool, string)) time.Duration {
	t.Helper()
	start := time.Now()
	var last string
	for time.Since(start) < time.Minute {
		var done bool
		if done, last = ok(); done {
			return time.Since(start)
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("%s: not within a minute; last seen: %s", what, last)
	return 0
}

func (e *env) policy(t *testing.T, namespace, name, spec string) {
	t.Helper()
	e.must(t, `kubectl -n %s apply -f - <<EOF
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: %s}
spec: %s
EOF`, namespace, name, spec)
}

// curl is what a deployment's curl prints and its exit code.
func (e *env) curl(t *testing.T, namespace, from, url string) (string, int) {
	t.Helper()
	return e.try(t, "kubectl -n %s exec deployments/%s -- curl -sS -i --max-time 5 %s", namespace, from, url)
}

const outsideNS = "test-istio-mtls-without-injection"

func (e *env) kubeconfig(t *testing.T) string {
	t.Helper()
	path, err := e.s.Kubeconfig(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func testCheck(t *testing.T, e *env) {
	out, code, err := e.s.Podseal(t.Context(), "check", "--kubeconfig", e.kubeconfig(t))
	t.Log(out)
	if err != nil || code != 0 {
		t.Errorf("check: exit code %d, %v", code, err)
	}
}

func testBadPolicy(t *testing.T, e *env) { // contract 1.30-1.35
	create := func(spec string) string {
		return "kubectl -n " + ns + " create -f - <<EOF\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: wrong}\nspec: " + spec + "\nEOF"
	}
	e.refused(t, create(`{portLevelMtls: {"80": {mode: STRICT}}}`), "portLevelMtls", "selector")
	e.refused(t, create(`{selector: {matchLabels: {app: web}}, portLevelMtls: {"70000": {mode: STRICT}}}`), "port")
	e.refused(t, create(`{selector: {matchLabels: {app: "web*"}}}`), "wildcard")
	e.refused(t, create(`{mtls: {mode: strict}}`), "mode")
	if out, code := e.curl(t, ns, "client", "http://webserver/"); code != 0 || !strings.Contains(out, "200 OK") {
		t.Errorf("something else was disturbed: exit code %d: %s", code, out)
	}
}

func testBadAnnotation(t *testing.T, e *env) { // contract 5.9, 5.22
	e.refused(t, "kubectl -n "+ns+" run wrong --image="+walkthrough.Image+` --annotations=traffic.sidecar.istio.io/excludeInboundPorts=http --annotations=sidecar.istio.io/proxyCPU=lots -- sleep infinity`,
		"excludeInboundPorts", "http", "proxyCPU", "lots")
}

func testPodSecurity(t *testing.T, e *env) {
	e.must(t, "kubectl create namespace guarded && kubectl label namespace guarded istio-injection=enabled pod-security.kubernetes.io/enforce=baseline")
	e.refused(t, "kubectl -n guarded run web --image="+walkthrough.Image+" -- sleep infinity", "NET_ADMIN", "security.deckhouse.io/pod-policy=privileged")
	e.must(t, "kubectl delete namespace guarded")
	got := e.must(t, "kubectl get namespace %s -o jsonpath='{.metadata.labels.pod-security\\.kubernetes\\.io/enforce}'", ns)
	if got != "privileged" {
		t.Errorf("pod-policy=privileged gives Pod Security %q", got)
	}
}

func testBadModuleConfig(t *testing.T, e *env) {
	e.must(t, `kubectl patch moduleconfig istio --type merge -p '{"spec":{"settings":{"outboundTrafficPolicyMode":"Sometimes","sidecar":{"excludeInboundPorts":["99999"]}}}}'`)
	eventually(t, "the status names both faults", func() (bool, string) {
		msg := e.must(t, "kubectl get moduleconfig istio -o jsonpath='{.status.message}'")
		return strings.Contains(msg, "outboundTrafficPolicyMode") && strings.Contains(msg, "excludeInboundPorts"), msg
	})
	if out, code := e.curl(t, ns, "client", "http://webserver/"); code != 0 {
		t.Errorf("a bad ModuleConfig disturbs traffic: %s", out)
	}
	e.must(t, "kubectl -n d8-istio rollout status deployment/istiod --timeout=60s")
	e.must(t, `kubectl patch moduleconfig istio --type merge -p '{"spec":{"settings":null}}'`)
	eventually(t, "the status is well again", func() (bool, string) {
		msg := e.must(t, "kubectl get moduleconfig istio -o jsonpath='{.status.message}'")
		return !strings.Contains(msg, "outboundTrafficPolicyMode"), msg
	})
}

func testProbes(t *testing.T, e *env) { // contract 5.37-5.39
	e.policy(t, ns, "default", "{mtls: {mode: STRICT}}")
	e.must(t, `kubectl -n %s apply -f - <<EOF
apiVersion: v1
kind: Pod
metadata: {name: probed, labels: {app: probed}}
spec:
  containers:
  - name: web
    image: %s
    command: [nginx, -g, "daemon off;"]
    ports: [{name: http, containerPort: 80}]
    readinessProbe: {httpGet: {port: http, path: /}, periodSeconds: 1}
    livenessProbe: {tcpSocket: {port: 80}}
    startupProbe: {exec: {command: ["true"]}}
EOF
kubectl -n %s wait --for=condition=Ready pod/probed --timeout=90s`, ns, walkthrough.Image, ns)
	path := e.must(t, "kubectl -n %s get pod probed -o jsonpath='{.spec.containers[?(@.name==\"web\")].readinessProbe.httpGet.path}'", ns)
	if path != "/app-health/web/readyz" {
		t.Errorf("the probe goes to %q", path)
	}
	e.must(t, "kubectl -n %s delete pod probed --grace-period=1", ns)
}

func testPortModes(t *testing.T, e *env) { // contract 1.10, 1.22
	e.policy(t, ns, "default", "{mtls: {mode: STRICT}}")
	e.policy(t, ns, "web", `{selector: {matchLabels: {app: webserver}}, mtls: {mode: STRICT}, portLevelMtls: {"80": {mode: PERMISSIVE}}}`)
	eventually(t, "the port is PERMISSIVE", func() (bool, string) {
		out, code := e.curl(t, outsideNS, "alpine", "http://webserver."+ns+"/")
		return code == 0, out
	})
	e.policy(t, ns, "web", `{selector: {matchLabels: {app: webserver}}, mtls: {mode: PERMISSIVE}, portLevelMtls: {"80": {mode: STRICT}}}`)
	eventually(t, "the port is STRICT", func() (bool, string) {
		out, code := e.curl(t, outsideNS, "alpine", "http://webserver."+ns+"/")
		return code == 56, out
	})
	// contract 1.28, 3.20: DISABLE means plaintext, from mesh clients too.
	e.policy(t, ns, "web", `{selector: {matchLabels: {app: webserver}}, mtls: {mode: DISABLE}}`)
	eventually(t, "the workload is DISABLE and reached from both sides", func() (bool, string) {
		out, code := e.curl(t, ns, "client", "http://webserver/")
		out2, code2 := e.curl(t, outsideNS, "alpine", "http://webserver."+ns+"/")
		return code == 0 && code2 == 0, out + out2
	})
	e.must(t, "kubectl -n %s delete peerauthentication web", ns)
}

// testPolicyLatency measures from the answer of the API server to the first
// refused, or accepted, connection; the polling itself takes part of it.
func testPolicyLatency(t *testing.T, e *env) {
	const probe = `i=0; while [ $i -lt 200 ]; do i=$((i+1)); if curl -s -o /dev/null --max-time 2 http://webserver.` + ns + `/; then r=open; else r=cut; fi; [ $r = %s ] && { date +%%s%%N; exit 0; }; done; exit 1`
	for _, step := range []struct{ mode, want string }{{"PERMISSIVE", "open"}, {"STRICT", "cut"}, {"PERMISSIVE", "open"}} {
		e.policy(t, ns, "default", "{mtls: {mode: "+step.mode+"}}")
		start := time.Now()
		out := e.must(t, "kubectl -n %s exec deployments/alpine -- sh -c '%s'", outsideNS, fmt.Sprintf(probe, step.want))
		var at int64
		if _, err := fmt.Sscan(out, &at); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		took := time.Unix(0, at).Sub(start)
		t.Logf("%s in force after %d ms", step.mode, took.Milliseconds())
		if took > 5*time.Second {
			t.Errorf("%s is in force only after %v", step.mode, took)
		}
	}
}

func testControlPlaneDown(t *testing.T, e *env) { // design D16, contract 5.45
	e.must(t, "kubectl -n podseal-system scale deployment podseal-manager --replicas=0 && kubectl -n d8-istio scale deployment istiod --replicas=0 && kubectl -n d8-istio wait --for=delete pod --all --timeout=60s")
	for range 3 {
		if out, code := e.curl(t, ns, "client", "http://webserver/"); code != 0 || !strings.Contains(out, "200 OK") {
			t.Errorf("exit code %d: %s", code, out)
		}
	}
	e.must(t, "kubectl -n podseal-system scale deployment podseal-manager --replicas=1 && kubectl -n podseal-system rollout status deployment/podseal-manager --timeout=90s")
	eventually(t, "the manager brings the control plane back", func() (bool, string) {
		out, code := e.try(t, "kubectl -n d8-istio rollout status deployment/istiod --timeout=5s")
		return code == 0 && strings.Contains(out, "successfully"), out
	})
}

func testDisable(t *testing.T, e *env) {
	before := e.must(t, "kubectl -n d8-istio get secret istio-ca-secret -o jsonpath='{.data.ca-cert\\.pem}' | sha256sum")
	e.must(t, `kubectl patch moduleconfig istio --type merge -p '{"spec":{"enabled":false}}'`)
	eventually(t, "webhooks and control plane are gone", func() (bool, string) {
		out := e.must(t, "kubectl get mutatingwebhookconfigurations,validatingwebhookconfigurations -o name | grep -i istio; kubectl -n d8-istio get deployments -o name; true")
		return strings.TrimSpace(out) == "", out
	})
	e.must(t, "kubectl -n %s run plain --image=%s -- sleep infinity && kubectl -n %s wait --for=condition=Ready pod/plain --timeout=60s && kubectl -n %s delete pod plain --grace-period=1", ns, walkthrough.Image, ns, ns)
	e.must(t, `kubectl patch moduleconfig istio --type merge -p '{"spec":{"enabled":true}}'`)
	eventually(t, "enabling brings it back", func() (bool, string) {
		out, code := e.try(t, "kubectl -n d8-istio rollout status deployment/istiod --timeout=5s")
		return code == 0 && strings.Contains(out, "successfully"), out
	})
	if after := e.must(t, "kubectl -n d8-istio get secret istio-ca-secret -o jsonpath='{.data.ca-cert\\.pem}' | sha256sum"); after != before {
		t.Error("enabling again made another root")
	}
}

func testUninstall(t *testing.T, e *env) {
	out, code, err := e.s.Podseal(t.Context(), "uninstall", "--kubeconfig", e.kubeconfig(t))
	t.Log(out)
	if err != nil || code != 0 {
		t.Fatalf("uninstall: exit code %d, %v", code, err)
	}
	left := e.must(t, `kubectl get namespaces,crds,clusterroles,clusterrolebindings,mutatingwebhookconfigurations,validatingwebhookconfigurations -o name | grep -v /test- | grep -iE 'podseal|istio\.io|istiod|d8-istio|deckhouse|istio-' ; kubectl get configmaps -A -o name | grep istio; true`)
	if strings.TrimSpace(left) != "" {
		t.Errorf("uninstall leaves:\n%s", left)
	}
}
