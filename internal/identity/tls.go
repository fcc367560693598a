package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Mesh ALPN protocols (contract 2.9, 3.48, 3.49). ALPNDetect is our own: the
// bytes inside may be anything and the server is to look (design D9, D12).
const (
	ALPNDetect       = "podseal"
	ALPNIstio        = "istio"
	ALPNPeerExchange = "istio-peer-exchange"
	ALPNHTTP10       = "istio-http/1.0"
	ALPNHTTP11       = "istio-http/1.1"
	ALPNH2           = "istio-h2"

	// ALPNStreams is our own, too: many streams over one connection. It
	// says nothing of what is inside, and is the only name of these that a server chooses.
	ALPNStreams = "podseal-mux"
)

// ErrPeerIdentity says that a peer proved an identity, but not the expected one.
var ErrPeerIdentity = errors.New("peer has another identity than expected")

// ErrTrustDomain says that a peer's identity is of a foreign trust domain.
var ErrTrustDomain = errors.New("peer is of a foreign trust domain")

// curves prefers the post-quantum hybrid (design D6).
var curves = []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256}

// suites are those of TLS 1.2 (contract 2.20) that have forward secrecy. Static RSA,
// which Envoy has as well, would be the choice of nobody who has these.
var suites = []uint16{
	tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
}

// ClientConfig is for a handshake with a mesh peer that must be exactly want, in
// any of the mesh's trust domains (design D11, contract 4.4). The name in sni is sent and not verified: identities are
// (contract 3.51, B2). minVersion is TLS 1.3 unless the peer is known to need 1.2.
func ClientConfig(snap *Snapshot, want ID, sni string, alpn []string, now func() time.Time) *tls.Config {
	cert := snap.Credential.TLS()
	return &tls.Config{
		MinVersion:       tls.VersionTLS12,
		CipherSuites:     suites,
		CurvePreferences: curves,
		ServerName:       sni,
		NextProtos:       alpn,
		Time:             now,
		//nolint:gosec // hostnames are not what mesh certificates carry: VerifyConnection below checks chain and identity
		InsecureSkipVerify:     true,
		SessionTicketsDisabled: true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return cert, nil
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			id, err := VerifyPeer(snap, cs.PeerCertificates, x509.ExtKeyUsageServerAuth, now())
			if err != nil {
				return err
			}
			if want.IsZero() || !id.SameAccount(want) { // the trust domain is one of ours: VerifyPeer
				return fmt.Errorf("%w: it is %q, expected %q", ErrPeerIdentity, id, want)
			}
			return nil
		},
	}
}

// Accept makes a config of ClientConfig take any peer whose URI is one of these,
// instead of one identity (contract 3.33). It must be of the mesh all the same.
func Accept(cfg *tls.Config, snap *Snapshot, uris []string, now func() time.Time) {
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		id, err := VerifyPeer(snap, cs.PeerCertificates, x509.ExtKeyUsageServerAuth, now())
		if err != nil {
			return err
		}
		if !slices.Contains(uris, id.URI()) {
			return fmt.Errorf("%w: it is %q, expected one of %q", ErrPeerIdentity, id, uris)
		}
		return nil
	}
}

// ServerConfig is for a handshake with a mesh client, which must present a
// certificate (contract 2.18) of the mesh's trust domains (contract 2.22). offered is what
// the client's ClientHello offers in ALPN: of it we choose ALPNStreams, `h2` or
// `http/1.1`, never another mesh name, and go on without ALPN when nothing overlaps
// (contract 2.21, B1).
func ServerConfig(snap *Snapshot, offered []string, now func() time.Time) *tls.Config {
	var alpn []string
	for _, p := range []string{ALPNStreams, "h2", "http/1.1"} {
		if slices.Contains(offered, p) {
			alpn = append(alpn, p)
		}
	}
	return &tls.Config{
		MinVersion:             tls.VersionTLS12,
		CipherSuites:           suites,
		CurvePreferences:       curves,
		Certificates:           []tls.Certificate{*snap.Credential.TLS()},
		NextProtos:             alpn,
		Time:                   now,
		ClientAuth:             tls.RequireAnyClientCert,
		SessionTicketsDisabled: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			_, err := VerifyPeer(snap, cs.PeerCertificates, x509.ExtKeyUsageClientAuth, now())
			return err
		},
	}
}

// VerifyPeer checks a presented chain against the bundle and the trust domains
// and returns the identity that it proves. The bundle remembers chains that it has
// verified while all certificates in them are valid; trust domains, and what callers
// compare the identity with, are looked at each time.
func VerifyPeer(snap *Snapshot, chain []*x509.Certificate, usage x509.ExtKeyUsage, now time.Time) (ID, error) {
	if len(chain) == 0 {
		return ID{}, errors.New("peer presented no certificate")
	}
	id, err := snap.Bundle.verify(chain, usage, now)
	if err != nil {
		return ID{}, err
	}
	if !slices.Contains(snap.TrustDomains, id.TrustDomain()) {
		return ID{}, fmt.Errorf("%w: %q", ErrTrustDomain, id.TrustDomain())
	}
	return id, nil
}

// PeerID is the identity of the peer of a finished handshake whose config came
// from this package.
func PeerID(cs tls.ConnectionState) (ID, error) {
	if len(cs.PeerCertificates) == 0 {
		return ID{}, errors.New("peer presented no certificate")
	}
	return FromCertificate(cs.PeerCertificates[0])
}
