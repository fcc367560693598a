package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"podseal.io/podseal/internal/controlplane"
	"podseal.io/podseal/internal/discovery"
	"podseal.io/podseal/internal/edges"
)

// description is what `describe -o json` prints.
type description struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
	// Pods are those that it is about, and Proxies theirs.
	Pods    []controlplane.PodView   `json:"pods"`
	Proxies []controlplane.ProxyView `json:"proxies"`
	Callers edges.Graph              `json:"callers"`
	Calls   edges.Graph              `json:"calls"`
	// Policies are what holds for each pod, in order.
	Policies []controlplane.PodPolicies `json:"policies"`

	view *controlplane.View
}

func newDescribeCommand(s streams, k *kube) *cobra.Command {
	o := podOptions{}
	cmd := &cobra.Command{
		Use:   "describe pod|service|namespace NAME",
		Short: "What holds for a pod, a service or a namespace: modes, identity, certificate, callers",
		Long: `Say what holds: the effective mode of each port and which object sets it, the AuthorizationPolicies,
the identity, the certificate and when it ends, what the proxy has acknowledged, and who calls and is called, as far as proxies saw it.`,
		Args: args("pod|service|namespace", "NAME"),
		ValidArgsFunction: func(cmd *cobra.Command, given []string, prefix string) ([]string, cobra.ShellCompDirective) {
			switch {
			case len(given) == 0:
				return []string{"pod", "service", "namespace"}, cobra.ShellCompDirectiveNoFileComp
			case given[0] == "pod":
				return completePods(k, 2)(cmd, given, prefix)
			case given[0] == "namespace" && len(given) == 1:
				return completeNamespaces(k)(cmd, nil, prefix)
			case given[0] == "service" && len(given) == 1:
				return serviceNames(cmd, k), cobra.ShellCompDirectiveNoFileComp
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, names []string) error {
			return o.describe(cmd.Context(), s, k, names[0], names[1])
		},
	}
	o.addFlags(cmd, "text, json or yaml")
	return cmd
}

func (o *podOptions) describe(ctx context.Context, s streams, k *kube, kind, name string) error {
	if err := oneOf("output", o.output, "text", "json", "yaml"); err != nil {
		return err
	}
	full := map[string]string{"pod": "pod", "po": "pod", "pods": "pod", "service": "service", "svc": "service", "services": "service", "namespace": "namespace", "ns": "namespace", "namespaces": "namespace"}[kind]
	if full == "" {
		return usageError{fmt.Errorf("%q: write pod, service or namespace", kind)}
	}
	namespace := o.namespace
	if ns, rest, ok := strings.Cut(name, "/"); ok && full != "namespace" {
		namespace, name = ns, rest
	}
	switch {
	case full == "namespace":
		namespace = name
	case namespace == "":
		namespace = k.namespace()
	}
	l, v, err := k.lookAt(ctx, s.err, namespace)
	if err != nil {
		return err
	}
	defer l.close()
	if len(v.Pods) == 0 {
		return l.noNamespace(ctx, namespace)
	}
	d, err := describeFrom(v, full, namespace, name)
	if err != nil {
		return err
	}
	what, err := l.explain(ctx, &controlplane.ExplainRequest{Pods: podNamesOf(l, d.Pods)})
	if err != nil {
		return err
	}
	d.Policies = what.Pods
	if o.output != "text" {
		return writeDocument(s, o.output, d)
	}
	d.print(s)
	return nil
}

// describeFrom picks from a view of the namespace what is about one thing of it.
func describeFrom(v *controlplane.View, kind, namespace, name string) (*description, error) {
	d := &description{Kind: kind, Name: namespace + "/" + name, view: v}
	host := name + "." + namespace + "."
	var services []string
	for _, p := range v.Pods {
		about := kind == "namespace" || (kind == "pod" && p.Name == name)
		for _, port := range p.Ports {
			about = about || (kind == "service" && strings.HasPrefix(port.Service, host))
			service, _, _ := strings.Cut(port.Service, ".")
			services = append(services, namespace+"/"+service)
		}
		if about {
			d.Pods = append(d.Pods, p)
		}
	}
	if len(d.Pods) == 0 {
		return nil, d.unknown(name, services)
	}
	if kind == "namespace" {
		d.Name = name
	}
	pods, workloads := map[string]bool{}, map[string]bool{}
	for i := range d.Pods {
		pods[d.Pods[i].Namespace+"/"+d.Pods[i].Name] = true
		workloads[d.Pods[i].Workload] = true
		if p := proxyOf(v, &d.Pods[i]); p != nil {
			d.Proxies = append(d.Proxies, *p)
		}
	}
	reports := v.Edges
	if kind == "pod" {
		reports = slices.DeleteFunc(slices.Clone(v.Edges), func(r edges.Report) bool { return !pods[r.Pod] })
	}
	own := func(p edges.Peer) bool {
		return p.Kind == edges.KindWorkload && p.Namespace == namespace && workloads[p.Name]
	}
	graph := edges.Build(reports)
	d.Callers = graph.Filter(func(l *edges.Link) bool { return own(l.Destination) })
	d.Calls = graph.Filter(func(l *edges.Link) bool { return own(l.Source) })
	return d, nil
}

func (d *description) unknown(name string, services []string) error {
	var names []string
	for i := range d.view.Pods {
		names = append(names, d.view.Pods[i].Namespace+"/"+d.view.Pods[i].Name)
	}
	switch d.Kind {
	case "service":
		slices.Sort(services)
		return unknownName("service with pods", d.Name, slices.Compact(services))
	case "namespace":
		return unknownName("namespace with pods", name, nil)
	default:
		return unknownName("pod", d.Name, names)
	}
}

func (d *description) print(s streams) {
	title := map[string]string{"pod": "Pod", "service": "Service", "namespace": "Namespace"}[d.Kind]
	fmt.Fprintf(s.out, "%s: %s\n", title, d.Name)
	if d.Kind == "pod" {
		d.printPod(s)
	} else {
		d.printPods(s)
	}
	d.printPolicies(s)
	for _, part := range []struct {
		title string
		links edges.Graph
	}{{"Callers", d.Callers}, {"Calls", d.Calls}} {
		if len(part.links) == 0 {
			fmt.Fprintf(s.out, "\n%s: none seen\n", part.title)
			continue
		}
		fmt.Fprintf(s.out, "\n%s:\n", part.title)
		printLinks(s, part.links, d.view.Now, false, true)
	}
}

func (d *description) printPod(s streams) {
	p := &d.Pods[0]
	fmt.Fprintf(s.out, "Workload: %s\nNode: %s\nIdentity: spiffe://%s\n", dash(p.Workload), dash(p.Node), p.Identity)
	switch {
	case !p.Mesh:
		fmt.Fprintln(s.out, "Mesh: no. It has no proxy: others speak to it, and it to them, as the applications do")
		return
	case len(d.Proxies) == 0:
		fmt.Fprintln(s.out, "Proxy: NOT CONNECTED")
	default:
		proxy := &d.Proxies[0]
		fmt.Fprintf(s.out, "Certificate: serial %s, %s\n", dash(proxy.Serial), certificate(d.view.Now, proxy.NotAfter))
		fmt.Fprintf(s.out, "Proxy: version %s, configuration %s, %d connections\n", dash(proxy.Version), proxy.Config, proxy.Connections)
		if proxy.LoopbackSegment != 0 {
			fmt.Fprintf(s.out, "Loopback: %s\n", loopback(proxy.LoopbackSegment))
		}
		if proxy.NotReady != "" {
			fmt.Fprintf(s.out, "WARNING: not ready: %s\n", proxy.NotReady)
		}
	}
	fmt.Fprintf(s.out, "Workload mTLS mode: %s\n", p.Mode)
	for _, port := range slices.Sorted(maps.Keys(p.PortModes)) {
		fmt.Fprintf(s.out, "Port %d mTLS mode: %s\n", port, p.PortModes[port])
	}
	for _, port := range p.Ports {
		fmt.Fprintf(s.out, "Port %d: %s, of %s, %s\n", port.Port, port.Protocol, port.Service, port.Mode)
	}
}

// loopback says how data goes between an application and its proxy.
func loopback(segment uint32) string {
	const ordinary = 64 << 10
	if segment <= ordinary {
		return "segments of 64 KiB; larger ones cost less CPU, and need Linux 6.3 or later on the node"
	}
	return fmt.Sprintf("segments of up to %d KiB", (segment+1023)/1024)
}

// printPolicies says what holds, and which object sets the mode.
func (d *description) printPolicies(s streams) {
	var inMesh []controlplane.PodPolicies
	for i := range d.Policies {
		if d.Policies[i].Mesh {
			inMesh = append(inMesh, d.Policies[i])
		}
	}
	if len(inMesh) == 0 {
		return
	}
	if d.Kind == "pod" {
		printOrigin(s, &inMesh[0], d.view.Now)
	}
	fmt.Fprintln(s.out, "\nAuthorization:")
	printPolicies(s, inMesh, d.view.Now)
	printMatched(s, inMesh, d.view.Now)
}

func printOrigin(s streams, p *controlplane.PodPolicies, now time.Time) {
	for _, a := range p.Peer {
		sets := "sets no mode here"
		if a.Default {
			sets = "sets the workload's mode"
		}
		if len(a.Ports) > 0 {
			sets += fmt.Sprintf(" and that of ports %v", a.Ports)
		}
		last := lastMatched([]controlplane.PodPolicies{*p}, discovery.KindPeerAuthentication, a.Namespace+"/"+a.Name, now)
		fmt.Fprintf(s.out, "Applied PeerAuthentication: %s.%s (%s), %s; last matched: %s\n", a.Name, a.Namespace, a.Scope, sets, last)
	}
	if len(p.Peer) == 0 {
		fmt.Fprintln(s.out, "Applied PeerAuthentication: none, so PERMISSIVE")
	}
	switch {
	case len(p.OnlyCaptured) > 0:
		fmt.Fprintf(s.out, "WARNING: only ports %v are captured: on all others no policy holds\n", p.OnlyCaptured)
	case len(p.Uncaptured) > 0:
		fmt.Fprintf(s.out, "WARNING: ports %v are excluded from capture: no policy holds there\n", p.Uncaptured)
	}
}

func (d *description) printPods(s streams) {
	w := tabwriter.NewWriter(s.out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "POD\tWORKLOAD\tMESH\tMODE\tCONFIG\tCERTIFICATE")
	for i := range d.Pods {
		p := &d.Pods[i]
		mesh, mode, config, ends := "no", "-", "-", "-"
		if p.Mesh {
			mesh, mode, config = "yes", p.Mode, controlplane.ConfigNotConnected
			for _, port := range slices.Sorted(maps.Keys(p.PortModes)) {
				mode += fmt.Sprintf(", %d %s", port, p.PortModes[port])
			}
		}
		if proxy := proxyOf(d.view, p); proxy != nil {
			config, ends = proxy.Config, certificate(d.view.Now, proxy.NotAfter)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", p.Name, p.Workload, mesh, mode, config, ends)
	}
	_ = w.Flush() // a closed standard output
}
