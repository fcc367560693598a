package settings

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"strings"
)

// IsZero reports whether no CA is plugged in.
func (c CA) IsZero() bool { return c == CA{} }

// String says which parts are present; it never shows them.
func (c CA) String() string {
	var parts []string
	for _, p := range []struct{ name, value string }{{"cert", c.Cert}, {"key", c.Key}, {"chain", c.Chain}, {"root", c.Root}} {
		if p.value != "" {
			parts = append(parts, p.name)
		}
	}
	if parts == nil {
		return "none"
	}
	return "plugged in (" + strings.Join(parts, ", ") + ")"
}

// GoString is String, so that %#v shows no key either.
func (c CA) GoString() string { return c.String() }

// LogValue is String for slog.
func (c CA) LogValue() slog.Value { return slog.StringValue(c.String()) }

// LogValue is the settings without the private key of the CA.
func (s Settings) LogValue() slog.Value {
	type plain Settings // without this method
	if s.CA.Key != "" {
		s.CA.Key = "(not shown)"
	}
	return slog.AnyValue(plain(s))
}

// check returns what is wrong with a plugged-in CA, by the name of the
// setting. Faults never carry any part of a value. Whether the chain holds at
// this moment is for the issuer to say, who has a clock.
func (c CA) check() map[string]error {
	faults := map[string]error{}
	if c.IsZero() {
		return faults
	}
	for name, value := range map[string]string{"cert": c.Cert, "chain": c.Chain, "root": c.Root} {
		if value == "" {
			continue
		}
		if err := checkCertificates(value, name != "chain"); err != nil {
			faults[name] = err
		}
	}
	if c.Cert == "" {
		faults["cert"] = errors.New("missing: a CA needs its certificate (PEM)")
	}
	switch block, _ := pem.Decode([]byte(c.Key)); {
	case c.Key == "":
		faults["key"] = errors.New("missing: a CA needs its private key (PEM)")
	case block == nil || !strings.HasSuffix(block.Type, "PRIVATE KEY"):
		faults["key"] = errors.New("not a private key in PEM")
	case faults["cert"] == nil:
		if _, err := tls.X509KeyPair([]byte(c.Cert), []byte(c.Key)); err != nil {
			faults["key"] = errors.New("not the private key of ca.cert, or of a kind that is not supported (RSA, ECDSA, Ed25519; not encrypted)")
		}
	}
	if c.Root == "" && faults["cert"] == nil && !selfIssued(c.Cert) {
		faults["root"] = errors.New("missing: ca.cert is an intermediate, so workloads need the root that it chains to (PEM)")
	}
	return faults
}

// checkCertificates wants PEM certificates only; with needCA each must be a CA.
func checkCertificates(text string, needCA bool) error {
	rest := []byte(text)
	n := 0
	for {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			break
		}
		n++
		if block.Type != "CERTIFICATE" {
			return fmt.Errorf("PEM block %d is not a CERTIFICATE", n)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return fmt.Errorf("PEM block %d is not a certificate that can be read", n)
		}
		if needCA && !cert.IsCA {
			return fmt.Errorf("certificate %d is not a CA certificate", n)
		}
	}
	if n == 0 {
		return errors.New("no certificate in PEM")
	}
	return nil
}

// selfIssued reports whether the first certificate of text names itself as its
// issuer. The text has passed checkCertificates.
func selfIssued(text string) bool {
	block, _ := pem.Decode([]byte(text))
	cert, err := x509.ParseCertificate(block.Bytes)
	return err == nil && bytes.Equal(cert.RawIssuer, cert.RawSubject)
}
