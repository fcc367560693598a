package e2e

import (
	"os/exec"
	"strings"
	"testing"

	"podseal.io/podseal/test/e2e/walkthrough"
)

// guarded is a namespace with Pod Security "restricted", and two deployments of the
// mesh in it.
const guarded = `kubectl apply -f - <<EOF
apiVersion: v1
kind: Namespace
metadata: {name: guarded, labels: {istio-injection: enabled, pod-security.kubernetes.io/enforce: restricted}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: guarded}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: guarded}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints: [{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: web}}}]
      securityContext: {runAsNonRoot: true, runAsUser: 1000, seccompProfile: {type: RuntimeDefault}}
      initContainers: # behind a native sidecar they are in the mesh
      - name: early
        image: ` + walkthrough.Image + `
        command: [curl, -sS, --fail, --max-time, "20", --retry, "5", --retry-all-errors, "http://webserver.` + ns + `/"]
        securityContext: &safe {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
      containers:
      - name: web
        image: ` + walkthrough.Image + `
        command:
        - sh
        - -c
        - |
          for d in client_body proxy fastcgi uwsgi scgi; do temp="\$temp \${d}_temp_path /tmp/\$d;"; done
          echo "pid /tmp/pid; events {} http { access_log off; \$temp server { listen 8080; return 200 well; } }" >/tmp/nginx.conf
          exec nginx -c /tmp/nginx.conf -g "daemon off; error_log /dev/stderr;"
        securityContext: *safe
        volumeMounts: [{name: tmp, mountPath: /tmp}]
      volumes: [{name: tmp, emptyDir: {}}]
EOF
kubectl -n guarded rollout status deployment/web --timeout=120s`

// onNodes runs a line on each node.
func (e *env) onNodes(t *testing.T, line string) string {
	t.Helper()
	var all strings.Builder
	for _, node := range []string{"1", "2"} {
		out, err := exec.CommandContext(t.Context(), e.c.Binary, "node", "--name", e.c.Name, node, "--", "sh", "-c", line).CombinedOutput()
		if err != nil {
			t.Fatalf("on node %s: %v: %s", node, err, out)
		}
		all.Write(out)
	}
	return all.String()
}

const whereIsPlugin = "ls /opt/cni/bin | grep podseal-cni; grep -l podseal-cni /etc/cni/net.d/*; true"

// testCNIPlugin: pods that pass "restricted" are in the mesh, on both nodes; who
// rewrites a node's network configuration loses nothing; the plugin comes, is upgraded and
// goes without a gap.
// Contract 5.42, 5.50, 5.52.
func testCNIPlugin(t *testing.T, e *env) {
	e.policy(t, ns, "default", "{mtls: {mode: STRICT}}")
	e.must(t, `kubectl patch moduleconfig istio --type merge -p '{"spec":{"settings":{"dataPlane":{"trafficRedirectionSetupMode":"CNIPlugin"}}}}'`)
	eventually(t, "the plugin is on both nodes and in force", func() (bool, string) {
		out := e.must(t, "kubectl -n d8-istio get daemonset istio-cni-node -o jsonpath='{.status.numberReady}' 2>/dev/null; kubectl -n d8-istio get secret podseal-settings -o jsonpath='{.data.settings\\.json}' | base64 -d")
		return strings.HasPrefix(out, "2") && strings.Contains(out, `"cniPlugin":true`), out
	})
	if got := e.onNodes(t, whereIsPlugin); strings.Count(got, "podseal-cni") != 2 || strings.Count(got, "conflist") != 2 {
		t.Errorf("on the nodes: %s", got)
	}
	eventually(t, "pods rely on it", func() (bool, string) {
		out := e.must(t, "kubectl -n %s run dry --image=%s --dry-run=server -o jsonpath='{.spec.initContainers[*].name}'", ns, walkthrough.Image)
		return out == "istio-proxy", out
	})
	e.must(t, "%s", guarded)
	e.policy(t, "guarded", "default", "{mtls: {mode: STRICT}}")
	strict := func(when string) {
		t.Helper()
		if out, code := e.curl(t, ns, "client", "http://web.guarded/"); code != 0 || !strings.Contains(out, "well") {
			t.Errorf("%s, from the mesh: exit code %d: %s", when, code, out)
		}
		eventually(t, when+", from outside of the mesh", func() (bool, string) {
			out, code := e.curl(t, outsideNS, "alpine", "http://web.guarded/")
			return code == 56, out
		})
	}
	strict("captured by the plugin")
	if out, code, err := e.s.Podseal(t.Context(), "check", "--kubeconfig", e.kubeconfig(t)); err != nil || code != 0 {
		t.Errorf("check: exit code %d, %v: %s", code, err, out)
	}

	web := strings.TrimSpace(e.must(t, "kubectl -n guarded get pods -l app=web -o jsonpath='{.items[0].metadata.name}'"))
	if out, code, err := e.s.Podseal(t.Context(), "verify", "pod/guarded/"+web, "--for", "2s", "--kubeconfig", e.kubeconfig(t)); err != nil || code != 78 || !strings.Contains(out, "two ways out") {
		t.Errorf("verify under Pod Security: exit code %d, %v: %s", code, err, out)
	}

	e.onNodes(t, `f=$(ls /etc/cni/net.d/*.conflist) && sed '/"capabilities"/,/}/d; s/podseal-cni/loopback/' $f >/tmp/$$ && cat /tmp/$$ >$f; rm /tmp/$$`)
	eventually(t, "what somebody rewrites is put back", func() (bool, string) {
		got := e.onNodes(t, whereIsPlugin)
		return strings.Count(got, "conflist") == 2, got
	})

	testCNIUpgrade(t, e)

	e.must(t, `kubectl patch moduleconfig istio --type merge -p '{"spec":{"settings":null}}'`)
	for i := range 4 { // whoever is made meanwhile starts
		e.must(t, "kubectl -n %s run gap-%d --image=%s -- sleep infinity", outsideNS, i, walkthrough.Image)
	}
	e.must(t, "kubectl -n %s wait --for=condition=Ready --timeout=90s pod/gap-0 pod/gap-1 pod/gap-2 pod/gap-3 && kubectl -n %s delete pod gap-0 gap-1 gap-2 gap-3 --grace-period=1", outsideNS, outsideNS)
	eventually(t, "the plugin is gone from the nodes, and then the DaemonSet", func() (bool, string) {
		out := e.must(t, "kubectl -n d8-istio get daemonsets -o name") + e.onNodes(t, whereIsPlugin)
		return strings.TrimSpace(out) == "", out
	})
	strict("after the plugin has gone")
	e.refused(t, "kubectl -n guarded run late --image="+walkthrough.Image+" -- sleep infinity", "CNIPlugin", "NET_ADMIN")
	if got := e.must(t, "kubectl get namespace d8-istio -o jsonpath='{.metadata.labels.pod-security\\.kubernetes\\.io/enforce}'"); got != "restricted" {
		t.Errorf("d8-istio has Pod Security %q", got)
	}
	e.must(t, "kubectl delete namespace guarded --timeout=90s")
}
