package proxy

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// httpPatience is how long the application has worked on a request before somebody
// looks whether the client is still there.
const httpPatience = 200 * time.Millisecond

// httpHalfClosed is how long an authorizer may take once the client has ended its
// direction: it may still read, or be gone.
const httpHalfClosed = 30 * time.Second

// errClientLeft says that a client ended its direction and had no answer for long.
var errClientLeft = errors.New("the client has ended the connection")

// httpWatch reads from the client while the application works. Its timer runs only
// while there are requests, and is set once for many. The relay's mu guards it.
type httpWatch struct {
	timer   *time.Timer
	armed   bool
	of      uint64 // the exchange that it was armed for
	number  uint64 // of the last exchange
	waiting bool   // for the response of that
	over    bool   // what is read is not wanted any more
	done    chan struct{}
	ended   bool // what the reader has found: the client's end
	err     error

	hangUp func() // ends the question to an authorizer; nil while none is asked
	left   *time.Timer
}

// watchClient begins the watch for one exchange. Callers hold mu.
func (h *httpRelay) watchClient() {
	w := &h.watch
	w.number++
	w.waiting = true
	if w.armed {
		return
	}
	w.armed, w.of = true, w.number
	if w.timer == nil {
		w.timer = time.AfterFunc(httpPatience, h.lookAtClient)
		return
	}
	w.timer.Reset(httpPatience)
}

// lookAtClient begins to read if the exchange that it is about isn't over.
func (h *httpRelay) lookAtClient() {
	h.mu.Lock()
	defer h.mu.Unlock()
	w := &h.watch
	switch {
	case !w.waiting:
		w.armed = false
	case w.of != w.number:
		w.of = w.number
		w.timer.Reset(httpPatience)
	case h.in.empty() || w.hangUp != nil:
		done, read := make(chan struct{}), h.readBeside
		if w.hangUp != nil {
			read = h.readWhileAsking
		}
		w.armed, w.over, w.done, w.ended, w.err = false, false, done, false, nil
		h.work.Go(func() {
			defer close(done)
			read()
		})
	default:
		w.armed = false // the next request is there already
	}
}

// readBeside reads until something has come or the watch ends. The next request is
// kept until its turn, an end of stream is passed on to the application, which may
// answer nevertheless, and an error ends the exchange.
func (h *httpRelay) readBeside() {
	w := &h.watch
	for {
		_, err := h.in.fill(h.source, h.Received)
		switch {
		case err == nil:
			return
		case errors.Is(err, os.ErrDeadlineExceeded):
			if h.watchIsOver() {
				return
			}
		case errors.Is(err, io.EOF):
			w.ended = true
			h.endRequests()
			return
		default:
			w.err = err
			h.ex.fault.Store(int32(faultClientGone))
			h.abort()
			return
		}
	}
}

// watchIsOver reports whether a deadline that has passed was to end the watch, and
// takes one of an earlier wait away.
func (h *httpRelay) watchIsOver() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.watch.over {
		_ = h.bound(time.Time{})
	}
	return h.watch.over
}

// readWhileAsking reads what the client sends of its request while an authorizer is
// asked, as far as there is room, so that it is noticed when it is gone.
func (h *httpRelay) readWhileAsking() {
	w := &h.watch
	for {
		_, err := h.in.fill(h.source, h.Received)
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded):
			if h.watchIsOver() {
				return
			}
		case errors.Is(err, io.ErrShortBuffer):
			return // the authorizer's own time bounds the rest
		case errors.Is(err, io.EOF):
			w.ended, w.left = true, time.AfterFunc(h.HalfClosed, w.hangUp)
			return
		default:
			w.err = err
			w.hangUp()
			return
		}
	}
}

// unwatchClient ends the watch, and says what it has found.
func (h *httpRelay) unwatchClient() (ended bool, err error) {
	w := &h.watch
	h.mu.Lock()
	w.waiting = false
	done := w.done
	if done == nil {
		h.mu.Unlock()
		return false, nil
	}
	w.over, w.done = true, nil
	armed := h.idleArmed
	_ = h.Client.SetReadDeadline(time.Unix(1, 0)) // a closed socket fails at the read
	h.mu.Unlock()
	<-done
	h.mu.Lock()
	defer h.mu.Unlock()
	if w.left != nil {
		w.left.Stop()
		w.left = nil
	}
	if !armed.IsZero() {
		h.armIdle()
	} else {
		_ = h.bound(time.Time{})
	}
	if w.err != nil {
		return true, fmt.Errorf("read from the client: %w", w.err)
	}
	return w.ended, nil
}

// stop ends it for good.
func (w *httpWatch) stop() {
	if w.timer != nil {
		w.timer.Stop()
	}
}
