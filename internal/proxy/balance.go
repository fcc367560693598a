package proxy

import (
	"net/netip"
	"sync"
	"time"

	"podseal.io/podseal/internal/workload"
)

// balancer counts the open connections to each endpoint, and to each service
// port, and picks endpoints. Without another word it goes by the power of two
// choices: two at random, of which the less loaded is taken (contract 3.58).
type balancer struct {
	random   func(n int) int // from 0 to below n
	outliers *outliers

	mu       sync.Mutex
	open     map[netip.AddrPort]int
	services map[portKey]int
	turns    map[portKey]uint // of the services whose endpoints take turns
}

func newBalancer(random func(n int) int, now func() time.Time) *balancer {
	return &balancer{random: random, outliers: newOutliers(now), open: map[netip.AddrPort]int{}, services: map[portKey]int{}, turns: map[portKey]uint{}}
}

// choice is what a picker is asked.
type choice struct {
	policy     *workload.TrafficPolicy
	of         portKey
	source     netip.Addr       // who connects
	candidates []netip.AddrPort // at least one
}

// picker returns one of the candidates.
type picker func(choice) netip.AddrPort

func (b *balancer) pick(c choice) netip.AddrPort {
	c.candidates = b.outliers.without(c.of, c.policy.Outlier, c.candidates)
	if len(c.candidates) == 1 {
		return c.candidates[0]
	}
	switch c.policy.Balance {
	case workload.Random:
		return c.candidates[b.random(len(c.candidates))]
	case workload.RoundRobin:
		b.mu.Lock()
		defer b.mu.Unlock()
		b.turns[c.of]++
		return c.candidates[b.turns[c.of]%uint(len(c.candidates))]
	case workload.SourceHash:
		return highest(c.source, c.candidates)
	default:
		return c.candidates[b.lessLoaded(c.candidates)]
	}
}

// highest gives a source the same endpoint for as long as it is a candidate, and
// moves only the sources of one that is gone (rendezvous hashing).
func highest(source netip.Addr, candidates []netip.AddrPort) netip.AddrPort {
	var best netip.AddrPort
	var top uint64
	from := source.Unmap().As16()
	for _, at := range candidates {
		to := at.Addr().As16()
		h := mix(fnv(fnv(fnvOffset, from[:]), append(to[:], byte(at.Port()>>8), byte(at.Port()))))
		if h > top || !best.IsValid() || (h == top && at.Compare(best) < 0) {
			best, top = at, h
		}
	}
	return best
}

// fnvOffset is where FNV-1a begins.
const fnvOffset = 14695981039346656037

func fnv(h uint64, b []byte) uint64 {
	for _, x := range b {
		h = (h ^ uint64(x)) * 1099511628211
	}
	return h
}

// mix spreads what FNV leaves in the low bits of addresses that differ in one
// byte (the finalizer of MurmurHash3).
func mix(h uint64) uint64 {
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return h ^ h>>33
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
