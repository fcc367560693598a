package proxy

import (
	"bytes"
	"testing"
	"time"

	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/meshtest"
	"podseal.io/podseal/internal/policy"
)

// revoke tells all proxies the list of the mesh's CA.
func (p *pair) revoke(number int64, until time.Time, revoked ...*identity.Credential) {
	p.t.Helper()
	p.world.Mesh.RevokedPEM = p.ca.Revoke(p.t, number, time.Now().Add(-time.Hour), until, revoked...)
	p.tell()
}

// TestRevocation: contract 4.39, 4.40. A list comes with whom to trust: a connection whose
// peer it revokes is cut, at the side that verified it, others go on, and new ones are
// refused by either side. A list that has ended cuts nothing, and lets nothing new in.
func TestRevocation(t *testing.T) {
	for name, side := range map[string]func(*pair) (revoked, judge *proxy){
		"the client": func(p *pair) (*proxy, *proxy) { return p.clientSide, p.inside },
		"the server": func(p *pair) (*proxy, *proxy) { return p.inside, p.clientSide },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, policy.TCP, meshtest.Echo)
			p.mode(p.server, policy.Strict)
			revoked, judge := side(p)
			own := revoked.creds.current.Load().Credential
			somebody := p.ca.Issue(t, own.ID, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
			tomorrow := time.Now().Add(24 * time.Hour)
			c := p.dial()
			exchange(t, c, "no list")
			p.revoke(1, tomorrow)
			exchange(t, c, "an empty one")
			p.revoke(2, tomorrow, somebody)
			exchange(t, c, "somebody else of the same account")
			exchange(t, p.dial(), "and a new connection")
			p.revoke(3, time.Now().Add(-time.Minute), somebody)
			exchange(t, c, "one that has ended")
			exchangeFails(t, p)
			record(t, p.clientSide, withReason(policy.PeerUnverified)) // which is the first to verify
			p.revoke(4, tomorrow, somebody)
			exchange(t, p.dial(), "a newer one")

			p.revoke(5, tomorrow, own)
			_ = ends(t, c)
			record(t, judge, withReason(policy.PeerRevoked))
			before := len(judge.records.last())
			exchangeFails(t, p)
			eventually(t, func() bool { return len(judge.records.last()) > before })
			if r := judge.records.last()[len(judge.records.last())-1]; r.Reason != policy.PeerRevoked {
				t.Errorf("a new connection: %q", r.Reason)
			}

			p.world.Mesh.RevokedPEM = nil
			p.tell()
			exchange(t, p.dial(), "no list again")
		})
	}
}

// exchangeFails: nothing comes back over a new connection.
func exchangeFails(t *testing.T, p *pair) {
	t.Helper()
	c := p.dial()
	_, _ = c.Write([]byte("x"))
	var got bytes.Buffer
	if n, _ := got.ReadFrom(c); n > 0 {
		t.Errorf("a connection that must be refused gave %q", got.String())
	}
}

// A list that can't be read leaves the one in force; who issues certificates hears of each.
func TestRevocationsThatCantBeRead(t *testing.T) {
	now := time.Now()
	ca := meshtest.NewCA(t, now)
	cred := ca.Issue(t, identity.MustNew(meshtest.TrustDomain, "shop", "web"), now.Add(-time.Hour), now.Add(time.Hour))
	changes, told := 0, []string{}
	creds := newCredentials(time.Now, func(*identity.Snapshot) { changes++ })
	creds.follow(func(b *identity.Bundle) { told = append(told, b.Revocations().Hash()) })
	list := ca.Revoke(t, 1, now.Add(-time.Hour), now.Add(time.Hour), cred)
	steps := []struct {
		list  []byte
		fails bool
	}{{nil, false}, {list, false}, {list, false}, {[]byte("x"), true}, {list, false}, {nil, false}}
	for i, s := range steps {
		if i == 1 {
			creds.renewed(cred, ca.Bundle(t))
		}
		if err := creds.trust(ca.PEM(), s.list, []string{meshtest.TrustDomain}); (err != nil) != s.fails {
			t.Errorf("step %d: %v", i, err)
		}
		if i == 0 {
			continue
		}
		snap, err := creds.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		if got, want := snap.Bundle.Revocations() != nil, i < len(steps)-1; got != want {
			t.Errorf("step %d: lists in force %t, want %t", i, got, want)
		}
		if i == 2 {
			// A certificate that is renewed, and the roots that come with it, change nothing of it.
			creds.renewed(ca.Issue(t, cred.ID, now.Add(-time.Hour), now.Add(time.Hour)), ca.Bundle(t, meshtest.NewCA(t, now)))
			if snap, _ := creds.Snapshot(); snap.Bundle.Revocations() == nil {
				t.Error("a renewed certificate took the lists out of force")
			}
		}
	}
	if len(told) != 3 || told[0] != "" || told[1] == "" || told[2] != "" {
		t.Errorf("told %q", told)
	}
	if changes != 4 {
		t.Errorf("%d changes of whom to trust, want 4", changes)
	}
}
