package install

import (
	"context"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"podseal.io/podseal/internal/settings"
	"podseal.io/podseal/internal/upgrade"
)

// autoUpgrade says of what asks to be rolled to the proxy of now why it isn't.
func (c *Checker) autoUpgrade(ctx context.Context) *finding {
	s, err := c.settings(ctx)
	if err != nil {
		return cannotLook(err)
	}
	namespaces := &corev1.NamespaceList{}
	if err := c.Client.List(ctx, namespaces, client.MatchingLabels{upgrade.Label: "true"}); err != nil {
		return cannotLook(err)
	}
	asking := map[string]bool{}
	var who []string
	for _, ns := range namespaces.Items {
		asking[ns.Name] = true
		who = append(who, "namespace "+ns.Name)
	}
	in, own, err := c.upgradeInput(ctx, asking)
	if err != nil {
		return cannotLook(err)
	}
	if !s.AutoUpgrade {
		if who = append(who, own...); len(who) > 0 {
			return warned("annotate ModuleConfig istio with "+settings.AnnotationAutoUpgrade+"=true, which lets the control plane change workloads; or restart yourself those that this command names after an upgrade",
				"label %s has no effect, as ModuleConfig istio doesn't allow it: %s", upgrade.Label, some(who))
		}
		return nil
	}
	var behind []string
	for _, step := range upgrade.Plan(in) {
		if step.What == upgrade.Never || step.What == upgrade.Wait {
			behind = append(behind, step.Workload.String()+" ("+step.Why+")")
		}
	}
	if len(behind) > 0 {
		return warned("those that come later are rolled by and by; the rest is yours: kubectl -n NAMESPACE rollout restart, or delete the pods", "%s not rolled to the proxy of now: %s", countOf(len(behind), "workload is", "workloads are"), some(behind))
	}
	return nil
}

// upgradeInput is what a plan is made by; own are the workloads with a label of their
// own.
func (c *Checker) upgradeInput(ctx context.Context, asking map[string]bool) (in upgrade.Input, own []string, err error) {
	if in.Image, err = c.proxyImage(ctx); err != nil {
		return in, nil, err
	}
	pods, err := injectedPods(ctx, c.Client)
	if err != nil {
		return in, nil, err
	}
	for i := range pods {
		in.Pods = append(in.Pods, &pods[i])
	}
	budgets := &policyv1.PodDisruptionBudgetList{}
	deployments, sets, daemons := &appsv1.DeploymentList{}, &appsv1.StatefulSetList{}, &appsv1.DaemonSetList{}
	for _, list := range []client.ObjectList{budgets, deployments, sets, daemons} {
		if err := c.Client.List(ctx, list); err != nil {
			return in, nil, err
		}
	}
	in.Budgets = budgets.Items
	take := func(labels map[string]string, w upgrade.Workload) {
		if labels[upgrade.Label] == "true" {
			own = append(own, w.String())
		} else if !asking[w.Namespace] {
			return
		}
		in.Workloads = append(in.Workloads, w)
	}
	for i := range deployments.Items {
		take(deployments.Items[i].Labels, upgrade.OfDeployment(&deployments.Items[i]))
	}
	for i := range sets.Items {
		take(sets.Items[i].Labels, upgrade.OfStatefulSet(&sets.Items[i]))
	}
	for i := range daemons.Items {
		take(daemons.Items[i].Labels, upgrade.OfDaemonSet(&daemons.Items[i]))
	}
	return in, own, nil
}
