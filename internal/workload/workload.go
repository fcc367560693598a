// Package workload is the table of pods and services that a proxy can reach.
//
// A [World] is immutable: the proxy builds a new one from every update and
// swaps it in whole, so no connection sees half of a change.
package workload

import (
	"net/netip"
	"time"

	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/policy"
)

// Workload is a pod as a peer. Its Name in the table is UID.
type Workload struct {
	UID       string // "<namespace>/<pod>"
	Name      string
	Namespace string
	Node      string
	Addresses []netip.Addr // pod addresses, both families; none for host-network pods
	Identity  identity.ID
	Mesh      bool         // has a proxy: label security.istio.io/tlsMode=istio (contract 3.20)
	Modes     policy.Modes // effective, per workload port
	Ports     []Port       // what the services that select it say of its ports

	// Policies are the keys of the AuthorizationPolicies that select it; those of
	// its whole namespace or the mesh are not among them.
	Policies []string
	// Authentications are the keys of the RequestAuthentications that select it,
	// likewise.
	Authentications []string

	CanonicalName     string
	CanonicalRevision string
	WorkloadName      string // the controller's name, e.g. the Deployment's
	App, Version      string // labels, for metrics

	Rules []string // the selective DestinationRules that select it, by name in the table
}

// Port is what is known of a workload's port from the oldest service that
// targets it (contract 1.24).
type Port struct {
	Target      uint16
	Protocol    policy.Protocol
	ServiceHost string // FQDN, e.g. webserver.shop.svc.cluster.local
	ServicePort uint16
}

// Service is a Kubernetes Service. Its name in the table is "<namespace>/<name>".
type Service struct {
	Name      string
	Namespace string
	Hostname  string       // FQDN
	Addresses []netip.Addr // cluster addresses, both families; none when headless
	Ports     []ServicePort
	Endpoints []Endpoint
}

// ServicePort is a TCP port of a service.
type ServicePort struct {
	Name     string
	Port     uint16
	Protocol policy.Protocol
}

// Endpoint is one address of a service.
type Endpoint struct {
	Address netip.Addr
	Ready   bool              // may get new connections (contract 3.59)
	Targets map[uint16]uint16 // service port -> port at this address
	// Workload is the UID of the pod that has the address; "" when none has, or
	// a host-network pod. An endpoint whose pod is not known yet is not used: it
	// may be in the mesh.
	Workload string
}

// OutboundPolicy says what happens to destinations that the mesh doesn't know.
type OutboundPolicy int

// The outbound policies (contract 3.12).
const (
	AllowAny OutboundPolicy = iota
	RegistryOnly
)

// Mesh is what holds for the whole mesh.
type Mesh struct {
	TrustDomains  []string // own first, then aliases
	ClusterDomain string   // cluster.local
	Outbound      OutboundPolicy
	HTTP10        bool          // accept HTTP/1.0 on declared HTTP ports (contract 2.55)
	IdleTimeout   time.Duration // of a TCP connection (contract 2.36); 0 means 1 h
	BundlePEM     []byte        // the roots in force
	RevokedPEM    []byte        // the revocation lists in force, empty if there are none
	RootNamespace string        // whose DestinationRules are for all (contract 3.39)
	// Authorizers are whom policies of effect CUSTOM may ask (contract 6.44).
	Authorizers []policy.Authorizer
	AccessLog   AccessLog
}

// AccessLog is the format of the log of requests and connections. An empty format is
// no log.
type AccessLog struct {
	Format string
	JSON   bool // Format is a JSON object
}

// World is everything that a proxy knows. Build it with NewWorld.
type World struct {
	Mesh Mesh
	// Access says who may reach the proxy's own workload; nil restricts nothing.
	Access *policy.Access
	// Authentication says whose tokens requests to it may have; nil looks for none.
	Authentication *policy.Authentication

	workloads map[string]*Workload
	byAddr    map[netip.Addr]*Workload
	services  map[string]*Service
	byVIP     map[netip.AddrPort]ServiceRef
	byBackend map[netip.AddrPort]ServiceRef
	awaited   map[netip.Addr]struct{}
	headless  map[netip.Addr][]*Service
	rules     rulebook
	entries   map[uint16][]EntryRef // by port
}

// ServiceRef is one port of one service.
type ServiceRef struct {
	Service *Service
	Port    ServicePort
}

// NewWorld indexes workloads, services and rules. It keeps what it is given:
// callers must not change it afterwards.
func NewWorld(mesh Mesh, workloads []*Workload, services []*Service, rules ...*DestinationRule) *World {
	w := &World{
		Mesh:      mesh,
		workloads: make(map[string]*Workload, len(workloads)),
		byAddr:    make(map[netip.Addr]*Workload, len(workloads)),
		services:  make(map[string]*Service, len(services)),
		byVIP:     make(map[netip.AddrPort]ServiceRef),
		byBackend: make(map[netip.AddrPort]ServiceRef),
		awaited:   make(map[netip.Addr]struct{}),
		headless:  make(map[netip.Addr][]*Service),
		rules:     newRulebook(rules),
		entries:   map[uint16][]EntryRef{},
	}
	for _, x := range workloads {
		w.workloads[x.UID] = x
		for _, a := range x.Addresses {
			if other, taken := w.byAddr[a]; !taken || x.before(other) {
				w.byAddr[a] = x
			}
		}
	}
	for _, s := range services {
		w.services[s.Namespace+"/"+s.Name] = s
		w.indexService(s)
	}
	return w
}

// AddEntries makes entries known. It is called once, before the world is shared.
func (w *World) AddEntries(entries []*Entry) *World {
	w.indexEntries(entries)
	return w
}

// before reports which of two pods that claim an address has it, whatever the order
// in which they are listed: one in the mesh, so that nobody speaks to it in
// plaintext; of two such the client's check of identities decides.
func (x *Workload) before(other *Workload) bool {
	if x.Mesh != other.Mesh {
		return x.Mesh
	}
	return x.UID < other.UID
}

func (w *World) indexService(s *Service) {
	if len(s.Addresses) == 0 {
		for _, e := range s.Endpoints {
			w.headless[e.Address] = append(w.headless[e.Address], s)
		}
	}
	for _, p := range s.Ports {
		ref := ServiceRef{s, p}
		for _, a := range s.Addresses {
			w.byVIP[netip.AddrPortFrom(a, p.Port)] = ref
		}
		for _, e := range s.Endpoints {
			if _, known := w.byAddr[e.Address]; e.Workload != "" && !known {
				w.awaited[e.Address] = struct{}{}
			}
			at := netip.AddrPortFrom(e.Address, e.Targets[p.Port])
			if old, ok := w.byBackend[at]; !ok || s.Hostname < old.Service.Hostname {
				w.byBackend[at] = ref
			}
		}
	}
}

// Workload finds a workload by "<namespace>/<pod>".
func (w *World) Workload(uid string) (*Workload, bool) { x, ok := w.workloads[uid]; return x, ok }

// WorkloadAt finds the pod that has an address.
func (w *World) WorkloadAt(a netip.Addr) (*Workload, bool) {
	x, ok := w.byAddr[a.Unmap()]
	return x, ok
}

// ServiceNamed finds a service by its host name. It looks through all.
func (w *World) ServiceNamed(host string) (*Service, bool) {
	for _, s := range w.services {
		if s.Hostname == host {
			return s, true
		}
	}
	return nil, false
}

// ServiceAt finds the service port behind a cluster address.
func (w *World) ServiceAt(a netip.AddrPort) (ServiceRef, bool) {
	r, ok := w.byVIP[netip.AddrPortFrom(a.Addr().Unmap(), a.Port())]
	return r, ok
}

// ServiceOf finds a service port that leads to this address and port of a pod.
func (w *World) ServiceOf(a netip.AddrPort) (ServiceRef, bool) {
	r, ok := w.byBackend[netip.AddrPortFrom(a.Addr().Unmap(), a.Port())]
	return r, ok
}

// HeadlessAt finds the port of a headless service that leads to this address and
// port of a pod: who connects there has asked for the service by name (contract
// 3.62). Of several the first by name counts.
func (w *World) HeadlessAt(a netip.AddrPort) (ServiceRef, bool) {
	var found ServiceRef
	for _, s := range w.headless[a.Addr().Unmap()] {
		for _, p := range s.Ports {
			if s.leadsTo(a, p.Port) && (found.Service == nil || s.Hostname < found.Service.Hostname) {
				found = ServiceRef{s, p}
			}
		}
	}
	return found, found.Service != nil
}

func (s *Service) leadsTo(a netip.AddrPort, port uint16) bool {
	for i := range s.Endpoints {
		if e := &s.Endpoints[i]; e.Address == a.Addr().Unmap() && e.Targets[port] == a.Port() {
			return true
		}
	}
	return false
}

// Awaited reports whether a pod is said to have the address that is not in the
// table yet: what it is, and so how to talk to it, is not known.
func (w *World) Awaited(a netip.Addr) bool { _, ok := w.awaited[a.Unmap()]; return ok }

// Serves reports whether an endpoint may get new connections: it is ready, and
// the pod that it names is known and has its address.
func (w *World) Serves(e Endpoint) bool {
	if !e.Ready || e.Workload == "" {
		return e.Ready
	}
	x, ok := w.WorkloadAt(e.Address)
	return ok && x.UID == e.Workload
}

// Len returns how many workloads and services there are.
func (w *World) Len() (workloads, services int) { return len(w.workloads), len(w.services) }

// PortOf returns what is known of a workload's own port; an unknown port is
// Auto with no service (contract 1.25).
func (x *Workload) PortOf(port uint16) Port {
	for _, p := range x.Ports {
		if p.Target == port {
			return p
		}
	}
	return Port{Target: port}
}
