package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"podseal.io/podseal/test/e2e/walkthrough"
)

// olderProxy is the tag of a proxy that is not the control plane's.
const olderProxy = "podseal.io/podseal-proxy:older"

// aging are a Deployment that asks to be rolled, one that doesn't, and a StatefulSet whose
// namespace asks.
const aging = `kubectl apply -f - <<'EOF'
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: aging, labels: {istio-injection: enabled}}}
- {apiVersion: v1, kind: Namespace, metadata: {name: aging-all, labels: {istio-injection: enabled, istio.deckhouse.io/auto-upgrade: "true"}}}
- apiVersion: apps/v1
  kind: Deployment
  metadata: {name: asks, namespace: aging, labels: {istio.deckhouse.io/auto-upgrade: "true"}}
  spec: {selector: {matchLabels: {app: asks}}, template: {metadata: {labels: {app: asks}}, spec: POD}}
- apiVersion: apps/v1
  kind: Deployment
  metadata: {name: silent, namespace: aging}
  spec: {selector: {matchLabels: {app: silent}}, template: {metadata: {labels: {app: silent}}, spec: POD}}
- apiVersion: apps/v1
  kind: StatefulSet
  metadata: {name: set, namespace: aging-all}
  spec: {selector: {matchLabels: {app: set}}, template: {metadata: {labels: {app: set}}, spec: POD}}
EOF
kubectl -n aging rollout status deployment/asks deployment/silent --timeout=60s && kubectl -n aging-all rollout status statefulset/set --timeout=60s`

// testAging gives pods an older proxy, as an upgrade of the control plane does, while
// auto-upgrade is off; testAutoUpgrade goes on from there when other cases have taken
// their time.
func testAging(t *testing.T, e *env) {
	tar, program := filepath.Join(t.TempDir(), "older.tar"), filepath.Join(t.TempDir(), "podseal-proxy")
	// Built as `make build` does, and with a version of one length, so that both programs
	// are of one size: that is how a patch release differs from the one before.
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-buildvcs=false", "-tags", "grpcnotrace", "-ldflags",
		"-s -w -buildid= -X podseal.io/podseal/internal/version.Version="+strings.Repeat("0", len(e.s.Version)), "-o", program, "podseal.io/podseal/cmd/podseal-proxy")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the older proxy: %v: %s", err, out)
	}
	if out, err := exec.CommandContext(t.Context(), filepath.Join(e.s.Bin, "images"), "proxy", "--binary", program, "--tag", olderProxy, "--out", tar).CombinedOutput(); err != nil {
		t.Fatalf("build the older proxy's image: %v: %s", err, out)
	}
	if out, err := exec.CommandContext(t.Context(), e.c.Binary, "load", "--name", e.c.Name, tar).CombinedOutput(); err != nil {
		t.Fatalf("load the older proxy's image: %v: %s", err, out)
	}
	spec := "{terminationGracePeriodSeconds: 1, containers: [{name: web, image: " + walkthrough.Image + ", command: [sleep, infinity]}]}"
	e.must(t, "%s", strings.ReplaceAll(aging, "POD", spec))
	for _, ns := range []string{"aging", "aging-all"} {
		e.must(t, `for p in $(kubectl -n %s get pods -o name); do
kubectl -n %s patch $p --type strategic -p '{"spec":{"initContainers":[{"name":"istio-proxy","image":"%s"}]}}'
done`, ns, ns, olderProxy)
	}
}

// testAutoUpgrade: a workload whose pods have an older proxy is rolled when it asks for it
// and the mesh allows it, and left alone otherwise.
func testAutoUpgrade(t *testing.T, e *env) {
	images := func(ns, app string) string {
		return strings.TrimSpace(e.must(t, `kubectl -n %s get pods -l app=%s -o jsonpath='{.items[*].spec.initContainers[?(@.name=="istio-proxy")].image}'`, ns, app))
	}
	for _, w := range [][2]string{{"aging", "asks"}, {"aging", "silent"}, {"aging-all", "set"}} {
		if got := images(w[0], w[1]); got != olderProxy {
			t.Errorf("it is not allowed, and %s/%s has %s", w[0], w[1], got)
		}
	}
	if out, _ := e.try(t, "%s check", filepath.Join(e.s.Bin, "podseal")); !strings.Contains(out, "has no effect, as ModuleConfig istio doesn't allow it: deployment aging/asks, namespace aging-all") {
		t.Errorf("check doesn't say that the labels have no effect:\n%s", out)
	}
	if out, code := e.try(t, "kubectl get clusterrolebinding podseal-auto-upgrade"); code == 0 {
		t.Errorf("it is not allowed, and the control plane has the right:\n%s", out)
	}

	e.must(t, "kubectl annotate moduleconfig istio podseal.io/auto-upgrade=true")
	now := "podseal.io/podseal-proxy:" + e.s.Version
	took := eventually(t, "both that ask are rolled", func() (bool, string) {
		asks, set := images("aging", "asks"), images("aging-all", "set")
		return asks == now && set == now, asks + " " + set
	})
	t.Logf("rolled %s after it was allowed", took)
	e.must(t, "kubectl -n aging rollout status deployment/asks --timeout=30s && kubectl -n aging-all rollout status statefulset/set --timeout=30s")
	if got := images("aging", "silent"); got != olderProxy {
		t.Errorf("the workload that doesn't ask has %s", got)
	}
	if out := e.must(t, "kubectl -n aging get events.events.k8s.io -o jsonpath='{range .items[?(@.reason==\"ProxyUpgrade\")]}{.regarding.name} {end}'"); strings.TrimSpace(out) != "asks" {
		t.Errorf("events of %q", out)
	}

	e.must(t, "kubectl annotate moduleconfig istio podseal.io/auto-upgrade-")
	eventually(t, "the right is taken back", func() (bool, string) {
		out, code := e.try(t, "kubectl get clusterrolebinding podseal-auto-upgrade")
		return code != 0, out
	})
	e.must(t, "kubectl delete namespace aging aging-all --wait=false")
}
