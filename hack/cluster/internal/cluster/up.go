package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"podseal.io/hack/cluster/internal/host"
	"podseal.io/hack/cluster/internal/node"
	"podseal.io/hack/cluster/internal/plan"
)

// UpOptions are what `up` was asked for.
type UpOptions struct {
	// Nodes is the number of nodes; 0 keeps what is there, or means 1.
	Nodes int
	// Source is the directory of this module, Cache that of what is built.
	Source string
	Cache  string
}

const upLimit = 3 * time.Minute

// Up makes the cluster, or what is missing of it, and returns when all its nodes
// and the name server are ready.
func (c *Cluster) Up(ctx context.Context, o UpOptions) error {
	unlock, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	spec, err := c.settle(ctx, o)
	if err != nil {
		return err
	}
	if err := c.writeFiles(spec); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, upLimit, fmt.Errorf("not ready in %s; logs are in %s", upLimit, spec.Path("node-*", "logs")))
	defer cancel()
	if err := c.applyBridge(ctx, spec); err != nil {
		return err
	}
	for _, n := range spec.AllNodes() {
		if err := c.applyNode(ctx, &spec, n.Number); err != nil {
			return fmt.Errorf("start node %s: %w", n.Name(), err)
		}
	}
	if err := c.waitReady(ctx, spec); err != nil {
		return err
	}
	c.Progress("cluster %s is up: %d node(s), kubeconfig %s", c.name, spec.Nodes, spec.Kubeconfig())
	return nil
}

// settle decides on the plan, builds what it needs and records it. What a killed
// run left without a plan is removed first.
func (c *Cluster) settle(ctx context.Context, o UpOptions) (plan.Spec, error) {
	spec, err := c.Spec()
	if err != nil && !errors.Is(err, ErrAbsent) {
		return spec, fmt.Errorf("%w; \"down\" removes the cluster", err)
	}
	if err != nil {
		traces, err := c.Traces()
		if err != nil {
			return spec, err
		}
		if len(traces) > 0 {
			c.Progress("removing what an earlier run left")
			if err := c.remove(ctx); err != nil {
				return spec, err
			}
		}
		spec = plan.Spec{Name: c.name, Nodes: 1, Dir: c.dir()}
	}
	if o.Nodes != 0 && o.Nodes < spec.Nodes {
		return spec, fmt.Errorf("cluster %s has %d nodes: it can grow but not shrink; take it down first", c.name, spec.Nodes)
	}
	spec.Nodes = max(spec.Nodes, o.Nodes)
	if !isDir(spec.Kubernetes) || !isDir(spec.Images) {
		out, err := c.Build(ctx, o.Source, o.Cache)
		if err != nil {
			return spec, err
		}
		c.Progress("programs are built")
		spec.Kubernetes, spec.Images = out.Kubernetes, out.Images
	}
	if err := os.MkdirAll(c.dir(), 0o700); err != nil {
		return spec, fmt.Errorf("make state directory: %w", err)
	}
	return spec, c.record(spec)
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// applyBridge makes the network that joins the nodes. Nodes of a network that is
// gone are cut off, so they are removed with it.
func (c *Cluster) applyBridge(ctx context.Context, spec plan.Spec) error {
	if _, err := os.Stat("/proc/sys/net/bridge"); err != nil {
		if err := host.Command(ctx, "modprobe", "br_netfilter"); err != nil {
			return fmt.Errorf("load the kernel's bridge filter, which Services need: %w", err)
		}
	}
	namespace := plan.NetNamespace(c.name)
	if host.HasNamespace(namespace) {
		if host.Command(ctx, host.Inside(namespace, "ip", "-6", "addr", "show", "dev", "br0", "to", plan.BridgeIP6)...) == nil {
			return nil
		}
	}
	for _, n := range spec.AllNodes() {
		if err := removeNode(ctx, n); err != nil {
			return err
		}
	}
	if err := host.RemoveNamespaces(ctx, []string{namespace}); err != nil {
		return err
	}
	if err := host.MakeNamespace(ctx, namespace); err != nil {
		return err
	}
	return host.Commands(ctx, namespace, plan.BridgeCommands())
}

func removeNode(ctx context.Context, n plan.Node) error {
	if err := host.RemoveCgroup(ctx, n.Cgroup()); err != nil {
		return err
	}
	return host.RemoveNamespaces(ctx, []string{n.Namespace()})
}

// applyNode starts the node unless its parent process runs. The plan's port may
// change when another program has taken it.
func (c *Cluster) applyNode(ctx context.Context, spec *plan.Spec, number int) error {
	n := spec.Node(number)
	process, err := host.Recorded(n.Path(node.RecordFile))
	if err != nil {
		return err
	}
	if process.Alive() && host.HasNamespace(n.Namespace()) {
		return nil
	}
	if err := removeNode(ctx, n); err != nil {
		return err
	}
	if err := host.MakeNamespace(ctx, n.Namespace()); err != nil {
		return err
	}
	// The port of a node that is just gone may still be there.
	_ = host.Command(ctx, host.Inside(plan.NetNamespace(c.name), "ip", "link", "del", n.Port())...)
	if err := host.Commands(ctx, plan.NetNamespace(c.name), n.PlugCommands()); err != nil {
		return err
	}
	if err := host.Commands(ctx, n.Namespace(), n.LinkCommands()); err != nil {
		return err
	}
	var listener *os.File
	if n.ControlPlane() {
		if listener, err = c.listen(ctx, spec); err != nil {
			return err
		}
		defer listener.Close()
	}
	if err := startParent(n, listener); err != nil {
		return err
	}
	c.Progress("node %s started in network namespace %s", n.Name(), n.Namespace())
	return nil
}

// listen opens the port on the host that leads to the API server: the one that the
// plan names, or a free one.
func (c *Cluster) listen(ctx context.Context, spec *plan.Spec) (*os.File, error) {
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", spec.Port))
	if err != nil && spec.Port != 0 {
		l, err = config.Listen(ctx, "tcp", "127.0.0.1:0")
	}
	if err != nil {
		return nil, fmt.Errorf("listen on the host: %w", err)
	}
	defer l.Close()
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		return nil, errors.New("listen on the host: not a TCP listener")
	}
	file, err := tcp.File()
	if err != nil {
		return nil, fmt.Errorf("listen on the host: %w", err)
	}
	if addr, ok := tcp.Addr().(*net.TCPAddr); ok && addr.Port != spec.Port {
		spec.Port = addr.Port
		if err := errors.Join(c.record(*spec), c.writeFiles(*spec)); err != nil {
			return nil, errors.Join(err, file.Close())
		}
	}
	return file, nil
}

// startParent starts the node's parent process in the node's network namespace,
// a new mount namespace and the node's cgroup, detached from this process.
func startParent(n plan.Node, listener *os.File) error {
	cgroup, err := host.MakeCgroup(n.Cgroup())
	if err != nil {
		return err
	}
	defer cgroup.Close()
	if err := os.MkdirAll(n.Path("logs"), 0o755); err != nil {
		return fmt.Errorf("make log directory: %w", err)
	}
	log, err := os.OpenFile(n.Path("logs", "node.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	defer log.Close()
	args := host.Inside(n.Namespace(), n.Spec.Path("bin", "cluster"), "run-node", n.Spec.Path("spec.json"), fmt.Sprint(n.Number))
	// Deliberately without a context: it outlives the command that starts it.
	cmd := exec.Command(args[0], args[1:]...) //nolint:noctx // see above
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"}
	cmd.Stdout, cmd.Stderr = log, log
	if listener != nil {
		cmd.ExtraFiles = []*os.File{listener}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:       true,
		Unshareflags: syscall.CLONE_NEWNS,
		UseCgroupFD:  true,
		CgroupFD:     int(cgroup.Fd()),
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the node's parent process: %w", err)
	}
	if err := cmd.Process.Release(); err != nil {
		return fmt.Errorf("release the node's parent process: %w", err)
	}
	return nil
}

// copySelf puts this program into the state directory, since the one that `go run`
// made is gone when it ends.
func copySelf(to string) error {
	from, err := os.Open("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("open own program: %w", err)
	}
	defer from.Close()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return fmt.Errorf("make program directory: %w", err)
	}
	file, err := os.OpenFile(to+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err != nil {
		return fmt.Errorf("copy own program: %w", err)
	}
	_, err = io.Copy(file, from)
	if err = errors.Join(err, file.Close()); err == nil {
		err = os.Rename(to+".new", to)
	}
	if err != nil {
		return fmt.Errorf("copy own program: %w", err)
	}
	return nil
}
