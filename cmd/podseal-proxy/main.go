// Command podseal-proxy is the part of Podseal that is in every pod: the proxy,
// and what has to happen in the pod around it.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"podseal.io/podseal/internal/cni"
	"podseal.io/podseal/internal/version"
)

const usage = `Usage: podseal-proxy COMMAND [flags]

Commands:
  proxy    carry the pod's traffic (what the container istio-proxy runs)
  capture  redirect the pod's TCP into the proxy, and verify it (init container)
  wait     wait until the proxy is ready (postStart)
  drain    tell the proxy that the pod is ending (preStop)
  observe  see what is on the wire of this pod, and what the proxy says of it
  cni      capture pods from the node: what a container runtime runs, and what installs it
  version  print the version

"podseal-proxy COMMAND -h" says more.
`

func main() {
	if len(os.Args) > 1 && os.Args[1] == "proxy" {
		sleepLonger()
	}
	// The first signal ends the context, and the proxy drains; the second one
	// finds the default behaviour again and ends the program.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	context.AfterFunc(ctx, stop)
	args := os.Args[1:]
	if filepath.Base(os.Args[0]) == cni.Name {
		args = []string{"cni"} // a runtime knows the plugin by its file's name and gives it no arguments
	}
	os.Exit(run(ctx, args, os.Getenv, os.Stdout, os.Stderr))
}

// run is the program without its process: exit codes are 0 for success, 1 for
// failure, 2 for wrong usage.
func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		fmt.Fprint(stderr, usage)
		return 2
	}
	switch command, rest := args[0], args[1:]; command {
	case "proxy":
		return runProxy(ctx, rest, getenv, stdout, stderr)
	case "capture":
		return runCapture(ctx, rest, stdout, stderr)
	case "wait":
		return runWait(ctx, rest, stderr)
	case "drain":
		return runDrain(ctx, rest, stderr)
	case "observe":
		return runObserve(ctx, rest, os.Stdin, stdout, stderr)
	case "cni":
		return runCNI(ctx, rest, getenv, stdout, stderr)
	case "version":
		fmt.Fprintln(stdout, version.Version)
		return 0
	case "help", "-h", "--help":
		fmt.Fprint(stdout, usage)
		return 0
	default:
		fmt.Fprintf(stderr, "podseal-proxy: no command %q\n\n%s", command, usage)
		return 2
	}
}
