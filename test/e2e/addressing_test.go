package e2e

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"podseal.io/podseal/test/e2e/walkthrough"
)

// moreAddresses are Services of both families and of IPv6 alone, one whose pods are of the
// mesh, without a proxy, and soon to end, and clients on a node's own network.
const moreAddresses = `kubectl -n %[1]s label pod -l app=webserver mixed=yes && kubectl -n %[1]s apply -f - <<'EOF'
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Service, metadata: {name: both}, spec: {ipFamilyPolicy: RequireDualStack, selector: {app: webserver}, ports: [{port: 80}]}}
- {apiVersion: v1, kind: Service, metadata: {name: six}, spec: {ipFamilies: [IPv6], selector: {app: webserver}, ports: [{port: 80}]}}
- {apiVersion: v1, kind: Service, metadata: {name: mixed}, spec: {selector: {mixed: "yes"}, ports: [{port: 80}]}}
- apiVersion: v1
  kind: Pod
  metadata: {name: bare, labels: {kind: more, mixed: "yes", sidecar.istio.io/inject: "false"}}
  spec: {terminationGracePeriodSeconds: 1, containers: [{name: web, image: %[2]s, command: [nginx, -g, "daemon off;"]}]}
- apiVersion: v1
  kind: Pod
  metadata: {name: leaving, labels: {kind: more, mixed: "yes"}}
  spec: {terminationGracePeriodSeconds: 120, containers: [{name: web, image: %[2]s, command: [nginx, -g, "daemon off;"], lifecycle: {preStop: {exec: {command: [sleep, "100"]}}}}]}
- apiVersion: v1
  kind: Pod
  metadata: {name: host, labels: {kind: more}}
  spec: {hostNetwork: true, dnsPolicy: ClusterFirstWithHostNet, terminationGracePeriodSeconds: 1, containers: [{name: web, image: %[2]s, command: [sleep, infinity]}]}
- apiVersion: v1
  kind: Pod
  metadata: {name: datagrams, labels: {kind: more}}
  spec:
    terminationGracePeriodSeconds: 1
    containers:
    - name: echo
      image: %[3]s
      command: [python3, -c, "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.bind(('', 5000))\nwhile True:\n  b, a = s.recvfrom(1500)\n  s.sendto(a[0].encode() + b' said ' + b, a)"]
EOF
kubectl -n %[1]s wait --for=condition=Ready pod -l kind=more --timeout=90s`

// podIP6 is the IPv6 address of a pod, in brackets.
func (e *env) podIP6(t *testing.T, what string) string {
	t.Helper()
	for a := range strings.FieldsSeq(e.must(t, "kubectl -n %s get %s -o jsonpath='{.items[0].status.podIPs[*].ip} {.status.podIPs[*].ip}'", ns, what)) {
		if strings.Contains(a, ":") {
			return "[" + a + "]"
		}
	}
	t.Fatalf("%s has no IPv6 address", what)
	return ""
}

const webserver = "pod -l app=webserver"

// testMoreAddresses is the rest of testAddresses: both families, mixed and ending
// endpoints, a pod's own addresses, UDP, nodes and clients outside of the cluster, and a
// pod that has an IPv6 address only.
// Contract 3.2, 3.22, 3.29, 3.59 and 3.70.
func testMoreAddresses(t *testing.T, e *env) {
	e.must(t, moreAddresses, ns, walkthrough.Image, servers)
	e.policy(t, ns, "default", "{mtls: {mode: STRICT}}")
	four, six := e.podIP(t, ns, webserver), e.podIP6(t, webserver)
	e.reached(t, "STRICT is in force for IPv6", outsideNS, "alpine", "http://"+six+"/", false)
	for _, to := range []string{"http://six/", "-4 http://both/", "-6 http://both/", "http://" + six + "/"} {
		e.reached(t, to, ns, "client", to, true)
	}
	for _, own := range []string{four, six} {
		e.reached(t, "own address", ns, "webserver", "http://"+own+"/", true)
	}
	e.testMixed(t)
	e.testSixOnly(t)
	out := e.must(t, "kubectl -n %s exec deployments/client -- sh -c 'echo hello | nc -u -w 2 %s 5000'", ns, e.podIP(t, ns, "pod/datagrams"))
	if want := e.podIP(t, ns, "pod -l app=client") + " said hello"; !strings.Contains(out, want) {
		t.Errorf("UDP: %q, want %q", out, want)
	}
	strangers := func(want bool) {
		t.Helper()
		e.reached(t, "NodePort, from a pod", outsideNS, "alpine", e.nodePort(t), want)
		eventually(t, "NodePort, from outside of the cluster", func() (bool, string) {
			args := []string{"--net=/run/netns/podseal-" + e.c.Name + "-net", "--", "curl", "-sS", "-m", "5", e.nodePort(t)}
			out, err := exec.CommandContext(t.Context(), "nsenter", args...).CombinedOutput()
			return (err == nil) == want, fmt.Sprintf("%v: %s", err, out)
		})
		for _, host := range []string{"webserver." + ns, four, six} {
			eventually(t, host+", from a node's network", func() (bool, string) {
				out, code := e.try(t, "kubectl -n %s exec host -- curl -sS -m 5 http://%s/", ns, host)
				return (code == 0) == want, out
			})
		}
	}
	strangers(false)
	e.policy(t, ns, "default", "{mtls: {mode: PERMISSIVE}}")
	strangers(true)
	e.must(t, "kubectl -n %s delete pod -l kind=more --grace-period=1 --wait=false && kubectl -n %s delete service both six mixed", ns, ns)
}

// testMixed: of a Service with a pod without a proxy, and one that is ending, each call is
// answered, by mutual TLS or as the application sent it, and none by the one that ends.
func (e *env) testMixed(t *testing.T) {
	t.Helper()
	// answered makes 30 calls and says which pods have them in their logs.
	answered := func() string {
		t.Helper()
		mark := fmt.Sprintf("/?mixed-%d", time.Now().UnixMicro())
		e.must(t, "kubectl -n %s exec deployments/client -- sh -c 'for i in $(seq 30); do curl -sSfo /dev/null -m 5 http://mixed%s || exit 1; done'", ns, mark)
		var pods []string
		for _, pod := range []string{"deployment/webserver", "pod/bare", "pod/leaving"} {
			if strings.Contains(e.must(t, "kubectl -n %s logs %s", ns, pod), mark+" ") {
				pods = append(pods, pod)
			}
		}
		return strings.Join(pods, " ")
	}
	eventually(t, "all three answer", func() (bool, string) {
		got := answered()
		return got == "deployment/webserver pod/bare pod/leaving", got
	})
	address := e.podIP(t, ns, "pod/leaving")
	e.must(t, "kubectl -n %s delete pod leaving --wait=false", ns)
	eventually(t, "the pod that is ending gets nothing new", func() (bool, string) {
		got := answered()
		return got == "deployment/webserver pod/bare", got
	})
	e.reached(t, "the pod that is ending, by its address", ns, "client", "http://"+address+"/", true)
}

// sixOnly is a pod on a node that gives out IPv6 addresses only, for as long as it takes
// to make the pod: server and client of the mesh.
const sixOnly = `kubectl -n %[1]s apply -f - <<EOF
apiVersion: v1
kind: Pod
metadata: {name: six-only, labels: {kind: more, app: six-only}}
spec:
  nodeName: %[2]s-2
  terminationGracePeriodSeconds: 1
  dnsPolicy: None
  dnsConfig:
    nameservers: ["$(kubectl -n kube-system get service kube-dns -o jsonpath='{.spec.clusterIPs[1]}')"]
    searches: [%[1]s.svc.cluster.local, svc.cluster.local, cluster.local]
    options: [{name: ndots, value: "5"}]
  containers: [{name: web, image: %[3]s, command: [nginx, -g, "daemon off;"]}]
---
apiVersion: v1
kind: Service
metadata: {name: six-only}
spec: {ipFamilies: [IPv6], selector: {app: six-only}, ports: [{port: 80}]}
EOF
kubectl -n %[1]s wait --for=jsonpath='{.status.podIP}' pod/six-only --timeout=60s`

func (e *env) testSixOnly(t *testing.T) {
	t.Helper()
	onNode := func(line string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), e.c.Binary, "node", "--name", e.c.Name, "2", "--", "sh", "-c", line).CombinedOutput(); err != nil {
			t.Fatalf("on node 2: %v: %s", err, out)
		}
	}
	onNode(`cd /etc/cni/net.d && f=$(ls *.conflist) && cp $f /tmp/$f.saved && grep -v '"subnet": "10\.' /tmp/$f.saved >$f.new && mv $f.new $f && sleep 1`) // containerd has noticed by then
	_, code := e.try(t, sixOnly, ns, e.c.Name, walkthrough.Image)
	onNode(`cd /etc/cni/net.d && f=$(ls *.conflist) && cp /tmp/$f.saved $f.new && mv $f.new $f && rm /tmp/$f.saved`)
	if addresses := e.must(t, "kubectl -n %s get pod six-only -o jsonpath='{.status.podIPs[*].ip}'", ns); code != 0 || strings.Contains(addresses, ".") || addresses == "" {
		t.Fatalf("exit code %d, addresses %q", code, addresses)
	}
	e.must(t, "kubectl -n %s wait --for=condition=Ready pod/six-only --timeout=60s", ns)
	for _, to := range []string{"http://six-only/", "http://" + e.podIP6(t, "pod/six-only") + "/"} {
		e.reached(t, to, ns, "client", to, true)
		e.reached(t, to+" in plaintext", outsideNS, "alpine", strings.Replace(to, "six-only/", "six-only."+ns+"/", 1), false)
	}
	for _, to := range []string{"six", "both", e.podIP6(t, webserver)} {
		eventually(t, "from an IPv6-only pod to "+to, func() (bool, string) {
			out, code := e.try(t, "kubectl -n %s exec six-only -c web -- curl -sS -m 5 http://%s/", ns, to)
			return code == 0, out
		})
	}
	e.must(t, "kubectl -n %s delete service six-only", ns)
}
