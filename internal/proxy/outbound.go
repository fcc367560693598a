package proxy

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/metrics"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/tlsconn"
	"podseal.io/podseal/internal/workload"
)

const (
	dialTimeout      = 10 * time.Second // contract 2.36
	handshakeTimeout = 10 * time.Second
)

// errTooLong says that a DestinationRule bounds how long a connection lasts.
var errTooLong = errors.New("the connection has lasted for as long as its DestinationRule allows")

// errDetail is a refusal in words for people; the reason is beside it.
type errDetail string

func (e errDetail) Error() string { return string(e) }

// serveOutbound carries one connection of the application to where it wanted to
// go: route, dial, handshake, relay.
func (p *proxy) serveOutbound(ctx context.Context, c *conn) {
	dst, err := p.cfg.OriginalDst(c.client)
	if err != nil {
		c.cut(policy.NoDestination, err)
		return
	}
	c.note(func(r *Record) { r.Destination = dst })
	own, err := p.ownWorkload(ctx)
	if err != nil {
		c.cut(policy.NoDestination, err)
		return
	}
	c.note(func(r *Record) { r.SourceWorkload = own.UID })

	q := question{dst: dst, own: p.own, client: own, source: addrPort(c.client.RemoteAddr()).Addr(), pick: p.pick}
	to, err := p.find(ctx, c, &q)
	if err != nil {
		c.cut(policy.NoDestination, err)
		return
	}
	if to.verdict == refused {
		if to.reason == policy.RegistryOnly { // contract 7.6
			l := metrics.Labels{Reporter: "source", Protocol: "tcp", Source: peerLabels(own, identity.ID{}, p.cfg.Cluster)}
			serviceLabels(&l, "", blackHoleCluster)
			p.metrics.TCP(l).Closed(0, 0)
		}
		c.cut(to.reason, errDetail(to.detail))
		return
	}
	if !p.enter(c, to) {
		return // the reason is noted
	}
	of := keyOf(to.service)
	c.atEnd = append(c.atEnd, func() { p.balance.leave(of) })
	to, server, err := p.connect(ctx, c, q, to)
	if err != nil {
		return // the reason is noted
	}
	endpoint := to.endpoint
	p.balance.add(endpoint, 1)
	c.atEnd = append(c.atEnd, func() {
		c.close()
		p.balance.add(endpoint, -1)
	})
	if to = p.settle(c, own, dst, to); to.verdict == refused {
		return // the reason is noted
	}
	c.note(func(r *Record) { r.Local = addrPort(server.LocalAddr()) })
	if err := c.attach(server); err != nil {
		return
	}
	p.carryOutbound(ctx, c, own, to, server)
}

// settle watches the connection from now on and decides again: dialling takes
// its time, in which the world may have learned who is at the endpoint.
func (p *proxy) settle(c *conn, own *workload.Workload, dst netip.AddrPort, to routing) routing {
	var encrypted atomic.Bool
	encrypted.Store(to.verdict == mesh || to.verdict == originate)
	o := opened{dst: dst, endpoint: to.endpoint, namespace: own.Namespace}
	if to.entry.Entry != nil {
		entry := to.entry
		o.entry = &entry
	}
	explicit := to.explicit
	c.watch(func(w *workload.World, _ *identity.Snapshot) policy.Reason {
		if explicit {
			return policy.None // the server decides whether it takes what the rule wants
		}
		return stillAllowed(w, o, encrypted.Load())
	})
	now := confirm(p.worlds.world(), to)
	encrypted.Store(now.verdict == mesh || now.verdict == originate)
	if now.verdict != to.verdict {
		p.noteRoute(c, now)
	}
	if now.verdict == refused {
		c.cut(now.reason, errDetail(now.detail))
		return now
	}
	c.recheck(p.worlds.world(), p.creds.current.Load())
	return now
}

// carryOutbound shakes hands where the peer is in the mesh, and leaves the rest to a relay.
func (p *proxy) carryOutbound(ctx context.Context, c *conn, own *workload.Workload, to routing, server *net.TCPConn) {
	var toServer stream = server
	var proved identity.ID
	switch to.verdict {
	case mesh:
		encrypted, err := p.encrypt(c, to, server)
		p.tried(to, err)
		if err != nil {
			c.cut(reasonOf(err), err)
			return
		}
		toServer, proved = encrypted, own.Identity
	case originate:
		encrypted, err := p.originate(ctx, c, to, server)
		p.tried(to, err)
		if err != nil {
			c.cut(reasonOf(err), err)
			return
		}
		toServer = encrypted
	default:
		p.tried(to, nil)
		c.lookFirst = true
	}
	c.note(func(r *Record) { r.Protocol = "tcp" })
	c.idle = to.conduct.IdleTimeout
	if longest := to.conduct.MaxDuration; longest > 0 {
		over := time.AfterFunc(longest-time.Since(c.started), func() { c.cut(policy.MaxDuration, errTooLong) })
		c.atEnd = append(c.atEnd, func() { over.Stop() })
	}

	l := metrics.Labels{Reporter: "source", Protocol: "tcp", Security: "unknown", Source: peerLabels(own, proved, p.cfg.Cluster)}
	l.Destination = peerLabels(to.peer, to.want, p.cfg.Cluster)
	host := ""
	if to.service.Service != nil {
		host = to.service.Service.Hostname
	}
	serviceLabels(&l, host, passthroughCluster)
	count := p.metrics.TCP(l)
	c.carry = func() {
		first := c.first
		c.first = nil // it isn't kept
		if c.reused {
			defer watchAnswer(c, c.tunnel).stop()
		}
		p.relay(c, c.client, toServer, first, nil)
		c.note(func(r *Record) {
			if r.Security == "" && c.sent.Load() > 0 { // only the server spoke
				r.Security = securityPlaintext
			}
		})
		count.Closed(c.sent.Load(), c.received.Load())
	}
}

// enter counts the connection to its service port, and refuses it if a rule
// allows no more of them.
func (p *proxy) enter(c *conn, to routing) bool {
	if p.balance.enter(keyOf(to.service), to.conduct.MaxConnections) {
		return true
	}
	c.cut(policy.Overloaded, errDetail("as many connections to the service are open as its DestinationRule allows"))
	return false
}

// connect dials. When the chosen endpoint of a service doesn't answer, one other
// is tried.
func (p *proxy) connect(ctx context.Context, c *conn, q question, to routing) (routing, *net.TCPConn, error) {
	if to.verdict == mesh { // better to know before the peer does
		if _, err := p.snapshot(ctx); err != nil {
			c.cut(policy.NoIdentity, err)
			return to, nil, err
		}
		if !to.anybody {
			if t := p.join(ctx, c, &to); t != nil {
				return to, t.raw, nil
			}
		}
	}
	server, err := p.dial(ctx, to)
	if err != nil {
		p.made(c, nil, false)
	}
	if err != nil && to.balanced {
		q.exclude = to.endpoint
		if other := p.route(c, q); other.verdict != refused {
			first := err
			to = other
			if server, err = p.dial(ctx, to); err != nil {
				err = errors.Join(first, err)
			}
		}
	}
	if err != nil {
		c.cut(dialReason(err), err)
		return to, nil, err
	}
	p.noteRoute(c, to)
	return to, server, nil
}

// tried tells the rule of the service whether its endpoint could be connected to,
// TLS included. What fails on this side says nothing of the endpoint.
func (p *proxy) tried(to routing, err error) {
	b := backend{keyOf(to.service), to.endpoint}
	switch {
	case !to.balanced, errors.Is(err, errTLSSettings), errors.Is(err, errNoCertificate), errors.Is(err, errExpired), errors.Is(err, context.Canceled):
	case err != nil:
		p.balance.outliers.failed(b, to.conduct.Outlier)
	default:
		p.balance.outliers.worked(b, to.conduct.Outlier)
	}
}

// find routes, and finds out what that needs: the host that the first bytes name,
// addresses of hosts. What it has found is in q.
func (p *proxy) find(ctx context.Context, c *conn, q *question) (routing, error) {
	for range 4 { // the name; addresses, to find the host; its own addresses; the answer
		to := p.route(c, *q)
		if !to.lacks.any() {
			return to, nil
		}
		if to.lacks.name {
			name, err := peekName(ctx, c.client)
			if err != nil {
				return to, fmt.Errorf("look at the first bytes: %w", err)
			}
			q.looked, q.name = true, name
			continue
		}
		found := p.resolver.addresses(ctx, to.lacks.hosts)
		maps.Copy(found, q.resolved)
		q.resolved = found
	}
	return routing{}, errDetail("the ServiceEntries of the destination changed all the time")
}

func (p *proxy) route(c *conn, q question) routing {
	to := route(p.worlds.world(), q)
	p.noteRoute(c, to)
	p.matches.follow(&to)
	return to
}

func (p *proxy) noteRoute(c *conn, to routing) {
	c.note(func(r *Record) {
		r.Endpoint, r.Rule = to.endpoint, to.conduct.Rule
		r.DestinationWorkload, r.SNI, r.ALPN = "", to.sni, strings.Join(to.alpn, ",")
		if to.peer != nil {
			r.DestinationWorkload = to.peer.UID
		}
		if s := to.service.Service; s != nil {
			r.Service = serviceName(s.Hostname, to.service.Port.Port)
		}
	})
}

func (p *proxy) dial(ctx context.Context, to routing) (*net.TCPConn, error) {
	deadline := time.Now().Add(cmp.Or(to.conduct.ConnectTimeout, dialTimeout))
	server, err := p.cfg.Dial(until{Context: ctx, at: deadline}, netip.Addr{}, to.endpoint)
	if err != nil {
		p.tried(to, err)
		return nil, fmt.Errorf("connect to %s: %w", to.endpoint, err)
	}
	if k := to.conduct.Keepalive; k != nil {
		cfg := net.KeepAliveConfig{Enable: true, Idle: orKernel(k.Time), Interval: orKernel(k.Interval), Count: cmp.Or(int(k.Probes), -1)}
		if err := server.SetKeepAliveConfig(cfg); err != nil {
			p.log.Warn("keepalive not set", slog.String("rule", to.conduct.Rule), slog.String("error", err.Error()))
		}
	}
	return server, nil
}

// orKernel makes of no time what [net.KeepAliveConfig] leaves to the kernel.
func orKernel(d time.Duration) time.Duration { return cmp.Or(d, -1) }

// encrypt shakes hands with the endpoint, which must prove exactly the identity
// that the routing wants (design D11).
func (p *proxy) encrypt(c *conn, to routing, server *net.TCPConn) (secured, error) {
	if c.tunnel != nil {
		c.note(func(r *Record) { r.Reused = true; c.tunnel.note(r) })
		p.watchPeer(c, c.tunnel.snap, c.tunnel.state.PeerCertificates, x509.ExtKeyUsageServerAuth)
		return c.stream, nil
	}
	snap, err := p.creds.Snapshot()
	if err != nil {
		return nil, err
	}
	began := time.Now()
	encrypted, err := p.shakeHands(&to, snap, to.alpn, server, began.Add(handshakeTimeout))
	if err != nil {
		return nil, err
	}
	p.metrics.Handshake(time.Since(began))
	f, err := proved(encrypted.ConnectionState(), snap, true)
	if err != nil {
		encrypted.Close()
		return nil, err
	}
	c.note(f.note)
	var peer secured = encrypted
	t, s := p.newTunnel(encrypted, server, f, nil)
	if t != nil {
		t.key = keyOfTunnel(&to)
		c.over(t, s)
		peer = s
		p.runTunnel(t, p.tunnels.gone)
	}
	if t != nil && to.anybody { // it was not asked which of them
		t.mux.Leave()
	}
	p.made(c, t, t == nil)
	p.watchPeer(c, snap, f.state.PeerCertificates, x509.ExtKeyUsageServerAuth)
	return peer, nil
}

// shakeHands makes the handshake with a peer of the mesh, in full or as the
// continuation of a session with it. Either proves that it is what the routing wants.
func (p *proxy) shakeHands(to *routing, snap *identity.Snapshot, alpn []string, server *net.TCPConn, deadline time.Time) (*tlsconn.Conn, error) {
	cfg := identity.ClientConfig(snap, to.want, to.sni, alpn, p.cfg.Now)
	if len(to.accept) > 0 {
		identity.Accept(cfg, snap, to.accept, p.cfg.Now)
	}
	if !to.anybody { // who answers has its own keys
		p.tls.Resume(cfg, snap, tlsconn.Peer{Endpoint: to.endpoint, Want: to.want, Accept: strings.Join(to.accept, " ")})
	}
	return p.tls.Client(server, cfg, deadline) //nolint:wrapcheck // callers have one error for all that goes wrong
}

// watchPeer checks the peer, whose chain snap has verified, again whenever whom we
// trust changes, beginning now.
func (p *proxy) watchPeer(c *conn, snap *identity.Snapshot, chain []*x509.Certificate, usage x509.ExtKeyUsage) {
	c.watch(stillVerified(snap, chain, usage, p.cfg.Now()))
	if snap, err := p.creds.Snapshot(); err == nil {
		c.recheck(p.worlds.world(), snap)
	}
}
