// Package node is the parent of one node's daemons. It runs inside the node's
// network namespace and in a mount namespace of its own, in which the node's
// directories cover the standard paths (/var/lib/kubelet, /etc/cni, …). It starts
// the daemons, starts them again when they end, and passes connections from the
// host on to the API server.
//
// When it ends, nothing of the node can be repaired from outside, because the
// mounts of its containers are in its mount namespace; `up` then ends what is left
// of the node and starts it anew.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"podseal.io/hack/cluster/internal/host"
	"podseal.io/hack/cluster/internal/plan"
)

// RecordFile names the file, in a node's directory, that identifies its parent
// process; DaemonRecord that of a daemon.
const RecordFile = "node.json"

// DaemonRecord returns the file that identifies a running daemon.
func DaemonRecord(n plan.Node, daemon string) string { return n.Path("run", daemon+".json") }

// Config is what a node is run with.
type Config struct {
	Node plan.Node
	// Archives are the images that the node starts with.
	Archives []string
	// Listener takes connections from the host to the API server; nil on nodes
	// that have none.
	Listener net.Listener
	Logger   *slog.Logger
}

// Run sets the node up and keeps its daemons running until the context ends.
func Run(ctx context.Context, cfg Config) error {
	self, err := host.ProcessOf(os.Getpid())
	if err != nil {
		return err
	}
	if err := self.Record(cfg.Node.Path(RecordFile)); err != nil {
		return err
	}
	if err := mountAll(ctx, cfg.Node); err != nil {
		return err
	}
	for _, s := range cfg.Node.Sysctls() {
		if err := os.WriteFile(filepath.Join("/proc/sys", s[0]), []byte(s[1]), 0); err != nil {
			return fmt.Errorf("set %s: %w", s[0], err)
		}
	}
	if err := applyRules(ctx, cfg.Node.Masquerade()); err != nil {
		return err
	}
	var owned sync.WaitGroup
	for _, d := range cfg.Node.Daemons(cfg.Archives) {
		owned.Go(func() { keep(ctx, cfg, d) })
	}
	if cfg.Listener != nil {
		owned.Go(func() {
			forward(ctx, cfg.Logger, cfg.Listener, fmt.Sprintf("%s:%d", cfg.Node.IP(), plan.APIPort))
		})
	}
	cfg.Logger.InfoContext(ctx, "node started", slog.String("node", cfg.Node.Name()))
	owned.Wait()
	return nil
}

// mountAll makes the node's view of the file system. The root is shared again, as
// it is on a common host, so that pods with bidirectional mounts work.
func mountAll(ctx context.Context, n plan.Node) error {
	names, err := host.Namespaces("")
	if err != nil {
		return err
	}
	for _, name := range names {
		// The copy of the host's mount would keep the namespace alive after it is
		// removed there.
		_ = syscall.Unmount(filepath.Join(host.NamespaceDir, name), syscall.MNT_DETACH)
	}
	if err := host.Command(ctx, "mount", "--make-rshared", "/"); err != nil {
		return fmt.Errorf("share mounts: %w", err)
	}
	for _, m := range n.Mounts() {
		for _, dir := range m {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return fmt.Errorf("make mount point: %w", err)
			}
		}
		if err := host.Command(ctx, "mount", "--rbind", m[0], m[1]); err != nil {
			return fmt.Errorf("mount the node's %s: %w", m[1], err)
		}
	}
	return linkPlugins()
}

// linkPlugins fills the node's /opt/cni/bin, where others may add their own.
func linkPlugins() error {
	const from, to = "/usr/lib/cni", "/opt/cni/bin"
	if err := os.MkdirAll(to, 0o755); err != nil {
		return fmt.Errorf("make plugin directory: %w", err)
	}
	plugins, err := os.ReadDir(from)
	if err != nil {
		return fmt.Errorf("list CNI plugins: %w", err)
	}
	for _, p := range plugins {
		err := os.Symlink(filepath.Join(from, p.Name()), filepath.Join(to, p.Name()))
		if err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("link CNI plugin: %w", err)
		}
	}
	return nil
}

func applyRules(ctx context.Context, rules string) error {
	cmd := exec.CommandContext(ctx, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("apply nftables rules: %w: %s", err, out)
	}
	return nil
}
