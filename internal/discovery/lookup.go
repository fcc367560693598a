package discovery

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"podseal.io/podseal/internal/policy"
)

// TargetPorts are the TCP ports of a pod that services lead to, each once.
func TargetPorts(pod *corev1.Pod, services []*corev1.Service) []uint16 {
	var out []uint16
	for _, svc := range services {
		if svc.Namespace != pod.Namespace || len(svc.Spec.Selector) == 0 || !selects(svc.Spec.Selector, pod.Labels) {
			continue
		}
		for i := range svc.Spec.Ports {
			p := &svc.Spec.Ports[i]
			if target, ok := targetPort(pod, p); ok && isTCP(p.Protocol) && !slices.Contains(out, target) {
				out = append(out, target)
			}
		}
	}
	slices.Sort(out)
	return out
}

// TargetOf is the port of a pod that a service's port leads to.
func TargetOf(pod *corev1.Pod, services []*corev1.Service, port uint16) (uint16, bool) {
	for _, svc := range services {
		if svc.Namespace != pod.Namespace || len(svc.Spec.Selector) == 0 || !selects(svc.Spec.Selector, pod.Labels) {
			continue
		}
		for i := range svc.Spec.Ports {
			if p := &svc.Spec.Ports[i]; p.Port == int32(port) && isTCP(p.Protocol) {
				return targetPort(pod, p)
			}
		}
	}
	return 0, false
}

// ModesOf are the modes of a pod with these labels in this namespace, by the
// PeerAuthentications that are valid.
func ModesOf(c Cluster, namespace string, labels map[string]string) policy.Modes {
	s := buildPolicies(c, Verdicts{})
	sc := s.scopes[namespace]
	if sc == nil {
		sc = s.add(namespace, nil)
	}
	return policy.Resolve(sc.policies, s.root, namespace, labels)
}

// HostOf is the host of a DestinationRule that is valid, as a full name.
func HostOf(obj *unstructured.Unstructured, clusterDomain string) string {
	d, _ := readDestinationRule(obj, clusterDomain)
	return d.rule.Host
}

// HostMatches reports whether a host of a DestinationRule names a service.
func HostMatches(host string, svc *corev1.Service, clusterDomain string) bool {
	name := hostname(svc, clusterDomain)
	suffix, wild := strings.CutPrefix(host, "*")
	return host == name || (wild && strings.HasSuffix(name, suffix))
}
