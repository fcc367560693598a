package edges

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var (
	web  = Peer{Kind: KindWorkload, Namespace: "shop", Name: "web"}
	api  = Peer{Kind: KindWorkload, Namespace: "shop", Name: "api"}
	tls3 = TLS{"TLS 1.3", "X25519MLKEM768", "TLS_AES_128_GCM_SHA256"}
)

const (
	webID = "cluster.local/ns/shop/sa/web"
	apiID = "cluster.local/ns/shop/sa/api"
)

func byAddress(a netip.Addr, node string, _ Direction, _ time.Time) Peer {
	switch a {
	case netip.MustParseAddr("192.168.0.1"):
		return Peer{Kind: KindKubelet, Name: node}
	case netip.MustParseAddr("10.1.0.9"):
		return Peer{Kind: KindWorkload, Namespace: "old", Name: "legacy"}
	}
	return Peer{Kind: KindOutside, Address: a}
}

func build(reports []Report) Graph {
	for i := range reports {
		reports[i].Resolve(byAddress)
	}
	return Build(reports)
}

// clientView and serverView are the two ends of one mutual TLS edge.
func clientView(connections uint64) Edge {
	return Edge{
		Key:    Key{Direction: Outbound, Security: MutualTLS, Protocol: "tcp", Port: 8080, Identity: apiID, Workload: "shop/api", TLS: tls3},
		About:  About{Service: "api.shop.svc.cluster.local:80", OwnIdentity: webID, OwnSerial: "aa", PeerSerial: "bb"},
		Counts: Counts{Connections: connections, BytesSent: 100}, First: noon, Last: noon.Add(time.Minute),
	}
}

func serverView(connections uint64) Edge {
	return Edge{
		Key:    Key{Direction: Inbound, Security: MutualTLS, Protocol: "http", Port: 8080, Identity: webID, Workload: "shop/web", TLS: tls3},
		About:  About{OwnIdentity: apiID, OwnSerial: "bb", PeerSerial: "aa"},
		Counts: Counts{Connections: connections, BytesSent: 101, Requests: 7}, First: noon, Last: noon.Add(time.Second),
	}
}

func plainFrom(address string, connections uint64) Edge {
	return Edge{
		Key:    Key{Direction: Inbound, Security: Plaintext, Protocol: "tcp", Port: 8080, Address: netip.MustParseAddr(address)},
		Counts: Counts{Connections: connections}, First: noon, Last: noon,
	}
}

func TestBuildJoinsBothEnds(t *testing.T) {
	got := build([]Report{
		{Pod: "shop/web-1", Workload: web, Edges: []Edge{clientView(2)}},
		{Pod: "shop/web-2", Workload: web, Edges: []Edge{clientView(3)}},
		{Pod: "shop/api-1", Workload: api, Edges: []Edge{serverView(6)}},
	})
	want := Graph{{
		Source: web, Destination: api, Port: 8080, Service: "api.shop.svc.cluster.local:80", State: StateMutualTLS,
		Shares: []Share{{
			Security: MutualTLS, TLS: tls3, Protocol: "http", SourceIdentity: webID, DestinationIdentity: apiID, SourceSerial: "aa", DestinationSerial: "bb",
			Connections: 6, Requests: 7, BytesSent: 200, First: noon, Last: noon.Add(time.Minute), Reporters: []string{"source", "destination"},
		}},
	}}
	if diff := cmp.Diff(want, got, sameAddrs); diff != "" {
		t.Error(diff)
	}
	text, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	var again Graph
	if err := json.Unmarshal(text, &again); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(got, again, sameAddrs); diff != "" {
		t.Errorf("JSON doesn't read back: %s", diff)
	}
}

// A port of the proxy itself is plaintext by design, and said to be: nobody has to look
// after it. It is the proxy that says so: another's port of that number is not.
func TestOwnPorts(t *testing.T) {
	probe, called := plainFrom("10.1.0.9", 4), clientView(4)
	called.Key.Security, called.Key.TLS, called.Key.Identity = Plaintext, TLS{}, ""
	probe.Key.Port, called.Key.Port = 15020, 15020
	for _, tc := range []struct {
		report       Report
		own, exposed bool
	}{
		{Report{Pod: "shop/api-1", Workload: api, Edges: []Edge{probe}}, true, false},
		{Report{Pod: "shop/api-1", Workload: api, Edges: []Edge{plainFrom("10.1.0.9", 4)}}, false, true},
		{Report{Pod: "shop/web-1", Workload: web, Edges: []Edge{called}}, false, true},
	} {
		g := build([]Report{tc.report})
		if len(g) != 1 || g[0].State != StatePlaintext || g[0].OwnPort != tc.own || g[0].Exposed() != tc.exposed {
			t.Errorf("%+v", g)
		}
	}
}

// Mutual TLS is said only of a link that carried nothing else: what one end saw
// in plaintext counts, whoever else says otherwise.
func TestStates(t *testing.T) {
	mtls, plain, silent, refused := serverView(9), serverView(1), serverView(1), serverView(0)
	plain.Key.Security, plain.Key.TLS, plain.Key.Identity = Plaintext, TLS{}, ""
	plain.Key.Address = netip.MustParseAddr("10.1.0.7") // the same workload, as the proxy knew the address
	silent.Key.Security, silent.Key.TLS, silent.Key.Identity = NotObserved, TLS{}, ""
	refused.Key, refused.Counts.Refusals = plain.Key, map[string]uint64{"plaintext_refused": 3}
	foreign := plain
	foreign.Key.Security = ForeignTLS
	for name, tc := range map[string]struct {
		edges []Edge
		want  string
	}{
		"mutual TLS":             {[]Edge{mtls}, StateMutualTLS},
		"plaintext":              {[]Edge{plain}, StatePlaintext},
		"foreign TLS":            {[]Edge{foreign}, StateForeignTLS},
		"mixed":                  {[]Edge{mtls, plain}, StateMixed},
		"mixed without mTLS":     {[]Edge{foreign, plain}, StateMixed},
		"nothing was sent":       {[]Edge{silent}, StateNotObserved},
		"and mutual TLS besides": {[]Edge{silent, mtls}, StateMutualTLS},
		"only refused":           {[]Edge{refused}, StateNotObserved},
		"refused and mutual TLS": {[]Edge{refused, mtls}, StateMutualTLS},
	} {
		g := build([]Report{{Pod: "shop/api-1", Workload: api, Edges: tc.edges}})
		if len(g) != 1 || g[0].State != tc.want {
			t.Errorf("%s: %+v", name, g)
		}
	}
	// the client says plaintext to a pod whose proxy says nothing
	out := clientView(4)
	out.Key.Security, out.Key.TLS, out.Key.Identity, out.Key.Address = Plaintext, TLS{}, "", netip.MustParseAddr("10.1.0.8")
	g := build([]Report{{Pod: "shop/web-1", Workload: web, Edges: []Edge{out}}, {Pod: "shop/api-1", Workload: api, Edges: []Edge{mtls}}})
	if len(g) != 1 || g[0].State != StateMixed || g[0].Shares[0].Connections != 9 || g[0].Shares[1].Connections != 4 {
		t.Errorf("%+v", g)
	}
}

func TestPeersWithoutName(t *testing.T) {
	stranger := serverView(1)
	stranger.Key.Workload = ""
	full := plainFrom("10.9.9.9", 5)
	full.Key, full.Folded = restOf(full.Key), 12
	g := build([]Report{{Pod: "shop/api-1", Workload: api, Node: "n1", Edges: []Edge{
		plainFrom("192.168.0.1", 1), plainFrom("10.1.0.9", 2), plainFrom("8.8.8.8", 3), stranger, full,
	}}})
	got := map[string]uint64{}
	for _, l := range g {
		got[l.Source.Namespace+" "+l.Source.String()], _ = l.Of(func(*Share) bool { return true })
	}
	want := map[string]uint64{" kubelet/n1": 1, "old legacy": 2, " outside/8.8.8.8": 3, "shop sa/web": 1, " (others)": 5}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestSince(t *testing.T) {
	old, now := plainFrom("8.8.8.8", 1), serverView(1)
	old.Key.Workload, old.Key.Address = "shop/web", netip.MustParseAddr("10.1.0.7")
	now.Last = noon.Add(time.Hour)
	g := build([]Report{{Workload: api, Edges: []Edge{old, now}}})
	if g[0].State != StateMixed || !g[0].Last().Equal(noon.Add(time.Hour)) {
		t.Fatalf("%+v", g)
	}
	if s := g.Since(noon.Add(time.Minute)); len(s) != 1 || s[0].State != StateMutualTLS {
		t.Errorf("%+v", s)
	}
	if s := g.Since(noon.Add(2 * time.Hour)); len(s) != 0 {
		t.Errorf("%+v", s)
	}
	if len(g[0].Shares) != 2 {
		t.Error("the graph was changed")
	}
}

func BenchmarkTable(b *testing.B) {
	table := NewTable(MaxEdges)
	c := table.Follow()
	key, about := keyOf(1), aboutOf(1)
	b.ReportAllocs()
	for b.Loop() {
		table.Whole(key, about, noon, 1, 1, 1, "", noon)
	}
	table.Unfollow(c)
}
