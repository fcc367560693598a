package proxy

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/metrics"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/wire"
	"podseal.io/podseal/internal/workload"
)

// lastWords is how long a failed handshake's alert has to reach the client.
const lastWords = 500 * time.Millisecond

// inbound is one connection from outside to the application.
type inbound struct {
	p    *proxy
	c    *conn
	dst  netip.AddrPort
	port workload.Port
	from *workload.Workload // whose address the client has; nil when unknown

	sni  string       // as the client sent it
	app  *net.TCPConn // nil until connected
	id   identity.ID  // of the client, once proved
	cert *x509.Certificate

	speaks bool // the application is sent something as soon as it is connected
}

// serveInbound carries one connection to the application: first bytes, decide,
// terminate where the decision says so, relay.
func (p *proxy) serveInbound(ctx context.Context, c *conn) {
	dst, err := p.cfg.OriginalDst(c.client)
	if err == nil && p.isOwnSocket(dst) {
		err = errDetail("the original destination is this proxy itself") // contract 2.32
	}
	if err == nil && smuggled(addrPort(c.client.RemoteAddr()).Addr(), dst.Addr()) {
		err = errDetail("the original destination is an address that only the pod itself can mean")
	}
	if err != nil {
		c.cut(policy.NoDestination, err)
		return
	}
	own, err := p.ownWorkload(ctx)
	if err != nil {
		c.cut(policy.NoDestination, err)
		return
	}
	in := &inbound{p: p, c: c, dst: dst, port: own.PortOf(dst.Port())}
	in.from, _ = p.worlds.world().WorkloadAt(addrPort(c.client.RemoteAddr()).Addr())
	c.note(func(r *Record) { in.place(r, own) })
	first, err := in.firstBytes(ctx, own.Modes.Port(dst.Port()))
	if err != nil {
		return // the reason is noted
	}
	in.decide(ctx, first)
}

// place notes from where to where it goes.
func (in *inbound) place(r *Record, own *workload.Workload) {
	r.Destination, r.Endpoint, r.DestinationWorkload = in.dst, in.dst, own.UID
	r.Service = serviceName(in.port.ServiceHost, in.port.ServicePort)
	if in.from != nil {
		r.SourceWorkload = in.from.UID
	}
}

// smuggled reports whether a client elsewhere asks for a loopback address, or for
// none, which to connect to means the same. The kernel drops such a packet, but
// capture redirects it before it looks, and what listens there was never meant for
// others. A neighbour on the link can send one.
func smuggled(from, to netip.Addr) bool {
	to = to.Unmap()
	return (to.IsLoopback() || to.IsUnspecified()) && !from.Unmap().IsLoopback()
}

// firstBytes looks at what comes first. Where plaintext is allowed the
// application is connected at once, as it may be the one that speaks (design D9);
// under STRICT it learns nothing of a client that has not proved who it is.
func (in *inbound) firstBytes(ctx context.Context, mode policy.Mode) (sight, error) {
	http := in.port.Protocol != policy.TCP
	in.c.lookFirst = mode == policy.Disable // what is passed on may be TLS all the same
	if mode == policy.Disable && !http {
		return sight{seen: policy.PlainOther}, nil // contract 2.8
	}
	s := sniffer{
		client: in.c.client, unsaid: &in.p.unsaid, hello: mode != policy.Disable, http: http && mode != policy.Strict,
		http10: in.p.worlds.world().Mesh.HTTP10, silence: in.p.idleTimeout(),
	}
	if mode == policy.Strict {
		s.silence = handshakeTimeout
	} else if err := in.connect(ctx); err == nil {
		s.app = in.app
	} else {
		s.silence = probeTimeout
	}
	if s.hello && in.from != nil && in.from.Mesh && mode != policy.Disable {
		s.hold = holdServer
	}
	first, err := s.run()
	if errors.Is(err, errServerGone) && !first.seen.Plaintext() {
		in.disconnect() // it may be there again once the client has proved who it is
		return first, nil
	}
	switch {
	case err == nil:
		return first, nil
	case errors.Is(err, errServerGone), errors.Is(err, errSilent) && s.silence == probeTimeout:
		in.c.cut(policy.ConnectFailed, err)
	case errors.Is(err, errSilent) && mode == policy.Strict, errors.Is(err, errSlowHello):
		in.c.cut(policy.HandshakeTimeout, err)
	case errors.Is(err, errSilent):
		in.c.cut(policy.IdleTimeout, err)
	case errors.Is(err, errCrowded):
		in.c.cut(policy.Overloaded, err)
	case errors.Is(err, errCutHello), errors.Is(err, wire.ErrTooLarge):
		in.c.cut(policy.HandshakeFailed, err)
	case errors.Is(err, errHungUp):
		in.c.end(policy.None, err)
	default:
		in.c.cut(policy.None, err)
	}
	return first, err
}

// judge registers the connection for changes of policy, then decides with the
// policy in force.
func (in *inbound) judge(seen policy.Seen) (policy.Action, policy.Reason) {
	now := func(w *workload.World) (policy.Action, policy.Reason) {
		own, ok := w.Workload(in.p.worlds.self)
		if !ok {
			return policy.Close, policy.NoDestination
		}
		return policy.Decide(own.Modes.Port(in.dst.Port()), own.PortOf(in.dst.Port()).Protocol, seen)
	}
	var proves atomic.Bool // mutual TLS ends here, which every mode accepts
	proves.Store(true)     // until it is decided
	in.c.watch(func(w *workload.World, _ *identity.Snapshot) policy.Reason {
		if action, _ := now(w); !proves.Load() && (action == policy.Close || action.Terminates()) {
			return policy.PolicyChanged
		}
		return policy.None
	})
	action, reason := now(in.p.worlds.world())
	if proves.Store(action.Terminates()); !action.Terminates() && action != policy.Close {
		in.c.recheck(in.p.worlds.world(), in.p.creds.current.Load()) // a change may have come in between
	}
	return action, reason
}

// decide does what was decided.
func (in *inbound) decide(ctx context.Context, first sight) {
	action, reason := in.judge(first.seen)
	in.sni = first.hello.SNI
	in.c.note(func(r *Record) {
		r.SNI, r.ALPN = brief(first.hello.SNI, maxName), brief(strings.Join(first.hello.ALPN, ","), maxName)
		r.Security = securityPlaintext
		if !first.seen.Plaintext() {
			r.Security = securityForeignTLS // until a handshake says more
		}
	})
	switch {
	case action == policy.Close:
		in.c.cut(reason, errDetail(first.seen.String()+" is not accepted on this port")) // contract 2.17
	case action == policy.ServeHTTP && first.kind == wire.H2C && (len(first.app) == 0 || speaksHTTP2(first.app)):
		in.serveHTTP2(ctx, in.c.client, first)
	case action == policy.ServeHTTP && first.kind != wire.H2C && len(first.app) == 0:
		in.serveHTTP(ctx, in.c.client, first)
	case action == policy.ServeHTTP, action == policy.ServeTCP:
		in.serveTCP(ctx, in.c.client, first)
	default:
		in.terminate(ctx, action, first)
	}
}

// terminate ends mutual TLS here and goes on with what is inside.
func (in *inbound) terminate(ctx context.Context, action policy.Action, first sight) {
	client, err := in.handshake(ctx, first)
	if err != nil {
		reason := reasonOf(err)
		if first.seen == policy.ForeignTLS && reason == policy.HandshakeFailed {
			reason = policy.ForeignTLSRefused
		}
		in.c.end(reason, err)
		in.lastWords()
		return
	}
	in.goOn(ctx, action, client, first.app)
}

// goOn goes on with what is inside mutual TLS. spoken is what the application has
// said already.
func (in *inbound) goOn(ctx context.Context, action policy.Action, client secured, spoken []byte) {
	inside := sight{app: spoken}
	switch action {
	case policy.TerminateAuto, policy.TerminateHTTP:
		var err error
		if inside, err = in.lookInside(ctx, action, client, spoken); err != nil {
			return // the reason is noted
		}
	default:
	}
	if inside.kind == wire.H2C {
		in.serveHTTP2(ctx, client, inside)
		return
	}
	if inside.kind == wire.HTTP1 || (inside.kind == wire.HTTP10 && action == policy.TerminateHTTP) ||
		(action == policy.TerminateHTTP && inside.kind == wire.NotHTTP && len(inside.app) == 0 && len(inside.client) > 0) {
		in.serveHTTP(ctx, client, inside)
		return
	}
	in.serveTCP(ctx, client, inside)
}

func (in *inbound) handshake(ctx context.Context, first sight) (secured, error) {
	snap, err := in.p.snapshot(ctx)
	if err != nil {
		return nil, err
	}
	offered := first.hello.ALPN
	if first.seen == policy.ForeignTLS {
		offered = slices.DeleteFunc(slices.Clone(offered), func(name string) bool { return name == identity.ALPNStreams })
	}
	if first.seen == policy.ForeignTLS && slices.Contains(offered, "http/1.1") {
		offered = []string{"http/1.1"} // what is inside reaches the application as it is: h2 is not for every one
	}
	began := time.Now()
	cfg := identity.ServerConfig(snap, offered, in.p.cfg.Now)
	in.p.tls.Issue(cfg, snap)
	client, err := in.p.tls.Server(in.c.client, first.client, cfg, began.Add(handshakeTimeout))
	if err != nil {
		return nil, err
	}
	in.p.metrics.Handshake(time.Since(began))
	f, err := proved(client.ConnectionState(), snap, false)
	if err != nil {
		return nil, err
	}
	in.id, in.cert = f.peer, f.state.PeerCertificates[0]
	if !samePeer(in.from, in.id) {
		in.from = nil
	}
	in.c.note(func(r *Record) {
		f.note(r)
		if in.from == nil {
			r.SourceWorkload = ""
		}
	})
	peer := in.welcome(ctx, client, f, first)
	in.p.watchPeer(in.c, snap, f.state.PeerCertificates, x509.ExtKeyUsageClientAuth)
	return peer, nil
}

// lastWords lets the alert of a failed handshake reach the client: closing with
// unread bytes would make the kernel throw it away (contract 2.16).
func (in *inbound) lastWords() {
	raw := in.c.client
	_ = raw.CloseWrite() // the client may be gone, which is just as well
	if raw.SetReadDeadline(time.Now().Add(lastWords)) == nil {
		_, _ = io.CopyN(io.Discard, raw, wire.MaxClientHello)
	}
}

// lookInside finds out what a terminated connection carries. On an auto port the
// application may speak first there too; on an HTTP port it is enough to tell
// HTTP/1 from HTTP/2.
func (in *inbound) lookInside(ctx context.Context, action policy.Action, client secured, spoken []byte) (sight, error) {
	if len(spoken) > 0 && !speaksHTTP2(spoken) {
		return sight{app: spoken}, nil // it did so already, before the handshake
	}
	s := sniffer{client: client, unsaid: &in.p.unsaid, http: true, http10: in.p.worlds.world().Mesh.HTTP10, silence: in.p.idleTimeout()}
	if action == policy.TerminateAuto {
		if err := in.connect(ctx); err != nil {
			s.silence = probeTimeout
		}
	}
	if len(spoken) == 0 {
		s.app = in.app
	}
	inside, err := s.run()
	if len(spoken) > 0 {
		inside.app = spoken
	}
	switch {
	case err == nil:
		return inside, nil
	case errors.Is(err, errHungUp):
		_ = client.CloseWrite() // it may be gone
		in.c.end(policy.None, err)
	case errors.Is(err, errServerGone) && len(inside.client) > 0:
		in.disconnect()
		return inside, nil
	case errors.Is(err, errServerGone), errors.Is(err, errSilent) && s.silence == probeTimeout:
		in.c.cut(policy.ConnectFailed, err)
	case errors.Is(err, errSilent):
		in.c.cut(policy.IdleTimeout, err)
	case errors.Is(err, errCrowded):
		in.c.cut(policy.Overloaded, err)
	case isAlert(err):
		in.c.cut(policy.HandshakeFailed, err)
	default:
		in.c.cut(policy.None, err)
	}
	return inside, err
}

// serveTCP has bytes relayed between the client and the application.
func (in *inbound) serveTCP(ctx context.Context, client stream, first sight) {
	if !in.admitted(ctx) {
		return // the reason is noted
	}
	in.speaks = len(first.client) > 0 || (in.c.stream != nil && in.c.stream.Queued())
	if err := in.connect(ctx); err != nil {
		in.c.cut(dialReason(err), err) // contract 2.34
		return
	}
	in.c.note(func(r *Record) { r.Protocol = "tcp" })
	count := in.p.metrics.TCP(in.labels("tcp"))
	in.c.carry = func() {
		fromClient, fromServer := first.client, first.app
		first = sight{} // they aren't kept
		in.p.relay(in.c, client, in.app, fromClient, fromServer)
		count.Closed(in.c.sent.Load(), in.c.received.Load())
	}
}

// labels are what this connection is counted under.
func (in *inbound) labels(protocol string) metrics.Labels {
	l := metrics.Labels{Reporter: "destination", Protocol: protocol, Security: "none", Source: peerLabels(in.from, in.id, in.p.cfg.Cluster)}
	var ownID identity.ID
	if !in.id.IsZero() {
		l.Security = securityMutualTLS // contract 7.4
		if snap, err := in.p.creds.Snapshot(); err == nil {
			ownID = snap.Credential.ID
		}
	}
	own, _ := in.p.worlds.own()
	l.Destination = peerLabels(own, ownID, in.p.cfg.Cluster)
	serviceLabels(&l, in.port.ServiceHost, inboundPassthroughCluster)
	return l
}

// connect connects to the application, unless that has been done.
func (in *inbound) connect(ctx context.Context) error {
	if in.app != nil {
		return nil
	}
	app, err := in.dialApp(ctx)
	if err != nil {
		return err
	}
	if err := in.c.attach(app); err != nil {
		return err
	}
	in.app = app
	return nil
}

// disconnect forgets a connection to the application that has ended.
func (in *inbound) disconnect() {
	if in.app != nil {
		in.c.detach()
		_ = in.app.Close()
		in.app = nil
	}
}

// dialApp connects to the original destination from the address that the
// capture rules let through (contract 2.29, B6).
func (in *inbound) dialApp(ctx context.Context) (*net.TCPConn, error) {
	app, err := in.p.cfg.Dial(until{ctx, time.Now().Add(dialTimeout), in.speaks}, loopbackSource(in.dst.Addr()), in.dst)
	if err != nil {
		return nil, fmt.Errorf("connect to the application at %s: %w", in.dst, err)
	}
	return app, nil
}

// loopbackSource is the address that applications see as their peer.
func loopbackSource(dst netip.Addr) netip.Addr {
	if dst.Unmap().Is4() {
		return netip.AddrFrom4([4]byte{127, 0, 0, 6})
	}
	return netip.AddrFrom16([16]byte{15: 6})
}
