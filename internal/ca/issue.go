package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"podseal.io/podseal/internal/identity"
)

// maxCSR bounds a certificate request, in bytes.
const maxCSR = 64 << 10

// ErrCSR says that a certificate request is unusable, ErrTTL that the life asked
// for is too long, ErrExpired that the issuer's own certificate is not valid now.
var (
	ErrCSR     = errors.New("bad certificate request")
	ErrTTL     = errors.New("lifetime too long")
	ErrExpired = errors.New("the issuer's certificate is not valid at this time")
)

// Issuer signs certificates. It is immutable.
type Issuer struct {
	cert   *x509.Certificate
	key    crypto.Signer
	chain  []*x509.Certificate // what a leaf needs to reach a root, the issuer's own first; empty for a root
	bundle *identity.Bundle
	files  Files
}

// Issued is a signed workload certificate.
type Issued struct {
	Leaf *x509.Certificate
	// Chain is PEM: the leaf, each intermediate, and as the last element the
	// whole root bundle (contract 4.11).
	Chain []string
}

// NewSelfSigned makes a root with a fresh ECDSA P-256 key for ten years.
func NewSelfSigned(trustDomain string, now time.Time, random io.Reader) (*Issuer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), random)
	if err != nil {
		return nil, fmt.Errorf("generate root key: %w", err)
	}
	serial, err := newSerial(random)
	if err != nil {
		return nil, err
	}
	return selfSign(rootTemplate(trustDomain, now, serial), key, nil, now)
}

// selfSign makes a root that is trusted beside others.
func selfSign(template *x509.Certificate, key crypto.Signer, others []*x509.Certificate, now time.Time) (*Issuer, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign root: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("marshal root key: %w", err)
	}
	root := certificatePEM(der)
	for _, c := range others {
		root = append(root, certificatePEM(c.Raw)...)
	}
	return ParseIssuer(Files{
		Cert: certificatePEM(der),
		Key:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
		Root: root,
	}, now)
}

// Files is what the issuer was made from, to be stored. It holds the key.
func (i *Issuer) Files() Files { return i.files }

// Bundle is what peers must trust to accept what the issuer signs.
func (i *Issuer) Bundle() *identity.Bundle { return i.bundle }

// Certificate is the issuer's own.
func (i *Issuer) Certificate() *x509.Certificate { return i.cert }

// Path is the way from the issuer's certificate to a root of its bundle, both included.
func (i *Issuer) Path(now time.Time) ([]*x509.Certificate, error) {
	paths, err := i.cert.Verify(x509.VerifyOptions{
		Roots: i.bundle.Pool(), Intermediates: poolOf(i.chain), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return nil, fmt.Errorf("the issuer's certificate leads to no root: %w", err)
	}
	return slices.MinFunc(paths, func(a, b []*x509.Certificate) int { return len(a) - len(b) }), nil
}

// SelfSigned reports whether the issuer is its own root.
func (i *Issuer) SelfSigned() bool { return isSelfSigned(i.cert) }

// Sign certifies that the key of a PEM certificate request is id's. Names in
// the request are ignored (contract 4.8). Its errors are [ErrCSR] and [ErrTTL]
// for what the caller did wrong, others for what the issuer cannot do.
func (i *Issuer) Sign(csrPEM []byte, id identity.ID, ttl time.Duration, now time.Time) (*Issued, error) {
	pub, err := parseCSR(csrPEM)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCSR, err)
	}
	if ttl, err = lifetime(ttl); err != nil {
		return nil, err
	}
	serial, err := newSerial(rand.Reader)
	if err != nil {
		return nil, err
	}
	template, err := Template(id, pub, now, ttl, serial)
	if err != nil {
		return nil, err
	}
	leaf, err := i.sign(template, pub, now)
	if err != nil {
		return nil, err
	}
	out := &Issued{Leaf: leaf, Chain: []string{string(certificatePEM(leaf.Raw))}}
	for _, c := range i.chain {
		out.Chain = append(out.Chain, string(certificatePEM(c.Raw)))
	}
	out.Chain = append(out.Chain, string(i.bundle.PEM()))
	return out, nil
}

// ServingCertificate makes a certificate with a fresh key for a TLS server that
// is reached by these DNS names or addresses (contract 4.7).
func (i *Issuer) ServingCertificate(names []string, ttl time.Duration, now time.Time) (tls.Certificate, error) {
	if len(names) == 0 {
		return tls.Certificate{}, errors.New("serving certificate: no names")
	}
	ttl, err := lifetime(ttl)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("serving certificate: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("serving certificate: generate key: %w", err)
	}
	serial, err := newSerial(rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("serving certificate: %w", err)
	}
	leaf, err := i.sign(servingTemplate(names, now, ttl, serial), key.Public(), now)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("serving certificate: %w", err)
	}
	out := tls.Certificate{PrivateKey: key, Leaf: leaf, Certificate: [][]byte{leaf.Raw}}
	for _, c := range i.chain {
		out.Certificate = append(out.Certificate, c.Raw)
	}
	return out, nil
}

// sign signs a template, clamped to the issuer's own life (contract 4.22), and
// makes sure that peers will accept the result.
func (i *Issuer) sign(template *x509.Certificate, pub crypto.PublicKey, now time.Time) (*x509.Certificate, error) {
	if err := validAt(i.cert, now); err != nil {
		return nil, err
	}
	if template.NotAfter.After(i.cert.NotAfter) {
		template.NotAfter = i.cert.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, template, i.cert, pub, i.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read back certificate: %w", err)
	}
	for _, usage := range template.ExtKeyUsage {
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: i.bundle.Pool(), Intermediates: poolOf(i.chain), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
			return nil, fmt.Errorf("peers would not accept what this issuer signs: %w", err)
		}
	}
	return leaf, nil
}

// NeedsRenewal reports whether a self-signed root has less than a fifth of its
// life left (contract 4.34).
func (i *Issuer) NeedsRenewal(now time.Time) bool {
	life := i.cert.NotAfter.Sub(i.cert.NotBefore)
	return i.SelfSigned() && i.cert.NotAfter.Sub(now) < life/5
}

// Renew returns a self-signed issuer with a new root certificate for the same
// key and name, so that what the old one signed still verifies (contract 4.34).
func (i *Issuer) Renew(now time.Time, random io.Reader) (*Issuer, error) {
	if !i.SelfSigned() {
		return nil, errors.New("renew root: the issuer is not a self-signed root")
	}
	serial, err := newSerial(random)
	if err != nil {
		return nil, err
	}
	template := rootTemplate("", now, serial)
	template.RawSubject = i.cert.RawSubject
	template.SubjectKeyId = i.cert.SubjectKeyId
	others := slices.DeleteFunc(i.bundle.Roots(), func(r *x509.Certificate) bool { return sameAuthority(r, i.cert) })
	return selfSign(template, i.key, others, now)
}

// CheckSuccessor says why next may not replace the issuer while workloads hold
// certificates and bundles of it: its bundle must contain all of the old roots
// or be contained in them (contract 4.35), peers that still have the old bundle
// must accept what it signs, and those that have its own bundle what the issuer
// signed until now (the staged order of contract 4.38). What has expired
// protects nobody and hinders nothing.
func (i *Issuer) CheckSuccessor(next *Issuer, now time.Time) error {
	if !slices.ContainsFunc(i.bundle.Roots(), func(r *x509.Certificate) bool { return validAt(r, now) == nil }) {
		return nil // nobody accepts anybody any more
	}
	lacks := func(b *identity.Bundle, roots []*x509.Certificate) bool {
		return slices.ContainsFunc(roots, func(r *x509.Certificate) bool {
			return !slices.ContainsFunc(b.Roots(), func(x *x509.Certificate) bool { return sameAuthority(r, x) })
		})
	}
	if lacks(next.bundle, i.bundle.Roots()) && lacks(i.bundle, next.bundle.Roots()) {
		return errors.New("the new root bundle neither contains the present one nor is part of it")
	}
	signsWell := i.trustedBy(i.bundle, now) == nil
	if err := i.trustedBy(next.bundle, now); err != nil && signsWell {
		return fmt.Errorf("what the present issuer has signed would no longer be accepted: keep its root in the bundle until the workloads have new certificates: %w", err)
	}
	if err := next.trustedBy(i.bundle, now); err != nil {
		return fmt.Errorf("workloads that have the present root bundle would not accept the new issuer: distribute its root first, then switch: %w", err)
	}
	return nil
}

// trustedBy says why a bundle doesn't verify what the issuer signs now.
func (i *Issuer) trustedBy(b *identity.Bundle, now time.Time) error {
	if err := validAt(i.cert, now); err != nil {
		return err
	}
	if slices.ContainsFunc(b.Roots(), func(r *x509.Certificate) bool { return sameAuthority(r, i.cert) && validAt(r, now) == nil }) {
		return nil
	}
	_, err := verifyIssuer(i.cert, i.chain, b, now)
	return err
}

// sameAuthority reports whether two roots verify the same certificates.
func sameAuthority(a, b *x509.Certificate) bool {
	return bytes.Equal(a.RawSubject, b.RawSubject) && bytes.Equal(a.RawSubjectPublicKeyInfo, b.RawSubjectPublicKeyInfo)
}

// parseCSR returns the key of a request that proves to have it.
func parseCSR(csrPEM []byte) (crypto.PublicKey, error) {
	if len(csrPEM) > maxCSR {
		return nil, fmt.Errorf("%d bytes, at most %d are allowed", len(csrPEM), maxCSR)
	}
	block, rest := pem.Decode(csrPEM)
	if block == nil {
		return nil, errors.New("not PEM")
	}
	if block.Type != "CERTIFICATE REQUEST" {
		return nil, fmt.Errorf("PEM block of type %q where a CERTIFICATE REQUEST is expected", truncate(block.Type, 64))
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("data after the PEM block")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	// Before the signature, for a huge key makes that check slow.
	if err := checkKey(csr.PublicKey); err != nil {
		return nil, err
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("signature: %w", err)
	}
	return csr.PublicKey, nil
}

func certificatePEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func poolOf(certs []*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range certs {
		pool.AddCert(c)
	}
	return pool
}

func isSelfSigned(c *x509.Certificate) bool {
	return bytes.Equal(c.RawSubject, c.RawIssuer) && c.CheckSignatureFrom(c) == nil
}

func validAt(c *x509.Certificate, now time.Time) error {
	if now.Before(c.NotBefore) || now.After(c.NotAfter) {
		return fmt.Errorf("%w: it is valid from %s to %s", ErrExpired, c.NotBefore.UTC().Format(time.RFC3339), c.NotAfter.UTC().Format(time.RFC3339))
	}
	return nil
}

// truncate cuts a text to at most n bytes.
func truncate(s string, n int) string {
	if len(s) > n {
		return s[:n]
	}
	return s
}
