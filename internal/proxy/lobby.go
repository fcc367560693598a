package proxy

import (
	"context"
	"crypto/x509"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/tlsconn"
)

// lobby holds the tunnels of clients. The zero value is ready.
type lobby struct {
	mu     sync.Mutex
	here   map[*tunnel]struct{}
	closed bool
	timer  *time.Timer // of the next look; nil while there is none
}

// enter takes in a tunnel; it reports false when there are to be no more streams than
// those that are.
func (l *lobby) enter(t *tunnel, look func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.here == nil {
		l.here = map[*tunnel]struct{}{}
	}
	l.here[t] = struct{}{}
	if l.timer == nil {
		l.timer = time.AfterFunc(tunnelSweep, look)
	}
	return !l.closed
}

// gone forgets a tunnel that has ended.
func (l *lobby) gone(t *tunnel) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.here, t)
}

func (l *lobby) all() []*tunnel {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Keys(l.here))
}

// idle is how many carry nothing.
func (l *lobby) idle() int { return countIdle(l.all()) }

// again has look called later, unless there is nothing to look at.
func (l *lobby) again(look func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.timer = nil; len(l.here) > 0 {
		l.timer = time.AfterFunc(tunnelSweep, look)
	}
}

// end closes all, with what they carry; from then on those that come carry what they
// came with, and nothing more.
func (l *lobby) end() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	for _, t := range l.all() {
		t.close()
	}
}

// wanted reports whether a further stream may come over a client's tunnel.
func (p *proxy) wanted(t *tunnel) bool {
	return !p.draining.Load() && t.fresh(p.creds.current.Load()) && t.policy == standOf(p.worlds.world(), p.worlds.self)
}

// dismiss tells the clients of tunnels that aren't wanted any more.
func (p *proxy) dismiss() {
	for _, t := range p.lobby.all() {
		if !p.wanted(t) {
			t.leave()
		}
	}
}

// lookAround is dismiss, again and again while there are tunnels. It also lets go of
// those that have carried nothing for long, and closes what the client should have.
func (p *proxy) lookAround() {
	now, idle := time.Now(), 0
	for _, t := range p.lobby.all() {
		t.mux.Expire(now.Add(-tunnelHalf))
		resting := t.resting(now, 0)
		if resting {
			idle++
		}
		if t.resting(now, tunnelPatience) || !p.wanted(t) || idle > tunnelsAll {
			t.leave()
		}
		left := t.left.Load()
		if left == 0 || !resting || now.Sub(time.Unix(0, left)) < tunnelLeave {
			continue
		}
		if t.close(); now.Sub(time.Unix(0, left)) >= 2*tunnelLeave {
			t.mux.Close() // the client should have closed it, too
		}
	}
	p.lobby.again(p.lookAround)
}

// leave tells the client, once, that no further stream is taken. It closes the tunnel
// then.
func (t *tunnel) leave() {
	if t.left.CompareAndSwap(0, time.Now().UnixNano()) {
		t.mux.Leave()
	}
}

// welcome makes a tunnel of a client's connection, where it can be one, and returns
// its first stream; or else the connection.
func (in *inbound) welcome(ctx context.Context, client *tlsconn.Conn, f *proof, first sight) secured {
	p := in.p
	t, s := p.newTunnel(client, in.c.client, f, func(t *tunnel, s *tlsconn.Stream) { p.arrived(ctx, t, s) })
	if t == nil {
		return client
	}
	t.hello = greeting{first.seen, in.dst, first.hello.SNI, brief(strings.Join(first.hello.ALPN, ","), maxName)}
	t.policy = standOf(p.worlds.world(), p.worlds.self)
	in.c.over(t, s)
	if !p.lobby.enter(t, p.lookAround) {
		t.leave()
		if t.open() == 0 {
			t.close()
		}
	}
	p.runTunnel(t, p.lobby.gone)
	return s
}

// arrived takes over one stream of a tunnel as a connection of its own.
func (p *proxy) arrived(ctx context.Context, t *tunnel, s *tlsconn.Stream) {
	now := time.Now()
	c := &conn{direction: directionInbound, client: t.raw, started: now, reused: true, tunnel: t, stream: s}
	c.facts = Record{Start: now, Direction: directionInbound, Source: addrPort(t.raw.RemoteAddr()), Reused: true}
	p.take(ctx, c)
}

// serveStream carries a connection that came over a tunnel: it is decided as a new
// one, but for what the handshake has shown.
func (p *proxy) serveStream(ctx context.Context, c *conn) {
	t := c.tunnel
	own, err := p.ownWorkload(ctx)
	if err != nil {
		c.cut(policy.NoDestination, err)
		return
	}
	if t.now().After(t.expires) {
		c.cut(policy.PeerUnverified, errDetail("a certificate of the tunnel has expired"))
		return
	}
	in := &inbound{
		p: p, c: c, dst: t.hello.dst, port: own.PortOf(t.hello.dst.Port()), sni: t.hello.sni, id: t.peer, cert: t.state.PeerCertificates[0],
	}
	in.from, _ = p.worlds.world().WorkloadAt(addrPort(t.raw.RemoteAddr()).Addr())
	if !samePeer(in.from, in.id) {
		in.from = nil
	}
	c.note(func(r *Record) {
		in.place(r, own)
		r.SNI, r.ALPN = brief(t.hello.sni, maxName), t.hello.alpn
		t.note(r)
	})
	action, reason := in.judge(t.hello.seen)
	if !action.Terminates() {
		c.cut(reason, errDetail("mutual TLS is not accepted on this port any more"))
		return
	}
	p.watchPeer(c, t.snap, t.state.PeerCertificates, x509.ExtKeyUsageClientAuth)
	in.goOn(ctx, action, c.stream, nil)
}
