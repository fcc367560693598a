package proxy

import (
	"context"
	"time"
)

// idleAfter is how long nothing must have been carried: long enough that an
// application that calls every few seconds is left alone.
const idleAfter = 30 * time.Second

// collectAgain is after how many of those times an idle proxy collects its garbage:
// sooner than the runtime would by itself (2 minutes), since what a collection
// brings into memory is then given back at once.
const collectAgain = 3

// work is what a proxy has to do; when it stays the same, nothing is done.
type work struct {
	open  int    // connections
	total uint64 // that there have been
	moved int64  // bytes, on those that are open
}

// tellIdle calls OnIdle at once, and then every idleAfter for as long as no
// connection comes or ends and no byte moves. Connections may be open: what their
// beginning took in memory is not needed while they wait. It is called again and
// again because what an idle proxy does (probes, reports, news of the control
// plane) brings memory back.
func (p *proxy) tellIdle(ctx context.Context) {
	p.cfg.OnIdle(true)
	var collected, seen work
	since := 0 // times told since garbage was collected
	tick := time.NewTicker(idleAfter)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		now := p.conns.work()
		if now == seen {
			since++
			collect := now != collected || since >= collectAgain
			p.cfg.OnIdle(collect)
			if collect {
				collected, since = now, 0
			}
		}
		seen = now
	}
}
