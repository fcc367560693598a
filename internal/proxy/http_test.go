package proxy

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

const (
	testTail  = "x-forwarded-proto: http\r\nx-request-id: 00000000-0000-4000-8000-000000000000\r\n\r\n"
	decorated = "x-envoy-decorator-operation: web.shop.svc.cluster.local:80/*\r\n"
	testXFCC  = `By=spiffe://cluster.local/ns/shop/sa/web;Hash=ab12;Subject="";URI=spiffe://cluster.local/ns/shop/sa/client`
)

type zeroReader struct{}

func (zeroReader) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// httpRig is a relay between a client and an application that the test plays.

type httpRig struct {
	t      testing.TB
	now    time.Time
	client *net.TCPConn
	apps   chan *net.TCPConn
	relay  *httpRelay
	ended  chan error

	mu    sync.Mutex
	infos []RequestInfo
}

func tcpPair(t testing.TB) (dialled, accepted *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	d, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	a, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{d, a} {
		t.Cleanup(func() { _ = c.Close() })
	}
	return d.(*net.TCPConn), a.(*net.TCPConn)
}

func newHTTPRig(t testing.TB, edit func(r *httpRig)) *httpRig {
	t.Helper()
	client, inner := tcpPair(t)
	r := &httpRig{t: t, now: time.Now(), client: client, apps: make(chan *net.TCPConn, 10), ended: make(chan error, 1)}
	r.relay = &httpRelay{
		Client: inner, Decorator: "web.shop.svc.cluster.local:80/*", OwnURI: "spiffe://cluster.local/ns/shop/sa/web",
		Now: func() time.Time { return r.now }, Rand: zeroReader{}, IdleTimeout: time.Hour,
		Dial: func(context.Context) (stream, error) {
			d, a := tcpPair(t)
			r.apps <- a
			return d, nil
		},
		OnRequest: func(i RequestInfo) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.infos = append(r.infos, i)
		},
	}
	if edit != nil {
		edit(r)
	}
	_ = client.SetDeadline(time.Now().Add(10 * time.Second))
	go func() { r.ended <- r.relay.serve(t.Context()) }()
	return r
}

func (r *httpRig) send(c io.Writer, s string) {
	r.t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		r.t.Fatal(err)
	}
}

// expect reads exactly want.

func (r *httpRig) expect(c io.Reader, want string) {
	r.t.Helper()
	got := make([]byte, len(want))
	n, err := io.ReadFull(c, got)
	if string(got[:n]) != want {
		r.t.Fatalf("got  %q (%v)\nwant %q", got[:n], err, want)
	}
}

// expectEnd checks that nothing more comes.

func (r *httpRig) expectEnd(c io.Reader) {
	r.t.Helper()
	if b, err := io.ReadAll(c); err != nil || len(b) > 0 {
		r.t.Fatalf("at the end: %q, %v", b, err)
	}
}

func (r *httpRig) app() *net.TCPConn {
	r.t.Helper()
	select {
	case a := <-r.apps:
		_ = a.SetDeadline(time.Now().Add(10 * time.Second))
		return a
	case <-time.After(10 * time.Second):
		r.t.Fatal("the application was not called")
		return nil
	}
}

func (r *httpRig) end() error {
	r.t.Helper()
	select {
	case err := <-r.ended:
		return err
	case <-time.After(10 * time.Second):
		r.t.Fatal("the relay did not end")
		return nil
	}
}

func (r *httpRig) date() string {
	return "date: " + r.now.UTC().Format(httpDate) + "\r\n"
}

// flags are those of the requests so far.

func (r *httpRig) flags() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []string
	for _, i := range r.infos {
		all = append(all, i.Flags)
	}
	return strings.Join(all, " ")
}

// TestHTTPDocument is the exchange that the document's trace shows.

func TestHTTPDocument(t *testing.T) {
	defer goleak.VerifyNone(t)
	r := newHTTPRig(t, nil)
	r.send(r.client, "GET / HTTP/1.1\r\nHost: webserver.test-istio-mtls\r\nUser-Agent: Wget\r\nAccept: */*\r\nConnection: close\r\n\r\n")
	app := r.app()
	r.expect(app, "GET / HTTP/1.1\r\nhost: webserver.test-istio-mtls\r\nuser-agent: Wget\r\naccept: */*\r\n"+testTail)
	body := strings.Repeat("w", 615)
	r.send(app, "HTTP/1.1 200 OK\r\nServer: nginx/1.27.1\r\nDate: Fri, 24 Jan 2025 09:14:20 GMT\r\nContent-Type: text/html\r\nContent-Length: 615\r\n"+
		"Last-Modified: Wed, 14 Aug 2024 05:42:07 GMT\r\nConnection: keep-alive\r\nETag: \"66bc43af-267\"\r\nAccept-Ranges: bytes\r\n\r\n"+body)
	r.expect(r.client, "HTTP/1.1 200 OK\r\nserver: istio-envoy\r\ndate: Fri, 24 Jan 2025 09:14:20 GMT\r\ncontent-type: text/html\r\ncontent-length: 615\r\n"+
		"last-modified: Wed, 14 Aug 2024 05:42:07 GMT\r\netag: \"66bc43af-267\"\r\naccept-ranges: bytes\r\nx-envoy-upstream-service-time: 0\r\n"+
		"connection: close\r\nx-envoy-decorator-operation: web.shop.svc.cluster.local:80/*\r\n\r\n"+body)
	r.expectEnd(r.client)
	_ = r.client.Close()
	if err := r.end(); err != nil {
		t.Error(err)
	}
	if r.flags() != "-" || r.infos[0].Method != http.MethodGet || r.infos[0].Status != 200 {
		t.Errorf("reported %+v", r.infos)
	}
}

const (
	plainGet = "GET / HTTP/1.1\r\nHost: a\r\n"
	gotGet   = "GET / HTTP/1.1\r\nhost: a\r\n"
	emptyOK  = "HTTP/1.1 200 OK\r\nServer: x\r\nDate: d\r\nContent-Length: 0\r\n"
	gotOK    = "HTTP/1.1 200 OK\r\nserver: istio-envoy\r\ndate: d\r\ncontent-length: 0\r\nx-envoy-upstream-service-time: 0\r\n"
	gotPlain = gotOK + decorated + "\r\n"
)

// TestHTTPRewrites sends bytes and looks at bytes, in both directions.

// Contract 2.49, 7.16.
func TestHTTPRewrites(t *testing.T) {
	mtls := func(r *httpRig) {
		r.relay.PeerURI, r.relay.PeerCertHash = "spiffe://cluster.local/ns/shop/sa/client", "ab12"
	}
	tests := map[string]struct {
		edit                            func(r *httpRig)
		request, atApp, response, atEnd string
	}{
		"contract 2.51: names in lower case, hop-by-hop fields stay on their hop": {
			request:  plainGet + "X-Big-NAME: Value\r\nConnection: keep-alive, X-Big-Name\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nTE: trailers\r\n\r\n",
			atApp:    gotGet + "x-big-name: Value\r\nte: trailers\r\n" + testTail,
			response: emptyOK + "Connection: keep-alive\r\nKeep-Alive: timeout=5\r\nX-UP: 1\r\n\r\n",
			atEnd:    strings.Replace(gotOK, "x-envoy", "x-up: 1\r\nx-envoy", 1) + decorated + "\r\n",
		},
		"contract 2.51: h2c is not offered to the application": {
			request: plainGet + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\nTE: gzip\r\n\r\n",
			atApp:   gotGet + testTail,
		},
		"contract 2.51: nor as one of several": {
			request: plainGet + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: websocket , H2C/1, foo\r\nHTTP2-Settings: x\r\n\r\n",
			atApp:   gotGet + testTail,
		},
		"contract 2.37: server and date are added where missing": {
			request: plainGet + "\r\n", atApp: gotGet + testTail,
			response: "HTTP/1.1 404 Gone fishing\r\nContent-Length: 0\r\n\r\n",
			atEnd:    "HTTP/1.1 404 Gone fishing\r\ncontent-length: 0\r\nx-envoy-upstream-service-time: 0\r\nDATEserver: istio-envoy\r\n" + decorated + "\r\n",
		},
		"contract 2.37, 2.39: the application's own values are overwritten": {
			request: plainGet + "\r\n", atApp: gotGet + testTail,
			response: emptyOK + "Server: again\r\nX-Envoy-Upstream-Service-Time: 99\r\n\r\n", atEnd: gotPlain,
		},
		"contract 2.40: a request that names its operation": {
			request: plainGet + "X-Envoy-Decorator-Operation: web:80/*\r\n\r\n", atApp: gotGet + testTail,
			atEnd: gotOK + "\r\n",
		},
		"contract 2.40: an mTLS peer gets no operation; contract 2.46: XFCC": {
			edit: mtls, request: plainGet + "\r\n",
			atApp: strings.TrimSuffix(gotGet+testTail, "\r\n") + "x-forwarded-client-cert: " + testXFCC + "\r\n\r\n",
			atEnd: gotOK + "\r\n",
		},
		"contract 2.46: XFCC is appended to what an mTLS peer sent": {
			edit: mtls, request: plainGet + "X-Forwarded-Client-Cert: By=a\r\nx-forwarded-client-cert: By=b\r\n\r\n",
			atApp: strings.TrimSuffix(gotGet+testTail, "\r\n") + "x-forwarded-client-cert: By=a,By=b," + testXFCC + "\r\n\r\n",
			atEnd: gotOK + "\r\n",
		},
		"contract 2.49: what was sent can't swallow our element": {
			edit: mtls, request: plainGet + "X-Forwarded-Client-Cert: URI=spiffe://a;Subject=\"\r\nX-Forwarded-Client-Cert: Subject=\"\\\"\r\nx-forwarded-client-cert: By=b;Subject=\"CN=\\\"x\\\"\"\r\n\r\n",
			atApp: strings.TrimSuffix(gotGet+testTail, "\r\n") + "x-forwarded-client-cert: By=b;Subject=\"CN=\\\"x\\\"\"," + testXFCC + "\r\n\r\n",
			atEnd: gotOK + "\r\n",
		},
		"contract 2.47: XFCC by a name that gateways take for it": {
			edit: mtls, request: plainGet + "X_Forwarded_Client_Cert: URI=spiffe://a\r\nx-forwarded_client-Cert: b\r\nx-forwarded-client-certs: c\r\n\r\n",
			atApp: strings.TrimSuffix(gotGet+"x-forwarded-client-certs: c\r\n"+testTail, "\r\n") + "x-forwarded-client-cert: " + testXFCC + "\r\n\r\n",
			atEnd: gotOK + "\r\n",
		},
		"contract 2.47: XFCC of a plaintext client is removed": {
			request: plainGet + "X-Forwarded-Client-Cert: By=forged\r\n\r\n", atApp: gotGet + testTail,
		},
		"contract 2.41, 2.52: what only a proxy may say is removed": {
			request: plainGet + "X-Envoy-Peer-Metadata: a\r\nX-Envoy-Peer-Metadata-Id: b\r\nX-Envoy-Retry-On: 5xx\r\nX-Envoy-Max-Retries: 9\r\n" +
				"X-Envoy-Upstream-Rq-Timeout-Ms: 1\r\nX-Envoy-Force-Trace: 1\r\nX-Envoy-Internal: true\r\nX-Envoy-Attempt-Count: 1\r\n\r\n",
			atApp: gotGet + "x-envoy-attempt-count: 1\r\n" + testTail, // contract 2.42
		},
		"contract 2.43-2.45: what is there stays": {
			request: plainGet + "X-Request-Id: mine\r\nX-Forwarded-Proto: https\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n",
			atApp:   gotGet + "x-request-id: mine\r\nx-forwarded-proto: https\r\nx-forwarded-for: 1.2.3.4\r\n\r\n",
		},
		"RFC 9112 3.2.2: an absolute target decides the host": {
			request: "GET http://b:8080/p?q HTTP/1.1\r\nHost: a\r\n\r\n", atApp: "GET /p?q HTTP/1.1\r\nhost: b:8080\r\n" + testTail,
		},
		"RFC 9110 8.6: equal lengths are sent once": {
			request: "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nhi",
			atApp:   "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n" + testTail + "hi",
		},
		"RFC 9112 2.2: an empty line before a request": {request: "\r\n" + plainGet + "\r\n", atApp: gotGet + testTail},
		"chunks and trailers pass as they are": {
			request:  "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nX-T: 1\r\n\r\n",
			atApp:    "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n" + testTail + "3;x=y\r\nabc\r\n0\r\nX-T: 1\r\n\r\n",
			response: "HTTP/1.1 200 OK\r\nServer: x\r\nDate: d\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
			atEnd:    "HTTP/1.1 200 OK\r\nserver: istio-envoy\r\ndate: d\r\ntransfer-encoding: chunked\r\nx-envoy-upstream-service-time: 0\r\n" + decorated + "\r\n2\r\nhi\r\n0\r\n\r\n",
		},
		"a response to HEAD says a length and has no body": {
			request: "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", atApp: "HEAD / HTTP/1.1\r\nhost: a\r\n" + testTail,
			response: strings.Replace(emptyOK, "Length: 0", "Length: 7", 1) + "\r\n",
			atEnd:    strings.Replace(gotPlain, "length: 0", "length: 7", 1),
		},
		"304 has no body": {
			request: plainGet + "\r\n", atApp: gotGet + testTail,
			response: "HTTP/1.1 304 Not Modified\r\nServer: x\r\nDate: d\r\nContent-Length: 7\r\n\r\n",
			atEnd:    strings.Replace(strings.Replace(gotPlain, "200 OK", "304 Not Modified", 1), "length: 0", "length: 7", 1),
		},
		"204 has neither body nor length": {
			request: plainGet + "\r\n", atApp: gotGet + testTail,
			response: "HTTP/1.1 204 No Content\r\nServer: x\r\nDate: d\r\nContent-Length: 7\r\n\r\n",
			atEnd:    strings.Replace(strings.Replace(gotPlain, "200 OK", "204 No Content", 1), "content-length: 0\r\n", "", 1),
		},
		"contract 2.58: interim responses pass": {
			request: plainGet + "Expect: 100-continue\r\n\r\n", atApp: gotGet + "expect: 100-continue\r\n" + testTail,
			response: "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + emptyOK + "\r\n",
			atEnd:    "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" + gotPlain,
		},
		"a response whose lines end in LF": {
			request: plainGet + "\r\n", atApp: gotGet + testTail,
			response: strings.ReplaceAll(emptyOK+"\r\n", "\r\n", "\n"), atEnd: gotPlain,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			defer goleak.VerifyNone(t)
			r := newHTTPRig(t, tt.edit)
			if tt.response == "" {
				tt.response = emptyOK + "\r\n"
			}
			if tt.atEnd == "" {
				tt.atEnd = gotPlain
			}
			var app *net.TCPConn
			for i := range 2 { // twice: connections on both sides are kept
				r.send(r.client, tt.request)
				if i == 0 {
					app = r.app()
				}
				r.expect(app, tt.atApp)
				r.send(app, tt.response)
				r.expect(r.client, strings.Replace(tt.atEnd, "DATE", r.date(), 1))
			}
			_ = r.client.CloseWrite()
			r.expectEnd(r.client)
			r.expectEnd(app)
			if err := r.end(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestHTTPCut sends both sides of an exchange in two pieces, cut at every byte.

func TestHTTPCut(t *testing.T) {
	defer goleak.VerifyNone(t)
	r := newHTTPRig(t, nil)
	request := "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
	atApp := "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n" + testTail + "3\r\nabc\r\n0\r\n\r\n"
	response := "HTTP/1.1 200 OK\r\nServer: x\r\nDate: d\r\nContent-Length: 5\r\n\r\nhello"
	atEnd := strings.Replace(gotPlain, "length: 0", "length: 5", 1) + "hello"
	var app *net.TCPConn
	for cut := 1; cut < max(len(request), len(response)); cut++ {
		c := min(cut, len(request)-1)
		r.send(r.client, request[:c])
		r.send(r.client, request[c:])
		if app == nil {
			app = r.app()
		}
		r.expect(app, atApp)
		c = min(cut, len(response)-1)
		r.send(app, response[:c])
		r.send(app, response[c:])
		r.expect(r.client, atEnd)
	}
	_ = r.client.Close()
	if err := r.end(); err != nil {
		t.Error(err)
	}
}

// reaches the application.

// contract 2.34

// requests, or while the next one is on its way.

// TestHTTPFirstBytes: what was read before the relay began comes first.

func TestHTTPFirstBytes(t *testing.T) {
	defer goleak.VerifyNone(t)
	d, app := tcpPair(t)
	r := newHTTPRig(t, func(r *httpRig) {
		r.relay.First = []byte(plainGet + "X-Long: " + strings.Repeat("x", 10_000))
		r.relay.App = d
	})
	r.send(r.client, "y\r\n\r\n")
	r.expect(app, gotGet+"x-long: "+strings.Repeat("x", 10_000)+"y\r\n"+testTail)
	r.send(app, emptyOK+"\r\n")
	r.expect(r.client, gotPlain)
	_ = r.client.Close()
	if err := r.end(); err != nil {
		t.Error(err)
	}
}

// TestHTTPContext: the connection ends with its context.

func TestHTTPContext(t *testing.T) {
	defer goleak.VerifyNone(t)
	d, app := tcpPair(t)
	ctx, cancel := context.WithCancel(t.Context())
	client, inner := tcpPair(t)
	relay := &httpRelay{Client: inner, App: d}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = relay.serve(ctx)
	}()
	_, _ = io.WriteString(client, plainGet+"\r\n")
	if _, err := app.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	cancel()
	<-ended
	if _, err := client.Read(make([]byte, 1)); err == nil {
		t.Error("the client's connection is still open")
	}
}
