package discovery

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/wire"
	"podseal.io/podseal/internal/workload"
)

// TestValidateAuthorizationPolicy is contract 6.45, 6.46 and what of 6.7, 6.14,
// 6.15, 6.22-6.24 is about admission.
// Contract 6.7, 6.14, 6.15, 6.22-6.24.
func TestValidateAuthorizationPolicy(t *testing.T) {
	operation := func(fields string) string { return "rules: [{to: [{operation: {" + fields + "}}]}]" }
	source := func(fields string) string { return "rules: [{from: [{source: {" + fields + "}}]}]" }
	when := func(fields string) string { return "rules: [{when: [{" + fields + "}]}]" }
	custom := "action: CUSTOM\nprovider: {name: opa}\n"
	tests := []struct {
		spec   string
		faults []string // their fields
		says   string   // something of the first fault
	}{
		{"{}", nil, ""},
		{"action: ALLOW\nrules: [{}]", nil, ""},
		{"selector: {matchLabels: {a: b}}\ntargetRef: {group: gateway.networking.k8s.io, kind: Gateway, name: g}", []string{"spec.targetRef"}, "only one of selector and targetRef"},
		{"targetRefs: [{kind: Service, name: x, group: \"\"}]\ntargetRef: {kind: Service, name: x}", []string{"spec.targetRefs"}, "keep one"},
		{"selector: {matchLabels: {\"\": b}}", []string{`spec.selector.matchLabels[""]`}, "key is empty"},
		{"selector: {matchLabels: {a: \"*\"}}", []string{`spec.selector.matchLabels["a"]`}, "wildcards"},
		{"action: deny\nrules: [{}]", []string{"spec.action"}, "ALLOW, DENY, AUDIT, CUSTOM"},
		{"action: 1", []string{"spec.action"}, "not an action"},
		{"action: DENY", []string{"spec.rules"}, "at least one rule"},
		{custom, []string{"spec.rules"}, "at least one rule"},
		{"action: CUSTOM\nrules: [{}]", []string{"spec.provider.name"}, "has no provider"},
		{"provider: {name: opa}", []string{"spec.provider"}, "only action CUSTOM"},
		{"rules: [null]", []string{"spec.rules[0]"}, "{}"},
		{"rules: [{from: []}]", []string{"spec.rules[0].from"}, "empty"},
		{"rules: [{to: []}]", []string{"spec.rules[0].to"}, "empty"},
		{"rules: [{when: []}]", []string{"spec.rules[0].when"}, "empty"},
		{"rules: [{from: [{}]}]", []string{"spec.rules[0].from[0].source"}, "empty"},
		{"rules: [{from: [{source: {principals: []}}]}]", []string{"spec.rules[0].from[0].source"}, "empty"},
		{"rules: [{to: [{operation: {}}]}]", []string{"spec.rules[0].to[0].operation"}, "empty"},
		{source("principals: [\"\"]"), []string{"spec.rules[0].from[0].source.principals[0]"}, "is empty"},
		{source("ipBlocks: [10.0.0.0/33, 1.2.3]"), []string{"spec.rules[0].from[0].source.ipBlocks[0]", "spec.rules[0].from[0].source.ipBlocks[1]"}, "10.0.0.0/33"},
		{source("notRemoteIpBlocks: [x]"), []string{"spec.rules[0].from[0].source.notRemoteIpBlocks[0]"}, "not an IP address"},
		{source("serviceAccounts: [a], namespaces: [b]"), []string{"spec.rules[0].from[0].source.serviceAccounts"}, "beside namespaces"},
		{source("serviceAccounts: [" + strings.Repeat("a,", 17) + "]"), []string{"spec.rules[0].from[0].source.serviceAccounts"}, "at most 16"},
		{source("serviceAccounts: [\"a*\"]"), []string{"spec.rules[0].from[0].source.serviceAccounts[0]"}, "wildcard"},
		{source("trustDomains: [\"a*b*\"]"), []string{"spec.rules[0].from[0].source.trustDomains[0]"}, "more than one"},
		{operation("ports: [\"80\", \"65536\", http]"), []string{"spec.rules[0].to[0].operation.ports[1]", "spec.rules[0].to[0].operation.ports[2]"}, "not a port number"},
		{operation("ports: [80]"), []string{"spec.rules[0].to[0].operation.ports[0]"}, "in quotes"},
		{operation("paths: [\"/{a}\"]"), []string{"spec.rules[0].to[0].operation.paths[0]"}, "braces"},
		{operation("notPaths: [\"/{**}/{*}\"]"), []string{"spec.rules[0].to[0].operation.notPaths[0]"}, "last operator"},
		{when("key: \"\", values: [x]"), []string{"spec.rules[0].when[0].key"}, "not known"},
		{when("key: source.pod, values: [x]"), []string{"spec.rules[0].when[0].key"}, "source.pod"},
		{when("key: source.ip"), []string{"spec.rules[0].when[0]"}, "neither"},
		{when("key: source.ip, values: [x]"), []string{"spec.rules[0].when[0].values[0]"}, "not an IP address"},
		{when("key: destination.port, notValues: [x]"), []string{"spec.rules[0].when[0].notValues[0]"}, "not a port number"},
		{when("key: request.headers, values: [x]"), []string{"spec.rules[0].when[0].key"}, "request.headers[name]"},
		{custom + source("principals: [a], ipBlocks: [10.0.0.1]"), []string{"spec.rules[0].from[0].source.principals"}, "CUSTOM"},
		{custom + source("notNamespaces: [a]"), []string{"spec.rules[0].from[0].source.notNamespaces"}, "CUSTOM"},
		{custom + when("key: \"request.auth.claims[a]\", values: [x]"), []string{"spec.rules[0].when[0].values"}, "CUSTOM"},
		{custom + operation("hosts: [a]"), nil, ""},
		{"targetRef: {kind: Pod, name: x}", []string{"spec.targetRef.kind"}, "use spec.selector"},
		{"targetRef: {kind: Service, namespace: other}", []string{"spec.targetRef.name", "spec.targetRef.namespace"}, "empty"},
		{"rules: [" + strings.Repeat("{},", 513) + "]", []string{"spec.rules"}, "at most 512"},
		{"action: DENY\nprovider: {name: x}\nrules: [{from: []}, {to: [{operation: {ports: [x]}}]}]", []string{"spec.provider", "spec.rules[0].from", "spec.rules[1].to[0].operation.ports[0]"}, ""},
	}
	for _, tt := range tests {
		faults, _ := ValidateAuthorizationPolicy(authorizationPolicy(t, "shop", "p", tt.spec), root)
		var fields []string
		for _, f := range faults {
			fields = append(fields, f.Field)
			if f.Problem == "" || f.Remedy == "" {
				t.Errorf("%s: %+v says too little", tt.spec, f)
			}
		}
		if !slices.Equal(fields, tt.faults) || (len(faults) > 0 && !strings.Contains(faults[0].String(), tt.says)) {
			t.Errorf("%.200s\ngot  %s\nwant %s with %q", tt.spec, Describe(faults), tt.faults, tt.says)
		}
	}
}

// TestAuthorizationPolicyWarnings: what its author may not expect.
func TestAuthorizationPolicyWarnings(t *testing.T) { // contract 6.2, 6.33, 6.34, 6.42-6.44
	dry := func(value string, u *unstructured.Unstructured) *unstructured.Unstructured {
		u.SetAnnotations(map[string]string{"istio.io/dry-run": value})
		return u
	}
	get := "rules: [{to: [{operation: {methods: [GET]}}]}]"
	tests := []struct {
		obj  *unstructured.Unstructured
		want []string // one of each warning
	}{
		{authorizationPolicy(t, "shop", "p", "rules: [{from: [{source: {principals: [a]}}]}]"), nil},
		{authorizationPolicy(t, "shop", "p", "selector: {}"), []string{"has no labels"}},
		{authorizationPolicy(t, "istio-system", "p", "{}"), []string{"not the root namespace"}},
		{authorizationPolicy(t, "shop", "p", "colour: red"), []string{"spec.colour: unknown field"}},
		{authorizationPolicy(t, "shop", "p", "targetRef: {group: \"\", kind: Service, name: x}"), []string{"targetRef"}},
		{authorizationPolicy(t, "shop", "p", get), []string{"it allows nothing"}},
		{authorizationPolicy(t, "shop", "p", "action: DENY\n"+get), []string{"denies every connection; name the HTTP ports"}},
		{authorizationPolicy(t, "shop", "p", "action: AUDIT\n"+get), []string{"notes every connection"}},
		{authorizationPolicy(t, "shop", "p", "action: DENY\nrules: [{to: [{operation: {methods: [GET], ports: [\"80\"]}}]}]"), []string{"(destination.port): there it denies whatever matches that"}},
		{authorizationPolicy(t, "shop", "p", "action: CUSTOM\nprovider: {name: x}\nrules: [{}]"), []string{"not among extensionProviders"}},
		{authorizationPolicy(t, "shop", "p", "rules: [{from: [{source: {requestPrincipals: [\"*\"]}}]}]"), []string{"allows nothing"}},
		{authorizationPolicy(t, "shop", "p", "rules: [{when: [{key: \"experimental.envoy.filters.network.mysql_proxy[db.table]\", values: [\"[x]\"]}]}]"), []string{"filters of Envoy"}},
		{dry("yes", authorizationPolicy(t, "shop", "p", "{}")), []string{"neither true nor false"}},
		{dry("true", authorizationPolicy(t, "shop", "p", "{}")), nil},
		{dry("true", authorizationPolicy(t, "shop", "p", "action: AUDIT\nrules: [{}]")), []string{"no effect on action AUDIT"}},
	}
	for _, tt := range tests {
		faults, warnings := ValidateAuthorizationPolicy(tt.obj, root)
		ok := len(faults) == 0 && len(warnings) == len(tt.want)
		for i := range tt.want {
			ok = ok && strings.Contains(warnings[i], tt.want[i])
		}
		if !ok {
			t.Errorf("%v: faults %s, warnings %q, want %q", tt.obj.Object["spec"], Describe(faults), warnings, tt.want)
		}
	}
}

// TestAuthorizationScope: who is told of which policy.
func TestAuthorizationScope(t *testing.T) { // contract 6.1, 6.2, 1.37
	web := map[string]string{"app": "web"}
	other := authorizationPolicy(t, "shop", "other-revision", "{}")
	other.SetLabels(map[string]string{labelRevision: "canary"})
	b := build(t, Cluster{
		Pods: []*corev1.Pod{meshPod("shop", "web-1", "10.0.0.1", web), meshPod("shop", "db-1", "10.0.0.2", nil), meshPod("bank", "web-1", "10.0.0.3", web)},
		AuthorizationPolicies: []*unstructured.Unstructured{
			authorizationPolicy(t, root, "mesh", "{}"), authorizationPolicy(t, root, "web-everywhere", "selector: {matchLabels: {app: web}}"),
			authorizationPolicy(t, "shop", "all", "rules: [{}]"), authorizationPolicy(t, "shop", "web", "selector: {matchLabels: {app: web}}"),
			authorizationPolicy(t, "shop", "target", "targetRef: {kind: Service, name: x}"), other,
		},
	})
	for key, want := range map[string]policy.Scope{root + "/mesh": policy.Mesh, root + "/web-everywhere": policy.MeshWorkloads, "shop/all": policy.Namespace, "shop/web": policy.Workloads} {
		if p := b.access[key]; p == nil || p.Scope != want {
			t.Errorf("%s: %+v, want scope %v", key, p, want)
		}
	}
	if len(b.access) != 4 {
		t.Errorf("%d policies are told, want 4", len(b.access))
	}
	for uid, want := range map[string][]string{"shop/web-1": {root + "/web-everywhere", "shop/web"}, "shop/db-1": nil, "bank/web-1": {root + "/web-everywhere"}} {
		if got := b.workloads[uid].Policies; !slices.Equal(got, want) {
			t.Errorf("%s follows %q, want %q", uid, got, want)
		}
	}
	for name, want := range map[string]int{"all": 2, "web": 1, "target": 0} {
		if v := b.verdicts[Key{KindAuthorizationPolicy, "shop", name}]; v.Workloads != want {
			t.Errorf("%s: %+v, want %d workloads", name, v, want)
		}
	}
	if v := b.verdicts[Key{KindAuthorizationPolicy, "shop", "target"}]; v.Reason != ReasonNoEffect {
		t.Errorf("targetRef: %+v", v)
	}
}

// TestAuthorizationVerdicts: what an object's status says.
func TestAuthorizationVerdicts(t *testing.T) { // contract 6.33, 6.34, 6.42, 6.44
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"},
		Spec:       corev1.ServiceSpec{Selector: map[string]string{"app": "web"}, Ports: []corev1.ServicePort{{Name: "http", Port: 80}, {Name: "tcp-raw", Port: 9000}}},
	}
	bare := meshPod("shop", "bare", "10.0.0.9", map[string]string{"app": "web", labelTLSMode: "disabled"})
	get := "rules: [{to: [{operation: {methods: [GET]}}]}]"
	tests := []struct {
		spec     string
		dryRun   string
		accepted bool
		reason   string
		says     string
	}{
		{"rules: [{}]", "", true, ReasonAccepted, "in force for namespace shop, at 1 workload"},
		{"selector: {matchLabels: {app: web}}", "", true, ReasonAccepted, "in force at 1 workload; 1 selected have no sidecar"},
		{get, "", true, ReasonPartly, "on port 9000, declared as TCP, its rules that look at HTTP allow nothing"},
		{"action: DENY\n" + get, "", true, ReasonPartly, "compared without that, and match more"},
		{"action: DENY\nrules: [{to: [{operation: {methods: [GET], ports: [\"80\"]}}]}]", "", true, ReasonAccepted, "in force"},
		{"action: DENY\nrules: [{to: [{operation: {methods: [GET], notPorts: [\"9000\"]}}]}]", "", true, ReasonAccepted, "in force"},
		{"rules: [{}]", "true", true, ReasonAccepted, "dry run"},
		{"action: CUSTOM\nprovider: {name: opa}\nrules: [{}]", "", false, ReasonNoProvider, "denied"},
		{"action: DENY\nrules: [{to: [{operation: {ports: [x]}}]}]", "", false, ReasonInvalid, "denies more than it says"},
		{"action: BLOCK", "", false, ReasonInvalid, "it is left out"},
	}
	for _, tt := range tests {
		p := authorizationPolicy(t, "shop", "p", tt.spec)
		if tt.dryRun != "" {
			p.SetAnnotations(map[string]string{"istio.io/dry-run": tt.dryRun})
		}
		b := build(t, Cluster{
			Pods: []*corev1.Pod{meshPod("shop", "web-1", "10.0.0.1", map[string]string{"app": "web"}), bare}, Services: []*corev1.Service{service},
			AuthorizationPolicies: []*unstructured.Unstructured{p},
		})
		if v := b.verdicts[Key{KindAuthorizationPolicy, "shop", "p"}]; v.Accepted != tt.accepted || v.Reason != tt.reason || !strings.Contains(v.Message, tt.says) {
			t.Errorf("%s: %+v, want %v %s %q", tt.spec, v, tt.accepted, tt.reason, tt.says)
		}
	}
}

// TestFaultyAuthorizationPolicy: one that reaches us with faults allows less and
// denies more, and its last good version goes before that.
func TestFaultyAuthorizationPolicy(t *testing.T) { // contract 6.16
	faulty := "rules: [{to: [{operation: {methods: [GET], ports: [x]}}]}, {}]"
	key := Key{KindAuthorizationPolicy, "shop", "p"}
	told := func(spec string, last map[Key]*unstructured.Unstructured) *policy.AuthorizationPolicy {
		return build(t, Cluster{AuthorizationPolicies: []*unstructured.Unstructured{authorizationPolicy(t, "shop", "p", spec)}, LastGood: last}).access["shop/p"]
	}
	allow := told(faulty, nil)
	if allow == nil || len(allow.Rules) != 2 || !allow.Rules[0].Never || allow.Rules[1].Never {
		t.Errorf("ALLOW: %+v", allow)
	}
	deny := told("action: DENY\n"+faulty, nil)
	if deny == nil || deny.Rules[0].Never || len(deny.Rules[0].To[0]) != 1 || deny.Rules[0].To[0][0].On != policy.RequestMethod {
		t.Errorf("DENY: %+v", deny)
	}
	if mixed := told("action: DENY\nrules: [{from: [{source: {ipBlocks: [10.0.0.1, x]}}]}]", nil); len(mixed.Rules[0].From[0]) != 0 {
		t.Errorf("a list with a fault is compared: %+v", mixed)
	}
	if p := told("action: BLOCK", nil); p != nil {
		t.Errorf("an unknown action is enforced: %+v", p)
	}
	good := authorizationPolicy(t, "shop", "p", "rules: [{to: [{operation: {methods: [PUT]}}]}]")
	if p := told(faulty, map[Key]*unstructured.Unstructured{key: good}); p == nil || p.Rules[0].To[0][0].Values[0] != "PUT" {
		t.Errorf("the last good version is not in force: %+v", p)
	}
}

// FuzzReadAuthorizationPolicy: whatever the API server stores, we live, and what
// we make of it can be told to proxies.
func FuzzReadAuthorizationPolicy(f *testing.F) {
	for _, spec := range []string{
		`{"action":"DENY","rules":[{"from":[{"source":{"principals":["a","*b"],"ipBlocks":["10.0.0.0/8"]}}],"to":[{"operation":{"paths":["/{*}"]}}],"when":[{"key":"request.headers[a]","values":["x"]}]}]}`,
		`{"targetRefs":[{"kind":"Service"}],"selector":{"matchLabels":{"a":"b"}}}`, `{"rules":[null,{"from":[]},{"when":[{"key":"request.auth.claims[a][b]","notValues":[""]}]}]}`,
		`{"action":"CUSTOM","provider":{"name":1},"rules":{}}`,
	} {
		f.Add(spec)
	}
	f.Fuzz(func(t *testing.T, spec string) {
		u := &unstructured.Unstructured{}
		if err := u.UnmarshalJSON(fmt.Appendf(nil, `{"apiVersion":"security.istio.io/v1","kind":"AuthorizationPolicy","metadata":{"name":"p","namespace":"shop"},"spec":%s}`, spec)); err != nil {
			return
		}
		faults, _ := ValidateAuthorizationPolicy(u, root)
		r := readAuthorizationPolicy(u)
		if err := policy.Check(&r.policy); err != nil && !r.unusable {
			t.Errorf("with faults %s it can't be compiled: %v", Describe(faults), err)
		}
	})
}

// documentedAuthorizers: the documented ConfigMap is without faults.
func documentedAuthorizers(t *testing.T, text string) {
	t.Helper()
	var cm struct{ Data map[string]string }
	if err := yaml.Unmarshal([]byte(text), &cm); err != nil {
		t.Fatal(err)
	}
	all, faults, ignored := Authorizers(cm.Data[MeshConfigKey], "cluster.local")
	if len(all) != 2 || len(faults) > 0 || len(ignored) > 0 {
		t.Errorf("%+v, %s, %v", all, Describe(faults), ignored)
	}
}

// FuzzAuthorizers: whatever a mesh configuration says, what we make of it can be
// told to proxies (contract 6.44).
func FuzzAuthorizers(f *testing.F) {
	f.Add("extensionProviders: [{name: a, envoyExtAuthzHttp: {service: a.b.svc.cluster.local, port: 80, timeout: 1s, statusOnError: \"503\", includeRequestBodyInCheck: {maxRequestBytes: 9}}}]")
	f.Add("extensionProviders: [{name: a, envoyExtAuthzGrpc: {service: x, port: -1}}, {}, 7]\nrootNamespace: x")
	f.Fuzz(func(t *testing.T, config string) {
		all, _, _ := Authorizers(config, "cluster.local")
		m := &workload.Mesh{TrustDomains: []string{"cluster.local"}, ClusterDomain: "cluster.local", Authorizers: all}
		if _, err := wire.AppendMesh(nil, m); err != nil && utf8.ValidString(config) {
			t.Errorf("%+v: %v", all, err)
		}
	})
}

// TestDocumentedPolicies: every example of docs/authorization.md is valid, and
// nothing of it is a surprise but that HTTP isn't everywhere.
func TestDocumentedPolicies(t *testing.T) {
	page, err := os.ReadFile("../../docs/authorization.md")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for block := range strings.SplitSeq(string(page), "```yaml\n") {
		text, _, ok := strings.Cut(block, "```")
		if !ok || !strings.HasPrefix(text, "apiVersion:") {
			continue
		}
		if strings.Contains(text, "kind: ConfigMap") {
			documentedAuthorizers(t, text)
			continue
		}
		n++
		u := &unstructured.Unstructured{Object: map[string]any{}}
		if err := yaml.Unmarshal([]byte(text), &u.Object); err != nil {
			t.Fatal(err)
		}
		faults, warnings := ValidateAuthorizationPolicy(u, root)
		if len(faults) > 0 || slices.ContainsFunc(warnings, func(w string) bool { return !strings.Contains(w, "looks at HTTP") }) {
			t.Errorf("%s: %s, %q", u.GetName(), Describe(faults), warnings)
		}
	}
	if n != 3 {
		t.Errorf("%d examples, want 3", n)
	}
}
