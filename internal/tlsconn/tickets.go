package tlsconn

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"slices"
	"sync"
	"time"
	"weak"

	"podseal.io/podseal/internal/identity"
)

const (
	// ticketLife is how long a session may be resumed after the full handshake that it
	// goes back to, however often: no longer than tunnels carry new streams, so that a
	// peer has proved that it has its key within twice that time. Handshakes that cost
	// in full once in ten minutes cost nothing.
	ticketLife = 10 * time.Minute

	// ticketMargin is what both certificates must be valid for yet.
	ticketMargin = 5 * time.Second

	// maxTicketLen is of a ticket with the certificates of the peer in it. It comes back
	// in a ClientHello, which has to be of an ordinary size.
	maxTicketLen = 8 << 10

	extensionPSKModes = 45 // psk_key_exchange_modes: of clients that take tickets (RFC 8446 4.2.9)
)

// tickets are the keys of the sessions that this process lets its clients resume.
// They are of one snapshot: with any other, which is another own certificate,
// other roots, revocations or trust domains, nothing that was given out is of use.
// They never leave the process. The zero value is ready.
type tickets struct {
	mu     sync.Mutex
	snap   weak.Pointer[identity.Snapshot] // holds no private key that has been replaced
	keys   [2][32]byte                     // of now and of before
	made   time.Time                       // the first of them
	sealer *tls.Config                     // has them
}

// current returns what seals and opens tickets of a snapshot.
func (t *tickets) current(snap *identity.Snapshot, now time.Time) *tls.Config {
	t.mu.Lock()
	defer t.mu.Unlock()
	same := t.snap == weak.Make(snap)
	age := now.Sub(t.made)
	switch {
	case same && age >= 0 && age < ticketLife:
		return t.sealer
	case same && age >= 0 && age < 2*ticketLife:
		t.keys[1] = t.keys[0]
	default:
		_, _ = rand.Read(t.keys[1][:]) // never fails; opens nothing
	}
	_, _ = rand.Read(t.keys[0][:])
	t.snap, t.made, t.sealer = weak.Make(snap), now, &tls.Config{MinVersion: tls.VersionTLS13}
	t.sealer.SetSessionTicketKeys(t.keys[:])
	return t.sealer
}

// Issue has a server's handshake of cfg, which is of snap, resume the session of a
// ticket that was given out before, and give out one, if it is of TLS 1.3 and the
// client asks for that. A ticket that doesn't hold any more is passed over: the
// handshake is then a full one. The key exchange takes place in any case, and
// VerifyConnection is asked.
func (p *Pool) Issue(cfg *tls.Config, snap *identity.Snapshot) {
	cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if !slices.Contains(hello.Extensions, extensionPSKModes) || !slices.Contains(hello.SupportedVersions, tls.VersionTLS13) {
			return nil, nil //nolint:nilnil // goes on with cfg, which has no tickets
		}
		i := &issue{now: cfg.Time, own: snap.Credential.Leaf.NotAfter}
		i.sealer = p.tickets.current(snap, i.now())
		with := cfg.Clone()
		with.SessionTicketsDisabled = false
		if slices.Contains(hello.SupportedProtos, identity.ALPNStreams) {
			i.ours = with
		}
		with.WrapSession, with.UnwrapSession = i.wrap, i.unwrap
		return with, nil
	}
}

// issue is the tickets of one handshake.
type issue struct {
	sealer *tls.Config
	now    func() time.Time
	own    time.Time   // when our certificate expires
	origin time.Time   // of the session that was resumed, if one was
	ours   *tls.Config // of this handshake, if the client is one of ours
}

// wrap implements [tls.Config.WrapSession]. It doesn't fail, as that would end the
// handshake: a session that can't be resumed gets a ticket that is none.
func (i *issue) wrap(cs tls.ConnectionState, s *tls.SessionState) ([]byte, error) {
	none := []byte{0}
	st := stamp{from: i.now()}
	if cs.DidResume {
		st.from = i.origin
	}
	st.until = validity(st.from, i.own, cs.PeerCertificates)
	if cs.Version != tls.VersionTLS13 || !st.holds(i.now()) {
		return none, nil
	}
	s.Extra = append(s.Extra, st.bytes())
	ticket, err := i.sealer.EncryptTicket(cs, s)
	if err != nil || len(ticket) > maxTicketLen {
		return none, nil //nolint:nilerr // documented
	}
	return ticket, nil
}

// unwrap implements [tls.Config.UnwrapSession], which is nil for a ticket that
// doesn't hold.
func (i *issue) unwrap(ticket []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
	if len(ticket) > maxTicketLen {
		return nil, nil //nolint:nilnil // documented
	}
	s, err := i.sealer.DecryptTicket(ticket, cs)
	if err != nil || s == nil {
		return nil, nil //nolint:nilnil,nilerr // documented
	}
	st, ok := stamped(s.Extra)
	if !ok || !st.holds(i.now()) {
		return nil, nil //nolint:nilnil // documented
	}
	i.origin = st.from
	if i.ours != nil {
		i.ours.SessionTicketsDisabled = true // it keeps the ticket that it has: crypto/tls need not make it another
	}
	return s, nil
}

// validity is until when a session may be resumed that goes back to a full handshake
// at a time, with a certificate of ours that expires at own and a peer's chain.
func validity(origin, own time.Time, chain []*x509.Certificate) time.Time {
	until := origin.Add(ticketLife)
	if end := own.Add(-ticketMargin); end.Before(until) {
		until = end
	}
	for _, c := range chain {
		if end := c.NotAfter.Add(-ticketMargin); end.Before(until) {
			until = end
		}
	}
	return until
}

// stamp is from the full handshake until when a session may be resumed.
type stamp struct{ from, until time.Time }

// holds reports whether it does. A clock that has gone back to before the handshake
// gives no more time.
func (s stamp) holds(now time.Time) bool { return !now.Before(s.from) && now.Before(s.until) }

const stampMark = "podseal1"

func (s stamp) bytes() []byte {
	b := append(make([]byte, 0, len(stampMark)+16), stampMark...)
	b = binary.BigEndian.AppendUint64(b, uint64(s.from.Unix()))
	return binary.BigEndian.AppendUint64(b, uint64(s.until.Unix()))
}

// stamped finds the stamp among what a session has with it.
func stamped(extra [][]byte) (stamp, bool) {
	for _, b := range extra {
		if len(b) != len(stampMark)+16 || string(b[:len(stampMark)]) != stampMark {
			continue
		}
		b = b[len(stampMark):]
		return stamp{time.Unix(int64(binary.BigEndian.Uint64(b)), 0), time.Unix(int64(binary.BigEndian.Uint64(b[8:])), 0)}, true
	}
	return stamp{}, false
}
