package proxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"podseal.io/podseal/internal/authpb"
	"podseal.io/podseal/internal/meshtest"
	"podseal.io/podseal/internal/policy"
)

// grpcAuthorizer denies what has x-deny, and keeps what it was asked.
type grpcAuthorizer struct {
	authpb.UnimplementedAuthorizationServer
	mu   sync.Mutex
	last *authpb.AttributeContext
}

func (a *grpcAuthorizer) asked() *authpb.AttributeContext {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.last
}

func (a *grpcAuthorizer) Check(ctx context.Context, r *authpb.CheckRequest) (*authpb.CheckResponse, error) {
	a.mu.Lock()
	a.last = r.GetAttributes()
	a.mu.Unlock()
	value := func(k, v string) *authpb.HeaderValueOption {
		return &authpb.HeaderValueOption{Header: &authpb.HeaderValue{Key: k, Value: v}}
	}
	h := r.GetAttributes().GetRequest().GetHttp()
	if how := h.GetHeaders()["x-deny"]; how != "" {
		denied := &authpb.DeniedHttpResponse{Status: &authpb.HttpStatus{Code: 418}, Headers: []*authpb.HeaderValueOption{value("X-Why", how), value("x-bad", "a\r\nb: c"), value("content-length", "1")}, Body: "teapot"}
		return &authpb.CheckResponse{Status: &authpb.Status{Code: 7}, HttpResponse: &authpb.CheckResponse_DeniedResponse{DeniedResponse: denied}}, nil
	}
	if h.GetHeaders()["x-hang"] != "" {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if h == nil && r.GetAttributes().GetSource().GetPrincipal() == "" {
		return &authpb.CheckResponse{Status: &authpb.Status{Code: 7}}, nil
	}
	more := value("x-more", "2")
	more.Append = wrapperspb.Bool(true)
	ok := &authpb.OkHttpResponse{
		Headers: []*authpb.HeaderValueOption{value("X-User", "joe"), more, value("host", "evil")}, HeadersToRemove: []string{"X-Secret", "host"},
		ResponseHeadersToAdd: []*authpb.HeaderValueOption{value("x-checked", "yes")},
	}
	return &authpb.CheckResponse{Status: &authpb.Status{}, HttpResponse: &authpb.CheckResponse_OkResponse{OkResponse: ok}}, nil
}

// authorizedPair is a pair with a pod "authz" in the mesh, STRICT, whose Service
// leads to a server.
func authorizedPair(t *testing.T, proto policy.Protocol, serve func(l net.Listener), app func(*net.TCPConn), a policy.Authorizer) *pair {
	t.Helper()
	m := newTestMesh(t)
	p := &pair{testMesh: m, client: m.pod("client"), server: m.pod("web"), service: vip(80)}
	authz := m.pod("authz")
	p.app = meshtest.Serve(t, p.server.Addresses[0], app)
	m.world.Service("web", p.service, proto, p.app.Port(), p.server)
	l, err := net.Listen("tcp", netip.AddrPortFrom(authz.Addresses[0], 0).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go serve(l)
	m.world.Service("authz", vip(9000), policy.TCP, addrPort(l.Addr()).Port(), authz)
	authz.Modes.Default = policy.Strict
	a.Name, a.Host, a.Port = "opa", "authz.shop.svc.cluster.local", 9000
	if a.Timeout == 0 {
		a.Timeout = 10 * time.Second
	}
	a.StatusOnError = 403
	m.world.Mesh.Authorizers = []policy.Authorizer{a}
	p.server.Policies = []string{"shop/ext"}
	m.world.Access = []*policy.AuthorizationPolicy{custom(on(policy.RequestPath, "/none"))}
	p.inside = m.start(p.server)
	p.clientSide = m.start(p.client)
	m.start(authz)
	return p
}

func custom(rules ...policy.Rule) *policy.AuthorizationPolicy {
	p := allow("ext", rules...)
	p.Effect, p.Authorizer = policy.Custom, "opa"
	p.Scope = policy.Workloads // the authorizer itself isn't asked about
	return p
}

func serveGRPC(t *testing.T, a *grpcAuthorizer) func(net.Listener) {
	t.Helper()
	s := grpc.NewServer()
	authpb.RegisterAuthorizationServer(s, a)
	t.Cleanup(s.Stop)
	return func(l net.Listener) { _ = s.Serve(l) }
}

// TestAuthorizerGRPC: a CUSTOM policy asks over gRPC, by mutual TLS, before all
// others; and what the answer says happens. Contract 6.4, 6.43, 6.44, 2.60.
func TestAuthorizerGRPC(t *testing.T) {
	authz := &grpcAuthorizer{}
	p := authorizedPair(t, policy.HTTP, serveGRPC(t, authz), tellHead, policy.Authorizer{MaxBody: 4, PartialBody: true})
	later := deny("later", on(policy.RequestPath, "/a/never"))
	later.Scope = policy.Workloads // where there is no HTTP it would deny everything
	p.server.Policies = []string{"shop/ext", "shop/later"}
	p.enforce(custom(on(policy.RequestPath, "/a*")), later)
	c := p.dial()
	r := bufio.NewReader(c)
	status, body, header := ask(t, c, r, "/a?b=c", "X-User: root\r\nX-Secret: s\r\nx-more: 1\r\n")
	if status != 200 || !strings.Contains(body, "x-user=joe") || strings.Contains(body, "root") || strings.Contains(body, "x-secret") || !strings.Contains(body, "x-more=1|2") || header.Get("X-Checked") != "yes" {
		t.Errorf("agreed: %d %s %v", status, body, header)
	}
	got := authz.asked()
	if h := got.GetRequest().GetHttp(); h.GetPath() != "/a?b=c" || h.GetMethod() != "GET" || h.GetHost() != "web" || h.GetHeaders()["x-secret"] != "s" || h.GetHeaders()[":path"] != "/a?b=c" || h.GetProtocol() != "HTTP/1.1" ||
		got.GetSource().GetPrincipal() != "spiffe://cluster.local/ns/shop/sa/client" || got.GetDestination().GetPrincipal() != "spiffe://cluster.local/ns/shop/sa/web" || got.GetDestination().GetAddress().GetSocketAddress().GetPortValue() != uint32(p.app.Port()) {
		t.Errorf("asked %v", got)
	}
	status, body, header = ask(t, c, r, "/a", "X-Deny: because\r\n")
	if status != 418 || body != "teapot" || header.Get("X-Why") != "because" || header.Get("X-Bad") != "" || header.Get("b") != "" {
		t.Errorf("denied: %d %q %v", status, body, header)
	}
	if status, _, _ = ask(t, c, r, "/b", "X-Deny: x\r\n"); status != 200 {
		t.Errorf("what no rule matches is asked about: %d", status)
	}
	if status, body, _ = ask(t, c, r, "/a/never", ""); status != 403 || body != accessDenied {
		t.Errorf("DENY after the authorizer has agreed: %d %q", status, body)
	}
	for _, request := range []string{
		"POST /a HTTP/1.1\r\nHost: web\r\nContent-Length: 6\r\nExpect: 100-continue\r\n\r\nabcdef",
		"POST /a HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n",
	} {
		if _, err := io.WriteString(c, request); err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(r, nil)
		for err == nil && res.StatusCode == http.StatusContinue {
			res, err = http.ReadResponse(r, nil)
		}
		if err != nil || res.StatusCode != http.StatusOK {
			t.Fatalf("with a body: %v %v", res, err)
		}
		_, _ = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
		if h := authz.asked().GetRequest().GetHttp(); h.GetBody() != "abcd" || h.GetHeaders()["x-envoy-auth-partial-body"] != "true" {
			t.Errorf("the authorizer got of the body %q", h.GetBody())
		}
	}
	// The call itself was mutual TLS, and the world sees it.
	found := false
	for _, c := range p.inside.calls.all() {
		r := c.snapshot(time.Now())
		found = found || r.Security == securityMutualTLS && r.DestinationIdentity == "cluster.local/ns/shop/sa/authz"
	}
	if !found {
		t.Error("the authorizer was not asked by mutual TLS")
	}
	p.world.Mesh.Authorizers = nil // contract 6.44: an unknown one denies
	p.tell()
	if status, body, _ = ask(t, c, r, "/a", ""); status != 403 || body != accessDenied {
		t.Errorf("an unknown authorizer: %d %q", status, body)
	}
}

// TestAuthorizerFails: who can't be asked denies, or with failOpen doesn't. Contract 6.44.
func TestAuthorizerFails(t *testing.T) {
	authz := &grpcAuthorizer{}
	p := authorizedPair(t, policy.HTTP, serveGRPC(t, authz), tellHead, policy.Authorizer{Timeout: 50 * time.Millisecond})
	p.enforce(custom(policy.Rule{}))
	c := p.dial()
	r := bufio.NewReader(c)
	a := &p.world.Mesh.Authorizers[0]
	for _, tt := range []struct {
		change func()
		fields string
		status int
	}{
		{func() { a.StatusOnError = 503 }, "X-Hang: x\r\n", 503},
		{func() { a.FailOpen = true }, "X-Hang: x\r\n", 200},
		{func() { a.Port = 9 }, "", 200},
		{func() { a.FailOpen = false }, "", 503},
		{func() { *a = policy.Authorizer{Name: "opa", Unusable: "it has a fault"} }, "", 403},
	} {
		tt.change()
		p.tell()
		if status, body, _ := ask(t, c, r, "/a", tt.fields); status != tt.status {
			t.Errorf("%+v: %d %q, want %d", *a, status, body, tt.status)
		}
	}
}

// TestAuthorizerTCP: what isn't HTTP is asked about over gRPC, and cut; over HTTP
// nobody is asked. Contract 6.35.
func TestAuthorizerTCP(t *testing.T) {
	authz := &grpcAuthorizer{}
	p := authorizedPair(t, policy.TCP, serveGRPC(t, authz), meshtest.Echo, policy.Authorizer{})
	p.enforce(custom(policy.Rule{}))
	c := p.dial()
	exchange(t, c, "agreed")
	if got := authz.asked(); got.GetRequest().GetHttp() != nil || got.GetSource().GetPrincipal() == "" {
		t.Errorf("asked %v", got)
	}
	plain := p.connect(p.outsider(), p.app)
	_, _ = io.WriteString(plain, "nobody")
	if err := ends(t, plain); err == nil {
		t.Error("who is denied ends in an orderly way")
	}
	if r := record(t, p.inside, withReason(policy.PolicyDenied)); !strings.Contains(r.Error, "the authorizer opa denies it") {
		t.Errorf("record %+v", r)
	}
	p.world.Mesh.Authorizers[0].HTTP = true
	p.tell()
	exchange(t, p.dial(), "not asked")
	p.world.Mesh.Authorizers = nil
	p.tell()
	exchange(t, c, "was agreed to") // by the authorizer of that name
	p.server.Policies = []string{"shop/ext", "shop/other"}
	p.enforce(custom(policy.Rule{}), func() *policy.AuthorizationPolicy {
		other := custom(policy.Rule{})
		other.Name, other.Authorizer = "other", "unknown"
		return other
	}())
	_ = ends(t, c) // nobody has agreed to it for that one
	record(t, p.inside, withReason(policy.PolicyChanged))
}

// TestAuthorizerHTTP is Envoy's protocol over HTTP. Contract 6.44.
func TestAuthorizerHTTP(t *testing.T) {
	type question struct {
		line, host, body string
		header           http.Header
	}
	asked := make(chan question, 10)
	serve := func(l net.Listener) {
		_ = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			asked <- question{r.Method + " " + r.RequestURI, r.Host, string(b), r.Header}
			w.Header().Set("X-User", "joe")
			w.Header().Set("X-Other", "not for anybody")
			switch r.Header.Get("X-Do") {
			case "deny":
				w.Header().Set("Location", "https://login")
				w.Header().Set("X-Why", "because")
				w.WriteHeader(http.StatusFound)
				_, _ = io.WriteString(w, "go there")
			case "fail":
				w.WriteHeader(http.StatusBadGateway)
			default:
				w.Header().Set("X-Session", "s1")
				w.Header().Set("X-Envoy-Auth-Headers-To-Remove", "x-secret, host")
			}
		}))
	}
	p := authorizedPair(t, policy.HTTP, serve, tellHead, policy.Authorizer{
		HTTP: true, PathPrefix: "/check", CheckHeaders: []string{"x-do", "x-a*"}, ExtraHeaders: map[string]string{"x-mesh": "podseal"}, UpstreamHeaders: []string{"x-user"}, AllowHeaders: []string{"x-sess*"},
		DenyHeaders: []string{"x-why"}, MaxBody: 10,
	})
	p.enforce(custom(policy.Rule{}))
	c := p.dial()
	r := bufio.NewReader(c)
	status, body, header := ask(t, c, r, "/a?b=%20c", "X-User: root\r\nX-Secret: s\r\nX-Abc: 1\r\nAuthorization: Basic x\r\n")
	if status != 200 || !strings.Contains(body, "x-user=joe") || strings.Contains(body, "x-secret") || strings.Contains(body, "x-other") || header.Get("X-Session") != "s1" || header.Get("X-Other") != "" {
		t.Errorf("agreed: %d %s %v", status, body, header)
	}
	if q := <-asked; q.line != "GET /check/a?b=%20c" || q.host != "web" || q.header.Get("X-Abc") != "1" || q.header.Get("Authorization") != "Basic x" || q.header.Get("X-Mesh") != "podseal" || q.header.Get("X-Secret") != "" || q.header.Get("User-Agent") != "" {
		t.Errorf("asked %+v", q)
	}
	status, body, header = ask(t, c, r, "/a", "X-Do: deny\r\n")
	if status != 302 || body != "go there" || header.Get("Location") != "https://login" || header.Get("X-Why") != "because" || header.Get("X-User") != "" {
		t.Errorf("denied: %d %q %v", status, body, header)
	}
	<-asked
	if status, _, _ = ask(t, c, r, "/a", "X-Do: fail\r\n"); status != 403 {
		t.Errorf("failed: %d", status)
	}
	<-asked
	for n, want := range map[int]int{5: 200, 11: 413} {
		c := p.dial()
		if _, err := fmt.Fprintf(c, "POST /a HTTP/1.1\r\nHost: web\r\nContent-Length: %d\r\n\r\n%s", n, strings.Repeat("x", n)); err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || res.StatusCode != want {
			t.Fatalf("%d bytes: %v %v", n, res, err)
		}
		_ = res.Body.Close()
		if want == http.StatusOK {
			if q := <-asked; q.body != "xxxxx" {
				t.Errorf("body %q", q.body)
			}
		}
	}
}
