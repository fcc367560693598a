package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"

	"podseal.io/podseal/internal/identity"
)

// attestPrefix keeps a signature from being one of something else.
const attestPrefix = "podseal.io/attestation/v1\n"

// maxAttestChain bounds the certificates of an attestation.
const maxAttestChain = 10

// ErrAttestation says that a statement is not what was signed, or not signed by
// whom it should be.
var ErrAttestation = errors.New("the signature does not hold")

// Attestation is a statement that whoever has the key of a certificate of the mesh
// has signed: ECDSA P-256, ASN.1, over SHA-256 of a prefix and the statement.
type Attestation struct {
	Statement []byte   `json:"statement"`
	Chain     []string `json:"chain"` // PEM: the leaf, then what it needs to reach a root
	Signature []byte   `json:"signature"`
}

// Attest signs a statement as id, with a key made for it and forgotten.
func (i *Issuer) Attest(statement []byte, id identity.ID, now time.Time) (*Attestation, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("attest: generate key: %w", err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("attest: make certificate request: %w", err)
	}
	issued, err := i.Sign(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}), id, time.Hour, now)
	if err != nil {
		return nil, fmt.Errorf("attest: %w", err)
	}
	signature, err := key.Sign(rand.Reader, attestDigest(statement), crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("attest: %w", err)
	}
	return &Attestation{Statement: statement, Chain: issued.Chain[:len(issued.Chain)-1], Signature: signature}, nil
}

func attestDigest(statement []byte) []byte {
	h := sha256.New()
	h.Write([]byte(attestPrefix))
	h.Write(statement)
	return h.Sum(nil)
}

// Verify says who signed, if the signature holds and the signer's certificate was
// good at that time by one of these roots.
func (a *Attestation) Verify(roots *identity.Bundle, at time.Time) (identity.ID, error) {
	if len(a.Chain) == 0 || len(a.Chain) > maxAttestChain {
		return identity.ID{}, fmt.Errorf("%w: %d certificates", ErrAttestation, len(a.Chain))
	}
	chain, err := identity.ParseCertificates([]byte(strings.Join(a.Chain, "\n")))
	if err != nil {
		return identity.ID{}, fmt.Errorf("%w: %w", ErrAttestation, err)
	}
	for i, c := range chain { // base64 has several texts of one certificate: only ours is what was written
		if len(chain) != len(a.Chain) || string(certificatePEM(c.Raw)) != a.Chain[i] {
			return identity.ID{}, fmt.Errorf("%w: its certificates are not written as they were", ErrAttestation)
		}
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	if _, err := chain[0].Verify(x509.VerifyOptions{Roots: roots.Pool(), Intermediates: between, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return identity.ID{}, fmt.Errorf("%w: the signer's certificate: %w", ErrAttestation, err)
	}
	id, err := identity.FromCertificate(chain[0])
	if err != nil {
		return identity.ID{}, fmt.Errorf("%w: %w", ErrAttestation, err)
	}
	pub, ok := chain[0].PublicKey.(*ecdsa.PublicKey)
	if !ok || !ecdsa.VerifyASN1(pub, attestDigest(a.Statement), a.Signature) {
		return identity.ID{}, fmt.Errorf("%w: the statement is not the one that was signed", ErrAttestation)
	}
	return id, nil
}
