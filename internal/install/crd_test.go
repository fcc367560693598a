package install

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite golden and generated files")

// TestOfficialCRD holds the CRDs of the chart against those of the pinned
// istio.io/api module; -update takes them from there.
// Contract 1.4.
func TestOfficialCRD(t *testing.T) { // contract 1.1, 1.34
	out, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "istio.io/api").Output()
	if err != nil {
		t.Fatal(err)
	}
	all, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(out)), "kubernetes", "customresourcedefinitions.gen.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for name, group := range map[string]string{"peerauthentications": "security", "authorizationpolicies": "security", "requestauthentications": "security", "destinationrules": "networking", "serviceentries": "networking"} {
		var want []byte
		for doc := range bytes.SplitSeq(all, []byte("\n---\n")) {
			if bytes.Contains(doc, []byte("\n  name: "+name+"."+group+".istio.io\n")) {
				want = append(bytes.TrimSpace(doc), '\n')
			}
		}
		if want == nil {
			t.Fatal("istio.io/api has no CRD of", name)
		}
		golden(t, filepath.Join("..", "..", "deploy", "podseal", "files", name+".gen.yaml"), want)
	}
}

// golden compares got with a file, or rewrites the file under -update.
func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is not what it should be; `go test ./internal/install -update` rewrites it. Got:\n%s", path, firstDifference(got, want))
	}
}

func firstDifference(got, want []byte) string {
	g, w := strings.Split(string(got), "\n"), strings.Split(string(want), "\n")
	for i := range g {
		if i >= len(w) || g[i] != w[i] {
			return strings.Join(g[max(0, i-3):min(len(g), i+5)], "\n")
		}
	}
	return "(shorter than the file)"
}
