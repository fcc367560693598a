package tlsconn

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net/netip"
	"sync"
	"testing"
	"time"

	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/meshtest"
)

var (
	webID  = identity.MustNew("cluster.local", "shop", "web")
	shopID = identity.MustNew("cluster.local", "shop", "client")
)

// couple is a client and a server of one mesh that meet again and again.
type couple struct {
	tb             testing.TB
	ca             *meshtest.CA
	start          time.Time
	mu             sync.Mutex
	past           time.Duration // since the start
	client, server *identity.Snapshot
	clients        *Pool
	servers        *Pool
	peer           Peer
	alpn, offered  []string
	change         func(cc, sc *tls.Config)
}

func newCouple(tb testing.TB) *couple {
	tb.Helper()
	now := time.Now().Truncate(time.Second)
	ca := meshtest.NewCA(tb, now)
	return &couple{
		tb: tb, ca: ca, start: now, clients: &Pool{}, servers: &Pool{}, alpn: []string{identity.ALPNIstio},
		client: ca.Snapshot(tb, shopID, now), server: ca.Snapshot(tb, webID, now),
		peer:   Peer{Endpoint: netip.MustParseAddrPort("192.0.2.1:80"), Want: webID},
		change: func(*tls.Config, *tls.Config) {},
	}
}

func (c *couple) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.start.Add(c.past)
}

func (c *couple) configs() (cc, sc *tls.Config) {
	cc = identity.ClientConfig(c.client, c.peer.Want, "outbound_.80_._.web", c.alpn, c.now)
	c.clients.Resume(cc, c.client, c.peer)
	sc = identity.ServerConfig(c.server, c.offered, c.now)
	c.servers.Issue(sc, c.server)
	c.change(cc, sc)
	return cc, sc
}

// shake is a handshake, of which it returns both ends.
func (c *couple) shake() (client, server *Conn, err error) {
	c.tb.Helper()
	a, b := tcpPair(c.tb)
	cc, sc := c.configs()
	done := make(chan error, 1)
	go func() {
		var err error
		client, err = c.clients.Client(a, cc, time.Now().Add(10*time.Second))
		if err != nil {
			a.Close()
		}
		done <- err
	}()
	server, err = c.servers.Server(b, nil, sc, time.Now().Add(10*time.Second))
	if err != nil {
		b.Close()
	}
	return client, server, errors.Join(err, <-done)
}

// meet is a connection that carries bytes both ways. It reports whether it resumed a
// session.
func (c *couple) meet() bool {
	c.tb.Helper()
	client, server, err := c.shake()
	if err != nil {
		c.tb.Fatal(err)
	}
	c.talk(client, server)
	if client.state.DidResume != server.state.DidResume {
		c.tb.Error("only one end knows that a session was resumed")
	}
	if id, err := identity.PeerID(server.state); err != nil || id != c.client.Credential.ID {
		c.tb.Errorf("the client is %v, %v", id, err)
	}
	if id, err := identity.PeerID(client.state); err != nil || id != c.server.Credential.ID {
		c.tb.Errorf("the server is %v, %v", id, err)
	}
	return client.state.DidResume
}

func (c *couple) talk(client, server *Conn) {
	c.tb.Helper()
	for range 3 {
		oneWay(c.tb, client, server)
		oneWay(c.tb, server, client)
	}
	if err := errors.Join(client.CloseWrite(), server.CloseWrite()); err != nil {
		c.tb.Fatal(err)
	}
	for _, end := range []*Conn{client, server} {
		if rest, err := io.ReadAll(end); err != nil || len(rest) > 0 {
			c.tb.Errorf("%d bytes, %v", len(rest), err)
		}
	}
}

func oneWay(tb testing.TB, from, to io.ReadWriter) {
	tb.Helper()
	if _, err := from.Write([]byte("hello")); err != nil {
		tb.Fatal(err)
	}
	got := make([]byte, 5)
	if _, err := io.ReadFull(to, got); err != nil || string(got) != "hello" {
		tb.Fatalf("%q, %v", got, err)
	}
}

func (c *couple) expect(what string, resumed bool) {
	c.tb.Helper()
	if got := c.meet(); got != resumed {
		c.tb.Errorf("%s: resumed %v, want %v", what, got, resumed)
	}
}

// TestResumption: the second handshake resumes the session of the first one, under
// each ALPN that there is.
func TestResumption(t *testing.T) {
	for _, alpn := range []string{identity.ALPNIstio, identity.ALPNStreams, "h2"} {
		t.Run(alpn, func(t *testing.T) {
			c := newCouple(t)
			c.alpn, c.offered = []string{alpn}, []string{alpn}
			c.expect("first", false)
			for range 5 {
				c.expect("again", true)
			}
		})
	}
}

// TestForwardSecrecy: a resumed handshake exchanges keys like any other.
func TestForwardSecrecy(t *testing.T) {
	c := newCouple(t)
	c.expect("first", false)
	client, server, err := c.shake()
	if err != nil {
		t.Fatal(err)
	}
	c.talk(client, server)
	for _, s := range []tls.ConnectionState{client.state, server.state} {
		if !s.DidResume || s.CurveID != tls.X25519MLKEM768 {
			t.Errorf("resumed %v with %v", s.DidResume, s.CurveID)
		}
	}
}

// TestWhatEndsSessions: whatever is not as it was makes the next handshake a full
// one, and none fails for it. After that sessions are resumed again.
func TestWhatEndsSessions(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*couple)
		other  bool // not about the session: that is still there
	}{
		"the client's certificate": {change: func(c *couple) {
			c.client = c.with(c.client, func(s *identity.Snapshot) { s.Credential = c.issue(shopID) })
		}},
		"the server's certificate": {change: func(c *couple) {
			c.server = c.with(c.server, func(s *identity.Snapshot) { s.Credential = c.issue(webID) })
		}},
		"the client's bundle": {change: func(c *couple) {
			c.client = c.with(c.client, func(s *identity.Snapshot) { s.Bundle = c.ca.Bundle(c.tb, meshtest.NewCA(c.tb, c.start)) })
		}},
		"the server's bundle": {change: func(c *couple) {
			c.server = c.with(c.server, func(s *identity.Snapshot) { s.Bundle = c.ca.Bundle(c.tb, meshtest.NewCA(c.tb, c.start)) })
		}},
		"the client's trust domains": {change: func(c *couple) {
			c.client = c.with(c.client, func(s *identity.Snapshot) { s.TrustDomains = []string{"cluster.local", "more.example"} })
		}},
		"the server's trust domains": {change: func(c *couple) {
			c.server = c.with(c.server, func(s *identity.Snapshot) { s.TrustDomains = []string{"cluster.local", "more.example"} })
		}},
		"what the client revokes": {change: func(c *couple) { c.client = c.revoking(c.client) }},
		"what the server revokes": {change: func(c *couple) { c.server = c.revoking(c.server) }},
		"another endpoint":        {change: func(c *couple) { c.peer.Endpoint = netip.MustParseAddrPort("192.0.2.2:80") }},
		"another name in ALPN":    {change: func(c *couple) { c.alpn = []string{"istio", "h2"} }},
		"other identities":        {change: func(c *couple) { c.peer.Accept = webID.URI() }},
		"a server that restarts":  {change: func(c *couple) { c.servers = &Pool{} }},
		"the session is old":      {change: func(c *couple) { c.past += ticketLife }},
		"the clock goes back":     {change: func(c *couple) { c.past -= time.Minute }},
		"the server makes no tickets": {change: func(c *couple) {
			c.change = func(_, sc *tls.Config) { sc.GetConfigForClient = nil }
			c.expect("without tickets", false)
			c.change = func(_, _ *tls.Config) {}
			c.past += ticketLife
		}},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCouple(t)
			c.past = 2 * time.Minute
			c.expect("first", false)
			c.expect("second", true)
			tt.change(c)
			c.expect("after the change", false)
			c.expect("after that", true)
		})
	}
}

func (c *couple) with(s *identity.Snapshot, change func(*identity.Snapshot)) *identity.Snapshot {
	fresh := &identity.Snapshot{Credential: s.Credential, Bundle: s.Bundle, TrustDomains: s.TrustDomains}
	change(fresh)
	return fresh
}

// revoking is a snapshot with a list in force that revokes these.
func (c *couple) revoking(s *identity.Snapshot, revoked ...*identity.Credential) *identity.Snapshot {
	c.tb.Helper()
	lists, err := identity.ParseRevocations(c.ca.Revoke(c.tb, 1, c.start.Add(-time.Hour), c.start.Add(time.Hour), revoked...))
	if err != nil {
		c.tb.Fatal(err)
	}
	return c.with(s, func(s *identity.Snapshot) { s.Bundle = s.Bundle.WithRevocations(lists) })
}

func (c *couple) issue(id identity.ID) *identity.Credential {
	return c.ca.Issue(c.tb, id, c.start.Add(-time.Hour), c.start.Add(time.Hour))
}

// TestRevokedPeersDontResume: whose certificate was revoked after its session began is
// refused, on either side.
func TestRevokedPeersDontResume(t *testing.T) {
	for name, revoke := range map[string]func(*couple){
		"the client": func(c *couple) { c.server = c.revoking(c.server, c.client.Credential) },
		"the server": func(c *couple) { c.client = c.revoking(c.client, c.server.Credential) },
	} {
		c := newCouple(t)
		c.expect("first", false)
		c.expect("second", true)
		revoke(c)
		if _, _, err := c.shake(); !errors.Is(err, identity.ErrRevoked) {
			t.Errorf("%s is revoked: %v", name, err)
		}
	}
}

// TestSessionsEndWithCertificates: nobody resumes a session when its own or its
// peer's certificate has expired, or is about to.
func TestSessionsEndWithCertificates(t *testing.T) {
	for _, ours := range []bool{true, false} {
		c := newCouple(t)
		short := func(id identity.ID) *identity.Credential {
			return c.ca.Issue(t, id, c.start.Add(-time.Hour), c.start.Add(5*time.Minute))
		}
		if ours {
			c.client.Credential = short(shopID)
		} else {
			c.server.Credential = short(webID)
		}
		c.expect("first", false)
		c.past = 5*time.Minute - ticketMargin - time.Second
		c.expect("while it is valid", true)
		c.past = 5*time.Minute - ticketMargin
		c.expect("shortly before it expires", false)
		c.past = 5*time.Minute + time.Second
		if client, _, err := c.shake(); err == nil {
			t.Errorf("after it has expired: resumed %v", client.state.DidResume)
		}
	}
}

// TestResumedPeersAreVerified: what a session says of a peer is held against what is
// in force, in the handshake itself. The snapshots stay the same values here, which
// they never do, so that nothing else can refuse the session.
func TestResumedPeersAreVerified(t *testing.T) {
	t.Run("the client's root was removed", func(t *testing.T) {
		c := newCouple(t)
		c.expect("first", false)
		c.server.Bundle = meshtest.NewCA(t, c.start).Bundle(t)
		_, _, err := c.shake()
		if _, ok := errors.AsType[x509.UnknownAuthorityError](err); !ok {
			t.Errorf("%v", err)
		}
	})
	t.Run("the client is of no trust domain of ours", func(t *testing.T) {
		c := newCouple(t)
		c.expect("first", false)
		c.server.TrustDomains = []string{"elsewhere.example"}
		if _, _, err := c.shake(); !errors.Is(err, identity.ErrTrustDomain) {
			t.Errorf("%v", err)
		}
	})
	for name, change := range map[string]func(*couple){
		"the server's root was removed":            func(c *couple) { c.client.Bundle = meshtest.NewCA(t, c.start).Bundle(t) },
		"the server is of no trust domain of ours": func(c *couple) { c.client.TrustDomains = []string{"elsewhere.example"} },
		"the server is not the wanted one":         nil,
	} {
		t.Run(name, func(t *testing.T) {
			c := newCouple(t)
			c.expect("first", false)
			if change == nil { // the key names what is wanted: so it takes a key that lies
				other := identity.MustNew("cluster.local", "shop", "other")
				c.change = func(cc, _ *tls.Config) {
					cc.VerifyConnection = identity.ClientConfig(c.client, other, "x", nil, c.now).VerifyConnection
				}
			} else {
				change(c)
			}
			client, _, err := c.shake()
			if err == nil {
				t.Errorf("resumed %v", client.state.DidResume)
			}
			if len(c.clients.sessions.known) > 0 && change == nil {
				t.Error("what has failed would be tried again")
			}
		})
	}
}

// TestOneAsks: of many handshakes at a time one asks for a ticket, and the others
// have nothing to do with it.
func TestOneAsks(t *testing.T) {
	c := newCouple(t)
	type pair struct{ client, server *Conn }
	var pairs []pair
	for range 5 {
		client, server, err := c.shake()
		if err != nil {
			t.Fatal(err)
		}
		pairs = append(pairs, pair{client, server})
	}
	for i, p := range pairs {
		if asks, gave := p.client.records.in.ask.Load() != nil, p.server.records.out.keys.seq > 0; asks != (i == 0) || gave != (i == 0) {
			t.Errorf("connection %d asks: %v, gets: %v", i, asks, gave)
		}
	}
	for _, p := range pairs {
		c.talk(p.client, p.server)
		if p.client.records.in.ask.Load() != nil {
			t.Error("crypto/tls is held after the ticket")
		}
	}
	c.expect("then", true)
}

// TestWhoAsksInVain: a server that says something without a ticket, an end, a quiet
// connection or a failure let go of what waits for one.
func TestWhoAsksInVain(t *testing.T) {
	silent := func(_, sc *tls.Config) { sc.GetConfigForClient = nil }
	t.Run("data", func(t *testing.T) {
		c := newCouple(t)
		c.change = silent
		client, server, err := c.shake()
		if err != nil {
			t.Fatal(err)
		}
		oneWay(t, server, client)
		if client.records.in.ask.Load() != nil {
			t.Error("it waits")
		}
		client, _, err = c.shake()
		if err != nil || client.records.in.ask.Load() != nil {
			t.Errorf("the next one asks again; %v", err)
		}
	})
	t.Run("quiet", func(t *testing.T) {
		c := newCouple(t)
		client, _, err := c.shake()
		if err != nil {
			t.Fatal(err)
		}
		client.Rest()
		if client.records.in.ask.Load() != nil || len(c.clients.sessions.known) != 0 {
			t.Error("it waits")
		}
		c.expect("who asks next", false)
		c.expect("then", true)
	})
	t.Run("bad record", func(t *testing.T) {
		c := newCouple(t)
		c.change = silent
		client, server, err := c.shake()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := server.raw.Write([]byte{typeData, 3, 3, 0, 20, 19: 0, 24: 0}); err != nil {
			t.Fatal(err)
		}
		var bad *BadRecordError
		if _, err := client.Read(make([]byte, 1)); !errors.As(err, &bad) {
			t.Errorf("%v", err)
		}
		if client.records.in.ask.Load() != nil || len(c.clients.sessions.known) != 0 {
			t.Error("it waits")
		}
	})
	t.Run("failure", func(t *testing.T) {
		c := newCouple(t)
		c.peer.Want = shopID
		if _, _, err := c.shake(); !errors.Is(err, identity.ErrPeerIdentity) {
			t.Errorf("%v", err)
		}
		if len(c.clients.sessions.known) != 0 {
			t.Error("it waits")
		}
	})
	t.Run("silence", func(t *testing.T) {
		c := newCouple(t)
		if _, _, err := c.shake(); err != nil {
			t.Fatal(err)
		}
		c.past += askPatience
		c.expect("who asks next", false)
		c.expect("then", true)
	})
}

// TestSessionsAreBounded: in number, and none is kept that holds no longer.
func TestSessionsAreBounded(t *testing.T) {
	var s sessions
	snap, now := &identity.Snapshot{}, time.Now()
	key := func(n int) sessionKey {
		return sessionKey{peer: Peer{Endpoint: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}), 80)}}
	}
	for n := range 3 * maxSessions {
		now = now.Add(time.Millisecond)
		if _, ours := s.find(key(n), snap, now); !ours {
			t.Fatal("known without having been asked for")
		}
		if _, ours := s.find(key(n), snap, now); ours {
			t.Fatal("asked for twice")
		}
		if len(s.known) > maxSessions {
			t.Fatalf("%d sessions", len(s.known))
		}
	}
	if _, there := s.known[key(2*maxSessions)]; !there {
		t.Error("a newer one has gone before an older one")
	}
	s.find(key(0), snap, now.Add(time.Hour))
	if len(s.known) != 1 {
		t.Errorf("%d are kept that hold no longer", len(s.known)-1)
	}
	s.find(key(1), &identity.Snapshot{}, now)
	if len(s.known) != 1 {
		t.Errorf("%d are of another snapshot", len(s.known)-1)
	}
}
