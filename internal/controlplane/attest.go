package controlplane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"podseal.io/podseal/internal/ca"
	"podseal.io/podseal/internal/discovery"
	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/settings"
)

// AttestPath answers with a [Statement], signed, as a [ca.Attestation].
const AttestPath = "/v1/attest"

// StatementKind is what a [Statement] is.
const StatementKind = "podseal.io/statement/v1"

// Signer is the service account whose identity statements are signed with.
const Signer = settings.ServiceName

// Statement is what a replica of the control plane states of the mesh: what it knows,
// and what those of the others know that have answered it.
type Statement struct {
	Kind        string    `json:"kind"`
	TrustDomain string    `json:"trust_domain"`
	Namespace   string    `json:"namespace,omitempty"` // "" is all
	Since       time.Time `json:"since"`               // what was reported before it is not in it, unless the proxy still runs
	View
	// Exceptions are what lets traffic be anything else than mutual TLS, and the
	// objects that say so.
	Exceptions []Exception `json:"exceptions"`
}

// Exception is one of them.
type Exception struct {
	Object string `json:"object"` // "<kind> <namespace>/<name>"
	What   string `json:"what"`
}

// attester makes statements.
type attester struct {
	view    func(ctx context.Context, namespace string, parts []string) (*View, error)
	cluster func() *discovery.Cluster
	issuer  func() (*ca.Issuer, error)
	domain  func() string
	own     string // namespace of the control plane
	now     func() time.Time
}

// attest states what is known of a namespace, or of all.
func (a *attester) attest(ctx context.Context, namespace string) (*ca.Attestation, error) {
	issuer, err := a.issuer()
	if err != nil {
		return nil, err
	}
	view, err := a.view(ctx, namespace, nil)
	if err != nil {
		return nil, err
	}
	s := Statement{Kind: StatementKind, TrustDomain: a.domain(), Namespace: namespace, Since: view.Started, View: *view, Exceptions: []Exception{}}
	cluster := a.cluster()
	if cluster == nil {
		return nil, errors.New("the cluster is not known yet")
	}
	s.Exceptions = append(s.Exceptions, exceptions(cluster, namespace)...)
	id, err := identity.New(s.TrustDomain, a.own, Signer)
	if err != nil {
		return nil, fmt.Errorf("sign as the control plane: %w", err)
	}
	text, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("write the statement: %w", err)
	}
	return issuer.Attest(text, id, a.now())
}

// exceptions are the objects that allow something else than mutual TLS. That no
// object says STRICT for the mesh is one, too: the default accepts plaintext.
func exceptions(c *discovery.Cluster, namespace string) []Exception {
	var out []Exception
	strict := false
	for _, o := range c.PeerAuthentications {
		if meshWide(o, c.RootNamespace) && modeOf(o) == "STRICT" {
			strict = true
		}
		if namespace != "" && o.GetNamespace() != namespace && o.GetNamespace() != c.RootNamespace {
			continue
		}
		for _, what := range weakModes(o) {
			out = append(out, Exception{object(o), what})
		}
	}
	if !strict {
		out = append(out, Exception{"PeerAuthentication " + c.RootNamespace + "/default", "there is none that says STRICT for the mesh: what no other object covers accepts plaintext"})
	}
	for _, o := range c.DestinationRules {
		if namespace != "" && o.GetNamespace() != namespace && o.GetNamespace() != c.RootNamespace {
			continue
		}
		host, _, _ := unstructured.NestedString(o.Object, "spec", "host")
		for _, mode := range tlsModes(o.Object["spec"]) {
			out = append(out, Exception{object(o), fmt.Sprintf("%s is called with TLS mode %s", host, mode)})
		}
	}
	for _, p := range c.Pods {
		if namespace != "" && p.Namespace != namespace {
			continue
		}
		for key, value := range p.Annotations {
			if what, ok := strings.CutPrefix(key, "traffic.sidecar.istio.io/"); ok && strings.HasPrefix(what, "exclude") && value != "" {
				out = append(out, Exception{"Pod " + p.Namespace + "/" + p.Name, fmt.Sprintf("%s: %s is not captured", what, value)})
			}
		}
	}
	slices.SortFunc(out, func(a, b Exception) int { return strings.Compare(a.Object+a.What, b.Object+b.What) })
	return out
}

func object(o *unstructured.Unstructured) string {
	return o.GetKind() + " " + o.GetNamespace() + "/" + o.GetName()
}

func meshWide(o *unstructured.Unstructured, root string) bool {
	_, selected, _ := unstructured.NestedMap(o.Object, "spec", "selector", "matchLabels")
	return o.GetNamespace() == root && !selected
}

func modeOf(o *unstructured.Unstructured) string {
	mode, _, _ := unstructured.NestedString(o.Object, "spec", "mtls", "mode")
	return mode
}

func weakModes(o *unstructured.Unstructured) []string {
	var out []string
	if mode := modeOf(o); mode == "PERMISSIVE" || mode == "DISABLE" {
		out = append(out, "mode "+mode)
	}
	ports, _, _ := unstructured.NestedMap(o.Object, "spec", "portLevelMtls")
	for port, v := range ports {
		if m, ok := v.(map[string]any); ok && (m["mode"] == "PERMISSIVE" || m["mode"] == "DISABLE") {
			out = append(out, fmt.Sprintf("port %s: mode %s", port, m["mode"]))
		}
	}
	return out
}

// tlsModes finds the modes of every tls of a DestinationRule, but those of the mesh.
func tlsModes(v any) []string {
	var out []string
	switch x := v.(type) {
	case map[string]any:
		for key, inner := range x {
			if m, ok := inner.(map[string]any); ok && key == "tls" {
				if mode, ok := m["mode"].(string); ok && mode != "ISTIO_MUTUAL" && !slices.Contains(out, mode) {
					out = append(out, mode)
				}
				continue
			}
			out = append(out, tlsModes(inner)...)
		}
	case []any:
		for _, inner := range x {
			out = append(out, tlsModes(inner)...)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
