package proxy

import (
	"context"
	"time"
)

// idleAfter is how long nothing must have been carried: long enough that an
// application that calls every few seconds is left alone.
const idleAfter = 30 * time.Second

// work is what a proxy has to do; when it stays the same, nothing is done.
type work struct {
	open  int    // connections
	total uint64 // that there have been
	moved int64  // bytes, on those that are open
}

// tellIdle calls OnIdle at once, and then each time that no connection came or
// ended and no byte moved for idleAfter, up to twice that, if anything has since
// the last call. Connections may be open: what their beginning took in memory is
// not needed while they wait.
func (p *proxy) tellIdle(ctx context.Context) {
	p.cfg.OnIdle()
	var told, seen work
	tick := time.NewTicker(idleAfter)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		now := p.conns.work()
		if now == seen && now != told {
			p.cfg.OnIdle()
			told = now
		}
		seen = now
	}
}
