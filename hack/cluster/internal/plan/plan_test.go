package plan

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func spec(name string, nodes int) Spec {
	return Spec{
		Name: name, Nodes: nodes, Port: 40000, Dir: DefaultBase + "/" + name,
		Kubernetes: "/cache/kubernetes", Images: "/cache/images",
	}
}

func TestValidateName(t *testing.T) {
	for name, ok := range map[string]bool{
		"podseal": true, "a": true, "test-123": true, strings.Repeat("a", 30): true,
		"": false, "A": false, "1a": false, "-a": false, "a-": false, "a_b": false, "a/b": false, "..": false,
		strings.Repeat("a", 31): false, "a\n": false,
	} {
		if err := ValidateName(name); (err == nil) != ok {
			t.Errorf("name %q: %v", name, err)
		}
	}
}

func TestAddressPlan(t *testing.T) {
	s := spec("x", 2)
	services := prefixes(t, strings.Split(ServiceCIDRs, ",")...)
	pods := prefixes(t, strings.Split(PodCIDRs, ",")...)
	var own []netip.Prefix
	for _, n := range s.AllNodes() {
		for i, p := range prefixes(t, n.PodCIDR(), n.PodCIDR6()) {
			if !pods[i].Contains(p.Addr()) {
				t.Errorf("pods of node %d: %s is outside %s", n.Number, p, pods[i])
			}
			for _, other := range own {
				if other.Overlaps(p) {
					t.Errorf("%s overlaps %s", p, other)
				}
			}
			own = append(own, p)
		}
		for _, ip := range []string{n.IP(), n.IP6()} {
			for _, p := range slices.Concat(pods, services) {
				if p.Contains(netip.MustParseAddr(ip)) {
					t.Errorf("node address %s lies in %s", ip, p)
				}
			}
		}
	}
	for _, ip := range []string{ServiceIP, DNSIP} {
		if !services[0].Contains(netip.MustParseAddr(ip)) {
			t.Errorf("%s is outside %s", ip, services[0])
		}
	}
}

func prefixes(t *testing.T, texts ...string) []netip.Prefix {
	t.Helper()
	var list []netip.Prefix
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
	return list
}

func TestNamesFitTheKernel(t *testing.T) {
	n := spec(strings.Repeat("a", 30), 2).Node(2)
	if len(n.Port()) > 15 {
		t.Errorf("link name %q is too long", n.Port())
	}
	if socket := n.Path("root", "run-containerd", "containerd.sock"); len(socket) > 107 {
		t.Errorf("socket path %q is too long", socket)
	}
}

func TestFilesNameTheirNode(t *testing.T) {
	files, err := spec("x", 2).Node(2).Files()
	if err != nil {
		t.Fatal(err)
	}
	for suffix, want := range map[string][]string{
		"kubelet.yaml":    {"cgroupRoot: /podseal-x/node-2", "failCgroupV1: false", "localStorageCapacityIsolation: false", DefaultBase + "/x/pki/ca.crt"},
		"containerd.toml": {`sandbox_image = "podseal.io/cluster/pause:1"`, "restrict_oom_score_adj = true"},
		"kube-proxy.yaml": {"mode: nftables", "maxPerCore: 0", PodCIDRs},
		".conflist":       {`"10.111.2.0/24"`, `"fd00:10:111:2::/64"`, `"hairpinMode": true`},
	} {
		i := slices.IndexFunc(files, func(f File) bool { return strings.HasSuffix(f.Path, suffix) })
		if i < 0 {
			t.Errorf("no file %s", suffix)
			continue
		}
		for _, w := range want {
			if !strings.Contains(string(files[i].Content), w) {
				t.Errorf("%s lacks %q", files[i].Path, w)
			}
		}
	}
}

func TestDaemons(t *testing.T) {
	names := func(n int) []string {
		var list []string
		for _, d := range spec("x", 2).Node(n).Daemons([]string{"/a.tar"}) {
			list = append(list, d.Name)
			if (d.Name == "kubelet") != (len(d.Before) == 1) {
				t.Errorf("%s: %d commands before it", d.Name, len(d.Before))
			}
		}
		return list
	}
	if got, want := names(2), []string{"containerd", "kubelet", "kube-proxy"}; !slices.Equal(got, want) {
		t.Errorf("node 2: got %q, want %q", got, want)
	}
	if got := names(1); len(got) != 7 || got[0] != "etcd" {
		t.Errorf("node 1: got %q", got)
	}
}

func TestRoutesLeadToTheOtherNode(t *testing.T) {
	var lines []string
	for _, c := range spec("x", 2).Node(1).LinkCommands() {
		lines = append(lines, strings.Join(c, " "))
	}
	for _, want := range []string{
		"ip route add 10.111.2.0/24 via 172.31.77.12",
		"ip -6 route add fd00:10:111:2::/64 via fd00:172:31:77::12",
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("no command %q in %q", want, lines)
		}
	}
}

func TestManifestsAndKubeconfig(t *testing.T) {
	manifests, err := spec("x", 1).Manifests()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"image: " + CoreDNSImage, "clusterIP: " + DNSIP, "kubernetes cluster.local"} {
		if !strings.Contains(string(manifests), want) {
			t.Errorf("manifests lack %q", want)
		}
	}
	config := string(Kubeconfig("x", "https://127.0.0.1:1", "admin", "Y2E=", "Y2VydA==", "a2V5"))
	for _, want := range []string{"server: https://127.0.0.1:1", "client-key-data: a2V5", "current-context: x"} {
		if !strings.Contains(config, want) {
			t.Errorf("kubeconfig lacks %q", want)
		}
	}
}
