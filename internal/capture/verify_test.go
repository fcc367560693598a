package capture

import (
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/nftables"
)

// inKernel returns what the kernel would hold after Apply.
func inKernel(r Rules) table {
	held := table{present: true}
	for _, c := range r.chains {
		h := heldChain{Chain: c.kernel(&nftables.Table{Name: tableName})}
		for _, rule := range c.rules {
			h.rules = append(h.rules, rule.exprs())
		}
		held.chains = append(held.chains, h)
	}
	return held
}

func TestCompare(t *testing.T) {
	want := Build(Default())
	output := func(held *table) *heldChain {
		return &held.chains[slices.IndexFunc(held.chains, func(h heldChain) bool { return h.Name == chainOut })]
	}
	for name, tt := range map[string]struct {
		change func(held *table)
		want   string
	}{
		"same":          {func(*table) {}, ""},
		"no table":      {func(held *table) { *held = table{} }, "table inet podseal is missing"},
		"dormant":       {func(held *table) { held.flags = 1 }, "switched off"},
		"chain gone":    {func(held *table) { held.chains = held.chains[1:] }, "chain prerouting is missing"},
		"chain more":    {func(held *table) { held.chains = append(held.chains, heldChain{Chain: &nftables.Chain{Name: "x"}}) }, "chain x is there"},
		"not hooked":    {func(held *table) { held.chains[0].Hooknum = nil }, "chain prerouting is not hooked"},
		"policy":        {func(held *table) { *held.chains[1].Policy = nftables.ChainPolicyDrop }, "chain output is not hooked"},
		"rule gone":     {func(held *table) { o := output(held); o.rules = o.rules[:len(o.rules)-1] }, `chain istio_output, rule 13: want "jump istio_redirect", the kernel has nothing`},
		"rule more":     {func(held *table) { o := output(held); o.rules = append(o.rules, action{}.exprs()) }, `rule 14: want nothing, the kernel has a rule that is not ours`},
		"rules swapped": {func(held *table) { o := output(held); o.rules[0], o.rules[1] = o.rules[1], o.rules[0] }, `rule 1: want "oifname \"lo\" ip saddr 127.0.0.6 return", the kernel has "oifname \"lo\" ip6 saddr ::6 return"`},
		"other port": {func(held *table) {
			for i, h := range held.chains {
				if h.Name == chainRedirect {
					held.chains[i].rules[0] = rule{[]match{tcp}, action{redirect: 15002}}.exprs()
				}
			}
		}, "chain istio_redirect, rule 1: want"},
	} {
		t.Run(name, func(t *testing.T) {
			held := inKernel(want)
			tt.change(&held)
			got := strings.Join(held.compare(want.chains), "\n")
			if (tt.want == "") != (got == "") || !strings.Contains(got, tt.want) {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestHasIPv6(t *testing.T) {
	file := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }
	for name, tt := range map[string]struct {
		proc fstest.MapFS
		want bool
		err  bool
	}{
		"kernel without": {fstest.MapFS{"version": file("")}, false, false},
		"on":             {fstest.MapFS{"thread-self/net/if_inet6": file(""), "sys/net/ipv6/conf/lo/disable_ipv6": file("0\n")}, true, false},
		"off": {fstest.MapFS{
			"thread-self/net/if_inet6": file(""), "sys/net/ipv6/conf/all/disable_ipv6": file("0\n"),
			"sys/net/ipv6/conf/lo/disable_ipv6": file("1\n"), "sys/net/ipv6/conf/eth0/disable_ipv6": file("1\n"),
		}, false, false},
		"on in one": {fstest.MapFS{
			"thread-self/net/if_inet6": file(""), "sys/net/ipv6/conf/all/disable_ipv6": file("1\n"),
			"sys/net/ipv6/conf/lo/disable_ipv6": file("1\n"), "sys/net/ipv6/conf/eth0/disable_ipv6": file("0\n"),
		}, true, false},
		"not to be told": {fstest.MapFS{"thread-self/net/if_inet6": file("")}, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := HasIPv6(tt.proc)
			if got != tt.want || (err != nil) != tt.err {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
}

// TestOriginalDstNotRedirected: contract B5, both families.
func TestOriginalDstNotRedirected(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0", "[::]:0"} {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		client, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		server, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		if dst, err := OriginalDst(server.(*net.TCPConn)); !errors.Is(err, ErrNotRedirected) {
			t.Errorf("%s: got %s, %v", addr, dst, err)
		}
	}
}
