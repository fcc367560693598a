package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/url"
	"time"

	"podseal.io/podseal/internal/identity"
)

// DefaultTTL is the life of a certificate for which none is asked, MaxTTL the
// longest that may be asked for (contract 4.21).
const (
	DefaultTTL = 24 * time.Hour
	MaxTTL     = 90 * 24 * time.Hour
)

// skew is how far back a certificate is valid, for peers whose clock is behind
// (contract 4.22).
const skew = 2 * time.Minute

// rootLife is the life of a root that is made here (contract 4.34).
const rootLife = 10 * 365 * 24 * time.Hour

// Template is the profile of a workload certificate (contract 4.23). The public
// key is set apart when it is signed; the life is not yet clamped to the issuer's.
func Template(id identity.ID, pub crypto.PublicKey, now time.Time, ttl time.Duration, serial *big.Int) (*x509.Certificate, error) {
	if id.IsZero() {
		return nil, errors.New("no identity to certify")
	}
	uri, err := url.Parse(id.URI())
	if err != nil {
		return nil, fmt.Errorf("identity as URI: %w", err)
	}
	// The subject stays empty, for which crypto/x509 marks the SAN critical.
	t := profile(now, ttl, serial)
	t.PublicKey = pub
	t.URIs = []*url.URL{uri}
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	return t, nil
}

// servingTemplate is the profile of the control plane's own certificate.
func servingTemplate(names []string, now time.Time, ttl time.Duration, serial *big.Int) *x509.Certificate {
	t := profile(now, ttl, serial)
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, name)
		}
	}
	return t
}

func profile(now time.Time, ttl time.Duration, serial *big.Int) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber:          serial,
		NotBefore:             now.Add(-skew),
		NotAfter:              now.Add(ttl),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		BasicConstraintsValid: true,
	}
}

// rootTemplate is the profile of a self-signed root (contract 4.34).
func rootTemplate(trustDomain string, now time.Time, serial *big.Int) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{trustDomain}},
		NotBefore:             now.Add(-skew),
		NotAfter:              now.Add(rootLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
}

// newSerial is a random number of 128 bits (contract 4.23).
func newSerial(random io.Reader) (*big.Int, error) {
	var b [16]byte
	if _, err := io.ReadFull(random, b[:]); err != nil {
		return nil, fmt.Errorf("make serial number: %w", err)
	}
	// RFC 5280 4.1.2.2: a serial number is positive.
	return new(big.Int).Add(new(big.Int).SetBytes(b[:]), big.NewInt(1)), nil
}

// lifetime turns the seconds of a request into a life (contract 4.21).
func lifetime(ttl time.Duration) (time.Duration, error) {
	switch {
	case ttl <= 0:
		return DefaultTTL, nil
	case ttl > MaxTTL:
		return 0, fmt.Errorf("%w: %s asked, at most %s allowed", ErrTTL, ttl, MaxTTL)
	default:
		return ttl, nil
	}
}

// checkKey refuses keys that are weak or that would make others work hard.
func checkKey(pub crypto.PublicKey) error {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < 2048 || n > 8192 {
			return fmt.Errorf("RSA key of %d bits, want 2048 to 8192", n)
		}
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256(), elliptic.P384(), elliptic.P521():
		default:
			return fmt.Errorf("ECDSA key on curve %s, want P-256, P-384 or P-521", k.Curve.Params().Name)
		}
	case ed25519.PublicKey:
	default:
		return fmt.Errorf("key of type %T, want ECDSA, RSA or Ed25519", pub)
	}
	return nil
}
