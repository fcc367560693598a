package proxy

import (
	"context"
	"time"
)

// idleAfter is how long nothing must have been carried: long enough that an
// application that calls every few seconds is left alone.
const idleAfter = 30 * time.Second

// tellIdle calls OnIdle at once, and then each time that no connection was open
// or came for idleAfter, up to twice that, if there were any since the last call.
func (p *proxy) tellIdle(ctx context.Context) {
	p.cfg.OnIdle()
	var told, seen uint64 // connections that there had been, then and at the last look
	tick := time.NewTicker(idleAfter)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		open, total := p.conns.count()
		if open == 0 && total == seen && total != told {
			p.cfg.OnIdle()
			told = total
		}
		seen = total
	}
}
