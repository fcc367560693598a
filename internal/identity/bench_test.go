package identity_test

import (
	"crypto/x509"
	"testing"
	"time"

	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/meshtest"
)

// BenchmarkVerifyPeer is what each side of each handshake pays beside the handshake
// itself: for a peer that its bundle has not seen, and for one that it has.
func BenchmarkVerifyPeer(b *testing.B) {
	now := time.Now()
	ca := meshtest.NewCA(b, now)
	id := identity.MustNew(meshtest.TrustDomain, "shop", "web")
	snap := ca.Snapshot(b, id, now)
	leaf, err := x509.ParseCertificate(snap.Credential.TLS().Certificate[0])
	if err != nil {
		b.Fatal(err)
	}
	chain := []*x509.Certificate{leaf}
	for _, how := range []string{"new", "known"} {
		b.Run(how, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if how == "new" {
					b.StopTimer()
					snap.Bundle = ca.Bundle(b)
					b.StartTimer()
				}
				if got, err := identity.VerifyPeer(snap, chain, x509.ExtKeyUsageServerAuth, now); err != nil || got != id {
					b.Fatal(got, err)
				}
			}
		})
	}
}

func BenchmarkFromCertificate(b *testing.B) {
	now := time.Now()
	id := identity.MustNew(meshtest.TrustDomain, "shop", "web")
	leaf, err := x509.ParseCertificate(meshtest.NewCA(b, now).Snapshot(b, id, now).Credential.TLS().Certificate[0])
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := identity.FromCertificate(leaf); err != nil {
			b.Fatal(err)
		}
	}
}
