package proxy

import (
	"cmp"
	"crypto/x509"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"

	reportv1 "podseal.io/podseal/api/report/v1"
	"podseal.io/podseal/internal/edges"
	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/workload"
)

// sweep counts what open connections have carried since the last time (design
// D15): an edge is seen while its connections last, and not only when they end.
func (p *proxy) sweep() {
	world, now := p.worlds.world(), time.Now()
	for _, c := range p.conns.some() {
		p.countOpen(c, world, now)
	}
}

func (p *proxy) countOpen(c *conn, world *workload.World, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := &c.facts
	sent, received := c.sent.Load(), c.received.Load()
	bytes := sent + received
	if c.spoke { // the kernel carries it, and tells how much later
		bytes = max(bytes, 1)
	}
	if c.counted || r.Protocol == "" || r.Security == "" || nothingSent(r, bytes) { // over, or not known yet
		return
	}
	if !c.flow.Opened() {
		p.edges.Open(&c.flow, p.edgeKey(r, bytes, world), edgeAbout(r), c.started)
	}
	p.edges.Move(&c.flow, sent, received, c.requests.Load(), now)
}

// nothingSent reports whether a client has connected and no more, so that how it
// would have spoken isn't known.
func nothingSent(r *Record, bytes int64) bool {
	return r.Direction == directionInbound && r.Security == securityPlaintext && bytes == 0
}

// countEnd counts a connection that is over.
func (p *proxy) countEnd(c *conn, r *Record, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counted = true
	if c.flow.Opened() {
		p.edges.Close(&c.flow, r.BytesSent, r.BytesReceived, r.Requests, string(r.Reason), now)
		return
	}
	key, about := p.edgeKey(r, r.BytesSent+r.BytesReceived, p.worlds.world()), edgeAbout(r)
	if r.Protocol == "" && r.Reason != policy.None {
		p.edges.Refuse(key, about, string(r.Reason), now)
		return
	}
	p.edges.Whole(key, about, c.started, r.BytesSent, r.BytesReceived, r.Requests, string(r.Reason), now)
}

// edgeNames are what edges call workloads: "<namespace>/<workload>". The last is kept,
// since who calls, calls again.
type edgeNames struct{ last atomic.Pointer[edgeName] }

type edgeName struct {
	workload *workload.Workload
	name     string
}

func (n *edgeNames) of(w *workload.Workload) string {
	if last := n.last.Load(); last != nil && last.workload == w {
		return last.name
	}
	name := w.Namespace + "/" + cmp.Or(w.WorkloadName, w.Name)
	n.last.Store(&edgeName{w, name})
	return name
}

// edgeKey says which edge a connection belongs to.
func (p *proxy) edgeKey(r *Record, bytes int64, world *workload.World) edges.Key {
	key := edges.Key{
		Direction: edges.Inbound, Security: edgeSecurity(r, bytes), Protocol: r.Protocol, Port: r.Destination.Port(),
		Identity: r.SourceIdentity, Address: r.Source.Addr(),
	}
	pod := r.SourceWorkload
	if r.Direction == directionOutbound {
		at := edgeEndpoint(r)
		key.Direction, key.Identity, key.Port, key.Address = edges.Outbound, r.DestinationIdentity, at.Port(), at.Addr()
		pod = r.DestinationWorkload
	}
	if w, ok := world.Workload(pod); ok {
		key.Workload = p.edgeNames.of(w)
	}
	if key.Security == edges.MutualTLS {
		key.TLS = edges.TLS{Version: r.TLSVersion, Group: r.TLSGroup, Cipher: r.TLSCipher}
	}
	if key.Identity != "" {
		key.Address = netip.Addr{} // who it is matters more than where it is
	}
	return key
}

// edgeEndpoint is where an outbound connection went, or wanted to go.
func edgeEndpoint(r *Record) netip.AddrPort {
	if r.Endpoint.IsValid() {
		return r.Endpoint
	}
	return r.Destination
}

func edgeAbout(r *Record) edges.About {
	a := edges.About{
		Pod: r.SourceWorkload, Address: r.Source.Addr(), Service: r.Service,
		OwnIdentity: r.DestinationIdentity, OwnSerial: r.DestinationSerial, PeerSerial: r.SourceSerial,
	}
	if r.Direction == directionOutbound {
		a.Pod, a.Address = r.DestinationWorkload, edgeEndpoint(r).Addr()
		a.OwnIdentity, a.OwnSerial, a.PeerSerial = r.SourceIdentity, r.SourceSerial, r.DestinationSerial
	}
	return a
}

// edgeSecurity is what protected the bytes; a handshake that failed protected none.
func edgeSecurity(r *Record, bytes int64) edges.Security {
	switch {
	case r.Reason == policy.None && r.Protocol != "" && nothingSent(r, bytes):
		return edges.NotObserved
	case r.Security == securityMutualTLS:
		return edges.MutualTLS
	case r.Security == securityPlaintext:
		return edges.Plaintext
	case r.Security == securityTLS: // encrypted, but not by the mesh
		return edges.ForeignTLS
	case r.Security == securityForeignTLS && (r.Protocol != "" || r.Reason == policy.ForeignTLSRefused):
		return edges.ForeignTLS
	default:
		return edges.NotObserved
	}
}

// told is a report's part about the certificate in force, which is the same for
// hours and asked for every second.
type told struct {
	of               *identity.Snapshot
	identity, serial string
}

// report says how this proxy is, for the control plane.
func (p *proxy) report() *reportv1.Proxy {
	open := p.conns.work().open
	r := &reportv1.Proxy{
		Version: p.cfg.Version, Connections: uint32(open), NotReady: brief(p.notReady(), maxName), Draining: p.draining.Load(), Started: p.started.Unix(),
		LoopbackSegmentBytes: uint32(p.cfg.LoopbackSegment),
	}
	if snap := p.creds.current.Load(); snap != nil {
		leaf := snap.Credential.Leaf
		t := p.told.Load()
		if t == nil || t.of != snap {
			t = &told{snap, snap.Credential.ID.String(), serial(leaf)}
			p.told.Store(t)
		}
		r.Identity, r.Serial = t.identity, t.serial
		r.NotBefore, r.NotAfter, r.Bundle = leaf.NotBefore.Unix(), leaf.NotAfter.Unix(), snap.Bundle.Hash()
	}
	return r
}

// graph is what GET /edges on the admin port says: this proxy's own view.
func (p *proxy) graph() edges.Graph {
	p.sweep()
	self := edges.Peer{Kind: edges.KindWorkload, Namespace: p.cfg.Namespace, Name: p.cfg.Pod}
	if own, ok := p.worlds.own(); ok {
		self.Name = cmp.Or(own.WorkloadName, own.Name)
	}
	reports := []edges.Report{{Pod: p.worlds.self, Workload: self, Edges: p.edges.All()}}
	reports[0].Resolve(func(a netip.Addr, _ string, _ edges.Direction, _ time.Time) edges.Peer {
		return edges.Peer{Kind: edges.KindOutside, Address: a}
	})
	return edges.Build(reports)
}

// serial is a certificate's serial number as people compare it.
func serial(c *x509.Certificate) string { return c.SerialNumber.Text(16) }

// look notes what an application that is passed on sends first, TLS of its own or
// not: in what was read already, else in what comes, which it waits for and leaves
// where it is.
func (c *conn) look(read []byte) {
	if len(read) > 0 {
		c.seen(read)
		return
	}
	raw, err := c.client.SyscallConn()
	if err != nil {
		return // closed
	}
	var first [2]byte
	n := 0
	err = raw.Read(func(fd uintptr) bool {
		for {
			n, _, err = syscall.Recvfrom(int(fd), first[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
			switch err { //nolint:errorlint // an errno as the system call returns it
			case syscall.EINTR:
			case syscall.EAGAIN:
				return false
			default:
				return true
			}
		}
	})
	if err != nil || n <= 0 {
		return // it ends without a byte
	}
	c.seen(first[:n])
}

// seen notes how the client has begun to speak.
func (c *conn) seen(first []byte) {
	security := securityPlaintext
	if first[0] == 0x16 && (len(first) < 2 || first[1] == 3) { // a handshake record (RFC 8446 5.1)
		security = securityForeignTLS
	}
	c.note(func(r *Record) { r.Security, c.spoke = security, true })
}
