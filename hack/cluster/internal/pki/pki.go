// Package pki makes a cluster's keys and certificates: one authority for the API
// server, the kubelets and all clients, one for the API server's front proxy, and
// a key pair that signs service-account tokens. Files are made once and kept, so
// that a cluster that is repaired keeps its identity. Certificates live ten years.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

const lifetime = 10 * 365 * 24 * time.Hour

// Leaf describes a certificate.
type Leaf struct {
	// File is the path below the store's directory, without the extensions .crt
	// and .key.
	File   string
	User   string
	Groups []string
	DNS    []string
	IPs    []string
	Server bool
}

// Authority signs certificates.
type Authority struct {
	dir  string
	cert *x509.Certificate
	key  crypto.Signer
}

// OpenAuthority returns the authority kept in dir under the given name, and makes
// it when there is none.
func OpenAuthority(dir, name string, now time.Time) (*Authority, error) {
	a := &Authority{dir: dir}
	cert, key, err := readPair(filepath.Join(dir, name))
	if err == nil {
		a.cert, a.key = cert, key
		return a, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate key of %s: %w", name, err)
	}
	template, err := newTemplate(now)
	if err != nil {
		return nil, err
	}
	template.Subject = pkix.Name{CommonName: name}
	template.IsCA = true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", name, err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("parse %s: %w", name, err)
	}
	a.key = key
	return a, writePair(filepath.Join(dir, name), der, key)
}

// PEM returns the authority's certificate.
func (a *Authority) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// Apply makes the certificate and its key unless the files are there, and returns
// both in PEM.
func (a *Authority) Apply(leaf Leaf, now time.Time) (cert, key []byte, err error) {
	base := filepath.Join(a.dir, leaf.File)
	if _, _, err := readPair(base); errors.Is(err, fs.ErrNotExist) {
		if err := a.issue(leaf, base, now); err != nil {
			return nil, nil, err
		}
	} else if err != nil {
		return nil, nil, err
	}
	if cert, err = os.ReadFile(base + ".crt"); err != nil {
		return nil, nil, fmt.Errorf("read certificate: %w", err)
	}
	if key, err = os.ReadFile(base + ".key"); err != nil {
		return nil, nil, fmt.Errorf("read key: %w", err)
	}
	return cert, key, nil
}

func (a *Authority) issue(leaf Leaf, base string, now time.Time) error {
	template, err := newTemplate(now)
	if err != nil {
		return err
	}
	template.Subject = pkix.Name{CommonName: leaf.User, Organization: leaf.Groups}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if leaf.Server {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}
	template.DNSNames = leaf.DNS
	for _, text := range leaf.IPs {
		ip := net.ParseIP(text)
		if ip == nil {
			return fmt.Errorf("certificate %s: bad address %q", leaf.File, text)
		}
		template.IPAddresses = append(template.IPAddresses, ip)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("generate key of %s: %w", leaf.File, err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return fmt.Errorf("sign %s: %w", leaf.File, err)
	}
	return writePair(base, der, key)
}

// ApplyTokenKey makes the key pair that signs service-account tokens, dir/sa.key
// and dir/sa.pub, unless it is there.
func ApplyTokenKey(dir string) error {
	private := filepath.Join(dir, "sa.key")
	if _, err := os.Stat(private); err == nil {
		return nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("generate token key: %w", err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return fmt.Errorf("encode token key: %w", err)
	}
	if err := WriteFile(filepath.Join(dir, "sa.pub"), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600); err != nil {
		return err
	}
	return writeKey(private, key)
}

func newTemplate(now time.Time) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("draw serial number: %w", err)
	}
	return &x509.Certificate{
		SerialNumber:          serial,
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(lifetime),
		BasicConstraintsValid: true,
	}, nil
}
