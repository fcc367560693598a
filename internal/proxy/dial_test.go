package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podseal.io/podseal/internal/meshtest"
	"podseal.io/podseal/internal/policy"
)

// What is in the pod is connected to from the address that capture lets through,
// over either family (contract 2.29, B6), and an error is the kernel's.
func TestDialKernel(t *testing.T) {
	for _, at := range []string{"127.0.0.1", "::1"} {
		addr := netip.MustParseAddr(at)
		app := meshtest.Serve(t, addr, meshtest.Echo)
		from := addr
		if addr.Is4() {
			from = loopbackSource(addr)
		}
		ctx := until{Context: t.Context(), at: time.Now().Add(20 * time.Second)}
		c, err := dialKernel(ctx, from, app)
		if err != nil {
			t.Fatal(err)
		}
		exchange(t, c, "hello")
		if got := addrPort(c.LocalAddr()).Addr(); got != from {
			t.Errorf("from %s, want %s", got, from)
		}
		if got := addrPort(c.RemoteAddr()); got != app {
			t.Errorf("to %s, want %s", got, app)
		}
		c.Close()
		if c, err = dialKernel(ctx, netip.Addr{}, app); err != nil {
			t.Fatal(err)
		}
		exchange(t, c, "hello")
		c.Close()
		nobody := netip.AddrPortFrom(addr, 1)
		if _, err := dialKernel(ctx, from, nobody); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("nobody listens: %v", err)
		}
		over, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := dialKernel(until{Context: over, at: time.Now().Add(time.Minute)}, from, app); !errors.Is(err, context.Canceled) {
			t.Errorf("canceled: %v", err)
		}
	}
	// a full queue, which doesn't answer
	addr := netip.MustParseAddr("127.0.0.1")
	full := fullQueue(t, addr)
	if _, err := dialKernel(until{Context: t.Context(), at: time.Now().Add(50 * time.Millisecond)}, loopbackSource(addr), full); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("nobody answers: %v", err)
	}
}

// What is sent as soon as the connection is there carries the end of the handshake.
func TestDialSpeaks(t *testing.T) {
	for at, from := range map[string]string{"127.0.0.1": "127.0.0.6", "::1": "::1"} {
		app := meshtest.Serve(t, netip.MustParseAddr(at), meshtest.Echo)
		for speaks, want := range map[bool]uint32{true: 1, false: 2} {
			c, err := dialKernel(until{t.Context(), time.Now().Add(20 * time.Second), speaks}, netip.MustParseAddr(from), app)
			if err != nil {
				t.Fatal(err)
			}
			if sent := segmentsSent(t, c); sent != want {
				t.Errorf("%s, speaks %v: %d segments to connect, want %d", at, speaks, sent, want)
			}
			exchange(t, c, "hello")
			exchange(t, c, "hello again")
			c.Close()
		}
	}
}

func segmentsSent(t *testing.T, c *net.TCPConn) (sent uint32) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	failed := raw.Control(func(fd uintptr) {
		var info *unix.TCPInfo
		if info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			sent = info.Segs_out
		}
	})
	if err := errors.Join(err, failed); err != nil {
		t.Fatal(err)
	}
	return sent
}

// Of a connection over a tunnel it is known whether the client has said something. Whom
// an application is to greet is not kept from it.
func TestWhoSpeaksAtOnce(t *testing.T) {
	dialled, handle := make(chan bool, 1), make(chan struct{}, 1)
	p := newPairWith(t, policy.TCP, meshtest.Echo, func(c *Config) {
		dial := c.Dial
		c.Dial = func(ctx context.Context, from netip.Addr, to netip.AddrPort) (*net.TCPConn, error) {
			u, ok := ctx.(until)
			dialled <- ok && u.speaks
			return dial(ctx, from, to)
		}
	}, func(c *Config) {
		of := c.OriginalDst
		c.OriginalDst = func(c *net.TCPConn) (netip.AddrPort, error) {
			<-handle
			return of(c)
		}
	})
	for i, first := range []string{"", "hello", ""} { // the first makes the tunnel
		c := p.dial()
		if _, err := io.WriteString(c, first); err != nil {
			t.Fatal(err)
		}
		handle <- struct{}{}
		if speaks := <-dialled; speaks != (first != "") {
			t.Errorf("connection %d: speaks %v", i, speaks)
		}
		expect(t, c, first)
		exchange(t, c, "more")
		c.Close()
		p.kept(t, 1)
	}
}

// fullQueue listens and never accepts, and has as many in its queue as it takes.
func fullQueue(t *testing.T, addr netip.Addr) netip.AddrPort {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrInet4{Addr: addr.As4()}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	sa, ok := name.(*syscall.SockaddrInet4)
	if !ok {
		t.Fatal("not IPv4")
	}
	at := netip.AddrPortFrom(addr, uint16(sa.Port))
	for range 2 {
		if c, err := dialKernel(until{Context: t.Context(), at: time.Now().Add(50 * time.Millisecond)}, netip.Addr{}, at); err == nil {
			t.Cleanup(func() { c.Close() })
		}
	}
	return at
}
