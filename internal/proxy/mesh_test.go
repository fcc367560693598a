package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/meshtest"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/workload"
)

// pair is a client pod and a server pod with proxies, and an application behind
// a service.
type pair struct {
	*testMesh
	client, server     *workload.Workload
	clientSide, inside *proxy
	app                netip.AddrPort
	service            netip.AddrPort
}

func newPair(t testing.TB, proto policy.Protocol, app func(*net.TCPConn)) *pair {
	t.Helper()
	same := func(*Config) {}
	return newPairWith(t, proto, app, same, same)
}

// newPairWith changes the settings of the two proxies.
func newPairWith(t testing.TB, proto policy.Protocol, app func(*net.TCPConn), inside, outside func(*Config)) *pair {
	t.Helper()
	m := newTestMesh(t)
	p := &pair{testMesh: m, client: m.pod("client"), server: m.pod("web"), service: vip(80)}
	p.app = meshtest.Serve(t, p.server.Addresses[0], app)
	m.world.Service("web", p.service, proto, p.app.Port(), p.server)
	p.inside = m.start(p.server, inside)
	p.clientSide = m.start(p.client, outside)
	return p
}

func (p *pair) dial() *net.TCPConn { return p.connect(p.client.Addresses[0], p.service) }

// The main job: service address to application, encrypted with exactly the
// identities of both, by every kind of port and mode.
// Contract 3.14, 7.13.
func TestPairTalksMutualTLS(t *testing.T) {
	for _, proto := range []policy.Protocol{policy.TCP, policy.Auto} {
		for _, mode := range []policy.Mode{policy.Permissive, policy.Strict} {
			t.Run(proto.String()+"/"+mode.String(), func(t *testing.T) {
				p := newPair(t, proto, meshtest.Echo)
				p.mode(p.server, mode)
				c := p.dial()
				exchange(t, c, "\x00hello")
				if err := c.CloseWrite(); err != nil {
					t.Fatal(err)
				}
				if err := ends(t, c); err != nil {
					t.Fatal(err)
				}
				for side, proxy := range map[string]*proxy{"outbound": p.clientSide, "inbound": p.inside} {
					r := record(t, proxy, anyRecord)
					want := Record{
						Start: r.Start, Direction: side, Source: r.Source, Destination: r.Destination, Endpoint: p.app,
						SourceWorkload: "shop/client", SourceIdentity: "cluster.local/ns/shop/sa/client",
						DestinationWorkload: "shop/web", DestinationIdentity: "cluster.local/ns/shop/sa/web",
						Service: "web.shop.svc.cluster.local:80", Protocol: "tcp", Security: "mutual_tls", Local: r.Local,
						TLSVersion: "TLS 1.3", TLSGroup: "X25519MLKEM768", TLSCipher: r.TLSCipher, ALPN: r.ALPN, SNI: "outbound_.80_._.web.shop.svc.cluster.local",
						SourceSerial: p.clientSide.report().GetSerial(), DestinationSerial: p.inside.report().GetSerial(),
						BytesSent: 6, BytesReceived: 6, DurationMS: r.DurationMS,
					}
					if r != want {
						t.Errorf("%s record:\n%+v, want\n%+v", side, r, want)
					}
				}
			})
		}
	}
}

// HTTP through both proxies: the inbound one signs the response as the walkthrough shows.
// Contract 7.7.
func TestPairHTTP(t *testing.T) {
	p := newPair(t, policy.HTTP, func(c *net.TCPConn) {
		buf := make([]byte, 4096)
		for {
			n, err := c.Read(buf)
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nServer: nginx\r\nX-Client: "+c.RemoteAddr().String()+"\r\nX-Got: "+
				strings.ReplaceAll(string(xfcc(buf[:n])), "\r\n", "")+"\r\nContent-Length: 2\r\n\r\nhi")
		}
	})
	p.mode(p.server, policy.Strict)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) { return p.dial(), nil }}}
	res, err := client.Get("http://web/")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if got := res.Header.Get("Server"); got != "istio-envoy" { // contract 2.37
		t.Errorf("server: %s", got)
	}
	if got := res.Header.Get("X-Client"); !strings.HasPrefix(got, "127.0.0.6:") { // contract 2.29
		t.Errorf("the application sees %s as its peer", got)
	}
	if got := res.Header.Get("X-Got"); !strings.Contains(got, "By=spiffe://cluster.local/ns/shop/sa/web;Hash=") || !strings.Contains(got, ";URI=spiffe://cluster.local/ns/shop/sa/client") { // contract 2.46
		t.Errorf("X-Forwarded-Client-Cert: %s", got)
	}
	r := record(t, p.inside, anyRecord)
	if r.Protocol != "http" || r.Requests != 1 || r.Security != "mutual_tls" || r.BytesReceived == 0 || r.BytesSent == 0 {
		t.Errorf("record %+v", r)
	}
	_, metrics := get(t, p.inside, 2, "GET", "/stats/prometheus")
	for line := range strings.Lines(metrics) {
		if strings.HasPrefix(line, "istio_requests_total") {
			for _, want := range []string{`reporter="destination"`, `connection_security_policy="mutual_tls"`, `response_code="200"`, `source_principal="spiffe://cluster.local/ns/shop/sa/client"`, `destination_service="web.shop.svc.cluster.local"`} { // contract 7.8
				if !strings.Contains(line, want) {
					t.Errorf("no %s in %s", want, line)
				}
			}
			return
		}
	}
	t.Error("no istio_requests_total")
}

func xfcc(head []byte) []byte {
	for line := range bytes.Lines(head) {
		if bytes.HasPrefix(bytes.ToLower(line), []byte("x-forwarded-client-cert:")) {
			return line
		}
	}
	return nil
}

// Contract 2.40: a client outside of the mesh sees the three headers of the document.
func TestOutsideClientSeesDecorator(t *testing.T) {
	p := newPair(t, policy.HTTP, matrixApp(t))
	c := p.connect(p.outsider(), p.app)
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	head, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"server: istio-envoy\r\n", "x-envoy-upstream-service-time: ", "x-envoy-decorator-operation: web.shop.svc.cluster.local:80/*\r\n"} {
		if !strings.Contains(string(head), want) {
			t.Errorf("no %q in %q", want, head)
		}
	}
	if r := record(t, p.inside, anyRecord); r.Security != "plaintext" || r.SourceIdentity != "" || r.Requests != 1 {
		t.Errorf("record %+v", r)
	}
}

// Design D9, contract 2.7: an application that speaks first is heard at once, by
// plaintext clients and by mesh clients, and by the latter never in plaintext.
// Contract 2.6, 2.8, 3.7.
func TestServerSpeaksFirst(t *testing.T) {
	const greeting = "220 mail.example ready\r\n"
	for _, proto := range []policy.Protocol{policy.TCP, policy.Auto} {
		for _, mode := range []policy.Mode{policy.Permissive, policy.Strict, policy.Disable} {
			p := newPair(t, proto, meshtest.Greet(greeting))
			p.mode(p.server, mode)
			t.Run(proto.String()+"/"+mode.String()+"/mesh client", func(t *testing.T) {
				c := p.dial()
				expect(t, c, greeting)
				exchange(t, c, "HELO x\r\n")
				c.Close()
				want := securityMutualTLS
				if mode == policy.Disable {
					want = securityPlaintext
				}
				if r := record(t, p.inside, anyRecord); r.Security != want {
					t.Errorf("security %s, want %s", r.Security, want)
				}
			})
			if mode == policy.Strict {
				continue
			}
			t.Run(proto.String()+"/"+mode.String()+"/plaintext client", func(t *testing.T) {
				c := p.connect(p.outsider(), p.app)
				expect(t, c, greeting)
				exchange(t, c, "HELO x\r\n")
			})
		}
	}
}

// A mesh client whose ClientHello is late does not get the greeting in plaintext.
func TestGreetingIsHeldForMeshClients(t *testing.T) {
	p := newPair(t, policy.TCP, meshtest.Greet("220 hello\r\n"))
	c, err := p.net.Redirect(t.Context(), p.client.Addresses[0], addrPort(p.inside.sockets.inbound[0].Addr()), p.app)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	eventually(t, func() bool { return len(p.inside.conns.all()) == 1 })
	if err := c.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 1)); n > 0 || err == nil {
		t.Fatal("the greeting came before the ClientHello")
	}
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	inside := p.meshTLS(c, p.client.Identity, "istio")
	expect(t, inside, "220 hello\r\n")
}

// Contract B8: each direction ends by itself.
func TestHalfClose(t *testing.T) {
	tail := bytes.Repeat([]byte("tail "), 10000)
	for _, mode := range []policy.Mode{policy.Permissive, policy.Strict, policy.Disable} {
		for _, proto := range []policy.Protocol{policy.TCP, policy.Auto} {
			p := newPair(t, proto, func(c *net.TCPConn) {
				if got, err := io.ReadAll(c); err == nil && string(got) == "\x01question" {
					_, _ = c.Write(tail)
				}
			})
			p.mode(p.server, mode)
			c := p.dial()
			if _, err := io.WriteString(c, "\x01question"); err != nil {
				t.Fatal(err)
			}
			if err := c.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(c)
			if err != nil || !bytes.Equal(got, tail) {
				t.Errorf("%s %s: %d bytes, %v", mode, proto, len(got), err)
			}
		}
	}
}

// The other way round: the application ends first and still listens.
func TestHalfCloseByApplication(t *testing.T) {
	heard := make(chan string, 1)
	p := newPair(t, policy.TCP, func(c *net.TCPConn) {
		if _, err := io.WriteString(c, "bye"); err != nil || c.CloseWrite() != nil {
			return
		}
		b, _ := io.ReadAll(c)
		heard <- string(b)
	})
	c := p.dial()
	if b, err := io.ReadAll(c); err != nil || string(b) != "bye" {
		t.Fatal(string(b), err)
	}
	if _, err := io.WriteString(c, "still here"); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if got := <-heard; got != "still here" {
		t.Errorf("the application heard %q", got)
	}
}

// Much data both ways at once arrives whole.
func TestBigTransfer(t *testing.T) {
	const size = 24 << 20
	up, down := make([]byte, size), make([]byte, size)
	_, _ = rand.Read(up)
	_, _ = rand.Read(down)
	got := make(chan [32]byte, 2)
	p := newPair(t, policy.TCP, func(c *net.TCPConn) {
		var wg sync.WaitGroup
		wg.Go(func() {
			_, _ = c.Write(down)
			_ = c.CloseWrite()
		})
		h := sha256.New()
		_, _ = io.Copy(h, c)
		got <- [32]byte(h.Sum(nil))
		wg.Wait()
	})
	for _, mode := range []policy.Mode{policy.Strict, policy.Disable} {
		p.mode(p.server, mode)
		c := p.dial()
		var wg sync.WaitGroup
		wg.Go(func() {
			_, _ = c.Write(up)
			_ = c.CloseWrite()
		})
		h := sha256.New()
		if n, err := io.Copy(h, c); err != nil || n != size {
			t.Errorf("%s: %d bytes down, %v", mode, n, err)
		}
		if [32]byte(h.Sum(nil)) != sha256.Sum256(down) {
			t.Errorf("%s: other bytes came down", mode)
		}
		wg.Wait()
		if <-got != sha256.Sum256(up) {
			t.Errorf("%s: other bytes went up", mode)
		}
		security := securityMutualTLS
		if mode == policy.Disable {
			security = securityPlaintext
		}
		r := record(t, p.inside, func(r Record) bool { return r.Security == security })
		if r.BytesSent != size || r.BytesReceived != size {
			t.Errorf("%s: record says %d sent, %d received", mode, r.BytesSent, r.BytesReceived)
		}
	}
}

// A reset of one end is a reset at the other, never an orderly end.
func TestResetPropagates(t *testing.T) {
	ready := make(chan struct{})
	result := make(chan error, 1)
	p := newPair(t, policy.TCP, func(c *net.TCPConn) {
		expect(t, c, "x")
		close(ready)
		_, err := c.Read(make([]byte, 1))
		result <- err
	})
	c := p.dial()
	if _, err := io.WriteString(c, "x"); err != nil {
		t.Fatal(err)
	}
	<-ready
	reset(c)
	if err := <-result; err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the application saw %v, want a reset", err)
	}
}

// Design D11: another identity than that of the endpoint is refused, and nothing
// goes out in plaintext instead.
// Contract 3.21, 3.54, 3.56, 3.57.
func TestWrongIdentityIsRefused(t *testing.T) {
	p := newPair(t, policy.TCP, meshtest.Echo)
	p.certify(p.inside, identity.MustNew(meshtest.TrustDomain, "shop", "thief"))
	c := p.dial()
	_, _ = io.WriteString(c, "secret")
	ends(t, c)
	r := record(t, p.clientSide, withReason(policy.PeerIdentity))
	if !strings.Contains(r.Error, "thief") || r.BytesReceived != 0 {
		t.Errorf("record %+v", r)
	}
	if !strings.Contains(metricsOf(t, p.clientSide), `podseal_connections_refused_total{direction="outbound",reason="peer_identity"} 1`) {
		t.Error("the refusal is not counted")
	}
}

func metricsOf(t testing.TB, p *proxy) string {
	t.Helper()
	_, body := get(t, p, 2, "GET", "/stats/prometheus")
	return body
}

// Contract 2.22: clients of a foreign trust domain are refused though their
// chain verifies; so are chains to other roots and expired ones.
// Contract 7.14.
func TestClientsThatAreRefused(t *testing.T) {
	p := newPair(t, policy.TCP, meshtest.Echo)
	p.mode(p.server, policy.Strict)
	other := meshtest.NewCA(t, time.Now())
	now := time.Now()
	id := identity.MustNew(meshtest.TrustDomain, "shop", "client")
	tests := []struct {
		reason policy.Reason
		cred   *identity.Credential
	}{
		{policy.ForeignTrustDomain, p.ca.Issue(t, identity.MustNew("elsewhere.example", "shop", "client"), now.Add(-time.Hour), now.Add(time.Hour))},
		{policy.PeerUnverified, other.Issue(t, id, now.Add(-time.Hour), now.Add(time.Hour))},
		{policy.PeerUnverified, p.ca.Issue(t, id, now.Add(-2*time.Hour), now.Add(-time.Hour))}, // expired
		{policy.HandshakeFailed, nil}, // no certificate at all
	}
	for i, tt := range tests {
		raw := p.connect(p.outsider(), p.app)
		cfg := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"istio"}}
		if tt.cred != nil {
			cfg.Certificates = []tls.Certificate{*tt.cred.TLS()}
		}
		c := tls.Client(raw, cfg)
		_, _ = io.WriteString(c, "secret")
		if _, err := c.Read(make([]byte, 1)); !isAlert(err) {
			t.Errorf("%s: got %v, want an alert (contract 2.16)", tt.reason, err)
		}
		raw.Close()
		eventually(t, func() bool { return len(p.inside.records.last()) == i+1 })
		if r := p.inside.records.last()[i]; r.Reason != tt.reason || r.BytesReceived != 0 {
			t.Errorf("want %s: record %+v", tt.reason, r)
		}
	}
}

// The certificate of the proxy itself has expired: no new connection in either
// direction (contract 4.28), and open ones go on (contract 4.27).
func TestOwnCertificateExpired(t *testing.T) {
	p := newPair(t, policy.TCP, meshtest.Echo)
	open := p.dial()
	exchange(t, open, "before")
	now := time.Now()
	p.clientSide.creds.renewed(p.ca.Issue(t, p.client.Identity, now.Add(-2*time.Hour), now.Add(-time.Hour)), p.ca.Bundle(t))
	exchange(t, open, "after")
	ends(t, p.dial())
	if r := record(t, p.clientSide, withReason(policy.NoIdentity)); r.Error != errExpired.Error() {
		t.Errorf("record %+v", r)
	}
	if code, _ := get(t, p.clientSide, 0, "GET", "/healthz/ready"); code != http.StatusOK {
		t.Errorf("readiness %d: it isn't checked again (contract 5.44)", code)
	}
}

// Contract 4.27: a renewed certificate cuts nothing and is used from then on.
func TestRenewalDropsNothing(t *testing.T) {
	p := newPair(t, policy.TCP, meshtest.Echo)
	c := p.dial()
	exchange(t, c, "before")
	p.certify(p.clientSide, p.client.Identity)
	p.certify(p.inside, p.server.Identity)
	exchange(t, c, "after")
	exchange(t, p.dial(), "new")
}

// Design D13: a new mode cuts what it forbids, at once, and nothing else.
// Contract 2.63.
func TestPolicyChangeCutsPlaintextOnly(t *testing.T) {
	p := newPair(t, policy.TCP, meshtest.Echo)
	encrypted := p.dial()
	exchange(t, encrypted, "x")
	plain := p.connect(p.outsider(), p.app)
	exchange(t, plain, "y")
	silent := p.connect(p.outsider(), p.app)
	eventually(t, func() bool { return len(p.inside.conns.all()) == 3 })

	p.mode(p.server, policy.Strict)
	if err := ends(t, plain); err == nil {
		t.Error("the plaintext connection ended in an orderly way, want a reset")
	}
	record(t, p.inside, withReason(policy.PolicyChanged))
	exchange(t, encrypted, "still there")
	_, _ = io.WriteString(silent, "now I speak") // it was opened before, but decided only now
	ends(t, silent)
	record(t, p.inside, withReason(policy.PlaintextRefused))

	p.mode(p.server, policy.Disable) // forbids nothing
	exchange(t, encrypted, "and still")
}

// Design D13: TLS that was passed on unread has proved nothing to this proxy, and
// STRICT forbids it; a client that has proved itself goes on whatever the mode is.
func TestPolicyChangeCutsForeignTLS(t *testing.T) {
	for _, proto := range []policy.Protocol{policy.TCP, policy.Auto} {
		p := newPair(t, proto, matrixApp(t))
		p.mode(p.server, policy.Permissive)
		foreign := p.meshTLS(p.connect(p.outsider(), p.app), identity.ID{}, "http/1.1")
		if err := foreign.Handshake(); err != nil {
			t.Fatal(err)
		}
		exchange(t, foreign, "to the application itself")
		opaque := p.meshTLS(p.connect(p.outsider(), p.app), identity.ID{})
		if err := opaque.Handshake(); err != nil {
			t.Fatal(err)
		}
		p.mode(p.server, policy.Disable)
		exchange(t, foreign, "forbidden by nothing")
		p.mode(p.server, policy.Strict)
		for _, c := range []io.Reader{foreign, opaque} {
			if err := ends(t, c); err == nil {
				t.Errorf("%s: TLS that proved nothing ended in an orderly way, want a reset", proto)
			}
		}
		eventually(t, func() bool { return len(p.inside.records.last()) == 2 })
		for _, r := range p.inside.records.last() {
			if r.Reason != policy.PolicyChanged {
				t.Errorf("%s: record %+v", proto, r)
			}
		}
	}
}

// A client with a mesh certificate and no mesh ALPN (contract 2.15) that came in
// under STRICT has proved who it is: a mode that asks for less does not cut it.
func TestRelaxingCutsNothing(t *testing.T) {
	p := newPair(t, policy.HTTP, matrixApp(t))
	p.mode(p.server, policy.Strict)
	c := p.meshTLS(p.connect(p.outsider(), p.app), p.client.Identity, "http/1.1")
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []policy.Mode{policy.Strict, policy.Permissive, policy.Disable, policy.Strict} {
		p.mode(p.server, mode)
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: web\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatalf("%s: %v", mode, err)
		}
		_, _ = io.Copy(io.Discard, res.Body)
	}
}

// Design D13: when a root is taken out of the bundle, peers that depend on it are
// cut, and when one is added nobody is.
func TestBundleChange(t *testing.T) {
	p := newPair(t, policy.TCP, meshtest.Echo)
	p.mode(p.server, policy.Strict)
	c := p.dial()
	exchange(t, c, "x")
	other := meshtest.NewCA(t, time.Now())
	p.world.Mesh.BundlePEM = append(p.ca.PEM(), other.PEM()...)
	p.tell()
	exchange(t, c, "two roots")
	p.world.Mesh.BundlePEM = other.PEM()
	p.tell()
	ends(t, c)
	for _, proxy := range []*proxy{p.clientSide, p.inside} {
		eventually(t, func() bool { return len(proxy.records.last()) == 1 })
	}
	if a, b := p.clientSide.records.last()[0].Reason, p.inside.records.last()[0].Reason; a != policy.PeerUnverified && b != policy.PeerUnverified {
		t.Errorf("reasons %q and %q", a, b)
	}
}

// A pod that calls its own service goes through both of its proxy's sides
// (contract 3.69).
func TestCallToSelf(t *testing.T) {
	p := newPair(t, policy.TCP, meshtest.Echo)
	p.mode(p.server, policy.Strict)
	exchange(t, p.connect(p.server.Addresses[0], p.service), "me")
	if r := record2(t, p.inside, "inbound"); r.SourceIdentity != "cluster.local/ns/shop/sa/web" {
		t.Errorf("record %+v", r)
	}
}

func record2(t *testing.T, p *proxy, direction string) Record {
	t.Helper()
	var found Record
	eventually(t, func() bool {
		for _, c := range p.conns.all() {
			if c.direction == direction {
				found = c.snapshot(time.Now())
				return found.Security != ""
			}
		}
		return false
	})
	return found
}

// When an endpoint doesn't answer, one other is tried; when none does, the
// client sees a reset.
// Contract 3.72, 3.75.
func TestAnotherEndpointIsTried(t *testing.T) {
	m := newTestMesh(t)
	client, good, bad := m.pod("client"), m.pod("good"), m.pod("bad")
	app := meshtest.Serve(t, good.Addresses[0], meshtest.Echo)
	m.world.Service("web", vip(80), policy.TCP, app.Port(), bad, good)
	m.start(good)
	first := m.start(client, func(c *Config) { c.Random = func(int) int { return 0 } })
	exchange(t, m.connect(client.Addresses[0], vip(80)), "x") // bad is chosen first: nothing listens there
	if n := len(first.balance.open); n != 1 {
		t.Errorf("%d endpoints are counted", n)
	}
	m.world.Services[0].Endpoints[1].Ready = false
	m.tell()
	ends(t, m.connect(client.Addresses[0], vip(80)))
	record(t, first, withReason(policy.ConnectFailed))
	m.world.Services[0].Endpoints[0].Ready = false
	m.tell()
	ends(t, m.connect(client.Addresses[0], vip(80)))
	record(t, first, withReason(policy.NoEndpoint)) // contract 3.59
}

// Destinations outside of the mesh get what the application sent (contract 3.13).
func TestPassThroughIsUntouched(t *testing.T) {
	p := newPair(t, policy.TCP, meshtest.Echo)
	outside := meshtest.Serve(t, p.outsider(), meshtest.Echo)
	c := p.connect(p.client.Addresses[0], outside)
	exchange(t, c, "plain")
	c.Close()
	if r := record(t, p.clientSide, anyRecord); r.Security != "plaintext" || r.Endpoint != outside {
		t.Errorf("record %+v", r)
	}
	p.world.Mesh.Outbound = workload.RegistryOnly
	p.tell()
	ends(t, p.connect(p.client.Addresses[0], outside))
	record(t, p.clientSide, withReason(policy.RegistryOnly))
}

// Contract 2.34: a TCP client of an application that isn't there sees an end.
func TestApplicationIsNotThere(t *testing.T) {
	p := newPair(t, policy.TCP, meshtest.Echo)
	nobody := addrOf(p.server.Addresses[0], 1)
	for _, mode := range []policy.Mode{policy.Permissive, policy.Strict} {
		p.mode(p.server, mode)
		c := p.connect(p.client.Addresses[0], nobody)
		_, _ = io.WriteString(c, "\x00anybody?")
		ends(t, c)
		record(t, p.inside, withReason(policy.ConnectFailed))
	}
	p.mode(p.server, policy.Permissive)
	ends(t, p.connect(p.outsider(), nobody)) // it says nothing, and waits
}
