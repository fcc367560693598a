package proxy

import (
	"net/netip"
	"sync"
)

// balancer counts the open connections to each endpoint and picks one by the
// power of two choices: two at random, of which the less loaded is taken
// (contract 3.58).
type balancer struct {
	random func(n int) int // from 0 to below n

	mu   sync.Mutex
	open map[netip.AddrPort]int
}

func newBalancer(random func(n int) int) *balancer {
	return &balancer{random: random, open: map[netip.AddrPort]int{}}
}

// pick returns the index of one of the candidates, of which there is at least one.
func (b *balancer) pick(candidates []netip.AddrPort) int {
	if len(candidates) == 1 {
		return 0
	}
	i := b.random(len(candidates))
	j := b.random(len(candidates) - 1)
	if j >= i {
		j++
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.open[candidates[j]] < b.open[candidates[i]] {
		return j
	}
	return i
}

// add changes how many connections to an endpoint are open.
func (b *balancer) add(to netip.AddrPort, n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.open[to] += n; b.open[to] <= 0 {
		delete(b.open, to)
	}
}
