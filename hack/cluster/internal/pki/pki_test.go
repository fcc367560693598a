package pki

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestApply(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	authority, err := OpenAuthority(dir, "ca", now)
	if err != nil {
		t.Fatal(err)
	}
	leaf := Leaf{File: "node/server", User: "api", Groups: []string{"g"}, DNS: []string{"kubernetes"}, IPs: []string{"127.0.0.1"}, Server: true}
	cert, key, err := authority.Apply(leaf, now)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority.PEM())
	for _, name := range []string{"kubernetes", "127.0.0.1"} {
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: name}); err != nil {
			t.Errorf("verify %s: %v", name, err)
		}
	}
	again, err := OpenAuthority(dir, "ca", now)
	if err != nil {
		t.Fatal(err)
	}
	kept, _, err := again.Apply(leaf, now)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(cert, kept) {
		t.Error("a second Apply made another certificate")
	}
}

func TestApplyRefuses(t *testing.T) {
	authority, err := OpenAuthority(t.TempDir(), "ca", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := authority.Apply(Leaf{File: "x", IPs: []string{"nowhere"}}, time.Now()); err == nil {
		t.Error("a bad address was accepted")
	}
}

func TestFilesArePrivate(t *testing.T) {
	dir := t.TempDir()
	if _, err := OpenAuthority(dir, "ca", time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := ApplyTokenKey(dir); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ca.key", "sa.key"} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v", name, info.Mode())
		}
	}
}
