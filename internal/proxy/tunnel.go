package proxy

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/tlsconn"
	"podseal.io/podseal/internal/workload"
)

// A tunnel is the mutual TLS connection between two proxies of ours. It carries the
// connections of applications to the same pod, port and identities as streams, many at
// a time, and so spares them a handshake.
//
// The client keeps its tunnels ([tunnels]) and decides which one is used; it lets go
// of them first, so that a stream seldom meets a server that doesn't want it. The
// server ([lobby]) takes streams as they come; when it wants no more it says so and
// still takes what was on its way.

const (
	tunnelIdle     = 20 * time.Second // the client keeps a tunnel without streams so long,
	tunnelPatience = 40 * time.Second // and the server
	tunnelAge      = 10 * time.Minute // a tunnel older than that carries no new stream
	tunnelMargin   = 5 * time.Second  // nor one whose certificates expire so soon
	tunnelLeave    = 3 * time.Second  // what the client has to close a tunnel that the server gives up
	tunnelSweep    = time.Second      // tunnels are looked at so often
	tunnelShare    = 64               // streams on each tunnel to one place before there is another,
	tunnelsPeer    = 8                // as long as there are no more than these
	tunnelsAll     = 1024             // of each direction that are kept without streams
	tunnelHalf     = time.Minute      // a stream that was closed here waits so long for the peer's end, as the kernel's sockets do
	tunnelJoin     = time.Second      // who waits for another's handshake does so for so long
)

// proof is what a handshake has shown.
type proof struct {
	state               tls.ConnectionState
	snap                *identity.Snapshot // what verified the peer
	peer                identity.ID
	client, server      string // identities
	clientCert, servers string // serial numbers
}

// proved reads the proof from a finished handshake, in which we were the client or not.
func proved(cs tls.ConnectionState, snap *identity.Snapshot, client bool) (*proof, error) {
	peer, err := identity.PeerID(cs)
	if err != nil {
		return nil, err
	}
	f := &proof{
		state: cs, snap: snap, peer: peer,
		client: snap.Credential.ID.String(), server: peer.String(),
		clientCert: serial(snap.Credential.Leaf), servers: serial(cs.PeerCertificates[0]),
	}
	if !client {
		f.client, f.server = f.server, f.client
		f.clientCert, f.servers = f.servers, f.clientCert
	}
	return f, nil
}

func (f *proof) note(r *Record) {
	r.tlsFacts(f.state)
	r.SourceIdentity, r.DestinationIdentity = f.client, f.server
	r.SourceSerial, r.DestinationSerial = f.clientCert, f.servers
}

// tunnel is one of either direction.
type tunnel struct {
	proof
	mux     *tlsconn.Mux
	raw     *net.TCPConn
	made    time.Time
	expires time.Time        // the first of both certificates
	now     func() time.Time // what that is checked against
	closed  atomic.Bool

	key     tunnelKey // of one to a server
	closing time.Time // likewise: when it was closed

	hello  greeting // of one from a client
	policy stand
	left   atomic.Int64 // when the client was told that no further stream is taken, in Unix nanoseconds; or 0
}

// greeting is what the ClientHello of a tunnel has said, and where it went to.
type greeting struct {
	seen      policy.Seen
	dst       netip.AddrPort
	sni, alpn string
}

// tunnelKey is what must be the same for a tunnel to be used again.
type tunnelKey struct {
	endpoint  netip.AddrPort
	peer      *workload.Workload // as it is now: whatever changes about it makes another key
	want      identity.ID
	accept    string
	sni, alpn string
	rule      string
	keepalive workload.Keepalive
}

func keyOfTunnel(to *routing) tunnelKey {
	k := tunnelKey{
		endpoint: to.endpoint, peer: to.peer, want: to.want, accept: strings.Join(to.accept, " "), sni: to.sni, alpn: strings.Join(to.alpn, ","),
		rule: to.conduct.Rule,
	}
	if to.conduct.Keepalive != nil {
		k.keepalive = *to.conduct.Keepalive
	}
	return k
}

// stand is what of the world a server decides with.
type stand struct {
	own    *workload.Workload
	access *policy.Access
}

func standOf(w *workload.World, self string) stand {
	own, _ := w.Workload(self)
	return stand{own, w.Access}
}

// newTunnel makes a tunnel of a connection, and returns its first stream; nil twice
// for a connection that carries no streams.
func (p *proxy) newTunnel(c *tlsconn.Conn, raw *net.TCPConn, f *proof, accept func(*tunnel, *tlsconn.Stream)) (*tunnel, *tlsconn.Stream) {
	t := &tunnel{proof: *f, raw: raw, made: time.Now(), now: p.cfg.Now, expires: f.snap.Credential.Leaf.NotAfter}
	if theirs := f.state.PeerCertificates[0].NotAfter; theirs.Before(t.expires) {
		t.expires = theirs
	}
	var first *tlsconn.Stream
	if t.mux, first = c.Streams(func(s *tlsconn.Stream) { accept(t, s) }); t.mux == nil {
		return nil, nil
	}
	return t, first
}

// runTunnel reads it until its end.
func (p *proxy) runTunnel(t *tunnel, gone func(*tunnel)) {
	p.handlers.Go(func() {
		_ = t.mux.Run() // every stream has been told
		gone(t)
	})
}

// open is how many streams it carries.
func (t *tunnel) open() int {
	n, _, _ := t.mux.Count()
	return n
}

// resting reports whether it has carried nothing for so long.
func (t *tunnel) resting(now time.Time, long time.Duration) bool {
	n, _, since := t.mux.Count()
	return n == 0 && now.Sub(since) >= long
}

// fresh reports whether the tunnel is young enough and still what a handshake now
// would lead to, as far as credentials go.
func (t *tunnel) fresh(current *identity.Snapshot) bool {
	return t.snap == current && time.Since(t.made) < tunnelAge && t.expires.Sub(t.now()) > tunnelMargin
}

// unansweredFor is between the two looks that tell a peer that has vanished: what was
// sent before the first isn't acknowledged by the second, nor was anything else.
const unansweredFor = 4 * time.Second

// errUnanswered says that a peer has not even acknowledged what it was sent.
var errUnanswered = errors.New("the peer does not acknowledge what is sent over a connection that was there before")

// answerWatch cuts a connection whose stream goes over an old tunnel to a peer that
// has vanished without a word: a new connection would not have been made.
type answerWatch struct {
	c *conn
	t *tunnel

	mu      sync.Mutex
	timer   *time.Timer
	again   bool // it has looked once
	stopped bool
}

func watchAnswer(c *conn, t *tunnel) *answerWatch {
	w := &answerWatch{c: c, t: t}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer = time.AfterFunc(dialTimeout-unansweredFor, w.look)
	return w
}

func (w *answerWatch) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopped = true
	w.timer.Stop()
}

func (w *answerWatch) look() {
	if !w.vanished() {
		return
	}
	w.t.mux.Leave() // no other connection is to wait as long
	w.c.cut(policy.ConnectTimeout, fmt.Errorf("%s: %w", w.t.raw.RemoteAddr(), errUnanswered))
}

// vanished looks, and has itself called again after the first time.
func (w *answerWatch) vanished() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	silence := dialTimeout - time.Second
	switch {
	case w.stopped:
		return false
	case w.again:
		return unanswered(w.t.raw, silence)
	case unanswered(w.t.raw, silence-unansweredFor):
		w.again = true
		w.timer.Reset(unansweredFor)
	}
	return false
}

// unanswered reports whether something that was sent is not acknowledged, and nothing
// has been for so long.
func unanswered(c *net.TCPConn, long time.Duration) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false // closed
	}
	waits := false
	err = raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		waits = err == nil && info.Unacked > 0 && time.Duration(info.Last_ack_recv)*time.Millisecond >= long
	})
	return err == nil && waits
}

// Tunnel is one element of GET /tunnels on the admin port. What it shares with a
// [Record] has the same names.
type Tunnel struct {
	Direction           string         `json:"direction"` // inbound or outbound
	Source              netip.AddrPort `json:"src_addr"`
	Destination         netip.AddrPort `json:"dst_addr"`
	Endpoint            netip.AddrPort `json:"endpoint"`
	Local               netip.AddrPort `json:"local"`
	SourceIdentity      string         `json:"src_identity"`
	DestinationIdentity string         `json:"dst_identity"`
	Security            string         `json:"security"`
	SNI                 string         `json:"sni,omitempty"`
	Open                int            `json:"open"`    // streams that it carries now
	Streams             int64          `json:"streams"` // that it has carried
	AgeMS               int64          `json:"age_ms"`
	IdleMS              int64          `json:"idle_ms"` // without a stream
}

func (p *proxy) allTunnels() []Tunnel {
	now := time.Now()
	all := []Tunnel{}
	add := func(t *tunnel, i Tunnel) {
		i.Endpoint, i.Local, i.Security = i.Destination, addrPort(t.raw.LocalAddr()), securityMutualTLS
		i.SourceIdentity, i.DestinationIdentity = t.client, t.server
		open, total, since := t.mux.Count()
		i.Open, i.Streams, i.AgeMS = open, total, now.Sub(t.made).Milliseconds()
		if open == 0 {
			i.IdleMS = now.Sub(since).Milliseconds()
		}
		all = append(all, i)
	}
	for _, t := range p.tunnels.all() {
		add(t, Tunnel{Direction: directionOutbound, Source: addrPort(t.raw.LocalAddr()), Destination: t.key.endpoint, SNI: t.key.sni})
	}
	for _, t := range p.lobby.all() {
		add(t, Tunnel{Direction: directionInbound, Source: addrPort(t.raw.RemoteAddr()), Destination: t.hello.dst, SNI: brief(t.hello.sni, maxName)})
	}
	return all
}
