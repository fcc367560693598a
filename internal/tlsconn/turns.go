package tlsconn

import (
	"runtime"
	"sync"
)

// turns lets no more handshakes compute at a time than there are processors. A
// handshake is a millisecond of work where an established stream needs
// microseconds, and the scheduler serves all that can run in line: without turns a
// stream would wait behind every handshake of a storm. The zero turns is ready.
type turns struct {
	once sync.Once
	free chan struct{}
}

// take waits for a turn.
func (t *turns) take() {
	t.once.Do(func() { t.free = make(chan struct{}, runtime.GOMAXPROCS(0)) })
	select {
	case t.free <- struct{}{}:
	default:
		t.free <- struct{}{}
		runtime.Gosched() // who was waiting is run before all others, else: they were there first
	}
}

// leave ends a turn.
func (t *turns) leave() { <-t.free }
