package proxy

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"podseal.io/podseal/internal/meshtest"
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
		ctx := until{t.Context(), time.Now().Add(20 * time.Second)}
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
		if _, err := dialKernel(until{over, time.Now().Add(time.Minute)}, from, app); !errors.Is(err, context.Canceled) {
			t.Errorf("canceled: %v", err)
		}
	}
	// a full queue, which doesn't answer
	addr := netip.MustParseAddr("127.0.0.1")
	full := fullQueue(t, addr)
	if _, err := dialKernel(until{t.Context(), time.Now().Add(50 * time.Millisecond)}, loopbackSource(addr), full); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("nobody answers: %v", err)
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
		if c, err := dialKernel(until{t.Context(), time.Now().Add(50 * time.Millisecond)}, netip.Addr{}, at); err == nil {
			t.Cleanup(func() { c.Close() })
		}
	}
	return at
}
