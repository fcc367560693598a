package discovery

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/wire"
	"podseal.io/podseal/internal/workload"
)

func entry(t testing.TB, ns, name string, age int, spec string) *unstructured.Unstructured {
	t.Helper()
	u := peerAuthentication(t, ns, name, age, spec)
	u.SetAPIVersion("networking.istio.io/v1")
	u.SetKind(KindServiceEntry)
	return u
}

func TestValidateServiceEntry(t *testing.T) {
	const port = "ports: [{number: 443, name: tls, protocol: TLS}]\n"
	const host = "hosts: [api.example.com]\n"
	for name, tc := range map[string]struct {
		spec             string
		faults, warnings []string
	}{
		"plain":            {host + port + "resolution: DNS\nlocation: MESH_EXTERNAL\nsubjectAltNames: [a]\nexportTo: [.]", nil, nil},
		"wildcard":         {`hosts: ["*.example.com"]` + "\n" + port, nil, nil},
		"nothing":          {"{}", []string{"spec.hosts", "spec.ports"}, nil},
		"hosts":            {"hosts: ['*', 10.0.0.1, 'a b', a.*]\n" + port, []string{"spec.hosts[0]", "spec.hosts[1]", "spec.hosts[2]", "spec.hosts[3]"}, nil},
		"a Service":        {"hosts: [web.shop.svc.cluster.local]\n" + port, nil, []string{"spec.hosts[0]"}},
		"addresses":        {host + port + "addresses: [192.0.2.1, 2001:db8::/32, x, 'fe80::1%eth0', '::ffff:1.2.3.0/120']", []string{"spec.addresses[2]", "spec.addresses[3]", "spec.addresses[4]"}, nil},
		"network and DNS":  {host + port + "addresses: [192.0.2.0/24]\nresolution: DNS", []string{"spec.addresses"}, nil},
		"words":            {host + port + "resolution: X\nlocation: Y", []string{"spec.location", "spec.resolution"}, nil},
		"dynamic":          {host + port + "resolution: DYNAMIC_DNS", nil, []string{"spec.resolution"}},
		"ports":            {host + "ports: [{}, {number: 1, name: a, protocol: X}, {number: 1, name: a, protocol: HTTP}, {number: 2, protocol: HTTP}, {number: 3, name: a, protocol: HTTP}, {number: 53, name: u, protocol: UDP}]", []string{"spec.ports[0].number", "spec.ports[1].protocol", "spec.ports[2].number", "spec.ports[3].name", "spec.ports[4].name"}, []string{"spec.ports[5]", "spec.ports[0]"}},
		"a port for all":   {host + "ports: [{number: 5432, name: tcp, protocol: TCP}]", nil, []string{"spec.ports[0]"}},
		"with addresses":   {host + "addresses: [240.0.0.1]\nports: [{number: 5432, name: tcp, protocol: TCP}]", nil, nil},
		"unresolvable":     {`hosts: ["*.example.com"]` + "\nresolution: DNS\n" + port, []string{"spec.hosts"}, nil},
		"NONE is no place": {host + port + "endpoints: [{address: 192.0.2.1}]", []string{"spec.endpoints"}, nil},
		"nobody":           {host + port + "resolution: STATIC", nil, []string{"spec.endpoints"}},
		"both":             {host + port + "resolution: STATIC\nendpoints: [{address: 192.0.2.1}]\nworkloadSelector: {labels: {a: b}}", []string{"spec.endpoints"}, nil},
		"pods by DNS":      {host + port + "resolution: DNS\nworkloadSelector: {labels: {a: b}}", []string{"spec.resolution"}, nil},
		"selector":         {host + port + "resolution: STATIC\nworkloadSelector: {matchLabels: {a: b}}", []string{"spec.workloadSelector.labels"}, []string{"spec.workloadSelector.matchLabels"}},
		"round robin":      {host + port + "resolution: DNS_ROUND_ROBIN\nendpoints: [{address: a.example}, {address: b.example}]", []string{"spec.endpoints"}, nil},
		"endpoints":        {host + port + "resolution: STATIC\nendpoints: [{address: a.example}, {address: unix:///x}, {address: 192.0.2.1, ports: {tls: 1, x: 2}, weight: 5, network: n, locality: l}, {address: 192.0.2.2, ports: {tls: 0}}]", []string{"spec.endpoints[0].address", "spec.endpoints[1].address", `spec.endpoints[2].ports["x"]`, `spec.endpoints[3].ports["tls"]`}, []string{"spec.endpoints[2].network", "spec.endpoints[2].locality", "spec.endpoints[2].weight"}},
		"endpoints by DNS": {host + port + "resolution: DNS\nendpoints: [{address: A.example}, {address: 192.0.2.1}, {address: 'a b'}]", []string{"spec.endpoints[2].address"}, nil},
		"wrong shapes":     {"hosts: x\nports: [1]\naddresses: {}\nendpoints: [1]\nworkloadSelector: []\nresolution: 1\nfoo: 1", []string{"spec.resolution", "spec.hosts", "spec.addresses", "spec.ports[0]", "spec.ports", "spec.workloadSelector", "spec.endpoints[0]"}, []string{"spec.foo"}},
	} {
		faults, warnings := ValidateServiceEntry(entry(t, "shop", "e", 0, tc.spec), "cluster.local")
		if diff := cmp.Diff(tc.faults, paths(faults, func(f Fault) string { return f.Field })); diff != "" {
			t.Errorf("%s: faults (-want +got):\n%s", name, diff)
		}
		if diff := cmp.Diff(tc.warnings, paths(warnings, func(w string) string { return strings.SplitN(w, ": ", 2)[0] })); diff != "" {
			t.Errorf("%s: warnings (-want +got):\n%s", name, diff)
		}
	}
}

// TestServiceEntries builds entries and says what becomes of each (contract 3.12,
// 3.35, 3.59).
func TestServiceEntries(t *testing.T) {
	ready := func(p *corev1.Pod) *corev1.Pod {
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		return p
	}
	c := Cluster{
		Pods: []*corev1.Pod{
			ready(meshPod("shop", "b", "10.0.0.2", map[string]string{"app": "a"})), ready(meshPod("shop", "a", "10.0.0.1", map[string]string{"app": "a"})),
			meshPod("shop", "late", "10.0.0.3", map[string]string{"app": "a"}), ready(meshPod("bank", "a", "10.0.0.4", map[string]string{"app": "a"})),
		},
		ServiceEntries: []*unstructured.Unstructured{
			entry(t, "shop", "full", 1, "hosts: [API.example.com, '*.b.example']\naddresses: [240.0.0.1]\nresolution: DNS\nexportTo: [., bank]\nsubjectAltNames: [x]\nports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}, {number: 443, name: tls, protocol: HTTPS}, {number: 5432, name: db, protocol: TCP}, {number: 1, name: any}]\nendpoints: [{address: c.example, ports: {http: 81}}]"),
			entry(t, "shop", "pods", 1, "hosts: [in.example]\nlocation: MESH_INTERNAL\nresolution: STATIC\nworkloadSelector: {labels: {app: a}}\nports: [{number: 80, name: http, protocol: HTTP}]"),
			entry(t, "shop", "vm", 1, "hosts: [vm.example]\nlocation: MESH_INTERNAL\nresolution: STATIC\nports: [{number: 80, name: http, protocol: HTTP}]\nendpoints: [{address: 192.0.2.1, serviceAccount: vm, labels: {security.istio.io/tlsMode: istio}}, {address: 192.0.2.2, serviceAccount: vm}]"),
			entry(t, "shop", "bad", 1, "hosts: []"),
		},
		DestinationRules: []*unstructured.Unstructured{rule(t, "shop", "out", 1, "host: api.example.com\ntrafficPolicy: {tls: {mode: SIMPLE, caCertificates: /c}}")},
	}
	theirs := entry(t, "shop", "theirs", 1, "hosts: [a.example]\nports: [{number: 80, name: http, protocol: HTTP}]")
	theirs.SetLabels(map[string]string{labelRevision: "canary"})
	c.ServiceEntries = append(c.ServiceEntries, theirs)
	c.Settings, c.RootNamespace = testSettings(), root
	res, verdicts := Build(c)
	got := map[string]*workload.Entry{}
	for name, body := range res[wire.TypeServiceEntry] {
		e, err := wire.ParseServiceEntry(body)
		if err != nil {
			t.Fatal(err)
		}
		got[name] = e
	}
	all := cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
	addr := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	id := cmp.Comparer(func(a, b identity.ID) bool { return a == b })
	want := &workload.Entry{
		Namespace: "shop", Name: "full", Hosts: []string{"api.example.com", "*.b.example"}, Addresses: []netip.Prefix{netip.MustParsePrefix("240.0.0.1/32")}, External: true,
		Resolution: workload.ResolveDNS, ExportTo: []string{"shop", "bank"}, SubjectAltNames: []string{"x"}, Created: created(1).UTC(),
		Ports: []workload.EntryPort{
			{Port: 80, Target: 8080, Protocol: policy.HTTP, Naming: workload.NamedByHost},
			{Port: 443, Target: 443, Protocol: policy.TCP, Naming: workload.NamedBySNI},
			{Port: 5432, Target: 5432, Protocol: policy.TCP},
			{Port: 1, Target: 1, Naming: workload.NamedByEither},
		},
		Endpoints: []workload.EntryEndpoint{{Name: "c.example", Targets: map[uint16]uint16{80: 81}}},
	}
	if diff := cmp.Diff(want, got["shop/full"], all, addr, id); diff != "" {
		t.Error(diff)
	}
	pods := []workload.EntryEndpoint{{Address: netip.MustParseAddr("10.0.0.1"), Workload: "shop/a"}, {Address: netip.MustParseAddr("10.0.0.2"), Workload: "shop/b"}}
	if e := got["shop/pods"]; e == nil || e.External || cmp.Diff(pods, e.Endpoints, addr, id) != "" {
		t.Errorf("ready pods of the namespace: %+v", e)
	}
	if e := got["shop/vm"]; e == nil || e.Endpoints[0].Identity.String() != "cluster.local/ns/shop/sa/vm" || !e.Endpoints[0].Mesh || e.Endpoints[1].Mesh || !e.Endpoints[1].Identity.IsZero() {
		t.Errorf("who has a proxy: %+v", e)
	}
	if got["shop/bad"] != nil || got["shop/theirs"] != nil {
		t.Error("in force: a wrong one, or another revision's")
	}
	for key, want := range map[Key]Verdict{
		{KindServiceEntry, "shop", "full"}:   {Accepted: true, Reason: ReasonAccepted, Message: "in force for api.example.com, *.b.example"},
		{KindServiceEntry, "shop", "pods"}:   {Accepted: true, Reason: ReasonAccepted, Workloads: 2, Message: "in force for in.example, at 2 workloads"},
		{KindServiceEntry, "shop", "bad"}:    {Reason: ReasonInvalid, Message: "spec.hosts: is missing or empty; name at least one host · spec.ports: is missing or empty; name at least one port · it is left out"},
		{KindDestinationRule, "shop", "out"}: {Accepted: true, Reason: ReasonAccepted, Message: "in force for api.example.com, services of that name: 1"},
	} {
		if diff := cmp.Diff(want, verdicts[key]); diff != "" {
			t.Errorf("%s (-want +got):\n%s", key, diff)
		}
	}
	c.LastGood = map[Key]*unstructured.Unstructured{{KindServiceEntry, "shop", "bad"}: theirs}
	if res, verdicts := Build(c); res[wire.TypeServiceEntry]["shop/theirs"] == nil || !strings.Contains(verdicts[Key{KindServiceEntry, "shop", "bad"}].Message, "stays in force") {
		t.Error("the last good version is gone")
	}
}

// FuzzValidateServiceEntry: whatever JSON comes, it is judged, and what is judged
// good can be told to proxies.
func FuzzValidateServiceEntry(f *testing.F) {
	for _, s := range []string{
		`{"spec":{"hosts":["a.example"],"addresses":["10.0.0.0/8"],"ports":[{"number":80,"name":"a","protocol":"HTTP","targetPort":8080}],"resolution":"STATIC","endpoints":[{"address":"10.0.0.1","ports":{"a":1},"serviceAccount":"x","labels":{"security.istio.io/tlsMode":"istio"}}]}}`,
		`{"spec":{"hosts":["*.a"],"ports":[{"number":80,"name":"a"}],"exportTo":["."]}}`, `{}`, `{"spec":[]}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		u := &unstructured.Unstructured{}
		if json.Unmarshal(b, &u.Object) != nil {
			return
		}
		u.SetNamespace("shop")
		u.SetName("e")
		e, r := readServiceEntry(u, "cluster.local")
		if len(r.faults) > 0 {
			return
		}
		e.identify("cluster.local")
		if _, err := wire.AppendServiceEntry(nil, e.entry); err != nil {
			t.Error(err)
		}
	})
}
