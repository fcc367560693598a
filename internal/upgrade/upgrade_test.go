package upgrade

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const (
	oldImage = "podseal.io/podseal-proxy:v1.0.0"
	newImage = "podseal.io/podseal-proxy:v1.1.0"
)

func meta(namespace, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(namespace + name), Generation: 1}
}

func template(name string) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": name}}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app"}}}}
}

func selector(name string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}
}

// deployment is one with n pods whose rollout is complete.
func deployment(namespace, name string, n int32) *appsv1.Deployment {
	return &appsv1.Deployment{
		ObjectMeta: meta(namespace, name),
		Spec:       appsv1.DeploymentSpec{Replicas: &n, Selector: selector(name), Template: template(name)},
		Status:     appsv1.DeploymentStatus{ObservedGeneration: 1, Replicas: n, UpdatedReplicas: n, AvailableReplicas: n},
	}
}

func statefulSet(namespace, name string) *appsv1.StatefulSet {
	return &appsv1.StatefulSet{
		ObjectMeta: meta(namespace, name), Spec: appsv1.StatefulSetSpec{Selector: selector(name), Template: template(name)},
		Status: appsv1.StatefulSetStatus{ObservedGeneration: 1, Replicas: 1, AvailableReplicas: 1, CurrentRevision: "a", UpdateRevision: "a"},
	}
}

func daemonSet(namespace, name string) *appsv1.DaemonSet {
	return &appsv1.DaemonSet{
		ObjectMeta: meta(namespace, name), Spec: appsv1.DaemonSetSpec{Selector: selector(name), Template: template(name)},
		Status: appsv1.DaemonSetStatus{ObservedGeneration: 1, DesiredNumberScheduled: 1, UpdatedNumberScheduled: 1, NumberAvailable: 1},
	}
}

// pod is one of a workload; of a Deployment by way of a ReplicaSet.
func pod(kind, namespace, name, image string) *corev1.Pod {
	owner := metav1.OwnerReference{Kind: kind, Name: name, UID: types.UID(namespace + name), Controller: new(true)}
	labels := map[string]string{"app": name}
	if kind == "Deployment" {
		owner = metav1.OwnerReference{Kind: "ReplicaSet", Name: name + "-5d9f", UID: "rs", Controller: new(true)}
		labels["pod-template-hash"] = "5d9f"
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name + "-0", Labels: labels, OwnerReferences: []metav1.OwnerReference{owner}},
		Spec:       corev1.PodSpec{InitContainers: []corev1.Container{{Name: proxyContainer, Image: image}}},
	}
}

func budget(namespace, app string, allowed int32) policyv1.PodDisruptionBudget {
	return policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "pdb"}, Spec: policyv1.PodDisruptionBudgetSpec{Selector: selector(app)},
		Status: policyv1.PodDisruptionBudgetStatus{DisruptionsAllowed: allowed},
	}
}

func lines(steps []Step) []string {
	var out []string
	for _, s := range steps {
		out = append(out, fmt.Sprintf("%s: %s: %s", s.Workload, s.What, s.Why))
	}
	return out
}

// TestPlanOfOne: what becomes of one workload whose pods have an older proxy
// (contract 5.7).
func TestPlanOfOne(t *testing.T) {
	mark := func(tmpl *corev1.PodTemplateSpec) { tmpl.Annotations = map[string]string{Annotation: "v1.1.0"} }
	web := func(change func(*appsv1.Deployment)) Workload {
		d := deployment("shop", "web", 4)
		change(d)
		return OfDeployment(d)
	}
	db := func(change func(*appsv1.StatefulSet)) Workload {
		s := statefulSet("shop", "web")
		change(s)
		return OfStatefulSet(s)
	}
	log := func(change func(*appsv1.DaemonSet)) Workload {
		d := daemonSet("shop", "web")
		change(d)
		return OfDaemonSet(d)
	}
	for name, tc := range map[string]struct {
		workload Workload
		image    string
		budgets  []policyv1.PodDisruptionBudget
		want     string
	}{
		"of now":                       {web(func(*appsv1.Deployment) {}), newImage, nil, ""},
		"old":                          {web(func(*appsv1.Deployment) {}), oldImage, nil, "roll: 1 of its pods have an older proxy"},
		"old StatefulSet":              {db(func(*appsv1.StatefulSet) {}), oldImage, nil, "roll: "},
		"old DaemonSet":                {log(func(*appsv1.DaemonSet) {}), oldImage, nil, "roll: "},
		"begun":                        {web(func(d *appsv1.Deployment) { mark(&d.Spec.Template); d.Status.UpdatedReplicas = 1 }), oldImage, nil, "running: 1 of 4 pods are updated"},
		"begun, and not seen yet":      {web(func(d *appsv1.Deployment) { mark(&d.Spec.Template); d.Generation = 2 }), newImage, nil, "running: a change of it has not been seen"},
		"begun, all new, not ready":    {db(func(s *appsv1.StatefulSet) { mark(&s.Spec.Template); s.Status.AvailableReplicas = 0 }), newImage, nil, "running: "},
		"done, and old all the same":   {log(func(d *appsv1.DaemonSet) { mark(&d.Spec.Template) }), oldImage, nil, "never: it was rolled for this version"},
		"rolled for an older version":  {web(func(d *appsv1.Deployment) { d.Spec.Template.Annotations = map[string]string{Annotation: "v1.0.0"} }), oldImage, nil, "roll: "},
		"another rollout":              {web(func(d *appsv1.Deployment) { d.Status.AvailableReplicas = 3 }), oldImage, nil, "wait: another rollout of it is not complete: 4 of 4 pods are updated, 3 available"},
		"another rollout, DaemonSet":   {log(func(d *appsv1.DaemonSet) { d.Status.NumberAvailable = 0 }), oldImage, nil, "wait: another rollout"},
		"another rollout, StatefulSet": {db(func(s *appsv1.StatefulSet) { s.Status.UpdateRevision = "b" }), oldImage, nil, "wait: another rollout"},
		"paused":                       {web(func(d *appsv1.Deployment) { d.Spec.Paused = true }), oldImage, nil, "never: it is paused"},
		"OnDelete":                     {db(func(s *appsv1.StatefulSet) { s.Spec.UpdateStrategy.Type = appsv1.OnDeleteStatefulSetStrategyType }), oldImage, nil, "never: its updateStrategy is OnDelete"},
		"OnDelete DaemonSet":           {log(func(d *appsv1.DaemonSet) { d.Spec.UpdateStrategy.Type = appsv1.OnDeleteDaemonSetStrategyType }), oldImage, nil, "never: its updateStrategy is OnDelete"},
		"partition": {db(func(s *appsv1.StatefulSet) {
			s.Spec.UpdateStrategy.RollingUpdate = &appsv1.RollingUpdateStatefulSetStrategy{Partition: new(int32(1))}
		}), oldImage, nil, "never: its updateStrategy has a partition"},
		"image of its own": {web(func(d *appsv1.Deployment) { d.Spec.Template.Annotations = map[string]string{imageAnnotation: "x"} }), oldImage, nil, "never: it chooses its proxy's image itself"},
		"container of its own": {web(func(d *appsv1.Deployment) {
			d.Spec.Template.Spec.Containers[0] = corev1.Container{Name: proxyContainer, Image: "x"}
		}), oldImage, nil, "never: it chooses its proxy's image itself"},
		"container with our image": {web(func(d *appsv1.Deployment) {
			d.Spec.Template.Spec.Containers[0] = corev1.Container{Name: proxyContainer, Image: "auto"}
		}), oldImage, nil, "roll: "},
		"budget that allows a quarter":  {web(func(*appsv1.Deployment) {}), oldImage, []policyv1.PodDisruptionBudget{budget("shop", "web", 2), budget("shop", "web", 1)}, "roll: "},
		"budget that allows none":       {web(func(*appsv1.Deployment) {}), oldImage, []policyv1.PodDisruptionBudget{budget("shop", "web", 2), budget("shop", "web", 0)}, "wait: PodDisruptionBudget pdb allows 0 of its pods to be away, a rollout takes 1"},
		"budget of others":              {web(func(*appsv1.Deployment) {}), oldImage, []policyv1.PodDisruptionBudget{budget("shop", "x", 0), budget("y", "web", 0)}, "roll: "},
		"budget, but nothing goes away": {web(func(d *appsv1.Deployment) { d.Spec.Replicas = new(int32(1)) }), oldImage, []policyv1.PodDisruptionBudget{budget("shop", "web", 0)}, "roll: "},
		"budget, and all go at once":    {web(func(d *appsv1.Deployment) { d.Spec.Strategy.Type = appsv1.RecreateDeploymentStrategyType }), oldImage, []policyv1.PodDisruptionBudget{budget("shop", "web", 3)}, "wait: PodDisruptionBudget pdb allows 3 of its pods to be away, a rollout takes 4"},
		"budget, and half go at once": {web(func(d *appsv1.Deployment) {
			d.Spec.Strategy.RollingUpdate = &appsv1.RollingUpdateDeployment{MaxUnavailable: new(intstr.FromString("50%"))}
		}), oldImage, []policyv1.PodDisruptionBudget{budget("shop", "web", 1)}, "wait: PodDisruptionBudget pdb allows 1 of its pods to be away, a rollout takes 2"},
		"budget of a StatefulSet": {db(func(*appsv1.StatefulSet) {}), oldImage, []policyv1.PodDisruptionBudget{budget("shop", "web", 0)}, "wait: PodDisruptionBudget"},
	} {
		p := pod(tc.workload.Kind, "shop", "web", tc.image)
		stranger := pod(tc.workload.Kind, "shop", "other", oldImage)
		ending := pod(tc.workload.Kind, "shop", "web", oldImage)
		ending.DeletionTimestamp = new(metav1.Now())
		got := lines(Plan(Input{Image: newImage, Workloads: []Workload{tc.workload}, Pods: []*corev1.Pod{p, stranger, ending}, Budgets: tc.budgets}))
		want := tc.want
		if want != "" {
			want = tc.workload.String() + ": " + want
		}
		if text := strings.Join(got, "\n"); len(got) > 1 || (want == "") != (text == "") || !strings.HasPrefix(text, want) {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

// TestPlanOfMany: one at a time in a namespace, some in the mesh, and what doesn't get
// on stops the rest.
func TestPlanOfMany(t *testing.T) {
	in := Input{Image: newImage}
	for i := range 5 {
		for _, name := range []string{"a", "b"} {
			ns := fmt.Sprint("n", i)
			in.Workloads = append(in.Workloads, OfDeployment(deployment(ns, name, 1)))
			in.Pods = append(in.Pods, pod("Deployment", ns, name, oldImage))
		}
	}
	count := func(steps []Step, what What) (who []string) {
		for _, s := range steps {
			if s.What == what {
				who = append(who, s.Workload.Namespace+"/"+s.Workload.Name)
			}
		}
		return who
	}
	if got := count(Plan(in), Roll); !slices.Equal(got, []string{"n0/a", "n1/a", "n2/a"}) {
		t.Errorf("rolled at first: %v", got)
	}
	for i := range in.Workloads { // n0/b and n3/b are on their way
		if w := &in.Workloads[i]; w.Name == "b" && (w.Namespace == "n0" || w.Namespace == "n3") {
			w.template.Annotations, w.moving = map[string]string{Annotation: "v1.1.0"}, "0 of 1"
		}
	}
	steps := Plan(in)
	if got := count(steps, Running); !slices.Equal(got, []string{"n0/b", "n3/b"}) {
		t.Errorf("on their way: %v", got)
	}
	if got := count(steps, Roll); !slices.Equal(got, []string{"n1/a"}) {
		t.Errorf("rolled beside them: %v", got)
	}
	text := strings.Join(lines(steps), "\n")
	for _, want := range []string{"n0/a: wait: deployment n0/b comes first: one at a time in a namespace", "n2/a: wait: 3 others come first"} {
		if !strings.Contains(text, want) {
			t.Errorf("%s\nlacks %q", text, want)
		}
	}
}

func TestVersion(t *testing.T) {
	for image, want := range map[string]string{
		newImage: "v1.1.0", "registry:5000/podseal-proxy": "registry:5000/podseal-proxy", "a@sha256:0123": "a@sha256:0123", "": "", "a": "a",
	} {
		if got := Version(image); got != want {
			t.Errorf("%s: %s, want %s", image, got, want)
		}
	}
}
