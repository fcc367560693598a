package capture

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Options is what the command line of the capture program says.
type Options struct {
	Config
	// VerifyOnly: change nothing, only say whether the rules are in place.
	VerifyOnly bool
	// DryRun: print the rules and do nothing.
	DryRun bool
	// ProveOnly: change and read nothing, but prove that the pod is captured (contract
	// 5.14).
	ProveOnly bool
}

// refusedEnv are settings that change what is captured and that are not honoured.
// Ignoring one of them would leave traffic uncaptured that a user wanted captured,
// or the reverse.
var refusedEnv = []string{
	"ISTIO_META_DNS_CAPTURE", "ISTIO_META_DNS_AUTO_ALLOCATE_CAPTURE",
	"ISTIO_OUTBOUND_OWNER_GROUPS", "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", "INVALID_DROP",
}

// Parse reads the arguments that an injected init container has (contract 5.13),
// by their short or long names, and the environment by getenv. All the values that
// are wrong are reported at once. IPv6 is left as Default has it. What -h prints
// goes to usage; the error is then flag.ErrHelp.
func Parse(args []string, getenv func(name string) string, usage io.Writer) (Options, error) {
	p := newParser(usage)
	if err := p.flags.Parse(args); err != nil {
		return Options{}, err
	}
	if rest := p.flags.Args(); len(rest) > 0 {
		p.bad("arguments %q are not understood", rest)
	}
	c := Default()
	c.ProxyPort = p.portOf("envoy-port")
	c.InboundPort = p.portOf("inbound-capture-port")
	c.UID = p.id("proxy-uid")
	c.GID = p.id("proxy-gid")
	c.IncludeInboundPorts = p.inbound("istio-inbound-ports")
	c.ExcludeInboundPorts = p.ports("istio-local-exclude-ports")
	c.IncludeOutboundCIDRs = p.ranges("istio-service-cidr")
	c.ExcludeOutboundCIDRs = p.cidrs("istio-service-exclude-cidr")
	c.IncludeOutboundPorts = p.ports("istio-outbound-ports")
	c.ExcludeOutboundPorts = p.ports("istio-local-outbound-ports-exclude")
	c.ExcludeInterfaces = p.list("istio-exclude-interfaces")
	c.RerouteInterfaces = p.list("kube-virt-interfaces")
	c.Loopback = p.loopback(getenv("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR"), c.Loopback)
	p.refuse(getenv)
	if p.validate != p.skipApply {
		p.bad("--run-validation and --skip-rule-apply go together only")
	}
	if err := errors.Join(p.faults...); err != nil {
		return Options{}, err
	}
	if err := c.Validate(); err != nil {
		return Options{}, err
	}
	return Options{Config: c, VerifyOnly: p.verifyOnly, DryRun: p.dryRun, ProveOnly: p.validate}, nil
}

type parser struct {
	flags               *flag.FlagSet
	values              map[string]*string
	refused             []string
	verifyOnly, dryRun  bool
	validate, skipApply bool
	faults              []error
}

func newParser(usage io.Writer) *parser {
	p := &parser{flags: flag.NewFlagSet("capture", flag.ContinueOnError), values: map[string]*string{}}
	p.flags.SetOutput(usage)
	p.text("envoy-port", "p", "15001", "`port` of the proxy for what the pod sends")
	p.text("inbound-capture-port", "z", "15006", "`port` of the proxy for what the pod is sent")
	p.text("proxy-uid", "u", "1337", "user `id` of the proxy: not captured")
	p.text("proxy-gid", "g", "1337", "group `id` of the proxy: not captured")
	p.text("istio-inbound-interception-mode", "m", "REDIRECT", "how inbound traffic is captured; only REDIRECT")
	p.text("istio-service-cidr", "i", "*", "`CIDRs` whose traffic is captured outbound, or *")
	p.text("istio-service-exclude-cidr", "x", "", "`CIDRs` whose traffic is not captured outbound")
	p.text("istio-inbound-ports", "b", "*", "`ports` that are captured inbound, or *; none if empty")
	p.text("istio-local-exclude-ports", "d", "15090,15021,15020", "`ports` that are not captured inbound")
	p.text("istio-outbound-ports", "q", "", "`ports` that are captured outbound whatever the address")
	p.text("istio-local-outbound-ports-exclude", "o", "", "`ports` that are not captured outbound")
	p.text("kube-virt-interfaces", "k", "", "`interfaces` of virtual machines, whose traffic is outbound")
	p.text("istio-exclude-interfaces", "c", "", "`interfaces` that are not captured")
	p.flags.BoolVar(&p.verifyOnly, "verify-only", false, "change nothing; exit 126 if the rules are not in place")
	p.flags.BoolVar(&p.validate, "run-validation", false, "prove that this pod is captured; exit 126 if it is not. Needs --skip-rule-apply")
	p.flags.BoolVar(&p.skipApply, "skip-rule-apply", false, "change nothing")
	p.flags.BoolVar(&p.dryRun, "dry-run", false, "print the rules and do nothing")
	for name, what := range map[string]string{
		"redirect-dns": "DNS capture", "capture-all-dns": "DNS capture", "drop-invalid": "dropping invalid packets",
		"ownership-groups": "capture by owner group",
	} {
		p.flags.BoolFunc(name, "not honoured: "+what, func(v string) error {
			if on, err := strconv.ParseBool(v); err != nil || on {
				p.refused = append(p.refused, "--"+name)
			}
			return nil
		})
	}
	return p
}

// text adds a flag by its long and its short name.
func (p *parser) text(long, short, value, help string) {
	v := new(string)
	p.values[long] = v
	p.flags.StringVar(v, long, value, help)
	p.flags.StringVar(v, short, value, "same as --"+long)
}

func (p *parser) bad(format string, args ...any) {
	p.faults = append(p.faults, fmt.Errorf(format, args...))
}

// refuse names what is asked for and not honoured (contract 5.31-5.33).
func (p *parser) refuse(getenv func(string) string) {
	switch mode := *p.values["istio-inbound-interception-mode"]; mode {
	case "REDIRECT", "":
	case "TPROXY":
		p.bad("--istio-inbound-interception-mode TPROXY is not honoured yet: use REDIRECT")
	default:
		p.bad("--istio-inbound-interception-mode %q is not known: use REDIRECT", mode)
	}
	for _, name := range slices.Sorted(slices.Values(p.refused)) {
		p.bad("%s is not honoured yet: leave it out", name)
	}
	for _, name := range refusedEnv {
		v := getenv(name)
		// that all groups are captured is what happens anyway
		if on, err := strconv.ParseBool(v); v != "" && (err != nil || on) && (name != "ISTIO_OUTBOUND_OWNER_GROUPS" || v != "*") {
			p.bad("environment variable %s=%q is not honoured yet: remove it", name, v)
		}
	}
}

// list returns the parts of a comma-separated value.
func (p *parser) list(name string) []string { return split(*p.values[name]) }

func split(s string) []string {
	var out []string
	for part := range strings.SplitSeq(s, ",") {
		if part = strings.TrimSpace(part); part != "" {
			out = append(out, part)
		}
	}
	return out
}

func (p *parser) portOf(name string) uint16 {
	n, err := strconv.ParseUint(*p.values[name], 10, 16)
	if err != nil || n == 0 {
		p.bad("--%s: %q is not a port (1 to 65535)", name, *p.values[name])
	}
	return uint16(n)
}

func (p *parser) id(name string) uint32 {
	// the kernel's "no such id" is 2^32-1
	n, err := strconv.ParseUint(*p.values[name], 10, 32)
	if err != nil || n == 1<<32-1 {
		p.bad("--%s: %q is not an id (a number)", name, *p.values[name])
	}
	return uint32(n)
}

func (p *parser) ports(name string) []uint16 {
	var out []uint16
	for _, s := range p.list(name) {
		n, err := strconv.ParseUint(s, 10, 16)
		if err != nil {
			p.bad("--%s: %q is not a port (0 to 65535)", name, s)
			continue
		}
		out = append(out, uint16(n))
	}
	return out
}

func (p *parser) inbound(name string) Ports {
	if slices.Equal(p.list(name), []string{"*"}) {
		return Ports{All: true}
	}
	return Ports{List: p.ports(name)}
}

func (p *parser) cidrs(name string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range p.list(name) {
		cidr, err := netip.ParsePrefix(s)
		if err != nil || cidr.Addr().Is4In6() {
			p.bad("--%s: %q is not an address range such as 10.0.0.0/8", name, s)
			continue
		}
		out = append(out, cidr.Masked())
	}
	return out
}

func (p *parser) ranges(name string) Ranges {
	if slices.Equal(p.list(name), []string{"*"}) {
		return Ranges{All: true}
	}
	return Ranges{List: p.cidrs(name)}
}

func (p *parser) loopback(value string, otherwise netip.Prefix) netip.Prefix {
	if value == "" {
		return otherwise
	}
	cidr, err := netip.ParsePrefix(value)
	if err != nil {
		p.bad("environment variable ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR: %q is not an address range such as 127.0.0.1/32", value)
		return otherwise
	}
	return cidr.Masked()
}
