package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"podseal.io/podseal/internal/controlplane"
	"podseal.io/podseal/internal/proof"
)

// maxVerified is how many pods are observed at the same time.
const maxVerified = 16

type verifyOptions struct {
	namespace, output, pcap, image string
	length                         time.Duration
	noPlaintext                    bool
}

// verified is what `verify -o json` prints for each pod.
type verified struct {
	Namespace string    `json:"namespace"`
	Pod       string    `json:"pod"`
	Error     string    `json:"error,omitempty"` // it was not observed
	From      time.Time `json:"from,omitzero"`
	To        time.Time `json:"to,omitzero"`
	Packets   int       `json:"packets"`
	Lost      uint64    `json:"lost"`
	Proxy     string    `json:"proxy,omitempty"` // version
	Result    string    `json:"result"`          // the worst verdict
	Plaintext int64     `json:"plaintext_bytes"` // that the mesh is to answer for: not those of health and metrics
	Encrypted int64     `json:"tls_bytes"`
	Findings  []finding `json:"findings"`
	code      int       // exit code of the error; 0 is any
}

// finding is a verdict with the peer's name.
type finding struct {
	proof.Finding
	PeerName string `json:"peer_name"`
}

func newVerifyCommand(s streams, k *kube) *cobra.Command {
	o := verifyOptions{}
	cmd := &cobra.Command{
		Use:   "verify TARGET",
		Short: "Capture what is on the wire at a pod, and hold it against what its proxy says",
		Long: `Capture packets in the pod's own network: what leaves and enters it, not what its proxy says. Each
connection is classified (TLS of the mesh, other TLS, plaintext), the bytes of each kind are counted, and
compared with what the proxy reports. TARGET is WORKLOAD, KIND/WORKLOAD or pod/NAME, with NAMESPACE/
before the name if it is another one.

A container that may capture (NET_RAW, nothing else) is added to each pod and ends with the observation;
Kubernetes goes on listing it as terminated. Only counts leave the pod, unless --pcap asks for the packets.

The exit code is 1 when plaintext was found that the proxy doesn't know of, when the two differ, or when
a part can't be told; plaintext that the mesh accepts (PERMISSIVE) is no fault without --no-plaintext.`,
		Example: `  podseal verify shop/web
  podseal verify pod/shop/web-7d4b9c6f5-abcde --for 2m --pcap web.pcap`,
		Args:              args("TARGET"),
		ValidArgsFunction: completePods(k, 1),
		RunE:              func(cmd *cobra.Command, names []string) error { return o.run(cmd.Context(), s, k, names[0]) },
	}
	f := cmd.Flags()
	f.StringVarP(&o.namespace, "namespace", "n", "", "namespace of names without one (default that of the kubeconfig's context)")
	f.DurationVar(&o.length, "for", 30*time.Second, "how long to observe, at most 1h")
	f.StringVar(&o.pcap, "pcap", "", "also write the packets of one pod to this file: they hold what is not encrypted")
	f.StringVar(&o.image, "image", "", "image of the container (default the one of the pod's proxy)")
	f.BoolVar(&o.noPlaintext, "no-plaintext", false, "plaintext that the proxy reports is a fault, too")
	f.StringVarP(&o.output, "output", "o", "table", "table, json or yaml")
	return cmd
}

func (o *verifyOptions) run(ctx context.Context, s streams, k *kube, target string) error {
	if err := oneOf("output", o.output, "table", "json", "yaml"); err != nil {
		return err
	}
	if o.length <= 0 || o.length > time.Hour {
		return usageError{fmt.Errorf("--for %s: want more than 0 and at most 1h", o.length)}
	}
	k.fillIn(&o.namespace)
	l, v, err := k.lookAt(ctx, s.err, "", controlplane.PartPods)
	if err != nil {
		return err
	}
	defer l.close()
	targets, err := l.someOf(v.Pods, target, o.namespace, maxVerified, "observed")
	if err != nil {
		return err
	}
	pcap, err := o.openPcap(targets)
	if err != nil {
		return err
	}
	all := o.verify(ctx, s, k, targets, pcap, namesOf(v.Pods))
	if pcap != nil {
		if err := pcap.Close(); err != nil {
			return fmt.Errorf("write %s: %w", o.pcap, err)
		}
	}
	if o.output == "table" {
		for i := range all {
			printVerified(s.out, &all[i], i > 0)
		}
	} else if err := writeDocument(s, o.output, all); err != nil {
		return err
	}
	return o.verdict(all)
}

func (o *verifyOptions) openPcap(targets []controlplane.PodView) (*os.File, error) {
	if o.pcap == "" {
		return nil, nil
	}
	if len(targets) > 1 {
		return nil, usageError{fmt.Errorf("--pcap is for one pod, and %d match: name one with pod/NAME", len(targets))}
	}
	f, err := os.OpenFile(o.pcap, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, codedError{err, exitBadInput}
	}
	return f, nil
}

// verdict is the command's: what was found comes first, then why a pod, the first of
// them, was not observed.
func (o *verifyOptions) verdict(all []verified) error {
	code := 0
	for i := range all {
		v := &all[i]
		if v.Error != "" {
			code = cmp.Or(code, v.code, exitFailed)
			continue
		}
		if v.Result == proof.Leak.String() || v.Result == proof.Differs.String() || v.Result == proof.Unproven.String() || o.noPlaintext && v.Plaintext > 0 {
			return errSilent
		}
	}
	if code != 0 {
		return codedError{errSilent, code}
	}
	return nil
}

// verify observes all pods at the same time.
func (o *verifyOptions) verify(ctx context.Context, s streams, k *kube, targets []controlplane.PodView, pcap *os.File, names map[netip.Addr]string) []verified {
	all := make([]verified, len(targets))
	var mu sync.Mutex
	tell := func(text string) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintln(s.err, text)
	}
	var each sync.WaitGroup
	for i := range targets {
		each.Go(func() {
			v := &all[i]
			v.Namespace, v.Pod, v.Findings = targets[i].Namespace, targets[i].Name, []finding{}
			seen, err := o.observe(ctx, k, &targets[i], pcap, tell)
			if err != nil {
				v.Error, v.Result = err.Error(), "not observed"
				if coded, ok := errors.AsType[codedError](err); ok {
					v.code = coded.code
				}
				return
			}
			v.fill(seen, names)
		})
	}
	each.Wait()
	return all
}

func (o *verifyOptions) observe(ctx context.Context, k *kube, target *controlplane.PodView, pcap *os.File, tell func(string)) (*proof.Observation, error) {
	c, cfg, err := k.client(io.Discard)
	if err != nil {
		return nil, err
	}
	pod := &corev1.Pod{}
	if err := c.Get(ctx, client.ObjectKey{Namespace: target.Namespace, Name: target.Name}, pod); err != nil {
		return nil, fmt.Errorf("get pod: %w", err)
	}
	if pod.Spec.HostNetwork {
		return nil, errors.New("the pod is in its node's network: what is there belongs to all that runs on the node")
	}
	ob := observation{client: c, config: cfg, image: o.image, length: o.length, progress: tell}
	if pcap == nil {
		return ob.observe(ctx, pod, nil)
	}
	return ob.observe(ctx, pod, pcap)
}

// fill sums an observation up.
func (v *verified) fill(seen *proof.Observation, names map[netip.Addr]string) {
	v.From, v.To, v.Packets, v.Lost, v.Proxy = seen.From, seen.To, seen.Packets, seen.Lost, seen.Proxy
	worst := proof.Agrees
	for _, f := range seen.Compare() {
		peer := f.Server.Addr()
		if f.Inbound {
			peer = f.Client.Addr()
		}
		v.Findings = append(v.Findings, finding{f, cmp.Or(names[peer], peer.String())})
		v.Encrypted += f.TLSBytes
		if f.Verdict != proof.Expected || seen.Proxy == "" {
			v.Plaintext += f.PlainBytes
		}
		worst = max(worst, f.Verdict)
	}
	if (seen.Lost > 0 || seen.Unread > 0) && worst < proof.Unproven {
		worst = proof.Unproven
	}
	if worst == proof.Expected {
		worst = proof.Agrees
	}
	v.Result = worst.String()
}

// namesOf says which workload has an address.
func namesOf(pods []controlplane.PodView) map[netip.Addr]string {
	names := map[netip.Addr]string{}
	for _, p := range pods {
		for _, a := range p.Addresses {
			names[a] = p.Namespace + "/" + cmp.Or(p.Workload, p.Name)
		}
	}
	return names
}

// row is a line of the table: connections that are alike.
type row struct {
	direction, peer, wire, said string
	port                        uint16
	verdict                     proof.Verdict
	why                         string
}

type sums struct {
	connections int
	tls, plain  int64
}

func printVerified(w io.Writer, v *verified, again bool) {
	if again {
		fmt.Fprintln(w)
	}
	fmt.Fprintf(w, "pod/%s/%s: ", v.Namespace, v.Pod)
	if v.Error != "" {
		fmt.Fprintf(w, "not observed: %s\n", v.Error)
		return
	}
	fmt.Fprintf(w, "%s, %d packets, %d lost, %s in TLS, %s in plaintext: %s\n", v.To.Sub(v.From).Round(time.Second), v.Packets, v.Lost, size(v.Encrypted), size(v.Plaintext), v.Result)
	if v.Proxy == "" {
		fmt.Fprintln(w, "There is no proxy in the pod: nothing was compared.")
	}
	if len(v.Findings) == 0 {
		fmt.Fprintln(w, "Nothing was on the wire.")
		return
	}
	t := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	fmt.Fprintln(t, "DIRECTION\tPEER\tPORT\tON_THE_WIRE\tPROXY_SAYS\tCONNS\tTLS\tPLAINTEXT\tVERDICT")
	rows, count := rowsOf(v.Findings)
	for _, r := range rows {
		c := count[r]
		verdict := r.verdict.String()
		if r.why != "" {
			verdict += ": " + r.why
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%s\t%d\t%s\t%s\t%s\n", r.direction, r.peer, r.port, r.wire, dash(r.said), c.connections, size(c.tls), size(c.plain), verdict)
	}
	_ = t.Flush() // a closed standard output
}

// rowsOf puts connections that are alike together, the worst first.
func rowsOf(findings []finding) (order []row, count map[row]sums) {
	count = map[row]sums{}
	for i := range findings {
		f := &findings[i]
		r := row{direction: "out", peer: f.PeerName, port: f.Server.Port(), wire: f.Kind, said: strings.Join(f.Said, ","), verdict: f.Verdict, why: f.Why}
		if f.Inbound {
			r.direction = "in"
		}
		if f.Protocol != "" {
			r.wire += " (" + f.Protocol + ")"
		}
		c, there := count[r]
		if !there {
			order = append(order, r)
		}
		count[r] = sums{c.connections + 1, c.tls + f.TLSBytes, c.plain + f.PlainBytes}
	}
	slices.SortStableFunc(order, func(a, b row) int { return cmp.Or(int(b.verdict)-int(a.verdict), strings.Compare(a.peer, b.peer)) })
	return order, count
}

// size writes a number of bytes.
func size(n int64) string {
	switch {
	case n < 10_000:
		return strconv.FormatInt(n, 10) + " B"
	case n < 10_000_000:
		return strconv.FormatInt(n/1000, 10) + " kB"
	default:
		return strconv.FormatInt(n/1_000_000, 10) + " MB"
	}
}
