package controlplane

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"podseal.io/podseal/internal/settings"
	"podseal.io/podseal/internal/upgrade"
)

// upgradeEvery is how often it is looked which workloads are to be rolled: at most
// upgrade.AtOnce begin each time.
const upgradeEvery = 15 * time.Second

// upgrader rolls the workloads that ask for it when their pods have an older proxy
// than new pods get: by an annotation of their template, so it is their own rollout,
// with their own strategy.
type upgrader struct {
	client    client.Client // reads pods and namespaces from the cache
	live      client.Reader
	settings  func() (settings.Settings, error)
	namespace string // of the control plane
	image     string
	events    events.EventRecorder
	log       *slog.Logger
	kept      map[string]unrolled // workloads that aren't rolled, and why
}

// unrolled is why a workload isn't rolled, and how often in a row that was found: it is
// said the second time, as pods and workloads are not read at the same instant.
type unrolled struct {
	why   string
	times int
}

// Run works until the context ends.
func (u *upgrader) Run(ctx context.Context) error {
	for sleep(ctx, upgradeEvery) {
		if err := u.step(ctx); err != nil && ctx.Err() == nil {
			u.log.Warn("workloads not rolled to the proxy of now", slog.String("error", err.Error()))
		}
	}
	return nil
}

func (u *upgrader) step(ctx context.Context) error {
	if s, err := u.settings(); err != nil || !s.AutoUpgrade {
		return nil // it is off, or not known yet
	}
	var pods corev1.PodList
	if err := u.client.List(ctx, &pods, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	in := upgrade.Input{Image: u.image}
	in.Pods = old(pods.Items, u.image)
	if len(in.Pods) == 0 {
		return nil
	}
	ready, err := u.ready(ctx)
	if err != nil || !ready {
		return err
	}
	if in.Workloads, err = u.workloads(ctx, in.Pods); err != nil {
		return err
	}
	namespaces := map[string]bool{}
	for i := range in.Workloads {
		namespaces[in.Workloads[i].Namespace] = true
	}
	for _, ns := range slices.Sorted(maps.Keys(namespaces)) {
		var list policyv1.PodDisruptionBudgetList
		if err := u.live.List(ctx, &list, client.InNamespace(ns)); err != nil {
			return fmt.Errorf("list the PodDisruptionBudgets of %s: %w", ns, err)
		}
		in.Budgets = append(in.Budgets, list.Items...)
	}
	return u.follow(ctx, upgrade.Plan(in))
}

// old are the pods with another proxy than the image.
func old(pods []corev1.Pod, image string) (out []*corev1.Pod) {
	for i := range pods {
		if upgrade.Old(&pods[i], image) {
			out = append(out, &pods[i])
		}
	}
	return out
}

// ready reports whether every replica of the control plane is of this version: an older
// one would give new pods the older proxy.
func (u *upgrader) ready(ctx context.Context) (bool, error) {
	d := &appsv1.Deployment{}
	if err := u.live.Get(ctx, types.NamespacedName{Namespace: u.namespace, Name: settings.ServiceName}, d); err != nil {
		return false, fmt.Errorf("look at the control plane: %w", err)
	}
	w := upgrade.OfDeployment(d)
	return w.Still(), nil
}

// workloads are those that ask to be rolled: by a label of their own, or of their
// namespace if there are old pods in it.
func (u *upgrader) workloads(ctx context.Context, pods []*corev1.Pod) ([]upgrade.Workload, error) {
	all, err := u.list(ctx, client.MatchingLabels{upgrade.Label: "true"})
	if err != nil {
		return nil, err
	}
	with := map[string]bool{}
	for _, p := range pods {
		with[p.Namespace] = true
	}
	for _, name := range slices.Sorted(maps.Keys(with)) {
		ns := &corev1.Namespace{}
		if err := u.client.Get(ctx, types.NamespacedName{Name: name}, ns); client.IgnoreNotFound(err) != nil {
			return nil, fmt.Errorf("read namespace %s: %w", name, err)
		}
		if ns.Labels[upgrade.Label] != "true" {
			continue
		}
		more, err := u.list(ctx, client.InNamespace(name))
		if err != nil {
			return nil, err
		}
		for _, w := range more {
			if !slices.ContainsFunc(all, func(have upgrade.Workload) bool { return have.String() == w.String() }) {
				all = append(all, w)
			}
		}
	}
	return all, nil
}

func (u *upgrader) list(ctx context.Context, opts ...client.ListOption) (out []upgrade.Workload, err error) {
	var deployments appsv1.DeploymentList
	var sets appsv1.StatefulSetList
	var daemons appsv1.DaemonSetList
	for _, list := range []client.ObjectList{&deployments, &sets, &daemons} {
		if err := u.live.List(ctx, list, opts...); err != nil {
			return nil, fmt.Errorf("list workloads: %w", err)
		}
	}
	for i := range deployments.Items {
		out = append(out, upgrade.OfDeployment(&deployments.Items[i]))
	}
	for i := range sets.Items {
		out = append(out, upgrade.OfStatefulSet(&sets.Items[i]))
	}
	for i := range daemons.Items {
		out = append(out, upgrade.OfDaemonSet(&daemons.Items[i]))
	}
	return out, nil
}

// follow does what is planned, and says of the rest why not, once.
func (u *upgrader) follow(ctx context.Context, steps []upgrade.Step) error {
	before := u.kept
	u.kept = map[string]unrolled{}
	for i := range steps {
		s := &steps[i]
		name := s.Workload.String()
		switch s.What {
		case upgrade.Roll:
			if err := u.roll(ctx, s); err != nil {
				return err
			}
		case upgrade.Never:
			k := unrolled{s.Why, 1}
			if last := before[name]; last.why == s.Why {
				k.times = last.times + 1
			}
			u.kept[name] = k
			if k.times == 2 {
				u.log.Warn("workload keeps an older proxy", slog.String("workload", name), slog.String("reason", s.Why))
				u.tell(s, corev1.EventTypeWarning, "ProxyNotUpgraded", "its pods have an older proxy, and it is not rolled: "+s.Why)
			}
		default:
			u.log.Debug("workload waits", slog.String("workload", name), slog.String("reason", s.Why))
		}
	}
	return nil
}

// roll changes the template of a workload, if nobody has changed the workload since
// it was looked at.
func (u *upgrader) roll(ctx context.Context, s *upgrade.Step) error {
	obj := objectOf(s.Workload)
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": s.Workload.ResourceVersion},
		"spec":     map[string]any{"template": map[string]any{"metadata": map[string]any{"annotations": map[string]string{upgrade.Annotation: upgrade.Version(u.image)}}}},
	})
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	err = u.client.Patch(ctx, obj, client.RawPatch(types.MergePatchType, patch), fieldOwner)
	switch {
	case apierrors.IsConflict(err), apierrors.IsNotFound(err): // it is looked at again
		return nil
	case err != nil:
		return fmt.Errorf("roll %s: %w", s.Workload, err)
	}
	u.log.Info("workload rolled to the proxy of now", slog.String("workload", s.Workload.String()), slog.String("proxy", u.image))
	u.tell(s, corev1.EventTypeNormal, "ProxyUpgrade", fmt.Sprintf("rolled, so that its pods get the proxy %s: %s", u.image, s.Why))
	return nil
}

// objectOf names a workload to the API server.
func objectOf(w *upgrade.Workload) *unstructured.Unstructured {
	obj := &unstructured.Unstructured{}
	obj.SetAPIVersion(appsv1.SchemeGroupVersion.String())
	obj.SetKind(w.Kind)
	obj.SetNamespace(w.Namespace)
	obj.SetName(w.Name)
	obj.SetUID(w.UID)
	return obj
}

func (u *upgrader) tell(s *upgrade.Step, kind, reason, note string) {
	u.events.Eventf(objectOf(s.Workload), nil, kind, reason, "Upgrade", "%s", truncate(note))
}
