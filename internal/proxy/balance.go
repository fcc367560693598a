package proxy

import (
	"net/netip"
	"sync"

	"podseal.io/podseal/internal/workload"
)

// balancer counts the open connections to each endpoint, and to each service
// port, and picks endpoints. Without another word it goes by the power of two
// choices: two at random, of which the less loaded is taken (contract 3.58).
type balancer struct {
	random func(n int) int // from 0 to below n

	mu       sync.Mutex
	open     map[netip.AddrPort]int
	services map[portKey]int
	turns    map[portKey]uint // of the services whose endpoints take turns
}

func newBalancer(random func(n int) int) *balancer {
	return &balancer{random: random, open: map[netip.AddrPort]int{}, services: map[portKey]int{}, turns: map[portKey]uint{}}
}

// pick returns the index of one of the candidates, of which there is at least one.
func (b *balancer) pick(how workload.Balance, of portKey, candidates []netip.AddrPort) int {
	if len(candidates) == 1 {
		return 0
	}
	switch how {
	case workload.Random:
		return b.random(len(candidates))
	case workload.RoundRobin:
		b.mu.Lock()
		defer b.mu.Unlock()
		b.turns[of]++
		return int(b.turns[of] % uint(len(candidates)))
	default:
		return b.lessLoaded(candidates)
	}
}

func (b *balancer) lessLoaded(candidates []netip.AddrPort) int {
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

// enter counts a connection to a service port, unless there are most already; 0
// is no bound. It reports whether it did.
func (b *balancer) enter(of portKey, most uint32) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if most > 0 && b.services[of] >= int(most) {
		return false
	}
	b.services[of]++
	return true
}

// leave undoes enter.
func (b *balancer) leave(of portKey) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.services[of]--; b.services[of] <= 0 {
		delete(b.services, of)
	}
}
