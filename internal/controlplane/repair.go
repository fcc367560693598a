package controlplane

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"podseal.io/podseal/internal/inject"
	"podseal.io/podseal/internal/settings"
)

// exitUncaptured is with what a proxy ends, or what looks before it, when its pod is
// not captured (contract 5.14).
const exitUncaptured = 126

// What the repair may do: a look every repairEvery, and repairAtOnce pods at most each
// time. A workload whose pods are held again and again, since its node doesn't capture
// at all, waits twice as long each time, up to repairLongest.
const (
	repairEvery   = 5 * time.Second
	repairAtOnce  = 10
	repairAgain   = 10 * time.Second
	repairLongest = 10 * time.Minute
)

// agentLabel and agentName mark the pods of the CNI plugin's agent.
const (
	agentLabel = "k8s-app"
	agentName  = "istio-cni-node"
)

// repairer deletes pods that are held since the CNI plugin was not on their node when
// they were made there, once it is: what made them makes them anew (contract 5.52).
// Nothing runs in them, so nothing is lost.
type repairer struct {
	client    client.Client // reads from the cache
	settings  func() (settings.Settings, error)
	namespace string // of the agent
	events    events.EventRecorder
	now       func() time.Time
	log       *slog.Logger
	tried     map[types.UID]attempt // by what makes the pods; forgotten after a while
}

// attempt is when pods of a workload were deleted, and how often in a row those that
// came in their place were held again.
type attempt struct {
	at    time.Time
	times int
}

// Run works until the context ends.
func (r *repairer) Run(ctx context.Context) error {
	for sleep(ctx, repairEvery) {
		if err := r.step(ctx); err != nil && ctx.Err() == nil {
			r.log.Warn("held pods not repaired", slog.String("error", err.Error()))
		}
	}
	return nil
}

func (r *repairer) step(ctx context.Context) error {
	if s, err := r.settings(); err != nil || !s.CNIPlugin {
		return nil // nobody is to capture them, or it is not known yet
	}
	var pods corev1.PodList
	if err := r.client.List(ctx, &pods, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	nodes := r.captureOn(pods.Items)
	for owner, a := range r.tried {
		if r.now().Sub(a.at) > 2*repairLongest {
			delete(r.tried, owner)
		}
	}
	deleted := 0
	for i := range pods.Items {
		p := &pods.Items[i]
		owner := metav1.GetControllerOf(p)
		if owner == nil || !nodes[p.Spec.NodeName] || !held(p) || !r.due(p, owner.UID) {
			continue
		}
		if deleted++; deleted > repairAtOnce {
			return nil
		}
		if err := r.mend(ctx, p, owner); err != nil {
			return err
		}
	}
	return nil
}

// captureOn are the nodes on which the plugin is: its agent is ready.
func (r *repairer) captureOn(pods []corev1.Pod) map[string]bool {
	nodes := map[string]bool{}
	for i := range pods {
		p := &pods[i]
		if p.Namespace == r.namespace && p.Labels[agentLabel] == agentName && p.DeletionTimestamp == nil && ready(p) {
			nodes[p.Spec.NodeName] = true
		}
	}
	return nodes
}

func ready(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// due reports whether a pod of this maker may be deleted now: one that was made in the
// place of another has to wait.
func (r *repairer) due(p *corev1.Pod, owner types.UID) bool {
	a, tried := r.tried[owner]
	if !tried || !a.replaced(p) {
		return true
	}
	wait := min(repairAgain<<min(a.times-1, 10), repairLongest)
	return r.now().Sub(a.at) >= wait
}

// replaced reports whether a pod was made since the attempt.
func (a attempt) replaced(p *corev1.Pod) bool {
	return !p.CreationTimestamp.Time.Before(a.at.Truncate(time.Second)) // the API server counts seconds
}

func (r *repairer) mend(ctx context.Context, p *corev1.Pod, owner *metav1.OwnerReference) error {
	if a, tried := r.tried[owner.UID]; !tried || a.replaced(p) {
		r.tried[owner.UID] = attempt{r.now(), a.times + 1}
	}
	err := r.client.Delete(ctx, p, client.Preconditions{UID: &p.UID, ResourceVersion: &p.ResourceVersion})
	switch {
	case client.IgnoreNotFound(err) == nil:
	case apierrors.IsConflict(err): // it has moved on: it is looked at again
		return nil
	default:
		return fmt.Errorf("delete pod %s/%s: %w", p.Namespace, p.Name, err)
	}
	r.log.Info("uncaptured pod deleted", slog.String("namespace", p.Namespace), slog.String("pod", p.Name), slog.String("node", p.Spec.NodeName), slog.String("owner", owner.Kind+" "+owner.Name))
	r.events.Eventf(p, nil, corev1.EventTypeWarning, "UncapturedPodDeleted", "Repair", "%s",
		truncate(fmt.Sprintf("the CNI plugin was not on node %s when the pod was made there, so its traffic was not captured and its proxy held it; it is now, and %s %s makes the pod anew", p.Spec.NodeName, owner.Kind, owner.Name)))
	return nil
}

// held reports whether a pod waits for ever, since it is not captured.
func held(p *corev1.Pod) bool {
	if p.DeletionTimestamp != nil || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return false
	}
	for _, all := range [][]corev1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses} {
		for i := range all {
			if uncaptured(&all[i]) {
				return true
			}
		}
	}
	return false
}

// uncaptured reports whether a container has found that its pod is not captured.
func uncaptured(s *corev1.ContainerStatus) bool {
	ended := func(t *corev1.ContainerStateTerminated) bool { return t != nil && t.ExitCode == exitUncaptured }
	return (s.Name == inject.ProxyContainer || s.Name == inject.ValidationContainer) && s.State.Running == nil && (ended(s.State.Terminated) || ended(s.LastTerminationState.Terminated))
}
