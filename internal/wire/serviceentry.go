package wire

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	meshv1 "podseal.io/podseal/api/mesh/v1"
	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/workload"
)

// TypeServiceEntry is the type of entries; their name is "<namespace>/<name>".
const TypeServiceEntry = "type.googleapis.com/podseal.mesh.v1.ServiceEntry"

// AppendServiceEntry appends the encoding of e, which is the same for equal
// values. It refuses what ParseServiceEntry would refuse, with all faults joined.
func AppendServiceEntry(b []byte, e *workload.Entry) ([]byte, error) {
	m := &meshv1.ServiceEntry{
		Name: e.Name, Namespace: e.Namespace, Hosts: e.Hosts, External: e.External, Resolution: meshv1.ServiceEntry_Resolution(e.Resolution),
		ExportTo: e.ExportTo, SubjectAltNames: e.SubjectAltNames, CreatedSeconds: e.Created.Unix(),
	}
	for _, p := range e.Addresses {
		m.Addresses = append(m.Addresses, &meshv1.ServiceEntry_Prefix{Address: p.Addr().AsSlice(), Bits: uint32(p.Bits())})
	}
	for _, p := range e.Ports {
		m.Ports = append(m.Ports, &meshv1.ServiceEntry_Port{
			Port: uint32(p.Port), Target: uint32(p.Target), Protocol: meshv1.Protocol(p.Protocol), Naming: meshv1.ServiceEntry_Naming(p.Naming),
		})
	}
	for _, x := range e.Endpoints {
		pe := &meshv1.ServiceEntry_Endpoint{Name: x.Name, Workload: x.Workload, Mesh: x.Mesh}
		if x.Address.IsValid() {
			pe.Address = x.Address.Unmap().AsSlice()
		}
		if !x.Identity.IsZero() {
			pe.Identity = x.Identity.String()
		}
		if len(x.Targets) > 0 {
			pe.Targets = make(map[uint32]uint32, len(x.Targets))
			for port, target := range x.Targets {
				pe.Targets[uint32(port)] = uint32(target)
			}
		}
		m.Endpoints = append(m.Endpoints, pe)
	}
	if _, err := entryFromProto(m); err != nil {
		return nil, fmt.Errorf("encode service entry %q: %w", e.Key(), err)
	}
	return appendProto(b, m)
}

// ParseServiceEntry is the reverse of AppendServiceEntry. All faults come joined.
func ParseServiceEntry(b []byte) (*workload.Entry, error) {
	m := &meshv1.ServiceEntry{}
	if err := parseProto(b, m); err != nil {
		return nil, fmt.Errorf("parse service entry: %w", err)
	}
	e, err := entryFromProto(m)
	if err != nil {
		return nil, fmt.Errorf("parse service entry %q: %w", m.GetNamespace()+"/"+m.GetName(), err)
	}
	return e, nil
}

func entryFromProto(m *meshv1.ServiceEntry) (*workload.Entry, error) {
	var f faults
	f.resourceName(m.GetNamespace(), m.GetName())
	f.require(len(m.GetHosts()) > 0, "no hosts")
	for _, host := range m.GetHosts() {
		name, wild := strings.CutPrefix(host, "*.")
		f.require(name != "" && !strings.Contains(name, "*") && (!wild || name != host), "host %q is empty or has a star inside", host)
	}
	f.require(len(m.GetExportTo()) > 0, "exported to nobody")
	f.require(m.GetCreatedSeconds() >= minSeconds && m.GetCreatedSeconds() <= maxSeconds, "age is out of range")
	_, known := meshv1.ServiceEntry_Resolution_name[int32(m.GetResolution())]
	f.require(known, "resolution %d is unknown", m.GetResolution())
	e := &workload.Entry{
		Name: m.GetName(), Namespace: m.GetNamespace(), Hosts: m.GetHosts(), External: m.GetExternal(), Resolution: workload.Resolution(m.GetResolution()),
		ExportTo: m.GetExportTo(), SubjectAltNames: m.GetSubjectAltNames(), Created: time.Unix(m.GetCreatedSeconds(), 0).UTC(),
	}
	for _, p := range m.GetAddresses() {
		e.Addresses = append(e.Addresses, f.prefix(p))
	}
	seen := map[uint16]bool{}
	for _, p := range m.GetPorts() {
		_, known := meshv1.ServiceEntry_Naming_name[int32(p.GetNaming())]
		f.require(known, "naming %d is unknown", p.GetNaming())
		port := workload.EntryPort{
			Port: f.port("port", p.GetPort()), Target: f.port("target port", p.GetTarget()), Protocol: f.protocol(p.GetProtocol()), Naming: workload.Naming(p.GetNaming()),
		}
		f.require(!seen[port.Port], "port %d comes twice", port.Port)
		seen[port.Port] = true
		e.Ports = append(e.Ports, port)
	}
	for _, pe := range m.GetEndpoints() {
		e.Endpoints = append(e.Endpoints, f.entryEndpoint(pe))
	}
	return e, f.err()
}

func (f *faults) prefix(m *meshv1.ServiceEntry_Prefix) netip.Prefix {
	a, ok := netip.AddrFromSlice(m.GetAddress())
	p := netip.PrefixFrom(a, int(m.GetBits()&0xff)).Masked()
	f.require(ok && !a.Is4In6() && m.GetBits() <= 128 && p.IsValid() && p.Addr() == a, "%x/%d is not a network", m.GetAddress(), m.GetBits())
	return p
}

func (f *faults) entryEndpoint(m *meshv1.ServiceEntry_Endpoint) workload.EntryEndpoint {
	e := workload.EntryEndpoint{Name: m.GetName(), Workload: m.GetWorkload(), Mesh: m.GetMesh()}
	if len(m.GetAddress()) > 0 {
		e.Address = f.address(m.GetAddress())
	}
	f.require(e.Address.IsValid() != (e.Name != ""), "an endpoint must have either an address or a name")
	if s := m.GetIdentity(); s != "" {
		id, err := identity.Parse(s)
		f.add(err)
		e.Identity = id
	}
	if n := len(m.GetTargets()); n > 0 {
		e.Targets = make(map[uint16]uint16, n)
	}
	for port, target := range m.GetTargets() {
		e.Targets[f.port("endpoint's port", port)] = f.port("endpoint's target port", target)
	}
	return e
}
