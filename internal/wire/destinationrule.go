package wire

import (
	"fmt"
	"math"
	"strings"
	"time"

	meshv1 "podseal.io/podseal/api/mesh/v1"
	"podseal.io/podseal/internal/workload"
)

// TypeDestinationRule is the type of rules; their name is "<namespace>/<name>".
const TypeDestinationRule = "type.googleapis.com/podseal.mesh.v1.DestinationRule"

// unusableHere is why proxies of before credentials refuse rules that name one.
const unusableHere = "credentialName is not honoured by this version of the proxy"

// minSeconds is the zero time, which an object has before it is stored.
const minSeconds = -62135596800

// AppendDestinationRule appends the encoding of r, which is the same for equal
// values. Times travel in whole milliseconds, rounded up, and the age in whole
// seconds. It refuses what ParseDestinationRule would refuse, with all faults
// joined.
func AppendDestinationRule(b []byte, r *workload.DestinationRule) ([]byte, error) {
	m := &meshv1.DestinationRule{
		Name: r.Name, Namespace: r.Namespace, Host: r.Host, ExportTo: r.ExportTo, Selective: r.Selective,
		CreatedSeconds: r.Created.Unix(),
	}
	if r.Policy != nil {
		m.Policy = policyToProto(r.Policy)
	}
	if len(r.Ports) > 0 {
		m.Ports = make(map[uint32]*meshv1.TrafficPolicy, len(r.Ports))
		for port, p := range r.Ports {
			m.Ports[uint32(port)] = policyToProto(&p)
		}
	}
	if _, err := ruleFromProto(m); err != nil {
		return nil, fmt.Errorf("encode destination rule %q: %w", r.Namespace+"/"+r.Name, err)
	}
	return appendProto(b, m)
}

func policyToProto(p *workload.TrafficPolicy) *meshv1.TrafficPolicy {
	m := &meshv1.TrafficPolicy{
		ConnectTimeoutMs: milliseconds(p.ConnectTimeout), MaxConnections: p.MaxConnections, IdleTimeoutMs: milliseconds(p.IdleTimeout), MaxDurationMs: milliseconds(p.MaxDuration),
	}
	switch p.Balance {
	case workload.Passthrough:
		m.Passthrough = true
	case workload.SourceHash:
		m.SourceHash = true
	default:
		m.Balance = meshv1.Balance(p.Balance)
	}
	if o := p.Outlier; o != nil {
		m.Outlier = &meshv1.TrafficPolicy_Outlier{
			Failures: o.Failures, EjectionMs: milliseconds(o.Ejection), IntervalMs: milliseconds(o.Interval), MaxPercent: o.MaxPercent, MinHealthy: o.MinHealthy,
		}
	}
	if k := p.Keepalive; k != nil {
		m.Keepalive = &meshv1.TrafficPolicy_Keepalive{Probes: k.Probes, TimeMs: milliseconds(k.Time), IntervalMs: milliseconds(k.Interval)}
	}
	if t := p.TLS; t != nil {
		m.Tls = &meshv1.ClientTLS{
			Mode: meshv1.ClientTLSMode(t.Mode), Sni: t.SNI, SubjectAltNames: t.SubjectAltNames, CaCertificates: t.CACertificates,
			ClientCertificate: t.ClientCertificate, PrivateKey: t.PrivateKey, SkipVerify: t.SkipVerify, Unusable: t.Unusable, Credential: t.Credential,
		}
		if t.Credential != "" {
			m.Tls.Unusable = unusableHere
		}
	}
	return m
}

// milliseconds rounds up; what is negative stays so.
func milliseconds(d time.Duration) int64 {
	if d < 0 {
		return -1
	}
	ms := int64(d / time.Millisecond)
	if d%time.Millisecond > 0 {
		ms++
	}
	return ms
}

// ParseDestinationRule is the reverse of AppendDestinationRule. All faults come
// joined.
func ParseDestinationRule(b []byte) (*workload.DestinationRule, error) {
	m := &meshv1.DestinationRule{}
	if err := parseProto(b, m); err != nil {
		return nil, fmt.Errorf("parse destination rule: %w", err)
	}
	r, err := ruleFromProto(m)
	if err != nil {
		return nil, fmt.Errorf("parse destination rule %q: %w", m.GetNamespace()+"/"+m.GetName(), err)
	}
	return r, nil
}

func ruleFromProto(m *meshv1.DestinationRule) (*workload.DestinationRule, error) {
	var f faults
	f.resourceName(m.GetNamespace(), m.GetName())
	host := m.GetHost()
	f.require(host != "" && strings.LastIndex(host, "*") <= 0, "host %q is empty or has a star inside", host)
	f.require(len(m.GetExportTo()) > 0, "exported to nobody")
	f.require(m.GetCreatedSeconds() >= minSeconds && m.GetCreatedSeconds() <= maxSeconds, "age is out of range")
	r := &workload.DestinationRule{
		Name: m.GetName(), Namespace: m.GetNamespace(), Host: host, ExportTo: m.GetExportTo(), Selective: m.GetSelective(),
		Created: time.Unix(m.GetCreatedSeconds(), 0).UTC(),
	}
	if p := m.GetPolicy(); p != nil {
		r.Policy = f.policy(p)
	}
	if n := len(m.GetPorts()); n > 0 {
		r.Ports = make(map[uint16]workload.TrafficPolicy, n)
	}
	for port, p := range m.GetPorts() {
		r.Ports[f.port("port of the rule", port)] = *f.policy(p)
	}
	return r, f.err()
}

func (f *faults) policy(m *meshv1.TrafficPolicy) *workload.TrafficPolicy {
	_, known := meshv1.Balance_name[int32(m.GetBalance())]
	f.require(known, "balance %d is unknown", m.GetBalance())
	p := &workload.TrafficPolicy{
		Balance: workload.Balance(m.GetBalance()), MaxConnections: m.GetMaxConnections(),
		ConnectTimeout: f.duration("connect timeout", m.GetConnectTimeoutMs()),
		IdleTimeout:    f.duration("idle timeout", m.GetIdleTimeoutMs()), MaxDuration: f.duration("maximum duration", m.GetMaxDurationMs()),
	}
	switch {
	case m.GetPassthrough():
		p.Balance = workload.Passthrough
	case m.GetSourceHash():
		p.Balance = workload.SourceHash
	}
	if o := m.GetOutlier(); o != nil {
		p.Outlier = f.outlier(o)
	}
	if k := m.GetKeepalive(); k != nil {
		p.Keepalive = &workload.Keepalive{Probes: k.GetProbes(), Time: f.duration("keepalive time", k.GetTimeMs()), Interval: f.duration("keepalive interval", k.GetIntervalMs())}
	}
	if t := m.GetTls(); t != nil {
		_, known := meshv1.ClientTLSMode_name[int32(t.GetMode())]
		f.require(known && t.GetMode() != meshv1.ClientTLSMode_CLIENT_TLS_MODE_AUTO, "TLS mode %d is unknown", t.GetMode())
		p.TLS = &workload.ClientTLS{
			Mode: workload.TLSMode(t.GetMode()), SNI: t.GetSni(), SubjectAltNames: t.GetSubjectAltNames(), CACertificates: t.GetCaCertificates(),
			ClientCertificate: t.GetClientCertificate(), PrivateKey: t.GetPrivateKey(), SkipVerify: t.GetSkipVerify(), Unusable: t.GetUnusable(), Credential: t.GetCredential(),
		}
		if p.TLS.Credential != "" {
			p.TLS.Unusable = ""
		}
		full := p.TLS.Credential != "" || (t.GetClientCertificate() != "" && t.GetPrivateKey() != "")
		f.require(p.TLS.Mode != workload.TLSMutual || full || p.TLS.Unusable != "", "MUTUAL without certificate and key")
	}
	return p
}

func (f *faults) outlier(m *meshv1.TrafficPolicy_Outlier) *workload.Outlier {
	f.require(m.GetFailures() > 0, "outliers after no failure")
	f.require(m.GetMaxPercent() <= 100 && m.GetMinHealthy() <= 100, "more than 100 percent of the endpoints")
	return &workload.Outlier{
		Failures: m.GetFailures(), Ejection: f.duration("ejection", m.GetEjectionMs()), Interval: f.duration("interval of outliers", m.GetIntervalMs()),
		MaxPercent: m.GetMaxPercent(), MinHealthy: m.GetMinHealthy(),
	}
}

func (f *faults) duration(what string, ms int64) time.Duration {
	f.require(ms >= 0 && ms <= math.MaxInt64/int64(time.Millisecond), "%s is out of range", what)
	return time.Duration(ms) * time.Millisecond
}
