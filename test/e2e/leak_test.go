package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"podseal.io/podseal/test/e2e/walkthrough"
)

// leakMark is a name that only the broken proxy has in it.
const leakMark = "leakPlaintext"

// brokenProxy builds a proxy that leaks: the product's own source, with two lines
// replaced and one file more while it is compiled (go build -overlay). Nothing of it
// is in the product's source, and the test looks that nothing is in its program.
func (e *env) brokenProxy(t *testing.T) (image string) {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	replace := map[string]string{filepath.Join(root, "internal", "proxy", "leak.go"): filepath.Join(root, "test", "e2e", "testdata", "leak.go")}
	for _, line := range []struct{ file, sound, broken string }{
		{"internal/proxy/outbound.go", "toServer, proved = encrypted, own.Identity", "toServer, proved = p.leakPlaintext(ctx, to, encrypted), own.Identity"},
		// what the application has said by then would go over TLS with the opening of a stream
		{"internal/tlsconn/mux.go", "n, err := readThere(first, ", "n, err := readThere(first, nil) // "},
	} {
		file := filepath.Join(root, filepath.FromSlash(line.file))
		text, err := os.ReadFile(file)
		if err != nil || bytes.Count(text, []byte(line.sound)) != 1 {
			t.Fatalf("%s: %v, or not one line %q to replace", file, err, line.sound)
		}
		broken := filepath.Join(dir, filepath.Base(file))
		if err := os.WriteFile(broken, bytes.ReplaceAll(text, []byte(line.sound), []byte(line.broken)), 0o600); err != nil {
			t.Fatal(err)
		}
		replace[file] = broken
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	program, archive := filepath.Join(dir, "podseal-proxy"), filepath.Join(dir, "leaky.tar")
	build := exec.CommandContext(t.Context(), "go", "build", "-overlay", filepath.Join(dir, "overlay.json"), "-trimpath", "-buildvcs=false", "-tags", "grpcnotrace", "-ldflags", "-s -w -buildid=", "-o", program, "./cmd/podseal-proxy")
	build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the broken proxy: %v\n%s", err, out)
	}
	for name, want := range map[string]bool{program: true, filepath.Join(e.s.Bin, "podseal-proxy"): false} {
		if b, err := os.ReadFile(name); err != nil || bytes.Contains(b, []byte(leakMark)) != want {
			t.Fatalf("%s: %v, or its having %s is not %t", name, err, leakMark, want)
		}
	}
	image = "podseal.io/podseal-proxy:leaky"
	for _, line := range [][]string{{"images", "proxy", "--binary", program, "--tag", image, "--out", archive}, {"cluster", "load", "--name", e.s.Name, archive}} {
		if out, err := exec.CommandContext(t.Context(), filepath.Join(e.s.Bin, line[0]), line[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", strings.Join(line, " "), err, out)
		}
	}
	return image
}

// testBrokenProxy: a proxy that says mutual TLS and sends plaintext is caught on the
// wire by `podseal verify`, which names the flow; and `podseal report` shows the
// plaintext, which the other end's proxy saw.
func testBrokenProxy(t *testing.T, e *env) {
	image := e.brokenProxy(t)
	e.policy(t, ns, "default", "{mtls: {mode: PERMISSIVE}}")
	e.must(t, `kubectl -n %[1]s apply -f - <<EOF
apiVersion: v1
kind: Pod
metadata: {name: broken, annotations: {sidecar.istio.io/proxyImage: %[2]q}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: loop
    image: %[3]s
    command: [sh, -c, "while :; do curl -s -o /dev/null --max-time 2 http://webserver/; sleep 1; done"]
EOF
kubectl -n %[1]s wait --for=condition=Ready pod/broken --timeout=90s`, ns, image, walkthrough.Image)
	_, honest := e.s.Images() // to look with
	// its first connection may not have ended yet
	eventually(t, "the broken proxy lies", func() (bool, string) {
		var said map[string]any
		records := e.must(t, "kubectl -n %s logs broken -c istio-proxy | grep '\"direction\":\"outbound\"' | grep webserver | tail -1", ns)
		err := json.Unmarshal([]byte(records), &said)
		return err == nil && said["security"] == "mutual_tls", records
	})
	leak, code := e.verify(t, "pod/"+ns+"/broken", "--image", honest)
	named := false
	for _, f := range leak.Findings {
		named = named || f.Kind == "plaintext" && f.Verdict == "LEAK" && strings.HasSuffix(f.PeerName, "/webserver") && f.Plain > 0
	}
	if code != 1 || leak.Result != "LEAK" || !named {
		t.Errorf("verify: exit code %d, %+v", code, leak)
	}
	row := regexp.MustCompile(`<tr><td>` + ns + `/broken</td><td>` + ns + `/webserver</td><td>80</td><td class="mixed">mixed: .*plaintext[^<]*</td>\s*<td>(?s:.*?)× plaintext, seen by destination only`)
	eventually(t, "the report shows the plaintext", func() (bool, string) {
		page, code, err := e.s.Podseal(t.Context(), "report", "--kubeconfig", e.kubeconfig(t), "-n", ns)
		at := max(0, strings.Index(page, "<h2>Edges"))
		return err == nil && code == 0 && row.MatchString(page), page[at:min(len(page), at+4000)]
	})
	e.must(t, "kubectl -n %s delete pod broken", ns)
}
