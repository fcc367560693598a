package capture

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// tableName is the nftables table, of family inet, that is ours alone.
const tableName = "podseal"

// Names of chains. Those that the kernel calls first, then ours by the names that
// users of such meshes look for.
const (
	chainPrerouting = "prerouting"
	chainOutput     = "output"
	chainInbound    = "istio_inbound"
	chainIn         = "istio_in_redirect"
	chainOut        = "istio_output"
	chainRedirect   = "istio_redirect"
	chainGuard      = "guard"
	chainStale      = "guard_output"
)

// Rules is what capture wants the kernel to hold: the chains of its table, and
// the addresses that lo must have beside its own.
type Rules struct {
	chains   []chain
	loopback []netip.Prefix
}

// chain is a list of rules. One with a hook is called by the kernel there; the
// others are jumped to.
type chain struct {
	name  string
	hook  hook
	rules []rule
}

// hook is where the kernel calls a chain: the number of the hook and its name. The
// chain is of type nat, with the priority of destination NAT (-100), or a filter, which
// comes after that (0).
type hook struct {
	set    bool
	filter bool
	number uint32
	text   string
}

// rule says what happens to a packet that meets all matches.
type rule struct {
	when []match
	then action
}

// action is one of: leave the chain (the zero value), drop the packet, jump to a chain,
// or redirect to a local port.
type action struct {
	drop     bool
	jump     string
	redirect uint16
}

func (a action) text() string {
	switch {
	case a.redirect != 0:
		return fmt.Sprintf("redirect to :%d", a.redirect)
	case a.jump != "":
		return "jump " + a.jump
	case a.drop:
		return "drop"
	}
	return "return"
}

func (a action) exprs() []expr.Any {
	switch {
	case a.redirect != 0:
		// the maximum and the flag are what the kernel fills in by itself: stated
		// here so that what is read back is what was written
		return []expr.Any{
			&expr.Immediate{Register: 1, Data: binaryutil.BigEndian.PutUint16(a.redirect)},
			&expr.Redir{RegisterProtoMin: 1, RegisterProtoMax: 1, Flags: unix.NF_NAT_RANGE_PROTO_SPECIFIED},
		}
	case a.jump != "":
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: a.jump}}
	case a.drop:
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}
	}
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}}
}

func (r rule) text() string {
	var b strings.Builder
	for _, m := range r.when {
		b.WriteString(m.text() + " ")
	}
	return b.String() + r.then.text()
}

func (r rule) exprs() []expr.Any {
	var es []expr.Any
	for _, m := range r.when {
		es = append(es, m.exprs()...)
	}
	return append(es, r.then.exprs()...)
}

// Text returns the rules as "nft list table inet podseal" shows them.
func (r Rules) Text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "table inet %s {\n", tableName)
	for i, c := range r.chains {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "\tchain %s {\n", c.name)
		if c.hook.set {
			fmt.Fprintf(&b, "\t\t%s\n", c.hook.text)
		}
		for _, r := range c.rules {
			fmt.Fprintf(&b, "\t\t%s\n", r.text())
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}\n")
	return b.String()
}
