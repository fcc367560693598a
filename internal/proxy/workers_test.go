package proxy

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Workers do all that they are given, at once, and end when they aren't needed.
func TestWorkers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var all sync.WaitGroup
		w := &workers{owner: &all}
		idle := func() int {
			synctest.Wait()
			w.mu.Lock()
			defer w.mu.Unlock()
			return len(w.idle)
		}
		const many = 2 * workersIdle
		for range 3 {
			var began, done sync.WaitGroup
			hold := make(chan struct{})
			for range many {
				began.Add(1)
				done.Add(1)
				w.do(func() {
					defer done.Done()
					began.Done()
					<-hold
				})
			}
			began.Wait() // none waits for another
			close(hold)
			done.Wait()
			if n := idle(); n != workersIdle {
				t.Fatalf("%d are idle", n)
			}
		}
		for range 30 { // one is enough
			done := make(chan struct{})
			w.do(func() { close(done) })
			<-done
			time.Sleep(workersSweep / 10)
		}
		if n := idle(); n != 1 {
			t.Errorf("%d are idle", n)
		}
		time.Sleep(3 * workersSweep)
		if n := idle(); n != 0 || w.timer != nil {
			t.Errorf("%d are idle after a while", n)
		}
		all.Wait()
		w.do(func() {})
		if n := idle(); n != 1 {
			t.Errorf("%d are idle", n)
		}
		w.close()
		all.Wait()
		done := false
		w.do(func() { done = true })
		all.Wait()
		if !done {
			t.Error("not done after the end")
		}
	})
}
