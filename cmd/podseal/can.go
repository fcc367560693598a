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
	"podseal.io/podseal/internal/explain"
)

type canOptions struct {
	namespace, output  string
	port               uint16
	method, path, host string
	header, files      []string
}

func newCanCommand(s streams, k *kube) *cobra.Command {
	o := canOptions{}
	cmd := &cobra.Command{
		Use:   "can SOURCE DESTINATION",
		Short: "May one workload talk to another, over what, and why",
		Long: `Say whether connections from one workload or pod to another are accepted, over what, and which
rule decides: by the mode of the port, DestinationRules and AuthorizationPolicies, as the control plane told
the proxies of both. With one of --method, --path, --host, --header it is about that HTTP request; what isn't
given is then GET, / and the name of the service, and no other header. Without, it is about all requests: the
answer is "depends" if a rule decides by what they say.

With -f it is answered as if the policies in the files had just been applied. Nothing is changed.

NetworkPolicies, exclusions from capture on the way out, and whether anybody listens are not looked at.
The exit code is 0 if all is accepted, 1 if not, or not all.`,
		Example: `  podseal can shop/web shop/db
  podseal can shop/web service/shop/api --method POST --path /v1/orders
  podseal can pod/shop/web-7d4b9c6f5-abcde shop/db --port 5432 -o json
  podseal can legacy/cron shop/api -f policies.yaml    # what if?`,
		Args:              args("SOURCE", "DESTINATION"),
		ValidArgsFunction: completePods(k, 2),
		RunE:              func(cmd *cobra.Command, names []string) error { return o.run(cmd.Context(), s, k, names[0], names[1]) },
	}
	f := cmd.Flags()
	f.StringVarP(&o.namespace, "namespace", "n", "", "namespace of names without one (default that of the kubeconfig's context)")
	f.Uint16Var(&o.port, "port", 0, "port of the destination pod (default every port that a service leads to)")
	f.StringVar(&o.method, "method", "", "HTTP method of the request")
	f.StringVar(&o.path, "path", "", "path of the request")
	f.StringVar(&o.host, "host", "", "Host of the request")
	f.StringArrayVar(&o.header, "header", nil, `"name: value" of the request; may be repeated`)
	f.StringArrayVarP(&o.files, "file", "f", nil, "policies to take as if they were applied, - for the standard input; may be repeated")
	f.StringVarP(&o.output, "output", "o", "table", "table, json or yaml")
	return cmd
}

// request is what is asked for over HTTP, nil if nothing is said of it.
func (o *canOptions) request() (*explain.Request, error) {
	if o.method == "" && o.path == "" && o.host == "" && len(o.header) == 0 {
		return nil, nil //nolint:nilnil // no request is a value: any
	}
	r := &explain.Request{Method: strings.ToUpper(o.method), Path: o.path, Host: o.host, Header: map[string]string{}}
	if r.Path != "" && !strings.HasPrefix(r.Path, "/") {
		return nil, usageError{fmt.Errorf("--path %q: a path begins with a slash", r.Path)}
	}
	for _, h := range o.header {
		name, value, ok := strings.Cut(h, ":")
		if !ok {
			name, value, ok = strings.Cut(h, "=")
		}
		if name = strings.ToLower(strings.TrimSpace(name)); !ok || name == "" {
			return nil, usageError{fmt.Errorf(`--header %q: write "name: value"`, h)}
		}
		value = strings.TrimSpace(value)
		if before, twice := r.Header[name]; twice {
			value = before + "," + value
		}
		r.Header[name] = value
	}
	return r, nil
}

func (o *canOptions) run(ctx context.Context, s streams, k *kube, source, destination string) error {
	request, errRequest := o.request()
	if err := errors.Join(oneOf("output", o.output, "table", "json", "yaml"), errRequest); err != nil {
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
	answers, err := o.ask(ctx, l, v, source, destination, &controlplane.ExplainRequest{Port: o.port, Request: request, Objects: objects})
	if err != nil {
		return err
	}
	if o.output != "table" {
		err = writeDocument(s, o.output, answers)
	} else {
		printAnswers(s, answers)
	}
	if err != nil {
		return err
	}
	if slices.ContainsFunc(answers, func(a explain.Answer) bool { return !a.Allowed }) {
		return errSilent
	}
	return nil
}

func (o *canOptions) ask(ctx context.Context, l *looker, v *controlplane.View, source, destination string, q *controlplane.ExplainRequest) ([]explain.Answer, error) {
	from, errFrom := findPods(v.Pods, source, o.namespace)
	to, service, errTo := findTargets(v.Pods, destination, o.namespace)
	if err := errors.Join(errFrom, errTo); err != nil {
		return nil, err
	}
	q.Sources, q.Destinations, q.Service = podNamesOf(l, from), podNamesOf(l, to), service
	out, err := l.explain(ctx, q)
	if err != nil {
		return nil, err
	}
	l.noteObjects(out.Objects)
	if len(out.Answers) == 0 {
		return nil, codedError{fmt.Errorf("nothing leads to port %d of %s", o.port, destination), exitNoInput}
	}
	return out.Answers, nil
}

// maxAsked is how many pods of a workload are looked at.
const maxAsked = 64

// podNamesOf are the pods' names, of many the first ones.
func podNamesOf(l *looker, pods []controlplane.PodView) []string {
	if len(pods) > maxAsked {
		l.note(fmt.Sprintf("of %d pods of %s the first %d are looked at", len(pods), title(&pods[0]), maxAsked))
		pods = pods[:maxAsked]
	}
	names := make([]string, 0, len(pods))
	for i := range pods {
		names = append(names, pods[i].Namespace+"/"+pods[i].Name)
	}
	return names
}

// noteObjects says what would become of objects that were tried.
func (l *looker) noteObjects(all []controlplane.ObjectVerdict) {
	for _, v := range all {
		l.note(fmt.Sprintf("%s %s/%s: %s: %s", v.Kind, v.Namespace, v.Name, v.Reason, v.Message))
	}
}

func title(p *controlplane.PodView) string { return p.Namespace + "/" + p.Workload }

func printAnswers(s streams, answers []explain.Answer) {
	w := tabwriter.NewWriter(s.out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "SOURCE\tDESTINATION\tPORT\tALLOWED\tOVER\tBECAUSE")
	for i := range answers {
		a := &answers[i]
		port := "any"
		if a.Port != 0 {
			port = strconv.Itoa(int(a.Port))
		}
		over := map[string]string{explain.OverMutualTLS: "mutual TLS", explain.OverTLS: "TLS", explain.OverNothing: "-"}[a.Over]
		if over == "" {
			over = a.Over
		}
		because := a.Because
		if a.DryRun != "" {
			because += "; with the dry-run policies in force: " + a.DryRun
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", a.Source, a.Destination, port, a.Verdict, over, because)
	}
	_ = w.Flush() // a closed standard output
}
