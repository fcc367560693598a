package capture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ordinarySegment, in bytes, is how large a segment of TCP in one piece can be
// where nobody has asked for more: what the length of an IP packet can say.
const ordinarySegment = 65536

// WidenLoopback lets TCP hand data over lo in larger pieces, of up to what the
// kernel's lo offers (512 KiB: Linux's BIG TCP), in the network namespace of the
// calling thread. All that an application and its proxy say to each other goes
// that way, and costs the kernel as much per piece as per byte.
//
// It is for speed alone: nothing that a program can see of a connection depends on
// it. It may be repeated and needs CAP_NET_ADMIN. Kernels before Linux 6.3 can't do
// it for IPv4, before 5.19 not for IPv6; those leave lo as it is, and that is no
// error.
func WidenLoopback() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find interface lo: %w", err)
	}
	size := int(lo.Attrs().TSOMaxSize)
	if size <= ordinarySegment {
		return nil
	}
	// that of IPv6 first: on the way below 64 KiB it would set the other as well
	if err := errors.Join(netlink.LinkSetGSOMaxSize(lo, size), netlink.LinkSetGSOIPv4MaxSize(lo, size)); err != nil {
		return fmt.Errorf("allow larger segments on lo: %w", err)
	}
	return nil
}

// LoopbackSegment returns how large a piece TCP may hand over lo, in bytes: the
// smaller of what holds for IPv4 and for IPv6, in the network namespace of the
// calling thread. Proxies ask for it, so it does with what is linked anyway and in
// their memory.
func LoopbackSegment() (int, error) {
	table, err := syscall.NetlinkRIB(unix.RTM_GETLINK, unix.AF_UNSPEC)
	if err != nil {
		return 0, fmt.Errorf("ask for the interfaces: %w", err)
	}
	messages, err := syscall.ParseNetlinkMessage(table)
	if err != nil {
		return 0, fmt.Errorf("read the interfaces: %w", err)
	}
	for i := range messages {
		m := &messages[i]
		if m.Header.Type != unix.RTM_NEWLINK || len(m.Data) < unix.SizeofIfInfomsg || binary.NativeEndian.Uint32(m.Data[8:])&unix.IFF_LOOPBACK == 0 {
			continue
		}
		attrs, err := syscall.ParseNetlinkRouteAttr(m)
		if err != nil {
			return 0, fmt.Errorf("read interface lo: %w", err)
		}
		return segmentOf(attrs), nil
	}
	return 0, errors.New("there is no interface lo")
}

// segmentOf is the smaller limit of an interface. A kernel that says none for IPv4
// has the ordinary one.
func segmentOf(attrs []syscall.NetlinkRouteAttr) int {
	v4, v6 := uint32(ordinarySegment), uint32(ordinarySegment)
	for _, a := range attrs {
		if len(a.Value) < 4 {
			continue
		}
		switch a.Attr.Type {
		case unix.IFLA_GSO_MAX_SIZE:
			v6 = binary.NativeEndian.Uint32(a.Value)
		case unix.IFLA_GSO_IPV4_MAX_SIZE:
			v4 = binary.NativeEndian.Uint32(a.Value)
		}
	}
	return int(min(v4, v6))
}
