package controlplane

import (
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"podseal.io/podseal/internal/inject"
	"podseal.io/podseal/internal/settings"
	"podseal.io/podseal/internal/upgrade"
)

const (
	proxyBefore = "podseal.io/podseal-proxy:v1"
	proxyNow    = "podseal.io/podseal-proxy:v2"
)

// rolledOut is a Deployment with one pod, all of it as it should be.
func rolledOut(ns, name string, labels map[string]string) *appsv1.Deployment {
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, Labels: labels, UID: types.UID(name)},
		Spec:       appsv1.DeploymentSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}, Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": name}}}},
		Status:     appsv1.DeploymentStatus{Replicas: 1, UpdatedReplicas: 1, AvailableReplicas: 1},
	}
}

// oldPod is a pod of such a Deployment, with the proxy of before.
func oldPod(ns, name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: ns, Name: name + "-1-x", Labels: map[string]string{"app": name, "pod-template-hash": "1"},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: name + "-1", UID: "rs", Controller: new(true)}},
		},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: inject.ProxyContainer, Image: proxyBefore}}},
	}
}

func (u *upgrader) rolledFor(t *testing.T, ns, name string) string {
	t.Helper()
	d := &appsv1.Deployment{}
	if err := u.client.Get(t.Context(), types.NamespacedName{Namespace: ns, Name: name}, d); err != nil {
		t.Fatal(err)
	}
	return d.Spec.Template.Annotations[upgrade.Annotation]
}

// TestUpgrader: who asks is rolled when that is allowed and the control plane itself
// is of the new version, one after the other; who doesn't ask never is (contract 5.7).
func TestUpgrader(t *testing.T) {
	ask := map[string]string{upgrade.Label: "true"}
	istiod := rolledOut(testNamespace, settings.ServiceName, nil)
	paused := rolledOut("pay", "api", ask)
	paused.Spec.Paused = true
	guarded := rolledOut("guarded", "web", ask)
	guarded.Spec.Strategy.Type = appsv1.RecreateDeploymentStrategyType
	c := fakeClient(istiod, namespace("shop", ask), namespace("pay", nil), namespace("guarded", nil),
		rolledOut("shop", "cart", nil), oldPod("shop", "cart"), rolledOut("shop", "web", nil), oldPod("shop", "web"), rolledOut("shop", "idle", nil),
		paused, oldPod("pay", "api"), rolledOut("pay", "quiet", nil), oldPod("pay", "quiet"), guarded, oldPod("guarded", "web"),
		&policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: "guarded", Name: "pdb"}, Spec: policyv1.PodDisruptionBudgetSpec{Selector: &metav1.LabelSelector{}}},
	)
	recorder := events.NewFakeRecorder(20)
	var s settings.Settings
	u := &upgrader{client: c, live: c, settings: func() (settings.Settings, error) { return s, nil }, namespace: testNamespace, image: proxyNow, events: recorder, log: quietLog}
	step := func(want map[string]string) {
		t.Helper()
		if err := u.step(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"shop/cart", "shop/web", "shop/idle", "pay/api", "pay/quiet", "guarded/web"} {
			ns, name, _ := strings.Cut(name, "/")
			if got := u.rolledFor(t, ns, name); got != want[ns+"/"+name] {
				t.Errorf("%s/%s is rolled for %q, want %q", ns, name, got, want[ns+"/"+name])
			}
		}
	}
	update := func(o client.Object, change func()) {
		t.Helper()
		if err := c.Get(t.Context(), client.ObjectKeyFromObject(o), o); err != nil {
			t.Fatal(err)
		}
		change()
		if err := c.Status().Update(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	step(nil) // it is off
	s.AutoUpgrade = true
	update(istiod, func() { istiod.Status.UpdatedReplicas = 0 })
	step(nil) // replicas of before would inject the proxy of before
	update(istiod, func() { istiod.Status.UpdatedReplicas = 1 })
	step(map[string]string{"shop/cart": "v2"})
	cart := rolledOut("shop", "cart", nil)
	update(cart, func() { cart.Status.AvailableReplicas = 0 })
	step(map[string]string{"shop/cart": "v2"}) // one at a time in a namespace
	update(cart, func() { cart.Status.AvailableReplicas = 1 })
	if err := c.Delete(t.Context(), oldPod("shop", "cart")); err != nil {
		t.Fatal(err)
	}
	step(map[string]string{"shop/cart": "v2", "shop/web": "v2"})
	var said []string
	for len(recorder.Events) > 0 {
		said = append(said, <-recorder.Events)
	}
	text := strings.Join(said, "\n")
	if len(said) != 3 || strings.Count(text, "Normal ProxyUpgrade rolled, so that its pods get the proxy podseal.io/podseal-proxy:v2") != 2 || !strings.Contains(text, "Warning ProxyNotUpgraded its pods have an older proxy, and it is not rolled: it is paused") {
		t.Errorf("Events:\n%s", text)
	}
}
