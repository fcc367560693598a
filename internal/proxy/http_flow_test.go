package proxy

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// contract 2.58

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

// slowWriter is an application whose connection takes a body, which it may answer, before
// the call that sends it returns.
type slowWriter struct {
	*net.TCPConn
	writes  int
	release chan struct{}
}

func (w *slowWriter) Write(b []byte) (int, error) {
	n, err := w.TCPConn.Write(b)
	if w.writes++; w.writes == 2 {
		<-w.release
	}
	return n, err
}

// A response that is out before the relay knows that the request has been sent bounds
// nothing: the client may come with the next request as late as after any other.
func TestHTTPAnsweredWhileSending(t *testing.T) {
	defer goleak.VerifyNone(t)
	release := make(chan struct{})
	r := newHTTPRig(t, func(r *httpRig) {
		r.now = r.now.Add(-10 * time.Second) // what is bounded to seconds is over at once
		dial := r.relay.Dial
		r.relay.Dial = func(ctx context.Context) (stream, error) {
			c, err := dial(ctx)
			return &slowWriter{TCPConn: c.(*net.TCPConn), release: release}, err
		}
	})
	r.send(r.client, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
	app := r.app()
	r.expect(app, "POST")
	r.send(r.client, "hello")
	for head := bufio.NewReader(app); ; {
		line, err := head.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if line == "\r\n" {
			r.expect(head, "hello")
			break
		}
	}
	r.send(app, emptyOK+"\r\n")
	r.expect(r.client, gotPlain)
	eventually(t, func() bool {
		r.relay.mu.Lock()
		defer r.relay.mu.Unlock()
		return r.relay.answered
	})
	close(release)
	r.send(r.client, plainGet+"\r\n")
	r.expect(app, gotGet+testTail)
	r.send(app, emptyOK+"\r\n")
	r.expect(r.client, gotPlain)
	_ = r.client.Close()
	if err := r.end(); err != nil {
		t.Error(err)
	}
}
