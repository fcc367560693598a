package e2e

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"podseal.io/podseal/internal/proof"
)

// servers is the image with a server and a client of each protocol; the folder bazaar
// has the scripts that start and use them.
const servers = "podseal.io/test/protocols:1"

// bazaar is a pod with all the servers on one node, a client in the mesh on the other,
// and one outside of the mesh there, too.
const bazaar = `kubectl create namespace bazaar && kubectl label namespace bazaar istio-injection=enabled && kubectl create namespace bazaar-outside
for ns in bazaar bazaar-outside; do kubectl -n $ns create configmap bazaar --from-file=bazaar; done
kubectl apply -f - <<EOF
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: bazaar, labels: {app: bazaar}}
spec:
  nodeName: %[1]s-1
  terminationGracePeriodSeconds: 1
  containers:
  - name: servers
    image: %[2]s
    command: [sh, /bazaar/serve.sh]
    startupProbe:
      failureThreshold: 60
      exec: {command: [python3, /bazaar/ready.py, %[3]s]}
      periodSeconds: 1
      timeoutSeconds: 5
    volumeMounts: [{name: scripts, mountPath: /bazaar}]
  volumes: [{name: scripts, configMap: {name: bazaar}}]
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: bazaar}
spec:
  nodeName: %[1]s-2
  terminationGracePeriodSeconds: 1
  containers: [{name: clients, image: %[2]s, command: [sh, -c, "python3 -c 'import grpc, websockets'; exec sleep infinity"], volumeMounts: [{name: scripts, mountPath: /bazaar}]}]
  volumes: [{name: scripts, configMap: {name: bazaar}}]
---
apiVersion: v1
kind: Pod
metadata: {name: outside, namespace: bazaar-outside}
spec:
  nodeName: %[1]s-2
  terminationGracePeriodSeconds: 1
  containers: [{name: clients, image: %[2]s, command: [sh, -c, "python3 -c 'import grpc, websockets'; exec sleep infinity"], volumeMounts: [{name: scripts, mountPath: /bazaar}]}]
  volumes: [{name: scripts, configMap: {name: bazaar}}]
EOF
kubectl -n bazaar wait --for=condition=Ready pod/server pod/client --timeout=120s && kubectl -n bazaar-outside wait --for=condition=Ready pod/outside --timeout=60s`

// declared is the Service of the pod's ports, those of FTP's data among them.
const declared = `kubectl -n bazaar apply -f - <<EOF
apiVersion: v1
kind: Service
metadata: {name: bazaar}
spec:
  selector: {app: bazaar}
  ports:
  - {name: tcp-postgres, port: 15432}
  - {name: mysql, port: 13306}
  - {name: redis, port: 16379}
  - {name: tcp-memcached, port: 11311}
  - {name: tcp-smtp, port: 1025}
  - {name: tcp-ssh, port: 1022}
  - {name: tcp-mqtt, port: 11883}
  - {name: tcp-ftp, port: 1021}
  - {name: tcp-ftp-0, port: 30000}
  - {name: tcp-ftp-1, port: 30001}
  - {name: tcp-ftp-2, port: 30002}
  - {name: tcp-ftp-3, port: 30003}
  - {name: http, port: 8080}
  - {name: http2, port: 8082}
  - {name: https, port: 8443}
  - {name: websocket, port: 8088, appProtocol: http}
  - {name: grpc, port: 8090}
EOF`

// serverPorts are those of the servers.
func serverPorts() []uint16 {
	return []uint16{15432, 13306, 16379, 11311, 1025, 1022, 11883, 1021, 8080, 8082, 8443, 8088, 8090}
}

// trade is what came of the conversations of one client in one phase: for each protocol
// the milliseconds it took, or FAIL and what was said instead.
type trade struct {
	phase string
	said  map[string]string
}

// testProtocols: what people run, by the programs that they run it with, through two
// proxies on two nodes: PERMISSIVE and STRICT, on undeclared ports by the pod's address
// and on declared ones by the Service, and from outside of the mesh. Between the nodes
// there is nothing of the mesh client's but mutual TLS.
// Contract 2.7, 2.13, 3.7, 3.60.
func testProtocols(t *testing.T, e *env) {
	var ports []string
	for _, port := range serverPorts() {
		ports = append(ports, fmt.Sprintf("%q", fmt.Sprint(port)))
	}
	e.must(t, bazaar, e.c.Name, servers, strings.Join(ports, ", "))
	address := e.podIP(t, "bazaar", "pod/server")
	b := &market{env: e, server: address, client: e.podIP(t, "bazaar", "pod/client")}
	b.phase(t, "PERMISSIVE", "undeclared", address, address)
	b.phase(t, "STRICT", "undeclared", address, address)
	e.must(t, "%s", declared)
	eventually(t, "the Service is known", func() (bool, string) {
		out, code := e.try(t, "kubectl -n bazaar exec client -c clients -- curl -sS -m 5 http://bazaar:8080/page")
		return code == 0, out
	})
	b.phase(t, "STRICT", "declared", "bazaar", "bazaar.bazaar")
	b.phase(t, "PERMISSIVE", "declared", "bazaar", "bazaar.bazaar")
	b.table(t)
	letters := e.must(t, "kubectl -n bazaar exec server -c servers -- sh -c 'grep -l what-nobody-else-may-read /srv/1025/mail/new/* | wc -l'")
	if want := fmt.Sprint(b.letters); strings.TrimSpace(letters) != want {
		t.Errorf("%s letters were sent, %s are in the mailbox", want, letters)
	}
	if t.Failed() {
		out, _ := e.try(t, "kubectl -n bazaar exec server -c servers -- sh -c 'tail -n 20 /srv/*.log'; kubectl -n bazaar logs server -c istio-proxy --tail=100; kubectl -n bazaar logs client -c istio-proxy --tail=100")
		t.Log(out)
	}
	e.must(t, "kubectl delete namespace bazaar bazaar-outside --wait=false")
}

type market struct {
	*env
	server, client string // addresses
	trades         []trade
	letters        int
}

// phase puts a mode in force and lets both clients talk to all servers at once.
func (b *market) phase(t *testing.T, mode, ports, host, outside string) {
	t.Helper()
	b.policy(t, "bazaar", "default", "{mtls: {mode: "+mode+"}}")
	eventually(t, mode+" is in force", func() (bool, string) {
		out := b.must(t, "kubectl -n bazaar exec server -c servers -- curl -sS -m 5 http://127.0.0.1:15000/status")
		return strings.Contains(strings.ReplaceAll(out, " ", ""), `"mode":"`+mode+`"`), out
	})
	capture, err := b.c.Capture(t.Context(), b.c.Name+"-1", "tcp and host "+b.server+" and host "+b.client)
	if err != nil {
		t.Fatal(err)
	}
	var talks sync.WaitGroup
	var inside, out trade
	talks.Go(func() { inside = b.talk(t, "bazaar", "client", mode+", "+ports, host) })
	talks.Go(func() { out = b.talk(t, "bazaar-outside", "outside", mode+", outside", outside) })
	talks.Wait()
	packets, err := capture.Stop()
	if err != nil {
		t.Fatal(err)
	}
	b.sealed(t, packets)
	b.trades = append(b.trades, inside, out)
	for name, said := range inside.said {
		if strings.HasPrefix(said, "FAIL") {
			t.Errorf("%s, %s: %s", inside.phase, name, said)
		}
	}
	for name, said := range out.said {
		if refused := strings.HasPrefix(said, "FAIL"); refused != (mode == "STRICT") {
			t.Errorf("%s, %s: %s", out.phase, name, said)
		}
	}
	for _, c := range []trade{inside, out} {
		if !strings.HasPrefix(c.said["SMTP"], "FAIL") {
			b.letters++
		}
	}
}

// conversations is how many conversations talk.sh has.
const conversations = 14

func (b *market) talk(t *testing.T, namespace, pod, phase, host string) trade {
	all, code, err := b.c.Shell(t.Context(), fmt.Sprintf("kubectl -n %s exec %s -c clients -- sh /bazaar/talk.sh %s", namespace, pod, host))
	c := trade{phase: phase, said: map[string]string{}}
	for line := range strings.Lines(all) {
		if f := strings.Split(strings.TrimRight(line, "\n"), "\t"); len(f) == 4 {
			said := f[2]
			if f[1] != "ok" {
				said = "FAIL " + f[3]
			}
			c.said[f[0]] = said
		}
	}
	if len(c.said) != conversations {
		t.Errorf("%s: %d conversations of %d (exit code %d, %v):\n%s", phase, len(c.said), conversations, code, err, all)
	}
	return c
}

// sealed fails unless all between client and server is mutual TLS of the mesh.
func (b *market) sealed(t *testing.T, packets []byte) {
	t.Helper()
	sum, err := proof.Read(bytes.NewReader(packets), proof.Options{Needles: []string{
		"what-nobody-else-may-read", "SCRAM-SHA-256", "mysql_native_password", "GET /page", "PRI * HTTP/2.0", "MAIL FROM", "SSH-2.0-", "MQTT", "EPSV", "own.example", "Sec-WebSocket", "bazaar.Echo",
	}})
	if err != nil {
		t.Fatal(err)
	}
	if found := sum.Needles(); len(found) != 0 {
		t.Errorf("on the wire: %v\n%s", found, sum)
	}
	server, ports := netip.MustParseAddr(b.server), map[uint16]bool{}
	for _, f := range sum.Flows {
		if f.Server.Addr() != server {
			continue
		}
		ports[f.Server.Port()] = true
		if f.Kind == proof.Empty {
			continue
		}
		if f.PlainBytes() != 0 || f.Kind != proof.MeshTLS && f.Kind != proof.UnknownTLS { // one of the phase before is used again
			t.Errorf("not sealed:\n%s", sum)
			return
		}
	}
	for _, port := range serverPorts() {
		if !ports[port] {
			t.Errorf("nothing to port %d is on the wire:\n%s", port, sum)
		}
	}
}

// table shows what came of it all.
func (b *market) table(t *testing.T) {
	t.Helper()
	var names []string
	for name := range b.trades[0].said {
		names = append(names, name)
	}
	slices.Sort(names)
	var out strings.Builder
	fmt.Fprintf(&out, "%-16s", "ms")
	for _, c := range b.trades {
		fmt.Fprintf(&out, "  %-22s", c.phase)
	}
	for _, name := range names {
		fmt.Fprintf(&out, "\n%-16s", name)
		for _, c := range b.trades {
			said := c.said[name]
			if strings.HasPrefix(said, "FAIL") {
				said = "refused"
			}
			fmt.Fprintf(&out, "  %-22s", said)
		}
	}
	t.Log("\n" + out.String())
}
