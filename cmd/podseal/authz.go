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
	"podseal.io/podseal/internal/discovery"
	"podseal.io/podseal/internal/explain"
)

type authzOptions struct {
	namespace, output string
	files             []string
}

// authzList is what `authz check -o json` prints.
type authzList struct {
	Pods    []controlplane.PodPolicies   `json:"pods"`
	Objects []controlplane.ObjectVerdict `json:"objects,omitempty"` // of -f
}

func newAuthzCommand(s streams, k *kube) *cobra.Command {
	o := authzOptions{}
	check := &cobra.Command{
		Use:   "check POD|WORKLOAD|service/NAME",
		Short: "Which AuthorizationPolicies hold for a pod, in the order in which they are looked at",
		Long: `List the AuthorizationPolicies that hold for a pod, or for the pods of a workload or service, in the order in
which a proxy looks at them, whether its proxy has acknowledged each as it is now, and when it last matched
there and what became of that, as far as the proxy that runs now has seen. -o json has it of each rule.

With -f it is answered as if the policies in the files had just been applied. Nothing is changed.`,
		Example: `  podseal authz check shop/api-7d4b9c6f5-abcde
  podseal authz check deploy/api -n shop
  podseal authz check service/shop/api -f policies.yaml`,
		Args:              args("POD"),
		ValidArgsFunction: completePods(k, 1),
		RunE:              func(cmd *cobra.Command, names []string) error { return o.run(cmd.Context(), s, k, names[0]) },
	}
	f := check.Flags()
	f.StringVarP(&o.namespace, "namespace", "n", "", "namespace of names without one (default that of the kubeconfig's context)")
	f.StringArrayVarP(&o.files, "file", "f", nil, "policies to take as if they were applied, - for the standard input; may be repeated")
	f.StringVarP(&o.output, "output", "o", "table", "table, json or yaml")
	authz := &cobra.Command{Use: "authz", Short: "What AuthorizationPolicies do", Args: noArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return usageError{errors.New("write `podseal authz check POD`")}
	}}
	authz.AddCommand(check)
	return authz
}

func (o *authzOptions) run(ctx context.Context, s streams, k *kube, name string) error {
	if err := oneOf("output", o.output, "table", "json", "yaml"); err != nil {
		return err
	}
	k.fillIn(&o.namespace)
	objects, err := readPolicies(o.files, s, o.namespace)
	if err != nil {
		return err
	}
	l, v, err := k.lookAt(ctx, s.err, "", controlplane.PartPods)
	if err != nil {
		return err
	}
	defer l.close()
	pods, err := findAny(v.Pods, name, o.namespace)
	if err != nil {
		return err
	}
	out, err := l.explain(ctx, &controlplane.ExplainRequest{Pods: podNamesOf(l, pods), Objects: objects})
	if err != nil {
		return err
	}
	if o.output != "table" {
		return writeDocument(s, o.output, authzList{out.Pods, out.Objects})
	}
	l.noteObjects(out.Objects)
	printPolicies(s, out.Pods, v.Now)
	return nil
}

// findAny finds a pod by its name, or the pods of a workload or service.
func findAny(pods []controlplane.PodView, name, namespace string) ([]controlplane.PodView, error) {
	if found, err := findPods(pods, "pod/"+strings.TrimPrefix(name, "pod/"), namespace); err == nil {
		return found, nil
	}
	found, _, err := findTargets(pods, name, namespace)
	return found, err
}

// sum is one policy at several pods.
type sum struct {
	policy    explain.Applied
	pods, yes int
	other     string // a state that isn't yes
}

// sumUp joins what holds for several pods, in the order of the first.
func sumUp(pods []controlplane.PodPolicies) []*sum {
	var out []*sum
	found := map[explain.Applied]*sum{}
	for i := range pods {
		for _, p := range pods[i].Authorization {
			x := found[p.Applied]
			if x == nil {
				x = &sum{policy: p.Applied}
				found[p.Applied] = x
				out = append(out, x)
			}
			x.pods++
			if p.Enforced == controlplane.EnforcedYes {
				x.yes++
			} else {
				x.other = p.Enforced
			}
		}
	}
	return out
}

func (x *sum) enforced() string {
	switch {
	case x.yes == x.pods:
		return controlplane.EnforcedYes
	case x.pods == 1:
		return x.other
	default:
		return fmt.Sprintf("at %d of %d; %s", x.yes, x.pods, x.other)
	}
}

func printPolicies(s streams, pods []controlplane.PodPolicies, now time.Time) {
	all := sumUp(pods)
	if len(all) == 0 {
		fmt.Fprintln(s.out, "No AuthorizationPolicy holds: everybody is let in.")
		return
	}
	w := tabwriter.NewWriter(s.out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "ACTION\tAUTHORIZATIONPOLICY\tRULES\tSCOPE\tENFORCED\tLAST_MATCHED")
	allow := false
	for _, x := range all {
		p := &x.policy
		action, rules := p.Action, cmp.Or(fmt.Sprint(p.Rules), "0")
		if p.DryRun {
			action += " (dry run)"
		}
		if p.Unknown {
			rules = "unknown: nothing is let in"
		}
		allow = allow || (p.Action == "ALLOW" && !p.DryRun)
		fmt.Fprintf(w, "%s\t%s.%s\t%s\t%s\t%s\t%s\n", action, p.Name, p.Namespace, rules, p.Scope, x.enforced(), lastMatched(pods, discovery.KindAuthorizationPolicy, p.Key(), now))
	}
	_ = w.Flush() // a closed standard output
	if !allow {
		fmt.Fprintln(s.out, "No ALLOW policy holds: what is not denied is let in.")
	}
}
