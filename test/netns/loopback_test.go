package netns

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podseal.io/podseal/internal/capture"
)

// ordinary is the largest packet of a pod that nobody has widened.
const ordinary = 64 << 10

// segmentOf is what capture says of the pod's lo.
func segmentOf(t testing.TB, p *pod) (n int) {
	t.Helper()
	p.root(t, func() (err error) {
		n, err = capture.LoopbackSegment()
		return err
	})
	return n
}

// TestWidenLoopback: as often as one likes, and it can be told.
func TestWidenLoopback(t *testing.T) {
	a, _ := newPods(t)
	if n := segmentOf(t, a); n != ordinary {
		t.Errorf("at first %d bytes", n)
	}
	for range 2 {
		a.root(t, capture.WidenLoopback)
		if n := segmentOf(t, a); n <= ordinary {
			t.Errorf("%d bytes; this test needs Linux 6.3 or later", n)
		}
	}
}

// TestCaptureWidens: the program that captures a pod does it, and the bytes that are
// redirected are the same in both families, in large pieces: many connections at a
// time, writes and reads of any size in both directions at once, and the ends closed
// one after the other.
func TestCaptureWidens(t *testing.T) {
	m := newMesh(t)
	p := m.attach(t, "client", "10.88.0.11", "fd88::11")
	m.redirect(t, p)
	if n := segmentOf(t, p); n <= ordinary {
		t.Fatalf("%d bytes; this test needs Linux 6.3 or later", n)
	}
	proxy := p.listen(t, ":15001")
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := proxy.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { answer(t, c.(*net.TCPConn)) })
		}
	})
	t.Cleanup(func() { proxy.Close(); serving.Wait() })
	for _, to := range []string{"10.88.0.99:80", "[fd88::99]:80"} {
		t.Run(to, func(t *testing.T) {
			largest := p.largestOnLo(t)
			var asking sync.WaitGroup
			for seed := range uint64(12) {
				asking.Go(func() {
					var c *net.TCPConn
					if err := p.try(app, func() (err error) {
						c, err = dialTCP(to)
						return err
					}); err != nil {
						t.Error(err)
						return
					}
					defer c.Close()
					if err := ask(c, seed); err != nil {
						t.Errorf("connection %d: %v", seed, err)
					}
				})
			}
			asking.Wait()
			if n := largest(); n <= ordinary {
				t.Errorf("the largest packet on lo had %d bytes", n)
			}
		})
	}
}

// TestLargeSegmentsKeepTheirBounds: a reader that is slow holds its sender up, as
// before, and what was sent before a reset or an end arrives.
func TestLargeSegmentsKeepTheirBounds(t *testing.T) {
	p, _ := newPods(t)
	p.root(t, capture.WidenLoopback)
	l := p.listen(t, ":15001")
	defer l.Close()
	pair := func(t *testing.T) (client, server *net.TCPConn) {
		t.Helper()
		p.do(t, app, func() (err error) {
			client, err = dialTCP("127.0.0.1:15001")
			return err
		})
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { client.Close(); c.Close() })
		return client, c.(*net.TCPConn)
	}
	t.Run("slow reader", func(t *testing.T) {
		client, server := pair(t)
		const bound = 64 << 20 // far above what both buffers hold
		if err := client.SetWriteDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		n, err := client.Write(make([]byte, bound))
		if n == bound || err == nil {
			t.Fatalf("nobody reads, and %d bytes were taken", n)
		}
		client.Close()
		if got, err := io.Copy(io.Discard, server); got != int64(n) || err != nil {
			t.Errorf("%d of %d bytes arrived: %v", got, n, err)
		}
	})
	t.Run("half-close", func(t *testing.T) {
		client, server := pair(t)
		whole := make([]byte, 1<<20)
		go func() {
			client.Write(whole)
			client.CloseWrite()
		}()
		if n, err := io.Copy(io.Discard, server); n != int64(len(whole)) || err != nil {
			t.Fatalf("%d bytes arrived: %v", n, err)
		}
		go func() {
			server.Write(whole)
			server.Close()
		}()
		if n, err := io.Copy(io.Discard, client); n != int64(len(whole)) || err != nil {
			t.Errorf("%d bytes of the answer arrived: %v", n, err)
		}
	})
	t.Run("reset", func(t *testing.T) {
		client, server := pair(t)
		if _, err := client.Write([]byte("last words")); err != nil {
			t.Fatal(err)
		}
		if err := client.SetLinger(0); err != nil {
			t.Fatal(err)
		}
		client.Close()
		got, err := io.ReadAll(server)
		if string(got) != "last words" || !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%q, %v", got, err)
		}
	})
}

func dialTCP(to string) (*net.TCPConn, error) {
	c, err := net.DialTimeout("tcp", to, deadline)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// bytesOf are those that a side of connection seed sends.
func bytesOf(seed uint64, side byte) []byte {
	r := rand.NewChaCha8(sha256.Sum256([]byte{byte(seed), side}))
	b := make([]byte, 6<<20+int(seed)*7919)
	r.Read(b)
	return b
}

// ask says which connection it is, sends its bytes in pieces of any size while it
// reads those of the other side, and ends.
func ask(c *net.TCPConn, seed uint64) error {
	if err := c.SetDeadline(time.Now().Add(3 * deadline)); err != nil {
		return err
	}
	if _, err := c.Write([]byte{byte(seed)}); err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() { sent <- errors.Join(pieces(c, bytesOf(seed, 'a'), seed), c.CloseWrite()) }()
	got, err := io.ReadAll(c)
	if err := errors.Join(err, <-sent); err != nil {
		return err
	}
	if !bytes.Equal(got, bytesOf(seed, 'b')) {
		return fmt.Errorf("other bytes than were sent: %d of %d", len(got), len(bytesOf(seed, 'b')))
	}
	return nil
}

// answer is the other side.
func answer(t *testing.T, c *net.TCPConn) {
	defer c.Close()
	var first [1]byte
	if _, err := io.ReadFull(c, first[:]); err != nil {
		t.Error(err)
		return
	}
	seed := uint64(first[0])
	sent := make(chan error, 1)
	go func() { sent <- errors.Join(pieces(c, bytesOf(seed, 'b'), seed+1), c.CloseWrite()) }()
	got, err := io.ReadAll(c)
	if err := errors.Join(err, <-sent); err != nil {
		t.Error(err)
	}
	if !bytes.Equal(got, bytesOf(seed, 'a')) {
		t.Errorf("connection %d: other bytes than were sent: %d of %d", seed, len(got), len(bytesOf(seed, 'a')))
	}
}

// pieces writes b in pieces of up to 1 MiB.
func pieces(w io.Writer, b []byte, seed uint64) error {
	r := rand.New(rand.NewPCG(seed, 1))
	for len(b) > 0 {
		n := min(len(b), 1+r.IntN(1<<uint(r.IntN(21))))
		if _, err := w.Write(b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// largestOnLo looks at the packets of lo until the returned function is called,
// which says how many bytes the largest had.
func (p *pod) largestOnLo(t *testing.T) func() int {
	t.Helper()
	const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8 // in the network's order
	var fd int
	p.root(t, func() (err error) {
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: 1})
	})
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}); err != nil {
		t.Fatal(err)
	}
	stop, sizes := make(chan struct{}), make(chan []int)
	go func() {
		seen := []int{0}
		for {
			n, _, err := unix.Recvfrom(fd, make([]byte, 1), unix.MSG_TRUNC)
			if err == nil {
				seen = append(seen, n)
				continue
			}
			select {
			case <-stop:
				sizes <- seen
				return
			default:
			}
		}
	}()
	return func() int {
		close(stop)
		defer unix.Close(fd)
		return slices.Max(<-sizes)
	}
}
