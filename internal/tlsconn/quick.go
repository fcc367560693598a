package tlsconn

import (
	"io"
	"net"
	"os"
	"syscall"
	"unsafe"
)

// Quick calls don't tell Go's scheduler: they cost less, and above all they don't wake
// the runtime's monitor, which would then look around every 20 µs and compete for the
// core, and give the processor of whoever is still in the kernel to another thread. A
// socket that doesn't block is done in microseconds, with half a megabyte in a fifth
// of a millisecond.
//
// But the monitor also sees to it that nobody keeps a processor for himself. So who
// reads large pieces again and again, while nobody at all has to wait, wakes it every
// so many calls: it is then awake for as long as that lasts.
const (
	quickLen  = oneLen // up to so many bytes are small
	quickRuns = 4
)

// run counts large reads since anybody has waited. Who waits leaves a processor to
// others, and the network is looked at.
type run struct {
	calls int
	waits uint32 // that there had been
}

// reads is called before a read of so many bytes at most.
func (r *run) reads(p *Pool, n int) {
	if n <= quickLen {
		return
	}
	if waits := p.waits.Load(); waits != r.waits {
		r.calls, r.waits = 0, waits
	}
	if r.calls++; r.calls%quickRuns == 0 {
		// An ordinary call wakes the monitor. It is a short one, since from a longer one the
		// monitor would take the processor away.
		_, _, _ = syscall.Syscall(syscall.SYS_GETPID, 0, 0, 0)
	}
}

// quickCall is recvfrom(2) or sendto(2) of at least one byte, without waiting. They are
// what read(2) and write(2) are for a socket, but for what the kernel does for files.
func quickCall(trap, fd uintptr, p []byte) (int, syscall.Errno) {
	for {
		//nolint:gosec // as package syscall does it, which has no other way to make a raw call
		n, _, errno := syscall.RawSyscall6(trap, fd, uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), syscall.MSG_DONTWAIT|syscall.MSG_NOSIGNAL, 0, 0)
		switch errno {
		case 0:
			return int(n), 0
		case syscall.EINTR:
		default:
			return 0, errno
		}
	}
}

// readNow reads from a socket, without waiting.
func readNow(fd int, p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, errno := quickCall(syscall.SYS_RECVFROM, uintptr(fd), p)
	if errno != 0 {
		return 0, errno
	}
	return n, nil
}

// vector is what readv(2) and writev(2) are told of pieces.
type vector [maxPieces]syscall.Iovec

// of makes one of pieces that aren't empty.
func (v *vector) of(pieces [][]byte) []syscall.Iovec {
	for i, p := range pieces {
		v[i].Base = &p[0]
		v[i].SetLen(len(p))
	}
	return v[:len(pieces)]
}

// readvNow is readv(2), without waiting, into at least one piece.
func readvNow(fd int, v *vector, pieces [][]byte) (int, error) {
	n, errno := quickVector(syscall.SYS_READV, uintptr(fd), v.of(pieces))
	clear(v[:len(pieces)])
	if errno != 0 {
		return 0, errno
	}
	return n, nil
}

// quickVector is readv(2) or writev(2) of at least one byte, without waiting.
func quickVector(trap, fd uintptr, v []syscall.Iovec) (int, syscall.Errno) {
	for {
		//nolint:gosec // see quickCall
		n, _, errno := syscall.RawSyscall(trap, fd, uintptr(unsafe.Pointer(&v[0])), uintptr(len(v)))
		switch errno {
		case 0:
			return int(n), 0
		case syscall.EINTR:
		default:
			return 0, errno
		}
	}
}

// quickWrite is one write with quick calls. Connections share them, as buffers.
type quickWrite struct {
	pool   *Pool
	try    func(fd uintptr) bool // fields so that they are made once
	tryAll func(fd uintptr) bool
	rest   []byte
	pieces [][]byte
	vector vector
	cause  error
}

// write writes all of b to a socket, and waits while there is no room. What has no raw
// goes the ordinary way.
func (p *Pool) write(to io.Writer, raw syscall.RawConn, b []byte) error {
	_, err := p.writeAll(to, raw, b)
	return err
}

// writeAll is write, and says how much went out.
func (p *Pool) writeAll(to io.Writer, raw syscall.RawConn, b []byte) (int, error) {
	if raw == nil || len(b) == 0 {
		return to.Write(b) //nolint:wrapcheck // callers wrap
	}
	q := p.quickWrite()
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

// writeVector is write of pieces, none of which is empty, with one call if there is
// room. The pieces are changed.
func (p *Pool) writeVector(to io.Writer, raw syscall.RawConn, pieces net.Buffers) error {
	q := p.quickWrite()
	if raw == nil || len(pieces) > len(q.vector) {
		p.quick.Put(q)
		_, err := pieces.WriteTo(to)
		return err //nolint:wrapcheck // callers wrap
	}
	q.pieces, q.cause = pieces, nil
	err := raw.Write(q.tryAll)
	if err == nil {
		err = q.cause
	}
	q.pieces, q.cause = nil, nil
	p.quick.Put(q)
	return err //nolint:wrapcheck // callers wrap
}

func (p *Pool) quickWrite() *quickWrite {
	q, ok := p.quick.Get().(*quickWrite)
	if !ok {
		q = &quickWrite{pool: p}
		q.try, q.tryAll = q.attempt, q.attemptAll
	}
	return q
}

func (q *quickWrite) attemptAll(fd uintptr) bool {
	for len(q.pieces) > 0 {
		n, errno := quickVector(syscall.SYS_WRITEV, fd, q.vector.of(q.pieces))
		clear(q.vector[:len(q.pieces)])
		switch errno {
		case 0:
			q.took(n)
		case syscall.EAGAIN:
			q.pool.waits.Add(1)
			return false
		default:
			q.cause = os.NewSyscallError("writev", errno)
			return true
		}
	}
	return true
}

// took drops the first n bytes of the pieces.
func (q *quickWrite) took(n int) {
	for len(q.pieces) > 0 && n >= len(q.pieces[0]) {
		n -= len(q.pieces[0])
		q.pieces = q.pieces[1:]
	}
	if n > 0 {
		q.pieces[0] = q.pieces[0][n:]
	}
}

func (q *quickWrite) attempt(fd uintptr) bool {
	for len(q.rest) > 0 {
		n, errno := quickCall(syscall.SYS_SENDTO, fd, q.rest)
		switch errno {
		case 0:
			q.rest = q.rest[n:]
		case syscall.EAGAIN:
			q.pool.waits.Add(1)
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
