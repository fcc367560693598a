package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/workload"
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
			relays.Go(func() { _ = h.serve(ctx) })
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
				if err != nil || resp.StatusCode != http.StatusOK {
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
	req, err := http.NewRequest(http.MethodPost, url, io.MultiReader(strings.NewReader("hello")))
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
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+path, strings.NewReader(strings.Repeat("x", 100_000)))
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
	req, err := http.NewRequest(http.MethodPost, url, up)
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
			req, err := http.NewRequest(http.MethodPost, url+path, body)
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

func BenchmarkHTTPRelay(b *testing.B) { benchmarkHTTPRelay(b, nil) }

// BenchmarkHTTPRelayJudged has an ALLOW and a DENY policy in force.
func BenchmarkHTTPRelayJudged(b *testing.B) {
	access := someAccess(b)
	benchmarkHTTPRelay(b, worldOf(access))
}

func benchmarkHTTPRelay(b *testing.B, world func() *workload.World) {
	client, inner := tcpPair(b)
	toApp, app := tcpPair(b)
	h := &httpRelay{Client: inner, App: toApp, Decorator: "web.shop.svc.cluster.local:80/*"}
	if world != nil {
		h.Gate = &gate{World: world, Attempt: policy.Attempt{Peer: policy.NewPeer(identity.MustNew("cluster.local", "shop", "client"))}}
	}
	var all sync.WaitGroup
	all.Go(func() { _ = h.serve(context.Background()) })
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
