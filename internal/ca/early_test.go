package ca

import (
	"crypto/rand"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"podseal.io/podseal/internal/identity"
)

// sign makes the authority behind a pair another one.
func (p *pair) sign(by *Issuer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.issuer = by
}

// after lets time pass and returns how many certificates there are then.
func (p *pair) after(d time.Duration) int {
	time.Sleep(d)
	synctest.Wait()
	return len(p.got())
}

func selfSigned(t *testing.T) *Issuer {
	t.Helper()
	i, err := NewSelfSigned("cluster.local", time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// TestRootExchanged: the control plane publishes a root that doesn't verify the
// client's certificate, so no peer accepts it any more. It is replaced within
// two seconds, once, and not at half of its life (contract 4.37).
func TestRootExchanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, nil)
		defer p.stop()
		p.client.Trust(p.issuer.Bundle())
		if n := p.after(time.Hour); n != 1 {
			t.Fatalf("%d certificates although the first is accepted", n)
		}
		next := selfSigned(t)
		p.sign(next)
		p.client.Trust(next.Bundle())
		if n := p.after(earlyJitter); n != 2 {
			t.Fatalf("%d certificates %s after the root was exchanged, want 2", n, earlyJitter)
		}
		if got := p.got()[1]; got.bundle.Hash() != next.Bundle().Hash() {
			t.Error("the new certificate came with the old roots")
		}
		if log := p.log.take(); strings.Count(log, "renewing ahead of time") != 1 {
			t.Errorf("log %s", log)
		}
		if n := p.after(11 * time.Hour); n != 2 {
			t.Errorf("%d certificates, want 2 until half of the life of the second", n)
		}
		if n := p.after(2 * time.Hour); n != 3 {
			t.Errorf("%d certificates after half of the life of the second, want 3", n)
		}
	})
}

// TestRootAdded: in a staged change of roots (contract 4.38) nobody renews
// ahead of time.
func TestRootAdded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, nil)
		defer p.stop()
		both, err := identity.ParseBundle(append(selfSigned(t).Bundle().PEM(), p.issuer.Bundle().PEM()...))
		if err != nil {
			t.Fatal(err)
		}
		p.client.Trust(both)
		if n := p.after(time.Hour); n != 1 {
			t.Errorf("%d certificates, want 1", n)
		}
	})
}

// TestRootBeforeTheCertificate: what is published may be known first.
func TestRootBeforeTheCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, func(cfg *ClientConfig) {
			token := cfg.Token
			cfg.Token = func() (string, error) { time.Sleep(time.Second); return token() }
		})
		defer p.stop()
		next := selfSigned(t)
		p.client.Trust(next.Bundle())
		time.Sleep(2 * time.Second)
		p.sign(next)
		if n := p.after(4 * time.Second); n != 2 || p.got()[1].bundle.Hash() != next.Bundle().Hash() {
			t.Errorf("%d certificates, want 2", n)
		}
	})
}

// TestUnacceptedForEver: an authority that goes on issuing what the published
// roots don't verify is asked ever more rarely, and at once no more when they do.
func TestUnacceptedForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, nil)
		defer p.stop()
		p.client.Trust(selfSigned(t).Bundle())
		p.after(6 * time.Hour)
		got := p.got()
		if n := len(got); n < 30 || n > 50 { // 8 in the first 10 minutes or so, then one in 10 to 12 minutes
			t.Fatalf("%d certificates in 6 hours", n)
		}
		for i := 2; i < len(got); i++ { // the first comes within the jitter
			want := min(firstEarlyPause<<min(i-2, 20), maxEarlyPause)
			if d := got[i].at.Sub(got[i-1].at); d < want || d > want+want/5+earlyJitter {
				t.Errorf("renewal %d after %s, want %s", i, d, want)
			}
		}
		p.client.Trust(p.issuer.Bundle())
		before := len(p.got())
		if n := p.after(11 * time.Hour); n != before {
			t.Errorf("%d certificates more although the last is accepted", n-before)
		}
	})
}

// TestRootsFlap: roots that change to and fro, each time with the authority,
// don't turn the client into a loop.
func TestRootsFlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, nil)
		defer p.stop()
		two := [2]*Issuer{selfSigned(t), selfSigned(t)}
		for i := range 600 {
			p.sign(two[i%2])
			p.client.Trust(two[i%2].Bundle())
			time.Sleep(3 * time.Second)
		}
		synctest.Wait()
		if n := len(p.got()); n > 15 {
			t.Errorf("%d certificates in half an hour", n)
		}
		p.client.Trust(two[1].Bundle())
		if p.after(15 * time.Minute); p.got()[len(p.got())-1].bundle.Hash() != two[1].Bundle().Hash() {
			t.Error("not settled on the last root")
		}
	})
}

// TestRootExchangedWhileAway: the authority can't be reached when the root is
// exchanged; it is asked as after any failure (contract 4.14), and no more.
func TestRootExchangedWhileAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, nil)
		defer p.stop()
		next := selfSigned(t)
		p.failWith(status.Error(codes.Unavailable, "away"))
		p.client.Trust(next.Bundle())
		if n := p.after(time.Minute); n != 1 {
			t.Fatalf("%d certificates from an authority that is away", n)
		}
		if pauses := p.pauses(); len(pauses) > 20 {
			t.Errorf("%d requests in a minute: %v", len(pauses)+1, pauses)
		}
		p.sign(next)
		p.failWith(nil)
		if n := p.after(maxQuickPause + maxQuickPause/5); n != 2 {
			t.Errorf("%d certificates after it has come back, want 2", n)
		}
	})
}
