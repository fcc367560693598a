package analysis

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"podseal.io/podseal/internal/discovery"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/workload"
)

// policy finds what is wrong with one: by its own words, by what became of it, and
// by what it meets.
func (a *analyzer) policy(obj *unstructured.Unstructured) {
	faults, warnings := a.validate(obj)
	for _, f := range faults {
		a.add(obj, Invalid, Error, "%s", f)
	}
	for _, w := range warnings {
		a.add(obj, SchemaWarning, Warning, "%s", w)
	}
	if len(faults) > 0 {
		return
	}
	a.verdict(obj)
	a.rejected(obj)
	selected := a.selected(obj)
	switch obj.GetKind() {
	case discovery.KindPeerAuthentication:
		a.ports(obj, selected, portLevels(obj), "spec.portLevelMtls")
		a.weaker(obj)
	case discovery.KindAuthorizationPolicy:
		a.ports(obj, selected, operationPorts(obj), "to.operation.ports")
	case discovery.KindDestinationRule:
		a.conflict(obj)
	}
}

func (a *analyzer) validate(obj *unstructured.Unstructured) (faults []discovery.Fault, warnings []string) {
	switch obj.GetKind() {
	case discovery.KindPeerAuthentication:
		return discovery.ValidatePeerAuthentication(obj, a.RootNamespace)
	case discovery.KindAuthorizationPolicy:
		return discovery.ValidateAuthorizationPolicy(obj, a.RootNamespace)
	case discovery.KindRequestAuthentication:
		return discovery.ValidateRequestAuthentication(obj, a.RootNamespace)
	case discovery.KindDestinationRule:
		return discovery.ValidateDestinationRule(obj, a.Settings.ClusterDomain)
	default:
		return discovery.ValidateServiceEntry(obj, a.Settings.ClusterDomain)
	}
}

// verdict is what discovery says of it among all the others.
func (a *analyzer) verdict(obj *unstructured.Unstructured) {
	v, judged := a.verdicts[discovery.Key{Kind: obj.GetKind(), Namespace: obj.GetNamespace(), Name: obj.GetName()}]
	labels := selectorOf(obj)
	switch {
	case !judged:
	case v.Reason == discovery.ReasonShadowed:
		a.add(obj, NoEffect, Error, "%s", v.Message)
	case v.Reason == discovery.ReasonNoEffect && (!a.Partial || obj.GetKind() != discovery.KindDestinationRule):
		a.add(obj, NoEffect, Warning, "%s", v.Message)
	case v.Reason == discovery.ReasonPartly:
		a.add(obj, NotCompared, Warning, "%s", v.Message)
	case v.Accepted && v.Workloads == 0 && len(labels) > 0 && !a.Partial:
		a.add(obj, SelectsNothing, Warning, "no running pod of the mesh has the labels %s", text(labels))
	}
}

// rejected is what its own status says of the proxies.
func (a *analyzer) rejected(obj *unstructured.Unstructured) {
	conditions, _, err := unstructured.NestedSlice(obj.Object, "status", "conditions")
	if err != nil {
		return
	}
	for _, c := range conditions {
		m, _ := c.(map[string]any)
		if m["type"] == "Enforced" && m["reason"] == "Rejected" {
			a.add(obj, NotEnforced, Error, "%v", m["message"])
		}
	}
}

func selectorOf(obj *unstructured.Unstructured) map[string]string {
	field := []string{"spec", "selector", "matchLabels"}
	if obj.GetKind() == discovery.KindDestinationRule {
		field[1] = "workloadSelector"
	}
	labels, _, err := unstructured.NestedStringMap(obj.Object, field...)
	if err != nil {
		return nil
	}
	return labels
}

func text(labels map[string]string) string {
	var out []string
	for k, v := range labels {
		out = append(out, k+"="+v)
	}
	slices.Sort(out)
	return strings.Join(out, ",")
}

// selected are the pods of the mesh that a policy is for.
func (a *analyzer) selected(obj *unstructured.Unstructured) []*corev1.Pod {
	var out []*corev1.Pod
	labels := selectorOf(obj)
	for _, pod := range a.Pods {
		if pod.Namespace != obj.GetNamespace() && obj.GetNamespace() != a.RootNamespace {
			continue
		}
		matches := discovery.InMesh(pod)
		for k, v := range labels {
			matches = matches && pod.Labels[k] == v
		}
		if matches {
			out = append(out, pod)
		}
	}
	return out
}

func portLevels(obj *unstructured.Unstructured) []uint16 {
	levels, _, err := unstructured.NestedMap(obj.Object, "spec", "portLevelMtls")
	if err != nil {
		return nil
	}
	var out []uint16
	for k := range levels {
		if n, err := strconv.ParseUint(k, 10, 16); err == nil {
			out = append(out, uint16(n))
		}
	}
	slices.Sort(out)
	return out
}

// operationPorts are the ports that rules of an AuthorizationPolicy name.
func operationPorts(obj *unstructured.Unstructured) []uint16 {
	var out []uint16
	rules, _, err := unstructured.NestedSlice(obj.Object, "spec", "rules")
	if err != nil {
		return nil
	}
	for _, r := range rules {
		rule, _ := r.(map[string]any)
		to, _ := rule["to"].([]any)
		for _, t := range to {
			ports, _, err := unstructured.NestedStringSlice(asMap(t), "operation", "ports")
			for _, text := range ports {
				if n, errPort := strconv.ParseUint(text, 10, 16); err == nil && errPort == nil && !slices.Contains(out, uint16(n)) {
					out = append(out, uint16(n))
				}
			}
		}
	}
	slices.Sort(out)
	return out
}

func asMap(v any) map[string]any {
	m, _ := v.(map[string]any)
	return m
}

// ports finds numbers that no service of the pods leads to: policies are about the
// pod's own ports (contract 1.22, 6.27).
func (a *analyzer) ports(obj *unstructured.Unstructured, pods []*corev1.Pod, named []uint16, field string) {
	if len(pods) == 0 {
		return
	}
	for _, port := range named {
		used, hint := false, ""
		for _, pod := range pods {
			used = used || slices.Contains(a.targets(pod), port) || declares(pod, port)
			if target, ok := discovery.TargetOf(pod, a.Services, port); ok && target != port {
				hint = fmt.Sprintf("; %d is the Service's port, and the pod's own is %d", port, target)
			}
		}
		if !used {
			a.add(obj, NoTargetPort, Warning, "%s: no service leads to port %d of the pods that it is for%s", field, port, hint)
		}
	}
}

func declares(pod *corev1.Pod, port uint16) bool {
	return slices.ContainsFunc(pod.Spec.Containers, func(c corev1.Container) bool {
		return slices.ContainsFunc(c.Ports, func(p corev1.ContainerPort) bool { return p.ContainerPort == int32(port) })
	})
}

// weaker finds a mode that lets in what the one above it refuses.
func (a *analyzer) weaker(obj *unstructured.Unstructured) {
	own, _, _ := unstructured.NestedString(obj.Object, "spec", "mtls", "mode") // it is valid
	level := map[string]Level{"DISABLE": Warning, "PERMISSIVE": Info}[own]
	if level == "" || obj.GetNamespace() == a.RootNamespace {
		return
	}
	above := a.modeAbove(obj)
	if above == policy.Strict {
		a.add(obj, WeakerThanSet, level, "mode %s lets in plaintext where the object above it says STRICT", own)
	}
}

// modeAbove is the mode that would hold without the object.
func (a *analyzer) modeAbove(obj *unstructured.Unstructured) policy.Mode {
	c := a.Cluster
	c.PeerAuthentications = slices.DeleteFunc(slices.Clone(c.PeerAuthentications), func(o *unstructured.Unstructured) bool {
		return (o.GetNamespace() == obj.GetNamespace() && o.GetName() == obj.GetName()) || (o.GetNamespace() == obj.GetNamespace() && len(selectorOf(o)) > 0)
	})
	return discovery.ModesOf(c, obj.GetNamespace(), nil).Default
}

// conflict finds a DestinationRule that says DISABLE towards pods that are STRICT.
func (a *analyzer) conflict(obj *unstructured.Unstructured) {
	mode, found, err := unstructured.NestedString(obj.Object, "spec", "trafficPolicy", "tls", "mode")
	if !found || err != nil || (mode != workload.TLSDisable.String() && mode != workload.TLSSimple.String()) {
		return
	}
	host := discovery.HostOf(obj, a.Settings.ClusterDomain)
	for _, svc := range a.Services {
		if !discovery.HostMatches(host, svc, a.Settings.ClusterDomain) {
			continue
		}
		for _, pod := range a.Pods {
			if pod.Namespace != svc.Namespace || !discovery.InMesh(pod) || !selects(svc.Spec.Selector, pod.Labels) {
				continue
			}
			modes := discovery.ModesOf(a.Cluster, pod.Namespace, pod.Labels)
			for i := range svc.Spec.Ports {
				if target, ok := discovery.TargetOf(pod, []*corev1.Service{svc}, uint16(svc.Spec.Ports[i].Port)); ok && modes.Port(target) == policy.Strict {
					a.add(obj, MutualTLSConflict, Error, "it says %s for %s/%s, whose port %d is STRICT: every connection is refused", mode, svc.Namespace, svc.Name, target)
				}
			}
		}
	}
}

func selects(selector, labels map[string]string) bool {
	for k, v := range selector {
		if labels[k] != v {
			return false
		}
	}
	return len(selector) > 0
}
