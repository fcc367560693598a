package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"podseal.io/podseal/internal/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	day0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	web  = identity.MustNew("cluster.local", "shop", "web")
)

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newIssuer(t testing.TB) *Issuer {
	t.Helper()
	i, err := NewSelfSigned("cluster.local", day0, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func csrFor(t testing.TB, key crypto.Signer, template *x509.CertificateRequest) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func newCSR(t testing.TB) []byte { return csrFor(t, newKey(t), &x509.CertificateRequest{}) }

// TestSignProfile checks the leaf (contract 4.22, 4.23) and the layout of the
// answer (contract 4.11).
func TestSignProfile(t *testing.T) {
	i, key := newIssuer(t), newKey(t)
	got, err := i.Sign(csrFor(t, key, &x509.CertificateRequest{}), web, 0, day0)
	if err != nil {
		t.Fatal(err)
	}
	leaf := got.Leaf
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != web.URI() || len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) != 0 {
		t.Errorf("names: %v %v %v", leaf.URIs, leaf.DNSNames, leaf.IPAddresses)
	}
	if s := leaf.Subject.String(); s != "" {
		t.Errorf("subject %q, want none", s)
	}
	critical := false
	for _, e := range leaf.Extensions {
		critical = critical || e.Id.String() == "2.5.29.17" && e.Critical
	}
	if !critical {
		t.Error("the SAN is not critical although the subject is empty")
	}
	if leaf.KeyUsage != x509.KeyUsageDigitalSignature|x509.KeyUsageKeyEncipherment || leaf.IsCA || !leaf.BasicConstraintsValid {
		t.Errorf("key usage %b, CA %t", leaf.KeyUsage, leaf.IsCA)
	}
	if len(leaf.ExtKeyUsage) != 2 || leaf.ExtKeyUsage[0] != x509.ExtKeyUsageServerAuth || leaf.ExtKeyUsage[1] != x509.ExtKeyUsageClientAuth {
		t.Errorf("extended key usage %v", leaf.ExtKeyUsage)
	}
	if !leaf.NotBefore.Equal(day0.Add(-2*time.Minute)) || !leaf.NotAfter.Equal(day0.Add(24*time.Hour)) {
		t.Errorf("valid from %s to %s", leaf.NotBefore, leaf.NotAfter)
	}
	if !publicEqual(leaf.PublicKey, key.Public()) {
		t.Error("another key was certified")
	}
	if n := leaf.SerialNumber.BitLen(); n < 96 || n > 129 {
		t.Errorf("serial of %d bits", n)
	}
	if len(got.Chain) != 2 || !strings.HasSuffix(got.Chain[0], "-----END CERTIFICATE-----\n") || got.Chain[1] != string(i.Bundle().PEM()) {
		t.Errorf("chain %q", got.Chain)
	}
	if _, _, err := parseAnswer(got.Chain, key, day0); err != nil {
		t.Errorf("our own client refuses it: %v", err)
	}
}

// TestSignIgnoresNames has a request that asks for names (contract 4.8).
func TestSignIgnoresNames(t *testing.T) {
	other, err := url.Parse("spiffe://cluster.local/ns/bank/sa/vault")
	if err != nil {
		t.Fatal(err)
	}
	csr := csrFor(t, newKey(t), &x509.CertificateRequest{
		Subject:  pkix.Name{CommonName: "vault"},
		DNSNames: []string{"istiod.d8-istio.svc"},
		URIs:     []*url.URL{other},
		ExtraExtensions: []pkix.Extension{
			{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 0x03, 0x01, 0x01, 0xff}}, // CA: true
		},
	})
	got, err := newIssuer(t).Sign(csr, web, 0, day0)
	if err != nil {
		t.Fatal(err)
	}
	if l := got.Leaf; l.Subject.String() != "" || len(l.DNSNames) != 0 || len(l.URIs) != 1 || l.URIs[0].String() != web.URI() || l.IsCA {
		t.Errorf("names of the request are in the certificate: %v %v %v", l.Subject, l.DNSNames, l.URIs)
	}
}

// TestSignLife is contract 4.21 and 4.22.
func TestSignLife(t *testing.T) {
	i := newIssuer(t)
	rootEnd := i.Certificate().NotAfter
	for _, c := range []struct {
		name string
		ttl  time.Duration
		now  time.Time
		want time.Time
		err  error
	}{
		{"none is a day", 0, day0, day0.Add(24 * time.Hour), nil},
		{"negative is a day", -time.Hour, day0, day0.Add(24 * time.Hour), nil},
		{"as asked", time.Hour, day0, day0.Add(time.Hour), nil},
		{"longest", MaxTTL, day0, day0.Add(MaxTTL), nil},
		{"too long", MaxTTL + time.Second, day0, time.Time{}, ErrTTL},
		{"clamped to the issuer", 24 * time.Hour, rootEnd.Add(-time.Hour), rootEnd, nil},
		{"expired issuer", time.Hour, rootEnd.Add(time.Second), time.Time{}, ErrExpired},
		{"issuer of the future", time.Hour, day0.Add(-time.Hour), time.Time{}, ErrExpired},
	} {
		got, err := i.Sign(newCSR(t), web, c.ttl, c.now)
		if !errors.Is(err, c.err) || (err == nil && !got.Leaf.NotAfter.Equal(c.want)) {
			t.Errorf("%s: %v, %v", c.name, got, err)
		}
	}
	if _, err := i.Sign(newCSR(t), identity.ID{}, 0, day0); err == nil {
		t.Error("no identity was certified")
	}
}

// TestSignKeys proves contract 4.24.
func TestSignKeys(t *testing.T) {
	i := newIssuer(t)
	rsaKey := func(bits int) crypto.Signer {
		t.Setenv("GODEBUG", "rsa1024min=0")
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	ecKey := func(c elliptic.Curve) crypto.Signer {
		key, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		key crypto.Signer
		ok  bool
	}{
		"RSA 1024": {rsaKey(1024), false},
		"RSA 2047": {rsaKey(2047), false},
		"RSA 2048": {rsaKey(2048), true},
		"P-224":    {ecKey(elliptic.P224()), false},
		"P-256":    {ecKey(elliptic.P256()), true},
		"P-384":    {ecKey(elliptic.P384()), true},
		"Ed25519":  {edKey, true},
	} {
		_, err := i.Sign(csrFor(t, c.key, &x509.CertificateRequest{}), web, 0, day0)
		if c.ok != (err == nil) || (!c.ok && !errors.Is(err, ErrCSR)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSignRefusesBadRequests(t *testing.T) {
	i, good := newIssuer(t), newCSR(t)
	block, _ := pem.Decode(good)
	forged := bytes.Clone(block.Bytes)
	forged[len(forged)-1] ^= 1
	for name, csr := range map[string]string{
		"empty":           "",
		"no PEM":          "hello",
		"a certificate":   string(certificatePEM(i.Certificate().Raw)),
		"another type":    string(pem.EncodeToMemory(&pem.Block{Type: "NEW CERTIFICATE REQUEST", Bytes: block.Bytes})),
		"two":             string(good) + string(good),
		"trailing":        string(good) + "x",
		"too large":       string(good) + strings.Repeat(" ", maxCSR),
		"wrong signature": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: forged})),
		"empty DER":       string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST"})),
	} {
		if _, err := i.Sign([]byte(csr), web, 0, day0); !errors.Is(err, ErrCSR) {
			t.Errorf("%s: %v, want ErrCSR", name, err)
		}
	}
	for n := range block.Bytes {
		cut := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: block.Bytes[:n]})
		if _, err := i.Sign(cut, web, 0, day0); !errors.Is(err, ErrCSR) {
			t.Fatalf("cut at %d: %v, want ErrCSR", n, err)
		}
	}
	// The last byte is a newline, which PEM can do without.
	for n := range len(good) - 1 {
		if _, err := i.Sign(good[:n], web, 0, day0); !errors.Is(err, ErrCSR) {
			t.Fatalf("PEM cut at %d: %v, want ErrCSR", n, err)
		}
	}
}

func FuzzCSR(f *testing.F) {
	good := newCSR(f)
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n"))
	i := newIssuer(f)
	f.Fuzz(func(t *testing.T, csr []byte) {
		got, err := i.Sign(csr, web, 0, day0)
		if err != nil {
			if !errors.Is(err, ErrCSR) {
				t.Errorf("%v", err)
			}
			return
		}
		if id, err := identity.FromCertificate(got.Leaf); err != nil || id != web || got.Leaf.IsCA {
			t.Errorf("certified %v, %v", id, err)
		}
	})
}

// TestServingCertificate is contract 4.7.
func TestServingCertificate(t *testing.T) {
	i := intermediateOf(t, newIssuer(t))
	cert, err := i.ServingCertificate([]string{"istiod.d8-istio.svc", "127.0.0.1"}, 0, day0)
	if err != nil {
		t.Fatal(err)
	}
	if len(cert.Certificate) != 2 {
		t.Errorf("%d certificates, want leaf and intermediate", len(cert.Certificate))
	}
	for _, name := range []string{"istiod.d8-istio.svc", "127.0.0.1"} {
		if _, err := cert.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: i.Bundle().Pool(), Intermediates: poolOf(i.chain), CurrentTime: day0}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: i.Bundle().Pool(), Intermediates: poolOf(i.chain), CurrentTime: day0, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err == nil {
		t.Error("the serving certificate passes as a client's")
	}
	if _, err := i.ServingCertificate(nil, 0, day0); err == nil {
		t.Error("a certificate without names")
	}
	if _, err := i.ServingCertificate([]string{"a"}, 2*MaxTTL, day0); !errors.Is(err, ErrTTL) {
		t.Errorf("too long a life: %v", err)
	}
}

// TestSelfSignedRoot is contract 4.34, with ECDSA.
func TestSelfSignedRoot(t *testing.T) {
	i := newIssuer(t)
	c := i.Certificate()
	if key, ok := c.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
		t.Errorf("key %T", c.PublicKey)
	}
	if len(c.Subject.Organization) != 1 || c.Subject.Organization[0] != "cluster.local" || c.KeyUsage&x509.KeyUsageCertSign == 0 || !c.IsCA || !i.SelfSigned() {
		t.Errorf("root %v %b", c.Subject, c.KeyUsage)
	}
	if life := c.NotAfter.Sub(day0); life != rootLife {
		t.Errorf("life %s", life)
	}
	again, err := ParseIssuer(i.Files(), day0)
	if err != nil || again.Bundle().Hash() != i.Bundle().Hash() {
		t.Errorf("what was stored reads as another: %v", err)
	}
}

// TestRenewRoot checks that a root is renewed under its own key, so that old
// leaves verify with the new bundle and new ones with the old (contract 4.34).
func TestRenewRoot(t *testing.T) {
	old := newIssuer(t)
	end := old.Certificate().NotAfter
	if old.NeedsRenewal(day0) || old.NeedsRenewal(end.Add(-rootLife/4)) || !old.NeedsRenewal(end.Add(-rootLife/6)) {
		t.Error("renewal is due in the last fifth of the life")
	}
	now := end.Add(-rootLife / 6)
	renewed, err := old.Renew(now, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if renewed.Certificate().Equal(old.Certificate()) || !renewed.Certificate().NotAfter.After(end) {
		t.Error("the root is the same")
	}
	for name, c := range map[string][2]*Issuer{"old leaf, new bundle": {old, renewed}, "new leaf, old bundle": {renewed, old}} {
		got, err := c[0].Sign(newCSR(t), web, 0, now)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := got.Leaf.Verify(x509.VerifyOptions{Roots: c[1].Bundle().Pool(), CurrentTime: now}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := old.CheckSuccessor(renewed, now); err != nil {
		t.Errorf("a renewed root is no successor: %v", err)
	}
	if _, err := intermediateOf(t, old).Renew(now, rand.Reader); err == nil {
		t.Error("an intermediate renewed itself")
	}
}

// TestSuccessor is the staged change of roots of contract 4.35 and 4.38.
func TestSuccessor(t *testing.T) {
	a, b := newIssuer(t), newIssuer(t)
	with := func(i *Issuer, roots ...*Issuer) *Issuer {
		f := i.Files()
		f.Root = nil
		for _, r := range roots {
			f.Root = append(f.Root, certificatePEM(r.Certificate().Raw)...)
		}
		out, err := ParseIssuer(f, day0)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	for _, c := range []struct {
		name     string
		old, new *Issuer
		ok       bool
	}{
		{"the same", a, a, true},
		{"another root", a, b, false},
		{"first the new root beside the old", a, with(a, a, b), true},
		{"then the signer", with(a, a, b), with(b, b, a), true},
		{"then away with the old root", with(b, a, b), b, true},
		{"root and signer at once", a, with(b, a, b), false},
		{"signer goes with its root", with(a, a, b), b, false},
		{"back from both at once", with(b, a, b), a, false},
		{"back to the old signer first", with(b, a, b), with(a, a, b), true},
		{"an intermediate of the same root", a, intermediateOf(t, a), true},
		{"another intermediate", intermediateOf(t, a), intermediateOf(t, a), true},
		{"an intermediate of another root", intermediateOf(t, a), intermediateOf(t, b), false},
		{"the next root is given up for a third", with(a, a, b), with(a, a, newIssuer(t)), false},
		{"and given up", with(a, a, b), a, true},
	} {
		if err := c.old.CheckSuccessor(c.new, day0); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// TestSuccessorOfTheExpired: an issuer or root that has expired doesn't stand in
// the way of the one that is to replace it.
func TestSuccessorOfTheExpired(t *testing.T) {
	root, other := newIssuer(t), newIssuer(t)
	short := func(life time.Duration) *Issuer {
		f := intermediateFiles(t, root)
		template := rootTemplate("short", day0, big.NewInt(8))
		template.NotAfter = day0.Add(life)
		key := newKey(t)
		der, err := x509.CreateCertificate(rand.Reader, template, root.cert, key.Public(), root.key)
		if err != nil {
			t.Fatal(err)
		}
		keyDER, err := x509.MarshalECPrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		f.Cert, f.Key, f.Chain = certificatePEM(der), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}), nil
		i, err := ParseIssuer(f, day0)
		if err != nil {
			t.Fatal(err)
		}
		return i
	}
	intermediate := short(time.Hour)
	if err := intermediate.CheckSuccessor(intermediateOf(t, root), day0.Add(2*time.Hour)); err != nil {
		t.Errorf("an expired intermediate can't be replaced by another of its root: %v", err)
	}
	if err := intermediate.CheckSuccessor(other, day0.Add(2*time.Hour)); err == nil {
		t.Error("an expired intermediate is replaced by one of another root, which nobody accepts")
	}
	if err := root.CheckSuccessor(other, day0.Add(rootLife+time.Hour)); err != nil {
		t.Errorf("an expired root can't be replaced: %v", err)
	}
}

// intermediateOf makes an issuer under a root, with a chain file that also has
// the root, as scripts that users have write it.
func intermediateOf(t testing.TB, root *Issuer) *Issuer {
	t.Helper()
	i, err := ParseIssuer(intermediateFiles(t, root), day0)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func intermediateFiles(t testing.TB, root *Issuer) Files {
	t.Helper()
	key := newKey(t)
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	template := rootTemplate("intermediate", day0, big.NewInt(7))
	der, err := x509.CreateCertificate(rand.Reader, template, root.cert, key.Public(), root.key)
	if err != nil {
		t.Fatal(err)
	}
	cert := certificatePEM(der)
	rootPEM := certificatePEM(root.cert.Raw)
	return Files{
		Cert:  cert,
		Key:   pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}),
		Chain: slices.Concat(cert, rootPEM),
		Root:  rootPEM,
	}
}
