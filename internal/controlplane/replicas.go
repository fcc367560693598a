package controlplane

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"podseal.io/podseal/internal/edges"
)

// replicas answers with what all replicas know.
type replicas struct {
	own     *viewer
	answers *explainer
	peers   *peerClient
}

// view is the view of all replicas that say something.
func (w *replicas) view(ctx context.Context, namespace string, parts []string) (*View, error) {
	type result struct {
		view *View
		err  error
	}
	own := make(chan result, 1)
	go func() {
		v, err := w.own.view(ctx, namespace, parts)
		own <- result{v, err}
	}()
	var others []peerAnswer[View]
	differ := len(parts) == 0 || slices.Contains(parts, PartProxies) || slices.Contains(parts, PartEdges)
	if differ {
		others = askPeers[View](ctx, w.peers, peerView, &viewQuestion{Namespace: namespace, Parts: parts})
	}
	r := <-own
	if r.err != nil {
		return nil, r.err
	}
	all := []*View{r.view}
	peers := peersOf(others)
	if !differ { // of pods every replica knows the same
		peers = w.peers.named(ctx)
	}
	for i := range others {
		if others[i].answer != nil {
			all = append(all, others[i].answer)
		}
	}
	out := JoinViews(all)
	out.Peers = peers
	return out, nil
}

// explain is what all replicas say that say something.
func (w *replicas) explain(ctx context.Context, q *ExplainRequest) (*ExplainAnswer, error) {
	own, err := w.answers.explain(q)
	if err != nil {
		return nil, err
	}
	if len(q.Pods) == 0 { // of anything else every replica knows the same
		own.Peers = w.peers.named(ctx)
		return own, nil
	}
	// How far proxies are is asked of what is, not of what would be.
	others := askPeers[ExplainAnswer](ctx, w.peers, peerExplain, &ExplainRequest{Pods: q.Pods})
	all := []*ExplainAnswer{own}
	for i := range others {
		if others[i].answer != nil && len(q.Objects) == 0 {
			all = append(all, others[i].answer)
		}
	}
	out := JoinExplain(all)
	out.Peers = peersOf(others)
	return out, nil
}

// peersOf is who answered and who didn't; it is never nil.
func peersOf[T any](all []peerAnswer[T]) []PeerView {
	out := make([]PeerView, 0, len(all))
	for i := range all {
		out = append(out, all[i].PeerView)
	}
	return out
}

// JoinViews makes one view of those of several replicas, of which there is at least
// one. A pod that moved from one to another is taken from where it is connected. The
// views may have been joined before, and share replicas. It changes the first.
func JoinViews(all []*View) *View {
	out := all[0]
	replicas := strings.Split(out.Replica, ",")
	for _, v := range all[1:] {
		if len(v.Pods) > len(out.Pods) { // every replica knows all; one that has just started may know less
			out.Pods = v.Pods
		}
		if v.Started.After(out.Started) {
			out.Started = v.Started
		}
		replicas = append(replicas, strings.Split(v.Replica, ",")...)
		out.Proxies = append(out.Proxies, v.Proxies...)
		out.Edges = append(out.Edges, v.Edges...)
	}
	out.Replica = strings.Join(distinct(replicas), ",")
	slices.SortStableFunc(out.Proxies, func(a, b ProxyView) int {
		return cmp.Or(cmp.Compare(a.Namespace+"/"+a.Pod, b.Namespace+"/"+b.Pod), b.Connected.Compare(a.Connected))
	})
	out.Proxies = slices.CompactFunc(out.Proxies, func(a, b ProxyView) bool { return a.Namespace == b.Namespace && a.Pod == b.Pod })
	// counts are totals of the proxy: the newest report of a pod has all that older ones have
	slices.SortStableFunc(out.Edges, func(a, b edges.Report) int {
		return cmp.Or(cmp.Compare(a.Pod, b.Pod), newest(&b).Compare(newest(&a)))
	})
	out.Edges = slices.CompactFunc(out.Edges, func(a, b edges.Report) bool { return a.Pod == b.Pod })
	return out
}

// distinct keeps the first of each.
func distinct(all []string) []string {
	var out []string
	for _, s := range all {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// newest is when a report's last edge was seen.
func newest(r *edges.Report) time.Time {
	var last time.Time
	for i := range r.Edges {
		if r.Edges[i].Last.After(last) {
			last = r.Edges[i].Last
		}
	}
	return last
}
