package proxy

import (
	"container/list"
	"errors"
	"sync"
)

// maxUnsaid is how much memory clients may hold, in bytes, that have begun to say what
// they speak and don't go on. An honest ClientHello comes to its end within a round
// trip, so that only those who hold on come near: 4096 of them, with 4 KB each.
const maxUnsaid = 16 << 20

// errCrowded ends the wait for the rest of a ClientHello, or of what may be HTTP.
var errCrowded = errors.New("the rest of what the client had begun to say did not come, and too many others have begun, too")

// unsaid is all that was begun and not ended. When it is too much, the one that has
// waited longest goes.
type unsaid struct {
	most int // in bytes

	mu      sync.Mutex
	held    int
	waiting list.List // of *begun, the oldest first
}

// begun is one who waits. Its expel is called with the lock of unsaid held.
type begun struct {
	expel func()
	bytes int
	at    *list.Element // nil until it is counted
	out   bool
}

// hold counts so many bytes for one who waits, from the first call until drop.
func (u *unsaid) hold(b *begun, bytes int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if b.out {
		return
	}
	if b.at == nil {
		b.at = u.waiting.PushBack(b)
	}
	u.held += bytes - b.bytes
	b.bytes = bytes
	for u.held > u.most && u.waiting.Len() > 0 {
		if oldest, ok := u.waiting.Front().Value.(*begun); ok {
			u.take(oldest)
			oldest.expel()
		}
	}
}

// drop ends the count of one who waits no more, if it was ever counted.
func (u *unsaid) drop(b *begun) {
	if b.at == nil { // which only its own goroutine sets
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if !b.out {
		u.take(b)
	}
}

// take removes one. Callers hold mu.
func (u *unsaid) take(b *begun) {
	u.waiting.Remove(b.at)
	u.held -= b.bytes
	b.out = true
}
