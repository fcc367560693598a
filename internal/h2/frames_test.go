package h2

import (
	"bytes"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// wireEnd is one end of a connection whose frames the test writes itself.
type wireEnd struct {
	t testing.TB
	net.Conn
	*http2.Framer
	enc   *hpack.Encoder
	block bytes.Buffer
}

func newWireEnd(t testing.TB, c net.Conn) *wireEnd {
	t.Helper()
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	w := &wireEnd{t: t, Conn: c, Framer: http2.NewFramer(c, c)}
	w.AllowIllegalWrites = true
	w.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	w.enc = hpack.NewEncoder(&w.block)
	return w
}

// dial is a client that has said its preface and SETTINGS.
func (r *rig) dial(settings ...http2.Setting) *wireEnd {
	r.t.Helper()
	c, err := net.Dial("tcp", r.front.Addr().String())
	if err != nil {
		r.t.Fatal(err)
	}
	w := newWireEnd(r.t, c)
	_, _ = io.WriteString(c, http2.ClientPreface)
	_ = w.WriteSettings(settings...)
	return w
}

// accept is the application, which has said its SETTINGS and read the client's.
func (r *rig) accept(settings ...http2.Setting) *wireEnd {
	r.t.Helper()
	c, err := r.app.Accept()
	if err != nil {
		r.t.Fatal(err)
	}
	w := newWireEnd(r.t, c)
	_ = w.WriteSettings(settings...)
	got := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != http2.ClientPreface {
		r.t.Fatalf("preface %q %v", got, err)
	}
	expectFrame(w, func(f *http2.SettingsFrame) bool { return !f.IsAck() })
	_ = w.WriteSettingsAck()
	return w
}

// head sends a head; fields are names and values.
func (w *wireEnd) head(id uint32, end bool, fields ...string) {
	w.t.Helper()
	block := w.encode(fields...)
	first := block[:min(len(block), 16384)]
	_ = w.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: first, EndStream: end, EndHeaders: len(first) == len(block)})
	for block = block[len(first):]; len(block) > 0; {
		next := block[:min(len(block), 16384)]
		block = block[len(next):]
		_ = w.WriteContinuation(id, len(block) == 0, next)
	}
}

func (w *wireEnd) encode(fields ...string) []byte {
	w.block.Reset()
	for i := 0; i < len(fields); i += 2 {
		_ = w.enc.WriteField(Field{Name: fields[i], Value: fields[i+1]})
	}
	return slices.Clone(w.block.Bytes())
}

// get sends a request without a body.
func (w *wireEnd) get(id uint32, path string, more ...string) {
	w.t.Helper()
	w.head(id, true, append([]string{":method", "GET", ":scheme", "http", ":path", path, ":authority", "web"}, more...)...)
}

// expectFrame reads up to a frame of a type for which ok, and acknowledges SETTINGS.
func expectFrame[F http2.Frame](w *wireEnd, ok func(f F) bool) F {
	w.t.Helper()
	for {
		f, err := w.ReadFrame()
		if err != nil {
			w.t.Fatalf("waiting for a %T: %v", *new(F), err)
		}
		if s, is := f.(*http2.SettingsFrame); is && !s.IsAck() {
			_ = w.WriteSettingsAck()
		}
		if f, is := f.(F); is && (ok == nil || ok(f)) {
			return f
		}
	}
}

func on[F http2.Frame](id uint32) func(f F) bool {
	return func(f F) bool { return f.Header().StreamID == id }
}

// closed reads to the end, and returns the last GOAWAY.
func (w *wireEnd) closed() *http2.GoAwayFrame {
	w.t.Helper()
	var last *http2.GoAwayFrame
	for {
		f, err := w.ReadFrame()
		if err != nil {
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() {
				w.t.Fatal("the connection is still open")
			}
			return last
		}
		if g, ok := f.(*http2.GoAwayFrame); ok {
			c := *g
			last = &c
		}
	}
}

func status(f *http2.MetaHeadersFrame) string { return f.PseudoValue("status") }

func value(f *http2.MetaHeadersFrame, name string) string {
	for _, h := range f.RegularFields() {
		if h.Name == name {
			return h.Value
		}
	}
	return ""
}

// TestMalformedHeads: what breaks RFC 9113 8 never reaches the application, and the
// connection goes on.
func TestMalformedHeads(t *testing.T) {
	ok := []string{":method", "GET", ":scheme", "http", ":path", "/", ":authority", "web"}
	with := func(more ...string) []string { return slices.Concat(ok, more) }
	tests := map[string][]string{
		"no method":                {":scheme", "http", ":path", "/", ":authority", "web"},
		"no path":                  {":method", "GET", ":scheme", "http", ":authority", "web"},
		"no scheme":                {":method", "GET", ":path", "/", ":authority", "web"},
		"two paths":                {":method", "GET", ":scheme", "http", ":path", "/", ":path", "/admin", ":authority", "web"},
		"empty path":               {":method", "GET", ":scheme", "http", ":path", "", ":authority", "web"},
		"path without slash":       {":method", "GET", ":scheme", "http", ":path", "a", ":authority", "web"},
		"absolute path":            {":method", "GET", ":scheme", "http", ":path", "http://x/", ":authority", "web"},
		"asterisk for GET":         {":method", "GET", ":scheme", "http", ":path", "*", ":authority", "web"},
		"space in path":            {":method", "GET", ":scheme", "http", ":path", "/ HTTP/1.1", ":authority", "web"},
		"line in path":             {":method", "GET", ":scheme", "http", ":path", "/\r\nx: y", ":authority", "web"},
		"space in method":          {":method", "GET /", ":scheme", "http", ":path", "/", ":authority", "web"},
		"user in authority":        {":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a@web"},
		"slash in authority":       {":method", "GET", ":scheme", "http", ":path", "/", ":authority", "web/x"},
		"odd scheme":               {":method", "GET", ":scheme", "ht tp", ":path", "/", ":authority", "web"},
		"status in a request":      {":method", "GET", ":status", "200", ":scheme", "http", ":path", "/", ":authority", "web"},
		"pseudo-field at the end":  {":method", "GET", ":scheme", "http", ":authority", "web", "a", "b", ":path", "/"},
		"protocol of no CONNECT":   with(":protocol", "websocket"),
		"CONNECT with path":        {":method", "CONNECT", ":authority", "web:80", ":path", "/", ":scheme", "http"},
		"CONNECT to nowhere":       {":method", "CONNECT"},
		"extended CONNECT unasked": {":method", "CONNECT", ":protocol", "websocket", ":scheme", "http", ":path", "/", ":authority", "web"},
		"capitals":                 with("X-Big", "y"),
		"empty name":               with("", "y"),
		"space in name":            with("a b", "y"),
		"colon in name":            with("a:", "y"),
		"line feed in value":       with("a", "b\nc: d"),
		"carriage return in value": with("a", "b\rc"),
		"NUL in value":             with("a", "b\x00"),
		"space before value":       with("a", " b"),
		"space after value":        with("a", "b\t"),
		"connection":               with("connection", "x"),
		"transfer-encoding":        with("transfer-encoding", "chunked"),
		"upgrade":                  with("upgrade", "h2c"),
		"keep-alive":               with("keep-alive", "1"),
		"proxy-connection":         with("proxy-connection", "keep-alive"),
		"te":                       with("te", "gzip"),
		"two hosts":                {":method", "GET", ":scheme", "http", ":path", "/", "host", "a", "host", "a"},
		"host is another":          with("host", "admin"),
		"two lengths":              with("content-length", "0", "content-length", "1"),
		"length with sign":         with("content-length", "+0"),
		"length and no body":       with("content-length", "5"),
		"length is no number":      with("content-length", "5, 5"),
	}
	r := newRig(t, nil)
	c := r.dial()
	app := r.accept()
	id := uint32(1)
	for name, fields := range tests {
		c.head(id, true, fields...)
		if f := expectFrame(c, on[*http2.RSTStreamFrame](id)); f.ErrCode != http2.ErrCodeProtocol {
			t.Errorf("%s: %v", name, f.ErrCode)
		}
		id += 2
	}
	c.get(id, "/last", "host", "web")
	f := expectFrame[*http2.MetaHeadersFrame](app, nil)
	if f.PseudoValue("path") != "/last" || f.PseudoValue("authority") != "web" || value(f, "host") != "" {
		t.Errorf("the application got %v", f)
	}
	app.head(f.StreamID, true, ":status", "204")
	if got := expectFrame[*http2.MetaHeadersFrame](c, nil); status(got) != "204" || got.StreamID != id {
		t.Error(got)
	}
}

// TestBodyOfAnotherLength: RFC 9113 8.1.1.
func TestBodyOfAnotherLength(t *testing.T) {
	r := newRig(t, nil)
	c := r.dial()
	app := r.accept()
	for i, body := range []string{"more", "l"} {
		id := uint32(2*i + 1)
		c.head(id, false, ":method", "POST", ":scheme", "http", ":path", "/", ":authority", "web", "content-length", "2")
		_ = c.WriteData(id, true, []byte(body))
		if f := expectFrame(c, on[*http2.RSTStreamFrame](id)); f.ErrCode != http2.ErrCodeProtocol {
			t.Error(f.ErrCode)
		}
		if f := expectFrame[*http2.RSTStreamFrame](app, nil); f.ErrCode != http2.ErrCodeCancel {
			t.Error(f.ErrCode)
		}
	}
}

// TestMalformedResponses: the client sees 502, and the application a reset.
func TestMalformedResponses(t *testing.T) {
	tests := map[string][]string{
		"no status":     {"a", "b"},
		"status 101":    {":status", "101"},
		"long status":   {":status", "2000"},
		"capitals":      {":status", "200", "A", "b"},
		"connection":    {":status", "200", "connection", "close"},
		"line in value": {":status", "200", "a", "b\r\nc: d"},
		"two statuses":  {":status", "200", ":status", "201"},
		"method":        {":status", "200", ":method", "GET"},
	}
	r := newRig(t, nil)
	c := r.dial()
	app := r.accept()
	id := uint32(1)
	for name, fields := range tests {
		c.get(id, "/")
		expectFrame[*http2.MetaHeadersFrame](app, nil)
		app.head(id, true, fields...)
		if f := expectFrame(c, on[*http2.MetaHeadersFrame](id)); status(f) != "502" {
			t.Errorf("%s: %s", name, status(f))
		}
		expectFrame(app, on[*http2.RSTStreamFrame](id))
		id += 2
	}
}

// TestAnswers: what the relay says itself, to HTTP and to gRPC.
func TestAnswers(t *testing.T) {
	r := newRig(t, nil)
	r.handler.judge(func(q *Request) (*Answer, Ask) {
		if q.Path == "/no" {
			return &Answer{Status: 403, Body: "no: 100%", Fields: []Field{{Name: "server", Value: "relay"}}}, nil
		}
		return nil, nil
	})
	c := r.dial()
	r.accept()
	c.get(1, "/no")
	f := expectFrame[*http2.MetaHeadersFrame](c, nil)
	if status(f) != "403" || value(f, "content-length") != "8" || value(f, "content-type") != "text/plain" || value(f, "server") != "relay" || f.StreamEnded() {
		t.Error(f)
	}
	if d := expectFrame[*http2.DataFrame](c, nil); string(d.Data()) != "no: 100%" || !d.StreamEnded() {
		t.Errorf("%q", d.Data())
	}
	c.get(3, "/no", "content-type", "application/grpc+proto")
	f = expectFrame[*http2.MetaHeadersFrame](c, nil)
	if status(f) != "200" || value(f, "grpc-status") != "7" || value(f, "grpc-message") != "no: 100%25" || value(f, "content-type") != "application/grpc" || !f.StreamEnded() {
		t.Error(f)
	}
	c.head(5, true, ":method", "HEAD", ":scheme", "http", ":path", "/no", ":authority", "web")
	if f = expectFrame[*http2.MetaHeadersFrame](c, nil); status(f) != "403" || value(f, "content-length") != "8" || !f.StreamEnded() {
		t.Error(f)
	}
	c.head(7, false, ":method", "POST", ":scheme", "http", ":path", "/no", ":authority", "web") // its body is not over
	expectFrame[*http2.DataFrame](c, nil)
	if f := expectFrame[*http2.RSTStreamFrame](c, nil); f.ErrCode != http2.ErrCodeNo {
		t.Error(f.ErrCode)
	}
	_ = c.WriteData(7, false, make([]byte, 10_000)) // which is on its way
	if f := expectFrame[*http2.WindowUpdateFrame](c, nil); f.StreamID != 0 || f.Increment != 10_000 {
		t.Error(f)
	}
	c.get(9, "/", "x-large", strings.Repeat("x", 61<<10))
	if f = expectFrame[*http2.MetaHeadersFrame](c, nil); status(f) != "431" {
		t.Error(f)
	}
	many := []string{}
	for range maxFields + 1 {
		many = append(many, "a", "b")
	}
	c.get(11, "/", many...)
	if f = expectFrame[*http2.MetaHeadersFrame](c, nil); status(f) != "431" {
		t.Error(f)
	}
}

// TestPasses: interim heads, trailers in both directions, codes of resets, tunnels.
func TestPasses(t *testing.T) {
	r := newRig(t, nil)
	c := r.dial()
	app := r.accept(http2.Setting{ID: http2.SettingEnableConnectProtocol, Val: 1})
	expectFrame(c, func(f *http2.SettingsFrame) bool {
		v, ok := f.Value(http2.SettingEnableConnectProtocol)
		return ok && v == 1
	})
	c.head(1, false, ":method", "POST", ":scheme", "http", ":path", "/", ":authority", "web", "expect", "100-continue", "te", "trailers")
	if f := expectFrame[*http2.MetaHeadersFrame](app, nil); value(f, "te") != "trailers" || f.StreamEnded() {
		t.Error(f)
	}
	app.head(1, false, ":status", "100")
	app.head(1, false, ":status", "103", "link", "</x>")
	for _, want := range []string{"100", "103"} {
		if f := expectFrame[*http2.MetaHeadersFrame](c, nil); status(f) != want || value(f, "x-relay") != "" {
			t.Error(f)
		}
	}
	_ = c.WriteDataPadded(1, false, []byte("body"), make([]byte, 7))
	if d := expectFrame[*http2.DataFrame](app, nil); string(d.Data()) != "body" || d.Length != 12 {
		t.Errorf("%q", d.Data())
	}
	c.head(1, true, "x-end", "yes")
	if f := expectFrame[*http2.MetaHeadersFrame](app, nil); value(f, "x-end") != "yes" || !f.StreamEnded() {
		t.Error(f)
	}
	app.head(1, false, ":status", "200")
	_ = app.WriteData(1, false, []byte("answer"))
	app.head(1, true, "grpc-status", "0")
	expectFrame(c, func(f *http2.MetaHeadersFrame) bool { return status(f) == "200" })
	if d := expectFrame[*http2.DataFrame](c, nil); string(d.Data()) != "answer" {
		t.Errorf("%q", d.Data())
	}
	if f := expectFrame[*http2.MetaHeadersFrame](c, nil); value(f, "grpc-status") != "0" || !f.StreamEnded() {
		t.Error(f)
	}
	c.get(3, "/")
	expectFrame[*http2.MetaHeadersFrame](app, nil)
	_ = app.WriteRSTStream(3, http2.ErrCodeEnhanceYourCalm)
	if f := expectFrame[*http2.RSTStreamFrame](c, nil); f.ErrCode != http2.ErrCodeEnhanceYourCalm {
		t.Error(f)
	}
	c.get(5, "/")
	expectFrame[*http2.MetaHeadersFrame](app, nil)
	_ = c.WriteRSTStream(5, http2.ErrCodeInadequateSecurity)
	if f := expectFrame[*http2.RSTStreamFrame](app, nil); f.ErrCode != http2.ErrCodeInadequateSecurity {
		t.Error(f)
	}
	c.head(7, false, ":method", "CONNECT", ":protocol", "websocket", ":scheme", "http", ":path", "/chat", ":authority", "web") // RFC 8441
	if f := expectFrame[*http2.MetaHeadersFrame](app, nil); f.PseudoValue("protocol") != "websocket" || f.PseudoValue("path") != "/chat" {
		t.Error(f)
	}
	app.head(7, false, ":status", "200")
	_ = app.WriteData(7, false, []byte("frame"))
	if d := expectFrame[*http2.DataFrame](c, nil); string(d.Data()) != "frame" {
		t.Errorf("%q", d.Data())
	}
	c.head(9, false, ":method", "CONNECT", ":authority", "db:5432")
	if f := expectFrame[*http2.MetaHeadersFrame](app, nil); f.PseudoValue("authority") != "db:5432" || f.PseudoValue("path") != "" {
		t.Error(f)
	}
	_ = c.WritePing(false, [8]byte{1})
	if f := expectFrame[*http2.PingFrame](c, nil); !f.IsAck() || f.Data != [8]byte{1} {
		t.Error(f)
	}
	_ = c.WriteGoAway(0, http2.ErrCodeNo, nil)
	expectFrame[*http2.GoAwayFrame](app, nil)
}
