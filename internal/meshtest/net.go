package meshtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
)

// Network stands for the pods' network and their capture rules. Pods have
// loopback addresses of their own; what the rules would redirect is connected to
// the proxy's port, and OriginalDst tells where it was going.
type Network struct {
	mu       sync.Mutex
	told     *sync.Cond
	outbound map[netip.Addr]netip.AddrPort     // pod -> its proxy's outbound port
	inbound  map[netip.Addr]netip.AddrPort     // pod -> its proxy's inbound port
	going    map[netip.AddrPort]netip.AddrPort // client socket -> where it was going
}

// NewNetwork has no captured pods.
func NewNetwork() *Network {
	n := &Network{outbound: map[netip.Addr]netip.AddrPort{}, inbound: map[netip.Addr]netip.AddrPort{}, going: map[netip.AddrPort]netip.AddrPort{}}
	n.told = sync.NewCond(&n.mu)
	return n
}

// Capture redirects a pod's connections to its proxy.
func (n *Network) Capture(pod netip.Addr, outbound, inbound netip.AddrPort) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.outbound[pod], n.inbound[pod] = outbound, inbound
}

// appSource is the source that capture rules let through (contract 5.26).
var appSource = netip.AddrFrom4([4]byte{127, 0, 0, 6})

// Connect is what an application in a pod does: from its address, through its
// proxy if it has one.
func (n *Network) Connect(ctx context.Context, pod netip.Addr, to netip.AddrPort) (*net.TCPConn, error) {
	n.mu.Lock()
	proxy, ok := n.outbound[pod]
	n.mu.Unlock()
	if ok {
		return n.Redirect(ctx, pod, proxy, to)
	}
	return n.Dial(pod)(ctx, netip.Addr{}, to)
}

// Dial returns what the proxy of a pod dials with: it isn't captured on its
// way out, but its destination may be.
func (n *Network) Dial(pod netip.Addr) func(ctx context.Context, from netip.Addr, to netip.AddrPort) (*net.TCPConn, error) {
	return func(ctx context.Context, from netip.Addr, to netip.AddrPort) (*net.TCPConn, error) {
		if from == appSource {
			return dialFrom(ctx, from, to)
		}
		n.mu.Lock()
		proxy, ok := n.inbound[to.Addr()]
		n.mu.Unlock()
		if ok {
			return n.Redirect(ctx, pod, proxy, to)
		}
		return dialFrom(ctx, pod, to)
	}
}

// OriginalDst is what the kernel would say of an accepted connection.
func (n *Network) OriginalDst(c *net.TCPConn) (netip.AddrPort, error) {
	remote, ok := c.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}, errors.New("not a TCP connection")
	}
	client := remote.AddrPort()
	n.mu.Lock()
	defer n.mu.Unlock()
	for {
		if to, ok := n.going[client]; ok {
			delete(n.going, client)
			if !to.IsValid() {
				return netip.AddrPort{}, errors.New("the connection was not redirected")
			}
			return to, nil
		}
		n.told.Wait() // the client registers right after it has connected
	}
}

// Redirect connects to a port of a proxy and notes where the connection was
// going; the zero address is a connection that was not redirected.
func (n *Network) Redirect(ctx context.Context, from netip.Addr, proxy, to netip.AddrPort) (*net.TCPConn, error) {
	c, err := dialFrom(ctx, from, proxy)
	if err != nil {
		return nil, err
	}
	local, ok := c.LocalAddr().(*net.TCPAddr)
	if !ok {
		return nil, errors.New("not a TCP connection")
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.going[local.AddrPort()] = to
	n.told.Broadcast()
	return c, nil
}

func dialFrom(ctx context.Context, from netip.Addr, to netip.AddrPort) (*net.TCPConn, error) {
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
	c, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return nil, fmt.Errorf("connect to %s: not TCP", to)
	}
	return tcp, nil
}

// Serve runs an application at an address of a pod until the test ends; serve is
// called for each connection, which is closed afterwards.
func Serve(tb testing.TB, pod netip.Addr, serve func(c *net.TCPConn)) netip.AddrPort {
	tb.Helper()
	l, err := (&net.ListenConfig{}).Listen(tb.Context(), "tcp", netip.AddrPortFrom(pod, 0).String())
	if err != nil {
		tb.Fatal(err)
	}
	var all sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			tcp, ok := c.(*net.TCPConn)
			if !ok {
				return
			}
			mu.Lock()
			open[c] = true
			mu.Unlock()
			all.Go(func() {
				defer c.Close()
				serve(tcp)
				mu.Lock()
				delete(open, c)
				mu.Unlock()
			})
		}
	})
	tb.Cleanup(func() {
		l.Close()
		mu.Lock()
		for c := range open {
			c.Close()
		}
		mu.Unlock()
		all.Wait()
	})
	addr, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		tb.Fatal("not a TCP listener")
	}
	return addr.AddrPort()
}

// Echo sends back what it gets, until the client ends its direction.
func Echo(c *net.TCPConn) {
	if _, err := io.Copy(c, c); err == nil {
		_ = c.CloseWrite() // the client may be gone
	}
}

// Greet speaks first and then echoes.
func Greet(greeting string) func(c *net.TCPConn) {
	return func(c *net.TCPConn) {
		if _, err := io.WriteString(c, greeting); err == nil {
			Echo(c)
		}
	}
}
