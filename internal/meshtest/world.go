package meshtest

import (
	"net/netip"
	"testing"

	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/wire"
	"podseal.io/podseal/internal/workload"
	"podseal.io/podseal/internal/xds"
)

// TrustDomain is that of the test mesh.
const TrustDomain = "cluster.local"

// World is what proxies are told; change it and tell them again.
type World struct {
	Mesh      workload.Mesh
	Workloads []*workload.Workload
	Services  []*workload.Service
	Access    []*policy.AuthorizationPolicy
	Rules     []*workload.DestinationRule
	Entries   []*workload.Entry

	Authentications []*policy.RequestAuthentication
}

// NewWorld trusts the roots of a CA and knows nobody.
func NewWorld(rootPEM []byte) *World {
	return &World{Mesh: workload.Mesh{TrustDomains: []string{TrustDomain}, ClusterDomain: TrustDomain, BundlePEM: rootPEM}}
}

// Pod adds a pod that is in the mesh, PERMISSIVE, with the service account
// "<namespace>/<name>".
func (w *World) Pod(namespace, name string, addr netip.Addr) *workload.Workload {
	x := &workload.Workload{
		UID: namespace + "/" + name, Name: name, Namespace: namespace, Addresses: []netip.Addr{addr}, Mesh: true,
		Identity: identity.MustNew(TrustDomain, namespace, name), Modes: policy.Modes{Default: policy.Permissive},
		CanonicalName: name, WorkloadName: name,
	}
	w.Workloads = append(w.Workloads, x)
	return x
}

// Service adds a service of one port that leads to one port of some pods, and
// tells the pods of it.
func (w *World) Service(name string, vip netip.AddrPort, proto policy.Protocol, target uint16, pods ...*workload.Workload) *workload.Service {
	namespace := "default"
	if len(pods) > 0 {
		namespace = pods[0].Namespace
	}
	s := &workload.Service{
		Name: name, Namespace: namespace, Hostname: name + "." + namespace + ".svc." + TrustDomain,
		Ports: []workload.ServicePort{{Name: proto.String(), Port: vip.Port(), Protocol: proto}},
	}
	if vip.Addr().IsValid() && !vip.Addr().IsUnspecified() {
		s.Addresses = []netip.Addr{vip.Addr()}
	}
	for _, p := range pods {
		s.Endpoints = append(s.Endpoints, workload.Endpoint{Address: p.Addresses[0], Ready: true, Targets: map[uint16]uint16{vip.Port(): target}})
		p.Ports = append(p.Ports, workload.Port{Target: target, Protocol: proto, ServiceHost: s.Hostname, ServicePort: vip.Port()})
	}
	w.Services = append(w.Services, s)
	return s
}

// Tell hands the whole world to a handler of xds, as the control plane would.
func (w *World) Tell(tb testing.TB, handle func(typeURL string, upserts []xds.Resource, removed []string) map[string]error) {
	tb.Helper()
	tell := func(typeURL, name string, body []byte, err error) {
		tb.Helper()
		if err != nil {
			tb.Fatal(err)
		}
		for _, err := range handle(typeURL, []xds.Resource{{Name: name, Version: "1", Body: body}}, nil) {
			tb.Fatal(err)
		}
	}
	body, err := wire.AppendMesh(nil, &w.Mesh)
	tell(wire.TypeMesh, "mesh", body, err)
	handle(wire.TypeService, nil, nil)             // there may be none
	handle(wire.TypeAuthorizationPolicy, nil, nil) // likewise
	for _, p := range w.Access {
		body, err := wire.AppendAuthorizationPolicy(nil, p)
		tell(wire.TypeAuthorizationPolicy, p.Key(), body, err)
	}
	handle(wire.TypeRequestAuthentication, nil, nil)
	for _, r := range w.Authentications {
		body, err := wire.AppendRequestAuthentication(nil, r)
		tell(wire.TypeRequestAuthentication, r.Key(), body, err)
	}
	handle(wire.TypeDestinationRule, nil, nil)
	for _, r := range w.Rules {
		body, err := wire.AppendDestinationRule(nil, r)
		tell(wire.TypeDestinationRule, r.Namespace+"/"+r.Name, body, err)
	}
	handle(wire.TypeServiceEntry, nil, nil)
	for _, e := range w.Entries {
		body, err := wire.AppendServiceEntry(nil, e)
		tell(wire.TypeServiceEntry, e.Key(), body, err)
	}
	for _, s := range w.Services {
		body, err := wire.AppendService(nil, s)
		tell(wire.TypeService, s.Namespace+"/"+s.Name, body, err)
	}
	for _, x := range w.Workloads {
		body, err := wire.AppendWorkload(nil, x)
		tell(wire.TypeWorkload, x.UID, body, err)
	}
}
