// Package cluster brings a cluster up, repairs it, looks at it and takes it down.
//
// The order of Up is: record the plan, make keys and files, make the network
// namespaces, start a parent process per node, and wait until Kubernetes says that
// all is well. Each step finds what an earlier run made and keeps it. Down needs
// nothing but the cluster's name, so that it works after a run that was killed at
// any point.
package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"podseal.io/hack/cluster/internal/build"
	"podseal.io/hack/cluster/internal/host"
	"podseal.io/hack/cluster/internal/pki"
	"podseal.io/hack/cluster/internal/plan"
)

const lockDir = "/run/lock"

// Cluster is a local cluster, which may or may not exist.
type Cluster struct {
	name   string
	base   string
	stderr io.Writer
	start  time.Time
}

// New returns the cluster of that name. Progress is written to stderr.
func New(name string, stderr io.Writer) (*Cluster, error) {
	if err := plan.ValidateName(name); err != nil {
		return nil, err
	}
	return &Cluster{name: name, base: plan.DefaultBase, stderr: stderr, start: time.Now()}, nil
}

// Progress writes a line with the time since the command began.
func (c *Cluster) Progress(format string, args ...any) {
	fmt.Fprintf(c.stderr, "[%6.1fs] %s\n", time.Since(c.start).Seconds(), fmt.Sprintf(format, args...))
}

func (c *Cluster) dir() string { return filepath.Join(c.base, c.name) }

func (c *Cluster) specFile() string { return filepath.Join(c.dir(), "spec.json") }

// ErrAbsent says that there is no cluster of that name.
var ErrAbsent = errors.New("no such cluster")

// Spec returns the recorded plan of the cluster, or ErrAbsent.
func (c *Cluster) Spec() (plan.Spec, error) {
	content, err := os.ReadFile(c.specFile())
	if errors.Is(err, fs.ErrNotExist) {
		return plan.Spec{}, fmt.Errorf("cluster %q: %w: start it with \"up --name %s\"", c.name, ErrAbsent, c.name)
	}
	if err != nil {
		return plan.Spec{}, fmt.Errorf("read plan: %w", err)
	}
	var spec plan.Spec
	if err := json.Unmarshal(content, &spec); err != nil {
		return plan.Spec{}, fmt.Errorf("read plan %s: %w", c.specFile(), err)
	}
	return spec, nil
}

func (c *Cluster) record(spec plan.Spec) error {
	content, err := json.MarshalIndent(spec, "", "  ")
	if err != nil {
		return fmt.Errorf("encode plan: %w", err)
	}
	return pki.WriteFile(c.specFile(), append(content, '\n'), 0o600)
}

func (c *Cluster) lock(ctx context.Context) (unlock func(), err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("not root: the cluster needs network namespaces, mounts and cgroups")
	}
	return host.Lock(ctx, lockDir, "podseal-cluster-"+c.name+".lock")
}

// Down removes everything of the cluster; it is well when there is nothing.
func (c *Cluster) Down(ctx context.Context) error {
	unlock, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	traces, err := c.Traces()
	if err != nil {
		return err
	}
	if len(traces) == 0 {
		c.Progress("cluster %s: nothing to remove", c.name)
		return nil
	}
	if err := c.remove(ctx); err != nil {
		return err
	}
	c.Progress("cluster %s is down", c.name)
	return nil
}

// Traces returns what of the cluster is on the machine, in words.
func (c *Cluster) Traces() ([]string, error) {
	var traces []string
	group, err := host.HasCgroup(plan.Cgroup(c.name))
	if err != nil {
		return nil, err
	}
	if group {
		traces = append(traces, "cgroup "+plan.Cgroup(c.name))
	}
	for _, name := range c.namespaces() {
		if _, err := os.Lstat(filepath.Join(host.NamespaceDir, name)); err == nil {
			traces = append(traces, "network namespace "+name)
		}
	}
	if _, err := os.Lstat(c.dir()); err == nil {
		traces = append(traces, "directory "+c.dir())
	}
	points, err := host.MountsBelow(c.dir())
	if err != nil {
		return nil, err
	}
	for _, point := range points {
		traces = append(traces, "mount "+point)
	}
	return traces, nil
}

func (c *Cluster) namespaces() []string {
	names := []string{plan.NetNamespace(c.name)}
	for n := 1; n <= plan.MaxNodes; n++ {
		names = append(names, plan.NodeNamespace(c.name, n))
	}
	return names
}

// remove takes away the processes first, since they hold the rest.
func (c *Cluster) remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, errors.New("not done in 30 s"))
	defer cancel()
	if err := host.RemoveCgroup(ctx, plan.Cgroup(c.name)); err != nil {
		return err
	}
	if err := host.RemoveNamespaces(ctx, c.namespaces()); err != nil {
		return err
	}
	return host.RemoveTree(c.dir())
}

// Build installs the packages and builds the programs that clusters need.
func (c *Cluster) Build(ctx context.Context, source, cache string) (build.Output, error) {
	if err := build.InstallPackages(ctx, c.Progress); err != nil {
		return build.Output{}, err
	}
	b := build.Builder{Source: source, Cache: cache, Progress: c.Progress}
	return b.Build(ctx)
}
