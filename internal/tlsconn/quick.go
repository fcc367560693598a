package tlsconn

import (
	"io"
	"net"
	"os"
	"syscall"
	"unsafe"
)

// quickLen is up to how many bytes are read or written with a quick call.
//
// Such a call doesn't tell Go's scheduler: it costs less, and above all it doesn't
// wake the runtime's monitor, which would then look around every 20 µs and compete
// for the core. A socket that doesn't block is done in microseconds; larger pieces
// may take longer, and go the ordinary way.
const quickLen = oneLen

// quickCall is read(2) or write(2) of at least one byte, without waiting.
func quickCall(trap, fd uintptr, p []byte) (int, syscall.Errno) {
	for {
		//nolint:gosec // as package syscall does it, which has no other way to make a raw call
		n, _, errno := syscall.RawSyscall(trap, fd, uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
		switch errno {
		case 0:
			return int(n), 0
		case syscall.EINTR:
		default:
			return 0, errno
		}
	}
}

// nothingThere reports whether a socket has neither bytes nor an end or an error to read.
func nothingThere(fd uintptr) bool {
	var b [1]byte
	for {
		//nolint:gosec // see quickCall
		_, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&b[0])), 1, syscall.MSG_PEEK|syscall.MSG_DONTWAIT, 0, 0)
		if errno != syscall.EINTR {
			return errno == syscall.EAGAIN
		}
	}
}

// quickWrite is one write with quick calls. Connections share them, as buffers.
type quickWrite struct {
	try   func(fd uintptr) bool // a field so that it is made once
	rest  []byte
	cause error
}

// write writes all of b to a socket, and waits while there is no room. What is
// not small, or has no raw, goes the ordinary way.
func (p *Pool) write(to io.Writer, raw syscall.RawConn, b []byte) error {
	_, err := p.writeAll(to, raw, b)
	return err
}

// writeAll is write, and says how much went out.
func (p *Pool) writeAll(to io.Writer, raw syscall.RawConn, b []byte) (int, error) {
	if raw == nil || len(b) == 0 || len(b) > quickLen {
		return to.Write(b) //nolint:wrapcheck // callers wrap
	}
	q, ok := p.quick.Get().(*quickWrite)
	if !ok {
		q = &quickWrite{}
		q.try = q.attempt
	}
	q.rest, q.cause = b, nil
	err := raw.Write(q.try)
	if err == nil {
		err = q.cause
	}
	sent := len(b) - len(q.rest)
	q.rest, q.cause = nil, nil
	p.quick.Put(q)
	return sent, err //nolint:wrapcheck // callers wrap
}

func (q *quickWrite) attempt(fd uintptr) bool {
	for len(q.rest) > 0 {
		n, errno := quickCall(syscall.SYS_WRITE, fd, q.rest)
		switch errno {
		case 0:
			q.rest = q.rest[n:]
		case syscall.EAGAIN:
			return false
		default:
			q.cause = os.NewSyscallError("write", errno)
			return true
		}
	}
	return true
}

// rawConn is the socket below a plain connection, or nil.
func rawConn(w io.Writer) syscall.RawConn {
	c, ok := w.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := c.SyscallConn()
	if err != nil { // which never happens on a connection that was made
		return nil
	}
	return raw
}
