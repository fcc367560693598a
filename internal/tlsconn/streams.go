package tlsconn

import (
	"fmt"
	"net"
	"sync/atomic"
)

// Between two proxies that have agreed on [identity.ALPNStreams], a connection
// carries one stream after the other. What says so are messages between the
// records with data: an empty record, which nothing else sends, announces that the
// next record is not data but one of these, one byte long. Records with data are
// as always. The handshake opens the first stream.
const (
	streamEnd   byte = 1 // both ways: this direction of the stream has ended
	streamOpen  byte = 2 // from the client, when both have: the next one begins
	streamLeave byte = 3 // from the server: no stream will be taken after the one that is or comes just now
)

// messageLen is how long a message is, sealed.
const messageLen = 2*overhead + 1

// streams says where in its streams a direction is. The reader's is guarded by its
// mutex, the writer's by the writer's.
type streams struct {
	on     bool // the connection carries streams at all
	ended  bool // the stream has ended in this direction, and none has begun since
	opened bool // reader: the peer has opened the next one
	coming bool // reader: the next record is a message
	left   bool // reader: the peer takes no further one
}

// keeper is asked, when a stream ends in our direction, whether another one may follow.
type keeper struct{ may atomic.Pointer[func() bool] }

// Streams reports whether the connection can carry one stream after the other.
func (c *Conn) Streams() bool { return c.records != nil && c.records.in.streams.on }

// Keep makes CloseWrite, and Close after the peer's end, end only the stream, as
// long as may says so at that moment. [Conn.Idle] tells whether that is how it
// ended. It does nothing on a connection without Streams.
func (c *Conn) Keep(may func() bool) {
	if c.Streams() {
		c.records.keeper.may.Store(&may)
	}
}

func (c *Conn) mayKeep() bool {
	if !c.Streams() {
		return false
	}
	may := c.records.keeper.may.Load()
	return may != nil && (*may)()
}

// Idle reports whether the last stream has ended in both directions, as it should,
// so that another one may be opened. Nobody may be reading.
func (c *Conn) Idle() bool {
	if !c.Streams() {
		return false
	}
	in, out := &c.records.in, &c.records.out
	in.mu.Lock()
	ok := in.streams.ended && in.err == nil && !in.streams.left
	in.mu.Unlock()
	if !ok {
		return false
	}
	out.mu.Lock()
	defer out.mu.Unlock()
	return out.streams.ended && out.err == nil && out.fault.Load() == nil
}

// Quiet reports whether an idle connection looks as it did when it became idle:
// nothing has come, not even its end. What came is not read.
func (c *Conn) Quiet() bool {
	if !c.Idle() {
		return false
	}
	in := &c.records.in
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.buf != nil { // something stood behind the end of the last stream
		return false
	}
	quiet := false
	err := in.raw.Read(func(fd uintptr) bool {
		quiet = nothingThere(fd)
		return true
	})
	return err == nil && quiet
}

// Open opens the next stream of an idle connection, as the client, and sends with
// it what can be read from first without waiting. It returns what it has read. If
// it fails nothing of that has reached the peer's application, and the connection
// is of no more use.
func (c *Conn) Open(first *net.TCPConn) (sent int, unsent []byte, err error) {
	plain := c.records.in.pool.get(small)
	defer c.records.in.pool.put(plain)
	n, err := readThere(first, plain.mem[:smallLen-messageLen-overhead])
	if err != nil {
		return 0, nil, fmt.Errorf("open a stream: %w", err)
	}
	in := &c.records.in
	in.mu.Lock()
	in.streams.ended = false
	in.mu.Unlock()
	if err := c.records.out.open(plain.mem[:n]); err != nil {
		return 0, append(unsent, plain.mem[:n]...), fmt.Errorf("open a stream: %w", err)
	}
	return n, nil, nil
}

// readThere reads what is there. Neither an end nor an error is reported: whoever
// reads next meets it.
func readThere(c *net.TCPConn, p []byte) (int, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	n := 0
	err = raw.Read(func(fd uintptr) bool {
		n, _ = readNow(int(fd), p)
		return true
	})
	return max(n, 0), err
}

// Accept waits until the client has opened the next stream of an idle connection, or
// the read deadline passes. io.EOF says that it has closed the connection instead.
func (c *Conn) Accept() error {
	if err := c.records.in.accept(); err != nil {
		return err
	}
	c.records.out.reopen()
	return nil
}

// Leave tells the client to open no further stream. One that it has opened before it
// hears of it still comes.
func (c *Conn) Leave() error {
	if !c.Streams() {
		return nil
	}
	return c.records.out.leave()
}

// Control messages as they are read.

// control takes a message of the peer.
func (r *reader) control(content []byte) error {
	s := &r.streams
	s.coming = false
	r.useless = 0
	switch {
	case len(content) != 1:
		return r.fail(alertDecodeError, "a message between streams of a wrong length")
	case content[0] == streamEnd && !s.ended:
		s.ended = true
		return nil
	case content[0] == streamOpen && !r.client && s.ended && !s.opened:
		s.opened = true
		return nil
	case content[0] == streamLeave && r.client && !s.left:
		s.left = true
		return nil
	default:
		return r.fail(alertUnexpectedMessage, fmt.Sprintf("message %d out of turn", content[0]))
	}
}

// accept waits for the next stream.
func (r *reader) accept() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer r.settle()
	for {
		_, there, err := r.openRecord(nil)
		switch {
		case err != nil:
			return err
		case r.streams.opened:
			r.streams.ended, r.streams.opened = false, false
			return nil
		case there:
			continue
		}
		r.top, r.most = one, 0
		if err := r.fill(); err != nil {
			return err
		}
	}
}

// finished reports whether the peer has ended its direction of the stream, and that only.
func (r *reader) finished() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.streams.ended && r.err == nil
}

// streamMessage seals one into b and returns its length. Callers hold mu, and have asked ready.
func (w *writer) streamMessage(b []byte, what byte) int {
	at := w.keys.seal(b, 0, typeData)
	b[at+headerLen] = what
	return at + w.keys.seal(b[at:], 1, typeData)
}

// endStream ends the stream in this direction.
func (w *writer) endStream() error {
	defer w.sound()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.streams.ended {
		return nil
	}
	if err := w.say(streamEnd); err != nil {
		return err
	}
	w.streams.ended = true
	return nil
}

// leave goes out between streams as well as within one.
func (w *writer) leave() error {
	defer w.sound()
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.say(streamLeave)
}

// say sends a message. Callers hold mu.
func (w *writer) say(what byte) error {
	if err := w.ready(1); err != nil {
		return err
	}
	b := w.pool.get(small)
	defer w.pool.put(b)
	return w.write(b.mem[:w.streamMessage(b.mem, what)])
}

// open begins the next stream with its first data, in one piece. data stays as it is.
func (w *writer) open(data []byte) error {
	defer w.sound()
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.ready(1); err != nil {
		return err
	}
	b := w.pool.get(small)
	defer w.pool.put(b)
	size := w.streamMessage(b.mem, streamOpen)
	if len(data) > 0 {
		n := copy(b.mem[size+headerLen:], data)
		size += w.keys.seal(b.mem[size:], n, typeData)
	}
	w.streams.ended = false
	return w.write(b.mem[:size])
}

func (w *writer) reopen() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.streams.ended = false
}
