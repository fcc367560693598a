package discovery

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/intstr"

	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/wire"
	"podseal.io/podseal/internal/workload"
)

func TestMesh(t *testing.T) {
	s := testSettings()
	s.TrustDomainAliases = []string{"old.example", "cluster.local", "old.example"}
	s.RegistryOnly, s.HTTP10, s.IdleTimeout = true, true, 5*time.Minute
	got := build(t, Cluster{Settings: s}).mesh
	if !slices.Equal(got.TrustDomains, []string{"cluster.local", "old.example"}) { // contract 4.4
		t.Errorf("trust domains %v", got.TrustDomains)
	}
	if got.Outbound != workload.RegistryOnly || !got.HTTP10 || got.IdleTimeout != 5*time.Minute || got.ClusterDomain != "cluster.local" {
		t.Errorf("mesh %+v", got)
	}
	s.IdleTimeout = 0 // as "0s" in ModuleConfig
	if got := build(t, Cluster{Settings: s}).mesh; got.IdleTimeout != forever {
		t.Errorf("never is %s", got.IdleTimeout)
	}
}

func TestWorkload(t *testing.T) {
	pod := object[corev1.Pod](t, `
metadata:
  namespace: shop
  name: web-7d9f-abc
  labels: {app: web, version: v2, pod-template-hash: 7d9f, security.istio.io/tlsMode: istio}
  ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: web-7d9f, uid: u, controller: true}]
spec:
  nodeName: node-1
  containers:
  - {name: app, ports: [{name: web, containerPort: 8080}, {name: web, containerPort: 9999, protocol: UDP}]}
status:
  phase: Running
  podIP: 10.244.0.7
  podIPs: [{ip: 10.244.0.7}, {ip: "fd00::7"}]
`)
	svc := object[corev1.Service](t, `
metadata: {namespace: shop, name: web}
spec:
  clusterIP: 10.96.0.5
  clusterIPs: [10.96.0.5, "fd01::5"]
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: web}, {name: dns, port: 53, protocol: UDP}]
`)
	got := build(t, Cluster{Pods: []*corev1.Pod{pod}, Services: []*corev1.Service{svc}})
	w := got.workloads["shop/web-7d9f-abc"]
	if w == nil {
		t.Fatalf("no workload: %v", got.verdicts)
	}
	if w.Identity.String() != "cluster.local/ns/shop/sa/default" { // contract 4.2
		t.Errorf("identity %s", w.Identity)
	}
	wantAddrs := []netip.Addr{netip.MustParseAddr("10.244.0.7"), netip.MustParseAddr("fd00::7")}
	if !slices.Equal(w.Addresses, wantAddrs) {
		t.Errorf("addresses %v", w.Addresses)
	}
	wantPorts := []workload.Port{{Target: 8080, Protocol: policy.HTTP, ServiceHost: "web.shop.svc.cluster.local", ServicePort: 80}}
	if !slices.Equal(w.Ports, wantPorts) {
		t.Errorf("ports %+v", w.Ports)
	}
	if w.WorkloadName != "web" || w.CanonicalName != "web" || w.CanonicalRevision != "v2" || w.App != "web" || w.Version != "v2" || w.Node != "node-1" {
		t.Errorf("names %+v", w)
	}
	s := got.services["shop/web"]
	if s == nil || len(s.Addresses) != 2 || !slices.Equal(s.Ports, []workload.ServicePort{{Name: "http", Port: 80, Protocol: policy.HTTP}}) {
		t.Errorf("service %+v", s) // contract 3.2: the UDP port is none of ours
	}
}

// TestTLSModeLabel: only the exact label value means a sidecar (contract 3.20, 3.26).
func TestTLSModeLabel(t *testing.T) {
	for value, want := range map[string]bool{"istio": true, "Istio": false, "disabled": false, "": false, "istio ": false} {
		pod := meshPod("shop", "a", "10.0.0.1", map[string]string{labelTLSMode: value})
		if got := build(t, Cluster{Pods: []*corev1.Pod{pod}}).workloads["shop/a"].Mesh; got != want {
			t.Errorf("tlsMode %q: mesh %v, want %v", value, got, want)
		}
	}
}

func TestPodsLeftOut(t *testing.T) {
	done, failed := meshPod("shop", "done", "10.0.0.1", nil), meshPod("shop", "failed", "10.0.0.1", nil)
	done.Status.Phase, failed.Status.Phase = corev1.PodSucceeded, corev1.PodFailed
	host := meshPod("shop", "host", "192.168.0.1", nil)
	host.Spec.HostNetwork = true
	old, heir := meshPod("shop", "old", "10.0.0.9", nil), meshPod("shop", "heir", "10.0.0.9", nil)
	heir.CreationTimestamp = created(5)
	pending := meshPod("shop", "pending", "", nil)
	pending.Status = corev1.PodStatus{Phase: corev1.PodPending}
	odd := meshPod("shop", "odd", "10.0.0.3", nil)
	odd.Spec.ServiceAccountName = "no/account"

	got := build(t, Cluster{Pods: []*corev1.Pod{done, failed, host, old, heir, pending, odd}})
	addresses := map[string]int{}
	for name, w := range got.workloads {
		addresses[name] = len(w.Addresses)
	}
	want := map[string]int{"shop/host": 0, "shop/old": 0, "shop/heir": 1, "shop/pending": 0}
	if diff := cmp.Diff(want, addresses); diff != "" {
		t.Errorf("workloads and their addresses (-want +got):\n%s", diff)
	}
	if v := got.verdicts[Key{"Pod", "shop", "odd"}]; v.Reason != ReasonNoIdentity {
		t.Errorf("verdict on the odd pod: %+v", v)
	}
}

// TestOldestServiceWins is contract 1.24.
func TestOldestServiceWins(t *testing.T) {
	service := func(name string, age int, port string) *corev1.Service {
		return &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, CreationTimestamp: created(age)},
			Spec: corev1.ServiceSpec{
				Selector: map[string]string{"app": "web"},
				Ports:    []corev1.ServicePort{{Name: port, Port: 80, TargetPort: intstr.FromInt32(8080)}},
			},
		}
	}
	pod := meshPod("shop", "a", "10.0.0.1", map[string]string{"app": "web"})
	for name, tc := range map[string]struct {
		services []*corev1.Service
		want     string
	}{
		"older":          {[]*corev1.Service{service("a", 9, "tcp-a"), service("z", 1, "http")}, "z"},
		"equal age":      {[]*corev1.Service{service("z", 1, "tcp"), service("a", 1, "http")}, "a"},
		"other selector": {[]*corev1.Service{service("z", 1, "tcp"), func() *corev1.Service { s := service("a", 0, "http"); s.Spec.Selector["x"] = "y"; return s }()}, "z"},
	} {
		ports := build(t, Cluster{Pods: []*corev1.Pod{pod}, Services: tc.services}).workloads["shop/a"].Ports
		if len(ports) != 1 || ports[0].ServiceHost != tc.want+".shop.svc.cluster.local" {
			t.Errorf("%s: ports %+v, want of service %s", name, ports, tc.want)
		}
	}
}

func TestTargetPorts(t *testing.T) {
	pod := meshPod("shop", "a", "10.0.0.1", map[string]string{"app": "web"})
	pod.Spec.Containers = []corev1.Container{{Name: "app", Ports: []corev1.ContainerPort{{Name: "api", ContainerPort: 8080}}}}
	pod.Spec.InitContainers = []corev1.Container{
		{Name: "side", RestartPolicy: new(corev1.ContainerRestartPolicyAlways), Ports: []corev1.ContainerPort{{Name: "side", ContainerPort: 7070}}},
		{Name: "once", Ports: []corev1.ContainerPort{{Name: "once", ContainerPort: 6060}}},
	}
	for _, tc := range []struct {
		port corev1.ServicePort
		want uint16
		ok   bool
	}{
		{corev1.ServicePort{Port: 80}, 80, true},
		{corev1.ServicePort{Port: 80, TargetPort: intstr.FromInt32(8081)}, 8081, true},
		{corev1.ServicePort{Port: 80, TargetPort: intstr.FromString("api")}, 8080, true},
		{corev1.ServicePort{Port: 80, TargetPort: intstr.FromString("side")}, 7070, true},
		{corev1.ServicePort{Port: 80, TargetPort: intstr.FromString("once")}, 0, false},
		{corev1.ServicePort{Port: 80, TargetPort: intstr.FromString("none")}, 0, false},
		{corev1.ServicePort{Port: 80, TargetPort: intstr.FromInt32(70000)}, 0, false},
	} {
		got, ok := targetPort(pod, &tc.port)
		if ok != tc.ok || (ok && got != tc.want) {
			t.Errorf("target of %+v: %d %v, want %d %v", tc.port, got, ok, tc.want, tc.ok)
		}
	}
}

// TestProtocol is contract 3.8, 3.9 and 2.14.
func TestProtocol(t *testing.T) {
	for _, tc := range []struct {
		name, app string
		port      int32
		want      policy.Protocol
	}{
		{"http", "", 80, policy.HTTP},
		{"HTTP-web", "", 80, policy.HTTP},
		{"http2-api", "", 80, policy.HTTP},
		{"http_proxy", "", 80, policy.HTTP},
		{"grpc", "", 80, policy.HTTP},
		{"grpc-web", "", 80, policy.HTTP},
		{"grpc-web-x", "", 80, policy.HTTP},
		{"grpc-webby", "", 80, policy.HTTP},
		{"tcp-x", "", 80, policy.TCP},
		{"https", "", 443, policy.TCP},
		{"https-web", "", 443, policy.TCP},
		{"tls-x", "", 443, policy.TCP},
		{"mongo", "", 1, policy.TCP},
		{"redis-1", "", 1, policy.TCP},
		{"mysql", "", 1, policy.TCP},
		{"", "", 80, policy.Auto},
		{"web", "", 80, policy.Auto},
		{"httpx", "", 80, policy.Auto},
		{"myhttp-x", "", 80, policy.Auto},
		{"", "", 3306, policy.TCP},
		{"db", "", 27017, policy.TCP},
		{"", "", 25, policy.TCP},
		{"", "", 53, policy.TCP},
		{"http", "", 3306, policy.HTTP},
		{"http", "tcp", 80, policy.TCP},
		{"tcp", "HTTP", 80, policy.HTTP},
		{"http", "mine.example/x", 80, policy.Auto}, // an appProtocol counts even if unknown
		{"http", "", 80, policy.HTTP},
		{"x", "kubernetes.io/h2c", 80, policy.HTTP},
		{"x", "kubernetes.io/ws", 80, policy.HTTP},
		{"x", "kubernetes.io/wss", 80, policy.TCP},
	} {
		p := &corev1.ServicePort{Name: tc.name, Port: tc.port}
		if tc.app != "" {
			p.AppProtocol = &tc.app
		}
		if got := protocolOf(p); got != tc.want {
			t.Errorf("port %q appProtocol %q %d: %v, want %v", tc.name, tc.app, tc.port, got, tc.want)
		}
	}
}

// TestNames is contract 5.11 for pods that injection didn't label, and who made a pod.
func TestNames(t *testing.T) {
	owned := func(kind, owner string, labels map[string]string) *corev1.Pod {
		p := meshPod("shop", "p", "10.0.0.1", labels)
		if kind != "" {
			p.OwnerReferences = []metav1.OwnerReference{{Kind: "Other", Name: "x"}, {Kind: kind, Name: owner, Controller: new(true)}}
		}
		return p
	}
	long := strings.Repeat("a", 62) + "-bc"
	for _, tc := range []struct {
		pod                    *corev1.Pod
		workload, name, revise string
	}{
		{owned("", "", nil), "p", "p", "latest"},
		{owned("ReplicaSet", "web-5f", map[string]string{"pod-template-hash": "5f"}), "web", "web", "latest"},
		{owned("ReplicaSet", "web-5f", nil), "web-5f", "web-5f", "latest"},
		{owned("StatefulSet", "db", map[string]string{"app": "data", "version": "3"}), "db", "data", "3"},
		{owned("Job", "backup-29012345", nil), "backup", "backup", "latest"},
		{owned("Job", "backup-1", nil), "backup-1", "backup-1", "latest"},
		{owned("DaemonSet", long, nil), long, strings.Repeat("a", 62), "latest"},
		{owned("", "", map[string]string{"app.kubernetes.io/name": "k", "app": "a", "app.kubernetes.io/version": "1", "version": "2"}), "p", "k", "1"},
		{owned("", "", map[string]string{labelCanonicalName: "c", "app": "a", labelCanonicalRevision: "r", labelWorkloadName: "w"}), "w", "c", "r"},
	} {
		w := build(t, Cluster{Pods: []*corev1.Pod{tc.pod}}).workloads["shop/p"]
		if w.WorkloadName != tc.workload || w.CanonicalName != tc.name || w.CanonicalRevision != tc.revise {
			t.Errorf("got %q %q %q, want %q %q %q", w.WorkloadName, w.CanonicalName, w.CanonicalRevision, tc.workload, tc.name, tc.revise)
		}
	}
}

func slice(name string, endpoints []discoveryv1.Endpoint, ports ...discoveryv1.EndpointPort) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "shop", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		AddressType: discoveryv1.AddressTypeIPv4, Endpoints: endpoints, Ports: ports,
	}
}

func endpoint(ip string, ready, terminating *bool) discoveryv1.Endpoint {
	return discoveryv1.Endpoint{Addresses: []string{ip}, Conditions: discoveryv1.EndpointConditions{Ready: ready, Terminating: terminating}}
}

// TestEndpoints is contract 3.58 and 3.59.
func TestEndpoints(t *testing.T) {
	svc := func() *corev1.Service {
		return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}, Spec: corev1.ServiceSpec{
			ClusterIP: "10.96.0.5",
			Ports:     []corev1.ServicePort{{Name: "http", Port: 80}, {Name: "admin", Port: 81}, {Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP}},
		}}
	}
	http := discoveryv1.EndpointPort{Name: new("http"), Port: new(int32(8080))}
	admin := discoveryv1.EndpointPort{Name: new("admin"), Port: new(int32(8081))}
	all := []discoveryv1.Endpoint{
		endpoint("10.0.0.1", new(true), nil), endpoint("10.0.0.2", new(false), nil), endpoint("10.0.0.3", nil, nil),
		endpoint("10.0.0.4", new(false), new(true)), endpoint("10.0.0.5", new(true), new(true)), endpoint("not an address", nil, nil),
	}
	texts := func(c Cluster) []string {
		var out []string
		for _, e := range build(t, c).services["shop/web"].Endpoints {
			text := e.Address.String()
			if !e.Ready {
				text += " unready"
			}
			for _, p := range []uint16{80, 81} {
				if target := e.Targets[p]; target != 0 {
					text += " " + map[uint16]string{8080: "http", 8081: "admin", 9090: "other"}[target]
				}
			}
			out = append(out, text)
		}
		return out
	}
	published := svc()
	published.Spec.PublishNotReadyAddresses = true
	fqdn := slice("f", []discoveryv1.Endpoint{{Addresses: []string{"example.org"}}}, http)
	fqdn.AddressType = discoveryv1.AddressTypeFQDN
	for name, tc := range map[string]struct {
		svc    *corev1.Service
		slices []*discoveryv1.EndpointSlice
		want   []string
	}{
		"conditions":             {svc(), []*discoveryv1.EndpointSlice{slice("a", all, http), fqdn}, []string{"10.0.0.1 http", "10.0.0.2 unready http", "10.0.0.3 http", "10.0.0.5 http"}},
		"publishNotReady":        {published, []*discoveryv1.EndpointSlice{slice("a", all[:2], http)}, []string{"10.0.0.1 http", "10.0.0.2 http"}},
		"ports in two slices":    {svc(), []*discoveryv1.EndpointSlice{slice("b", all[:1], admin), slice("a", all[:1], http)}, []string{"10.0.0.1 http admin"}},
		"port of another name":   {svc(), []*discoveryv1.EndpointSlice{slice("a", all[:1], discoveryv1.EndpointPort{Name: new("x"), Port: new(int32(1))})}, nil},
		"no slice":               {svc(), nil, nil},
		"UDP only":               {svc(), []*discoveryv1.EndpointSlice{slice("a", all[:1], discoveryv1.EndpointPort{Name: new("dns"), Port: new(int32(53)), Protocol: new(corev1.ProtocolUDP)})}, nil},
		"two ports in one slice": {svc(), []*discoveryv1.EndpointSlice{slice("a", all[:1], http, admin)}, []string{"10.0.0.1 http admin"}},
		"moving between slices":  {svc(), []*discoveryv1.EndpointSlice{slice("a", []discoveryv1.Endpoint{endpoint("10.0.0.1", new(false), nil)}, http), slice("b", all[:1], http)}, []string{"10.0.0.1 http"}},
	} {
		if got := texts(Cluster{Services: []*corev1.Service{tc.svc}, EndpointSlices: tc.slices}); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}

func TestHeadlessAndExternalName(t *testing.T) {
	headless := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}, Spec: corev1.ServiceSpec{
		ClusterIP: corev1.ClusterIPNone, ClusterIPs: []string{corev1.ClusterIPNone}, Ports: []corev1.ServicePort{{Port: 80}},
	}}
	external := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "ext"}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "example.org"}}
	got := build(t, Cluster{
		Services:       []*corev1.Service{headless, external},
		EndpointSlices: []*discoveryv1.EndpointSlice{slice("a", []discoveryv1.Endpoint{endpoint("10.0.0.1", nil, nil)}, discoveryv1.EndpointPort{Port: new(int32(80))})},
	})
	if s := got.services["shop/web"]; s == nil || len(s.Addresses) != 0 || len(s.Endpoints) != 1 {
		t.Errorf("headless service %+v", s)
	}
	if got.services["shop/ext"] != nil { // contract 3.65
		t.Error("an ExternalName service became a resource")
	}
}

// TestDeterministic: equal clusters give equal bytes, in whatever order their
// objects come, and Build changes none of them.
func TestDeterministic(t *testing.T) {
	c := largeCluster(t, 200, 50)
	before := c.Pods[7].DeepCopy()
	want, wantVerdicts := Build(c)
	r := rand.New(rand.NewPCG(1, 2))
	for range 5 {
		shuffle(r, c.Pods)
		shuffle(r, c.Services)
		shuffle(r, c.EndpointSlices)
		shuffle(r, c.PeerAuthentications)
		got, gotVerdicts := Build(c)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("resources depend on order (-first +now):\n%s", diff)
		}
		if diff := cmp.Diff(wantVerdicts, gotVerdicts); diff != "" {
			t.Fatalf("verdicts depend on order (-first +now):\n%s", diff)
		}
	}
	for _, p := range c.Pods {
		if p.Name == before.Name && p.Namespace == before.Namespace && !cmp.Equal(p, before) {
			t.Error("Build changed a pod")
		}
	}
}

func shuffle[T any](r *rand.Rand, s []T) {
	r.Shuffle(len(s), func(i, j int) { s[i], s[j] = s[j], s[i] })
}

// TestPolicies puts modes on one pod in namespace shop with labels app=web and
// looks at the mode of a port (contract §1).
// Contract 1.5.
func TestPolicies(t *testing.T) {
	pa := func(ns, name string, age int, spec string) *unstructured.Unstructured {
		return peerAuthentication(t, ns, name, age, spec)
	}
	for name, tc := range map[string]struct {
		objects []*unstructured.Unstructured
		port    uint16
		want    policy.Mode
	}{
		"1.14 nothing":                       {nil, 80, policy.Permissive},
		"1.7 mesh":                           {[]*unstructured.Unstructured{pa(root, "default", 0, "mtls: {mode: STRICT}")}, 80, policy.Strict},
		"1.7 empty matchLabels is wide":      {[]*unstructured.Unstructured{pa("shop", "x", 0, "selector: {matchLabels: {}}\nmtls: {mode: STRICT}")}, 80, policy.Strict},
		"1.9 selector in the root namespace": {[]*unstructured.Unstructured{pa(root, "x", 0, "selector: {matchLabels: {app: web}}\nmtls: {mode: STRICT}")}, 80, policy.Permissive},
		"1.10 namespace over mesh": {[]*unstructured.Unstructured{
			pa(root, "default", 0, "mtls: {mode: STRICT}"), pa("shop", "x", 1, "mtls: {mode: PERMISSIVE}"),
		}, 80, policy.Permissive},
		"1.10 port over workload over namespace": {[]*unstructured.Unstructured{
			pa("shop", "ns", 0, "mtls: {mode: PERMISSIVE}"),
			pa("shop", "w", 1, "selector: {matchLabels: {app: web}}\nmtls: {mode: STRICT}\nportLevelMtls: {\"80\": {mode: DISABLE}}"),
		}, 80, policy.Disable},
		"1.11 absent mtls inherits": {[]*unstructured.Unstructured{
			pa(root, "default", 0, "mtls: {mode: STRICT}"), pa("shop", "x", 1, "selector: {matchLabels: {app: web}}"),
		}, 80, policy.Strict},
		"1.12 UNSET port is the workload's": {[]*unstructured.Unstructured{
			pa("shop", "w", 1, "selector: {matchLabels: {app: web}}\nmtls: {mode: STRICT}\nportLevelMtls: {\"80\": {}}"),
		}, 80, policy.Strict},
		"1.16 the older namespace policy": {[]*unstructured.Unstructured{
			pa("shop", "a", 5, "mtls: {mode: STRICT}"), pa("shop", "z", 1, "mtls: {mode: DISABLE}"),
		}, 80, policy.Disable},
		"1.17 the older workload policy, whole": {[]*unstructured.Unstructured{
			pa("shop", "a", 5, "selector: {matchLabels: {app: web}}\nportLevelMtls: {\"80\": {mode: DISABLE}}"),
			pa("shop", "z", 1, "selector: {matchLabels: {app: web}}\nmtls: {mode: STRICT}"),
		}, 80, policy.Strict},
		"1.18 equal age: the name decides": {[]*unstructured.Unstructured{
			pa("shop", "b", 0, "mtls: {mode: STRICT}"), pa("shop", "a", 0, "mtls: {mode: DISABLE}"),
		}, 80, policy.Disable},
		"1.19 all pairs must match": {[]*unstructured.Unstructured{pa("shop", "x", 0, "selector: {matchLabels: {app: web, tier: front}}\nmtls: {mode: STRICT}")}, 80, policy.Permissive},
		"1.20 another namespace":    {[]*unstructured.Unstructured{pa("other", "x", 0, "mtls: {mode: STRICT}")}, 80, policy.Permissive},
		"1.26 a port of no service": {[]*unstructured.Unstructured{
			pa("shop", "w", 1, "selector: {matchLabels: {app: web}}\nportLevelMtls: {\"9999\": {mode: STRICT}}"),
		}, 9999, policy.Strict},
		"1.37 another revision's": {func() []*unstructured.Unstructured {
			u := pa("shop", "x", 0, "mtls: {mode: STRICT}")
			u.SetLabels(map[string]string{labelRevision: "canary"})
			return []*unstructured.Unstructured{u}
		}(), 80, policy.Permissive},
	} {
		pod := meshPod("shop", "web", "10.0.0.1", map[string]string{"app": "web"})
		w := build(t, Cluster{Pods: []*corev1.Pod{pod}, PeerAuthentications: tc.objects}).workloads["shop/web"]
		if got := w.Modes.Port(tc.port); got != tc.want {
			t.Errorf("contract %s: %v, want %v", name, got, tc.want)
		}
	}
}

func TestVerdicts(t *testing.T) {
	pods := []*corev1.Pod{
		meshPod("shop", "a", "10.0.0.1", map[string]string{"app": "web"}),
		meshPod("shop", "b", "10.0.0.2", map[string]string{"app": "web", "x": "y"}),
		meshPod("shop", "c", "10.0.0.3", map[string]string{"app": "web", labelTLSMode: "disabled"}),
		meshPod("other", "d", "10.0.0.4", nil),
	}
	got := build(t, Cluster{Pods: pods, PeerAuthentications: []*unstructured.Unstructured{
		peerAuthentication(t, root, "default", 0, "mtls: {mode: STRICT}"),
		peerAuthentication(t, root, "late", 9, "mtls: {mode: DISABLE}"),
		peerAuthentication(t, root, "picky", 0, "selector: {matchLabels: {app: web}}"),
		peerAuthentication(t, "shop", "web", 5, "selector: {matchLabels: {app: web}}\nmtls: {mode: STRICT}"),
		peerAuthentication(t, "shop", "y", 1, "selector: {matchLabels: {x: \"y\"}}\nmtls: {mode: STRICT}"),
		peerAuthentication(t, "shop", "bad", 0, "mtls: {mode: ALWAYS}"),
	}}).verdicts
	want := map[string]Verdict{
		root + "/default": {true, ReasonAccepted, "in force for the mesh, at 3 workloads", 3},
		root + "/late":    {false, ReasonShadowed, "default is older (or first by name) and is the one in force for the mesh: remove one of the two", 0},
		root + "/picky":   {false, ReasonNoEffect, "a selector has no effect in the root namespace d8-istio: leave it out for the whole mesh, or move the object to the pods' namespace", 0},
		"shop/web":        {true, ReasonAccepted, "in force at 1 workload; 1 selected follow an older PeerAuthentication; 1 selected have no sidecar", 1},
		"shop/y":          {true, ReasonAccepted, "in force at 1 workload", 1},
		"shop/bad":        {false, ReasonInvalid, `spec.mtls.mode: "ALWAYS" is not a mode; write one of UNSET, DISABLE, PERMISSIVE, STRICT · it is left out`, 0},
	}
	for name, v := range want {
		ns, n, _ := strings.Cut(name, "/")
		if diff := cmp.Diff(v, got[Key{KindPeerAuthentication, ns, n}]); diff != "" {
			t.Errorf("verdict on %s (-want +got):\n%s", name, diff)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d verdicts, want %d: %v", len(got), len(want), got)
	}
}

// TestLastGood: a policy that goes bad keeps its last good version in force,
// and nothing else notices.
func TestLastGood(t *testing.T) {
	pod := meshPod("shop", "a", "10.0.0.1", nil)
	bad := peerAuthentication(t, "shop", "p", 0, "mtls: {mode: ALWAYS}")
	good := peerAuthentication(t, "shop", "p", 0, "mtls: {mode: STRICT}")
	key := Key{KindPeerAuthentication, "shop", "p"}
	c := Cluster{Pods: []*corev1.Pod{pod}, PeerAuthentications: []*unstructured.Unstructured{bad}}
	if got := build(t, c).workloads["shop/a"].Modes.Default; got != policy.Permissive {
		t.Errorf("without an earlier version: %v", got)
	}
	c.LastGood = map[Key]*unstructured.Unstructured{key: good}
	got := build(t, c)
	if m := got.workloads["shop/a"].Modes.Default; m != policy.Strict {
		t.Errorf("with an earlier version: %v", m)
	}
	if v := got.verdicts[key]; v.Accepted || v.Reason != ReasonInvalid || v.Workloads != 1 {
		t.Errorf("verdict %+v", v)
	}
}

func BenchmarkBuild(b *testing.B) {
	c := largeCluster(b, 2000, 500)
	for b.Loop() {
		res, _ := Build(c)
		if len(res[wire.TypeWorkload]) != 2000 {
			b.Fatal("workloads are missing")
		}
	}
}

// TestServiceAnnotations: those of Istio's that a Service has are named, and the
// Service is in force all the same (contract 3.52).
func TestServiceAnnotations(t *testing.T) {
	svc := object[corev1.Service](t, `
metadata: {namespace: shop, name: web, annotations: {alpha.istio.io/canonical-serviceaccounts: x, networking.istio.io/exportTo: ., mine: x}}
spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}`)
	got := build(t, Cluster{Services: []*corev1.Service{svc}})
	v := got.verdicts[Key{"Service", "shop", "web"}]
	if v.Reason != ReasonIgnored || !strings.HasSuffix(v.Message, ": alpha.istio.io/canonical-serviceaccounts, networking.istio.io/exportTo") || got.services["shop/web"] == nil {
		t.Errorf("%+v", v)
	}
}
