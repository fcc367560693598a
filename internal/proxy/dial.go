package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// until is a context that ends at a certain time for those who ask for its deadline,
// as package net does, which then needs no timer of ours.
type until struct {
	context.Context
	at     time.Time
	speaks bool // something is to be sent as soon as the connection is there
}

func (u until) Deadline() (time.Time, bool) {
	if at, ok := u.Context.Deadline(); ok && at.Before(u.at) {
		return at, true
	}
	return u.at, true
}

// dialKernel connects over TCP, from a certain address or any.
func dialKernel(ctx context.Context, from netip.Addr, to netip.AddrPort) (*net.TCPConn, error) {
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	u, _ := ctx.(until)
	d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error { return begin(raw, from, to, u.speaks) }}
	if !from.IsValid() {
		d.Control = latePort // DialTCP always binds
		return d.DialTCP(ctx, "tcp", netip.AddrPort{}, to)
	}
	d.KeepAlive = -1 // what is in this pod doesn't vanish without a word
	c, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return nil, errors.Join(errors.New("not TCP"), c.Close())
	}
	return tcp, nil
}

// latePort lets the kernel choose the source port at connect and not at bind:
// a port is then taken for one destination only, not for all.
func latePort(_, _ string, raw syscall.RawConn) error {
	var failed error
	err := raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	})
	return errors.Join(err, failed)
}

// begin begins to connect a new socket from an address, to save package net a wait:
// it would ask the poller when the socket is connected. Within a pod it is when
// connect returns, though the kernel says that it is under way; so package net, which
// asks once more, finds it done. What has failed it finds out likewise. If something
// is to be sent at once, that carries the last acknowledgement of the handshake, which
// is a packet less; else the other end would learn only after 200 ms that we are there.
func begin(raw syscall.RawConn, from netip.Addr, to netip.AddrPort, speaks bool) error {
	failed := latePort("", "", raw)
	err := raw.Control(func(fd uintptr) {
		var source, target unix.Sockaddr
		if to.Addr().Is4() {
			source, target = &unix.SockaddrInet4{Addr: from.As4()}, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}
		} else {
			source, target = &unix.SockaddrInet6{Addr: from.As16()}, &unix.SockaddrInet6{Addr: to.Addr().As16(), Port: int(to.Port())}
		}
		if err := unix.Bind(int(fd), source); err != nil {
			failed = os.NewSyscallError("bind", err)
			return
		}
		if speaks {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK, 0) // it saves work, no more
		}
		_ = unix.Connect(int(fd), target)
	})
	return errors.Join(err, failed)
}
