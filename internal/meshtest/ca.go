// Package meshtest has the fakes that tests share: a CA in memory, a world in
// few words, a network in which pods have addresses and captured ports, and
// applications that answer. Only tests import it.
package meshtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/url"
	"slices"
	"testing"
	"time"

	"podseal.io/podseal/internal/identity"
)

// CA issues credentials for any identity.
type CA struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pem  []byte
}

// NewCA makes a root that is valid for a year around now.
func NewCA(tb testing.TB, now time.Time) *CA {
	tb.Helper()
	key := newKey(tb)
	template := &x509.Certificate{
		SerialNumber: newSerial(tb), Subject: pkix.Name{Organization: []string{"meshtest"}},
		NotBefore: now.AddDate(0, -6, 0), NotAfter: now.AddDate(0, 6, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	return &CA{key, cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

// PEM is the root.
func (c *CA) PEM() []byte { return slices.Clone(c.pem) }

// Bundle trusts this root and those of others.
func (c *CA) Bundle(tb testing.TB, others ...*CA) *identity.Bundle {
	tb.Helper()
	all := c.PEM()
	for _, o := range others {
		all = append(all, o.pem...)
	}
	b, err := identity.ParseBundle(all)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// Revoke is the CA's revocation list, as PEM, with these in it. The number counts up.
func (c *CA) Revoke(tb testing.TB, number int64, from, until time.Time, revoked ...*identity.Credential) []byte {
	tb.Helper()
	list := &x509.RevocationList{Number: big.NewInt(number), ThisUpdate: from, NextUpdate: until}
	for _, r := range revoked {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: r.Leaf.SerialNumber, RevocationTime: from})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, c.cert, c.key)
	if err != nil {
		tb.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

// Issue makes a credential that is valid for these times.
func (c *CA) Issue(tb testing.TB, id identity.ID, notBefore, notAfter time.Time) *identity.Credential {
	tb.Helper()
	uri, err := url.Parse(id.URI())
	if err != nil {
		tb.Fatal(err)
	}
	key := newKey(tb)
	template := &x509.Certificate{
		SerialNumber: newSerial(tb), URIs: []*url.URL{uri}, NotBefore: notBefore, NotAfter: notAfter,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, c.cert, key.Public(), c.key)
	if err != nil {
		tb.Fatal(err)
	}
	cred, err := identity.NewCredential(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), key)
	if err != nil {
		tb.Fatal(err)
	}
	return cred
}

// Snapshot is a credential of a day around now with trust in this CA.
func (c *CA) Snapshot(tb testing.TB, id identity.ID, now time.Time) *identity.Snapshot {
	tb.Helper()
	return &identity.Snapshot{
		Credential:   c.Issue(tb, id, now.Add(-time.Hour), now.Add(23*time.Hour)),
		Bundle:       c.Bundle(tb),
		TrustDomains: []string{id.TrustDomain()},
	}
}

func newKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

func newSerial(tb testing.TB) *big.Int {
	tb.Helper()
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		tb.Fatal(err)
	}
	return n
}
