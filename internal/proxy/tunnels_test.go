package proxy

import (
	"testing"
	"testing/synctest"
	"time"

	"podseal.io/podseal/internal/identity"
)

// Who waits for a handshake that fails goes on alone, and leaves nothing behind that
// others would wait for.
func TestWaitersForAFailedHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s tunnels
		key, snap := tunnelKey{sni: "x"}, &identity.Snapshot{}
		current := func() *identity.Snapshot { return snap }
		_, leader := s.take(t.Context(), key, snap)
		if leader == nil {
			t.Fatal("the first one doesn't make it")
		}
		waited := make(chan *making, 3)
		for range cap(waited) {
			go func() {
				_, m := s.take(t.Context(), key, snap)
				waited <- m
			}()
		}
		synctest.Wait()
		s.made(leader, nil, false, current)
		for range cap(waited) {
			if m := <-waited; m != nil {
				t.Error("one of those who waited makes another one that nobody is told of")
			}
		}
		began := time.Now()
		if _, next := s.take(t.Context(), key, snap); next == nil || time.Since(began) > 0 {
			t.Errorf("the next one has waited %v", time.Since(began))
		} else {
			s.made(next, nil, false, current)
		}
		// Nor longer than a second for one that hangs.
		_, slow := s.take(t.Context(), key, snap)
		began = time.Now()
		if tun, m := s.take(t.Context(), key, snap); tun != nil || m != nil || time.Since(began) != tunnelJoin {
			t.Errorf("the wait took %v", time.Since(began))
		}
		s.made(slow, nil, true, current)
		began = time.Now()
		if _, m := s.take(t.Context(), key, snap); m != nil || time.Since(began) > 0 {
			t.Error("one waits for a peer that takes no streams")
		}
	})
}
