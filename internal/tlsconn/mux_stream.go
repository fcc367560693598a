package tlsconn

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Stream is one of the streams of a [Mux]. Read and Write may be used by one goroutine
// each at the same time. It ends as a TCP connection does: CloseWrite ends our
// direction, Close what is left, and what ends early is seen as a reset.
type Stream struct {
	mux  *Mux
	id   uint32
	born time.Time

	mu      sync.Mutex
	change  sync.Cond
	waiting bool // somebody waits in Read

	queue    []chunk // has come, and nobody has taken it
	queued   int     // bytes
	window   int     // what may be on its way
	room     int     // of it, what the peer may still send
	taken    int     // since credit was given last
	lent     int     // of window, what counts against the limit of the Pool
	ended    bool    // the peer has ended its direction
	deadline time.Time
	timer    *time.Timer

	to      syscall.RawConn // where Deliver delivers
	dst     *net.TCPConn
	pumping bool // a goroutine delivers
	moved   func(n int)
	done    func(error)

	credit  int  // bytes that may be sent
	unpaid  bool // something was sent since credit came last
	over    bool // our direction has ended
	dropped bool // nobody wants what comes
	since   time.Time
	err     error

	sending atomic.Int32 // who is in Write
	shut    atomic.Bool  // nothing may be sent any more; read under the lock of the writer
}

// chunk is a piece of a queue.
type chunk struct {
	buf  *buffer
	r, e int
}

// Mux is the connection that the stream is one of.
func (s *Stream) Mux() *Mux { return s.mux }

// put copies p into the queue. Callers hold mu.
func (s *Stream) put(p []byte) {
	s.queued += len(p)
	for len(p) > 0 {
		last := len(s.queue) - 1
		if last < 0 || s.queue[last].e == len(s.queue[last].buf.mem) {
			c := one
			if len(p) <= smallLen {
				c = small
			}
			s.queue = append(s.queue, chunk{buf: s.mux.in.pool.take(c)})
			last++
		}
		c := &s.queue[last]
		n := copy(c.buf.mem[c.e:], p)
		c.e += n
		p = p[n:]
	}
}

// shift takes the first chunk from the queue. Callers hold mu.
func (s *Stream) shift() chunk {
	c := s.queue[0]
	s.queue[0] = chunk{}
	if s.queue = s.queue[1:]; len(s.queue) == 0 {
		s.queue = nil
	}
	return c
}

// endOf notes that the peer has ended its direction; false if it had.
func (s *Stream) endOf() bool {
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		return false
	}
	s.ended = true
	var done func(error)
	if s.to != nil && !s.pumping && s.queued == 0 {
		done, s.done = s.done, nil
	}
	last := s.over
	if last {
		s.release()
	}
	s.change.Broadcast()
	s.mu.Unlock()
	if last {
		s.leave()
	}
	if done != nil {
		done(nil)
	}
	return true
}

// leave takes the stream off the connection.
func (s *Stream) leave() {
	s.mu.Lock()
	room := s.room
	if s.ended {
		room = 0
	}
	s.mu.Unlock()
	m := s.mux
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.streams[s.id] != s {
		return
	}
	m.late += room
	if delete(m.streams, s.id); len(m.streams) == 0 {
		m.idle = time.Now()
	}
}

// abort ends the stream here, whatever is left of it.
func (s *Stream) abort(err error) {
	s.mu.Lock()
	if s.err != nil || (s.ended && s.over && s.queued == 0 && !s.pumping) {
		s.mu.Unlock()
		return
	}
	s.err = err
	s.shut.Store(true)
	if !s.pumping {
		s.drop()
	}
	s.release()
	done := s.done
	s.done = nil
	s.change.Broadcast()
	s.mu.Unlock()
	if done != nil {
		done(err)
	}
}

// drop forgets what is in the queue. Callers hold mu.
func (s *Stream) drop() {
	for len(s.queue) > 0 {
		s.mux.in.pool.put(s.shift().buf)
	}
	s.queued = 0
}

// wake wakes the reader. Callers hold mu.
func (s *Stream) wake() {
	if s.waiting {
		s.change.Broadcast()
	}
}

// Read returns what is there, and waits if nothing is.
func (s *Stream) Read(p []byte) (int, error) {
	s.mu.Lock()
	if err := s.await(); err != nil {
		s.mu.Unlock()
		return 0, err
	}
	n := 0
	for n < len(p) && len(s.queue) > 0 {
		c := &s.queue[0]
		part := copy(p[n:], c.buf.mem[c.r:c.e])
		c.r += part
		n += part
		if c.r == c.e {
			s.mux.in.pool.put(s.shift().buf)
		}
	}
	s.queued -= n
	s.took(n)
	s.mu.Unlock()
	_ = s.mux.out.credits() // who comes next meets the error
	return n, nil
}

// Queued reports whether something has come that nobody has read.
func (s *Stream) Queued() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.queued > 0
}

// await waits until something is in the queue. Callers hold mu.
func (s *Stream) await() error {
	if s.queued > 0 {
		return nil
	}
	err := s.arrival()
	if s.timer != nil {
		s.timer.Stop()
	}
	return err
}

func (s *Stream) arrival() error {
	for s.queued == 0 {
		switch {
		case s.err != nil:
			return s.err
		case s.dropped:
			return net.ErrClosed
		case s.ended:
			return io.EOF
		case !s.deadline.IsZero():
			left := time.Until(s.deadline)
			if left <= 0 {
				return os.ErrDeadlineExceeded
			}
			s.alarm(left)
		}
		s.waiting = true
		s.change.Wait()
		s.waiting = false
	}
	return nil
}

// alarm has the reader look again after some time. Callers hold mu.
func (s *Stream) alarm(after time.Duration) {
	if s.timer != nil {
		s.timer.Reset(after)
		return
	}
	s.timer = time.AfterFunc(after, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.wake()
	})
}

// copyTo writes what comes, up to left bytes, to dst.
func (s *Stream) copyTo(dst io.Writer, left int64, moved func(n int)) (taken int64, err error) {
	sock := rawConn(dst)
	for taken < left {
		s.mu.Lock()
		if err := s.await(); err != nil {
			s.mu.Unlock()
			return taken, readError(err)
		}
		var c chunk
		if first := s.queue[0]; int64(first.e-first.r) <= left-taken {
			c = s.shift()
		} else { // more than was asked for
			c = chunk{buf: s.mux.in.pool.take(classFor(int(left - taken))), e: int(left - taken)}
			copy(c.buf.mem, first.buf.mem[first.r:first.r+c.e])
			s.queue[0].r += c.e
		}
		n := c.e - c.r
		s.queued -= n
		s.mu.Unlock()
		taken += int64(n)
		werr := s.mux.in.pool.write(dst, sock, c.buf.mem[c.r:c.e])
		s.mux.in.pool.put(c.buf)
		s.mu.Lock()
		s.took(n)
		s.mu.Unlock()
		if werr != nil {
			return taken, sinkError(werr)
		}
		moved(n)
		if err := s.mux.out.credits(); err != nil {
			return taken, readError(err)
		}
	}
	return taken, nil
}

// may waits until something may be sent, and returns how much.
func (s *Stream) may() (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.err != nil:
			return 0, s.err
		case s.over:
			return 0, errEnded
		case s.credit > 0:
			return s.credit, nil
		}
		s.change.Wait()
	}
}

// send sends n bytes that stand in the slots of b, behind room for heads. It must be
// as much as may says, at most.
func (s *Stream) send(b *buffer, n int) error {
	if err := s.spend(n); err != nil {
		return err
	}
	return s.why(s.mux.out.send(s, b, n))
}

// spend takes from the credit what is sent now.
func (s *Stream) spend(n int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.err != nil:
		return s.err
	case s.over:
		return errEnded
	}
	s.credit -= n
	s.unpaid = true
	return nil
}

// why says what has ended a stream, if that is why something could not be sent.
func (s *Stream) why(err error) error {
	if errors.Is(err, errEnded) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.err != nil {
			return s.err
		}
	}
	return err
}

// Write sends p, whole, as far as the peer allows at once.
func (s *Stream) Write(p []byte) (int, error) {
	s.sending.Add(1)
	defer s.sending.Add(-1)
	sent := 0
	for sent < len(p) {
		most, err := s.may()
		if err != nil {
			return sent, err
		}
		part := p[sent:min(len(p), sent+most)]
		var n int
		if len(part) <= frameRoom {
			n = len(part)
			err = s.sendFrame(part)
		} else {
			b := s.mux.in.pool.get(classForPlain(len(part)))
			for i := range b.class.slots() {
				n += copy(b.slot(i)[frameLen:], part[n:])
			}
			err = s.send(b, n)
			s.mux.in.pool.put(b)
		}
		if err != nil {
			return sent, err
		}
		sent += n
	}
	return sent, nil
}

func (s *Stream) sendFrame(p []byte) error {
	if err := s.spend(len(p)); err != nil {
		return err
	}
	if err := s.mux.out.queue(s, p); err != nil {
		return s.why(err)
	}
	return s.mux.out.flush()
}

// CloseWrite ends our direction.
func (s *Stream) CloseWrite() error {
	if err := s.finish(); err != nil {
		return fmt.Errorf("end the stream: %w", err)
	}
	if err := s.mux.out.flush(); err != nil {
		return fmt.Errorf("end the stream: %w", err)
	}
	return nil
}

func (s *Stream) finish() error {
	s.mu.Lock()
	if s.err != nil || s.over {
		err := s.err
		s.mu.Unlock()
		return err
	}
	s.over = true
	s.shut.Store(true)
	s.change.Broadcast() // who waits to send more
	last := s.ended
	if last {
		s.release()
	}
	s.mu.Unlock()
	s.mux.out.control(frameEnd, s.id, nil)
	if last {
		s.leave()
	}
	return nil
}

// Close ends what has not ended: our direction as it should if the peer has ended its
// own and nobody is writing, and otherwise at once, as what ends early must not look as if it were whole. If
// ours has ended, what still comes is refused. It doesn't wait.
func (s *Stream) Close() error {
	s.mu.Lock()
	over, ended, queued := s.over, s.ended, s.queued > 0 && !s.pumping && s.to == nil
	if over && !ended && !queued && s.err == nil {
		s.dropped, s.since = true, time.Now()
		s.change.Broadcast()
	}
	s.mu.Unlock()
	switch {
	case queued, !over && !ended, !over && s.sending.Load() > 0:
		s.Reset()
	case !over:
		_ = s.finish() // the connection may be gone
		s.mux.out.kick()
	}
	return nil
}

// Reset ends both directions at once: the other application sees a reset. It doesn't
// wait.
func (s *Stream) Reset() {
	s.mu.Lock()
	gone := s.err != nil || (s.over && s.ended)
	s.mu.Unlock()
	s.abort(net.ErrClosed)
	if gone {
		return
	}
	s.leave()
	s.mux.out.control(frameReset, s.id, nil)
	s.mux.out.kick()
}

// LocalAddr is our end of the connection.
func (s *Stream) LocalAddr() net.Addr { return s.mux.conn.raw.LocalAddr() }

// RemoteAddr is the peer's end.
func (s *Stream) RemoteAddr() net.Addr { return s.mux.conn.raw.RemoteAddr() }

// SetReadDeadline sets when Read gives up.
func (s *Stream) SetReadDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deadline = t
	s.wake()
	return nil
}

// SetDeadline sets that of reads; writes have none.
func (s *Stream) SetDeadline(t time.Time) error { return s.SetReadDeadline(t) }

// SetWriteDeadline fails: a stream is cut by Reset.
func (s *Stream) SetWriteDeadline(time.Time) error {
	return errors.New("a stream has no deadline for writes")
}
