package proxy

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"podseal.io/podseal/internal/policy"
)

// TestServerSentEvents: each event of a response that doesn't end reaches the client when
// the application has sent it, and neither side waits for more.
func TestServerSentEvents(t *testing.T) {
	for _, mode := range []policy.Mode{policy.Permissive, policy.Strict} {
		seen := make(chan string)
		p := newPair(t, policy.HTTP, func(c *net.TCPConn) {
			if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
			for event := range seen { // the next only when the client has the one before
				_, _ = io.WriteString(c, event)
			}
		})
		p.mode(p.server, mode)
		c := p.dial()
		_, _ = io.WriteString(c, "GET /events HTTP/1.1\r\nHost: web\r\nAccept: text/event-stream\r\n\r\n")
		r := bufio.NewReader(c)
		res, err := http.ReadResponse(r, nil)
		if err != nil || res.Header.Get("Content-Type") != "text/event-stream" {
			t.Fatalf("%s: %v, %v", mode, res, err)
		}
		for _, text := range []string{"data: one\n\n", "data: two\n\n", ": nothing\n\n"} {
			seen <- "b\r\n" + text + "\r\n"
			got := make([]byte, len(text))
			if _, err := io.ReadFull(res.Body, got); err != nil || string(got) != text {
				t.Fatalf("%s: %q, %v", mode, got, err)
			}
		}
		_ = c.Close()
		close(seen)
	}
}

// TestAccessUnderDisable: authorization doesn't depend on the mode. Contract 1.29.
func TestAccessUnderDisable(t *testing.T) {
	p := newPair(t, policy.HTTP, func(c *net.TCPConn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	})
	p.mode(p.server, policy.Disable)
	ask := func() string {
		c := p.dial()
		_, _ = io.WriteString(c, "GET /x HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")
		b, _ := io.ReadAll(c)
		line, _, _ := strings.Cut(string(b), "\r\n")
		return line
	}
	if got := ask(); got != "HTTP/1.1 200 OK" {
		t.Errorf("without a policy: %q", got)
	}
	p.enforce(allow("client", on(policy.SourcePrincipal, clientPrincipal)))
	if got := ask(); got != "HTTP/1.1 403 Forbidden" {
		t.Errorf("who proves nothing is not who is allowed: %q", got)
	}
	p.enforce(allow("path", on(policy.RequestPath, "/x")))
	if got := ask(); got != "HTTP/1.1 200 OK" {
		t.Errorf("what a policy allows: %q", got)
	}
	if r := record(t, p.inside, anyRecord); r.Security != "plaintext" {
		t.Errorf("record %+v", r)
	}
}
