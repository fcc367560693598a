package xds

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"podseal.io/podseal/internal/xds/xdspb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var discard = slog.New(slog.DiscardHandler)

// rig is a server and clients in one bubble of fake time.
type rig struct {
	t     *testing.T
	store *Store

	mu       sync.Mutex
	listener *bufconn.Listener // nil while the server is down
	server   *Server
	dials    int
	auth     func(ctx context.Context) (string, error)
	node     func(peer string, node Node) error
}

func newRig(t *testing.T) *rig { return &rig{t: t, store: NewStore()} }

// up starts a server and returns what stops it.
func (r *rig) up() (down func()) {
	server := NewServer(ServerConfig{
		Store: r.store,
		Authenticate: func(ctx context.Context) (string, error) {
			if r.auth != nil {
				return r.auth(ctx)
			}
			return "peer", nil
		},
		Authorize: r.node,
		Log:       discard,
	})
	g := grpc.NewServer(ServerOptions()...)
	server.Register(g)
	l := bufconn.Listen(1 << 16)
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := g.Serve(l); err != nil {
			r.t.Errorf("serve: %v", err)
		}
	})
	r.mu.Lock()
	r.listener, r.server = l, server
	r.mu.Unlock()
	return func() {
		r.mu.Lock()
		r.listener = nil
		r.mu.Unlock()
		server.Shutdown()
		g.Stop()
		server.Wait()
		serving.Wait()
	}
}

func (r *rig) dial() *grpc.ClientConn {
	conn, err := grpc.NewClient("passthrough:///server", append(DialOptions(),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			r.mu.Lock()
			l := r.listener
			r.dials++
			r.mu.Unlock()
			if l == nil {
				return nil, errors.New("connection refused")
			}
			return l.DialContext(ctx)
		}))...)
	if err != nil {
		r.t.Fatal(err)
	}
	return conn
}

func (r *rig) dialed() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.dials
}

// table is what a client's handler has in force.
type table struct {
	mu      sync.Mutex
	inForce map[string]string // by name
	calls   []string          // "+a=1 -b", one per call
}

func (tb *table) handle(_ string, upserts []Resource, removed []string) map[string]error {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	rejected := map[string]error{}
	var call []string
	for _, u := range upserts {
		call = append(call, "+"+u.Name+"="+string(u.Body))
		if strings.HasPrefix(string(u.Body), "!") {
			rejected[u.Name] = errors.New("marked as bad")
			continue
		}
		tb.inForce[u.Name] = string(u.Body)
	}
	for _, name := range removed {
		call = append(call, "-"+name)
		delete(tb.inForce, name)
	}
	tb.calls = append(tb.calls, strings.Join(call, " "))
	return rejected
}

func (tb *table) is(t *testing.T, want map[string]string) {
	t.Helper()
	tb.mu.Lock()
	defer tb.mu.Unlock()
	if !maps.Equal(tb.inForce, want) {
		t.Errorf("in force: %v, want %v", tb.inForce, want)
	}
}

func (tb *table) took() []string {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	calls := tb.calls
	tb.calls = nil
	return calls
}

// client runs a client until the returned function is called.
func (r *rig) client(cfg ClientConfig) (*Client, *table, func()) {
	tb := &table{inForce: map[string]string{}}
	conn := r.dial()
	cfg.Conn, cfg.Types, cfg.Handle, cfg.Log = conn, []string{"W"}, tb.handle, discard
	cfg.Rand = func() float64 { return 0 }
	if cfg.NodeID == "" {
		cfg.NodeID = "node"
	}
	c := NewClient(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := c.Run(ctx); !errors.Is(err, context.Canceled) {
			r.t.Errorf("run: %v", err)
		}
	})
	return c, tb, func() {
		cancel()
		running.Wait()
		if err := conn.Close(); err != nil {
			r.t.Errorf("close: %v", err)
		}
	}
}

func bodies(kv map[string]string) map[string][]byte {
	out := map[string][]byte{}
	for k, v := range kv {
		out[k] = []byte(v)
	}
	return out
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func TestStreamFollowsTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer r.up()()
		c, tb, stop := r.client(ClientConfig{Metadata: map[string]string{"NAMESPACE": "shop"}})
		defer stop()
		synctest.Wait()
		if isClosed(c.Synced()) {
			t.Error("synced before the store was filled")
		}
		r.store.Replace("W", bodies(map[string]string{"a": "1", "b": "2"}))
		synctest.Wait()
		tb.is(t, map[string]string{"a": "1", "b": "2"})
		if !isClosed(c.Synced()) {
			t.Error("not synced after the first response of every type")
		}
		r.store.Replace("W", bodies(map[string]string{"b": "3", "c": "!"}))
		synctest.Wait()
		tb.is(t, map[string]string{"b": "3"})
		r.store.Replace("W", bodies(map[string]string{"b": "3", "c": "!", "d": "4"}))
		synctest.Wait()
		if got, want := tb.took(), []string{"+a=1 +b=2", "+b=3 +c=! -a", "+d=4"}; !slices.Equal(got, want) {
			t.Errorf("the handler got %q, want %q", got, want)
		}
		peers := r.server.Peers()
		if len(peers) != 1 {
			t.Fatalf("%d peers, want 1", len(peers))
		}
		p, w := peers[0], peers[0].Types["W"]
		if p.Peer != "peer" || p.Node.ID != "node" || p.Node.Metadata["NAMESPACE"] != "shop" {
			t.Errorf("peer %+v", p)
		}
		if w.Sent != 3 || w.Waiting || !slices.Equal(w.Rejected, []string{"c"}) || !strings.Contains(w.NackText, "marked as bad") || w.LastAck.IsZero() || w.LastNack.IsZero() {
			t.Errorf("type status %+v", w)
		}
		if w.Generation != r.store.Generation("W") {
			t.Errorf("generation %d, want %d", w.Generation, r.store.Generation("W"))
		}
		if st := c.Status(); !st.Connected || !st.Synced || st.Held["W"] != 2 {
			t.Errorf("client status %+v", st)
		}
	})
}

// TestStreamReconnects takes the server away: what is in force stays, retries
// become rarer, and another server sends only the difference.
func TestStreamReconnects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		down := r.up()
		r.store.Replace("W", bodies(map[string]string{"a": "1", "b": "2", "c": "3"}))
		c, tb, stop := r.client(ClientConfig{})
		defer stop()
		synctest.Wait()
		tb.took()
		down()
		synctest.Wait()
		if st := c.Status(); st.Connected || st.LastError == "" || !st.Synced {
			t.Errorf("client status without a server: %+v", st)
		}
		before := r.dialed()
		time.Sleep(10 * time.Minute)
		if n := r.dialed() - before; n < 40 || n > 200 {
			t.Errorf("%d dials in ten minutes without a server", n)
		}
		tb.is(t, map[string]string{"a": "1", "b": "2", "c": "3"})

		// Another server has its own store, not yet filled.
		r.store = NewStore()
		defer r.up()()
		time.Sleep(maxPause + 5*time.Second)
		synctest.Wait()
		tb.is(t, map[string]string{"a": "1", "b": "2", "c": "3"})
		r.store.Replace("W", bodies(map[string]string{"a": "1", "c": "4", "d": "5"}))
		synctest.Wait()
		tb.is(t, map[string]string{"a": "1", "c": "4", "d": "5"})
		if got, want := tb.took(), []string{"+c=4 +d=5 -b"}; !slices.Equal(got, want) {
			t.Errorf("the handler got %q, want %q", got, want)
		}
	})
}

func TestStreamHeldFromAnEarlierRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer r.up()()
		r.store.Replace("W", bodies(map[string]string{"a": "1", "b": "2"}))
		c, tb, stop := r.client(ClientConfig{Held: map[string]map[string]string{"W": {"a": versionOf([]byte("1")), "gone": "x"}}})
		defer stop()
		synctest.Wait()
		if got, want := tb.took(), []string{"+b=2 -gone"}; !slices.Equal(got, want) {
			t.Errorf("the handler got %q, want %q", got, want)
		}
		if st := c.Status(); st.Held["W"] != 2 {
			t.Errorf("client status %+v", st)
		}
	})
}

// TestStreamBackoff looks at the pauses between attempts that are refused.
func TestStreamBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		var at []time.Time
		r.auth = func(context.Context) (string, error) {
			at = append(at, time.Now())
			return "", errors.New("secret detail")
		}
		defer r.up()()
		c, _, stop := r.client(ClientConfig{})
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if st := c.Status(); !strings.Contains(st.LastError, "Unauthenticated") || strings.Contains(st.LastError, "secret") {
			t.Errorf("last error %q", st.LastError)
		}
		stop()
		var pauses []time.Duration
		for i := range len(at) - 1 {
			pauses = append(pauses, at[i+1].Sub(at[i]))
		}
		want := minPause / 2
		for i, p := range pauses {
			if p != want {
				t.Fatalf("pause %d is %s, want %s (all: %v)", i, p, want, pauses)
			}
			want = min(2*want, maxPause/2)
		}
		if len(pauses) < 10 {
			t.Errorf("only %d retries", len(pauses))
		}
	})
}

// TestStreamToken checks that the token is read at every connect and that the
// claimed node is checked (contract 4.20).
func TestStreamToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		var tokens []string
		r.auth = func(ctx context.Context) (string, error) {
			md, _ := metadata.FromIncomingContext(ctx)
			tokens = append(tokens, md.Get("authorization")...)
			return "shop/web", nil
		}
		r.node = func(peer string, node Node) error {
			if node.Metadata["NAMESPACE"]+"/"+node.Metadata["SERVICE_ACCOUNT"] != peer {
				return errors.New("not yours")
			}
			return nil
		}
		defer r.up()()
		n := 0
		c, _, stop := r.client(ClientConfig{
			Metadata: map[string]string{"NAMESPACE": "bank", "SERVICE_ACCOUNT": "vault"},
			Token: func() (string, error) {
				if n++; n == 2 {
					return "", errors.New("no such file")
				}
				return fmt.Sprint("token-", n), nil
			},
		})
		time.Sleep(300 * time.Millisecond)
		synctest.Wait()
		if st := c.Status(); !strings.Contains(st.LastError, "PermissionDenied") {
			t.Errorf("last error %q", st.LastError)
		}
		stop()
		if len(tokens) < 2 || tokens[0] != "Bearer token-1" || tokens[1] != "Bearer token-3" {
			t.Errorf("tokens %q", tokens)
		}
		if peers := r.server.Peers(); len(peers) != 0 {
			t.Errorf("a refused node is listed: %+v", peers)
		}
	})
}

// TestStreamMany has 2,000 resources and clients that come and go while they
// change. At the end all have what is in the store.
func TestStreamMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer r.up()()
		all := map[string]string{}
		for i := range 2000 {
			all[fmt.Sprintf("shop/workload-%04d", i)] = strings.Repeat("x", 300)
		}
		r.store.Replace("W", bodies(all))
		var tables []*table
		for i := range 4 {
			_, tb, stop := r.client(ClientConfig{NodeID: fmt.Sprint("n", i)})
			defer stop()
			tables = append(tables, tb)
		}
		for i := range 200 {
			all[fmt.Sprintf("shop/workload-%04d", i)] = fmt.Sprint("changed ", i)
			delete(all, fmt.Sprintf("shop/workload-%04d", 1000+i))
			r.store.Replace("W", bodies(all))
		}
		synctest.Wait()
		for _, tb := range tables {
			tb.is(t, all)
		}
		if got := r.server.Peers(); len(got) != 4 || got[0].Node.ID != "n0" || got[3].Types["W"].Sent != 1800 {
			t.Errorf("peers %+v", got)
		}
	})
}

// TestStreamCoalesces has a handler that takes its time: what changes meanwhile
// comes in one response.
func TestStreamCoalesces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer r.up()()
		r.store.Replace("W", nil)
		conn := r.dial()
		defer conn.Close()
		goOn, calls := make(chan struct{}), make(chan string, 100)
		c := NewClient(ClientConfig{Conn: conn, NodeID: "n", Types: []string{"W"}, Log: discard, Handle: func(_ string, upserts []Resource, removed []string) map[string]error {
			calls <- fmt.Sprintf("%s=%s -%v", upserts[0].Name, upserts[0].Body, removed)
			<-goOn
			return nil
		}})
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { _ = c.Run(ctx) })
		synctest.Wait()
		for i := range 50 {
			r.store.Replace("W", bodies(map[string]string{"a": fmt.Sprint(i)}))
			synctest.Wait()
		}
		if got := r.server.Peers()[0].Types["W"]; !got.Waiting || got.Generation == r.store.Generation("W") {
			t.Errorf("while the client works: %+v", got)
		}
		close(goOn)
		synctest.Wait()
		if got := r.server.Peers()[0].Types["W"]; got.Waiting || got.Generation != r.store.Generation("W") {
			t.Errorf("afterwards: %+v", got)
		}
		cancel()
		running.Wait()
		close(calls)
		var got []string
		for call := range calls {
			got = append(got, call)
		}
		if want := []string{"a=0 -[]", "a=49 -[]"}; !slices.Equal(got, want) {
			t.Errorf("the handler got %q, want %q", got, want)
		}
	})
}

// TestStreamLargeStart has initial versions that exceed the window of a stream,
// in several types, and a response that does too: neither end may wait for ever.
func TestStreamLargeStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer r.up()()
		types := []string{"A", "B", "C", "D"}
		held := map[string]map[string]string{}
		for _, typeURL := range types {
			held[typeURL] = map[string]string{}
			all := map[string][]byte{}
			for i := range 5000 {
				name := fmt.Sprintf("a-rather-long-namespace/a-rather-long-name-%05d", i)
				held[typeURL][name] = versionOf([]byte("old"))
				all[name] = []byte(strings.Repeat("new", 100))
			}
			r.store.Replace(typeURL, all)
		}
		conn := r.dial()
		defer conn.Close()
		n := 0
		c := NewClient(ClientConfig{Conn: conn, NodeID: "n", Types: types, Held: held, Log: discard, Handle: func(_ string, upserts []Resource, removed []string) map[string]error {
			n += len(upserts) - len(removed)
			return nil
		}})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var running sync.WaitGroup
		running.Go(func() { _ = c.Run(ctx) })
		select {
		case <-c.Synced():
		case <-ctx.Done():
			t.Error("never synced")
		}
		cancel()
		running.Wait()
		if n != 20_000 {
			t.Errorf("%d resources, want 20000", n)
		}
	})
}

// TestStreamWholeWhenVersionsDontFit has more held than one request can name.
func TestStreamWholeWhenVersionsDontFit(t *testing.T) {
	r := newReplica([]string{"W"}, map[string]map[string]string{"W": {"a": "1", "b": "2"}})
	r.limit = 10
	if req := r.open("n", nil)[0]; len(req.GetInitialResourceVersions()) != 0 {
		t.Fatalf("initial versions %v", req.GetInitialResourceVersions())
	}
	var removed []string
	handle := func(_ string, _ []Resource, gone []string) map[string]error {
		removed = append(removed, gone...)
		return nil
	}
	store := NewStore()
	store.Replace("W", bodies(map[string]string{"b": "2", "c": "3"}))
	s := newSession()
	out, err := s.step(event{req: &xdspb.DeltaDiscoveryRequest{TypeUrl: "W"}, view: store.view()})
	if err != nil {
		t.Fatal(err)
	}
	r.apply(out[0], handle)
	if !slices.Equal(removed, []string{"a"}) || len(r.held["W"]) != 2 {
		t.Errorf("removed %v, held %v", removed, r.held)
	}
}

func TestReplicaRefusesOddResponses(t *testing.T) {
	r := newReplica([]string{"W"}, map[string]map[string]string{"W": {"old": "1"}})
	r.open("n", nil)
	var got []string
	handle := func(_ string, upserts []Resource, removed []string) map[string]error {
		for _, u := range upserts {
			got = append(got, "+"+u.Name+u.Version)
		}
		for _, name := range removed {
			got = append(got, "-"+name)
		}
		return nil
	}
	if answer := r.apply(&xdspb.DeltaDiscoveryResponse{TypeUrl: "X", Nonce: "1"}, handle); answer.GetErrorDetail() == nil {
		t.Error("a type that was not asked for is taken")
	}
	ok := newEntry("W", "ok", []byte("1")).wire
	again := &xdspb.Resource{Name: "ok", Version: "2", Resource: ok.GetResource()}
	answer := r.apply(&xdspb.DeltaDiscoveryResponse{TypeUrl: "W", Nonce: "2", RemovedResources: []string{"never", "old", "old", "ok"}, Resources: []*xdspb.Resource{
		nil,
		{Name: "*", Version: "1"},
		{Name: "bare", Version: "1"},
		{Name: "unversioned", Resource: ok.GetResource()},
		newEntry("X", "foreign", nil).wire,
		ok, again,
	}}, handle)
	if want := []string{"+ok2", "-old"}; !slices.Equal(got, want) {
		t.Errorf("handled %q, want %q", got, want)
	}
	if names := parseNack(answer.GetErrorDetail().GetMessage()); !slices.Equal(names, []string{"", "*", "bare", "foreign", "unversioned"}) {
		t.Errorf("rejected %q", names)
	}
	if !maps.Equal(r.held["W"], map[string]string{"ok": "2"}) {
		t.Errorf("held %v", r.held)
	}
}

// TestServerRefuses opens raw streams that misbehave.
func TestServerRefuses(t *testing.T) {
	long := strings.Repeat("x", maxName+1)
	many := make([]string, maxNames+1)
	for i := range many {
		many[i] = "n"
	}
	for name, c := range map[string]struct {
		requests []*xdspb.DeltaDiscoveryRequest
		want     codes.Code
	}{
		"no type":       {[]*xdspb.DeltaDiscoveryRequest{{}}, codes.InvalidArgument},
		"long type":     {[]*xdspb.DeltaDiscoveryRequest{{TypeUrl: long}}, codes.InvalidArgument},
		"long name":     {[]*xdspb.DeltaDiscoveryRequest{{TypeUrl: "W", ResourceNamesSubscribe: []string{long}}}, codes.InvalidArgument},
		"long version":  {[]*xdspb.DeltaDiscoveryRequest{{TypeUrl: "W", InitialResourceVersions: map[string]string{"a": long}}}, codes.InvalidArgument},
		"many names":    {[]*xdspb.DeltaDiscoveryRequest{{TypeUrl: "W", ResourceNamesSubscribe: many}}, codes.ResourceExhausted},
		"large message": {[]*xdspb.DeltaDiscoveryRequest{{TypeUrl: "W", ResponseNonce: strings.Repeat("x", maxRequest)}}, codes.ResourceExhausted},
		"silence":       {nil, codes.DeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t)
				defer r.up()()
				conn := r.dial()
				defer conn.Close()
				g, err := xdspb.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				for _, req := range c.requests {
					_ = g.Send(req) // Recv knows why it failed
				}
				if _, err := g.Recv(); status.Code(err) != c.want {
					t.Errorf("stream ends with %v, want %s", err, c.want)
				}
			})
		})
	}
}

func TestSessionManyTypes(t *testing.T) {
	s := newSession()
	for i := range maxTypes {
		if _, err := s.step(event{req: &xdspb.DeltaDiscoveryRequest{TypeUrl: fmt.Sprint(i)}}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.step(event{req: &xdspb.DeltaDiscoveryRequest{TypeUrl: "one more"}}); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("one type too many: %v", err)
	}
}

func TestServerShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		down := r.up()
		r.store.Replace("W", nil)
		c, _, stop := r.client(ClientConfig{})
		defer stop()
		synctest.Wait()
		if !c.Status().Connected {
			t.Fatal("not connected")
		}
		r.server.Shutdown()
		r.server.Shutdown()
		synctest.Wait()
		if st := c.Status(); st.Connected || !strings.Contains(st.LastError, "Unavailable") {
			t.Errorf("client status %+v", st)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if n := len(r.server.Peers()); n != 0 {
			t.Errorf("%d streams after the shutdown", n)
		}
		down()
	})
}

func TestStore(t *testing.T) {
	s := NewStore()
	changed := s.Changed()
	if s.Generation("W") != 0 || s.Resources("W") != nil {
		t.Error("an unknown type has content")
	}
	if !s.Replace("W", nil) || !isClosed(changed) {
		t.Error("that a type is empty is news the first time")
	}
	changed = s.Changed()
	if s.Replace("W", nil) || isClosed(changed) {
		t.Error("a change that is none was reported")
	}
	if !s.Replace("W", bodies(map[string]string{"b": "", "a": "1"})) || s.Replace("W", bodies(map[string]string{"a": "1", "b": ""})) {
		t.Error("only different content is a change")
	}
	got := s.Resources("W")
	if len(got) != 2 || got[0].Name != "a" || len(got[0].Version) != 22 || got[0].Version == got[1].Version {
		t.Errorf("resources %v", got)
	}
	if !s.Replace("W", bodies(map[string]string{"a": "1", "c": ""})) || s.Generation("W") != 3 {
		t.Errorf("a renamed resource is a change; generation %d", s.Generation("W"))
	}
	b, err := s.DebugJSON()
	if want := fmt.Sprintf("{\n  \"W\": {\n    \"generation\": 3,\n    \"resources\": {\n      \"a\": %q,\n      \"c\": %q\n    }\n  }\n}", got[0].Version, got[1].Version); err != nil || string(b) != want {
		t.Errorf("%v, %s", err, b)
	}
}
