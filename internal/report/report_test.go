package report

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/reflect/protoreflect"

	reportv1 "podseal.io/podseal/api/report/v1"
	"podseal.io/podseal/internal/edges"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var noon = time.UnixMilli(1_800_000_000_000)

func key(i int) edges.Key {
	return edges.Key{Direction: edges.Inbound, Security: edges.Plaintext, Protocol: "tcp", Port: 80, Address: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})}
}

func count(t *edges.Table, i int) {
	var f edges.Flow
	t.Open(&f, key(i), edges.About{}, noon)
	t.Close(&f, 1, 1, 0, "", noon)
}

// eventually polls until ok reports true.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// endpoint is a control plane that can be replaced while clients run.
type endpoint struct {
	t  *testing.T
	mu sync.Mutex
	l  *bufconn.Listener
}

// start replaces what serves. Tokens are "<namespace>/<pod>".
func (e *endpoint) start() (*Server, func()) {
	s := NewServer(ServerConfig{Log: slog.New(slog.DiscardHandler), Authenticate: func(ctx context.Context) (Pod, error) {
		md, _ := metadata.FromIncomingContext(ctx)
		token := strings.TrimPrefix(strings.Join(md.Get("authorization"), ""), "Bearer ")
		ns, name, ok := strings.Cut(token, "/")
		if !ok {
			return Pod{}, errors.New("no such token")
		}
		return Pod{Namespace: ns, Name: name}, nil
	}})
	g := grpc.NewServer()
	s.Register(g)
	l := bufconn.Listen(1 << 20)
	e.mu.Lock()
	e.l = l
	e.mu.Unlock()
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(l) }()
	return s, sync.OnceFunc(func() { s.Shutdown(); g.Stop(); s.Wait(); <-done })
}

func (e *endpoint) conn() *grpc.ClientConn {
	conn, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			e.mu.Lock()
			l := e.l
			e.mu.Unlock()
			return l.DialContext(ctx)
		}), grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second}))
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { conn.Close() })
	return conn
}

// run runs a client until the function that it returns is called.
func (e *endpoint) run(token string, table *edges.Table) func() {
	c := NewClient(ClientConfig{
		Conn: e.conn(), Table: table, Token: func() (string, error) { return token, nil }, Sweep: func() {},
		Proxy: func() *reportv1.Proxy { return &reportv1.Proxy{Version: "v1", Connections: uint32(table.Len())} },
		Rand:  func() float64 { return 0 }, Log: slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = c.Run(ctx) }()
	stop := sync.OnceFunc(func() { cancel(); <-done })
	e.t.Cleanup(stop)
	return stop
}

func edgesOf(s *Server, pod string) int {
	for _, r := range s.Reports() {
		if r.Pod.Namespace+"/"+r.Pod.Name == pod {
			return len(r.Edges)
		}
	}
	return -1
}

// A control plane that was restarted has everything again, because the proxies
// hold it (design D15); the last word of a proxy that ends arrives.
func TestRestart(t *testing.T) {
	e := &endpoint{t: t}
	first, stop := e.start()
	table := edges.NewTable(edges.MaxEdges)
	for i := range 700 { // three updates
		count(table, i)
	}
	end := e.run("shop/web-1", table)
	eventually(t, "the first report", func() bool { return edgesOf(first, "shop/web-1") == 700 })
	count(table, 700)
	eventually(t, "what was new", func() bool { return edgesOf(first, "shop/web-1") == 701 })
	if r := first.Reports()[0]; r.Proxy.GetVersion() != "v1" || r.Connected.IsZero() || !r.Gone.IsZero() {
		t.Errorf("%+v", r)
	}
	stop()
	second, stop := e.start()
	defer stop()
	count(table, 701)
	eventually(t, "the report after a restart", func() bool { return edgesOf(second, "shop/web-1") == 702 })
	count(table, 702)
	end()
	if n := edgesOf(second, "shop/web-1"); n != 703 {
		t.Errorf("after the last word there are %d edges, want 703", n)
	}
	eventually(t, "the proxy is known to be gone", func() bool { return !second.Reports()[0].Gone.IsZero() })
}

// What has matched is told when a stream begins and then again when it is some
// seconds later; what there is no room for is counted.
func TestMatches(t *testing.T) {
	match := func(i int, at time.Time) edges.Match {
		return edges.Match{MatchKey: edges.MatchKey{Kind: "AuthorizationPolicy", Object: fmt.Sprint("shop/", i), Outcome: "allowed"}, Last: at}
	}
	said := []edges.Match{match(1, noon), match(2, noon)}
	asked := 0
	all := func() []edges.Match { asked++; return said }
	tell := &telling{matches: map[edges.MatchKey]time.Time{}}
	now := noon
	news := func(later time.Duration) int { now = now.Add(later); return len(tell.news(all, now)) }
	if n := news(0); n != 2 {
		t.Errorf("%d are told at the beginning", n)
	}
	said[0].Last = noon.Add(matchAgain)
	if n := news(time.Second); n != 0 || asked != 1 {
		t.Errorf("%d are told, asked %d times", n, asked)
	}
	if n := news(matchEvery); n != 1 {
		t.Errorf("%d are told, want the one that is later", n)
	}
	said[1].Last = noon.Add(matchAgain - time.Second)
	if n := news(matchEvery); n != 0 {
		t.Errorf("%d are told that are hardly later", n)
	}
	for i := range 2*edges.MaxMatches + 1 { // policies come and go
		said = []edges.Match{match(i+10, noon)}
		news(matchEvery)
	}
	if len(tell.matches) > 2*edges.MaxMatches {
		t.Errorf("%d are remembered", len(tell.matches))
	}
	if (&telling{}).news(nil, noon) != nil {
		t.Error("a proxy without matches tells some")
	}

	s := NewServer(ServerConfig{Log: slog.New(slog.DiscardHandler)})
	src := &source{mirror: edges.NewMirror(), matches: map[edges.MatchKey]time.Time{}}
	for i := range edges.MaxMatches + 10 {
		s.match(src, []edges.Match{match(i, noon.Add(time.Duration(i)*time.Second))})
	}
	if _, there := src.matches[match(9, noon).MatchKey]; there || len(src.matches) != edges.MaxMatches || s.matches != edges.MaxMatches {
		t.Errorf("%d kept, %d counted", len(src.matches), s.matches)
	}
	s.matches = maxMatches
	s.match(&source{matches: map[edges.MatchKey]time.Time{}}, []edges.Match{match(1, noon)})
	if s.Dropped() != 1 {
		t.Errorf("%d dropped", s.Dropped())
	}
}

// Matches come with the report of the pod, and go with it.
func TestMatchesArrive(t *testing.T) {
	e := &endpoint{t: t}
	s, stop := e.start()
	defer stop()
	c := NewClient(ClientConfig{
		Conn: e.conn(), Table: edges.NewTable(10), Token: func() (string, error) { return "shop/web-1", nil }, Sweep: func() {},
		Proxy: func() *reportv1.Proxy { return &reportv1.Proxy{Version: "v1"} }, Rand: func() float64 { return 0 }, Log: slog.New(slog.DiscardHandler),
		Matches: func() []edges.Match {
			return []edges.Match{{MatchKey: edges.MatchKey{Kind: "AuthorizationPolicy", Object: "shop/x", Rule: 1, Outcome: "denied"}, Last: noon}}
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = c.Run(ctx) }()
	defer func() { cancel(); <-done }()
	eventually(t, "the match", func() bool {
		all := s.ReportsOf([]string{"shop/web-1", "shop/other"})
		return len(all) == 1 && len(all[0].Matches) == 1 && all[0].Matches[0].Rule == 1
	})
	s.mu.Lock()
	n := s.matches
	s.mu.Unlock()
	if n != 1 || len(s.ReportsOf([]string{"shop/other"})) != 0 {
		t.Errorf("%d are counted", n)
	}
}

// The newest stream of a pod is its report; whose it is says the credential.
func TestOnePodOneReport(t *testing.T) {
	e := &endpoint{t: t}
	s, stop := e.start()
	defer stop()
	a, b, other := edges.NewTable(10), edges.NewTable(10), edges.NewTable(10)
	count(a, 1)
	count(b, 1)
	count(b, 2)
	endA := e.run("shop/web-1", a)
	eventually(t, "the first", func() bool { return edgesOf(s, "shop/web-1") == 1 })
	e.run("shop/api-1", other)
	eventually(t, "another pod", func() bool { return edgesOf(s, "shop/api-1") == 0 })
	endA()
	e.run("shop/web-1", b)
	eventually(t, "the second", func() bool { return edgesOf(s, "shop/web-1") == 2 })
	if _, n, _ := s.Counts(); n != 2 {
		t.Errorf("%d edges are kept, want 2", n)
	}
}

func TestStrangers(t *testing.T) {
	e := &endpoint{t: t}
	s, stop := e.start()
	defer stop()
	open := func(token string) clientStream {
		ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(context.Background(), "authorization", "Bearer "+token), 10*time.Second)
		t.Cleanup(cancel)
		g, err := reportv1.NewReportingClient(e.conn()).Report(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	end := func(g clientStream) codes.Code {
		for {
			if _, err := g.Recv(); err != nil {
				return status.Code(err)
			}
		}
	}
	if code := end(open("nobody")); code != codes.Unauthenticated {
		t.Errorf("a stranger: %s", code)
	}
	for name, tc := range map[string]struct {
		updates []*reportv1.Update
		want    codes.Code
	}{
		"nonsense":        {[]*reportv1.Update{{Edges: []*reportv1.Edge{{Id: 1}}}}, codes.InvalidArgument},
		"escape sequence": {[]*reportv1.Update{{Proxy: &reportv1.Proxy{Version: "\x1b[2J"}}}, codes.InvalidArgument},
		"too much":        {tooMuch(), codes.ResourceExhausted},
	} {
		g := open("shop/bad")
		for _, u := range tc.updates {
			_ = g.Send(u)
		}
		if code := end(g); code != tc.want {
			t.Errorf("%s: %s, want %s", name, code, tc.want)
		}
	}
	eventually(t, "the streams are forgotten", func() bool {
		streams, kept, refused := s.Counts()
		return streams == 0 && kept == 0 && refused == 3 && len(s.Reports()) == 0
	})
	// two streams of one pod: the older one ends
	old := open("shop/twice")
	if _, err := old.Recv(); err != nil {
		t.Fatal(err)
	}
	open("shop/twice")
	if code := end(old); code != codes.Aborted {
		t.Errorf("the older stream: %s", code)
	}
}

// tooMuch is more edges than a proxy tells apart.
func tooMuch() []*reportv1.Update {
	var all []*reportv1.Update
	known, id := map[uint32]bool{}, uint32(0)
	for range edges.MaxEdges/edges.MaxDelta + 1 {
		var d edges.Delta
		for range edges.MaxDelta {
			id++
			d.Edges = append(d.Edges, edges.Edge{ID: id, Key: key(int(id)), First: noon, Last: noon})
		}
		all = append(all, edges.ToProto(d, known))
	}
	return all
}

// What gone pods said is kept for a while, and not for ever.
func TestGoneAreForgotten(t *testing.T) {
	s := NewServer(ServerConfig{Log: slog.New(slog.DiscardHandler)})
	now := time.Now()
	add := func(name string, gone time.Time) {
		src := &source{mirror: edges.NewMirror(), proxy: &reportv1.Proxy{}, gone: gone}
		if err := src.mirror.Apply(edges.Delta{Edges: []edges.Edge{{ID: 1, Key: key(1), Open: 3}}}); err != nil {
			t.Fatal(err)
		}
		s.kept[Pod{Namespace: "shop", Name: name}] = src
		s.edges++
	}
	add("live", time.Time{})
	add("long-gone", now.Add(-keepGone-time.Second))
	for i := range maxGone + 5 {
		add(fmt.Sprintf("gone-%04d", i), now.Add(-time.Minute).Add(time.Duration(i)*time.Millisecond))
	}
	all := s.Reports()
	if len(all) != maxGone+1 || s.edges != maxGone+1 {
		t.Errorf("%d reports with %d edges are kept, want %d", len(all), s.edges, maxGone+1)
	}
	if all[0].Pod.Name != "gone-0005" || all[0].Edges[0].Open != 0 {
		t.Errorf("the first is %+v", all[0])
	}
	s.makeRoom(now)
	if len(s.kept) != 1 || s.edges != 1 {
		t.Errorf("%d reports with %d edges are kept when there is no room, want 1", len(s.kept), s.edges)
	}
}

func TestPace(t *testing.T) {
	p := newPace(3, time.Second, noon)
	var waits []time.Duration
	now := noon
	for range 5 {
		w := p.spend(now)
		waits = append(waits, w)
		now = now.Add(w)
	}
	if want := []time.Duration{0, 0, time.Second, time.Second, time.Second}; !slices.Equal(waits, want) {
		t.Errorf("waits are %v, want %v", waits, want)
	}
	if w := p.spend(now.Add(time.Hour)); w != 0 {
		t.Errorf("after an hour of silence it waits %s", w)
	}
}

// A control plane that knows nothing of reports is left alone.
func TestOldControlPlane(t *testing.T) {
	e := &endpoint{t: t, l: bufconn.Listen(1 << 16)}
	calls := make(chan string, 10)
	g := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
		name, _ := grpc.MethodFromServerStream(s)
		calls <- name
		return status.Error(codes.Unimplemented, "unknown service")
	}))
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(e.l) }()
	defer func() { g.Stop(); <-done }()
	e.run("shop/web-1", edges.NewTable(10))
	if name := <-calls; name != reportv1.Reporting_Report_FullMethodName {
		t.Errorf("it called %s", name)
	}
	select {
	case <-calls:
		t.Error("it came again at once")
	case <-time.After(500 * time.Millisecond):
	}
}

// Each field of what a proxy says of itself is told when it changes.
func TestSame(t *testing.T) {
	fields := (&reportv1.Proxy{}).ProtoReflect().Descriptor().Fields()
	whole := func() *reportv1.Proxy {
		p := &reportv1.Proxy{}
		for i := range fields.Len() {
			fd := fields.Get(i)
			v, ok := map[protoreflect.Kind]any{protoreflect.StringKind: "x", protoreflect.Int64Kind: int64(1), protoreflect.Uint32Kind: uint32(1), protoreflect.BoolKind: true}[fd.Kind()]
			if !ok {
				t.Fatalf("%s: say here what another value of a %s is", fd.Name(), fd.Kind())
			}
			p.ProtoReflect().Set(fd, protoreflect.ValueOf(v))
		}
		return p
	}
	if !same(whole(), whole()) || same(whole(), nil) {
		t.Error("two that are the same, or nothing and something")
	}
	for i := range fields.Len() {
		other := whole()
		other.ProtoReflect().Clear(fields.Get(i))
		if same(whole(), other) {
			t.Errorf("a change of %s is not told", fields.Get(i).Name())
		}
	}
}
