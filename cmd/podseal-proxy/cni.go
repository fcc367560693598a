package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"

	"podseal.io/podseal/internal/cni"
)

// runCNI is the plugin, or what keeps it on a node:
//
//	cni        the plugin, as a container runtime runs it
//	cni agent  installs the plugin or removes it, and keeps it so
//	cni ready  exits with 0 when the node is as the agent is to make it
func runCNI(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		return cni.Main(ctx, stdout)
	}
	verb := args[0]
	fs := flag.NewFlagSet("podseal-proxy cni "+verb, flag.ContinueOnError)
	fs.SetOutput(stderr)
	agent := cni.Agent{Mode: cni.Mode(getenv("CNI_MODE")), Program: "/proc/self/exe", Pause: cni.DefaultPause, Log: slog.New(slog.NewJSONHandler(stdout, nil))}
	fs.StringVar(&agent.BinDir, "bin-dir", "/host/opt/cni/bin", "the node's directory of CNI plugins")
	fs.StringVar(&agent.ConfDir, "conf-dir", "/host/etc/cni/net.d", "the node's directory of network configurations")
	fs.StringVar(&agent.NodeConfDir, "node-conf-dir", "", "what the node calls that directory, for messages")
	exclude := fs.String("exclude-namespaces", "kube-system", "namespaces whose pods are never captured, separated by commas")
	if code := parse(fs, args[1:]); code >= 0 {
		return code
	}
	agent.Exclude = slices.DeleteFunc(strings.Split(*exclude, ","), func(s string) bool { return s == "" })
	var err error
	switch verb {
	case "agent":
		err = agent.Run(ctx)
	case "ready":
		err = agent.Check()
	default:
		fmt.Fprintf(stderr, "podseal-proxy cni: no command %q\n", verb)
		return 2
	}
	if err != nil {
		fmt.Fprintf(stderr, "podseal-proxy: %v\n", err)
		return 1
	}
	return 0
}
