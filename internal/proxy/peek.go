package proxy

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"syscall"
	"time"

	"podseal.io/podseal/internal/wire"
)

// peekTimeout is how long the application may be silent on a connection whose first
// bytes say where it goes.
const peekTimeout = 3 * time.Second

// maxPeek bounds how many of them are looked at.
const maxPeek = 64 << 10

// peekName waits for what the application sends first and returns the host that it
// names, in lower case and without a port: the SNI of a ClientHello, the Host of an
// HTTP/1 request, "" for anything else. The bytes stay where they are.
func peekName(ctx context.Context, c *net.TCPConn) (string, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return "", err
	}
	deadline := time.Now().Add(peekTimeout)
	if err := c.SetReadDeadline(deadline); err != nil {
		return "", err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(past) }) // a closed socket fails at the read
	defer func() {
		stop()
		_ = c.SetReadDeadline(time.Time{})
	}()
	name, buf := "", make([]byte, 4096)
	err = raw.Read(func(fd uintptr) bool {
		for {
			n, _, failed := syscall.Recvfrom(int(fd), buf, syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
			switch {
			case errors.Is(failed, syscall.EINTR):
				continue
			case errors.Is(failed, syscall.EAGAIN):
				return false
			case failed != nil || n == 0:
				return true
			}
			found, more := nameIn(buf[:n])
			if !more || len(buf) >= maxPeek {
				name = found
				return true
			}
			if n < len(buf) {
				return false // the rest is on its way
			}
			buf = make([]byte, 4*len(buf))
		}
	})
	if err != nil && context.Cause(ctx) != nil {
		return "", context.Cause(ctx)
	}
	return name, nil // who is silent, or has gone, names nobody
}

// nameIn returns the host that bytes name, and whether more of them are needed.
func nameIn(b []byte) (name string, more bool) {
	h, err := wire.ParseClientHello(b)
	switch {
	case err == nil:
		return hostOf(h.SNI), false
	case errors.Is(err, wire.ErrShort):
		return "", true
	}
	switch wire.DetectHTTP(b) {
	case wire.NeedMore:
		return "", true
	case wire.HTTP1, wire.HTTP10:
		var head wire.RequestHead
		_, err := wire.ParseRequestHead(&head, b)
		if err == nil {
			return hostOf(string(head.Host)), false
		}
		return "", errors.Is(err, wire.ErrShort)
	default: // HTTP/2 hides its names; anything else has none
		return "", false
	}
}

// hostOf is a host without its port and final dot, in lower case; "" for an address.
func hostOf(s string) string {
	if host, _, err := net.SplitHostPort(s); err == nil {
		s = host
	}
	s = strings.ToLower(strings.TrimSuffix(s, "."))
	if net.ParseIP(strings.Trim(s, "[]")) != nil || slices.Contains([]byte(s), 0) {
		return ""
	}
	return s
}
