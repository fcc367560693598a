package proxy

import (
	"io"
	"net"
	"net/netip"
	"testing"

	"podseal.io/podseal/internal/edges"
	"podseal.io/podseal/internal/meshtest"
	"podseal.io/podseal/internal/policy"
)

// madeUp is a listener with one connection, which says that it comes from elsewhere.
type madeUp struct {
	net.Listener
	from netip.AddrPort
}

type madeUpConn struct {
	net.Conn
	from netip.AddrPort
}

func (l madeUp) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return madeUpConn{c, l.from}, err
}

func (c madeUpConn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.from) }

// Who asks for health or metrics at the proxy's own ports is an edge; what the pod asks
// itself is not, nor who connects and says nothing.
// contract 5.26
func TestOwnPortsAreEdges(t *testing.T) {
	p := newPair(t, policy.TCP, meshtest.Echo)
	stranger := netip.MustParseAddrPort("192.0.2.7:4000")
	for _, tt := range []struct {
		name    string
		from    netip.AddrPort
		said    string
		counted bool
	}{
		{"a scraper", stranger, "GET", true},
		{"nothing said", netip.MustParseAddrPort("192.0.2.8:4000"), "", false},
		{"loopback", netip.MustParseAddrPort("127.0.0.9:4000"), "GET", false},
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		client, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c, err := ownListener{madeUp{l, tt.from}, p.inside}.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(client, tt.said); err != nil {
			t.Fatal(err)
		}
		if tt.said != "" {
			if _, err := io.ReadFull(c, make([]byte, len(tt.said))); err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(c, "answer"); err != nil {
				t.Fatal(err)
			}
		}
		of := func() (found []edges.Edge) {
			for _, e := range p.inside.edges.All() {
				if e.Key.Port == addrPort(l.Addr()).Port() {
					found = append(found, e)
				}
			}
			return found
		}
		open := of()
		for range 2 { // closing twice counts once
			_ = c.Close()
		}
		closed := of()
		_ = client.Close()
		_ = l.Close()
		if !tt.counted {
			if len(closed) > 0 {
				t.Errorf("%s: %+v", tt.name, closed)
			}
			continue
		}
		want := edges.Key{Direction: edges.Inbound, Security: edges.Plaintext, Protocol: "http", Port: addrPort(l.Addr()).Port(), Address: tt.from.Addr()}
		if len(open) != 1 || open[0].Open != 1 || len(closed) != 1 || closed[0].Key != want || closed[0].Open != 0 || closed[0].Counts.Connections != 1 || closed[0].Counts.BytesReceived != 3 || closed[0].Counts.BytesSent != 6 {
			t.Errorf("%s: open %+v, closed %+v", tt.name, open, closed)
		}
	}
}
