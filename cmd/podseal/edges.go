package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"podseal.io/podseal/internal/controlplane"
	"podseal.io/podseal/internal/edges"
)

type edgesOptions struct {
	namespace, from, to string
	plaintext, watch    bool
	since               time.Duration
	output, file        string
}

// edgesList is what `edges -o json` prints, and -f reads.
type edgesList struct {
	Edges edges.Graph `json:"edges"`
	// NotObserved are the pods of which no proxy tells: what they say to one
	// another nobody of the mesh sees.
	NotObserved []string  `json:"not_observed"`
	Observed    int       `json:"observed"` // pods whose proxy reports
	Replicas    string    `json:"replicas"`
	Time        time.Time `json:"time"`
}

func newEdgesCommand(s streams, k *kube) *cobra.Command {
	o := edgesOptions{}
	cmd := &cobra.Command{
		Use:   "edges",
		Short: "Who talks to whom, and whether it is encrypted",
		Long: `List who talks to whom, as the proxies at both ends saw it, since they were started.

SECURED says mutual TLS only of an edge that carried nothing else; a mixed one shows the share of each.
"not observed" is an edge over which nothing was sent from which it could be known, or only what was refused.
Names are NAME, NAMESPACE/NAME, pod/NAME, or what the table shows, such as kubelet/NODE.`,
		Example: `  podseal edges                          # all namespaces
  podseal edges -n shop --plaintext      # who still talks plaintext
  podseal edges --to shop/db -o wide     # identities, TLS, bytes, refusals
  podseal edges -o json > edges.json; podseal edges -f edges.json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), s, k) },
	}
	f := cmd.Flags()
	f.StringVarP(&o.namespace, "namespace", "n", "", "only edges from or to this namespace (default all)")
	f.BoolP("all-namespaces", "A", true, "all namespaces, which is the default")
	f.StringVar(&o.from, "from", "", "only edges from this workload or pod")
	f.StringVar(&o.to, "to", "", "only edges to this workload or pod")
	f.BoolVar(&o.plaintext, "plaintext", false, "only edges that carried, or were refused, something without mutual TLS")
	f.DurationVar(&o.since, "since", 0, "only what was seen within this time, e.g. 1h")
	f.BoolVarP(&o.watch, "watch", "w", false, "go on, and print what changes")
	f.StringVarP(&o.output, "output", "o", "table", "table, wide, json or yaml")
	f.StringVarP(&o.file, "file", "f", "", "read what -o json wrote, - for the standard input, and ask no cluster")
	completeFlag(cmd, k, "from", "to")
	return cmd
}

func (o *edgesOptions) run(ctx context.Context, s streams, k *kube) error {
	err := oneOf("output", o.output, "table", "wide", "json", "yaml")
	if o.watch && o.file != "" {
		err = errors.Join(err, usageError{errors.New("--watch and --file exclude each other")})
	}
	if err != nil {
		return err
	}
	if o.file != "" {
		list, err := readEdges(o.file, s.in)
		if err != nil {
			return codedError{err, exitBadInput}
		}
		list.Edges = o.filter(list.Edges, list.Time)
		return o.print(s, list)
	}
	l, err := k.look(ctx, s.err)
	if err != nil {
		return err
	}
	if o.watch {
		return o.follow(ctx, s, k, l)
	}
	defer l.close()
	list, err := o.ask(ctx, l)
	if err != nil {
		return err
	}
	return o.print(s, list)
}

func (o *edgesOptions) ask(ctx context.Context, l *looker) (*edgesList, error) {
	v, err := l.view(ctx, o.namespace, controlplane.PartEdges, controlplane.PartPods)
	if err != nil {
		return nil, err
	}
	seen := coverageOf(v)
	list := &edgesList{Replicas: v.Replica, Time: v.Now, Observed: seen.observed, NotObserved: seen.notObserved}
	if o.namespace != "" && len(v.Pods)+len(v.Edges) == 0 {
		return nil, fmt.Errorf("nothing is known of it, and none of its pods was seen: %w", l.noNamespace(ctx, o.namespace))
	}
	reports := v.Edges
	for _, end := range []struct {
		name      string
		direction edges.Direction
	}{{o.from, edges.Outbound}, {o.to, edges.Inbound}} {
		if pod, ok := strings.CutPrefix(end.name, "pod/"); ok {
			if reports, err = ofPod(reports, pod, o.namespace, end.direction, v.Pods); err != nil {
				return nil, err
			}
		}
	}
	all := edges.Build(reports)
	if err := o.known(all, v.Pods); err != nil {
		return nil, err
	}
	list.Edges = o.filter(all, v.Now)
	return list, nil
}

// coverage says of which pods a proxy tells, and of which none does.
type coverage struct {
	observed    int
	notObserved []string // all of which no proxy tells; never nil
	silent      []string // of them, those in the mesh
	outside     []string // and those that aren't
}

func coverageOf(v *controlplane.View) coverage {
	c := coverage{notObserved: []string{}}
	reporting := make(map[string]bool, len(v.Edges))
	for i := range v.Edges {
		reporting[v.Edges[i].Pod] = true
	}
	for i := range v.Pods {
		p := &v.Pods[i]
		name := p.Namespace + "/" + p.Name
		switch {
		case reporting[name]:
			c.observed++
			continue
		case p.Mesh:
			c.silent = append(c.silent, name)
		default:
			c.outside = append(c.outside, name)
		}
		c.notObserved = append(c.notObserved, name)
	}
	return c
}

// ofPod keeps what one pod's proxy saw in one direction.
func ofPod(reports []edges.Report, name, namespace string, d edges.Direction, pods []controlplane.PodView) ([]edges.Report, error) {
	pod, err := findPod(pods, name, namespace)
	if err != nil {
		return nil, err
	}
	for _, r := range reports {
		if r.Pod == pod.Namespace+"/"+pod.Name {
			r.Edges = slices.DeleteFunc(slices.Clone(r.Edges), func(e edges.Edge) bool { return e.Key.Direction != d })
			return []edges.Report{r}, nil
		}
	}
	return nil, codedError{fmt.Errorf("no proxy tells of pod %s/%s: it is not in the mesh, or its proxy does not report (`podseal status`)", pod.Namespace, pod.Name), exitNoInput}
}

// known refuses names that nothing has.
func (o *edgesOptions) known(all edges.Graph, pods []controlplane.PodView) error {
	var names []string
	for i := range pods {
		names = append(names, pods[i].Namespace+"/"+pods[i].Workload)
	}
	for i := range all {
		for _, p := range []edges.Peer{all[i].Source, all[i].Destination} {
			names = append(names, strings.TrimPrefix(p.Namespace+"/"+p.String(), "/"))
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	for _, name := range []string{o.from, o.to} {
		if name == "" || strings.HasPrefix(name, "pod/") {
			continue
		}
		want := workloadName(name)
		if !slices.ContainsFunc(names, func(n string) bool { return n == want || strings.HasSuffix(n, "/"+want) }) {
			return unknownName("workload", name, names)
		}
	}
	return nil
}

// workloadName leaves out the kind of a workload: deploy/web is web.
func workloadName(name string) string {
	kind, rest, ok := strings.Cut(name, "/")
	if ok && slices.Contains([]string{"deploy", "deployment", "statefulset", "sts", "daemonset", "ds", "job", "cronjob", "cj", "workload"}, kind) {
		return rest
	}
	return name
}

// isPeer reports whether a peer is called so.
func isPeer(p edges.Peer, name string) bool {
	if name == "" || strings.HasPrefix(name, "pod/") {
		return true
	}
	name = workloadName(name)
	return p.String() == name || p.Namespace+"/"+p.String() == name || p.Name == name || p.Kind == name ||
		(p.Address.IsValid() && p.Address.String() == name)
}

func (o *edgesOptions) filter(all edges.Graph, now time.Time) edges.Graph {
	if o.since > 0 {
		all = all.Since(now.Add(-o.since))
	}
	return all.Filter(func(l *edges.Link) bool {
		if o.namespace != "" && l.Source.Namespace != o.namespace && l.Destination.Namespace != o.namespace {
			return false
		}
		if o.plaintext && !l.Exposed() {
			return false
		}
		return isPeer(l.Source, o.from) && isPeer(l.Destination, o.to)
	})
}

// follow prints what changes until it is interrupted. It closes l, and looks
// anew when the control plane was away.
func (o *edgesOptions) follow(ctx context.Context, s streams, k *kube, l *looker) error {
	defer func() { l.close() }()
	printed := map[string]string{}
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for first := true; ; first = false {
		list, err := o.ask(ctx, l)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && first:
			return err
		case err != nil:
			fmt.Fprintln(s.err, "note: "+err.Error())
			if again, err := k.look(ctx, s.err); err == nil {
				l.close()
				l = again
			}
		default:
			now := map[string]string{}
			fresh := edges.Graph{}
			for _, link := range list.Edges {
				key := fmt.Sprint(link.Source, link.Destination, link.Port)
				now[key] = fmt.Sprint(link.State, link.Shares)
				if printed[key] != now[key] {
					fresh = append(fresh, link)
				}
			}
			printed = now
			if err := o.printFresh(s, fresh, list.Time, first); err != nil {
				return err
			}
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// printFresh prints links as rows without a new heading, or each as a document.
func (o *edgesOptions) printFresh(s streams, fresh edges.Graph, now time.Time, heading bool) error {
	for i := range fresh {
		var text []byte
		var err error
		switch o.output {
		case "json":
			text, err = json.Marshal(fresh[i])
			text = append(text, '\n')
		case "yaml":
			text, err = yaml.Marshal(fresh[i])
			text = append([]byte("---\n"), text...)
		default:
			printLinks(s, fresh, now, o.output == "wide", heading)
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := s.out.Write(text); err != nil {
			return err
		}
	}
	return nil
}

func (o *edgesOptions) print(s streams, list *edgesList) error {
	if o.output == "json" || o.output == "yaml" {
		return writeDocument(s, o.output, list)
	}
	if len(list.Edges) == 0 {
		fmt.Fprintln(s.err, "No edges were seen.")
	} else {
		printLinks(s, list.Edges, list.Time, o.output == "wide", true)
	}
	if n := len(list.NotObserved); n > 0 {
		fmt.Fprintf(s.err, "note: %d of %d pods are not observed, having no proxy that reports: what they say to one another is not here (-o json names them)\n", n, n+list.Observed)
	}
	return nil
}

func printLinks(s streams, links edges.Graph, now time.Time, wide, heading bool) {
	w := tabwriter.NewWriter(s.out, 0, 8, 3, ' ', 0)
	columns := []string{"SRC", "DST", "SRC_NS", "DST_NS", "PORT", "SECURED", "CONNS", "LAST_SEEN"}
	if wide {
		columns = append(columns, "CLIENT_ID", "SERVER_ID", "PROTOCOL", "TLS", "REQUESTS", "BYTES", "REFUSED", "SERVICE", "SEEN_BY")
	}
	if heading {
		fmt.Fprintln(w, strings.Join(columns, "\t"))
	}
	for i := range links {
		l := &links[i]
		connections, bytes := l.Of(func(*edges.Share) bool { return true })
		row := []string{
			l.Source.String(), l.Destination.String(), dash(l.Source.Namespace), dash(l.Destination.Namespace), port(l.Port), secured(l),
			strconv.FormatUint(connections, 10), age(now, l.Last()),
		}
		if wide {
			row = append(row, wideColumns(l, bytes)...)
		}
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	_ = w.Flush() // a closed standard output
}

func wideColumns(l *edges.Link, bytes uint64) []string {
	main := l.Shares[0]
	for _, s := range l.Shares {
		if s.Security == edges.MutualTLS {
			main = s
			break
		}
	}
	var requests uint64
	seenBy := map[string]bool{}
	for _, s := range l.Shares {
		requests += s.Requests
		for _, r := range s.Reporters {
			seenBy[r] = true
		}
	}
	tls := dash(strings.TrimSpace(main.Version + " " + main.Group))
	return []string{
		dash(main.SourceIdentity), dash(main.DestinationIdentity), dash(main.Protocol), tls, strconv.FormatUint(requests, 10), strconv.FormatUint(bytes, 10),
		dash(refusals(l.Refusals())), dash(l.Service), strings.Join(slices.Sorted(maps.Keys(seenBy)), ","),
	}
}

// secured is the honest state: mutual TLS only where nothing else was carried.
func secured(l *edges.Link) string {
	text := map[string]string{
		edges.StateMutualTLS: "√ mutual TLS", edges.StatePlaintext: "plaintext", edges.StateForeignTLS: "TLS of the application", edges.StateNotObserved: "not observed",
	}[l.State]
	if l.State == edges.StateMixed {
		text = "mixed: " + shares(l)
	}
	if l.OwnPort {
		text += " (health and metrics)"
	}
	if n := len(l.Refusals()); n > 0 && l.State == edges.StateNotObserved {
		text = "refused: " + refusals(l.Refusals())
	}
	return text
}

// shares says how much of a mixed link was what, by connections. What is not
// nothing is never 0 %, and what is not all never 100 %.
func shares(l *edges.Link) string {
	total, _ := l.Of(func(s *edges.Share) bool { return s.Security != edges.NotObserved })
	var parts []string
	for _, kind := range []struct {
		security edges.Security
		name     string
	}{{edges.MutualTLS, "mutual TLS"}, {edges.Plaintext, "plaintext"}, {edges.ForeignTLS, "TLS of the application"}} {
		n, _ := l.Of(func(s *edges.Share) bool { return s.Security == kind.security })
		if n == 0 {
			continue
		}
		percent := min(max(int((100*n+total/2)/total), 1), 99)
		parts = append(parts, fmt.Sprintf("%d%% %s", percent, kind.name))
	}
	return strings.Join(parts, ", ")
}

func refusals(all map[string]uint64) string {
	var parts []string
	for _, reason := range slices.Sorted(maps.Keys(all)) {
		parts = append(parts, fmt.Sprintf("%s (%d)", reason, all[reason]))
	}
	return strings.Join(parts, ", ")
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func port(p uint16) string {
	if p == 0 {
		return "-"
	}
	return strconv.Itoa(int(p))
}

// age is how long ago something was, as kubectl says it.
func age(now, then time.Time) string {
	if then.IsZero() {
		return "-"
	}
	return short(max(now.Sub(then), 0))
}

func short(d time.Duration) string {
	switch {
	case d < 2*time.Minute:
		return strconv.Itoa(int(d.Seconds())) + "s"
	case d < 2*time.Hour:
		return strconv.Itoa(int(d.Minutes())) + "m"
	case d < 48*time.Hour:
		return strconv.Itoa(int(d.Hours())) + "h"
	default:
		return strconv.Itoa(int(d.Hours()/24)) + "d"
	}
}

// readEdges reads what -o json wrote.
func readEdges(file string, stdin io.Reader) (*edgesList, error) {
	read := func() ([]byte, error) { return os.ReadFile(file) }
	if file == "-" {
		read = func() ([]byte, error) { return io.ReadAll(stdin) }
	}
	text, err := read()
	if err != nil {
		return nil, err
	}
	list := &edgesList{}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(list); err != nil {
		return nil, fmt.Errorf("read %s: it is not what `podseal edges -o json` writes: %w", file, err)
	}
	for i := range list.Edges {
		if len(list.Edges[i].Shares) == 0 {
			return nil, fmt.Errorf("read %s: edge %d has no shares", file, i)
		}
	}
	return list, nil
}
