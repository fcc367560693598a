package discovery

import (
	"fmt"
	"maps"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/settings"
	"podseal.io/podseal/internal/wire"
	"podseal.io/podseal/internal/workload"
)

const root = "d8-istio"

var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func created(seconds int) metav1.Time {
	return metav1.NewTime(epoch.Add(time.Duration(seconds) * time.Second))
}

// object reads one object from YAML into T.
func object[T any](t testing.TB, text string) *T {
	t.Helper()
	v := new(T)
	if err := yaml.UnmarshalStrict([]byte(text), v); err != nil {
		t.Fatalf("fixture: %v\n%s", err, text)
	}
	return v
}

// peerAuthentication makes one from its spec in YAML.
func peerAuthentication(t testing.TB, ns, name string, age int, spec string) *unstructured.Unstructured {
	t.Helper()
	u := &unstructured.Unstructured{Object: map[string]any{}}
	if err := yaml.Unmarshal([]byte("spec:\n"+indent(spec)), &u.Object); err != nil {
		t.Fatalf("fixture: %v", err)
	}
	u.SetAPIVersion("security.istio.io/v1")
	u.SetKind(KindPeerAuthentication)
	u.SetNamespace(ns)
	u.SetName(name)
	u.SetCreationTimestamp(created(age))
	return u
}

// authorizationPolicy makes one from its spec in YAML.
func authorizationPolicy(t testing.TB, ns, name, spec string) *unstructured.Unstructured {
	t.Helper()
	u := peerAuthentication(t, ns, name, 0, spec)
	u.SetKind(KindAuthorizationPolicy)
	return u
}

func indent(s string) string {
	out := "  "
	for _, r := range s {
		out += string(r)
		if r == '\n' {
			out += "  "
		}
	}
	return out
}

func testSettings() settings.Settings {
	return settings.Settings{ClusterDomain: "cluster.local", TrustDomain: "cluster.local", IdleTimeout: time.Hour}
}

// meshPod is a running pod with a sidecar.
func meshPod(ns, name, ip string, labels map[string]string) *corev1.Pod {
	all := map[string]string{labelTLSMode: "istio"}
	maps.Copy(all, labels)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, Labels: all, CreationTimestamp: created(0)},
		Spec:       corev1.PodSpec{ServiceAccountName: "web", NodeName: "node-1"},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}}},
	}
}

// built is what Build says, decoded.
type built struct {
	workloads map[string]*workload.Workload
	services  map[string]*workload.Service
	mesh      *workload.Mesh
	access    map[string]*policy.AuthorizationPolicy
	verdicts  Verdicts
}

func build(t testing.TB, c Cluster) built {
	t.Helper()
	if c.Settings.TrustDomain == "" {
		c.Settings = testSettings()
	}
	if c.RootNamespace == "" {
		c.RootNamespace = root
	}
	res, verdicts := Build(c)
	b := built{map[string]*workload.Workload{}, map[string]*workload.Service{}, nil, map[string]*policy.AuthorizationPolicy{}, verdicts}
	for name, body := range res[wire.TypeWorkload] {
		w, err := wire.ParseWorkload(body)
		if err != nil {
			t.Fatalf("workload %s: %v", name, err)
		}
		b.workloads[name] = w
	}
	for name, body := range res[wire.TypeService] {
		s, err := wire.ParseService(body)
		if err != nil {
			t.Fatalf("service %s: %v", name, err)
		}
		b.services[name] = s
	}
	for name, body := range res[wire.TypeAuthorizationPolicy] {
		p, err := wire.ParseAuthorizationPolicy(body)
		if err != nil {
			t.Fatalf("authorization policy %s: %v", name, err)
		}
		b.access[name] = p
	}
	m, err := wire.ParseMesh(res[wire.TypeMesh][MeshName])
	if err != nil {
		t.Fatalf("mesh: %v", err)
	}
	b.mesh = m
	return b
}

// largeCluster has that many pods, services and endpoints, in ten namespaces.
func largeCluster(t testing.TB, pods, services int) Cluster {
	c := Cluster{Settings: testSettings(), RootNamespace: root}
	perService := pods / services
	for i := range services {
		ns, app := fmt.Sprintf("ns-%d", i%10), fmt.Sprintf("app-%d", i)
		c.Services = append(c.Services, &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: app, CreationTimestamp: created(i)},
			Spec: corev1.ServiceSpec{
				ClusterIPs: []string{fmt.Sprintf("10.96.%d.%d", i/250, i%250+1)},
				Selector:   map[string]string{"app": app},
				Ports:      []corev1.ServicePort{{Name: "http", Port: 80}, {Name: "grpc-api", Port: 9090}},
			},
		})
		slice := &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Namespace: ns, Name: app + "-x", Labels: map[string]string{discoveryv1.LabelServiceName: app}},
			AddressType: discoveryv1.AddressTypeIPv4,
			Ports:       []discoveryv1.EndpointPort{{Name: new("http"), Port: new(int32(80))}, {Name: new("grpc-api"), Port: new(int32(9090))}},
		}
		for j := range perService {
			n := i*perService + j
			ip := fmt.Sprintf("10.244.%d.%d", n/250, n%250+1)
			c.Pods = append(c.Pods, meshPod(ns, fmt.Sprintf("%s-%d", app, j), ip, map[string]string{"app": app, "version": "v1", "tier": "backend"}))
			slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{ip}, Conditions: discoveryv1.EndpointConditions{Ready: new(true)}})
		}
		c.EndpointSlices = append(c.EndpointSlices, slice)
	}
	c.PeerAuthentications = append(c.PeerAuthentications, peerAuthentication(t, root, "default", 0, "mtls: {mode: STRICT}"))
	for i := range 50 {
		c.PeerAuthentications = append(c.PeerAuthentications, peerAuthentication(t, fmt.Sprintf("ns-%d", i%10), fmt.Sprintf("p-%d", i), i,
			fmt.Sprintf("selector: {matchLabels: {app: app-%d}}\nmtls: {mode: PERMISSIVE}\nportLevelMtls: {\"80\": {mode: DISABLE}}", i)))
	}
	return c
}
