package main

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// The heap of a proxy is small and mostly connections: that it is collected when it
// has grown by half keeps the pod small. But one of 3 MB would then be collected for
// every hundred connections that come and go, so it may always grow to gcFloor.
const (
	gcPercent     = 50
	gcFloor       = 9 << 20
	gcMostPercent = 300
	liveHeap      = "/gc/heap/live:bytes" // that the last collection has left
)

// percentFor is how much, in percent, a heap may grow until it is collected.
func percentFor(live uint64) int {
	if live == 0 {
		return gcMostPercent
	}
	if live >= gcFloor {
		return gcPercent
	}
	return int(max(gcPercent, min(gcMostPercent, 100*(gcFloor-live)/live)))
}

// collector chooses that anew after each collection.
type collector struct {
	set  func(percent int) int
	live []metrics.Sample
	last int
}

func newCollector() *collector {
	return &collector{set: debug.SetGCPercent, live: []metrics.Sample{{Name: liveHeap}}}
}

// epoch is garbage from the beginning: its end tells of a collection.
type epoch struct{ c *collector }

func (c *collector) run() {
	metrics.Read(c.live)
	if v := c.live[0].Value; v.Kind() == metrics.KindUint64 {
		if percent := percentFor(v.Uint64()); percent != c.last {
			c.last = percent
			c.set(percent)
		}
	}
	runtime.SetFinalizer(&epoch{c}, func(e *epoch) { e.c.run() })
}
