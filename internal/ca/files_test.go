package ca

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"maps"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"
)

func keyPEM(t testing.TB, kind string, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	if k, ok := key.(*rsa.PrivateKey); ok && kind == "RSA PRIVATE KEY" {
		der = x509.MarshalPKCS1PrivateKey(k)
	}
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// TestParseIssuerKeys reads RSA and ECDSA keys in each of their forms.
func TestParseIssuerKeys(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	root := func(key crypto.Signer) []byte {
		template := rootTemplate("x", day0, big.NewInt(1))
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		return certificatePEM(der)
	}
	params := []byte("-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n")
	inter := intermediateFiles(t, newIssuer(t))
	withParams := inter
	withParams.Key = slices.Concat(params, inter.Key)
	for name, f := range map[string]Files{
		"PKCS#1":                 {Cert: root(rsaKey), Key: keyPEM(t, "RSA PRIVATE KEY", rsaKey)},
		"PKCS#8 RSA":             {Cert: root(rsaKey), Key: keyPEM(t, "PRIVATE KEY", rsaKey)},
		"PKCS#8 ECDSA":           newIssuer(t).Files(),
		"SEC 1":                  inter,
		"SEC 1 after parameters": withParams,
	} {
		i, err := ParseIssuer(f, day0)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if _, err := i.Sign(newCSR(t), web, 0, day0); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestParseIssuerChain checks that leaves carry what they need to reach a root,
// and no root, whatever the chain file has (contract 4.11, 4.33).
func TestParseIssuerChain(t *testing.T) {
	root := newIssuer(t)
	middle := intermediateOf(t, root)
	low := intermediateFiles(t, middle)
	low.Root = root.Bundle().PEM()
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	middlePEM, rootPEM := certificatePEM(middle.cert.Raw), certificatePEM(root.cert.Raw)
	for name, chain := range map[string][]byte{
		"only what is between":    middlePEM,
		"with the issuer":         join(low.Cert, middlePEM),
		"with issuer and root":    join(low.Cert, middlePEM, rootPEM),
		"upside down":             join(rootPEM, middlePEM, low.Cert),
		"with a foreign one":      join(middlePEM, certificatePEM(newIssuer(t).cert.Raw)),
		"behind the issuer's own": nil,
	} {
		f := low
		if f.Chain = chain; chain == nil {
			f.Cert = join(low.Cert, middlePEM)
		}
		f.Root = join(rootPEM, certificatePEM(newIssuer(t).cert.Raw))
		i, err := ParseIssuer(f, day0)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		key := newKey(t)
		got, err := i.Sign(csrFor(t, key, &x509.CertificateRequest{}), web, 0, day0)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if want := []string{string(low.Cert), string(middlePEM), string(f.Root)}; !slices.Equal(got.Chain[1:], want) {
			t.Errorf("%s: the answer has %d elements, or others than it should", name, len(got.Chain))
		}
		if _, _, err := parseAnswer(got.Chain, key, day0); err != nil {
			t.Errorf("%s: our own client refuses it: %v", name, err)
		}
	}
}

// TestParseIssuerFaults wants every fault named (contract 4.32).
func TestParseIssuerFaults(t *testing.T) {
	root := newIssuer(t)
	good := intermediateFiles(t, root)
	leafKey := newKey(t)
	leaf, err := root.Sign(csrFor(t, leafKey, &x509.CertificateRequest{}), web, 0, day0)
	if err != nil {
		t.Fatal(err)
	}
	change := func(change func(*Files)) Files {
		f := good
		change(&f)
		return f
	}
	for _, c := range []struct {
		name  string
		files Files
		now   time.Time
		want  []string
	}{
		{"nothing", Files{}, day0, []string{"ca-cert.pem is missing", "ca-key.pem is missing", "root-cert.pem is missing"}},
		{"no key", change(func(f *Files) { f.Key = nil }), day0, []string{"ca-key.pem is missing"}},
		{"no certificate", change(func(f *Files) { f.Cert = []byte("\n") }), day0, []string{"ca-cert.pem is missing"}},
		{"no root", change(func(f *Files) { f.Root = nil }), day0, []string{"root-cert.pem is missing"}},
		{"garbage", Files{Cert: []byte("x"), Key: []byte("x"), Chain: []byte("x"), Root: []byte("x")}, day0, []string{"ca-cert.pem: no PEM", "ca-key.pem: no PEM", "cert-chain.pem: no PEM", "root-cert.pem: parse bundle: no PEM"}},
		{"another's key", change(func(f *Files) { f.Key = root.Files().Key }), day0, []string{"does not belong"}},
		{"a leaf", Files{Cert: []byte(leaf.Chain[0]), Key: keyPEM(t, "PRIVATE KEY", leafKey), Root: good.Root}, day0, []string{"not a CA"}},
		{"a leaf as root", change(func(f *Files) { f.Root = []byte(leaf.Chain[0]) }), day0, []string{"root-cert.pem: parse bundle: certificate 1 (subject \"\") is not a CA"}},
		{"expired", good, day0.Add(2 * rootLife), []string{"not valid at this time"}},
		{"too early", good, day0.Add(-time.Hour), []string{"not valid at this time"}},
		{"another's root", change(func(f *Files) { f.Root = newIssuer(t).Bundle().PEM() }), day0, []string{"does not lead to a root"}},
		{"broken chain", intermediateFilesWithoutChain(t, root), day0, []string{"does not lead to a root"}},
		{"only for servers", onlyServers(t, root), day0, []string{"peers would not accept"}},
		{"certificate as key", change(func(f *Files) { f.Key = f.Cert }), day0, []string{"where a private key is expected"}},
		{"encrypted key", change(func(f *Files) {
			f.Key = pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("x")})
		}), day0, []string{"encrypted"}},
		{"all at once", Files{Cert: []byte(leaf.Chain[0]), Key: good.Key, Chain: []byte("x"), Root: newIssuer(t).Bundle().PEM()}, day0, []string{"not a CA", "does not belong", "cert-chain.pem", "does not lead to a root"}},
	} {
		_, err := ParseIssuer(c.files, c.now)
		if err == nil {
			t.Errorf("%s: no error", c.name)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %q does not say %q", c.name, err, want)
			}
		}
		if n := len(strings.Split(err.Error(), "\n")); n != len(c.want) {
			t.Errorf("%s: %d faults, want %d:\n%v", c.name, n, len(c.want), err)
		}
	}
}

// intermediateFilesWithoutChain is two steps below the root with the step
// between left out.
func intermediateFilesWithoutChain(t testing.TB, root *Issuer) Files {
	t.Helper()
	f := intermediateFiles(t, intermediateOf(t, root))
	f.Root, f.Chain = root.Bundle().PEM(), nil
	return f
}

// onlyServers is an intermediate under which nothing may be a TLS client.
func onlyServers(t testing.TB, root *Issuer) Files {
	t.Helper()
	key := newKey(t)
	template := rootTemplate("servers", day0, big.NewInt(9))
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	der, err := x509.CreateCertificate(rand.Reader, template, root.cert, key.Public(), root.key)
	if err != nil {
		t.Fatal(err)
	}
	return Files{Cert: certificatePEM(der), Key: keyPEM(t, "PRIVATE KEY", key), Root: root.Bundle().PEM()}
}

func TestParseIssuerCut(t *testing.T) {
	good := intermediateFiles(t, newIssuer(t))
	for n := range len(good.Cert) - 1 {
		f := good
		f.Cert = good.Cert[:n]
		if _, err := ParseIssuer(f, day0); err == nil {
			t.Fatalf("certificate cut at %d: no error", n)
		}
	}
	for n := range len(good.Key) - 1 {
		f := good
		f.Key = good.Key[:n]
		if _, err := ParseIssuer(f, day0); err == nil {
			t.Fatalf("key cut at %d: no error", n)
		}
	}
}

func FuzzParseIssuer(f *testing.F) {
	good := intermediateFiles(f, newIssuer(f))
	f.Add(good.Cert, good.Key, good.Chain, good.Root)
	f.Add(good.Cert, good.Cert, []byte(nil), good.Cert)
	f.Add([]byte("x"), good.Key, good.Chain, []byte{})
	csr := newCSR(f)
	f.Fuzz(func(t *testing.T, cert, key, chain, root []byte) {
		i, err := ParseIssuer(Files{Cert: cert, Key: key, Chain: chain, Root: root}, day0)
		if err != nil {
			return
		}
		if _, err := ParseIssuer(i.Files(), day0); err != nil {
			t.Errorf("what was read doesn't read again: %v", err)
		}
		if _, err := i.Sign(csr, web, 0, day0); err != nil {
			t.Errorf("an issuer that cannot sign: %v", err)
		}
	})
}

// TestFromSecret is the two layouts of contract 4.32.
func TestFromSecret(t *testing.T) {
	f := intermediateFiles(t, newIssuer(t))
	for name, data := range map[string]map[string][]byte{
		"cacerts": f.Data(),
		"tls":     {"tls.crt": f.Chain, "tls.key": f.Key, "ca.crt": f.Root},
	} {
		got, ok := FromSecret(data)
		if _, err := ParseIssuer(got, day0); !ok || err != nil {
			t.Errorf("%s: %t, %v", name, ok, err)
		}
	}
	if _, ok := FromSecret(map[string][]byte{"other": []byte("x")}); ok {
		t.Error("an authority in an unrelated Secret")
	}
	if got, ok := FromSecret(map[string][]byte{RootFile: f.Root, "tls.crt": f.Cert, "tls.key": f.Key}); !ok || len(got.Cert) != 0 {
		t.Error("the two layouts are mixed")
	}
	if keys := slices.Sorted(maps.Keys(f.Data())); !slices.Equal(keys, []string{CertFile, KeyFile, ChainFile, RootFile}) {
		t.Errorf("data has %v", keys)
	}
}

func TestFilesAreNotLogged(t *testing.T) {
	var out bytes.Buffer
	f := newIssuer(t).Files()
	slog.New(slog.NewTextHandler(&out, nil)).Info("files", slog.Any("files", f))
	if strings.Contains(out.String(), "PRIVATE") || !strings.Contains(out.String(), "cert_bytes") {
		t.Errorf("log: %s", out.String())
	}
	if s := fmt.Sprintf("%v %+v %s %#v", f, f, f, f); strings.Contains(s, "PRIVATE") || len(s) > 400 {
		t.Errorf("text of the files: %.80s", s)
	}
}
