package proxy

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"podseal.io/podseal/internal/meshtest"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/workload"
)

func endpoints(n int) []netip.AddrPort {
	all := make([]netip.AddrPort, n)
	for i := range all {
		all[i] = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), 80)
	}
	return all
}

func picking(how workload.Balance, of string, candidates []netip.AddrPort) choice {
	return choice{policy: &workload.TrafficPolicy{Balance: how}, of: portKey{of, 80}, candidates: candidates}
}

// TestBalancerPrefersTheLessLoaded proves contract 3.58.
func TestBalancerPrefersTheLessLoaded(t *testing.T) {
	two := endpoints(2)
	for first := range 2 { // whichever of the two comes first
		bal := newBalancer(func(n int) int { return min(first, n-1) }, time.Now)
		bal.add(two[0], 2)
		bal.add(two[1], 1)
		if got := bal.pick(picking(workload.LeastRequest, "a", two)); got != two[1] {
			t.Errorf("picked %s, want the one with fewer connections", got)
		}
		bal.add(two[0], -2)
		if got := bal.pick(picking(workload.LeastRequest, "a", two)); got != two[0] {
			t.Errorf("picked %s after the other became idle", got)
		}
		if len(bal.open) != 1 {
			t.Errorf("%d endpoints kept, want only the one in use", len(bal.open))
		}
	}
}

func TestBalancerTakesTurns(t *testing.T) {
	bal := newBalancer(func(int) int { return 1 }, time.Now)
	all := endpoints(3)
	var got []netip.AddrPort
	for range 4 {
		got = append(got, bal.pick(picking(workload.RoundRobin, "a", all)))
	}
	if !slices.Equal(got, []netip.AddrPort{all[1], all[2], all[0], all[1]}) || bal.pick(picking(workload.RoundRobin, "b", all)) != all[1] {
		t.Error("turns", got)
	}
	if bal.pick(picking(workload.Random, "a", all)) != all[1] {
		t.Error("chance")
	}
}

// TestSourceHash: a client address keeps its endpoint when others come and go,
// whatever the order, and all get their share (consistentHash.useSourceIp).
func TestSourceHash(t *testing.T) {
	bal := newBalancer(func(int) int { panic("no chance is wanted") }, time.Now)
	all := endpoints(10)
	gone := all[3]
	fewer := slices.DeleteFunc(slices.Clone(all), func(a netip.AddrPort) bool { return a == gone })
	slices.Reverse(fewer)
	share := map[netip.AddrPort]int{}
	const sources = 10_000
	for i := range sources {
		c := picking(workload.SourceHash, "a", all)
		c.source = netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})
		at := bal.pick(c)
		share[at]++
		c.candidates = fewer
		if now := bal.pick(c); now != at && at != gone {
			t.Fatalf("%s moved from %s to %s, which nothing asked for", c.source, at, now)
		}
		c.source = netip.AddrFrom16(c.source.As16())
		if c.candidates = all; bal.pick(c) != at {
			t.Fatal("another endpoint for the same address in its other form")
		}
	}
	for at, n := range share {
		if n < sources/10*8/10 || n > sources/10*12/10 {
			t.Errorf("%s has %d of %d", at, n, sources)
		}
	}
}

// TestOutliers: endpoints that can't be connected to are left out, for longer each
// time, never more of them than allowed, and come back.
func TestOutliers(t *testing.T) {
	now := time.Unix(0, 0)
	o := newOutliers(func() time.Time { return now })
	rule := &workload.Outlier{Failures: 2, Ejection: 30 * time.Second, Interval: 10 * time.Second, MaxPercent: 50, MinHealthy: 0}
	of, all := portKey{"a", 80}, endpoints(4)
	fail := func(at netip.AddrPort, times int) {
		for range times {
			o.failed(backend{of, at}, rule)
		}
	}
	left := func(want ...netip.AddrPort) {
		t.Helper()
		if got := o.without(of, rule, all); !slices.Equal(got, want) {
			t.Errorf("%s: left are %v, want %v", now.Sub(time.Unix(0, 0)), got, want)
		}
	}
	fail(all[0], 1)
	o.worked(backend{of, all[0]}, rule)
	if len(o.ailing) != 0 {
		t.Error("one that works is remembered")
	}
	fail(all[0], 1)
	left(all...) // not in a row
	fail(all[0], 1)
	left(all[1:]...)
	if got := o.without(portKey{"b", 80}, rule, all); len(got) != 4 {
		t.Error("another service's endpoint is left out")
	}
	now = now.Add(time.Second)
	fail(all[1], 2)
	left(all[2:]...)
	now = now.Add(time.Second)
	fail(all[2], 2)
	left(all[2:]...) // no more than half: the first ones
	now = now.Add(28 * time.Second)
	left(all[0], all[3])
	fail(all[0], 2) // again, and so for twice as long
	now = now.Add(59 * time.Second)
	left(all[1:]...)
	now = now.Add(time.Second)
	left(all...)
	now = now.Add(20 * time.Second)
	o.worked(backend{of, all[0]}, rule)
	if o.ailing[backend{of, all[0]}] != nil {
		t.Error("what went well for long enough is remembered")
	}
	one := all[:1]
	fail(one[0], 2)
	if got := o.without(of, rule, one); len(got) != 1 {
		t.Error("the only endpoint is left out")
	}
	rule.MinHealthy = 80
	left(all...)
	rule.MinHealthy, rule.MaxPercent = 0, 0
	left(all[1:]...) // at least one
}

// TestOutliersAreBounded: whatever fails, not more than so much is remembered, and
// not for ever.
func TestOutliersAreBounded(t *testing.T) {
	now := time.Unix(0, 0)
	o := newOutliers(func() time.Time { return now })
	rule := &workload.Outlier{Failures: 5, Ejection: time.Second, Interval: time.Second}
	for i := range maxAiling + 10 {
		o.failed(backend{portKey{"a", 80}, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 80)}, rule)
	}
	if len(o.ailing) != maxAiling {
		t.Errorf("%d are remembered", len(o.ailing))
	}
	now = now.Add(ailingFor + time.Second)
	o.failed(backend{portKey{"b", 80}, endpoints(1)[0]}, rule)
	if len(o.ailing) != 1 {
		t.Errorf("%d are remembered after a while", len(o.ailing))
	}
}

// TestOutlierIsLeftOut: two connections of which the first try fails are enough for
// this rule; then the endpoint that doesn't answer isn't tried any more.
func TestOutlierIsLeftOut(t *testing.T) {
	p := newPair(t, policy.TCP, meshtest.Echo)
	service := p.world.Services[0]
	dead := workload.Endpoint{Address: p.outsider(), Ready: true, Targets: service.Endpoints[0].Targets}
	service.Endpoints = append(service.Endpoints, dead)
	p.world.Rules = append(p.world.Rules, &workload.DestinationRule{
		Namespace: "shop", Name: "r", Host: service.Hostname, ExportTo: []string{"*"}, Created: time.Unix(0, 0),
		Policy: &workload.TrafficPolicy{
			Balance: workload.RoundRobin,
			Outlier: &workload.Outlier{Failures: 2, Ejection: time.Hour, Interval: time.Hour, MaxPercent: 100},
		},
	})
	p.tell()
	for range 8 { // round robin meets it with every second one
		c := p.dial()
		exchange(t, c, "x")
		c.Close()
	}
	b := backend{portKey{service.Hostname, service.Ports[0].Port}, netip.AddrPortFrom(dead.Address, dead.Targets[service.Ports[0].Port])}
	a := p.clientSide.balance.outliers.ailing[b]
	if a == nil || a.times != 1 || a.failures != 0 {
		t.Errorf("the one that doesn't answer: %+v", a)
	}
}

// TestLimitsOfTime: idleTimeout and maxConnectionDuration of a rule.
func TestLimitsOfTime(t *testing.T) {
	for reason, pool := range map[policy.Reason]*workload.TrafficPolicy{
		policy.IdleTimeout: {IdleTimeout: time.Millisecond},
		policy.MaxDuration: {MaxDuration: 50 * time.Millisecond},
	} {
		p := newPair(t, policy.TCP, meshtest.Echo)
		p.world.Rules = append(p.world.Rules, &workload.DestinationRule{Namespace: "shop", Name: "r", Host: "*.local", ExportTo: []string{"*"}, Created: time.Unix(0, 0), Policy: pool})
		p.tell()
		_ = ends(t, p.dial())
		if r := record(t, p.clientSide, withReason(reason)); !strings.Contains(r.Rule, "shop/r") {
			t.Errorf("record %+v", r)
		}
	}
}

// TestPassthroughIsDecidedAnew: where the cluster chooses who answers, it does so for
// each connection: none is carried by the TLS of an earlier one.
func TestPassthroughIsDecidedAnew(t *testing.T) {
	p := newPair(t, policy.TCP, meshtest.Echo)
	p.service = p.app // its address is dialled as it is
	s := p.world.Services[0]
	s.Addresses, s.Ports[0].Port = p.server.Addresses, p.app.Port()
	s.Endpoints[0].Targets = map[uint16]uint16{p.app.Port(): p.app.Port()}
	p.world.Rules = append(p.world.Rules, &workload.DestinationRule{
		Namespace: "shop", Name: "r", Host: s.Hostname, ExportTo: []string{"*"}, Created: time.Unix(0, 0), Policy: &workload.TrafficPolicy{Balance: workload.Passthrough},
	})
	p.tell()
	for range 2 {
		p.once(t)
		if r := last(t, p.clientSide); r.Security != "mutual_tls" || r.Reused || r.Rule != "shop/r" || r.DestinationIdentity != p.server.Identity.String() {
			t.Errorf("record %+v", r)
		}
		p.kept(t, 0)
	}
}
