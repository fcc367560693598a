package netns

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"podseal.io/podseal/internal/proof"
)

// node is a namespace with a bridge, to which pods are attached.
type node struct{ *pod }

func newNode(t testing.TB) node {
	t.Helper()
	n := node{newPod(t, "10.88.0.1", "fd88::1")}
	n.root(t, func() error {
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}}); err != nil {
			return err
		}
		return n.configure()
	})
	return n
}

// attach makes a new pod, without IPv4 if v4 is empty, whose default route leads to the node.
func (n node) attach(t testing.TB, name, v4, v6 string) *pod {
	t.Helper()
	p := newPod(t, v4, v6)
	n.root(t, func() error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "veth-" + name}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(p.ns.Fd()))}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		bridge, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMaster(veth, bridge); err != nil {
			return err
		}
		return netlink.LinkSetUp(veth)
	})
	p.root(t, p.configure)
	p.root(t, func() error {
		for _, gateway := range []netip.Addr{n.v4, n.v6} {
			if gateway.Is4() && !p.v4.IsValid() {
				continue
			}
			if err := netlink.RouteAdd(&netlink.Route{Gw: gateway.AsSlice()}); err != nil {
				return fmt.Errorf("default route: %w", err)
			}
		}
		return nil
	})
	return p
}

// captured is a packet capture on all interfaces of a node, as tcpdump -i any makes
// it: each packet is seen on every interface that it passes.
type captured struct {
	file bytes.Buffer
	fd   int
	stop chan struct{}
	done chan error
}

// capture begins to capture.
func (n node) capture(t testing.TB) *captured {
	t.Helper()
	c := &captured{stop: make(chan struct{}), done: make(chan error, 1)}
	n.root(t, func() (err error) {
		all := int(binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL)))
		if c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all); err != nil {
			return fmt.Errorf("capture packets: %w", err)
		}
		if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20); err != nil {
			return fmt.Errorf("enlarge capture buffer: %w", err)
		}
		return unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000})
	})
	header := binary.LittleEndian.AppendUint32(nil, 0xa1b23c4d)
	header = append(header, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0)
	c.file.Write(header)
	go func() { c.done <- c.read() }()
	return c
}

// read writes packets to the file until stop is closed and no more come.
func (c *captured) read() error {
	b := make([]byte, 1<<17)
	for {
		n, _, err := unix.Recvfrom(c.fd, b, 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			select {
			case <-c.stop:
				return nil
			default:
				continue
			}
		case err != nil:
			return err
		}
		now := time.Now()
		h := binary.LittleEndian.AppendUint32(nil, uint32(now.Unix()))
		h = binary.LittleEndian.AppendUint32(h, uint32(now.Nanosecond()))
		h = binary.LittleEndian.AppendUint32(h, uint32(n))
		h = binary.LittleEndian.AppendUint32(h, uint32(n))
		c.file.Write(h)
		c.file.Write(b[:n])
	}
}

// end ends the capture and says what was on the wire. A packet that the kernel
// dropped makes it worthless, and fails the test.
func (c *captured) end(t testing.TB, needles ...string) proof.Summary {
	t.Helper()
	close(c.stop)
	if err := <-c.done; err != nil {
		t.Fatal(err)
	}
	stats, err := unix.GetsockoptTpacketStats(c.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil || stats.Drops != 0 {
		t.Fatalf("capture lost packets: %+v, %v", stats, err)
	}
	unix.Close(c.fd)
	s, err := proof.Read(&c.file, proof.Options{Needles: needles})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// listen opens a TCP listener in the pod, as one of its applications.
func (p *pod) listen(t testing.TB, address string) net.Listener {
	t.Helper()
	var l net.Listener
	p.do(t, app, func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	})
	return l
}
