package proxy

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/workload"
)

// maxCalls bounds the connections that this proxy makes for itself.
const maxCalls = 256

// call connects to a service for this proxy itself, as it would for the
// application: to an endpoint by the same rules, by mutual TLS if that is in the
// mesh, and cut when policy or trust changes. Each leaves a record.
func (p *proxy) call(ctx context.Context, host string, port uint16) (net.Conn, error) {
	own, err := p.ownWorkload(ctx)
	if err != nil {
		return nil, err
	}
	dst, err := serviceAddress(p.worlds.world(), host, port)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	source := netip.AddrPort{}
	if len(own.Addresses) > 0 {
		source = netip.AddrPortFrom(own.Addresses[0], 0)
	}
	c := &conn{direction: directionOutbound, started: now, facts: Record{
		Start: now, Direction: directionOutbound, Source: source, Destination: dst, SourceWorkload: own.UID, Protocol: "tcp", Security: securityPlaintext,
	}}
	if !p.calls.add(c) {
		return nil, errDetail("this proxy has too many connections of its own")
	}
	s, err := p.callEncrypted(ctx, c, own, dst)
	called := &calledConn{stream: s, c: c, over: func() { p.calls.remove(c); p.finish(context.WithoutCancel(ctx), c) }}
	if err != nil {
		c.end(dialReason(err), err)
		called.end()
		return nil, err
	}
	return called, nil
}

func (p *proxy) callEncrypted(ctx context.Context, c *conn, own *workload.Workload, dst netip.AddrPort) (stream, error) {
	to := p.route(c, question{dst: dst, own: p.isOwn, client: own, source: c.facts.Source.Addr(), pick: p.balance.pick})
	if to.verdict == refused {
		return nil, errDetail(to.detail)
	}
	if to.verdict == mesh {
		if _, err := p.snapshot(ctx); err != nil {
			return nil, err
		}
	}
	server, err := p.dial(ctx, to)
	if err != nil {
		return nil, err
	}
	if err := c.attach(server); err != nil {
		return nil, err
	}
	switch to = p.settle(c, own, dst, to); to.verdict {
	case refused:
		return nil, errDetail(to.detail)
	case mesh:
		return p.callMesh(c, to, server)
	case originate:
		return p.originate(ctx, c, to, server)
	default:
		return server, nil
	}
}

// callMesh shakes hands for one stream, without the name of those that are used for
// several.
func (p *proxy) callMesh(c *conn, to routing, server *net.TCPConn) (stream, error) {
	snap, err := p.creds.Snapshot()
	if err != nil {
		return nil, err
	}
	alpn := slices.DeleteFunc(slices.Clone(to.alpn), func(name string) bool { return name == identity.ALPNStreams })
	encrypted, err := p.shakeHands(&to, snap, alpn, server, time.Now().Add(handshakeTimeout))
	if err != nil {
		return nil, err
	}
	f, err := proved(encrypted.ConnectionState(), snap, true)
	if err != nil {
		_ = encrypted.Close() // the error is that of the proof
		return nil, err
	}
	c.note(f.note)
	p.watchPeer(c, snap, f.state.PeerCertificates, x509.ExtKeyUsageServerAuth)
	return encrypted, nil
}

// serviceAddress is where a service's port can be connected to.
func serviceAddress(w *workload.World, host string, port uint16) (netip.AddrPort, error) {
	s, ok := w.ServiceNamed(host)
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("no Service has the name %s", host)
	}
	if !slices.ContainsFunc(s.Ports, func(p workload.ServicePort) bool { return p.Port == port }) {
		return netip.AddrPort{}, fmt.Errorf("the Service %s has no port %d", host, port)
	}
	if len(s.Addresses) > 0 {
		return netip.AddrPortFrom(s.Addresses[0], port), nil
	}
	for _, e := range s.Endpoints { // headless
		if target, ok := e.Targets[port]; ok && w.Serves(e) {
			return netip.AddrPortFrom(e.Address, target), nil
		}
	}
	return netip.AddrPort{}, fmt.Errorf("no endpoint of the Service %s is ready", host)
}

// calledConn is a connection of the proxy's own.
type calledConn struct {
	stream
	c    *conn
	over func()
	once sync.Once
}

// Read implements net.Conn.
func (s *calledConn) Read(b []byte) (int, error) {
	n, err := s.stream.Read(b)
	s.c.received.Add(int64(n))
	return n, err
}

// Write implements net.Conn.
func (s *calledConn) Write(b []byte) (int, error) {
	n, err := s.stream.Write(b)
	s.c.sent.Add(int64(n))
	return n, err
}

// Close implements net.Conn.
func (s *calledConn) Close() error {
	err := s.stream.Close()
	s.end()
	return err
}

func (s *calledConn) end() {
	s.once.Do(func() {
		s.c.close()
		s.over()
	})
}

// cutCalls ends the connections of the proxy's own.
func (p *proxy) cutCalls() {
	for _, c := range p.calls.all() {
		c.cut(policy.Draining, errDetail("the proxy is shutting down"))
	}
}
