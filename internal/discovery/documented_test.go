package discovery

import (
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"podseal.io/podseal/internal/policy"
)

// TestDocumentedModes: the example of docs/policies.md is valid, and each line of its
// table is what comes of it (contract 1.10).
func TestDocumentedModes(t *testing.T) {
	b, err := os.ReadFile("../../docs/policies.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(b)
	_, text, _ := strings.Cut(page, "```yaml\n")
	text, _, _ = strings.Cut(text, "```")
	var all []policy.PeerAuthentication
	for doc := range strings.SplitSeq(text, "---\n") {
		u := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(doc), &u.Object); err != nil {
			t.Fatal(err)
		}
		faults, warnings := ValidatePeerAuthentication(u, root)
		if len(faults) > 0 || len(warnings) > 0 {
			t.Errorf("%s: %s, %q", u.GetName(), Describe(faults), warnings)
		}
		p, _ := readPeerAuthentication(u)
		all = append(all, p)
	}
	lines := regexp.MustCompile("(?m)^\\| `([a-z]+)`, `app: ([a-z]+)` \\| ([0-9]+) \\| ([A-Z]+) \\|").FindAllStringSubmatch(page, -1)
	for _, m := range lines {
		port, err := strconv.ParseUint(m[3], 10, 16)
		if err != nil {
			t.Fatal(err)
		}
		modes := policy.Resolve(ofScope(all, m[1]), root, m[1], map[string]string{"app": m[2]})
		if got := modes.Port(uint16(port)).String(); got != m[4] {
			t.Errorf("%s: %s", m[0], got)
		}
	}
	if len(all) != 4 || len(lines) != 7 {
		t.Errorf("%d objects and %d lines, want 4 and 7", len(all), len(lines))
	}
}

// ofScope are the objects of the mesh and of a namespace.
func ofScope(all []policy.PeerAuthentication, namespace string) (out []policy.PeerAuthentication) {
	for _, p := range all {
		if p.Namespace == namespace || p.Namespace == root {
			out = append(out, p)
		}
	}
	return out
}
