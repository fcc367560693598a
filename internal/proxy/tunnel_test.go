package proxy

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/meshtest"
	"podseal.io/podseal/internal/policy"
)

// once does one exchange on a connection of its own and waits until what it went
// over is idle on both sides, if it is kept.
func (p *pair) once(t testing.TB) {
	t.Helper()
	before := len(p.inside.records.last())
	c := p.dial()
	exchange(t, c, "\x00hello")
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if err := ends(t, c); err != nil {
		t.Fatal(err)
	}
	c.Close()
	eventually(t, func() bool {
		return len(p.inside.records.last()) > before && p.inside.conns.work().open == 0 && p.clientSide.conns.work().open == 0
	})
}

// kept waits until so many tunnels are idle on both sides.
func (p *pair) kept(t testing.TB, n int) {
	t.Helper()
	eventually(t, func() bool { return p.clientSide.tunnels.idle() == n && p.inside.lobby.idle() == n })
}

// last is the record of a proxy's last connection, once all have theirs: a record may
// be written when the next connection over its tunnel has already ended.
func last(t testing.TB, p *proxy) Record {
	t.Helper()
	var all []Record
	eventually(t, func() bool {
		w := p.conns.work()
		all = p.records.last()
		return w.open == 0 && w.total > 0 && uint64(len(all)) >= min(w.total, keptRecords)
	})
	return slices.MaxFunc(all, func(a, b Record) int { return a.Start.Compare(b.Start) })
}

// The next connection goes over the TLS of the last one, whatever the port's
// protocol, and is recorded like any other.
func TestConnectionIsUsedAgain(t *testing.T) {
	for _, proto := range []policy.Protocol{policy.TCP, policy.Auto} {
		t.Run(proto.String(), func(t *testing.T) {
			p := newPair(t, proto, meshtest.Echo)
			p.mode(p.server, policy.Strict)
			p.once(t)
			p.kept(t, 1)
			first := last(t, p.inside)
			for range 3 {
				p.once(t)
				p.kept(t, 1)
			}
			for _, side := range []*proxy{p.clientSide, p.inside} {
				r := last(t, side)
				if !r.Reused || r.Security != securityMutualTLS || r.BytesSent != 6 || r.BytesReceived != 6 || r.Protocol != "tcp" || r.Reason != policy.None || r.Error != "" {
					t.Errorf("record %+v", r)
				}
				if r.SourceIdentity != p.client.Identity.String() || r.DestinationIdentity != p.server.Identity.String() ||
					r.SourceSerial != first.SourceSerial || r.DestinationSerial != first.DestinationSerial || r.SNI != first.SNI || r.ALPN != first.ALPN ||
					r.TLSGroup != first.TLSGroup || r.SourceWorkload != first.SourceWorkload || r.Service != first.Service {
					t.Errorf("record %+v, that of the first %+v", r, first)
				}
			}
			if _, body := get(t, p.clientSide, 3, "GET", "/tunnels"); !strings.Contains(body, `"direction":"outbound"`) || !strings.Contains(body, `"streams":4`) {
				t.Errorf("admin: %s", body)
			}
		})
	}
}

// A server that speaks first does so on a tunnel that is used again, too.
func TestServerFirstIsUsedAgain(t *testing.T) { // contract 2.6
	for _, proto := range []policy.Protocol{policy.TCP, policy.Auto} {
		p := newPair(t, proto, meshtest.Greet("220 hello\r\n"))
		for range 3 {
			c := p.dial()
			expect(t, c, "220 hello\r\n")
			exchange(t, c, "HELO x\r\n")
			if err := c.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if err := ends(t, c); err != nil {
				t.Fatal(err)
			}
			p.kept(t, 1)
		}
		last(t, p.clientSide)
		if n := len(slices.DeleteFunc(p.clientSide.records.last(), func(r Record) bool { return !r.Reused })); n != 2 {
			t.Errorf("%s: %d connections used a tunnel again", proto, n)
		}
	}
}

// Contract B8 holds for each stream: directions end one by one, in either order.
func TestHalfCloseIsUsedAgain(t *testing.T) {
	tail := bytes.Repeat([]byte("tail "), 20_000) // less than what gets a tunnel for itself
	p := newPair(t, policy.TCP, func(c *net.TCPConn) {
		first := make([]byte, 1)
		if _, err := io.ReadFull(c, first); err != nil {
			return
		}
		if first[0] == 'a' { // the application ends first
			_, _ = c.Write(tail)
			_ = c.CloseWrite()
			_, _ = io.Copy(io.Discard, c)
			return
		}
		n, _ := io.Copy(io.Discard, c)
		if n == int64(len(tail)) {
			_, _ = c.Write(tail)
		}
	})
	for _, who := range []string{"c", "a", "c", "a"} {
		c := p.dial()
		if _, err := io.WriteString(c, who); err != nil {
			t.Fatal(err)
		}
		up := func() {
			if _, err := c.Write(tail); err != nil {
				t.Fatal(err)
			}
			if err := c.CloseWrite(); err != nil {
				t.Fatal(err)
			}
		}
		if who == "c" {
			up()
		}
		if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, tail) {
			t.Fatalf("%s: %d bytes, %v", who, len(got), err)
		}
		if who == "a" {
			up()
		}
		p.kept(t, 1)
	}
	for _, r := range p.inside.records.last()[1:] {
		if !r.Reused || r.BytesSent != int64(len(tail)) || r.BytesReceived != int64(len(tail))+1 {
			t.Errorf("record %+v", r)
		}
	}
}

// A reset is one at the other end, and no other connection over the same tunnel
// notices.
func TestResetIsOfOneStream(t *testing.T) {
	failed := make(chan error, 1)
	p := newPair(t, policy.TCP, func(c *net.TCPConn) {
		for {
			b := make([]byte, 64)
			n, err := c.Read(b)
			if err != nil {
				if !errors.Is(err, io.EOF) {
					failed <- err
				}
				return
			}
			if b[0] == 'R' {
				_ = c.SetLinger(0)
				return
			}
			_, _ = c.Write(b[:n])
		}
	})
	other := p.dial()
	exchange(t, other, "first")
	c := p.dial()
	exchange(t, c, "client")
	reset(c)
	if err := <-failed; !isGone(err) {
		t.Errorf("the application saw %v", err)
	}
	exchange(t, other, "still")
	c = p.dial()
	if _, err := io.WriteString(c, "R"); err != nil {
		t.Fatal(err)
	}
	if err := ends(t, c); !isGone(err) {
		t.Errorf("the client saw %v", err)
	}
	exchange(t, other, "there")
	if err := other.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if err := ends(t, other); err != nil {
		t.Error(err)
	}
	p.kept(t, 1)
}

// Policy is decided for each connection, also for one that comes over a tunnel
// that an earlier one has left behind; what is open is cut.
func TestPolicyChangeBetweenStreams(t *testing.T) {
	p := newPair(t, policy.TCP, meshtest.Echo)
	p.once(t)
	p.kept(t, 1)
	open := p.dial()
	exchange(t, open, "x")
	if r := p.inside.conns.all()[0].snapshot(time.Now()); !r.Reused {
		t.Fatal("not used again")
	}
	p.world.Access = []*policy.AuthorizationPolicy{allow("nobody")}
	p.server.Policies = []string{"shop/nobody"}
	p.tell()
	if err := ends(t, open); !isGone(err) {
		t.Errorf("the open one: %v", err)
	}
	if r := record(t, p.inside, withReason(policy.PolicyChanged)); !r.Reused {
		t.Errorf("record %+v", r)
	}
	ends(t, p.dial())
	record(t, p.inside, withReason(policy.PolicyDenied))
}

// A tunnel doesn't outlive a change of what it was decided with, on either side.
func TestTunnelsEndWithWhatTheyCameFrom(t *testing.T) {
	for name, change := range map[string]func(*pair){
		"the client's certificate": func(p *pair) { p.certify(p.clientSide, p.client.Identity) },
		"the server's certificate": func(p *pair) { p.certify(p.inside, p.server.Identity) },
		"the server's policy":      func(p *pair) { p.mode(p.server, policy.Strict) },
		"the roots": func(p *pair) {
			p.world.Mesh.BundlePEM = append(p.ca.PEM(), meshtest.NewCA(p.t, time.Now()).PEM()...)
			p.tell()
		},
		"the server goes": func(p *pair) { p.inside.lobby.end() },
		"the server ends": func(p *pair) {
			p.inside.draining.Store(true)
			p.inside.dismiss()
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, policy.TCP, meshtest.Echo)
			p.once(t)
			p.kept(t, 1)
			old := p.clientSide.tunnels.all()[0]
			change(p)
			if name != "the server goes" {
				p.once(t) // whatever the client knows by now, it costs no error
			}
			eventually(t, old.mux.Left)
			p.once(t)
			if r := last(t, p.clientSide); r.Reused && r.Local == addrPort(old.raw.LocalAddr()) {
				t.Errorf("used again: %+v", r)
			}
			eventually(t, func() bool { return p.inside.lobby.idle() <= 1 && p.clientSide.tunnels.idle() <= 1 })
		})
	}
}

// A renewal on the server's side is noticed without a connection.
func TestIdleTunnelsAreGivenUp(t *testing.T) {
	p := newPair(t, policy.TCP, meshtest.Echo)
	p.once(t)
	p.kept(t, 1)
	p.certify(p.inside, p.server.Identity)
	p.kept(t, 0)
	p.once(t)
	p.kept(t, 1)
	p.certify(p.clientSide, p.client.Identity)
	p.kept(t, 0)
}

// Connections that come at once to where no tunnel leads yet wait for one handshake,
// not each for its own.
func TestBurstSharesAHandshake(t *testing.T) {
	p := newPair(t, policy.TCP, meshtest.Echo)
	const many = 20
	var all sync.WaitGroup
	for range many {
		all.Go(func() {
			c := p.dial()
			exchange(t, c, "x")
			_ = c.CloseWrite()
			_ = ends(t, c)
		})
	}
	all.Wait()
	p.kept(t, 1)
	if n := len(p.inside.lobby.all()); n != 1 {
		t.Errorf("%d tunnels", n)
	}
}

// From so many streams on there is another tunnel.
func TestManyStreamsShareSeveralTunnels(t *testing.T) {
	p := newPair(t, policy.TCP, meshtest.Echo)
	var all []*net.TCPConn
	for range tunnelShare + 1 {
		c := p.dial()
		exchange(t, c, "x")
		all = append(all, c)
	}
	if n := len(p.clientSide.tunnels.all()); n != 2 {
		t.Errorf("%d tunnels", n)
	}
	for _, c := range all {
		exchange(t, c, "y")
	}
}

// Bulk keeps its tunnel: who comes next gets another one.
func TestBulkKeepsItsTunnel(t *testing.T) {
	p := newPair(t, policy.TCP, func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) })
	bulk := p.dial()
	chunk := make([]byte, 1<<20)
	eventually(t, func() bool {
		if _, err := bulk.Write(chunk); err != nil {
			t.Fatal(err)
		}
		all := p.clientSide.tunnels.all()
		return len(all) == 1 && all[0].mux.Bulk()
	})
	next := p.dial()
	if _, err := next.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool {
		if _, err := bulk.Write(chunk); err != nil {
			t.Fatal(err)
		}
		return len(p.clientSide.tunnels.all()) == 2
	})
}

// An application that doesn't read stops its own connection only.
func TestSlowReaderStopsNobody(t *testing.T) {
	stall := make(chan struct{})
	p := newPair(t, policy.TCP, func(c *net.TCPConn) {
		first := make([]byte, 1)
		if _, err := io.ReadFull(c, first); err != nil {
			return
		}
		if first[0] == 's' {
			<-stall
			return
		}
		_, _ = c.Write(first)
		_, _ = io.Copy(c, c)
	})
	t.Cleanup(func() { close(stall) }) // before the application is waited for
	slow := p.dial()
	go func() { _, _ = slow.Write(bytes.Repeat([]byte("s"), 64<<20)) }() // ends with the connection
	eventually(t, func() bool {
		all := p.inside.conns.all()
		return len(all) == 1 && all[0].received.Load() > 1<<10
	})
	for range 20 {
		c := p.dial()
		exchange(t, c, "quick")
		c.Close()
	}
	slow.Close()
}

// A connection is used again only for the same port of the same pod.
func TestOtherDestinationIsAnotherTunnel(t *testing.T) {
	p := newPair(t, policy.TCP, meshtest.Echo)
	p.once(t)
	p.kept(t, 1)
	other := meshtest.Serve(t, p.server.Addresses[0], meshtest.Echo)
	exchange(t, p.connect(p.client.Addresses[0], other), "x")
	for _, open := range p.clientSide.conns.all() {
		if r := open.snapshot(time.Now()); r.Endpoint != other || r.Reused {
			t.Errorf("record %+v", r)
		}
	}
}

// A peer that doesn't know our name in ALPN gets a connection for each, as ever.
func TestPeerWithoutStreams(t *testing.T) {
	m := newTestMesh(t)
	client, server := m.pod("client"), m.pod("web")
	cert := m.ca.Issue(t, server.Identity, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	app := meshtest.Serve(t, server.Addresses[0], func(c *net.TCPConn) {
		inside := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{*cert.TLS()}, ClientAuth: tls.RequireAnyClientCert})
		_, _ = io.Copy(inside, inside)
		_ = inside.CloseWrite()
	})
	m.world.Service("web", vip(80), policy.TCP, app.Port(), server)
	p := m.start(client)
	for range 2 {
		c := m.connect(client.Addresses[0], vip(80))
		exchange(t, c, "hello")
		_ = c.CloseWrite()
		if err := ends(t, c); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, func() bool { return len(p.records.last()) == 2 })
	if r := last(t, p); r.Reused || r.Security != securityMutualTLS || p.tunnels.idle() != 0 {
		t.Errorf("record %+v", r)
	}
}

// A client with a mesh certificate and our name in ALPN, but none of a mesh's, is
// foreign TLS: it gets no streams.
func TestForeignTLSGetsNoStreams(t *testing.T) {
	p := newPair(t, policy.TCP, meshtest.Echo)
	p.mode(p.server, policy.Strict)
	c := p.meshTLS(p.connect(p.outsider(), p.app), p.client.Identity, identity.ALPNStreams)
	exchange(t, c, "x")
	if got := c.ConnectionState().NegotiatedProtocol; got != "" {
		t.Errorf("agreed on %q", got)
	}
}

// HTTP connections that the client ends leave a tunnel behind too.
func TestHTTPConnectionIsUsedAgain(t *testing.T) {
	p := newPair(t, policy.HTTP, func(c *net.TCPConn) {
		r := bufio.NewReader(c)
		for {
			if _, err := http.ReadRequest(r); err != nil {
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	for range 3 {
		c := p.dial()
		r := bufio.NewReader(c)
		for range 2 {
			if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: web\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			res, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(res.Body); err != nil || string(b) != "ok" {
				t.Fatal(string(b), err)
			}
		}
		c.Close()
		p.kept(t, 1)
	}
	if r := last(t, p.inside); !r.Reused || r.Requests != 2 || r.Protocol != "http" || r.Reason != policy.None {
		t.Errorf("record %+v", r)
	}
}

// A stream that has ended in both directions leaves its tunnel behind whatever it has
// ended for: its client may have opened the next one already.
func TestRefusedRequestLeavesItsTunnel(t *testing.T) {
	p := newPair(t, policy.HTTP, func(c *net.TCPConn) {
		r := bufio.NewReader(c)
		for {
			if _, err := http.ReadRequest(r); err != nil {
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	ask := func(request, status string) {
		t.Helper()
		c := p.dial()
		defer c.Close()
		if _, err := io.WriteString(c, request); err != nil {
			t.Fatal(err)
		}
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(c)
		if err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 "+status) {
			t.Fatalf("%q: want %s, got %q, %v", request, status, b, err)
		}
	}
	for range 100 {
		ask("GET / HTTP/1.1\nHost: web\n\n", "400")
		ask("GET / HTTP/1.1\r\nHost: web\r\n\r\n", "200")
	}
	eventually(t, func() bool {
		n := p.clientSide.tunnels.idle()
		return n > 0 && p.inside.lobby.idle() == n
	})
	if r := last(t, p.inside); !r.Reused {
		t.Errorf("record %+v", r)
	}
}

// Idle tunnels keep no proxy from ending.
func TestIdleTunnelsDontDelayTheEnd(t *testing.T) {
	m := newTestMesh(t)
	p := &pair{testMesh: m, client: m.pod("client"), server: m.pod("web"), service: vip(80)}
	p.app = meshtest.Serve(t, p.server.Addresses[0], meshtest.Echo)
	m.world.Service("web", p.service, policy.TCP, p.app.Port(), p.server)
	long := func(c *Config) { c.Drain, c.Linger = time.Minute, time.Millisecond }
	var stopServer, stopClient func()
	p.inside, stopServer = m.startStoppable(p.server, long)
	p.clientSide, stopClient = m.startStoppable(p.client, long)
	p.once(t)
	p.kept(t, 1)
	began := time.Now()
	stopServer()
	stopClient()
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("it took %v", took)
	}
}

// Unacknowledged data is what tells a vanished peer from a slow one.
func TestUnanswered(t *testing.T) {
	p := newPair(t, policy.TCP, meshtest.Echo)
	c := p.dial()
	exchange(t, c, "x")
	if unanswered(c, 0) {
		t.Error("it was acknowledged")
	}
	c.Close()
	if unanswered(c, 0) {
		t.Error("it is closed")
	}
}

// What a connection over a tunnel costs, from accept to record.
func BenchmarkReusedConnection(b *testing.B) {
	p := newPair(b, policy.TCP, meshtest.Echo)
	p.mode(p.server, policy.Strict)
	buf := make([]byte, 5)
	b.ReportAllocs()
	for b.Loop() {
		c, err := p.net.Connect(b.Context(), p.client.Addresses[0], p.service)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := c.Write([]byte("hello")); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(c, buf); err != nil {
			b.Fatal(err)
		}
		_ = c.CloseWrite()
		_, _ = c.Read(buf)
		c.Close()
	}
}

// What an idle connection over a tunnel holds is bounded, both proxies together.
func TestIdleStreamBudget(t *testing.T) {
	const (
		many   = 200
		budget = 32 << 10
	)
	p := newPair(t, policy.TCP, meshtest.Echo)
	p.once(t)
	p.kept(t, 1)
	held := func() uint64 {
		runtime.GC()
		runtime.GC() // twice: pools keep what they have for one
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	before := held()
	all := make([]*net.TCPConn, 0, many)
	for range many {
		c := p.dial()
		exchange(t, c, "x")
		all = append(all, c)
	}
	each := (int64(held()) - int64(before)) / many
	t.Logf("%d bytes for both proxies, the application and its client, for each connection", each)
	if each > budget {
		t.Errorf("%d bytes, the budget is %d", each, budget)
	}
	for _, c := range all {
		c.Close()
	}
}
