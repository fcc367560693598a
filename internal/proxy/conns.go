package proxy

import (
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"podseal.io/podseal/internal/edges"
	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/tlsconn"
	"podseal.io/podseal/internal/workload"
)

// Directions, as metrics and records name them.
const (
	directionInbound  = "inbound"
	directionOutbound = "outbound"
)

// errCut says that a connection was cut while something was done for it.
var errCut = errors.New("the connection was cut")

// checkFunc says whether an open connection may go on: "" or why not.
type checkFunc func(*workload.World, *identity.Snapshot) policy.Reason

// conn is one captured connection from accept to record.
type conn struct {
	direction string
	client    *net.TCPConn
	started   time.Time
	lookFirst bool          // what is passed on is looked at; set before the relay begins
	idle      time.Duration // may be silent for so long; 0 is as the mesh has it; likewise
	first     []byte        // was read from the client; likewise

	sent, received, requests atomic.Int64
	progress                 atomic.Int64 // when bytes last moved, in Unix nanoseconds

	mu     sync.Mutex
	facts  Record
	server *net.TCPConn
	local  netip.AddrPort // of the last server
	ended  bool           // a reason was given, or the sockets were closed
	closed bool           // by close
	tunnel *tunnel        // that one side goes over, and its stream of it; or nil. A socket of the tunnel is not this connection's
	stream *tlsconn.Stream
	reused bool    // the handshake was an earlier connection's; set before the relay begins
	making *making // what others wait for while this connection shakes hands
	checks []checkFunc
	usual  [4]checkFunc // where checks begin: hardly a connection has more
	drain  func()       // asks the client to send no more on this connection; or nil

	encrypted atomic.Pointer[tlsconn.Conn] // the side that TLS protects, once it does

	carry func()   // what is left to do once the connection is set up: see proxy.serve
	atEnd []func() // what is done last, in reverse order

	flow    edges.Flow // its part in an edge
	counted bool       // it is over for the edges
	spoke   bool       // the client has sent something that was looked at
}

// note records facts.
func (c *conn) note(f func(r *Record)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(&c.facts)
}

// snapshot is the record as of now.
func (c *conn) snapshot(now time.Time) Record {
	c.mu.Lock()
	r := c.facts
	c.mu.Unlock()
	r.BytesSent, r.BytesReceived, r.Requests = c.sent.Load(), c.received.Load(), c.requests.Load()
	r.DurationMS = now.Sub(c.started).Milliseconds()
	return r
}

// attach gives the connection its second socket. It fails, and closes the
// socket, if the connection was cut meanwhile.
func (c *conn) attach(server *net.TCPConn) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		reset(server)
		return errCut
	}
	c.server = server
	c.local = addrPort(server.LocalAddr())
	return nil
}

// detach forgets the second socket, which the caller then owns.
func (c *conn) detach() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.server = nil
}

// cut ends the connection with a reason: both sides see RST. The first reason stays.
func (c *conn) cut(reason policy.Reason, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.because(reason, err)
	c.ended = true
	for _, s := range c.sockets() {
		if s != nil {
			reset(s)
		}
	}
	if c.stream != nil {
		c.stream.Reset()
	}
}

// serverLocal is our end of the connection to the server, the last if there were
// several.
func (c *conn) serverLocal() netip.AddrPort {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.local
}

// sockets are those to close with the connection, or nil. Callers hold mu.
func (c *conn) sockets() [2]*net.TCPConn {
	all := [...]*net.TCPConn{c.client, c.server}
	for i, s := range all {
		if c.tunnel != nil && s == c.tunnel.raw {
			all[i] = nil
		}
	}
	return all
}

// over says that the connection is a stream of a tunnel. One that was cut meanwhile
// ends the stream.
func (c *conn) over(t *tunnel, s *tlsconn.Stream) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tunnel, c.stream = t, s
	if c.ended {
		s.Reset()
	}
}

// because notes why the connection ends. Callers hold mu.
func (c *conn) because(reason policy.Reason, err error) {
	if c.ended {
		return
	}
	c.facts.Reason = reason
	if err != nil {
		c.facts.Error = brief(err.Error(), maxError)
	}
}

// end notes why the connection ended, without closing anything.
func (c *conn) end(reason policy.Reason, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.because(reason, err)
	c.ended = true
}

// close closes what is open. A stream that has not come to its end in both directions
// ends with a reset.
func (c *conn) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	c.ended, c.closed = true, true
	for _, s := range c.sockets() {
		if s != nil {
			_ = s.Close()
		}
	}
	if c.stream != nil {
		_ = c.stream.Close()
	}
}

// watch adds a check: from now on every change of world or trust asks it. The
// caller then decides for the first time, so that no change is missed between
// the two.
func (c *conn) watch(check checkFunc) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.checks == nil {
		c.checks = c.usual[:0]
	}
	c.checks = append(c.checks, check)
}

// onDrain sets what is to be done when the proxy begins to drain. It may have begun.
func (c *conn) onDrain(drain func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drain = drain
}

func (c *conn) startDraining() {
	c.mu.Lock()
	drain := c.drain
	c.mu.Unlock()
	if drain != nil {
		drain()
	}
}

// recheck cuts the connection if it is no longer allowed.
func (c *conn) recheck(w *workload.World, snap *identity.Snapshot) {
	c.mu.Lock()
	checks := c.checks
	c.mu.Unlock()
	for _, check := range checks {
		if reason := check(w, snap); reason != policy.None {
			c.cut(reason, errors.New("it is no longer allowed"))
			return
		}
	}
}

// stillVerified checks a peer's chain, which was verified by what verified trusts,
// again when that has changed, and only then: every change of the world asks every
// connection. The time is that of the handshake: a certificate that expires
// meanwhile cuts nothing (contract 4.27), nor does a revocation list that has ended.
func stillVerified(verified *identity.Snapshot, chain []*x509.Certificate, usage x509.ExtKeyUsage, at time.Time) checkFunc {
	var last atomic.Pointer[identity.Snapshot]
	last.Store(trustOf(verified))
	return func(_ *workload.World, snap *identity.Snapshot) policy.Reason {
		if snap == nil || sameTrust(last.Load(), snap) {
			return policy.None
		}
		if _, err := identity.VerifyPeer(snap, chain, usage, at); err != nil && !errors.Is(err, identity.ErrRevocationListEnded) {
			return reasonOf(err)
		}
		last.Store(trustOf(snap))
		return policy.None
	}
}

// trustOf is a snapshot without its key, which is not to be kept for as long as a
// connection lasts.
func trustOf(snap *identity.Snapshot) *identity.Snapshot {
	return &identity.Snapshot{Bundle: snap.Bundle, TrustDomains: snap.TrustDomains}
}

// reset closes a socket so that its peer sees RST.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0) // fails only on a closed connection
	_ = c.Close()
}

// conns are the open connections.
type conns struct {
	limit int           // of each direction: strangers who come in never keep the application from going out
	burst chan struct{} // has one element when many have come since it was last taken

	mu      sync.Mutex
	total   uint64 // ever added
	open    map[*conn]struct{}
	inbound int           // of those that are open
	empty   chan struct{} // closed when the last one is gone; nil when nobody waits
}

func newConns(limit int) *conns {
	return &conns{limit: limit, burst: make(chan struct{}, 1), open: map[*conn]struct{}{}}
}

// add registers a connection; it reports false when there are too many of its
// direction.
func (s *conns) add(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.direction == directionInbound {
		if s.inbound >= s.limit {
			return false
		}
		s.inbound++
	} else if len(s.open)-s.inbound >= s.limit {
		return false
	}
	s.open[c] = struct{}{}
	if s.total++; s.total%burst == 0 {
		select {
		case s.burst <- struct{}{}:
		default:
		}
	}
	return true
}

func (s *conns) remove(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, c)
	if c.direction == directionInbound {
		s.inbound--
	}
	if len(s.open) == 0 && s.empty != nil {
		close(s.empty)
		s.empty = nil
	}
}

// work returns what there is to do, and has been.
func (s *conns) work() work {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := work{open: len(s.open), total: s.total}
	for c := range s.open {
		w.moved += c.sent.Load() + c.received.Load()
	}
	return w
}

// mayRest says which side has something to give back while it is quiet.
func (c *conn) mayRest(s stream) {
	if t, ok := s.(*tlsconn.Conn); ok {
		c.encrypted.Store(t)
	}
}

// rest has the connections that have been quiet since then give back what they
// can make again.
func (s *conns) rest(since time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	busy := map[*tunnel]bool{} // by what moves on any stream
	for c := range s.open {
		quiet := c.progress.Load() < since.UnixNano()
		if t := c.encrypted.Load(); t != nil && quiet {
			t.Rest()
		}
		c.mu.Lock()
		t := c.tunnel
		c.mu.Unlock()
		if t != nil {
			busy[t] = busy[t] || !quiet
		}
	}
	for t, busy := range busy {
		if !busy {
			t.mux.Rest()
		}
	}
}

// all returns the open connections, oldest first.
func (s *conns) all() []*conn {
	all := s.some()
	slices.SortFunc(all, func(a, b *conn) int { return a.started.Compare(b.started) })
	return all
}

// some returns the open connections, in no order.
func (s *conns) some() []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*conn, 0, len(s.open))
	for c := range s.open {
		all = append(all, c)
	}
	return all
}

// none returns a channel that is closed once no connection is open.
func (s *conns) none() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.open) == 0 {
		done := make(chan struct{})
		close(done)
		return done
	}
	if s.empty == nil {
		s.empty = make(chan struct{})
	}
	return s.empty
}

// recheck decides again for every open connection (design D13).
func (s *conns) recheck(w *workload.World, snap *identity.Snapshot) {
	for _, c := range s.all() {
		c.recheck(w, snap)
	}
}

// addrPort is the address of a TCP socket, IPv4 unmapped.
func addrPort(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	p := t.AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}
