package proxy

import (
	"cmp"
	"crypto/tls"
	"strconv"
	"strings"

	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/metrics"
	"podseal.io/podseal/internal/workload"
)

// Names for traffic of no service (contract 7.6).
//
//nolint:gosec // names of clusters, not passwords
const (
	passthroughCluster        = "PassthroughCluster"
	inboundPassthroughCluster = "InboundPassthroughCluster"
)

// peerLabels describes a workload, of which either argument may be unknown.
func peerLabels(w *workload.Workload, id identity.ID, cluster string) metrics.Peer {
	p := metrics.Peer{Principal: id.URI()}
	if w == nil {
		p.Namespace = id.Namespace()
		return p
	}
	p.Workload = cmp.Or(w.WorkloadName, w.Name)
	p.Namespace = w.Namespace
	p.App, p.Version = w.App, w.Version
	p.CanonicalService, p.CanonicalRevision = w.CanonicalName, w.CanonicalRevision
	p.Cluster = cluster
	return p
}

// serviceLabels fills in the destination service from its host name; an empty
// one is traffic that no service leads to.
func serviceLabels(l *metrics.Labels, host, none string) {
	if host == "" {
		l.ServiceName = none
		return
	}
	l.Service = host
	name, rest, _ := strings.Cut(host, ".")
	l.ServiceName = name
	l.ServiceNamespace, _, _ = strings.Cut(rest, ".")
}

// serviceName is how records name a service port.
func serviceName(host string, port uint16) string {
	if host == "" {
		return ""
	}
	return host + ":" + strconv.Itoa(int(port))
}

// tlsFacts notes what was negotiated.
func (r *Record) tlsFacts(cs tls.ConnectionState) {
	r.Security = securityMutualTLS
	r.TLSVersion = tls.VersionName(cs.Version)
	r.TLSGroup = cs.CurveID.String()
	r.TLSCipher = cipherName(cs.CipherSuite)
	r.Resumed = cs.DidResume
}

// samePeer reports whether a workload found by address is the one that proved
// an identity: only then is what is known of it true of the connection.
func samePeer(w *workload.Workload, id identity.ID) bool {
	return w != nil && (id.IsZero() || w.Identity.SameAccount(id))
}

// cipherName is tls.CipherSuiteName, which makes a list of all suites each time.
func cipherName(id uint16) string {
	switch id {
	case tls.TLS_AES_128_GCM_SHA256:
		return "TLS_AES_128_GCM_SHA256"
	case tls.TLS_AES_256_GCM_SHA384:
		return "TLS_AES_256_GCM_SHA384"
	case tls.TLS_CHACHA20_POLY1305_SHA256:
		return "TLS_CHACHA20_POLY1305_SHA256"
	default:
		return tls.CipherSuiteName(id)
	}
}
