package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"podseal.io/podseal/internal/controlplane"
)

type statusOptions struct{ namespace, output string }

// proxyStatus is one proxy of `status -o json`.
type proxyStatus struct {
	controlplane.ProxyView
	// Capture is "checked" when the container that makes the rules has read them
	// back before the application started, else "unknown".
	Capture string `json:"capture"`
}

// statusList is what `status -o json` prints.
type statusList struct {
	Replicas string        `json:"replicas"`
	Time     time.Time     `json:"time"`
	Proxies  []proxyStatus `json:"proxies"`
}

func newStatusCommand(s streams, k *kube) *cobra.Command {
	o := statusOptions{}
	cmd := &cobra.Command{
		Use:     "status",
		Aliases: []string{"ps", "proxy-status"},
		Short:   "How every proxy is: configuration, certificate, capture, connections",
		Long: `List every proxy: its version, whether it has acknowledged its configuration (SYNCED), not yet (STALE),
rejected some of it (REJECTED, and why), or is of an older version
that doesn't know all of it (OUTDATED; the exit code is then 76); how long its certificate is good; whether the capture rules
were read back before the application started; how many connections are open.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), s, k) },
	}
	f := cmd.Flags()
	f.StringVarP(&o.namespace, "namespace", "n", "", "only this namespace (default all)")
	f.BoolP("all-namespaces", "A", true, "all namespaces, which is the default")
	f.StringVarP(&o.output, "output", "o", "table", "table, json or yaml")
	return cmd
}

func (o *statusOptions) run(ctx context.Context, s streams, k *kube) error {
	if err := oneOf("output", o.output, "table", "json", "yaml"); err != nil {
		return err
	}
	l, v, err := k.lookAt(ctx, s.err, o.namespace, controlplane.PartProxies, controlplane.PartPods)
	if err != nil {
		return err
	}
	defer l.close()
	if o.namespace != "" && len(v.Pods)+len(v.Proxies) == 0 {
		return l.noNamespace(ctx, o.namespace)
	}
	captured, err := captures(ctx, l.client, o.namespace)
	if err != nil {
		l.note("what is known of capture is missing: " + err.Error())
	}
	list := statusList{Replicas: v.Replica, Time: v.Now, Proxies: []proxyStatus{}}
	there := map[string]bool{}
	for i := range v.Proxies {
		p := &v.Proxies[i]
		there[p.Namespace+"/"+p.Pod] = true
		list.Proxies = append(list.Proxies, proxyStatus{*p, captured.of(p.Namespace + "/" + p.Pod)})
	}
	for i := range v.Pods {
		if p := &v.Pods[i]; p.Mesh && !there[p.Namespace+"/"+p.Name] {
			list.Proxies = append(list.Proxies, proxyStatus{
				controlplane.ProxyView{Pod: p.Name, Namespace: p.Namespace, Workload: p.Workload, Node: p.Node, Config: controlplane.ConfigNotConnected},
				captured.of(p.Namespace + "/" + p.Name),
			})
		}
	}
	if o.output == "table" {
		printStatus(s, &list)
	} else if err := writeDocument(s, o.output, list); err != nil {
		return err
	}
	return list.verdict()
}

// verdict fails when a proxy is of another version than what it is told needs.
func (l *statusList) verdict() error {
	n := 0
	for i := range l.Proxies {
		if len(l.Proxies[i].Lacks) > 0 {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	return codedError{fmt.Errorf("%d of %d proxies are older than the control plane, and don't know all that it tells: restart their pods", n, len(l.Proxies)), exitVersion}
}

func writeDocument(s streams, format string, v any) error {
	if format == "json" {
		return writeJSON(s.out, v)
	}
	text, err := yaml.Marshal(v)
	if err != nil {
		return err
	}
	_, err = s.out.Write(text)
	return err
}

func printStatus(s streams, list *statusList) {
	if len(list.Proxies) == 0 {
		fmt.Fprintln(s.err, "No proxies.")
		return
	}
	w := tabwriter.NewWriter(s.out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "NAMESPACE\tPOD\tVERSION\tCONFIG\tCERTIFICATE\tCAPTURE\tCONNS\tREADY")
	for i := range list.Proxies {
		p := &list.Proxies[i]
		connections, ready := "-", "unknown"
		if p.Reports {
			connections, ready = strconv.Itoa(int(p.Connections)), "yes"
			if p.NotReady != "" {
				ready = "no"
			}
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", p.Namespace, p.Pod, dash(p.Version), p.Config, certificate(list.Time, p.NotAfter), p.Capture, connections, ready)
	}
	_ = w.Flush() // a closed standard output
	for i := range list.Proxies {
		p := &list.Proxies[i]
		if p.Config == controlplane.ConfigRejected {
			fmt.Fprintf(s.out, "\n%s/%s rejected %s; what it had before stays in force:\n%s\n", p.Namespace, p.Pod, strings.Join(p.Rejected, ", "), p.Reason)
		}
		if len(p.Lacks) > 0 {
			fmt.Fprintf(s.out, "\n%s/%s knows nothing of %s, so those are not enforced there\n", p.Namespace, p.Pod, strings.Join(p.Lacks, ", "))
		}
		if p.NotReady != "" {
			fmt.Fprintf(s.out, "\n%s/%s is not ready: %s\n", p.Namespace, p.Pod, p.NotReady)
		}
	}
}

func certificate(now, end time.Time) string {
	switch {
	case end.IsZero():
		return "unknown"
	case !now.Before(end):
		return "EXPIRED " + short(now.Sub(end)) + " ago"
	default:
		return short(end.Sub(now)) + " left"
	}
}

// captures has what is known of capture, by pod.
type captureOf map[string]bool

func (c captureOf) of(pod string) string {
	if c[pod] {
		return "checked"
	}
	return "unknown"
}

// captures finds the pods whose capture was read back before the application was
// started: the container that makes or checks the rules ends well only then.
func captures(ctx context.Context, c client.Client, namespace string) (captureOf, error) {
	var pods corev1.PodList
	if err := c.List(ctx, &pods, client.InNamespace(namespace), client.MatchingLabels{"security.istio.io/tlsMode": "istio"}); err != nil {
		return nil, err
	}
	out := captureOf{}
	for i := range pods.Items {
		for _, st := range pods.Items[i].Status.InitContainerStatuses {
			if (st.Name == "istio-init" || st.Name == "istio-validation") && st.State.Terminated != nil && st.State.Terminated.ExitCode == 0 {
				out[pods.Items[i].Namespace+"/"+pods.Items[i].Name] = true
			}
		}
	}
	return out, nil
}

type podOptions struct{ namespace, output string }

func (o *podOptions) addFlags(cmd *cobra.Command, outputs string) {
	cmd.Flags().StringVarP(&o.namespace, "namespace", "n", "", "namespace (default that of the kubeconfig's context)")
	cmd.Flags().StringVarP(&o.output, "output", "o", "text", outputs)
}

// identityOf is what `identity -o json` prints.
type identityOf struct {
	Pod       string    `json:"pod"`
	Identity  string    `json:"identity"`
	Serial    string    `json:"serial,omitempty"`
	NotBefore time.Time `json:"not_before,omitzero"`
	NotAfter  time.Time `json:"not_after,omitzero"`
	Bundle    string    `json:"bundle,omitempty"`
	Mesh      bool      `json:"mesh"`
}

func newIdentityCommand(s streams, k *kube) *cobra.Command {
	o := podOptions{}
	cmd := &cobra.Command{
		Use:               "identity POD",
		Short:             "Who a pod proves to be, and with which certificate",
		Args:              args("POD"),
		ValidArgsFunction: completePods(k, 1),
		RunE: func(cmd *cobra.Command, names []string) error {
			return o.identity(cmd.Context(), s, k, strings.TrimPrefix(names[0], "pod/"))
		},
	}
	o.addFlags(cmd, "text, json or yaml")
	return cmd
}

func (o *podOptions) identity(ctx context.Context, s streams, k *kube, name string) error {
	if err := oneOf("output", o.output, "text", "json", "yaml"); err != nil {
		return err
	}
	k.fillIn(&o.namespace)
	if ns, _, ok := strings.Cut(name, "/"); ok {
		o.namespace = ns
	}
	l, v, err := k.lookAt(ctx, s.err, o.namespace, controlplane.PartProxies, controlplane.PartPods)
	if err != nil {
		return err
	}
	defer l.close()
	pod, err := findPod(v.Pods, name, o.namespace)
	if err != nil {
		return err
	}
	id := identityOf{Pod: pod.Namespace + "/" + pod.Name, Identity: pod.Identity, Mesh: pod.Mesh}
	if p := proxyOf(v, pod); p != nil {
		id.Serial, id.NotBefore, id.NotAfter, id.Bundle = p.Serial, p.NotBefore, p.NotAfter, p.Bundle
	}
	if o.output != "text" {
		return writeDocument(s, o.output, id)
	}
	if !pod.Mesh {
		return codedError{fmt.Errorf("pod %s is not in the mesh: it has no certificate, and would be %s", id.Pod, id.Identity), exitFailed}
	}
	if id.Serial == "" {
		return codedError{fmt.Errorf("the proxy of pod %s does not report: `podseal status -n %s`", id.Pod, pod.Namespace), exitUnavailable}
	}
	fmt.Fprintf(s.out, "identity:     spiffe://%s\nserial:       %s\nnot before:   %s\nnot after:    %s (%s)\nroots:        %s\n",
		id.Identity, id.Serial, id.NotBefore.Format(time.RFC3339), id.NotAfter.Format(time.RFC3339), certificate(v.Now, id.NotAfter), id.Bundle)
	return nil
}

func proxyOf(v *controlplane.View, pod *controlplane.PodView) *controlplane.ProxyView {
	for i := range v.Proxies {
		if p := &v.Proxies[i]; p.Namespace == pod.Namespace && p.Pod == pod.Name {
			return p
		}
	}
	return nil
}
