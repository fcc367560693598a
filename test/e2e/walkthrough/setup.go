package walkthrough

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// Setup makes a cluster ready for a walk: up, images loaded, Podseal installed.
type Setup struct {
	Bin     string // folder with cluster, podseal and the image archives
	Version string // tag of Podseal's images
	Name    string // of the local cluster
	Nodes   int
	Hub     string    // registry of Podseal's images; "" is the chart's own
	Log     io.Writer // progress
}

// Images are the names of Podseal's two images.
func (s Setup) Images() (podseal, proxy string) {
	hub := cmp.Or(s.Hub, "podseal.io")
	return hub + "/podseal:" + s.Version, hub + "/podseal-proxy:" + s.Version
}

// Archives are the files of the images, as `make images` makes them.
func (s Setup) Archives() []string {
	var files []string
	for _, name := range []string{"podseal.tar", "podseal-proxy.tar", "all-in-one.tar"} {
		files = append(files, filepath.Join(s.Bin, name))
	}
	return files
}

// Up brings the local cluster up, installs Podseal and returns the cluster.
// What an earlier walk left there is removed first.
func (s Setup) Up(ctx context.Context) (Local, error) {
	c := Local{Binary: filepath.Join(s.Bin, "cluster"), Name: s.Name}
	if err := s.tool(ctx, "cluster", "up", "--name", s.Name, "--nodes", strconv.Itoa(s.Nodes)); err != nil {
		return c, err
	}
	if err := s.tool(ctx, "cluster", append([]string{"load", "--name", s.Name}, s.Archives()...)...); err != nil {
		return c, err
	}
	if _, _, err := c.Shell(ctx, reset); err != nil {
		return c, err
	}
	kubeconfig, err := s.Kubeconfig(ctx)
	if err != nil {
		return c, err
	}
	return c, s.Install(ctx, kubeconfig)
}

// reset removes what a walk leaves: its namespaces, policies and the module.
const reset = `kubectl delete namespace test-istio-mtls test-istio-mtls-without-injection --ignore-not-found
kubectl -n d8-istio delete peerauthentication default --ignore-not-found
kubectl delete moduleconfig istio --ignore-not-found
true`

// Install installs Podseal as a user does.
func (s Setup) Install(ctx context.Context, kubeconfig string) error {
	args := []string{"install", "--kubeconfig", kubeconfig, "--set", "image.tag=" + s.Version}
	if s.Hub != "" {
		args = append(args, "--set", "image.hub="+s.Hub)
	}
	return s.tool(ctx, "podseal", args...)
}

// Precheck says what is in the way of the installation.
func (s Setup) Precheck(ctx context.Context, kubeconfig string) error {
	return s.tool(ctx, "podseal", "check", "--pre", "--kubeconfig", kubeconfig)
}

// Kubeconfig is the path of the local cluster's kubeconfig.
func (s Setup) Kubeconfig(ctx context.Context) (string, error) {
	out, code, err := run(ctx, exec.CommandContext(ctx, filepath.Join(s.Bin, "cluster"), "kubeconfig", "--name", s.Name))
	if err != nil || code != 0 {
		return "", fmt.Errorf("find the cluster's kubeconfig (exit code %d): %w: %s", code, err, out)
	}
	return strings.TrimSpace(out), nil
}

// Down removes the local cluster.
func (s Setup) Down(ctx context.Context) error {
	return s.tool(ctx, "cluster", "down", "--name", s.Name)
}

// Podseal runs the CLI and returns what it prints.
func (s Setup) Podseal(ctx context.Context, args ...string) (string, int, error) {
	return run(ctx, exec.CommandContext(ctx, filepath.Join(s.Bin, "podseal"), args...))
}

func (s Setup) tool(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(s.Bin, name), args...)
	cmd.Stdout, cmd.Stderr = s.Log, s.Log
	cmd.Env = os.Environ()
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w", name, args[0], err)
	}
	return nil
}
