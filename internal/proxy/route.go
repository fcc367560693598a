package proxy

import (
	"net/netip"
	"slices"

	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/wire"
	"podseal.io/podseal/internal/workload"
)

// verdict is what becomes of an outbound connection.
type verdict int

const (
	pass    verdict = iota // plaintext, as the application sent it
	mesh                   // mutual TLS with exactly one identity
	refused                // closed, with a reason
)

func (v verdict) String() string { return [...]string{"pass", "mesh", "refuse"}[v] }

// routing is the answer of route.
type routing struct {
	verdict  verdict
	endpoint netip.AddrPort     // where to connect to
	want     identity.ID        // mesh: who must answer there
	sni      string             // mesh
	alpn     []string           // mesh
	reason   policy.Reason      // refused
	detail   string             // refused: what people should know beside the reason
	peer     *workload.Workload // the pod at endpoint, if it is known
	service  workload.ServiceRef
	balanced bool // endpoint was chosen among those of a service
}

// question is what route is asked.
type question struct {
	dst     netip.AddrPort                        // the original destination
	own     func(netip.AddrPort) bool             // reports whether a socket of this proxy listens there
	exclude netip.AddrPort                        // an endpoint that has just failed
	pick    func(candidates []netip.AddrPort) int // chooses among ready endpoints
}

// uncaptured are the ports of a mesh pod that are never captured there, so that
// nobody speaks TLS on them (contract 1.27, 5.35).
var uncaptured = []uint16{15020, 15021, 15090}

// route decides where an outbound connection goes and how. It is pure but for
// pick. A destination that is in the mesh is never answered with pass (design D11).
func route(w *workload.World, q question) routing {
	if !q.dst.IsValid() || q.dst.Port() == 0 || q.own(q.dst) {
		return routing{verdict: refused, reason: policy.NoDestination, detail: "the original destination is this proxy itself"} // contract 3.3
	}
	if ref, ok := w.ServiceAt(q.dst); ok {
		return routeService(w, q, ref)
	}
	if peer, ok := w.WorkloadAt(q.dst.Addr()); ok {
		r := routeEndpoint(q.dst, peer) // headless services and bare addresses (design D10)
		r.service, _ = w.ServiceOf(q.dst)
		return named(r)
	}
	if w.Awaited(q.dst.Addr()) {
		return routing{verdict: refused, reason: policy.NoEndpoint, detail: "the pod at this address is not known yet"} // it may be in the mesh (design D11)
	}
	if ref, ok := w.ServiceOf(q.dst); ok { // an endpoint without a pod (contract 3.66)
		return routing{verdict: pass, endpoint: q.dst, service: ref}
	}
	if w.Mesh.Outbound == workload.RegistryOnly {
		return routing{verdict: refused, reason: policy.RegistryOnly, detail: "the destination is not known and outbound traffic is restricted to known ones"}
	}
	return routing{verdict: pass, endpoint: q.dst} // contract 3.13
}

// routeService chooses an endpoint for a connection to a cluster address.
func routeService(w *workload.World, q question, ref workload.ServiceRef) routing {
	var ready []netip.AddrPort
	for _, e := range ref.Service.Endpoints {
		target, ok := e.Targets[ref.Port.Port]
		if at := netip.AddrPortFrom(e.Address.Unmap(), target); ok && w.Serves(e) && at != q.exclude && sameFamily(at, q.dst) {
			ready = append(ready, at)
		}
	}
	if len(ready) == 0 {
		return routing{verdict: refused, reason: policy.NoEndpoint, detail: "no endpoint of the service is ready", service: ref} // contract 3.59
	}
	at := ready[q.pick(ready)]
	r := routing{verdict: pass, endpoint: at}
	if peer, ok := w.WorkloadAt(at.Addr()); ok {
		r = routeEndpoint(at, peer)
	}
	r.service, r.balanced = ref, true
	return named(r)
}

// sameFamily keeps a dual-stack service's connection in the family that the
// application chose.
func sameFamily(a, b netip.AddrPort) bool { return a.Addr().Is4() == b.Addr().Unmap().Is4() }

// routeEndpoint decides how a pod is talked to: the label and the mode of its
// port, and nothing of the client's own (contract 3.20, 3.27).
func routeEndpoint(at netip.AddrPort, peer *workload.Workload) routing {
	r := routing{verdict: pass, endpoint: netip.AddrPortFrom(at.Addr().Unmap(), at.Port()), peer: peer}
	if !peer.Mesh || peer.Modes.Port(at.Port()) == policy.Disable || slices.Contains(uncaptured, at.Port()) {
		return r
	}
	if peer.Identity.IsZero() {
		r.verdict, r.reason, r.detail = refused, policy.PeerIdentity, "the destination is in the mesh, but its identity is not known"
		return r
	}
	r.verdict, r.want = mesh, peer.Identity
	return r
}

// confirm decides again about an endpoint that has been dialled and to which
// nothing has been sent yet: what has turned out to be in the mesh meanwhile gets
// no plaintext (design D11).
func confirm(w *workload.World, to routing) routing {
	if to.verdict != pass {
		return to
	}
	peer, known := w.WorkloadAt(to.endpoint.Addr())
	if !known {
		if w.Awaited(to.endpoint.Addr()) {
			to.verdict, to.reason, to.detail = refused, policy.NoEndpoint, "the pod at this address is not known yet"
		}
		return to
	}
	now := routeEndpoint(to.endpoint, peer)
	now.service, now.balanced = to.service, to.balanced
	return named(now)
}

// named fills in what the ClientHello says: the service by its own port
// (contract 3.47), or the pod when no service leads to it.
func named(r routing) routing {
	if r.verdict != mesh {
		return r
	}
	port, host, proto := r.endpoint.Port(), r.peer.Name+"."+r.peer.Namespace, r.peer.PortOf(r.endpoint.Port()).Protocol
	if r.service.Service != nil {
		port, host, proto = r.service.Port.Port, r.service.Service.Hostname, r.service.Port.Protocol
	}
	r.sni, r.alpn = wire.SNI(port, "", host), wire.OutboundALPN(proto)
	return r
}

// stillAllowed says whether an open outbound connection may go on under a new
// world: "" or the reason to cut it. A connection is cut only if what it does is
// now forbidden, not because a new one would be routed elsewhere (design D13).
func stillAllowed(w *workload.World, dst, endpoint netip.AddrPort, encrypted bool) policy.Reason {
	if encrypted {
		return policy.None
	}
	if peer, ok := w.WorkloadAt(endpoint.Addr()); ok {
		if peer.Mesh && peer.Modes.Port(endpoint.Port()) == policy.Strict && !slices.Contains(uncaptured, endpoint.Port()) {
			return policy.PolicyChanged
		}
		return policy.None
	}
	if _, ok := w.ServiceAt(dst); ok {
		return policy.None
	}
	if _, ok := w.ServiceOf(dst); !ok && w.Mesh.Outbound == workload.RegistryOnly {
		return policy.PolicyChanged
	}
	return policy.None
}
