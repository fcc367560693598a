package controlplane

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	peerv1 "podseal.io/podseal/api/peer/v1"
	"podseal.io/podseal/internal/ca"
	"podseal.io/podseal/internal/discovery"
	"podseal.io/podseal/internal/edges"
	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/report"
	"podseal.io/podseal/internal/wire"
	"podseal.io/podseal/internal/xds"
)

// testReplica is one of several of a control plane: it knows of one proxy, which is
// called like it.
type testReplica struct {
	name, address string
	asked         atomic.Int32
	all           *replicas
	states        *stateReader
	peers         *peerServer
}

// testReplicas are replicas with one authority that serve each other on loopback.
type testReplicas struct {
	t    *testing.T
	auth *authority
	all  map[string]*testReplica
	more []address // others, of another kind
}

func newTestReplicas(t *testing.T, names ...string) *testReplicas {
	rs := &testReplicas{t: t, auth: readyAuthority(t), all: map[string]*testReplica{}}
	for _, name := range names {
		r := &testReplica{name: name}
		rs.all[name] = r
		r.all = &replicas{own: rs.viewer(r), answers: testExplainer(), peers: rs.client(name)}
		r.all.answers.replica = name
		r.all.answers.each = r.holding
		r.states = &stateReader{cluster: r.all.answers.cluster, each: r.holding}
		r.peers = &peerServer{
			self: name, namespace: testNamespace, issuer: rs.auth.Issuer, domain: rs.auth.TrustDomain, view: r.all.own.view, explain: r.all.answers.explain,
			states: func() *policyStates { s, _ := r.states.read(); return s }, asking: make(chan struct{}, 1), now: time.Now, log: quietLog,
		}
		r.address = rs.serve(func(g *grpc.Server) { peerv1.RegisterPeersServer(g, counting{r.peers, r}) })
	}
	return rs
}

// counting counts the questions that a replica gets.
type counting struct {
	peerv1.PeersServer
	of *testReplica
}

func (c counting) Ask(q *peerv1.Question, s grpc.ServerStreamingServer[peerv1.Part]) error {
	c.of.asked.Add(1)
	return c.PeersServer.Ask(q, s)
}

// holding is a proxy at shop/web that is connected to web, and one at shop/api that
// is connected to api.
func (r *testReplica) holding(visit func(xds.PeerStatus, func(typeURL, name string) xds.Holding)) {
	visit(xds.PeerStatus{Node: xds.Node{ID: "sidecar~ip~" + r.name + ".shop~d"}, Connected: epoch}, func(typeURL, _ string) xds.Holding {
		if r.name == "api" && typeURL == wire.TypeAuthorizationPolicy {
			return xds.Rejected
		}
		return xds.Held
	})
}

func (rs *testReplicas) viewer(r *testReplica) *viewer {
	return &viewer{
		cache: fake.NewClientBuilder().WithScheme(scheme.Scheme).Build(), store: xds.NewStore(), replica: r.name, started: epoch, now: func() time.Time { return epoch },
		peers: func() []xds.PeerStatus {
			return []xds.PeerStatus{{Node: xds.Node{ID: "sidecar~10.0.0.2~" + r.name + ".shop~d"}, Connected: epoch}}
		},
		reports: func() []report.Report {
			return []report.Report{{Pod: report.Pod{Namespace: "shop", Name: r.name}, Edges: []edges.Edge{}}}
		},
	}
}

// client is a replica's way to all others.
func (rs *testReplicas) client(self string) *peerClient {
	p := newPeerClient(self, testNamespace, nil, rs.auth, quietLog)
	p.others = func(context.Context) ([]address, error) {
		var out []address
		for name, r := range rs.all {
			if name != self {
				out = append(out, address{name, r.address})
			}
		}
		slices.SortFunc(out, func(a, b address) int { return strings.Compare(a.replica, b.replica) })
		return append(out, rs.more...), nil
	}
	p.dial = func(a address, roots *identity.Bundle) (*grpc.ClientConn, error) {
		return grpc.NewClient("passthrough:///"+a.ip, grpc.WithTransportCredentials(credentials.NewClientTLSFromCert(roots.Pool(), serviceHost(testNamespace))))
	}
	return p
}

// serve serves on loopback with the control plane's certificate until the test ends.
func (rs *testReplicas) serve(register func(*grpc.Server)) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		rs.t.Fatal(err)
	}
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(rs.auth.TLSConfig())))
	register(g)
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(l) }()
	rs.t.Cleanup(func() { g.Stop(); <-done })
	return l.Addr().String()
}

func podsOf(v *View) string {
	var out []string
	for i := range v.Proxies {
		out = append(out, v.Proxies[i].Pod)
	}
	for i := range v.Edges {
		out = append(out, v.Edges[i].Pod)
	}
	return strings.Join(out, " ")
}

// Whichever replica is asked, it answers for all; each is asked once for each
// question, and nobody asks on.
func TestReplicasAnswerForAll(t *testing.T) {
	for _, names := range [][]string{{"web"}, {"api", "web"}, {"api", "db", "web"}} {
		rs := newTestReplicas(t, names...)
		var want string
		for _, name := range names {
			r := rs.all[name]
			v, err := r.all.view(t.Context(), "", []string{PartProxies, PartEdges})
			if err != nil {
				t.Fatal(err)
			}
			if want == "" {
				want = podsOf(v)
			}
			said := strings.Split(v.Replica, ",")
			slices.Sort(said)
			if podsOf(v) != want || len(v.Proxies) != len(names) || len(v.Edges) != len(names) || !slices.Equal(said, names) || v.Peers == nil || len(v.Peers) != len(names)-1 {
				t.Errorf("%s of %s: %s %+v", name, names, podsOf(v), v.Peers)
			}
			for _, p := range v.Peers {
				if p.Error != "" || p.Version == "" {
					t.Errorf("%s: %+v", name, p)
				}
			}
		}
		for _, r := range rs.all {
			if n := r.asked.Load(); int(n) != len(names)-1 {
				t.Errorf("%s of %s was asked %d times", r.name, names, n)
			}
		}
		// what every replica knows costs the others nothing
		if v, err := rs.all["web"].all.view(t.Context(), "", []string{PartPods}); err != nil || len(v.Peers) != len(names)-1 || (len(names) > 1 && int(rs.all["api"].asked.Load()) != len(names)-1) {
			t.Errorf("%+v, %v", v, err)
		}
	}
}

// A replica that fails, one that is slow and one of an older version are named, and
// the rest is answered within the time.
func TestReplicasThatDoNotAnswer(t *testing.T) {
	rs := newTestReplicas(t, "web", "api")
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()
	rs.more = []address{
		{"failing", closed.Addr().String()},
		{"slow", rs.serve(func(g *grpc.Server) { peerv1.RegisterPeersServer(g, slowPeers{}) })},
		{"old", rs.serve(func(*grpc.Server) {})},
		{"endless", rs.serve(func(g *grpc.Server) { peerv1.RegisterPeersServer(g, endlessPeers{}) })},
		{"nonsense", rs.serve(func(g *grpc.Server) { peerv1.RegisterPeersServer(g, nonsensePeers{}) })},
	}
	client := rs.all["web"].all.peers
	client.timeout = time.Second
	began := time.Now()
	v, err := rs.all["web"].all.view(t.Context(), "shop", nil)
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
	if podsOf(v) != "api web shop/api shop/web" {
		t.Errorf("%s", podsOf(v))
	}
	want := map[string]string{"api": "", "failing": "connection refused", "slow": "it did not answer within 1s", "old": "it is of a version that can't be asked", "endless": "within 1s", "nonsense": "invalid character"}
	for _, p := range v.Peers {
		text, known := want[p.Replica]
		if !known || !strings.Contains(p.Error, text) || (text == "") != (p.Error == "") {
			t.Errorf("%+v, want %q", p, text)
		}
		delete(want, p.Replica)
	}
	if len(want) > 0 {
		t.Errorf("not named: %v", want)
	}
	// what is said is bounded in count and size
	rs.more = nil
	for i := range maxPeers {
		rs.more = append(rs.more, address{fmt.Sprint("more", i), closed.Addr().String()})
	}
	v, err = rs.all["web"].all.view(t.Context(), "", nil)
	if err != nil || !strings.HasPrefix(v.Peers[len(v.Peers)-1].Error, "not asked") {
		t.Errorf("%+v, %v", v.Peers, err)
	}
	parts := &partReader{stream: &manyParts{}, left: 100}
	if _, err := parts.Read(make([]byte, 10)); err != nil {
		t.Error(err)
	}
	var all any
	if err := json.NewDecoder(parts).Decode(&all); err == nil || parts.err != errPeerTooMuch { //nolint:errorlint // it is that one
		t.Errorf("%v, %v", err, parts.err)
	}
}

type slowPeers struct {
	peerv1.UnimplementedPeersServer
}

func (slowPeers) Ask(_ *peerv1.Question, s grpc.ServerStreamingServer[peerv1.Part]) error {
	<-s.Context().Done()
	return s.Context().Err()
}

// endlessPeers never come to an end.
type endlessPeers struct {
	peerv1.UnimplementedPeersServer
}

func (endlessPeers) Ask(_ *peerv1.Question, s grpc.ServerStreamingServer[peerv1.Part]) error {
	for {
		if err := s.Send(&peerv1.Part{Json: []byte(" ")}); err != nil {
			return err
		}
	}
}

type nonsensePeers struct {
	peerv1.UnimplementedPeersServer
}

func (nonsensePeers) Ask(_ *peerv1.Question, s grpc.ServerStreamingServer[peerv1.Part]) error {
	return s.Send(&peerv1.Part{Json: []byte("nonsense")})
}

type manyParts struct {
	grpc.ServerStreamingClient[peerv1.Part]
}

func (*manyParts) Recv() (*peerv1.Part, error) {
	return &peerv1.Part{Json: []byte("          ")}, nil
}

// How far proxies are that are connected to another replica is known, too.
func TestReplicasExplain(t *testing.T) {
	rs := newTestReplicas(t, "api", "web")
	for _, r := range rs.all {
		a, err := r.all.explain(t.Context(), &ExplainRequest{Pods: []string{"shop/web", "shop/api"}})
		if err != nil {
			t.Fatal(err)
		}
		if len(a.Pods) != 2 || a.Pods[0].Authorization[0].Enforced != EnforcedYes || a.Pods[1].Authorization[0].Enforced != EnforcedRejected || len(a.Peers) != 1 {
			t.Errorf("%s: %+v", r.name, a)
		}
	}
	before := rs.all["api"].asked.Load()
	if a, err := rs.all["web"].all.explain(t.Context(), &ExplainRequest{Sources: []string{"shop/web"}, Destinations: []string{"shop/api"}}); err != nil || len(a.Answers) == 0 || len(a.Peers) != 1 {
		t.Errorf("%+v, %v", a, err)
	}
	if rs.all["api"].asked.Load() != before {
		t.Error("the other was asked for what every replica knows")
	}
}

// The status of a policy counts the proxies of all replicas; one that falls silent
// counts for a while, and is then named.
func TestStatesOfAllReplicas(t *testing.T) {
	rs := newTestReplicas(t, "web", "api")
	r, now := rs.all["web"], epoch
	clock := func() time.Time { return now }
	e := &enforcement{own: r.states, others: &peerStateReader{peers: r.all.peers, now: clock}, view: r.all.view, now: clock, log: quietLog}
	_, verdicts := discovery.Build(*r.states.cluster())
	key := discovery.Key{Kind: discovery.KindAuthorizationPolicy, Namespace: "shop", Name: "from-web"}
	said := func() string { return e.conditions(t.Context(), verdicts)[key][0].message }
	if got := said(); got != "enforced by 1 of 2 workloads; refused by shop/api: `podseal status` says why" {
		t.Error(got)
	}
	rs.all["api"].address = "127.0.0.1:1"
	now = now.Add(peersEvery)
	if got := said(); !strings.Contains(got, "refused by shop/api") {
		t.Error(got)
	}
	now = now.Add(peersKeep)
	if got := said(); got != "enforced by 1 of 2 workloads; 1 are not connected to the control plane, as far as is known without api" {
		t.Error(got)
	}
	// what another says out of its bounds breaks nothing
	odd := tallyStates(map[discovery.Key][]string{key: {"shop/api"}}, []*policyStates{{Keys: []discovery.Key{key}, Pods: []podStates{{Pod: "shop/api", Held: []int{-1, 7}, Rejected: []int{0}}}}})
	if s := odd[key]; s.held != 0 || len(s.rejected) != 1 {
		t.Errorf("%+v", s)
	}
}

// Only the control plane's own signature of this question to this replica, made a
// moment ago, is answered.
func TestWhoMayAskReplicas(t *testing.T) {
	rs := newTestReplicas(t, "web", "api")
	to := rs.all["web"]
	issuer, err := rs.auth.Issuer()
	if err != nil {
		t.Fatal(err)
	}
	ask := func(name string, want codes.Code, by *ca.Issuer, account string, change func(c *credential, q *peerv1.Question)) {
		t.Helper()
		q := &peerv1.Question{Of: peerStates, Body: []byte("{}")}
		c := &credential{Kind: peerKind, From: "api", To: "web", At: time.Now(), Of: q.GetOf(), Hash: hashOf(q.GetBody())}
		change(c, q)
		text, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		a, err := by.Attest(text, identity.MustNew("cluster.local", testNamespace, account), c.At)
		if err != nil {
			t.Fatal(err)
		}
		if q.Credential == nil {
			if q.Credential, err = json.Marshal(a); err != nil {
				t.Fatal(err)
			}
		}
		conn, err := rs.client("api").dial(address{"web", to.address}, issuer.Bundle())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		stream, err := peerv1.NewPeersClient(conn).Ask(t.Context(), q)
		if err == nil {
			_, err = stream.Recv()
		}
		if status.Code(err) != want {
			t.Errorf("%s: %v, want %s", name, err, want)
		}
	}
	no := codes.Unauthenticated
	ask("a replica", codes.OK, issuer, Signer, func(*credential, *peerv1.Question) {})
	ask("nobody", no, issuer, Signer, func(_ *credential, q *peerv1.Question) { q.Credential = []byte{} })
	ask("nonsense", no, issuer, Signer, func(_ *credential, q *peerv1.Question) { q.Credential = []byte("{}") })
	ask("another account", no, issuer, "podseal-viewer", func(*credential, *peerv1.Question) {})
	ask("another root", no, newSelfSigned(t, time.Now()), Signer, func(*credential, *peerv1.Question) {})
	ask("something else that was signed", no, issuer, Signer, func(c *credential, _ *peerv1.Question) { c.Kind = StatementKind })
	ask("for another replica", no, issuer, Signer, func(c *credential, _ *peerv1.Question) { c.To = "api" })
	ask("another question", no, issuer, Signer, func(c *credential, _ *peerv1.Question) { c.Of = peerView })
	ask("another body", no, issuer, Signer, func(c *credential, _ *peerv1.Question) { c.Hash = hashOf([]byte("[]")) })
	ask("long ago", no, issuer, Signer, func(c *credential, _ *peerv1.Question) { c.At = time.Now().Add(-2 * peerQuestion) })
	ask("a question of a newer version", codes.Unimplemented, issuer, Signer, func(c *credential, q *peerv1.Question) { q.Of, c.Of = "weather", "weather" })
	ask("words that aren't the question's", codes.InvalidArgument, issuer, Signer, func(c *credential, q *peerv1.Question) {
		q.Of, c.Of = peerView, peerView
		q.Body = []byte("[]")
		c.Hash = hashOf(q.Body)
	})
}

// Other replicas are those that run, but for the one that asks.
func TestOtherReplicas(t *testing.T) {
	pod := func(name, app, ip string, phase corev1.PodPhase) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: testNamespace, Name: name, Labels: map[string]string{"app": app}}, Status: corev1.PodStatus{Phase: phase, PodIP: ip}}
	}
	going := pod("going", "istiod", "10.0.0.9", corev1.PodRunning)
	going.DeletionTimestamp, going.Finalizers = &metav1.Time{Time: epoch}, []string{"x/y"}
	c := fake.NewClientBuilder().WithScheme(scheme.Scheme).WithObjects(pod("b", "istiod", "10.0.0.2", corev1.PodRunning), pod("a", "istiod", "10.0.0.1", corev1.PodRunning), pod("c", "istiod", "", corev1.PodPending),
		pod("d", "istiod", "10.0.0.4", corev1.PodFailed), pod("e", "other", "10.0.0.5", corev1.PodRunning), pod("self", "istiod", "10.0.0.6", corev1.PodRunning), going).Build()
	got, err := otherReplicas(t.Context(), c, testNamespace, "self")
	if err != nil || !slices.Equal(got, []address{{"a", "10.0.0.1"}, {"b", "10.0.0.2"}}) {
		t.Errorf("%v, %v", got, err)
	}
	if (&peerClient{}).named(t.Context()) == nil || len(askPeers[View](t.Context(), &peerClient{}, peerView, nil)) != 0 {
		t.Error("a control plane that doesn't know its own name asks nobody")
	}
}
