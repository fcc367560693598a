package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"podseal.io/hack/cluster/internal/host"
	"podseal.io/hack/cluster/internal/node"
	"podseal.io/hack/cluster/internal/plan"
)

// Status is what `status` says of a cluster.
type Status struct {
	Name       string       `json:"name"`
	Up         bool         `json:"up"`
	Fault      string       `json:"fault,omitempty"`
	Server     string       `json:"server"`
	Kubeconfig string       `json:"kubeconfig"`
	Nodes      []NodeStatus `json:"nodes"`
}

// NodeStatus is what `status` says of a node.
type NodeStatus struct {
	Name      string        `json:"name"`
	IP        string        `json:"ip"`
	IP6       string        `json:"ip6"`
	PodCIDRs  []string      `json:"podCIDRs"`
	Namespace string        `json:"networkNamespace"`
	Daemons   []DaemonState `json:"daemons"`
}

// Status looks at the cluster once and changes nothing.
func (c *Cluster) Status(ctx context.Context) (Status, error) {
	spec, err := c.Spec()
	if err != nil {
		return Status{}, err
	}
	status := Status{Name: spec.Name, Server: spec.HostServer(), Kubeconfig: spec.Kubeconfig()}
	for _, n := range spec.AllNodes() {
		status.Nodes = append(status.Nodes, NodeStatus{
			Name: n.Name(), IP: n.IP(), IP6: n.IP6(), PodCIDRs: []string{n.PodCIDR(), n.PodCIDR6()},
			Namespace: n.Namespace(), Daemons: daemonStates(n),
		})
	}
	for _, check := range []func(context.Context, plan.Spec) error{c.daemonsRun, c.apiReady, c.nodesReady, c.dnsReady} {
		if err := check(ctx, spec); err != nil {
			status.Fault = err.Error()
			return status, nil
		}
	}
	status.Up = true
	return status, nil
}

// Write writes the status for people, or as JSON.
func (s Status) Write(w io.Writer, asJSON bool) error {
	if asJSON {
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		return encoder.Encode(s)
	}
	state := "up"
	if !s.Up {
		state = "not well: " + s.Fault
	}
	fmt.Fprintf(w, "cluster     %s\nstate       %s\nserver      %s\nkubeconfig  %s\n", s.Name, state, s.Server, s.Kubeconfig)
	for _, n := range s.Nodes {
		fmt.Fprintf(w, "\nnode %s\n  addresses          %s %s\n  pods               %s\n  network namespace  %s\n",
			n.Name, n.IP, n.IP6, strings.Join(n.PodCIDRs, " "), n.Namespace)
		for _, d := range n.Daemons {
			running := "not running"
			if d.Running {
				running = fmt.Sprintf("pid %d", d.PID)
			}
			fmt.Fprintf(w, "  %-24s %-12s %s\n", d.Name, running, d.Log)
		}
	}
	return nil
}

// Load puts the archive's images into every node and returns when the kubelets can
// use them.
func (c *Cluster) Load(ctx context.Context, archives []string) error {
	spec, err := c.Spec()
	if err != nil {
		return err
	}
	for _, archive := range archives {
		path, err := filepath.Abs(archive)
		if err != nil {
			return fmt.Errorf("find archive: %w", err)
		}
		if info, err := os.Stat(path); err != nil {
			return fmt.Errorf("find archive: %w", err)
		} else if !info.Mode().IsRegular() {
			return fmt.Errorf("archive %s: not a file", path)
		}
		for _, n := range spec.AllNodes() {
			if err := loadInto(ctx, n, path); err != nil {
				return fmt.Errorf("load %s into node %s: %w", archive, n.Name(), err)
			}
		}
		c.Progress("loaded %s into %d node(s)", archive, spec.Nodes)
	}
	return nil
}

func loadInto(ctx context.Context, n plan.Node, path string) error {
	enter, err := Enter(n)
	if err != nil {
		return err
	}
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open archive: %w", err)
	}
	defer file.Close()
	args := append(enter, "ctr", "-n", "k8s.io", "images", "import", "-")
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stdin = file
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ctr images import: %w: %s", err, strings.TrimSpace(string(out)))
	}
	// The kubelet's side of containerd hears of new images a moment later and labels
	// them.
	for range 100 {
		args := append(enter, "ctr", "-n", "k8s.io", "images", "list")
		out, err := exec.CommandContext(ctx, args[0], args[1:]...).Output()
		if err != nil {
			return fmt.Errorf("ctr images list: %w", err)
		}
		if allManaged(string(out)) {
			return nil
		}
		time.Sleep(pollInterval / 4)
	}
	return errors.New("the kubelet's view of images did not follow in time")
}

// allManaged reports whether every image in what "ctr images list" prints, a header
// and a line per image, is known to the kubelet's side of containerd.
func allManaged(list string) bool {
	lines := strings.Split(strings.TrimSpace(list), "\n")
	for _, line := range lines[1:] {
		if !strings.Contains(line, "io.cri-containerd.image=managed") {
			return false
		}
	}
	return true
}

// Enter returns the beginning of a command line that runs a command on the node: in
// its network namespace and in its view of the file system.
func Enter(n plan.Node) ([]string, error) {
	p, err := host.Recorded(n.Path(node.RecordFile))
	if err != nil {
		return nil, err
	}
	if !p.Alive() {
		return nil, fmt.Errorf("node %s does not run: \"up --name %s\" starts it", n.Name(), n.Spec.Name)
	}
	return []string{
		"nsenter", fmt.Sprintf("--mount=/proc/%d/ns/mnt", p.PID), fmt.Sprintf("--net=/proc/%d/ns/net", p.PID), "--",
	}, nil
}

// Shell replaces this process by a command, or by a shell when there is none, in
// the network namespace of node 1, with kubectl and d8 first on the path and the
// host's view of the file system. It returns only to say why it failed.
func (c *Cluster) Shell(command, environ []string) error {
	spec, err := c.Spec()
	if err != nil {
		return err
	}
	if !host.HasNamespace(spec.Node(1).Namespace()) {
		return fmt.Errorf("cluster %s does not run: \"up --name %s\" starts it", c.name, c.name)
	}
	return become(spec, c.name, host.Inside(spec.Node(1).Namespace()), command, environ)
}

// Exec is as Shell, on any node, and with the node's view of the file system.
func (c *Cluster) Exec(number int, command, environ []string) error {
	spec, err := c.Spec()
	if err != nil {
		return err
	}
	if number < 1 || number > spec.Nodes {
		return fmt.Errorf("node %d: cluster %s has nodes 1 to %d", number, c.name, spec.Nodes)
	}
	enter, err := Enter(spec.Node(number))
	if err != nil {
		return err
	}
	wd, err := os.Getwd()
	if err != nil {
		return fmt.Errorf("find working directory: %w", err)
	}
	enter = append([]string{enter[0], "--wdns=" + wd}, enter[1:]...)
	return become(spec, spec.Node(number).Name(), enter, command, environ)
}

// become replaces this process by the command, entered through nsenter.
func become(spec plan.Spec, prompt string, enter, command, environ []string) error {
	if len(command) == 0 {
		command = []string{"/bin/bash", "--norc", "-i"}
		environ = append(environ, fmt.Sprintf(`PS1=[%s] \w \$ `, prompt))
	}
	program, err := exec.LookPath(enter[0])
	if err != nil {
		return fmt.Errorf("find %s: %w", enter[0], err)
	}
	// nsenter looks programs up on the caller's path; env uses the cluster's.
	args := append(append(enter, "env", "--"), command...)
	if err := syscall.Exec(program, args, environment(spec, environ)); err != nil {
		return fmt.Errorf("run %s: %w", command[0], err)
	}
	return nil
}

// environment returns the caller's environment with the cluster's kubeconfig and
// programs.
func environment(spec plan.Spec, environ []string) []string {
	out := make([]string, 0, len(environ)+3)
	path := "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	for _, e := range environ {
		name, value, _ := strings.Cut(e, "=")
		switch name {
		case "PATH":
			path = value
		case "KUBECONFIG":
		default:
			out = append(out, e)
		}
	}
	return append(out, "PATH="+spec.Path("bin")+":"+path, "KUBECONFIG="+spec.InnerKubeconfig(),
		"PODSEAL_CLUSTER="+spec.Name)
}
