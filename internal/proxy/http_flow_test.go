package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// httpFront listens, and relays each connection to a net/http server.
func httpFront(t testing.TB, handler http.HandlerFunc, edit func(h *httpRelay)) (url string, conns *atomic.Int64) {
	t.Helper()
	app := httptest.NewServer(handler)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	conns = &atomic.Int64{}
	var relays sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	buffers := &httpBuffers{}
	relays.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Add(1)
			h := &httpRelay{Client: c.(stream), Buffers: buffers, Decorator: ":0/*", IdleTimeout: time.Minute, Dial: func(context.Context) (stream, error) {
				c, err := net.Dial("tcp", app.Listener.Addr().String())
				if err != nil {
					return nil, err
				}
				return c.(stream), nil
			}}
			if edit != nil {
				edit(h)
			}
			relays.Go(func() { _, _, _ = h.serve(ctx) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		cancel()
		relays.Wait()
		app.Close()
	})
	return "http://" + l.Addr().String(), conns
}

func httpClient(t testing.TB) *http.Client {
	tr := &http.Transport{ExpectContinueTimeout: 10 * time.Second, MaxIdleConnsPerHost: 100}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 30 * time.Second}
}

func echo(w http.ResponseWriter, r *http.Request) {
	for name, values := range r.Header {
		w.Header()["X-Got-"+name] = values
	}
	if r.ContentLength >= 0 {
		w.Header().Set("Content-Length", fmt.Sprint(r.ContentLength))
	}
	_ = http.NewResponseController(w).EnableFullDuplex()
	_, _ = io.Copy(w, r.Body)
}

func TestHTTPWithNetHTTP(t *testing.T) {
	url, conns := httpFront(t, echo, nil)
	client := httpClient(t)
	large := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MiB
	for _, tt := range []struct {
		name, method string
		body         []byte
		chunked      bool
	}{
		{"get", "GET", nil, false},
		{"head", "HEAD", nil, false},
		{"small", "POST", []byte("hello"), false},
		{"chunked", "POST", []byte("hello"), true},
		{"large", "PUT", large, false},
		{"large chunked", "PUT", large, true},
		{"delete", "DELETE", nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for range 3 {
				var body io.Reader
				if tt.body != nil {
					body = bytes.NewReader(tt.body)
					if tt.chunked {
						body = io.MultiReader(body)
					}
				}
				req, err := http.NewRequest(tt.method, url, body)
				if err != nil {
					t.Fatal(err)
				}
				resp, err := client.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(resp.Body)
				if err != nil || resp.StatusCode != 200 {
					t.Fatalf("%s, %v", resp.Status, err)
				}
				_ = resp.Body.Close()
				if !bytes.Equal(got, tt.body) {
					t.Errorf("got %d bytes, want %d", len(got), len(tt.body))
				}
				if resp.Header.Get("Server") != "istio-envoy" || resp.Header.Get("X-Got-X-Forwarded-Proto") != "http" || len(resp.Header.Get("X-Got-X-Request-Id")) != 36 {
					t.Errorf("fields %v", resp.Header)
				}
			}
		})
	}
	if conns.Load() != 1 {
		t.Errorf("%d connections, want one that is kept", conns.Load())
	}
}

func TestHTTPTrailers(t *testing.T) {
	url, _ := httpFront(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		_, _ = io.Copy(w, r.Body)
		w.Header().Set("X-Sum", r.Trailer.Get("X-Up"))
	}, nil)
	req, err := http.NewRequest("POST", url, io.MultiReader(strings.NewReader("hello")))
	if err != nil {
		t.Fatal(err)
	}
	req.Trailer = http.Header{"X-Up": {"42"}}
	resp, err := httpClient(t).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); string(b) != "hello" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	if resp.Trailer.Get("X-Sum") != "42" {
		t.Errorf("trailer %v", resp.Trailer)
	}
}

// contract 2.58
func TestHTTPContinue(t *testing.T) {
	url, _ := httpFront(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/no" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		echo(w, r)
	}, nil)
	client := httpClient(t)
	for path, want := range map[string]struct {
		status    int
		continued bool
	}{"/yes": {200, true}, "/no": {403, false}} {
		var continued atomic.Bool
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
			Got100Continue: func() { continued.Store(true) },
			Got1xxResponse: func(int, textproto.MIMEHeader) error { return nil },
		})
		req, err := http.NewRequestWithContext(ctx, "POST", url+path, strings.NewReader(strings.Repeat("x", 100_000)))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Expect", "100-continue")
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		n, _ := io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != want.status || continued.Load() != want.continued || (want.continued && n != 100_000) {
			t.Errorf("%s: %s, continued %v, %d bytes", path, resp.Status, continued.Load(), n)
		}
	}
}

// contract 2.51: after 101 bytes pass, and each direction ends by itself.
func TestHTTPUpgrade(t *testing.T) {
	defer goleak.VerifyNone(t)
	r := newHTTPRig(t, nil)
	r.send(r.client, plainGet+"Connection: Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Key: k\r\n\r\n")
	app := r.app()
	r.expect(app, gotGet+"sec-websocket-key: k\r\n"+strings.TrimSuffix(testTail, "\r\n")+"connection: upgrade\r\nupgrade: WebSocket\r\n\r\n")
	r.send(app, "HTTP/1.1 101 Switching Protocols\r\nServer: x\r\nDate: d\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: a\r\n\r\n\x81\x01a")
	r.expect(r.client, "HTTP/1.1 101 Switching Protocols\r\nserver: istio-envoy\r\ndate: d\r\nsec-websocket-accept: a\r\nx-envoy-upstream-service-time: 0\r\n"+
		"connection: upgrade\r\nupgrade: websocket\r\n"+decorated+"\r\n\x81\x01a")
	r.send(r.client, "GET \x00 not HTTP")
	r.expect(app, "GET \x00 not HTTP")
	_ = r.client.CloseWrite()
	r.expectEnd(app)
	large := strings.Repeat("z", 300_000)
	go func() {
		_, _ = io.WriteString(app, large)
		_ = app.CloseWrite()
	}()
	r.expect(r.client, large)
	r.expectEnd(r.client)
	if err := r.end(); err != nil {
		t.Error(err)
	}
}

func TestHTTPUpgradeDeclined(t *testing.T) {
	defer goleak.VerifyNone(t)
	r := newHTTPRig(t, nil)
	r.send(r.client, plainGet+"Connection: upgrade\r\nUpgrade: foo\r\n\r\n")
	app := r.app()
	r.expect(app, gotGet+strings.TrimSuffix(testTail, "\r\n")+"connection: upgrade\r\nupgrade: foo\r\n\r\n")
	r.send(app, emptyOK+"\r\n")
	r.expect(r.client, gotPlain)
	r.send(r.client, plainGet+"\r\n")
	r.expect(app, gotGet+testTail)
	_ = r.client.CloseWrite()
	r.expectEnd(app)
	_ = app.Close()
	app = r.app() // a safe request is sent again, and the client's end after it
	r.expect(app, gotGet+testTail)
	r.expectEnd(app)
	_ = app.Close()
	r.expect(r.client, r.upstreamAnswer("503 Service Unavailable", "connection termination", false))
	if err := r.end(); err != nil {
		t.Error(err)
	}
}

func TestHTTPConnect(t *testing.T) {
	defer goleak.VerifyNone(t)
	r := newHTTPRig(t, nil)
	r.send(r.client, "CONNECT b:443 HTTP/1.1\r\nHost: b:443\r\n\r\n")
	app := r.app()
	r.expect(app, "CONNECT b:443 HTTP/1.1\r\nhost: b:443\r\n"+testTail)
	r.send(app, "HTTP/1.1 405 No\r\nServer: x\r\nDate: d\r\nContent-Length: 0\r\n\r\n")
	r.expect(r.client, strings.Replace(gotPlain, "200 OK", "405 No", 1))
	r.send(r.client, "CONNECT b:443 HTTP/1.1\r\nHost: b:443\r\n\r\n")
	r.expect(app, "CONNECT b:443 HTTP/1.1\r\nhost: b:443\r\n"+testTail)
	r.send(app, "HTTP/1.1 200 Yes\r\nServer: x\r\nDate: d\r\n\r\n")
	r.expect(r.client, "HTTP/1.1 200 Yes\r\nserver: istio-envoy\r\ndate: d\r\nx-envoy-upstream-service-time: 0\r\n"+decorated+"\r\n")
	r.send(r.client, "ping")
	r.expect(app, "ping")
	_ = app.Close()
	r.expectEnd(r.client)
	_ = r.client.Close()
	_ = r.end()
}

// contract 2.55: HTTP/1.0 when it is allowed.
func TestHTTP10(t *testing.T) {
	defer goleak.VerifyNone(t)
	r := newHTTPRig(t, func(r *httpRig) { r.relay.HTTP10 = true })
	r.send(r.client, "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
	app := r.app()
	r.expect(app, "GET / HTTP/1.0\r\n"+testTail)
	r.send(app, "HTTP/1.0 200 OK\r\nServer: x\r\nDate: d\r\n\r\nuntil the end")
	_ = app.Close()
	r.expect(r.client, "HTTP/1.0 200 OK\r\nserver: istio-envoy\r\ndate: d\r\nx-envoy-upstream-service-time: 0\r\nconnection: close\r\n"+decorated+"\r\nuntil the end")
	r.expectEnd(r.client)
	_ = r.client.Close()
	if err := r.end(); err != nil {
		t.Error(err)
	}
}

func TestHTTPPipelining(t *testing.T) {
	url, _ := httpFront(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.URL.Path) }, nil)
	c, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const n = 500
	var all strings.Builder
	for i := range n {
		fmt.Fprintf(&all, "GET /%d HTTP/1.1\r\nHost: a\r\n\r\n", i)
	}
	go func() { _, _ = io.WriteString(c, all.String()) }()
	r := bufio.NewReader(c)
	for i := range n {
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		if string(b) != fmt.Sprintf("/%d", i) {
			t.Fatalf("response %d is %q", i, b)
		}
	}
}

// TestHTTPBothWays: request and response bodies flow at the same time.
func TestHTTPBothWays(t *testing.T) {
	url, _ := httpFront(t, func(w http.ResponseWriter, r *http.Request) {
		c := http.NewResponseController(w)
		_ = c.EnableFullDuplex()
		buf := make([]byte, 4096)
		for {
			n, err := r.Body.Read(buf)
			_, _ = w.Write(buf[:n])
			_ = c.Flush()
			if err != nil {
				return
			}
		}
	}, nil)
	up, feed := io.Pipe()
	req, err := http.NewRequest("POST", url, up)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.WriteString(feed, "first") }()
	resp, err := httpClient(t).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for _, word := range []string{"first", "second", strings.Repeat("third", 10_000)} {
		if word != "first" {
			go func() { _, _ = io.WriteString(feed, word) }()
		}
		got := make([]byte, len(word))
		if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != word {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	}
	_ = feed.Close()
	if b, err := io.ReadAll(resp.Body); len(b) > 0 || err != nil {
		t.Errorf("%q, %v", b, err)
	}
}

// TestHTTPLarge moves large bodies of every framing on many connections at once.
func TestHTTPLarge(t *testing.T) {
	const size = 8 << 20
	block := bytes.Repeat([]byte("podseal!"), 1<<13)
	sum := sha256.New()
	for range size / len(block) {
		sum.Write(block)
	}
	want := fmt.Sprintf("%x", sum.Sum(nil))
	url, _ := httpFront(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/length":
			w.Header().Set("Content-Length", fmt.Sprint(size))
		case "/close":
			w.Header().Set("Connection", "close")
			w.Header().Set("Transfer-Encoding", "identity")
		case "/up":
			sum := sha256.New()
			_, _ = io.Copy(sum, r.Body)
			fmt.Fprintf(w, "%x", sum.Sum(nil))
			return
		}
		for range size / len(block) {
			_, _ = w.Write(block)
		}
	}, nil)
	client := httpClient(t)
	var all sync.WaitGroup
	for _, path := range []string{"/length", "/chunked", "/close", "/up", "/length", "/up"} {
		all.Go(func() {
			var body io.Reader
			if path == "/up" {
				body = io.LimitReader(&repeat{block: block}, size)
			}
			req, err := http.NewRequest("POST", url+path, body)
			if err != nil {
				t.Error(err)
				return
			}
			resp, err := client.Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			sum := sha256.New()
			n, err := io.Copy(sum, resp.Body)
			if err != nil {
				t.Errorf("%s: %v", path, err)
			}
			if path != "/up" && (n != size || fmt.Sprintf("%x", sum.Sum(nil)) != want) {
				t.Errorf("%s: %d bytes, and not those that were sent", path, n)
			}
		})
	}
	all.Wait()
}

type repeat struct {
	block []byte
	at    int
}

func (r *repeat) Read(b []byte) (int, error) {
	n := copy(b, r.block[r.at:])
	r.at = (r.at + n) % len(r.block)
	return n, nil
}

// TestHTTPClientHangsUp: the application learns of it, whatever is going on.
func TestHTTPClientHangsUp(t *testing.T) {
	for name, request := range map[string]string{
		"while it works":       plainGet + "\r\n",
		"in the body":          "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhel",
		"in a chunked body":    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel",
		"with bytes unread":    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + strings.Repeat("x", 30_000),
		"after an early reset": plainGet + "\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			defer goleak.VerifyNone(t)
			r := newHTTPRig(t, nil)
			r.send(r.client, request)
			app := r.app()
			r.expect(app, strings.Fields(request)[0])
			if name == "after an early reset" {
				_ = r.client.SetLinger(0)
			}
			_ = r.client.Close()
			if _, err := io.Copy(io.Discard, app); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("the application was not told")
			}
			_ = app.Close()
			_ = r.end()
		})
	}
}

// TestHTTPHalfClose: a client that has ended its direction still gets its answer.
func TestHTTPHalfClose(t *testing.T) {
	defer goleak.VerifyNone(t)
	r := newHTTPRig(t, nil)
	r.send(r.client, plainGet+"\r\n")
	_ = r.client.CloseWrite()
	app := r.app()
	r.expect(app, gotGet+testTail)
	r.expectEnd(app)
	r.send(app, emptyOK+"\r\n")
	r.expect(r.client, gotPlain)
	r.expectEnd(r.client)
	if err := r.end(); err != nil {
		t.Error(err)
	}
}

// TestHTTPTruncated: what the application cut is not made to look whole.
func TestHTTPTruncated(t *testing.T) {
	for name, tt := range map[string]struct {
		response string
		reset    bool
	}{
		"length":     {"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhel", false},
		"chunked":    {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel", false},
		"bad chunk":  {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\nx\r\n", false},
		"till close": {"HTTP/1.1 200 OK\r\n\r\nhel", true},
	} {
		t.Run(name, func(t *testing.T) {
			defer goleak.VerifyNone(t)
			r := newHTTPRig(t, nil)
			r.send(r.client, plainGet+"\r\n")
			app := r.app()
			r.expect(app, gotGet+testTail)
			r.send(app, tt.response)
			if tt.reset {
				r.expect(r.client, "HTTP/1.1 200 OK\r\n")
				_ = app.SetLinger(0)
			}
			_ = app.Close()
			std, err := http.ReadResponse(bufio.NewReader(io.MultiReader(strings.NewReader(map[bool]string{true: "HTTP/1.1 200 OK\r\n"}[tt.reset]), r.client)), nil)
			if err == nil {
				_, err = io.Copy(io.Discard, std.Body)
			}
			if err == nil {
				t.Error("the client took it for whole")
			}
			_ = r.client.Close()
			_ = r.end()
		})
	}
}

// TestHTTPEarlyResponse: the answer comes before the request has been sent.
func TestHTTPEarlyResponse(t *testing.T) {
	defer goleak.VerifyNone(t)
	r := newHTTPRig(t, nil)
	r.send(r.client, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello")
	app := r.app()
	const head = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n" + testTail
	r.expect(app, head+"hello")
	r.send(app, emptyOK+"\r\n")
	r.expect(r.client, gotPlain)
	r.send(r.client, "world") // in time: both connections go on
	r.expect(app, "world")
	r.send(r.client, plainGet+"\r\n")
	r.expect(app, gotGet+testTail)
	r.send(app, emptyOK+"\r\n")
	r.expect(r.client, gotPlain)

	r.send(r.client, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello")
	r.expect(app, head+"hello")
	r.send(app, emptyOK+"Connection: close\r\n\r\n")
	_ = app.Close()
	r.expect(r.client, gotPlain)
	r.expectEnd(r.client) // the rest does not come
	if err := r.end(); err != nil {
		t.Error(err)
	}
}

// TestHTTPTooLarge: an application that refuses a body and hangs up is heard.
func TestHTTPTooLarge(t *testing.T) {
	url, _ := httpFront(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Connection", "close")
		w.WriteHeader(http.StatusRequestEntityTooLarge)
	}, nil)
	for range 20 {
		resp, err := httpClient(t).Post(url, "text/plain", io.LimitReader(&repeat{block: []byte("xxxxxxxx")}, 3<<20))
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusRequestEntityTooLarge {
			t.Fatal(resp.Status)
		}
	}
}

// contract 2.56: no timeout while the application works.
func TestHTTPIdleIsBetweenRequests(t *testing.T) {
	defer goleak.VerifyNone(t)
	r := newHTTPRig(t, func(r *httpRig) {
		r.relay.IdleTimeout, r.relay.Now = 50*time.Millisecond, time.Now
	})
	r.send(r.client, plainGet+"\r\n")
	app := r.app()
	r.expect(app, gotGet+testTail)
	_ = app.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	if _, err := app.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("while the application works: %v", err)
	}
	r.send(app, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	if _, err := bufio.NewReader(r.client).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	if err := r.end(); err != nil { // and then it ends by itself
		t.Error(err)
	}
}

func TestHTTPHeadTimeout(t *testing.T) {
	defer goleak.VerifyNone(t)
	r := newHTTPRig(t, func(r *httpRig) { r.now = time.Now().Add(-httpHeadTimeout) })
	r.send(r.client, "GET / HTTP/1.1\r\nHost")
	r.expect(r.client, "HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n")
	_ = r.client.Close()
	if err := r.end(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("ended with %v", err)
	}
}

func TestHTTPDraining(t *testing.T) {
	defer goleak.VerifyNone(t)
	var draining atomic.Bool
	r := newHTTPRig(t, func(r *httpRig) { r.relay.Draining = draining.Load })
	r.send(r.client, plainGet+"\r\n")
	app := r.app()
	r.expect(app, gotGet+testTail)
	draining.Store(true)
	r.send(app, emptyOK+"\r\n")
	r.expect(r.client, gotOK+"connection: close\r\n"+decorated+"\r\n")
	r.expectEnd(r.client)
	_ = r.client.Close()
	if err := r.end(); err != nil {
		t.Error(err)
	}
}

func BenchmarkHTTPRelay(b *testing.B) {
	client, inner := tcpPair(b)
	toApp, app := tcpPair(b)
	h := &httpRelay{Client: inner, App: toApp, Decorator: "web.shop.svc.cluster.local:80/*"}
	var all sync.WaitGroup
	all.Go(func() { _, _, _ = h.serve(context.Background()) })
	response := []byte("HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Fri, 24 Jan 2025 09:14:20 GMT\r\nContent-Type: text/html\r\nContent-Length: 615\r\n\r\n" + strings.Repeat("w", 615))
	all.Go(func() {
		buf := make([]byte, 4096)
		for {
			if _, err := app.Read(buf); err != nil {
				return
			}
			if _, err := app.Write(response); err != nil {
				return
			}
		}
	})
	request := []byte("GET / HTTP/1.1\r\nHost: webserver.test-istio-mtls\r\nUser-Agent: Wget\r\nAccept: */*\r\n\r\n")
	buf := make([]byte, 4096)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := client.Write(request); err != nil {
			b.Fatal(err)
		}
		if _, err := client.Read(buf); err != nil {
			b.Fatal(err)
		}
	}
	_ = client.Close()
	all.Wait()
}
