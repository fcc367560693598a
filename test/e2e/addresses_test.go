package e2e

import (
	"fmt"
	"strings"
	"testing"

	"podseal.io/podseal/test/e2e/walkthrough"
)

// applyAddresses makes every kind of Service in front of pods of the mesh, and of one
// that isn't.
func (e *env) applyAddresses(t *testing.T) {
	t.Helper()
	e.must(t, "kubectl -n %s run legacy --image=%s --port=80 -- /bin/sh -c 'nginx -g \"daemon off;\"' && kubectl -n %s wait --for=condition=Ready pod/legacy --timeout=90s", outsideNS, walkthrough.Image, outsideNS)
	e.must(t, `kubectl -n %[1]s apply -f - <<EOF
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Service, metadata: {name: web-headless}, spec: {clusterIP: None, selector: {app: webserver}, ports: [{port: 80}]}}
- {apiVersion: v1, kind: Service, metadata: {name: web-second}, spec: {selector: {app: webserver}, ports: [{port: 8080, targetPort: 80}]}}
- {apiVersion: v1, kind: Service, metadata: {name: web-node}, spec: {type: NodePort, selector: {app: webserver}, ports: [{port: 80}]}}
- {apiVersion: v1, kind: Service, metadata: {name: alias}, spec: {type: ExternalName, externalName: webserver.%[1]s.svc.cluster.local}}
- {apiVersion: v1, kind: Service, metadata: {name: byhand}, spec: {ports: [{port: 80}]}}
- apiVersion: discovery.k8s.io/v1
  kind: EndpointSlice
  metadata: {name: byhand, labels: {kubernetes.io/service-name: byhand}}
  addressType: IPv4
  ports: [{port: 80, protocol: TCP}]
  endpoints: [{addresses: [%[3]s], conditions: {ready: true}}]
- {apiVersion: v1, kind: Service, metadata: {name: db}, spec: {clusterIP: None, selector: {app: db}, ports: [{port: 80}]}}
- {apiVersion: v1, kind: Service, metadata: {name: late}, spec: {selector: {app: late}, ports: [{port: 80}]}}
- {apiVersion: v1, kind: Service, metadata: {name: late-published}, spec: {publishNotReadyAddresses: true, selector: {app: late}, ports: [{port: 80}]}}
- apiVersion: apps/v1
  kind: StatefulSet
  metadata: {name: db}
  spec:
    serviceName: db
    selector: {matchLabels: {app: db}}
    template:
      metadata: {labels: {app: db}}
      spec: {containers: [{name: web, image: %[2]s, command: [nginx, -g, "daemon off;"]}]}
- apiVersion: v1
  kind: Pod
  metadata: {name: late, labels: {app: late}}
  spec: {containers: [{name: web, image: %[2]s, command: [nginx, -g, "daemon off;"], readinessProbe: {exec: {command: ["false"]}}}]}
EOF
kubectl -n %[1]s rollout status statefulset/db --timeout=90s`, ns, walkthrough.Image, e.podIP(t, outsideNS, "pod/legacy"))
}

func (e *env) podIP(t *testing.T, namespace, what string) string {
	t.Helper()
	ip := strings.TrimSpace(e.must(t, "kubectl -n %s get %s -o jsonpath='{.items[0].status.podIP}{.status.podIP}'", namespace, what))
	if ip == "" {
		t.Fatalf("%s has no address", what)
	}
	return ip
}

// nodePort is the server by way of a node's address.
func (e *env) nodePort(t *testing.T) string {
	t.Helper()
	node := strings.Fields(e.must(t, "kubectl get nodes -o jsonpath='{.items[0].status.addresses[?(@.type==\"InternalIP\")].address}'"))
	port := strings.TrimSpace(e.must(t, "kubectl -n %s get service web-node -o jsonpath='{.spec.ports[0].nodePort}'", ns))
	if len(node) == 0 || port == "" {
		t.Fatal("no node has an address, or the Service no port")
	}
	return fmt.Sprintf("http://%s:%s/", node[0], port)
}

// reached waits until a call by curl is answered, or isn't.
func (e *env) reached(t *testing.T, what, namespace, from, args string, want bool) {
	t.Helper()
	eventually(t, what, func() (bool, string) {
		out, code := e.curl(t, namespace, from, args)
		ok := code == 0 && (strings.Contains(out, "200 OK") || strings.Contains(out, "HTTP/2 200"))
		return ok == want, fmt.Sprintf("exit code %d: %s", code, out)
	})
}

// testAddresses calls by every kind of address that Kubernetes has: the server is
// STRICT, so what is answered came by mutual TLS.
// Contract 3.29, 3.59-3.66, 3.68 and 3.69.
func testAddresses(t *testing.T, e *env) {
	e.applyAddresses(t)
	e.policy(t, ns, "default", "{mtls: {mode: STRICT}}")
	e.reached(t, "STRICT is in force", outsideNS, "alpine", "http://webserver."+ns+"/", false)
	for _, host := range []string{
		"webserver", "web-headless", "web-second:8080", "alias", "db-0.db", "db", "late-published", "byhand",
		e.podIP(t, ns, "pod -l app=webserver"), e.podIP(t, ns, "pod/late"),
	} {
		e.reached(t, host, ns, "client", "http://"+host+"/", true)
	}
	e.reached(t, "nothing is ready", ns, "client", "http://late/", false)
	e.reached(t, "own service", ns, "webserver", "http://webserver/", true)
	e.reached(t, "the API server", ns, "client", "-k https://kubernetes.default/version", true)
	e.reached(t, "NodePort under STRICT", outsideNS, "alpine", e.nodePort(t), false)
	e.policy(t, ns, "default", "{mtls: {mode: PERMISSIVE}}")
	e.reached(t, "NodePort under PERMISSIVE", outsideNS, "alpine", e.nodePort(t), true)
}

// testServiceEntries: a DestinationRule with a Secret for a host that a ServiceEntry
// names, here the API server, and what RegistryOnly leaves.
// Contract 3.12, 3.13, 3.35 and 3.37.
func testServiceEntries(t *testing.T, e *env) {
	legacy := e.podIP(t, outsideNS, "pod/legacy")
	e.must(t, `kubectl -n %[1]s create secret generic api-roots --from-literal=ca.crt="$(kubectl -n %[1]s get configmap kube-root-ca.crt -o jsonpath='{.data.ca\.crt}')"
kubectl -n %[1]s apply -f - <<EOF
apiVersion: v1
kind: List
items:
- apiVersion: networking.istio.io/v1
  kind: ServiceEntry
  metadata: {name: api}
  spec:
    hosts: [api.example]
    addresses: [240.0.0.5]
    resolution: STATIC
    ports: [{number: 80, name: http, protocol: HTTP, targetPort: 443}]
    endpoints: [{address: $(kubectl get service kubernetes -o jsonpath='{.spec.clusterIP}')}]
- apiVersion: networking.istio.io/v1
  kind: DestinationRule
  metadata: {name: api}
  spec:
    host: api.example
    workloadSelector: {matchLabels: {app: client}}
    trafficPolicy: {tls: {mode: SIMPLE, credentialName: api-roots, sni: kubernetes.default.svc}}
- apiVersion: networking.istio.io/v1
  kind: ServiceEntry
  metadata: {name: legacy}
  spec:
    hosts: [legacy.example]
    resolution: STATIC
    ports: [{number: 80, name: http, protocol: HTTP}]
    endpoints: [{address: %[2]s}]
EOF`, ns, legacy)
	out, _ := e.curl(t, ns, "client", "http://240.0.0.5/version")
	if strings.Contains(out, "gitVersion") {
		t.Errorf("a Secret that the pod may not read was used: %s", out)
	}
	e.must(t, `kubectl -n %[1]s create role api-roots --verb=list --resource=secrets && kubectl -n %[1]s create rolebinding api-roots --role=api-roots --serviceaccount=%[1]s:default`, ns)
	eventually(t, "plaintext of the application is TLS of the proxy", func() (bool, string) {
		out, code := e.curl(t, ns, "client", "http://240.0.0.5/version")
		return code == 0 && strings.Contains(out, "gitVersion"), out
	})

	e.must(t, `kubectl patch moduleconfig istio --type merge -p '{"spec":{"settings":{"outboundTrafficPolicyMode":"RegistryOnly"}}}'`)
	e.reached(t, "a node's address is nobody's, and closed", ns, "client", e.nodePort(t), false)
	e.reached(t, "what a ServiceEntry names is reached", ns, "client", "-H 'Host: legacy.example' http://192.0.2.9/", true)
	e.reached(t, "Services are reached", ns, "client", "http://webserver/", true)
	e.refused(t, "kubectl -n "+ns+` create -f - <<EOF
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: wrong}
spec: {hosts: ["*.example.com"], resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP}]}
EOF`, "spec.hosts", "can't be resolved")
	e.must(t, `kubectl patch moduleconfig istio --type merge -p '{"spec":{"settings":null}}'`)
	e.reached(t, "anything is reached again", ns, "client", e.nodePort(t), true)
	e.must(t, "kubectl -n %[1]s delete serviceentries,destinationrules --all && kubectl -n %[1]s delete statefulset/db pod/late secret/api-roots rolebinding/api-roots role/api-roots service/web-headless service/web-second service/web-node service/alias service/db service/late service/late-published service/byhand --grace-period=1 && kubectl -n %[2]s delete pod legacy --grace-period=1", ns, outsideNS)
}
