package discovery

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/wire"
)

// testKeys is a key set as it stands in an object.
const testKeys = `{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`

func requestAuthentication(t testing.TB, ns, name, spec string) *unstructured.Unstructured {
	t.Helper()
	u := peerAuthentication(t, ns, name, 0, spec)
	u.SetKind(KindRequestAuthentication)
	return u
}

// TestValidateRequestAuthentication is what admission refuses, all at once (contract 1.38).
func TestValidateRequestAuthentication(t *testing.T) {
	rule := func(fields string) string {
		return "jwtRules: [{issuer: \"https://i\", jwks: '" + testKeys + "', " + fields + "}]"
	}
	at := func(field string) []string { return []string{"spec.jwtRules[0]." + field} }
	tests := []struct {
		spec   string
		faults []string // their fields
		says   string   // something of the first fault
	}{
		{rule("audiences: [a]"), nil, ""},
		{rule("fromHeaders: [{name: X-Jwt, prefix: \"JWT \"}], fromParams: [t], fromCookies: [c], outputPayloadToHeader: X-Payload, outputClaimToHeaders: [{header: X-Sub, claim: a.b}], forwardOriginalToken: true, timeout: 5s, spaceDelimitedClaims: [a]"), nil, ""},
		{"jwtRules: [{issuer: \"https://i\"}]", nil, ""},
		{"jwtRules: [{issuer: \"https://i\", jwksUri: \"https://i/keys\"}]", nil, ""},
		{"jwtRules: [{}]", at("issuer"), "is empty"},
		{"jwtRules: [{issuer: 7, jwks: '" + testKeys + "'}]", []string{"spec.jwtRules[0].issuer", "spec.jwtRules[0].issuer"}, "must be text"},
		{"jwtRules: [null]", []string{"spec.jwtRules[0]"}, "must be an object"},
		{"jwtRules: {}", []string{"spec.jwtRules"}, "must be a list"},
		{rule("audiences: [\"\", 1]"), []string{"spec.jwtRules[0].audiences[0]", "spec.jwtRules[0].audiences[1]"}, "not empty"},
		{rule("jwksUri: \"https://i\""), at("jwks"), "can't both"},
		{"jwtRules: [{issuer: i, jwks: '{}'}]", at("jwks"), "no key"},
		{"jwtRules: [{issuer: i, jwks: '{\"keys\":[{\"kty\":\"oct\",\"k\":\"c2VjcmV0\"}]}'}]", at("jwks"), "is a secret"},
		{"jwtRules: [{issuer: i, jwksUri: \"ftp://i\"}]", at("jwksUri"), "http://"},
		{"jwtRules: [{issuer: i, jwksUri: \"/keys\"}]", at("jwksUri"), "not the URL"},
		{"jwtRules: [{issuer: i, jwksUri: \"https://i/" + strings.Repeat("a", 2048) + "\"}]", at("jwksUri"), "at most 2048"},
		{rule("fromHeaders: [{prefix: x}]"), at("fromHeaders[0].name"), "empty"},
		{rule("fromHeaders: [{name: host}]"), at("fromHeaders[0].name"), "needs"},
		{rule("fromParams: [\"\"]"), at("fromParams[0]"), "empty"},
		{rule("outputPayloadToHeader: \"a b\""), at("outputPayloadToHeader"), "not the name"},
		{
			rule("outputClaimToHeaders: [{header: x-a, claim: a}, {header: X-A, claim: b}, {header: \"\", claim: \"\"}]"),
			[]string{"spec.jwtRules[0].outputClaimToHeaders[1].header", "spec.jwtRules[0].outputClaimToHeaders[2].header", "spec.jwtRules[0].outputClaimToHeaders[2].claim"},
			"earlier entry",
		},
		{rule("forwardOriginalToken: \"yes\""), at("forwardOriginalToken"), "true or false"},
		{rule("timeout: 5"), at("timeout"), "must be text"},
		{rule("timeout: 1us"), at("timeout"), "1ms"},
		{"selector: {matchLabels: {a: \"*\"}}\n" + rule("timeout: x"), []string{`spec.selector.matchLabels["a"]`, "spec.jwtRules[0].timeout"}, "wildcards"},
	}
	for _, tt := range tests {
		faults, _ := ValidateRequestAuthentication(requestAuthentication(t, "shop", "r", tt.spec), root)
		var fields []string
		for _, f := range faults {
			fields = append(fields, f.Field)
		}
		if !slices.Equal(fields, tt.faults) || (len(faults) > 0 && (!strings.Contains(Describe(faults[:1]), tt.says) || faults[0].Remedy == "")) {
			t.Errorf("%s: %s, want %v %q", tt.spec, Describe(faults), tt.faults, tt.says)
		}
	}
	for spec, want := range map[string]string{
		"{}":           "no token is looked at",
		"selector: {}": "has no labels",
		"targetRef: {kind: Gateway, group: gateway.networking.k8s.io, name: x}": "no effect",
		"jwtRules: [{issuer: joe@example.com}]":                                 "every token of it is refused",
		rule("colour: red"):                                                     "unknown field",
	} {
		if faults, warnings := ValidateRequestAuthentication(requestAuthentication(t, "shop", "r", spec), root); len(faults) > 0 || !strings.Contains(strings.Join(warnings, "\n"), want) {
			t.Errorf("%s: %s, %q", spec, Describe(faults), warnings)
		}
	}
}

// authentications are what proxies are told.
func authentications(t *testing.T, c Cluster) (told map[string]*policy.RequestAuthentication, workloads map[string][]string, verdicts Verdicts) {
	t.Helper()
	b := build(t, c)
	c.Settings, c.RootNamespace = testSettings(), root
	res, _ := Build(c)
	told, workloads = map[string]*policy.RequestAuthentication{}, map[string][]string{}
	for name, body := range res[wire.TypeRequestAuthentication] {
		r, err := wire.ParseRequestAuthentication(body)
		if err != nil {
			t.Fatal(err)
		}
		told[name] = r
	}
	for name, w := range b.workloads {
		workloads[name] = w.Authentications
	}
	return told, workloads, b.verdicts
}

// TestAuthenticationScope: who is told of which object (contract 1.38, 6.1, 1.37).
func TestAuthenticationScope(t *testing.T) {
	keys := "jwtRules: [{issuer: i, jwks: '" + testKeys + "'}]"
	web := "selector: {matchLabels: {app: web}}\n" + keys
	foreign := requestAuthentication(t, "shop", "foreign", keys)
	foreign.SetLabels(map[string]string{labelRevision: "canary"})
	told, follows, verdicts := authentications(t, Cluster{
		Pods: []*corev1.Pod{meshPod("shop", "web-1", "10.0.0.1", map[string]string{"app": "web"}), meshPod("bank", "web-2", "10.0.0.2", map[string]string{"app": "web"}), meshPod("shop", "db", "10.0.0.3", nil)},
		RequestAuthentications: []*unstructured.Unstructured{
			requestAuthentication(t, root, "mesh", keys), requestAuthentication(t, root, "selected", web), requestAuthentication(t, "shop", "namespace", keys), requestAuthentication(t, "shop", "selected", web),
			requestAuthentication(t, "shop", "targeted", "targetRef: {kind: Service, name: x}\n"+keys), foreign,
		},
	})
	scopes := map[string]policy.Scope{}
	for name, r := range told {
		scopes[name] = r.Scope
	}
	want := map[string]policy.Scope{root + "/mesh": policy.Mesh, root + "/selected": policy.MeshWorkloads, "shop/namespace": policy.Namespace, "shop/selected": policy.Workloads}
	if !maps.Equal(scopes, want) {
		t.Errorf("told %v", scopes)
	}
	if diff := cmp.Diff(map[string][]string{"shop/web-1": {root + "/selected", "shop/selected"}, "bank/web-2": {root + "/selected"}, "shop/db": nil}, follows); diff != "" {
		t.Error(diff)
	}
	for name, n := range map[string]int{root + "/mesh": 3, root + "/selected": 2, "shop/namespace": 2, "shop/selected": 1} {
		ns, name, _ := strings.Cut(name, "/")
		if v := verdicts[Key{KindRequestAuthentication, ns, name}]; !v.Accepted || v.Workloads != n {
			t.Errorf("%s: %+v, want %d", name, v, n)
		}
	}
	if v := verdicts[Key{KindRequestAuthentication, "shop", "targeted"}]; v.Reason != ReasonNoEffect {
		t.Errorf("%+v", v)
	}
}

// TestAuthenticationKeys: keys that were fetched, that could not be, and of rules
// with faults.
func TestAuthenticationKeys(t *testing.T) {
	uri := requestAuthentication(t, "shop", "r", "jwtRules: [{issuer: i, jwksUri: \"https://i/keys\", timeout: 1s}, {issuer: \"https://j\"}, {issuer: i, jwksUri: \"https://i/keys\"}]")
	sources := KeySources(Cluster{RequestAuthentications: []*unstructured.Unstructured{uri}})
	if diff := cmp.Diff([]KeySource{{"https://i/keys", defaultKeysTimeout}, {"issuer:https://j", defaultKeysTimeout}}, sources); diff != "" {
		t.Error(diff)
	}
	if u, metadata, err := sources[1].URL(); err != nil || !metadata || u.String() != "https://j/.well-known/openid-configuration" {
		t.Errorf("%v %v %v", u, metadata, err)
	}
	key := Key{KindRequestAuthentication, "shop", "r"}
	for _, tt := range []struct {
		fetched  map[string]FetchedKeys
		accepted bool
		reason   string
		says     string
		keys     []bool
	}{
		{nil, false, ReasonNoKeys, "not fetched yet", []bool{false, false, false}},
		{map[string]FetchedKeys{"https://i/keys": {Err: "it answers 404"}, "issuer:https://j": {Set: []byte(testKeys)}}, false, ReasonNoKeys, "every token is refused, of: i (it answers 404)", []bool{false, true, false}},
		{map[string]FetchedKeys{"https://i/keys": {Set: []byte(testKeys), Err: "it answers 404"}, "issuer:https://j": {Set: []byte(testKeys)}}, true, ReasonAccepted, "the last good ones stay: i (it answers 404)", []bool{true, true, true}},
	} {
		told, _, verdicts := authentications(t, Cluster{RequestAuthentications: []*unstructured.Unstructured{uri}, Keys: tt.fetched})
		if v := verdicts[key]; v.Accepted != tt.accepted || v.Reason != tt.reason || !strings.Contains(v.Message, tt.says) {
			t.Errorf("%+v, want %s", v, tt.says)
		}
		for i, want := range tt.keys {
			if got := len(told["shop/r"].Rules[i].Keys) > 0; got != want {
				t.Errorf("rule %d has keys: %v", i, got)
			}
		}
	}
	faulty := requestAuthentication(t, "shop", "r", "jwtRules: [{issuer: i, jwks: '{}', fromParams: [t]}, {issuer: k, jwks: '"+testKeys+"'}, {jwks: '{}'}]")
	told, _, verdicts := authentications(t, Cluster{RequestAuthentications: []*unstructured.Unstructured{faulty}})
	if r := told["shop/r"]; r == nil || len(r.Rules) != 2 || r.Rules[0].Issuer != "i" || r.Rules[0].Keys != nil || len(r.Rules[1].Keys) == 0 || verdicts[key].Reason != ReasonInvalid {
		t.Errorf("%+v, %+v", r, verdicts[key])
	}
	told, _, verdicts = authentications(t, Cluster{RequestAuthentications: []*unstructured.Unstructured{faulty}, LastGood: map[Key]*unstructured.Unstructured{key: uri}})
	if r := told["shop/r"]; len(r.Rules) != 3 || !strings.Contains(verdicts[key].Message, "last good version") {
		t.Errorf("%+v, %+v", r, verdicts[key])
	}
	if told, _, _ = authentications(t, Cluster{RequestAuthentications: []*unstructured.Unstructured{requestAuthentication(t, "shop", "r", "selector: 7")}}); len(told) != 0 {
		t.Errorf("of whom it is can't be known: %v", told)
	}
}

// FuzzReadRequestAuthentication: whatever the API server stores, we live, and what
// we make of it can be told to proxies.
func FuzzReadRequestAuthentication(f *testing.F) {
	for _, spec := range []string{
		`{"jwtRules":[{"issuer":"i","jwks":"{}","fromHeaders":[{"name":"a"}],"outputClaimToHeaders":[{"header":"x","claim":"y"}]}]}`,
		`{"jwtRules":[null,{"issuer":"https://i","jwksUri":"https://i","timeout":"1s"}],"targetRefs":[{}]}`,
	} {
		f.Add(spec)
	}
	f.Fuzz(func(t *testing.T, spec string) {
		u := &unstructured.Unstructured{}
		if err := u.UnmarshalJSON(fmt.Appendf(nil, `{"apiVersion":"security.istio.io/v1","kind":"RequestAuthentication","metadata":{"name":"p","namespace":"shop"},"spec":%s}`, spec)); err != nil {
			return
		}
		faults, _ := ValidateRequestAuthentication(u, root)
		r := readRequestAuthentication(u)
		if err := policy.CheckAuthentication(&r.result); err != nil && !r.unusable {
			t.Errorf("with faults %s it can't be compiled: %v", Describe(faults), err)
		}
	})
}

// TestDocumentedTokens: every example of docs/tokens.md is valid, and a surprise
// only in that HTTP isn't everywhere.
func TestDocumentedTokens(t *testing.T) {
	page, err := os.ReadFile("../../docs/tokens.md")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for block := range strings.SplitSeq(string(page), "```yaml\n") {
		text, _, ok := strings.Cut(block, "```")
		if !ok || !strings.HasPrefix(text, "apiVersion:") {
			continue
		}
		for doc := range strings.SplitSeq(text, "---\n") {
			n++
			u := &unstructured.Unstructured{Object: map[string]any{}}
			if err := yaml.Unmarshal([]byte(doc), &u.Object); err != nil {
				t.Fatal(err)
			}
			validate := ValidateRequestAuthentication
			if u.GetKind() == KindAuthorizationPolicy {
				validate = func(u *unstructured.Unstructured, root string) ([]Fault, []string) {
					return ValidateAuthorizationPolicy(u, root)
				}
			}
			if faults, warnings := validate(u, root); len(faults) > 0 || slices.ContainsFunc(warnings, func(w string) bool { return !strings.Contains(w, "looks at HTTP") }) {
				t.Errorf("%s %s: %s, %q", u.GetKind(), u.GetName(), Describe(faults), warnings)
			}
		}
	}
	if n != 2 {
		t.Errorf("%d examples, want 2", n)
	}
}
