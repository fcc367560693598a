package tlsconn

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/meshtest"
)

// tcpPair is two ends of one TCP connection.
func tcpPair(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err = net.DialTCP("tcp", nil, l.Addr().(*net.TCPAddr))
	if err != nil {
		t.Fatal(err)
	}
	b, err = l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// suites are how tests name the ciphers. The client offers only one, which crypto/tls
// does not let us choose in TLS 1.3: so the test says which one it takes.
var suites = map[string]uint16{
	"aes128": tls.TLS_AES_128_GCM_SHA256, "aes256": tls.TLS_AES_256_GCM_SHA384, "chacha20": tls.TLS_CHACHA20_POLY1305_SHA256,
}

// configs are for both ends of a handshake within one mesh.
func configs(tb testing.TB, how string) (client, server *tls.Config) {
	tb.Helper()
	now := time.Now()
	ca := meshtest.NewCA(tb, now)
	web, shop := identity.MustNew("cluster.local", "shop", "web"), identity.MustNew("cluster.local", "shop", "client")
	client = identity.ClientConfig(ca.Snapshot(tb, shop, now), web, "x", []string{"istio"}, time.Now)
	server = identity.ServerConfig(ca.Snapshot(tb, web, now), nil, time.Now)
	if how == "tls12" {
		client.MaxVersion = tls.VersionTLS12
	}
	return client, server
}

func established(tb testing.TB, peek int) (client, server *Conn) {
	tb.Helper()
	return establishedIn(tb, &Pool{}, "aes128", peek)
}

// establishedIn is both ends of a TLS connection; the server gets peek bytes of
// the ClientHello as read before.
func establishedIn(tb testing.TB, p *Pool, how string, peek int) (client, server *Conn) {
	tb.Helper()
	a, b := tcpPair(tb)
	cc, sc := configs(tb, how)
	deadline := time.Now().Add(10 * time.Second)
	done := make(chan error, 1)
	go func() {
		var err error
		client, err = p.Client(a, cc, deadline)
		done <- err
	}()
	first := make([]byte, peek)
	if _, err := io.ReadFull(b, first); err != nil {
		tb.Fatal(err)
	}
	server, err := p.Server(b, first, sc, deadline)
	if err != nil {
		tb.Fatal(err)
	}
	if err := <-done; err != nil {
		tb.Fatal(err)
	}
	if id, ok := suites[how]; ok {
		rekey(tb, client, server, id)
	}
	return client, server
}

// rekey gives both ends keys of another suite, as crypto/tls chooses by itself.
func rekey(tb testing.TB, client, server *Conn, id uint16) {
	tb.Helper()
	if client.state.CipherSuite == id {
		return
	}
	s, _ := suiteOf(id)
	for i, k := range []*keys{&client.records.out.keys, &server.records.in.keys, &client.records.in.keys, &server.records.out.keys} {
		if err := k.use(s, bytes.Repeat([]byte{byte(i / 2)}, s.hashLen)); err != nil {
			tb.Fatal(err)
		}
	}
}

// Contract B4: what was peeked is replayed to the handshake, however much it is.
func TestPeekedBytesAreReplayed(t *testing.T) {
	for _, peek := range []int{0, 1, 5, 6, 100, 700} {
		client, server := established(t, peek)
		go func() { _, _ = client.Write([]byte("hello")) }()
		got := make([]byte, 5)
		if _, err := io.ReadFull(server, got); err != nil || string(got) != "hello" {
			t.Fatalf("peeked %d: %q, %v", peek, got, err)
		}
	}
}

// Contract B8: the end of one direction is an end for the peer, and the other
// direction goes on.
func TestCloseWrite(t *testing.T) {
	client, server := established(t, 0)
	if err := client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if n, err := server.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Fatalf("read %d, %v", n, err)
	}
	if _, err := server.Write([]byte("answer")); err != nil {
		t.Fatal(err)
	}
	if err := server.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(client); err != nil || string(got) != "answer" {
		t.Fatalf("%q, %v", got, err)
	}
}

func TestResetIsNoEnd(t *testing.T) {
	client, server := established(t, 0)
	client.Reset()
	if _, err := server.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("got %v", err)
	}
}

// A read deadline that passes does no harm: idle checks depend on it.
func TestReadGoesOnAfterADeadline(t *testing.T) {
	client, server := established(t, 0)
	if err := server.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	if err := server.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = client.Write([]byte("x")) }()
	if _, err := io.ReadFull(server, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
}

func TestHandshakeDeadline(t *testing.T) {
	a, _ := tcpPair(t) // nobody answers
	now := time.Now()
	var p Pool
	if _, err := p.Client(a, &tls.Config{InsecureSkipVerify: true}, now.Add(20*time.Millisecond)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

// Copy moves everything in pieces of any size, and gives the large buffers back.
func TestCopy(t *testing.T) {
	want := bytes.Repeat([]byte("0123456789abcdef"), 50_000)
	client, server := established(t, 0)
	go func() {
		for part := want; len(part) > 0; {
			n := min(len(part), 1+len(part)%30_000)
			if _, err := client.Write(part[:n]); err != nil {
				return
			}
			part = part[n:]
		}
		_ = client.CloseWrite()
	}()
	var c Pool
	var got bytes.Buffer
	moved := 0
	if err := c.Copy(&got, server, func(n int) { moved += n }); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) || moved != len(want) {
		t.Errorf("%d bytes, %d counted, want %d", got.Len(), moved, len(want))
	}
	broken := errors.New("broken")
	if err := c.Copy(writerFunc(func([]byte) (int, error) { return 0, broken }), bytes.NewReader(want), func(int) {}); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func nowPlus(tb testing.TB) time.Time {
	tb.Helper()
	return time.Now().Add(10 * time.Second)
}
