package tlsconn

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrSink is in errors of Copy and CopyN that are the destination's.
var ErrSink = errors.New("write")

// mergeBelow is how much content of a record is rather copied to where the last
// one's ends than written as a piece of its own.
const mergeBelow = 2 << 10

// Copy moves bytes from src to dst until src ends (nil) or either fails. After
// each write it calls moved with the number of bytes. While it waits for src it
// holds no buffer.
func (p *Pool) Copy(dst io.Writer, src io.Reader, moved func(n int)) error {
	_, err := p.copyTo(dst, src, math.MaxInt64, moved)
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// CopyN is Copy for the next n bytes; if src ends before, it returns
// io.ErrUnexpectedEOF. It also returns how many bytes it took from src, of which
// those that dst didn't take are lost.
func (p *Pool) CopyN(dst io.Writer, src io.Reader, n int64, moved func(n int)) (taken int64, err error) {
	if taken, err = p.copyTo(dst, src, n, moved); errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return taken, err
}

func (p *Pool) copyTo(dst io.Writer, src io.Reader, n int64, moved func(n int)) (taken int64, err error) {
	switch src := src.(type) {
	case *Conn:
		if src.records != nil {
			return src.records.in.copyTo(dst, n, moved)
		}
	case *Stream:
		return src.copyTo(dst, n, moved)
	}
	return p.source(src, n).copyTo(dst, moved)
}

// source is where a copy of at most n bytes reads plaintext.
func (p *Pool) source(src io.Reader, n int64) *source {
	from := &source{pool: p, left: n, top: largest}
	if s, ok := src.(*net.TCPConn); ok {
		if raw, err := s.SyscallConn(); err == nil { // it never fails on a connection that was made
			from.raw, from.try = raw, from.attempt
			return from
		}
	}
	from.src, from.top = src, one
	return from
}

func readError(err error) error {
	if errors.Is(err, io.EOF) {
		return io.EOF
	}
	return fmt.Errorf("read: %w", err)
}

// Those who read slowly get small buffers: what waits to be written is held.
const (
	slowWrite = 250 * time.Millisecond // a write that takes so long has a slow reader behind it
	slowFor   = 30 * time.Second       // which it counts as for so long
)

// pace notes how a destination takes what it is sent.
type pace struct{ began, until time.Time }

// top is the largest class that may be taken, if c may otherwise.
func (p *pace) top(c class) class {
	if c <= one || p.until.IsZero() {
		return c
	}
	if time.Now().Before(p.until) {
		return one
	}
	p.until = time.Time{}
	return c
}

// begin and end are called before and after the write of a buffer of a class.
func (p *pace) begin(c class) {
	if c > small { // a slow reader's data doesn't come in small pieces for long
		p.began = time.Now()
	}
}

func (p *pace) end(c class) {
	if c <= small {
		return
	}
	if now := time.Now(); now.Sub(p.began) >= slowWrite {
		p.until = now.Add(slowFor)
	}
}

func sinkError(err error) error { return fmt.Errorf("%w: %w", ErrSink, err) }

// copyTo is copy from this direction: it opens all records that are there, then
// writes them with one call.
func (r *reader) copyTo(dst io.Writer, left int64, moved func(n int)) (taken int64, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer r.settle()
	sock := rawConn(dst)
	for taken < left {
		pieces, size, err := r.gather(left - taken)
		taken += int64(size)
		if size > 0 {
			r.pace.begin(r.buf.class)
			werr := r.pool.writePieces(dst, sock, pieces)
			r.pace.end(r.buf.class)
			if werr != nil {
				if left == math.MaxInt64 {
					r.err = net.ErrClosed // nobody takes what else is there
				}
				return taken, sinkError(werr)
			}
			moved(size)
		}
		switch {
		case err != nil:
			return taken, readError(err)
		case size > 0 || taken == left:
			continue
		}
		r.top, r.most = r.pace.top(largest), 0
		if left-taken < thirtytwoLen {
			r.most = max(1, int(left-taken)+overhead-(r.e-r.r)) // what is left then fits in one record
		}
		if err := r.fill(); err != nil {
			return taken, readError(err)
		}
	}
	return taken, nil
}

// gather opens the whole records that are there, for up to most bytes. An error
// is of the record after the pieces.
func (r *reader) gather(most int64) (pieces net.Buffers, size int, err error) {
	if r.buf == nil {
		return nil, 0, r.err
	}
	pieces = r.buf.parts[:0]
	for int64(size) < most {
		if len(r.plain) > 0 {
			if len(pieces) == cap(pieces) {
				return pieces, size, nil
			}
			part := r.plain[:min(int64(len(r.plain)), most-int64(size))]
			r.plain = r.plain[len(part):]
			size += len(part)
			if last := len(pieces) - 1; last >= 0 && len(part) < mergeBelow {
				pieces[last] = append(pieces[last], part...) // in the buffer: over what has been opened
				continue
			}
			pieces = append(pieces, part)
			continue
		}
		_, there, err := r.open(nil)
		if err != nil || !there {
			return pieces, size, err
		}
	}
	return pieces, size, nil
}

func (p *Pool) writePieces(dst io.Writer, sock syscall.RawConn, pieces net.Buffers) error {
	if len(pieces) == 1 {
		return p.write(dst, sock, pieces[0])
	}
	return p.writeVector(dst, sock, pieces)
}

// source reads plaintext into the slots of buffers.
type source struct {
	pool *Pool
	raw  syscall.RawConn
	src  io.Reader // when it is no socket
	left int64
	head int   // room that each slot leaves before the content
	most int64 // of left, what may be read now

	buf   *buffer
	next  class
	top   class // largest class to take
	pace  pace
	run   run
	try   func(fd uintptr) bool
	n     int
	cause error
}

// copyTo reads and sends, until the end (io.EOF), an error or enough.
func (s *source) copyTo(dst io.Writer, moved func(n int)) (taken int64, err error) {
	var records *records
	var stream *Stream
	switch d := dst.(type) {
	case *Conn:
		records = d.records
	case *Stream:
		stream, s.head = d, frameLen
	}
	for s.left > 0 {
		s.most = s.left
		if stream != nil { // nothing is read that could not be sent
			may, err := stream.may()
			if err != nil {
				return taken, sinkError(err)
			}
			s.most = min(s.left, int64(may))
		}
		if err := s.fill(); err != nil {
			return taken, readError(err)
		}
		n := s.n
		s.left -= int64(n)
		taken += int64(n)
		s.pace.begin(s.buf.class)
		var err error
		if stream != nil {
			err = stream.send(s.buf, n)
		} else {
			err = s.send(dst, records, n)
		}
		s.pace.end(s.buf.class)
		s.giveBack()
		if err != nil {
			return taken, sinkError(err)
		}
		moved(n)
	}
	return taken, nil
}

// send sends what is in the buffer, as records if there are any.
func (s *source) send(dst io.Writer, r *records, n int) error {
	if r != nil {
		return r.out.send(s.buf, n)
	}
	return s.pool.writeSlots(dst, s.buf, n)
}

// fill reads once into a buffer and waits if nothing is there.
func (s *source) fill() error {
	s.n, s.cause = 0, nil
	s.next = min(s.next, s.pace.top(largest))
	var err error
	if s.src != nil {
		s.buf = s.pool.get(s.next)
		slot := s.buf.slot(0)[s.head:]
		s.n, s.cause = s.src.Read(slot[:min(int64(len(slot)), s.most)])
		s.adapt(len(slot))
	} else {
		err = s.raw.Read(s.try)
	}
	if s.n > 0 {
		return nil // an error comes again
	}
	s.giveBack()
	switch {
	case err != nil:
		return err //nolint:wrapcheck // callers wrap
	case s.cause != nil:
		return s.cause
	default:
		return io.EOF
	}
}

func (s *source) giveBack() {
	if s.buf != nil {
		s.pool.put(s.buf)
		s.buf = nil
	}
}

// attempt is one try to read. While there is nothing, no memory is held.
func (s *source) attempt(fd uintptr) bool {
	s.buf = s.pool.get(s.next)
	parts, room := s.buf.parts[:0], 0
	for i := range s.buf.class.slots() {
		slot := s.buf.slot(i)[s.head:]
		if int64(room+len(slot)) > s.most {
			slot = slot[:s.most-int64(room)]
		}
		if len(slot) == 0 {
			break
		}
		parts = append(parts, slot)
		room += len(slot)
	}
	s.run.reads(s.pool, room)
	var n int
	var err error
	if len(parts) == 1 {
		n, err = readNow(int(fd), parts[0])
	} else {
		n, err = readvNow(int(fd), &s.buf.vector, parts)
	}
	if errors.Is(err, unix.EAGAIN) {
		s.pool.waits.Add(1)
		s.giveBack()
		return false
	}
	s.n, s.cause = max(n, 0), err
	s.adapt(room)
	return true
}

// adapt chooses the class of the next read.
func (s *source) adapt(room int) {
	switch had := s.buf.class; {
	case s.n == room:
		s.next = min(had+1, s.top)
	case had > small && s.n <= (had-1).plain():
		s.next = had - 1
	default:
		s.next = had
	}
}

// plain is how much content fits.
func (c class) plain() int {
	if c == small {
		return smallLen - overhead
	}
	return c.slots() * maxPlain
}

// writeSlots writes n bytes that stand in the slots of b as they are.
func (p *Pool) writeSlots(dst io.Writer, b *buffer, n int) error {
	pieces := net.Buffers(b.parts[:0])
	for i := 0; n > 0; i++ {
		slot := b.slot(i)
		slot = slot[:min(n, len(slot))]
		pieces = append(pieces, slot)
		n -= len(slot)
	}
	return p.writePieces(dst, rawConn(dst), pieces)
}
