package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net/url"
	"sync"
	"testing"
	"time"
)

var noon = time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)

// issued is a certificate with its key.
type issued struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// issue makes a certificate that is valid for an hour before and after noon, unless
// change says otherwise. Without an issuer it is a root.
func issue(tb testing.TB, by *issued, change func(*x509.Certificate)) *issued {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<60))
	if err != nil {
		tb.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: serial, NotBefore: noon.Add(-time.Hour), NotAfter: noon.Add(time.Hour)}
	change(c)
	signer := key
	issuer := c
	if by != nil {
		issuer, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, issuer, key.Public(), signer)
	if err != nil {
		tb.Fatal(err)
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		tb.Fatal(err)
	}
	return &issued{c, key}
}

func authority(c *x509.Certificate) {
	c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
	c.Subject.CommonName = c.SerialNumber.String()
}

func peer(c *x509.Certificate) {
	c.URIs = []*url.URL{{Scheme: "spiffe", Host: "cluster.local", Path: "/ns/shop/sa/web"}}
	c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
}

func trusting(tb testing.TB, roots ...*issued) *Snapshot {
	tb.Helper()
	var all []byte
	for _, r := range roots {
		all = append(all, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.cert.Raw})...)
	}
	b, err := ParseBundle(all)
	if err != nil {
		tb.Fatal(err)
	}
	return &Snapshot{Bundle: b, TrustDomains: []string{"cluster.local"}}
}

// mark makes what is kept tell itself from what is verified.
func mark(b *Bundle) ID {
	kept := MustNew("cluster.local", "shop", "kept")
	for p, o := range b.verified.known {
		o.id = kept
		b.verified.known[p] = o
	}
	return kept
}

// TestVerifiedOnce: a chain is verified once for each purpose and bundle, and only
// the same bytes are the same chain.
func TestVerifiedOnce(t *testing.T) {
	root := issue(t, nil, authority)
	between := issue(t, root, authority)
	leaf := issue(t, between, peer)
	chain := []*x509.Certificate{leaf.cert, between.cert}
	web := MustNew("cluster.local", "shop", "web")
	snap := trusting(t, root)
	if id, err := VerifyPeer(snap, chain, x509.ExtKeyUsageServerAuth, noon); err != nil || id != web {
		t.Fatal(id, err)
	}
	kept := mark(snap.Bundle)
	if id, err := VerifyPeer(snap, chain, x509.ExtKeyUsageServerAuth, noon.Add(time.Minute)); err != nil || id != kept {
		t.Errorf("again: %v, %v", id, err)
	}

	if id, err := VerifyPeer(snap, chain, x509.ExtKeyUsageClientAuth, noon); err != nil || id != web {
		t.Errorf("for another purpose: %v, %v", id, err)
	}
	if id, err := VerifyPeer(snap, chain[:1], x509.ExtKeyUsageServerAuth, noon); err == nil {
		t.Errorf("the same leaf without what is between: %v", id)
	}
	other := issue(t, root, authority)
	if id, err := VerifyPeer(snap, []*x509.Certificate{leaf.cert, other.cert}, x509.ExtKeyUsageServerAuth, noon); err == nil {
		t.Errorf("the same leaf under another CA: %v", id)
	}
	if id, err := VerifyPeer(snap, append(chain, other.cert), x509.ExtKeyUsageServerAuth, noon); err != nil || id != web {
		t.Errorf("a longer chain: %v, %v", id, err)
	}

	if id, err := VerifyPeer(trusting(t, root), chain, x509.ExtKeyUsageServerAuth, noon); err != nil || id != web {
		t.Errorf("another bundle of the same roots: %v, %v", id, err)
	}
	if id, err := VerifyPeer(trusting(t, other), chain, x509.ExtKeyUsageServerAuth, noon); err == nil {
		t.Errorf("a bundle without the root: %v", id)
	}
	snap.TrustDomains = []string{"elsewhere.org"}
	if id, err := VerifyPeer(snap, chain, x509.ExtKeyUsageServerAuth, noon); err == nil {
		t.Errorf("of a trust domain that is none of ours: %v", id)
	}
}

// TestVerifiedWhileValid: what is kept holds for exactly as long as verification
// would succeed, whichever way the clock goes.
func TestVerifiedWhileValid(t *testing.T) {
	root := issue(t, nil, authority)
	between := issue(t, root, func(c *x509.Certificate) {
		authority(c)
		c.NotBefore, c.NotAfter = noon.Add(-30*time.Minute), noon.Add(20*time.Minute)
	})
	leaf := issue(t, between, func(c *x509.Certificate) {
		peer(c)
		c.NotBefore, c.NotAfter = noon.Add(-10*time.Minute), noon.Add(40*time.Minute)
	})
	chain := []*x509.Certificate{leaf.cert, between.cert}
	first, last := leaf.cert.NotBefore, between.cert.NotAfter
	for _, tt := range []struct {
		at time.Time
		ok bool
	}{
		{noon, true},
		{first, true},
		{first.Add(-time.Nanosecond), false},
		{first.Add(-time.Hour), false},
		{last, true},
		{last.Add(time.Nanosecond), false},
		{last.Add(time.Hour), false},
		{noon, true},
	} {
		for _, kept := range []bool{false, true} {
			snap := trusting(t, root)
			want := MustNew("cluster.local", "shop", "web")
			if kept {
				if _, err := VerifyPeer(snap, chain, x509.ExtKeyUsageServerAuth, noon); err != nil {
					t.Fatal(err)
				}
				want = mark(snap.Bundle)
			}
			id, err := VerifyPeer(snap, chain, x509.ExtKeyUsageServerAuth, tt.at)
			if (err == nil) != tt.ok || (tt.ok && id != want) {
				t.Errorf("at %v, kept %v: %v, %v", tt.at, kept, id, err)
			}
		}
	}
}

// TestVerifiedLongest: of two ways to the roots that which holds for longer counts.
func TestVerifiedLongest(t *testing.T) {
	short := issue(t, nil, func(c *x509.Certificate) { authority(c); c.NotAfter = noon.Add(time.Minute) })
	long := issue(t, nil, authority)
	between := issue(t, long, authority)
	der, err := x509.CreateCertificate(rand.Reader, between.cert, short.cert, between.key.Public(), short.key)
	if err != nil {
		t.Fatal(err)
	}
	crossed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	leaf := issue(t, between, peer)
	chain := []*x509.Certificate{leaf.cert, crossed, between.cert}
	snap := trusting(t, short, long)
	for _, at := range []time.Time{noon, noon.Add(30 * time.Minute)} {
		if _, err := VerifyPeer(snap, chain, x509.ExtKeyUsageServerAuth, at); err != nil {
			t.Error(err)
		}
	}
	for _, o := range snap.Bundle.verified.known {
		if !o.until.Equal(leaf.cert.NotAfter) || !o.from.Equal(leaf.cert.NotBefore) {
			t.Errorf("from %v to %v", o.from, o.until)
		}
	}
}

// TestVerifiedIsBounded: failures are not kept, successes are bounded, and those that
// hold no longer go first.
func TestVerifiedIsBounded(t *testing.T) {
	root, stranger := issue(t, nil, authority), issue(t, nil, authority)
	snap := trusting(t, root)
	for range 10 {
		if _, err := VerifyPeer(snap, []*x509.Certificate{issue(t, stranger, peer).cert}, x509.ExtKeyUsageServerAuth, noon); err == nil {
			t.Fatal("a stranger is verified")
		}
	}
	v := &snap.Bundle.verified
	if len(v.known) != 0 {
		t.Errorf("%d failures are kept", len(v.known))
	}
	one := func(n int) (p presented) {
		p.chain[0], p.chain[1] = byte(n), byte(n>>8)
		return p
	}
	valid := outcome{from: noon, until: noon.Add(time.Hour)}
	v.keep(one(0), outcome{from: noon, until: noon.Add(time.Minute)}, noon)
	for n := 1; n < 3*maxVerified; n++ {
		if n == maxVerified {
			v.keep(one(n-1), valid, noon) // it is there already
			if len(v.known) != maxVerified {
				t.Errorf("%d are kept, of which none had to go", len(v.known))
			}
		}
		v.keep(one(n), valid, noon.Add(2*time.Minute))
		if n == maxVerified {
			if _, there := v.known[one(0)]; there || len(v.known) != maxVerified {
				t.Errorf("one that holds no longer is kept (%v) in place of others; %d there are", there, len(v.known))
			}
		}
		if _, there := v.find(one(n), noon.Add(time.Minute)); !there || len(v.known) > maxVerified {
			t.Fatalf("the newest is kept: %v; %d there are", there, len(v.known))
		}
	}
}

// TestVerifiedCosts: a chain that is known allocates nothing.
func TestVerifiedCosts(t *testing.T) {
	root := issue(t, nil, authority)
	snap, chain := trusting(t, root), []*x509.Certificate{issue(t, root, peer).cert}
	if n := testing.AllocsPerRun(100, func() {
		if _, err := VerifyPeer(snap, chain, x509.ExtKeyUsageServerAuth, noon); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestVerifiedAtOnce(t *testing.T) {
	root := issue(t, nil, authority)
	snap := trusting(t, root)
	leaves := []*issued{issue(t, root, peer), issue(t, root, peer)}
	var all sync.WaitGroup
	for n := range 8 {
		all.Go(func() {
			for range 100 {
				if _, err := VerifyPeer(snap, []*x509.Certificate{leaves[n%2].cert}, x509.ExtKeyUsageServerAuth, noon); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if len(snap.Bundle.verified.known) != 2 {
		t.Errorf("%d are kept", len(snap.Bundle.verified.known))
	}
}
