package proxy

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	"podseal.io/podseal/internal/workload"
)

const (
	// longestEjection bounds how long an endpoint is left out, unless a rule's base
	// time alone is longer.
	longestEjection = 5 * time.Minute
	// maxAiling bounds how many endpoints are remembered, and ailingFor for how long
	// one is of which nothing more is heard.
	maxAiling = 4096
	ailingFor = 30 * time.Minute
)

// outliers remembers the endpoints that could not be connected to, as the
// DestinationRules of their services want it.
type outliers struct {
	now func() time.Time

	mu     sync.Mutex
	ailing map[backend]*ailment
}

// backend is an endpoint of one service port: services have rules of their own.
type backend struct {
	of portKey
	at netip.AddrPort
}

// ailment is what is wrong with a backend.
type ailment struct {
	failures uint32    // in a row, since it was left out last
	times    int64     // it was left out; counts for how long it is the next time
	since    time.Time // it is left out, or was
	until    time.Time
	touched  time.Time
}

func newOutliers(now func() time.Time) *outliers {
	return &outliers{now: now, ailing: map[backend]*ailment{}}
}

// failed notes that a backend could not be connected to.
func (o *outliers) failed(b backend, rule *workload.Outlier) {
	if rule == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	now := o.now()
	a := o.ailing[b]
	if a == nil {
		if len(o.ailing) >= maxAiling && !o.forget(now) {
			return
		}
		a = &ailment{}
		o.ailing[b] = a
	}
	a.touched = now
	if a.failures++; a.failures < rule.Failures || now.Before(a.until) {
		return
	}
	a.heal(now, rule.Interval)
	a.times++
	a.failures, a.since = 0, now
	a.until = now.Add(min(time.Duration(a.times)*rule.Ejection, max(rule.Ejection, longestEjection)))
}

// worked notes that a backend was connected to.
func (o *outliers) worked(b backend, rule *workload.Outlier) {
	if rule == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	a := o.ailing[b]
	if a == nil {
		return
	}
	now := o.now()
	a.failures, a.touched = 0, now
	if !now.Before(a.until) {
		a.heal(now, rule.Interval)
	}
	if a.times == 0 {
		delete(o.ailing, b)
	}
}

// heal counts one time less for each interval that has passed well.
func (a *ailment) heal(now time.Time, interval time.Duration) {
	if a.times == 0 || interval <= 0 {
		return
	}
	well := int64(max(0, now.Sub(a.until)) / interval)
	a.times = max(0, a.times-well)
	a.until = a.until.Add(time.Duration(well) * interval)
}

// forget makes room, and reports whether there is any. Callers hold mu.
func (o *outliers) forget(now time.Time) bool {
	for b, a := range o.ailing {
		if now.Sub(a.touched) > ailingFor {
			delete(o.ailing, b)
		}
	}
	return len(o.ailing) < maxAiling
}

// without returns the endpoints of a service port that are not left out: all of
// them if the rule wants so, and at least one.
func (o *outliers) without(of portKey, rule *workload.Outlier, all []netip.AddrPort) []netip.AddrPort {
	if rule == nil {
		return all
	}
	type ejected struct {
		at    netip.AddrPort
		since time.Time
	}
	var out []ejected
	o.mu.Lock()
	if len(o.ailing) > 0 {
		now := o.now()
		for _, at := range all {
			if a := o.ailing[backend{of, at}]; a != nil && now.Before(a.until) {
				out = append(out, ejected{at, a.since})
			}
		}
	}
	o.mu.Unlock()
	if len(out) == 0 {
		return all
	}
	slices.SortFunc(out, func(a, b ejected) int { return a.since.Compare(b.since) })
	out = out[:min(len(out), max(1, len(all)*int(rule.MaxPercent)/100))]
	left := slices.DeleteFunc(slices.Clone(all), func(at netip.AddrPort) bool {
		return slices.ContainsFunc(out, func(e ejected) bool { return e.at == at })
	})
	if len(left) == 0 || len(left)*100 < len(all)*int(rule.MinHealthy) {
		return all
	}
	return left
}
