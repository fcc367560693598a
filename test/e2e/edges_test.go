package e2e

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"
)

// link is what the test reads of an edge of `podseal edges -o json`.
type link struct {
	Source struct{ Kind, Namespace, Name string } `json:"source"`
	State  string                                 `json:"state"`
	Shares []share                                `json:"shares"`
}

type share struct {
	Security            string            `json:"security"`
	Group               string            `json:"group"`
	SourceIdentity      string            `json:"source_identity"`
	DestinationIdentity string            `json:"destination_identity"`
	SourceSerial        string            `json:"source_serial"`
	DestinationSerial   string            `json:"destination_serial"`
	Refusals            map[string]uint64 `json:"refusals"`
}

// proved says whether a share is mutual TLS with both identities and certificates.
func proved(s share) bool {
	return s.Security == "mutual_tls" && s.Group == "X25519MLKEM768" && strings.Contains(s.SourceIdentity, "/ns/"+ns+"/sa/") &&
		strings.Contains(s.DestinationIdentity, "/ns/"+ns+"/sa/") && s.SourceSerial != "" && s.DestinationSerial != "" && s.SourceSerial != s.DestinationSerial
}

// edgesTo is what the CLI says of the edges to the web server.
func (e *env) edgesTo(t *testing.T) ([]link, string) {
	t.Helper()
	out, code, err := e.s.Podseal(t.Context(), "edges", "--kubeconfig", e.kubeconfig(t), "--to", ns+"/webserver", "-o", "json")
	if err != nil || code != 0 {
		return nil, out
	}
	var list struct {
		Edges []link `json:"edges"`
	}
	start := strings.Index(out, "{")
	if start < 0 || json.NewDecoder(strings.NewReader(out[start:])).Decode(&list) != nil {
		return nil, out
	}
	return list.Edges, out
}

// testEdges shows who talks to whom: a mesh client, one from outside, a caller
// on a node's own network; what is refused; after a restart of the control plane,
// too; and what else the CLI says of them.
func testEdges(t *testing.T, e *env) {
	e.policy(t, ns, "default", "{mtls: {mode: PERMISSIVE}}")
	eventually(t, "the mode is PERMISSIVE", func() (bool, string) {
		out, code := e.curl(t, outsideNS, "alpine", "http://webserver."+ns+"/")
		return code == 0, out
	})
	seen := func(what string, is func(link) bool) time.Duration {
		return eventually(t, what, func() (bool, string) {
			links, out := e.edgesTo(t)
			return slices.ContainsFunc(links, is), out
		})
	}
	outside := func(l link) bool {
		return l.Source.Name == "alpine" && l.Source.Namespace == outsideNS && l.State == "plaintext"
	}
	if took := seen("the plaintext caller", outside); took > 3*time.Second {
		t.Errorf("a new plaintext caller shows after %s", took)
	}
	e.must(t, "kubectl -n %s exec deployments/client -- curl -sS --max-time 5 http://webserver/", ns)
	// The edge is mixed where earlier cases have made the same calls under DISABLE.
	inMesh := func(l link) bool {
		return l.Source.Name == "client" && (l.State == "mutual_tls" || l.State == "mixed") && slices.ContainsFunc(l.Shares, proved)
	}
	seen("the mesh client, with both identities and certificates", inMesh)
	address := e.must(t, "kubectl -n %s get pods -l app=webserver -o jsonpath='{.items[0].status.podIP}'", ns)
	e.must(t, "curl -sS -o /dev/null --max-time 5 http://%s/", strings.TrimSpace(address)) // on node 1's own network
	seen("the caller on a node", func(l link) bool {
		return (l.Source.Kind == "kubelet" || l.Source.Kind == "node" || l.Source.Kind == "api-server") && l.State == "plaintext"
	})

	e.policy(t, ns, "default", "{mtls: {mode: STRICT}}")
	seen("the refusal, with its reason", func(l link) bool {
		e.curl(t, outsideNS, "alpine", "http://webserver."+ns+"/")
		for _, s := range l.Shares {
			if l.Source.Name == "alpine" && s.Refusals["plaintext_refused"] > 0 {
				return true
			}
		}
		return false
	})
	e.must(t, "kubectl -n d8-istio rollout restart deployment/istiod && kubectl -n d8-istio rollout status deployment/istiod --timeout=90s")
	took := seen("the mesh client, after a restart of the control plane", inMesh)
	seen("the plaintext caller, after a restart of the control plane", func(l link) bool { return l.Source.Name == "alpine" })
	t.Logf("after a restart of the control plane edges were there again after %s", took)

	for _, tc := range []struct {
		args string
		code int
		want string
	}{
		{"status -n " + ns, 0, "SYNCED"},
		{"can " + ns + "/client " + ns + "/webserver", 0, "mutual TLS"},
		{"can " + outsideNS + "/alpine " + ns + "/webserver", 1, "plaintext_refused"},
		{"can " + ns + "/clientt " + ns + "/webserver", 66, "Did you mean " + ns + "/client"},
		{"describe service " + ns + "/webserver", 0, "Callers:"},
		{"edges --plaintext -n " + ns, 0, "alpine"},
	} {
		out, code, err := e.s.Podseal(t.Context(), append(strings.Fields(tc.args), "--kubeconfig", e.kubeconfig(t))...)
		if err != nil || code != tc.code || !strings.Contains(out, tc.want) {
			t.Errorf("podseal %s: exit code %d, %v:\n%s", tc.args, code, err, out)
		}
	}
}
