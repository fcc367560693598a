package proxy

import (
	"sync"
	"time"
)

const (
	workersIdle  = 64 // at most
	workersSweep = time.Second
)

// workers are goroutines that do one short thing after the other: a new goroutine
// would have to grow its stack, frame by frame, each time. Who keeps theirs for long
// costs no more than a new one. Those that were not needed for a while end. The zero
// value is ready, but for owner.
type workers struct {
	owner *sync.WaitGroup // of all of them

	mu     sync.Mutex
	idle   []chan func() // the last is the one that worked last
	least  int           // idle ones since the last sweep
	closed bool
	timer  *time.Timer // of the next sweep; nil while there is none
}

// do has f called by a goroutine.
func (w *workers) do(f func()) {
	w.mu.Lock()
	last := len(w.idle) - 1
	if last < 0 {
		w.mu.Unlock()
		w.owner.Go(func() { w.work(f) })
		return
	}
	next := w.idle[last]
	w.idle[last] = nil
	w.idle = w.idle[:last]
	w.least = min(w.least, last)
	w.mu.Unlock()
	next <- f
}

// work calls f, and what else there is to do afterwards.
func (w *workers) work(f func()) {
	var next chan func()
	for ok := true; ok; f, ok = <-next {
		f()
		if next == nil { // only now: many do one thing for as long as their connection lasts
			next = make(chan func(), 1) // who gives it work needn't wait until it has come to rest
		}
		if !w.rest(next) {
			return
		}
	}
}

// rest reports whether the worker is to wait for more.
func (w *workers) rest(next chan func()) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed || len(w.idle) >= workersIdle {
		return false
	}
	w.idle = append(w.idle, next)
	if w.timer == nil {
		w.least = 0
		w.timer = time.AfterFunc(workersSweep, w.sweep)
	}
	return true
}

// sweep ends those that nobody has needed since the last one.
func (w *workers) sweep() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return
	}
	for _, next := range w.idle[:w.least] {
		close(next)
	}
	left := copy(w.idle, w.idle[w.least:])
	clear(w.idle[left:])
	w.idle, w.least = w.idle[:left], left
	if w.timer = nil; left > 0 {
		w.timer = time.AfterFunc(workersSweep, w.sweep)
	}
}

// close ends the idle ones, and the others when they have done their work.
func (w *workers) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	if w.timer != nil {
		w.timer.Stop()
		w.timer = nil
	}
	for _, next := range w.idle {
		close(next)
	}
	w.idle = nil
}
