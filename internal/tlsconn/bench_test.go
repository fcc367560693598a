package tlsconn

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"podseal.io/podseal/internal/identity"
)

// oldCopy is the relay that the record path is measured against: io.Copy's loop
// over crypto/tls.
func oldCopy(dst io.Writer, src io.Reader) error {
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			if _, err := dst.Write(buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

type half interface {
	net.Conn
	CloseWrite() error
}

// chain is application → proxy → TLS → proxy → application, in one process.
type chain struct {
	client, server *net.TCPConn
	done           sync.WaitGroup
}

func newChain(tb testing.TB, how string) *chain {
	tb.Helper()
	c := &chain{}
	if how == "direct" {
		c.client, c.server = tcpPair(tb)
		return c
	}
	var a, b *net.TCPConn
	c.client, a = tcpPair(tb)
	b, c.server = tcpPair(tb)
	var left, right half
	var p Pool
	cp := func(dst, src half) error { return p.Copy(dst, src, func(int) {}) }
	if how == "crypto_tls" {
		cp = func(dst, src half) error { return oldCopy(dst, src) }
		left, right = establishedOld(tb)
	} else {
		left, right = establishedIn(tb, &p, how, 0)
	}
	relay := func(dst, src half) {
		c.done.Go(func() {
			if err := cp(dst, src); err == nil {
				_ = dst.CloseWrite()
			} else {
				dst.Close()
				src.Close()
			}
		})
	}
	relay(left, a)
	relay(a, left)
	relay(b, right)
	relay(right, b)
	tb.Cleanup(func() {
		c.client.Close()
		c.server.Close()
		c.done.Wait()
		left.Close()
		right.Close()
	})
	return c
}

// establishedOld is two ends of crypto/tls.
func establishedOld(tb testing.TB) (client, server *tls.Conn) {
	tb.Helper()
	a, b := tcpPair(tb)
	cc, sc := configs(tb, "aes128")
	client, server = tls.Client(a, cc), tls.Server(b, sc)
	done := make(chan error, 1)
	go func() { done <- client.Handshake() }()
	if err := errors.Join(server.Handshake(), <-done); err != nil {
		tb.Fatal(err)
	}
	return client, server
}

func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkBulk sends bytes one way. cpu-s/GB is of everything in the process:
// what the two proxies take is the difference to direct.
func BenchmarkBulk(b *testing.B) {
	for _, how := range []string{"direct", "crypto_tls", "aes128", "aes256", "chacha20"} {
		b.Run(how, func(b *testing.B) {
			c := newChain(b, how)
			chunk := make([]byte, 256<<10)
			var sink sync.WaitGroup
			sink.Go(func() {
				buf := make([]byte, 256<<10)
				for {
					if _, err := c.server.Read(buf); err != nil {
						return
					}
				}
			})
			b.SetBytes(int64(len(chunk)))
			b.ReportAllocs()
			began := cpu()
			for b.Loop() {
				if _, err := c.client.Write(chunk); err != nil {
					b.Fatal(err)
				}
			}
			c.client.CloseWrite()
			sink.Wait()
			b.ReportMetric((cpu()-began).Seconds()/(float64(b.N)*float64(len(chunk))/1e9), "cpu-s/GB")
		})
	}
}

// BenchmarkPing exchanges small messages.
func BenchmarkPing(b *testing.B) {
	for _, how := range []string{"direct", "crypto_tls", "aes128"} {
		b.Run(how, func(b *testing.B) {
			c := newChain(b, how)
			var echo sync.WaitGroup
			echo.Go(func() { _, _ = io.Copy(c.server, struct{ io.Reader }{c.server}) })
			msg := make([]byte, 200)
			b.ReportAllocs()
			began := cpu()
			for b.Loop() {
				if _, err := c.client.Write(msg); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(c.client, msg); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64((cpu()-began).Nanoseconds())/float64(b.N), "cpu-ns/op")
			c.client.CloseWrite()
			echo.Wait()
		})
	}
}

// BenchmarkHandshake is both sides of a handshake, over a new TCP connection: by
// crypto/tls alone; ours in full; and with bytes both ways, as that is when a ticket
// comes: without one, with one that is asked for, made and kept, and resumed, by a
// client of another make and by ours.
func BenchmarkHandshake(b *testing.B) {
	for _, how := range []string{"crypto_tls", "full", "exchange", "ticket", "resumed", "resumed_ours"} {
		b.Run(how, func(b *testing.B) {
			c := newCouple(b)
			l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
			if err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			if how == "resumed_ours" {
				c.alpn, c.offered = []string{identity.ALPNStreams}, []string{identity.ALPNStreams}
				how = "resumed"
			}
			if how == "resumed" {
				c.meet()
			}
			work := make(chan func()) // as in a proxy, who shakes hands has done so before
			defer close(work)
			go func() {
				for f := range work {
					f()
				}
			}()
			b.ReportAllocs()
			b.ResetTimer()
			began := cpu()
			for b.Loop() {
				client, server := benchPair(b, l)
				if how == "ticket" {
					clear(c.clients.sessions.known)
				}
				cc, sc := c.configs()
				if how != "ticket" && how != "resumed" {
					cc = identity.ClientConfig(c.client, webID, cc.ServerName, c.alpn, c.now)
				}
				benchHandshake(b, c, how, work, client, server, cc, sc)
				client.Close()
				server.Close()
			}
			b.ReportMetric(float64((cpu()-began).Nanoseconds())/float64(b.N), "cpu-ns/op")
		})
	}
}

func benchPair(b *testing.B, l *net.TCPListener) (client, server *net.TCPConn) {
	b.Helper()
	client, err := net.DialTCP("tcp", nil, l.Addr().(*net.TCPAddr))
	if err != nil {
		b.Fatal(err)
	}
	if server, err = l.AcceptTCP(); err != nil {
		b.Fatal(err)
	}
	return client, server
}

func benchHandshake(b *testing.B, c *couple, how string, work chan<- func(), client, server *net.TCPConn, cc, sc *tls.Config) {
	b.Helper()
	done := make(chan error, 1)
	if how == "crypto_tls" {
		work <- func() { done <- tls.Client(client, cc).Handshake() }
		if err := errors.Join(tls.Server(server, sc).Handshake(), <-done); err != nil {
			b.Fatal(err)
		}
		return
	}
	deadline := time.Now().Add(10 * time.Second)
	var up *Conn
	work <- func() {
		var err error
		up, err = c.clients.Client(client, cc, deadline)
		done <- err
	}
	down, err := c.servers.Server(server, nil, sc, deadline)
	if err := errors.Join(err, <-done); err != nil {
		b.Fatal(err)
	}
	if resumed := up.state.DidResume; resumed != (how == "resumed") {
		b.Fatal("resumed: ", resumed)
	}
	if how != "full" {
		oneWay(b, up, down)
		oneWay(b, down, up)
	}
}
