package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"podseal.io/podseal/internal/controlplane"
)

// maxTapped is how many pods are followed at the same time.
const maxTapped = 64

// adminPort is the proxy's, on the pod's loopback address.
const adminPort = "15000"

type tapOptions struct {
	namespace, output, direction, peer string
	plaintext, refused                 bool
}

// tapped is a record as `tap -o json` prints it: as the proxy writes it, and whose
// it is.
type tapped struct {
	Pod string `json:"pod"` // "<namespace>/<name>"
	connectionRecord
}

// connectionRecord is a proxy's record of one connection, as it logs it.
type connectionRecord struct {
	Start               time.Time      `json:"start"`
	Direction           string         `json:"direction"`
	Source              netip.AddrPort `json:"src_addr"`
	Destination         netip.AddrPort `json:"dst_addr,omitzero"`
	Endpoint            netip.AddrPort `json:"endpoint,omitzero"`
	SourceWorkload      string         `json:"src_workload,omitempty"`
	SourceIdentity      string         `json:"src_identity,omitempty"`
	DestinationWorkload string         `json:"dst_workload,omitempty"`
	DestinationIdentity string         `json:"dst_identity,omitempty"`
	Service             string         `json:"service,omitempty"`
	Protocol            string         `json:"protocol,omitempty"`
	Security            string         `json:"security,omitempty"`
	TLSVersion          string         `json:"tls_version,omitempty"`
	TLSGroup            string         `json:"tls_group,omitempty"`
	BytesSent           int64          `json:"bytes_sent"`
	BytesReceived       int64          `json:"bytes_received"`
	Requests            int64          `json:"requests,omitempty"`
	DurationMS          int64          `json:"duration_ms"`
	Policy              string         `json:"policy,omitempty"`
	Reason              string         `json:"reason,omitempty"`
	Error               string         `json:"error,omitempty"`
	Missed              uint64         `json:"missed,omitempty"` // records that were left out before this one
}

func newTapCommand(s streams, k *kube) *cobra.Command {
	o := tapOptions{}
	cmd := &cobra.Command{
		Use:   "tap TARGET",
		Short: "Follow the connections of a workload or pod, live",
		Long: `Print each connection of the target's proxies as it ends: who, to whom, over what, how much, how long, and
why it was refused or cut. Connections are told of, never what they carry. TARGET is WORKLOAD,
KIND/WORKLOAD or pod/NAME, with NAMESPACE/ before the name if it is another one. Ctrl-C ends it.

It takes the right to create pods/portforward in the target's namespace.`,
		Example: `  podseal tap shop/web --plaintext
  podseal tap pod/shop/web-7d4b9c6f5-abcde --refused -o json`,
		Args:              args("TARGET"),
		ValidArgsFunction: completePods(k, 1),
		RunE:              func(cmd *cobra.Command, names []string) error { return o.run(cmd.Context(), s, k, names[0]) },
	}
	f := cmd.Flags()
	f.StringVarP(&o.namespace, "namespace", "n", "", "namespace of names without one (default that of the kubeconfig's context)")
	f.StringVar(&o.direction, "direction", "", "only inbound or outbound")
	f.StringVar(&o.peer, "peer", "", "only connections whose other side has this in its workload, identity or address")
	f.BoolVar(&o.plaintext, "plaintext", false, "only plaintext")
	f.BoolVar(&o.refused, "refused", false, "only what was refused or cut")
	f.StringVarP(&o.output, "output", "o", "table", "table, or json: one object on each line")
	return cmd
}

func (o *tapOptions) run(ctx context.Context, s streams, k *kube, target string) error {
	if err := errors.Join(oneOf("output", o.output, "table", "json"), oneOf("direction", o.direction, "", "inbound", "outbound")); err != nil {
		return err
	}
	k.fillIn(&o.namespace)
	l, v, err := k.lookAt(ctx, s.err, "", controlplane.PartPods)
	if err != nil {
		return err
	}
	defer l.close()
	targets, err := l.someOf(v.Pods, target, o.namespace, maxTapped, "followed")
	if err != nil {
		return err
	}
	if o.output == "table" && slices.ContainsFunc(targets, func(p controlplane.PodView) bool { return p.Mesh }) {
		fmt.Fprintf(s.out, tapFormat, "ENDED", "POD", "DIR", "PEER", "TO", "SECURITY", "SENT", "RECEIVED", "TIME", "REASON")
	}
	return o.follow(ctx, s, k, l, targets)
}

// follow prints what all targets tell until ctx ends. It fails when none can be
// followed any more.
func (o *tapOptions) follow(ctx context.Context, s streams, k *kube, l *looker, targets []controlplane.PodView) error {
	var mu sync.Mutex
	errs := make([]error, len(targets))
	var each sync.WaitGroup
	for i := range targets {
		name := targets[i].Namespace + "/" + targets[i].Name
		if !targets[i].Mesh {
			errs[i] = codedError{fmt.Errorf("pod %s has no proxy that could tell of its connections", name), exitNoInput}
			continue
		}
		each.Go(func() {
			err := tapPod(ctx, k, l, &targets[i], func(r *connectionRecord) {
				mu.Lock()
				defer mu.Unlock()
				o.print(s.out, &tapped{name, *r})
			})
			if err != nil && ctx.Err() == nil {
				errs[i] = fmt.Errorf("follow %s: %w", name, err)
				mu.Lock()
				defer mu.Unlock()
				l.note(errs[i].Error())
			}
		})
	}
	each.Wait()
	if ctx.Err() != nil {
		return nil // that is how it ends
	}
	return errors.Join(errs...)
}

// tapPod reads a proxy's records as they come.
func tapPod(ctx context.Context, k *kube, l *looker, pod *controlplane.PodView, take func(*connectionRecord)) error {
	cfg, err := k.config(io.Discard)
	if err != nil {
		return err
	}
	port, err := l.forward(ctx, cfg, pod.Namespace, pod.Name, adminPort)
	if err != nil {
		return lookError("reach the proxy", err)
	}
	return followRecords(ctx, fmt.Sprintf("http://127.0.0.1:%d", port), take)
}

// followRecords reads the records of the proxy whose admin port this URL leads to,
// until ctx ends or the proxy does.
func followRecords(ctx context.Context, url string, take func(*connectionRecord)) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/records?follow", http.NoBody)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return codedError{err, exitUnavailable}
	}
	defer res.Body.Close()
	switch {
	case res.StatusCode != http.StatusOK:
		text, _ := io.ReadAll(io.LimitReader(res.Body, 1<<10)) // what could be read is what is said
		return codedError{fmt.Errorf("the proxy answered %s: %s", res.Status, strings.TrimSpace(string(text))), exitUnavailable}
	case res.Header.Get("Content-Type") != "application/jsonl":
		return codedError{errors.New("the proxy is older than this program and can't be followed: restart the pod"), exitVersion}
	}
	lines := json.NewDecoder(res.Body)
	for {
		var r connectionRecord
		if err := lines.Decode(&r); err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				err = errors.New("the proxy has ended, or the way to it")
			}
			return err
		}
		take(&r)
	}
}

// wanted says whether the filters let a record pass.
func (o *tapOptions) wanted(r *connectionRecord) bool {
	switch {
	case o.direction != "" && r.Direction != o.direction:
	case o.plaintext && r.Security != "plaintext":
	case o.refused && r.Reason == "":
	case o.peer != "" && !strings.Contains(strings.Join(r.peer(), " "), o.peer):
	default:
		return true
	}
	return false
}

// peer is what is known of the other side, the best first.
func (r *connectionRecord) peer() []string {
	if r.Direction == "inbound" {
		return []string{r.SourceWorkload, r.SourceIdentity, r.Source.Addr().String()}
	}
	to := r.Endpoint
	if !to.IsValid() {
		to = r.Destination
	}
	return []string{r.DestinationWorkload, r.DestinationIdentity, to.Addr().String()}
}

const tapFormat = "%-12s  %-32s  %-3s  %-32s  %-28s  %-11s  %8s  %8s  %8s  %s\n"

func (o *tapOptions) print(w io.Writer, t *tapped) {
	if t.Missed > 0 && o.output == "table" {
		fmt.Fprintf(w, "(%d connections were left out: they end faster than can be told)\n", t.Missed)
	}
	if !o.wanted(&t.connectionRecord) {
		return
	}
	if o.output == "json" {
		_ = json.NewEncoder(w).Encode(t) // a closed standard output
		return
	}
	to := t.Service
	if to == "" && t.Destination.IsValid() {
		to = ":" + fmt.Sprint(t.Destination.Port())
	}
	reason := cmp.Or(t.Policy, "")
	if t.Reason != "" {
		reason = strings.TrimSpace(t.Reason + " " + reason)
	}
	ended := t.Start.Add(time.Duration(t.DurationMS) * time.Millisecond)
	fmt.Fprintf(w, tapFormat, ended.Format("15:04:05.000"), t.Pod, strings.TrimSuffix(t.Direction, "bound"), cmp.Or(t.peer()...), to,
		cmp.Or(t.Security, "-"), size(t.BytesSent), size(t.BytesReceived), time.Duration(t.DurationMS)*time.Millisecond, dash(reason))
}
