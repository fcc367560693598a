// Package plan says what a local cluster is made of: its names, its address
// plan, its directories and the command lines and configuration files of its
// daemons. Everything here is pure; packages host, node and cluster make the
// machine agree with it.
//
// # Address plan
//
// Each cluster lives in network namespaces of its own without an uplink, so that
// all clusters use the same addresses:
//
//	network   podseal-NAME-net   bridge br0    172.31.77.1/24    fd00:172:31:77::1/64
//	node N    podseal-NAME-N     eth0          172.31.77.1N/24   fd00:172:31:77::1N/64
//	pods of node N               cni0          10.111.N.0/24     fd00:10:111:N::/64
//	services                                   10.222.0.0/16     fd00:10:222::/112
//
// The network namespace of the bridge is also the place from which a test can
// play a client outside the cluster.
package plan

import (
	"fmt"
	"path/filepath"
	"regexp"
)

// Fixed parts of every cluster.
const (
	MaxNodes     = 2
	BridgeIP     = "172.31.77.1"
	BridgeIP6    = "fd00:172:31:77::1"
	PodCIDRs     = "10.111.0.0/16,fd00:10:111::/48"
	ServiceCIDRs = "10.222.0.0/16,fd00:10:222::/112"
	ServiceIP    = "10.222.0.1"
	ServiceIP6   = "fd00:10:222::1"
	DNSIP        = "10.222.0.10"
	Domain       = "cluster.local"
	APIPort      = 6443
	PauseImage   = "podseal.io/cluster/pause:1"
	CoreDNSImage = "podseal.io/cluster/coredns:1"
)

// DefaultName is the name of a cluster that was given none.
const DefaultName = "podseal"

// DefaultBase is the directory that holds the state of all clusters.
const DefaultBase = "/var/lib/podseal-cluster"

var nameRule = regexp.MustCompile(`^[a-z]([-a-z0-9]{0,28}[a-z0-9])?$`)

// Spec is what `up` was asked for and what it decided; it is recorded in the
// state directory before anything else is made.
type Spec struct {
	Name  string `json:"name"`
	Nodes int    `json:"nodes"`
	// Port is the port on the host's 127.0.0.1 that leads to the API server.
	Port int `json:"port"`
	// Kubernetes is the directory of the Kubernetes programs.
	Kubernetes string `json:"kubernetes"`
	// Images is the directory of the image archives that every node starts with.
	Images string `json:"images"`
	// Dir is the cluster's state directory.
	Dir string `json:"dir"`
}

// ValidateName reports what is wrong with a cluster's name.
func ValidateName(name string) error {
	if !nameRule.MatchString(name) {
		return fmt.Errorf("cluster name %q: must be 1 to 30 lower-case letters, digits and hyphens, must begin with a letter and must not end in a hyphen", name)
	}
	return nil
}

// ValidateNodes reports what is wrong with a number of nodes.
func ValidateNodes(n int) error {
	if n < 1 || n > MaxNodes {
		return fmt.Errorf("number of nodes %d: must be 1 or %d", n, MaxNodes)
	}
	return nil
}

// NetNamespace returns the name of the network namespace that holds the bridge.
func NetNamespace(cluster string) string { return "podseal-" + cluster + "-net" }

// NodeNamespace returns the name of the network namespace of a node.
func NodeNamespace(cluster string, n int) string { return fmt.Sprintf("podseal-%s-%d", cluster, n) }

// Cgroup returns the cgroup, below the root of each hierarchy, that holds every
// process of the cluster.
func Cgroup(cluster string) string { return "podseal-" + cluster }

// Node is one node's share of the plan.
type Node struct {
	Spec   Spec
	Number int
}

// Node returns the plan of node n, counted from 1.
func (s Spec) Node(n int) Node { return Node{Spec: s, Number: n} }

// AllNodes returns the plans of all nodes in order.
func (s Spec) AllNodes() []Node {
	nodes := make([]Node, 0, s.Nodes)
	for n := 1; n <= s.Nodes; n++ {
		nodes = append(nodes, s.Node(n))
	}
	return nodes
}

// Path returns a path below the cluster's state directory.
func (s Spec) Path(elem ...string) string {
	return filepath.Join(append([]string{s.Dir}, elem...)...)
}

// Kubeconfig returns the path of the kubeconfig for programs on the host.
func (s Spec) Kubeconfig() string { return s.Path("kubeconfig") }

// InnerKubeconfig returns the path of the kubeconfig for programs inside the
// cluster's network namespaces.
func (s Spec) InnerKubeconfig() string { return s.Path("kubeconfig.inner") }

// Server returns the API server's URL as seen from inside the cluster.
func (s Spec) Server() string { return fmt.Sprintf("https://%s:%d", s.Node(1).IP(), APIPort) }

// HostServer returns the API server's URL as seen from the host.
func (s Spec) HostServer() string { return fmt.Sprintf("https://127.0.0.1:%d", s.Port) }

// Name returns the name of the Kubernetes node.
func (n Node) Name() string { return fmt.Sprintf("%s-%d", n.Spec.Name, n.Number) }

// Namespace returns the name of the node's network namespace.
func (n Node) Namespace() string { return NodeNamespace(n.Spec.Name, n.Number) }

// IP returns the node's IPv4 address.
func (n Node) IP() string { return fmt.Sprintf("172.31.77.%d", 10+n.Number) }

// IP6 returns the node's IPv6 address.
func (n Node) IP6() string { return fmt.Sprintf("fd00:172:31:77::%d", 10+n.Number) }

// PodCIDR returns the node's range of IPv4 pod addresses.
func (n Node) PodCIDR() string { return fmt.Sprintf("10.111.%d.0/24", n.Number) }

// PodCIDR6 returns the node's range of IPv6 pod addresses.
func (n Node) PodCIDR6() string { return fmt.Sprintf("fd00:10:111:%d::/64", n.Number) }

// Port returns the name of the node's port on the bridge.
func (n Node) Port() string { return fmt.Sprintf("node-%d", n.Number) }

// Cgroup returns the cgroup that holds every process of the node.
func (n Node) Cgroup() string { return fmt.Sprintf("%s/node-%d", Cgroup(n.Spec.Name), n.Number) }

// ControlPlane reports whether the node runs etcd, the API server, the
// controller manager and the scheduler.
func (n Node) ControlPlane() bool { return n.Number == 1 }

// Path returns a path below the node's state directory.
func (n Node) Path(elem ...string) string {
	return n.Spec.Path(append([]string{fmt.Sprintf("node-%d", n.Number)}, elem...)...)
}
