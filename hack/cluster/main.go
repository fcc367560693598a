// Command cluster runs a real Kubernetes on one Linux machine, in network
// namespaces of its own: for demonstrations, end-to-end tests and daily work.
// `cluster --help` lists the verbs.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal ends the program at once.
	context.AfterFunc(ctx, stop)
	err := prepare()
	if err == nil {
		err = run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	}
	stop()
	if errors.Is(err, errUnwell) {
		os.Exit(3)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

// prepare completes PATH: a root shell that `su` made lacks the directories in
// which Debian keeps nft, ip and the like.
func prepare() error {
	return os.Setenv("PATH", os.Getenv("PATH")+":/usr/local/sbin:/usr/sbin:/sbin")
}

const usage = `Cluster runs a real Kubernetes on this machine, as root, in network
namespaces of its own. Nothing of it can reach the host or be reached from
elsewhere, except the API server, on 127.0.0.1.

Usage:
  cluster VERB [--name NAME] [ARGS]

Verbs:
  up [--nodes 1|2]       start the cluster, or repair what is missing of it
  down                   remove the cluster and everything it left
  status [-o json]       say how it is; exit code 3 when it is not well
  load IMAGE.tar...      put images into every node
  shell [-- CMD...]      a shell, or CMD, in node 1's network, with kubectl and d8
  node N [-- CMD...]     the same on node N, with the node's /var/log, /etc/cni and
                         the like, such as: node 2 -- tcpdump -ni any port 80
  kubeconfig             print the path of the kubeconfig for this machine
  build                  build the programs and do nothing else

The name is "podseal" where none is given. Clusters of different names live side
by side. Paths are relative to the working directory, which "go run -C" changes:
give absolute ones there. Node N is the network namespace podseal-NAME-N; podseal-NAME-net joins
the nodes, and is where a client outside the cluster can be played. State and logs
are in /var/lib/podseal-cluster/NAME, programs in the user's cache directory.
`

// errUnwell makes the exit code of `status` say that the cluster is not well.
var errUnwell = errors.New("the cluster is not well")

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		fmt.Fprint(stderr, usage)
		return fmt.Errorf("no verb given: want one of %s", verbNames())
	}
	switch args[0] {
	case "-h", "--help", "help":
		fmt.Fprint(stdout, usage)
		return nil
	case "run-node":
		return runNode(ctx, args[1:], stderr)
	}
	for _, v := range verbs() {
		if v.name == args[0] {
			return v.parseAndRun(ctx, args[1:], stdout, stderr)
		}
	}
	return fmt.Errorf("unknown verb %q: want one of %s", args[0], verbNames())
}
