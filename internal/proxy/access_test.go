package proxy

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/meshtest"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/wire"
	"podseal.io/podseal/internal/workload"
	"podseal.io/podseal/internal/xds"
)

const (
	clientPrincipal = "cluster.local/ns/shop/sa/client"
	webHost         = "GET %s HTTP/1.1\r\nHost: web\r\n%s\r\n"
)

// allow and deny are policies of namespace shop.
func allow(name string, rules ...policy.Rule) *policy.AuthorizationPolicy {
	return &policy.AuthorizationPolicy{Namespace: "shop", Name: name, Scope: policy.Namespace, Rules: rules}
}

func deny(name string, rules ...policy.Rule) *policy.AuthorizationPolicy {
	p := allow(name, rules...)
	p.Effect = policy.Deny
	return p
}

// on is a rule of one condition.
func on(a policy.Attribute, values ...string) policy.Rule {
	return policy.Rule{When: []policy.Match{{On: a, Values: values}}}
}

// enforce puts these policies in force at the server, and no other.
func (p *pair) enforce(policies ...*policy.AuthorizationPolicy) {
	p.t.Helper()
	var gone []string
	for _, old := range p.world.Access {
		gone = append(gone, old.Key())
	}
	p.world.Access = policies
	p.inside.worlds.handle(wire.TypeAuthorizationPolicy, nil, gone)
	p.tell()
}

// answerPath answers each request with its path, and keeps the connection.
func answerPath(c *net.TCPConn) {
	r := bufio.NewReader(c)
	for {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, req.Body)
		text := req.RequestURI
		_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
	}
}

// ask sends a request on an open connection and returns how it was answered.
func ask(t testing.TB, c net.Conn, r *bufio.Reader, path, fields string) (status int, body string, header http.Header) {
	t.Helper()
	if _, err := fmt.Fprintf(c, webHost, path, fields); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b), res.Header
}

// Contract 6.9, 6.19, 6.20, 6.36: TCP is judged by who the client has proved to be.
func TestAccessTCP(t *testing.T) {
	p := newPair(t, policy.TCP, meshtest.Echo)
	p.enforce(allow("client", on(policy.SourcePrincipal, clientPrincipal)))
	exchange(t, p.dial(), "mutual TLS")

	plain := p.connect(p.outsider(), p.app) // contract 6.39: a reset, and no byte
	_, _ = io.WriteString(plain, "no identity")
	if err := ends(t, plain); err == nil {
		t.Error("a denied connection ended in an orderly way, want a reset")
	}
	r := record(t, p.inside, withReason(policy.PolicyDenied))
	if r.Error != "no ALLOW policy matches" || r.Policy != "" || r.BytesSent != 0 {
		t.Errorf("record %+v", r)
	}

	other := p.meshTLS(p.connect(p.outsider(), p.app), identity.MustNew("cluster.local", "shop", "other"), "istio")
	_, _ = io.WriteString(other, "another identity")
	_ = ends(t, other)
	eventually(t, func() bool {
		n := 0
		for _, r := range p.inside.records.last() {
			if r.Reason == policy.PolicyDenied {
				n++
			}
		}
		return n == 2
	})
	if _, text := get(t, p.inside, 2, "GET", "/stats/prometheus"); !strings.Contains(text, `reason="policy_denied"`) { // design D14
		t.Error("the metric doesn't know policy_denied")
	}
}

// Contract 6.37: TLS that is passed on unread has proved nothing.
func TestAccessOpaqueTLS(t *testing.T) {
	p := newPair(t, policy.TCP, matrixApp(t))
	p.enforce(deny("strangers", policy.Rule{From: [][]policy.Match{{{On: policy.SourcePrincipal, NotValues: []string{"*"}}}}}))
	foreign := p.meshTLS(p.connect(p.outsider(), p.app), identity.ID{}, "http/1.1")
	if err := foreign.Handshake(); err == nil {
		t.Error("opaque TLS passes notPrincipals")
	}
	if r := record(t, p.inside, withReason(policy.PolicyDenied)); r.Policy != "ns[shop]-policy[strangers]-rule[0]" {
		t.Errorf("record %+v", r)
	}
}

// TestAccessBeforeGreeting: what speaks first says nothing to who is denied, which
// is better than contract 6.39.
func TestAccessBeforeGreeting(t *testing.T) {
	p := newPair(t, policy.TCP, meshtest.Greet("220 ready\r\n"))
	p.enforce(deny("plaintext", policy.Rule{From: [][]policy.Match{{{On: policy.SourcePrincipal, NotValues: []string{"*"}}}}}))
	c := p.connect(p.outsider(), p.app)
	got, _ := io.ReadAll(c)
	if len(got) > 0 {
		t.Errorf("a denied client got %q", got)
	}
	expect(t, p.dial(), "220 ready\r\n")
}

// Contract 6.9, 6.38: HTTP is judged request by request, on one connection.
func TestAccessHTTP(t *testing.T) {
	p := newPair(t, policy.HTTP, answerPath)
	p.enforce(deny("admin", on(policy.RequestPath, "/admin*")))
	c := p.dial()
	r := bufio.NewReader(c)
	if status, body, _ := ask(t, c, r, "/shop", ""); status != 200 || body != "/shop" {
		t.Errorf("%d %q", status, body)
	}
	status, body, header := ask(t, c, r, "/admin?x=1", "")
	if status != 403 || body != "RBAC: access denied" || header.Get("Content-Type") != "text/plain" || header.Get("Server") != "istio-envoy" {
		t.Errorf("%d %q %v", status, body, header)
	}
	for _, path := range []string{"/x/../admin", `/x\..\admin`, "/%61dmin", "/%6%31dmin", "/./admin/"} { // contract 2.53
		if status, body, _ := ask(t, c, r, path, ""); status != 403 {
			t.Errorf("%s: %d %q", path, status, body)
		}
	}
	if status, body, _ := ask(t, c, r, "/a/../shop?x=..#y", ""); status != 200 || body != "/shop?x=.." { // contract 2.54
		t.Errorf("%d %q", status, body)
	}
	c.Close()
	rec := record(t, p.inside, func(r Record) bool { return r.Requests == 8 })
	if rec.Reason != policy.None || rec.RequestsDenied != 6 || rec.Policy != "ns[shop]-policy[admin]-rule[0]" { // contract 6.11, 6.40
		t.Errorf("record %+v", rec)
	}
	if _, text := get(t, p.inside, 2, "GET", "/stats/prometheus"); !strings.Contains(text, `response_code="403"`) {
		t.Error("403 is not counted as a request")
	}
}

// TestAccessHeaders: policy sees what the application gets (contract 6.31, 2.47):
// a client without a certificate can't say x-forwarded-client-cert.
func TestAccessHeaders(t *testing.T) {
	p := newPair(t, policy.HTTP, answerPath)
	has := func(name, value string) policy.Rule {
		return policy.Rule{When: []policy.Match{{On: policy.RequestHeader, Key: []string{name}, Values: []string{value}}}}
	}
	p.enforce(allow("headers", has("x-team", "blue,red"), has("x-forwarded-client-cert", "*sa/client"), on(policy.RemoteIP, "203.0.113.7")))
	c := p.connect(p.outsider(), p.app)
	r := bufio.NewReader(c)
	for _, tt := range []struct {
		fields string
		want   int
	}{
		{"", 403},
		{"X-Team: blue\r\n", 403},
		{"X-Team: blue\r\nX-TEAM: red\r\n", 200},
		{"X-Forwarded-For: 1.1.1.1, 203.0.113.7\r\n", 200}, // contract 6.28
		{"X-Forwarded-For: 203.0.113.7, 1.1.1.1\r\n", 403},
		{"X-Forwarded-Client-Cert: URI=spiffe://a/ns/b/sa/client\r\n", 403},
	} {
		if status, _, _ := ask(t, c, r, "/", tt.fields); status != tt.want {
			t.Errorf("%q: %d, want %d", tt.fields, status, tt.want)
		}
	}
	mesh := p.dial()
	if status, _, _ := ask(t, mesh, bufio.NewReader(mesh), "/", ""); status != 200 {
		t.Errorf("with a certificate: %d", status)
	}
}

// TestAccessBody: a refused request whose body was not read ends the connection,
// and the response arrives.
func TestAccessBody(t *testing.T) {
	p := newPair(t, policy.HTTP, answerPath)
	p.enforce(allow("nobody"))
	c := p.dial()
	body := strings.Repeat("x", 1<<20)
	go func() {
		_, _ = fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	}()
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if got, err := io.ReadAll(res.Body); err != nil || res.StatusCode != http.StatusForbidden || string(got) != accessDenied || !res.Close {
		t.Errorf("%d %q %v, close %v", res.StatusCode, got, err, res.Close)
	}
}

// Design D13, better than contract 6.10: a change cuts what is now denied, at once,
// and nothing else.
func TestAccessChangeCutsTheDenied(t *testing.T) {
	p := newPair(t, policy.TCP, meshtest.Echo)
	mesh := p.dial()
	exchange(t, mesh, "x")
	plain := p.connect(p.outsider(), p.app)
	exchange(t, plain, "y")
	p.enforce(allow("client", on(policy.SourcePrincipal, clientPrincipal)))
	if err := ends(t, plain); err == nil {
		t.Error("the denied connection ended in an orderly way, want a reset")
	}
	record(t, p.inside, withReason(policy.PolicyChanged))
	exchange(t, mesh, "still there")
	p.enforce()
	exchange(t, mesh, "and still")
	exchange(t, p.connect(p.outsider(), p.app), "again")
}

// TestAccessChangeDuringRequest: a request that is under way is judged again, by
// its path, and an upgraded connection is a request that lasts.
func TestAccessChangeDuringRequest(t *testing.T) {
	begun := make(chan string, 8)
	p := newPair(t, policy.HTTP, func(c *net.TCPConn) {
		req, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		switch req.URL.Path {
		case "/idle":
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		case "/upgrade":
			_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")
		}
		begun <- req.URL.Path
		_, _ = io.Copy(c, c)
	})
	open := map[string]net.Conn{}
	for _, path := range []string{"/slow", "/other", "/upgrade", "/idle"} {
		c := p.dial()
		if _, err := fmt.Fprintf(c, webHost, path, "Connection: upgrade\r\nUpgrade: echo\r\n"); err != nil {
			t.Fatal(err)
		}
		if got := <-begun; got != path {
			t.Fatal(got)
		}
		open[path] = c
	}
	for _, path := range []string{"/idle", "/upgrade"} {
		if _, err := http.ReadResponse(bufio.NewReaderSize(open[path], 16), nil); err != nil {
			t.Fatal(err)
		}
	}
	p.enforce(deny("slow", on(policy.RequestPath, "/slow", "/upgrade")))
	for _, path := range []string{"/slow", "/upgrade"} {
		if err := ends(t, open[path]); err == nil {
			t.Errorf("%s ended in an orderly way, want a reset", path)
		}
	}
	if status, _, _ := ask(t, open["/idle"], bufio.NewReader(open["/idle"]), "/slow", ""); status != 403 {
		t.Errorf("the next request on a connection that is idle: %d", status)
	}
	eventually(t, func() bool { return len(p.inside.conns.all()) == 2 }) // /other and /idle
}

// Contract 6.42: a dry run decides nothing, and its judgement is in the record.
func TestAccessDryRun(t *testing.T) {
	p := newPair(t, policy.HTTP, answerPath)
	dry := deny("soon", on(policy.RequestPath, "/old*"))
	dry.DryRun = true
	audit := allow("audit", on(policy.RequestPath, "/old*"))
	audit.Effect = policy.Audit
	p.enforce(dry, audit)
	c := p.dial()
	r := bufio.NewReader(c)
	for _, path := range []string{"/old", "/new"} {
		if status, _, _ := ask(t, c, r, path, ""); status != 200 {
			t.Errorf("%s: %d", path, status)
		}
	}
	c.Close()
	rec := record(t, p.inside, anyRecord)
	if rec.DryRun != "denied" || rec.DryRunPolicy != "ns[shop]-policy[soon]-rule[0]" || rec.Audited != "ns[shop]-policy[audit]-rule[0]" || rec.RequestsDenied != 0 {
		t.Errorf("record %+v", rec)
	}
}

// TestAccessOfWorkload: a policy with a selector holds for who follows it; one that
// is followed and not known lets nobody in and cuts nobody; one that is taken away
// holds until the workload follows it no longer.
func TestAccessOfWorkload(t *testing.T) {
	p := newPair(t, policy.TCP, meshtest.Echo)
	mesh := p.dial()
	exchange(t, mesh, "open")
	p.server.Policies = []string{"shop/web"}
	p.tell()
	exchange(t, mesh, "not cut by what is not known")
	c := p.dial()
	_, _ = io.WriteString(c, "x")
	_ = ends(t, c)
	if r := record(t, p.inside, withReason(policy.PolicyDenied)); r.Policy != "shop/web" || !strings.Contains(r.Error, "not known") {
		t.Errorf("record %+v", r)
	}
	selected := allow("web", on(policy.SourcePrincipal, clientPrincipal))
	selected.Scope = policy.Workloads
	other := deny("other", policy.Rule{})
	other.Scope = policy.Workloads
	p.enforce(selected, other)
	exchange(t, mesh, "known, and allowed")
	plain := p.connect(p.outsider(), p.app)
	_, _ = io.WriteString(plain, "x")
	_ = ends(t, plain)
	p.inside.worlds.handle(wire.TypeAuthorizationPolicy, nil, []string{"shop/web"})
	again := p.connect(p.outsider(), p.app)
	_, _ = io.WriteString(again, "x")
	_ = ends(t, again) // still followed
	p.server.Policies, p.world.Access = nil, nil
	p.tell()
	exchange(t, p.connect(p.outsider(), p.app), "free")
}

// TestAccessStore: whom a policy concerns, and what becomes of one that can't be read.
func TestAccessStore(t *testing.T) {
	own := &workload.Workload{UID: "shop/web", Policies: []string{"root/selected"}}
	body := func(p *policy.AuthorizationPolicy) []byte {
		b, err := wire.AppendAuthorizationPolicy(nil, p)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	make1 := func(ns, name string, scope policy.Scope) xds.Resource {
		return xds.Resource{Name: ns + "/" + name, Body: body(&policy.AuthorizationPolicy{Namespace: ns, Name: name, Scope: scope, Rules: []policy.Rule{{}}})}
	}
	s := newAccessStore("shop/web")
	build := func(own *workload.Workload, trustDomains []string) *policy.Access {
		access, _ := s.build(own, trustDomains)
		return access
	}
	for _, r := range []xds.Resource{make1("shop", "a", policy.Namespace), make1("bank", "b", policy.Namespace), make1("bank", "c", policy.Workloads), make1("root", "m", policy.Mesh), make1("root", "selected", policy.MeshWorkloads)} {
		if err := s.putPolicy(r); err != nil {
			t.Fatal(err)
		}
	}
	if len(s.policies.known) != 3 {
		t.Errorf("kept %v, want those of the namespace and the mesh", s.policies.known)
	}
	a := build(own, []string{"cluster.local"})
	if a.Pending() != "" || build(own, []string{"cluster.local"}) != a {
		t.Errorf("pending %q, or built again without a change", a.Pending())
	}
	if err := s.putPolicy(make1("bank", "d", policy.Namespace)); err != nil || build(own, []string{"cluster.local"}) != a {
		t.Errorf("what concerns others makes a change: %v", err)
	}
	if err := s.putPolicy(xds.Resource{Name: "shop/a", Body: []byte{0xff}}); err == nil || build(own, []string{"cluster.local"}).Pending() != "" {
		t.Errorf("an unreadable new version takes the old one away: %v", err)
	}
	for name, b := range map[string][]byte{"shop/x": {0xff}, "shop/y": {0x12, 4, 's', 'h', 'o', 'p', 0x0a, 1, 'y', 0x18, 1, 0x20, 9}} {
		if err := s.putPolicy(xds.Resource{Name: name, Body: b}); err == nil || build(own, nil).Pending() != name {
			t.Errorf("%s can't be read, concerns us and lets pass: %v", name, err)
		}
		s.policies.remove(name)
		if p := build(own, nil).Pending(); p != "" {
			t.Errorf("%s is gone and still pending: %q", name, p)
		}
	}
	if err := s.putPolicy(xds.Resource{Name: "bank/x", Body: []byte{0xff}}); err == nil || build(own, nil).Pending() != "" {
		t.Errorf("what can't be read and doesn't concern us closes the door: %v", err)
	}
}

// logLines keeps a log.
type logLines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logLines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logLines) all() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// TestDeniedIsLoggedOnce: the first request that is denied is logged at once, and
// no query of it.
func TestDeniedIsLoggedOnce(t *testing.T) {
	m := newTestMesh(t)
	server, lines := m.pod("web"), &logLines{}
	app := meshtest.Serve(t, server.Addresses[0], answerPath)
	m.world.Service("web", vip(80), policy.HTTP, app.Port(), server)
	m.world.Access = []*policy.AuthorizationPolicy{allow("nobody")}
	m.start(server, func(c *Config) { c.Log = slog.New(slog.NewTextHandler(lines, nil)) })
	c := m.connect(m.outsider(), app)
	r := bufio.NewReader(c)
	for range 3 {
		ask(t, c, r, "/a?token=secret", "")
	}
	if got := lines.all(); strings.Count(got, "request denied") != 1 || !strings.Contains(got, " path=/a ") || strings.Contains(got, "secret") || !strings.Contains(got, "reason=policy_denied") {
		t.Errorf("log %q", got)
	}
}

// worldOf is a world in which this is who may reach the workload.
func worldOf(access *policy.Access) func() *workload.World {
	w := &workload.World{Access: access}
	return func() *workload.World { return w }
}

// someAccess lets the client in, but not to /admin.
func someAccess(b testing.TB) *policy.Access {
	b.Helper()
	access, err := policy.NewAccess([]*policy.AuthorizationPolicy{allow("a", on(policy.RequestPath, "/x*"), on(policy.SourcePrincipal, clientPrincipal)), deny("d", on(policy.RequestPath, "/admin*"))}, nil, []string{"cluster.local"})
	if err != nil {
		b.Fatal(err)
	}
	return access
}

// BenchmarkJudgeRequest is what policy costs a request, reading its head included.
func BenchmarkJudgeRequest(b *testing.B) {
	access := someAccess(b)
	h := &httpRelay{Gate: &gate{World: worldOf(access), Attempt: policy.Attempt{Peer: policy.NewPeer(identity.MustNew("cluster.local", "shop", "client"))}}}
	head := []byte("GET /index.html HTTP/1.1\r\nhost: web\r\nuser-agent: curl/8\r\naccept: */*\r\nx-request-id: 00000000-0000-4000-8000-000000000000\r\n\r\n")
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := h.judge(b.Context(), head, 0, wire.Body{}); !ok {
			b.Fatal("denied")
		}
	}
}
