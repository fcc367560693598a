package ca

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"time"

	"podseal.io/podseal/internal/identity"
)

// Names under which an authority is kept in a Secret (contract 4.32).
const (
	CertFile  = "ca-cert.pem"
	KeyFile   = "ca-key.pem"
	ChainFile = "cert-chain.pem"
	RootFile  = "root-cert.pem"
)

// Files is an authority as PEM. Cert and Key are what signs. Root has the roots
// that peers trust; it may be empty if Cert is itself a root. Chain has the
// certificates between Cert and a root, with or without these two; it may be
// empty if there are none.
type Files struct {
	Cert, Key, Chain, Root []byte
}

// LogValue keeps the key out of logs.
func (f Files) LogValue() slog.Value {
	return slog.GroupValue(slog.Int("cert_bytes", len(f.Cert)), slog.Int("chain_bytes", len(f.Chain)), slog.Int("root_bytes", len(f.Root)))
}

// String keeps the key out of texts.
func (f Files) String() string {
	return fmt.Sprintf("certificate authority of %d+%d+%d bytes", len(f.Cert), len(f.Chain), len(f.Root))
}

// GoString does so for %#v.
func (f Files) GoString() string { return f.String() }

// FromSecret picks an authority out of the data of a Secret: by the names above
// or, if there is none of these, by those of a kubernetes.io/tls Secret, whose
// tls.crt begins with the issuer (contract 4.32). It reports whether there is
// any part of one.
func FromSecret(data map[string][]byte) (Files, bool) {
	f := Files{Cert: data[CertFile], Key: data[KeyFile], Chain: data[ChainFile], Root: data[RootFile]}
	if f.empty() {
		f = Files{Cert: data["tls.crt"], Key: data["tls.key"], Root: data["ca.crt"]}
	}
	return f, !f.empty()
}

// Data is the authority as the data of a Secret.
func (f Files) Data() map[string][]byte {
	out := map[string][]byte{}
	for name, b := range map[string][]byte{CertFile: f.Cert, KeyFile: f.Key, ChainFile: f.Chain, RootFile: f.Root} {
		if len(b) > 0 {
			out[name] = b
		}
	}
	return out
}

func (f Files) empty() bool {
	return len(f.Cert)+len(f.Key)+len(f.Chain)+len(f.Root) == 0
}

// ParseIssuer reads an authority and checks that peers that trust its roots will
// accept what it signs. Its error joins all the faults that it finds.
func ParseIssuer(f Files, now time.Time) (*Issuer, error) {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }

	out := &Issuer{files: f}
	var extra []*x509.Certificate
	if len(bytes.TrimSpace(f.Cert)) == 0 {
		fault("%s is missing", CertFile)
	} else if certs, err := identity.ParseCertificates(f.Cert); err != nil {
		fault("%s: %w", CertFile, err)
	} else {
		out.cert, extra = certs[0], certs[1:]
		faults = append(faults, certFaults(out.cert, now)...)
	}
	if len(bytes.TrimSpace(f.Key)) == 0 {
		fault("%s is missing", KeyFile)
	} else if key, err := parseKey(f.Key); err != nil {
		fault("%s: %w", KeyFile, err)
	} else if out.key = key; out.cert != nil && !publicEqual(key.Public(), out.cert.PublicKey) {
		fault("%s does not belong to %s", KeyFile, CertFile)
	}
	if len(bytes.TrimSpace(f.Chain)) > 0 {
		certs, err := identity.ParseCertificates(f.Chain)
		if err != nil {
			fault("%s: %w", ChainFile, err)
		}
		extra = append(extra, certs...)
	}
	root, err := rootOf(f, out.cert)
	if err != nil {
		faults = append(faults, err)
	} else if out.bundle = root; out.cert != nil && validAt(out.cert, now) == nil {
		if out.chain, err = verifyIssuer(out.cert, extra, root, now); err != nil {
			fault("%s does not lead to a root in %s: %w", CertFile, RootFile, err)
		}
	}
	if len(faults) == 0 {
		// A trial certificate, thrown away: constraints of the chain on usage or
		// length show only when something is signed.
		out.files.Root = root.PEM()
		trial := profile(now, DefaultTTL, big.NewInt(1))
		trial.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
		if _, err := out.sign(trial, out.key.Public(), now); err != nil {
			faults = append(faults, err)
		}
	}
	if len(faults) > 0 {
		return nil, fmt.Errorf("certificate authority: %w", errors.Join(faults...))
	}
	return out, nil
}

// certFaults says why a certificate cannot sign others.
func certFaults(c *x509.Certificate, now time.Time) []error {
	var faults []error
	if !c.BasicConstraintsValid || !c.IsCA {
		faults = append(faults, fmt.Errorf("%s is not a CA certificate", CertFile))
	} else if c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0 {
		faults = append(faults, fmt.Errorf("%s may not sign certificates: its key usage lacks certSign", CertFile))
	}
	if err := checkKey(c.PublicKey); err != nil {
		faults = append(faults, fmt.Errorf("%s: %w", CertFile, err))
	}
	if err := validAt(c, now); err != nil {
		faults = append(faults, fmt.Errorf("%s: %w", CertFile, err))
	}
	return faults
}

// rootOf reads the bundle, which a self-signed issuer may go without.
func rootOf(f Files, cert *x509.Certificate) (*identity.Bundle, error) {
	root, name := f.Root, RootFile
	if len(bytes.TrimSpace(root)) == 0 {
		if cert == nil || !isSelfSigned(cert) {
			return nil, fmt.Errorf("%s is missing, and %s is not itself a root", RootFile, CertFile)
		}
		root, name = certificatePEM(cert.Raw), CertFile
	}
	b, err := identity.ParseBundle(root)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return b, nil
}

// verifyIssuer returns the certificates that a leaf of the issuer needs to reach
// a root of the bundle: the issuer's own first, the root not among them.
func verifyIssuer(cert *x509.Certificate, others []*x509.Certificate, bundle *identity.Bundle, now time.Time) ([]*x509.Certificate, error) {
	paths, err := cert.Verify(x509.VerifyOptions{
		Roots:         bundle.Pool(),
		Intermediates: poolOf(others),
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return nil, err
	}
	shortest := paths[0]
	for _, p := range paths[1:] {
		if len(p) < len(shortest) {
			shortest = p
		}
	}
	return shortest[:len(shortest)-1], nil
}

// parseKey reads a private key as PKCS#8, PKCS#1 or SEC 1, RSA or ECDSA.
func parseKey(keyPEM []byte) (crypto.Signer, error) {
	for rest := keyPEM; ; {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			return nil, errors.New("no PEM private key")
		}
		var key any
		var err error
		switch block.Type {
		case "EC PARAMETERS": // openssl ecparam -genkey writes it before the key
			continue
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		case "ENCRYPTED PRIVATE KEY":
			return nil, errors.New("the private key is encrypted")
		default:
			return nil, fmt.Errorf("PEM block of type %q where a private key is expected", truncate(block.Type, 64))
		}
		if err != nil {
			return nil, fmt.Errorf("parse private key: %w", err)
		}
		signer, ok := key.(crypto.Signer)
		if !ok {
			return nil, fmt.Errorf("a key of type %T cannot sign", key)
		}
		return signer, nil
	}
}

func publicEqual(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}
