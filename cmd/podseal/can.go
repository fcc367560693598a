package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"podseal.io/podseal/internal/controlplane"
)

type canOptions struct {
	namespace, output string
	port              uint16
}

// canAnswer is what `can -o json` prints: one for each pair of kinds of pods and
// each port.
type canAnswer struct {
	Source      string `json:"source"`
	Destination string `json:"destination"`
	Port        uint16 `json:"port"` // of the pod; 0 is every port that no service leads to
	Allowed     bool   `json:"allowed"`
	Over        string `json:"over"` // mutual_tls or plaintext
	Because     string `json:"because"`
}

func newCanCommand(s streams, k *kube) *cobra.Command {
	o := canOptions{}
	cmd := &cobra.Command{
		Use:   "can SOURCE DESTINATION",
		Short: "May one workload talk to another, over what, and why",
		Long: `Say whether connections from one workload or pod to another are accepted, as the control plane told
their proxies, and whether they are mutual TLS. The exit code is 0 if all are accepted, 1 if not.

It looks at the mode of the destination's ports and at who is in the mesh. AuthorizationPolicies,
NetworkPolicies and exclusions from capture are not looked at.`,
		Example: `  podseal can shop/web shop/db
  podseal can pod/shop/web-7d4b9c6f5-abcde shop/db --port 5432 -o json`,
		Args:              args("SOURCE", "DESTINATION"),
		ValidArgsFunction: completePods(k, 2),
		RunE:              func(cmd *cobra.Command, names []string) error { return o.run(cmd.Context(), s, k, names[0], names[1]) },
	}
	f := cmd.Flags()
	f.StringVarP(&o.namespace, "namespace", "n", "", "namespace of names without one (default that of the kubeconfig's context)")
	f.Uint16Var(&o.port, "port", 0, "port of the destination pod (default every port that a service leads to)")
	f.StringVarP(&o.output, "output", "o", "table", "table, json or yaml")
	return cmd
}

func (o *canOptions) run(ctx context.Context, s streams, k *kube, source, destination string) error {
	if err := oneOf("output", o.output, "table", "json", "yaml"); err != nil {
		return err
	}
	if o.namespace == "" {
		o.namespace = k.namespace()
	}
	l, err := k.look(ctx, s.err)
	if err != nil {
		return err
	}
	defer l.close()
	v, err := l.view(ctx, "", controlplane.PartPods)
	if err != nil {
		return err
	}
	from, errFrom := findPods(v.Pods, source, o.namespace)
	to, errTo := findPods(v.Pods, destination, o.namespace)
	if err := errors.Join(errFrom, errTo); err != nil {
		return err
	}
	answers := decide(from, to, o.port)
	l.note("AuthorizationPolicies are not looked at: they may refuse what is allowed here")
	if o.output != "table" {
		err = writeDocument(s, o.output, answers)
	} else {
		printAnswers(s, answers)
	}
	if err != nil {
		return err
	}
	if slices.ContainsFunc(answers, func(a canAnswer) bool { return !a.Allowed }) {
		return errSilent
	}
	return nil
}

// decide answers for each pair of pods; pairs that are alike have one answer.
func decide(from, to []controlplane.PodView, port uint16) []canAnswer {
	var out []canAnswer
	for i := range from {
		for j := range to {
			for _, p := range portsOf(&to[j], port) {
				a := judge(&from[i], &to[j], p)
				if !slices.Contains(out, a) {
					out = append(out, a)
				}
			}
		}
	}
	return out
}

func portsOf(p *controlplane.PodView, port uint16) []uint16 {
	if port != 0 {
		return []uint16{port}
	}
	var out []uint16
	for _, x := range p.Ports {
		out = append(out, x.Port)
	}
	if len(out) == 0 {
		out = []uint16{0}
	}
	return out
}

// judge decides as the two proxies do: the client's by what it is told of the
// destination (contract 3.20), the server's by the mode of the port (contract 2.13).
func judge(from, to *controlplane.PodView, port uint16) canAnswer {
	a := canAnswer{Source: title(from), Destination: title(to), Port: port, Allowed: true, Over: "plaintext"}
	mode := to.Mode
	if m, ok := to.PortModes[port]; ok {
		mode = m
	}
	switch {
	case !to.Mesh:
		a.Because = "the destination is not in the mesh: it gets what the source sends"
	case from.Mesh && mode != "DISABLE":
		a.Over, a.Because = "mutual_tls", "both are in the mesh, and the port's mode is "+mode
	case from.Mesh:
		a.Because = "the port's mode is DISABLE"
	case mode == "STRICT":
		a.Allowed, a.Because = false, "plaintext_refused: the source is not in the mesh, and the port's mode is STRICT"
	default:
		a.Because = "the source is not in the mesh, and the port's mode is " + mode
	}
	return a
}

func title(p *controlplane.PodView) string { return p.Namespace + "/" + p.Workload }

func printAnswers(s streams, answers []canAnswer) {
	w := tabwriter.NewWriter(s.out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "SOURCE\tDESTINATION\tPORT\tALLOWED\tOVER\tBECAUSE")
	for _, a := range answers {
		port, allowed := "any", "yes"
		if a.Port != 0 {
			port = strconv.Itoa(int(a.Port))
		}
		if !a.Allowed {
			allowed = "no"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", a.Source, a.Destination, port, allowed, strings.ReplaceAll(a.Over, "mutual_tls", "mutual TLS"), a.Because)
	}
	_ = w.Flush() // a closed standard output
}
