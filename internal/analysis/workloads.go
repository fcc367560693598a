package analysis

import (
	"slices"
	"strings"

	"istio.io/api/annotation"
	"istio.io/api/label"
	corev1 "k8s.io/api/core/v1"

	"podseal.io/podseal/internal/discovery"
	"podseal.io/podseal/internal/inject"
)

// namespace finds what is wrong with the labels of one.
func (a *analyzer) namespace(ns *corev1.Namespace) {
	_, enabled := ns.Labels[inject.NamespaceLabel]
	rev, hasRev := ns.Labels[label.IoIstioRev.Name]
	switch {
	case slices.Contains(inject.NeverInjected(), ns.Name) || a.Partial && !enabled && !hasRev:
	case enabled && hasRev:
		a.add(ns, TwoInjectionLabels, Warning, "it has both %s and %s=%s: the first one counts", inject.NamespaceLabel, label.IoIstioRev.Name, rev)
	case !enabled && !hasRev:
		a.add(ns, NamespaceNotInjected, Info, "its pods get no proxy: `kubectl label namespace %s %s=enabled` changes that, and %s=disabled says that it is meant", ns.Name, inject.NamespaceLabel, inject.NamespaceLabel)
	}
}

// reserved is the user and group of the proxy, whose traffic isn't captured.
const reserved = 1337

func (a *analyzer) pod(pod *corev1.Pod) {
	if pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
		return
	}
	switch {
	case discovery.InMesh(pod):
		a.inMesh(pod)
	case pod.Spec.HostNetwork && a.wouldInject(pod):
		a.add(pod, OnTheNode, Warning, "it uses the network of its node, where no proxy can be: what it says and hears is not encrypted")
	case a.wouldInject(pod):
		a.add(pod, PodWithoutProxy, Warning, "its namespace is in the mesh and it has no proxy: restart its workload")
	}
}

// wouldInject reports whether the pod would get a proxy if it were made now, or
// only its host network keeps it from that.
func (a *analyzer) wouldInject(pod *corev1.Pod) bool {
	ns := a.namespaces[pod.Namespace]
	if ns == nil {
		return false
	}
	bare := pod.DeepCopy()
	bare.Spec.HostNetwork = false
	return inject.Decide(bare, ns, ns.Name, &a.Settings).Inject
}

func (a *analyzer) inMesh(pod *corev1.Pod) {
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		if c.Name == inject.ProxyContainer {
			continue
		}
		if user := runsAs(pod, c); user == reserved {
			a.add(pod, ApplicationUID, Warning, "container %s runs as user %d, which is the proxy's: its traffic is not captured, so not encrypted", c.Name, reserved)
		}
	}
	origin := a.origins[pod]
	for _, port := range a.targets(pod) {
		if !origin.Captures(port) {
			a.add(pod, ExcludedPort, Warning, "a service leads to port %d, which is excluded from capture: no mutual TLS and no policy there", port)
		}
	}
	for _, name := range []string{annotation.SidecarTrafficExcludeOutboundPorts.Name, annotation.SidecarTrafficExcludeOutboundIPRanges.Name} {
		if v := pod.Annotations[name]; v != "" {
			a.add(pod, ExcludedPort, Info, "annotation %s: what it sends to %s is not encrypted", name, v)
		}
	}
}

func runsAs(pod *corev1.Pod, c *corev1.Container) int64 {
	if c.SecurityContext != nil && c.SecurityContext.RunAsUser != nil {
		return *c.SecurityContext.RunAsUser
	}
	if pod.Spec.SecurityContext != nil && pod.Spec.SecurityContext.RunAsUser != nil {
		return *pod.Spec.SecurityContext.RunAsUser
	}
	return 0
}

// targets are the ports of a pod that services lead to.
func (a *analyzer) targets(pod *corev1.Pod) []uint16 {
	return discovery.TargetPorts(pod, a.Services)
}

func (a *analyzer) service(svc *corev1.Service) {
	if v, wrong := a.verdicts[discovery.Key{Kind: "Service", Namespace: svc.Namespace, Name: svc.Name}]; wrong && v.Reason == discovery.ReasonIgnored {
		a.add(svc, NotHonoured, Warning, "%s", v.Message)
	}
	if ns := a.namespaces[svc.Namespace]; ns == nil || ns.Labels[inject.NamespaceLabel] != "enabled" {
		return
	}
	for i := range svc.Spec.Ports {
		p := &svc.Spec.Ports[i]
		if p.AppProtocol == nil && (p.Protocol == corev1.ProtocolTCP || p.Protocol == "") && !conventional(p.Name) {
			a.add(svc, PortName, Info, "port %d: its name %q says no protocol, so the bytes decide whether it is HTTP", p.Port, p.Name)
		}
	}
}

// conventional reports whether a port's name says its protocol (contract 2.16).
func conventional(name string) bool {
	protocol, _, _ := strings.Cut(name, "-")
	return slices.Contains([]string{"http", "http2", "grpc", "https", "tls", "tcp", "udp", "mongo", "redis", "mysql", "grpc-web", "hbone"}, strings.ToLower(protocol))
}
