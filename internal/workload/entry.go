package workload

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/policy"
)

// Resolution says how an Entry's endpoints are found.
type Resolution int

// The resolutions. ResolveNone goes where the application wanted to go.
const (
	ResolveNone Resolution = iota
	ResolveStatic
	ResolveDNS
)

// Naming says what of a connection's first bytes has the name of its host.
type Naming int

// The namings. NamedByNothing is a protocol of which only the port is known.
const (
	NamedByNothing Naming = iota
	NamedByHost           // the Host of an HTTP request
	NamedBySNI            // of a ClientHello
	NamedByEither
)

// Entry is a ServiceEntry: hosts that are no Services. Its name in the table is
// "<namespace>/<name>".
type Entry struct {
	Namespace, Name string
	Hosts           []string       // full names, or "*." and the end of some
	Addresses       []netip.Prefix // that stand for the hosts; none: see EntriesAt
	Ports           []EntryPort
	External        bool // outside of the mesh: its endpoints have no proxy unless they are pods
	Resolution      Resolution
	Endpoints       []EntryEndpoint // none with ResolveDNS: the hosts themselves
	ExportTo        []string        // namespaces whose clients it is for; "*" is all
	SubjectAltNames []string        // who may answer
	Created         time.Time       // in whole seconds
}

// EntryPort is a TCP port of an entry.
type EntryPort struct {
	Port, Target uint16 // Target is the port at endpoints that say nothing else
	Protocol     policy.Protocol
	Naming       Naming
}

// EntryEndpoint is one address of an entry, or one name to resolve.
type EntryEndpoint struct {
	Address netip.Addr        // invalid if Name is set
	Name    string            // to resolve
	Targets map[uint16]uint16 // port of the entry -> port here, where it isn't the entry's own
	// Workload is the UID of the pod that has the address; "" when none has.
	Workload string
	// Mesh says that what is there has a proxy although it is no pod; then Identity
	// must answer, if it is known.
	Mesh     bool
	Identity identity.ID
}

// Key is the entry's name in the table.
func (e *Entry) Key() string { return e.Namespace + "/" + e.Name }

// PortAt finds one of the entry's ports.
func (e *Entry) PortAt(port uint16) (EntryPort, bool) {
	i := slices.IndexFunc(e.Ports, func(p EntryPort) bool { return p.Port == port })
	if i < 0 {
		return EntryPort{}, false
	}
	return e.Ports[i], true
}

// ExportedTo reports whether clients of a namespace may use the entry.
func (e *Entry) ExportedTo(namespace string) bool {
	return slices.Contains(e.ExportTo, "*") || slices.Contains(e.ExportTo, namespace)
}

// EntryRef is one port of one host of an entry.
type EntryRef struct {
	Entry   *Entry
	Port    EntryPort
	Service *Service // the host, as rules and records know it: its Hostname, Namespace and port
}

// Host is the name, or a wildcard.
func (r EntryRef) Host() string { return r.Service.Hostname }

// Ref is the host as a port of a service.
func (r EntryRef) Ref() ServiceRef {
	return ServiceRef{r.Service, ServicePort{Port: r.Port.Port, Protocol: r.Port.Protocol}}
}

// Matches reports whether the host is, or covers, a name.
func (r EntryRef) Matches(name string) bool {
	suffix, wild := strings.CutPrefix(r.Host(), "*")
	return r.Host() == name || (wild && strings.HasSuffix(name, suffix) && len(name) > len(suffix))
}

// indexEntries sorts the hosts of all entries by port: the oldest entry first, and
// of one entry in its own order.
func (w *World) indexEntries(entries []*Entry) {
	ordered := slices.Clone(entries)
	slices.SortFunc(ordered, func(a, b *Entry) int {
		return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.Key(), b.Key()))
	})
	for _, e := range ordered {
		for _, host := range e.Hosts {
			s := &Service{Name: e.Name, Namespace: e.Namespace, Hostname: host}
			for _, p := range e.Ports {
				s.Ports = append(s.Ports, ServicePort{Port: p.Port, Protocol: p.Protocol})
			}
			for _, p := range e.Ports {
				w.entries[p.Port] = append(w.entries[p.Port], EntryRef{e, p, s})
			}
		}
	}
}

// EntriesAt returns what entries say of a destination that is neither a service's
// nor a pod's, for clients of a namespace. byAddress are the hosts of the entry
// that has the most specific address; byName are those that the connection's first
// bytes can name; byPort are those that any address at the port may be (that is how
// Istio reads entries without addresses).
func (w *World) EntriesAt(namespace string, dst netip.AddrPort) (byAddress, byName, byPort []EntryRef) {
	addr := dst.Addr().Unmap()
	bits := -1
	for _, r := range w.entries[dst.Port()] {
		if !r.Entry.ExportedTo(namespace) {
			continue
		}
		at := r.Entry.bitsAt(addr)
		switch {
		case at > bits:
			byAddress, bits = []EntryRef{r}, at
		case at >= 0 && at == bits && byAddress[0].Entry == r.Entry:
			byAddress = append(byAddress, r)
		}
		if r.Port.Naming != NamedByNothing {
			byName = append(byName, r)
		} else if len(r.Entry.Addresses) == 0 {
			byPort = append(byPort, r)
		}
	}
	return byAddress, byName, byPort
}

// bitsAt is the length of the longest prefix that has the address, or -1.
func (e *Entry) bitsAt(a netip.Addr) int {
	longest := -1
	for _, p := range e.Addresses {
		if p.Contains(a) && p.Bits() > longest {
			longest = p.Bits()
		}
	}
	return longest
}

// HasEntry reports whether an entry still has a host and port for clients of a
// namespace.
func (w *World) HasEntry(namespace string, ref EntryRef) bool {
	return slices.ContainsFunc(w.entries[ref.Port.Port], func(r EntryRef) bool {
		return r.Entry.Key() == ref.Entry.Key() && r.Host() == ref.Host() && r.Entry.ExportedTo(namespace)
	})
}

// BestName returns the host that is this name, or the longest wildcard that covers
// it.
func BestName(refs []EntryRef, name string) (EntryRef, bool) {
	var best EntryRef
	for _, r := range refs {
		if r.Host() == name {
			return r, true
		}
		if r.Matches(name) && (best.Entry == nil || len(r.Host()) > len(best.Host())) {
			best = r
		}
	}
	return best, best.Entry != nil
}
