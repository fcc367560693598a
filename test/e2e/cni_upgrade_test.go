package e2e

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"podseal.io/podseal/test/e2e/walkthrough"
)

// meanwhile is a pod of the mesh that calls one under STRICT, once, and ends: captured, it
// succeeds; uncaptured, it is held or refused.
const meanwhile = `kubectl create --validate=false -f - <<EOF
apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: guarded, labels: {app: meanwhile}}
spec:
  nodeName: %s
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  securityContext: {runAsNonRoot: true, runAsUser: 1000, seccompProfile: {type: RuntimeDefault}}
  containers:
  - name: call
    image: ` + walkthrough.Image + `
    command: [curl, -sS, --fail, --max-time, "20", "http://web.guarded/"]
    securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
EOF
`

// watchPlugin looks, as long as its file is there, whether the node's network
// configuration names the plugin and the plugin runs: an upgrade changes neither at any
// moment.
const (
	watchPlugin = `n=0; : >/var/log/watch-cni
while [ -e /var/log/watch-cni ] && [ $n -lt 5000 ]; do
  case $(cat /etc/cni/net.d/*.conflist) in *podseal-cni*) ;; *) echo "GAP: no configuration names the plugin";; esac
  [ -x /opt/cni/bin/podseal-cni ] || echo "GAP: there is no plugin"
  [ $((n % 10)) != 0 ] || CNI_COMMAND=VERSION /opt/cni/bin/podseal-cni </dev/null >/dev/null || echo "GAP: the plugin does not run"
  n=$((n+1)); sleep 0.05
done; echo "looked $n times"`
	endWatch = "rm -f /var/log/watch-cni"
	// whatPlugin is which program a node has, and the entry that names it.
	whatPlugin = `echo $(sha256sum </opt/cni/bin/podseal-cni) $(grep -o '"[^"]*older[^"]*"' /etc/cni/net.d/*.conflist)`
)

// testCNIUpgrade: "install, upgrade and removal from a node without a gap", the upgrade. All agents are
// replaced by those of another version and other settings, and again by the manager's; who
// is made meanwhile is captured, on every node and without an init container.
// Contract 5.42, 5.50, 5.52.
func testCNIUpgrade(t *testing.T, e *env) {
	start := time.Now()
	nodes := strings.Fields(e.must(t, "kubectl get nodes -o jsonpath='{.items[*].metadata.name}'"))
	agents := func() string {
		return e.must(t, "kubectl -n d8-istio get pods -l k8s-app=istio-cni-node -o jsonpath='{.items[*].metadata.name}'")
	}
	var watching sync.WaitGroup
	defer watching.Wait()
	defer e.onNodes(t, endWatch)
	for i := range nodes {
		watching.Go(func() {
			out, err := exec.CommandContext(t.Context(), e.c.Binary, "node", "--name", e.c.Name, fmt.Sprint(i+1), "--", "sh", "-c", watchPlugin).CombinedOutput()
			t.Logf("node %d: %s", i+1, out)
			if err != nil || strings.Contains(string(out), "GAP") {
				t.Errorf("node %d while its plugin is upgraded: %v: %s", i+1, err, out)
			}
		})
	}
	before, first := e.onNodes(t, whatPlugin), agents()

	e.must(t, `kubectl patch moduleconfig istio --type merge -p '{"spec":{"maintenance":"NoResourceReconciliation"}}'`)
	eventually(t, "the manager leaves its objects alone", func() (bool, string) {
		out := e.must(t, "kubectl get moduleconfig istio -o jsonpath='{.status.message}'")
		return strings.HasPrefix(out, "In maintenance"), out
	})
	const container, setting = "/spec/template/spec/containers/0/", `"value":"--exclude-namespaces=kube-system,older"}`
	e.must(t, `kubectl -n d8-istio patch daemonset istio-cni-node --type json -p '[{"op":"replace","path":"%simage","value":"%s"},{"op":"add","path":"%sargs/-",%s,{"op":"add","path":"%sreadinessProbe/exec/command/-",%s]'`,
		container, olderProxy, container, setting, container, setting)
	e.madeMeanwhile(t, "other", nodes, olderProxy)
	other, second := e.onNodes(t, whatPlugin), agents()
	if other == before || strings.Count(other, "older") != len(nodes) || second == first {
		t.Errorf("no other version: before %s %s, then %s %s", first, before, second, other)
	}

	e.must(t, `kubectl patch moduleconfig istio --type merge -p '{"spec":{"maintenance":null}}'`)
	e.madeMeanwhile(t, "again", nodes, "podseal.io/podseal-proxy:"+e.s.Version)
	if again := e.onNodes(t, whatPlugin); again != before || agents() == second {
		t.Errorf("the manager's version is not back: before %s, then %s", before, again)
	}

	e.must(t, "kubectl -n guarded wait --for=jsonpath='{.status.phase}'=Succeeded pod -l app=meanwhile --timeout=60s || { kubectl -n guarded describe pods -l app=meanwhile; false; }")
	e.judgeMeanwhile(t)
	t.Logf("the upgrades took %s", time.Since(start))
}

// madeMeanwhile makes pods, one a second and on each node in turn, until the
// DaemonSet has replaced all agents by those of the image.
func (e *env) madeMeanwhile(t *testing.T, name string, nodes []string, image string) {
	t.Helper()
	made, last := 0, time.Time{}
	took := eventually(t, "the agents are of "+image, func() (bool, string) {
		if time.Since(last) > time.Second {
			last = time.Now()
			e.must(t, meanwhile, fmt.Sprintf("%s-%d", name, made), nodes[made%len(nodes)])
			made++
		}
		out := e.must(t, "kubectl -n d8-istio get daemonset istio-cni-node -o jsonpath='{.spec.template.spec.containers[0].image} {.metadata.generation} {.status.observedGeneration} {.status.updatedNumberScheduled} {.status.numberReady}'")
		f := strings.Fields(out)
		return made >= 2*len(nodes) && len(f) == 5 && f[0] == image && f[1] == f[2] && f[3] == fmt.Sprint(len(nodes)) && f[4] == f[3], out
	})
	t.Logf("%d pods made while the agents were replaced, in %s", made, took)
}

// judgeMeanwhile: none has an init container that captures, none was held, no sandbox failed.
func (e *env) judgeMeanwhile(t *testing.T) {
	t.Helper()
	var pods struct {
		Items []struct {
			Metadata struct{ Name string }
			Spec     struct{ InitContainers []struct{ Name string } }
			Status   struct{ InitContainerStatuses []struct{ RestartCount int } }
		}
	}
	if err := json.Unmarshal([]byte(e.must(t, "kubectl -n guarded get pods -l app=meanwhile -o json")), &pods); err != nil {
		t.Fatal(err)
	}
	for _, p := range pods.Items {
		if len(p.Spec.InitContainers) != 1 || p.Spec.InitContainers[0].Name != "istio-proxy" || len(p.Status.InitContainerStatuses) != 1 || p.Status.InitContainerStatuses[0].RestartCount != 0 {
			t.Errorf("%s: %+v %+v", p.Metadata.Name, p.Spec, p.Status)
		}
	}
	reasons := strings.Fields(e.must(t, "kubectl -n guarded get events -o jsonpath='{.items[*].reason}'"))
	for _, bad := range []string{"FailedCreatePodSandBox", "UncapturedPodDeleted"} {
		if slices.Contains(reasons, bad) {
			t.Errorf("%s: %s", bad, e.must(t, "kubectl -n guarded get events --field-selector reason=%s", bad))
		}
	}
	e.must(t, "kubectl -n guarded delete pods -l app=meanwhile --grace-period=1 --wait=false")
}
