// Command demo shows Podseal at work: a cluster, the installation, the
// walkthrough of "Encrypting traffic between pods", and what was on the wire.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"podseal.io/podseal/test/e2e/walkthrough"
)

func main() {
	var (
		bin        = flag.String("bin", "bin", "folder with the built programs and image archives")
		version    = flag.String("version", "dev", "tag of Podseal's images")
		cluster    = flag.String("cluster", "podseal", "name of the local cluster")
		nodes      = flag.Int("nodes", 2, "nodes of the local cluster")
		kubeconfig = flag.String("kubeconfig", "", "use this cluster instead of a local one")
		hub        = flag.String("hub", "", "with -kubeconfig: registry of Podseal's images")
		image      = flag.String("image", walkthrough.Image, "with -kubeconfig: name of the all-in-one image")
	)
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	abs, err := filepath.Abs(*bin)
	s := walkthrough.Setup{Bin: abs, Version: *version, Name: *cluster, Nodes: *nodes, Log: os.Stdout}
	switch {
	case err != nil:
	case *kubeconfig == "":
		err = local(ctx, s)
	default:
		s.Hub = *hub
		err = existing(ctx, s, *kubeconfig, *image)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "\ndemo:", err)
		stop()
		os.Exit(1)
	}
}

// local walks on a cluster of this machine's own.
func local(ctx context.Context, s walkthrough.Setup) error {
	start := time.Now()
	c, err := s.Up(ctx)
	if err != nil {
		return err
	}
	err = walk(ctx, walkthrough.Config{Cluster: c, Out: os.Stdout}, start)
	if ctx.Err() == nil {
		fmt.Printf(`
The cluster stays up. Look around:
  bin/cluster shell --name %[1]s                                                  # a shell with kubectl and d8
  bin/cluster shell --name %[1]s -- d8 k -n test-istio-mtls get pods -o wide
  bin/podseal check --kubeconfig "$(bin/cluster kubeconfig --name %[1]s)"
Remove it:
  make demo-down%[2]s
`, s.Name, ifOther(s.Name))
	}
	return err
}

// ifOther is what make has to be told of a cluster with another name than its own.
func ifOther(name string) string {
	if name == "podseal" {
		return ""
	}
	return " CLUSTER=" + name
}

// existing walks on a cluster that somebody has.
func existing(ctx context.Context, s walkthrough.Setup, kubeconfig, image string) (err error) {
	start := time.Now()
	c, err := walkthrough.NewExisting(ctx, kubeconfig, image)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close(context.WithoutCancel(ctx))) }()
	if err := s.Precheck(ctx, c.Kubeconfig); err != nil {
		return err
	}
	fmt.Println("\nTrying the images on every node.")
	podseal, proxy := s.Images()
	if err := c.TryImages(ctx, podseal, proxy); err != nil {
		if missing := (*walkthrough.ImagesError)(nil); errors.As(err, &missing) {
			return fmt.Errorf("%w\n%s", err, loadThem(s, c.Kubeconfig))
		}
		return err
	}
	if err := s.Install(ctx, c.Kubeconfig); err != nil {
		return err
	}
	err = walk(ctx, walkthrough.Config{Cluster: c, Out: os.Stdout, Image: image}, start)
	fmt.Printf(`
All stays as it is. Look around:
  kubectl --kubeconfig %[1]s -n test-istio-mtls get pods -o wide
  bin/podseal check --kubeconfig %[1]s
Remove it:
  kubectl --kubeconfig %[1]s delete namespace test-istio-mtls test-istio-mtls-without-injection
  bin/podseal uninstall --kubeconfig %[1]s
`, c.Kubeconfig)
	return err
}

// loadThem tells how the images get onto the nodes.
func loadThem(s walkthrough.Setup, kubeconfig string) string {
	a := s.Archives()
	for i := range a {
		if wd, err := os.Getwd(); err == nil {
			if rel, err := filepath.Rel(wd, a[i]); err == nil {
				a[i] = rel
			}
		}
	}
	return fmt.Sprintf(`They are in %[1]s, %[2]s and %[3]s. Load them into every node, for example
  ctr -n k8s.io images import FILE                     # on the node, each of them (containerd)
  bin/cluster load --name NAME %[1]s %[2]s %[3]s       # a cluster of bin/cluster
or push them to a registry of yours, and name it:
  make demo KUBECONFIG=%[4]s HUB=registry.example.com/podseal IMAGE=registry.example.com/all-in-one-image:0.1
where HUB has podseal:%[5]s and podseal-proxy:%[5]s. Nothing is installed yet.`, a[0], a[1], a[2], kubeconfig, s.Version)
}

// walk walks and shows the outcome; what was not as expected is an error.
func walk(ctx context.Context, cfg walkthrough.Config, start time.Time) error {
	fmt.Fprintf(cfg.Out, "\nReady after %.0f s. What follows are the document's own commands, and after each call what tcpdump saw on the webserver's node.\n", time.Since(start).Seconds())
	report, err := walkthrough.Run(ctx, cfg)
	report.Table(cfg.Out)
	if err != nil {
		return err
	}
	if report.Failed() {
		return errors.New("some calls were not as expected: see FAIL in the table")
	}
	fmt.Fprintf(cfg.Out, "The walkthrough took %.0f s, the whole demo %.0f s.\n", report.Took.Seconds(), time.Since(start).Seconds())
	return nil
}
