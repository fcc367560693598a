package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"podseal.io/podseal/internal/controlplane"
	"podseal.io/podseal/internal/strict"
)

type strictOptions struct {
	namespace, output            string
	window, watchFor             time.Duration
	watch, apply, dryRun, anyway bool

	poll  time.Duration // between looks; a second outside tests
	grace time.Duration // how long nobody may answer while refusals are watched for
}

func newStrictCommand(s streams, k *kube) *cobra.Command {
	o := strictOptions{poll: time.Second, grace: 15 * time.Second}
	cmd := &cobra.Command{
		Use:   "strict NAMESPACE|WORKLOAD",
		Short: "May it become STRICT: who would be refused, and what does each need",
		Long: `Say of each workload and port whether somebody still talks to it without the mesh's mutual TLS, who, since
when and when last, and what each of them needs. A name without a slash is a namespace, NAMESPACE/NAME or
KIND/NAME with -n a workload.

Verdicts: go; except, which is go if that port stays PERMISSIVE for a probe, a scraper or the API server, which
can't have a proxy; wait, if nobody was seen but not for as long as --window; no-go; strict, if it is so already.
The exit code is 0 for go, except and strict, 1 for no-go and wait.

With --apply and such a verdict it makes the PeerAuthentications: first as a dry run of the API server, whose
result it shows, then really. It then watches for --for, and undoes it all by itself when somebody is refused who
was fine before, or when nobody can tell any more.`,
		Example: `  podseal strict shop
  podseal strict shop/api --window 1h -o json
  podseal strict deploy/api -n shop --watch
  podseal strict shop --apply --for 5m`,
		Args:              args("NAMESPACE|WORKLOAD"),
		ValidArgsFunction: completeNamespaces(k),
		RunE:              func(cmd *cobra.Command, names []string) error { return o.run(cmd.Context(), s, k, names[0]) },
	}
	f := cmd.Flags()
	f.StringVarP(&o.namespace, "namespace", "n", "", "namespace of a KIND/NAME (default that of the kubeconfig's context)")
	f.DurationVar(&o.window, "window", 24*time.Hour, "how far back callers count, and how long must have been observed")
	f.BoolVarP(&o.watch, "watch", "w", false, "go on until it may, and print what changes")
	f.BoolVar(&o.apply, "apply", false, "make it STRICT, watch, and undo it if somebody is refused who was fine")
	f.BoolVar(&o.dryRun, "dry-run", false, "with --apply: only as a dry run of the API server")
	f.DurationVar(&o.watchFor, "for", 2*time.Minute, "with --apply: how long to watch for refusals")
	f.BoolVar(&o.anyway, "anyway", false, "with --apply: also if the verdict is wait or no-go")
	f.StringVarP(&o.output, "output", "o", "table", "table, json or yaml")
	return cmd
}

// target is what is to become STRICT.
type target struct{ namespace, workload string }

func (t target) String() string {
	if t.workload == "" {
		return "namespace " + t.namespace
	}
	return "workload " + t.namespace + "/" + t.workload
}

// targetOf reads NAMESPACE, NAMESPACE/NAME, KIND/NAME or KIND/NAMESPACE/NAME.
func (o *strictOptions) targetOf(name string, k *kube) target {
	if kind, rest, ok := strings.Cut(name, "/"); ok && (kind == "ns" || kind == "namespace") {
		return target{namespace: rest}
	}
	short := workloadName(name)
	ns, workload, slash := strings.Cut(short, "/")
	switch {
	case slash:
		return target{ns, workload}
	case short != name: // KIND/NAME
		if o.namespace == "" {
			o.namespace = k.namespace()
		}
		return target{o.namespace, short}
	case o.namespace != "":
		return target{o.namespace, name}
	default:
		return target{namespace: name}
	}
}

func (t target) wants(ns, workload string) bool {
	return ns == t.namespace && (t.workload == "" || workload == t.workload)
}

func (o *strictOptions) run(ctx context.Context, s streams, k *kube, name string) error {
	err := oneOf("output", o.output, "table", "json", "yaml")
	switch {
	case o.watch && o.apply:
		err = errors.Join(err, usageError{errors.New("--watch and --apply exclude each other: --apply watches by itself")})
	case !o.apply && (o.dryRun || o.anyway):
		err = errors.Join(err, usageError{errors.New("--dry-run and --anyway are for --apply")})
	case o.window <= 0 || o.watchFor < 0:
		err = errors.Join(err, usageError{errors.New("--window and --for must be positive")})
	}
	if err != nil {
		return err
	}
	l, err := k.look(ctx, s.err)
	if err != nil {
		return err
	}
	defer l.close()
	t := o.targetOf(name, k)
	hooks := l.hooks(ctx)
	if o.watch {
		return o.follow(ctx, s, l, t, hooks)
	}
	in, r, err := o.judge(ctx, l, t, hooks)
	if err != nil {
		return err
	}
	if err := o.print(s, r); err != nil {
		return err
	}
	ok := passes(r)
	switch {
	case !o.apply && !ok:
		return errSilent
	case !o.apply:
		return nil
	case !ok && !o.anyway:
		return codedError{fmt.Errorf("%s does not become STRICT: the verdict is %s (--anyway does it all the same)", t, r.Verdict), exitFailed}
	}
	return (&enforcer{strictOptions: o, streams: s, looker: l, target: t, hooks: hooks}).run(ctx, in, r)
}

func passes(r *strict.Report) bool {
	return r.Verdict == strict.Go || r.Verdict == strict.Except || r.Verdict == strict.Strict
}

// judge asks the control plane and judges.
func (o *strictOptions) judge(ctx context.Context, l *looker, t target, hooks map[string]bool) (*strict.Input, *strict.Report, error) {
	v, err := l.view(ctx, "", controlplane.StrictParts()...)
	if err != nil {
		return nil, nil, err
	}
	in := controlplane.StrictInput(v, o.window, hooks)
	r := strict.Judge(in, t.wants)
	if len(r.Workloads) == 0 {
		var names []string
		for i := range v.Pods {
			names = append(names, v.Pods[i].Namespace, v.Pods[i].Namespace+"/"+v.Pods[i].Workload)
		}
		return nil, nil, unknownName("namespace or workload with pods", cmp.Or(strings.Trim(t.namespace+"/"+t.workload, "/"), "?"), distinct(names))
	}
	return &in, &r, nil
}

// follow prints the report whenever it says something else, until it passes.
func (o *strictOptions) follow(ctx context.Context, s streams, l *looker, t target, hooks map[string]bool) error {
	ticker := time.NewTicker(o.poll)
	defer ticker.Stop()
	printed := ""
	for first := true; ; first = false {
		_, r, err := o.judge(ctx, l, t, hooks)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && first:
			return err
		case err != nil:
			l.note(err.Error())
		default:
			if now := essence(r); now != printed {
				printed = now
				if err := o.print(s, r); err != nil {
					return err
				}
			}
			if passes(r) {
				return nil
			}
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// essence is what of a report is worth printing again for.
func essence(r *strict.Report) string {
	var b strings.Builder
	for i := range r.Workloads {
		w := &r.Workloads[i]
		for _, p := range w.Ports {
			fmt.Fprint(&b, w.Name, p.Port, p.Verdict)
			for j := range p.Callers {
				fmt.Fprint(&b, p.Callers[j].Name(), p.Callers[j].Needs, len(p.Callers[j].Refusals))
			}
		}
	}
	return b.String()
}

func (o *strictOptions) print(s streams, r *strict.Report) error {
	if o.output != "table" {
		return writeDocument(s, o.output, r)
	}
	w := tabwriter.NewWriter(s.out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "WORKLOAD\tPORT\tMODE\tVERDICT\tOBSERVED\tBECAUSE")
	for i := range r.Workloads {
		x := &r.Workloads[i]
		observed := "-"
		if !x.Since.IsZero() {
			observed = short(x.Observed)
		}
		if len(x.Ports) == 0 {
			fmt.Fprintf(w, "%s/%s\t-\t-\t%s\t-\t%s\n", x.Namespace, x.Name, x.Verdict, x.Because)
		}
		for _, p := range x.Ports {
			number := "any"
			if p.Port != 0 {
				number = port(p.Port)
			}
			fmt.Fprintf(w, "%s/%s\t%s\t%s\t%s\t%s\t%s\n", x.Namespace, x.Name, number, p.Mode, p.Verdict, observed, p.Because)
		}
	}
	_ = w.Flush() // a closed standard output
	printCallers(s, r)
	for i := range r.Workloads {
		if n := len(r.Workloads[i].Outside); n > 0 && r.Workloads[i].Pods > 0 {
			fmt.Fprintf(s.err, "note: %d pods of %s/%s have no proxy: STRICT has no effect there\n", n, r.Workloads[i].Namespace, r.Workloads[i].Name)
		}
	}
	fmt.Fprintf(s.out, "\nVerdict: %s\n", r.Verdict)
	return nil
}

func printCallers(s streams, r *strict.Report) {
	w := tabwriter.NewWriter(s.out, 0, 8, 3, ' ', 0)
	heading := "\nCALLER\tOF\tPORT\tHOW\tCONNS\tSINCE\tLAST_SEEN\tBLOCKS\tNEEDS"
	for i := range r.Workloads {
		x := &r.Workloads[i]
		for _, p := range x.Ports {
			for j := range p.Callers {
				c := &p.Callers[j]
				if heading != "" {
					fmt.Fprintln(w, heading)
					heading = ""
				}
				blocks := "no"
				if c.Blocks {
					blocks = "yes"
				}
				how := c.What
				if len(c.Refusals) > 0 {
					how = strings.TrimPrefix(how+", "+refusals(c.Refusals), "refused, ")
				}
				fmt.Fprintf(w, "%s\t%s/%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\n", c.Name(), x.Namespace, x.Name, port(p.Port), how, c.Connections, age(r.Now, c.First), age(r.Now, c.Last), blocks, c.Needs)
			}
		}
	}
	_ = w.Flush() // a closed standard output
}
