package identity

import (
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"sync"
	"time"
)

// maxVerified bounds how many outcomes one bundle keeps: a quarter of a megabyte.
const maxVerified = 1024

// verified keeps what a bundle's roots have said of chains that were presented, as
// a proxy sees the same few again and again. It belongs to one bundle and goes with
// it, so whatever changes about whom to trust begins with an empty one. Failures are
// not kept: anybody can make any number of chains that fail. The zero value is ready.
type verified struct {
	mu    sync.Mutex
	known map[presented]outcome
}

// presented is a chain, every byte of it, and what it was presented for.
type presented struct {
	chain [sha256.Size]byte
	usage x509.ExtKeyUsage
}

// outcome holds at the times at which all certificates up to the root are valid:
// verification asks for nothing else that changes.
type outcome struct {
	id          ID
	from, until time.Time
}

func (o outcome) holds(now time.Time) bool { return !now.Before(o.from) && !now.After(o.until) }

func present(chain []*x509.Certificate, usage x509.ExtKeyUsage) presented {
	p := presented{usage: usage}
	var both [2 * sha256.Size]byte
	for _, c := range chain {
		one := sha256.Sum256(c.Raw)
		copy(both[:], p.chain[:])
		copy(both[sha256.Size:], one[:])
		p.chain = sha256.Sum256(both[:])
	}
	return p
}

// find returns what is known of a chain and holds now.
func (v *verified) find(p presented, now time.Time) (outcome, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	o, ok := v.known[p]
	return o, ok && o.holds(now)
}

// keep keeps an outcome. What no longer holds makes room for it, or else any other.
func (v *verified) keep(p presented, o outcome, now time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.known == nil {
		v.known = map[presented]outcome{}
	}
	if _, again := v.known[p]; !again && len(v.known) >= maxVerified {
		v.makeRoom(now)
	}
	v.known[p] = o
}

// makeRoom makes room for one at least. Callers hold mu.
func (v *verified) makeRoom(now time.Time) {
	for p, o := range v.known {
		if now.After(o.until) {
			delete(v.known, p)
		}
	}
	for p := range v.known {
		if len(v.known) < maxVerified {
			return
		}
		delete(v.known, p)
	}
}

// verify checks a presented chain, which is not empty, up to one of the roots, and
// returns the identity of its leaf. All that the bundle has to say of a chain is said
// here, as this is what is kept of it.
func (b *Bundle) verify(chain []*x509.Certificate, usage x509.ExtKeyUsage, now time.Time) (ID, error) {
	p := present(chain, usage)
	if o, ok := b.verified.find(p, now); ok {
		return o.id, nil
	}
	opts := x509.VerifyOptions{
		Roots:         b.Pool(),
		Intermediates: x509.NewCertPool(),
		KeyUsages:     []x509.ExtKeyUsage{usage},
		CurrentTime:   now,
	}
	for _, c := range chain[1:] {
		opts.Intermediates.AddCert(c)
	}
	chains, err := chain[0].Verify(opts)
	if err != nil {
		return ID{}, fmt.Errorf("verify peer certificate: %w", err)
	}
	id, err := FromCertificate(chain[0])
	if err != nil {
		return ID{}, fmt.Errorf("verify peer certificate: %w", err)
	}
	o, err := b.lasting(chains, now)
	if err != nil {
		return ID{}, fmt.Errorf("verify peer certificate: %w", err)
	}
	if o.holds(now) { // crypto/x509 takes no time for the current one
		o.id = id
		b.verified.keep(p, o, now)
	}
	return id, nil
}

// lasting is how long one of these chains holds: that which holds for longest. Where
// there are revocation lists, one of them must hold by these, too; the error says why
// none does.
func (b *Bundle) lasting(chains [][]*x509.Certificate, now time.Time) (longest outcome, err error) {
	holds := false
	for _, chain := range chains {
		o := outcome{from: chain[0].NotBefore, until: chain[0].NotAfter}
		for _, c := range chain[1:] {
			if c.NotBefore.After(o.from) {
				o.from = c.NotBefore
			}
			if c.NotAfter.Before(o.until) {
				o.until = c.NotAfter
			}
		}
		if b.revoked != nil {
			end, fault := b.revoked.Check(chain, now)
			if fault != nil {
				err = fault
				continue
			}
			if !end.IsZero() && end.Before(o.until) {
				o.until = end
			}
		}
		holds = true
		if o.until.After(longest.until) {
			longest = o
		}
	}
	if holds {
		return longest, nil
	}
	return outcome{}, err
}
