package proxy

import (
	"context"
	"time"
)

// idleAfter is how long nothing must have been carried: long enough that an
// application that calls every few seconds is left alone. What the start and the
// first connections needed once is given back sooner: the first time after idleSoon,
// then after twice as long each time.
const (
	idleSoon  = 500 * time.Millisecond
	idleAfter = 30 * time.Second
)

// A burst of connections leaves behind what their handshakes took, several times
// what they hold when they are quiet. It is collected once none came for burstOver.
const (
	burst     = 256 // connections
	burstOver = 500 * time.Millisecond
)

// Spare is what a proxy can do without for now.
type Spare int

// What there may be to spare: one or both.
const (
	SpareGarbage Spare = 1 << iota // garbage that is worth collecting
	SpareProgram                   // pages of the program: nothing is being carried
)

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

// tellIdle calls OnIdle at once, soon again, and then every idleAfter for as long as
// no connection comes or ends and no byte moves. Connections may be open: what their
// beginning took in memory is not needed while they wait. It is called again and
// again because what an idle proxy does (probes, reports, news of the control
// plane) brings memory back. After a burst of connections it is called as soon as
// that is over.
func (p *proxy) tellIdle(ctx context.Context) {
	p.cfg.OnIdle(SpareGarbage | SpareProgram)
	var collected, seen work
	since := 0 // times told since garbage was collected
	pause := idleSoon
	tick, quiet := time.NewTicker(pause), time.NewTimer(idleAfter)
	defer tick.Stop()
	defer quiet.Stop()
	quiet.Stop()
	var before work // when quiet was set
	for {
		select {
		case <-p.conns.burst:
			before = p.conns.work()
			quiet.Reset(burstOver)
		case <-quiet.C:
			now := p.conns.work()
			if now.total != before.total {
				before = now
				quiet.Reset(burstOver)
				continue
			}
			p.conns.rest(time.Now().Add(-burstOver))
			p.cfg.OnIdle(SpareGarbage)
			collected, since = now, 0
		case <-tick.C:
			now := p.conns.work()
			p.conns.rest(time.Now().Add(-idleAfter))
			if now == seen {
				if pause < idleAfter {
					pause = min(2*pause, idleAfter)
					tick.Reset(pause)
				}
				since++
				what := SpareProgram
				if now != collected || since >= collectAgain {
					what |= SpareGarbage
					collected, since = now, 0
				}
				p.cfg.OnIdle(what)
			}
			seen = now
		case <-ctx.Done():
			return
		}
	}
}
