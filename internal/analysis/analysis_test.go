package analysis

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"podseal.io/podseal/internal/discovery"
	"podseal.io/podseal/internal/settings"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// shop has a service of two ports, one of them TCP, and the pod behind it.
const shop = `
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio-injection: enabled}}
---
apiVersion: v1
kind: Service
metadata: {name: api, namespace: shop}
spec:
  selector: {app: api}
  clusterIP: 10.96.0.1
  ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp-db, port: 5432}]
---
apiVersion: v1
kind: Pod
metadata: {name: api-1, namespace: shop, labels: {app: api, security.istio.io/tlsMode: istio}}
spec: {serviceAccountName: api, containers: [{name: app}]}
status: {phase: Running, podIP: 10.0.0.1}
`

// input reads objects as a cluster that has them.
func input(t *testing.T, text string) Input {
	t.Helper()
	in := Input{Now: now, Cluster: discovery.Cluster{Settings: settings.Default(""), RootNamespace: settings.Namespace}, Files: map[discovery.Key]string{}}
	for doc := range strings.SplitSeq(text, "\n---\n") {
		obj := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(doc), &obj.Object); err != nil {
			t.Fatal(err)
		}
		into := func(v any) {
			if err := yaml.Unmarshal([]byte(doc), v); err != nil {
				t.Fatal(err)
			}
		}
		switch obj.GetKind() {
		case "Namespace":
			in.Namespaces = append(in.Namespaces, &corev1.Namespace{})
			into(in.Namespaces[len(in.Namespaces)-1])
		case "Service":
			in.Services = append(in.Services, &corev1.Service{})
			into(in.Services[len(in.Services)-1])
		case "Pod":
			in.Pods = append(in.Pods, &corev1.Pod{})
			into(in.Pods[len(in.Pods)-1])
		default:
			if list := in.PoliciesOf(obj.GetKind()); list != nil {
				*list = append(*list, obj)
			} else {
				in.Unhonoured = append(in.Unhonoured, obj)
			}
		}
	}
	return in
}

func written(kind, ns, name, spec string, annotations ...string) string {
	return "\n---\napiVersion: security.istio.io/v1\nkind: " + kind + "\nmetadata: {namespace: " + ns + ", name: " + name + ", annotations: {" + strings.Join(annotations, ",") + "}}\nspec: " + spec + "\n"
}

const strictShop = "{mtls: {mode: STRICT}}"

func TestAnalyze(t *testing.T) {
	pod := func(name, labels, annotations, spec string) string {
		return "\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: " + name + ", namespace: shop, labels: {" + labels + "}, annotations: {" + annotations + "}}\nspec: " + spec + "\nstatus: {phase: Running, podIP: 10.0.0.9}\n"
	}
	const meshed = "app: x, security.istio.io/tlsMode: istio"
	for name, tc := range map[string]struct {
		objects string
		want    []string // code, level, a part of the text
	}{
		"nothing wrong":                   {"", nil},
		"a selector that selects nothing": {written("PeerAuthentication", "shop", "p", "{selector: {matchLabels: {app: none}}}"), []string{"IST0127 Warning no running pod of the mesh has the labels app=none"}},
		"a port that is the Service's":    {written("PeerAuthentication", "shop", "p", "{selector: {matchLabels: {app: api}}, portLevelMtls: {80: {mode: STRICT}}}"), []string{"PDS0102 Warning spec.portLevelMtls: no service leads to port 80 of the pods that it is for; 80 is the Service's port, and the pod's own is 8080"}},
		"a port of a rule":                {written("AuthorizationPolicy", "shop", "p", `{action: DENY, rules: [{to: [{operation: {ports: ["81", "8080"]}}]}]}`), []string{"PDS0102 Warning to.operation.ports: no service leads to port 81"}},
		"HTTP rules on a TCP port":        {written("AuthorizationPolicy", "shop", "p", `{rules: [{to: [{operation: {methods: [GET]}}]}]}`), []string{"IST0133 Warning", "PDS0103 Warning in force for namespace shop, at 1 workload; on port 5432, declared as TCP"}},
		"a selector in the root":          {written("PeerAuthentication", "d8-istio", "p", "{selector: {matchLabels: {app: api}}, mtls: {mode: STRICT}}"), []string{"IST0133 Warning", "PDS0101 Warning a selector has no effect in the root namespace"}},
		"a second one of a namespace":     {written("PeerAuthentication", "shop", "a", strictShop) + written("PeerAuthentication", "shop", "b", strictShop), []string{"PDS0101 Error a is older (or first by name)"}},
		"DISABLE beneath STRICT":          {written("PeerAuthentication", "d8-istio", "mesh", strictShop) + written("PeerAuthentication", "shop", "p", "{mtls: {mode: DISABLE}}"), []string{"PDS0104 Warning mode DISABLE lets in plaintext where the object above it says STRICT"}},
		"PERMISSIVE for one of STRICT":    {written("PeerAuthentication", "shop", "ns", strictShop) + written("PeerAuthentication", "shop", "p", "{selector: {matchLabels: {app: api}}, mtls: {mode: PERMISSIVE}}"), []string{"PDS0104 Info"}},
		"DISABLE beneath PERMISSIVE":      {written("PeerAuthentication", "shop", "p", "{mtls: {mode: DISABLE}}"), nil},
		"what the schema doesn't know":    {written("PeerAuthentication", "shop", "p", "{mtl: {mode: STRICT}}"), []string{"IST0133 Warning spec.mtl: unknown field"}},
		"what is wrong":                   {written("PeerAuthentication", "shop", "p", "{mtls: {mode: YES}}"), []string{"IST0106 Error spec.mtls.mode"}},
		"suppressed":                      {written("PeerAuthentication", "shop", "p", "{mtl: {}}", `galley.istio.io/analyze-suppress: "IST0001, IST0133"`), nil},
		"a rule towards STRICT":           {written("PeerAuthentication", "shop", "p", strictShop) + written("DestinationRule", "shop", "r", "{host: api, trafficPolicy: {tls: {mode: DISABLE}}}"), []string{"IST0113 Error it says DISABLE for shop/api, whose port 5432 is STRICT", "IST0113 Error it says DISABLE for shop/api, whose port 8080 is STRICT", "IST0133 Warning"}},
		"a rule towards PERMISSIVE":       {written("DestinationRule", "shop", "r", "{host: api, trafficPolicy: {tls: {mode: DISABLE}}}"), []string{"IST0133 Warning"}},
		"a host that nobody has":          {written("DestinationRule", "shop", "r", "{host: apj}"), []string{"PDS0101 Warning no Service"}},
		"a kind without effect":           {written("EnvoyFilter", "shop", "f", "{}"), []string{"PDS0107 Warning Podseal does not honour EnvoyFilter"}},
		"a pod without a proxy":           {pod("old", "app: x", "", "{serviceAccountName: x}"), []string{"IST0103 Warning its namespace is in the mesh and it has no proxy"}},
		"one that wants none":             {pod("old", `app: x, sidecar.istio.io/inject: "false"`, "", "{serviceAccountName: x}"), nil},
		"one on the node's network":       {pod("agent", "app: x", "", "{serviceAccountName: x, hostNetwork: true}"), []string{"PDS0106 Warning it uses the network of its node"}},
		"user 1337":                       {pod("x", meshed, "", "{serviceAccountName: x, securityContext: {runAsUser: 1337}, containers: [{name: istio-proxy}, {name: app}, {name: fine, securityContext: {runAsUser: 5}}]}"), []string{"IST0144 Warning container app runs as user 1337"}},
		"excluded ports":                  {pod("x", "app: api, security.istio.io/tlsMode: istio", `traffic.sidecar.istio.io/excludeInboundPorts: "8080", traffic.sidecar.istio.io/excludeOutboundPorts: "3306"`, "{serviceAccountName: x}"), []string{"PDS0105 Warning a service leads to port 8080, which is excluded", "PDS0105 Info annotation traffic.sidecar.istio.io/excludeOutboundPorts: what it sends to 3306"}},
		"a namespace outside":             {"\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: bank}\n", []string{"IST0102 Info"}},
		"a namespace with both labels":    {"\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: bank, labels: {istio-injection: enabled, istio.io/rev: x}}\n", []string{"IST0123 Warning"}},
		"a port whose name says nothing":  {"\n---\napiVersion: v1\nkind: Service\nmetadata: {name: x, namespace: shop}\nspec: {selector: {app: x}, ports: [{name: web, port: 80}]}\n", []string{"IST0118 Info port 80: its name \"web\" says no protocol"}},
		"refused by a proxy":              {written("AuthorizationPolicy", "shop", "p", "{}") + "status: {conditions: [{type: Enforced, reason: Rejected, message: refused by shop/api-1}]}\n", []string{"PDS0109 Error refused by shop/api-1"}},
	} {
		got := Analyze(input(t, shop[1:]+tc.objects))
		if len(got) != len(tc.want) {
			t.Errorf("%s: %+v", name, got)
			continue
		}
		for i, m := range got {
			if line := m.Code + " " + string(m.Level) + " " + m.Text; !strings.HasPrefix(line, tc.want[i]) {
				t.Errorf("%s: %q, want %q", name, line, tc.want[i])
			}
		}
	}
}

// What may stand elsewhere is no finding in files.
func TestPartial(t *testing.T) {
	in := input(t, strings.TrimPrefix(written("PeerAuthentication", "shop", "p", "{selector: {matchLabels: {app: none}}}")+written("DestinationRule", "shop", "r", "{host: elsewhere}")+
		"\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: bank}\n", "\n---\n"))
	in.Partial = true
	if got := Analyze(in); len(got) != 0 {
		t.Errorf("%+v", got)
	}
}

func TestMeshItself(t *testing.T) {
	in := Input{Now: now, Cluster: discovery.Cluster{Settings: settings.Default("")}, Webhooks: []Webhook{{"W", "good", ""}, {"W", "bad", "broken"}}, Roots: []Root{
		{"a", now.Add(365 * 24 * time.Hour)}, {"b", now.Add(10 * 24 * time.Hour)}, {"c", now.Add(-time.Hour)},
	}}
	var got []string
	for _, m := range Analyze(in) {
		got = append(got, m.Code+" "+string(m.Level)+" "+m.Name)
	}
	if strings.Join(got, ", ") != "IST0139 Error bad, PDS0108 Error c, PDS0108 Warning b" {
		t.Error(got)
	}
	if !Error.AtLeast(Warning) || Info.AtLeast(Warning) || !Info.AtLeast(Info) {
		t.Error("levels are out of order")
	}
}
