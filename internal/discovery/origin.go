package discovery

import (
	"slices"

	"istio.io/api/annotation"
	corev1 "k8s.io/api/core/v1"

	"podseal.io/podseal/internal/policy"
)

// Origin says which PeerAuthentications a pod follows, and what each sets.
type Origin struct {
	Policies []OriginPolicy
	// Uncaptured are the inbound ports where no policy holds, as nothing is captured
	// there; with Only, every port but OnlyPorts is such.
	Uncaptured []uint16
	Only       bool
	OnlyPorts  []uint16
}

// OriginPolicy is one that a pod follows: of the mesh, the namespace or the pod.
type OriginPolicy struct {
	Key   Key
	Scope string // mesh, namespace or selector
	// SetsDefault: the mode of ports without one of their own is this one's; Ports are
	// those whose mode it sets.
	SetsDefault bool
	Ports       []uint16
}

// Origins says it of each pod, by the rules of contract 1.7-1.21.
func Origins(c Cluster, pods []*corev1.Pod) []Origin {
	s := buildPolicies(c, Verdicts{})
	out := make([]Origin, 0, len(pods))
	for _, pod := range pods {
		sc := s.scopes[pod.Namespace]
		if sc == nil {
			sc = s.add(pod.Namespace, nil)
		}
		mesh, ns, own := policy.Select(sc.policies, s.root, pod.Namespace, pod.Labels)
		o := Origin{}
		last := -1 // of those that set the default
		for i, p := range []*policy.PeerAuthentication{mesh, ns, own} {
			if p == nil {
				continue
			}
			from := OriginPolicy{Key: keyOf(p), Scope: [...]string{"mesh", "namespace", "selector"}[i]}
			for port := range p.Ports {
				from.Ports = append(from.Ports, port)
			}
			slices.Sort(from.Ports)
			if p.Mode != policy.Unset {
				last = len(o.Policies)
			}
			o.Policies = append(o.Policies, from)
		}
		if last >= 0 {
			o.Policies[last].SetsDefault = true
		}
		o.captured(pod, c)
		out = append(out, o)
	}
	return out
}

// captured is contract 1.27 and 5.29.
func (o *Origin) captured(pod *corev1.Pod, c Cluster) {
	include, restricted := pod.Annotations[annotation.SidecarTrafficIncludeInboundPorts.Name]
	if o.Only = restricted && include != "*"; o.Only {
		o.OnlyPorts = portList(include)
		return
	}
	o.Uncaptured = append(portList(pod.Annotations[annotation.SidecarTrafficExcludeInboundPorts.Name]), c.Settings.Sidecar.ExcludeInboundPorts...)
}

// Captures reports whether connections to a port of the pod reach its proxy.
func (o *Origin) Captures(port uint16) bool {
	if o.Only {
		return slices.Contains(o.OnlyPorts, port)
	}
	return !slices.Contains(o.Uncaptured, port)
}
