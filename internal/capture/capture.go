// Package capture moves a pod's TCP into its proxy.
//
// It owns one nftables table, inet podseal, in the pod's own network namespace,
// written and read over netlink; no nft or iptables program is needed. The table
// redirects what the pod's programs send to the proxy's outbound port and what
// arrives for them to its inbound port; nothing but TCP is touched. Order and
// meaning of the rules are those of contract 5.26-5.30:
//
//	prerouting → istio_inbound → istio_in_redirect → redirect to InboundPort
//	output     → istio_output  → istio_redirect    → redirect to ProxyPort
//	guard      → guard_output  → drop what should have been redirected and wasn't
//
// Build makes the rules from a Config and is pure; Rules.Text shows them the way
// nft does; Apply puts them into the kernel in one transaction, as often as one
// likes; Verify reads them back and says what differs. Invariant: a pod whose
// rules did not verify does not start.
//
// WidenLoopback makes the way cheaper that captured bytes take between application
// and proxy; ForgetResets shortens how long the guard holds a connection up. Nothing
// depends on either.
package capture

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Ports that are never captured on their way in (contract 5.26-4), and the
// tunnel port that rules 1 and 8 of contract 5.26 leave alone.
const (
	portMetrics = 15090
	portHealth  = 15021
	portAgent   = 15020
	portTunnel  = 15008
)

// Ports says which ports: all of them, or those of List. The zero value is none.
type Ports struct {
	All  bool
	List []uint16
}

// Ranges says which addresses: all of them, or those in List. The zero value is
// none.
type Ranges struct {
	All  bool
	List []netip.Prefix
}

// Config says what is captured. Default returns the values that an injected pod
// without annotations has.
type Config struct {
	// ProxyPort takes what the pod sends, InboundPort what it is sent.
	ProxyPort, InboundPort uint16
	// UID and GID are the proxy's own: what they own is not captured.
	UID, GID uint32

	// IncludeInboundPorts are captured on their way in. With a list the excluded
	// ports are not looked at; without any nothing is captured inbound (contract 5.29).
	IncludeInboundPorts Ports
	// ExcludeInboundPorts are let through to the application. The proxy's own
	// ports 15090, 15021 and 15020 are always among them.
	ExcludeInboundPorts []uint16

	// IncludeOutboundCIDRs are captured, less ExcludeOutboundCIDRs.
	IncludeOutboundCIDRs Ranges
	ExcludeOutboundCIDRs []netip.Prefix
	// IncludeOutboundPorts are captured whatever the address, unless it is
	// excluded (contract 5.30); ExcludeOutboundPorts are never captured.
	IncludeOutboundPorts, ExcludeOutboundPorts []uint16

	// ExcludeInterfaces are left alone in both directions. What comes in by
	// RerouteInterfaces (virtual machines in the pod) is treated as outbound.
	// A name may end in "+": all interfaces that begin so.
	ExcludeInterfaces, RerouteInterfaces []string

	// Loopback is what programs of the pod reach each other by (contract 5.27).
	Loopback netip.Prefix

	// IPv4 and IPv6 say which families the pod has; the other one is not touched.
	IPv4, IPv6 bool
}

// Default returns the configuration of a pod without annotations, on a pod that
// has both IPv4 and IPv6.
func Default() Config {
	return Config{
		ProxyPort: 15001, InboundPort: 15006,
		UID: 1337, GID: 1337,
		IncludeInboundPorts:  Ports{All: true},
		ExcludeInboundPorts:  []uint16{portMetrics, portHealth, portAgent},
		IncludeOutboundCIDRs: Ranges{All: true},
		Loopback:             netip.MustParsePrefix("127.0.0.1/32"),
		IPv4:                 true, IPv6: true,
	}
}

// Validate returns all the faults of c, joined.
func (c Config) Validate() error {
	var faults []error
	bad := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if c.ProxyPort == 0 {
		bad("proxy port is 0")
	}
	if c.InboundPort == 0 {
		bad("inbound port is 0")
	}
	if c.ProxyPort == c.InboundPort {
		bad("proxy port and inbound port are both %d", c.ProxyPort)
	}
	if c.UID == 0 {
		bad("proxy uid is 0: every program that runs as root would bypass the proxy")
	}
	if c.GID == 0 {
		bad("proxy gid is 0: every program that runs in group root would bypass the proxy")
	}
	if !c.Loopback.IsValid() || !c.Loopback.Addr().Is4() || !c.Loopback.Addr().IsLoopback() {
		bad("loopback range %q is not in 127.0.0.0/8", c.Loopback)
	}
	for _, p := range slices.Concat(c.IncludeOutboundCIDRs.List, c.ExcludeOutboundCIDRs) {
		if !p.IsValid() {
			bad("address range %q is not valid", p)
		}
	}
	for _, name := range slices.Concat(c.ExcludeInterfaces, c.RerouteInterfaces) {
		if err := checkInterface(name); err != nil {
			faults = append(faults, err)
		}
	}
	if !c.IPv4 && !c.IPv6 {
		bad("neither IPv4 nor IPv6 is to be captured")
	}
	return errors.Join(faults...)
}

// checkInterface says what is wrong with an interface name (at most 15 bytes, by
// the kernel's rules), which may end in "+".
func checkInterface(name string) error {
	switch {
	case name == "" || name == "." || name == "..":
		return fmt.Errorf("interface name %q is not valid", name)
	case name == "+":
		return errors.New(`interface name "+" would mean every interface`)
	case len(name) > 15:
		return fmt.Errorf("interface name %q is longer than 15 bytes", name)
	case strings.ContainsAny(name, "/:\"*\\ \t\r\n\x00"):
		return fmt.Errorf("interface name %q has a character that no interface name has", name)
	}
	return nil
}
