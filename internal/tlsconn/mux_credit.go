package tlsconn

import (
	"encoding/binary"
	"time"
)

// arrives counts what has come; it reports whether it was allowed.
func (s *Stream) arrives(n int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.room -= n
	return s.room >= 0 && !s.ended
}

// took counts what has been taken off the stream, and lets the peer send more.
// Callers hold mu.
func (s *Stream) took(n int) {
	s.taken += n
	if s.taken < s.window/2 || s.ended || s.err != nil {
		return
	}
	give := s.taken
	s.bulky(s.window)
	pool := s.mux.in.pool
	switch {
	case s.queued == 0 && s.window < mostWindow && pool.lend(int64(s.window), pool.limit()/2):
		give += s.window
		s.lent += s.window
		s.window *= 2
	case s.queued > 0 && s.lent > 0: // the reader is slow: it gets half of it back next time
		less := min(s.window/2, s.lent, give)
		give -= less
		s.window -= less
		s.lent -= less
		pool.lent.Add(-int64(less))
	}
	s.taken = 0
	if give == 0 {
		return
	}
	s.room += give
	var b [creditLen]byte
	binary.BigEndian.PutUint32(b[:], uint32(give))
	s.mux.out.control(frameCredit, s.id, b[:])
}

// allow adds credit from the peer. It reports whether it is for something that was
// sent, and whether it is as much as is sensible.
func (s *Stream) allow(n uint32) (moved, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n == 0 || n > maxAhead || s.credit+int(n) > maxAhead {
		return false, false
	}
	s.credit += int(n)
	moved, s.unpaid = s.unpaid, false
	s.bulky(int(n))
	s.change.Broadcast()
	return moved, true
}

// bulky notes that the stream moves much, if n is the size of a window that says so.
func (s *Stream) bulky(n int) {
	if n >= mostWindow/4 {
		s.mux.mu.Lock()
		defer s.mux.mu.Unlock()
		s.mux.bulk = time.Now()
	}
}

// release gives back what the window has borrowed. Callers hold mu.
func (s *Stream) release() {
	if s.lent > 0 {
		s.mux.in.pool.lent.Add(-int64(s.lent))
		s.lent = 0
	}
}
