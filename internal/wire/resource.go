package wire

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	meshv1 "podseal.io/podseal/api/mesh/v1"
	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/workload"
)

// The types of resources that travel from the control plane to proxies.
const (
	TypeWorkload = "type.googleapis.com/podseal.mesh.v1.Workload" // name: "<namespace>/<pod>"
	TypeService  = "type.googleapis.com/podseal.mesh.v1.Service"  // name: "<namespace>/<name>"
	TypeMesh     = "type.googleapis.com/podseal.mesh.v1.Mesh"     // name: "mesh"

	TypeAuthorizationPolicy   = "type.googleapis.com/podseal.mesh.v1.AuthorizationPolicy"   // name: "<namespace>/<name>"
	TypeRequestAuthentication = "type.googleapis.com/podseal.mesh.v1.RequestAuthentication" // likewise
)

// KindOf is the last part of a type URL, as people know it.
func KindOf(typeURL string) string { return typeURL[strings.LastIndexByte(typeURL, '.')+1:] }

// Types are all types of resources in the order in which they are published and
// asked for: what holds for all first, rules before what they are about. A proxy is
// ready once it has been told of each.
func Types() []string {
	return []string{TypeMesh, TypeRequestAuthentication, TypeAuthorizationPolicy, TypeDestinationRule, TypeWorkload, TypeService, TypeServiceEntry}
}

// maxSeconds is the longest time that a time.Duration holds.
const maxSeconds = int64(math.MaxInt64 / time.Second)

// AppendWorkload appends the encoding of w, which is the same for equal values.
// It refuses what ParseWorkload would refuse, with all faults joined.
func AppendWorkload(b []byte, w *workload.Workload) ([]byte, error) {
	m := &meshv1.Workload{
		Name:              w.Name,
		Namespace:         w.Namespace,
		Node:              w.Node,
		Addresses:         addressesToProto(w.Addresses),
		Identity:          w.Identity.String(),
		Mesh:              w.Mesh,
		Mode:              meshv1.Mode(w.Modes.Default),
		CanonicalName:     w.CanonicalName,
		CanonicalRevision: w.CanonicalRevision,
		WorkloadName:      w.WorkloadName,
		App:               w.App,
		Version:           w.Version,

		AuthorizationPolicies:  w.Policies,
		DestinationRules:       w.Rules,
		RequestAuthentications: w.Authentications,
	}
	if len(w.Modes.Ports) > 0 {
		m.PortModes = make(map[uint32]meshv1.Mode, len(w.Modes.Ports))
		for port, mode := range w.Modes.Ports {
			m.PortModes[uint32(port)] = meshv1.Mode(mode)
		}
	}
	for _, p := range w.Ports {
		m.Ports = append(m.Ports, &meshv1.Workload_Port{
			Target:      uint32(p.Target),
			Protocol:    meshv1.Protocol(p.Protocol),
			ServiceHost: p.ServiceHost,
			ServicePort: uint32(p.ServicePort),
		})
	}
	checked, err := workloadFromProto(m)
	if err == nil && w.UID != checked.UID {
		err = fmt.Errorf("UID %q is not <namespace>/<name>", w.UID)
	}
	if err != nil {
		return nil, fmt.Errorf("encode workload %q: %w", w.UID, err)
	}
	return appendProto(b, m)
}

// ParseWorkload is the reverse of AppendWorkload. All faults come joined.
func ParseWorkload(b []byte) (*workload.Workload, error) {
	m := &meshv1.Workload{}
	if err := parseProto(b, m); err != nil {
		return nil, fmt.Errorf("parse workload: %w", err)
	}
	w, err := workloadFromProto(m)
	if err != nil {
		return nil, fmt.Errorf("parse workload %q: %w", m.GetNamespace()+"/"+m.GetName(), err)
	}
	return w, nil
}

func workloadFromProto(m *meshv1.Workload) (*workload.Workload, error) {
	var f faults
	w := &workload.Workload{
		UID:               f.resourceName(m.GetNamespace(), m.GetName()),
		Name:              m.GetName(),
		Namespace:         m.GetNamespace(),
		Node:              m.GetNode(),
		Addresses:         f.addresses(m.GetAddresses()),
		Mesh:              m.GetMesh(),
		Modes:             policy.Modes{Default: f.mode("mode", m.GetMode())},
		CanonicalName:     m.GetCanonicalName(),
		CanonicalRevision: m.GetCanonicalRevision(),
		WorkloadName:      m.GetWorkloadName(),
		App:               m.GetApp(),
		Version:           m.GetVersion(),
		Rules:             m.GetDestinationRules(),
		Policies:          m.GetAuthorizationPolicies(),
		Authentications:   m.GetRequestAuthentications(),
	}
	for _, key := range slices.Concat(w.Policies, w.Authentications) {
		namespace, name, _ := strings.Cut(key, "/")
		f.resourceName(namespace, name)
	}
	if s := m.GetIdentity(); s != "" {
		id, err := identity.Parse(s)
		f.add(err)
		w.Identity = id
	}
	if w.Mesh {
		f.require(m.GetIdentity() != "", "a mesh workload has no identity")
		f.require(m.GetMode() != meshv1.Mode_MODE_UNSET, "the mode of a mesh workload is not resolved")
	}
	if n := len(m.GetPortModes()); n > 0 {
		w.Modes.Ports = make(map[uint16]policy.Mode, n)
	}
	for port, mode := range m.GetPortModes() {
		f.require(mode != meshv1.Mode_MODE_UNSET, "the mode of port %d is not resolved", port)
		w.Modes.Ports[f.port("port mode", port)] = f.mode("port mode", mode)
	}
	seen := map[uint16]bool{}
	for _, p := range m.GetPorts() {
		target := f.port("target port", p.GetTarget())
		f.require(!seen[target], "target port %d comes twice", target)
		seen[target] = true
		own := workload.Port{Target: target, Protocol: f.protocol(p.GetProtocol()), ServiceHost: p.GetServiceHost()}
		if p.GetServiceHost() != "" || p.GetServicePort() != 0 {
			own.ServicePort = f.port("service port", p.GetServicePort())
			f.require(own.ServiceHost != "", "target port %d has a service port and no service", target)
		}
		w.Ports = append(w.Ports, own)
	}
	return w, f.err()
}

// AppendService appends the encoding of s, which is the same for equal values.
// It refuses what ParseService would refuse, with all faults joined.
func AppendService(b []byte, s *workload.Service) ([]byte, error) {
	m := &meshv1.Service{
		Name:      s.Name,
		Namespace: s.Namespace,
		Hostname:  s.Hostname,
		Addresses: addressesToProto(s.Addresses),
	}
	for _, p := range s.Ports {
		m.Ports = append(m.Ports, &meshv1.Service_Port{Name: p.Name, Port: uint32(p.Port), Protocol: meshv1.Protocol(p.Protocol)})
	}
	for _, e := range s.Endpoints {
		pe := &meshv1.Service_Endpoint{Address: e.Address.Unmap().AsSlice(), Ready: e.Ready, Workload: e.Workload}
		if len(e.Targets) > 0 {
			pe.Targets = make(map[uint32]uint32, len(e.Targets))
			for port, target := range e.Targets {
				pe.Targets[uint32(port)] = uint32(target)
			}
		}
		m.Endpoints = append(m.Endpoints, pe)
	}
	if _, err := serviceFromProto(m); err != nil {
		return nil, fmt.Errorf("encode service %q: %w", s.Namespace+"/"+s.Name, err)
	}
	return appendProto(b, m)
}

// ParseService is the reverse of AppendService. All faults come joined.
func ParseService(b []byte) (*workload.Service, error) {
	m := &meshv1.Service{}
	if err := parseProto(b, m); err != nil {
		return nil, fmt.Errorf("parse service: %w", err)
	}
	s, err := serviceFromProto(m)
	if err != nil {
		return nil, fmt.Errorf("parse service %q: %w", m.GetNamespace()+"/"+m.GetName(), err)
	}
	return s, nil
}

func serviceFromProto(m *meshv1.Service) (*workload.Service, error) {
	var f faults
	f.resourceName(m.GetNamespace(), m.GetName())
	f.require(m.GetHostname() != "", "hostname is empty")
	s := &workload.Service{
		Name:      m.GetName(),
		Namespace: m.GetNamespace(),
		Hostname:  m.GetHostname(),
		Addresses: f.addresses(m.GetAddresses()),
	}
	seen := map[uint16]bool{}
	for _, p := range m.GetPorts() {
		port := f.port("port", p.GetPort())
		f.require(!seen[port], "port %d comes twice", port)
		seen[port] = true
		s.Ports = append(s.Ports, workload.ServicePort{Name: p.GetName(), Port: port, Protocol: f.protocol(p.GetProtocol())})
	}
	for _, pe := range m.GetEndpoints() {
		e := workload.Endpoint{Address: f.address(pe.GetAddress()), Ready: pe.GetReady(), Workload: pe.GetWorkload()}
		if n := len(pe.GetTargets()); n > 0 {
			e.Targets = make(map[uint16]uint16, n)
		}
		for port, target := range pe.GetTargets() {
			e.Targets[f.port("endpoint's service port", port)] = f.port("endpoint's target port", target)
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return s, f.err()
}

// maxAccessLog bounds the format of the access log.
const maxAccessLog = 32 << 10

// AppendMesh appends the encoding of m, which is the same for equal values. The
// idle timeout travels in whole seconds, rounded up. It refuses what ParseMesh
// would refuse, with all faults joined.
func AppendMesh(b []byte, m *workload.Mesh) ([]byte, error) {
	seconds := int64(m.IdleTimeout / time.Second)
	if m.IdleTimeout%time.Second > 0 {
		seconds++
	}
	if m.IdleTimeout < 0 {
		seconds = -1
	}
	p := &meshv1.Mesh{
		TrustDomains:       m.TrustDomains,
		ClusterDomain:      m.ClusterDomain,
		Outbound:           meshv1.OutboundPolicy(m.Outbound),
		Http10:             m.HTTP10,
		IdleTimeoutSeconds: seconds,
		Bundle:             m.BundlePEM,
		Revocations:        m.RevokedPEM,
		RootNamespace:      m.RootNamespace,
		AccessLog:          m.AccessLog.Format,
		AccessLogJson:      m.AccessLog.JSON,
	}
	p.Authorizers = authorizersToProto(m.Authorizers)
	if _, err := meshFromProto(p); err != nil {
		return nil, fmt.Errorf("encode mesh: %w", err)
	}
	return appendProto(b, p)
}

// ParseMesh is the reverse of AppendMesh. The bundle may be empty: then no
// roots are known yet. All faults come joined.
func ParseMesh(b []byte) (*workload.Mesh, error) {
	p := &meshv1.Mesh{}
	if err := parseProto(b, p); err != nil {
		return nil, fmt.Errorf("parse mesh: %w", err)
	}
	m, err := meshFromProto(p)
	if err != nil {
		return nil, fmt.Errorf("parse mesh: %w", err)
	}
	return m, nil
}

func meshFromProto(p *meshv1.Mesh) (*workload.Mesh, error) {
	var f faults
	f.require(len(p.GetTrustDomains()) > 0, "no trust domain")
	for _, td := range p.GetTrustDomains() {
		if _, err := identity.Parse(td + "/ns/any/sa/any"); err != nil {
			f.require(false, "%q is not a trust domain", td)
		}
	}
	f.require(p.GetClusterDomain() != "", "cluster domain is empty")
	if _, ok := meshv1.OutboundPolicy_name[int32(p.GetOutbound())]; !ok {
		f.require(false, "outbound policy %d is unknown", p.GetOutbound())
	}
	seconds := p.GetIdleTimeoutSeconds()
	f.require(seconds >= 0 && seconds <= maxSeconds, "idle timeout is out of range")
	if len(p.GetBundle()) > 0 {
		_, err := identity.ParseBundle(p.GetBundle())
		f.add(err)
	}
	if len(p.GetRevocations()) > 0 {
		_, err := identity.ParseRevocations(p.GetRevocations())
		f.add(err)
	}
	f.require(len(p.GetAccessLog()) <= maxAccessLog, "the format of the access log is longer than %d bytes", maxAccessLog)
	return &workload.Mesh{
		TrustDomains:  p.GetTrustDomains(),
		ClusterDomain: p.GetClusterDomain(),
		Outbound:      workload.OutboundPolicy(p.GetOutbound()),
		HTTP10:        p.GetHttp10(),
		IdleTimeout:   time.Duration(seconds) * time.Second,
		BundlePEM:     p.GetBundle(),
		RevokedPEM:    p.GetRevocations(),
		RootNamespace: p.GetRootNamespace(),
		Authorizers:   authorizersFromProto(&f, p.GetAuthorizers()),
		AccessLog:     workload.AccessLog{Format: p.GetAccessLog(), JSON: p.GetAccessLogJson()},
	}, f.err()
}

func appendProto(b []byte, m proto.Message) ([]byte, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend(b, m)
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	return b, nil
}

// parseProto passes over fields that it doesn't know: a newer control plane may
// add some.
func parseProto(b []byte, m proto.Message) error {
	return proto.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(b, m)
}

func addressesToProto(addrs []netip.Addr) [][]byte {
	var all [][]byte
	for _, a := range addrs {
		all = append(all, a.Unmap().AsSlice())
	}
	return all
}

// faults collects what is wrong with one resource.
type faults []error

func (f *faults) add(err error) {
	if err != nil {
		*f = append(*f, err)
	}
}

func (f *faults) require(ok bool, format string, args ...any) {
	if !ok {
		*f = append(*f, fmt.Errorf(format, args...))
	}
}

func (f *faults) err() error { return errors.Join(*f...) }

func (f *faults) resourceName(namespace, name string) string {
	f.require(namespace != "" && !strings.Contains(namespace, "/"), "namespace %q is empty or has a slash", namespace)
	f.require(name != "" && !strings.Contains(name, "/"), "name %q is empty or has a slash", name)
	return namespace + "/" + name
}

// address takes 4 or 16 bytes; IPv4 has one form only, so that equal addresses
// are equal keys.
func (f *faults) address(b []byte) netip.Addr {
	a, ok := netip.AddrFromSlice(b)
	f.require(ok && !a.Is4In6() && !a.IsUnspecified(), "address %x is not one of 4 or 16 bytes", b)
	return a
}

func (f *faults) addresses(all [][]byte) []netip.Addr {
	var addrs []netip.Addr
	for _, b := range all {
		addrs = append(addrs, f.address(b))
	}
	return addrs
}

func (f *faults) port(what string, n uint32) uint16 {
	f.require(n >= 1 && n <= math.MaxUint16, "%s %d is not in 1..65535", what, n)
	return uint16(n)
}

func (f *faults) mode(what string, m meshv1.Mode) policy.Mode {
	_, ok := meshv1.Mode_name[int32(m)]
	f.require(ok, "%s %d is unknown", what, m)
	return policy.Mode(m)
}

func (f *faults) protocol(p meshv1.Protocol) policy.Protocol {
	_, ok := meshv1.Protocol_name[int32(p)]
	f.require(ok, "protocol %d is unknown", p)
	return policy.Protocol(p)
}
