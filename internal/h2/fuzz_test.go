package h2

import (
	"bytes"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// memory is a connection that says something and is then over.
type memory struct {
	mu      sync.Mutex
	wake    sync.Cond
	says    []byte
	heard   bytes.Buffer
	waits   bool // for the end, once it has said all
	passed  bool // a deadline has
	stopped bool
}

func newMemory(says []byte, waits bool) *memory {
	m := &memory{says: says, waits: waits}
	m.wake.L = &m.mu
	return m
}

func (m *memory) Read(b []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for {
		switch {
		case m.stopped:
			return 0, io.EOF
		case len(m.says) > 0:
			n := copy(b, m.says)
			m.says = m.says[n:]
			return n, nil
		case m.passed:
			return 0, os.ErrDeadlineExceeded
		case !m.waits:
			return 0, io.EOF
		}
		m.wake.Wait()
	}
}

func (m *memory) Write(b []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stopped {
		return 0, io.ErrClosedPipe
	}
	return m.heard.Write(b)
}

func (m *memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stopped = true
	m.wake.Broadcast()
	return nil
}
func (m *memory) CloseWrite() error { return nil }

// SetReadDeadline takes any deadline for one that passes at once.
func (m *memory) SetReadDeadline(t time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.passed = !t.IsZero()
	m.wake.Broadcast()
	return nil
}

// conversation is frames that some client may send.
func conversation(write func(f *http2.Framer, head func(fields ...string) []byte)) []byte {
	var out, block bytes.Buffer
	f := http2.NewFramer(&out, nil)
	f.AllowIllegalWrites = true
	enc := hpack.NewEncoder(&block)
	write(f, func(fields ...string) []byte {
		block.Reset()
		for i := 0; i < len(fields); i += 2 {
			_ = enc.WriteField(Field{Name: fields[i], Value: fields[i+1]})
		}
		return slices.Clone(block.Bytes())
	})
	return out.Bytes()
}

// FuzzRelay has both sides say anything: the relay ends, and what it passes on are
// frames that another implementation takes.
func FuzzRelay(f *testing.F) {
	request := []string{":method", "POST", ":scheme", "http", ":path", "/", ":authority", "web"}
	client := conversation(func(f *http2.Framer, head func(...string) []byte) {
		_ = f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
		_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: head(request...), EndHeaders: true})
		_ = f.WriteDataPadded(1, false, []byte("body"), make([]byte, 3))
		_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: head("x-end", "yes"), EndHeaders: true, EndStream: true})
		_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: head(request...)[:4], Priority: http2.PriorityParam{StreamDep: 1, Weight: 3}})
		_ = f.WriteContinuation(3, true, head(request...)[4:])
		_ = f.WriteWindowUpdate(0, 1000)
		_ = f.WritePing(false, [8]byte{})
		_ = f.WriteRSTStream(3, http2.ErrCodeCancel)
		_ = f.WriteGoAway(0, http2.ErrCodeNo, nil)
	})
	app := conversation(func(f *http2.Framer, head func(...string) []byte) {
		_ = f.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 7})
		_ = f.WriteSettingsAck()
		_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: head(":status", "103"), EndHeaders: true})
		_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: head(":status", "200"), EndHeaders: true})
		_ = f.WriteData(1, false, []byte("answer"))
		_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: head("grpc-status", "0"), EndHeaders: true, EndStream: true})
		_ = f.WriteGoAway(3, http2.ErrCodeNo, nil)
	})
	f.Add(client, app, true)
	f.Add(client, []byte{}, false)
	f.Add(client, []byte("HTTP/1.1 400 Bad Request\r\n\r\n"), true)
	f.Add(bytes.Repeat(client[len(client)-17:], 50), app, true)
	f.Fuzz(func(t *testing.T, fromClient, fromApp []byte, waits bool) {
		c, a := newMemory(append([]byte(preface), fromClient...), false), newMemory(fromApp, waits)
		h := &testHandler{}
		r := New(Config{Client: c, App: a, Handler: h, Now: time.Now})
		ended := make(chan error, 1)
		time.AfterFunc(0, func() { ended <- r.Serve(t.Context()) })
		select {
		case <-ended:
		case <-time.After(3 * time.Millisecond):
			c.Close() // the client has ended its direction, and the application says no more
			a.Close()
			<-ended
		}
		takes(t, "client", c.heard.Bytes())
		takes(t, "application", bytes.TrimPrefix(a.heard.Bytes(), []byte(preface)))
	})
}

// takes has another implementation read frames.
func takes(t *testing.T, who string, b []byte) {
	t.Helper()
	f := http2.NewFramer(io.Discard, bytes.NewReader(b))
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	for {
		_, err := f.ReadFrame()
		switch {
		case err == nil, strings.Contains(err.Error(), "illegal window increment"), strings.Contains(err.Error(), "stream error"):
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return
		default:
			t.Fatalf("the %s can't read what it got: %v", who, err)
		}
	}
}

// FuzzHead holds what a request's head is taken for against another implementation:
// what passes here is well-formed there, too, and means the same.
func FuzzHead(f *testing.F) {
	f.Add("GET", "http", "/", "web", "", "a", "b", "content-length", "5")
	f.Add("CONNECT", "", "", "web:80", "", "x", "", "te", "trailers")
	f.Add("CONNECT", "http", "/x", "web", "websocket", "cookie", "a=1", "host", "web")
	f.Add("GET", "http", "/ HTTP/1.1\r\nx: y", "w b", "", "a\n", " b", "connection", "x")
	f.Fuzz(func(t *testing.T, method, scheme, path, authority, protocol, name1, value1, name2, value2 string) {
		var sent []Field
		for _, p := range []Field{{Name: ":method", Value: method}, {Name: ":scheme", Value: scheme}, {Name: ":path", Value: path}, {Name: ":authority", Value: authority}, {Name: ":protocol", Value: protocol}} {
			if p.Value != "" {
				sent = append(sent, p)
			}
		}
		sent = append(sent, Field{Name: name1, Value: value1}, Field{Name: name2, Value: value2})
		var req Request
		length, err := readRequest(&req, sent, true)
		if err != nil {
			return
		}
		if length >= 0 && name1 != "content-length" && name2 != "content-length" {
			t.Errorf("a length of %d from nowhere", length)
		}
		r := &Relay{byUp: map[uint32]*stream{}}
		r.up.start(&Buffers{}, newMemory(nil, false), nil)
		r.up.client = true
		r.forward(&stream{id: 1, req: req, reqEnded: true}, time.Time{})
		g := http2.NewFramer(nil, bytes.NewReader(r.up.out))
		g.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
		got, err := g.ReadFrame()
		if err != nil {
			t.Fatalf("%+v: %v", req, err)
		}
		m, ok := got.(*http2.MetaHeadersFrame)
		if !ok || m.PseudoValue("method") != req.Method || m.PseudoValue("scheme") != req.Scheme || m.PseudoValue("path") != req.Path || m.PseudoValue("authority") != req.Authority || m.PseudoValue("protocol") != req.Protocol {
			t.Fatalf("%+v became %v", req, got)
		}
		for i, h := range m.RegularFields() {
			if h.Name != req.Fields[i].Name || h.Value != req.Fields[i].Value {
				t.Fatalf("%+v became %v", req, m)
			}
			if strings.ContainsAny(h.Value, "\r\n\x00") || strings.ToLower(h.Name) != h.Name {
				t.Fatalf("%q: %q passes", h.Name, h.Value)
			}
		}
	})
}

// FuzzOnce holds the encoding of what isn't kept in a table against the decoder.
func FuzzOnce(f *testing.F) {
	f.Add("x-request-id", "00000000-0000-4000-8000-000000000000")
	f.Add("", "")
	f.Add("date", strings.Repeat("\xff", 300))
	f.Fuzz(func(t *testing.T, name, value string) {
		var e encoder
		e.start()
		e.begin(":status", "200")
		e.once(&Field{Name: name, Value: value})
		e.once(&Field{Name: value, Value: name})
		got, err := hpack.NewDecoder(4096, nil).DecodeFull(e.block)
		if err != nil || len(got) != 3 || got[1].Name != name || got[1].Value != value || got[2].Name != value || got[2].Value != name {
			t.Errorf("%v %v", got, err)
		}
	})
}
