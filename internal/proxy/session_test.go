package proxy

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"podseal.io/podseal/internal/meshtest"
	"podseal.io/podseal/internal/policy"
)

// busy leaves a connection open that has carried something, over a tunnel that serves
// nobody else, and returns what both sides know of it.
func (p *pair) busy(t testing.TB) (client, server Record) {
	t.Helper()
	began := [2]uint64{p.clientSide.conns.work().total, p.inside.conns.work().total}
	exchange(t, p.dial(), "hello\n")
	for _, t := range p.clientSide.tunnels.all() {
		t.mux.Leave()
	}
	newest := func(side *proxy, before uint64) (r Record) {
		eventually(t, func() bool { return side.conns.work().total > before })
		for _, c := range side.conns.all() {
			if s := c.snapshot(time.Now()); !s.Start.Before(r.Start) {
				r = s
			}
		}
		return r
	}
	return newest(p.clientSide, began[0]), newest(p.inside, began[1])
}

// TestSessionIsResumed: a connection that finds no tunnel resumes a session, and its
// records say so and are otherwise like those of a full handshake. Contract 2.25.
func TestSessionIsResumed(t *testing.T) {
	for _, proto := range []policy.Protocol{policy.TCP, policy.Auto} {
		t.Run(proto.String(), func(t *testing.T) {
			p := newPair(t, proto, meshtest.Echo)
			p.mode(p.server, policy.Strict)
			firstOut, firstIn := p.busy(t)
			for range 3 {
				out, in := p.busy(t)
				for _, r := range [][2]Record{{firstOut, out}, {firstIn, in}} {
					was, is := r[0], r[1]
					if was.Resumed || !is.Resumed || is.Reused || is.Security != securityMutualTLS || is.Reason != policy.None {
						t.Errorf("first %+v, then %+v", was, is)
					}
					if is.SourceIdentity != p.client.Identity.String() || is.DestinationIdentity != p.server.Identity.String() || is.TLSGroup != "X25519MLKEM768" ||
						is.SourceSerial != was.SourceSerial || is.DestinationSerial != was.DestinationSerial || is.SNI != was.SNI || is.ALPN != was.ALPN || is.TLSVersion != was.TLSVersion {
						t.Errorf("first %+v, then %+v", was, is)
					}
				}
			}
		})
	}
}

// TestSessionsEndWithWhatTheyCameFrom: after a change on either side the next
// handshake is a full one, without an error, and those after it are resumed again.
func TestSessionsEndWithWhatTheyCameFrom(t *testing.T) {
	for name, change := range map[string]func(*pair){
		"the client's certificate": func(p *pair) { p.certify(p.clientSide, p.client.Identity) },
		"the server's certificate": func(p *pair) { p.certify(p.inside, p.server.Identity) },
		"the roots": func(p *pair) {
			p.world.Mesh.BundlePEM = append(p.ca.PEM(), meshtest.NewCA(p.t, time.Now()).PEM()...)
			p.tell()
		},
		"the trust domains": func(p *pair) {
			p.world.Mesh.TrustDomains = append(p.world.Mesh.TrustDomains, "more.example")
			p.tell()
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, policy.TCP, meshtest.Echo)
			p.busy(t)
			if out, in := p.busy(t); !out.Resumed || !in.Resumed {
				t.Fatalf("not resumed: %+v, %+v", out, in)
			}
			change(p)
			if out, in := p.busy(t); out.Resumed || in.Resumed || out.Reused {
				t.Errorf("after the change: %+v, %+v", out, in)
			}
			if out, in := p.busy(t); !out.Resumed || !in.Resumed {
				t.Errorf("after that: %+v, %+v", out, in)
			}
		})
	}
}

// TestRemovedRootEndsSessions: who is trusted no longer can't come back by a session.
func TestRemovedRootEndsSessions(t *testing.T) {
	p := newPair(t, policy.TCP, meshtest.Echo)
	p.mode(p.server, policy.Strict)
	p.busy(t)
	p.busy(t)
	p.world.Mesh.BundlePEM = meshtest.NewCA(t, time.Now()).PEM()
	p.tell()
	if err := ends(t, p.dial()); err == nil {
		t.Error("the application sees an end as if all were well")
	}
	eventually(t, func() bool { return p.clientSide.conns.work().open == 0 && p.inside.conns.work().open == 0 })
	if r := last(t, p.clientSide); r.Resumed || r.Reason != policy.PeerUnverified {
		t.Errorf("record %+v", r)
	}
}

// TestStandardClientsResume: a client of another make gets tickets and resumes, over
// HTTP/2 as well, and needs none of it. Contract 2.25.
func TestStandardClientsResume(t *testing.T) {
	t.Run("TCP", func(t *testing.T) {
		p := newPair(t, policy.TCP, meshtest.Echo)
		p.mode(p.server, policy.Strict)
		cfg := p.standard("istio")
		for i := range 3 {
			c := tls.Client(p.connect(p.outsider(), p.app), cfg)
			exchange(t, c, "hello\n")
			if resumed := c.ConnectionState().DidResume; resumed != (i > 0) {
				t.Errorf("connection %d: resumed %v", i, resumed)
			}
			if err := c.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if err := ends(t, c); err != nil {
				t.Fatal(err)
			}
			r := last(t, p.inside)
			if r.Resumed != (i > 0) || r.SourceIdentity != p.client.Identity.String() || r.BytesReceived != 6 || r.BytesSent != 6 {
				t.Errorf("connection %d: record %+v", i, r)
			}
		}
	})
	t.Run("HTTP/2", func(t *testing.T) {
		p := newPair(t, policy.HTTP, http2App(t, echoHead))
		p.mode(p.server, policy.Strict)
		cfg := p.standard("istio", "h2")
		for i := range 3 {
			only := &http.Protocols{}
			only.SetHTTP2(true)
			tr := &http.Transport{Protocols: only, DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				c := tls.Client(p.connect(p.outsider(), p.app), cfg)
				return c, c.HandshakeContext(ctx)
			}}
			res, err := (&http.Client{Transport: tr, Timeout: 20 * time.Second}).Get("https://web/x")
			if err != nil {
				t.Fatal(err)
			}
			_, err = io.Copy(io.Discard, res.Body)
			if err := errors.Join(err, res.Body.Close()); err != nil || res.TLS.DidResume != (i > 0) {
				t.Errorf("connection %d: %v, resumed %v", i, err, res.TLS.DidResume)
			}
			tr.CloseIdleConnections()
		}
	})
	t.Run("TLS 1.2", func(t *testing.T) {
		p := newPair(t, policy.TCP, meshtest.Echo)
		cfg := p.standard("istio")
		cfg.MaxVersion = tls.VersionTLS12
		for range 2 {
			c := tls.Client(p.connect(p.outsider(), p.app), cfg)
			exchange(t, c, "hello\n")
			if c.ConnectionState().DidResume {
				t.Error("resumed")
			}
		}
	})
}

// standard is a client of the mesh that keeps sessions as it likes.
func (p *pair) standard(alpn ...string) *tls.Config {
	now := time.Now()
	return &tls.Config{
		InsecureSkipVerify: true, NextProtos: alpn, ServerName: "outbound_.80_._.web.shop.svc.cluster.local", ClientSessionCache: tls.NewLRUClientSessionCache(1),
		Certificates: []tls.Certificate{*p.ca.Issue(p.t, p.client.Identity, now.Add(-time.Hour), now.Add(time.Hour)).TLS()},
	}
}

// TestStandardServersAreResumed: a server of another make, which gives out tickets of
// its own, is resumed while it takes them; when it doesn't any more, or was another
// all the time, nothing fails. Contract 2.25.
func TestStandardServersAreResumed(t *testing.T) {
	for name, tt := range map[string]struct {
		change  func(*tls.Config)
		resumed []bool
	}{
		"with tickets":    {func(*tls.Config) {}, []bool{false, true, true}},
		"without tickets": {func(c *tls.Config) { c.SessionTicketsDisabled = true }, []bool{false, false, false}},
		"TLS 1.2":         {func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }, []bool{false, false, false}},
		"with other keys each time": {func(c *tls.Config) {
			c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
				fresh := &tls.Config{Certificates: c.Certificates, ClientAuth: c.ClientAuth}
				fresh.SetSessionTicketKeys([][32]byte{sha256.Sum256([]byte(hello.Conn.RemoteAddr().String()))})
				return fresh, nil
			}
		}, []bool{false, false, false}},
	} {
		t.Run(name, func(t *testing.T) {
			m := newTestMesh(t)
			client, server := m.pod("client"), m.pod("web")
			cert := m.ca.Issue(t, server.Identity, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
			cfg := &tls.Config{Certificates: []tls.Certificate{*cert.TLS()}, ClientAuth: tls.RequireAnyClientCert}
			tt.change(cfg)
			app := meshtest.Serve(t, server.Addresses[0], func(c *net.TCPConn) {
				inside := tls.Server(c, cfg)
				_, _ = io.Copy(inside, inside)
				_ = inside.CloseWrite()
			})
			m.world.Service("web", vip(80), policy.TCP, app.Port(), server)
			p := m.start(client)
			for i := range 3 {
				c := m.connect(client.Addresses[0], vip(80))
				exchange(t, c, "hello")
				_ = c.CloseWrite()
				if err := ends(t, c); err != nil {
					t.Fatal(err)
				}
				eventually(t, func() bool { return len(p.records.last()) == i+1 })
				if r := last(t, p); r.Security != securityMutualTLS || r.Reason != policy.None || r.Resumed != tt.resumed[i] {
					t.Errorf("connection %d: record %+v", i, r)
				}
			}
		})
	}
}
