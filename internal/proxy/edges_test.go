package proxy

import (
	"encoding/json"
	"io"
	"net/netip"
	"strings"
	"testing"

	"podseal.io/podseal/internal/edges"
	"podseal.io/podseal/internal/meshtest"
	"podseal.io/podseal/internal/policy"
)

// seen waits until a proxy's own edges have one that is as wanted.
func seen(t *testing.T, p *proxy, want func(edges.Edge) bool) edges.Edge {
	t.Helper()
	var found edges.Edge
	eventually(t, func() bool {
		p.sweep()
		for _, e := range p.edges.All() {
			if want(e) {
				found = e
				return true
			}
		}
		return false
	})
	return found
}

func carries(security edges.Security, bytes uint64) func(edges.Edge) bool {
	return func(e edges.Edge) bool {
		return e.Key.Security == security && e.Counts.Connections > 0 && e.Counts.BytesReceived == bytes
	}
}

// Both ends see an edge while its connection is open, with the same facts, and
// count the rest when it ends (design D15).
func TestEdgeOfBothEnds(t *testing.T) {
	p := newPair(t, policy.TCP, meshtest.Echo)
	c := p.dial()
	exchange(t, c, "\x00hello")
	out, in := seen(t, p.clientSide, carries(edges.MutualTLS, 6)), seen(t, p.inside, carries(edges.MutualTLS, 6))
	if out.Open != 1 || in.Open != 1 {
		t.Errorf("open are %d and %d", out.Open, in.Open)
	}
	if want := (edges.Key{
		Direction: edges.Outbound, Security: edges.MutualTLS, Protocol: "tcp", Port: p.app.Port(), Identity: p.server.Identity.String(), Workload: "shop/web",
		TLS: edges.TLS{Version: "TLS 1.3", Group: "X25519MLKEM768", Cipher: in.Key.TLS.Cipher},
	}); out.Key != want {
		t.Errorf("the client's key is %+v, want %+v", out.Key, want)
	}
	if want := (edges.About{
		Pod: "shop/web", Address: p.app.Addr(), Service: "web.shop.svc.cluster.local:80", OwnIdentity: p.client.Identity.String(),
		OwnSerial: p.clientSide.report().GetSerial(), PeerSerial: p.inside.report().GetSerial(),
	}); out.About != want {
		t.Errorf("the client knows %+v, want %+v", out.About, want)
	}
	if in.Key.Identity != p.client.Identity.String() || in.Key.Port != p.app.Port() || in.About.Pod != "shop/client" || in.About.PeerSerial != out.About.OwnSerial {
		t.Errorf("the server's edge is %+v", in)
	}
	exchange(t, c, "more")
	c.Close()
	for _, proxy := range []*proxy{p.clientSide, p.inside} {
		if e := seen(t, proxy, func(e edges.Edge) bool { return e.Open == 0 && carries(edges.MutualTLS, 10)(e) }); e.Counts.Connections != 1 {
			t.Errorf("%+v", e)
		}
	}
}

// What isn't mutual TLS is never called so, and what was refused has its reason.
func TestEdgeSecurity(t *testing.T) {
	p := newPair(t, policy.TCP, meshtest.Echo)
	outside := p.outsider()
	plain := p.connect(outside, p.app)
	exchange(t, plain, "plain")
	e := seen(t, p.inside, carries(edges.Plaintext, 5))
	if e.Key.Identity != "" || e.Key.Address != outside || e.Key.Workload != "" || e.Key.TLS != (edges.TLS{}) {
		t.Errorf("a plaintext caller is %+v", e.Key)
	}
	p.connect(outside, p.app).Close() // as a TCP probe does
	seen(t, p.inside, func(e edges.Edge) bool { return e.Key.Security == edges.NotObserved && e.Counts.Connections == 1 })

	p.mode(p.server, policy.Strict) // cuts what is open
	refused := p.connect(outside, p.app)
	_, _ = io.WriteString(refused, "let me in")
	ends(t, refused)
	e = seen(t, p.inside, func(e edges.Edge) bool { return e.Counts.Refusals["plaintext_refused"] == 1 })
	if e.Key.Security != edges.Plaintext || e.Counts.Connections != 0 {
		t.Errorf("a refused caller is %+v", e)
	}
	seen(t, p.inside, func(e edges.Edge) bool { return e.Counts.Refusals["policy_changed"] == 1 })

	p.certify(p.inside, p.client.Identity) // it proves to be another than it should be
	ends(t, p.dial())
	e = seen(t, p.clientSide, func(e edges.Edge) bool { return e.Counts.Refusals["peer_identity"] > 0 })
	if e.Key.Security != edges.NotObserved || e.Key.Identity != "" || e.Key.Workload != "shop/web" {
		t.Errorf("a peer that is another is %+v", e.Key)
	}
}

// What is passed on is looked at and not touched: TLS of the application itself
// isn't plaintext, and a server that speaks first isn't kept waiting.
func TestEdgeOfWhatIsPassedOn(t *testing.T) {
	p := newPair(t, policy.TCP, meshtest.Echo)
	outside := meshtest.Serve(t, p.outsider(), meshtest.Echo)
	for text, want := range map[string]edges.Security{"\x16\x03\x01\x00\x05hello": edges.ForeignTLS, "GET /": edges.Plaintext, "\x16": edges.ForeignTLS, "\x16\x04": edges.Plaintext} {
		c := p.connect(p.client.Addresses[0], outside)
		exchange(t, c, text)
		c.Close()
		e := seen(t, p.clientSide, func(e edges.Edge) bool { return e.Open == 0 && e.Key.Security == want && e.Counts.Connections > 0 })
		if e.Key.Direction != edges.Outbound || e.Key.Address != outside.Addr() || e.Key.Port != outside.Port() {
			t.Errorf("%q: %+v", text, e.Key)
		}
	}
	c := p.connect(p.client.Addresses[0], outside)
	if err := c.CloseWrite(); err != nil { // not a byte
		t.Fatal(err)
	}
	ends(t, c)
	seen(t, p.clientSide, func(e edges.Edge) bool { return e.Key.Security == edges.NotObserved && e.Counts.Connections == 1 })
}

// Under DISABLE nothing is refused or terminated, and yet TLS of the application is told
// from plaintext, as soon as the client has spoken and while the connection is open.
func TestEdgeUnderDisable(t *testing.T) {
	for _, protocol := range []policy.Protocol{policy.TCP, policy.Auto} {
		p := newPair(t, protocol, meshtest.Echo)
		p.mode(p.server, policy.Disable)
		for text, want := range map[string]edges.Security{"\x16\x03\x01\x00\x05hello": edges.ForeignTLS, "\x00plain": edges.Plaintext} {
			exchange(t, p.connect(p.outsider(), p.app), text)
			e := seen(t, p.inside, func(e edges.Edge) bool { return e.Open == 1 && e.Key.Security == want })
			if e.Key.Direction != edges.Inbound || e.Key.Port != p.app.Port() || e.Counts.Connections != 1 {
				t.Errorf("%s, %q: %+v", protocol, text, e)
			}
		}
	}
}

func TestAdminEdges(t *testing.T) {
	p := newPair(t, policy.TCP, meshtest.Echo)
	exchange(t, p.dial(), "\x00hello")
	exchange(t, p.connect(p.outsider(), p.app), "plain")
	var graph edges.Graph
	eventually(t, func() bool {
		code, body := get(t, p.inside, 3, "GET", "/edges")
		if code != 200 || json.NewDecoder(strings.NewReader(body)).Decode(&graph) != nil {
			t.Fatalf("%d %s", code, body)
		}
		return len(graph) == 2
	})
	web := edges.Peer{Kind: edges.KindWorkload, Namespace: "shop", Name: "web"}
	for _, l := range graph {
		if l.Destination != web || l.Port != p.app.Port() {
			t.Errorf("%+v", l)
		}
	}
	if a, b := graph[0].State, graph[1].State; a != edges.StatePlaintext || b != edges.StateMutualTLS {
		t.Errorf("states %s and %s", a, b)
	}
	if !graph[0].Source.Address.IsValid() || graph[1].Source.Address != (netip.Addr{}) {
		t.Errorf("sources %v and %v", graph[0].Source, graph[1].Source)
	}
}
