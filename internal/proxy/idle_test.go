package proxy

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestTellIdle: memory is given back when the proxy has become ready and for as
// long as nothing is carried, not while connections come or carry anything; garbage
// is collected after each time of work, and seldom after that.
func TestTellIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls, collections atomic.Int32
		p := &proxy{conns: newConns(10_000), cfg: Config{OnIdle: func(spare Spare) {
			if spare&SpareProgram != 0 {
				calls.Add(1)
			}
			if spare&SpareGarbage != 0 {
				collections.Add(1)
			}
		}}}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { p.tellIdle(ctx); close(done) }()
		defer func() { cancel(); <-done }()
		after := func(d time.Duration, wantCalls, wantCollections int32, what string) {
			t.Helper()
			<-time.After(d)
			synctest.Wait()
			if calls, collections := calls.Swap(0), collections.Swap(0); calls != wantCalls || collections != wantCollections {
				t.Errorf("%s: called %d times, %d times to collect, want %d and %d", what, calls, collections, wantCalls, wantCollections)
			}
		}
		after(idleSoon/2, 1, 1, "ready")
		for range 10 { // what a start carries puts it off
			p.conns.add(&conn{})
			after(idleSoon, 0, 0, "connections come at the start")
		}
		after(idleSoon, 1, 1, "the first pause")
		soon, again := 2*idleSoon, int32(0) // once after each pause that is twice as long
		for ; soon < idleAfter; soon *= 2 {
			again++
			after(soon, 1, again/collectAgain, "pauses become longer")
			again %= collectAgain
		}
		after(idleAfter, 1, (again+1)/collectAgain, "the first long pause")
		after(12*idleAfter, 12, 12/collectAgain, "no connection yet")
		c := &conn{}
		p.conns.add(c)
		for range 100 {
			c.sent.Add(1)
			after(idleAfter/2, 0, 0, "it carries something")
			c.received.Add(1)
			after(idleAfter/2, 0, 0, "it carries something")
		}
		after(2*idleAfter, 2, 1, "it is open, and quiet")
		after(12*idleAfter, 12, 12/collectAgain, "still quiet")
		c.sent.Add(1)
		after(2*idleAfter, 1, 1, "it has carried something since")
		p.conns.remove(c)
		after(2*idleAfter, 1, 1, "it has ended")
		after(12*idleAfter, 12, 12/collectAgain, "nothing since")
		for range 100 {
			p.conns.add(c)
			p.conns.remove(c)
			after(idleAfter/2, 0, 0, "connections come and go")
		}
		after(2*idleAfter, 2, 1, "they have ended")
		for range 2 * burst {
			p.conns.add(&conn{})
			after(burstOver/2, 0, 0, "connections come")
		}
		after(burstOver, 0, 1, "no more have come for a while")
		after(3*idleAfter, 2, 0, "nothing since")
	})
}
