package discovery

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// TestValidatePeerAuthentication proves contract 1.3, 1.31-1.33.
func TestValidatePeerAuthentication(t *testing.T) {
	long := strings.Repeat("v", 64)
	for name, tc := range map[string]struct {
		ns, spec string
		faults   []string // fields
		warnings []string // beginnings
	}{
		"plain":                       {"shop", "mtls: {mode: STRICT}", nil, nil},
		"null spec":                   {"shop", "null", nil, nil},
		"1.30 ports without selector": {"shop", `portLevelMtls: {"80": {mode: STRICT}}`, []string{"spec.portLevelMtls"}, nil},
		"1.30 ports, empty selector":  {"shop", "selector: {}\n" + `portLevelMtls: {"80": {mode: STRICT}}`, []string{"spec.portLevelMtls"}, nil},
		"1.31 ports empty":            {"shop", "selector: {matchLabels: {a: b}}\nportLevelMtls: {}", []string{"spec.portLevelMtls"}, nil},
		"1.32 port numbers": {
			"shop", "selector: {matchLabels: {a: b}}\n" + `portLevelMtls: {"0": {}, "-1": {}, "65536": {}, "65535": {}, "x": {}, "99999999999999999999": {}}`,
			[]string{"spec.portLevelMtls[-1]", "spec.portLevelMtls[0]", "spec.portLevelMtls[65536]", "spec.portLevelMtls[99999999999999999999]", "spec.portLevelMtls[x]"},
			nil,
		},
		"1.33 wildcards": {
			"shop", `selector: {matchLabels: {"a*": b, c: "*", "": d}}`,
			[]string{`spec.selector.matchLabels[""]`, `spec.selector.matchLabels["a*"]`, `spec.selector.matchLabels["c"]`},
			nil,
		},
		"1.33 selector without labels": {"shop", "selector: {}", nil, []string{"spec.selector: has no labels"}},
		"1.34 long value":              {"shop", "selector: {matchLabels: {a: " + long + "}}", []string{`spec.selector.matchLabels["a"]`}, nil},
		"1.9 selector in root":         {root, "selector: {matchLabels: {a: b}}", nil, []string{"spec.selector: a PeerAuthentication with a selector has no effect"}},
		"1.5 Istio's root namespace":   {"istio-system", "mtls: {mode: STRICT}", nil, []string{"metadata.namespace: istio-system is not the root"}},
		"unknown mode":                 {"shop", "mtls: {mode: ALWAYS}", []string{"spec.mtls.mode"}, nil},
		"lower case mode":              {"shop", "mtls: {mode: strict}", []string{"spec.mtls.mode"}, nil},
		"mode is a number":             {"shop", "mtls: {mode: 3}", []string{"spec.mtls.mode"}, nil},
		"unknown port mode":            {"shop", "selector: {matchLabels: {a: b}}\n" + `portLevelMtls: {"80": {mode: X}}`, []string{"spec.portLevelMtls[80].mode"}, nil},
		"wrong shapes":                 {"shop", "selector: [a]\nmtls: STRICT\nportLevelMtls: 80", []string{"spec.selector", "spec.mtls", "spec.portLevelMtls"}, nil},
		"label is a number":            {"shop", "selector: {matchLabels: {a: 1}}", []string{`spec.selector.matchLabels["a"]`}, nil},
		"unknown fields":               {"shop", "mtls: {mode: STRICT, mod: x}\ntargetRef: {}", nil, []string{"spec.targetRef: unknown", "spec.mtls.mod: unknown"}},
		"all at once": {
			"shop", "mtls: {mode: A}\n" + `portLevelMtls: {"0": {}, "1": {mode: B}}`,
			[]string{"spec.mtls.mode", "spec.portLevelMtls", "spec.portLevelMtls[0]", "spec.portLevelMtls[1].mode"},
			nil,
		},
	} {
		faults, warnings := ValidatePeerAuthentication(peerAuthentication(t, tc.ns, "p", 0, tc.spec), root)
		var fields []string
		for _, f := range faults {
			fields = append(fields, f.Field)
			if f.Problem == "" || f.Remedy == "" {
				t.Errorf("%s: fault without problem or remedy: %+v", name, f)
			}
		}
		if diff := cmp.Diff(tc.faults, fields); diff != "" {
			t.Errorf("%s: faults (-want +got):\n%s", name, diff)
		}
		if len(warnings) != len(tc.warnings) {
			t.Errorf("%s: warnings %q, want %q", name, warnings, tc.warnings)
			continue
		}
		for i, w := range tc.warnings {
			if !strings.HasPrefix(warnings[i], w) {
				t.Errorf("%s: warning %q, want %q…", name, warnings[i], w)
			}
		}
	}
}

// TestManyLabels is the last bound of contract 1.34.
func TestManyLabels(t *testing.T) {
	labels := map[string]any{}
	for i := range maxMatchLabels + 1 {
		labels["k"+strings.Repeat("x", i%50)+string(rune('a'+i%26))+strings.Repeat("y", i/1300)] = "v"
	}
	for i := 0; len(labels) <= maxMatchLabels; i++ {
		labels[strings.Repeat("z", i+1)] = "v"
	}
	u := peerAuthentication(t, "shop", "p", 0, "{}")
	u.Object["spec"] = map[string]any{"selector": map[string]any{"matchLabels": labels}}
	if faults, _ := ValidatePeerAuthentication(u, root); len(faults) != 1 {
		t.Errorf("faults %v", faults)
	}
}

// TestContract135: what is not rejected.
// Contract 1.35.
func TestContract135(t *testing.T) {
	for _, spec := range []string{"{}", "selector: {matchLabels: {none: such}}\n" + `portLevelMtls: {"9": {mode: UNSET}}`} {
		for _, ns := range []string{root, "shop"} {
			if faults, _ := ValidatePeerAuthentication(peerAuthentication(t, ns, "p", 0, spec), root); len(faults) > 0 {
				t.Errorf("%s in %s: %v", spec, ns, faults)
			}
		}
	}
}

// FuzzValidatePeerAuthentication: whatever JSON comes, it is judged, and what is
// judged good is read the same way twice.
func FuzzValidatePeerAuthentication(f *testing.F) {
	seed := `{"metadata":{"name":"p","namespace":"shop"},"spec":{"selector":{"matchLabels":{"app":"web"}},"mtls":{"mode":"STRICT"},"portLevelMtls":{"80":{"mode":"DISABLE"}}}}`
	for i := range len(seed) + 1 { // cut at every byte
		f.Add([]byte(seed[:i]))
	}
	for _, s := range []string{`{}`, `{"spec":null}`, `{"spec":[]}`, `{"spec":{"mtls":1}}`, `{"metadata":3}`, `{"spec":{"selector":{"matchLabels":null},"portLevelMtls":null}}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		u := &unstructured.Unstructured{}
		if json.Unmarshal(b, &u.Object) != nil {
			return
		}
		faults, _ := ValidatePeerAuthentication(u, root)
		a, _ := readPeerAuthentication(u)
		c, _ := readPeerAuthentication(u)
		if !cmp.Equal(a, c) {
			t.Fatal("read differently")
		}
		for port := range a.Ports {
			if port == 0 && len(faults) == 0 {
				t.Fatal("port 0 passed")
			}
		}
	})
}
