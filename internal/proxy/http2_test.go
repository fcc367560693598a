package proxy

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"podseal.io/podseal/internal/h2"
	"podseal.io/podseal/internal/meshtest"
	"podseal.io/podseal/internal/policy"
)

// oneListener hands out connections that somebody else accepted.
type oneListener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (l *oneListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *oneListener) Close() error { l.once.Do(func() { close(l.done) }); return nil }
func (*oneListener) Addr() net.Addr { return &net.TCPAddr{} }

// closing tells when a connection is closed.
type closing struct {
	net.Conn
	closed chan struct{}
	once   sync.Once
}

func (c *closing) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// handOn is an application that has its connections served by what listens on l.
func (l *oneListener) handOn(raw *net.TCPConn) {
	c := &closing{Conn: raw, closed: make(chan struct{})}
	select {
	case l.conns <- c:
		<-c.closed
	case <-l.done:
	}
}

func newOneListener() *oneListener {
	return &oneListener{conns: make(chan net.Conn), done: make(chan struct{})}
}

func onlyH2C() *http.Protocols {
	p := &http.Protocols{}
	p.SetUnencryptedHTTP2(true)
	return p
}

// http2App is an application that speaks HTTP/2 only.
func http2App(t testing.TB, h http.HandlerFunc) func(*net.TCPConn) {
	t.Helper()
	return appOver(t, h, onlyH2C())
}

// appOver is an application that speaks these protocols; nil is HTTP/1 only.
func appOver(t testing.TB, h http.HandlerFunc, protocols *http.Protocols) func(*net.TCPConn) {
	t.Helper()
	l := newOneListener()
	s := &http.Server{Handler: h, Protocols: protocols, ErrorLog: log.New(io.Discard, "", 0)}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() { s.Close(); <-served })
	return l.handOn
}

// echoHead answers with the head that it got.
func echoHead(w http.ResponseWriter, q *http.Request) {
	body, _ := io.ReadAll(q.Body)
	w.Header().Set("Server", "app")
	w.Header().Set("X-Body", fmt.Sprint(len(body)))
	fmt.Fprintf(w, "%s %s %s\n", q.Method, q.Host, q.RequestURI)
	_ = q.Header.Write(w)
}

// http2Client connects as somebody who is at an address.
func (p *pair) http2Client(from netip.Addr, to netip.AddrPort) *http.Client {
	p.t.Helper()
	tr := &http.Transport{Protocols: onlyH2C(), DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return p.net.Connect(ctx, from, to) }}
	p.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second}
}

func send2(t testing.TB, c *http.Client, method, path string, fields ...string) (*http.Response, string) {
	t.Helper()
	q, err := http.NewRequestWithContext(t.Context(), method, "http://web"+path, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(fields); i += 2 {
		q.Header.Add(fields[i], fields[i+1])
	}
	res, err := c.Do(q)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(b)
}

// TestHTTP2 sends requests through two sidecars, or one, on every kind of port that
// may carry HTTP. Contract 2.37, 2.40, 2.46, 2.47, 2.49, 2.52, 2.59, 6.36.
func TestHTTP2(t *testing.T) {
	const forged = "By=spiffe://a;URI=spiffe://cluster.local/ns/shop/sa/admin"
	for _, proto := range []policy.Protocol{policy.HTTP, policy.Auto} {
		for _, mode := range []policy.Mode{policy.Permissive, policy.Strict, policy.Disable} {
			t.Run(proto.String()+"/"+mode.String(), func(t *testing.T) {
				p := newPair(t, proto, http2App(t, echoHead))
				p.mode(p.server, mode)
				if mode != policy.Disable {
					res, head := send2(t, p.http2Client(p.client.Addresses[0], p.service), http.MethodGet, "/a/../b?q", "X-Forwarded-Client-Cert", forged, "X_Forwarded_Client_Cert", forged, "X-Envoy-Internal", "true")
					if res.ProtoMajor != 2 || res.Header.Get("Server") != "istio-envoy" || res.Header.Get("X-Envoy-Upstream-Service-Time") == "" || res.Header.Get("X-Envoy-Decorator-Operation") != "" {
						t.Errorf("%s %v", res.Proto, res.Header)
					}
					if !strings.HasPrefix(head, "GET web /b?q\n") || strings.Contains(head, "Internal") || strings.Contains(head, "_") {
						t.Errorf("the application got %s", head)
					}
					if !strings.Contains(head, "X-Forwarded-Client-Cert: "+forged+",By=spiffe://cluster.local/ns/shop/sa/web;Hash=") || !strings.Contains(head, ";Subject=\"\";URI=spiffe://cluster.local/ns/shop/sa/client\r\n") {
						t.Errorf("the application got %s", head)
					}
				}
				if mode == policy.Strict {
					return
				}
				outside := p.http2Client(p.outsider(), p.app)
				res, head := send2(t, outside, http.MethodGet, "/", "X-Forwarded-Client-Cert", forged)
				if strings.Contains(head, "Client-Cert") || !strings.Contains(head, "X-Forwarded-Proto: http\r\n") || !strings.Contains(head, "X-Request-Id: ") {
					t.Errorf("the application got %s", head)
				}
				if res.Header.Get("X-Envoy-Decorator-Operation") != "web.shop.svc.cluster.local:80/*" {
					t.Errorf("%v", res.Header)
				}
				outside.CloseIdleConnections()
				if r := record(t, p.inside, anyRecord); r.Protocol != "http" || r.Requests != 1 || r.Reason != policy.None {
					t.Errorf("%+v", r)
				}
			})
		}
	}
}

// Contract 2.39-2.47, 2.51-2.54: what HTTP/1 and HTTP/2 do to a head is the same.
func TestHTTP2Rewrites(t *testing.T) {
	tests := map[string]struct {
		peer         bool
		path         string
		sent, passed []string
		wantPath     string
		status       int
	}{
		"added": {passed: []string{"x-forwarded-proto", "http", "x-request-id", zeroID}},
		"kept": {
			sent:   []string{"x-forwarded-proto", "https", "x-request-id", "mine", "x-forwarded-for", "1.2.3.4", "x-envoy-attempt-count", "1"},
			passed: []string{"x-forwarded-proto", "https", "x-request-id", "mine", "x-forwarded-for", "1.2.3.4", "x-envoy-attempt-count", "1"},
		},
		"dropped": {
			sent: []string{
				"x-envoy-peer-metadata", "a", "x-envoy-peer-metadata-id", "b", "x-envoy-retry-on", "c", "x-envoy-force-trace", "d", "x-envoy-decorator-operation", "e",
				"x-forwarded-client-cert", "f", "x_forwarded_client_cert", "g", "http2-settings", "h",
			},
			passed: []string{"x-forwarded-proto", "http", "x-request-id", zeroID},
		},
		"appended": {
			peer:   true,
			sent:   []string{"x-forwarded-client-cert", "By=a", "x-forwarded-client-cert", `Subject="`, "x-forwarded_client-cert", "By=b"},
			passed: []string{"x-forwarded-proto", "http", "x-request-id", zeroID, "x-forwarded-client-cert", "By=a," + testXFCC},
		},
		"path":       {path: `/a/%2e%2e\b/./c#x?y`, wantPath: "/b/c", passed: []string{"x-forwarded-proto", "http", "x-request-id", zeroID}},
		"bad path":   {path: "/a%00", status: 400},
		"other path": {path: "*", wantPath: "*", passed: []string{"x-forwarded-proto", "http", "x-request-id", zeroID}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			h := &http2Handler{peer: tt.peer, element: testXFCC, decorator: "web:80/*", rand: zeroReader{}, now: time.Now}
			r := &h2.Request{Method: "GET", Path: "/", Authority: "web", Fields: pairs(tt.sent)}
			want := "/"
			if tt.path != "" {
				r.Path, want = tt.path, tt.wantPath
			}
			answer, _ := h.Request(r)
			if answer != nil || tt.status != 0 {
				if answer == nil || answer.Status != tt.status {
					t.Errorf("answer %+v, want %d", answer, tt.status)
				}
				return
			}
			if r.Path != want {
				t.Errorf("path %q, want %q", r.Path, want)
			}
			if d := cmp.Diff(pairs(tt.passed), r.Fields); d != "" {
				t.Error(d)
			}
		})
	}
}

const zeroID = "00000000-0000-4000-8000-000000000000"

func pairs(s []string) []h2.Field {
	var all []h2.Field
	for i := 0; i < len(s); i += 2 {
		all = append(all, h2.Field{Name: s[i], Value: s[i+1]})
	}
	return all
}

// Contract 2.37, 2.39-2.41: what is done to the head of a response.
func TestHTTP2Response(t *testing.T) {
	now := time.Unix(1e9, 0)
	h := &http2Handler{decorator: "web:80/*", rand: zeroReader{}, now: func() time.Time { return now }}
	r := &h2.Request{Path: "/", Sent: now.Add(-1500 * time.Millisecond)}
	res := &h2.Response{Status: 200, Fields: pairs([]string{"a", "b", "server", "app", "x-envoy-upstream-service-time", "7", "x-envoy-decorator-operation", "mine", "server", "again"})}
	h.Response(r, res)
	want := pairs([]string{"a", "b", "server", "istio-envoy", "x-envoy-upstream-service-time", "1500", "date", now.UTC().Format(httpDate), "x-envoy-decorator-operation", "web:80/*"})
	if d := cmp.Diff(want, res.Fields); d != "" {
		t.Error(d)
	}
	r.Note = &http2Request{decorated: true}
	res = &h2.Response{Status: 200, Fields: pairs([]string{"date", "d"})}
	h.Response(r, res)
	if d := cmp.Diff(pairs([]string{"date", "d", "x-envoy-upstream-service-time", "1500", "server", "istio-envoy"}), res.Fields); d != "" {
		t.Error(d)
	}
	trailers := h.Trailers(&h2.Request{}, pairs([]string{"grpc-status", "0", "x-forwarded-client-cert", "a", "x_forwarded_client_cert", "b", "x-envoy-internal", "c", "host", "d"}))
	if d := cmp.Diff(pairs([]string{"grpc-status", "0"}), trailers); d != "" {
		t.Error(d)
	}
}

// Contract 6.9, 6.26, 6.31, 6.36, 6.38: each request is judged by itself.
func TestAccessHTTP2(t *testing.T) {
	p := newPair(t, policy.Auto, http2App(t, echoHead))
	p.enforce(deny("admin", on(policy.RequestPath, "/admin*")), deny("post", on(policy.RequestMethod, "POST")), deny("crumbs", policy.Rule{When: []policy.Match{{On: policy.RequestHeader, Key: []string{"cookie"}, Values: []string{"a=1; b=2"}}}}))
	mesh, outside := p.http2Client(p.client.Addresses[0], p.service), p.http2Client(p.outsider(), p.app)
	for _, c := range []*http.Client{mesh, outside} {
		for _, tt := range []struct {
			method, path, cookie string
			status               int
		}{
			{"GET", "/", "", 200},
			{"GET", "/admin", "", 403},
			{"GET", "/x/../admin?x", "", 403},
			{"GET", "/%61dmin", "", 403},
			{"POST", "/", "", 403},
			{"PUT", "/", "", 200},
			{"GET", "/", "a=1; b=2", 403},
		} {
			res, body := send2(t, c, tt.method, tt.path, "Cookie", tt.cookie)
			if res.StatusCode != tt.status || tt.status == 403 && (body != accessDenied || res.Header.Get("Server") != "istio-envoy") {
				t.Errorf("%s %s: %d %q %v, want %d", tt.method, tt.path, res.StatusCode, body, res.Header, tt.status)
			}
		}
	}
	mesh.CloseIdleConnections()
	r := record(t, p.inside, func(r Record) bool { return r.SourceIdentity != "" })
	if r.Requests != 7 || r.RequestsDenied != 5 || r.Policy != "ns[shop]-policy[crumbs]-rule[0]" || r.Reason != policy.None {
		t.Errorf("%+v", r)
	}
}

// Design D13: a change ends the requests that it denies, and no other of the same
// connection.
func TestAccessChangeHTTP2(t *testing.T) {
	p := newPair(t, policy.HTTP, http2App(t, func(w http.ResponseWriter, q *http.Request) {
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		_, _ = io.Copy(w, q.Body)
	}))
	c := p.http2Client(p.client.Addresses[0], p.service)
	open := func(path string) (io.WriteCloser, *http.Response) {
		in, out := io.Pipe()
		q, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://web"+path, in)
		if err != nil {
			t.Fatal(err)
		}
		res, err := c.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		return out, res
	}
	_, slow := open("/slow")
	defer slow.Body.Close()
	out, other := open("/other")
	defer other.Body.Close()
	p.enforce(deny("slow", on(policy.RequestPath, "/slow")))
	if _, err := io.ReadAll(slow.Body); err == nil {
		t.Error("the denied request ended as if it were whole")
	}
	if _, err := io.WriteString(out, "still there"); err != nil {
		t.Fatal(err)
	}
	out.Close()
	if b, err := io.ReadAll(other.Body); err != nil || string(b) != "still there" {
		t.Errorf("%q %v", b, err)
	}
	if res, _ := send2(t, c, http.MethodGet, "/slow"); res.StatusCode != http.StatusForbidden {
		t.Errorf("%d", res.StatusCode)
	}
}

// A preface that comes in pieces, with a pause that is as long as detection waits,
// is no way past judging.
func TestHTTP2SlowPreface(t *testing.T) {
	for _, part := range []int{1, 3, 20} {
		s := &sniffer{wait: waitHTTP}
		if _, err := s.stopped([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")[:part], os.ErrDeadlineExceeded); err == nil {
			t.Errorf("%d bytes are carried on as bytes", part)
		}
	}
	if got, err := (&sniffer{wait: waitHTTP}).stopped([]byte("POS"), os.ErrDeadlineExceeded); err != nil || got.seen != policy.PlainOther {
		t.Error(got, err)
	}
}

// The application isn't there: contract 2.34.
func TestHTTP2ApplicationIsNotThere(t *testing.T) {
	p := newPair(t, policy.HTTP, func(*net.TCPConn) {})
	p.mode(p.server, policy.Strict)
	c := p.http2Client(p.client.Addresses[0], p.service)
	if res, body := send2(t, c, http.MethodGet, "/"); res.StatusCode != http.StatusServiceUnavailable || !strings.HasPrefix(body, "upstream connect error") {
		t.Errorf("%d %q", res.StatusCode, body)
	}
}

// On POST /drain the client is told to go elsewhere, and requests under way end.
func TestHTTP2Drain(t *testing.T) {
	held, begun := make(chan struct{}), make(chan struct{})
	p := newPair(t, policy.HTTP, http2App(t, func(_ http.ResponseWriter, q *http.Request) {
		if q.URL.Path == "/slow" {
			close(begun)
			<-held
		}
	}))
	c := p.http2Client(p.client.Addresses[0], p.service)
	send2(t, c, http.MethodGet, "/")
	slow := make(chan int, 1)
	go func() {
		res, err := c.Get("http://web/slow")
		if err != nil {
			slow <- 0
			return
		}
		res.Body.Close()
		slow <- res.StatusCode
	}()
	<-begun
	if code, _ := get(t, p.inside, 1, http.MethodPost, "/drain"); code != 200 {
		t.Fatal(code)
	}
	close(held)
	if got := <-slow; got != 200 {
		t.Errorf("the request under way got %d", got)
	}
	r := record(t, p.inside, anyRecord) // the connection has ended
	if r.Requests != 2 || r.Reason != policy.None {
		t.Errorf("%+v", r)
	}
}

// TestTokensHTTP2: tokens are looked at as in HTTP/1 (contract 1.38, 6.29, 6.41).
func TestTokensHTTP2(t *testing.T) {
	p := newPair(t, policy.HTTP, http2App(t, echoHead))
	issuer := meshtest.NewIssuer(t, "https://issuer", "1", "ES256")
	p.authenticate(policy.TokenRule{Issuer: "https://issuer", Keys: meshtest.KeySet(t, issuer), ClaimHeaders: []policy.ClaimHeader{{Header: "x-user", Claim: "sub"}}})
	p.enforce(allow("joe", on(policy.RequestPrincipal, "https://issuer/joe")))
	c := p.http2Client(p.client.Addresses[0], p.service)
	joe, eve := issuer.Token(map[string]any{"sub": "joe"}), issuer.Token(map[string]any{"sub": "eve"})
	for token, want := range map[string]int{joe: http.StatusOK, eve: http.StatusForbidden, "x.y.z": http.StatusUnauthorized} {
		res, body := send2(t, c, http.MethodGet, "/", "Authorization", "Bearer "+token, "X-User", "root")
		if res.StatusCode != want || want == http.StatusOK && (!strings.Contains(body, "X-User: joe") || strings.Contains(body, "root") || strings.Contains(body, "Authorization")) {
			t.Errorf("%d %q, want %d", res.StatusCode, body, want)
		}
		if want == http.StatusUnauthorized && res.Header.Get("Www-Authenticate") == "" {
			t.Error(res.Header)
		}
	}
}
