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
	case h.in.empty():
		w.armed, w.over, w.done, w.ended, w.err = false, false, make(chan struct{}), false, nil
		h.work.Go(h.readBeside)
	default:
		w.armed = false // the next request is there already
	}
}

// readBeside reads until something has come or the watch ends. The next request is
// kept until its turn, an end of stream is passed on to the application, which may
// answer nevertheless, and an error ends the exchange.
func (h *httpRelay) readBeside() {
	w := &h.watch
	defer close(w.done)
	for {
		_, err := h.in.fill(h.source, h.Received)
		switch {
		case err == nil:
			return
		case errors.Is(err, os.ErrDeadlineExceeded):
			h.mu.Lock()
			over := w.over
			if !over {
				_ = h.bound(time.Time{}) // it was that of an earlier wait
			}
			h.mu.Unlock()
			if over {
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
