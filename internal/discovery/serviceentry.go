package discovery

import (
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/validation"

	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/workload"
)

// KindServiceEntry is the kind of hosts that are no Services, of group
// networking.istio.io.
const KindServiceEntry = "ServiceEntry"

// serviceEntry is one such object, read.
type serviceEntry struct {
	entry    *workload.Entry
	selector map[string]string // of pods of its namespace that are its endpoints
	named    map[string]uint16 // ports by name
	accounts map[int]string    // service accounts, by endpoint
}

// ValidateServiceEntry finds all that is wrong with a ServiceEntry, and what its
// author may not expect of it.
func ValidateServiceEntry(obj *unstructured.Unstructured, clusterDomain string) (faults []Fault, warnings []string) {
	_, r := readServiceEntry(obj, clusterDomain)
	return r.faults, r.warnings
}

// readServiceEntry reads an object; what it returns is to be used only if there are
// no faults.
func readServiceEntry(obj *unstructured.Unstructured, clusterDomain string) (serviceEntry, *reader) {
	r := &reader{}
	e := serviceEntry{
		entry: &workload.Entry{Namespace: obj.GetNamespace(), Name: obj.GetName(), Created: obj.GetCreationTimestamp().UTC()},
		named: map[string]uint16{}, accounts: map[int]string{},
	}
	spec := r.object(obj.Object, "spec", "spec")
	r.onlyFields(spec, "spec", "hosts", "addresses", "ports", "location", "resolution", "endpoints", "workloadSelector", "exportTo", "subjectAltNames")
	x := e.entry
	x.External = r.word(spec, "location", "MESH_EXTERNAL", "MESH_INTERNAL") != "MESH_INTERNAL"
	resolution := r.resolution(spec)
	x.Resolution = resolutions[resolution]
	x.Hosts = r.entryHosts(spec, clusterDomain)
	x.Addresses = r.entryAddresses(spec)
	x.Ports = r.entryPorts(spec, &e)
	x.ExportTo = r.exportTo(spec, x.Namespace)
	x.SubjectAltNames = r.texts(spec, "subjectAltNames", "spec.subjectAltNames")
	if s := r.object(spec, "workloadSelector", "spec.workloadSelector"); s != nil {
		r.onlyFields(s, "spec.workloadSelector", "labels")
		e.selector = r.selectorLabels(s)
	}
	r.entryEndpoints(spec, &e)
	r.entryCombination(&e, resolution)
	return e, r
}

// resolutions are Istio's words. DNS_ROUND_ROBIN differs from DNS only in what
// becomes of connections that are pooled, and here none is.
var resolutions = map[string]workload.Resolution{
	"NONE": workload.ResolveNone, "DYNAMIC_DNS": workload.ResolveNone, "STATIC": workload.ResolveStatic, "DNS": workload.ResolveDNS, "DNS_ROUND_ROBIN": workload.ResolveDNS,
}

func (r *reader) resolution(spec map[string]any) string {
	word := r.word(spec, "resolution", "NONE", "STATIC", "DNS", "DNS_ROUND_ROBIN", "DYNAMIC_DNS")
	if word == "DYNAMIC_DNS" {
		r.warn("spec.resolution", "DYNAMIC_DNS is taken as NONE: a connection goes to the address that the application has resolved")
	}
	return word
}

// word reads one of some words; absent is the first.
func (r *reader) word(of map[string]any, name string, words ...string) string {
	at := "spec." + name
	word, ok := r.text(of, name, at)
	if !ok || word == "" {
		return words[0]
	}
	if !slices.Contains(words, word) {
		r.fault(at, "write one of "+strings.Join(words, ", "), "%q is not one of the words", word)
		return words[0]
	}
	return word
}

func (r *reader) entryHosts(spec map[string]any, clusterDomain string) []string {
	var hosts []string
	for i, host := range r.texts(spec, "hosts", "spec.hosts") {
		at := fmt.Sprintf("spec.hosts[%d]", i)
		host = strings.ToLower(host)
		name, _ := strings.CutPrefix(host, "*.")
		_, notAddress := netip.ParseAddr(host)
		switch {
		case host == "*":
			r.fault(at, "name the hosts, or a star and the end of their names such as *.example.com", "a star alone would be every destination")
			continue
		case notAddress == nil:
			r.fault(at, "write a name here and the address under spec.addresses", "%q is an address", host)
			continue
		case len(validation.IsDNS1123Subdomain(name)) > 0:
			r.fault(at, "write a full name, or a star and the end of one such as *.example.com", "%q is not a host", host)
			continue
		case strings.HasSuffix(host, ".svc."+clusterDomain):
			r.warn(at, "%s is a name of this cluster: what a Service or a pod has the address of is reached as that, whatever stands here", host)
		}
		if !slices.Contains(hosts, host) {
			hosts = append(hosts, host)
		}
	}
	if len(hosts) == 0 && len(r.faults) == 0 {
		r.fault("spec.hosts", "name at least one host", "is missing or empty")
	}
	return hosts
}

func (r *reader) entryAddresses(spec map[string]any) []netip.Prefix {
	var all []netip.Prefix
	for i, text := range r.texts(spec, "addresses", "spec.addresses") {
		p, err := netip.ParsePrefix(text)
		if a, notAddress := netip.ParseAddr(text); notAddress == nil && a.Zone() == "" {
			a = a.Unmap()
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil || p.Addr().Is4In6() {
			r.fault(fmt.Sprintf("spec.addresses[%d]", i), "write an address or a network such as 192.0.2.0/24", "%q is neither", text)
			continue
		}
		all = append(all, p.Masked())
	}
	return all
}

func (r *reader) entryPorts(spec map[string]any, e *serviceEntry) []workload.EntryPort {
	var ports []workload.EntryPort
	list := r.objects(spec, "ports", "spec.ports")
	if len(list) == 0 {
		r.fault("spec.ports", "name at least one port", "is missing or empty")
	}
	seen := map[uint16]bool{}
	for i, p := range list {
		at := fmt.Sprintf("spec.ports[%d]", i)
		r.onlyFields(p, at, "number", "name", "protocol", "targetPort")
		number, _ := r.number(p, "number", at+".number", math.MaxUint16)
		target, _ := r.number(p, "targetPort", at+".targetPort", math.MaxUint16)
		name, _ := r.text(p, "name", at+".name")
		word, _ := r.text(p, "protocol", at+".protocol")
		if target == 0 {
			target = number
		}
		port := workload.EntryPort{Port: uint16(number), Target: uint16(target)}
		switch {
		case number == 0:
			r.fault(at+".number", "write the number of the port, from 1 to 65535", "is missing or no port")
			continue
		case strings.EqualFold(word, "UDP"):
			r.warn(at, "has no effect: UDP is not touched")
			continue
		case seen[port.Port]:
			r.fault(at+".number", "give each port one entry", "port %d comes twice", number)
		case name == "":
			r.fault(at+".name", "give the port a name", "is missing")
		case e.named[name] != 0:
			r.fault(at+".name", "give each port a name of its own", "%q comes twice", name)
		}
		port.Protocol, port.Naming = r.entryProtocol(word, at+".protocol")
		seen[port.Port], e.named[name] = true, port.Port
		ports = append(ports, port)
	}
	return ports
}

// entryProtocol is what a port carries, and what of its bytes names the host.
func (r *reader) entryProtocol(word, at string) (policy.Protocol, workload.Naming) {
	lower := strings.ToLower(word)
	proto, known := protocolTokens[lower]
	switch {
	case lower == "":
		return policy.Auto, workload.NamedByEither
	case !known:
		r.fault(at, "write one of HTTP, HTTP2, GRPC, GRPC-WEB, HTTPS, TLS, TCP, MONGO, REDIS, MYSQL", "%q is not a protocol", word)
		return policy.TCP, workload.NamedByNothing
	case proto == policy.HTTP:
		return proto, workload.NamedByHost
	case lower == "https" || lower == "tls":
		return proto, workload.NamedBySNI
	}
	return proto, workload.NamedByNothing
}

// selectorLabels reads workloadSelector.labels of a ServiceEntry, which is not
// matchLabels.
func (r *reader) selectorLabels(s map[string]any) map[string]string {
	const at = "spec.workloadSelector.labels"
	labels := map[string]string{}
	said := r.object(s, "labels", at)
	for _, k := range slices.Sorted(maps.Keys(said)) {
		text, ok := said[k].(string)
		if !ok || k == "" || strings.Contains(k+text, "*") {
			r.fault(fmt.Sprintf("%s[%q]", at, k), "write whole keys and values in quotes", "is not a label")
			continue
		}
		labels[k] = text
	}
	if len(labels) == 0 {
		r.fault(at, "name the labels of the pods", "is missing or empty")
	}
	return labels
}

func (r *reader) entryEndpoints(spec map[string]any, e *serviceEntry) {
	for i, x := range r.objects(spec, "endpoints", "spec.endpoints") {
		at := fmt.Sprintf("spec.endpoints[%d]", i)
		r.onlyFields(x, at, "address", "ports", "labels", "network", "locality", "weight", "serviceAccount")
		r.noEffect(x, at, "network", "locality", "weight")
		address, _ := r.text(x, "address", at+".address")
		ep := workload.EntryEndpoint{}
		parsed, err := netip.ParseAddr(address)
		switch {
		case err == nil && parsed.Zone() == "" && !parsed.IsUnspecified():
			ep.Address = parsed.Unmap()
		case e.entry.Resolution != workload.ResolveDNS:
			r.fault(at+".address", "write an address, or let spec.resolution be DNS", "%q is not an address", address)
		case len(validation.IsDNS1123Subdomain(strings.ToLower(address))) > 0:
			r.fault(at+".address", "write an address or a full name", "%q is neither", address)
		default:
			ep.Name = strings.ToLower(address)
		}
		labels := r.object(x, "labels", at+".labels")
		ep.Mesh = labels[labelTLSMode] == "istio" // contract 3.20
		e.accounts[i], _ = r.text(x, "serviceAccount", at+".serviceAccount")
		own := r.object(x, "ports", at+".ports")
		for _, name := range slices.Sorted(maps.Keys(own)) {
			n, _ := r.number(own, name, fmt.Sprintf("%s.ports[%q]", at, name), math.MaxUint16)
			port, known := e.named[name]
			switch {
			case !known:
				r.fault(fmt.Sprintf("%s.ports[%q]", at, name), "name a port of spec.ports", "there is no such port")
				continue
			case n == 0:
				r.fault(fmt.Sprintf("%s.ports[%q]", at, name), "write a number from 1 to 65535", "is no port")
				continue
			}
			if ep.Targets == nil {
				ep.Targets = map[uint16]uint16{}
			}
			ep.Targets[port] = uint16(n)
		}
		e.entry.Endpoints = append(e.entry.Endpoints, ep)
	}
}

// entryCombination finds fields that don't go together, and what is known to
// surprise people.
func (r *reader) entryCombination(e *serviceEntry, resolution string) {
	x := e.entry
	wild := slices.ContainsFunc(x.Hosts, func(h string) bool { return strings.HasPrefix(h, "*") })
	switch {
	case e.selector != nil && len(x.Endpoints) > 0:
		r.fault("spec.endpoints", "name either pods in workloadSelector or endpoints", "stand beside workloadSelector")
	case x.Resolution == workload.ResolveNone && len(x.Endpoints) > 0:
		r.fault("spec.endpoints", "leave them out, or let spec.resolution be STATIC or DNS", "%s goes where the application wants to go, and there are endpoints", resolution)
	case x.Resolution == workload.ResolveStatic && len(x.Endpoints) == 0 && e.selector == nil:
		r.warn("spec.endpoints", "there are none, and no workloadSelector: connections to the hosts are refused")
	case x.Resolution == workload.ResolveDNS && len(x.Endpoints) == 0 && wild:
		r.fault("spec.hosts", "write full names, or name endpoints, or let spec.resolution be NONE", "a wildcard can't be resolved")
	case resolution == "DNS_ROUND_ROBIN" && len(x.Endpoints) > 1:
		r.fault("spec.endpoints", "name one endpoint, or let spec.resolution be DNS", "DNS_ROUND_ROBIN has one at most")
	}
	if e.selector != nil && x.Resolution != workload.ResolveStatic {
		r.fault("spec.resolution", "write STATIC: the endpoints are pods", "%s and workloadSelector don't go together", resolution)
	}
	if x.Resolution == workload.ResolveDNS && slices.ContainsFunc(x.Addresses, func(p netip.Prefix) bool { return !p.IsSingleIP() }) {
		r.fault("spec.addresses", "write single addresses, or let spec.resolution be NONE or STATIC", "networks don't go together with %s", resolution)
	}
	for i, p := range x.Ports {
		if p.Naming == workload.NamedByNothing && len(x.Addresses) == 0 && len(x.Hosts) > 0 {
			r.warn(fmt.Sprintf("spec.ports[%d]", i), "every destination at port %d that nothing else is known of counts as %s, as nothing in the bytes names the host: write spec.addresses", p.Port, x.Hosts[0])
		}
	}
}

// identify fills in who must answer at endpoints that have a proxy and are no pods.
func (e *serviceEntry) identify(trustDomain string) {
	for i, account := range e.accounts {
		if id, err := identity.New(trustDomain, e.entry.Namespace, account); err == nil && e.entry.Endpoints[i].Mesh {
			e.entry.Endpoints[i].Identity = id
		}
	}
}
