package proxy

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"podseal.io/podseal/internal/policy"
)

// mirror answers requests with their own body, framed as the path says; a path of
// /refuse is answered before the body has come.
func mirror(c *net.TCPConn) {
	in := bufio.NewReader(c)
	for {
		req, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		if req.URL.Path == "/refuse" {
			_, _ = io.WriteString(c, "HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
			return
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return
		}
		res := &http.Response{StatusCode: http.StatusOK, ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(body))}
		switch req.URL.Path {
		case "/length":
			res.ContentLength = int64(len(body))
		case "/chunked":
			res.ContentLength, res.TransferEncoding = -1, []string{"chunked"}
		case "/close":
			res.ContentLength, res.Close = -1, true
		}
		if res.Write(c) != nil || res.Close {
			return
		}
	}
}

// Bodies of any length and framing pass TLS both ways as they are, whichever way
// they are carried; what a body is followed by is the next request.
func TestHTTPBodiesOverTLS(t *testing.T) {
	p := newPair(t, policy.HTTP, mirror)
	p.mode(p.server, policy.Strict)
	client := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1, DialContext: func(context.Context, string, string) (net.Conn, error) { return p.dial(), nil }}}
	defer client.CloseIdleConnections()
	total := int64(0)
	for _, size := range []int{0, 1, 5000, httpBulk, httpBulk + httpSmall + 1, 3<<20 + 7} {
		want := make([]byte, size)
		for i := range want {
			want[i] = byte(i * i >> 7)
		}
		for _, path := range []string{"/length", "/chunked", "/close"} {
			for _, known := range []bool{true, false} {
				var body io.Reader = bytes.NewReader(want)
				if !known {
					body = io.MultiReader(body)
				}
				res, err := client.Post("http://web"+path, "application/octet-stream", body)
				if err != nil {
					t.Fatalf("%d bytes to %s: %v", size, path, err)
				}
				got, err := io.ReadAll(res.Body)
				res.Body.Close()
				if err != nil || !bytes.Equal(got, want) {
					t.Fatalf("%d bytes to %s: %d came back, %v", size, path, len(got), err)
				}
				total += int64(size)
			}
		}
	}
	client.CloseIdleConnections()
	eventually(t, func() bool { return p.inside.conns.work().open == 0 })
	var sent, received int64
	for _, r := range p.inside.records.last() {
		sent, received = sent+r.BytesSent, received+r.BytesReceived
	}
	if heads := int64(36 * 1000); sent < total || received < total || sent > total+total/100+heads || received > total+total/100+heads {
		t.Errorf("%d bytes each way, %d sent and %d received are counted", total, sent, received)
	}
}

// An application that refuses a long body early is heard, though nobody takes the
// rest.
func TestHTTPRefusedBodyOverTLS(t *testing.T) {
	p := newPair(t, policy.HTTP, mirror)
	p.mode(p.server, policy.Strict)
	for range 5 {
		c := p.dial()
		body := make([]byte, 4<<20)
		go func() {
			_, _ = fmt.Fprintf(c, "POST /refuse HTTP/1.1\r\nHost: web\r\nContent-Length: %d\r\n\r\n", len(body))
			_, _ = c.Write(body)
		}()
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusRequestEntityTooLarge {
			t.Fatal(res.Status)
		}
		c.Close()
	}
}

// Records that are none end the connection: the application sees no orderly end,
// the record says why, and others are not disturbed.
func TestBadRecordsCutTheConnection(t *testing.T) {
	ended := make(chan error, 10)
	p := newPair(t, policy.TCP, func(c *net.TCPConn) {
		_, err := io.Copy(c, c)
		ended <- err
	})
	p.mode(p.server, policy.Strict)
	other := p.dial()
	exchange(t, other, "before")
	for name, bad := range map[string]struct {
		bytes []byte
		why   string
	}{
		"a wrong tag":       {append([]byte{23, 3, 3, 0, 40}, make([]byte, 40)...), "authenticated"},
		"too long":          {[]byte{23, 3, 3, 0x41, 1}, "longer than allowed"},
		"in the clear":      {[]byte{21, 3, 3, 0, 2, 1, 0}, "in the clear"},
		"cut within a head": {[]byte{23, 3}, "unexpected EOF"},
	} {
		raw := p.connect(p.outsider(), p.app)
		c := p.meshTLS(raw, p.client.Identity, "istio")
		exchange(t, c, "hello")
		if _, err := raw.Write(bad.bytes); err != nil {
			t.Fatal(err)
		}
		_ = raw.CloseWrite()
		if err := <-ended; err == nil {
			t.Errorf("%s: the application saw an end", name)
		}
		record(t, p.inside, func(r Record) bool { return strings.Contains(r.Error, bad.why) })
	}
	exchange(t, other, "after")
}
