package proxy

import (
	"net/netip"
	"slices"
	"strings"

	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/wire"
	"podseal.io/podseal/internal/workload"
)

// verdict is what becomes of an outbound connection.
type verdict int

const (
	pass      verdict = iota // plaintext, as the application sent it
	mesh                     // mutual TLS with exactly one identity
	refused                  // closed, with a reason
	originate                // TLS as a DestinationRule describes it
)

func (v verdict) String() string { return [...]string{"pass", "mesh", "refuse", "tls"}[v] }

// routing is the answer of route.
type routing struct {
	verdict  verdict
	endpoint netip.AddrPort     // where to connect to
	want     identity.ID        // mesh: who must answer there, unless accept says otherwise
	accept   []string           // mesh: URIs of those who may answer, by a DestinationRule (contract 3.33)
	sni      string             // mesh, originate
	alpn     []string           // mesh
	explicit bool               // pass: a DestinationRule wants plaintext (contract 3.32)
	conduct  workload.Conduct   // what DestinationRules say
	reason   policy.Reason      // refused
	detail   string             // refused: what people should know beside the reason
	peer     *workload.Workload // the pod at endpoint, if it is known
	service  workload.ServiceRef
	entry    workload.EntryRef // of a ServiceEntry, if that led here
	host     string            // the host that the application named, if that was looked at
	lacks    lack              // what is to be found out before there is an answer
	balanced bool              // endpoint was chosen among those of a service
	anybody  bool              // mesh: the cluster chooses who of the service answers, for each connection anew
}

// question is what route is asked.
type question struct {
	dst     netip.AddrPort            // the original destination
	own     func(netip.AddrPort) bool // reports whether a socket of this proxy listens there
	client  *workload.Workload        // who asks, for the rules
	exclude netip.AddrPort            // an endpoint that has just failed
	source  netip.Addr                // where the connection comes from
	pick    picker                    // chooses among ready endpoints

	// What was found out for ServiceEntries.
	looked   bool // at the first bytes
	name     string
	resolved map[string][]netip.Addr
}

// portKey names a service port.
type portKey struct {
	host string
	port uint16
}

func keyOf(ref workload.ServiceRef) portKey {
	if ref.Service == nil {
		return portKey{}
	}
	return portKey{ref.Service.Hostname, ref.Port.Port}
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
		return routeService(w, q, ref, w.Conduct(q.client, ref.Service, ref.Port.Port))
	}
	if peer, ok := w.WorkloadAt(q.dst.Addr()); ok {
		return routeAddress(w, q, peer) // headless services and bare addresses (design D10)
	}
	if w.Awaited(q.dst.Addr()) {
		return routing{verdict: refused, reason: policy.NoEndpoint, detail: "the pod at this address is not known yet"} // it may be in the mesh (design D11)
	}
	if _, ok := w.ServiceOf(q.dst); ok { // an endpoint without a pod (contract 3.66)
		return routeAddress(w, q, nil)
	}
	if r, ok := routeEntry(w, q); ok {
		return r
	}
	if w.Mesh.Outbound == workload.RegistryOnly {
		return routing{verdict: refused, reason: policy.RegistryOnly, detail: "the destination is not known and outbound traffic is restricted to known ones"}
	}
	return routing{verdict: pass, endpoint: q.dst} // contract 3.13
}

// routeAddress is for a connection to an address of a service's endpoint. Rules
// are about services: those of a headless one count, as its name is what led here.
func routeAddress(w *workload.World, q question, peer *workload.Workload) routing {
	var conduct workload.Conduct
	service, _ := w.ServiceOf(q.dst)
	if headless, ok := w.HeadlessAt(q.dst); ok {
		if conduct = w.Conduct(q.client, headless.Service, headless.Port.Port); conduct.Rule != "" {
			service = headless
		}
	}
	r := routeEndpoint(q.dst, peer, conduct)
	r.service = service
	return named(r)
}

// routeService chooses an endpoint for a connection to a cluster address.
func routeService(w *workload.World, q question, ref workload.ServiceRef, conduct workload.Conduct) routing {
	if conduct.Balance == workload.Passthrough {
		if r, ok := routePassthrough(w, q.dst, ref, conduct); ok {
			return named(r)
		}
	}
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
	at := q.pick(choice{policy: &conduct.TrafficPolicy, of: keyOf(ref), source: q.source, candidates: ready})
	peer, _ := w.WorkloadAt(at.Addr())
	r := routeEndpoint(at, peer, conduct)
	r.service, r.balanced = ref, true
	return named(r)
}

// routePassthrough leaves it to the cluster which endpoint a connection to a
// service's address gets (load balancer PASSTHROUGH). Who will answer is not known
// then, so it is done only where all endpoints are talked to alike: in plaintext,
// or by mutual TLS, which any of them may end with its own identity.
func routePassthrough(w *workload.World, dst netip.AddrPort, ref workload.ServiceRef, conduct workload.Conduct) (routing, bool) {
	var all routing
	found := false
	for _, e := range ref.Service.Endpoints {
		target, ok := e.Targets[ref.Port.Port]
		if !ok || !sameFamily(netip.AddrPortFrom(e.Address, target), dst) {
			continue
		}
		peer, known := w.WorkloadAt(e.Address)
		if e.Workload != "" && (!known || peer.UID != e.Workload) {
			return routing{}, false // it may be in the mesh
		}
		one := routeEndpoint(netip.AddrPortFrom(e.Address, target), peer, conduct)
		if found && one.verdict != all.verdict {
			return routing{}, false
		}
		if one.verdict == mesh && len(one.accept) == 0 {
			one.accept = append(all.accept, spellings(one.want, w.Mesh.TrustDomains)...)
		}
		all, found = one, true
	}
	all.anybody = true
	all.endpoint, all.peer, all.want, all.service = netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port()), nil, identity.ID{}, ref
	return all, found
}

// spellings are the URIs that an identity has in the mesh's trust domains
// (contract 4.4).
func spellings(id identity.ID, domains []string) []string {
	all := []string{id.URI()}
	for _, domain := range domains {
		if same, err := identity.New(domain, id.Namespace(), id.ServiceAccount()); err == nil && same != id {
			all = append(all, same.URI())
		}
	}
	return all
}

// sameFamily keeps a dual-stack service's connection in the family that the
// application chose.
func sameFamily(a, b netip.AddrPort) bool { return a.Addr().Is4() == b.Addr().Unmap().Is4() }

// routeEndpoint decides how an endpoint is talked to, whose pod may be unknown: as
// a rule says, for every endpoint alike (contract 3.15), else by itself. others may
// answer where nobody's identity is known.
func routeEndpoint(at netip.AddrPort, peer *workload.Workload, conduct workload.Conduct, others ...string) routing {
	r := routing{verdict: pass, endpoint: netip.AddrPortFrom(at.Addr().Unmap(), at.Port()), peer: peer, conduct: conduct}
	t := conduct.TLS
	if peer == nil || peer.Identity.IsZero() {
		r.accept = others
	}
	switch {
	case t == nil:
		return r.auto()
	case t.Unusable != "":
		r.verdict, r.reason, r.detail = refused, policy.TLSSettings, "DestinationRule "+conduct.Rule+": "+t.Unusable
	case t.Mode == workload.TLSDisable:
		r.explicit = true
	case t.Mode == workload.TLSIstioMutual: // forced, also on a pod without a sidecar (contract 3.34)
		if len(t.SubjectAltNames) > 0 {
			r.accept = t.SubjectAltNames
		}
		return r.demand("DestinationRule " + conduct.Rule + " wants mutual TLS, and the endpoint's identity is not known")
	default:
		r.verdict = originate
	}
	return r
}

// auto is what holds without a word of a rule: the label and the mode of the
// pod's port count, and nothing of the client's own (contract 3.20, 3.27).
func (r routing) auto() routing {
	port := r.endpoint.Port()
	switch {
	case r.conduct.Beneath == workload.TLSDisable: // contract 3.45
		r.explicit = true
		return r
	case r.peer == nil || !r.peer.Mesh || slices.Contains(uncaptured, port):
		return r
	case r.peer.Modes.Port(port) == policy.Disable && r.conduct.Beneath != workload.TLSIstioMutual: // contract 3.45
		return r
	}
	return r.demand("the destination is in the mesh, but its identity is not known")
}

// demand is mutual TLS with whoever must answer, and nothing if that isn't known.
func (r routing) demand(otherwise string) routing {
	if r.peer != nil {
		r.want = r.peer.Identity
	}
	if r.want.IsZero() && len(r.accept) == 0 {
		r.verdict, r.reason, r.detail = refused, policy.PeerIdentity, otherwise
		return r
	}
	r.verdict = mesh
	return r
}

// confirm decides again about an endpoint that has been dialled and to which
// nothing has been sent yet: what has turned out to be in the mesh meanwhile gets
// no plaintext (design D11).
func confirm(w *workload.World, to routing) routing {
	if to.verdict != pass || to.explicit {
		return to
	}
	peer, known := w.WorkloadAt(to.endpoint.Addr())
	if ref, ok := w.ServiceAt(to.endpoint); ok && !known { // the choice was left to the cluster
		if now, same := routePassthrough(w, to.endpoint, ref, to.conduct); !same || now.verdict != pass {
			to.verdict, to.reason, to.detail = refused, policy.NoEndpoint, "the endpoints of the service have changed"
		}
		return to
	}
	if !known {
		if w.Awaited(to.endpoint.Addr()) {
			to.verdict, to.reason, to.detail = refused, policy.NoEndpoint, "the pod at this address is not known yet"
		}
		return to
	}
	now := routeEndpoint(to.endpoint, peer, to.conduct)
	now.service, now.entry, now.host, now.balanced = to.service, to.entry, to.host, to.balanced
	return named(now)
}

// named fills in what the ClientHello says: the service by its own port
// (contract 3.47), or the pod when no service leads to it; and what a rule says
// instead (contract 3.33, 3.35).
func named(r routing) routing {
	if r.verdict != mesh && r.verdict != originate {
		return r
	}
	port := r.endpoint.Port()
	var host string
	proto := policy.Auto
	switch {
	case r.service.Service != nil:
		port, host, proto = r.service.Port.Port, r.service.Service.Hostname, r.service.Port.Protocol
	case r.peer != nil:
		host, proto = r.peer.Name+"."+r.peer.Namespace, r.peer.PortOf(port).Protocol
	default:
		host = r.endpoint.Addr().String()
	}
	if strings.HasPrefix(host, "*") { // of a ServiceEntry
		host = r.host
	}
	if r.verdict == mesh {
		r.sni, r.alpn = wire.SNI(port, "", host), wire.OutboundALPN(proto)
	} else {
		r.sni = host // no mesh ALPN: contract 3.36
	}
	if t := r.conduct.TLS; t != nil && t.SNI != "" {
		r.sni = t.SNI
	}
	return r
}

// opened is what is kept of a routing for as long as a connection lasts.
type opened struct {
	dst, endpoint netip.AddrPort
	namespace     string             // of the client
	entry         *workload.EntryRef // of a ServiceEntry, if that led there
}

// stillAllowed says whether an open outbound connection may go on under a new
// world: "" or the reason to cut it. A connection is cut only if what it does is
// now forbidden, not because a new one would be routed elsewhere (design D13).
func stillAllowed(w *workload.World, o opened, encrypted bool) policy.Reason {
	if encrypted {
		return policy.None
	}
	if peer, ok := w.WorkloadAt(o.endpoint.Addr()); ok {
		if peer.Mesh && peer.Modes.Port(o.endpoint.Port()) == policy.Strict && !slices.Contains(uncaptured, o.endpoint.Port()) {
			return policy.PolicyChanged
		}
		return policy.None
	}
	if _, ok := w.ServiceAt(o.dst); ok {
		return policy.None
	}
	if o.entry != nil && w.HasEntry(o.namespace, *o.entry) {
		return policy.None
	}
	if _, ok := w.ServiceOf(o.dst); !ok && w.Mesh.Outbound == workload.RegistryOnly {
		return policy.PolicyChanged
	}
	return policy.None
}
