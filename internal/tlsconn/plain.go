package tlsconn

import (
	"io"
	"net"
	"syscall"
	"unsafe"
)

// Plain is a TCP connection without TLS that is read and written as the copies of a
// Pool do it: what is small without telling Go's scheduler. Read and Write may be
// used by one goroutine each at the same time, and Quiet by one.
type Plain struct {
	*net.TCPConn
	pool *Pool
	raw  syscall.RawConn

	try   func(fd uintptr) bool // fields so that they are made once
	look  func(fd uintptr)
	p     []byte // of the read that is going on
	n     int
	cause error

	peeked [1]byte // of the look that is going on
	quiet  bool
}

// Plain makes one of a connection, which is used through it alone from then on.
func (p *Pool) Plain(c *net.TCPConn) *Plain {
	out := &Plain{TCPConn: c, pool: p, raw: rawConn(c)}
	out.try, out.look = out.attempt, out.peek
	return out
}

// Read is as of net.Conn.
func (c *Plain) Read(b []byte) (int, error) {
	if c.raw == nil || len(b) == 0 {
		return c.TCPConn.Read(b) //nolint:wrapcheck // callers look for io.EOF
	}
	c.p, c.n, c.cause = b, 0, nil
	err := c.raw.Read(c.try)
	c.p = nil
	switch {
	case err != nil:
		return 0, err //nolint:wrapcheck // callers look for deadlines
	case c.cause != nil:
		return 0, c.cause
	case c.n == 0:
		return 0, io.EOF
	}
	return c.n, nil
}

func (c *Plain) attempt(fd uintptr) bool {
	n, err := readNow(int(fd), c.p)
	if err == syscall.EAGAIN { //nolint:errorlint // it comes as it is
		c.pool.waits.Add(1)
		return false
	}
	c.n, c.cause = max(n, 0), err
	return true
}

// Write sends all of b.
func (c *Plain) Write(b []byte) (int, error) { return c.pool.writeAll(c.TCPConn, c.raw, b) }

// Quiet reports whether the connection is open, and nothing has come that was not
// read.
func (c *Plain) Quiet() bool {
	c.quiet = false
	return c.raw != nil && c.raw.Control(c.look) == nil && c.quiet
}

func (c *Plain) peek(fd uintptr) {
	for {
		//nolint:gosec // as in quickCall
		_, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&c.peeked)), 1, syscall.MSG_PEEK|syscall.MSG_DONTWAIT, 0, 0)
		if errno != syscall.EINTR {
			c.quiet = errno == syscall.EAGAIN
			return
		}
	}
}

// Reset ends both directions at once: the peer sees RST.
func (c *Plain) Reset() {
	_ = c.SetLinger(0) // fails only on a closed connection
	_ = c.Close()
}

// Unwrap is the connection below.
func (c *Plain) Unwrap() *net.TCPConn { return c.TCPConn }
