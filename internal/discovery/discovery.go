// Package discovery turns what a cluster holds into what proxies need to know.
//
// [Build] is one pure function: pods, services, endpoints, policies and settings
// in; resources by type and name out, with a [Verdict] for each policy. A
// resource never depends on who asks for it, equal clusters give equal bytes,
// and an object that is wrong harms nothing but itself: it is left out and its
// verdict says why.
//
// Objects come as they are in the API server. Policies come unstructured, so
// that one which can't be decoded doesn't stop the others from being listed.
package discovery

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"podseal.io/podseal/internal/settings"
	"podseal.io/podseal/internal/wire"
	"podseal.io/podseal/internal/workload"
)

// MeshName is the name of the one resource of type wire.TypeMesh.
const MeshName = "mesh"

// Cluster is what Build looks at. It changes none of it.
type Cluster struct {
	Pods           []*corev1.Pod
	Services       []*corev1.Service
	EndpointSlices []*discoveryv1.EndpointSlice
	// PeerAuthentications as they are now.
	PeerAuthentications []*unstructured.Unstructured
	// AuthorizationPolicies likewise.
	AuthorizationPolicies []*unstructured.Unstructured
	// RequestAuthentications likewise, and the keys that were fetched for them, by
	// KeySource.From.
	RequestAuthentications []*unstructured.Unstructured
	Keys                   map[string]FetchedKeys
	// MeshConfig is the mesh's configuration as Istio's users know it, in YAML; ""
	// is none. Of it, the external authorizers count.
	MeshConfig string
	// DestinationRules as they are now.
	DestinationRules []*unstructured.Unstructured
	// ServiceEntries likewise.
	ServiceEntries []*unstructured.Unstructured
	// LastGood has earlier versions of policies, by key: the one in force while the
	// present one is wrong.
	LastGood map[Key]*unstructured.Unstructured

	Settings      settings.Settings
	RootNamespace string // whose policies hold for the mesh (contract 1.5)
	BundlePEM     []byte // the roots in force
	RevokedPEM    []byte // the revocation lists in force
}

// PoliciesOf is the list that objects of a kind stand in, nil for a kind that
// isn't honoured.
func (c *Cluster) PoliciesOf(kind string) *[]*unstructured.Unstructured {
	switch kind {
	case KindPeerAuthentication:
		return &c.PeerAuthentications
	case KindAuthorizationPolicy:
		return &c.AuthorizationPolicies
	case KindRequestAuthentication:
		return &c.RequestAuthentications
	case KindDestinationRule:
		return &c.DestinationRules
	case KindServiceEntry:
		return &c.ServiceEntries
	default:
		return nil
	}
}

// Resources are encoded resources: type URL, then name, then bytes.
type Resources map[string]map[string][]byte

// Key names an object.
type Key struct{ Kind, Namespace, Name string }

func (k Key) String() string { return k.Kind + " " + k.Namespace + "/" + k.Name }

// Verdict says what became of an object.
type Verdict struct {
	// Accepted: the object as it is now is in force.
	Accepted bool
	// Reason is one CamelCase word, Message a sentence for people.
	Reason, Message string
	// Workloads is how many running pods the object governs.
	Workloads int
}

// The reasons of a Verdict.
const (
	ReasonAccepted   = "Accepted"
	ReasonInvalid    = "Invalid"        // faults; an earlier version stays in force if there is one
	ReasonShadowed   = "Shadowed"       // an older one for the same namespace or host wins (contract 1.16, 3.42)
	ReasonNoEffect   = "NoEffect"       // a selector in the root namespace (contract 1.9); a host that nobody has
	ReasonUnencoded  = "Unencoded"      // a pod or service that can't be told to proxies
	ReasonNoIdentity = "NoIdentity"     // a pod whose service account gives no identity
	ReasonPartly     = "PartlyEnforced" // in force, but some of it can't be compared on some ports
	ReasonNoProvider = "NoProvider"     // a CUSTOM policy: what it matches is denied (contract 6.44)
	ReasonNoKeys     = "NoKeys"         // a RequestAuthentication: keys of an issuer could not be fetched
	ReasonIgnored    = "Ignored"        // something of the object has no effect; the rest is in force
)

// Verdicts are by object. Pods and services have one only if something is wrong.
type Verdicts map[Key]Verdict

// Build makes all resources of a cluster.
func Build(c Cluster) (Resources, Verdicts) {
	verdicts := Verdicts{}
	policies := buildPolicies(c, verdicts)
	access, tokens, rules := buildAccess(c, verdicts), buildTokens(c, verdicts), buildRules(c, verdicts)
	entries := buildEntries(c, verdicts)
	services := orderServices(c.Services)
	res := Resources{
		wire.TypeWorkload: make(map[string][]byte, len(c.Pods)),
		wire.TypeService:  make(map[string][]byte, len(services)),
		wire.TypeMesh:     make(map[string][]byte, 1),

		wire.TypeAuthorizationPolicy: make(map[string][]byte, len(c.AuthorizationPolicies)),
		wire.TypeDestinationRule:     make(map[string][]byte, len(rules.all)),
		wire.TypeServiceEntry:        make(map[string][]byte, len(entries.all)),

		wire.TypeRequestAuthentication: make(map[string][]byte, len(c.RequestAuthentications)),
	}

	pods := &podBuilder{
		trustDomain:   c.Settings.TrustDomain,
		clusterDomain: c.Settings.ClusterDomain,
		services:      indexServices(services, c.Settings.ClusterDomain),
		policies:      policies,
		access:        access,
		tokens:        tokens,
		rules:         rules,
		owners:        addressOwners(c.Pods),
		uncaptured:    c.Settings.Sidecar.ExcludeInboundPorts,
	}
	hostNetwork := map[string]bool{}
	for _, pod := range c.Pods {
		if terminal(pod) {
			continue
		}
		if pod.Spec.HostNetwork {
			hostNetwork[pod.Namespace+"/"+pod.Name] = true
		}
		key := Key{"Pod", pod.Namespace, pod.Name}
		w, err := pods.build(pod)
		if err != nil {
			verdicts[key] = Verdict{Reason: ReasonNoIdentity, Message: err.Error()}
			continue
		}
		entries.selecting(pod, w.Addresses)
		put(res[wire.TypeWorkload], verdicts, key, w, wire.AppendWorkload)
	}

	slices := indexSlices(c.EndpointSlices)
	told := make([]*workload.Service, 0, len(services))
	for _, svc := range services {
		s := buildService(svc, slices[svc.Namespace+"/"+svc.Name], c.Settings.ClusterDomain, hostNetwork)
		key := Key{"Service", svc.Namespace, svc.Name}
		if ignored := ignoredAnnotations(svc.Annotations); len(ignored) > 0 {
			verdicts[key] = Verdict{Reason: ReasonIgnored, Message: "annotations without effect: " + strings.Join(ignored, ", ")}
		}
		put(res[wire.TypeService], verdicts, key, s, wire.AppendService)
		told = append(told, s)
	}
	entries.put(res[wire.TypeServiceEntry], verdicts)
	rules.put(res[wire.TypeDestinationRule], verdicts, told, entries.hosts())

	if b, err := wire.AppendMesh(nil, buildMesh(c, verdicts)); err == nil {
		res[wire.TypeMesh][MeshName] = b
	} else {
		verdicts[Key{Kind: "Mesh", Name: MeshName}] = Verdict{Reason: ReasonUnencoded, Message: err.Error()}
	}
	policies.report(verdicts)
	tokens.put(res[wire.TypeRequestAuthentication], verdicts)
	access.report(verdicts)
	access.resources(res[wire.TypeAuthorizationPolicy], verdicts)
	return res, verdicts
}

// put encodes v under "<namespace>/<name>", or leaves it out and says why.
func put[T any](into map[string][]byte, verdicts Verdicts, key Key, v *T, appendTo func([]byte, *T) ([]byte, error)) {
	b, err := appendTo(nil, v)
	if err != nil {
		verdicts[key] = Verdict{Reason: ReasonUnencoded, Message: fmt.Sprintf("left out: %v", err)}
		return
	}
	into[key.Namespace+"/"+key.Name] = b
}

func buildMesh(c Cluster, verdicts Verdicts) *workload.Mesh {
	m := &workload.Mesh{
		TrustDomains:  []string{c.Settings.TrustDomain},
		ClusterDomain: c.Settings.ClusterDomain,
		HTTP10:        c.Settings.HTTP10,
		IdleTimeout:   c.Settings.IdleTimeout,
		BundlePEM:     c.BundlePEM,
		RevokedPEM:    c.RevokedPEM,
		RootNamespace: c.RootNamespace,
		AccessLog:     workload.AccessLog{Format: c.Settings.AccessLog.Format, JSON: c.Settings.AccessLog.JSON},
	}
	for _, alias := range c.Settings.TrustDomainAliases { // contract 4.4
		if !slices.Contains(m.TrustDomains, alias) {
			m.TrustDomains = append(m.TrustDomains, alias)
		}
	}
	if m.IdleTimeout == 0 {
		m.IdleTimeout = forever // 0s is written for never
	}
	if c.Settings.RegistryOnly {
		m.Outbound = workload.RegistryOnly
	}
	var faults []Fault
	var ignored []string
	m.Authorizers, faults, ignored = Authorizers(c.MeshConfig, c.Settings.ClusterDomain)
	key := Key{"ConfigMap", c.RootNamespace, MeshConfigMap}
	switch {
	case len(faults) > 0:
		verdicts[key] = Verdict{Reason: ReasonInvalid, Message: Describe(faults)}
	case len(ignored) > 0:
		verdicts[key] = Verdict{Reason: ReasonIgnored, Message: "of the mesh's configuration only external authorizers have an effect; without any are " + strings.Join(ignored, ", ")}
	}
	return m
}

// orderServices leaves out what has no addresses of its own (ExternalName,
// contract 3.65) and puts the oldest first, then by name (contract 1.24).
func orderServices(all []*corev1.Service) []*corev1.Service {
	kept := make([]*corev1.Service, 0, len(all))
	for _, s := range all {
		if s.Spec.Type != corev1.ServiceTypeExternalName {
			kept = append(kept, s)
		}
	}
	slices.SortFunc(kept, func(a, b *corev1.Service) int {
		if c := a.CreationTimestamp.Compare(b.CreationTimestamp.Time); c != 0 {
			return c
		}
		if c := strings.Compare(a.Name, b.Name); c != 0 {
			return c
		}
		return strings.Compare(a.Namespace, b.Namespace)
	})
	return kept
}
