package tlsconn

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// Between two proxies that have agreed on [identity.ALPNStreams], one connection
// carries many streams at the same time. Each record is one frame: a byte that says
// what it is, three bytes with the number of the stream, then the content. The
// client numbers its streams from 1; the handshake opens the first one.
const (
	frameOpen   byte = 1 // from the client: the next stream begins; content is its first data
	frameData   byte = 2
	frameEnd    byte = 3 // this direction of the stream has ended
	frameReset  byte = 4 // both have, at once: what the other application must see as an abort
	frameCredit byte = 5 // so many bytes more may be sent: 4 bytes, big-endian
	frameLeave  byte = 6 // from the server, of stream 0: no stream will be taken after those on their way

	frameLen    = 4
	frameRoom   = maxPlain - frameLen // content of one frame
	lastStream  = 1<<24 - 1
	creditLen   = 4
	maxFreed    = 1 << 20  // what one frame of credit may give
	maxAhead    = 16 << 20 // what a peer may allow to be sent ahead, in all
	abortsMost  = 1000     // streams that a client aborts young, before it is told to leave; at twice that its connection ends
	abortsEach  = 100      // of them are forgotten each second
	youngFor    = time.Second
	aboutFrames = 8 << 10 // frames in a row that neither move a stream on nor begin or end one
)

// Windows: how much of a stream may be on its way before its reader has taken any.
// They begin small, grow while the reader keeps up and shrink when it doesn't.
const (
	firstWindow = 32 << 10
	mostWindow  = 1 << 20
)

// bulkFor is how long a connection counts as one that carries bulk after it was seen to.
const bulkFor = time.Second

// MaxStreams is how many streams one connection carries at a time.
const MaxStreams = 4096

// ErrStreams says that no further stream can be opened on a connection: it has ended,
// the peer takes no more, or there are too many.
var ErrStreams = errors.New("no further stream can be opened on this connection")

// errAborted says that the peer has ended a stream at once. It is what a TCP
// connection would say.
var errAborted = fmt.Errorf("the peer has aborted the stream: %w", syscall.ECONNRESET)

// Mux carries streams over one connection. [Mux.Run] reads it and must be running for
// anything to arrive. Whatever a stream's reader does, the others go on: Run waits
// for none of them.
type Mux struct {
	conn   *Conn
	in     *reader
	out    muxWriter
	client bool
	accept func(*Stream) // of the server

	mu      sync.Mutex
	streams map[uint32]*Stream
	last    uint32 // number of the stream that was opened last
	leaving bool   // no stream is opened any more
	closing bool   // Close was called
	err     error  // why it has ended
	alone   bool   // nobody waits for helpers any more: none may be started
	total   int64  // streams ever
	late    int    // bytes that may still come for streams that are over
	idle    time.Time
	bulk    time.Time // when a stream has last been seen to move much

	// Of the goroutine in Run.
	cur    *Stream // whose data stands in pieces
	pieces net.Buffers
	size   int
	sink   sink
	about  int       // frames in a row that moved nothing
	aborts int       // streams that were aborted young
	forgot time.Time // when some of them were forgotten last

	helpers sync.WaitGroup // goroutines that send or deliver what would have to wait
}

// Streams makes the connection one of many streams, if both sides have agreed to
// that in the handshake, and returns the first one; or nil twice. The connection is
// then the Mux's. A server's accept is called with each further stream, by Run,
// and must not wait.
func (c *Conn) Streams(accept func(*Stream)) (*Mux, *Stream) {
	if c.records == nil || !c.records.shared {
		return nil, nil
	}
	m := &Mux{conn: c, in: &c.records.in, client: c.records.in.client, accept: accept, streams: map[uint32]*Stream{}, idle: time.Now()}
	m.out.init(&c.records.out, &m.helpers)
	m.sink.init()
	return m, m.add(1)
}

// add makes the stream of a number. Callers hold mu, or nobody else knows the Mux.
func (m *Mux) add(id uint32) *Stream {
	s := &Stream{mux: m, id: id, born: time.Now(), credit: firstWindow, window: firstWindow, room: firstWindow}
	s.change.L = &s.mu
	m.streams[id] = s
	m.last = id
	m.total++
	return s
}

// Open opens a stream, as the client, and sends with it what can be read from first
// without waiting. It returns how much that was. On an error, which wraps ErrStreams,
// the server has seen nothing of the stream, and what was read from first is unsent.
func (m *Mux) Open(first *net.TCPConn) (s *Stream, sent int, unsent []byte, err error) {
	if m.Left() {
		return nil, 0, nil, ErrStreams
	}
	plain := m.in.pool.take(small)
	defer m.in.pool.put(plain)
	n, err := readThere(first, plain.mem[:smallLen-overhead-frameLen])
	if err != nil {
		return nil, 0, nil, fmt.Errorf("open a stream: %w", err)
	}
	if s, err = m.open(plain.mem[:n]); err != nil {
		return nil, 0, append(unsent, plain.mem[:n]...), err
	}
	return s, n, nil, nil
}

// readThere reads what is there. Neither an end nor an error is reported: whoever
// reads next meets it.
func readThere(c *net.TCPConn, p []byte) (int, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err //nolint:wrapcheck // callers wrap
	}
	n := 0
	err = raw.Read(func(fd uintptr) bool {
		n, _ = readNow(int(fd), p)
		return true
	})
	return max(n, 0), err //nolint:wrapcheck // callers wrap
}

func (m *Mux) open(first []byte) (*Stream, error) {
	m.mu.Lock()
	if m.err != nil || m.leaving || len(m.streams) >= MaxStreams || m.last == lastStream {
		m.mu.Unlock()
		return nil, ErrStreams
	}
	// Within the lock: streams must come in the order of their numbers. So this waits
	// for nobody: the reader needs the lock, and so do all who look for a connection.
	end, err := m.out.offer(frameOpen, m.last+1, first)
	if err != nil {
		m.mu.Unlock()
		return nil, fmt.Errorf("%w: %w", ErrStreams, err)
	}
	s := m.add(m.last + 1)
	s.credit -= len(first)
	s.unpaid = true
	m.mu.Unlock()
	if err := m.out.flush(); err != nil && !m.out.reached(end) {
		s.leave()
		return nil, fmt.Errorf("%w: %w", ErrStreams, err)
	}
	return s, nil // if the server may have seen it, its end is that of the connection
}

// Leave lets no further stream be opened. The server tells the client, from which
// streams may still be on their way. Streams that are open go on.
func (m *Mux) Leave() {
	m.mu.Lock()
	told := m.leaving
	m.leaving = true
	m.mu.Unlock()
	if !told && !m.client {
		m.out.control(frameLeave, 0, nil)
		m.out.kick()
	}
}

// Left reports whether no further stream can be opened: one side has said so, the
// numbers are used up, or the connection has ended.
func (m *Mux) Left() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.leaving || m.err != nil || m.last == lastStream
}

// Count is how many streams are open, how many there ever were, and since when none
// is.
func (m *Mux) Count() (open int, total int64, idle time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.streams), m.total, m.idle
}

// Expire resets the streams that were closed here before some time, after their own
// direction had ended, and that the peer has not ended: it may never do so.
func (m *Mux) Expire(before time.Time) {
	m.mu.Lock()
	var all []*Stream
	for _, s := range m.streams {
		all = append(all, s)
	}
	m.mu.Unlock()
	for _, s := range all {
		s.mu.Lock()
		long := s.dropped && s.since.Before(before)
		s.mu.Unlock()
		if long {
			s.Reset()
		}
	}
}

// Bulk reports whether a stream moves much: another connection is then better for
// those that move little.
func (m *Mux) Bulk() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return time.Since(m.bulk) < bulkFor
}

// Close ends the connection: with close_notify, after what is still to be sent, if no
// stream is open, and else at once, so that none looks as if it were whole. So does a
// second call. It doesn't wait.
func (m *Mux) Close() {
	m.mu.Lock()
	m.leaving = true
	quiet := len(m.streams) == 0 && m.err == nil && !m.closing
	m.closing = true
	m.mu.Unlock()
	if !quiet || !m.out.end() {
		m.conn.Reset()
	}
}

// Rest gives back what can be made again of a connection that is quiet.
func (m *Mux) Rest() { m.conn.Rest() }

// Run reads until the connection ends, and then ends every stream. It returns
// io.EOF for an end as it should be.
func (m *Mux) Run() error {
	err := m.read()
	m.out.stop(err)
	m.mu.Lock()
	m.err, m.leaving = err, true
	all := make([]*Stream, 0, len(m.streams))
	for _, s := range m.streams {
		all = append(all, s)
	}
	clear(m.streams)
	m.mu.Unlock()
	cause := err
	if errors.Is(err, io.EOF) {
		cause = io.ErrUnexpectedEOF // a stream that was open has not come to its end
	}
	for _, s := range all {
		s.abort(cause)
	}
	_ = m.conn.raw.Close()
	m.mu.Lock()
	m.alone = true
	m.mu.Unlock()
	m.helpers.Wait()
	return err
}

func (m *Mux) read() error {
	r := m.in
	r.mu.Lock()
	defer r.mu.Unlock()
	defer r.settle()
	for {
		for {
			_, there, err := r.open(nil)
			if err == nil && len(r.plain) > 0 {
				frame := r.plain
				r.plain = nil
				err = m.frame(frame)
			}
			if err != nil {
				m.deliver()
				return err
			}
			if !there {
				break
			}
		}
		m.deliver()
		m.out.kick()
		r.top, r.most = largest, 0
		if err := r.fill(); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				continue // nobody sets one
			}
			return err
		}
	}
}

// frame takes one. Data is only noted, so that what comes for one stream in a row is
// delivered with one call.
func (m *Mux) frame(f []byte) error {
	if len(f) < frameLen {
		return m.in.fail(alertDecodeError, "a frame without a stream")
	}
	what, id, content := f[0], binary.BigEndian.Uint32(f)&lastStream, f[frameLen:]
	switch what {
	case frameOpen:
		return m.opened(id, content)
	case frameLeave:
		if id != 0 || len(content) != 0 || !m.client {
			return m.in.fail(alertUnexpectedMessage, "a frame that only a server sends")
		}
		m.Leave()
		return nil
	}
	s, err := m.find(id)
	if err != nil {
		return err
	}
	if what == frameData && s == nil && m.tooLate(len(content)) {
		return nil
	}
	if m.about++; m.about > aboutFrames {
		return m.in.fail(alertUnexpectedMessage, "too many frames that move nothing")
	}
	switch {
	case what == frameData && s != nil:
		return m.data(s, content)
	case what == frameCredit && len(content) != creditLen, what == frameEnd && len(content) != 0, what == frameReset && len(content) != 0:
		return m.in.fail(alertDecodeError, fmt.Sprintf("a frame of type %d of a wrong length", what))
	case what == frameEnd:
		m.deliver()
		if s == nil {
			return nil
		}
		m.about = 0
		if !s.endOf() {
			return m.in.fail(alertUnexpectedMessage, "a stream that ends twice")
		}
	case what == frameReset:
		m.deliver()
		if s != nil {
			m.about = 0
			s.leave()
			s.abort(errAborted)
			return m.aborted(s)
		}
	case what == frameCredit:
		if s == nil {
			return nil
		}
		moved, ok := s.allow(binary.BigEndian.Uint32(content))
		switch {
		case !ok:
			return m.in.fail(alertIllegalParameter, "more credit than can be meant")
		case moved:
			m.about = 0
		}
	case what != frameData:
		return m.in.fail(alertUnexpectedMessage, fmt.Sprintf("a frame of type %d", what))
	}
	return nil
}

// aborted counts streams that a client has opened only to abort them: each costs the
// application a connection.
func (m *Mux) aborted(s *Stream) error {
	now := time.Now()
	if m.client || now.Sub(s.born) > youngFor {
		return nil
	}
	if n := int(now.Sub(m.forgot) / (time.Second / abortsEach)); n > 0 {
		m.aborts, m.forgot = max(m.aborts-n, 0), now
	}
	switch m.aborts++; {
	case m.aborts > 2*abortsMost:
		return m.in.fail(alertUnexpectedMessage, "too many streams that are aborted at once")
	case m.aborts > abortsMost:
		m.Leave()
	}
	return nil
}

// tooLate reports whether data for a stream that is over was sent before the peer could
// know.
func (m *Mux) tooLate(n int) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n == 0 || n > m.late {
		return false
	}
	m.late -= n
	return true
}

// find returns the stream of a number; nil for one that is over.
func (m *Mux) find(id uint32) (*Stream, error) {
	if m.cur != nil && m.cur.id == id {
		return m.cur, nil
	}
	m.mu.Lock()
	s, last := m.streams[id], m.last
	m.mu.Unlock()
	if id == 0 || id > last {
		return nil, m.in.fail(alertIllegalParameter, "a frame of a stream that was never opened")
	}
	return s, nil
}

func (m *Mux) opened(id uint32, first []byte) error {
	m.mu.Lock()
	switch {
	case m.client || id != m.last+1:
		m.mu.Unlock()
		return m.in.fail(alertUnexpectedMessage, "a stream out of turn")
	case len(m.streams) >= MaxStreams:
		m.mu.Unlock()
		return m.in.fail(alertUnexpectedMessage, "too many streams")
	}
	if m.closing { // it has met our close_notify, and ends with the connection
		m.last = id
		m.mu.Unlock()
		return nil
	}
	s := m.add(id)
	m.mu.Unlock()
	m.about = 0
	if len(first) > 0 {
		if err := m.data(s, first); err != nil {
			return err
		}
		m.deliver() // before anybody asks
	}
	m.accept(s)
	return nil
}

// data notes what has come for a stream.
func (m *Mux) data(s *Stream, content []byte) error {
	if len(content) == 0 {
		return nil
	}
	m.about = 0
	if m.cur != s || len(m.pieces) == cap(m.pieces) {
		m.deliver()
		m.cur, m.pieces = s, m.in.buf.parts[:0]
	}
	if !s.arrives(len(content)) {
		return m.in.fail(alertUnexpectedMessage, "more data than was allowed")
	}
	m.size += len(content)
	if last := len(m.pieces) - 1; last >= 0 && len(content) < mergeBelow {
		m.pieces[last] = append(m.pieces[last], content...) // in the buffer: over what has been opened
		return nil
	}
	m.pieces = append(m.pieces, content)
	return nil
}

// deliver hands over what is noted.
func (m *Mux) deliver() {
	s, pieces := m.cur, m.pieces
	m.cur, m.pieces, m.size = nil, nil, 0
	if s != nil {
		s.take(pieces, &m.sink)
	}
}
