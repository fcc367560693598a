package tlsconn

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"podseal.io/podseal/internal/identity"
)

// errState says that it is not clear which record comes next: such a connection
// can only be reset.
var errState = errors.New("the state of the TLS records is not clear after the handshake")

// secrets takes the traffic secrets of one handshake from crypto/tls. They stay in
// the process.
type secrets struct{ client, server []byte }

// Write takes a line of the key log. What is in it is overwritten: crypto/tls
// has made it for this call only.
func (s *secrets) Write(line []byte) (int, error) {
	n := len(line)
	defer clear(line)
	label, rest, _ := bytes.Cut(bytes.TrimSuffix(line, []byte("\n")), []byte(" "))
	_, secret, _ := bytes.Cut(rest, []byte(" "))
	var to *[]byte
	switch string(label) {
	case "CLIENT_TRAFFIC_SECRET_0":
		to = &s.client
	case "SERVER_TRAFFIC_SECRET_0":
		to = &s.server
	default:
		return n, nil
	}
	*to = make([]byte, hex.DecodedLen(len(secret)))
	if _, err := hex.Decode(*to, secret); err != nil {
		return 0, fmt.Errorf("traffic secret: %w", err)
	}
	return n, nil
}

func (s *secrets) forget() {
	clear(s.client)
	clear(s.server)
	s.client, s.server = nil, nil
}

// under is what crypto/tls has below it during the handshake. It gives it no
// byte of a record that it hasn't begun to read, so that what follows the
// handshake is left here, and it keeps the records that crypto/tls sends once
// there are application keys, as some may be sealed with them (tickets).
type under struct {
	*net.TCPConn
	pool    *Pool
	secrets *secrets
	passing bool // the handshake is over, and crypto/tls stays

	first []byte // was read before the handshake
	buf   *buffer
	r, e  int
	left  int // of the record that crypto/tls is reading

	sent []byte // whole records

	replaying bool // crypto/tls reads what is in replay and no more, and sends nothing
	replay    []byte
}

func (u *under) Read(p []byte) (int, error) {
	if u.replaying {
		if len(u.replay) == 0 {
			return 0, os.ErrDeadlineExceeded // after which crypto/tls goes on where it was
		}
		n := copy(p, u.replay)
		u.replay = u.replay[n:]
		return n, nil
	}
	if u.passing && u.buf == nil {
		return u.TCPConn.Read(p)
	}
	if u.left == 0 && !u.passing {
		for u.e-u.r < headerLen {
			if err := u.fill(); err != nil {
				return 0, err
			}
		}
		u.left = headerLen + int(binary.BigEndian.Uint16(u.buf.mem[u.r+3:]))
	}
	if u.r == u.e {
		if err := u.fill(); err != nil {
			return 0, err
		}
	}
	there := u.buf.mem[u.r:u.e]
	if !u.passing {
		there = there[:min(len(there), u.left)]
	}
	n := copy(p, there)
	u.r += n
	u.left -= n
	if u.passing && u.r == u.e && len(u.first) == 0 {
		u.drop()
	}
	return n, nil
}

func (u *under) fill() error {
	if u.r > 0 {
		u.e = copy(u.buf.mem, u.buf.mem[u.r:u.e])
		u.r = 0
	}
	if len(u.first) > 0 {
		n := copy(u.buf.mem[u.e:], u.first)
		u.first = u.first[n:]
		u.e += n
		return nil
	}
	if !u.passing { // others compute while this one waits for its peer
		u.pool.turns.leave()
		defer u.pool.turns.take()
	}
	n, err := u.TCPConn.Read(u.buf.mem[u.e:])
	u.e += n
	return err //nolint:wrapcheck // crypto/tls looks at it
}

func (u *under) Write(p []byte) (int, error) {
	if u.replaying {
		return 0, net.ErrClosed
	}
	if !u.passing && u.secrets.client != nil {
		u.sent = append(u.sent, p...)
	}
	if !u.passing { // as for reading: a peer that doesn't read must not keep others waiting
		u.pool.turns.leave()
		defer u.pool.turns.take()
	}
	return u.TCPConn.Write(p) //nolint:wrapcheck // crypto/tls looks at it
}

// pass lets crypto/tls have everything from now on.
func (u *under) pass() {
	u.passing, u.sent = true, nil
	if u.r == u.e && len(u.first) == 0 {
		u.drop()
	}
}

func (u *under) drop() {
	if u.buf != nil {
		u.pool.put(u.buf)
		u.buf = nil
	}
	u.r, u.e = 0, 0
}

// sealedWith counts the records at the end of what crypto/tls has sent that are
// sealed with k, whose sequence number it moves on. Those before them are of the
// handshake's keys.
func (u *under) sealedWith(k *keys) error {
	for rest := u.sent; len(rest) > 0; {
		if len(rest) < headerLen {
			return errState
		}
		size := headerLen + int(binary.BigEndian.Uint16(rest[3:]))
		if len(rest) < size {
			return errState
		}
		rec := rest[:size]
		rest = rest[size:]
		if rec[0] != typeData {
			if k.seq > 0 {
				return errState
			}
			continue
		}
		scratch := u.pool.get(one)
		_, err := k.open(scratch.mem, rec)
		u.pool.put(scratch)
		if err != nil && k.seq > 0 {
			return errState
		}
	}
	u.sent = nil
	return nil
}

// handshake shakes hands and takes the records over where it can.
func (p *Pool) handshake(raw *net.TCPConn, peeked []byte, cfg *tls.Config, client bool, deadline time.Time) (*Conn, error) {
	if err := raw.SetDeadline(deadline); err != nil {
		return nil, fmt.Errorf("set handshake deadline: %w", err)
	}
	s := &secrets{}
	defer s.forget()
	u := &under{TCPConn: raw, pool: p, secrets: s, first: peeked, buf: p.get(small)}
	cfg.DynamicRecordSizingDisabled = true // what a relay reads is there to be sent, and small records are what costs
	cfg.KeyLogWriter = s
	var c *tls.Conn
	if client {
		c = tls.Client(u, cfg)
	} else {
		c = tls.Server(u, cfg)
	}
	p.turns.take()
	err := os.ErrDeadlineExceeded
	if time.Now().Before(deadline) { // the others need not wait for one that is given up
		err = c.Handshake() //nolint:noctx // the deadline bounds it, and closing raw ends it at once
	}
	p.turns.leave()
	offered, _ := cfg.ClientSessionCache.(*offer) // Resume
	if err != nil {
		u.drop()
		if offered != nil {
			offered.forget()
		}
		return nil, fmt.Errorf("tls handshake: %w", err)
	}
	if err := raw.SetDeadline(time.Time{}); err != nil {
		u.drop()
		return nil, fmt.Errorf("clear handshake deadline: %w", err)
	}
	conn := &Conn{raw: raw, state: lasting(c.ConnectionState())}
	conn.state.PeerCertificates = p.certs.shared(conn.state.PeerCertificates)
	if conn.records, err = p.takeOver(u, conn.state, client); err != nil {
		u.drop()
		return nil, err
	}
	if conn.records == nil {
		u.pass()
		conn.tls = c
	}
	if offered != nil {
		if asks := offered.finished(c, u, conn); asks != nil {
			conn.records.in.ask.Store(asks)
		}
	}
	return conn, nil
}

// takeOver makes the record path of what the handshake has left. It returns nil
// for a connection that is crypto/tls' business: another version, another cipher.
func (p *Pool) takeOver(u *under, state tls.ConnectionState, client bool) (*records, error) {
	suite, ok := suiteOf(state.CipherSuite)
	if !ok || u.secrets.client == nil || u.secrets.server == nil {
		return nil, nil //nolint:nilnil // documented
	}
	if u.left != 0 || len(u.first) > 0 {
		return nil, errState // a client has sent more than its hello before it had an answer
	}
	sysconn, err := u.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("tls records: %w", err)
	}
	rec := &records{}
	rec.out = writer{raw: u.TCPConn, sock: sysconn, pool: p, limit: recordLimit}
	rec.in = reader{raw: sysconn, pool: p, out: &rec.out, client: client}
	ours, theirs := u.secrets.server, u.secrets.client
	if client {
		ours, theirs = theirs, ours
	}
	agreed := state.NegotiatedProtocol == identity.ALPNStreams
	if rec.out.keys.use(suite, bytes.Clone(ours)) != nil || rec.in.keys.use(suite, bytes.Clone(theirs)) != nil {
		if agreed {
			return nil, errState // the peer relies on it, and crypto/tls doesn't know how
		}
		return nil, nil //nolint:nilnil // a cipher that this program may not use itself: crypto/tls can
	}
	rec.shared = agreed
	if err := u.sealedWith(&rec.out.keys); err != nil {
		return nil, err
	}
	rec.in.start(u.buf, u.r, u.e)
	u.buf = nil
	return rec, nil
}

// lasting is what callers look at, without what keeps secrets of the handshake
// alive.
func lasting(cs tls.ConnectionState) tls.ConnectionState {
	return tls.ConnectionState{
		Version: cs.Version, HandshakeComplete: cs.HandshakeComplete, DidResume: cs.DidResume, CipherSuite: cs.CipherSuite,
		CurveID: cs.CurveID, NegotiatedProtocol: cs.NegotiatedProtocol, ServerName: cs.ServerName, PeerCertificates: cs.PeerCertificates,
	}
}
