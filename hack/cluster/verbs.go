package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"podseal.io/hack/cluster/internal/cluster"
	"podseal.io/hack/cluster/internal/plan"
)

// verb is one thing that the command line can ask for.
type verb struct {
	name, synopsis, about string
	flags                 func(*flag.FlagSet, *request)
	// maxArgs is how many arguments it takes; -1 is any number. takesCommand says
	// that a command may follow after "--".
	maxArgs      int
	takesCommand bool
	run          func(context.Context, request) error
}

// request is a parsed command line.
type request struct {
	cluster        *cluster.Cluster
	nodes          int
	output         string
	args           []string
	command        []string
	stdout, stderr io.Writer
}

func verbs() []verb {
	return []verb{
		{
			name: "up", synopsis: "[--name NAME] [--nodes 1|2]",
			about: "starts the cluster, or repairs what is missing of it, and waits until it is ready",
			flags: func(f *flag.FlagSet, r *request) {
				f.IntVar(&r.nodes, "nodes", 0, "number of nodes, 1 or 2 (default what is there, or 1)")
			},
			run: up,
		},
		{name: "down", synopsis: "[--name NAME]", about: "removes the cluster and everything it left", run: func(ctx context.Context, r request) error {
			return r.cluster.Down(ctx)
		}},
		{
			name: "status", synopsis: "[--name NAME] [-o json]",
			about: "says how the cluster is; the exit code is 3 when it is not well",
			flags: func(f *flag.FlagSet, r *request) { f.StringVar(&r.output, "o", "text", "text or json") },
			run:   status,
		},
		{name: "load", synopsis: "[--name NAME] IMAGE.tar...", about: "puts images into every node", maxArgs: -1, run: load},
		{
			name: "shell", synopsis: "[--name NAME] [-- CMD...]", takesCommand: true,
			about: "runs a shell, or CMD, in the network namespace of node 1, with kubectl and d8 on the path",
			run: func(_ context.Context, r request) error {
				return r.cluster.Shell(r.command, os.Environ())
			},
		},
		{
			name: "node", synopsis: "[--name NAME] N [-- CMD...]", maxArgs: 1, takesCommand: true,
			about: "runs a shell, or CMD, in node N's network namespace and view of the file system", run: onNode,
		},
		{
			name: "kubeconfig", synopsis: "[--name NAME]",
			about: "prints the path of the kubeconfig for programs on this machine",
			run: func(_ context.Context, r request) error {
				spec, err := r.cluster.Spec()
				if err != nil {
					return err
				}
				_, err = fmt.Fprintln(r.stdout, spec.Kubeconfig())
				return err
			},
		},
		{name: "build", about: "installs the packages and builds the programs that clusters need", run: func(ctx context.Context, r request) error {
			source, cache, err := directories()
			if err != nil {
				return err
			}
			out, err := r.cluster.Build(ctx, source, cache)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(r.stdout, "%s\n%s\n", out.Kubernetes, out.Images)
			return err
		}},
	}
}

func verbNames() string {
	var names []string
	for _, v := range verbs() {
		names = append(names, v.name)
	}
	return strings.Join(names, ", ")
}

func (v verb) parseAndRun(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	r := request{stdout: stdout, stderr: stderr}
	var name string
	flags := flag.NewFlagSet(v.name, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&name, "name", plan.DefaultName, "name of the cluster")
	if v.flags != nil {
		v.flags(flags, &r)
	}
	help := func(w io.Writer) {
		fmt.Fprintf(w, "Usage: cluster %s %s\n\n%s.\n\nFlags:\n", v.name, v.synopsis, strings.ToUpper(v.about[:1])+v.about[1:])
		flags.SetOutput(w)
		flags.PrintDefaults()
	}
	var err error
	if r.args, r.command, err = parseArgs(flags, args); errors.Is(err, flag.ErrHelp) {
		help(stdout)
		return nil
	} else if err != nil {
		return fmt.Errorf("%s: %w; usage: cluster %s %s", v.name, err, v.name, v.synopsis)
	}
	if len(r.command) > 0 && !v.takesCommand {
		r.args = append(r.args, r.command...)
	}
	if v.maxArgs >= 0 && len(r.args) > v.maxArgs {
		return fmt.Errorf("%s: unexpected argument %q; usage: cluster %s %s", v.name, r.args[v.maxArgs], v.name, v.synopsis)
	}
	var given bool
	flags.Visit(func(f *flag.Flag) { given = given || f.Name == "nodes" })
	if given {
		if err := plan.ValidateNodes(r.nodes); err != nil {
			return err
		}
	}
	if r.cluster, err = cluster.New(name, stderr); err != nil {
		return err
	}
	return v.run(ctx, r)
}

// parseArgs parses flags wherever they stand before "--" and returns the arguments
// between them and the command after it.
func parseArgs(flags *flag.FlagSet, args []string) (positional, command []string, err error) {
	for i, arg := range args {
		if arg == "--" {
			args, command = args[:i], args[i+1:]
			break
		}
	}
	for {
		if err := flags.Parse(args); err != nil {
			return nil, nil, err
		}
		if flags.NArg() == 0 {
			return positional, command, nil
		}
		positional = append(positional, flags.Arg(0))
		args = flags.Args()[1:]
	}
}

func up(ctx context.Context, r request) error {
	source, cache, err := directories()
	if err != nil {
		return err
	}
	return r.cluster.Up(ctx, cluster.UpOptions{Nodes: r.nodes, Source: source, Cache: cache})
}

func status(ctx context.Context, r request) error {
	if r.output != "text" && r.output != "json" {
		return fmt.Errorf("output %q: want text or json", r.output)
	}
	s, err := r.cluster.Status(ctx)
	if err != nil {
		return err
	}
	if err := s.Write(r.stdout, r.output == "json"); err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	if !s.Up {
		return errUnwell
	}
	return nil
}

func load(ctx context.Context, r request) error {
	if len(r.args) == 0 {
		return errors.New("load: no image archive given")
	}
	return r.cluster.Load(ctx, r.args)
}

func onNode(_ context.Context, r request) error {
	if len(r.args) == 0 {
		return errors.New("node: no node given: want a number, such as: node 1 -- tcpdump -ni any")
	}
	number, err := strconv.Atoi(r.args[0])
	if err != nil {
		return fmt.Errorf("node %q: want a number, 1 or 2", r.args[0])
	}
	return r.cluster.Exec(number, r.command, os.Environ())
}
