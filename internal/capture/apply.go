package capture

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/google/nftables"
	mdnetlink "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// socketBuffer, in bytes, holds the kernel's answers to the longest batch that
// annotations can ask for; each rule is answered twice.
const socketBuffer = 8 << 20

// Apply makes the network namespace of the calling thread hold the rules: its
// table is replaced by the new one in a single transaction, so that no packet
// sees half of it, and the addresses are added to lo. Apply may be repeated. It
// needs CAP_NET_ADMIN. An error names the kernel module that is missing, if that
// is what is wrong.
func Apply(ctx context.Context, r Rules) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("apply capture rules: %w", err)
	}
	if err := commit(func(c *nftables.Conn) { replace(c, tableName, r.chains) }); err != nil {
		return fmt.Errorf("apply capture rules: %w", explain(err))
	}
	return addLoopback(r.loopback)
}

// commit sends what fill adds, as one transaction.
func commit(fill func(*nftables.Conn)) error {
	c, err := connect()
	if err != nil {
		return err
	}
	fill(c)
	return c.Flush()
}

func connect() (*nftables.Conn, error) {
	return nftables.New(nftables.WithSockOptions(func(c *mdnetlink.Conn) error {
		if err := c.SetReadBuffer(socketBuffer); err != nil {
			return fmt.Errorf("enlarge netlink socket: %w", err)
		}
		if err := c.SetWriteBuffer(socketBuffer); err != nil {
			return fmt.Errorf("enlarge netlink socket: %w", err)
		}
		return nil
	}))
}

// replace adds to c what makes the table hold these chains and no others.
// Deleting a table that isn't there is an error, so it is added first.
func replace(c *nftables.Conn, name string, chains []chain) {
	t := &nftables.Table{Name: name, Family: nftables.TableFamilyINet}
	c.AddTable(t)
	c.DelTable(t)
	c.AddTable(t)
	// all chains first: a rule may only jump to one that is there
	made := make([]*nftables.Chain, len(chains))
	for i, ch := range chains {
		made[i] = c.AddChain(ch.kernel(t))
	}
	for i, ch := range chains {
		for _, r := range ch.rules {
			c.AddRule(&nftables.Rule{Table: t, Chain: made[i], Exprs: r.exprs()})
		}
	}
}

func (c chain) kernel(t *nftables.Table) *nftables.Chain {
	k := &nftables.Chain{Name: c.name, Table: t}
	if c.hook.set {
		accept := nftables.ChainPolicyAccept
		k.Type, k.Policy = nftables.ChainTypeNAT, &accept
		k.Hooknum, k.Priority = new(nftables.ChainHook(c.hook.number)), nftables.ChainPriorityNATDest
		if c.hook.filter {
			k.Type, k.Priority = nftables.ChainTypeFilter, nftables.ChainPriorityFilter
		}
	}
	return k
}

// explain finds out what a refused transaction failed of: it tries its parts in a
// table of another name, and takes that away again.
func explain(cause error) error {
	const probe = tableName + "-probe"
	table := &nftables.Table{Name: probe, Family: nftables.TableFamilyINet}
	defer func() {
		_ = commit(func(c *nftables.Conn) { c.AddTable(table); c.DelTable(table) }) // the cause is what matters
	}()
	base := chain{name: "output", hook: hook{set: true, number: unix.NF_INET_LOCAL_OUT}}
	redirecting := base
	redirecting.rules = []rule{{[]match{tcp}, action{redirect: 1}}}
	owned := base
	owned.rules = []rule{{[]match{owner{id: 1}, device{out: true, name: "lo"}}, action{}}}
	asking := base
	asking.rules = []rule{{[]match{redirected{}}, action{drop: true}}}
	parts := []struct {
		module string
		chains []chain
	}{
		{"nf_tables (with its inet family)", nil},
		{"nft_chain_nat (destination NAT in inet tables: Linux 5.2 or later)", []chain{base}},
		{"nft_meta", []chain{owned}},
		{"nft_redir", []chain{redirecting}},
		{"nft_ct", []chain{asking}},
	}
	for _, p := range parts {
		err := commit(func(c *nftables.Conn) { replace(c, probe, p.chains) })
		switch {
		case err == nil:
		case errors.Is(err, unix.EPERM):
			return fmt.Errorf("CAP_NET_ADMIN is needed: %w", cause)
		default:
			return fmt.Errorf("the kernel refuses what module %s provides; load it on the node: %w", p.module, err)
		}
	}
	return cause
}

// addLoopback adds the addresses to lo, where they aren't there yet.
func addLoopback(addrs []netip.Prefix) error {
	if len(addrs) == 0 {
		return nil
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find interface lo: %w", err)
	}
	for _, a := range addrs {
		ip := &net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), a.Addr().BitLen())}
		addr := &netlink.Addr{IPNet: ip}
		if a.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD // or it can't be bound until a worker of the kernel has looked for duplicates
		}
		if err := netlink.AddrReplace(lo, addr); err != nil {
			return fmt.Errorf("add %s to lo: %w", a, err)
		}
	}
	return nil
}
