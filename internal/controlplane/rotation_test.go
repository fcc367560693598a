package controlplane

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"podseal.io/podseal/internal/ca"
	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/settings"
)

// rotation is a mesh whose root is being changed: the control plane, and the
// certificates and bundles that workloads may have at this moment.
type rotation struct {
	t       *testing.T
	now     time.Time
	control *authority
	leaves  []*ca.Issued
	bundles []*identity.Bundle
}

// cacerts is a Secret as docs/ca.md has it made.
func cacerts(signer *ca.Issuer, roots ...*ca.Issuer) *corev1.Secret {
	f := signer.Files()
	f.Root = nil
	for _, r := range roots {
		f.Root = append(f.Root, r.Files().Cert...)
	}
	return secret(settings.PluggedCASecret, f.Data())
}

// give has the control plane see a Secret, or that it is gone, and says whether
// what it holds is in force.
func (r *rotation) give(s *corev1.Secret, gone bool) bool {
	r.t.Helper()
	r.control.see(s, gone)
	issuer, err := r.control.Issuer()
	if err != nil {
		r.t.Fatal(err)
	}
	r.leaves, r.bundles = append(r.leaves, r.issue(issuer)), append(r.bundles, issuer.Bundle())
	r.check()
	return r.control.Problem() == nil
}

func (r *rotation) issue(issuer *ca.Issuer) *ca.Issued {
	r.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		r.t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		r.t.Fatal(err)
	}
	csr := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	leaf, err := issuer.Sign(csr, identity.MustNew("cluster.local", "shop", "web"), 0, r.now)
	if err != nil {
		r.t.Fatal(err)
	}
	return leaf
}

// check fails if any workload refuses any other, or the control plane.
func (r *rotation) check() {
	r.t.Helper()
	serving, err := r.control.TLSConfig().GetCertificate(nil)
	if err != nil {
		r.t.Fatal(err)
	}
	for i, b := range r.bundles {
		for j, l := range r.leaves {
			if _, err := l.Leaf.Verify(x509.VerifyOptions{Roots: b.Pool(), CurrentTime: r.now}); err != nil {
				r.t.Errorf("a workload with bundle %d refuses one with certificate %d: %v", i, j, err)
			}
		}
		if _, err := serving.Leaf.Verify(x509.VerifyOptions{Roots: b.Pool(), CurrentTime: r.now}); err != nil {
			r.t.Errorf("a workload with bundle %d refuses the control plane: %v", i, err)
		}
	}
}

// wait is what docs/ca.md says to do between two steps: all workloads have the
// newest bundle, and after a day also a certificate of the newest signer.
func (r *rotation) wait(day bool) {
	r.bundles = r.bundles[len(r.bundles)-1:]
	if day {
		r.leaves = r.leaves[len(r.leaves)-1:]
	}
	r.check()
}

// TestRotation walks through the steps of docs/ca.md, forth and back: at each
// moment everybody accepts everybody, whichever step has reached them (contract
// 4.35, 4.38). A step that is left out is refused and changes nothing.
func TestRotation(t *testing.T) {
	own, next := newSelfSigned(t, epoch), newSelfSigned(t, epoch)
	made := secret(settings.CASecret, own.Files().Data())
	r := &rotation{t: t, now: epoch.Add(time.Hour)}
	r.control = newTestAuthority(t, func() time.Time { return r.now }, settingsSecret(t, settings.Default("")), made)
	step := func(name string, s *corev1.Secret, gone, want bool) {
		t.Helper()
		before, err := r.control.Issuer()
		if err != nil {
			t.Fatal(err)
		}
		if got := r.give(s, gone); got != want {
			t.Fatalf("%s: in force %t, want %t: %v", name, got, want, r.control.Problem())
		}
		if after, err := r.control.Issuer(); !want && (err != nil || after != before) {
			t.Fatalf("%s: it was refused, and the issuer is another: %v", name, err)
		}
	}
	step("the new CA at once", cacerts(next, next), false, false)
	step("signer and both roots at once", cacerts(next, own, next), false, false)
	step("1: both roots, the old signer", cacerts(own, own, next), false, true)
	step("the signer with its root alone", cacerts(next, next), false, false)
	step("1 again, to take that back", cacerts(own, own, next), false, true)
	r.wait(false)
	step("2: both roots, the new signer", cacerts(next, own, next), false, true)
	step("cacerts deleted half-way", cacerts(next), true, false)
	step("2 again, to take that back", cacerts(next, own, next), false, true)
	r.wait(true)
	step("3: the new root alone", cacerts(next, next), false, true)
	r.wait(false)
	if issuer, err := r.control.Issuer(); err != nil || !issuer.Certificate().Equal(next.Certificate()) || len(issuer.Bundle().Roots()) != 1 {
		t.Fatal("the rotation did not end with the new root alone", err)
	}

	step("cacerts deleted at the end", cacerts(next), true, false)
	step("back, 1", cacerts(next, own, next), false, true)
	r.wait(false)
	step("back, 2", cacerts(own, own, next), false, true)
	r.wait(true)
	step("back, 3: cacerts deleted", cacerts(own), true, true)
	if issuer, err := r.control.Issuer(); err != nil || !slices.Equal(issuer.Bundle().PEM(), own.Bundle().PEM()) {
		t.Fatal("the way back did not end with the root of before", err)
	}
}
