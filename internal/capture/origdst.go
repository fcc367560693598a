package capture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrNotRedirected means that a connection was made to the proxy's port itself.
var ErrNotRedirected = errors.New("connection was not redirected")

// originalDst is SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST, which are equal.
const originalDst = 80

// OriginalDst returns where the client of a redirected connection wanted to go
// (contract B5). IPv4 addresses are returned as such, also on a listener for both
// families. The error wraps ErrNotRedirected if the kernel knows no redirection
// or the destination is the listener itself.
func OriginalDst(c *net.TCPConn) (netip.AddrPort, error) {
	tcpAddr, ok := c.LocalAddr().(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}, errors.New("read original destination: connection has no local address")
	}
	local := tcpAddr.AddrPort()
	local = netip.AddrPortFrom(local.Addr().Unmap(), local.Port())
	raw, err := c.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("read original destination: %w", err)
	}
	var dst netip.AddrPort
	var sockErr error
	if err := raw.Control(func(fd uintptr) { dst, sockErr = originalOf(int(fd), local.Addr().Is4()) }); err != nil {
		return netip.AddrPort{}, fmt.Errorf("read original destination: %w", err)
	}
	if errors.Is(sockErr, unix.ENOENT) || errors.Is(sockErr, unix.ENOPROTOOPT) {
		return netip.AddrPort{}, fmt.Errorf("read original destination: %w: %w", ErrNotRedirected, sockErr)
	}
	if sockErr != nil {
		return netip.AddrPort{}, fmt.Errorf("read original destination: %w", sockErr)
	}
	if dst == netip.AddrPortFrom(local.Addr().WithZone(""), local.Port()) {
		return netip.AddrPort{}, fmt.Errorf("read original destination: %w", ErrNotRedirected)
	}
	return dst, nil
}

// originalOf asks the kernel. x/sys has no call for these options; two others
// return enough bytes: a sockaddr_in has 16, a sockaddr_in6 28.
func originalOf(fd int, is4 bool) (netip.AddrPort, error) {
	if is4 {
		mreq, err := unix.GetsockoptIPv6Mreq(fd, unix.SOL_IP, originalDst)
		if err != nil {
			return netip.AddrPort{}, err
		}
		sa := mreq.Multiaddr // family (2), port (2, big-endian), address (4), padding
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(sa[4:8])), binary.BigEndian.Uint16(sa[2:4])), nil
	}
	info, err := unix.GetsockoptIPv6MTUInfo(fd, unix.SOL_IPV6, originalDst)
	if err != nil {
		return netip.AddrPort{}, err
	}
	// the field holds the bytes as they came: big-endian
	port := *(*[2]byte)(unsafe.Pointer(&info.Addr.Port)) //nolint:gosec // reads two bytes of a value that we own
	return netip.AddrPortFrom(netip.AddrFrom16(info.Addr.Addr), binary.BigEndian.Uint16(port[:])), nil
}
