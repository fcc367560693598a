package tlsconn

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"podseal.io/podseal/internal/identity"
)

// muxPair is both ends of a connection that carries streams; what the client opens
// comes out of the channel. The handshake's stream is the first.
type muxPair struct {
	client, server   *Mux
	first, firstEnd  *Stream
	accepted         chan *Stream
	clientEnd, ended chan error
	rawC, rawS       *net.TCPConn
	pool             *Pool
}

func newMuxPair(tb testing.TB) *muxPair {
	tb.Helper()
	return newMuxPairIn(tb, &Pool{})
}

func newMuxPairIn(tb testing.TB, p *Pool) *muxPair {
	tb.Helper()
	a, b := tcpPair(tb)
	cc, sc := configs(tb, "")
	cc.NextProtos = []string{identity.ALPNStreams, "istio"}
	sc.NextProtos = []string{identity.ALPNStreams}
	deadline := time.Now().Add(10 * time.Second)
	done := make(chan error, 1)
	var client *Conn
	go func() {
		var err error
		client, err = p.Client(a, cc, deadline)
		done <- err
	}()
	server, err := p.Server(b, nil, sc, deadline)
	if err := errors.Join(err, <-done); err != nil {
		tb.Fatal(err)
	}
	m := &muxPair{accepted: make(chan *Stream, MaxStreams), clientEnd: make(chan error, 1), ended: make(chan error, 1), rawC: a, rawS: b, pool: p}
	m.client, m.first = client.Streams(nil)
	m.server, m.firstEnd = server.Streams(func(s *Stream) { m.accepted <- s })
	if m.client == nil || m.server == nil {
		tb.Fatal("no streams")
	}
	go func() { m.clientEnd <- m.client.Run() }()
	go func() { m.ended <- m.server.Run() }()
	tb.Cleanup(func() {
		m.client.Close()
		m.server.Close()
		<-m.clientEnd
		<-m.ended
		if n := p.lent.Load(); n != 0 {
			tb.Errorf("%d bytes of large buffers are still lent", n)
		}
	})
	return m
}

func (m *muxPair) open(tb testing.TB, first string) (ours, theirs *Stream) {
	tb.Helper()
	ours, err := m.client.open([]byte(first))
	if err != nil {
		tb.Fatal(err)
	}
	return ours, <-m.accepted
}

func wantRead(tb testing.TB, s io.Reader, want string) {
	tb.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(s, got); err != nil || string(got) != want {
		tb.Fatalf("%q, %v, want %q", got, err, want)
	}
}

func wantEnd(tb testing.TB, s io.Reader) {
	tb.Helper()
	if n, err := s.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		tb.Fatalf("%d bytes, %v, want the end", n, err)
	}
}

// Streams come in order, with what was sent with them, and end one direction at a time.
func TestMuxStreams(t *testing.T) {
	m := newMuxPair(t)
	for i, pair := range [][2]*Stream{{m.first, m.firstEnd}, nilPair(m.open(t, "hello")), nilPair(m.open(t, ""))} {
		client, server := pair[0], pair[1]
		if i == 1 {
			wantRead(t, server, "hello")
		}
		for _, d := range [][2]*Stream{{client, server}, {server, client}} {
			if _, err := io.WriteString(d[0], fmt.Sprintf("from %d", i)); err != nil {
				t.Fatal(err)
			}
			wantRead(t, d[1], fmt.Sprintf("from %d", i))
		}
		if err := client.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		wantEnd(t, server)
		if _, err := io.WriteString(server, "still"); err != nil {
			t.Fatal(err)
		}
		wantRead(t, client, "still")
		if _, err := client.Write([]byte("x")); !errors.Is(err, errEnded) {
			t.Errorf("a write after the end: %v", err)
		}
		if err := server.Close(); err != nil {
			t.Fatal(err)
		}
		wantEnd(t, client)
		if err := client.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if open, total, _ := m.client.Count(); open != 0 || total != 3 {
		t.Errorf("%d open of %d", open, total)
	}
	eventually(t, func() bool { open, _, _ := m.server.Count(); return open == 0 })
}

func nilPair(a, b *Stream) [2]*Stream { return [2]*Stream{a, b} }

func eventually(tb testing.TB, ok func() bool) {
	tb.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); {
		if time.Now().After(end) {
			tb.Fatal("it never came")
		}
		runtime.Gosched()
	}
}

// Many streams at once carry what they should, in each of the ways bytes are moved.
func TestMuxManyStreams(t *testing.T) {
	m := newMuxPair(t)
	var all sync.WaitGroup
	for i := range 48 {
		size := []int{0, 1, 200, 16 << 10, 100 << 10, 3 << 20}[i%6]
		sent := make([]byte, size)
		_, _ = rand.Read(sent)
		client, server := m.open(t, "")
		all.Go(func() { echo(t, m.pool, server, i%3) })
		all.Go(func() {
			var there sync.WaitGroup
			there.Go(func() {
				if _, err := client.Write(sent); err != nil {
					t.Errorf("stream %d: write: %v", i, err)
				}
				_ = client.CloseWrite()
			})
			got, err := io.ReadAll(client)
			if err != nil || !bytes.Equal(got, sent) {
				t.Errorf("stream %d: %d of %d bytes came back, %v", i, len(got), size, err)
			}
			there.Wait()
			client.Close()
		})
	}
	all.Wait()
}

// echo sends back what comes: by Read and Write, by Copy, or by way of a TCP
// connection, as a relay does.
func echo(t *testing.T, p *Pool, s *Stream, how int) {
	defer s.Close()
	switch how {
	case 0:
		buf := make([]byte, 5000)
		for {
			n, err := s.Read(buf)
			if n > 0 {
				if _, err := s.Write(buf[:n]); err != nil {
					t.Error(err)
					return
				}
			}
			if err != nil {
				_ = s.CloseWrite()
				return
			}
		}
	case 1:
		a, b := tcpPair(t)
		var there sync.WaitGroup
		there.Go(func() {
			_, _ = io.Copy(b, b)
			_ = b.CloseWrite()
		})
		there.Go(func() {
			if err := p.Copy(a, s, func(int) {}); err != nil {
				t.Error(err)
			}
			_ = a.CloseWrite()
		})
		if err := p.Copy(s, a, func(int) {}); err != nil {
			t.Error(err)
		}
		_ = s.CloseWrite()
		there.Wait()
	default:
		a, b := tcpPair(t)
		var there sync.WaitGroup
		there.Go(func() {
			_, _ = io.Copy(b, b)
			_ = b.CloseWrite()
		})
		there.Add(1)
		s.Deliver(a, func(int) {}, func(err error) {
			if err != nil {
				t.Error(err)
			}
			_ = a.CloseWrite()
			there.Done()
		})
		if err := p.Copy(s, a, func(int) {}); err != nil {
			t.Error(err)
		}
		_ = s.CloseWrite()
		there.Wait()
	}
}

// A stream that nobody reads holds no more than its window, and holds up no other.
func TestMuxSlowReader(t *testing.T) {
	m := newMuxPair(t)
	slow, stuck := m.open(t, "")
	written := make(chan int, 1)
	go func() {
		n, _ := slow.Write(make([]byte, 64<<20))
		written <- n
	}()
	eventually(t, func() bool {
		stuck.mu.Lock()
		defer stuck.mu.Unlock()
		return stuck.room == 0
	})
	for range 100 {
		client, server := m.open(t, "ping")
		wantRead(t, server, "ping")
		if err := server.Close(); err != nil {
			t.Fatal(err)
		}
		client.Reset()
	}
	stuck.mu.Lock()
	if stuck.queued > firstWindow {
		t.Errorf("%d bytes are held", stuck.queued)
	}
	stuck.mu.Unlock()
	stuck.Reset()
	if n := <-written; n > 2*firstWindow {
		t.Errorf("%d bytes were sent", n)
	}
}

// A window grows for who reads, and is given back.
func TestMuxWindowGrows(t *testing.T) {
	m := newMuxPair(t)
	client, server := m.open(t, "")
	const size = 32 << 20
	go func() {
		_, _ = client.Write(make([]byte, size))
		_ = client.CloseWrite()
	}()
	grew := 0
	err := m.pool.Copy(io.Discard, server, func(int) {
		server.mu.Lock()
		grew = max(grew, server.window)
		server.mu.Unlock()
	})
	if err != nil || grew <= firstWindow || grew > mostWindow {
		t.Errorf("the window grew to %d, %v", grew, err)
	}
	server.Close()
	eventually(t, func() bool { return m.pool.lent.Load() == 0 })
}

// Windows of many streams leave half of the limit to buffers, however fast all read.
func TestMuxWindowsLeaveBuffers(t *testing.T) {
	m := newMuxPairIn(t, &Pool{Limit: 2 << 20})
	for range 16 {
		_, server := m.open(t, "")
		server.mu.Lock()
		for range 8 {
			server.took(server.window) // as who reads all that there is
		}
		server.mu.Unlock()
	}
	if n := m.pool.lent.Load(); n < m.pool.Limit/4 || n > m.pool.Limit/2 {
		t.Errorf("windows take %d of %d bytes", n, m.pool.Limit)
	}
	b := m.pool.get(largest)
	defer m.pool.put(b)
	if b.class != largest {
		t.Errorf("a buffer of class %d, want %d", b.class, largest)
	}
}

// An abort is seen as one, by whoever waits for what.
func TestMuxReset(t *testing.T) {
	m := newMuxPair(t)
	client, server := m.open(t, "")
	client.Reset()
	if _, err := server.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read: %v", err)
	}
	if _, err := server.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("write: %v", err)
	}
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read of our own: %v", err)
	}
	client, server = m.open(t, "")
	a, b := tcpPair(t)
	done := make(chan error, 1)
	server.Deliver(a, func(int) {}, func(err error) { done <- err })
	if _, err := io.WriteString(client, "some"); err != nil {
		t.Fatal(err)
	}
	wantRead(t, b, "some")
	client.Close() // neither direction has ended
	if err := <-done; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("delivery: %v", err)
	}
	client, server = m.open(t, "")
	done = make(chan error, 1)
	server.Deliver(a, func(int) {}, func(err error) { done <- err })
	_ = b.SetLinger(0)
	b.Close()
	for {
		if _, err := io.WriteString(client, "more"); err != nil {
			if !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("write to nobody: %v", err)
			}
			break
		}
	}
	if err := <-done; !errors.Is(err, ErrSink) {
		t.Errorf("delivery to nobody: %v", err)
	}
}

// A closed stream that has ended its own direction refuses what still comes, and
// loses nothing of what it has sent.
func TestMuxCloseAfterEnd(t *testing.T) {
	m := newMuxPair(t)
	client, server := m.open(t, "")
	if _, err := io.WriteString(server, "answer"); err != nil {
		t.Fatal(err)
	}
	if err := server.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	server.Close()
	wantRead(t, client, "answer")
	wantEnd(t, client)
	for {
		if _, err := io.WriteString(client, "more"); err != nil {
			if !errors.Is(err, syscall.ECONNRESET) {
				t.Error(err)
			}
			break
		}
	}
	client, server = m.open(t, "")
	_ = server.CloseWrite()
	server.Close()
	wantEnd(t, client)
	if err := client.CloseWrite(); err != nil {
		t.Error(err)
	}
	eventually(t, func() bool { open, _, _ := m.server.Count(); return open == 1 })
}

func TestMuxDeadline(t *testing.T) {
	m := newMuxPair(t)
	client, server := m.open(t, "")
	for range 2 {
		_ = server.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		if _, err := server.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
	}
	_ = server.SetReadDeadline(time.Time{})
	read := make(chan error, 1)
	go func() {
		_, err := server.Read(make([]byte, 1))
		read <- err
	}()
	_ = server.SetReadDeadline(time.Unix(1, 0)) // while it waits, or before
	if err := <-read; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	_ = server.SetReadDeadline(time.Time{})
	_, _ = io.WriteString(client, "x")
	wantRead(t, server, "x")
}

// After the server has told that it takes no more, what was on its way is served and
// no further stream opened; open streams go on.
func TestMuxLeave(t *testing.T) {
	m := newMuxPair(t)
	client, server := m.open(t, "")
	m.server.Leave()
	eventually(t, m.client.Left)
	if _, err := m.client.open(nil); !errors.Is(err, ErrStreams) {
		t.Errorf("a stream was opened: %v", err)
	}
	_, _ = io.WriteString(client, "x")
	wantRead(t, server, "x")
}

// A stream that only the peer could end doesn't stay for ever.
func TestMuxExpire(t *testing.T) {
	m := newMuxPair(t)
	client, server := m.open(t, "")
	other, otherEnd := m.open(t, "")
	_ = server.CloseWrite()
	server.Close()
	wantEnd(t, client)
	m.server.Expire(time.Now().Add(-time.Minute))
	if open, _, _ := m.server.Count(); open != 3 {
		t.Errorf("%d are open", open)
	}
	m.server.Expire(time.Now().Add(time.Minute))
	if open, _, _ := m.server.Count(); open != 2 {
		t.Errorf("%d are open", open)
	}
	eventually(t, func() bool {
		_, err := io.WriteString(client, "x")
		return errors.Is(err, syscall.ECONNRESET)
	})
	_, _ = io.WriteString(other, "x")
	wantRead(t, otherEnd, "x")
}

// What was sent to a stream before the peer could know that it is over harms no other,
// in however small pieces it comes.
func TestMuxLateFrames(t *testing.T) {
	m := newMuxPair(t)
	client, server := m.open(t, "")
	server.mux.mu.Lock()
	delete(server.mux.streams, server.id) // as leave does, but the peer doesn't hear of it
	server.mux.late += firstWindow
	server.mux.mu.Unlock()
	for range firstWindow - 1 {
		if _, err := client.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	other, otherEnd := m.open(t, "")
	_, _ = io.WriteString(other, "still")
	wantRead(t, otherEnd, "still")
}

// With the connection its streams end, and none looks whole.
func TestMuxEndsItsStreams(t *testing.T) {
	m := newMuxPair(t)
	client, server := m.open(t, "")
	m.client.Close()
	for _, s := range []*Stream{client, server} {
		if _, err := s.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("the stream has ended with %v", err)
		}
	}
	if _, err := m.client.open(nil); !errors.Is(err, ErrStreams) {
		t.Errorf("a stream was opened: %v", err)
	}
}

// whole makes a stream both of whose directions have ended at the server, with size bytes
// that nobody has read.
func (m *muxPair) whole(tb testing.TB, size int) *Stream {
	tb.Helper()
	client, server := m.open(tb, "")
	_, err := client.Write(make([]byte, size))
	if err := errors.Join(err, client.CloseWrite(), server.CloseWrite()); err != nil {
		tb.Fatal(err)
	}
	eventually(tb, func() bool {
		server.mu.Lock()
		defer server.mu.Unlock()
		return server.ended && server.queued == size
	})
	return server
}

// What has come whole is delivered when the connection is gone, too: by the caller, as
// nobody would wait for a goroutine.
func TestMuxDeliverAfterTheEnd(t *testing.T) {
	m := newMuxPair(t)
	const size = 30_000
	server := m.whole(t, size)
	m.server.Close()
	m.ended <- <-m.ended
	a, b := tcpPair(t)
	var calls []error
	moved := 0
	server.Deliver(a, func(n int) { moved += n }, func(err error) { calls = append(calls, err) })
	if len(calls) != 1 || calls[0] != nil || moved != size {
		t.Errorf("%d bytes when Deliver returns, and %v", moved, calls)
	}
	if _, err := io.ReadFull(b, make([]byte, size)); err != nil {
		t.Error(err)
	}
}

// The same while the connection ends: when Run has returned, none of its goroutines is
// left, and what is delivered later takes none.
func TestMuxDeliverAtTheEnd(t *testing.T) {
	for range 5 {
		m := newMuxPair(t)
		var streams []*Stream
		for range 16 {
			streams = append(streams, m.whole(t, 5000))
		}
		sockets := make([]*net.TCPConn, len(streams))
		for i := range sockets {
			sockets[i], _ = tcpPair(t)
		}
		var there, delivered sync.WaitGroup
		delivered.Add(len(streams))
		there.Go(func() {
			for i, s := range streams {
				s.Deliver(sockets[i], func(int) {}, func(err error) {
					if err != nil {
						t.Error(err)
					}
					delivered.Done()
				})
			}
		})
		m.server.Close()
		m.ended <- <-m.ended
		there.Wait()
		delivered.Wait()
	}
}

// An idle connection is ended as it should.
func TestMuxEndsItself(t *testing.T) {
	m := newMuxPair(t)
	_ = m.first.CloseWrite()
	wantEnd(t, m.firstEnd)
	m.firstEnd.Close()
	wantEnd(t, m.first)
	m.client.Close()
	if err := <-m.ended; !errors.Is(err, io.EOF) {
		t.Errorf("the server sees %v", err)
	}
	m.ended <- nil
}

// What breaks the rules ends the connection, with an alert.
func TestMuxFramesOutOfTurn(t *testing.T) {
	frame := func(what byte, id uint32, content string) []byte {
		return append([]byte{what, byte(id >> 16), byte(id >> 8), byte(id)}, content...)
	}
	for name, f := range map[string][]byte{
		"short":                   {frameData, 0, 0},
		"unknown":                 frame(9, 1, ""),
		"never opened":            frame(frameData, 77, "x"),
		"number 0":                frame(frameData, 0, "x"),
		"opened out of turn":      frame(frameOpen, 3, ""),
		"opened again":            frame(frameOpen, 1, ""),
		"leave from a client":     frame(frameLeave, 0, ""),
		"credit of three":         frame(frameCredit, 1, "\x00\x00\x01"),
		"no credit":               frame(frameCredit, 1, "\x00\x00\x00\x00"),
		"credit without end":      frame(frameCredit, 1, "\xff\xff\xff\xff"),
		"end with content":        frame(frameEnd, 1, "x"),
		"reset with content":      frame(frameReset, 1, "x"),
		"more than the window":    frame(frameData, 1, string(make([]byte, 16000))),
		"nothing again and again": frame(frameData, 1, ""),
		"to nobody without end":   frame(frameData, 1, "over"),
	} {
		t.Run(name, func(t *testing.T) {
			m := newMuxPair(t)
			if name == "to nobody without end" {
				m.firstEnd.Reset()
			}
			o := &m.client.out
			for range aboutFrames + firstWindow + 2 { // what the peer could not know of yet does not count
				o.mu.Lock()
				var err error
				if o.broken() == nil {
					at := o.extend(headerLen + len(f) + trailerLen)
					copy(o.pending.b[at+headerLen:], f)
					o.keys.seal(o.pending.b[at:], len(f), typeData)
				} else {
					err = o.broken()
				}
				o.mu.Unlock()
				if err != nil || o.flush() != nil {
					break
				}
			}
			var bad *BadRecordError
			if err := <-m.ended; !errors.As(err, &bad) {
				t.Errorf("the server ends with %v", err)
			}
			m.ended <- nil
			if _, err := m.first.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
				t.Errorf("the client's stream ends with %v", err)
			}
		})
	}
}

func BenchmarkMuxStream(b *testing.B) {
	m := newMuxPair(b)
	buf := make([]byte, 64)
	for b.Loop() {
		client, server := m.open(b, "question")
		_, _ = server.Read(buf)
		_, _ = io.WriteString(server, "answer")
		_ = server.CloseWrite()
		_, _ = client.Read(buf)
		_ = client.CloseWrite()
		_, _ = client.Read(buf)
	}
}
