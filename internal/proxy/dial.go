package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// until is a context that ends at a certain time for those who ask for its deadline,
// as package net does, which then needs no timer of ours.
type until struct {
	context.Context
	at time.Time
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
	if !from.IsValid() {
		var d net.Dialer
		return d.DialTCP(ctx, "tcp", netip.AddrPort{}, to)
	}
	// what is in this pod doesn't vanish without a word
	d := net.Dialer{KeepAlive: -1, Control: latePort}
	return d.DialTCP(ctx, "tcp", netip.AddrPortFrom(from, 0), to)
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
