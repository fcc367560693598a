package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"podseal.io/podseal/internal/proof"
	"podseal.io/podseal/test/e2e/walkthrough"
)

// observed is what the test reads of `podseal verify -o json`.
type observed struct {
	Result    string `json:"result"`
	Encrypted int64  `json:"tls_bytes"`
	Findings  []struct {
		Kind     string   `json:"kind"`
		Said     []string `json:"said"`
		PeerName string   `json:"peer_name"`
		Verdict  string   `json:"verdict"`
		Plain    int64    `json:"plain_bytes"`
	} `json:"findings"`
}

func (e *env) verify(t *testing.T, target string, more ...string) (observed, int) {
	t.Helper()
	out, code, err := e.s.Podseal(t.Context(), append([]string{"verify", target, "--kubeconfig", e.kubeconfig(t), "--for", "8s", "-o", "json"}, more...)...)
	var all []observed
	start := strings.Index(out, "[\n")
	if err != nil || start < 0 || json.NewDecoder(strings.NewReader(out[start:])).Decode(&all) != nil || len(all) != 1 {
		t.Fatalf("verify %s: exit code %d, %v:\n%s", target, code, err, out)
	}
	t.Logf("verify %s: %+v", target, all[0])
	return all[0], code
}

// testVerify observes a client whose traffic goes through its proxy: all of it is
// as the proxy says. Then one that leaks: a port that is excluded from capture
// takes plaintext past the proxy to the same server, and that is found.
func testVerify(t *testing.T, e *env) {
	e.policy(t, ns, "default", "{mtls: {mode: PERMISSIVE}}")
	for name, annotation := range map[string]string{"sealed": "", "leaking": `traffic.sidecar.istio.io/excludeOutboundPorts: "80"`} {
		e.must(t, `kubectl -n %s apply -f - <<EOF
apiVersion: v1
kind: Pod
metadata: {name: %s, annotations: {%s}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: loop
    image: %s
    command: [sh, -c, "while :; do curl -s -o /dev/null --max-time 2 http://webserver/; sleep 1; done"]
EOF
kubectl -n %s wait --for=condition=Ready pod/%s --timeout=90s`, ns, name, annotation, walkthrough.Image, ns, name)
	}
	pcap := filepath.Join(t.TempDir(), "sealed.pcap")
	sealed, code := e.verify(t, "pod/"+ns+"/sealed", "--pcap", pcap)
	if code != 0 || sealed.Result != "agrees" || sealed.Encrypted == 0 {
		t.Errorf("sealed: exit code %d, %+v", code, sealed)
	}
	for _, f := range sealed.Findings {
		if strings.HasSuffix(f.PeerName, "/webserver") && (f.Kind != "mesh TLS" && f.Kind != "TLS, joined late" || f.Plain != 0 || f.Verdict != "agrees") {
			t.Errorf("sealed: %+v", f)
		}
	}
	file, err := os.Open(pcap)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if sum, err := proof.Read(file, proof.Options{}); err != nil || sum.TCP == 0 {
		t.Errorf("the packets: %v, %s", err, sum)
	}
	leaking, code := e.verify(t, "pod/"+ns+"/leaking")
	found := false
	for _, f := range leaking.Findings {
		found = found || f.Kind == "plaintext" && len(f.Said) == 0 && f.Verdict == "LEAK"
	}
	if code != 1 || leaking.Result != "LEAK" || !found {
		t.Errorf("leaking: exit code %d, %+v", code, leaking)
	}
	e.must(t, "kubectl -n %s delete pod sealed leaking", ns)
}
