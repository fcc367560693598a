package main

import (
	"runtime"
	"testing"
	"time"
)

// A small heap may grow to 9 MB, a large one by its half.
func TestPercentFor(t *testing.T) {
	const mb = 1 << 20
	for live, want := range map[uint64]int{0: 300, mb / 2: 300, 3 * mb: 200, 4 * mb: 125, 6 * mb: 50, 8 * mb: 50, 9 * mb: 50, 1000 * mb: 50} {
		if got := percentFor(live); got != want {
			t.Errorf("%d MB: %d %%, want %d", live/mb, got, want)
		}
	}
}

// Each collection leads to another choice.
func TestCollectorFollowsCollections(t *testing.T) {
	chosen := make(chan int, 10)
	c := newCollector()
	c.set = func(percent int) int {
		chosen <- percent
		return 0
	}
	c.run()
	<-chosen
	held := make([]byte, 64<<20)
	for {
		runtime.GC()
		select {
		case percent := <-chosen:
			if percent == gcPercent {
				runtime.KeepAlive(held)
				return
			}
		case <-time.After(10 * time.Millisecond):
		}
	}
}
