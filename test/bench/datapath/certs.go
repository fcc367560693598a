package datapath

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"time"
)

// Names in the peers' certificates. Podseal's own come from its CA; both are
// ECDSA P-256 leaves of a root of the same kind.
const (
	clientName = "client.bench"
	serverName = "server.bench"
	serverURI  = "spiffe://cluster.local/ns/shop/sa/server"
	clientURI  = "spiffe://cluster.local/ns/shop/sa/client"
)

// files are the paths of a side's PEM files; both is key and certificate in one.
type files struct{ dir, cert, key, both, root string }

// certificates makes a CA and what both sides prove themselves with.
func certificates(dir string, now time.Time) (client, server files, err error) {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return client, server, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench"}, NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	root, err := x509.CreateCertificate(rand.Reader, template, template, caKey.Public(), caKey)
	if err != nil {
		return client, server, fmt.Errorf("make a CA: %w", err)
	}
	issuer, err := x509.ParseCertificate(root)
	if err != nil {
		return client, server, err
	}
	if client, err = issue(filepath.Join(dir, "client"), clientName, clientURI, issuer, caKey); err != nil {
		return client, server, err
	}
	server, err = issue(filepath.Join(dir, "server"), serverName, serverURI, issuer, caKey)
	return client, server, err
}

// issue writes the files of one side.
func issue(dir, name, uri string, issuer *x509.Certificate, caKey *ecdsa.PrivateKey) (files, error) {
	f := files{dir, filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "both.pem"), filepath.Join(dir, "root.pem")}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return f, err
	}
	id, err := url.Parse(uri)
	if err != nil {
		return f, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return f, err
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, URIs: []*url.URL{id},
		NotBefore: issuer.NotBefore, NotAfter: issuer.NotBefore.Add(24 * time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, issuer, key.Public(), caKey)
	if err != nil {
		return f, fmt.Errorf("issue a certificate: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return f, err
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return f, err
	}
	for file, b := range map[string][]byte{
		f.cert: cert, f.key: keyPEM, f.both: append(append([]byte{}, cert...), keyPEM...),
		f.root: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: issuer.Raw}),
	} {
		// readable by everybody, as the proxies are another user: they are worth nothing
		if err := os.WriteFile(file, b, 0o644); err != nil {
			return f, err
		}
	}
	return f, nil
}
