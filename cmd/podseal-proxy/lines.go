package main

import (
	"io"
	"sync"
	"time"
)

// Lines that come soon after another wait for a moment, so that many go out with one
// system call: where every connection leaves one, a third of what a line costs, and
// whoever collects them is woken less often.
const (
	linesWait = 20 * time.Millisecond
	linesFull = 16 << 10
)

// lines is where several write whole lines. The first after a pause goes out at once.
// Who writes waits while w does. flush must be called at the end.
type lines struct {
	w io.Writer

	mu      sync.Mutex
	waiting []byte
	last    time.Time   // when something was written
	timer   *time.Timer // runs while something waits
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting) == 0 && time.Since(l.last) >= linesWait {
		n, err := l.w.Write(b)
		l.last = time.Now()
		return n, err
	}
	first := len(l.waiting) == 0
	l.waiting = append(l.waiting, b...)
	switch {
	case len(l.waiting) >= linesFull:
		l.write()
	case first && l.timer == nil:
		l.timer = time.AfterFunc(linesWait, l.flush)
	case first:
		l.timer.Reset(linesWait)
	}
	return len(b), nil
}

// flush writes what waits.
func (l *lines) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.write()
}

// write is flush. Callers hold mu.
func (l *lines) write() {
	if len(l.waiting) == 0 {
		return
	}
	if l.timer != nil {
		l.timer.Stop()
	}
	_, _ = l.w.Write(l.waiting) // nobody could be told, as with any line
	if l.waiting = l.waiting[:0]; cap(l.waiting) > 2*linesFull {
		l.waiting = nil
	}
	l.last = time.Now()
}
