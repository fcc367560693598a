package plan

import "fmt"

// Sysctls returns the settings of a node's network namespace, in the order in
// which they must be written.
func (n Node) Sysctls() [][2]string {
	return [][2]string{
		{"net/ipv4/ip_forward", "1"},
		{"net/ipv6/conf/all/forwarding", "1"},
		{"net/ipv6/conf/default/accept_dad", "0"},
		{"net/ipv6/conf/all/accept_dad", "0"},
		{"net/ipv4/conf/all/rp_filter", "0"},
		{"net/ipv4/conf/default/rp_filter", "0"},
		// Answers of a Service's pod to a pod on the same node cross the bridge
		// only; they must meet the rules that undo the destination NAT.
		{"net/bridge/bridge-nf-call-iptables", "1"},
		{"net/bridge/bridge-nf-call-ip6tables", "1"},
	}
}

// BridgeCommands returns the commands that make the bridge; they run in the
// bridge's network namespace.
func BridgeCommands() [][]string {
	return [][]string{
		{"ip", "link", "set", "lo", "up"},
		{"ip", "link", "add", "br0", "type", "bridge"},
		{"ip", "link", "set", "br0", "up"},
		{"ip", "addr", "add", BridgeIP + "/24", "dev", "br0"},
		{"ip", "addr", "add", BridgeIP6 + "/64", "dev", "br0", "nodad"},
	}
}

// PlugCommands returns the commands that connect the node with the bridge; they
// run in the bridge's network namespace.
func (n Node) PlugCommands() [][]string {
	return [][]string{
		{"ip", "link", "add", n.Port(), "type", "veth", "peer", "name", "eth0", "netns", "/run/netns/" + n.Namespace()},
		{"ip", "link", "set", n.Port(), "master", "br0", "up"},
	}
}

// LinkCommands returns the commands that configure the node's end of the link;
// they run in the node's network namespace. The default route leads to the
// bridge, which forwards nothing: it makes Service addresses routable on the node
// and gives packets to nowhere a quick end.
func (n Node) LinkCommands() [][]string {
	cmds := [][]string{
		{"ip", "link", "set", "lo", "up"},
		{"ip", "link", "set", "eth0", "up"},
		{"ip", "addr", "add", n.IP() + "/24", "dev", "eth0"},
		{"ip", "addr", "add", n.IP6() + "/64", "dev", "eth0", "nodad"},
		{"ip", "route", "add", "default", "via", BridgeIP},
		{"ip", "-6", "route", "add", "default", "via", BridgeIP6},
	}
	for peer := 1; peer <= MaxNodes; peer++ {
		if peer == n.Number {
			continue
		}
		p := n.Spec.Node(peer)
		cmds = append(cmds,
			[]string{"ip", "route", "add", p.PodCIDR(), "via", p.IP()},
			[]string{"ip", "-6", "route", "add", p.PodCIDR6(), "via", p.IP6()})
	}
	return cmds
}

// Masquerade returns the node's own nftables rules: what pods send out of the
// cluster leaves with the node's address, what they send to pods, nodes and
// Services keeps theirs.
func (n Node) Masquerade() string {
	return fmt.Sprintf(`table inet podseal-cluster
delete table inet podseal-cluster
table inet podseal-cluster {
	chain postrouting {
		type nat hook postrouting priority srcnat + 10; policy accept;
		ip saddr %[1]s ip daddr != { 10.111.0.0/16, 10.222.0.0/16, %[3]s, %[4]s, 224.0.0.0/4 } masquerade
		ip6 saddr %[2]s ip6 daddr != { fd00:10:111::/48, fd00:10:222::/112, %[5]s, %[6]s, ff00::/8 } masquerade
	}
}
`, n.PodCIDR(), n.PodCIDR6(), n.Spec.Node(1).IP(), n.Spec.Node(2).IP(), n.Spec.Node(1).IP6(), n.Spec.Node(2).IP6())
}
