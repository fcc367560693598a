package inject

import (
	"strings"

	"istio.io/api/annotation"
	corev1 "k8s.io/api/core/v1"

	"podseal.io/podseal/internal/settings"
)

// loopbackAnnotation tells the CNI plugin what proxyMetadata says to the init
// container (loopbackEnv).
const loopbackAnnotation = "podseal.io/outbound-ipv4-loopback-cidr"

// byInit and byPlugin say who captures the pod; neither with interceptionMode NONE.
func (in *injection) byInit() bool   { return in.capture && !in.Settings.CNIPlugin }
func (in *injection) byPlugin() bool { return in.capture && in.Settings.CNIPlugin }

// validationContainer proves that the plugin has captured the pod, before anything of
// the user's runs (contract 5.14).
func (in *injection) validationContainer() corev1.Container {
	args := append(in.captureArgs(), "--run-validation", "--skip-rule-apply")
	return corev1.Container{
		Name:            ValidationContainer,
		Image:           in.image,
		ImagePullPolicy: in.Params.ImagePullPolicy,
		Args:            args,
		Resources:       *in.resources.DeepCopy(),
		SecurityContext: restricted(settings.ProxyUID),
	}
}

// tellPlugin writes into annotations what the init container would have had as
// arguments: the plugin reads nothing else (contract 5.51).
func (in *injection) tellPlugin(a map[string]string) {
	for _, t := range []struct {
		name   *annotation.Instance
		values []string
		always bool // as the plugin would otherwise take its default
	}{
		{&annotation.SidecarTrafficIncludeOutboundIPRanges, in.traffic.includeRanges, true},
		{&annotation.SidecarTrafficExcludeOutboundIPRanges, in.traffic.excludeRanges, false},
		{&annotation.SidecarTrafficIncludeInboundPorts, in.traffic.includeInboundPorts, true},
		{&annotation.SidecarTrafficExcludeInboundPorts, in.traffic.excludeInboundPorts, false},
		{&annotation.SidecarTrafficIncludeOutboundPorts, in.traffic.includeOutboundPorts, false},
		{&annotation.SidecarTrafficExcludeOutboundPorts, in.traffic.excludeOutboundPorts, false},
	} {
		if t.always || len(t.values) > 0 {
			a[t.name.Name] = strings.Join(t.values, ",")
		}
	}
	if v, set := in.metadata[loopbackEnv]; set {
		a[loopbackAnnotation] = v
	}
}
