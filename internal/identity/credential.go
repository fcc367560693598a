package identity

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math"
	"time"
)

// Credential is a workload's own certificate chain with its key. It is
// immutable; the key never leaves memory.
type Credential struct {
	ID   ID
	Leaf *x509.Certificate
	tls  tls.Certificate
}

// NewCredential joins a PEM chain (leaf first) with the key that it certifies.
func NewCredential(chainPEM []byte, key crypto.Signer) (*Credential, error) {
	certs, err := ParseCertificates(chainPEM)
	if err != nil {
		return nil, fmt.Errorf("parse certificate chain: %w", err)
	}
	id, err := FromCertificate(certs[0])
	if err != nil {
		return nil, err
	}
	pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(certs[0].PublicKey) {
		return nil, errors.New("the certificate does not belong to the key")
	}
	c := tls.Certificate{PrivateKey: key, Leaf: certs[0]}
	for _, x := range certs {
		c.Certificate = append(c.Certificate, x.Raw)
	}
	return &Credential{ID: id, Leaf: certs[0], tls: c}, nil
}

// TLS returns the chain and key as crypto/tls wants them.
func (c *Credential) TLS() *tls.Certificate { return &c.tls }

// FromCertificate reads the identity of a leaf: its one URI SAN.
func FromCertificate(leaf *x509.Certificate) (ID, error) {
	if len(leaf.URIs) != 1 {
		return ID{}, fmt.Errorf("certificate has %d URI SANs, want exactly one", len(leaf.URIs))
	}
	return ParseURI(leaf.URIs[0].String())
}

// Snapshot is all that one handshake needs: who we are, whom we trust. It is
// immutable and swapped whole, so no handshake sees a new certificate with an
// old bundle.
type Snapshot struct {
	Credential   *Credential
	Bundle       *Bundle
	TrustDomains []string // the mesh's own first, then its aliases
}

// Source gives the snapshot in force, or an error before the first one and
// after the certificate has expired. It is asked at every handshake.
type Source interface {
	Snapshot() (*Snapshot, error)
}

// RenewAt is when a certificate is renewed: at half of its life, plus or minus
// jitter (a fraction of the life, from -1 to 1 times 1 %: contract 4.26).
func RenewAt(notBefore, notAfter time.Time, jitter float64) time.Time {
	life := notAfter.Sub(notBefore)
	jitter = math.Max(-1, math.Min(1, jitter)) * 0.01
	return notAfter.Add(-time.Duration(float64(life) * (0.5 + jitter)))
}
