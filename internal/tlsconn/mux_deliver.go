package tlsconn

import (
	"net"
	"os"
	"syscall"
)

// take takes what has come: it goes to where it is delivered to as far as that is
// possible without waiting, and else into the queue. The pieces are the caller's.
func (s *Stream) take(pieces net.Buffers, k *sink) {
	s.mu.Lock()
	switch {
	case s.err != nil:
		s.mu.Unlock()
		return
	case s.dropped:
		s.mu.Unlock()
		s.Reset() // as a closed socket does
		return
	}
	skip := 0
	if s.to != nil && !s.pumping && s.queued == 0 {
		n, err := k.write(s.to, pieces)
		if n > 0 {
			s.moved(n)
			s.took(n)
		}
		if err != nil {
			s.mu.Unlock()
			s.sunk(err)
			return
		}
		skip = n
	}
	for _, p := range pieces {
		if skip >= len(p) {
			skip -= len(p)
			continue
		}
		s.put(p[skip:])
		skip = 0
	}
	s.pump()
	s.wake()
	s.mu.Unlock()
}

// sunk ends a stream whose bytes nobody takes any more.
func (s *Stream) sunk(err error) {
	s.leave()
	s.abort(sinkError(err))
	s.mux.out.control(frameReset, s.id, nil)
	s.mux.out.kick()
}

// Deliver has what comes written to dst as it comes, by whoever reads the connection
// and without waiting for dst; it returns at once. moved is called after each write
// with the number of bytes, and done once: with nil when the peer has ended its
// direction and all is written, or with why that will not happen (net.ErrClosed when
// the stream was closed here). Neither may wait, nor read the stream.
//
// If Run has returned, nobody is left to wait for who would write: Deliver then writes
// what is left itself. That is only of a stream both of whose directions have ended.
func (s *Stream) Deliver(dst *net.TCPConn, moved func(n int), done func(error)) {
	raw, err := dst.SyscallConn()
	s.mu.Lock()
	if err == nil {
		err = s.err
	}
	if err != nil {
		s.mu.Unlock()
		done(err)
		return
	}
	if s.ended && s.queued == 0 {
		s.mu.Unlock()
		done(nil)
		return
	}
	s.to, s.dst, s.moved, s.done = raw, dst, moved, done
	alone := !s.pump()
	s.mu.Unlock()
	if alone {
		s.pour()
	}
}

// pump has a goroutine deliver what is in the queue; false if Run has returned, and the
// caller is to do it. Callers hold mu.
func (s *Stream) pump() bool {
	if s.to == nil || s.pumping || s.queued == 0 || s.err != nil {
		return true
	}
	s.pumping = true
	m := s.mux
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.alone {
		return false
	}
	m.helpers.Go(s.pour)
	return true
}

// pour delivers what is in the queue, until it is empty.
func (s *Stream) pour() {
	s.mu.Lock()
	for s.err == nil && s.queued > 0 {
		c := s.shift()
		s.mu.Unlock()
		n, err := s.mux.in.pool.writeAll(s.dst, s.to, c.buf.mem[c.r:c.e])
		s.mux.in.pool.put(c.buf)
		if n > 0 {
			s.moved(n)
		}
		s.mu.Lock()
		s.queued -= c.e - c.r
		s.took(n)
		if err != nil && s.err == nil {
			s.pumping = false
			s.mu.Unlock()
			s.sunk(err)
			return
		}
		s.mux.out.kick()
	}
	s.pumping = false
	if s.err != nil {
		s.drop()
		s.mu.Unlock()
		return
	}
	var done func(error)
	if s.ended {
		done, s.done = s.done, nil
	}
	s.mu.Unlock()
	if done != nil {
		done(nil)
	}
}

// sink is one attempt to write without waiting. Run has one.
type sink struct {
	try    func(fd uintptr) bool // a field so that it is made once
	pieces [][]byte
	vector vector
	n      int
	err    error
}

func (k *sink) init() { k.try = k.attempt }

// write returns how much the socket has taken. That it takes no more is no error.
func (k *sink) write(raw syscall.RawConn, pieces [][]byte) (int, error) {
	k.pieces, k.n, k.err = pieces, 0, nil
	err := raw.Write(k.try)
	k.pieces = nil
	if err == nil {
		err = k.err
	}
	return k.n, err
}

func (k *sink) attempt(fd uintptr) bool {
	var n int
	var errno syscall.Errno
	if len(k.pieces) == 1 {
		n, errno = quickCall(syscall.SYS_SENDTO, fd, k.pieces[0])
	} else {
		n, errno = quickVector(syscall.SYS_WRITEV, fd, k.vector.of(k.pieces))
		clear(k.vector[:len(k.pieces)])
	}
	if errno != 0 && errno != syscall.EAGAIN { // of which Pool.waits doesn't hear: whoever reads the connection goes on
		k.err = os.NewSyscallError("writev", errno)
	}
	k.n = n
	return true
}
