package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// clusterLocal stands for the mesh's trust domain whatever that is (contract 6.30).
const clusterLocal = "cluster.local"

// maxServiceAccount bounds a value of serviceAccounts, in bytes (contract 6.22).
const maxServiceAccount = 320

// clause is one half of a Match, compiled: one of the values, or with not, none.
type clause struct {
	on   Attribute
	not  bool
	key  []string
	text []text
	// One of these for attributes that aren't text.
	prefixes []netip.Prefix
	ports    []uint16
	accounts []account
	tokens   []tokenPrincipal
}

type account struct{ namespace, name string }

type tokenPrincipal struct{ issuer, subject text }

// compiler adds one policy to tables.
type compiler struct {
	policy       *AuthorizationPolicy
	trustDomains []string
	faults       []error
}

// add compiles the policy's rules for HTTP, or for connections that aren't.
func (c *compiler) add(b *table, tcp bool) {
	p := c.policy
	dry := p.DryRun && (p.Effect == Allow || p.Effect == Deny) // contract 6.43
	b.dry = b.dry || dry
	into := &b.deny
	switch {
	case p.Effect == Allow && dry:
		b.dryLimits, into = true, &b.dryAllow
	case p.Effect == Allow:
		b.restricts, into, b.restricting = true, &b.allow, append(b.restricting, p.Key())
	case p.Effect == Deny && dry:
		into = &b.dryDeny
	case p.Effect == Audit:
		into = &b.audit
	case p.Effect != Deny && p.Effect != Custom:
		c.fault("%v is unknown", p.Effect)
	}
	for i := range p.Rules {
		r := &p.Rules[i]
		if r.Never || (tcp && p.Effect == Allow && r.NeedsHTTP()) { // contract 6.16, 6.33
			continue
		}
		compiled := rule{name: p.ruleName(i), policy: p.Key(), number: i, from: c.alternatives(r.From, tcp), to: c.alternatives(r.To, tcp), when: c.all(r.When, tcp)}
		if p.Effect == Custom {
			b.custom = append(b.custom, customRule{compiled, p.Authorizer})
			continue
		}
		*into = append(*into, compiled)
	}
}

func (c *compiler) fault(format string, args ...any) {
	c.faults = append(c.faults, fmt.Errorf("policy %s: "+format, append([]any{c.policy.Key()}, args...)...))
}

func (c *compiler) alternatives(parts [][]Match, tcp bool) [][]clause {
	var out [][]clause
	for _, part := range parts {
		out = append(out, c.all(part, tcp))
	}
	return out
}

// all compiles a conjunction. Outside HTTP what only HTTP has is passed over,
// which widens what is denied (contract 6.34, 6.35).
func (c *compiler) all(matches []Match, tcp bool) []clause {
	var out []clause
	for i := range matches {
		m := &matches[i]
		if tcp && m.On.HTTPOnly() {
			continue
		}
		if len(m.Values) > 0 {
			out = append(out, c.clause(m, m.Values, false))
		}
		if len(m.NotValues) > 0 {
			out = append(out, c.clause(m, m.NotValues, true))
		}
		if len(m.Values) == 0 && len(m.NotValues) == 0 {
			c.fault("%v has no value", m.On)
		}
	}
	return out
}

func (c *compiler) clause(m *Match, values []string, not bool) clause {
	out := clause{on: m.On, not: not, key: m.Key}
	if wantsKey := m.On == RequestHeader || m.On == RequestClaim; wantsKey != (len(m.Key) > 0) || (m.On == RequestHeader && len(m.Key) > 1) || slices.Contains(m.Key, "") {
		c.fault("%v has the key %q", m.On, m.Key)
	}
	for _, v := range c.expand(m.On, values) {
		if err := out.value(v, c.policy.Namespace); err != nil {
			c.fault("%v: %w", m.On, err)
		}
	}
	return out
}

// value adds one value of the clause's attribute.
func (c *clause) value(v, namespace string) error {
	if err := CheckValue(c.on, v); err != nil {
		return err
	}
	switch c.on {
	case SourceIP, RemoteIP, DestinationIP:
		p, err := ParseBlock(v)
		c.prefixes = append(c.prefixes, p)
		return err
	case DestinationPort:
		n, err := parsePort(v)
		c.ports = append(c.ports, n)
		return err
	case SourceServiceAccount:
		ns, name, both := strings.Cut(v, "/")
		if !both {
			ns, name = namespace, v
		}
		c.accounts = append(c.accounts, account{ns, name})
	case RequestPrincipal:
		c.tokens = append(c.tokens, parseTokenPrincipal(v))
	case SourceNamespace, SourceTrustDomain:
		c.text = append(c.text, parseGlob(v))
	case RequestPath:
		c.text = append(c.text, parsePath(v))
	case RequestHost:
		t := parseText(strings.ToLower(v))
		t.fold = true
		c.text = append(c.text, t)
	default:
		c.text = append(c.text, parseText(v))
	}
	return nil
}

// CheckValue says what is wrong with a value for an attribute; nil if nothing is.
func CheckValue(on Attribute, v string) error {
	switch on {
	case SourceIP, RemoteIP, DestinationIP:
		_, err := ParseBlock(v)
		return err
	case DestinationPort:
		_, err := parsePort(v)
		return err
	case RequestPath:
		return checkPath(v)
	case SourceServiceAccount:
		return checkAccount(v)
	case SourceTrustDomain:
		if v != "*" && strings.Count(v, "*") > 1 {
			return errors.New("has more than one `*`")
		}
	default:
	}
	if !on.Valid() {
		return fmt.Errorf("%v is not known", on)
	}
	if v == "" {
		return errors.New("is empty")
	}
	return nil
}

// ParseBlock reads an address or a range of addresses.
func ParseBlock(v string) (netip.Prefix, error) {
	if !strings.Contains(v, "/") {
		a, err := netip.ParseAddr(v)
		if err != nil || a.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("%q is not an IP address", v)
		}
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(v)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is not a range of IP addresses", v)
	}
	if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
	}
	return p.Masked(), nil
}

func parsePort(v string) (uint16, error) {
	n, err := strconv.ParseUint(v, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("%q is not a port number", v)
	}
	return uint16(n), nil
}

// checkAccount allows "<name>" and "<namespace>/<name>" (contract 6.22).
func checkAccount(v string) error {
	ns, name, both := strings.Cut(v, "/")
	switch {
	case len(v) > maxServiceAccount:
		return fmt.Errorf("is %d characters long, at most %d are allowed", len(v), maxServiceAccount)
	case ns == "" || (both && (name == "" || strings.Contains(name, "/"))):
		return fmt.Errorf("%q has neither the form <name> nor <namespace>/<name>", v)
	case strings.Contains(v, "*"):
		return fmt.Errorf("%q has a wildcard, which service accounts can't have", v)
	}
	return nil
}

// parseTokenPrincipal splits at the last slash, since an issuer may be a URL
// (contract 6.29).
func parseTokenPrincipal(v string) tokenPrincipal {
	slash := strings.LastIndexByte(v, '/')
	star := text{kind: nonEmpty}
	switch {
	case v == "*":
		return tokenPrincipal{star, star}
	case slash < 0 && v[0] == '*':
		return tokenPrincipal{star, parseText(v)}
	case slash < 0 && v[len(v)-1] == '*':
		return tokenPrincipal{parseText(v), star}
	case slash < 0:
		return tokenPrincipal{text{kind: exact, s: v}, text{kind: exact}}
	}
	issuer, subject := text{kind: exact, s: v[:slash]}, text{kind: exact, s: v[slash+1:]}
	switch {
	case v[0] == '*':
		issuer = parseText(v[:slash])
	case v[len(v)-1] == '*':
		subject = parseText(v[slash+1:])
	}
	return tokenPrincipal{issuer, subject}
}

// expand writes values for each trust domain of the mesh (contract 6.30).
func (c *compiler) expand(on Attribute, values []string) []string {
	if on != SourcePrincipal && on != SourceTrustDomain {
		return values
	}
	var out []string
	for _, v := range values {
		switch {
		case on == SourcePrincipal:
			out = append(out, aliases(v, c.trustDomains)...)
		case slices.Contains(c.trustDomains, v):
			out = append(out, c.trustDomains...)
		default:
			out = append(out, v)
		}
	}
	return out
}

// aliases writes a principal for each trust domain of the mesh, if its own is one
// of them or stands for them.
func aliases(principal string, trustDomains []string) []string {
	td, rest, _ := strings.Cut(principal, "/")
	if strings.Count(principal, "/") != 4 || td == "*" {
		return []string{principal}
	}
	pattern := parseText(td)
	known := td == clusterLocal
	var out []string
	for _, domain := range trustDomains {
		if td != "" && matchText(&pattern, domain) {
			known = true
			if pattern.kind != exact { // it covers this one as it is
				out = append(out, principal)
				continue
			}
		}
		out = append(out, domain+"/"+rest)
	}
	if !known || len(out) == 0 {
		return []string{principal}
	}
	return out
}
