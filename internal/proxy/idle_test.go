package proxy

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestTellIdle: memory is given back when the proxy has become ready and after
// each time of work, not while connections come or carry anything, and not twice.
func TestTellIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int32
		p := &proxy{conns: newConns(10), cfg: Config{OnIdle: func() { calls.Add(1) }}}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { p.tellIdle(ctx); close(done) }()
		defer func() { cancel(); <-done }()
		after := func(d time.Duration, want int32, what string) {
			t.Helper()
			<-time.After(d)
			synctest.Wait()
			if calls := calls.Load(); calls != want {
				t.Errorf("%s: called %d times, want %d", what, calls, want)
			}
		}
		after(time.Second, 1, "ready")
		after(time.Hour, 1, "no connection yet")
		c := &conn{}
		p.conns.add(c)
		for range 100 {
			c.sent.Add(1)
			after(idleAfter/2, 1, "it carries something")
			c.received.Add(1)
			after(idleAfter/2, 1, "it carries something")
		}
		after(2*idleAfter, 2, "it is open, and quiet")
		after(time.Hour, 2, "still quiet")
		c.sent.Add(1)
		after(2*idleAfter, 3, "it has carried something since")
		p.conns.remove(c)
		after(2*idleAfter, 4, "it has ended")
		after(time.Hour, 4, "nothing since")
		for range 100 {
			p.conns.add(c)
			p.conns.remove(c)
			after(idleAfter/2, 4, "connections come and go")
		}
		after(2*idleAfter, 5, "they have ended")
	})
}
