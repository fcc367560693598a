package tlsconn

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podseal.io/podseal/internal/identity"
)

func always() bool { return true }

// streamPair is both ends of a connection that carries streams.
func streamPair(tb testing.TB) (client, server *Conn) {
	tb.Helper()
	p := &Pool{}
	a, b := tcpPair(tb)
	cc, sc := configs(tb, "")
	cc.NextProtos = []string{identity.ALPNStreams, "istio"}
	sc.NextProtos = []string{identity.ALPNStreams}
	deadline := time.Now().Add(10 * time.Second)
	done := make(chan error, 1)
	go func() {
		var err error
		client, err = p.Client(a, cc, deadline)
		done <- err
	}()
	server, err := p.Server(b, nil, sc, deadline)
	if err := errors.Join(err, <-done); err != nil {
		tb.Fatal(err)
	}
	if !client.Streams() || !server.Streams() {
		tb.Fatal("no streams")
	}
	client.Keep(always)
	server.Keep(always)
	return client, server
}

func send(tb testing.TB, c *Conn, text string) {
	tb.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		tb.Fatal(err)
	}
}

func finish(tb testing.TB, c *Conn) {
	tb.Helper()
	if err := c.CloseWrite(); err != nil {
		tb.Fatal(err)
	}
}

// wantAll reads to the end of the stream, in one of the two ways there are.
func wantAll(tb testing.TB, c *Conn, want string) {
	tb.Helper()
	var got bytes.Buffer
	err := (&Pool{}).Copy(&got, c, func(int) {})
	if err != nil || got.String() != want {
		tb.Fatalf("%q, %v, want %q", got.String(), err, want)
	}
	if b, err := io.ReadAll(c); err != nil || len(b) > 0 {
		tb.Fatalf("after the end: %q, %v", b, err)
	}
}

// opening begins the next stream, with what an application has sent by then.
func opening(tb testing.TB, client *Conn, first string) {
	tb.Helper()
	app, proxied := tcpPair(tb)
	if _, err := io.WriteString(app, first); err != nil {
		tb.Fatal(err)
	}
	raw, err := proxied.SyscallConn()
	if err == nil { // it is on its way
		err = raw.Read(func(fd uintptr) bool { return waiting(int(fd)) >= len(first) })
	}
	if err != nil {
		tb.Fatal(err)
	}
	sent, unsent, err := client.Open(proxied)
	if err != nil || sent != len(first) || len(unsent) > 0 {
		tb.Fatalf("open: %d sent, %d not, %v", sent, len(unsent), err)
	}
}

func TestOneStreamAfterTheOther(t *testing.T) {
	client, server := streamPair(t)
	for i := range 5 {
		question, answer := fmt.Sprintf("question %d", i), fmt.Sprintf("answer %d", i)
		if i > 0 {
			opening(t, client, question)
			if err := server.Accept(); err != nil {
				t.Fatal(err)
			}
		} else {
			send(t, client, question)
		}
		if client.Idle() || server.Idle() {
			t.Fatal("idle within a stream")
		}
		if i%2 == 0 {
			finish(t, client)
			wantAll(t, server, question)
			send(t, server, answer) // the other direction goes on
			finish(t, server)
			wantAll(t, client, answer)
		} else { // the server ends first
			send(t, server, answer)
			finish(t, server)
			wantAll(t, client, answer)
			send(t, client, " and more")
			finish(t, client)
			wantAll(t, server, question+" and more")
		}
		if !client.Idle() || !server.Idle() || !client.Quiet() {
			t.Fatal("not idle after a stream")
		}
	}
	client.raw.Close()
	if err := server.Accept(); !errors.Is(err, io.EOF) {
		t.Errorf("the client has gone: %v", err)
	}
}

// What the next stream begins with may come together with the end of the last one.
func TestNextStreamAtOnce(t *testing.T) {
	client, server := streamPair(t)
	finish(t, server)
	wantAll(t, client, "")
	send(t, client, "first")
	finish(t, client)
	opening(t, client, "second")
	wantAll(t, server, "first")
	if err := server.Accept(); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 6)
	if _, err := io.ReadFull(server, b); err != nil || string(b) != "second" {
		t.Fatalf("%q, %v", b, err)
	}
}

// A server may speak first in each stream, and a stream may be empty.
func TestStreamOfTheServer(t *testing.T) {
	client, server := streamPair(t)
	for i := range 3 {
		if i > 0 {
			opening(t, client, "")
			if err := server.Accept(); err != nil {
				t.Fatal(err)
			}
		}
		send(t, server, "220 hello\r\n")
		finish(t, server)
		wantAll(t, client, "220 hello\r\n")
		finish(t, client)
		wantAll(t, server, "")
	}
}

// Close after the peer's end ends the stream too, and nothing else.
func TestCloseKeepsTheConnection(t *testing.T) {
	client, server := streamPair(t)
	send(t, client, "x")
	finish(t, client)
	wantAll(t, server, "x")
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	wantAll(t, client, "")
	if !server.Idle() || !client.Quiet() {
		t.Error("not idle")
	}
	opening(t, client, "y")
	if err := server.Accept(); err != nil {
		t.Fatal(err)
	}
	if err := server.Close(); err != nil { // early
		t.Fatal(err)
	}
	if _, err := io.ReadAll(client); client.Idle() || server.Idle() {
		t.Errorf("an early end left a connection that is used again: %v", err)
	}
}

// An end without permission to keep the connection is that of the connection.
func TestLastStream(t *testing.T) {
	client, server := streamPair(t)
	server.Keep(func() bool { return false })
	finish(t, client)
	wantAll(t, server, "")
	send(t, server, "bye")
	finish(t, server)
	wantAll(t, client, "bye")
	if client.Idle() || server.Idle() || client.Quiet() {
		t.Error("it would be used again")
	}
}

// A server that wants no further stream says so; one that is on its way still comes.
func TestLeave(t *testing.T) {
	idle := func() (client, server *Conn) {
		client, server = streamPair(t)
		finish(t, client)
		wantAll(t, server, "")
		finish(t, server)
		wantAll(t, client, "")
		return client, server
	}
	client, server := idle()
	if err := server.Leave(); err != nil {
		t.Fatal(err)
	}
	if err := waitReadable(client); err != nil {
		t.Fatal(err)
	}
	if client.Quiet() {
		t.Error("the client would open a stream")
	}

	client, server = idle()
	opening(t, client, "crossed")
	if err := server.Leave(); err != nil {
		t.Fatal(err)
	}
	if err := server.Accept(); err != nil {
		t.Fatal(err)
	}
	finish(t, client)
	wantAll(t, server, "crossed")
	send(t, server, "served")
	finish(t, server)
	wantAll(t, client, "served")
	if client.Idle() {
		t.Error("the client would use it again")
	}
}

// waiting is how many bytes there are to read.
func waiting(fd int) int {
	n, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
	if err != nil {
		return -1
	}
	return n
}

// quietFD reports whether nothing is there, not even an end.
func quietFD(fd int) bool {
	_, _, err := unix.Recvfrom(fd, make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
	return errors.Is(err, unix.EAGAIN)
}

func waitReadable(c *Conn) error {
	return c.records.in.raw.Read(func(fd uintptr) bool { return waiting(int(fd)) > 0 })
}

// While a stream is waited for a deadline ends the wait and nothing else.
func TestAcceptAfterADeadline(t *testing.T) {
	client, server := streamPair(t)
	finish(t, client)
	wantAll(t, server, "")
	finish(t, server)
	if err := server.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if err := server.Accept(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	if err := server.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	wantAll(t, client, "")
	opening(t, client, "late")
	if err := server.Accept(); err != nil {
		t.Fatal(err)
	}
}

// What a peer says out of turn is an error, and the connection is of no more use.
func TestStreamMessagesOutOfTurn(t *testing.T) {
	raw := func(records ...[]byte) func(*testing.T, *Conn) {
		return func(t *testing.T, c *Conn) {
			t.Helper()
			w := &c.records.out
			for _, content := range records {
				b := make([]byte, len(content)+overhead)
				copy(b[headerLen:], content)
				if _, err := w.raw.Write(b[:w.keys.seal(b, len(content), typeData)]); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	empty, end, open, leave := []byte{}, []byte{streamEnd}, []byte{streamOpen}, []byte{streamLeave}
	for name, tt := range map[string]struct {
		say        func(*testing.T, *Conn)
		fromClient bool
		alert      byte
	}{
		"two ends":                  {raw(empty, end, empty, end), true, alertUnexpectedMessage},
		"data after the end":        {raw(empty, end, []byte("x")), true, alertUnexpectedMessage},
		"open within a stream":      {raw(empty, open), true, alertUnexpectedMessage},
		"two opens":                 {raw(empty, end, empty, open, empty, open), true, alertUnexpectedMessage},
		"open from the server":      {raw(empty, end, empty, open), false, alertUnexpectedMessage},
		"leave from the client":     {raw(empty, leave), true, alertUnexpectedMessage},
		"leave twice":               {raw(empty, leave, empty, leave), false, alertUnexpectedMessage},
		"an empty record more":      {raw(empty, empty), true, alertUnexpectedMessage},
		"a message that is unknown": {raw(empty, []byte{9}), true, alertUnexpectedMessage},
		"a message that is long":    {raw(empty, []byte{streamEnd, 0}), true, alertDecodeError},
	} {
		t.Run(name, func(t *testing.T) {
			from, to := streamPair(t)
			if !tt.fromClient {
				from, to = to, from
			}
			tt.say(t, from)
			_ = from.raw.CloseWrite()
			_, err := io.ReadAll(to)
			for err == nil {
				err = to.records.in.accept()
			}
			var bad *BadRecordError
			if !errors.As(err, &bad) || bad.Alert != tls.AlertError(tt.alert) {
				t.Fatalf("got %v, want alert %d", err, tt.alert)
			}
			if to.Idle() {
				t.Error("it would be used again")
			}
		})
	}
}

// On a connection without streams an empty record means nothing, as ever.
func TestNoStreamsWithoutAgreement(t *testing.T) {
	client, server := established(t, 0)
	client.Keep(always)
	b := make([]byte, overhead)
	if _, err := client.raw.Write(b[:client.records.out.keys.seal(b, 0, typeData)]); err != nil {
		t.Fatal(err)
	}
	send(t, client, "\x01")
	finish(t, client)
	wantAll(t, server, "\x01")
	if client.Idle() || server.Idle() || client.Quiet() || client.Leave() != nil {
		t.Error("it carries streams")
	}
}

// A connection of which something has been lost is not kept, whatever its streams.
func TestBrokenConnectionIsNotKept(t *testing.T) {
	client, server := streamPair(t)
	finish(t, client)
	wantAll(t, server, "")
	finish(t, server)
	wantAll(t, client, "")
	server.Reset()
	if err := client.raw.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := client.records.in.raw.Read(func(fd uintptr) bool { return !quietFD(int(fd)) }); err != nil {
		t.Fatal(err)
	}
	if client.Quiet() {
		t.Error("it would be used again")
	}
	_, proxied := tcpPair(t)
	if _, _, err := client.Open(proxied); err == nil { // the kernel may take one write
		if _, err := io.ReadAll(client); err == nil {
			t.Error("a stream over a connection that is no more")
		}
	}
}

func FuzzStreams(f *testing.F) {
	for _, seed := range [][]byte{
		{}, {5, 0, 1, 1}, {0, 1, 1, 0, 1, 2, 9, 0, 1, 1}, {0, 1, 3, 5}, {0, 0}, {0, 1, 9}, {40, 0, 1, 1, 0, 1, 2, 200, 0, 1, 1},
	} {
		f.Add(seed, true)
		f.Add(seed, false)
	}
	// The script is a list of records: each byte is the length of one, and where a
	// length is 1 the next byte is its content.
	f.Fuzz(func(t *testing.T, script []byte, server bool) {
		if len(script) > 200 {
			return
		}
		s, _ := suiteOf(tls.TLS_AES_128_GCM_SHA256)
		var sealing keys
		secret := bytes.Repeat([]byte{1}, s.hashLen)
		p := &Pool{}
		r := &reader{pool: p, client: !server, out: &writer{pool: p, err: net.ErrClosed}}
		if sealing.use(s, bytes.Clone(secret)) != nil || r.keys.use(s, bytes.Clone(secret)) != nil {
			t.Fatal("keys")
		}
		r.streams.on = true
		r.buf = &buffer{mem: make([]byte, 200*300), class: sixteen}
		var want model
		for i := 0; i < len(script); i++ {
			content := bytes.Repeat([]byte{7}, int(script[i]))
			if len(content) == 1 && i+1 < len(script) {
				i++
				content[0] = script[i]
			}
			copy(r.buf.mem[r.e+headerLen:], content)
			r.e += sealing.seal(r.buf.mem[r.e:], len(content), typeData)
			want.take(content, server)
		}
		got := model{}
		for range 2 * len(script) {
			_, there, err := r.openRecord(nil)
			if err != nil {
				got.bad = true
				break
			}
			if !there {
				break
			}
			got.data += len(r.plain)
			r.plain = nil
			if r.streams.opened {
				r.streams.ended, r.streams.opened = false, false
				got.streams++
			}
		}
		if got.data != want.data || got.streams != want.streams || got.bad != want.bad {
			t.Errorf("script %v, server %v: got %d bytes, %d streams, bad %v; want %d, %d, %v",
				script, server, got.data, got.streams, got.bad, want.data, want.streams, want.bad)
		}
	})
}

// model is what a script means, written down another way.
type model struct {
	data, streams int
	bad           bool
	message       bool
	ended, left   bool
}

func (m *model) take(content []byte, server bool) {
	switch {
	case m.bad:
	case !m.message && len(content) == 0:
		m.message = true
	case !m.message:
		if m.bad = m.ended; !m.bad {
			m.data += len(content)
		}
	default:
		m.message = false
		switch string(content) {
		case "\x01":
			m.bad, m.ended = m.ended, true
		case "\x02":
			if m.bad = !server || !m.ended; !m.bad {
				m.ended = false
				m.streams++
			}
		case "\x03":
			m.bad, m.left = server || m.left, true
		default:
			m.bad = true
		}
	}
}

// Opening a stream costs no handshake: how much is it?
func BenchmarkStream(b *testing.B) {
	client, server := streamPair(b)
	_, proxied := tcpPair(b)
	finish(b, client)
	wantAll(b, server, "")
	finish(b, server)
	wantAll(b, client, "")
	buf := make([]byte, 64)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := client.Open(proxied); err != nil {
			b.Fatal(err)
		}
		if err := server.Accept(); err != nil {
			b.Fatal(err)
		}
		if client.CloseWrite() != nil || server.CloseWrite() != nil {
			b.Fatal("close")
		}
		for _, c := range []*Conn{client, server} {
			if _, err := c.Read(buf); !errors.Is(err, io.EOF) {
				b.Fatal(err)
			}
		}
	}
}
