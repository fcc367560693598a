package h2

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	smallRead = 4 << 10  // held while a connection is quiet that can't be waited for without memory
	largeRead = 64 << 10 // otherwise
	queueLen  = 16 << 10 // of a queue, at first
	longQueue = maxQueue + largeRead
	queueRoom = 2 << 10 // for what is not the other side's
)

// Buffers are memory that relays share. The zero value is ready.
type Buffers struct{ small, large, queues, long sync.Pool }

// side is one of the two connections. Its reader's fields belong to the goroutine
// that reads it, the others to who holds Relay.mu.
type side struct {
	conn           Conn
	client         bool // we are the client on it
	pools          *Buffers
	received, sent *atomic.Int64

	// of the reader
	first []byte // what was read before
	small *[smallRead]byte
	large *[largeRead]byte
	r, w  int
	full  bool            // the last read filled it
	raw   syscall.RawConn // of a TCP connection; else nil
	try   func(fd uintptr) bool
	n     int // of the read that is going on
	cause error
	block []byte
	parts int   // frames that block is of
	head  frame // of the head that has begun

	out      []byte // to be written
	run      []byte // to be written after out, still where it was read: of the other side's buffer
	writing  bool   // by whom also what is appended meanwhile is written
	helping  bool   // a goroutine is on its way to write
	fin      bool   // to be ended once all is written
	finished bool
	failed   error // of the last write

	preface bool // has been read, or said
	greeted bool // SETTINGS have been sent
	early   bool // before the application's were known; not yet acknowledged
	heard   bool // SETTINGS have come
	unacked int  // SETTINGS passed on to this side that it has not acknowledged
	connect bool // it takes extended CONNECT; of the application
	window  int64
	credit  uint32 // of the connection, to be given back

	enc encoder
	dec decoder
}

func (s *side) start(pools *Buffers, c Conn, first []byte) {
	s.pools, s.first = pools, first
	s.window = defaultWindow
	s.use(c)
	s.enc.start()
	s.dec.start()
}

// use sets the connection, before it is read.
func (s *side) use(c Conn) {
	s.conn = c
	if tcp, ok := c.(*net.TCPConn); ok {
		if raw, err := tcp.SyscallConn(); err == nil {
			s.raw, s.try = raw, s.attempt
		}
	}
}

func (s *side) space() []byte {
	switch {
	case s.large != nil:
		return s.large[:]
	case s.small != nil:
		return s.small[:]
	}
	return nil
}

// bytes are what was read and not used.
func (s *side) bytes() []byte { return s.space()[s.r:s.w] }

// take uses n bytes up.
func (s *side) take(n int) {
	if s.r += n; s.r == s.w {
		s.r, s.w = 0, 0
	}
}

// fill reads once. While nothing comes on a TCP connection it holds no buffer unless
// part of a frame is in it, and another holds a small one.
func (s *side) fill() error {
	if s.raw != nil && len(s.first) == 0 {
		return s.fillRaw()
	}
	if s.large != nil && s.r == s.w && !s.full {
		s.pools.large.Put(s.large)
		s.large = nil
	}
	if s.r > 0 {
		s.w = copy(s.space(), s.bytes())
		s.r = 0
	}
	if s.small == nil && s.large == nil {
		var ok bool
		if s.small, ok = s.pools.small.Get().(*[smallRead]byte); !ok {
			s.small = new([smallRead]byte)
		}
	}
	if s.small != nil && (s.w == smallRead || s.full) {
		s.grow()
	}
	free := s.space()[s.w:]
	if len(s.first) > 0 {
		n := copy(free, s.first)
		s.first = s.first[n:]
		s.w += n
		s.full = n == len(free)
		s.received.Add(int64(n))
		return nil
	}
	n, err := s.conn.Read(free)
	s.w += n
	s.full = n == len(free)
	s.received.Add(int64(n))
	if n > 0 {
		return nil // an error comes again
	}
	return err //nolint:wrapcheck // callers look for io.EOF
}

// fillRaw is fill for a TCP connection.
func (s *side) fillRaw() error {
	if s.small != nil {
		s.grow()
	}
	if s.r > 0 {
		s.w = copy(s.space(), s.bytes())
		s.r = 0
	}
	s.n, s.cause = 0, nil
	s.drop()
	if err := s.raw.Read(s.try); err != nil {
		return err //nolint:wrapcheck // callers look for deadlines
	}
	s.w += s.n
	s.received.Add(int64(s.n))
	switch {
	case s.n > 0:
		return nil
	case s.cause != nil:
		return s.cause
	}
	return io.EOF
}

// attempt is one try to read.
func (s *side) attempt(fd uintptr) bool {
	if s.large == nil {
		var ok bool
		if s.large, ok = s.pools.large.Get().(*[largeRead]byte); !ok {
			s.large = new([largeRead]byte)
		}
	}
	for {
		n, err := unix.Read(int(fd), s.large[s.w:])
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			s.drop()
			return false
		default:
			s.n, s.cause = max(n, 0), err
			return true
		}
	}
}

// drop gives an empty large buffer back.
func (s *side) drop() {
	if s.large != nil && s.w == 0 {
		s.pools.large.Put(s.large)
		s.large = nil
	}
}

func (s *side) grow() {
	var ok bool
	if s.large, ok = s.pools.large.Get().(*[largeRead]byte); !ok {
		s.large = new([largeRead]byte)
	}
	s.w = copy(s.large[:], s.small[s.r:s.w])
	s.r = 0
	s.pools.small.Put(s.small)
	s.small = nil
}

// release gives all memory back.
func (s *side) release() {
	if s.small != nil {
		s.pools.small.Put(s.small)
	}
	if s.large != nil {
		s.pools.large.Put(s.large)
	}
	s.small, s.large, s.r, s.w = nil, nil, 0, 0
	s.recycle(s.out)
	s.out = nil
}

// room is the queue, to append to; what is to be written from where it was read
// comes before.
func (s *side) room() []byte {
	if s.out == nil {
		q, ok := s.pools.queues.Get().(*[queueLen]byte)
		if !ok {
			q = new([queueLen]byte)
		}
		s.out = q[:0]
	}
	if !s.client && !s.greeted { // nothing may come before SETTINGS
		s.greeted, s.early = true, true
		first := appendSetting(appendSetting(nil, settingMaxStreams, earlyStreams), settingMaxList, maxList)
		s.out = append(appendHead(s.out, len(first), frameSettings, 0, 0), first...)
	}
	if cap(s.out) == queueLen && len(s.out)+len(s.run)+queueRoom > queueLen {
		q, ok := s.pools.long.Get().(*[longQueue]byte)
		if !ok {
			q = new([longQueue]byte)
		}
		short := s.out
		s.out = append(q[:0], short...)
		s.recycle(short)
	}
	if len(s.run) > 0 {
		s.out = append(s.out, s.run...)
		s.run = nil
	}
	return s.out
}

func (s *side) recycle(b []byte) {
	switch cap(b) {
	case queueLen:
		s.pools.queues.Put((*[queueLen]byte)(b[:queueLen]))
	case longQueue:
		s.pools.long.Put((*[longQueue]byte)(b[:longQueue]))
	}
}

// pass queues a frame of the other side's buffer without copying it, if it follows
// what is queued so.
func (s *side) pass(raw []byte) {
	if n := len(s.run); n > 0 {
		if grown := s.run[:n:cap(s.run)]; cap(grown) >= n+len(raw) && &grown[:n+1][n] == &raw[0] {
			s.run = grown[:n+len(raw)]
			return
		}
		s.out = s.room()
	}
	s.run = raw[:len(raw):cap(raw)]
}

// flush writes what is queued for s, unless somebody does already. Callers hold mu,
// which is released meanwhile.
func (r *Relay) flush(s *side) {
	if s.writing || s.conn == nil {
		if len(s.run) > 0 {
			s.out = s.room()
		}
		return
	}
	s.writing = true
	for s.failed == nil && len(s.out)+len(s.run) > 0 {
		r.writeRound(s)
	}
	if s.failed != nil { // nobody will take it
		s.recycle(s.out)
		s.out, s.run = nil, nil
	}
	if s.fin && !s.finished && s.failed == nil {
		s.finished = true
		r.mu.Unlock()
		_ = s.conn.CloseWrite() // the peer may be gone, which is just as well
		r.mu.Lock()
	}
	s.writing = false
	r.wake.Broadcast()
}

func (r *Relay) writeRound(s *side) {
	if len(s.run) > 0 && len(s.out) > 0 && len(s.out)+len(s.run) <= cap(s.out) {
		s.out = s.room() // copying is cheaper than another write
	}
	out, run := s.out, s.run
	s.out, s.run = nil, nil
	r.mu.Unlock()
	var err error
	for _, b := range [...][]byte{out, run} {
		if len(b) > 0 && err == nil {
			var n int
			n, err = s.conn.Write(b)
			s.sent.Add(int64(n))
		}
	}
	r.mu.Lock()
	s.recycle(out)
	if err != nil {
		r.writeFailed(s, err)
	}
}

// writeFailed notes that a side takes no more.
func (r *Relay) writeFailed(s *side, err error) {
	s.failed = fmt.Errorf("write: %w", err)
	s.recycle(s.out)
	s.out, s.run = nil, nil
	if s == &r.down {
		r.over = true
		reset(r.cfg.Client)
		if r.up.conn != nil {
			reset(r.up.conn)
		}
		return
	}
	// The application may have said why before it went.
	_ = s.conn.SetReadDeadline(r.cfg.Now().Add(lingerTime)) // a closed socket fails at the read
}

// kick has what is queued for s written by a goroutine of its own, if nobody does:
// the caller must not wait for s.
func (r *Relay) kick(s *side) {
	if s.writing || s.helping || r.over || s.conn == nil || s.failed != nil {
		return
	}
	if len(s.out)+len(s.run) == 0 && (!s.fin || s.finished) {
		return
	}
	if len(s.run) > 0 {
		s.out = s.room()
	}
	s.helping = true
	r.work.Go(func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		s.helping = false
		r.flush(s)
	})
}

// backPressure waits until what is queued for s is not too much. Callers hold mu.
func (r *Relay) backPressure(s *side) {
	for len(s.out) > maxQueue && (s.writing || s.helping) && s.failed == nil && !r.over {
		r.wake.Wait()
	}
}
