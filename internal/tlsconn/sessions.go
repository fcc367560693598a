package tlsconn

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"
	"weak"

	"podseal.io/podseal/internal/identity"
)

const (
	maxSessions = 256         // two megabytes at most
	askPatience = time.Minute // a ticket that was asked for is waited for so long before another handshake asks

	maxTicketRecords = 4        // of a server, that crypto/tls looks at
	maxTicketRecord  = 16 << 10 // the length of one
)

// Peer says which server a session is with: it is resumed with no other.
type Peer struct {
	Endpoint netip.AddrPort
	Want     identity.ID
	Accept   string // instead of Want: URIs, one of which it must have
}

// sessionKey is what must be the same besides the snapshot.
type sessionKey struct {
	peer      Peer
	sni, alpn string
}

// sessions are what this process may resume as a client. Those of another snapshot
// than the last that was asked for are of no use. The zero value is ready.
type sessions struct {
	mu    sync.Mutex
	snap  weak.Pointer[identity.Snapshot] // holds no private key that has been replaced
	known map[sessionKey]*session
}

// session is with one server. Without a state there is none: it has been asked for,
// or the server gives none, and until then nobody asks again.
type session struct {
	stamp
	state *tls.ClientSessionState
	chain []*x509.Certificate // of the server
}

// without is no session, for a while.
func without(now time.Time, d time.Duration) *session { return &session{stamp: stamp{now, now.Add(d)}} }

// Resume has a client's handshake of cfg, which is of snap, resume a session with
// the server if there is one, or ask for one. What is known of the server must pass
// cfg's VerifyConnection now, and does so again in the handshake. Only sessions of
// TLS 1.3 are resumed, with a key exchange (psk_dhe_ke).
func (p *Pool) Resume(cfg *tls.Config, snap *identity.Snapshot, peer Peer) {
	o := &offer{
		sessions: &p.sessions, now: cfg.Time, own: snap.Credential.Leaf.NotAfter,
		key: sessionKey{peer, cfg.ServerName, strings.Join(cfg.NextProtos, ",")},
	}
	now := o.now()
	s, ours := p.sessions.find(o.key, snap, now)
	switch {
	case ours:
	case s.state == nil:
		return
	case cfg.VerifyConnection(tls.ConnectionState{PeerCertificates: s.chain}) != nil:
		if !o.ask(s, now) {
			return
		}
		s = o.session
	}
	o.session = s
	cfg.SessionTicketsDisabled, cfg.ClientSessionCache = false, o
}

// find returns the session that holds now. If there is none, the caller is the one
// to ask for it, in place of what is returned.
func (s *sessions) find(key sessionKey, snap *identity.Snapshot, now time.Time) (found *session, ours bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.snap != weak.Make(snap) {
		s.snap, s.known = weak.Make(snap), map[sessionKey]*session{}
	}
	if found = s.known[key]; found != nil && found.holds(now) {
		return found, false
	}
	s.makeRoom(now)
	found = without(now, askPatience)
	s.known[key] = found
	return found, true
}

// makeRoom makes room for one. Callers hold mu.
func (s *sessions) makeRoom(now time.Time) {
	var first sessionKey
	var end time.Time
	for key, one := range s.known {
		switch {
		case !one.holds(now):
			delete(s.known, key)
		case end.IsZero() || one.until.Before(end):
			first, end = key, one.until
		}
	}
	if len(s.known) >= maxSessions {
		delete(s.known, first)
	}
}

// exchange replaces what is known, if it is still old, and reports whether it was.
// No fresh one leaves nothing.
func (s *sessions) exchange(key sessionKey, old, fresh *session) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known[key] != old {
		return false
	}
	if fresh == nil {
		delete(s.known, key)
	} else {
		s.known[key] = fresh
	}
	return true
}

// offer is what a handshake takes of the sessions, and gives to them. It implements
// [tls.ClientSessionCache].
type offer struct {
	sessions *sessions
	key      sessionKey
	now      func() time.Time
	own      time.Time // when our certificate expires
	session  *session  // to be resumed; or asked for

	made  time.Time // since when the handshake is over
	chain []*x509.Certificate
	got   *tls.ClientSessionState
}

// Get implements [tls.ClientSessionCache].
func (o *offer) Get(string) (*tls.ClientSessionState, bool) {
	return o.session.state, o.session.state != nil
}

// Put implements [tls.ClientSessionCache]. What comes before the end of the handshake
// is of TLS 1.2, or says that the session is too old for its server.
func (o *offer) Put(_ string, s *tls.ClientSessionState) {
	if !o.made.IsZero() {
		o.got = s
	}
}

// ask makes this handshake the one that asks, in place of an old session, unless
// another does so already.
func (o *offer) ask(old *session, now time.Time) bool {
	o.session = without(now, askPatience)
	return o.sessions.exchange(o.key, old, o.session)
}

// forget makes the next handshake a full one, that asks.
func (o *offer) forget() { o.sessions.exchange(o.key, o.session, nil) }

// finished is for a handshake that is over. It returns what takes the server's
// ticket, if that is wanted.
func (o *offer) finished(c *tls.Conn, u *under, conn *Conn) *asker {
	now := o.now()
	if o.session.state != nil && (conn.state.DidResume || !o.ask(o.session, now)) {
		return nil
	}
	if conn.records == nil {
		o.none()
		return nil
	}
	o.made, o.chain = now, conn.state.PeerCertificates
	u.replaying = true
	return &asker{conn: c, under: u, offer: o}
}

// keep keeps what has come.
func (o *offer) keep() {
	until := validity(o.made, o.own, o.chain)
	o.sessions.exchange(o.key, o.session, &session{stamp{o.made, until}, o.got, o.chain})
}

// none notes that the server gives no tickets.
func (o *offer) none() { o.sessions.exchange(o.key, o.session, without(o.now(), ticketLife)) }

// asker has crypto/tls read the ticket that a server sends after the handshake: it
// alone has the secret that belongs to it. It gets copies of records that were
// authenticated and have nothing but tickets in them, from the first one on, and can
// send nothing.
type asker struct {
	conn    *tls.Conn
	under   *under
	offer   *offer
	records int
}

// copy keeps a sealed record for crypto/tls, if it may be a ticket.
func (a *asker) copy(rec []byte) []byte {
	if len(rec) > maxTicketRecord {
		return nil
	}
	return bytes.Clone(rec)
}

// take has crypto/tls read a record. It reports whether the next one is wanted.
func (a *asker) take(rec []byte) (more bool) {
	a.records++
	a.under.replay = rec
	var none [1]byte
	_, err := a.conn.Read(none[:])
	switch {
	case a.offer.got != nil:
		a.offer.keep()
	case a.records < maxTicketRecords && errors.Is(err, os.ErrDeadlineExceeded):
		return true
	default:
		a.offer.none()
	}
	return false
}
