package proxy

import (
	"errors"
	"net"
	"strconv"
	"sync"
	"time"

	"podseal.io/podseal/internal/wire"
)

// Bounds of the port that the kubelet asks: how many may ask at a time, the size
// of a question in bytes, and how long one may take.
const (
	maxReadyAsked   = 64
	maxReadyHead    = 8 << 10
	readyTimeout    = 10 * time.Second
	firstReadyBytes = 512 // the kubelet's question is shorter
)

// readiness answers "is the proxy ready" over HTTP/1, one question on each
// connection. It stands in for net/http, of which one question every few seconds
// would keep 2 MB in the memory of a proxy that does nothing else.
type readiness struct {
	notReady func() string // why not; "" if it is

	mu     sync.Mutex
	open   map[net.Conn]struct{}
	closed bool
	asked  sync.WaitGroup
}

// serve answers until the listener is closed, and returns why it ended.
func (r *readiness) serve(l net.Listener) error {
	defer r.asked.Wait()
	for {
		c, err := l.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil: // e.g. no file descriptors
			time.Sleep(acceptPause)
			continue
		}
		if !r.add(c) {
			_ = c.Close() // one too many, or too late
			continue
		}
		r.asked.Go(func() {
			defer r.remove(c)
			r.answer(c)
		})
	}
}

// close ends every question. The listener is its owner's to close.
func (r *readiness) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	for c := range r.open {
		_ = c.Close() // whoever asks will ask again
	}
	return nil
}

func (r *readiness) add(c net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || len(r.open) >= maxReadyAsked {
		return false
	}
	if r.open == nil {
		r.open = map[net.Conn]struct{}{}
	}
	r.open[c] = struct{}{}
	return true
}

func (r *readiness) remove(c net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.open, c)
	_ = c.Close() // close may have been before
}

// answer reads one question and answers it. Who asks nothing gets nothing.
func (r *readiness) answer(c net.Conn) {
	if c.SetDeadline(time.Now().Add(readyTimeout)) != nil {
		return // it has ended
	}
	var head wire.RequestHead
	b := make([]byte, 0, firstReadyBytes)
	for {
		n, err := c.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if n == 0 || (err != nil && len(b) == 0) {
			return
		}
		_, err = wire.ParseRequestHead(&head, b)
		switch {
		case err == nil:
			r.tell(c, &head)
			return
		case !errors.Is(err, wire.ErrShort) || len(b) >= maxReadyHead:
			say(c, &wire.RequestHead{Head: wire.Head{Minor: 1}}, "400 Bad Request", "")
			return
		}
		if len(b) == cap(b) {
			b = append(make([]byte, 0, 2*cap(b)), b...)
		}
	}
}

func (r *readiness) tell(c net.Conn, head *wire.RequestHead) {
	if string(head.Path) != "/healthz/ready" {
		say(c, head, "404 Not Found", "404 page not found\n")
		return
	}
	if why := r.notReady(); why != "" {
		say(c, head, "503 Service Unavailable", why+"\n")
		return
	}
	say(c, head, "200 OK", "")
}

// say writes an answer that ends the connection, in the version of the question.
func say(c net.Conn, head *wire.RequestHead, status, text string) {
	answer := "HTTP/1." + strconv.Itoa(head.Minor) + " " + status + "\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\nContent-Length: " + strconv.Itoa(len(text)) + "\r\n\r\n"
	if string(head.Method) != "HEAD" {
		answer += text
	}
	_, _ = c.Write([]byte(answer)) // whoever asked may have gone
}
