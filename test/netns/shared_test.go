package netns

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/proof"
	"podseal.io/podseal/internal/proxy"
)

const (
	// sharedPort is that of the server whose connections share a tunnel: it echoes, or
	// sends a flood when the first byte is floodPlease.
	sharedPort  = 7017
	floodPlease = "f"
	floodSize   = 32 << 20 // more than all the buffers on the way hold
	// prompt bounds an echo beside a reader that has stopped: far above what a busy
	// machine takes, far below the deadline that a connection in its queue would meet.
	prompt = 2 * time.Second
	// mailAddress is that of the service whose server speaks first.
	mailAddress = "10.96.0.11:25"
)

// crowd is a shop with the server whose connections share a tunnel.
type crowd struct {
	*shop
	at      netip.AddrPort
	flood   []byte
	flooded atomic.Int64 // how much of it the server was rid of
}

// TestSharedConnections: connections of applications that go over one mutual TLS
// connection between two proxies are one connection on the wire, and as independent
// as if each had its own.
func TestSharedConnections(t *testing.T) {
	t.Parallel()
	s := &crowd{shop: newShop(t), flood: make([]byte, floodSize)}
	s.at = netip.AddrPortFrom(s.server.v4, sharedPort)
	rand.Read(s.flood)
	serveEach(t, s.server.listen(t, s.at.String()), s.talk)
	t.Run("one on the wire", s.oneOnTheWire)
	t.Run("server first", s.serversFirst)
	t.Run("a reader stops", s.readerStops)
	t.Run("a policy changes", s.policyChanges)
	t.Run("the mode changes", s.modeChanges)
	t.Run("the network is lost", s.networkLost)
	t.Run("the proxy is restarted", s.restarted)
}

// talk is what the server does on each connection.
func (s *crowd) talk(c net.Conn) {
	first := make([]byte, 1)
	if _, err := io.ReadFull(c, first); err != nil {
		return
	}
	if string(first) != floodPlease {
		if _, err := c.Write(first); err == nil {
			io.Copy(c, c)
		}
		return
	}
	for rest := s.flood; len(rest) > 0; {
		n, err := c.Write(rest[:64<<10])
		s.flooded.Add(int64(n))
		if err != nil {
			return
		}
		rest = rest[n:]
	}
}

// connect opens so many connections from the client, the others at once when the
// first has an answer, and uses each.
func (s *crowd) connect(t *testing.T, n int) []net.Conn {
	t.Helper()
	conns, errs := make([]net.Conn, n), make([]error, n)
	one := func(i int) {
		c, err := s.client.dial(s.at.String())
		if err == nil {
			conns[i], err = c, ping(c, fmt.Sprintf("%s, says number %d", secret, i))
		}
		errs[i] = err
	}
	t.Cleanup(func() {
		for _, c := range conns {
			if c != nil {
				c.Close()
			}
		}
	})
	one(0)
	var all sync.WaitGroup
	for i := 1; i < n; i++ {
		all.Go(func() { one(i) })
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	return conns
}

// shared waits until the client has just one connection to the server's port that
// carries anything, and that carries so many.
func (s *crowd) shared(t *testing.T, to netip.AddrPort, open int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d connections share one to %s", open, to), func() error {
		_, body, err := fetchPath(s.client, "127.0.0.1:15000", "/tunnels")
		if err != nil {
			return err
		}
		var all []proxy.Tunnel
		if err := json.Unmarshal([]byte(body), &all); err != nil {
			return err
		}
		var carry []int
		for _, c := range all {
			if c.Direction == "outbound" && c.Endpoint == to && c.Open > 0 {
				carry = append(carry, c.Open)
			}
		}
		if len(carry) != 1 || carry[0] != open {
			return fmt.Errorf("they carry %v", carry)
		}
		return nil
	})
}

// one fails unless a single connection between the two pods was made while the capture
// ran, and nothing passed between them but mutual TLS.
func (s *crowd) one(t *testing.T, sum proof.Summary, to netip.AddrPort) {
	t.Helper()
	sealed(t, sum, s.client, to)
	made := 0
	for _, f := range sum.Flows {
		if ends := []netip.Addr{f.Client.Addr(), f.Server.Addr()}; !slices.Contains(ends, s.client.v4) || !slices.Contains(ends, s.server.v4) {
			continue
		}
		if f.Opened {
			made++
		}
		if f.Kind != proof.Empty && !isKind(f, proof.MeshTLS) {
			t.Errorf("not mutual TLS:\n%s", sum)
		}
	}
	if made != 1 {
		t.Errorf("%d connections were made, want one:\n%s", made, sum)
	}
}

func (s *crowd) oneOnTheWire(t *testing.T) {
	c := s.capture(t)
	conns := s.connect(t, 8)
	s.shared(t, s.at, len(conns))
	for i, c := range conns {
		if err := ping(c, fmt.Sprintf("%s, says %d again", secret, i)); err != nil {
			t.Errorf("connection %d: %v", i, err)
		}
	}
	s.one(t, c.end(t, secret), s.at)
}

// serversFirst: what the server says first comes on each connection, though no client
// has said anything.
func (s *crowd) serversFirst(t *testing.T) {
	c := s.capture(t)
	talks := []talk{open(t, s.client, mailAddress), open(t, s.client, mailAddress), open(t, s.client, mailAddress)}
	s.shared(t, netip.AddrPortFrom(s.server.v4, 25), len(talks))
	for i, c := range talks {
		if err := c.echo(secret); err != nil {
			t.Errorf("connection %d: %v", i, err)
		}
		c.Close()
	}
	s.one(t, c.end(t, esmtp, secret), netip.AddrPortFrom(s.server.v4, 25))
}

// readerStops: one that doesn't read what it has asked for holds up none of those
// beside it, and still gets all of it when it reads again.
func (s *crowd) readerStops(t *testing.T) {
	conns := s.connect(t, 4)
	slow, err := s.client.dial(s.at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	if err := errors.Join(slow.(*net.TCPConn).SetReadBuffer(64<<10), slow.SetDeadline(time.Now().Add(time.Minute))); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(slow, floodPlease); err != nil {
		t.Fatal(err)
	}
	s.shared(t, s.at, len(conns)+1)
	eventually(t, "the flood stands", func() error {
		before := s.flooded.Load()
		<-time.After(50 * time.Millisecond)
		if now := s.flooded.Load(); now == 0 || now != before {
			return fmt.Errorf("%d bytes, and it goes on", now)
		}
		return nil
	})
	var all sync.WaitGroup
	for i, c := range conns {
		all.Go(func() {
			for range 50 {
				began := time.Now()
				if err := ping(c, secret); err != nil {
					t.Errorf("connection %d: %v", i, err)
					return
				}
				if took := time.Since(began); took > prompt {
					t.Errorf("connection %d: an answer took %s", i, took)
				}
			}
		})
	}
	all.Wait()
	if n := s.flooded.Load(); n >= floodSize {
		t.Errorf("the server was rid of all %d bytes, with nobody to read them", n)
	}
	sum := sha256.New()
	if n, err := io.Copy(sum, slow); err != nil || n != floodSize || [sha256.Size]byte(sum.Sum(nil)) != sha256.Sum256(s.flood) {
		t.Errorf("%d of %d bytes, or others, %v", n, floodSize, err)
	}
}

// policyChanges: a policy that forbids one port cuts the connections to that, and no
// other; what comes then is decided with it, whatever was there before. Once it is
// gone they pass again.
// Contract 6.38, 6.39.
func (s *crowd) policyChanges(t *testing.T) {
	kept := s.connect(t, 2)
	denied := []talk{open(t, s.client, mailAddress), open(t, s.client, mailAddress)}
	s.shared(t, netip.AddrPortFrom(s.server.v4, 25), len(denied))
	s.world.Access = []*policy.AuthorizationPolicy{{
		Namespace: "shop", Name: "no-mail", Scope: policy.Namespace, Effect: policy.Deny,
		Rules: []policy.Rule{{
			From: [][]policy.Match{{{On: policy.SourcePrincipal, Values: []string{"cluster.local/ns/shop/sa/client"}}}},
			To:   [][]policy.Match{{{On: policy.DestinationPort, Values: []string{"25"}}}},
		}},
	}}
	s.tell(t)
	for i, c := range denied {
		if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("forbidden connection %d: %d bytes, %v, want a reset", i, n, err)
		}
	}
	if said, err := greet(s.client, mailAddress); err == nil || said != "" && said[0] != 0 {
		t.Errorf("greeted with %q, %v", said, err)
	}
	for i, c := range append(kept, s.connect(t, 2)...) {
		if err := ping(c, secret); err != nil {
			t.Errorf("permitted connection %d: %v", i, err)
		}
	}
	s.world.Access = nil
	s.tell(t)
	eventually(t, "the policy is gone", func() error {
		said, err := greet(s.client, mailAddress)
		if err == nil && said != greeting+"QUIT" {
			err = fmt.Errorf("greeted with %q", said)
		}
		return err
	})
	if err := ping(kept[0], secret); err != nil {
		t.Errorf("a connection from before both changes: %v", err)
	}
}

// modeChanges: STRICT leaves what is mutual TLS, and refuses what then comes without.
func (s *crowd) modeChanges(t *testing.T) {
	kept := s.connect(t, 2)
	s.demand(t)
	for i, c := range append(kept, s.connect(t, 2)...) {
		if err := ping(c, secret); err != nil {
			t.Errorf("connection %d: %v", i, err)
		}
	}
	if _, body, err := fetch(s.client, "10.96.0.10:80"); err != nil || body != page {
		t.Errorf("%q, %v", body, err)
	}
	<-s.peers
	if res, _, err := fetchPath(s.outside, "10.88.0.12:80", "/refused"); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("plaintext: want a reset, got %v, %v", err, res)
	}
}

// networkLost: two seconds without a network harm no connection, whatever it does
// then and whenever it began; one that begins over a connection to a proxy that has
// vanished is reset when a new one would have failed.
func (s *crowd) networkLost(t *testing.T) {
	const dial = 10 * time.Second // contract 2.36

	if said, err := greet(s.client, mailAddress); err != nil { // leaves an idle one behind
		t.Fatalf("%q, %v", said, err)
	}
	began := time.Now()
	conns := s.connect(t, 2)
	rest(t.Context(), dial/3)
	conns = append(conns, open(t, s.client, mailAddress)) // over another one
	rest(t.Context(), time.Until(began.Add(dial-time.Second)))
	s.link(t, false)
	for _, c := range conns {
		if _, err := io.WriteString(c, secret); err != nil {
			t.Error(err)
		}
	}
	rest(t.Context(), 2*time.Second)
	s.link(t, true)
	rest(t.Context(), time.Until(began.Add(dial*4/3+time.Second)))
	for i, c := range conns {
		if got, err := io.ReadAll(io.LimitReader(c, int64(len(secret)))); err != nil || string(got) != secret {
			t.Errorf("connection %d: %q, %v", i, got, err)
		}
		if err := ping(c, secret); err != nil {
			t.Errorf("connection %d: %v", i, err)
		}
	}
	s.link(t, false)
	defer s.link(t, true)
	began = time.Now()
	c, err := s.client.dial(s.at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(began.Add(3 * dial)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, secret); err != nil {
		t.Error(err)
	}
	n, err := c.Read(make([]byte, 1))
	if took := time.Since(began); n != 0 || !errors.Is(err, syscall.ECONNRESET) || took < dial-time.Second || took > 2*dial {
		t.Errorf("nobody is there: %d bytes, %v after %s, want a reset after %s", n, err, took, dial)
	}
}

// restarted: what is open when the server's proxy ends is reset, never ended as if it
// were complete; the connection after that meets no error, whether the one that it
// would have shared was in use or idle.
func (s *crowd) restarted(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		if said, err := greet(s.client, mailAddress); err != nil { // leaves an idle one behind
			t.Fatalf("%s: %q, %v", signal, said, err)
		}
		conns := s.connect(t, 3)
		s.shared(t, s.at, len(conns))
		run := s.proxies["webserver"]
		if err := run.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		var ended *exec.ExitError
		if err := run.Wait(); err != nil && (!errors.As(err, &ended) || signal != syscall.SIGKILL) {
			t.Errorf("%s: %v", signal, err)
		}
		for i, c := range conns {
			if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%s: open connection %d: %d bytes, %v, want a reset", signal, i, n, err)
			}
		}
		s.launch(t, s.server, "webserver")
		if said, err := greet(s.client, mailAddress); err != nil || said != greeting+"QUIT" {
			t.Errorf("%s: after an idle one: %q, %v", signal, said, err)
		}
		for _, c := range s.connect(t, 3) {
			c.Close()
		}
		if res, body, err := fetch(s.client, "10.96.0.10:80"); err != nil || res.StatusCode != http.StatusOK || body != page {
			t.Errorf("%s: %v, %q, %v", signal, res, body, err)
		}
		<-s.peers
	}
}
