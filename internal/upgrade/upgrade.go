// Package upgrade says which workloads are to be rolled so that their pods get the
// proxy of now, which have to wait, and why. It is pure: whoever asks has looked at
// the cluster, and does what comes of it.
//
//	workload with the label, or in a namespace with it  ->  Plan  ->  Roll | Running | Wait | Never
package upgrade

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const (
	// Label on a namespace or a workload, with the value "true", asks for it.
	Label = "istio.deckhouse.io/auto-upgrade"
	// Annotation of a pod template says for which version of the proxy the workload
	// was rolled: a new value is what rolls it.
	Annotation = "istio.deckhouse.io/full-version"

	proxyContainer  = "istio-proxy"
	imageAnnotation = "sidecar.istio.io/proxyImage"
	imageAuto       = "auto"
)

// AtOnce is how many workloads of the mesh may be on their way at the same time. In a
// namespace it is one.
const AtOnce = 3

// Version is what the annotation says of a proxy's image: its tag, else all of it.
func Version(image string) string {
	if i := strings.LastIndex(image, ":"); i >= 0 && !strings.Contains(image[i:], "/") && !strings.Contains(image, "@") {
		return image[i+1:]
	}
	return image
}

// Workload is a Deployment, StatefulSet or DaemonSet, as far as it matters here.
type Workload struct {
	Kind, Namespace, Name string
	ResourceVersion       string // of the object that was read
	UID                   types.UID
	selector              *metav1.LabelSelector
	template              *corev1.PodTemplateSpec
	never                 string // why it can't be rolled by its template
	moving                string // what of a rollout is still to come, "" for nothing
	takes                 int    // how many of its pods a rollout takes away at once
}

func (w *Workload) String() string {
	return strings.ToLower(w.Kind) + " " + w.Namespace + "/" + w.Name
}

// Still reports whether no rollout of it is under way.
func (w *Workload) Still() bool { return w.moving == "" }

// OfDeployment reads a Deployment.
func OfDeployment(d *appsv1.Deployment) Workload {
	w := Workload{Kind: "Deployment", Namespace: d.Namespace, Name: d.Name, ResourceVersion: d.ResourceVersion, UID: d.UID, selector: d.Spec.Selector, template: &d.Spec.Template}
	want, s := replicas(d.Spec.Replicas), &d.Status
	switch {
	case d.Spec.Paused:
		w.never = "it is paused"
	case s.ObservedGeneration < d.Generation:
		w.moving = "a change of it has not been seen by its controller"
	case s.UpdatedReplicas < want, s.Replicas > s.UpdatedReplicas, s.AvailableReplicas < want:
		w.moving = fmt.Sprintf("%d of %d pods are updated, %d available", s.UpdatedReplicas, want, s.AvailableReplicas)
	}
	w.takes = int(want)
	if r := d.Spec.Strategy.RollingUpdate; d.Spec.Strategy.Type != appsv1.RecreateDeploymentStrategyType {
		w.takes = scaled(nil, int(want))
		if r != nil && r.MaxUnavailable != nil {
			w.takes = scaled(r.MaxUnavailable, int(want))
		}
	}
	return w
}

// OfStatefulSet reads a StatefulSet.
func OfStatefulSet(s *appsv1.StatefulSet) Workload {
	w := Workload{Kind: "StatefulSet", Namespace: s.Namespace, Name: s.Name, ResourceVersion: s.ResourceVersion, UID: s.UID, selector: s.Spec.Selector, template: &s.Spec.Template, takes: 1}
	want, update := replicas(s.Spec.Replicas), s.Spec.UpdateStrategy
	switch {
	case update.Type == appsv1.OnDeleteStatefulSetStrategyType:
		w.never = "its updateStrategy is OnDelete"
	case update.RollingUpdate != nil && update.RollingUpdate.Partition != nil && *update.RollingUpdate.Partition > 0:
		w.never = "its updateStrategy has a partition"
	case s.Status.ObservedGeneration < s.Generation:
		w.moving = "a change of it has not been seen by its controller"
	case s.Status.UpdateRevision != s.Status.CurrentRevision, s.Status.AvailableReplicas < want:
		w.moving = fmt.Sprintf("%d of %d pods are updated, %d available", s.Status.UpdatedReplicas, want, s.Status.AvailableReplicas)
	}
	return w
}

// OfDaemonSet reads a DaemonSet.
func OfDaemonSet(d *appsv1.DaemonSet) Workload {
	w := Workload{Kind: "DaemonSet", Namespace: d.Namespace, Name: d.Name, ResourceVersion: d.ResourceVersion, UID: d.UID, selector: d.Spec.Selector, template: &d.Spec.Template, takes: 1}
	want, s := int(d.Status.DesiredNumberScheduled), &d.Status
	switch {
	case d.Spec.UpdateStrategy.Type == appsv1.OnDeleteDaemonSetStrategyType:
		w.never = "its updateStrategy is OnDelete"
	case s.ObservedGeneration < d.Generation:
		w.moving = "a change of it has not been seen by its controller"
	case int(s.UpdatedNumberScheduled) < want, int(s.NumberAvailable) < want:
		w.moving = fmt.Sprintf("%d of %d pods are updated, %d available", s.UpdatedNumberScheduled, want, s.NumberAvailable)
	}
	if r := d.Spec.UpdateStrategy.RollingUpdate; r != nil && r.MaxUnavailable != nil {
		w.takes = max(1, scaled(r.MaxUnavailable, want))
	}
	return w
}

func replicas(n *int32) int32 {
	if n == nil {
		return 1
	}
	return *n
}

// scaled is maxUnavailable in pods; nil is Kubernetes' default of a quarter.
func scaled(v *intstr.IntOrString, of int) int {
	if v == nil {
		v = new(intstr.FromString("25%"))
	}
	n, err := intstr.GetScaledValueFromIntOrPercent(v, of, false)
	if err != nil {
		return of // which the API server would not have taken
	}
	return n
}

// owns reports whether a pod of its namespace is of this workload. A Deployment's pods are made by its
// ReplicaSets, which are named after it and the hash of the template.
func (w *Workload) owns(p *corev1.Pod) bool {
	owner := metav1.GetControllerOf(p)
	if owner == nil {
		return false
	}
	if w.Kind == "Deployment" {
		return owner.Kind == "ReplicaSet" && owner.Name == w.Name+"-"+p.Labels["pod-template-hash"] && matches(w.selector, p.Labels)
	}
	return owner.UID == w.UID
}

// ownImage reports whether the template chooses the proxy's image itself.
func (w *Workload) ownImage() bool {
	return w.template.Annotations[imageAnnotation] != "" || slices.ContainsFunc(slices.Concat(w.template.Spec.InitContainers, w.template.Spec.Containers), func(c corev1.Container) bool {
		return c.Name == proxyContainer && c.Image != imageAuto && c.Image != ""
	})
}

// matches reports whether a selector selects the labels; one that can't be read, or is
// absent, selects nothing.
func matches(s *metav1.LabelSelector, of map[string]string) bool {
	selector, err := metav1.LabelSelectorAsSelector(s)
	return err == nil && selector.Matches(labels.Set(of))
}

// Image is that of a pod's proxy, "" if it has none.
func Image(p *corev1.Pod) string {
	for _, all := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range all {
			if all[i].Name == proxyContainer {
				return all[i].Image
			}
		}
	}
	return ""
}

// Old reports whether a pod, which isn't ending, has another proxy than that image.
func Old(p *corev1.Pod, image string) bool {
	have := Image(p)
	return have != "" && have != image && p.DeletionTimestamp == nil && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed
}

// What is to be done with a workload.
type What string

// A workload without old pods has no step.
const (
	Roll    What = "roll"    // now
	Running What = "running" // it is on its way
	Wait    What = "wait"    // later
	Never   What = "never"   // it has to be done by hand
)

// Step is what is to be done with one workload.
type Step struct {
	Workload *Workload
	What     What
	Why      string // a clause, for people
	Old      int    // how many of its pods have another proxy
}

// Input is what Plan judges by.
type Input struct {
	Image     string // of the proxy that new pods get
	Workloads []Workload
	Pods      []*corev1.Pod // of the namespaces of the workloads
	Budgets   []policyv1.PodDisruptionBudget
}

// Plan says what is to be done with each workload that has pods with another proxy, or
// is on its way to the present one; by namespace and name. No workload is rolled twice
// for one version, one at a time in a namespace, AtOnce in the mesh.
func Plan(in Input) []Step {
	version := Version(in.Image)
	var steps []Step
	busy, running := map[string]string{}, 0
	pods := map[string][]*corev1.Pod{}
	for _, p := range in.Pods {
		if Old(p, in.Image) {
			pods[p.Namespace] = append(pods[p.Namespace], p)
		}
	}
	for i := range in.Workloads {
		w := &in.Workloads[i]
		s := Step{Workload: w}
		for _, p := range pods[w.Namespace] {
			if w.owns(p) {
				s.Old++
			}
		}
		begun := w.template.Annotations[Annotation] == version
		switch {
		case begun && w.moving != "" && w.never == "":
			s.What, s.Why = Running, w.moving
			busy[w.Namespace] = w.String()
			running++
		case s.Old == 0:
			continue
		case w.ownImage():
			s.What, s.Why = Never, "it chooses its proxy's image itself"
		case begun:
			s.What, s.Why = Never, "it was rolled for this version, and its pods have another proxy all the same"
		case w.never != "":
			s.What, s.Why = Never, w.never
		case w.moving != "":
			s.What, s.Why = Wait, "another rollout of it is not complete: "+w.moving
		default:
			s.What, s.Why = Roll, fmt.Sprintf("%d of its pods have an older proxy", s.Old)
			if name, allowed, ok := tightest(in.Budgets, w); ok && allowed < w.takes {
				s.What, s.Why = Wait, fmt.Sprintf("PodDisruptionBudget %s allows %d of its pods to be away, a rollout takes %d", name, allowed, w.takes)
			}
		}
		steps = append(steps, s)
	}
	slices.SortFunc(steps, func(a, b Step) int {
		return cmp.Or(cmp.Compare(a.Workload.Namespace, b.Workload.Namespace), cmp.Compare(a.Workload.Name, b.Workload.Name), cmp.Compare(a.Workload.Kind, b.Workload.Kind))
	})
	for i := range steps {
		s := &steps[i]
		if s.What != Roll {
			continue
		}
		switch other := busy[s.Workload.Namespace]; {
		case other != "":
			s.What, s.Why = Wait, other+" comes first: one at a time in a namespace"
		case running >= AtOnce:
			s.What, s.Why = Wait, fmt.Sprintf("%d others come first", running)
		default:
			busy[s.Workload.Namespace] = s.Workload.String()
			running++
		}
	}
	return steps
}

// tightest is the budget that allows the fewest of the workload's pods to be away.
func tightest(budgets []policyv1.PodDisruptionBudget, w *Workload) (name string, allowed int, ok bool) {
	for i := range budgets {
		b := &budgets[i]
		if b.Namespace != w.Namespace || !matches(b.Spec.Selector, w.template.Labels) {
			continue
		}
		if n := int(b.Status.DisruptionsAllowed); !ok || n < allowed {
			name, allowed, ok = b.Name, n, true
		}
	}
	return name, allowed, ok
}
