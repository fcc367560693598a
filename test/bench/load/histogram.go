package load

import "math/bits"

// histogram counts times to 1.6 %: 64 steps for each power of two of ns.
type histogram struct {
	counts [64 * 64]uint32
	total  uint64
	max    int64
}

const steps = 6 // bits

func (h *histogram) add(ns int64) {
	ns = max(ns, 1)
	h.max = max(h.max, ns)
	h.total++
	h.counts[bucket(uint64(ns))]++
}

func bucket(v uint64) int {
	e := bits.Len64(v)
	if e <= steps+1 {
		return int(v)
	}
	shift := e - steps - 1
	return shift<<steps + int(v>>shift)
}

// floor is the smallest value of a bucket.
func floor(i int) uint64 {
	if i < 2<<steps {
		return uint64(i)
	}
	shift := i>>steps - 1
	return uint64(i-shift<<steps) << shift
}

// quantile is in µs, the middle of its bucket.
func (h *histogram) quantile(q float64) float64 {
	if h.total == 0 {
		return 0
	}
	rank := uint64(q * float64(h.total))
	if rank >= h.total {
		rank = h.total - 1
	}
	var seen uint64
	for i, n := range h.counts {
		seen += uint64(n)
		if seen > rank {
			return min(float64(floor(i)+floor(i+1))/2, float64(h.max)) / 1e3
		}
	}
	return float64(h.max) / 1e3
}

func (h *histogram) merge(o *histogram) {
	for i, n := range o.counts {
		h.counts[i] += n
	}
	h.total += o.total
	h.max = max(h.max, o.max)
}
