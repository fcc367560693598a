// Command bench measures what Podseal promises in figures, in two parts: the data
// path (data), client → proxy → mutual TLS → proxy → application beside other
// proxies in network namespaces of this machine, and what takes a Kubernetes
// (cluster), on a local cluster of its own. It prints tables, writes JSON and a
// drawing, and can put the figures into a page. It needs root.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"podseal.io/podseal/test/bench/cluster"
	"podseal.io/podseal/test/bench/datapath"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := dispatch(ctx, os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

// options are those of the program.
type options struct {
	parts    []string
	bin      string
	page     string
	check    bool
	baseline string
	data     datapath.Options
	cluster  cluster.Options
}

// dispatch is the program, or one of its parts that run in a pod's network: they
// are this same program.
func dispatch(ctx context.Context, args []string) error {
	if len(args) > 0 && (args[0] == "serve" || args[0] == "load") {
		return cluster.Main(ctx, args)
	}
	o, err := parse(args)
	if err != nil {
		return err
	}
	if slices.Contains(o.parts, "data") {
		if err := measureData(ctx, o); err != nil {
			return fmt.Errorf("data path: %w", err)
		}
	}
	if slices.Contains(o.parts, "cluster") {
		if err := measureCluster(ctx, o); err != nil {
			return fmt.Errorf("cluster: %w", err)
		}
	}
	return nil
}

// parse reads the flags. Paths of peers come from the environment, as in
// ENVOY=/usr/bin/envoy make bench.
func parse(args []string) (options, error) {
	var o options
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	bin := fs.String("bin", "bin", "folder with the built programs and image archives, and for the results")
	version := fs.String("version", "dev", "version of Podseal, and tag of its images")
	parts := fs.String("parts", "data,cluster", "what to measure")
	fs.StringVar(&o.page, "page", "", "a page to put the tables into, between their marks; the drawing goes beside it")

	d := &o.data
	quick := fs.Bool("quick", false, "data: two short rounds of the figures that Podseal is judged by, pinned only")
	peers := fs.String("peers", "", "data: only these, of "+strings.Join(datapath.PeerNames(), " "))
	scenarios := fs.String("scenarios", "", "data: only these scenarios or groups, of "+strings.Join(datapath.ScenarioNames(), " "))
	places := fs.String("placements", "pinned,unpinned", "data: where things run")
	fs.IntVar(&d.Rounds, "rounds", 3, "data: rounds of what Podseal is judged by")
	fs.IntVar(&d.WideRounds, "wide-rounds", 1, "data: rounds of the other scenarios")
	fs.DurationVar(&d.Length, "length", 700*time.Millisecond, "data: length of one measurement")
	fs.DurationVar(&d.Warmup, "warmup", 200*time.Millisecond, "data: time before it")
	fs.IntVar(&d.Cores[0], "core-ends", 0, "data: the core of client and application, where they are pinned")
	fs.IntVar(&d.Cores[1], "core-proxies", 1, "data: the core of both proxies, where they are pinned")
	fs.IntVar(&d.Nice, "nice", -15, "data: priority of all that is measured, so that what else the machine does disturbs less")
	fs.StringVar(&d.Congestion, "congestion", "cubic", "data: TCP's congestion control in every pod. Linux has cubic unless it is told otherwise; BBR costs all proxies more")
	fs.BoolVar(&d.Profile, "profile", false, "data: where Podseal's CPU time goes, by perf, and nothing else; its program must have symbols (make bench-profile)")
	fs.BoolVar(&o.check, "check", false, "data: fail when a figure misses what it must reach by more than a third, also when it is measured again")
	fs.StringVar(&o.baseline, "baseline", "", "data: JSON of an earlier run, to say what has changed since")

	c := &o.cluster
	only := fs.String("only", cluster.Parts, "cluster: what to measure")
	fs.StringVar(&c.Setup.Name, "cluster", "bench", "cluster: name of the local cluster, which is made and removed")
	fs.IntVar(&c.Setup.Nodes, "nodes", 1, "cluster: nodes")
	fs.IntVar(&c.Pods, "pods", 15, "cluster: pods to start, for each way of injection")
	fs.IntVar(&c.Changes, "changes", 12, "cluster: changes of policy, in each direction")
	fs.IntVar(&c.Rounds, "traffic-rounds", 5, "cluster: rounds of traffic")
	fs.DurationVar(&c.Length, "traffic-length", 3*time.Second, "cluster: length of one round of traffic")
	fs.DurationVar(&c.Idle, "idle", 2*time.Minute, "cluster: age of the idle proxy whose memory is measured")
	fs.BoolVar(&c.Keep, "keep", false, "cluster: leave it up")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	var err error
	if o.bin, err = filepath.Abs(*bin); err != nil {
		return o, fmt.Errorf("find %s: %w", *bin, err)
	}
	o.parts, c.Only = split(*parts), split(*only)
	for _, part := range o.parts {
		if part != "data" && part != "cluster" {
			return o, fmt.Errorf("no part %q", part)
		}
	}
	c.Setup.Version, c.Setup.Bin, c.Setup.Log = *version, o.bin, os.Stderr
	d.Bin, d.Peers, d.Scenarios, d.Placements = o.bin, split(*peers), split(*scenarios), split(*places)
	d.Log, d.Load, d.Machine = os.Stderr, cluster.LoadAverage, datapath.Machine(cluster.ThisMachine(*version))
	d.Given = map[string]string{"envoy": os.Getenv("ENVOY"), "ztunnel": os.Getenv("ZTUNNEL"), "linkerd2-proxy": os.Getenv("LINKERD2_PROXY"), "ghostunnel": os.Getenv("GHOSTUNNEL"), "podseal-before": os.Getenv("PODSEAL_BEFORE")}
	if *quick {
		quicken(d, fs)
	}
	if o.check {
		d.Again = 4
	}
	return o, nil
}

// quicken shortens what was not asked for by name.
func quicken(d *datapath.Options, fs *flag.FlagSet) {
	asked := map[string]bool{}
	fs.Visit(func(f *flag.Flag) { asked[f.Name] = true })
	d.Quick = true
	if !asked["placements"] {
		d.Placements = []string{"pinned"}
	}
	if !asked["rounds"] {
		d.Rounds = 2
	}
	if !asked["length"] {
		d.Length = 400 * time.Millisecond
	}
	if !asked["warmup"] {
		d.Warmup = 100 * time.Millisecond
	}
}

// split makes a list of names; none is nil.
func split(list string) []string {
	if list == "" {
		return nil
	}
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' })
}

func measureData(ctx context.Context, o options) error {
	r, err := datapath.Run(ctx, o.data)
	if err != nil {
		return err
	}
	if o.data.Profile {
		return reportProfiles(o, r)
	}
	fmt.Print(r.Markdown(""))
	if err := writeJSON(filepath.Join(o.bin, "bench-data.json"), r); err != nil {
		return err
	}
	drawing := filepath.Join(o.bin, "bench-data.svg")
	if o.page != "" {
		drawing = strings.TrimSuffix(o.page, filepath.Ext(o.page)) + ".svg"
		if err := publish(o.page, "data path", r.Markdown(filepath.Base(drawing))); err != nil {
			return err
		}
	}
	if err := os.WriteFile(drawing, []byte(r.SVG()), 0o644); err != nil {
		return fmt.Errorf("write the drawing: %w", err)
	}
	if o.baseline != "" {
		if err := compare(r, o.baseline); err != nil {
			return err
		}
	}
	if !o.check {
		return nil
	}
	if off := r.Off(); len(off) > 0 {
		return fmt.Errorf("off by more than a third:\n  %s", strings.Join(off, "\n  "))
	}
	return nil
}

// reportProfiles prints profiles, puts them into a file, and their table into the page.
func reportProfiles(o options, r *datapath.Report) error {
	fmt.Print(r.ProfileMarkdown())
	if err := writeJSON(filepath.Join(o.bin, "bench-profile.json"), r); err != nil || o.page == "" {
		return err
	}
	return publish(o.page, "profiles", r.ProfileMarkdown())
}

// compare prints what has changed since an earlier run.
func compare(r *datapath.Report, file string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read the earlier run: %w", err)
	}
	var earlier datapath.Report
	if err := json.Unmarshal(b, &earlier); err != nil {
		return fmt.Errorf("read the earlier run: %w", err)
	}
	changes := r.Compare(&earlier)
	fmt.Printf("Since the run of %s, %d ratios to the best peer have changed by more than a tenth.\n", earlier.Began.Format(time.RFC3339), len(changes))
	for _, line := range changes {
		fmt.Println("  " + line)
	}
	return nil
}

func measureCluster(ctx context.Context, o options) error {
	r, err := cluster.Run(ctx, o.cluster)
	if err != nil {
		return err
	}
	fmt.Print(r.Markdown())
	if err := writeJSON(filepath.Join(o.bin, "bench.json"), r); err != nil {
		return err
	}
	if o.page == "" {
		return nil
	}
	return publish(o.page, "figures", r.Markdown())
}

func writeJSON(file string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the report: %w", err)
	}
	if err := os.WriteFile(file, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

// publish puts a text between its two marks in a page.
func publish(file, what, text string) error {
	begin, end := "<!-- "+what+": written by make bench -->", "<!-- end of "+what+" -->"
	page, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read the page: %w", err)
	}
	head, rest, ok := strings.Cut(string(page), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return fmt.Errorf("%s has no place for the %s: %s … %s", file, what, begin, end)
	}
	if err := os.WriteFile(file, []byte(head+begin+"\n"+text+end+tail), 0o644); err != nil {
		return fmt.Errorf("write the page: %w", err)
	}
	return nil
}
