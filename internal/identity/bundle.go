package identity

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
)

// maxRoots bounds how many roots one bundle may hold.
const maxRoots = 64

// Bundle is the set of roots that a mesh trusts. It is immutable, but for the outcomes
// of verification that it keeps.
type Bundle struct {
	pem   []byte
	hash  string
	roots []*x509.Certificate
	pool  *x509.CertPool

	revoked  *Revocations // nil if there are no lists
	verified verified     // a bundle that says anything else has one of its own
}

// ParseBundle reads PEM certificates, each of which must be a CA. All roots of
// a bundle are trusted (contract 4.33).
func ParseBundle(pemBytes []byte) (*Bundle, error) {
	roots, err := ParseCertificates(pemBytes)
	if err != nil {
		return nil, fmt.Errorf("parse bundle: %w", err)
	}
	if len(roots) > maxRoots {
		return nil, fmt.Errorf("parse bundle: %d roots, at most %d are allowed", len(roots), maxRoots)
	}
	pool := x509.NewCertPool()
	for i, c := range roots {
		if !c.IsCA {
			return nil, fmt.Errorf("parse bundle: certificate %d (subject %q) is not a CA", i+1, c.Subject)
		}
		pool.AddCert(c)
	}
	sum := sha256.Sum256(pemBytes)
	return &Bundle{pem: slices.Clone(pemBytes), hash: hex.EncodeToString(sum[:8]), roots: roots, pool: pool}, nil
}

// WithRevocations is a bundle of the same roots that accepts no chain which does not
// hold by these lists; nil is none.
func (b *Bundle) WithRevocations(lists *Revocations) *Bundle {
	return &Bundle{pem: b.pem, hash: b.hash, roots: b.roots, pool: b.pool, revoked: lists}
}

// Revocations are the lists that it goes by, nil if there are none.
func (b *Bundle) Revocations() *Revocations { return b.revoked }

// Same reports whether two bundles accept the same chains.
func (b *Bundle) Same(other *Bundle) bool {
	return b.hash == other.hash && b.revoked.Hash() == other.revoked.Hash()
}

// PEM returns the roots as they were read.
func (b *Bundle) PEM() []byte { return slices.Clone(b.pem) }

// Hash is a short name of the roots: equal ones have equal hashes.
func (b *Bundle) Hash() string { return b.hash }

// Roots returns the certificates of the bundle.
func (b *Bundle) Roots() []*x509.Certificate { return slices.Clone(b.roots) }

// Pool returns the roots for crypto/x509. Callers must not add to it.
func (b *Bundle) Pool() *x509.CertPool { return b.pool }

// ParseCertificates reads one or more PEM blocks of type CERTIFICATE and
// nothing else.
func ParseCertificates(pemBytes []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for rest := pemBytes; ; {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("PEM block of type %q where a CERTIFICATE is expected", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(certs)+1, err)
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, errors.New("no PEM certificate")
	}
	return certs, nil
}
