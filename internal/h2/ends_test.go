package h2

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// serveError waits for what Serve returned.
func (r *rig) serveError() error {
	r.t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for time.Now().Before(deadline) {
		r.mu.Lock()
		errs := r.errs
		r.mu.Unlock()
		if len(errs) > 0 {
			return errs[0]
		}
	}
	r.t.Fatal("the relay has not ended")
	return nil
}

// TestFloods: each ends the connection before it has cost much.
func TestFloods(t *testing.T) {
	tests := map[string]struct {
		most  int // steps until then
		begin func(c *wireEnd)
		step  func(c *wireEnd, i int) error
	}{
		"rapid reset (CVE-2023-44487)": {most: 3000, step: func(c *wireEnd, i int) error {
			c.get(uint32(2*i+1), "/")
			return c.WriteRSTStream(uint32(2*i+1), http2.ErrCodeCancel)
		}},
		"errors that reset (CVE-2025-8671)": {most: 3000, step: func(c *wireEnd, i int) error {
			c.get(uint32(2*i+1), "/")
			return c.WriteWindowUpdate(uint32(2*i+1), 0)
		}},
		"malformed requests":       {most: 3000, step: func(c *wireEnd, i int) error { c.get(uint32(2*i+1), ""); return nil }},
		"PING (CVE-2019-9512)":     {most: 5000, step: func(c *wireEnd, _ int) error { return c.WritePing(false, [8]byte{}) }},
		"SETTINGS (CVE-2019-9515)": {most: 5000, step: func(c *wireEnd, _ int) error { return c.WriteSettings() }},
		"PRIORITY (CVE-2019-9513)": {most: 5000, step: func(c *wireEnd, i int) error {
			return c.WritePriority(uint32(2*i+1), http2.PriorityParam{})
		}},
		"unknown frames": {most: 5000, step: func(c *wireEnd, _ int) error { return c.WriteRawFrame(0xbe, 0, 0, nil) }},
		"WINDOW_UPDATE":  {most: 10_000, step: func(c *wireEnd, _ int) error { return c.WriteWindowUpdate(0, 1) }},
		"empty DATA (CVE-2019-9518)": {
			most: 1000,
			begin: func(c *wireEnd) {
				c.head(1, false, ":method", "POST", ":scheme", "http", ":path", "/", ":authority", "web")
			},
			step: func(c *wireEnd, _ int) error { return c.WriteData(1, false, nil) },
		},
		"CONTINUATION (CVE-2024-27316)": {
			most:  1000,
			begin: func(c *wireEnd) { _ = c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1}) },
			step:  func(c *wireEnd, _ int) error { return c.WriteContinuation(1, false, nil) },
		},
		"large CONTINUATION": {
			most:  100,
			begin: func(c *wireEnd) { _ = c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1}) },
			step:  func(c *wireEnd, _ int) error { return c.WriteContinuation(1, false, make([]byte, 16384)) },
		},
		"resets of what has ended": {
			most:  5000,
			begin: func(c *wireEnd) { c.get(1, ""); c.get(3, "") },
			step:  func(c *wireEnd, _ int) error { return c.WriteRSTStream(1, http2.ErrCodeCancel) },
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil).serve(func(_ http.ResponseWriter, q *http.Request) { <-q.Context().Done() })
			c := r.dial()
			if tt.begin != nil {
				tt.begin(c)
			}
			ended := make(chan *http2.GoAwayFrame, 1)
			go func() { ended <- c.closed() }()
			steps := 0
			for ; steps < 10*tt.most; steps++ {
				if tt.step(c, steps) != nil {
					break
				}
				if len(ended) > 0 {
					break
				}
			}
			if g := <-ended; g == nil || g.ErrCode != http2.ErrCodeEnhanceYourCalm {
				t.Errorf("GOAWAY %v", g)
			}
			if err := r.serveError(); !errors.Is(err, ErrFlood) {
				t.Errorf("%v, want ErrFlood", err)
			}
		})
	}
}

// TestHPACKBomb: a head that is small on the wire and large in memory is refused, and
// not kept.
func TestHPACKBomb(t *testing.T) {
	r := newRig(t, nil)
	c := r.dial()
	r.accept()
	block := c.encode(":method", "GET", ":scheme", "http", ":path", "/", ":authority", "web", "a", strings.Repeat("x", 3900))
	for range 10_000 {
		block = append(block, 0x80|62) // the last that came into the table, again
	}
	_ = c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block, EndStream: true, EndHeaders: true})
	if f := expectFrame[*http2.MetaHeadersFrame](c, nil); status(f) != "431" {
		t.Error(f)
	}
	r.mu.Lock()
	relay := r.relays[0]
	r.mu.Unlock()
	relay.mu.Lock()
	defer relay.mu.Unlock()
	if n := cap(relay.down.dec.fields); n > 2*maxFields {
		t.Errorf("%d fields are kept", n)
	}
}

// TestSlowStream: one whose client doesn't read stalls no other.
func TestSlowStream(t *testing.T) {
	r := newRig(t, nil).serve(func(w http.ResponseWriter, q *http.Request) {
		if q.URL.Path == "/endless" {
			for {
				if _, err := w.Write(make([]byte, 10_000)); err != nil {
					return
				}
			}
		}
		_, _ = io.Copy(w, q.Body)
	})
	client := r.client()
	slow, err := client.Get("http://web/endless")
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Body.Close()
	for range 20 {
		want := strings.Repeat("x", 500_000)
		res, err := client.Post("http://web/", "text/plain", strings.NewReader(want))
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || string(b) != want {
			t.Fatalf("%d bytes, %v", len(b), err)
		}
	}
	r.mu.Lock()
	relay := r.relays[0]
	r.mu.Unlock()
	relay.mu.Lock()
	defer relay.mu.Unlock()
	if len(relay.down.out) > maxQueue || len(relay.up.out) > maxQueue {
		t.Errorf("%d and %d bytes are queued", len(relay.down.out), len(relay.up.out))
	}
}

// TestDebt: a body of the relay's own takes from the client's window what the
// application believes to have. It never gets beyond it.
func TestDebt(t *testing.T) {
	r := newRig(t, nil)
	r.handler.judge(func(q *Request) (*Answer, Ask) {
		if q.Path == "/no" {
			return &Answer{Status: 403, Body: strings.Repeat("n", 1000)}, nil
		}
		return nil, nil
	})
	c := r.dial(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
	app := r.accept()
	c.get(1, "/no")
	expectFrame[*http2.DataFrame](c, nil)
	c.get(3, "/")
	id := expectFrame[*http2.MetaHeadersFrame](app, nil).StreamID
	app.head(id, false, ":status", "200")
	left := 65535 // as the application sees it
	for left > 0 {
		n := min(left, 16384)
		_ = app.WriteData(id, false, make([]byte, n))
		left -= n
	}
	app.head(id, true, "x-end", "yes")
	_ = app.WritePing(false, [8]byte{7}) // it has all been read when this is answered
	expectFrame[*http2.PingFrame](app, nil)
	got := 0
	expectFrame(c, on[*http2.MetaHeadersFrame](3))
	for got < 3*16384 {
		got += len(expectFrame[*http2.DataFrame](c, nil).Data())
	}
	_ = c.WritePing(false, [8]byte{8})
	expectFrame(c, func(f *http2.PingFrame) bool { return f.Data == [8]byte{8} }) // and nothing before it
	_ = c.WriteWindowUpdate(0, 999)
	_ = c.WritePing(false, [8]byte{9})
	expectFrame(c, func(f *http2.PingFrame) bool { return f.Data == [8]byte{9} })
	_ = c.WriteWindowUpdate(0, 1001)
	if d := expectFrame[*http2.DataFrame](c, nil); got+len(d.Data()) != 65535 {
		t.Errorf("%d", got+len(d.Data()))
	}
	if f := expectFrame[*http2.MetaHeadersFrame](c, nil); value(f, "x-end") != "yes" {
		t.Error(f)
	}
	if f := expectFrame[*http2.WindowUpdateFrame](app, nil); f.Increment != 1000 { // the rest was ours
		t.Error(f)
	}
}

// TestAsk: requests that are decided late, and in another order, keep their bodies
// and trailers, and stall no other.
func TestAsk(t *testing.T) {
	decide, ahead := make(chan *Answer), make(chan string, 1)
	r := newRig(t, nil)
	r.handler.judge(func(q *Request) (*Answer, Ask) {
		if q.Path != "/asked" {
			return nil, nil
		}
		return nil, func(ctx context.Context, body Body) Settle {
			b, whole, err := body(ctx, 6)
			if whole || err != nil {
				t.Error(whole, err)
			}
			ahead <- string(b)
			select {
			case a := <-decide:
				return func(r *Request) *Answer {
					r.Fields = append(r.Fields, Field{Name: "x-user", Value: "bob"})
					return a
				}
			case <-ctx.Done():
				return nil
			}
		}
	})
	c := r.dial()
	app := r.accept()
	post := func(id uint32) {
		c.head(id, false, ":method", "POST", ":scheme", "http", ":path", "/asked", ":authority", "web")
		_ = c.WriteDataPadded(id, false, []byte("some "), make([]byte, 3))
		_ = c.WriteData(id, false, []byte("bytes"))
		if got := <-ahead; got != "some b" {
			t.Errorf("read ahead %q", got)
		}
	}
	post(1)
	c.get(3, "/other") // which passes by
	if f := expectFrame[*http2.MetaHeadersFrame](app, nil); f.PseudoValue("path") != "/other" || f.StreamID != 3 {
		t.Error(f)
	}
	c.head(1, true, "x-end", "yes")
	_ = c.WritePing(false, [8]byte{})
	expectFrame[*http2.PingFrame](c, nil)
	decide <- nil
	f := expectFrame[*http2.MetaHeadersFrame](app, nil)
	if f.PseudoValue("path") != "/asked" || f.StreamID != 5 || value(f, "x-user") != "bob" {
		t.Error(f)
	}
	if d := expectFrame(app, on[*http2.DataFrame](5)); string(d.Data()) != "some " {
		t.Errorf("%q", d.Data())
	}
	if d := expectFrame(app, on[*http2.DataFrame](5)); string(d.Data()) != "bytes" {
		t.Errorf("%q", d.Data())
	}
	if f := expectFrame[*http2.MetaHeadersFrame](app, nil); value(f, "x-end") != "yes" || !f.StreamEnded() {
		t.Error(f)
	}
	app.head(5, true, ":status", "200")
	if f := expectFrame[*http2.MetaHeadersFrame](c, nil); f.StreamID != 1 || status(f) != "200" {
		t.Error(f)
	}
	post(7)
	decide <- &Answer{Status: 401}
	if f := expectFrame[*http2.MetaHeadersFrame](c, nil); status(f) != "401" {
		t.Error(f)
	}
	post(9)
	_ = c.WriteRSTStream(9, http2.ErrCodeCancel)
	c.get(11, "/other")
	if f := expectFrame[*http2.MetaHeadersFrame](app, nil); f.PseudoValue("path") != "/other" {
		t.Error(f)
	}
}

// TestGoAway: the application's reaches the client, with what it doesn't serve.
func TestGoAway(t *testing.T) {
	r := newRig(t, nil)
	c := r.dial()
	app := r.accept()
	for id := uint32(1); id <= 5; id += 2 {
		c.get(id, "/")
		expectFrame[*http2.MetaHeadersFrame](app, nil)
	}
	_ = app.WriteGoAway(1<<31-1, http2.ErrCodeNo, nil)
	if f := expectFrame[*http2.GoAwayFrame](c, nil); f.LastStreamID != 1<<31-1 {
		t.Error(f)
	}
	_ = app.WriteGoAway(3, http2.ErrCodeNo, []byte("bye"))
	if f := expectFrame[*http2.RSTStreamFrame](c, nil); f.StreamID != 5 || f.ErrCode != http2.ErrCodeRefusedStream {
		t.Error(f)
	}
	if f := expectFrame[*http2.GoAwayFrame](c, nil); f.LastStreamID != 5 || string(f.DebugData()) != "bye" {
		t.Error(f)
	}
	c.get(7, "/") // is not served, which the client knows
	for id := uint32(1); id <= 3; id += 2 {
		app.head(id, true, ":status", "200")
		expectFrame(c, on[*http2.MetaHeadersFrame](id))
	}
	if g := c.closed(); g != nil {
		t.Error(g)
	}
	if err := r.serveError(); err != nil {
		t.Error(err)
	}
}

// TestApplicationGoes: before its response, within one, and between requests.
func TestApplicationGoes(t *testing.T) {
	r := newRig(t, nil)
	c := r.dial()
	app := r.accept()
	c.get(1, "/")
	c.get(3, "/")
	expectFrame(app, on[*http2.MetaHeadersFrame](3))
	app.head(1, false, ":status", "200")
	expectFrame(c, on[*http2.MetaHeadersFrame](1))
	app.Close()
	answered, reset := false, false
	for !answered || !reset {
		f, err := c.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			answered = f.StreamID == 3 && status(f) == "503"
		case *http2.RSTStreamFrame:
			reset = f.StreamID == 1 && f.ErrCode == http2.ErrCodeInternal
		}
	}
	if g := c.closed(); g == nil || g.LastStreamID != 3 || g.ErrCode != http2.ErrCodeNo {
		t.Error(g)
	}
	done := strings.Join(r.handler.finished(t, 2), ",")
	if !strings.Contains(done, "/ 200  UC") || !strings.Contains(done, "/ 503  UC") {
		t.Error(done)
	}

	c = r.dial()
	r.accept().Close()
	c.get(1, "/")
	if f := expectFrame[*http2.MetaHeadersFrame](c, nil); status(f) != "503" {
		t.Error(f)
	}
	c.closed()
}

// TestOtherApplications: one that isn't there, and one that speaks HTTP/1.
func TestOtherApplications(t *testing.T) {
	r := newRig(t, func(cfg *Config) {
		cfg.Dial = func(context.Context) (Conn, error) { return nil, errors.New("nobody is there") }
	})
	c := r.dial()
	c.get(1, "/")
	if f := expectFrame[*http2.MetaHeadersFrame](c, nil); status(f) != "503" {
		t.Error(f)
	}
	if g := c.closed(); g == nil || g.LastStreamID != 1 {
		t.Error(g)
	}
	if err := r.serveError(); !errors.Is(err, ErrApp) {
		t.Error(err)
	}

	r = newRig(t, nil)
	s := &http.Server{}
	served := make(chan error, 1)
	go func() { served <- s.Serve(r.app) }()
	defer func() { s.Close(); <-served }()
	c = r.dial()
	c.get(1, "/")
	if f := expectFrame[*http2.MetaHeadersFrame](c, nil); status(f) != "502" {
		t.Error(f)
	}
	c.closed()
}

// TestClientEnds: one that ends its direction gets its answers; one that resets takes
// its requests back.
func TestClientEnds(t *testing.T) {
	r := newRig(t, nil)
	c := r.dial()
	app := r.accept()
	c.get(1, "/")
	expectFrame[*http2.MetaHeadersFrame](app, nil)
	_ = c.Conn.(*net.TCPConn).CloseWrite()
	for {
		if _, err := app.ReadFrame(); err != nil {
			if !errors.Is(err, io.EOF) {
				t.Error(err)
			}
			break
		}
	}
	app.head(1, true, ":status", "200")
	if f := expectFrame[*http2.MetaHeadersFrame](c, nil); status(f) != "200" {
		t.Error(f)
	}
	c.closed()
	if err := r.serveError(); err != nil {
		t.Error(err)
	}

	c = r.dial()
	app = r.accept()
	c.get(1, "/")
	expectFrame[*http2.MetaHeadersFrame](app, nil)
	_ = c.Conn.(*net.TCPConn).SetLinger(0)
	c.Close()
	for {
		if _, err := app.ReadFrame(); err != nil {
			break
		}
	}
	if done := r.handler.finished(t, 2); done[1] != "/ 0  DC" {
		t.Error(done)
	}
}

// TestIdle: a connection without requests ends, one with them doesn't.
func TestIdle(t *testing.T) {
	r := newRig(t, func(cfg *Config) { cfg.IdleTimeout = 50 * time.Millisecond })
	c := r.dial()
	app := r.accept()
	c.get(1, "/")
	expectFrame[*http2.MetaHeadersFrame](app, nil)
	time.AfterFunc(200*time.Millisecond, func() { app.head(1, true, ":status", "200") })
	if f := expectFrame[*http2.MetaHeadersFrame](c, nil); status(f) != "200" {
		t.Error(f)
	}
	if g := c.closed(); g == nil || g.ErrCode != http2.ErrCodeNo || g.LastStreamID != 1 {
		t.Error(g)
	}
}

// TestDrain: the client is told, and what was on its way is served.
func TestDrain(t *testing.T) {
	r := newRig(t, nil)
	c := r.dial()
	app := r.accept()
	c.get(1, "/")
	expectFrame[*http2.MetaHeadersFrame](app, nil)
	r.mu.Lock()
	relay := r.relays[0]
	r.mu.Unlock()
	relay.Drain()
	if f := expectFrame[*http2.GoAwayFrame](c, nil); f.LastStreamID != 1<<31-1 {
		t.Error(f)
	}
	ping := expectFrame[*http2.PingFrame](c, nil).Data
	c.get(3, "/")
	_ = c.WritePing(true, ping)
	if f := expectFrame[*http2.GoAwayFrame](c, nil); f.LastStreamID != 3 {
		t.Error(f)
	}
	for id := uint32(1); id <= 3; id += 2 {
		app.head(id, true, ":status", "200")
		expectFrame(c, on[*http2.MetaHeadersFrame](id))
	}
	c.closed()
	if err := r.serveError(); err != nil {
		t.Error(err)
	}
}

// TestTableSize: a client without a table gets heads that need none.
func TestTableSize(t *testing.T) {
	r := newRig(t, nil)
	c := r.dial(http2.Setting{ID: http2.SettingHeaderTableSize, Val: 0})
	c.ReadMetaHeaders.SetMaxDynamicTableSize(0)
	app := r.accept()
	for id := uint32(1); id < 10; id += 2 {
		c.get(id, "/", "a", "b")
		expectFrame[*http2.MetaHeadersFrame](app, nil)
		app.head(id, true, ":status", "200", "x-same", "value")
		if f := expectFrame[*http2.MetaHeadersFrame](c, nil); value(f, "x-same") != "value" {
			t.Error(f)
		}
	}
}

// TestSettingsComeFirst: what the relay says before the application has said
// anything comes after SETTINGS, and the application's follow.
func TestSettingsComeFirst(t *testing.T) {
	r := newRig(t, nil)
	r.handler.judge(func(*Request) (*Answer, Ask) { return &Answer{Status: 403}, nil })
	c := r.dial()
	_ = c.WritePing(false, [8]byte{1})
	c.get(1, "/")
	first, err := c.ReadFrame()
	if s, ok := first.(*http2.SettingsFrame); err != nil || !ok || s.IsAck() {
		t.Fatalf("first came %v %v", first, err)
	}
	_ = c.WriteSettingsAck()
	expectFrame[*http2.PingFrame](c, nil)
	if f := expectFrame[*http2.MetaHeadersFrame](c, nil); status(f) != "403" {
		t.Error(f)
	}
	app := r.accept()
	s := expectFrame(c, func(f *http2.SettingsFrame) bool { return !f.IsAck() })
	if v, ok := s.Value(http2.SettingMaxConcurrentStreams); !ok || v != maxStreams {
		t.Error(s)
	}
	expectFrame(app, func(f *http2.SettingsFrame) bool { return f.IsAck() }) // of its own, not of the relay's
	r.handler.judge(nil)
	c.get(3, "/")
	expectFrame[*http2.MetaHeadersFrame](app, nil)
}
