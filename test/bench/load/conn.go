package load

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// conn is one of the client's connections.
type conn struct {
	fd        int
	job       *job
	connected bool
	begun     bool  // something was sent on it
	busy      bool  // something is under way
	carried   bool  // it is known to work
	began     int64 // when that was due
	out       []byte
	own       []byte // what out is made of for HTTP/2
	got       int    // of an exchange
	h1        h1Client
	h2        h2Client
	events    uint32 // that are waited for
}

// dial makes a connection and begins to connect it, unless it is one that waits
// until a start is due.
func (w *worker) dial(j *job) error {
	sa, family := sockaddr(w.address)
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return fmt.Errorf("make a socket: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return fmt.Errorf("switch delays off: %w", err)
	}
	for fd >= len(w.conns) {
		w.conns = append(w.conns, make([]*conn, 1024)...)
	}
	c := &conn{fd: fd, job: j, began: w.clock(), events: unix.EPOLLOUT}
	w.conns[fd] = c
	if j.Kind == Connect && j.interval > 0 {
		w.rest(c)
		return nil
	}
	return w.connect(c, sa)
}

func (w *worker) connect(c *conn, sa unix.Sockaddr) error {
	c.busy = true
	if err := unix.Connect(c.fd, sa); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return fmt.Errorf("connect: %w", err)
	}
	return w.poll.watch(c.fd, c.events, false)
}

func (w *worker) close(c *conn) {
	w.conns[c.fd] = nil
	closeSocket(c.fd)
}

// wait says what the connection is waited for.
func (w *worker) wait(c *conn, events uint32) error {
	if c.events == events {
		return nil
	}
	c.events = events
	return w.poll.watch(c.fd, events, true)
}

// start begins work on a connection that has none.
func (w *worker) start(c *conn, began int64) error {
	c.began, c.busy = began, true
	switch j := c.job; j.Kind {
	case Connect:
		sa, _ := sockaddr(w.address)
		return w.connect(c, sa)
	case HTTP1, Echo:
		c.out = j.request
	case HTTP2:
		c.h2.stream += 2
		if !c.begun {
			c.h2.stream = 1
			c.own = h2Opening()
		} else {
			c.own = c.own[:0]
		}
		c.own = h2Request(c.own, c.h2.stream, j.Size)
		c.out = c.own
	case Up, Both, Down: // at a rate, and only Up
		c.out = body[:chunkSize]
	}
	c.begun = true
	return w.send(c)
}

// send writes what there is, and waits for room or for the answer.
func (w *worker) send(c *conn) error {
	for len(c.out) > 0 {
		n, errno := writeSocket(c.fd, c.out)
		if errno != 0 && !again(errno) {
			return fmt.Errorf("write: %w", errno)
		}
		c.out = c.out[n:]
		if n == 0 {
			return w.wait(c, unix.EPOLLIN|unix.EPOLLOUT)
		}
	}
	if c.job.Kind == Up && c.job.interval > 0 && c.busy {
		w.done(c, chunkSize)
		w.rest(c)
	}
	return w.wait(c, unix.EPOLLIN)
}

// rest makes a connection that has nothing to do wait for what is due.
func (w *worker) rest(c *conn) {
	c.busy = false
	c.job.idle = append(c.job.idle, c)
}

// step does what a connection's events allow.
func (w *worker) step(c *conn, events uint32) error {
	if !c.connected {
		code, err := unix.GetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if err != nil || code != 0 {
			return fmt.Errorf("connect: %w", errors.Join(err, unix.Errno(code)))
		}
		return w.connected(c)
	}
	switch c.job.Kind {
	case Up, Down, Both:
		return w.bulk(c, events)
	case Connect, Echo, HTTP1, HTTP2:
	}
	if events&unix.EPOLLOUT != 0 {
		if err := w.send(c); err != nil {
			return err
		}
	}
	if events&^uint32(unix.EPOLLOUT) == 0 {
		return nil
	}
	n, errno := readSocket(c.fd, w.buffer)
	switch {
	case again(errno):
		return nil
	case errno != 0:
		return fmt.Errorf("read: %w", errno)
	case n == 0:
		return fmt.Errorf("read: %w", io.ErrUnexpectedEOF)
	}
	return w.feed(c, w.buffer[:n])
}

// connected begins what a new connection is for.
func (w *worker) connected(c *conn) error {
	c.connected = true
	switch j := c.job; j.Kind {
	case Connect:
		c.out = j.request
		return w.send(c)
	case Up, Both, Down:
		c.busy = false
		c.out = []byte{map[Kind]byte{Up: cmdUp, Down: cmdDown, Both: cmdBoth}[j.Kind]}
		if err := w.send(c); err != nil {
			return err
		}
		switch {
		case j.interval > 0:
			w.ready(c)
			w.rest(c)
			return nil
		case j.Kind == Down:
			return w.wait(c, unix.EPOLLIN)
		case j.Kind == Up:
			return w.wait(c, unix.EPOLLOUT)
		}
		return w.wait(c, unix.EPOLLIN|unix.EPOLLOUT)
	case Echo, HTTP1, HTTP2:
	}
	return w.start(c, w.clock()) // at a rate as well: once, to have a connection that works
}

// bulk moves a block in each direction.
func (w *worker) bulk(c *conn, events uint32) error {
	if c.job.interval > 0 {
		if events&^uint32(unix.EPOLLOUT) != 0 {
			return errors.New("the application sent something, or ended")
		}
		return w.send(c)
	}
	if c.job.Kind != Down && events&unix.EPOLLOUT != 0 {
		n, errno := writeSocket(c.fd, body[:blockSize])
		if errno != 0 && !again(errno) {
			return fmt.Errorf("write: %w", errno)
		}
		w.sent(c, n)
	}
	if c.job.Kind != Up && events&unix.EPOLLIN != 0 {
		n, errno := dropSocket(c.fd)
		if errno != 0 && !again(errno) {
			return fmt.Errorf("read: %w", errno)
		}
		if n == 0 && errno == 0 {
			return fmt.Errorf("read: %w", io.ErrUnexpectedEOF)
		}
		w.moved(c, n)
	}
	if events&(unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		return errors.New("the connection broke")
	}
	return nil
}

// feed takes what came for a connection that waits for an answer.
func (w *worker) feed(c *conn, b []byte) error {
	j := c.job
	complete := false
	var err error
	switch j.Kind {
	case Connect, Echo:
		c.got += len(b)
		complete = c.got == exchangeSize
	case HTTP1:
		complete, err = c.h1.feed(b, j.Size)
	case HTTP2:
		var n int
		n, c.own, err = c.h2.feed(b, append(c.own[:0], c.out...), j.Size)
		c.out = c.own
		complete = n > 0
		if err == nil && !complete {
			err = w.send(c)
		}
	case Up, Down, Both:
	}
	if err != nil || !complete {
		return err
	}
	w.done(c, j.Size)
	c.got = 0
	switch {
	case j.Kind == Connect:
		w.close(c)
		return w.dial(j)
	case j.interval > 0:
		w.rest(c)
		return w.send(c)
	}
	if j.Kind == HTTP2 && len(c.out) > 0 { // an acknowledgement
		if err := w.send(c); err != nil {
			return err
		}
	}
	return w.start(c, w.now)
}
