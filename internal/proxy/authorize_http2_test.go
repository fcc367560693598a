package proxy

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"podseal.io/podseal/internal/extauthz"
	"podseal.io/podseal/internal/meshtest"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/workload"
)

// asking is how many questions to authorizers are under way.
func asking(p *proxy) int {
	p.authorizers.mu.Lock()
	defer p.authorizers.mu.Unlock()
	return p.authorizers.asking
}

// TestAuthorizerHTTP2: requests of HTTP/2 are asked about as those of HTTP/1, each for
// itself. Contract 6.4, 6.44, 2.60.
func TestAuthorizerHTTP2(t *testing.T) {
	authz := &grpcAuthorizer{}
	p := authorizedPair(t, policy.HTTP, serveGRPC(t, authz), http2App(t, echoHead), policy.Authorizer{MaxBody: 4, PartialBody: true})
	p.enforce(custom(policy.Rule{}))
	c := p.http2Client(p.client.Addresses[0], p.service)
	res, body := send2(t, c, http.MethodGet, "/a?b=c", "X-User", "root", "X-Secret", "s", "X-More", "1") // ends with its head
	if res.StatusCode != http.StatusOK || !strings.Contains(body, "X-User: joe") || strings.Contains(body, "root") || strings.Contains(body, "X-Secret") || !strings.Contains(body, "X-More: 1\r\nX-More: 2") || res.Header.Get("X-Checked") != "yes" {
		t.Errorf("agreed: %s %q %v", res.Status, body, res.Header)
	}
	if h := authz.asked().GetRequest().GetHttp(); h.GetPath() != "/a?b=c" || h.GetHost() != "web" || h.GetHeaders()["x-secret"] != "s" || h.GetProtocol() != "HTTP/2" || h.GetBody() != "" {
		t.Errorf("asked %v", h)
	}
	res, body = send2(t, c, http.MethodGet, "/a", "X-Deny", "because")
	if res.StatusCode != http.StatusTeapot || body != "teapot" || res.Header.Get("X-Why") != "because" || res.Header.Get("X-Bad") != "" {
		t.Errorf("denied: %s %q %v", res.Status, body, res.Header)
	}
	q, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://web/", io.MultiReader(strings.NewReader("abcdef")))
	if err != nil {
		t.Fatal(err)
	}
	if res, err = c.Do(q); err != nil || res.StatusCode != http.StatusOK || res.Header.Get("X-Body") != "6" || authz.asked().GetRequest().GetHttp().GetBody() != "abcd" {
		t.Errorf("with a body: %v %v, asked %v", res, err, authz.asked())
	}
	_ = res.Body.Close()

	const many = 200
	var agreed, denied atomic.Int32
	var all sync.WaitGroup
	for i := range many {
		all.Go(func() {
			q, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://web/", http.NoBody)
			if i%2 == 1 {
				q.Header.Set("X-Deny", "odd")
			}
			res, err := c.Do(q)
			if err != nil {
				t.Error(err)
				return
			}
			defer res.Body.Close()
			switch b, _ := io.ReadAll(res.Body); {
			case res.StatusCode == http.StatusOK && strings.Contains(string(b), "X-User: joe"):
				agreed.Add(1)
			case res.StatusCode == http.StatusTeapot && string(b) == "teapot":
				denied.Add(1)
			}
		})
	}
	all.Wait()
	if agreed.Load() != many/2 || denied.Load() != many/2 {
		t.Errorf("of %d streams at once %d were agreed to and %d denied", many, agreed.Load(), denied.Load())
	}
}

// TestAuthorizerHTTP2Fails: an authorizer that doesn't answer, and a client that takes
// its request back meanwhile. Contract 6.44.
func TestAuthorizerHTTP2Fails(t *testing.T) {
	var served atomic.Int32
	app := func(w http.ResponseWriter, _ *http.Request) { served.Add(1); w.WriteHeader(http.StatusNoContent) }
	p := authorizedPair(t, policy.HTTP, serveGRPC(t, &grpcAuthorizer{}), http2App(t, app), policy.Authorizer{Timeout: 50 * time.Millisecond})
	p.enforce(custom(policy.Rule{}))
	c := p.http2Client(p.client.Addresses[0], p.service)
	a := &p.world.Mesh.Authorizers[0]
	for _, tt := range []struct {
		failOpen bool
		status   int
	}{{false, 503}, {true, 204}} {
		a.StatusOnError, a.FailOpen = 503, tt.failOpen
		p.tell()
		if res, _ := send2(t, c, http.MethodGet, "/", "X-Hang", "x"); res.StatusCode != tt.status {
			t.Errorf("failOpen %v: %s", tt.failOpen, res.Status)
		}
	}
	a.Timeout = time.Hour // with failOpen: what is taken back must not pass for all that
	p.tell()
	before := served.Load()
	ctx, cancel := context.WithCancel(t.Context())
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://web/", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	q.Header.Set("X-Hang", "x")
	done := make(chan error, 1)
	go func() {
		res, err := c.Do(q)
		if err == nil {
			_ = res.Body.Close()
		}
		done <- err
	}()
	eventually(t, func() bool { return asking(p.inside) == 1 })
	cancel()
	if err := <-done; err == nil {
		t.Error("a request that was taken back has an answer")
	}
	eventually(t, func() bool { return asking(p.inside) == 0 })
	if res, _ := send2(t, c, http.MethodGet, "/"); res.StatusCode != http.StatusNoContent || served.Load() != before+1 {
		t.Errorf("afterwards: %s, the application was called %d times", res.Status, served.Load()-before)
	}
}

// TestAuthorizerClientHangsUp: a client of HTTP/1 that hangs up holds nothing while
// the authorizer takes its time, and its request doesn't pass for all that.
func TestAuthorizerClientHangsUp(t *testing.T) {
	p := authorizedPair(t, policy.HTTP, serveGRPC(t, &grpcAuthorizer{}), tellHead, policy.Authorizer{Timeout: time.Hour, FailOpen: true})
	p.enforce(custom(policy.Rule{}))
	for _, more := range []string{"\r\n", "Content-Length: 100000\r\n\r\n" + strings.Repeat("x", 50_000)} {
		c := p.dial()
		if _, err := io.WriteString(c, "POST / HTTP/1.1\r\nHost: web\r\nX-Hang: x\r\n"+more); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() bool { return asking(p.inside) == 1 })
		_ = c.SetLinger(0)
		_ = c.Close()
		eventually(t, func() bool { return asking(p.inside) == 0 })
	}
	res, body := exchange1(t, p.dial(), "GET /after HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")
	if res.StatusCode != http.StatusOK || !strings.HasPrefix(body, "GET /after") {
		t.Errorf("afterwards: %s %q", res.Status, body)
	}
	record(t, p.inside, func(r Record) bool { return r.Protocol == "http" && r.Requests == 1 && r.BytesSent == 0 })
}

// exchange1 sends a request and reads its answer.
func exchange1(t *testing.T, c *net.TCPConn, request string) (*http.Response, string) {
	t.Helper()
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(b)
}

// TestHTTPHalfClosedWhileAsking: a client that has ended its direction may still read,
// so the authorizer has some time; then it counts as gone, whatever failOpen says.
func TestHTTPHalfClosedWhileAsking(t *testing.T) {
	defer goleak.VerifyNone(t)
	access, err := policy.NewAccess([]*policy.AuthorizationPolicy{custom(policy.Rule{})}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	w := &workload.World{Access: access}
	w.Mesh.Authorizers = []policy.Authorizer{{Name: "opa", FailOpen: true}}
	for name, answers := range map[string]bool{"answers": true, "doesn't": false} {
		t.Run(name, func(t *testing.T) {
			asked, answer := make(chan struct{}), make(chan struct{})
			r := newHTTPRig(t, func(r *httpRig) {
				r.relay.HalfClosed = 300 * time.Millisecond
				if answers {
					r.relay.HalfClosed = time.Hour
				}
				r.relay.Gate = &gate{World: func() *workload.World { return w }, Authorize: func(ctx context.Context, _ *policy.Authorizer, _ *extauthz.Request) (*extauthz.Answer, error) {
					close(asked)
					select {
					case <-answer:
						return &extauthz.Answer{Allowed: true}, nil
					case <-ctx.Done():
						return nil, ctx.Err()
					}
				}}
			})
			r.send(r.client, plainGet+"\r\n")
			_ = r.client.CloseWrite()
			<-asked
			if !answers {
				if err := r.end(); !errors.Is(err, errClientLeft) {
					t.Errorf("ended with %v", err)
				}
				if r.flags() != "DC" || len(r.apps) != 0 {
					t.Errorf("flags %s, the application was called %d times", r.flags(), len(r.apps))
				}
				return
			}
			r.watching()
			close(answer)
			app := r.app()
			r.expect(app, gotGet+testTail)
			r.send(app, emptyOK+"\r\n")
			r.expect(r.client, gotPlain)
			r.expectEnd(r.client)
			if err := r.end(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestGateGRPC: calls get what CUSTOM and RequestAuthentication say in gRPC's words: a
// status, and never a stream that hangs. Contract 1.38, 6.41, 6.44.
func TestGateGRPC(t *testing.T) {
	l, app := newOneListener(), &grpcApp{cancelled: make(chan struct{})}
	s := grpc.NewServer()
	testpb.RegisterTestServiceServer(s, app)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() { s.Stop(); <-served })
	p := authorizedPair(t, policy.HTTP, serveGRPC(t, &grpcAuthorizer{}), l.handOn, policy.Authorizer{Timeout: 100 * time.Millisecond})
	conn, err := grpc.NewClient("passthrough:///web", grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		return p.net.Connect(ctx, p.client.Addresses[0], p.service)
	}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	client := testpb.NewTestServiceClient(conn)
	issuer := meshtest.NewIssuer(t, "https://issuer", "1", "ES256")
	p.world.Authentications = []*policy.RequestAuthentication{{Namespace: "shop", Name: "jwt", Scope: policy.Namespace, Rules: []policy.TokenRule{{Issuer: issuer.Name, Keys: meshtest.KeySet(t, issuer)}}}}
	p.enforce(custom(policy.Rule{}))
	for _, tt := range []struct {
		name   string
		fields []string
		want   codes.Code
		text   string
	}{
		{"agreed, a good token", []string{"authorization", "Bearer " + issuer.Token(map[string]any{"sub": "joe"})}, codes.OK, ""},
		{"agreed, no token", nil, codes.OK, ""},
		{"a bad token", []string{"authorization", "Bearer " + meshtest.NewIssuer(t, "https://other", "1", "ES256").Token(map[string]any{"sub": "joe"})}, codes.Unauthenticated, "Jwt issuer is not configured"},
		{"denied", []string{"x-deny", "because"}, codes.Unknown, "teapot"},
		{"no answer", []string{"x-hang", "x"}, codes.PermissionDenied, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), tt.fields...), 20*time.Second)
			defer cancel()
			_, err := client.UnaryCall(ctx, &testpb.SimpleRequest{})
			if status.Code(err) != tt.want || tt.text != "" && status.Convert(err).Message() != tt.text {
				t.Errorf("unary: %v", err)
			}
			both, err := client.FullDuplexCall(ctx)
			if err != nil {
				t.Fatal(err)
			}
			_ = both.Send(&testpb.StreamingOutputCallRequest{}) // what it gets says whether it may
			if _, err = both.Recv(); status.Code(err) != tt.want {
				t.Errorf("stream: %v", err)
			}
			_ = both.CloseSend()
			for err == nil {
				_, err = both.Recv()
			}
		})
	}
}
