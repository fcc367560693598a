package meshtest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"maps"
	"testing"

	"github.com/go-jose/go-jose/v4"
)

// Issuer signs JSON Web Tokens with one key.
type Issuer struct {
	tb        testing.TB
	Name      string // its iss claim
	KeyID     string
	algorithm jose.SignatureAlgorithm
	key       crypto.Signer
}

// NewIssuer makes a key for an algorithm, such as ES256.
func NewIssuer(tb testing.TB, name, keyID, algorithm string) *Issuer {
	tb.Helper()
	i := &Issuer{tb: tb, Name: name, KeyID: keyID, algorithm: jose.SignatureAlgorithm(algorithm)}
	var err error
	switch i.algorithm {
	case jose.ES256:
		i.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case jose.ES384:
		i.key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case jose.ES512:
		i.key, err = ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case jose.EdDSA:
		_, i.key, err = ed25519.GenerateKey(rand.Reader)
	default:
		i.key, err = rsa.GenerateKey(rand.Reader, 2048)
	}
	if err != nil {
		tb.Fatal(err)
	}
	return i
}

// KeySet is the JSON Web Key Set of some issuers' public keys.
func KeySet(tb testing.TB, issuers ...*Issuer) []byte {
	tb.Helper()
	var set jose.JSONWebKeySet
	for _, i := range issuers {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: i.key.Public(), KeyID: i.KeyID, Algorithm: string(i.algorithm), Use: "sig"})
	}
	b, err := json.Marshal(set)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// PrivateKeySet is a key set that nobody should publish.
func (i *Issuer) PrivateKeySet() []byte {
	i.tb.Helper()
	b, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: i.key, KeyID: i.KeyID}}})
	if err != nil {
		i.tb.Fatal(err)
	}
	return b
}

// Token signs claims; iss is the issuer's name unless they say otherwise.
func (i *Issuer) Token(claims map[string]any) string {
	i.tb.Helper()
	all := map[string]any{"iss": i.Name}
	maps.Copy(all, claims)
	payload, err := json.Marshal(all)
	if err != nil {
		i.tb.Fatal(err)
	}
	return i.Sign(payload)
}

// Sign signs any payload.
func (i *Issuer) Sign(payload []byte) string {
	i.tb.Helper()
	options := &jose.SignerOptions{}
	if i.KeyID != "" {
		options.WithHeader("kid", i.KeyID)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: i.algorithm, Key: i.key}, options)
	if err != nil {
		i.tb.Fatal(err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		i.tb.Fatal(err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		i.tb.Fatal(err)
	}
	return text
}
