package install

import (
	"context"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"podseal.io/podseal/internal/settings"
)

// exitUncaptured is with what a proxy ends whose pod is not captured (contract 5.14).
const exitUncaptured = 126

// pluginEverywhere looks whether the CNI plugin is on the nodes, where it captures, and
// off them, where it doesn't.
func (c *Checker) pluginEverywhere(ctx context.Context) *finding {
	s, err := c.settings(ctx)
	if err != nil {
		return cannotLook(err)
	}
	now, err := (&Cluster{Client: c.Client}).cni(ctx)
	if err != nil {
		return cannotLook(err)
	}
	const hint = "kubectl -n d8-istio logs -l k8s-app=istio-cni-node --prefix; on nodes without it no pod of the mesh starts"
	switch {
	case now == nil && s.CNIPlugin:
		return failed("see the manager's log: kubectl -n podseal-system logs deployment/podseal-manager", "%s is not there", describe(cniDaemonSet()))
	case now == nil:
		return nil
	case cniPending(now) == "" && cniModeOf(now) == cniRemove:
		return warned("the manager removes it: kubectl -n podseal-system logs deployment/podseal-manager", "%s has done its work and is still there", describe(now))
	case cniPending(now) == "":
		return nil
	}
	text := cniPending(now)
	if nodes := c.nodesNotReady(ctx); len(nodes) > 0 {
		text += ", not on: " + some(nodes)
	}
	if platform := c.platform(ctx); platform != "" && platform != platformOf(now) {
		return failed("podseal install --set cni.platform="+platform+", for that distribution keeps its network configurations elsewhere (docs/cni.md)", "%s; the nodes are of %s", text, platform)
	}
	return failed(hint, "%s", text)
}

// platform is the distribution of the nodes, as cni.platform has it, "" for most.
func (c *Checker) platform(ctx context.Context) string {
	nodes := &corev1.NodeList{}
	if err := c.Client.List(ctx, nodes); err != nil {
		return ""
	}
	for i := range nodes.Items {
		n := &nodes.Items[i]
		switch kubelet := n.Status.NodeInfo.KubeletVersion; {
		case strings.Contains(kubelet, "+k3s") && strings.HasPrefix(n.Name, "k3d-"):
			return "k3d"
		case strings.Contains(kubelet, "+k3s"):
			return "k3s"
		case strings.Contains(kubelet, "-gke."):
			return "gke"
		case n.Labels["microk8s.io/cluster"] == "true":
			return "microk8s"
		}
	}
	return ""
}

// platformOf is the platform that the agent's directories are of, "" for none.
func platformOf(agent *unstructured.Unstructured) string {
	volumes, _, _ := unstructured.NestedSlice(agent.Object, "spec", "template", "spec", "volumes")
	for _, v := range volumes {
		m, _ := v.(map[string]any)
		path, _ := nested(m, "hostPath", "path").(string)
		switch {
		case path == "/bin":
			return "k3d"
		case strings.HasPrefix(path, "/var/lib/rancher/k3s/data"):
			return "k3s"
		case strings.HasPrefix(path, "/home/kubernetes/"):
			return "gke"
		case strings.HasPrefix(path, "/var/snap/microk8s/"):
			return "microk8s"
		}
	}
	return ""
}

// nodesNotReady names the nodes whose agent is not ready.
func (c *Checker) nodesNotReady(ctx context.Context) []string {
	pods := &corev1.PodList{}
	if err := c.Client.List(ctx, pods, client.InNamespace(settings.Namespace), client.MatchingLabels{"k8s-app": CNIDaemonSet}); err != nil {
		return nil
	}
	var nodes []string
	for _, p := range pods.Items {
		ready := slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
		})
		if !ready && p.Spec.NodeName != "" {
			nodes = append(nodes, p.Spec.NodeName)
		}
	}
	return nodes
}

// heldPods finds pods that the CNI plugin was to capture and didn't, or would not again.
func (c *Checker) heldPods(ctx context.Context) *finding {
	pods, err := injectedPods(ctx, c.Client)
	if err != nil {
		return cannotLook(err)
	}
	plugin, err := (&Cluster{Client: c.Client}).cni(ctx)
	if err != nil {
		return cannotLook(err)
	}
	var held, stranded []string
	for _, p := range pods {
		switch {
		case isHeld(&p):
			held = append(held, p.Namespace+"/"+p.Name)
		case reliesOnPlugin(&p) && (plugin == nil || cniModeOf(plugin) == cniRemove):
			stranded = append(stranded, p.Namespace+"/"+p.Name)
		}
	}
	switch {
	case len(held) > 0:
		return failed("the CNI plugin was not on their node when they were made there; delete them, so that they are made anew: kubectl -n NAMESPACE delete pod NAME",
			"%s held, since their traffic is not captured: %s", countOf(len(held), "pod is", "pods are"), some(held))
	case len(stranded) > 0:
		return warned("they go on, but will not start again where they are, e.g. after a restart of their node; replace them when it suits: kubectl -n NAMESPACE rollout restart deployment",
			"%s the CNI plugin, which is not there any more: %s", countOf(len(stranded), "pod relies on", "pods rely on"), some(stranded))
	}
	return nil
}

// isHeld reports whether the pod's proxy, or what looks before it, has found that the
// pod is not captured.
func isHeld(p *corev1.Pod) bool {
	return slices.ContainsFunc(slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses), func(s corev1.ContainerStatus) bool {
		ended := func(t *corev1.ContainerStateTerminated) bool { return t != nil && t.ExitCode == exitUncaptured }
		return (s.Name == proxyContainer || s.Name == "istio-validation") && s.State.Running == nil && (ended(s.State.Terminated) || ended(s.LastTerminationState.Terminated))
	})
}

func reliesOnPlugin(p *corev1.Pod) bool {
	return slices.ContainsFunc(slices.Concat(p.Spec.InitContainers, p.Spec.Containers), func(c corev1.Container) bool {
		return c.Name == proxyContainer && slices.Contains(c.Args, "--require-capture")
	})
}
