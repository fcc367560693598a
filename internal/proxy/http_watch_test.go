package proxy

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// watching waits until what the client sends is read beside an exchange.
func (r *httpRig) watching() {
	r.t.Helper()
	eventually(r.t, func() bool {
		r.relay.mu.Lock()
		defer r.relay.mu.Unlock()
		return r.relay.watch.done != nil
	})
}

// TestHTTPSlowApplication: while an application takes its time the client is read, and
// all goes on afterwards as if it had not been: with nothing read, with the next
// request, or a part of it.
func TestHTTPSlowApplication(t *testing.T) {
	defer goleak.VerifyNone(t)
	r := newHTTPRig(t, nil)
	var app io.ReadWriter
	next := plainGet + "\r\n"
	for i, early := range []string{"", next, next[:9], "\r\n", next + next} {
		if i == 0 {
			r.send(r.client, next)
			app = r.app()
		}
		r.expect(app, gotGet+testTail)
		r.watching()
		r.send(r.client, early)
		r.send(app, emptyOK+"\r\n")
		r.expect(r.client, gotPlain)
		if strings.HasSuffix(early, next) {
			continue
		}
		r.send(r.client, strings.TrimPrefix(next, strings.TrimSpace(early)))
	}
	for range 2 {
		r.expect(app, gotGet+testTail)
		r.send(app, emptyOK+"\r\n")
		r.expect(r.client, gotPlain)
	}
	_ = r.client.Close()
	if err := r.end(); err != nil {
		t.Error(err)
	}
}

// TestHTTPIdleStartsAnew: the wait for a request is counted from the last response,
// also where the deadline of the first wait has passed meanwhile.
func TestHTTPIdleStartsAnew(t *testing.T) {
	defer goleak.VerifyNone(t)
	const idle = 300 * time.Millisecond
	r := newHTTPRig(t, func(r *httpRig) { r.relay.IdleTimeout, r.relay.Now = idle, time.Now })
	var app io.ReadWriter
	began := time.Now()
	for time.Since(began) < 2*idle {
		_ = r.client.SetReadDeadline(time.Now().Add(10 * time.Second))
		r.send(r.client, plainGet+"\r\n")
		if app == nil {
			app = r.app()
		}
		r.expect(app, gotGet+testTail)
		r.send(app, "HTTP/1.1 204 No\r\nDate: d\r\n\r\n")
		r.expect(r.client, "HTTP/1.1 204 No\r\ndate: d\r\nx-envoy-upstream-service-time: ")
		_ = r.client.SetReadDeadline(time.Now().Add(idle / 3))
		if _, err := io.Copy(io.Discard, r.client); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("%v after the beginning: %v", time.Since(began), err)
		}
	}
	last := time.Now()
	_ = r.client.SetReadDeadline(last.Add(10 * time.Second))
	r.expectEnd(r.client)
	if after := time.Since(last); after < idle/3 {
		t.Errorf("ended after %v", after)
	}
	_ = r.client.Close()
	if err := r.end(); err != nil {
		t.Error(err)
	}
}
