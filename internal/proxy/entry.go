package proxy

import (
	"net/netip"
	"slices"
	"strings"

	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/workload"
)

// maxAsked bounds how many names are resolved at a time for one connection, and
// maxHosts how many hosts are tried for one that names none.
const (
	maxAsked = 64
	maxHosts = 16
)

// lack is what route needs to know about a connection to a ServiceEntry's host, and
// doesn't yet. The zero value lacks nothing.
type lack struct {
	name  bool     // the host that the first bytes name
	hosts []string // their addresses
}

func (l lack) any() bool { return l.name || len(l.hosts) > 0 }

// lacking is no answer yet, and nothing is sent anywhere if it is taken for one.
func lacking(l lack) routing {
	return routing{verdict: refused, reason: policy.NoEndpoint, detail: "where the destination is has not been found out", lacks: l}
}

// routeEntry is for destinations that are neither a Service's nor a pod's: where a
// ServiceEntry leads. ok is false when none knows the destination.
func routeEntry(w *workload.World, q question) (r routing, ok bool) {
	namespace := ""
	if q.client != nil {
		namespace = q.client.Namespace
	}
	ref, missing, ok := findEntry(w, q, namespace)
	if missing.any() {
		return lacking(missing), true
	}
	if !ok {
		return routing{}, false
	}
	conduct := w.Conduct(q.client, ref.Service, ref.Port.Port)
	if t := conduct.TLS; t != nil && (t.Mode == workload.TLSSimple || t.Mode == workload.TLSMutual) && len(t.SubjectAltNames) == 0 && !t.SkipVerify { // contract 3.35
		named := *t
		named.SubjectAltNames = ref.Entry.SubjectAltNames
		conduct.TLS = &named
	}
	if ref.Entry.Resolution == workload.ResolveNone {
		return named(entryEndpoint(w, q, ref, conduct, q.dst, workload.EntryEndpoint{})), true
	}
	all, missing := entryCandidates(w, q, ref)
	if missing.any() {
		return lacking(missing), true
	}
	if len(all) == 0 {
		return routing{verdict: refused, reason: policy.NoEndpoint, detail: "ServiceEntry " + ref.Entry.Key() + " has no endpoint for " + ref.Host(), service: ref.Ref(), entry: ref}, true
	}
	addresses := make([]netip.AddrPort, len(all))
	for i := range all {
		addresses[i] = all[i].at
	}
	at := q.pick(choice{policy: &conduct.TrafficPolicy, of: keyOf(ref.Ref()), source: q.source, candidates: addresses})
	chosen := all[slices.Index(addresses, at)]
	r = entryEndpoint(w, q, ref, conduct, at, chosen.of)
	r.balanced = true
	return named(r), true
}

// findEntry finds the host of a ServiceEntry: by its addresses, else by the name in
// the connection's first bytes, else by the port.
func findEntry(w *workload.World, q question, namespace string) (workload.EntryRef, lack, bool) {
	byAddress, byName, byPort := w.EntriesAt(namespace, q.dst)
	if len(byAddress) > 0 {
		if len(byAddress) == 1 || byAddress[0].Port.Naming == workload.NamedByNothing {
			return byAddress[0], lack{}, true
		}
		byName = byAddress
	}
	if len(byAddress) > 1 || slices.ContainsFunc(byName, func(r workload.EntryRef) bool { return matters(w, q, r) }) {
		if !q.looked {
			return workload.EntryRef{}, lack{name: true}, false
		}
		if ref, ok := workload.BestName(byName, q.name); ok && q.name != "" {
			return ref, lack{}, true
		}
	}
	if len(byAddress) > 0 {
		return byAddress[0], lack{}, true
	}
	return byResolving(q, byName, byPort)
}

// matters reports whether it makes a difference that a connection is to this host:
// otherwise it goes where it goes, and isn't held up.
func matters(w *workload.World, q question, r workload.EntryRef) bool {
	return w.Mesh.Outbound == workload.RegistryOnly || len(r.Entry.Endpoints) > 0 || r.Port.Target != r.Port.Port ||
		r.Entry.Resolution == workload.ResolveStatic || w.Conduct(q.client, r.Service, r.Port.Port).Rule != ""
}

// byResolving is for connections that name no host: the destination is one that a
// host resolves to, or else that of the oldest entry for the port.
func byResolving(q question, byName, byPort []workload.EntryRef) (workload.EntryRef, lack, bool) {
	candidates := slices.Clone(byPort)
	if q.looked && q.name == "" {
		candidates = append(candidates, byName...)
	}
	candidates = candidates[:min(len(candidates), maxHosts)]
	if len(candidates) > 1 || (len(candidates) == 1 && len(byPort) == 0) {
		var missing lack
		for _, r := range candidates {
			for _, host := range namesOf(r) {
				addresses, known := q.resolved[host]
				if !known {
					missing.hosts = append(missing.hosts, host)
				}
				if slices.Contains(addresses, q.dst.Addr().Unmap()) {
					return r, lack{}, true
				}
			}
			if slices.ContainsFunc(r.Entry.Endpoints, func(e workload.EntryEndpoint) bool { return e.Address == q.dst.Addr().Unmap() }) {
				return r, lack{}, true
			}
		}
		if missing.any() {
			missing.hosts = missing.hosts[:min(len(missing.hosts), maxAsked)]
			if len(q.resolved) == 0 { // once is enough
				return workload.EntryRef{}, missing, false
			}
		}
	}
	if len(byPort) > 0 {
		return byPort[0], lack{}, true
	}
	return workload.EntryRef{}, lack{}, false
}

// namesOf are what is to be resolved for a host.
func namesOf(r workload.EntryRef) []string {
	if r.Entry.Resolution != workload.ResolveDNS {
		return nil
	}
	var names []string
	for _, e := range r.Entry.Endpoints {
		if e.Name != "" {
			names = append(names, e.Name)
		}
	}
	if len(r.Entry.Endpoints) == 0 && !strings.HasPrefix(r.Host(), "*") {
		names = append(names, r.Host())
	}
	return names
}

// entryCandidate is an address of an entry's endpoint.
type entryCandidate struct {
	at netip.AddrPort
	of workload.EntryEndpoint
}

// entryCandidates are the addresses that a host has: of the destination's family
// if there is one.
func entryCandidates(w *workload.World, q question, ref workload.EntryRef) ([]entryCandidate, lack) {
	var same, other []entryCandidate
	var missing lack
	add := func(a netip.Addr, e workload.EntryEndpoint) {
		target := ref.Port.Target
		if own, ok := e.Targets[ref.Port.Port]; ok {
			target = own
		}
		c := entryCandidate{netip.AddrPortFrom(a.Unmap(), target), e}
		switch {
		case c.at == q.exclude:
		case sameFamily(c.at, q.dst):
			same = append(same, c)
		default:
			other = append(other, c)
		}
	}
	for _, e := range ref.Entry.Endpoints {
		if e.Address.IsValid() && w.Serves(workload.Endpoint{Address: e.Address, Ready: true, Workload: e.Workload}) {
			add(e.Address, e)
		}
	}
	names := namesOf(ref)
	for _, name := range names[:min(len(names), maxAsked)] {
		addresses, known := q.resolved[name]
		if !known {
			missing.hosts = append(missing.hosts, name)
		}
		var of workload.EntryEndpoint
		if i := slices.IndexFunc(ref.Entry.Endpoints, func(e workload.EntryEndpoint) bool { return e.Name == name }); i >= 0 {
			of = ref.Entry.Endpoints[i]
		}
		for _, a := range addresses {
			add(a, of)
		}
	}
	if len(same) == 0 {
		same = other
	}
	return same, missing
}

// entryEndpoint decides how an endpoint of an entry is talked to. One that turns
// out to be a Service's address, or a pod's, is talked to as that (design D11).
func entryEndpoint(w *workload.World, q question, ref workload.EntryRef, conduct workload.Conduct, at netip.AddrPort, e workload.EntryEndpoint) routing {
	var r routing
	peer, known := w.WorkloadAt(at.Addr())
	if service, ok := w.ServiceAt(at); ok {
		inner := q
		inner.dst = at
		if conduct.Rule == "" {
			conduct = w.Conduct(q.client, service.Service, service.Port.Port)
		}
		r = routeService(w, inner, service, conduct)
		r.entry = ref
		return r
	}
	switch {
	case !known && w.Awaited(at.Addr()):
		r = routing{verdict: refused, reason: policy.NoEndpoint, detail: "the pod at this address is not known yet"}
	case !known && e.Mesh:
		peer = &workload.Workload{Name: ref.Entry.Name, Namespace: ref.Entry.Namespace, Identity: e.Identity, Mesh: true}
		fallthrough
	default:
		r = routeEndpoint(at, peer, conduct, ref.Entry.SubjectAltNames...)
	}
	if r.peer != nil && r.peer.UID == "" {
		r.peer = nil // it is made up
	}
	r.service, r.entry, r.host = ref.Ref(), ref, q.name
	return r
}
