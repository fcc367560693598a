package controlplane

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"podseal.io/podseal/internal/discovery"
	"podseal.io/podseal/internal/edges"
)

// skew is how much earlier than its creation a pod may have been seen: the clocks
// of nodes differ, and creation is told in whole seconds.
const skew = 5 * time.Second

// places says what addresses belong to, as of one moment.
type places struct {
	pods      map[netip.Addr]place
	nodes     map[netip.Addr]string
	ranges    []nodeRange
	apiserver map[netip.Addr]bool
	services  map[netip.Addr]edges.Peer // cluster addresses and load balancers
}

// place is a pod that has an address.
type place struct {
	peer    edges.Peer
	created time.Time
}

// nodeRange is a range of addresses that a node gives to its pods.
type nodeRange struct {
	node  string
	cidr  netip.Prefix
	first netip.Addr // of the node itself, as bridges have it
}

// readPlaces reads the caches.
func readPlaces(ctx context.Context, from client.Reader) (*places, error) {
	var (
		pods     corev1.PodList
		nodes    corev1.NodeList
		services corev1.ServiceList
		slices   discoveryv1.EndpointSliceList
	)
	for list, opts := range map[client.ObjectList][]client.ListOption{
		&pods: nil, &nodes: nil, &services: nil,
		&slices: {client.InNamespace("default"), client.MatchingLabels{discoveryv1.LabelServiceName: "kubernetes"}},
	} {
		if err := from.List(ctx, list, append(opts, client.UnsafeDisableDeepCopy)...); err != nil {
			return nil, fmt.Errorf("list %T: %w", list, err)
		}
	}
	p := &places{pods: map[netip.Addr]place{}, nodes: map[netip.Addr]string{}, apiserver: map[netip.Addr]bool{}, services: map[netip.Addr]edges.Peer{}}
	for i := range pods.Items {
		p.addPod(&pods.Items[i])
	}
	for i := range nodes.Items {
		p.addNode(&nodes.Items[i])
	}
	for i := range services.Items {
		p.addService(&services.Items[i])
	}
	for i := range slices.Items {
		for _, e := range slices.Items[i].Endpoints {
			for _, text := range e.Addresses {
				if a, err := netip.ParseAddr(text); err == nil {
					p.apiserver[a.Unmap()] = true
				}
			}
		}
	}
	return p, nil
}

func (p *places) addPod(pod *corev1.Pod) {
	for _, a := range discovery.PodAddresses(pod) {
		at := place{workloadOf(pod), pod.CreationTimestamp.Time}
		if old, ok := p.pods[a]; !ok || at.created.After(old.created) {
			p.pods[a] = at
		}
	}
}

// workloadOf is a pod as a peer.
func workloadOf(pod *corev1.Pod) edges.Peer {
	return edges.Peer{Kind: edges.KindWorkload, Namespace: pod.Namespace, Name: discovery.WorkloadName(pod)}
}

func (p *places) addNode(n *corev1.Node) {
	for _, addr := range n.Status.Addresses {
		if a, err := netip.ParseAddr(addr.Address); err == nil {
			p.nodes[a.Unmap()] = n.Name
		}
	}
	for _, text := range n.Spec.PodCIDRs {
		if cidr, err := netip.ParsePrefix(text); err == nil {
			p.ranges = append(p.ranges, nodeRange{n.Name, cidr, cidr.Masked().Addr().Next()})
		}
	}
}

func (p *places) addService(s *corev1.Service) {
	add := func(text, kind string) {
		if a, err := netip.ParseAddr(text); err == nil {
			p.services[a.Unmap()] = edges.Peer{Kind: kind, Namespace: s.Namespace, Name: s.Name}
		}
	}
	for _, ip := range s.Spec.ClusterIPs {
		add(ip, edges.KindService)
	}
	for _, in := range s.Status.LoadBalancer.Ingress {
		add(in.IP, edges.KindLoadBalancer)
	}
}

// resolve says what an address belonged to. The address of the pod's own node is
// the kubelet on the way in: it, or what else is in that node's host network.
// Another node may have put its address in the place of the sender's.
func (p *places) resolve(a netip.Addr, node string, d edges.Direction, at time.Time) edges.Peer {
	if pod, ok := p.pods[a]; ok && !at.Before(pod.created.Add(-skew)) {
		return pod.peer
	}
	on, isNode := p.nodes[a]
	for _, r := range p.ranges {
		if !isNode && r.cidr.Contains(a) {
			if a != r.first && a != r.cidr.Masked().Addr() {
				return edges.Peer{Kind: edges.KindGone, Address: a}
			}
			on, isNode = r.node, true
		}
	}
	switch {
	case d == edges.Inbound && isNode && on == node:
		return edges.Peer{Kind: edges.KindKubelet, Name: on}
	case p.apiserver[a]:
		return edges.Peer{Kind: edges.KindAPIServer, Address: a}
	case isNode:
		return edges.Peer{Kind: edges.KindNode, Name: on}
	}
	if s, ok := p.services[a]; ok {
		return s
	}
	return edges.Peer{Kind: edges.KindOutside, Address: a}
}
