package plan

import "fmt"

// Daemon is one long-running program of a node.
type Daemon struct {
	Name string
	Args []string
	// Before are commands that must succeed, in order, before the daemon starts.
	// They are tried until they do.
	Before [][]string
}

// ContainerdSocket is where containerd listens, seen from inside the node.
const ContainerdSocket = "/run/containerd/containerd.sock"

// Mounts returns what a node sees at the standard paths: pairs of a directory
// below the node's state directory and the path that it covers in the node's
// mount namespace.
func (n Node) Mounts() [][2]string {
	return [][2]string{
		{n.Path("root", "etc-cni"), "/etc/cni"},
		{n.Path("root", "opt-cni"), "/opt/cni"},
		{n.Path("root", "kubelet"), "/var/lib/kubelet"},
		{n.Path("root", "lib-cni"), "/var/lib/cni"},
		{n.Path("root", "containerd"), "/var/lib/containerd"},
		{n.Path("root", "run-containerd"), "/run/containerd"},
		{n.Path("root", "netns"), "/run/netns"},
		{n.Path("root", "log"), "/var/log"},
	}
}

// Daemons returns the node's daemons in the order in which they start.
func (n Node) Daemons(archives []string) []Daemon {
	var list []Daemon
	if n.ControlPlane() {
		list = append(list, n.etcd(), n.apiserver(), n.controllerManager(), n.scheduler())
	}
	kubelet := n.kubelet()
	for _, archive := range archives {
		kubelet.Before = append(kubelet.Before, []string{"ctr", "-n", "k8s.io", "images", "import", archive})
	}
	return append(list, n.containerd(), kubelet, n.kubeProxy())
}

func (n Node) program(name string) string { return n.Spec.Kubernetes + "/" + name }

func (n Node) pki(name string) string { return n.Spec.Path("pki", name) }

func (n Node) etcd() Daemon {
	return Daemon{Name: "etcd", Args: []string{
		n.program("etcd"), "--name=" + n.Name(), "--data-dir=" + n.Path("etcd"),
		"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
		"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
		"--initial-cluster=" + n.Name() + "=http://127.0.0.1:2380",
		"--auto-compaction-mode=periodic", "--auto-compaction-retention=1h",
		// A crash of the machine may cost the cluster, which is quickly made again.
		"--unsafe-no-fsync", "--log-level=warn",
	}}
}

func (n Node) apiserver() Daemon {
	return Daemon{Name: "kube-apiserver", Args: []string{
		n.program("kube-apiserver"),
		"--etcd-servers=http://127.0.0.1:2379",
		"--advertise-address=" + n.IP(),
		fmt.Sprintf("--secure-port=%d", APIPort),
		"--service-cluster-ip-range=" + ServiceCIDRs,
		"--allow-privileged=true",
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--client-ca-file=" + n.pki("ca.crt"),
		"--tls-cert-file=" + n.pki("apiserver.crt"),
		"--tls-private-key-file=" + n.pki("apiserver.key"),
		"--kubelet-certificate-authority=" + n.pki("ca.crt"),
		"--kubelet-client-certificate=" + n.pki("apiserver-kubelet-client.crt"),
		"--kubelet-client-key=" + n.pki("apiserver-kubelet-client.key"),
		"--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer=https://kubernetes.default.svc." + Domain,
		"--service-account-key-file=" + n.pki("sa.pub"),
		"--service-account-signing-key-file=" + n.pki("sa.key"),
		"--requestheader-client-ca-file=" + n.pki("front-proxy-ca.crt"),
		"--requestheader-allowed-names=front-proxy-client",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-username-headers=X-Remote-User",
		"--proxy-client-cert-file=" + n.pki("front-proxy-client.crt"),
		"--proxy-client-key-file=" + n.pki("front-proxy-client.key"),
		"--shutdown-delay-duration=0s",
	}}
}

func (n Node) controllerManager() Daemon {
	kubeconfig := n.Path("etc", "controller-manager.kubeconfig")
	return Daemon{Name: "kube-controller-manager", Args: []string{
		n.program("kube-controller-manager"),
		"--kubeconfig=" + kubeconfig,
		"--authentication-kubeconfig=" + kubeconfig,
		"--authorization-kubeconfig=" + kubeconfig,
		"--bind-address=127.0.0.1",
		"--cluster-name=" + n.Spec.Name,
		"--cluster-cidr=" + PodCIDRs,
		"--allocate-node-cidrs=false",
		"--service-cluster-ip-range=" + ServiceCIDRs,
		"--use-service-account-credentials=true",
		"--root-ca-file=" + n.pki("ca.crt"),
		"--service-account-private-key-file=" + n.pki("sa.key"),
		"--cluster-signing-cert-file=" + n.pki("ca.crt"),
		"--cluster-signing-key-file=" + n.pki("ca.key"),
		"--leader-elect=false",
	}}
}

func (n Node) scheduler() Daemon {
	kubeconfig := n.Path("etc", "scheduler.kubeconfig")
	return Daemon{Name: "kube-scheduler", Args: []string{
		n.program("kube-scheduler"),
		"--kubeconfig=" + kubeconfig,
		"--authentication-kubeconfig=" + kubeconfig,
		"--authorization-kubeconfig=" + kubeconfig,
		"--bind-address=127.0.0.1",
		"--leader-elect=false",
	}}
}

func (n Node) containerd() Daemon {
	return Daemon{Name: "containerd", Args: []string{"containerd", "--config", n.Path("etc", "containerd.toml")}}
}

func (n Node) kubelet() Daemon {
	return Daemon{Name: "kubelet", Args: []string{
		n.program("kubelet"),
		"--config=" + n.Path("etc", "kubelet.yaml"),
		"--kubeconfig=" + n.Path("etc", "kubelet.kubeconfig"),
		"--hostname-override=" + n.Name(),
		"--node-ip=" + n.IP() + "," + n.IP6(),
		"--node-labels=podseal.io/cluster=" + n.Spec.Name,
	}}
}

func (n Node) kubeProxy() Daemon {
	return Daemon{Name: "kube-proxy", Args: []string{
		n.program("kube-proxy"),
		"--config=" + n.Path("etc", "kube-proxy.yaml"),
		"--hostname-override=" + n.Name(),
	}}
}
