package install

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"podseal.io/podseal/api/deckhouse/v1alpha1"
	"podseal.io/podseal/internal/settings"
)

// world is a cluster with a manager.
type world struct {
	t       *testing.T
	c       client.Client
	m       *Manager
	changed []string // "apply Kind name", "delete Kind name", in order
}

func newWorld(t *testing.T, objects ...client.Object) *world {
	t.Helper()
	scheme, err := Scheme()
	if err != nil {
		t.Fatal(err)
	}
	if err := apiextensionsv1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	w := &world{t: t}
	w.c = fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).
		WithStatusSubresource(&v1alpha1.ModuleConfig{}).
		WithReturnManagedFields().
		WithInterceptorFuncs(interceptor.Funcs{
			Apply: func(ctx context.Context, c client.WithWatch, obj runtime.ApplyConfiguration, opts ...client.ApplyOption) error {
				var meta struct {
					Kind     string
					Metadata struct{ Name string }
				}
				raw, err := json.Marshal(obj)
				if err != nil {
					return err
				}
				if err := json.Unmarshal(raw, &meta); err != nil {
					return err
				}
				w.changed = append(w.changed, "apply "+meta.Kind+" "+meta.Metadata.Name)
				return c.Apply(ctx, obj, opts...)
			},
			Delete: func(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.DeleteOption) error {
				w.changed = append(w.changed, "delete "+obj.GetObjectKind().GroupVersionKind().Kind+" "+obj.GetName())
				return c.Delete(ctx, obj, opts...)
			},
		}).Build()
	w.m = &Manager{Client: w.c, Values: Values{"image": map[string]any{"tag": "v1"}}, Log: slog.New(slog.DiscardHandler)}
	return w
}

func (w *world) reconcile() string {
	w.t.Helper()
	if _, err := w.m.Reconcile(w.t.Context(), reconcile.Request{}); err != nil {
		w.t.Fatal(err)
	}
	mc := &v1alpha1.ModuleConfig{}
	if err := w.c.Get(w.t.Context(), types.NamespacedName{Name: "istio"}, mc); err != nil {
		return ""
	}
	return mc.Status.Message
}

func (w *world) set(change func(*v1alpha1.ModuleConfig)) {
	w.t.Helper()
	mc := &v1alpha1.ModuleConfig{}
	if err := w.c.Get(w.t.Context(), types.NamespacedName{Name: "istio"}, mc); err != nil {
		w.t.Fatal(err)
	}
	change(mc)
	if err := w.c.Update(w.t.Context(), mc); err != nil {
		w.t.Fatal(err)
	}
}

func get[T client.Object](w *world, o T, namespace, name string) T {
	w.t.Helper()
	if err := w.c.Get(w.t.Context(), types.NamespacedName{Namespace: namespace, Name: name}, o); err != nil {
		w.t.Fatal(err)
	}
	return o
}

func (w *world) has(o client.Object, namespace, name string) bool {
	w.t.Helper()
	err := w.c.Get(w.t.Context(), types.NamespacedName{Namespace: namespace, Name: name}, o)
	if err != nil && !apierrors.IsNotFound(err) {
		w.t.Fatal(err)
	}
	return err == nil
}

// live makes the control plane do its part: it is available and has signed.
func (w *world) live() {
	w.t.Helper()
	ctx := w.t.Context()
	d := get(w, &appsv1.Deployment{}, "d8-istio", "istiod")
	n := *d.Spec.Replicas
	d.Status = appsv1.DeploymentStatus{ObservedGeneration: d.Generation, Replicas: n, UpdatedReplicas: n, AvailableReplicas: n}
	if err := w.c.Status().Update(ctx, d); err != nil {
		w.t.Fatal(err)
	}
	m := get(w, &admissionv1.MutatingWebhookConfiguration{}, "", InjectorName)
	for i := range m.Webhooks {
		m.Webhooks[i].ClientConfig.CABundle = []byte("bundle")
	}
	v := get(w, &admissionv1.ValidatingWebhookConfiguration{}, "", ValidatorName)
	for i := range v.Webhooks {
		v.Webhooks[i].ClientConfig.CABundle = []byte("bundle")
		v.Webhooks[i].FailurePolicy = new(admissionv1.Fail)
	}
	for _, o := range []client.Object{m, v} {
		if err := w.c.Update(ctx, o, client.FieldOwner("istiod")); err != nil {
			w.t.Fatal(err)
		}
	}
}

func moduleConfig(enabled bool, version int, text string) *v1alpha1.ModuleConfig {
	mc := &v1alpha1.ModuleConfig{ObjectMeta: metav1.ObjectMeta{Name: "istio"}}
	mc.Spec.Enabled, mc.Spec.Version = &enabled, version
	if text != "" {
		mc.Spec.Settings = &runtime.RawExtension{Raw: []byte(text)}
	}
	return mc
}

func TestEnable(t *testing.T) {
	w := newWorld(t, moduleConfig(true, 2, ""))
	if got := w.reconcile(); !strings.HasPrefix(got, "Waiting for Deployment d8-istio/istiod") {
		t.Errorf("message %q", got)
	}
	if got := w.changed[1]; got != "apply MutatingWebhookConfiguration "+InjectorName {
		t.Errorf("behind the namespace comes %q: pods could start without a proxy", got)
	}
	secret := get(w, &corev1.Secret{}, "d8-istio", settings.SettingsSecret)
	var s settings.Settings
	if err := json.Unmarshal(secret.Data["settings.json"], &s); err != nil || s.TrustDomain != "cluster.local" {
		t.Errorf("settings.json: %+v, %v", s, err)
	}
	w.live()
	if got := w.reconcile(); got != "Ready" {
		t.Errorf("message %q, want Ready", got)
	}
	if got := get(w, &v1alpha1.ModuleConfig{}, "", "istio").Status.Version; got != "2" {
		t.Errorf("status.version %q", got)
	}
}

func TestWaitsForTheWebhooksToBeSigned(t *testing.T) {
	w := newWorld(t, moduleConfig(true, 3, ""))
	w.reconcile()
	w.live()
	m := get(w, &admissionv1.MutatingWebhookConfiguration{}, "", InjectorName)
	m.Webhooks[2].ClientConfig.CABundle = nil
	if err := w.c.Update(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if got := w.reconcile(); !strings.Contains(got, InjectorName) || !strings.Contains(got, "caBundle") {
		t.Errorf("message %q", got)
	}
}

// The control plane owns caBundle, and failurePolicy of the validator: what the
// manager applies again must leave both alone (contract 1.36).
func TestReapplyKeepsWhatTheControlPlaneWrote(t *testing.T) {
	w := newWorld(t, moduleConfig(true, 3, ""))
	w.reconcile()
	for _, hook := range get(w, &admissionv1.ValidatingWebhookConfiguration{}, "", ValidatorName).Webhooks {
		if hook.FailurePolicy == nil || *hook.FailurePolicy != admissionv1.Ignore {
			t.Errorf("%s starts with failurePolicy %v", hook.Name, hook.FailurePolicy)
		}
	}
	w.reconcile() // again, before the control plane is there
	for _, hook := range get(w, &admissionv1.ValidatingWebhookConfiguration{}, "", ValidatorName).Webhooks {
		if hook.FailurePolicy == nil || *hook.FailurePolicy != admissionv1.Ignore {
			t.Errorf("%s: applied again, failurePolicy is %v", hook.Name, hook.FailurePolicy)
		}
	}
	w.live()
	w.set(func(mc *v1alpha1.ModuleConfig) {
		mc.Spec.Settings = &runtime.RawExtension{Raw: []byte(`{"controlPlane":{"replicasManagement":{"mode":"Static","static":{"replicas":2}}}}`)}
	})
	w.reconcile()
	for _, hook := range get(w, &admissionv1.MutatingWebhookConfiguration{}, "", InjectorName).Webhooks {
		if string(hook.ClientConfig.CABundle) != "bundle" {
			t.Errorf("%s lost its caBundle", hook.Name)
		}
	}
	for _, hook := range get(w, &admissionv1.ValidatingWebhookConfiguration{}, "", ValidatorName).Webhooks {
		if string(hook.ClientConfig.CABundle) != "bundle" || *hook.FailurePolicy != admissionv1.Fail {
			t.Errorf("%s: caBundle %q, failurePolicy %s", hook.Name, hook.ClientConfig.CABundle, *hook.FailurePolicy)
		}
	}
}

func TestDriftIsRepaired(t *testing.T) {
	w := newWorld(t, moduleConfig(true, 3, ""))
	w.reconcile()
	w.live()
	ctx := t.Context()
	m := get(w, &admissionv1.MutatingWebhookConfiguration{}, "", InjectorName)
	m.Webhooks[0].FailurePolicy = new(admissionv1.Ignore)
	if err := w.c.Update(ctx, m, client.FieldOwner("somebody")); err != nil {
		t.Fatal(err)
	}
	if err := w.c.Delete(ctx, get(w, &corev1.Service{}, "d8-istio", "istiod")); err != nil {
		t.Fatal(err)
	}
	w.reconcile()
	if got := get(w, &admissionv1.MutatingWebhookConfiguration{}, "", InjectorName).Webhooks[0]; *got.FailurePolicy != admissionv1.Fail {
		t.Errorf("failurePolicy stays %s", *got.FailurePolicy)
	}
	if !w.has(&corev1.Service{}, "d8-istio", "istiod") {
		t.Error("the Service is not there again")
	}
}

func TestReplicas(t *testing.T) {
	w := newWorld(t, moduleConfig(true, 3, `{"controlPlane":{"replicasManagement":{"mode":"Static","static":{"replicas":2}},"nodeSelector":{"a":"b"},"tolerations":[{"key":"k","operator":"Exists"}]}}`))
	w.reconcile()
	d := get(w, &appsv1.Deployment{}, "d8-istio", "istiod")
	if *d.Spec.Replicas != 2 || d.Spec.Template.Spec.NodeSelector["a"] != "b" || len(d.Spec.Template.Spec.Tolerations) != 1 {
		t.Errorf("replicas %d, nodeSelector %v, tolerations %v", *d.Spec.Replicas, d.Spec.Template.Spec.NodeSelector, d.Spec.Template.Spec.Tolerations)
	}
	if !w.has(&policyv1.PodDisruptionBudget{}, "d8-istio", "istiod") {
		t.Error("no PodDisruptionBudget for two replicas")
	}
	w.set(func(mc *v1alpha1.ModuleConfig) { mc.Spec.Settings = nil })
	w.reconcile()
	if w.has(&policyv1.PodDisruptionBudget{}, "d8-istio", "istiod") {
		t.Error("a PodDisruptionBudget for one replica, which then could never be evicted")
	}
}

// TestRightsOnRequest: the control plane may change workloads, and delete pods, only
// while it is asked for something that needs it.
func TestRightsOnRequest(t *testing.T) {
	w := newWorld(t, moduleConfig(true, 3, ""))
	bound := func() (upgrade, repair bool) {
		return w.has(&rbacv1.ClusterRoleBinding{}, "", "podseal-auto-upgrade"), w.has(&rbacv1.ClusterRoleBinding{}, "", "podseal-cni-repair")
	}
	for _, step := range []struct {
		annotation, settings string
		values               Values
		upgrade, repair      bool
	}{
		{"", "", nil, false, false},
		{"true", "", nil, true, false},
		{"false", withPlugin, nil, false, true},
		{"", withPlugin, Values{"cni": map[string]any{"repair": false}}, false, false},
		{"", "", nil, false, false},
	} {
		w.m.Values = step.values
		w.set(func(mc *v1alpha1.ModuleConfig) {
			mc.Annotations = map[string]string{settings.AnnotationAutoUpgrade: step.annotation}
			mc.Spec.Settings = nil
			if step.settings != "" {
				mc.Spec.Settings = &runtime.RawExtension{Raw: []byte(step.settings)}
			}
		})
		w.reconcile()
		w.reconcile()
		if upgrade, repair := bound(); upgrade != step.upgrade || repair != step.repair {
			t.Errorf("%+v: bound auto-upgrade %t, repair %t", step, upgrade, repair)
		}
		args := strings.Join(get(w, &appsv1.Deployment{}, "d8-istio", "istiod").Spec.Template.Spec.Containers[0].Args, " ")
		if off := strings.Contains(args, "--repair-pods=false"); off != (step.values != nil) {
			t.Errorf("%+v: arguments %s", step, args)
		}
	}
}

func TestWrongSettings(t *testing.T) {
	const wrong = `{"outboundTrafficPolicyMode":"Sometimes","sidecar":{"excludeInboundPorts":["x"]}}`
	w := newWorld(t, moduleConfig(true, 3, wrong))
	got := w.reconcile()
	if !strings.HasPrefix(got, messageRefused) || !strings.Contains(got, "outboundTrafficPolicyMode") || !strings.Contains(got, "excludeInboundPorts") {
		t.Errorf("message %q does not name both faults", got)
	}
	if len(w.changed) > 0 {
		t.Errorf("something was applied: %v", w.changed)
	}
	w.set(func(mc *v1alpha1.ModuleConfig) {
		mc.Spec.Settings.Raw = []byte(`{"outboundTrafficPolicyMode":"RegistryOnly"}`)
	})
	w.reconcile()
	w.live()
	w.set(func(mc *v1alpha1.ModuleConfig) { mc.Spec.Settings.Raw = []byte(wrong) })
	got = w.reconcile()
	if !strings.HasPrefix(got, messageKept) || !strings.Contains(got, "Sometimes") {
		t.Errorf("message %q", got)
	}
	if s := string(get(w, &corev1.Secret{}, "d8-istio", settings.SettingsSecret).Data[settingsKey]); !strings.Contains(s, `"registryOnly":true`) {
		t.Errorf("the last good settings are gone: %s", s)
	}
}

func TestWarnings(t *testing.T) {
	w := newWorld(t, moduleConfig(true, 3, `{"telemetryAPI":{"enabled":true}}`))
	w.reconcile()
	w.live()
	if got := w.reconcile(); !strings.HasPrefix(got, "Ready\nWarning: ") || !strings.Contains(got, "telemetryAPI") {
		t.Errorf("message %q", got)
	}
}

func TestDisable(t *testing.T) {
	for name, off := range map[string]func(*world){
		"disabled": func(w *world) {
			w.set(func(mc *v1alpha1.ModuleConfig) { mc.Spec.Enabled = new(bool) })
		},
		"deleted": func(w *world) {
			if err := w.c.Delete(w.t.Context(), get(w, &v1alpha1.ModuleConfig{}, "", "istio")); err != nil {
				w.t.Fatal(err)
			}
		},
		"enabled left out": func(w *world) {
			w.set(func(mc *v1alpha1.ModuleConfig) { mc.Spec.Enabled = nil })
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, moduleConfig(true, 3, ""),
				&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "d8-istio", Name: settings.CASecret}},
				&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: settings.RootConfigMap}})
			w.reconcile()
			w.live()
			off(w)
			w.changed = nil
			if got := w.reconcile(); got != "" {
				t.Errorf("message %q", got)
			}
			if !strings.Contains(w.changed[0], "WebhookConfiguration") || !strings.Contains(w.changed[1], "WebhookConfiguration") {
				t.Errorf("the webhooks do not go first: %v", w.changed)
			}
			for _, o := range []client.Object{&appsv1.Deployment{}, &corev1.Service{}, &corev1.ServiceAccount{}} {
				if w.has(o, "d8-istio", "istiod") {
					t.Errorf("%T is still there", o)
				}
			}
			if w.has(&rbacv1.ClusterRoleBinding{}, "", "podseal-control-plane") || w.has(&corev1.Secret{}, "d8-istio", settings.SettingsSecret) {
				t.Error("the binding or the settings are still there")
			}
			if !w.has(&corev1.Secret{}, "d8-istio", settings.CASecret) || !w.has(&corev1.Namespace{}, "", "d8-istio") {
				t.Error("the root is gone: workloads would not trust each other after enabling again")
			}
			w.changed = nil
			w.reconcile()
			if len(w.changed) > 0 {
				t.Errorf("disabled, looked at again: %v", w.changed)
			}
		})
	}
}

// plugin makes the DaemonSet of the CNI plugin have done its work on so many nodes of
// two.
func (w *world) plugin(done int32) {
	w.t.Helper()
	ds := get(w, &appsv1.DaemonSet{}, "d8-istio", CNIDaemonSet)
	ds.Status = appsv1.DaemonSetStatus{ObservedGeneration: ds.Generation, DesiredNumberScheduled: 2, UpdatedNumberScheduled: 2, NumberReady: done}
	if err := w.c.Status().Update(w.t.Context(), ds); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) pluginMode() string {
	w.t.Helper()
	ds := get(w, &appsv1.DaemonSet{}, "d8-istio", CNIDaemonSet)
	for _, e := range ds.Spec.Template.Spec.Containers[0].Env {
		if e.Name == "CNI_MODE" {
			return e.Value
		}
	}
	return ""
}

// inForce reports whether the control plane is told to rely on the CNI plugin.
func (w *world) inForce() bool {
	w.t.Helper()
	return strings.Contains(string(get(w, &corev1.Secret{}, "d8-istio", settings.SettingsSecret).Data[settingsKey]), `"cniPlugin":true`)
}

func (w *world) podSecurity() string {
	w.t.Helper()
	return get(w, &corev1.Namespace{}, "", "d8-istio").Labels["pod-security.kubernetes.io/enforce"]
}

const withPlugin = `{"dataPlane":{"trafficRedirectionSetupMode":"CNIPlugin"}}`

// New pods rely on the plugin only once every node has it, whatever happens to a node
// later; from the moment that it is to go they don't, and it goes from the nodes before
// its DaemonSet does (contract 5.52).
func TestCNIPluginComesAndGoes(t *testing.T) {
	w := newWorld(t, moduleConfig(true, 3, withPlugin))
	w.reconcile()
	w.live()
	if w.plugin(1); !strings.Contains(w.reconcile(), "the CNI plugin is on 1 of 2 nodes") || w.inForce() || w.pluginMode() != "install" || w.podSecurity() != "privileged" {
		t.Errorf("one node lacks it: in force %t, mode %s, Pod Security %s", w.inForce(), w.pluginMode(), w.podSecurity())
	}
	if w.plugin(2); w.reconcile() != "Ready" || !w.inForce() {
		t.Errorf("every node has it: in force %t", w.inForce())
	}
	if w.plugin(1); w.reconcile() != "Ready" || !w.inForce() {
		t.Errorf("a node is away: in force %t", w.inForce())
	}
	w.set(func(mc *v1alpha1.ModuleConfig) { mc.Spec.Settings = nil })
	if got := w.reconcile(); w.inForce() || w.pluginMode() != "remove" || w.podSecurity() != "privileged" {
		t.Errorf("%s: in force %t, mode %s, Pod Security %s", got, w.inForce(), w.pluginMode(), w.podSecurity())
	}
	if w.plugin(1); !strings.Contains(w.reconcile(), "removed from 1 of 2 nodes") {
		t.Error("it does not wait for the second node")
	}
	if w.plugin(2); w.reconcile() != "Ready" || w.has(&appsv1.DaemonSet{}, "d8-istio", CNIDaemonSet) || w.podSecurity() != "restricted" {
		t.Errorf("the DaemonSet is still there, or Pod Security is %s", w.podSecurity())
	}
}

// Disabling, and uninstalling, take the plugin off the nodes as well.
func TestCNIPluginGoesWithTheMesh(t *testing.T) {
	w := newWorld(t, moduleConfig(true, 3, withPlugin))
	w.reconcile()
	w.live()
	w.plugin(2)
	w.reconcile()
	w.set(func(mc *v1alpha1.ModuleConfig) { mc.Spec.Enabled = new(bool) })
	if w.reconcile(); w.pluginMode() != "remove" || w.has(&appsv1.Deployment{}, "d8-istio", "istiod") {
		t.Error("disabled: the plugin stays, or the control plane does")
	}
	if w.reconcile(); w.has(&appsv1.DaemonSet{}, "d8-istio", CNIDaemonSet) || w.podSecurity() != "restricted" {
		t.Error("the nodes are done, and the DaemonSet is still there")
	}
	w = newWorld(t, moduleConfig(true, 3, withPlugin))
	w.reconcile()
	w.live()
	w.plugin(1)
	c := &Cluster{Client: w.c, Owner: OwnerCLI}
	long, short := time.Now().Add(-time.Hour), time.Now()
	if text, err := c.removeCNI(t.Context(), short); err != nil || !strings.Contains(text, "to be removed") || w.pluginMode() != "remove" {
		t.Errorf("%q, %v", text, err)
	}
	w.plugin(1)
	if text, err := c.removeCNI(t.Context(), short); err != nil || !strings.Contains(text, "1 of 2") {
		t.Errorf("%q, %v", text, err)
	}
	if text, err := c.removeCNI(t.Context(), long); err != nil || text != "" || w.has(&appsv1.DaemonSet{}, "d8-istio", CNIDaemonSet) {
		t.Errorf("a node that is away for long holds everything up: %q, %v", text, err)
	}
	if text, err := c.removeCNI(t.Context(), short); err != nil || text != "" {
		t.Errorf("nothing to remove: %q, %v", text, err)
	}
}

func TestMaintenance(t *testing.T) {
	w := newWorld(t, moduleConfig(true, 3, ""))
	w.reconcile()
	w.live()
	w.set(func(mc *v1alpha1.ModuleConfig) { mc.Spec.Maintenance = v1alpha1.NoResourceReconciliation })
	d := get(w, &appsv1.Deployment{}, "d8-istio", "istiod")
	d.Spec.Replicas = new(int32(5))
	if err := w.c.Update(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	if got := w.reconcile(); got != messageMaintenance {
		t.Errorf("message %q", got)
	}
	d = get(w, &appsv1.Deployment{}, "d8-istio", "istiod")
	if *d.Spec.Replicas != 5 || d.Labels["maintenance"] != "NoResourceReconciliation" {
		t.Errorf("replicas %d, label %q", *d.Spec.Replicas, d.Labels["maintenance"])
	}
	w.set(func(mc *v1alpha1.ModuleConfig) { mc.Spec.Maintenance = "" })
	w.reconcile()
	d = get(w, &appsv1.Deployment{}, "d8-istio", "istiod")
	if _, there := d.Labels["maintenance"]; there || *d.Spec.Replicas != 1 {
		t.Errorf("after maintenance: replicas %d, labels %v", *d.Spec.Replicas, d.Labels)
	}
}

// Deckhouse owns the status of its ModuleConfigs; the answer goes elsewhere.
func TestUnderDeckhouse(t *testing.T) {
	w := newWorld(t, moduleConfig(true, 3, ""), &apiextensionsv1.CustomResourceDefinition{
		ObjectMeta: metav1.ObjectMeta{Name: "moduleconfigs.deckhouse.io", Labels: map[string]string{"heritage": "deckhouse"}},
	})
	if got := w.reconcile(); got != "" {
		t.Errorf("wrote %q into Deckhouse's status", got)
	}
	if got := get(w, &corev1.ConfigMap{}, "podseal-system", StatusConfigMap).Data["message"]; !strings.HasPrefix(got, "Waiting for ") {
		t.Errorf("podseal-status says %q", got)
	}
}

func TestAnotherMeshIsNotTakenOver(t *testing.T) {
	w := newWorld(t, moduleConfig(true, 3, ""), &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "d8-istio", Name: "istiod"}})
	if got := w.reconcile(); !strings.HasPrefix(got, messageFailed) || !strings.Contains(got, "Deployment d8-istio/istiod: exists and is not Podseal's") {
		t.Errorf("message %q", got)
	}
	w.set(func(mc *v1alpha1.ModuleConfig) { mc.Spec.Enabled = new(bool) })
	w.reconcile()
	if !w.has(&appsv1.Deployment{}, "d8-istio", "istiod") {
		t.Error("deleted what is not ours")
	}
}

func TestForeignCRDIsLeftAlone(t *testing.T) {
	w := newWorld(t, &apiextensionsv1.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: "moduleconfigs.deckhouse.io", Labels: map[string]string{"heritage": "deckhouse"}}})
	var got []string
	c := &Cluster{Client: w.c, Owner: OwnerCLI, Report: func(object string, r Result) { got = append(got, fmt.Sprint(object, " ", r)) }}
	if err := c.Apply(t.Context(), render(t, PartManager)); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(got, "CustomResourceDefinition moduleconfigs.deckhouse.io "+string(LeftAlone)) {
		t.Errorf("reported %v", got)
	}
	if err := c.Delete(t.Context(), render(t, PartManager)); err != nil {
		t.Fatal(err)
	}
	if !w.has(&apiextensionsv1.CustomResourceDefinition{}, "", "moduleconfigs.deckhouse.io") || w.has(&apiextensionsv1.CustomResourceDefinition{}, "", "peerauthentications.security.istio.io") {
		t.Error("deleted Deckhouse's CRD, or kept our own")
	}
}
