package inject

import (
	"fmt"
	"slices"

	"istio.io/api/annotation"
	"istio.io/api/label"
	corev1 "k8s.io/api/core/v1"

	"podseal.io/podseal/internal/settings"
)

const (
	// NamespaceLabel on a namespace turns injection on or off for its pods.
	NamespaceLabel = "istio-injection"
	enabled        = "enabled"
)

// Decision says whether a pod gets a proxy, and why.
type Decision struct {
	Inject   bool
	Reason   string // one clause, for people
	Warnings []string
}

// NeverInjected are the namespaces whose pods never get a proxy: those of
// Kubernetes itself (contract 5.5), and those that a proxy needs to start.
func NeverInjected() []string {
	return []string{"kube-system", "kube-public", "kube-node-lease", "local-path-storage", settings.Namespace, settings.ManagerNamespace}
}

// Decide says whether a pod that is about to be created gets a proxy, by the matrix of contract 5.3 and the conditions 5.4 to 5.6.
// The selectors of the webhook say most of the same: this is the second line,
// and what tools ask.
func Decide(pod *corev1.Pod, ns *corev1.Namespace, nsName string, of *settings.Settings) Decision {
	if slices.Contains(NeverInjected(), nsName) {
		return no("pods of namespace %s never get a proxy", nsName)
	}
	selected := decideByLabels(pod.Labels, ns.Labels, of)
	if !selected.Inject {
		return selected
	}
	requested := decideByRequest(pod, selected)
	if !requested.Inject {
		return requested
	}
	switch {
	case pod.Spec.HostNetwork:
		return refuseLoudly("the pod uses the network of its node (hostNetwork), which a proxy must not capture")
	case pod.Annotations[corev1.MirrorPodAnnotationKey] != "":
		return refuseLoudly("the pod is static: a kubelet runs it from a file, and shows it here only")
	case pod.Spec.OS != nil && pod.Spec.OS.Name == corev1.Windows:
		return refuseLoudly("the pod runs on Windows")
	case alreadyInjected(pod):
		return no("the pod has a proxy already (annotation %s)", annotation.SidecarStatus.Name)
	}
	return requested
}

// decideByLabels is the matrix of contract 5.3.
func decideByLabels(pod, ns map[string]string, of *settings.Settings) Decision {
	podInject, podAsked := pod[label.SidecarInject.Name]
	if podInject == "false" {
		return no("label %s=false of the pod", label.SidecarInject.Name)
	}
	if value, set := ns[NamespaceLabel]; set {
		if value == enabled {
			return yes("label %s=%s of the namespace", NamespaceLabel, enabled)
		}
		return no("label %s=%s of the namespace (only %q turns injection on)", NamespaceLabel, value, enabled)
	}
	rev := label.IoIstioRev.Name
	if value, set := ns[rev]; set {
		if of.Serves(value) {
			return yes("label %s=%s of the namespace", rev, value)
		}
		return no("label %s=%s of the namespace names another revision", rev, value)
	}
	if value, set := pod[rev]; set {
		if of.Serves(value) {
			return yes("label %s=%s of the pod", rev, value)
		}
		return no("label %s=%s of the pod names another revision", rev, value)
	}
	if podAsked && podInject == "true" {
		return yes("label %s=true of the pod", label.SidecarInject.Name)
	}
	return no("neither the namespace nor the pod asks for injection by a label")
}

// decideByRequest is what selectors can't see: the annotation, and values that
// are neither true nor false (contract 5.4, 5.5). The label beats it.
func decideByRequest(pod *corev1.Pod, selected Decision) Decision {
	value, where := pod.Annotations[annotation.SidecarInject.Name], "annotation"
	if v, set := pod.Labels[label.SidecarInject.Name]; set {
		value, where = v, "label"
	}
	switch value {
	case "", "true":
		return selected
	case "false":
		return no("%s %s=false of the pod", where, annotation.SidecarInject.Name)
	}
	selected.Warnings = append(selected.Warnings, fmt.Sprintf("%s %s: %q is neither true nor false, and is taken as absent", where, annotation.SidecarInject.Name, value))
	return selected
}

// alreadyInjected reports whether injection has been here. The annotation
// alone, copied from another pod, doesn't count: it must not keep a pod out.
func alreadyInjected(pod *corev1.Pod) bool {
	if _, set := pod.Annotations[annotation.SidecarStatus.Name]; !set {
		return false
	}
	isProxy := func(c corev1.Container) bool { return c.Name == ProxyContainer }
	return slices.ContainsFunc(pod.Spec.Containers, isProxy) || slices.ContainsFunc(pod.Spec.InitContainers, isProxy)
}

func yes(format string, args ...any) Decision {
	return Decision{Inject: true, Reason: fmt.Sprintf(format, args...)}
}

func no(format string, args ...any) Decision {
	return Decision{Reason: fmt.Sprintf(format, args...)}
}

// refuseLoudly is no, with a warning: the pod was to have a proxy, and whoever
// creates it may believe that its traffic is encrypted.
func refuseLoudly(reason string) Decision {
	return Decision{Reason: reason, Warnings: []string{
		"no proxy is injected, and the pod's traffic is not encrypted: " + reason + "; label " + label.SidecarInject.Name + "=false says that this is meant",
	}}
}
