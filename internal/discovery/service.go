package discovery

import (
	"cmp"
	"net/netip"
	"slices"

	"istio.io/api/annotation"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"podseal.io/podseal/internal/workload"
)

// hostname is a service's full name.
func hostname(svc *corev1.Service, clusterDomain string) string {
	return svc.Name + "." + svc.Namespace + ".svc." + clusterDomain
}

// ignoredAnnotations are those of Istio's registry that a Service may have: none
// of them has an effect (contract 3.52, 3.67).
func ignoredAnnotations(all map[string]string) []string {
	var ignored []string
	for _, a := range annotation.AllResourceAnnotations() {
		if _, set := all[a.Name]; set && a.Name != annotation.GalleyAnalyzeSuppress.Name {
			ignored = append(ignored, a.Name)
		}
	}
	slices.Sort(ignored)
	return ignored
}

// indexSlices groups slices by "<namespace>/<service>". Slices of names or of
// no service are of no use to a proxy.
func indexSlices(all []*discoveryv1.EndpointSlice) map[string][]*discoveryv1.EndpointSlice {
	by := make(map[string][]*discoveryv1.EndpointSlice, len(all))
	for _, s := range all {
		name := s.Labels[discoveryv1.LabelServiceName]
		if name == "" || s.AddressType == discoveryv1.AddressTypeFQDN {
			continue
		}
		key := s.Namespace + "/" + name
		by[key] = append(by[key], s)
	}
	return by
}

func buildService(svc *corev1.Service, from []*discoveryv1.EndpointSlice, clusterDomain string, hostNetwork map[string]bool) *workload.Service {
	s := &workload.Service{
		Name:      svc.Name,
		Namespace: svc.Namespace,
		Hostname:  hostname(svc, clusterDomain),
		Addresses: clusterAddresses(svc),
	}
	byName := make(map[string]uint16, len(svc.Spec.Ports))
	for i := range svc.Spec.Ports {
		p := &svc.Spec.Ports[i]
		if !isTCP(p.Protocol) || p.Port < 1 || p.Port > 65535 {
			continue
		}
		s.Ports = append(s.Ports, workload.ServicePort{Name: p.Name, Port: uint16(p.Port), Protocol: protocolOf(p)})
		byName[p.Name] = uint16(p.Port)
	}
	slices.SortFunc(s.Ports, func(a, b workload.ServicePort) int { return int(a.Port) - int(b.Port) })
	s.Endpoints = buildEndpoints(svc, from, byName, hostNetwork)
	return s
}

// clusterAddresses are both families' VIPs; a headless service has none.
func clusterAddresses(svc *corev1.Service) []netip.Addr {
	ips := svc.Spec.ClusterIPs
	if len(ips) == 0 {
		ips = []string{svc.Spec.ClusterIP}
	}
	return parseAddresses(ips)
}

// parseAddresses reads addresses in order, without what is none ("None", "")
// and without repetition.
func parseAddresses(texts []string) []netip.Addr {
	var addrs []netip.Addr
	for _, text := range texts {
		a, err := netip.ParseAddr(text)
		if err != nil {
			continue
		}
		if a = a.Unmap().WithZone(""); !slices.Contains(addrs, a) {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

// buildEndpoints joins the slices of a service, by address. An address that is
// not ready stays, so that proxies know whose it is, but gets no connections;
// a terminating one goes (contract 3.59).
func buildEndpoints(svc *corev1.Service, from []*discoveryv1.EndpointSlice, byName map[string]uint16, hostNetwork map[string]bool) []workload.Endpoint {
	if len(from) == 0 || len(byName) == 0 {
		return nil
	}
	joined := map[netip.Addr]workload.Endpoint{}
	for _, slice := range from {
		targets := sliceTargets(slice, byName)
		if len(targets) == 0 {
			continue
		}
		for i := range slice.Endpoints {
			e := &slice.Endpoints[i]
			ready := svc.Spec.PublishNotReadyAddresses || e.Conditions.Ready == nil || *e.Conditions.Ready
			terminating := e.Conditions.Terminating != nil && *e.Conditions.Terminating
			if terminating && (e.Conditions.Ready == nil || !*e.Conditions.Ready) {
				continue
			}
			uid := podOf(e, svc.Namespace)
			if hostNetwork[uid] {
				uid = "" // the address is its node's
			}
			for _, a := range parseAddresses(e.Addresses) {
				joined[a] = join(joined[a], workload.Endpoint{Address: a, Ready: ready, Targets: targets, Workload: uid})
			}
		}
	}
	endpoints := make([]workload.Endpoint, 0, len(joined))
	for _, e := range joined {
		endpoints = append(endpoints, e)
	}
	slices.SortFunc(endpoints, func(a, b workload.Endpoint) int { return a.Address.Compare(b.Address) })
	return endpoints
}

// podOf is the UID of the pod behind an endpoint, or "".
func podOf(e *discoveryv1.Endpoint, namespace string) string {
	if e.TargetRef == nil || e.TargetRef.Kind != "Pod" {
		return ""
	}
	return cmp.Or(e.TargetRef.Namespace, namespace) + "/" + e.TargetRef.Name
}

// sliceTargets maps service ports to the ports of a slice, which are tied by name.
func sliceTargets(slice *discoveryv1.EndpointSlice, byName map[string]uint16) map[uint16]uint16 {
	targets := make(map[uint16]uint16, len(slice.Ports))
	for _, p := range slice.Ports {
		if p.Port == nil || *p.Port < 1 || *p.Port > 65535 || (p.Protocol != nil && !isTCP(*p.Protocol)) {
			continue
		}
		name := ""
		if p.Name != nil {
			name = *p.Name
		}
		if port, ok := byName[name]; ok {
			targets[port] = uint16(*p.Port)
		}
	}
	return targets
}

// join unites what two slices say of one address. Targets are shared between
// the endpoints of a slice, so they are copied before they change.
func join(a, b workload.Endpoint) workload.Endpoint {
	if a.Targets == nil {
		return b
	}
	targets := make(map[uint16]uint16, len(a.Targets)+len(b.Targets))
	for _, m := range []map[uint16]uint16{a.Targets, b.Targets} {
		for port, target := range m {
			if old, ok := targets[port]; !ok || target < old {
				targets[port] = target
			}
		}
	}
	return workload.Endpoint{Address: b.Address, Ready: a.Ready || b.Ready, Targets: targets, Workload: cmp.Or(a.Workload, b.Workload)}
}
