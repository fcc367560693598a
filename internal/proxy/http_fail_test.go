package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"podseal.io/podseal/internal/wire"
)

// TestHTTPRefuses: what can't be read safely is answered with 400 and never

func TestHTTPRefuses(t *testing.T) {
	for name, tt := range map[string]struct{ request, status string }{
		"garbage":                   {"\x00\x01\x02", "400 Bad Request"},
		"a ClientHello":             {"\x16\x03\x01\x02\x00\x01", "400 Bad Request"}, // contract 2.13: DISABLE
		"a word":                    {"hello\r\n", "400 Bad Request"},
		"CL and TE":                 {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "400 Bad Request"},
		"NUL in the path":           {"GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n", "400 Bad Request"},
		"no Host":                   {"GET / HTTP/1.1\r\n\r\n", "400 Bad Request"},
		"bad chunk":                 {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", "400 Bad Request"},
		"XFCC in a trailer":         {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Forwarded-Client-Cert: By=forged\r\n\r\n", "400 Bad Request"}, // contract 2.47
		"too long":                  {"GET /" + strings.Repeat("a", wire.MaxHead) + " HTTP/1.1\r\n\r\n", "431 Request Header Fields Too Large"},
		"HTTP/1.0 (contract 2.55)":  {"GET / HTTP/1.0\r\n\r\n", "426 Upgrade Required"},
		"more behind the bad thing": {"BAD\r\n\r\n" + strings.Repeat("x", 100_000), "400 Bad Request"},
	} {
		t.Run(name, func(t *testing.T) {
			defer goleak.VerifyNone(t)
			r := newHTTPRig(t, nil)
			r.send(r.client, tt.request)
			r.expect(r.client, "HTTP/1.1 "+tt.status+"\r\ncontent-length: 0\r\n"+r.date()+"server: istio-envoy\r\nconnection: close\r\n\r\n")
			r.expectEnd(r.client)
			_ = r.client.Close()
			err := r.end()
			if tt.status != "426 Upgrade Required" && !errors.Is(err, wire.ErrMalformed) && !errors.Is(err, wire.ErrTooLarge) {
				t.Errorf("ended with %v", err)
			}
			if r.flags() != "DPE" || len(r.apps) != 0 {
				t.Errorf("flags %q, %d calls of the application", r.flags(), len(r.apps))
			}
		})
	}
}

// TestHTTPBadChunkLater: a body that turns bad half-way ends both sides.

func TestHTTPBadChunkLater(t *testing.T) {
	defer goleak.VerifyNone(t)
	r := newHTTPRig(t, nil)
	r.send(r.client, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
	app := r.app()
	r.expect(app, "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n"+testTail+"3\r\nabc\r\n")
	r.send(r.client, "x\r\n")
	r.expectEnd(app)
	r.expect(r.client, "HTTP/1.1 400 Bad Request\r\n")
	if _, err := io.Copy(io.Discard, r.client); err != nil {
		t.Error(err)
	}
	_ = r.client.Close()
	if err := r.end(); !errors.Is(err, wire.ErrMalformed) {
		t.Errorf("ended with %v", err)
	}
}

func (r *httpRig) upstreamAnswer(status, cause string, closing bool) string {
	body := upstreamError + cause
	s := "HTTP/1.1 " + status + "\r\ncontent-length: " + strconv.Itoa(len(body)) + "\r\ncontent-type: text/plain\r\n" + r.date() +
		"server: istio-envoy\r\nx-envoy-upstream-service-time: 0\r\n"
	if closing {
		s += "connection: close\r\n"
	}
	return s + decorated + "\r\n" + body
}

func TestHTTPAppUnreachable(t *testing.T) {
	defer goleak.VerifyNone(t)
	r := newHTTPRig(t, func(r *httpRig) {
		r.relay.Dial = func(context.Context) (stream, error) { return nil, errors.New("refused") }
	})
	for range 2 { // the client's connection is kept
		r.send(r.client, plainGet+"\r\n")
		r.expect(r.client, r.upstreamAnswer("503 Service Unavailable", "remote connection failure", false))
	}
	r.send(r.client, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
	r.expect(r.client, r.upstreamAnswer("503 Service Unavailable", "remote connection failure", true))
	r.expectEnd(r.client)
	_ = r.client.Close()
	if err := r.end(); !errors.Is(err, errHTTPApp) {
		t.Errorf("ended with %v", err)
	}
	if r.flags() != "UF UF UF" {
		t.Errorf("flags %q", r.flags())
	}
}

func TestHTTPAppFails(t *testing.T) {
	for name, tt := range map[string]struct{ response, status, cause, flag string }{
		"no answer":               {"", "503 Service Unavailable", "connection termination", "UC"},
		"half a head":             {"HTTP/1.1 200 OK\r\nX:", "503 Service Unavailable", "connection termination", "UC"},
		"not HTTP":                {"SSH-2.0-x\r\n", "502 Bad Gateway", "protocol error", "UPE"},
		"CL and TE":               {"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "502 Bad Gateway", "protocol error", "UPE"},
		"101 that nobody asked":   {"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", "502 Bad Gateway", "protocol error", "UPE"},
		"a head that has no end ": {"HTTP/1.1 200 OK\r\n" + strings.Repeat("X: "+strings.Repeat("a", 6000)+"\r\n", 11), "502 Bad Gateway", "protocol error", "UPE"},
	} {
		t.Run(name, func(t *testing.T) {
			defer goleak.VerifyNone(t)
			r := newHTTPRig(t, nil)
			r.send(r.client, plainGet+"\r\n")
			app := r.app()
			r.expect(app, gotGet+testTail)
			r.send(app, tt.response)
			_ = app.CloseWrite()
			r.expect(r.client, r.upstreamAnswer(tt.status, tt.cause, false))
			r.send(r.client, plainGet+"\r\n") // and the next one gets a new connection
			app = r.app()
			r.expect(app, gotGet+testTail)
			r.send(app, emptyOK+"\r\n")
			r.expect(r.client, gotPlain)
			_ = r.client.Close()
			if err := r.end(); err != nil {
				t.Error(err)
			}
			if r.flags() != tt.flag+" -" {
				t.Errorf("flags %q", r.flags())
			}
		})
	}
}

// TestHTTPStaleConnection: an application may close a connection between

// Contract 2.57.
func TestHTTPStaleConnection(t *testing.T) {
	defer goleak.VerifyNone(t)
	r := newHTTPRig(t, nil)
	once := func(app *net.TCPConn) *net.TCPConn {
		t.Helper()
		r.send(r.client, plainGet+"\r\n")
		if app == nil {
			app = r.app()
		}
		r.expect(app, gotGet+testTail)
		r.send(app, emptyOK+"\r\n")
		r.expect(r.client, gotPlain)
		return app
	}
	app := once(nil)
	once(app)
	_ = app.Close()
	app = once(nil) // closed before: a new one is made

	r.send(r.client, plainGet+"\r\n")
	r.expect(app, gotGet+testTail)
	_ = app.Close() // closed when the request has come: it is sent again, being safe
	app = r.app()
	r.expect(app, gotGet+testTail)
	r.send(app, emptyOK+"\r\n")
	r.expect(r.client, gotPlain)

	r.send(r.client, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi")
	r.expect(app, "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n"+testTail+"hi")
	_ = app.Close() // this one isn't: nobody knows whether it was done
	r.expect(r.client, r.upstreamAnswer("503 Service Unavailable", "connection termination", false))
	_ = r.client.Close()
	if err := r.end(); err != nil {
		t.Error(err)
	}
}

// TestHTTPSaidTooMuch: bytes after a response are nobody's answer.

func TestHTTPSaidTooMuch(t *testing.T) {
	defer goleak.VerifyNone(t)
	r := newHTTPRig(t, nil)
	r.send(r.client, plainGet+"\r\n")
	app := r.app()
	r.expect(app, gotGet+testTail)
	r.send(app, emptyOK+"\r\n"+"HTTP/1.1 200 OK\r\nX-Poison: 1\r\nContent-Length: 0\r\n\r\n")
	r.expect(r.client, gotPlain)
	r.send(r.client, plainGet+"\r\n")
	app = r.app()
	r.expect(app, gotGet+testTail)
	r.send(app, emptyOK+"\r\n")
	r.expect(r.client, gotPlain)
	_ = r.client.Close()
	if err := r.end(); err != nil {
		t.Error(err)
	}
}
