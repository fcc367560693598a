package proxy

import (
	"context"
	"crypto/x509"
	"strings"
	"sync"
	"time"

	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/tlsconn"
)

// lobby holds the tunnels of clients that wait for their next stream. Each has its
// goroutine, which reads. The zero value is ready.
type lobby struct {
	mu     sync.Mutex
	idle   map[*tunnel]struct{}
	closed bool
	timer  *time.Timer // of the next look; nil while there is none
}

// enter takes in a tunnel that waits from now on; it reports false when all is over.
// No deadline is set: who waits for too long is told so when it is looked around.
func (l *lobby) enter(t *tunnel, look func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	if l.idle == nil {
		l.idle = map[*tunnel]struct{}{}
	}
	if t.tls.NoReadDeadline() != nil {
		return false // closed
	}
	t.idle = time.Now()
	l.idle[t] = struct{}{}
	if l.timer == nil {
		l.timer = time.AfterFunc(tunnelSweep, look)
	}
	return true
}

// exit ends what enter began: nobody sets a deadline from then on.
func (l *lobby) exit(t *tunnel) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.idle, t)
	if t.leaving.Load() {
		_ = t.raw.SetReadDeadline(time.Time{}) // a closed socket fails at the read
	}
}

// dismiss tells the clients of those that aren't wanted.
func (l *lobby) dismiss(wanted func(*tunnel) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for t := range l.idle {
		if !wanted(t) {
			t.leave()
		}
	}
}

// room reports whether one more may wait.
func (l *lobby) room() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.closed && len(l.idle) < tunnelsAll
}

func (l *lobby) len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.idle)
}

// each calls visit for each, in no order.
func (l *lobby) each(visit func(*tunnel)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for t := range l.idle {
		visit(t)
	}
}

// again has look called later, unless nothing waits.
func (l *lobby) again(look func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.timer = nil; len(l.idle) > 0 && !l.closed {
		l.timer = time.AfterFunc(tunnelSweep, look)
	}
}

// close ends the wait of all; from then on none waits.
func (l *lobby) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	if l.timer != nil {
		l.timer.Stop()
		l.timer = nil
	}
	for t := range l.idle {
		_ = t.raw.Close() // the client may have closed it
	}
}

// mayWait reports whether a tunnel of a client is kept when its stream ends now.
func (p *proxy) mayWait(t *tunnel) bool { return p.wanted(t) && p.lobby.room() }

// wanted reports whether a further stream may come over a client's tunnel.
func (p *proxy) wanted(t *tunnel) bool {
	return !t.leaving.Load() && !p.draining.Load() && t.fresh(p.creds.current.Load()) && t.policy == standOf(p.worlds.world(), p.worlds.self)
}

// lookAround dismisses what isn't wanted any more, again and again while tunnels wait.
func (p *proxy) lookAround() {
	long := time.Now().Add(-tunnelPatience)
	p.lobby.dismiss(func(t *tunnel) bool { return t.idle.After(long) && p.wanted(t) })
	p.lobby.again(p.lookAround)
}

// leave tells the client, once, that no further stream is taken. It closes the
// tunnel then; if it doesn't, the wait for the next stream ends. It is for a tunnel
// in the lobby only.
func (t *tunnel) leave() {
	if t.leaving.Swap(true) {
		return
	}
	_ = t.tls.Leave() // if it can't be told it will see the end
	_ = t.raw.SetReadDeadline(time.Now().Add(tunnelLeave))
}

// next waits for the next stream of a tunnel, and returns it as a connection of its
// own, or nil when none comes.
func (p *proxy) next(ctx context.Context, t *tunnel) *conn {
	if t == nil {
		return nil
	}
	if !p.lobby.enter(t, p.lookAround) {
		_ = t.raw.Close()
		return nil
	}
	err := t.tls.Accept()
	p.lobby.exit(t)
	if err != nil {
		_ = t.raw.Close() // what can still be said has been
		return nil
	}
	t.streams.Add(1)
	now := time.Now()
	c := &conn{direction: directionInbound, client: t.raw, started: now, tunnel: t}
	c.facts = Record{Start: now, Direction: directionInbound, Source: addrPort(t.raw.RemoteAddr()), Reused: true}
	if !p.conns.add(c) {
		c.cut(policy.Overloaded, errDetail("as many connections are open as this proxy allows"))
		p.finish(ctx, c)
		return nil
	}
	p.metrics.Open(c.direction).Inc()
	return c
}

// welcome makes a tunnel of a client's connection, where it can be one.
func (in *inbound) welcome(client *tlsconn.Conn, f *proof, first sight) {
	t := in.p.newTunnel(client, in.c.client, f)
	if t == nil {
		return
	}
	t.hello = greeting{first.seen, in.dst, first.hello.SNI, brief(strings.Join(first.hello.ALPN, ","), maxName)}
	t.policy = standOf(in.p.worlds.world(), in.p.worlds.self)
	client.Keep(func() bool { return in.p.mayWait(t) })
	in.c.over(t)
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
	in.goOn(ctx, action, t.tls, nil)
}
