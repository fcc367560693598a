package install

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"podseal.io/podseal/internal/settings"
)

// CNIDaemonSet keeps the CNI plugin on the nodes, or takes it off them. Its pods change
// nothing when they end, so it is never just deleted: first it is told to remove.
const CNIDaemonSet = "istio-cni-node"

// Values of cni.mode in the chart, and of cniModeEnv in the DaemonSet.
const (
	cniInstall = "install"
	cniRemove  = "remove"
	cniModeEnv = "CNI_MODE"
)

// cniPatience is how long nodes may take to remove the plugin. One that is away for
// longer keeps it, which harms nothing: it captures nobody who isn't injected for it.
const cniPatience = 2 * time.Minute

func cniDaemonSet() *unstructured.Unstructured {
	return objectNamed("apps/v1", "DaemonSet", settings.Namespace, CNIDaemonSet)
}

// cni returns the DaemonSet, nil if there is none of ours.
func (c *Cluster) cni(ctx context.Context) (*unstructured.Unstructured, error) {
	u, err := c.get(ctx, cniDaemonSet())
	if err != nil {
		return nil, fmt.Errorf("look at %s: %w", describe(cniDaemonSet()), err)
	}
	if u == nil || !isOurs(u) {
		return nil, nil
	}
	return u, nil
}

// cniModeOf is what the DaemonSet tells its pods to do.
func cniModeOf(u *unstructured.Unstructured) string {
	containers, _, _ := unstructured.NestedSlice(u.Object, "spec", "template", "spec", "containers")
	for _, c := range containers {
		m, _ := c.(map[string]any)
		env, _ := m["env"].([]any)
		for _, e := range env {
			if v, _ := e.(map[string]any); v["name"] == cniModeEnv {
				mode, _ := v["value"].(string)
				return mode
			}
		}
	}
	return ""
}

// cniPending says on how many nodes the DaemonSet has done its work, "" if on all.
func cniPending(u *unstructured.Unstructured) string {
	number := func(path ...string) int64 {
		n, _, _ := unstructured.NestedInt64(u.Object, path...)
		return n
	}
	wanted, done := number("status", "desiredNumberScheduled"), min(number("status", "updatedNumberScheduled"), number("status", "numberReady"))
	switch {
	case number("status", "observedGeneration") < u.GetGeneration():
		return "change not seen by the DaemonSet controller"
	case done < wanted && cniModeOf(u) == cniRemove:
		return fmt.Sprintf("the CNI plugin is removed from %d of %d nodes", done, wanted)
	case done < wanted:
		return fmt.Sprintf("the CNI plugin is on %d of %d nodes", done, wanted)
	}
	return ""
}

// planCNI decides what the DaemonSet is to do, "" for not to be there. New pods rely
// on the plugin only once it is on every node: until then, and from the moment that it
// is to go, init containers capture.
func (m *Manager) planCNI(ctx context.Context, s *settings.Settings) (string, error) {
	now, err := m.cluster().cni(ctx)
	if err != nil {
		return "", err
	}
	if s.CNIPlugin {
		m.leaving = time.Time{}
		if now != nil && cniModeOf(now) == cniInstall && cniPending(now) == "" {
			return cniInstall, nil
		}
		last, err := m.lastGood(ctx)
		s.CNIPlugin = last != nil && last.CNIPlugin // a node that joins changes nothing for the others
		return cniInstall, err
	}
	if now == nil {
		return "", nil
	}
	if m.leaving.IsZero() {
		m.leaving = time.Now()
	}
	if cniModeOf(now) == cniRemove && (cniPending(now) == "" || time.Since(m.leaving) > cniPatience) {
		return "", nil
	}
	return cniRemove, nil
}

// removeCNI takes the plugin off the nodes and then the DaemonSet away; it says what is
// still waited for, "" when all is done. since is when that began.
func (c *Cluster) removeCNI(ctx context.Context, since time.Time) (string, error) {
	now, err := c.cni(ctx)
	if err != nil || now == nil {
		return "", err
	}
	name := describe(now)
	if cniModeOf(now) != cniRemove {
		patch := fmt.Sprintf(`{"spec":{"template":{"spec":{"containers":[{"name":"install-cni","env":[{"name":%q,"value":%q}]}]}}}}`, cniModeEnv, cniRemove)
		if err := c.Client.Patch(ctx, now, client.RawPatch(types.StrategicMergePatchType, []byte(patch))); err != nil {
			return "", fmt.Errorf("tell %s to remove the plugin: %w", name, err)
		}
		return name + ": the CNI plugin is to be removed from the nodes", nil
	}
	if pending := cniPending(now); pending != "" && time.Since(since) < cniPatience {
		return name + ": " + pending, nil
	}
	return "", c.Delete(ctx, []*unstructured.Unstructured{now})
}
