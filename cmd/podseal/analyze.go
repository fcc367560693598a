package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"podseal.io/podseal/internal/analysis"
	"podseal.io/podseal/internal/discovery"
	"podseal.io/podseal/internal/settings"
)

type analyzeOptions struct {
	namespace, output string
	all, useKube      bool
	failOn, show      string
	files, suppress   []string
}

func newAnalyzeCommand(s streams, k *kube) *cobra.Command {
	o := analyzeOptions{}
	cmd := &cobra.Command{
		Use:   "analyze",
		Short: "Find what will not work as written, in the cluster or in files",
		Long: `Look for what will not work as written: selectors that select nothing, ports that no service leads to, rules
that can't be compared, modes that contradict one another, pods without a proxy or with ports that are not
captured, webhooks that don't work, roots that end, fields and kinds without effect.

With -f only the objects in the files are looked at, and no cluster is asked: what may stand elsewhere is no
finding. With -f and --use-kube they are looked at as if they had been applied.

Codes IST0… are those of istioctl analyze; docs/analyze.md lists all. An annotation
galley.istio.io/analyze-suppress: CODE,… on an object, or -S CODE=KIND NAMESPACE/NAME, leaves one out. The exit
code is 0, or 79 if there is a finding of the level of --fail-on or above.`,
		Example: `  podseal analyze -A
  podseal analyze -n shop -o json
  podseal analyze -f manifests.yaml --fail-on warning     # in CI
  podseal analyze -f policy.yaml --use-kube`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), s, k) },
	}
	f := cmd.Flags()
	f.StringVarP(&o.namespace, "namespace", "n", "", "only findings of this namespace (default that of the kubeconfig's context; with -f all)")
	f.BoolVarP(&o.all, "all-namespaces", "A", false, "findings of all namespaces, and of the mesh itself")
	f.StringArrayVarP(&o.files, "file", "f", nil, "objects to look at, - for the standard input; may be repeated")
	f.BoolVar(&o.useKube, "use-kube", false, "with -f: look at the cluster, too")
	f.StringVar(&o.failOn, "fail-on", "error", "exit with 79 from this level on: info, warning or error")
	f.StringVar(&o.show, "output-threshold", "info", "show findings from this level on")
	f.StringArrayVarP(&o.suppress, "suppress", "S", nil, `"CODE=KIND NAMESPACE/NAME" to leave out; * stands for anything; may be repeated`)
	f.StringVarP(&o.output, "output", "o", "log", "log, json or yaml")
	return cmd
}

// levels are the words of --fail-on and --output-threshold.
var levels = map[string]analysis.Level{"info": analysis.Info, "warning": analysis.Warning, "error": analysis.Error}

func (o *analyzeOptions) run(ctx context.Context, s streams, k *kube) error {
	o.failOn, o.show = strings.ToLower(o.failOn), strings.ToLower(o.show)
	err := errors.Join(oneOf("output", o.output, "log", "json", "yaml"), oneOf("fail-on", o.failOn, "info", "warning", "error"), oneOf("output-threshold", o.show, "info", "warning", "error"))
	if o.useKube && len(o.files) == 0 {
		err = errors.Join(err, usageError{errors.New("--use-kube is for -f; without, the cluster is looked at anyway")})
	}
	for _, text := range o.suppress {
		if code, object, ok := strings.Cut(text, "="); !ok || code == "" || object == "" {
			err = errors.Join(err, usageError{fmt.Errorf(`--suppress %q: write "CODE=KIND NAMESPACE/NAME"`, text)})
		}
	}
	if err != nil {
		return err
	}
	in, err := o.input(ctx, s, k)
	if err != nil {
		return err
	}
	found := o.pick(analysis.Analyze(*in))
	if o.output != "log" {
		err = writeDocument(s, o.output, found)
	} else {
		printFindings(s, found)
	}
	if err != nil {
		return err
	}
	if slices.ContainsFunc(found, func(m analysis.Message) bool { return m.Level.AtLeast(levels[o.failOn]) }) {
		return codedError{fmt.Errorf("%w: there are findings", errSilent), exitFindings}
	}
	return nil
}

func (o *analyzeOptions) input(ctx context.Context, s streams, k *kube) (*analysis.Input, error) {
	in := &analysis.Input{
		Now: time.Now(), Partial: !o.useKube && len(o.files) > 0, Files: map[discovery.Key]string{},
		Cluster: discovery.Cluster{Settings: settings.Default(""), RootNamespace: settings.Namespace},
	}
	if o.namespace == "" && !o.all && len(o.files) == 0 {
		o.namespace = k.namespace()
	}
	if !in.Partial {
		c, _, err := k.client(io.Discard)
		if err != nil {
			return nil, err
		}
		notes, err := readCluster(ctx, c, in)
		for _, n := range notes {
			fmt.Fprintln(s.err, "note: "+n)
		}
		if err != nil {
			return nil, lookError("read the cluster", err)
		}
	}
	objects, err := readObjects(o.files, s.in, cmp.Or(o.namespace, "default"))
	if err != nil {
		return nil, err
	}
	if err := addObjects(in, objects); err != nil {
		return nil, codedError{err, exitBadInput}
	}
	return in, nil
}

// pick leaves out what isn't asked for. What belongs to the mesh is shown when all
// namespaces are.
func (o *analyzeOptions) pick(all []analysis.Message) []analysis.Message {
	out := []analysis.Message{}
	for _, m := range all {
		inFile := m.File != ""
		switch {
		case !m.Level.AtLeast(levels[o.show]), o.suppressed(&m):
		case len(o.files) > 0 && !inFile && m.Kind != "Certificate": // with --use-kube only what is new
		case len(o.files) == 0 && o.namespace != "" && m.Namespace != o.namespace && (m.Kind != "Namespace" || m.Name != o.namespace):
		default:
			out = append(out, m)
		}
	}
	return out
}

func (o *analyzeOptions) suppressed(m *analysis.Message) bool {
	return slices.ContainsFunc(o.suppress, func(text string) bool {
		code, object, _ := strings.Cut(text, "=")
		name := m.Name
		if m.Namespace != "" {
			name = m.Namespace + "/" + name
		}
		return like(code, m.Code) && (like(object, m.Kind+" "+name) || like(object, m.Kind+" "+m.Name+"."+m.Namespace))
	})
}

// like compares with a pattern whose stars stand for anything.
func like(pattern, s string) bool {
	first, rest, star := strings.Cut(pattern, "*")
	if !star {
		return pattern == s
	}
	s, ok := strings.CutPrefix(s, first)
	if !ok {
		return false
	}
	for i := range len(s) + 1 {
		if like(rest, s[i:]) {
			return true
		}
	}
	return false
}

func printFindings(s streams, found []analysis.Message) {
	colors := map[analysis.Level]string{analysis.Error: "31", analysis.Warning: "33", analysis.Info: "36"}
	for i := range found {
		m := &found[i]
		level := string(m.Level)
		if s.color {
			level = "\x1b[" + colors[m.Level] + "m" + level + "\x1b[0m"
		}
		fmt.Fprintf(s.out, "%s [%s] (%s) %s\n", level, m.Code, m.Object(), m.Text)
	}
	if len(found) == 0 {
		fmt.Fprintln(s.err, "√ Nothing was found that will not work as written.")
	}
}
