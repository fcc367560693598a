package wire

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// contract 2.5
func TestDetectHTTP(t *testing.T) {
	for in, want := range map[string]Detection{
		"":                              NeedMore,
		"G":                             NeedMore,
		"GET":                           NeedMore,
		"GET ":                          NeedMore,
		"GET / HTTP/1.":                 NeedMore,
		"GET / HTTP/1.1":                NeedMore,
		"GET / HTTP/1.1\r":              HTTP1,
		"GET / HTTP/1.1\r\nHost: x":     HTTP1,
		"GET / HTTP/1.1\n":              HTTP1,
		"GET / HTTP/1.0\r\n":            HTTP10,
		"M-SEARCH * HTTP/1.1\r\n":       HTTP1,
		"CONNECT a:1 HTTP/1.1\r\n":      HTTP1,
		"OPTIONS * HTTP/1.1\r\n":        HTTP1,
		"PRI * HTTP/2.0\r\n\r\nSM\r":    NeedMore,
		"P":                             NeedMore,
		"PRI":                           NeedMore,
		preface:                         H2C,
		preface + "\x00\x00":            H2C,
		"PRI * HTTP/2.0\r\n\r\nXX\r\nn": NotHTTP,
		"GET / HTTP/2.0\r\n":            NotHTTP,
		"GET / HTTP/1.2\r\n":            NotHTTP,
		"GET / HTTP/1.11\r\n":           NotHTTP,
		"GET  / HTTP/1.1\r\n":           NotHTTP,
		"GET / \r\n":                    NotHTTP,
		"GET /\r\n":                     NotHTTP,
		"GETX":                          NotHTTP,
		"get / HTTP/1.1\r\n":            NotHTTP,
		"SSH-2.0-OpenSSH_9.2\r\n":       NotHTTP,
		"PING\r\n":                      NotHTTP,
		"*1\r\n$4\r\nPING\r\n":          NotHTTP,
		"SET key value\r\n":             NotHTTP,
		"EHLO x\r\n":                    NotHTTP,
		"\x00\x00\x00\x08\x04\xd2\x16/": NotHTTP,
		"\x16\x03\x01":                  NotHTTP,
		"GET /\x00 HTTP/1.1\r\n":        NotHTTP,
		"GET /" + strings.Repeat("a", maxDetect-6):            NeedMore,
		"GET /" + strings.Repeat("a", maxDetect):              HTTP1,
		"GET /" + strings.Repeat("a", 5000) + " HTTP/1.1\r\n": HTTP1,
	} {
		if got := DetectHTTP([]byte(in)); got != want {
			t.Errorf("%.40q: got %v, want %v", in, got, want)
		}
	}
}

// TestDetectHTTPCut: while more is needed nothing is decided, and once decided
// more bytes don't change it.
func TestDetectHTTPCut(t *testing.T) {
	for _, in := range []string{"GET /path?q HTTP/1.1\r\nhost: x\r\n\r\n", "PUT x HTTP/1.0\r\n\r\n", preface + "rest", "SET a b\r\nmore", "GETTER"} {
		final := DetectHTTP([]byte(in))
		for i := range in {
			if got := DetectHTTP([]byte(in[:i])); got != NeedMore && got != final {
				t.Errorf("%q cut at %d: %v, whole: %v", in, i, got, final)
			}
		}
	}
}

func FuzzDetectHTTP(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\n"))
	f.Add([]byte(preface))
	f.Fuzz(func(t *testing.T, b []byte) {
		final := DetectHTTP(b)
		for i := range min(len(b), 300) {
			if got := DetectHTTP(b[:i]); got != NeedMore && got != final {
				t.Fatalf("cut at %d: %v, whole: %v", i, got, final)
			}
		}
		if _, err := ParseRequestHead(&RequestHead{}, b); err == nil && final == NeedMore {
			t.Fatal("a whole head, and more is needed to detect it")
		}
	})
}

func TestParseRequestHead(t *testing.T) {
	const in = "POST /a/../b?q#f HTTP/1.1\r\nHost: web:80\r\nX-Empty:\r\nX-Pad: \t a b \t\r\nContent-Length: 5\r\nConnection: Keep-Alive, Upgrade\r\nUPGRADE: websocket\r\n\r\n"
	var h RequestHead
	n, err := ParseRequestHead(&h, []byte(in+"hello"))
	if err != nil {
		t.Fatal(err)
	}
	if n != len(in) {
		t.Errorf("head of %d bytes, want %d", n, len(in))
	}
	got := fmt.Sprintf("%s %s %s %s 1.%d %v close=%v upgrade=%s fields=%d %q", h.Method, h.Target, h.Host, h.Path, h.Minor, h.Body, h.Close, h.Upgrade, len(h.Fields), h.Fields[2].Value)
	if want := `POST /a/../b?q#f web:80 /a/../b?q#f 1.1 {1 5} close=false upgrade=websocket fields=6 "a b"`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	for i := range in { // cut at every byte
		if _, err := ParseRequestHead(&h, []byte(in[:i])); !errors.Is(err, ErrShort) {
			t.Fatalf("cut at %d: %v, want ErrShort", i, err)
		}
	}
}

func TestRequestForms(t *testing.T) {
	for _, tt := range []struct{ in, host, path, body string }{
		{"GET / HTTP/1.0\r\n\r\n", "", "/", "{0 0} close"},
		{"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", "", "/", "{0 0}"},
		{"GET / HTTP/1.1\r\nHost: a\r\nConnection: x, CLOSE\r\n\r\n", "a", "/", "{0 0} close"},
		{"GET http://b:81/p?q HTTP/1.1\r\nHost: a\r\n\r\n", "b:81", "/p?q", "{0 0}"},
		{"GET HTTP://b HTTP/1.1\r\nHost: a\r\n\r\n", "b", "/", "{0 0}"},
		{"OPTIONS http://b HTTP/1.1\r\nHost: a\r\n\r\n", "b", "*", "{0 0}"},
		{"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "a", "*", "{0 0}"},
		{"CONNECT c:443 HTTP/1.1\r\nHost: c:443\r\n\r\n", "c:443", "c:443", "{0 0}"},
		{"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n", "a", "/", "{2 0}"},
		{"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", "a", "/", "{0 0}"},
		{"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 7\r\nContent-Length: 7\r\n\r\n", "a", "/", "{1 7}"},
		{"GET / HTTP/1.1\r\nHost:\r\n\r\n", "", "/", "{0 0}"},
		{"GET //x HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", "[::1]:80", "//x", "{0 0}"},
	} {
		var h RequestHead
		if _, err := ParseRequestHead(&h, []byte(tt.in)); err != nil {
			t.Errorf("%q: %v", tt.in, err)
			continue
		}
		body := fmt.Sprint(h.Body)
		if h.Close {
			body += " close"
		}
		if string(h.Host) != tt.host || string(h.Path) != tt.path || body != tt.body {
			t.Errorf("%q: got %q %q %q", tt.in, h.Host, h.Path, body)
		}
	}
}

func TestRequestRefused(t *testing.T) {
	head := func(fields string) string { return "GET / HTTP/1.1\r\nHost: a\r\n" + fields + "\r\n" }
	tests := map[string]string{
		"no Host":                  "GET / HTTP/1.1\r\n\r\n",
		"two Hosts":                head("Host: a\r\n"),
		"two Hosts in 1.0":         "GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n",
		"Host with path":           "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
		"Host with userinfo":       "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n",
		"Host with space":          "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
		"Host list":                "GET / HTTP/1.1\r\nHost: a,b\r\n\r\n",
		"CL and TE":                head("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n"),
		"TE and CL":                head("Transfer-Encoding: chunked\r\nContent-Length: 1\r\n"),
		"CLs differ":               head("Content-Length: 1\r\nContent-Length: 2\r\n"),
		"CL list":                  head("Content-Length: 1, 1\r\n"),
		"CL sign":                  head("Content-Length: +1\r\n"),
		"CL negative":              head("Content-Length: -1\r\n"),
		"CL hex":                   head("Content-Length: 0x1\r\n"),
		"CL empty":                 head("Content-Length:\r\n"),
		"CL with space":            head("Content-Length: 1 1\r\n"),
		"CL too large":             head("Content-Length: 1000000000000000000\r\n"),
		"TE gzip":                  head("Transfer-Encoding: gzip\r\n"),
		"TE gzip, chunked":         head("Transfer-Encoding: gzip, chunked\r\n"),
		"TE chunked, identity":     head("Transfer-Encoding: chunked, identity\r\n"),
		"TE twice":                 head("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
		"TE empty":                 head("Transfer-Encoding:\r\n"),
		"TE quoted":                head("Transfer-Encoding: \"chunked\"\r\n"),
		"TE vertical tab":          head("Transfer-Encoding: \vchunked\r\n"),
		"TE in 1.0":                "GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
		"obs-fold":                 head("X: a\r\n b\r\n"),
		"first line folded":        "GET / HTTP/1.1\r\n Host: a\r\n\r\n",
		"space before colon":       head("X : a\r\n"),
		"tab before colon":         head("X\t: a\r\n"),
		"no colon":                 head("X\r\n"),
		"no name":                  head(": a\r\n"),
		"name with quotes":         head("\"X\": a\r\n"),
		"name not ASCII":           head("\xc3\xa9: a\r\n"),
		"bare LF":                  head("X: a\nY: b\r\n"),
		"bare CR":                  head("X: a\rY: b\r\n"),
		"NUL in value":             head("X: a\x00b\r\n"),
		"NUL in path":              "GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n",
		"DEL in value":             head("X: \x7f\r\n"),
		"tab in request line":      "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n",
		"two spaces":               "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
		"space in target":          "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
		"space at end":             "GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
		"no version":               "GET /\r\n\r\n",
		"no target":                "GET HTTP/1.1\r\nHost: a\r\n\r\n",
		"version 1.2":              "GET / HTTP/1.2\r\nHost: a\r\n\r\n",
		"version 2.0":              "GET / HTTP/2.0\r\nHost: a\r\n\r\n",
		"version in lower case":    "GET / http/1.1\r\nHost: a\r\n\r\n",
		"relative target":          "GET a HTTP/1.1\r\nHost: a\r\n\r\n",
		"asterisk with GET":        "GET * HTTP/1.1\r\nHost: a\r\n\r\n",
		"ftp target":               "GET ftp://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
		"userinfo in target":       "GET http://u@b/ HTTP/1.1\r\nHost: a\r\n\r\n",
		"no authority in target":   "GET http:///p HTTP/1.1\r\nHost: a\r\n\r\n",
		"CONNECT with a path":      "CONNECT /p HTTP/1.1\r\nHost: a\r\n\r\n",
		"method with a colon":      "GE:T / HTTP/1.1\r\nHost: a\r\n\r\n",
		"empty line first":         "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"binary, no line yet":      "\x00\x01",
		"garbage, no line yet":     "{\"hello\"",
		"garbage word and LF":      "hello\n",
		"long method, no line yet": strings.Repeat("A", maxMethod+1),
	}
	for name, in := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := ParseRequestHead(&RequestHead{}, []byte(in)); !errors.Is(err, ErrMalformed) {
				t.Errorf("got %v, want ErrMalformed", err)
			}
		})
	}
	for name, in := range map[string]string{
		"fields":   head(strings.Repeat("X: a\r\n", MaxFields)),
		"line":     "GET /" + strings.Repeat("a", MaxHead),
		"all":      head(strings.Repeat("X: "+strings.Repeat("a", 1000)+"\r\n", 70)),
		"unending": head(strings.Repeat("X: "+strings.Repeat("a", 6000)+"\r\n", 11))[:MaxHead],
	} {
		if _, err := ParseRequestHead(&RequestHead{}, []byte(in)); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s: got %v, want ErrTooLarge", name, err)
		}
	}
}

func TestParseResponseHead(t *testing.T) {
	for _, tt := range []struct {
		in, method string
		want       string
	}{
		{"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", "GET", "200 OK {1 3}"},
		{"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", "HEAD", "200 OK {0 0}"},
		{"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "GET", "200 OK {0 0}"},
		{"HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n", "GET", "200 OK {2 0}"},
		{"HTTP/1.1 200\r\n\r\n", "GET", "200  {3 0}"},
		{"HTTP/1.0 404 Not Found here\r\n\r\n", "GET", "404 Not Found here {3 0} close"},
		{"HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\n", "GET", "204 No Content {0 0}"},
		{"HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\n", "GET", "304 Not Modified {0 0}"},
		{"HTTP/1.1 100 Continue\r\n\r\n", "POST", "100 Continue {0 0}"},
		{"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", "GET", "101 Switching {4 0}"},
		{"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", "CONNECT", "200 OK {4 0}"},
		{"HTTP/1.1 403 No\r\nContent-Length: 3\r\n\r\n", "CONNECT", "403 No {1 3}"},
	} {
		var h ResponseHead
		n, err := ParseResponseHead(&h, []byte(tt.in+"more"), []byte(tt.method))
		if err != nil || n != len(tt.in) {
			t.Errorf("%q: %d bytes, %v", tt.in, n, err)
			continue
		}
		got := fmt.Sprintf("%d %s %v", h.Status, h.Reason, h.Body)
		if h.Close {
			got += " close"
		}
		if got != tt.want {
			t.Errorf("%q: got %q, want %q", tt.in, got, tt.want)
		}
		for i := range tt.in {
			if _, err := ParseResponseHead(&h, []byte(tt.in[:i]), []byte(tt.method)); !errors.Is(err, ErrShort) {
				t.Fatalf("%q cut at %d: %v, want ErrShort", tt.in, i, err)
			}
		}
	}
	for _, in := range []string{
		"HTTP/2 200 OK\r\n\r\n", "HTTP/1.1 20 OK\r\n\r\n", "HTTP/1.1 2000 OK\r\n\r\n", "HTTP/1.1 099 X\r\n\r\n", "HTTP/1.1 600 X\r\n\r\n",
		"HTTP/1.1 2x0 OK\r\n\r\n", "HTTP/1.1\r\n\r\n", "SSH-2.0-x\r\n", "HTTP/1.1 200 O\rK\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
	} {
		if _, err := ParseResponseHead(&ResponseHead{}, []byte(in), []byte("GET")); !errors.Is(err, ErrMalformed) {
			t.Errorf("%q: got %v, want ErrMalformed", in, err)
		}
	}
}

// TestParseDoesNotAllocate: a head that is used again costs no memory.
func TestParseDoesNotAllocate(t *testing.T) {
	in := []byte("GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: x\r\nAccept: */*\r\nConnection: close\r\n\r\n")
	var h RequestHead
	if n := testing.AllocsPerRun(100, func() { _, _ = ParseRequestHead(&h, in) }); n > 1 {
		t.Errorf("%v allocations per head", n)
	}
}

// FuzzParseRequestHead: what we accept net/http reads the same, body included.
func FuzzParseRequestHead(f *testing.F) {
	for _, in := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST /p?q HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
		"POST /p HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\nGET",
		"GET http://b/p HTTP/1.1\r\nHost: a\r\nConnection: close, x\r\n\r\n",
		"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
		"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
	} {
		f.Add([]byte(in))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var h RequestHead
		n, err := ParseRequestHead(&h, b)
		if err != nil {
			if !errors.Is(err, ErrShort) && !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrTooLarge) {
				t.Fatalf("unexpected error: %v", err)
			}
			return
		}
		r := bufio.NewReader(bytes.NewReader(b))
		std, err := http.ReadRequest(r)
		if err != nil {
			// The path is the application's to judge: net/http refuses bad escapes.
			if target := fmt.Sprintf(" %s ", h.Target); bytes.Count(b[:n], []byte(target)) == 1 && !bytes.HasPrefix(b, []byte("CONNECT")) {
				b = bytes.Replace(b, []byte(target), []byte(" / "), 1)
				if _, again := http.ReadRequest(bufio.NewReader(bytes.NewReader(b))); again == nil {
					return
				}
			}
			if strings.Contains(err.Error(), "parse ") || strings.Contains(err.Error(), "trailer") {
				return
			}
			t.Fatalf("net/http refuses %q: %v", b, err)
		}
		compareRequests(t, &h, std)
		compareBodies(t, h.Body, b[n:], std.Body, r)
	})
}

func compareRequests(t *testing.T, h *RequestHead, std *http.Request) {
	t.Helper()
	if string(h.Method) != std.Method || string(h.Target) != std.RequestURI || h.Minor != std.ProtoMinor {
		t.Errorf("request line: %s %s 1.%d, net/http: %s %s 1.%d", h.Method, h.Target, h.Minor, std.Method, std.RequestURI, std.ProtoMinor)
	}
	if string(h.Host) != std.Host && (std.URL == nil || std.URL.Host != string(h.Host)) {
		t.Errorf("host %q, net/http: %q", h.Host, std.Host)
	}
	ours := http.Header{}
	for _, f := range h.Fields {
		ours.Add(string(f.Name), string(f.Value))
	}
	for _, name := range []string{"Host", "Transfer-Encoding", "Trailer", "Content-Length", "Connection", "Pragma", "Cache-Control"} {
		ours.Del(name) // net/http takes these out or adds to them
		std.Header.Del(name)
	}
	for name, values := range ours {
		if !slices.Equal(values, std.Header[name]) {
			t.Errorf("%s: %q, net/http: %q", name, values, std.Header[name])
		}
	}
	if len(ours) != len(std.Header) {
		t.Errorf("fields %v, net/http: %v", ours, std.Header)
	}
	want := map[BodyKind]int64{NoBody: 0, LengthBody: h.Body.Length, ChunkedBody: -1}[h.Body.Kind]
	if want != std.ContentLength && string(h.Method) != "CONNECT" {
		t.Errorf("body %v, net/http: length %d, %q", h.Body, std.ContentLength, std.TransferEncoding)
	}
}

// compareBodies checks that a chunked body ends for us where it ends for net/http.
func compareBodies(t *testing.T, body Body, rest []byte, std io.Reader, r *bufio.Reader) {
	t.Helper()
	if body.Kind != ChunkedBody {
		return
	}
	var tracker ChunkTracker
	n, err := tracker.Advance(rest)
	if err != nil || !tracker.Done() {
		return
	}
	if _, err := io.Copy(io.Discard, std); err != nil {
		if !strings.Contains(err.Error(), "trailer") && !errors.Is(err, io.ErrUnexpectedEOF) && !strings.Contains(err.Error(), "malformed MIME") {
			t.Fatalf("net/http can't read the chunked body %q: %v", rest[:n], err)
		}
		return
	}
	after, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if string(after) != string(rest[n:]) {
		t.Errorf("after the body comes %q, for net/http %q", rest[n:], after)
	}
}

func FuzzParseResponseHead(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"), "GET")
	f.Add([]byte("HTTP/1.1 101 X\nConnection: upgrade\nUpgrade: x\n\n"), "GET")
	f.Fuzz(func(t *testing.T, b []byte, method string) {
		var h ResponseHead
		n, err := ParseResponseHead(&h, b, []byte(method))
		if err != nil {
			return
		}
		std, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(b)), &http.Request{Method: method})
		if err != nil {
			return // net/http is stricter about some fields; ours is bounded by what it checks
		}
		_ = std.Body.Close()
		if std.StatusCode != h.Status || n > len(b) {
			t.Errorf("status %d, net/http: %d", h.Status, std.StatusCode)
		}
		if h.Body.Kind == LengthBody && std.ContentLength != h.Body.Length {
			t.Errorf("length %d, net/http: %d", h.Body.Length, std.ContentLength)
		}
	})
}
