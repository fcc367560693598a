package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"podseal.io/podseal/internal/controlplane"
)

// unknownName says that nothing is called so, and what is called nearly so.
func unknownName(what, name string, names []string) error {
	hint := ""
	if near := nearest(name, names); len(near) > 0 {
		hint = ". Did you mean " + strings.Join(near, " or ") + "?"
	}
	return codedError{fmt.Errorf("no %s is called %q%s", what, name, hint), exitNoInput}
}

// nearest returns at most three names that differ little from name.
func nearest(name string, names []string) []string {
	type candidate struct {
		name string
		far  int
	}
	var all []candidate
	for _, n := range names {
		far := distance(name, n)
		if _, short, ok := strings.Cut(n, "/"); ok {
			far = min(far, distance(name, short))
		}
		if far <= max(2, len(name)/3) {
			all = append(all, candidate{n, far})
		}
	}
	slices.SortStableFunc(all, func(a, b candidate) int { return a.far - b.far })
	out := make([]string, 0, 3)
	for _, c := range all[:min(3, len(all))] {
		out = append(out, c.name)
	}
	return out
}

// distance is how many letters have to be changed to make b of a (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := before
			if a[i] != b[j] {
				cost = 1 + min(before, row[j], row[j+1])
			}
			before, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}

// findPod finds a pod by [NAMESPACE/]NAME.
func findPod(pods []controlplane.PodView, name, namespace string) (*controlplane.PodView, error) {
	found, err := findPods(pods, "pod/"+name, namespace)
	if err != nil {
		return nil, err
	}
	return &found[0], nil
}

// findPods finds the pods of a workload, or one pod: [NAMESPACE/]WORKLOAD,
// KIND/WORKLOAD, or pod/[NAMESPACE/]NAME.
func findPods(pods []controlplane.PodView, name, namespace string) ([]controlplane.PodView, error) {
	want, isPod := strings.CutPrefix(name, "pod/")
	if !isPod {
		want = workloadName(name)
	}
	if ns, rest, ok := strings.Cut(want, "/"); ok {
		namespace, want = ns, rest
	}
	var found []controlplane.PodView
	var names []string
	for _, p := range pods {
		called, what := p.Workload, p.Namespace+"/"+p.Workload
		if isPod {
			called, what = p.Name, "pod/"+p.Namespace+"/"+p.Name
		}
		names = append(names, what)
		if called == want && (namespace == "" || p.Namespace == namespace) {
			found = append(found, p)
		}
	}
	if len(found) == 0 {
		slices.Sort(names)
		full := want
		if namespace != "" {
			full = namespace + "/" + want
		}
		if isPod {
			full = "pod/" + full
		}
		return nil, unknownName("workload or pod", full, slices.Compact(names))
	}
	for _, p := range found {
		if p.Namespace != found[0].Namespace {
			return nil, usageError{fmt.Errorf("%q is in namespaces %s and %s: write NAMESPACE/NAME", want, found[0].Namespace, p.Namespace)}
		}
	}
	return found, nil
}

// someOf finds pods as findPods does, of many the first ones, and says so.
func (l *looker) someOf(pods []controlplane.PodView, name, namespace string, most int, what string) ([]controlplane.PodView, error) {
	found, err := findPods(pods, name, namespace)
	if err != nil {
		return nil, err
	}
	if len(found) > most {
		l.note(fmt.Sprintf("%d of %d pods are %s", most, len(found), what))
		found = found[:most]
	}
	return found, nil
}

// findTargets finds what may be talked to: as findPods, or the pods that a service
// leads to, by service/[NAMESPACE/]NAME, which is returned too.
func findTargets(pods []controlplane.PodView, name, namespace string) (found []controlplane.PodView, service string, err error) {
	kind, want, _ := strings.Cut(name, "/")
	if kind != "service" && kind != "svc" {
		found, err = findPods(pods, name, namespace)
		return found, "", err
	}
	if ns, rest, ok := strings.Cut(want, "/"); ok {
		namespace, want = ns, rest
	}
	service = namespace + "/" + want
	var names []string
	for i := range pods {
		p := &pods[i]
		for _, s := range p.Services {
			names = append(names, p.Namespace+"/"+s)
		}
		if p.Namespace == namespace && slices.Contains(p.Services, want) {
			found = append(found, *p)
		}
	}
	if len(found) == 0 {
		slices.Sort(names)
		return nil, "", unknownName("service with pods", service, slices.Compact(names))
	}
	return found, service, nil
}

// completeTimeout is how long a shell may wait for names.
const completeTimeout = 3 * time.Second

// podNames completes pods of a namespace, or of all.
func podNames(cmd *cobra.Command, k *kube, prefix string) []string {
	ctx, cancel := context.WithTimeout(cmd.Context(), completeTimeout)
	defer cancel()
	c, _, err := k.client(io.Discard)
	if err != nil {
		return nil
	}
	var pods corev1.PodList
	if c.List(ctx, &pods) != nil {
		return nil
	}
	var names []string
	for i := range pods.Items {
		names = append(names, prefix+pods.Items[i].Namespace+"/"+pods.Items[i].Name)
	}
	return names
}

// serviceNames completes services of all namespaces.
func serviceNames(cmd *cobra.Command, k *kube) []string {
	ctx, cancel := context.WithTimeout(cmd.Context(), completeTimeout)
	defer cancel()
	c, _, err := k.client(io.Discard)
	if err != nil {
		return nil
	}
	var services corev1.ServiceList
	if c.List(ctx, &services) != nil {
		return nil
	}
	var names []string
	for i := range services.Items {
		names = append(names, services.Items[i].Namespace+"/"+services.Items[i].Name)
	}
	return names
}

// completeFlag completes flags that name a workload or pod.
func completeFlag(cmd *cobra.Command, k *kube, flags ...string) {
	for _, flag := range flags {
		err := cmd.RegisterFlagCompletionFunc(flag, func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
			return podNames(cmd, k, "pod/"), cobra.ShellCompDirectiveNoFileComp
		})
		if err != nil {
			panic(err) // a flag that isn't there
		}
	}
}

// completeNamespaceFlag completes --namespace of a command and of those below it.
func completeNamespaceFlag(cmd *cobra.Command, k *kube) {
	for _, below := range cmd.Commands() {
		completeNamespaceFlag(below, k)
	}
	if cmd.LocalFlags().Lookup("namespace") == nil {
		return
	}
	err := cmd.RegisterFlagCompletionFunc("namespace", func(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
		return completeNamespaces(k)(cmd, nil, prefix)
	})
	if err != nil {
		panic(err) // it has the flag
	}
}

// noNamespace says that a namespace has no pods, and which has nearly its name, as
// far as whoever asks may know.
func (l *looker) noNamespace(ctx context.Context, name string) error {
	var names []string
	if all, err := l.view(ctx, "", controlplane.PartPods); err == nil {
		for i := range all.Pods {
			names = append(names, all.Pods[i].Namespace)
		}
	}
	slices.Sort(names)
	return unknownName("namespace with pods", name, slices.Compact(names))
}

// completePods completes arguments that name a pod.
func completePods(k *kube, most int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return podNames(cmd, k, ""), cobra.ShellCompDirectiveNoFileComp
	}
}

// args refuses a wrong number of arguments as wrong use.
func args(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, given []string) error {
		if len(given) != len(names) {
			return usageError{fmt.Errorf("%s wants %s, got %d arguments", cmd.CommandPath(), strings.Join(names, " "), len(given))}
		}
		return nil
	}
}
