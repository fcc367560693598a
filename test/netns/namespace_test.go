// Package netns tests capture where it matters: in real network namespaces, with
// the real kernel. Each test makes its own pods; nothing outside them is touched.
// It needs root.
package netns

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its namespace
		done <- unix.Unshare(unix.CLONE_NEWNET)
	}()
	if err := <-done; err != nil {
		fmt.Fprintf(os.Stderr, "FAIL: these tests make network namespaces, which needs root (CAP_SYS_ADMIN and CAP_NET_ADMIN): %v\n", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// identity is whom a program runs as.
type identity struct{ uid, gid int }

var (
	app        = identity{1000, 1000}
	sidecar    = identity{1337, 1337}
	sidecarUID = identity{1337, 1000}
	sidecarGID = identity{1000, 1337}
)

// pod is a network namespace with lo and eth0. v4 may be invalid.
type pod struct {
	ns     *os.File
	v4, v6 netip.Addr
}

// addresses are those that the pod has.
func (p *pod) addresses() []netip.Addr {
	if !p.v4.IsValid() {
		return []netip.Addr{p.v6}
	}
	return []netip.Addr{p.v4, p.v6}
}

// do runs f on a thread of its own in the pod's namespace and waits for it.
// Sockets that f opens stay in the namespace.
func (p *pod) do(t testing.TB, as identity, f func() error) {
	t.Helper()
	if err := p.try(as, f); err != nil {
		t.Fatal(err)
	}
}

func (p *pod) try(as identity, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- func() error {
			if err := unix.Setns(int(p.ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("enter namespace: %w", err)
			}
			// a socket belongs to the file system user of the thread that opens it
			if err := unix.Setfsgid(as.gid); err != nil {
				return fmt.Errorf("become group %d: %w", as.gid, err)
			}
			if err := unix.Setfsuid(as.uid); err != nil {
				return fmt.Errorf("become user %d: %w", as.uid, err)
			}
			return f()
		}()
	}()
	return <-done
}

// root runs f in the namespace as root.
func (p *pod) root(t testing.TB, f func() error) {
	t.Helper()
	p.do(t, identity{}, f)
}

// newPods makes two pods with a veth pair between them.
func newPods(t testing.TB) (a, b *pod) {
	t.Helper()
	a = newPod(t, "10.77.0.1", "fd77::1")
	b = newPod(t, "10.77.0.2", "fd77::2")
	a.root(t, func() error {
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(b.ns.Fd())),
		})
	})
	a.root(t, a.configure)
	b.root(t, b.configure)
	return a, b
}

func newPod(t testing.TB, v4, v6 string) *pod {
	t.Helper()
	p := &pod{v6: netip.MustParseAddr(v6)}
	if v4 != "" {
		p.v4 = netip.MustParseAddr(v4)
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("make namespace: %w", err)
			}
			var err error
			p.ns, err = os.Open("/proc/thread-self/ns/net")
			return err
		}()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.ns.Close() })
	return p
}

// configure gives eth0 its addresses, without waiting for duplicates of them, and
// switches eth0 and lo on.
func (p *pod) configure() error {
	eth0, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	for _, a := range []netip.Prefix{netip.PrefixFrom(p.v4, 24), netip.PrefixFrom(p.v6, 64)} {
		if !a.Addr().IsValid() {
			continue
		}
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), a.Addr().BitLen())}}
		if a.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(eth0, addr); err != nil {
			return fmt.Errorf("add %s: %w", a, err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	return netlink.LinkSetUp(eth0)
}
