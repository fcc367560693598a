package capture

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
)

// A MismatchError says in which ways the kernel doesn't hold the rules.
type MismatchError struct {
	Differences []string
}

// shown is how many differences an error's text has.
const shown = 5

func (e *MismatchError) Error() string {
	text := "capture differs: " + strings.Join(e.Differences[:min(shown, len(e.Differences))], "; ")
	if more := len(e.Differences) - shown; more > 0 {
		text += fmt.Sprintf("; and %d more", more)
	}
	return text
}

// Verify reads the rules back from the network namespace of the calling thread,
// compares them expression by expression, and tries the addresses that the proxy
// calls the application from. It returns a *MismatchError if they differ, and
// another error if they can't be read, for which CAP_NET_ADMIN is needed.
func Verify(ctx context.Context, r Rules) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("verify capture rules: %w", err)
	}
	held, err := read()
	if err != nil {
		return fmt.Errorf("read capture rules: %w", err)
	}
	differences := held.compare(r.chains)
	missing, err := missingOnLoopback(r.loopback)
	if err != nil {
		return err
	}
	for _, a := range missing {
		differences = append(differences, fmt.Sprintf("lo has no address %s", a))
	}
	sources := []netip.Addr{source4}
	if len(r.loopback) > 0 {
		sources = append(sources, source6)
	}
	for _, a := range sources {
		if err := tryBind(ctx, a); err != nil {
			differences = append(differences, fmt.Sprintf("the proxy can't call from %s: %v", a, err))
		}
	}
	if len(differences) > 0 {
		return &MismatchError{differences}
	}
	return nil
}

// table is what the kernel holds.
type table struct {
	present bool
	flags   uint32
	chains  []heldChain
}

type heldChain struct {
	*nftables.Chain
	rules [][]expr.Any
}

func read() (table, error) {
	c, err := connect()
	if err != nil {
		return table{}, err
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return table{}, fmt.Errorf("list tables: %w", err)
	}
	i := slices.IndexFunc(tables, func(t *nftables.Table) bool {
		return t.Name == tableName && t.Family == nftables.TableFamilyINet
	})
	if i < 0 {
		return table{}, nil
	}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return table{}, fmt.Errorf("list chains: %w", err)
	}
	held := table{present: true, flags: tables[i].Flags}
	for _, ch := range chains {
		if ch.Table == nil || ch.Table.Name != tableName {
			continue
		}
		rules, err := c.GetRules(ch.Table, ch)
		if err != nil {
			return table{}, fmt.Errorf("list rules of chain %s: %w", ch.Name, err)
		}
		h := heldChain{Chain: ch}
		for _, r := range rules {
			h.rules = append(h.rules, r.Exprs)
		}
		held.chains = append(held.chains, h)
	}
	return held, nil
}

// compare returns in which ways the table differs from what is wanted.
func (t table) compare(want []chain) []string {
	if !t.present {
		return []string{"table inet " + tableName + " is missing"}
	}
	var out []string
	if t.flags != 0 {
		out = append(out, fmt.Sprintf("table inet %s has flags %#x: it may be switched off", tableName, t.flags))
	}
	known := map[string]string{}
	for _, c := range want {
		for _, r := range c.rules {
			known[encode(r.exprs())] = r.text()
		}
	}
	for _, w := range want {
		i := slices.IndexFunc(t.chains, func(h heldChain) bool { return h.Name == w.name })
		if i < 0 {
			out = append(out, "chain "+w.name+" is missing")
			continue
		}
		if !t.chains[i].hooked(w) {
			out = append(out, fmt.Sprintf("chain %s is not hooked as %q", w.name, w.hook.text))
		}
		out = append(out, compareRules(w, t.chains[i].rules, known)...)
	}
	for _, h := range t.chains {
		if !slices.ContainsFunc(want, func(w chain) bool { return w.name == h.Name }) {
			out = append(out, "chain "+h.Name+" is there and should not be")
		}
	}
	return out
}

// hooked reports whether the kernel calls h where, and only where, w wants it.
func (h heldChain) hooked(w chain) bool {
	k := w.kernel(h.Table)
	return h.Type == k.Type && same(h.Hooknum, k.Hooknum) && same(h.Priority, k.Priority) && same(h.Policy, k.Policy)
}

func same[T comparable](a, b *T) bool {
	return a == nil && b == nil || a != nil && b != nil && *a == *b
}

// compareRules compares in order; known names the rules by what the kernel
// executes for them.
func compareRules(w chain, held [][]expr.Any, known map[string]string) []string {
	var out []string
	for i := range max(len(w.rules), len(held)) {
		want, have := "nothing", "nothing"
		if i < len(w.rules) {
			want = fmt.Sprintf("%q", w.rules[i].text())
		}
		if i < len(held) {
			code := encode(held[i])
			if i < len(w.rules) && code == encode(w.rules[i].exprs()) {
				continue
			}
			have = "a rule that is not ours"
			if text, ok := known[code]; ok {
				have = fmt.Sprintf("%q", text)
			}
		}
		out = append(out, fmt.Sprintf("chain %s, rule %d: want %s, the kernel has %s", w.name, i+1, want, have))
	}
	return out
}

// encode returns the expressions as netlink would carry them: equal if and only
// if they are.
func encode(es []expr.Any) string {
	var b bytes.Buffer
	for _, e := range es {
		code, err := expr.Marshal(byte(nftables.TableFamilyINet), e)
		if err != nil {
			fmt.Fprintf(&b, "%T: %v", e, err)
			continue
		}
		fmt.Fprintf(&b, "%d:", len(code))
		b.Write(code)
	}
	return b.String()
}

func missingOnLoopback(want []netip.Prefix) ([]netip.Prefix, error) {
	if len(want) == 0 {
		return nil, nil
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return nil, fmt.Errorf("find interface lo: %w", err)
	}
	have, err := netlink.AddrList(lo, netlink.FAMILY_V6)
	if err != nil {
		return nil, fmt.Errorf("list addresses of lo: %w", err)
	}
	var missing []netip.Prefix
	for _, w := range want {
		if !slices.ContainsFunc(have, func(a netlink.Addr) bool { return a.IP.Equal(w.Addr().AsSlice()) }) {
			missing = append(missing, w)
		}
	}
	return missing, nil
}

// tryBind reports why a socket can't have this address.
func tryBind(ctx context.Context, a netip.Addr) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", netip.AddrPortFrom(a, 0).String())
	if err != nil {
		return err
	}
	return l.Close()
}
