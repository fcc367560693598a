package discovery

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/workload"
)

// Labels of pods that the mesh reads.
const (
	labelTLSMode           = "security.istio.io/tlsMode"
	labelCanonicalName     = "service.istio.io/canonical-name"
	labelCanonicalRevision = "service.istio.io/canonical-revision"
	labelWorkloadName      = "service.istio.io/workload-name"
	labelPodTemplateHash   = "pod-template-hash"
)

// maxLabelValue is how long a label's value may be.
const maxLabelValue = 63

type podBuilder struct {
	trustDomain   string
	clusterDomain string
	services      serviceIndex
	policies      *policySet
	access        *accessSet
	tokens        *tokenSet
	rules         *ruleSet
	owners        map[netip.Addr]*corev1.Pod
	uncaptured    []uint16 // inbound ports that are not captured in any pod
}

// terminal reports whether a pod has ended: its address may be another's by now.
func terminal(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// InMesh reports whether a pod has a proxy. The label is the only sign, and it
// must be exactly this (contract 3.20, 3.26).
func InMesh(pod *corev1.Pod) bool { return pod.Labels[labelTLSMode] == "istio" }

// PodAddresses are a pod's own addresses; those of a host-network pod are its
// node's and say nothing of the pod.
func PodAddresses(pod *corev1.Pod) []netip.Addr {
	if pod.Spec.HostNetwork {
		return nil
	}
	if len(pod.Status.PodIPs) == 0 {
		return parseAddresses([]string{pod.Status.PodIP})
	}
	ips := make([]string, 0, 2)
	for _, ip := range pod.Status.PodIPs {
		ips = append(ips, ip.IP)
	}
	return parseAddresses(ips)
}

// addressOwners says whose each address is. An address that has just gone from
// one pod to another may stand at both for a moment: it is the younger's.
func addressOwners(pods []*corev1.Pod) map[netip.Addr]*corev1.Pod {
	owners := make(map[netip.Addr]*corev1.Pod, len(pods))
	for _, pod := range pods {
		if terminal(pod) {
			continue
		}
		for _, a := range PodAddresses(pod) {
			if old, ok := owners[a]; !ok || younger(pod, old) {
				owners[a] = pod
			}
		}
	}
	return owners
}

func younger(a, b *corev1.Pod) bool {
	if c := a.CreationTimestamp.Compare(b.CreationTimestamp.Time); c != 0 {
		return c > 0
	}
	return a.Namespace+"/"+a.Name < b.Namespace+"/"+b.Name
}

func (b *podBuilder) build(pod *corev1.Pod) (*workload.Workload, error) {
	id, err := identity.New(b.trustDomain, pod.Namespace, pod.Spec.ServiceAccountName)
	if err != nil {
		return nil, fmt.Errorf("left out: %w", err)
	}
	addresses := PodAddresses(pod)
	addresses = slices.DeleteFunc(addresses, func(a netip.Addr) bool { return b.owners[a] != pod })
	name := WorkloadName(pod)
	ports := b.services.ports(pod)
	return &workload.Workload{
		UID:               pod.Namespace + "/" + pod.Name,
		Name:              pod.Name,
		Namespace:         pod.Namespace,
		Node:              pod.Spec.NodeName,
		Addresses:         addresses,
		Identity:          id,
		Mesh:              InMesh(pod),
		Modes:             capturedModes(b.policies.resolve(pod), pod.Annotations, b.uncaptured),
		Ports:             ports,
		Policies:          b.access.keys(pod, ports),
		Authentications:   b.tokens.keys(pod),
		CanonicalName:     canonicalName(pod.Labels, name),
		CanonicalRevision: cmp.Or(pod.Labels[labelCanonicalRevision], pod.Labels["app.kubernetes.io/version"], pod.Labels["version"], "latest"),
		WorkloadName:      name,
		App:               pod.Labels["app"],
		Version:           pod.Labels["version"],
		Rules:             b.rules.selecting(pod),
	}, nil
}

// canonicalName by contract 5.11.
func canonicalName(labels map[string]string, workloadName string) string {
	name := cmp.Or(labels[labelCanonicalName], labels["app.kubernetes.io/name"], labels["app"], workloadName)
	if len(name) > maxLabelValue {
		name = name[:maxLabelValue]
	}
	return strings.Trim(name, "-_.")
}

// WorkloadName is the name of what the pod was made from: of a ReplicaSet's
// Deployment and of a Job's CronJob rather than of the generated thing between.
func WorkloadName(pod *corev1.Pod) string {
	if name := pod.Labels[labelWorkloadName]; name != "" {
		return name
	}
	for i := range pod.OwnerReferences {
		o := &pod.OwnerReferences[i]
		if o.Controller == nil || !*o.Controller {
			continue
		}
		switch o.Kind {
		case "ReplicaSet":
			if base, ok := strings.CutSuffix(o.Name, "-"+pod.Labels[labelPodTemplateHash]); ok && base != "" {
				return base
			}
		case "Job":
			if base, stamp, ok := cutLast(o.Name, "-"); ok && len(stamp) >= 8 && digits(stamp) {
				return base
			}
		}
		return o.Name
	}
	return pod.Name
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

func digits(s string) bool {
	return strings.Trim(s, "0123456789") == ""
}

// serviceIndex finds the services that select a pod without trying them all:
// each stands under one pair of its selector.
type serviceIndex struct {
	clusterDomain string
	byPair        map[pair][]ranked
}

type pair struct{ namespace, key, value string }

// ranked is a service with its place in the order of age.
type ranked struct {
	rank int
	svc  *corev1.Service
}

// indexServices wants the oldest first. A service without a selector has
// endpoints that somebody else writes, and none of them is found by labels.
func indexServices(oldestFirst []*corev1.Service, clusterDomain string) serviceIndex {
	x := serviceIndex{clusterDomain, make(map[pair][]ranked, len(oldestFirst))}
	for rank, svc := range oldestFirst {
		var p pair
		for k, v := range svc.Spec.Selector {
			if p.key == "" || k < p.key {
				p = pair{svc.Namespace, k, v}
			}
		}
		if p.key != "" {
			x.byPair[p] = append(x.byPair[p], ranked{rank, svc})
		}
	}
	return x
}

// ports is what the services say of a pod's ports. Where two target the same
// port, the oldest one's word counts (contract 1.24).
func (x serviceIndex) ports(pod *corev1.Pod) []workload.Port {
	var found []ranked
	for k, v := range pod.Labels {
		for _, r := range x.byPair[pair{pod.Namespace, k, v}] {
			if selects(r.svc.Spec.Selector, pod.Labels) {
				found = append(found, r)
			}
		}
	}
	slices.SortFunc(found, func(a, b ranked) int { return a.rank - b.rank })
	var ports []workload.Port
	for _, r := range found {
		for i := range r.svc.Spec.Ports {
			p := &r.svc.Spec.Ports[i]
			if !isTCP(p.Protocol) {
				continue
			}
			target, ok := targetPort(pod, p)
			if !ok || slices.ContainsFunc(ports, func(q workload.Port) bool { return q.Target == target }) {
				continue
			}
			ports = append(ports, workload.Port{
				Target: target, Protocol: protocolOf(p), ServiceHost: hostname(r.svc, x.clusterDomain), ServicePort: uint16(p.Port),
			})
		}
	}
	slices.SortFunc(ports, func(a, b workload.Port) int { return int(a.Target) - int(b.Target) })
	return ports
}

func selects(selector, labels map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// targetPort is the pod's port that a service port leads to. A named one is
// looked up in the pod's containers, those that run beside the application
// included.
func targetPort(pod *corev1.Pod, p *corev1.ServicePort) (uint16, bool) {
	number := p.Port
	switch {
	case p.TargetPort.Type == intstr.String && p.TargetPort.StrVal != "":
		number = namedPort(pod, p.TargetPort.StrVal)
	case p.TargetPort.Type == intstr.Int && p.TargetPort.IntVal != 0:
		number = p.TargetPort.IntVal
	}
	return uint16(number), number > 0 && number <= 65535
}

func namedPort(pod *corev1.Pod, name string) int32 {
	find := func(c *corev1.Container) int32 {
		for _, p := range c.Ports {
			if p.Name == name && isTCP(p.Protocol) {
				return p.ContainerPort
			}
		}
		return 0
	}
	for i := range pod.Spec.Containers {
		if n := find(&pod.Spec.Containers[i]); n != 0 {
			return n
		}
	}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			if n := find(c); n != 0 {
				return n
			}
		}
	}
	return 0
}
