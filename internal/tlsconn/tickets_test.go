package tlsconn

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"podseal.io/podseal/internal/identity"
)

// TestResumptionHasAnEnd: each resumed session goes back to a full handshake that is
// no older than ticketLife, however many there were in between.
func TestResumptionHasAnEnd(t *testing.T) {
	c := newCouple(t)
	cache := tls.NewLRUClientSessionCache(1) // takes each new ticket, unlike ours
	meet := func() bool {
		a, b := tcpPair(t)
		cc := identity.ClientConfig(c.client, webID, "x", nil, c.now)
		cc.SessionTicketsDisabled, cc.ClientSessionCache = false, cache
		_, sc := c.configs()
		client := tls.Client(a, cc)
		done := make(chan error, 1)
		go func() {
			_, err := io.ReadAll(client)
			done <- err
		}()
		server, err := c.servers.Server(b, nil, sc, time.Now().Add(10*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(server.CloseWrite(), <-done); err != nil {
			t.Fatal(err)
		}
		return server.state.DidResume
	}
	if meet() {
		t.Error("the first one is resumed")
	}
	for range 3 {
		if c.past += ticketLife / 4; !meet() {
			t.Errorf("not resumed after %v", c.past)
		}
	}
	if c.past += ticketLife / 4; meet() {
		t.Error("still resumed")
	}
	if c.past += ticketLife / 4; !meet() {
		t.Error("not resumed after the next full one")
	}
}

// TestNoSessionsOfOldVersions: TLS 1.2 has no tickets, from neither side.
func TestNoSessionsOfOldVersions(t *testing.T) {
	c := newCouple(t)
	c.change = func(cc, _ *tls.Config) { cc.MaxVersion = tls.VersionTLS12 }
	for range 3 {
		c.expect("TLS 1.2", false)
	}
	c = newCouple(t)
	cache := tls.NewLRUClientSessionCache(4)
	c.change = func(cc, _ *tls.Config) {
		cc.SessionTicketsDisabled, cc.ClientSessionCache, cc.MaxVersion = false, cache, tls.VersionTLS12
	}
	for range 2 {
		c.expect("a client that wants a ticket", false)
	}
	if _, there := cache.Get("outbound_.80_._.web"); there {
		t.Error("a ticket of TLS 1.2 was given out")
	}
}

// TestAnotherTicket: who resumes gets another ticket for the next time, but not a
// client of ours, which goes on with the one that it has.
func TestAnotherTicket(t *testing.T) {
	for alpn, tickets := range map[string]uint64{identity.ALPNIstio: 1, identity.ALPNStreams: 0} {
		c := newCouple(t)
		c.alpn, c.offered = []string{alpn}, []string{alpn}
		c.expect("first", false)
		client, server, err := c.shake()
		if err != nil {
			t.Fatal(err)
		}
		if !server.state.DidResume || server.records.out.keys.seq != tickets {
			t.Errorf("%s: resumed %v, %d tickets", alpn, server.state.DidResume, server.records.out.keys.seq)
		}
		c.talk(client, server)
	}
}

// TestTicketsOfOthers: what a server of another make sends first is followed as
// crypto/tls would: several tickets, tickets in pieces, a change of keys behind them.
func TestTicketsOfOthers(t *testing.T) {
	c := newCouple(t)
	client, server, err := c.shake()
	if err != nil {
		t.Fatal(err)
	}
	ticket := func(lifetime byte, label string) []byte {
		body := []byte{0, 0, 0, lifetime, 1, 2, 3, 4, 1, 9, 0, byte(len(label))}
		body = append(append(body, label...), 0, 0)
		return append([]byte{messageTicket, 0, 0, byte(len(body))}, body...)
	}
	for name, tt := range map[string]struct {
		records [][]byte
		kept    bool
	}{
		"two in one record":       {[][]byte{append(ticket(9, "one"), ticket(9, "two")...)}, true},
		"two records":             {[][]byte{ticket(9, "one"), ticket(9, "two")}, true},
		"in pieces":               {[][]byte{ticket(9, "one")[:1], ticket(9, "one")[1:7], ticket(9, "one")[7:]}, true},
		"in too many pieces":      {[][]byte{ticket(9, "one")[:1], ticket(9, "one")[1:2], ticket(9, "one")[2:3], ticket(9, "one")[3:9], ticket(9, "one")[9:]}, false},
		"for no time":             {[][]byte{ticket(0, "one")}, false},
		"and a KeyUpdate":         {[][]byte{append(ticket(9, "one"), messageKeyUpdate, 0, 0, 1, 1)}, false},
		"after a KeyUpdate":       {[][]byte{{messageKeyUpdate, 0, 0, 1, 0}, ticket(9, "one")}, false},
		"without a name":          {[][]byte{ticket(9, "")}, false},
		"not made as they should": {[][]byte{{messageTicket, 0, 0, 3, 1, 2, 3}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCouple(t)
			c.change = func(_, sc *tls.Config) { sc.GetConfigForClient = nil }
			client, server, err := c.shake()
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range tt.records {
				if err := server.records.out.message(typeHandshake, r); err != nil {
					t.Fatal(err)
				}
				if len(r) >= 5 && r[len(r)-5] == messageKeyUpdate {
					if err := server.records.out.keys.update(); err != nil {
						t.Fatal(err)
					}
				}
			}
			c.talk(client, server)
			found := 0
			for _, s := range c.clients.sessions.known {
				if s.state != nil {
					found++
				}
			}
			if (found == 1) != tt.kept {
				t.Errorf("%d sessions", found)
			}
			if client.records.in.ask.Load() != nil {
				t.Error("crypto/tls is held")
			}
			c.expect("the server knows nothing of them", false)
		})
	}
	c.talk(client, server)
}

// TestLongChains: a client whose certificates are too long for a ticket gets none
// that is worth anything, and is served.
func TestLongChains(t *testing.T) {
	c := newCouple(t)
	long := *c.client.Credential.TLS()
	for len(long.Certificate) < 30 {
		long.Certificate = append(long.Certificate, c.issue(identity.MustNew("cluster.local", "shop", strings.Repeat("x", 60))).TLS().Certificate[0])
	}
	c.change = func(cc, _ *tls.Config) {
		cc.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &long, nil }
	}
	for range 3 {
		c.expect("a long chain", false)
	}
}

// FuzzUnwrap gives a server tickets that it may or may not have made: it passes over
// what it has not, and never fails.
func FuzzUnwrap(f *testing.F) {
	c := newCouple(f)
	var given []byte
	i := &issue{now: c.now, own: c.start.Add(time.Hour), sealer: c.servers.tickets.current(c.server, c.start)}
	_, sc := c.configs()
	sc.GetConfigForClient, sc.SessionTicketsDisabled = nil, false
	sc.WrapSession = func(cs tls.ConnectionState, s *tls.SessionState) ([]byte, error) {
		var err error
		given, err = i.wrap(cs, s)
		return given, err
	}
	c.change = func(_, other *tls.Config) {
		other.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return sc, nil }
	}
	sc.KeyLogWriter = io.Discard
	a, b := tcpPair(f)
	cc := identity.ClientConfig(c.client, webID, "x", nil, c.now)
	cc.SessionTicketsDisabled, cc.ClientSessionCache = false, tls.NewLRUClientSessionCache(1)
	done := make(chan error, 1)
	go func() { done <- tls.Client(a, cc).Handshake() }()
	if err := errors.Join(tls.Server(b, sc).Handshake(), <-done); err != nil {
		f.Fatal(err)
	}
	if s, err := i.unwrap(given, tls.ConnectionState{}); s == nil || err != nil {
		f.Fatal(s, err)
	}
	f.Add(given)
	f.Add([]byte{0})
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{1}, maxTicketLen+1))
	f.Fuzz(func(t *testing.T, ticket []byte) {
		if s, err := i.unwrap(ticket, tls.ConnectionState{}); err != nil || (s != nil) != bytes.Equal(ticket, given) {
			t.Errorf("%v, %v", s, err)
		}
		if st, ok := stamped([][]byte{ticket}); ok && !bytes.Equal(st.bytes(), ticket) {
			t.Errorf("%v of %x", st, ticket)
		}
	})
}

// FuzzAsker has a server send handshake messages of any kind, cut in any way, and then
// data: whether a ticket was asked for makes no difference to what the client gets.
func FuzzAsker(f *testing.F) {
	ticket := append([]byte{messageTicket, 0, 0, 17, 0, 0, 0, 9, 1, 2, 3, 4, 1, 9, 0, 3}, "one\x00\x00"...)
	f.Add(ticket, uint8(0))
	f.Add(append(ticket, ticket...), uint8(5))
	f.Add(append(ticket, messageKeyUpdate, 0, 0, 1, 1), uint8(0))
	f.Add([]byte{messageTicket, 0, 0, 3, 1, 2, 3}, uint8(2))
	f.Add([]byte{messageTicket, 0, 255, 0, 1}, uint8(1))
	f.Add([]byte{13, 0, 0, 0}, uint8(0))
	f.Add([]byte{}, uint8(0))
	c := newCouple(f)
	f.Fuzz(func(t *testing.T, messages []byte, cut uint8) {
		c.tb = t
		var got [2]string
		for asks := range got {
			c.clients, c.servers = &Pool{}, &Pool{}
			c.change = func(cc, sc *tls.Config) {
				sc.GetConfigForClient = nil
				if asks == 0 {
					cc.SessionTicketsDisabled, cc.ClientSessionCache = true, nil
				}
			}
			client, server, err := c.shake()
			if err != nil {
				t.Fatal(err)
			}
			if (client.records.in.ask.Load() != nil) != (asks == 1) {
				t.Fatal("who asks is not as the test has it")
			}
			part := 1 + int(cut)
			for rest := messages[:min(len(messages), 3000)]; len(rest) > 0; {
				n := min(part, len(rest))
				if server.records.out.message(typeHandshake, rest[:n]) != nil {
					break // the client may have gone
				}
				rest = rest[n:]
			}
			_, _ = server.Write([]byte("data")) // likewise
			_ = server.CloseWrite()
			all, err := io.ReadAll(client)
			got[asks] = fmt.Sprintf("%q %v", all, err)
			client.Close()
			server.Close()
		}
		if got[0] != got[1] {
			t.Errorf("without a question %s, with one %s", got[0], got[1])
		}
	})
}
