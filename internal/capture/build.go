package capture

import (
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// The addresses from which the proxy calls the application of its own pod: what
// comes from them is let through (contract 5.26-7, 5.28).
var (
	source4 = netip.AddrFrom4([4]byte{127, 0, 0, 6})
	source6 = netip.AddrFrom16([16]byte{15: 6})
)

// Build returns the rules for c, which must be valid. The order is that of
// contract 5.26.
func Build(c Config) Rules {
	b := builder{c}
	r := Rules{chains: []chain{
		{name: chainPrerouting, hook: hook{true, false, unix.NF_INET_PRE_ROUTING, "type nat hook prerouting priority dstnat; policy accept;"}, rules: b.prerouting()},
		{name: chainOutput, hook: hook{true, false, unix.NF_INET_LOCAL_OUT, "type nat hook output priority -100; policy accept;"}, rules: b.output(action{jump: chainOut})},
		{name: chainGuard, hook: hook{true, true, unix.NF_INET_LOCAL_OUT, "type filter hook output priority filter; policy accept;"}, rules: b.guard()},
		{name: chainInbound, rules: b.inbound()},
		{name: chainOut, rules: b.outbound(action{jump: chainRedirect}, action{jump: chainIn})},
		{name: chainStale, rules: b.outbound(action{drop: true}, action{drop: true})},
		{name: chainRedirect, rules: []rule{{[]match{tcp}, action{redirect: c.ProxyPort}}}},
		{name: chainIn, rules: []rule{{[]match{tcp}, action{redirect: c.InboundPort}}}},
	}}
	if c.IPv6 {
		r.loopback = []netip.Prefix{netip.PrefixFrom(source6, 128)}
	}
	return r
}

type builder struct{ Config }

// families returns the match that keeps rules without an address away from the
// family that the pod doesn't have.
func (b builder) families() []match {
	switch {
	case !b.IPv6:
		return []match{ipv4}
	case !b.IPv4:
		return []match{ipv6}
	}
	return nil
}

// ours reports whether the family of p is captured.
func (b builder) ours(p netip.Prefix) bool {
	return p.Addr().Is4() && b.IPv4 || p.Addr().Is6() && b.IPv6
}

// to returns one rule per range of a captured family: packets to it, and that
// meet the other matches, do then.
func (b builder) to(ranges []netip.Prefix, then action, when ...match) []rule {
	var rules []rule
	for _, p := range ranges {
		if b.ours(p) {
			rules = append(rules, rule{append(slices.Clone(when), address{in: p.Masked()}), then})
		}
	}
	return rules
}

// prerouting is rule 3, after the interfaces that are left alone or rerouted.
func (b builder) prerouting() []rule {
	var rules []rule
	for _, name := range b.RerouteInterfaces {
		in, redirect := device{name: name}, action{jump: chainRedirect}
		if b.IncludeOutboundCIDRs.All {
			rules = append(rules, rule{append(b.families(), in), redirect})
		} else {
			rules = append(rules, b.to(b.IncludeOutboundCIDRs.List, redirect, in)...)
		}
		rules = append(rules, rule{[]match{in}, action{}})
	}
	for _, name := range b.ExcludeInterfaces {
		rules = append(rules, rule{[]match{device{name: name}}, action{}})
	}
	if b.IncludeInboundPorts.All || len(b.IncludeInboundPorts.List) > 0 {
		rules = append(rules, rule{append(b.families(), tcp), action{jump: chainInbound}})
	}
	return rules
}

// output is rule 5.
func (b builder) output(then action, when ...match) []rule {
	var rules []rule
	for _, name := range b.ExcludeInterfaces {
		rules = append(rules, rule{[]match{device{out: true, name: name}}, action{}})
	}
	return append(rules, rule{append(b.families(), when...), then})
}

// guard drops what begins a connection and was not redirected though it should have
// been, or was though it should not. The kernel decides on redirection once for an entry
// of its connection tracking, and may take the first segment of a new connection for
// one of an earlier connection with the same addresses and ports: one that the other
// end has reset within the last 10 s, or that has ended without a word. If one was the
// proxy's and the other isn't, it would go past the proxy. The segment is sent again by
// itself, and passes when the entry is gone.
func (b builder) guard() []rule {
	rules := b.output(action{jump: chainStale}, opening{}, redirected{not: true})
	for _, proxy := range []owner{{id: b.UID}, {group: true, id: b.GID}} {
		rules = append(rules, rule{[]match{opening{}, redirected{}, port{proto: tcp, num: b.ProxyPort}, proxy}, action{drop: true}})
	}
	return rules
}

// inbound is rules 1 and 4.
func (b builder) inbound() []rule {
	toPort := func(num uint16, then action) rule { return rule{[]match{port{proto: tcp, num: num}}, then} }
	rules := []rule{toPort(portTunnel, action{})}
	capture := action{jump: chainIn}
	if !b.IncludeInboundPorts.All {
		for _, num := range unique(b.IncludeInboundPorts.List) {
			rules = append(rules, toPort(num, capture))
		}
		return rules
	}
	for _, num := range unique(append([]uint16{portMetrics, portHealth, portAgent}, b.ExcludeInboundPorts...)) {
		rules = append(rules, toPort(num, action{}))
	}
	return append(rules, rule{[]match{tcp}, capture})
}

// outbound is rules 6 to 12: what is done with packets to be redirected, and with those
// of the proxy to its own pod.
func (b builder) outbound(redirect, toOwn action) []rule {
	var rules []rule
	for _, num := range unique(b.ExcludeOutboundPorts) {
		rules = append(rules,
			rule{[]match{port{proto: tcp, num: num}}, action{}},
			rule{[]match{port{proto: udp, num: num}}, action{}})
	}
	lo := device{out: true, name: "lo"}
	for _, from := range []netip.Addr{source4, source6} {
		p := netip.PrefixFrom(from, from.BitLen())
		if b.ours(p) {
			rules = append(rules, rule{[]match{lo, address{source: true, in: p}}, action{}})
		}
	}
	rules = append(rules, b.owned(lo, owner{id: b.UID}, toOwn)...)
	rules = append(rules, b.owned(lo, owner{group: true, id: b.GID}, toOwn)...)
	rules = append(rules, b.to(b.loopback(), action{})...)
	rules = append(rules, b.to(b.ExcludeOutboundCIDRs, action{})...)
	for _, num := range unique(b.IncludeOutboundPorts) {
		rules = append(rules, rule{[]match{port{proto: tcp, num: num}}, redirect})
	}
	if b.IncludeOutboundCIDRs.All {
		return append(rules, rule{nil, redirect})
	}
	return append(rules, b.to(b.IncludeOutboundCIDRs.List, redirect)...)
}

// owned is rules 8 and 9: what the proxy sends to its own pod is inbound, what
// others send over lo and what the proxy sends elsewhere is let through.
func (b builder) owned(lo device, proxy owner, toOwn action) []rule {
	var rules []rule
	for _, p := range b.loopback() {
		if b.ours(p) {
			rules = append(rules, rule{
				[]match{lo, address{in: p.Masked(), not: true}, port{proto: tcp, num: portTunnel, not: true}, proxy},
				toOwn,
			})
		}
	}
	// someone who asks for a loopback range to be captured means it
	if !slices.ContainsFunc(b.IncludeOutboundCIDRs.List, func(p netip.Prefix) bool { return p.Addr().IsLoopback() }) {
		other := proxy
		other.not = true
		rules = append(rules, rule{[]match{lo, other}, action{}})
	}
	return append(rules, rule{[]match{proxy}, action{}})
}

// loopback returns the ranges by which programs of the pod reach each other.
func (b builder) loopback() []netip.Prefix {
	return []netip.Prefix{b.Loopback, netip.PrefixFrom(netip.IPv6Loopback(), 128)}
}

// unique returns the ports in order, each once.
func unique(ports []uint16) []uint16 {
	var out []uint16
	for _, p := range ports {
		if !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}
