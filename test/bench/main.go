// Command bench measures what Podseal promises in figures, on a local cluster
// of its own: the size and memory of the proxy, how much later a pod starts,
// how soon a change of policy is in force, and what two proxies cost a
// connection. It prints a table, writes JSON and can put the figures into a
// page. It needs root.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"podseal.io/podseal/test/e2e/walkthrough"
)

// options say what is measured and how often.
type options struct {
	setup   walkthrough.Setup
	only    map[string]bool
	pods    int           // started for each way of injection
	changes int           // of policy, in each direction
	rounds  int           // of traffic
	length  time.Duration // of one round
	idle    time.Duration // how old an idle proxy is when it is measured
	keep    bool
	json    string
	page    string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := dispatch(ctx, os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

// dispatch is the program, or one of its parts that run in a pod's network:
// they are this same program.
func dispatch(ctx context.Context, args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case "serve":
			return serve(ctx, args[1:])
		case "load":
			return load(ctx, args[1:])
		}
	}
	var o options
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	bin := fs.String("bin", "bin", "folder with the built programs and image archives")
	only := fs.String("only", "size,policy,traffic,start,memory", "what to measure")
	fs.StringVar(&o.setup.Version, "version", "dev", "tag of Podseal's images")
	fs.StringVar(&o.setup.Name, "cluster", "bench", "name of the local cluster, which is made and removed")
	fs.IntVar(&o.setup.Nodes, "nodes", 1, "nodes of the local cluster")
	fs.IntVar(&o.pods, "pods", 15, "pods to start, for each way of injection")
	fs.IntVar(&o.changes, "changes", 12, "changes of policy, in each direction")
	fs.IntVar(&o.rounds, "rounds", 5, "rounds of traffic")
	fs.DurationVar(&o.length, "length", 3*time.Second, "length of one round of traffic")
	fs.DurationVar(&o.idle, "idle", 2*time.Minute, "age of the idle proxy whose memory is measured")
	fs.BoolVar(&o.keep, "keep", false, "leave the cluster up")
	fs.StringVar(&o.json, "json", "bin/bench.json", "where the figures go")
	fs.StringVar(&o.page, "page", "", "a page to put the table into, between its two marks")
	if err := fs.Parse(args); err != nil {
		return err
	}
	o.only = map[string]bool{}
	for what := range strings.SplitSeq(*only, ",") {
		o.only[what] = true
	}
	var err error
	if o.setup.Bin, err = filepath.Abs(*bin); err != nil {
		return fmt.Errorf("find %s: %w", *bin, err)
	}
	o.setup.Log = os.Stderr
	return bench(ctx, o)
}

// bench brings the cluster up, measures, and takes it down again.
func bench(ctx context.Context, o options) (err error) {
	r := &report{Machine: thisMachine(o.setup.Version), Began: time.Now().UTC().Truncate(time.Second)}
	local, err := o.setup.Up(ctx)
	if !o.keep {
		defer func() {
			if down := o.setup.Down(context.WithoutCancel(ctx)); err == nil {
				err = down
			}
		}()
	}
	if err != nil {
		return err
	}
	m, err := newMesh(ctx, o, local)
	if err != nil {
		return err
	}
	for _, part := range []struct {
		name    string
		measure func(context.Context, options, *report) error
	}{{"size", m.size}, {"policy", m.policy}, {"traffic", m.traffic}, {"start", m.start}, {"memory", m.memory}} {
		if !o.only[part.name] {
			continue
		}
		began := time.Now()
		if err := part.measure(ctx, o, r); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
		fmt.Fprintf(os.Stderr, "%s measured in %.0f s, load average now %s\n", part.name, time.Since(began).Seconds(), loadAverage())
	}
	r.LoadAfter = loadAverage()
	return r.publish(o)
}

// publish prints the report and writes it where it was asked for.
func (r *report) publish(o options) error {
	table := r.markdown()
	fmt.Print(table)
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the report: %w", err)
	}
	if err := os.WriteFile(o.json, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	if o.page == "" {
		return nil
	}
	page, err := os.ReadFile(o.page)
	if err != nil {
		return fmt.Errorf("read the page: %w", err)
	}
	head, rest, ok := strings.Cut(string(page), beginMark)
	_, tail, ok2 := strings.Cut(rest, endMark)
	if !ok || !ok2 {
		return fmt.Errorf("%s has no place for the figures: %s … %s", o.page, beginMark, endMark)
	}
	if err := os.WriteFile(o.page, []byte(head+beginMark+"\n"+table+endMark+tail), 0o644); err != nil {
		return fmt.Errorf("write the page: %w", err)
	}
	return nil
}
