package inject

import (
	corev1 "k8s.io/api/core/v1"

	"istio.io/api/annotation"
)

// warnTraps names what will go wrong with this pod in the mesh although nothing
// in it is wrong, and is hard to find then.
func (in *injection) warnTraps() {
	if ends := in.Pod.Spec.RestartPolicy; !in.native && (ends == corev1.RestartPolicyNever || ends == corev1.RestartPolicyOnFailure) {
		in.warn("the pod is to end by itself (restartPolicy: %s), and a classic sidecar does not: it never completes unless the application asks for POST http://127.0.0.1:%d/quitquitquit; "+
			"a native sidecar ends with it (annotation %s=true)", ends, statsPort, annotation.SidecarNativeSidecar.Name)
	}
	if dns := in.Pod.Spec.DNSPolicy; dns == corev1.DNSDefault || dns == corev1.DNSNone {
		in.warn("dnsPolicy: %s: the proxy looks up the control plane (%s) by the pod's DNS; if that does not know the cluster's names, the pod never becomes ready", dns, in.Params.DiscoveryAddress)
	}
	if in.byPlugin() && !in.native {
		for _, c := range in.Pod.Spec.InitContainers {
			in.warn("init container %q is captured before there is a proxy, and reaches nothing over TCP: with the CNI plugin only a native sidecar starts before it (annotation %s=true)", c.Name, annotation.SidecarNativeSidecar.Name)
		}
	}
	if in.native || in.hold || !in.capture {
		return
	}
	for _, c := range in.Pod.Spec.Containers {
		if c.Lifecycle == nil || c.Lifecycle.PostStart == nil || (c.Lifecycle.PostStart.HTTPGet == nil && c.Lifecycle.PostStart.TCPSocket == nil) {
			continue
		}
		in.warn("container %q: lifecycle.postStart goes over the network, and a classic sidecar starts after the container: the hook fails and the container is restarted; "+
			"write {holdApplicationUntilProxyStarts: true} in annotation %s", c.Name, annotation.ProxyConfig.Name)
	}
}
