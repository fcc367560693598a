package proxy

import (
	"crypto/x509"
	"testing"
	"time"

	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/meshtest"
	"podseal.io/podseal/internal/policy"
)

// Every change of the world asks every connection: chains are verified again only
// when whom we trust has changed, or many connections would hold up a policy.
func TestPeersAreVerifiedAgainOnlyWhenTrustChanges(t *testing.T) {
	now := time.Now()
	ca := meshtest.NewCA(t, now)
	cred := ca.Issue(t, identity.MustNew(meshtest.TrustDomain, "shop", "web"), now.Add(-time.Hour), now.Add(time.Hour))
	trusted := func(ca *meshtest.CA, domains ...string) *identity.Snapshot {
		return &identity.Snapshot{Credential: cred, Bundle: ca.Bundle(t), TrustDomains: domains}
	}
	ours := trusted(ca, meshtest.TrustDomain)
	// No chain at all never verifies, so that an answer of none was not verified.
	blind := stillVerified(ours, nil, x509.ExtKeyUsageClientAuth, now)
	if got := blind(nil, trusted(ca, meshtest.TrustDomain)); got != policy.None {
		t.Errorf("the same trust in another snapshot: %s", got)
	}
	if got := blind(nil, nil); got != policy.None {
		t.Errorf("no snapshot: %s", got)
	}
	if got := blind(nil, trusted(ca, meshtest.TrustDomain, "other.example")); got == policy.None {
		t.Error("another trust was not verified")
	}
	check := stillVerified(ours, []*x509.Certificate{cred.Leaf}, x509.ExtKeyUsageClientAuth, now)
	for _, tt := range []struct {
		snap *identity.Snapshot
		want policy.Reason
	}{
		{trusted(ca, meshtest.TrustDomain, "other.example"), policy.None},
		{trusted(ca, "other.example"), policy.ForeignTrustDomain},
		{trusted(meshtest.NewCA(t, now), meshtest.TrustDomain), policy.PeerUnverified},
		{ours, policy.None},
	} {
		if got := check(nil, tt.snap); got != tt.want {
			t.Errorf("trust domains %v: %q, want %q", tt.snap.TrustDomains, got, tt.want)
		}
	}
	if trustOf(ours).Credential != nil {
		t.Error("a connection keeps a key that has been replaced")
	}
}

// BenchmarkWorldChange is what a change of the world costs with many open
// connections of mutual TLS.
func BenchmarkWorldChange(b *testing.B) {
	now := time.Now()
	ca := meshtest.NewCA(b, now)
	cred := ca.Issue(b, identity.MustNew(meshtest.TrustDomain, "shop", "web"), now.Add(-time.Hour), now.Add(time.Hour))
	snap := &identity.Snapshot{Credential: cred, Bundle: ca.Bundle(b), TrustDomains: []string{meshtest.TrustDomain}}
	open := newConns(1000)
	for range 1000 {
		c := &conn{direction: directionInbound}
		c.watch(stillVerified(snap, []*x509.Certificate{cred.Leaf}, x509.ExtKeyUsageClientAuth, now))
		open.add(c)
	}
	for b.Loop() {
		open.recheck(nil, snap)
	}
}
