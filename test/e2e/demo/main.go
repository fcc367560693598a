// Command demo shows Podseal at work: a cluster, the installation, the
// walkthrough of "Encrypting traffic between pods", and what was on the wire.
package main

import (
	"context"
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
	)
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	abs, err := filepath.Abs(*bin)
	if err == nil {
		err = demo(ctx, walkthrough.Setup{Bin: abs, Version: *version, Name: *cluster, Nodes: *nodes, Log: os.Stderr}, *kubeconfig)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		stop()
		os.Exit(1)
	}
}

func demo(ctx context.Context, s walkthrough.Setup, kubeconfig string) error {
	start := time.Now()
	c, err := bringUp(ctx, s, kubeconfig)
	if err != nil {
		return err
	}
	fmt.Printf("\nReady after %.0f s. What follows are the document's own commands; below each call is what tcpdump saw on the webserver's node.\n", time.Since(start).Seconds())
	report, err := walkthrough.Run(ctx, walkthrough.Config{Cluster: c, Out: os.Stdout})
	report.Table(os.Stdout)
	if err != nil {
		return err
	}
	fmt.Printf("\nThe walkthrough took %.0f s, the whole demo %.0f s.\n", report.Took.Seconds(), time.Since(start).Seconds())
	if kubeconfig == "" {
		fmt.Printf(`
The cluster is up. Look around:
  bin/cluster shell --name %[1]s                                   a shell with kubectl and d8
  bin/cluster shell --name %[1]s -- d8 k -n test-istio-mtls get pods -o wide
  bin/podseal check --kubeconfig "$(bin/cluster kubeconfig --name %[1]s)"
Remove it:
  make demo-down
`, s.Name)
	} else {
		fmt.Println("\nRemove it: kubectl delete namespace test-istio-mtls test-istio-mtls-without-injection; bin/podseal uninstall")
	}
	if report.Failed() {
		return fmt.Errorf("some calls were not as expected: see FAIL in the table")
	}
	return nil
}

func bringUp(ctx context.Context, s walkthrough.Setup, kubeconfig string) (walkthrough.Cluster, error) {
	if kubeconfig == "" {
		return s.Up(ctx)
	}
	tools, err := os.MkdirTemp("", "podseal-demo")
	if err != nil {
		return nil, fmt.Errorf("make a folder for d8: %w", err)
	}
	d8 := "#!/bin/sh\n[ \"$1\" = k ] && shift\nexec kubectl \"$@\"\n"
	if err := os.WriteFile(filepath.Join(tools, "d8"), []byte(d8), 0o700); err != nil {
		return nil, fmt.Errorf("write d8: %w", err)
	}
	e := walkthrough.Existing{Kubeconfig: kubeconfig, Path: tools, Image: walkthrough.Image}
	out, code, err := e.Shell(ctx, "kubectl get moduleconfig istio 2>/dev/null && echo exists")
	if err != nil {
		return nil, err
	}
	if code == 0 {
		return nil, fmt.Errorf("this cluster has a ModuleConfig istio already; the walkthrough begins by creating it, so remove it first if it is yours to remove:\n%s", out)
	}
	return e, s.Install(ctx, kubeconfig)
}
