package e2e

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"podseal.io/podseal/test/e2e/walkthrough"
)

// caller is somebody who talks to the workload zoo/den, and as what he must appear
// wherever the mesh's traffic is shown.
type caller struct {
	who     string // with the namespace if he has one; NODE is the den's node, OTHER another
	port    int
	state   string // in `podseal edges -o json`
	secured string // in its table
	call    string // how he calls, in bash; DEN is the den's address
	istio   string // of the den's own metrics: name and labels; "" if the proxy doesn't carry it
	listed  string // security in podseal_plaintext_connections_total; "" if it isn't there
}

const (
	requests = `istio_requests_total{`
	opened   = `istio_tcp_connections_opened_total{`
	mutual   = `connection_security_policy="mutual_tls"`
	none     = `connection_security_policy="none"`
)

// callers are the zoo. A readiness probe is rewritten, so the kubelet talks to the
// proxy's port; who asks there is no gap in the mesh, and isn't counted as one.
func callers() []caller {
	in := func(pod, line string) string {
		ns, name, _ := strings.Cut(pod, "/")
		return "kubectl -n " + ns + " exec " + name + " -c app -- sh -c '" + line + "'"
	}
	get := "curl -sSk --fail --max-time 5 -o /dev/null "
	return []caller{
		{"zoo/lion", 8080, "mutual_tls", "√ mutual TLS", in("zoo/lion", get+"http://den:8080/"), requests + `destination_workload="den",` + mutual, ""},
		{"zoo/tiger", 8080, "mutual_tls", "√ mutual TLS", in("zoo/tiger", get+"http://DEN:8080/"), requests + mutual, ""},
		{"zoo/parrot", 2525, "mutual_tls", "√ mutual TLS", in("zoo/parrot", "sleep 2 | nc -w 4 den 2525 | grep 220"), opened + mutual, ""},
		{"wild/wolf", 8080, "plaintext", "plaintext", in("wild/wolf", get+"http://den.zoo:8080/"), requests + none, "plaintext"},
		{"wild/fox", 8443, "foreign_tls", "TLS of the application", in("wild/fox", get+"https://den.zoo:8443/"), opened + none, "foreign_tls"},
		{"wild/bear", 2525, "plaintext", "plaintext", in("wild/bear", "sleep 2 | nc -w 4 den.zoo 2525 | grep 220"), opened + none, "plaintext"},
		{"wild/ghost", 8080, "not_observed", "not observed", in("wild/ghost", "nc -z -w 4 den.zoo 8080"), "", ""},
		{"wild/prometheus", 8080, "plaintext", "plaintext", in("wild/prometheus", get+"http://DEN:8080/metrics"), requests + none, "plaintext"},
		{"wild/prometheus", 15020, "plaintext", "plaintext (health and metrics)", in("wild/prometheus", get+"http://DEN:15020/stats/prometheus"), "", ""},
		{"node/OTHER", 8080, "plaintext", "plaintext", in("wild/hostling", get+"http://DEN:8080/"), requests + none, "plaintext"},
		{"kubelet/NODE", 15020, "plaintext", "plaintext (health and metrics)", "true", "", ""},
	}
}

// isWorkload reports whether he is one, and not a node.
func (c *caller) isWorkload() bool {
	return strings.HasPrefix(c.who, "zoo/") || strings.HasPrefix(c.who, "wild/")
}

// den is a server of HTTP, of TLS of its own, and of a protocol in which the server
// speaks first; and around it are pods of the mesh (zoo) and outside of it (wild).
func den(t *testing.T, node, other string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	certificate, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), DNSNames: []string{"den"}},
		&x509.Certificate{SerialNumber: big.NewInt(1)}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	encode := func(kind string, der []byte) string {
		return base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	manifest := fmt.Sprintf(`apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: zoo, labels: {istio-injection: enabled}}}
- {apiVersion: v1, kind: Namespace, metadata: {name: wild}}
- {apiVersion: v1, kind: Secret, metadata: {name: den, namespace: zoo}, type: kubernetes.io/tls, data: {tls.crt: %s, tls.key: %s}}
- {apiVersion: v1, kind: Service, metadata: {name: den, namespace: zoo}, spec: {selector: {app: den}, ports: [{name: http, port: 8080}, {name: tls, port: 8443}, {name: tcp-greeting, port: 2525}]}}
- apiVersion: v1
  kind: Pod
  metadata: {name: den, namespace: zoo, labels: {app: den}}
  spec:
    nodeName: %s
    terminationGracePeriodSeconds: 1
    containers:
    - name: den
      image: %s
      command:
      - sh
      - -c
      - |
        while :; do echo "220 den" | nc -l -N -p 2525; done >/dev/null &
        echo "events {} http { access_log off; server { listen 8080; return 200 well; } server { listen 8443 ssl; ssl_certificate /tls/tls.crt; ssl_certificate_key /tls/tls.key; return 200 well; } }" >/tmp/nginx.conf
        exec nginx -c /tmp/nginx.conf -g "daemon off;"
      readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
      volumeMounts: [{name: tls, mountPath: /tls}]
    volumes: [{name: tls, secret: {secretName: den}}]
`, encode("CERTIFICATE", certificate), encode("PRIVATE KEY", secret), node, walkthrough.Image)
	for _, pod := range []string{"zoo/lion", "zoo/tiger", "zoo/parrot", "wild/wolf", "wild/fox", "wild/bear", "wild/ghost", "wild/prometheus", "wild/hostling"} {
		ns, name, _ := strings.Cut(pod, "/")
		manifest += fmt.Sprintf("- {apiVersion: v1, kind: Pod, metadata: {name: %s, namespace: %s}, spec: {nodeName: %s, hostNetwork: %t, terminationGracePeriodSeconds: 1, containers: [{name: app, image: '%s', command: [sleep, infinity]}]}}\n",
			name, ns, other, name == "hostling", walkthrough.Image)
	}
	return manifest
}

// testZoo has each kind of caller call one workload of the mesh, and looks whether
// he appears with his right name and state in `podseal edges`, in what the dashboard
// draws, in the metrics of the proxy and of the control plane, and in `podseal report`.
func testZoo(t *testing.T, e *env) {
	nodes := strings.Fields(e.must(t, "kubectl get nodes -o jsonpath='{.items[*].metadata.name}'"))
	node, other := nodes[0], nodes[len(nodes)-1]
	e.must(t, "kubectl apply -f - <<'EOF'\n%sEOF\nkubectl -n zoo wait --for=condition=Ready pod --all --timeout=90s && kubectl -n wild wait --for=condition=Ready pod --all --timeout=60s", den(t, node, other))
	address := e.podIP(t, "zoo", "pod/den")
	all := callers()
	for i := range all {
		c := &all[i]
		c.who = strings.NewReplacer("NODE", node, "OTHER", other).Replace(c.who)
		line := strings.ReplaceAll(c.call, "DEN", address)
		eventually(t, c.who+" has called", func() (bool, string) { // the server of greetings has one client at a time
			out, code := e.try(t, "%s", line)
			return code == 0, out
		})
	}
	eventually(t, "all callers are in podseal edges", func() (bool, string) {
		missing := e.zooEdges(t, all)
		return len(missing) == 0, strings.Join(missing, "\n")
	})
	e.zooTable(t, all)
	e.zooMetrics(t, all)
	e.zooReport(t, all)
	e.zooDashboard(t, all)
	e.must(t, "kubectl delete namespace zoo wild --wait=false")
}

// zooLink is what the zoo reads of an edge.
type zooLink struct {
	Source  struct{ Kind, Namespace, Name, Address string } `json:"source"`
	To      struct{ Namespace, Name string }                `json:"destination"`
	Port    int                                             `json:"port"`
	OwnPort bool                                            `json:"own_port"`
	State   string                                          `json:"state"`
}

func (l *zooLink) who() string {
	switch {
	case l.Source.Namespace != "":
		return l.Source.Namespace + "/" + l.Source.Name
	case l.Source.Name != "":
		return l.Source.Kind + "/" + l.Source.Name
	default:
		return l.Source.Kind + "/" + l.Source.Address
	}
}

// zooEdges says which callers are not among the edges to the den as they should be.
func (e *env) zooEdges(t *testing.T, all []caller) (missing []string) {
	t.Helper()
	out, code, err := e.s.Podseal(t.Context(), "edges", "--kubeconfig", e.kubeconfig(t), "--to", "zoo/den", "-o", "json")
	var list struct{ Edges []zooLink }
	if start := strings.Index(out, "{"); err != nil || code != 0 || start < 0 || json.NewDecoder(strings.NewReader(out[start:])).Decode(&list) != nil {
		return []string{out}
	}
	if missing = missingIn(list.Edges, all); len(missing) > 0 {
		missing = append(missing, out)
	}
	return missing
}

func missingIn(graph []zooLink, all []caller) (missing []string) {
	for _, c := range all {
		is := func(l zooLink) bool {
			return l.To.Name == "den" && l.who() == c.who && l.Port == c.port && l.State == c.state && l.OwnPort == (c.port == 15020)
		}
		if !slices.ContainsFunc(graph, is) {
			missing = append(missing, fmt.Sprintf("%s to port %d, %s, is missing", c.who, c.port, c.state))
		}
	}
	return missing
}

// zooTable: the table says the same, and --plaintext names who has to be looked at.
func (e *env) zooTable(t *testing.T, all []caller) {
	t.Helper()
	table, _, err := e.s.Podseal(t.Context(), "edges", "--kubeconfig", e.kubeconfig(t), "--to", "zoo/den")
	exposed, _, err2 := e.s.Podseal(t.Context(), "edges", "--kubeconfig", e.kubeconfig(t), "--to", "zoo/den", "--plaintext")
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	for _, c := range all {
		ns, name, _ := strings.Cut(c.who, "/")
		if !c.isWorkload() {
			ns, name = "-", c.who
		}
		line := regexp.MustCompile(fmt.Sprintf(`(?m)^%s +den +%s +zoo +%d +%s  `, regexp.QuoteMeta(name), ns, c.port, regexp.QuoteMeta(c.secured)))
		if !line.MatchString(table) {
			t.Errorf("edges: no line of %s to port %d, %s:\n%s", c.who, c.port, c.secured, table)
		}
		if want := c.listed != ""; line.MatchString(exposed) != want {
			t.Errorf("edges --plaintext: %s to port %d: want %t:\n%s", c.who, c.port, want, exposed)
		}
	}
}

// zooMetrics: the den's proxy has Istio's metrics of what it carries, and the control
// plane names who talks without the mesh's mutual TLS, and nobody else.
func (e *env) zooMetrics(t *testing.T, all []caller) {
	t.Helper()
	proxy := e.must(t, "kubectl get --raw /api/v1/namespaces/zoo/pods/den:15020/proxy/stats/prometheus")
	for _, c := range all {
		if c.istio == "" {
			continue
		}
		name, labels, _ := strings.Cut(c.istio, "{")
		want := append(strings.Split(labels, ","), `reporter="destination"`)
		if ns, pod, _ := strings.Cut(c.who, "/"); c.isWorkload() {
			want = append(want, fmt.Sprintf("source_workload=%q", pod), fmt.Sprintf("source_workload_namespace=%q", ns))
		} else {
			want = append(want, `source_workload="unknown"`)
		}
		if strings.HasPrefix(c.who, "zoo/") {
			want = append(want, `source_principal="spiffe://cluster.local/ns/zoo/sa/default"`)
		}
		if !hasSeries(proxy, name, want...) {
			t.Errorf("the den's metrics: no %s with %s", name, strings.Join(want, ","))
		}
	}
	pod := strings.TrimSpace(e.must(t, "kubectl -n d8-istio get pods -l app=istiod --field-selector=status.phase=Running -o jsonpath='{.items[0].metadata.name}'"))
	eventually(t, "the control plane's metrics are of now", func() (bool, string) { // what is read for one scrape serves others within 5 s
		plane := e.must(t, "kubectl get --raw /api/v1/namespaces/d8-istio/pods/%s:15014/proxy/metrics", pod)
		var wrong []string
		for _, c := range all {
			ns, name, _ := strings.Cut(c.who, "/")
			if !c.isWorkload() {
				ns, name = "", c.who
			}
			labels := []string{`destination="den"`, `destination_namespace="zoo"`, fmt.Sprintf("source=%q", name), fmt.Sprintf("source_namespace=%q", ns)}
			if c.listed != "" {
				labels = append(labels, fmt.Sprintf("security=%q", c.listed))
			}
			if want := c.listed != "" || c.who == "wild/prometheus"; hasSeries(plane, "podseal_plaintext_connections_total", labels...) != want {
				wrong = append(wrong, fmt.Sprintf("%s: want %t", strings.Join(labels, ","), want))
			}
		}
		return len(wrong) == 0, strings.Join(wrong, "\n")
	})
}

// hasSeries reports whether there is a series with these labels.
func hasSeries(text, name string, labels ...string) bool {
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, name+"{") && !slices.ContainsFunc(labels, func(l string) bool { return !strings.Contains(line, l) }) {
			return true
		}
	}
	return false
}

// zooReport: the page of the report has a line for each, with his state.
func (e *env) zooReport(t *testing.T, all []caller) {
	t.Helper()
	page, code, err := e.s.Podseal(t.Context(), "report", "--kubeconfig", e.kubeconfig(t), "-n", "zoo")
	if err != nil || code != 0 {
		t.Fatalf("report: exit code %d, %v: %s", code, err, page)
	}
	for _, c := range all {
		line := regexp.MustCompile(fmt.Sprintf(`<tr><td>%s</td><td>zoo/den</td><td>%d</td><td class="[a-z_ ]*">%s</td>`, regexp.QuoteMeta(c.who), c.port, regexp.QuoteMeta(strings.TrimPrefix(c.secured, "√ "))))
		if !line.MatchString(page) {
			t.Errorf("report: no line of %s to port %d, %s", c.who, c.port, c.secured)
		}
	}
	if t.Failed() {
		before, _, _ := bytes.Cut([]byte(page), []byte("<h2>Exceptions"))
		t.Logf("%s", before)
	}
}
