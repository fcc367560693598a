package load

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// listen opens a listener that shares its port with those of other threads.
func listen(address netip.AddrPort) (int, error) {
	sa, family := sockaddr(address)
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("make a socket: %w", err)
	}
	for _, option := range []int{unix.SO_REUSEADDR, unix.SO_REUSEPORT} {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, 1); err != nil {
			return 0, fmt.Errorf("share the port: %w", err)
		}
	}
	if err := unix.Bind(fd, sa); err != nil {
		return 0, fmt.Errorf("bind %s: %w", address, err)
	}
	return fd, unix.Listen(fd, 4096)
}

// Serve is the application, on all addresses, until the context ends.
// It adds the bytes of bulk that have arrived to received.
func Serve(ctx context.Context, ports []int, threads int, received *atomic.Uint64) error {
	debug.SetGCPercent(400)
	var all sync.WaitGroup
	faults := make([]error, threads)
	for i := range threads {
		s := &server{received: received, answers: map[int][]byte{}, buffer: make([]byte, blockSize), listeners: map[int]bool{}}
		for _, port := range ports {
			fd, err := listen(netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(port)))
			if err != nil {
				return err
			}
			s.listeners[fd] = true
		}
		all.Go(func() { faults[i] = s.run(ctx) })
	}
	all.Wait()
	return errors.Join(faults...)
}

// server is one thread of the application.
type server struct {
	received  *atomic.Uint64
	poll      *poller
	listeners map[int]bool
	conns     []*served // by descriptor
	answers   map[int][]byte
	buffer    []byte
}

// served is a connection; kind is its first byte.
type served struct {
	fd      int
	kind    byte
	h1      h1Server
	h2      *h2Server
	out     []byte // not sent yet; of HTTP/1.1 a part of an answer that is shared
	own     []byte // what out is made of for HTTP/2 and echo
	writing bool   // out is waited for
}

func (s *server) run(ctx context.Context) (err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if s.poll, err = newPoller(); err != nil {
		return err
	}
	for fd := range s.listeners {
		if err := s.poll.watch(fd, unix.EPOLLIN, false); err != nil {
			return err
		}
	}
	for ctx.Err() == nil {
		events, err := s.poll.wait(time.Second)
		if err != nil {
			return err
		}
		for _, e := range events {
			fd := int(e.Fd)
			if s.listeners[fd] {
				if err := s.accept(fd); err != nil {
					return err
				}
				continue
			}
			c := s.conns[fd]
			if c == nil {
				continue
			}
			if e.Events&unix.EPOLLOUT != 0 && !s.flush(c) {
				s.drop(c)
				continue
			}
			if e.Events&^uint32(unix.EPOLLOUT) != 0 && !s.read(c) {
				s.drop(c)
			}
		}
	}
	return nil
}

func (s *server) drop(c *served) {
	s.conns[c.fd] = nil
	closeSocket(c.fd)
}

func (s *server) accept(listener int) error {
	for {
		fd, _, err := unix.Accept4(listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ECONNABORTED) || errors.Is(err, unix.EINTR) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
			closeSocket(fd)
			continue
		}
		for fd >= len(s.conns) {
			s.conns = append(s.conns, make([]*served, 1024)...)
		}
		s.conns[fd] = &served{fd: fd}
		if err := s.poll.watch(fd, unix.EPOLLIN, false); err != nil {
			return err
		}
	}
}

// read takes what came, and reports whether the connection goes on.
func (s *server) read(c *served) bool {
	if c.kind == cmdUp || c.kind == cmdBoth {
		n, errno := dropSocket(c.fd)
		s.received.Add(uint64(n))
		return n > 0 || again(errno)
	}
	n, errno := readSocket(c.fd, s.buffer)
	if n == 0 {
		return again(errno)
	}
	b := s.buffer[:n]
	if c.kind == 0 {
		c.kind = b[0]
		if c.kind == 'P' {
			c.h2 = newH2Server()
		}
	}
	switch c.kind {
	case 'G':
		return c.h1.feed(b, func(size int) { s.answer(c, size) }) == nil && s.flush(c)
	case 'P':
		var err error
		if c.own, err = c.h2.feed(b, c.unsent()); err != nil {
			return false
		}
		c.out = c.own
		return s.flush(c)
	case cmdEcho:
		c.own = append(c.unsent(), b...)
		c.out = c.own
		return s.flush(c)
	case cmdDown, cmdBoth:
		c.out = body[:blockSize]
		return s.flush(c)
	case cmdUp:
		return true
	default:
		return false
	}
}

// unsent is out at the start of the connection's own buffer, to be appended to.
func (c *served) unsent() []byte { return append(c.own[:0], c.out...) }

// answer is one HTTP/1.1 answer; a client that does not wait for one gets them
// one after the other.
func (s *server) answer(c *served, size int) {
	b, ok := s.answers[size]
	if !ok {
		b = h1Answer(size)
		s.answers[size] = b
	}
	if len(c.out) == 0 {
		c.out = b
	} else {
		c.out = append(slices.Clip(c.out), b...)
	}
}

// flush sends, and reports whether the connection goes on.
func (s *server) flush(c *served) bool {
	for len(c.out) > 0 {
		n, errno := writeSocket(c.fd, c.out)
		if errno != 0 && !again(errno) {
			return false
		}
		if n < len(c.out) || c.kind == cmdDown || c.kind == cmdBoth {
			c.out = c.out[n:]
			if len(c.out) == 0 {
				c.out = body[:blockSize]
			}
			return s.wait(c, true)
		}
		c.out = nil
	}
	return s.wait(c, false)
}

// wait says whether the socket is waited for until it can be written.
func (s *server) wait(c *served, writing bool) bool {
	if c.writing == writing {
		return true
	}
	c.writing = writing
	events := uint32(unix.EPOLLIN)
	if writing {
		events |= unix.EPOLLOUT
	}
	return s.poll.watch(c.fd, events, true) == nil
}
