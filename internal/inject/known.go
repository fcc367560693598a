package inject

import (
	"maps"
	"slices"
	"strings"

	"istio.io/api/annotation"
	"istio.io/api/label"
	corev1 "k8s.io/api/core/v1"
)

// honoured are the annotations of Istio's registry that injection reads,
// writes or may ignore without harm.
func honoured() []string {
	var names []string
	for _, a := range []*annotation.Instance{
		&annotation.SidecarInject, &annotation.SidecarStatus, &annotation.ProxyOverrides, &annotation.IoIstioRev, &annotation.InjectTemplates,
		&annotation.SidecarInterceptionMode, &annotation.SidecarNativeSidecar, &annotation.SidecarRewriteAppHTTPProbers, &annotation.PrometheusMergeMetrics,
		&annotation.SidecarProxyImage, &annotation.SidecarLogLevel, &annotation.ProxyConfig,
		&annotation.SidecarProxyCPU, &annotation.SidecarProxyMemory, &annotation.SidecarProxyCPULimit, &annotation.SidecarProxyMemoryLimit,
		&annotation.SidecarStatusPort, &annotation.SidecarStatusReadinessInitialDelaySeconds, &annotation.SidecarStatusReadinessPeriodSeconds, &annotation.SidecarStatusReadinessFailureThreshold,
		&annotation.SidecarTrafficIncludeOutboundIPRanges, &annotation.SidecarTrafficExcludeOutboundIPRanges, &annotation.SidecarTrafficIncludeInboundPorts, &annotation.SidecarTrafficExcludeInboundPorts,
		&annotation.SidecarTrafficIncludeOutboundPorts, &annotation.SidecarTrafficExcludeOutboundPorts, &annotation.SidecarTrafficExcludeInterfaces,
		&annotation.SidecarTrafficKubevirtInterfaces, &annotation.IoIstioRerouteVirtualInterfaces,
		&annotation.SidecarUserVolume, &annotation.SidecarUserVolumeMount,
		&annotation.GalleyAnalyzeSuppress, // for tools
	} {
		names = append(names, a.Name)
	}
	return names
}

// holdTemplate is a template of Deckhouse: the proxy ends after the
// application. Native sidecars do so by themselves.
const holdTemplate = "d8-hold-istio-proxy-termination-until-application-stops"

// templates reads inject.istio.io/templates: there is one template.
func (r reader) templates() {
	name := annotation.InjectTemplates.Name
	for template := range strings.SplitSeq(r.annotations[name], ",") {
		switch template = strings.TrimSpace(template); template {
		case "", "sidecar":
		case holdTemplate:
			if !r.native {
				r.warn("annotation %s: %s has no effect on a classic sidecar", name, template)
			}
		default:
			r.warn("annotation %s: %q has no effect: there is the template sidecar only", name, template)
		}
	}
}

// unknown warns of all in Istio's name that has no effect on this pod.
func (r reader) unknown(pod *corev1.Pod) {
	known := honoured()
	registry := annotation.AllResourceAnnotations()
	for _, name := range slices.Sorted(maps.Keys(pod.Annotations)) {
		if slices.Contains(known, name) {
			continue
		}
		i := slices.IndexFunc(registry, func(a *annotation.Instance) bool { return a.Name == name })
		switch {
		case i >= 0 && (slices.Contains(registry[i].Resources, annotation.Pod) || slices.Contains(registry[i].Resources, annotation.Any)):
			r.warn("annotation %s: known, but has no effect in this version", name)
		case i >= 0:
			r.warn("annotation %s: has no effect on a pod", name)
		case inIstiosName(name):
			r.warn("annotation %s: unknown, has no effect%s", name, sameButCase(name, known))
		}
	}
	if pod.Labels[label.IoIstioDataplaneMode.Name] == "ambient" {
		r.warn("label %s=ambient: known, but has no effect in this version", label.IoIstioDataplaneMode.Name)
	}
}

// inIstiosName reports whether the name is in istio.io or a part of it.
func inIstiosName(name string) bool {
	domain, _, ok := strings.Cut(name, "/")
	return ok && (domain == "istio.io" || (strings.HasSuffix(domain, ".istio.io") && !strings.HasPrefix(domain, "internal.")))
}

func sameButCase(name string, known []string) string {
	for _, k := range known {
		if strings.EqualFold(k, name) {
			return "; did you mean " + k + "?"
		}
	}
	return ""
}
