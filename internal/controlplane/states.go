package controlplane

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"podseal.io/podseal/internal/discovery"
	"podseal.io/podseal/internal/xds"
)

// peersEvery is how often other replicas are asked how far their proxies are, and
// peersKeep how long what one has said serves while it says nothing.
const (
	peersEvery = 10 * time.Second
	peersKeep  = 30 * time.Second
)

// policyStates is how far the proxies of one replica are with the policies that are
// for them.
type policyStates struct {
	Keys []discovery.Key `json:"keys"`
	Pods []podStates     `json:"pods"`
}

// podStates is one proxy; its policies are named by their place in Keys.
type podStates struct {
	Pod       string    `json:"pod"` // "<namespace>/<name>"
	Connected time.Time `json:"connected"`
	Held      []int     `json:"held,omitempty"`
	Rejected  []int     `json:"rejected,omitempty"` // the others are waited for
}

// stateReader reads them of the proxies that are connected to this replica.
type stateReader struct {
	cluster func() *discovery.Cluster
	each    func(visit func(peer xds.PeerStatus, holding func(typeURL, name string) xds.Holding))

	mu      sync.Mutex
	seen    *discovery.Cluster // that the rest is of
	governs map[discovery.Key][]string
	keys    []discovery.Key
	byPod   map[string][]int
}

// read returns the states, and what governs which pods; nil before anything is known.
func (r *stateReader) read() (*policyStates, map[discovery.Key][]string) {
	c := r.cluster()
	if c == nil {
		return nil, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seen != c {
		r.look(c)
	}
	out := &policyStates{Keys: r.keys}
	r.each(func(peer xds.PeerStatus, holding func(typeURL, name string) xds.Holding) {
		ns, name, ok := podOf(peer.Node.ID)
		if !ok {
			return
		}
		p := podStates{Pod: ns + "/" + name, Connected: peer.Connected}
		for _, i := range r.byPod[p.Pod] {
			typeURL, resource := resourceOf(r.keys[i], p.Pod)
			switch enforced(holding, p.Pod, typeURL, resource) {
			case EnforcedYes:
				p.Held = append(p.Held, i)
			case EnforcedRejected:
				p.Rejected = append(p.Rejected, i)
			}
		}
		out.Pods = append(out.Pods, p)
	})
	return out, r.governs
}

// look finds who is governed by what. Callers hold mu.
func (r *stateReader) look(c *discovery.Cluster) {
	r.seen, r.governs, r.keys, r.byPod = c, discovery.Governs(*c), nil, map[string][]int{}
	for key := range r.governs {
		r.keys = append(r.keys, key)
	}
	slices.SortFunc(r.keys, func(a, b discovery.Key) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	for i, key := range r.keys {
		for _, pod := range r.governs[key] {
			r.byPod[pod] = append(r.byPod[pod], i)
		}
	}
}

// peerStateReader has what the other replicas said last.
type peerStateReader struct {
	peers *peerClient
	now   func() time.Time

	asked  time.Time
	kept   map[string]keptStates // by replica
	silent []string              // replicas that don't say
}

type keptStates struct {
	at     time.Time
	states *policyStates
}

// read asks the others if that was long ago, and returns what they say, and who says
// nothing.
func (r *peerStateReader) read(ctx context.Context) (all []*policyStates, silent []string) {
	now := r.now()
	if now.Sub(r.asked) >= peersEvery {
		r.asked, r.silent = now, nil
		before := r.kept
		r.kept = map[string]keptStates{}
		for _, a := range askPeers[policyStates](ctx, r.peers, peerStates, struct{}{}) {
			old, had := before[a.Replica]
			switch {
			case a.answer != nil:
				r.kept[a.Replica] = keptStates{now, a.answer}
			case had && now.Sub(old.at) < peersKeep:
				r.kept[a.Replica] = old
			default:
				r.silent = append(r.silent, a.Replica)
			}
		}
	}
	for _, k := range r.kept {
		all = append(all, k.states)
	}
	return all, r.silent
}

// tally is how many proxies are how far with each policy, and which refuse it.
func tallyStates(governs map[discovery.Key][]string, all []*policyStates) map[discovery.Key]*state {
	type said struct {
		at  time.Time
		how map[discovery.Key]string
	}
	newest := map[string]said{}
	for _, one := range all {
		for i := range one.Pods {
			p := &one.Pods[i]
			if newest[p.Pod].at.After(p.Connected) {
				continue // an older stream that has not ended yet
			}
			how := make(map[discovery.Key]string, len(p.Held)+len(p.Rejected))
			for name, list := range map[string][]int{EnforcedYes: p.Held, EnforcedRejected: p.Rejected} {
				for _, j := range list {
					if j >= 0 && j < len(one.Keys) {
						how[one.Keys[j]] = name
					}
				}
			}
			newest[p.Pod] = said{p.Connected, how}
		}
	}
	out := make(map[discovery.Key]*state, len(governs))
	for key, pods := range governs {
		s := &state{}
		for _, pod := range pods {
			x, connected := newest[pod]
			switch how := x.how[key]; {
			case !connected:
			case how == EnforcedYes:
				s.held++
			case how == EnforcedRejected:
				s.rejected = append(s.rejected, pod)
			default:
				s.waiting++
			}
		}
		slices.Sort(s.rejected)
		out[key] = s
	}
	return out
}
